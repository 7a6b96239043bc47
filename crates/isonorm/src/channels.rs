//! The element-wise half of the channel-wise norms: y from x, where statistics, weight and bias belong to a
//! channel.
//!
//! ```text
//! x_hat = ((x * scale - mean) - delta) * inv       scale under the range rule only
//! y     = T_y(fma(x_hat, weight, bias))
//! ```
//!
//! Wide planes go through a kernel with one channel's values in registers ([`Output::planes`]). Narrow ones,
//! and channels that lie side by side, are columns: the values of up to [`TILE`] of them are laid out as
//! memory is, and rows go by ([`Output::columns`]).

use std::marker::PhantomData;
use std::ops::Range;

use arrayvec::ArrayVec;

use crate::affine::{Channel, WeightBias};
use crate::apply::{Apply, CenteredHat, Fence, Hat, Near, Past, ScaledHat, Stream, apply_row, narrow_tile, round_tile};
use crate::columns::Columns;
use crate::element::{Compute, DType, Element};
use crate::isa::Isa;
use crate::level::{Kernel, Level};
use crate::params::{Params, widen_slice};
use crate::planes::Shape;
use crate::slice::{Slice, SliceMut};
use crate::stats::{Eps, Stats};

/// Elements of a tile: a few of them fit the nearest cache.
pub(crate) const TILE: usize = 1024;
/// Channels whose values are at hand at once.
pub(crate) const WINDOW: usize = 64;

/// What one call computes, apart from where.
#[derive(Clone, Copy)]
pub(crate) struct Task<'a, C> {
    pub(crate) level: Level,
    pub(crate) shape: Shape,
    pub(crate) eps: Eps<C>,
    pub(crate) params: Params<'a>,
    /// Whether y is written past the caches.
    pub(crate) stream: bool,
    /// The type to which y is rounded before it is rounded to its own.
    pub(crate) rounded: Option<DType>,
}

/// What the elements of one channel need.
#[derive(Clone, Copy, Default)]
pub(crate) struct Values<C> {
    pub(crate) stats: Stats<C>,
    pub(crate) weight: C,
    pub(crate) bias: C,
}

/// Where a channel's statistics are.
#[derive(Clone, Copy)]
pub(crate) enum Source<'a, C> {
    /// `stats[i]` are those of `per` channels from `first + i * per` on.
    Given { stats: &'a [Stats<C>], first: usize, per: usize },
    /// The running statistics of all channels.
    Running { mean: Slice<'a>, var: Slice<'a> },
    /// Of all channels: `y = x * (weight / root)` with the root of the running variance.
    Factors { params: Params<'a>, var: Slice<'a> },
}

impl<C: Compute> Source<'_, C> {
    /// The statistics of up to [`WINDOW`] channels.
    pub(crate) fn stats(&self, eps: Eps<C>, channels: Range<usize>) -> ArrayVec<Stats<C>, WINDOW> {
        match *self {
            Source::Given { stats, first, per } => channels.map(|c| stats[(c - first) / per]).collect(),
            Source::Running { mean, var } => {
                let [mut means, mut vars] = [[C::ZERO; WINDOW]; 2];
                let n = channels.len();
                widen_slice(mean.part(channels.start, n), &mut means[..n]);
                widen_slice(var.part(channels.start, n), &mut vars[..n]);
                let stats = |(&mean, &var): (&C, &C)| Stats {
                    mean,
                    delta: C::ZERO,
                    var,
                    inv: eps.inverse_root(var),
                    scale: C::ONE,
                };
                means[..n].iter().zip(&vars[..n]).map(stats).collect()
            }
            Source::Factors { params, var } => {
                let [mut weight, mut bias] = [[C::ZERO; WINDOW]; 2];
                let n = channels.len();
                params.widen(channels.start, &mut weight[..n], &mut bias[..n]);
                let stats = Source::Running { mean: var, var }.stats(eps, channels);
                let factor =
                    |(stats, weight): (&Stats<C>, C)| Stats { mean: C::ZERO, inv: weight * stats.inv, ..*stats };
                stats.iter().zip(weight).map(factor).collect()
            }
        }
    }
}

impl<C: Compute> Task<'_, C> {
    /// The values of up to [`WINDOW`] channels.
    pub(crate) fn values(&self, source: Source<'_, C>, channels: Range<usize>) -> ArrayVec<Values<C>, WINDOW> {
        let [mut weight, mut bias] = [[C::ZERO; WINDOW]; 2];
        let n = channels.len();
        self.params.widen(channels.start, &mut weight[..n], &mut bias[..n]);
        let stats = source.stats(self.eps, channels);
        stats.iter().zip(weight).zip(bias).map(|((&stats, weight), bias)| Values { stats, weight, bias }).collect()
    }
}

