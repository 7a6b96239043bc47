//! RMSNorm: each row divided by its root mean square.

use std::ops::Range;

use crate::apply::RmsHat;
use crate::backward::BackwardIo;
use crate::call::Call;
use crate::element::{Compute, Element};
use crate::error::Error;
use crate::forward::RowNorm;
use crate::io::Io;
use crate::isa::Isa;
use crate::order::{Row, Terms, reduce};
use crate::params::Recipe;
use crate::rows::{Rows, RowsMut};
use crate::shards::{Shard, Which};
use crate::slice::Slice;
use crate::stats::Stats;
use crate::threads::Cpu;

/// Normalizes each row of `x` by its root mean square and scales it by `weight`.
///
/// ```text
/// ms[r]      = mean_i(x[r,i]^2)
/// x_hat[r,i] = x[r,i] / sqrt(ms[r] + eps)
/// y[r,i]     = x_hat[r,i] * (weight[i] + weight_offset) + bias[i]
/// ```
///
/// # Shapes
///
/// | argument | shape | dtype | |
/// |---|---|---|---|
/// | `x` | `[..., hidden]` | `f32 f64 f16 bf16` | last axis contiguous, any leading strides |
/// | `weight`, `bias` | `[hidden]` | their own; f64 with x of f64 alone | optional |
/// | `residual`, `r` | as `x` | their own; f64 with f64 alone | with [`Io::add`] |
/// | `y` | as `x` | its own; f64 with f64 alone | overwritten |
/// | `stats` | `[...]` | [`Stats`] of the compute type | optional |
///
/// # Precision
///
/// Computed in f32 (f64 where x is f64) in the [canonical order](crate#the-order); y is rounded once, with
/// [`Recipe::Llama`] x_hat before the weight too. Rows whose squares overflow or vanish are computed a second
/// time, scaled by a power of two, so rows of 1e30 or 1e-30 come out right. The same bits on every CPU,
/// thread count, stride and position. `eps` is inside the root (PyTorch's convention) unless
/// [`eps_outside`](Self::eps_outside); its default is 1e-6, Hugging Face's `LlamaRMSNorm`'s.
///
/// # Errors
///
/// An [`Error`] where lengths, types or options do not fit one another; nothing is written then.
///
/// # Example
///
/// ```
/// let x = [3.0f32, 4.0];
/// let mut y = [0.0f32; 2];
/// isonorm::RmsNorm::new(2).eps(0.0).weight(&[1.0f32, 2.0]).forward(&x, &mut y)?;
/// assert_eq!(y, [3.0 * (1.0 / 12.5f32.sqrt()), 4.0 * (1.0 / 12.5f32.sqrt()) * 2.0]);
/// # Ok::<(), isonorm::Error>(())
/// ```
///
/// Source: Zhang & Sennrich, *Root Mean Square Layer Normalization*, 2019. arXiv:1910.07467
#[derive(Clone, Copy, Debug)]
pub struct RmsNorm<'a> {
    call: Call<'a>,
}

impl<'a> RmsNorm<'a> {
    /// Rows of `hidden` elements, eps 1e-6, no weight, no bias.
    #[inline]
    pub fn new(hidden: usize) -> Self {
        RmsNorm { call: Call::new(hidden, 1e-6) }
    }
    /// Added to the mean square; rounded to the compute type first.
    #[inline]
    pub fn eps(mut self, eps: f64) -> Self {
        self.call.eps.value = eps;
        self
    }
    /// eps outside the root: `x / (sqrt(ms) + eps)`.
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
    /// Added to every weight in the compute type: 1 for Gemma, whose weights are stored as distances from 1.
    #[inline]
    pub fn weight_offset(mut self, offset: f64) -> Self {
        self.call.params.offset = offset;
        self
    }
    /// When x_hat is rounded; the default is [`Recipe::Torch`].
    #[inline]
    pub fn recipe(mut self, recipe: Recipe) -> Self {
        self.call.recipe = recipe;
        self
    }
    /// pRMSNorm: only the first `k` elements enter the mean square.
    #[inline]
    pub fn partial(mut self, k: usize) -> Self {
        self.call.partial = Some(k);
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
        self.call.forward(Rms, x.into(), y.into())
    }

