//! LayerNorm: each row with its mean taken off, divided by its standard deviation.

use std::ops::Range;

use crate::apply::CenteredHat;
use crate::backward::BackwardIo;
use crate::call::Call;
use crate::element::{Compute, Element};
use crate::error::Error;
use crate::forward::RowNorm;
use crate::io::Io;
use crate::isa::Isa;
use crate::order::{Row, Terms, reduce};
use crate::rows::{Rows, RowsMut};
use crate::shards::{Shard, Which};
use crate::slice::Slice;
use crate::stats::Stats;
use crate::threads::Cpu;

/// Takes the mean off each row of `x`, divides it by the standard deviation and applies `weight` and `bias`.
///
/// ```text
/// mean[r]    = mean_i(x[r,i])
/// var[r]     = mean_i((x[r,i] - mean[r])^2)
/// x_hat[r,i] = (x[r,i] - mean[r]) / sqrt(var[r] + eps)
/// y[r,i]     = x_hat[r,i] * (weight[i] + weight_offset) + bias[i]
/// ```
///
/// # Shapes
///
/// As [`RmsNorm`](crate::RmsNorm#shapes).
///
/// # Precision
///
/// Computed in f32 (f64 where x is f64) in the [canonical order](crate#the-order), in two passes of which
/// the second corrects the mean of the first: a row of mean 1000 and standard deviation 1 is as accurate as
/// one of mean 0. y is rounded once. Rows whose sums overflow or vanish are computed a second time, scaled
/// by a power of two. The same bits on every CPU, thread count, stride and position. `eps` is inside the
/// root and 1e-5 by default, as PyTorch's.
///
/// # Errors
///
/// An [`Error`] where lengths, types or options do not fit one another; nothing is written then.
///
/// # Example
///
/// ```
/// let x = [1.0f32, 2.0, 3.0];
/// let mut y = [0.0f32; 3];
/// isonorm::LayerNorm::new(3).forward(&x, &mut y)?;
/// assert_eq!(y, [-1.2247356, 0.0, 1.2247356]);
/// isonorm::LayerNorm::new(3).eps_outside().forward(&x, &mut y)?;
/// assert_eq!(y, [-1.2247298, 0.0, 1.2247298]);
/// # Ok::<(), isonorm::Error>(())
/// ```
///
/// Source: Ba, Kiros & Hinton, *Layer Normalization*, 2016. arXiv:1607.06450
#[derive(Clone, Copy, Debug)]
pub struct LayerNorm<'a> {
    call: Call<'a>,
}

impl<'a> LayerNorm<'a> {
    /// Rows of `hidden` elements, eps 1e-5, no weight, no bias.
    #[inline]
    pub fn new(hidden: usize) -> Self {
        LayerNorm { call: Call::new(hidden, 1e-5) }
    }
    /// Added to the variance; rounded to the compute type first.
    #[inline]
    pub fn eps(mut self, eps: f64) -> Self {
        self.call.eps.value = eps;
        self
    }
    /// eps outside the root: `(x - mean) / (std + eps)`.
    #[inline]
    pub fn eps_outside(mut self) -> Self {
        self.call.eps.outside = true;
        self
    }
    /// One factor for each element.
    #[inline]
    pub fn weight(mut self, weight: impl Into<Slice<'a>>) -> Self {
        self.call.params.weight = Some(weight.into());
        self
    }
    /// One summand for each element.
    #[inline]
    pub fn bias(mut self, bias: impl Into<Slice<'a>>) -> Self {
        self.call.params.bias = Some(bias.into());
        self
    }
    /// Added to every weight in the compute type: 1 for weights stored as distances from 1.
    #[inline]
    pub fn weight_offset(mut self, offset: f64) -> Self {
        self.call.params.offset = offset;
        self
    }
    /// Where it runs: level, threads, pool.
    #[inline]
    pub fn on(mut self, cpu: Cpu<'a>) -> Self {
        self.call.cpu = cpu;
        self
    }

    #[cfg(feature = "ndarray")]
    pub(crate) fn hidden(&self) -> usize {
        self.call.hidden
    }