/// How y is written: where x, y and the way there allow it from x to y at once, else through tiles.
pub(crate) struct Output<T: Element> {
    level: Level,
    /// Elements from a plane to one that is read later, and is asked for while this one is written; 0: none.
    pub(crate) next: usize,
    stream: bool,
    rounded: Option<DType>,
    x: [T; TILE],
    y: [T; TILE],
    wide: [T::Compute; TILE],
}

/// A stretch of x that becomes a stretch of y.
pub(crate) trait Stretch<C: Compute> {
    fn apply<X: Element<Compute = C>, Y: Element<Compute = C>>(&self, level: Level, x: &[X], y: &mut [Y]);
    /// The same past the caches, where there is a way without a tile; whether there is.
    fn apply_past<T: Element<Compute = C>>(&self, _: Level, _: &[T], _: &mut [T]) -> bool {
        false
    }
}

impl<T: Element> Output<T> {
    pub(crate) fn new(task: &Task<'_, T::Compute>) -> Self {
        let (x, y, wide) = ([T::default(); TILE], [T::default(); TILE], [T::Compute::ZERO; TILE]);
        Output { level: task.level, next: 0, stream: task.stream, rounded: task.rounded, x, y, wide }
    }

    /// Contiguous planes of `spatial` elements, one for each of `values`; x is what y holds where there is none.
    pub(crate) fn planes(
        &mut self,
        x: Option<&[T]>,
        mut y: SliceMut<'_>,
        spatial: usize,
        values: &[Values<T::Compute>],
    ) {
        let next = self.next.cast_signed();
        if self.directly(x, y.reborrow(), &Planes { spatial, values, next }) {
            return;
        }
        for (i, values) in values.iter().enumerate() {
            for start in (0..spatial).step_by(TILE) {
                let (at, n) = (i * spatial + start, TILE.min(spatial - start));
                let plane = Planes { spatial: n, values: std::slice::from_ref(values), next };
                self.tile(x.map(|x| &x[at..at + n]), y.reborrow().part(at, n), &plane);
            }
        }
    }

    /// Rows of columns, of which the last may be cut short.
    pub(crate) fn columns(&mut self, x: Option<&[T]>, mut y: SliceMut<'_>, columns: &Columns<T::Compute>) {
        if self.directly(x, y.reborrow(), columns) {
            return;
        }
        for at in (0..y.len()).step_by(columns.stride) {
            let n = columns.width.min(y.len() - at);
            self.tile(x.map(|x| &x[at..at + n]), y.reborrow().part(at, n), columns);
        }
    }

    /// Up to [`TILE`] elements that share their statistics, each with its own weight and bias.
    pub(crate) fn elements(&mut self, x: Option<&[T]>, mut y: SliceMut<'_>, elements: &Elements<'_, T::Compute>) {
        if !self.directly(x, y.reborrow(), elements) {
            self.tile(x, y, elements);
        }
    }

    fn directly(&self, x: Option<&[T]>, y: SliceMut<'_>, stretch: &impl Stretch<T::Compute>) -> bool {
        let (Some(x), Some(y), None) = (x, T::of_mut(y), self.rounded) else { return false };
        if self.stream {
            return stretch.apply_past(self.level, x, y);
        }
        stretch.apply(self.level, x, y);
        true
    }

    /// At most [`TILE`] elements.
    fn tile(&mut self, x: Option<&[T]>, mut y: SliceMut<'_>, stretch: &impl Stretch<T::Compute>) {
        let (level, n) = (self.level, y.len());
        let x = match (x, T::of(&y.as_slice())) {
            (Some(x), _) => x,
            (None, Some(y)) => {
                self.x[..n].copy_from_slice(y);
                &self.x[..n]
            }
            (None, None) => return, // y, which is x, is of x's type
        };
        let own = if self.rounded.is_none() { T::of_mut(y.reborrow()) } else { None };
        match own {
            Some(y) if self.stream => {
                stretch.apply(level, x, &mut self.y[..n]);
                T::Compute::enter(level, Stream { from: &self.y[..n], to: y });
            }
            Some(y) => stretch.apply(level, x, y),
            None => {
                stretch.apply(level, x, &mut self.wide[..n]);
                if let Some(dtype) = self.rounded {
                    round_tile(level, &mut self.wide[..n], dtype);
                }
                narrow_tile(level, &self.wide[..n], y);
            }
        }
    }

