//! The kernels of the backward pass over rows of one type, of which the statistics are known.
//!
//! ```text
//! correlate:  c1 = rowsum(g) / n            c2 = (rowdot(g, x_hat) / n) * q            g = dy * weight
//! gradients:  dx = (fma(-x_hat, c2, g - c1)) * inv
//!             dweight's leaf = fma(dy, x_hat, leaf)         dbias's leaf = leaf + dy
//! ```
//!
//! RMSNorm has no c1. A block of rows goes column by column through the second kernel, so that each stretch of a leaf
//! is read and written once a block. x_hat and g are rounded to `R` first, as the recipe says: the Llama recipe gives
//! x's storage type, the others the compute type.

use std::marker::PhantomData;

use crate::apply::{Hat, LINE};
use crate::element::{Compute, Element};
use crate::forward::RowNorm;
use crate::isa::Isa;
use crate::level::Kernel;
use crate::order::{LANES, Row, Terms, padded, reduce};
use crate::rows::{Run, RunMut};
use crate::stats::{Eps, Stats};

/// What the gradient of one row needs besides the row.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Slope<C> {
    pub(crate) stats: Stats<C>,
    /// The mean of g.
    c1: C,
    /// Minus the mean of `g * x_hat`, times q.
    minus_c2: C,
}

impl<C: Compute> Slope<C> {
    pub(crate) fn of(stats: Stats<C>) -> Self {
        Slope { stats, c1: C::ZERO, minus_c2: C::ZERO }
    }
}

/// The means of g and `g * x_hat`, row by row.
pub(crate) struct Correlate<'a, N, T: Element, R> {
    pub(crate) hidden: usize,
    /// Elements that entered the statistics: n.
    pub(crate) measured: usize,
    pub(crate) eps: Eps<T::Compute>,
    pub(crate) x: Run<'a, T>,
    pub(crate) dy: Run<'a, T>,
    pub(crate) weight: &'a [T::Compute],
    pub(crate) rows: &'a mut [Slope<T::Compute>],
    pub(crate) norm: PhantomData<(N, R)>,
}

impl<C, N, T, R> Kernel<C> for Correlate<'_, N, T, R>
where
    C: Compute,
    N: RowNorm,
    T: Element<Compute = C>,
    R: Element<Compute = C>,
{
    type Output = ();

    #[inline(always)]
    fn eval<S: Isa<C>>(self, isa: S) {
        let Correlate { hidden, eps, .. } = self;
        let count = C::from_count(self.measured);
        let weight = Row::new(&self.weight[..hidden]);
        for i in 0..self.rows.len() {
            let slope = &mut self.rows[i];
            let (x, dy) = (Row::new(self.x.row(i, hidden)), Row::new(self.dy.row(i, hidden)));
            let stats = slope.stats;
            let products = Products::<T, N::Hat<C>, R> { x, dy, weight, stats, rounding: PhantomData };
            let dot;
            if N::CENTERED {
                let sum;
                [dot, sum] = reduce(isa, &products, hidden);
                slope.c1 = sum / count;
            } else {
                [dot] = reduce(isa, &products, hidden);
            }
            slope.minus_c2 = -eps.times_q(dot / count, &stats);
        }
    }
}

/// `g * x_hat`, and g.
struct Products<'a, T: Element, H, R> {
    x: Row<'a, T>,
    dy: Row<'a, T>,
    weight: Row<'a, T::Compute>,
    stats: Stats<T::Compute>,
    rounding: PhantomData<(H, R)>,
}

impl<C, T, H, R> Products<'_, T, H, R>
where
    C: Compute,
    T: Element<Compute = C>,
    H: Hat<C>,
    R: Element<Compute = C>,
{
    /// g and x_hat.
    #[inline(always)]
    fn read<S: Isa<C>>(&self, isa: S, at: usize, n: usize) -> [S::V; 2] {
        let x_hat = H::x_hat(isa, H::splat(isa, &self.stats), self.x.read(isa, at, n));
        [R::round(isa, isa.mul(self.dy.read(isa, at, n), self.weight.read(isa, at, n))), x_hat]
    }

    #[inline(always)]
    fn part(&self, leaf: usize, leaves: usize) -> Self {
        let Products { x, dy, weight, stats, rounding } = *self;
        let [x, dy] = [x, dy].map(|row| row.whole_leaves(leaf, leaves));
        Products { x, dy, weight: weight.whole_leaves(leaf, leaves), stats, rounding }
    }
}

