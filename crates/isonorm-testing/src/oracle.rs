//! The contract by definition: recursion where the library counts, one element at a time where it
//! takes 32. Slow, and meant to be compared with `spec/order.md` and `spec/norms.md` line by line.
//!
//! Everything works on values of the compute type; storage types enter through [`narrow`].

pub mod backward;
pub mod forward;

use std::fmt::Debug;
use std::ops::{Add, Div, Mul, Neg, Sub};

use crate::dtype::{DType, power_of_two};

/// A compute type: f32 or f64.
pub trait Compute:
    Copy
    + Debug
    + PartialOrd
    + Add<Output = Self>
    + Sub<Output = Self>
    + Mul<Output = Self>
    + Div<Output = Self>
    + Neg<Output = Self>
{
    /// Its name as a storage type.
    const DTYPE: DType;
    /// The exponents of the range rule: moment, eps inside the root, eps outside, limit of the scale.
    const RANGE: [i32; 4];
    /// `self * b + c` with one rounding.
    fn fma(self, b: Self, c: Self) -> Self;
    /// The square root.
    fn sqrt(self) -> Self;
    /// The nearest value of this type.
    fn from_f64(value: f64) -> Self;
    /// The same value.
    fn to_f64(self) -> f64;
    /// A count, rounded.
    fn count(n: usize) -> Self {
        Self::from_f64(n as f64)
    }
}

impl Compute for f32 {
    const DTYPE: DType = DType::F32;
    const RANGE: [i32; 4] = [-100, -76, -26, 126];
    fn fma(self, b: Self, c: Self) -> Self {
        self.mul_add(b, c)
    }
    fn sqrt(self) -> Self {
        f32::sqrt(self)
    }
    fn from_f64(value: f64) -> Self {
        value as f32
    }
    fn to_f64(self) -> f64 {
        f64::from(self)
    }
}

impl Compute for f64 {
    const DTYPE: DType = DType::F64;
    const RANGE: [i32; 4] = [-900, -840, -416, 1022];
    fn fma(self, b: Self, c: Self) -> Self {
        self.mul_add(b, c)
    }
    fn sqrt(self) -> Self {
        f64::sqrt(self)
    }
    fn from_f64(value: f64) -> Self {
        value
    }
    fn to_f64(self) -> f64 {
        self
    }
}

/// Rounds each value to a storage type once, and widens it again.
pub fn narrow<C: Compute>(values: &[C], dtype: DType) -> Vec<C> {
    values.iter().map(|v| C::from_f64(dtype.narrow(v.to_f64()))).collect()
}

// ---------------------------------------------------------------- order.md

/// Left part: the largest power of two of nodes below their number.
fn tree<V: Copy>(nodes: &[V], add: &impl Fn(V, V) -> V) -> V {
    match nodes {
        [node] => *node,
        _ => {
            let (left, right) = nodes.split_at(nodes.len().next_power_of_two() / 2);
            add(tree(left, add), tree(right, add))
        }
    }
}

fn fold<V: Copy>(lanes: &[V], add: &impl Fn(V, V) -> V) -> V {
    let [lane] = lanes else {
        let (low, high) = lanes.split_at(lanes.len() / 2);
        let halved: Vec<V> = low.iter().zip(high).map(|(l, h)| add(*l, *h)).collect();
        return fold(&halved, add);
    };
    *lane
}

/// Row order over `n` elements of any arithmetic; `step(acc, i)` takes element i into its lane.
pub fn row_order<V: Copy>(n: usize, zero: V, add: impl Fn(V, V) -> V, step: impl Fn(V, usize) -> V) -> V {
    if n == 0 {
        return zero;
    }
    let mut lanes = Vec::new();
    for lane in 0..32 {
        let leaf = |j: usize| {
            let elements = (128 * j + lane..(128 * j + 128).min(n)).step_by(32);
            elements.fold(zero, &step)
        };
        let leaves: Vec<V> = (0..n.div_ceil(128)).map(leaf).collect();
        lanes.push(tree(&leaves, &add));
    }
    fold(&lanes, &add)
}

/// Batch order over `rows` rows of any arithmetic.
pub fn batch_order<V: Copy>(rows: usize, zero: V, add: impl Fn(V, V) -> V, step: impl Fn(V, usize) -> V) -> V {
    let leaf = |j: usize| (16 * j..(16 * j + 16).min(rows)).fold(zero, &step);
    let leaves: Vec<V> = (0..rows.div_ceil(16)).map(leaf).collect();
    if leaves.is_empty() { zero } else { tree(&leaves, &add) }
}

/// The sum of a row.
pub fn row_sum<C: Compute>(x: &[C]) -> C {
    row_order(x.len(), C::count(0), |a, b| a + b, |acc, i| acc + x[i])
}

/// The sum of the products of two rows.
pub fn row_dot<C: Compute>(a: &[C], b: &[C]) -> C {
    row_order(a.len(), C::count(0), |l, r| l + r, |acc, i| a[i].fma(b[i], acc))
}

/// The sum of a column.
pub fn batch_sum<C: Compute>(x: &[C]) -> C {
    batch_order(x.len(), C::count(0), |a, b| a + b, |acc, r| acc + x[r])
}

/// The sum of the products of two columns.
pub fn batch_dot<C: Compute>(a: &[C], b: &[C]) -> C {
    batch_order(a.len(), C::count(0), |l, r| l + r, |acc, r| a[r].fma(b[r], acc))
}

/// How the elements of one normalized set are summed: a row, or a channel of planes.
#[derive(Clone, Copy, Debug)]
pub enum Sums {
    /// Row order.
    Row,
    /// Each sample's plane of this many elements in row order, then the samples in batch order.
    Planes(usize),
}

