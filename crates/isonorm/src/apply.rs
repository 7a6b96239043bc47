//! The element-wise half of every norm: from x and its statistics to y.
//!
//! ```text
//! x_hat = x * inv                              RMSNorm
//! x_hat = ((x - mean) - delta) * inv           the others
//! y     = T_y(fma(x_hat, weight, bias))
//! ```
//!
//! No element depends on another here, so any stretch of a row may be done at any time.

use std::marker::PhantomData;

use crate::affine::Affine;
use crate::element::{Compute, DType, Element, with_element};
use crate::isa::Isa;
use crate::level::{Kernel, Level};
use crate::order::LANES;
use crate::slice::SliceMut;
use crate::stats::Stats;

/// Bytes of a cache line.
pub(crate) const LINE: usize = 64;

/// From x to x_hat.
pub(crate) trait Hat<C: Compute>: Copy {
    /// The row's statistics in every lane.
    type Splat<S: Isa<C>>: Copy;
    fn splat<S: Isa<C>>(isa: S, stats: &Stats<C>) -> Self::Splat<S>;
    fn x_hat<S: Isa<C>>(isa: S, splat: Self::Splat<S>, x: S::V) -> S::V;
}

/// `x * inv`
#[derive(Clone, Copy)]
pub(crate) struct RmsHat;

/// `((x - mean) - delta) * inv`
#[derive(Clone, Copy)]
pub(crate) struct CenteredHat;

/// `((x * scale - mean) - delta) * inv`: both of the above under the range rule, since subtracting a
/// mean and delta of +0 changes no bit.
#[derive(Clone, Copy)]
pub(crate) struct ScaledHat;

impl<C: Compute> Hat<C> for RmsHat {
    type Splat<S: Isa<C>> = S::V;
    #[inline(always)]
    fn splat<S: Isa<C>>(isa: S, stats: &Stats<C>) -> S::V {
        isa.splat(stats.inv)
    }
    #[inline(always)]
    fn x_hat<S: Isa<C>>(isa: S, inv: S::V, x: S::V) -> S::V {
        isa.mul(x, inv)
    }
}

impl<C: Compute> Hat<C> for CenteredHat {
    type Splat<S: Isa<C>> = [S::V; 3];
    #[inline(always)]
    fn splat<S: Isa<C>>(isa: S, stats: &Stats<C>) -> [S::V; 3] {
        [isa.splat(stats.mean), isa.splat(stats.delta), isa.splat(stats.inv)]
    }
    #[inline(always)]
    fn x_hat<S: Isa<C>>(isa: S, [mean, delta, inv]: [S::V; 3], x: S::V) -> S::V {
        isa.mul(isa.sub(isa.sub(x, mean), delta), inv)
    }
}

impl<C: Compute> Hat<C> for ScaledHat {
    type Splat<S: Isa<C>> = [S::V; 4];
    #[inline(always)]
    fn splat<S: Isa<C>>(isa: S, stats: &Stats<C>) -> [S::V; 4] {
        let [mean, delta, inv] = CenteredHat::splat(isa, stats);
        [mean, delta, inv, isa.splat(stats.scale)]
    }
    #[inline(always)]
    fn x_hat<S: Isa<C>>(isa: S, [mean, delta, inv, scale]: [S::V; 4], x: S::V) -> S::V {
        CenteredHat::x_hat(isa, [mean, delta, inv], isa.mul(x, scale))
    }
}

/// How chunks of y are written, and what is asked for meanwhile.
pub(crate) trait Way: Copy {
    /// Whether y is written past the caches, which wants whole lines.
    const PAST: bool = false;
    /// Before chunk x is read and chunk y written.
    fn ask<C: Compute, S: Isa<C>, X, Y>(self, isa: S, x: &[X; LANES], y: &[Y; LANES]);
}

/// Everything lies in the nearest cache.
#[derive(Clone, Copy)]
pub(crate) struct Near;

/// Lines of y are asked for before they are written; x comes on its own.
#[derive(Clone, Copy)]
pub(crate) struct Far;

/// y goes past the caches; x is asked for that lies so many elements ahead, since nothing was read there yet.
#[derive(Clone, Copy)]
pub(crate) struct Past {
    pub(crate) ahead: isize,
    /// Whether rows are so long that the nearest cache has no room for the next one.
    pub(crate) is_long: bool,
}

/// Bytes by which a line of y is asked for before it is written: of 0.5 to 8 KiB, 1 to 2 brought the most (Intel
/// Xeon with 2 MiB of second-level cache, November 2026: 32 x 4096 f32 in 12.3 us instead of 13.3).
const ASK: usize = 2048;