impl<C, T, H, R> Terms<C, 1> for Products<'_, T, H, R>
where
    C: Compute,
    T: Element<Compute = C>,
    H: Hat<C>,
    R: Element<Compute = C>,
{
    #[inline(always)]
    fn step<S: Isa<C>>(&self, isa: S, [dot]: [S::V; 1], at: usize, n: usize) -> [S::V; 1] {
        let [g, x_hat] = self.read(isa, at, n);
        [isa.fma(g, x_hat, dot)]
    }
    #[inline(always)]
    fn whole_leaves(&self, leaf: usize, leaves: usize) -> Option<Self> {
        Some(self.part(leaf, leaves))
    }
}

impl<C, T, H, R> Terms<C, 2> for Products<'_, T, H, R>
where
    C: Compute,
    T: Element<Compute = C>,
    H: Hat<C>,
    R: Element<Compute = C>,
{
    #[inline(always)]
    fn step<S: Isa<C>>(&self, isa: S, [dot, sum]: [S::V; 2], at: usize, n: usize) -> [S::V; 2] {
        let [g, x_hat] = self.read(isa, at, n);
        [isa.fma(g, x_hat, dot), isa.add(sum, g)]
    }
    #[inline(always)]
    fn whole_leaves(&self, leaf: usize, leaves: usize) -> Option<Self> {
        Some(self.part(leaf, leaves))
    }
}

/// The open leaf of the parameters' gradients, where they are wanted.
pub(crate) struct Leaf<'a, C> {
    pub(crate) dweight: Option<&'a mut [C]>,
    pub(crate) dbias: Option<&'a mut [C]>,
}

/// A block of rows of dx, and what they add to the parameters' gradients.
pub(crate) struct Gradients<'a, N, T: Element, R> {
    pub(crate) hidden: usize,
    pub(crate) x: Run<'a, T>,
    /// `None`: what dx holds.
    pub(crate) dy: Option<Run<'a, T>>,
    pub(crate) dx: RunMut<'a, T>,
    pub(crate) weight: &'a [T::Compute],
    pub(crate) rows: &'a [Slope<T::Compute>],
    pub(crate) leaf: Leaf<'a, T::Compute>,
    pub(crate) way: Way,
    pub(crate) norm: PhantomData<(N, R)>,
}

/// How dx is written, and what is asked for meanwhile.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Way {
    /// Whether dx is written past the caches.
    pub(crate) past: bool,
    /// Elements from x and dy to what is read next, where that is worth asking for.
    pub(crate) ahead: Option<[isize; 2]>,
}

impl<C, N, T, R> Kernel<C> for Gradients<'_, N, T, R>
where
    C: Compute,
    N: RowNorm,
    T: Element<Compute = C>,
    R: Element<Compute = C>,
{
    type Output = ();

    #[inline(always)]
    fn eval<S: Isa<C>>(mut self, isa: S) {
        let hidden = self.hidden;
        // Stores past the caches want whole lines: chunks begin where one does, in every row.
        let head = if self.way.past { self.dx.lead(LINE).unwrap_or(0).min(hidden) } else { 0 };
        if head > 0 {
            self.part(isa, 0, head);
        }
        let mut at = head;
        while at + LANES <= hidden {
            self.chunk(isa, at);
            at += LANES;
        }
        if at < hidden {
            self.part(isa, at, hidden - at);
        }
    }
}