    /// x to y; [`apply`](Self::apply) has the other forms.
    #[inline]
    pub fn forward<'t>(&self, x: impl Into<Rows<'t>>, y: impl Into<RowsMut<'t>>) -> Result<(), Error> {
        self.call.forward(Layer, x.into(), y.into())
    }

    /// In place, with a residual, saving statistics: whatever `io` says.
    pub fn apply(&self, io: Io<'_>) -> Result<(), Error> {
        self.call.apply(Layer, io)
    }

    /// Of each row these columns alone, which `weight` and `bias` are of then: the others are on other ranks.
    ///
    /// # Errors
    ///
    /// [`Error::Columns`] if they are not within a row.
    pub fn shard(&self, columns: Range<usize>) -> Result<Shard<'a>, Error> {
        Shard::new(self.call, Which::Layer, columns)
    }

    /// dx from dy, and the gradients of weight and bias: whatever `io` says.
    ///
    /// ```text
    /// g[r,i]     = dy[r,i] * (weight[i] + weight_offset)
    /// c1[r]      = mean_i(g[r,i])                         c2[r] = mean_i(g[r,i] * x_hat[r,i])
    /// dx[r,i]    = (g[r,i] - c1[r] - x_hat[r,i] * c2[r]) * rstd[r]
    /// dweight[i] = sum_r(dy[r,i] * x_hat[r,i])            dbias[i] = sum_r(dy[r,i])
    /// ```
    ///
    /// dx is rounded once, and so are dweight and dbias, which are summed over rows in batch order. With eps outside, c2
    /// has the factor `(root + eps) / root`. Saved statistics spare two passes over x and change no bit. An [`Error`]
    /// as in forward; nothing is written then.
    pub fn backward(&self, io: BackwardIo<'_>) -> Result<(), Error> {
        self.call.backward(Layer, io)
    }
}

/// LayerNorm's sums; GroupNorm's and, plane by plane, BatchNorm's too.
#[derive(Clone, Copy)]
pub(crate) struct Layer;

impl RowNorm for Layer {
    type Hat<C: Compute> = CenteredHat;
    const OF_LANGUAGE_MODELS: bool = false;
    const CENTERED: bool = true;

    #[inline(always)]
    fn measure<C, S, T, const SCALED: bool>(isa: S, row: &[T], scale: C) -> (Stats<C>, bool)
    where
        C: Compute,
        S: Isa<C>,
        T: Element<Compute = C>,
    {
        let count = C::from_count(row.len());
        let [sum] = reduce(isa, &Values::<T, SCALED> { row: Row::new(row), scale }, row.len());
        let mean = sum / count;
        let [s1, s2] = reduce(isa, &Deviations::<T, SCALED> { row: Row::new(row), scale, mean }, row.len());
        (centered(mean, s1, s2, count), !(sum.finite() & s2.finite()))
    }
}

/// The statistics from the first mean, the sum of the deviations and the sum of their squares.
#[inline(always)]
pub(crate) fn centered<C: Compute>(mean: C, s1: C, s2: C, count: C) -> Stats<C> {
    let delta = s1 / count;
    let var = (-s1).fused(delta, s2) / count;
    let var = if var <= C::ZERO { C::ZERO } else { var };
    Stats { mean, delta, var, ..Stats::default() }
}

/// `x`
pub(crate) struct Values<'a, T: Element, const SCALED: bool> {
    pub(crate) row: Row<'a, T>,
    pub(crate) scale: T::Compute,
}

/// `x - mean` and its square.
pub(crate) struct Deviations<'a, T: Element, const SCALED: bool> {
    pub(crate) row: Row<'a, T>,
    pub(crate) scale: T::Compute,
    pub(crate) mean: T::Compute,
}

impl<C: Compute, T: Element<Compute = C>, const SCALED: bool> Terms<C, 1> for Values<'_, T, SCALED> {
    #[inline(always)]
    fn step<S: Isa<C>>(&self, isa: S, [sum]: [S::V; 1], at: usize, n: usize) -> [S::V; 1] {
        let mut x = self.row.read_as(isa, at, n, true);
        if SCALED {
            x = isa.mul(x, isa.splat(self.scale));
        }
        [isa.add(sum, x)]
    }
    #[inline(always)]
    fn whole_leaves(&self, leaf: usize, leaves: usize) -> Option<Self> {
        Some(Values { row: self.row.whole_leaves(leaf, leaves), ..*self })
    }
    #[inline(always)]
    fn in_order<S: Isa<C>>(isa: S, v: S::V) -> S::V {
        T::in_order(isa, v)
    }
}

impl<C: Compute, T: Element<Compute = C>, const SCALED: bool> Terms<C, 2> for Deviations<'_, T, SCALED> {
    #[inline(always)]
    fn step<S: Isa<C>>(&self, isa: S, [s1, s2]: [S::V; 2], at: usize, n: usize) -> [S::V; 2] {
        let mut x = self.row.read_as(isa, at, n, true);
        if SCALED {
            x = isa.mul(x, isa.splat(self.scale));
        }
        let d = isa.sub(x, isa.splat(self.mean));
        [isa.add(s1, d), isa.fma(d, d, s2)]
    }
    #[inline(always)]
    fn whole_leaves(&self, leaf: usize, leaves: usize) -> Option<Self> {
        Some(Deviations { row: self.row.whole_leaves(leaf, leaves), ..*self })
    }
    #[inline(always)]
    fn in_order<S: Isa<C>>(isa: S, v: S::V) -> S::V {
        T::in_order(isa, v)
    }
}