impl Sums {
    /// The sum of the set.
    pub fn sum<C: Compute>(self, x: &[C]) -> C {
        match self {
            Sums::Row => row_sum(x),
            Sums::Planes(spatial) => batch_sum(&x.chunks(spatial).map(row_sum).collect::<Vec<C>>()),
        }
    }

    /// The sum of the products of two sets.
    pub fn dot<C: Compute>(self, a: &[C], b: &[C]) -> C {
        match self {
            Sums::Row => row_dot(a, b),
            Sums::Planes(spatial) => {
                let planes = a.chunks(spatial).zip(b.chunks(spatial));
                batch_sum(&planes.map(|(p, q)| row_dot(p, q)).collect::<Vec<C>>())
            }
        }
    }
}

// ---------------------------------------------------------------- norms.md: one set of elements

/// eps, and where it is added.
#[derive(Clone, Copy, Debug)]
pub struct Eps {
    /// Before its rounding to the compute type.
    pub value: f64,
    /// To the root, instead of inside it.
    pub outside: bool,
}

/// The computation of one set that stood: what backward needs of it.
#[derive(Clone, Debug)]
pub struct Statistics<C> {
    /// Zero in RMSNorm.
    pub mean: C,
    /// What the rounding of `mean` left.
    pub delta: C,
    /// `ms` or `var`.
    pub moment: C,
    /// Its square root.
    pub root: C,
    /// 1 over the root with eps.
    pub inv: C,
    /// The scale of the range rule.
    pub s: C,
    /// The eps that was used.
    pub eps: C,
    /// The normalized values.
    pub x_hat: Vec<C>,
}

impl<C: Compute> Statistics<C> {
    /// `(mean, var, rstd)` as reported.
    pub fn reported(&self) -> (C, C, C) {
        let var = (self.moment / self.s) / self.s;
        ((self.mean + self.delta) / self.s, var, self.inv * self.s)
    }
}

pub(crate) fn inverse_root<C: Compute>(moment: C, eps: C, outside: bool) -> (C, C) {
    let root = moment.sqrt();
    let below = if outside { root + eps } else { (moment + eps).sqrt() };
    (root, C::count(1) / below)
}

/// The scale of the range rule; `None` where the first result stands.
fn range_scale<C: Compute>(overflowed: bool, moment: C, x: &[C], eps: C, outside: bool) -> Option<C> {
    let [tiny, inside_below, outside_below, limit] = C::RANGE;
    let eps_below = power_of_two(if outside { outside_below } else { inside_below });
    let small = moment.to_f64() < power_of_two(tiny) && eps.to_f64() < eps_below;
    if !(overflowed || small) || x.iter().any(|v| !v.to_f64().is_finite()) {
        return None;
    }
    let mut largest = if outside { eps } else { eps.sqrt() }.to_f64();
    for v in x {
        let magnitude = v.to_f64().abs();
        if magnitude > largest {
            largest = magnitude;
        }
    }
    let mut s = 1.0;
    let least = power_of_two(-limit);
    while largest * s < 1.0 && largest > 0.0 && s < 1.0 / least {
        s *= 2.0;
    }
    while largest * s >= 2.0 && s > least {
        s /= 2.0;
    }
    (s != 1.0).then(|| C::from_f64(s))
}

/// `once(x, eps, s)` twice where the range rule asks for it.
fn in_range<C: Compute>(
    x: &[C],
    watched: usize,
    eps: Eps,
    once: impl Fn(&[C], C, C) -> (bool, Statistics<C>),
) -> Statistics<C> {
    let value = C::from_f64(eps.value);
    let (overflowed, first) = once(x, value, C::count(1));
    match range_scale(overflowed, first.moment, &x[..watched], value, eps.outside) {
        None => first,
        Some(s) => {
            let scaled: Vec<C> = x.iter().map(|v| *v * s).collect();
            let value = if eps.outside { value * s } else { (value * s) * s };
            once(&scaled, value, s).1
        }
    }
}

/// RMSNorm's row, of which the first `k` elements enter the mean square.
pub fn rms_statistics<C: Compute>(x: &[C], k: usize, eps: Eps) -> Statistics<C> {
    in_range(x, k, eps, |x, value, s| {
        let ss = row_dot(&x[..k], &x[..k]);
        let moment = ss / C::count(k);
        let (root, inv) = inverse_root(moment, value, eps.outside);
        let x_hat = x.iter().map(|v| *v * inv).collect();
        let zero = C::count(0);
        let stats = Statistics { mean: zero, delta: zero, moment, root, inv, s, eps: value, x_hat };
        (ss.to_f64().is_infinite(), stats)
    })
}

/// LayerNorm's row, GroupNorm's group, BatchNorm's channel.
pub fn centered_statistics<C: Compute>(x: &[C], sums: Sums, eps: Eps) -> Statistics<C> {
    let n = C::count(x.len());
    in_range(x, x.len(), eps, |x, value, s| {
        let total = sums.sum(x);
        let mean = total / n;
        let d: Vec<C> = x.iter().map(|v| *v - mean).collect();
        let (s1, s2) = (sums.sum(&d), sums.dot(&d, &d));
        let delta = s1 / n;
        let var = (-s1).fma(delta, s2) / n;
        let moment = if var <= C::count(0) { C::count(0) } else { var };
        let (root, inv) = inverse_root(moment, value, eps.outside);
        let x_hat = d.iter().map(|d| (*d - delta) * inv).collect();
        let overflowed = !(total.to_f64().is_finite() && s2.to_f64().is_finite());
        (overflowed, Statistics { mean, delta, moment, root, inv, s, eps: value, x_hat })
    })
}