impl<C, N, T, R> Gradients<'_, N, T, R>
where
    C: Compute,
    N: RowNorm,
    T: Element<Compute = C>,
    R: Element<Compute = C>,
{
    /// dx, x_hat as dweight takes it, from x, dy and weight.
    #[inline(always)]
    fn row<S: Isa<C>>(isa: S, slope: &Slope<C>, x: S::V, dy: S::V, weight: S::V) -> [S::V; 2] {
        let x_hat = N::Hat::x_hat(isa, N::Hat::splat(isa, &slope.stats), x);
        let mut g = R::round(isa, isa.mul(dy, weight));
        if N::CENTERED {
            g = isa.sub(g, isa.splat(slope.c1));
        }
        let dx = isa.mul(isa.fma(x_hat, isa.splat(slope.minus_c2), g), isa.splat(slope.stats.inv));
        [dx, R::round(isa, x_hat)]
    }

    /// 32 columns of all rows.
    #[inline(always)]
    fn chunk<S: Isa<C>>(&mut self, isa: S, at: usize) {
        let weight = isa.load(chunk(self.weight, at));
        let mut dweight = self.leaf.dweight.as_ref().map_or(isa.splat(C::ZERO), |leaf| isa.load(chunk(leaf, at)));
        let mut dbias = self.leaf.dbias.as_ref().map_or(isa.splat(C::ZERO), |leaf| isa.load(chunk(leaf, at)));
        for i in 0..self.rows.len() {
            let from = self.x.chunk(i, at);
            let x = T::load(isa, from);
            let to = self.dx.chunk_mut(i, at);
            let dy = match &self.dy {
                Some(dy) => {
                    let dy = dy.chunk(i, at);
                    if let Some([ahead, dy_ahead]) = self.way.ahead {
                        isa.prefetch_second(from, ahead);
                        isa.prefetch_second(dy, dy_ahead);
                    }
                    T::load(isa, dy)
                }
                None => T::load(isa, to),
            };
            let [dx, x_hat] = Self::row(isa, &self.rows[i], x, dy, weight);
            if self.way.past { T::store_past(isa, dx, to) } else { T::store(isa, dx, to) }
            dweight = isa.fma(dy, x_hat, dweight);
            dbias = isa.add(dbias, dy);
        }
        if let Some(leaf) = &mut self.leaf.dweight {
            isa.store(dweight, chunk_mut(leaf, at));
        }
        if let Some(leaf) = &mut self.leaf.dbias {
            isa.store(dbias, chunk_mut(leaf, at));
        }
    }

    /// `n < 32` columns of all rows.
    #[inline(always)]
    fn part<S: Isa<C>>(&mut self, isa: S, at: usize, n: usize) {
        let columns = at..at + n;
        let weight = isa.load(&padded(&self.weight[columns.clone()]));
        let read = |leaf: &Option<&mut [C]>| {
            leaf.as_ref().map_or(isa.splat(C::ZERO), |leaf| isa.load(&padded(&leaf[columns.clone()])))
        };
        let (mut dweight, mut dbias) = (read(&self.leaf.dweight), read(&self.leaf.dbias));
        for i in 0..self.rows.len() {
            let x = T::load(isa, &padded(&self.x.row(i, self.hidden)[columns.clone()]));
            let to = &mut self.dx.row_mut(i, self.hidden)[columns.clone()];
            let dy = self.dy.as_ref().map_or(&*to, |dy| &dy.row(i, self.hidden)[columns.clone()]);
            let dy = T::load(isa, &padded(dy));
            let [dx, x_hat] = Self::row(isa, &self.rows[i], x, dy, weight);
            let mut own = [T::default(); LANES];
            T::store(isa, dx, &mut own);
            to.copy_from_slice(&own[..n]);
            dweight = isa.fma(dy, x_hat, dweight);
            dbias = isa.add(dbias, dy);
        }
        for (leaf, sums) in [(&mut self.leaf.dweight, dweight), (&mut self.leaf.dbias, dbias)] {
            if let Some(leaf) = leaf {
                let mut own = [C::ZERO; LANES];
                isa.store(sums, &mut own);
                leaf[columns.clone()].copy_from_slice(&own[..n]);
            }
        }
    }
}

/// 32 elements from `at` on.
#[inline(always)]
fn chunk<T>(from: &[T], at: usize) -> &[T; LANES] {
    let (chunk, _) = from[at..at + LANES].as_chunks::<LANES>();
    &chunk[0]
}

/// 32 elements from `at` on.
#[inline(always)]
fn chunk_mut<T>(from: &mut [T], at: usize) -> &mut [T; LANES] {
    let (chunk, _) = from[at..at + LANES].as_chunks_mut::<LANES>();
    &mut chunk[0]
}
