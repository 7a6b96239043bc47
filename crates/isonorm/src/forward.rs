//! The forward pass over rows: blocks that stay in the nearest cache, one pass over memory.
//!
//! ```text
//! for each block of rows:
//!     r      = x + residual                where there is one
//!     stats  = measure(row)                the norm's sums; a second time, scaled, under the range rule
//!     y      = apply(row, stats)
//! ```
//!
//! Rows are read and written where they are. What the kernels cannot read or write in place (rows under the
//! range rule, parameters or outputs of other types) goes through tiles: `tiles.rs`.

use std::marker::PhantomData;
use std::ops::Range;

use crate::affine::{Affine, OffsetWeight, Plain, Weight, WeightBias};
use crate::apply::{Ahead, Apply, ApplyInPlace, Fence, Hat};
use crate::element::{Compute, Element};
use crate::grid::{Grid, Place, Walk};
use crate::isa::Isa;
use crate::isa::float_env::FloatEnv;
use crate::level::{Kernel, Level};
use crate::params::{Direct, Params, Recipe};
use crate::residual::Residual;
use crate::rows::{AnyIn, AnyOut, In, Out};
use crate::stats::{Eps, Stats, largest};
use crate::threads::Job;
use crate::tiles;

/// Rows of a block at most.
const BLOCK: usize = 16;
/// Bytes of an output from which the nearest caches do not hold the tensors of a call.
const FAR: usize = 256 << 10;
/// Bytes of an output from which it is written past the caches.
const PAST: usize = 16 << 20;
/// Elements of r that are kept near while r itself goes past the caches.
const NEAR: usize = 8 << 10;
/// Bytes of a block: half of a small first-level cache.
const BLOCK_BYTES: usize = 16 << 10;

/// A norm of rows: which sums it takes and how it centres x.
pub(crate) trait RowNorm: Copy + Send + Sync {
    /// From x to x_hat.
    type Hat<C: Compute>: Hat<C>;
    /// Whether it has the Llama recipe, and weights stored as distances from an offset: RMSNorm alone.
    const OF_LANGUAGE_MODELS: bool;
    /// The statistics of `row` times `scale` but for `inv`, and whether a sum left the range.
    fn measure<C, S, T, const SCALED: bool>(isa: S, row: &[T], scale: C) -> (Stats<C>, bool)
    where
        C: Compute,
        S: Isa<C>,
        T: Element<Compute = C>;
}

/// What one call computes, apart from where.
#[derive(Clone, Copy)]
pub(crate) struct Task<'a, C> {
    pub(crate) level: Level,
    pub(crate) hidden: usize,
    /// Elements of a row that enter the statistics.
    pub(crate) measured: usize,
    pub(crate) eps: Eps<C>,
    pub(crate) params: Params<'a>,
    pub(crate) recipe: Recipe,
    pub(crate) reach: Reach,
}

/// How far a call's tensors reach into the memory of the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reach {
    /// They fit the nearest caches.
    Near,
    /// They do not: the next rows are asked for while the present ones are written.
    Far,
    /// They exceed the last cache: y is written past it, which spares reading what is overwritten.
    Past,
}

impl Reach {
    /// Of a call whose output has `bytes` bytes.
    pub(crate) fn of(bytes: usize) -> Self {
        match bytes {
            0..FAR => Reach::Near,
            FAR..PAST => Reach::Far,
            _ => Reach::Past,
        }
    }
}

/// Rows to be normalized, from `start` on. `T` is the storage type of the norm's input: x's, or r's.
pub(crate) struct RowsJob<'a, N, T: Element> {
    pub(crate) norm: N,
    pub(crate) task: &'a Task<'a, T::Compute>,
    pub(crate) rows: Range<usize>,
    /// `None`: x is what y holds.
    pub(crate) x: Option<AnyIn<'a>>,
    pub(crate) y: AnyOut<'a>,
    pub(crate) residual: Option<Residual<'a>>,
    pub(crate) stats: Option<Out<'a, Stats<T::Compute>>>,
    pub(crate) element: PhantomData<T>,
}

impl<N: RowNorm, T: Element> RowsJob<'_, N, T> {
    /// Whether all that is written can be cut at the same row.
    pub(crate) fn is_divisible(&self) -> bool {
        self.y.is_nested()
            && self.residual.as_ref().is_none_or(|residual| residual.r.is_nested())
            && self.stats.as_ref().is_none_or(|stats| stats.is_nested())
    }
}