impl Way for Near {
    #[inline(always)]
    fn ask<C: Compute, S: Isa<C>, X, Y>(self, _: S, _: &[X; LANES], _: &[Y; LANES]) {}
}

impl Way for Far {
    #[inline(always)]
    fn ask<C: Compute, S: Isa<C>, X, Y>(self, isa: S, _: &[X; LANES], y: &[Y; LANES]) {
        isa.prefetch(y, (ASK / size_of::<Y>()) as isize);
    }
}

impl Way for Past {
    const PAST: bool = true;
    #[inline(always)]
    fn ask<C: Compute, S: Isa<C>, X, Y>(self, isa: S, x: &[X; LANES], _: &[Y; LANES]) {
        if self.is_long { isa.prefetch_second(x, self.ahead) } else { isa.prefetch(x, self.ahead) }
    }
}

/// From one row of x to one row of y. x_hat is rounded to `R` first: the Llama recipe gives x's storage type, the
/// others the compute type.
pub(crate) struct Apply<'a, H, X: Element, R, Y, A> {
    pub(crate) x: &'a [X],
    pub(crate) y: &'a mut [Y],
    pub(crate) stats: Stats<X::Compute>,
    pub(crate) affine: A,
    pub(crate) recipe: PhantomData<(H, R)>,
}

impl<C, H, X, R, Y, A> Kernel<C> for Apply<'_, H, X, R, Y, A>
where
    C: Compute,
    H: Hat<C>,
    X: Element<Compute = C>,
    R: Element<Compute = C>,
    Y: Element<Compute = C>,
    A: Affine<C>,
{
    type Output = ();

    #[inline(always)]
    fn eval<S: Isa<C>>(self, isa: S) {
        let splat = H::splat(isa, &self.stats);
        apply_row::<C, S, H, X, R, Y, A, Near>(isa, self.x, self.y, splat, self.affine, Near);
    }
}

/// One row, or any stretch of one.
#[inline(always)]
pub(crate) fn apply_row<C, S, H, X, R, Y, A, W>(isa: S, x: &[X], y: &mut [Y], splat: H::Splat<S>, affine: A, way: W)
where
    C: Compute,
    S: Isa<C>,
    H: Hat<C>,
    X: Element<Compute = C>,
    R: Element<Compute = C>,
    Y: Element<Compute = C>,
    A: Affine<C>,
    W: Way,
{
    if W::PAST {
        // Stores past the caches want whole lines: chunks begin where one does.
        let head = y.as_ptr().align_offset(LINE).min(y.len());
        let ((x_head, x), (y_head, y)) = (x.split_at(head), y.split_at_mut(head));
        apply_part::<C, S, H, X, R, Y, A>(isa, x_head, y_head, splat, affine.row(head), 0);
        apply_chunks::<C, S, H, X, R, Y, A, W>(isa, x, y, splat, affine.after(head), way);
    } else {
        apply_chunks::<C, S, H, X, R, Y, A, W>(isa, x, y, splat, affine, way);
    }
}

#[inline(always)]
fn apply_chunks<C, S, H, X, R, Y, A, W>(isa: S, x: &[X], y: &mut [Y], splat: H::Splat<S>, affine: A, way: W)
where
    C: Compute,
    S: Isa<C>,
    H: Hat<C>,
    X: Element<Compute = C>,
    R: Element<Compute = C>,
    Y: Element<Compute = C>,
    A: Affine<C>,
    W: Way,
{
    let row = affine.row(x.len());
    let (x, x_tail) = x.as_chunks::<LANES>();
    let (y, y_tail) = y.as_chunks_mut::<LANES>();
    // Slices of one length: the loop has no bounds check.
    let count = x.len();
    let (y, whole) = (&mut y[..count], A::whole(row, count));
    let split = X::DTYPE == Y::DTYPE && A::LANES_OF.is_none_or(|dtype| dtype == X::DTYPE);
    for at in 0..count {
        way.ask(isa, &x[at], &y[at]);
        let x = if split { X::load_split(isa, &x[at]) } else { X::load(isa, &x[at]) };
        let v = A::apply(isa, whole, R::round(isa, H::x_hat(isa, splat, x)), at, LANES, split);
        match (split, W::PAST) {
            (true, true) => Y::store_past_split(isa, v, &mut y[at]),
            (true, false) => Y::store_split(isa, v, &mut y[at]),
            (false, true) => Y::store_past(isa, v, &mut y[at]),
            (false, false) => Y::store(isa, v, &mut y[at]),
        }
    }
    apply_part::<C, S, H, X, R, Y, A>(isa, x_tail, y_tail, splat, row, count);
}