    /// Orders what was written past the caches before whatever comes next.
    pub(crate) fn finish(self) {
        if self.stream {
            T::Compute::enter(self.level, Fence);
        }
    }
}

struct Planes<'a, C> {
    spatial: usize,
    values: &'a [Values<C>],
    next: isize,
}

impl<C: Compute> Stretch<C> for Planes<'_, C> {
    fn apply<X: Element<Compute = C>, Y: Element<Compute = C>>(&self, level: Level, x: &[X], y: &mut [Y]) {
        let Planes { spatial, values, .. } = *self;
        if values.iter().any(|values| values.stats.is_scaled()) {
            C::enter(level, ApplyPlanes::<ScaledHat, _, _, _> { x, y, spatial, values, hat: PhantomData });
        } else {
            C::enter(level, ApplyPlanes::<CenteredHat, _, _, _> { x, y, spatial, values, hat: PhantomData });
        }
    }

    fn apply_past<T: Element<Compute = C>>(&self, level: Level, x: &[T], y: &mut [T]) -> bool {
        let Planes { spatial, values, next } = *self;
        let is_plain = !values.iter().any(|values| values.stats.is_scaled());
        if is_plain {
            let way =
                if next == 0 { Past { ahead: SOON, is_long: false } } else { Past { ahead: next, is_long: true } };
            C::enter(level, ApplyPlanesPast { x, y, spatial, values, way });
        }
        is_plain
    }
}

/// Elements by which reading is announced before it is done.
const SOON: isize = 1024;

/// `ApplyPlanes` past the caches.
struct ApplyPlanesPast<'a, T: Element> {
    x: &'a [T],
    y: &'a mut [T],
    spatial: usize,
    values: &'a [Values<T::Compute>],
    way: Past,
}

impl<C: Compute, T: Element<Compute = C>> Kernel<C> for ApplyPlanesPast<'_, T> {
    type Output = ();

    #[inline(always)]
    fn eval<S: Isa<C>>(self, isa: S) {
        let Self { x, y, spatial, values, way } = self;
        for (i, (y, values)) in y.chunks_exact_mut(spatial).zip(values).enumerate() {
            let x = &x[i * spatial..(i + 1) * spatial];
            let hat = CenteredHat::splat(isa, &values.stats);
            let affine = Channel(values.weight, values.bias);
            apply_row::<C, S, CenteredHat, T, C, T, _, _>(isa, x, y, hat, affine, way);
        }
    }
}

struct ApplyPlanes<'a, H, C, X, Y> {
    x: &'a [X],
    y: &'a mut [Y],
    spatial: usize,
    values: &'a [Values<C>],
    hat: PhantomData<H>,
}

impl<C, H, X, Y> Kernel<C> for ApplyPlanes<'_, H, C, X, Y>
where
    C: Compute,
    H: Hat<C>,
    X: Element<Compute = C>,
    Y: Element<Compute = C>,
{
    type Output = ();

    #[inline(always)]
    fn eval<S: Isa<C>>(self, isa: S) {
        for (i, (y, values)) in self.y.chunks_exact_mut(self.spatial).zip(self.values).enumerate() {
            let x = &self.x[i * self.spatial..(i + 1) * self.spatial];
            let hat = H::splat(isa, &values.stats);
            apply_row::<C, S, H, X, C, Y, _, _>(isa, x, y, hat, Channel(values.weight, values.bias), Near);
        }
    }
}

/// One row's elements: common statistics, weights and biases of their own.
pub(crate) struct Elements<'a, C> {
    pub(crate) stats: Stats<C>,
    pub(crate) weight: &'a [C],
    pub(crate) bias: &'a [C],
}

impl<C: Compute> Stretch<C> for Elements<'_, C> {
    fn apply<X: Element<Compute = C>, Y: Element<Compute = C>>(&self, level: Level, x: &[X], y: &mut [Y]) {
        let (stats, affine) = (self.stats, WeightBias(self.weight, self.bias));
        if stats.is_scaled() {
            C::enter(level, Apply::<ScaledHat, X, C, Y, _> { x, y, stats, affine, recipe: PhantomData });
        } else {
            C::enter(level, Apply::<CenteredHat, X, C, Y, _> { x, y, stats, affine, recipe: PhantomData });
        }
    }
}