impl<N: RowNorm, T: Element> Job for RowsJob<'_, N, T> {
    fn units(&self) -> usize {
        if self.is_divisible() { self.rows.len() } else { 1 }
    }

    fn split(self, units: usize) -> (Self, Self) {
        let RowsJob { norm, task, rows, x, y, residual, stats, element } = self;
        let at = rows.start + units;
        let (y, y_rest) = y.split(at);
        let (residual, residual_rest) = residual
            .map(|Residual { residual, r }| {
                let (r, r_rest) = r.split(at);
                (Residual { residual, r }, Residual { residual, r: r_rest })
            })
            .unzip();
        let (stats, stats_rest) = stats.map(|stats| stats.split(at)).unzip();
        let first = RowsJob { norm, task, rows: rows.start..at, x, y, residual, stats, element };
        let rest = RowsJob {
            rows: at..rows.end,
            y: y_rest,
            residual: residual_rest,
            stats: stats_rest,
            norm,
            task,
            x,
            element,
        };
        (first, rest)
    }

    fn run(&mut self) {
        let _env = FloatEnv::standard();
        if self.task.reach == Reach::Past && self.residual.is_some() && self.task.hidden <= NEAR {
            let mut near = [T::default(); NEAR];
            self.blocks(&mut near);
        } else {
            self.blocks(&mut []);
        }
        if self.task.reach == Reach::Past {
            T::Compute::enter(self.task.level, Fence);
        }
    }
}

impl<N: RowNorm, T: Element> RowsJob<'_, N, T> {
    fn blocks(&mut self, near: &mut [T]) {
        let row_bytes = (self.task.hidden * size_of::<T>()).max(1);
        let block = (BLOCK_BYTES / row_bytes).clamp(1, BLOCK);
        let mut at = self.rows.start;
        while at < self.rows.end {
            let rows = at..(at + block).min(self.rows.end);
            at = rows.end;
            self.block(rows, near);
        }
    }

    /// `near` has room for the block's rows of r, or none.
    fn block(&mut self, rows: Range<usize>, near: &mut [T]) {
        let (task, end) = (self.task, self.rows.end);
        let mut is_near = false;
        if let Some(residual) = &mut self.residual {
            let x = self.x.unwrap_or(self.y.as_in());
            is_near = !near.is_empty() && residual.add_past(task.level, (rows.clone(), end), x, near);
            if !is_near {
                rows.clone().for_each(|row| residual.add_row::<T>(task, row, x));
            }
        }
        let (grid, walk) = (Grid::of(end), Walk::contiguous(task.hidden));
        let place = Place { grid: &grid, walk: &walk, hidden: task.hidden };
        let input = match (&self.residual, self.x) {
            (Some(residual), _) => Some(residual.r.as_in()),
            (None, x) => x,
        };
        let near = is_near.then(|| In::block(&*near, rows.start * task.hidden, place));
        let x = near.or_else(|| input.and_then(|x| x.of::<T>()));
        let mut stats = [Stats::default(); BLOCK];
        let stats = &mut stats[..rows.len()];
        let Some(measured) = x.or_else(|| self.y.as_in().of::<T>()) else { return };
        let scaled = measure_rows::<N, T>(task, measured, rows.clone(), stats);
        if let Some(saved) = &mut self.stats {
            rows.clone().zip(stats.iter()).for_each(|(row, stats)| saved.row_mut(row)[0] = *stats);
        }
        if let (false, Some(params), Some(y)) = (scaled, task.params.direct::<T>(), self.y.of::<T>()) {
            let end = if is_near { rows.end } else { end };
            return Block { task, x, y, rows, stats, end }.apply::<N>(params);
        }
        for (row, stats) in rows.zip(stats.iter()) {
            tiles::apply_row::<T>(task, row, input, &mut self.y, *stats);
        }
    }
}

/// Contiguous rows near the caches, from x to y of the same type: no time is spent on anything else.
pub(crate) fn near<N: RowNorm, T: Element>(task: &Task<'_, T::Compute>, x: &[T], y: &mut [T]) {
    let _env = FloatEnv::standard();
    let (hidden, count) = (task.hidden, x.len() / task.hidden);
    let (grid, walk) = (Grid::of(count), Walk::contiguous(hidden));
    let place = Place { grid: &grid, walk: &walk, hidden };
    if count == 1 {
        return near_block::<N, T>(task, place, x, y, 0..1, &mut [Stats::default()]);
    }
    let block = (BLOCK_BYTES / (hidden * size_of::<T>())).clamp(1, BLOCK);
    let mut stats = [Stats::default(); BLOCK];
    let mut at = 0;
    while at < count {
        let rows = at..(at + block).min(count);
        at = rows.end;
        let stats = &mut stats[..rows.len()];
        near_block::<N, T>(task, place, x, y, rows, stats);
    }
}

#[inline]
fn near_block<N: RowNorm, T: Element>(
    task: &Task<'_, T::Compute>,
    place: Place<'_>,
    x: &[T],
    y: &mut [T],
    rows: Range<usize>,
    stats: &mut [Stats<T::Compute>],
) {
    let (x, end) = (In::block(x, 0, place), rows.end);
    let scaled = measure_rows::<N, T>(task, x, rows.clone(), stats);
    if let (false, Some(params)) = (scaled, task.params.direct::<T>()) {
        return Block { task, x: Some(x), y: Out::new(y, place), rows, stats, end }.apply::<N>(params);
    }
    for (row, stats) in rows.zip(stats.iter()) {
        let mut y = AnyOut::new(T::slice_mut(y), place);
        tiles::apply_row::<T>(task, row, Some(AnyIn::new(T::slice(x.data()), place)), &mut y, *stats);
    }
}