/// Fewer than 32 elements: chunk `at` of a row, or none.
#[inline(always)]
fn apply_part<C, S, H, X, R, Y, A>(isa: S, x: &[X], y: &mut [Y], splat: H::Splat<S>, row: A::Row, at: usize)
where
    C: Compute,
    S: Isa<C>,
    H: Hat<C>,
    X: Element<Compute = C>,
    R: Element<Compute = C>,
    Y: Element<Compute = C>,
    A: Affine<C>,
{
    let n = x.len();
    if n > 0 {
        let x_hat = R::round(isa, H::x_hat(isa, splat, X::load_first(isa, x)));
        Y::store_first(isa, A::apply(isa, row, x_hat, at, n, false), y);
    }
}

/// `apply_row` where y holds x.
#[inline(always)]
pub(crate) fn apply_in_place<C, S, H, T, R, A>(isa: S, y: &mut [T], splat: H::Splat<S>, affine: A)
where
    C: Compute,
    S: Isa<C>,
    H: Hat<C>,
    T: Element<Compute = C>,
    R: Element<Compute = C>,
    A: Affine<C>,
{
    let row = affine.row(y.len());
    let (chunks, tail) = y.as_chunks_mut::<LANES>();
    let count = chunks.len();
    let whole = A::whole(row, count);
    let split = A::LANES_OF.is_none_or(|dtype| dtype == T::DTYPE);
    for (at, chunk) in chunks.iter_mut().enumerate() {
        let x = if split { T::load_split(isa, chunk) } else { T::load(isa, chunk) };
        let v = A::apply(isa, whole, R::round(isa, H::x_hat(isa, splat, x)), at, LANES, split);
        if split { T::store_split(isa, v, chunk) } else { T::store(isa, v, chunk) }
    }
    let mut own = [T::default(); LANES];
    let own = &mut own[..tail.len()];
    own.copy_from_slice(tail);
    apply_part::<C, S, H, T, R, T, A>(isa, own, tail, splat, row, count);
}

/// Widens or narrows a stretch of a row.
pub(crate) struct Convert<'a, X, Y> {
    pub(crate) x: &'a [X],
    pub(crate) y: &'a mut [Y],
}

impl<C, X, Y> Kernel<C> for Convert<'_, X, Y>
where
    C: Compute,
    X: Element<Compute = C>,
    Y: Element<Compute = C>,
{
    type Output = ();

    #[inline(always)]
    fn eval<S: Isa<C>>(self, isa: S) {
        let (x, x_tail) = self.x.as_chunks::<LANES>();
        let (y, y_tail) = self.y.as_chunks_mut::<LANES>();
        for (x, y) in x.iter().zip(y) {
            Y::store(isa, X::load(isa, x), y);
        }
        for (x, y) in x_tail.iter().zip(y_tail) {
            *y = Y::narrow(x.widen());
        }
    }
}

/// Rounds a tile to the type of `to`, whichever of x's family it is.
pub(crate) fn narrow_tile<C: Compute>(level: Level, from: &[C], to: SliceMut<'_>) {
    with_element!(to.dtype(), Y => {
        if let (Some(x), Some(y)) = (<Y as Element>::Compute::of(&C::slice(from)), Y::of_mut(to)) {
            <Y as Element>::Compute::enter(level, Convert { x, y });
        }
    });
}

/// Rounds up to [`TILE`](crate::tiles::TILE) values to a type of their family, and widens them again.
pub(crate) fn round_tile<C: Compute>(level: Level, values: &mut [C], dtype: DType) {
    with_element!(dtype, Y => {
        let mut rounded = [Y::default(); crate::tiles::TILE];
        let rounded = &mut rounded[..values.len()];
        narrow_tile(level, values, Y::slice_mut(rounded));
        if let Some(values) = <Y as Element>::Compute::of_mut(C::slice_mut(values)) {
            <Y as Element>::Compute::enter(level, Convert { x: &*rounded, y: values });
        }
    });
}

/// Copies a stretch past the caches.
pub(crate) struct Stream<'a, T> {
    pub(crate) from: &'a [T],
    pub(crate) to: &'a mut [T],
}

impl<C: Compute, T: Copy> Kernel<C> for Stream<'_, T> {
    type Output = ();

    #[inline(always)]
    fn eval<S: Isa<C>>(self, isa: S) {
        isa.stream(self.from, self.to);
    }
}

/// Orders what was streamed before whatever comes next.
pub(crate) struct Fence;

impl<C: Compute> Kernel<C> for Fence {
    type Output = ();

    #[inline(always)]
    fn eval<S: Isa<C>>(self, isa: S) {
        isa.fence();
    }
}
