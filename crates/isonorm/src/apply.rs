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
use std::ops::Range;

use crate::affine::Affine;
use crate::element::{Compute, Element, SliceMut, with_element};
use crate::isa::Isa;
use crate::level::{Kernel, Level};
use crate::order::{LANES, padded};
use crate::rows::{In, Out};
use crate::stats::Stats;

/// Bytes of a cache line.
const LINE: usize = 64;

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

/// How a job reaches beyond the nearest caches.
#[derive(Clone, Copy)]
pub(crate) struct Ahead {
    /// While a block is written, the next one is asked for; this is the end of the rows that there are.
    pub(crate) end: usize,
    /// Whether y is written past the caches.
    pub(crate) past: bool,
}

/// Writes rows of y from rows of x and their statistics.
///
/// x_hat is rounded to `R` first: the Llama recipe gives x's storage type, the others the compute type.
pub(crate) struct Apply<'a, H, X, R, Y, A>
where
    X: Element,
{
    x: In<'a, X>,
    y: Out<'a, Y>,
    rows: Range<usize>,
    stats: &'a [Stats<X::Compute>],
    affine: A,
    ahead: Option<Ahead>,
    recipe: PhantomData<(H, R)>,
}

impl<'a, H, X, R, Y, A> Apply<'a, H, X, R, Y, A>
where
    X: Element,
{
    /// Row `rows.start + i` has the statistics `stats[i]`.
    pub(crate) fn new(
        x: In<'a, X>,
        y: Out<'a, Y>,
        rows: Range<usize>,
        stats: &'a [Stats<X::Compute>],
        affine: A,
    ) -> Self {
        Apply { x, y, rows, stats, affine, ahead: None, recipe: PhantomData }
    }

    /// For tensors beyond the nearest caches.
    pub(crate) fn ahead(mut self, ahead: Option<Ahead>) -> Self {
        self.ahead = ahead;
        self
    }
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
    fn eval<S: Isa<C>>(mut self, isa: S) {
        let block = self.rows.len();
        for (r, stats) in self.rows.clone().zip(self.stats) {
            let (x, splat) = (self.x.row(r), H::splat(isa, stats));
            if let Some(Ahead { end, past }) = self.ahead {
                let (soon, y) = (self.x.row((r + block).min(end - 1)), self.y.row_mut(r));
                // Stores past the caches want whole lines: chunks begin where one does.
                let head = if past { y.as_ptr().align_offset(LINE).min(y.len()) } else { 0 };
                let ((x_head, x), (_, soon), (y_head, y)) =
                    (x.split_at(head), soon.split_at(head), y.split_at_mut(head));
                let ahead = Some((soon, past));
                apply_row::<C, S, H, X, R, Y, A>(isa, x_head, y_head, splat, self.affine);
                apply_chunks::<C, S, H, X, R, Y, A, true>(isa, x, ahead, y, splat, self.affine.after(head));
            } else {
                apply_row::<C, S, H, X, R, Y, A>(isa, x, self.y.row_mut(r), splat, self.affine);
            }
        }
    }
}

/// One row.
#[inline(always)]
pub(crate) fn apply_row<C, S, H, X, R, Y, A>(isa: S, x: &[X], y: &mut [Y], splat: H::Splat<S>, affine: A)
where
    C: Compute,
    S: Isa<C>,
    H: Hat<C>,
    X: Element<Compute = C>,
    R: Element<Compute = C>,
    Y: Element<Compute = C>,
    A: Affine<C>,
{
    apply_chunks::<C, S, H, X, R, Y, A, false>(isa, x, None, y, splat, affine);
}

#[inline(always)]
pub(crate) fn apply_chunks<C, S, H, X, R, Y, A, const AHEAD: bool>(
    isa: S,
    x: &[X],
    ahead: Option<(&[X], bool)>,
    y: &mut [Y],
    splat: H::Splat<S>,
    affine: A,
) where
    C: Compute,
    S: Isa<C>,
    H: Hat<C>,
    X: Element<Compute = C>,
    R: Element<Compute = C>,
    Y: Element<Compute = C>,
    A: Affine<C>,
{
    let affine = affine.row(x.len());
    let (x, x_tail) = x.as_chunks::<LANES>();
    let (soon, past) = ahead.map_or((x, false), |(soon, past)| (soon.as_chunks::<LANES>().0, past));
    let (y, y_tail) = y.as_chunks_mut::<LANES>();
    // Slices of one length: the loop has no bounds check.
    let count = x.len();
    let (soon, y, whole) = (&soon[..count], &mut y[..count], A::whole(affine, count));
    for at in 0..count {
        let x_hat = round::<C, S, R>(isa, H::x_hat(isa, splat, X::load(isa, &x[at])));
        let v = A::apply(isa, whole, x_hat, at, LANES);
        if AHEAD {
            isa.prefetch(&soon[at]);
        }
        if AHEAD && past {
            Y::store_past(isa, v, &mut y[at]);
        } else {
            Y::store(isa, v, &mut y[at]);
        }
    }
    let n = x_tail.len();
    if n > 0 {
        let x_hat = round::<C, S, R>(isa, H::x_hat(isa, splat, X::load(isa, &padded(x_tail))));
        let mut chunk = [Y::default(); LANES];
        Y::store(isa, A::apply(isa, affine, x_hat, x.len(), n), &mut chunk);
        y_tail.copy_from_slice(&chunk[..n]);
    }
}

/// `Apply` where y holds x.
pub(crate) struct ApplyInPlace<'a, H, T: Element, R, A> {
    pub(crate) y: Out<'a, T>,
    pub(crate) rows: Range<usize>,
    pub(crate) stats: &'a [Stats<T::Compute>],
    pub(crate) affine: A,
    pub(crate) recipe: PhantomData<(H, R)>,
}

impl<C, H, T, R, A> Kernel<C> for ApplyInPlace<'_, H, T, R, A>
where
    C: Compute,
    H: Hat<C>,
    T: Element<Compute = C>,
    R: Element<Compute = C>,
    A: Affine<C>,
{
    type Output = ();

    #[inline(always)]
    fn eval<S: Isa<C>>(mut self, isa: S) {
        for (r, stats) in self.rows.clone().zip(self.stats) {
            let (row, splat) = (self.y.row_mut(r), H::splat(isa, stats));
            let affine = self.affine.row(row.len());
            let (chunks, tail) = row.as_chunks_mut::<LANES>();
            let at = chunks.len();
            let whole = A::whole(affine, at);
            for (at, chunk) in chunks.iter_mut().enumerate() {
                let x_hat = round::<C, S, R>(isa, H::x_hat(isa, splat, T::load(isa, chunk)));
                T::store(isa, A::apply(isa, whole, x_hat, at, LANES), chunk);
            }
            let n = tail.len();
            if n > 0 {
                let mut chunk = padded(tail);
                let x_hat = round::<C, S, R>(isa, H::x_hat(isa, splat, T::load(isa, &chunk)));
                T::store(isa, A::apply(isa, affine, x_hat, at, n), &mut chunk);
                tail.copy_from_slice(&chunk[..n]);
            }
        }
    }
}

/// `v` rounded to `R` and widened again.
#[inline(always)]
fn round<C: Compute, S: Isa<C>, R: Element<Compute = C>>(isa: S, v: S::V) -> S::V {
    if R::DTYPE == C::DTYPE {
        return v;
    }
    let mut rounded = [R::default(); LANES];
    R::store(isa, v, &mut rounded);
    R::load(isa, &rounded)
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