/// Statistics of a block, under the range rule; whether any row is scaled.
fn measure_rows<N: RowNorm, T: Element>(
    task: &Task<'_, T::Compute>,
    x: In<'_, T>,
    rows: Range<usize>,
    stats: &mut [Stats<T::Compute>],
) -> bool {
    let measure = Measure::<N, T> { x, rows: rows.clone(), task, stats, norm: PhantomData };
    if !T::Compute::enter(task.level, measure) {
        return false;
    }
    for (row, stats) in rows.zip(stats.iter_mut()) {
        if stats.scale == T::Compute::ONE {
            continue;
        }
        let row = &x.row(row)[..task.measured];
        stats.scale = task.eps.scale(largest(row));
        if stats.is_scaled() {
            let scale = stats.scale;
            let again = MeasureScaled::<N, T> { row, scale, norm: PhantomData };
            *stats = T::Compute::enter(task.level, again);
            stats.inv = task.eps.scaled(scale).inverse_root(stats.var);
        }
    }
    stats.iter().any(Stats::is_scaled)
}

/// The statistics of rows. A row that the range rule wants to see has scale 0 afterwards; returns whether there is one.
struct Measure<'a, N, T: Element> {
    x: In<'a, T>,
    rows: Range<usize>,
    task: &'a Task<'a, T::Compute>,
    stats: &'a mut [Stats<T::Compute>],
    norm: PhantomData<N>,
}

impl<C: Compute, N: RowNorm, T: Element<Compute = C>> Kernel<C> for Measure<'_, N, T> {
    type Output = bool;

    #[inline(always)]
    fn eval<S: Isa<C>>(self, isa: S) -> bool {
        let (eps, measured) = (self.task.eps, self.task.measured);
        let mut any = false;
        for (r, stats) in self.rows.zip(self.stats) {
            let (mut row, out_of_range) = N::measure::<C, S, T, false>(isa, &self.x.row(r)[..measured], C::ONE);
            row.inv = eps.inverse_root(row.var);
            let again = out_of_range | eps.is_small(row.var);
            row.scale = if again { C::ZERO } else { C::ONE };
            any |= again;
            *stats = row;
        }
        any
    }
}

/// The statistics of `row * scale`.
struct MeasureScaled<'a, N, T: Element> {
    row: &'a [T],
    scale: T::Compute,
    norm: PhantomData<N>,
}

impl<C: Compute, N: RowNorm, T: Element<Compute = C>> Kernel<C> for MeasureScaled<'_, N, T> {
    type Output = Stats<C>;

    #[inline(always)]
    fn eval<S: Isa<C>>(self, isa: S) -> Stats<C> {
        let (mut stats, _) = N::measure::<C, S, T, true>(isa, self.row, self.scale);
        stats.scale = self.scale;
        stats
    }
}

/// A block whose statistics are known.
struct Block<'a, T: Element> {
    task: &'a Task<'a, T::Compute>,
    /// `None`: y holds x.
    x: Option<In<'a, T>>,
    y: Out<'a, T>,
    rows: Range<usize>,
    stats: &'a [Stats<T::Compute>],
    /// The end of the job's rows.
    end: usize,
}

impl<T: Element> Block<'_, T> {
    fn apply<N: RowNorm>(self, params: Direct<'_, T>) {
        match params {
            Direct::None => self.recipe::<N, _>(Plain),
            Direct::Weight(weight) => self.recipe::<N, _>(Weight(weight)),
            Direct::WideWeight(weight) => self.recipe::<N, _>(Weight(weight)),
            Direct::OffsetWeight(weight, offset) => self.recipe::<N, _>(OffsetWeight(weight, offset)),
            Direct::WeightBias(weight, bias) => self.recipe::<N, _>(WeightBias(weight, bias)),
            Direct::WideWeightBias(weight, bias) => self.recipe::<N, _>(WeightBias(weight, bias)),
        }
    }

    fn recipe<N: RowNorm, A: Affine<T::Compute>>(self, affine: A) {
        if N::OF_LANGUAGE_MODELS && self.task.recipe == Recipe::Llama {
            self.enter::<N::Hat<T::Compute>, T, A>(affine);
        } else {
            self.enter::<N::Hat<T::Compute>, T::Compute, A>(affine);
        }
    }

    fn enter<H, R, A>(self, affine: A)
    where
        H: Hat<T::Compute>,
        R: Element<Compute = T::Compute>,
        A: Affine<T::Compute>,
    {
        let Block { task, x, y, rows, stats, end } = self;
        match x {
            Some(x) => {
                let ahead = Ahead { end, past: task.reach == Reach::Past };
                let ahead = (task.reach != Reach::Near).then_some(ahead);
                let apply = Apply::<H, T, R, T, A>::new(x, y, rows, stats, affine).ahead(ahead);
                T::Compute::enter(task.level, apply);
            }
            None => {
                let apply = ApplyInPlace::<H, T, R, A> { y, rows, stats, affine, recipe: PhantomData };
                T::Compute::enter(task.level, apply);
            }
        }
    }
}