    /// In place, with a residual, saving statistics: whatever `io` says.
    pub fn apply(&self, io: Io<'_>) -> Result<(), Error> {
        self.call.apply(Rms, io)
    }

    /// Of each row these columns alone, which `weight` and `bias` are of then: the others are on other ranks.
    ///
    /// # Errors
    ///
    /// [`Error::Columns`] if they are not within a row, [`Error::Partial`] if `partial` is not.
    pub fn shard(&self, columns: Range<usize>) -> Result<Shard<'a>, Error> {
        Shard::new(self.call, Which::Rms, columns)
    }

    /// dx from dy, and the gradients of weight and bias: whatever `io` says.
    ///
    /// ```text
    /// g[r,i]     = dy[r,i] * (weight[i] + weight_offset)
    /// c[r]       = mean_i(g[r,i] * x_hat[r,i])
    /// dx[r,i]    = (g[r,i] - x_hat[r,i] * c[r]) * rstd[r]
    /// dweight[i] = sum_r(dy[r,i] * x_hat[r,i])            dbias[i] = sum_r(dy[r,i])
    /// ```
    ///
    /// dx is rounded once, and so are dweight and dbias, which are summed over rows in batch order. With
    /// [`Recipe::Llama`] g, and x_hat in dweight, are rounded to x's type; with eps outside, c has the factor
    /// `(root + eps) / root`; with [`partial`](Self::partial) the elements from k on have no c. Saved statistics spare
    /// a pass over x and change no bit. An [`Error`] as in forward; nothing is written then.
    pub fn backward(&self, io: BackwardIo<'_>) -> Result<(), Error> {
        self.call.backward(Rms, io)
    }
}

#[derive(Clone, Copy)]
pub(crate) struct Rms;

impl RowNorm for Rms {
    type Hat<C: Compute> = RmsHat;
    const OF_LANGUAGE_MODELS: bool = true;
    const CENTERED: bool = false;

    #[inline(always)]
    fn measure<C, S, T, const SCALED: bool>(isa: S, row: &[T], scale: C) -> (Stats<C>, bool)
    where
        C: Compute,
        S: Isa<C>,
        T: Element<Compute = C>,
    {
        let squares = Squares::<T, SCALED> { row: Row::new(row), scale };
        let [ss] = reduce(isa, &squares, row.len());
        let var = ss / C::from_count(row.len());
        (Stats { var, ..Stats::default() }, ss == C::INFINITY)
    }
}

/// `x^2`
pub(crate) struct Squares<'a, T: Element, const SCALED: bool> {
    pub(crate) row: Row<'a, T>,
    pub(crate) scale: T::Compute,
}

impl<C: Compute, T: Element<Compute = C>, const SCALED: bool> Terms<C, 1> for Squares<'_, T, SCALED> {
    #[inline(always)]
    fn step<S: Isa<C>>(&self, isa: S, [ss]: [S::V; 1], at: usize, n: usize) -> [S::V; 1] {
        let mut x = self.row.read_as(isa, at, n, true);
        if SCALED {
            x = isa.mul(x, isa.splat(self.scale));
        }
        [isa.fma(x, x, ss)]
    }
    #[inline(always)]
    fn whole_leaves(&self, leaf: usize, leaves: usize) -> Option<Self> {
        Some(Squares { row: self.row.whole_leaves(leaf, leaves), ..*self })
    }
    #[inline(always)]
    fn in_order<S: Isa<C>>(isa: S, v: S::V) -> S::V {
        T::in_order(isa, v)
    }
}
