//! The forward pass over rows: blocks that stay in the nearest cache, one pass over memory.
//!
//! ```text
//! for each block of rows:
//!     r      = x + residual                where there is one
//!     stats  = measure(row)                the norm's sums; a second time, scaled, under the range rule
//!     y      = apply(row, stats)
//! ```
//!
//! The fast path reads and writes tensors where they are. Whatever differs from it (in place, parameters
//! or outputs of other types, scaled rows, results past the caches) goes through tiles of [`TILE`] elements.

use std::ops::Range;

use crate::apply::{Add, Affine, Apply, Convert, Fence, Hat, Plain, ScaledHat, Stream, Weight, WeightBias};
use crate::element::{Compute, Element, Slice, SliceMut};
use crate::isa::Isa;
use crate::level::{Kernel, Level};
use crate::params::{Direct, Params, Recipe, narrow_slice, widen_slice};
use crate::rows::{AnyIn, AnyOut, In, Out};
use crate::stats::{Eps, Stats, largest};
use crate::threads::Job;

/// Elements of a tile: a few of them, of any type, fit the nearest cache.
const TILE: usize = 1024;
/// Rows of a block at most.
const BLOCK: usize = 16;
/// Bytes of a block: half of a small first-level cache.
const BLOCK_BYTES: usize = 16 << 10;

/// A norm of rows: which sums it takes and how it centres x.
pub(crate) trait RowNorm: Copy + Send + Sync {
    /// From x to x_hat.
    type Hat<C: Compute>: Hat<C>;
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
    /// Whether y is written past the caches.
    pub(crate) stream: bool,
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
    pub(crate) element: std::marker::PhantomData<T>,
}

/// The fused add.
pub(crate) struct Residual<'a> {
    /// `None`: the residual is what r holds.
    pub(crate) residual: Option<AnyIn<'a>>,
    pub(crate) r: AnyOut<'a>,
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
        let _env = crate::isa::float_env::FloatEnv::standard();
        let row_bytes = (self.task.hidden * size_of::<T>()).max(1);
        let block = (BLOCK_BYTES / row_bytes).clamp(1, BLOCK);
        let mut at = self.rows.start;
        while at < self.rows.end {
            let rows = at..(at + block).min(self.rows.end);
            self.block(rows.clone());
            at = rows.end;
        }
        if self.task.stream {
            T::Compute::enter(self.task.level, Fence);
        }
    }
}

impl<N: RowNorm, T: Element> RowsJob<'_, N, T> {
    fn block(&mut self, rows: Range<usize>) {
        if self.residual.is_some() {
            rows.clone().for_each(|row| self.add(row));
        }
        let mut stats = [Stats::default(); BLOCK];
        let stats = &mut stats[..rows.len()];
        let Some(x) = self.input().of::<T>() else { return };
        let scaled = measure_rows::<N, T>(self.task, x, rows.clone(), stats);
        if let Some(saved) = &mut self.stats {
            rows.clone().zip(stats.iter()).for_each(|(row, stats)| saved.row_mut(row)[0] = *stats);
        }
        let separate = self.x.is_some() || self.residual.is_some();
        if separate && !scaled && !self.task.stream && self.apply_directly(rows.clone(), stats) {
            return;
        }
        for (row, stats) in rows.zip(stats.iter()) {
            self.apply_in_tiles(row, *stats);
        }
    }

    /// What the norm reads.
    fn input(&self) -> AnyIn<'_> {
        match (&self.residual, self.x) {
            (Some(residual), _) => residual.r.as_in(),
            (None, Some(x)) => x,
            (None, None) => self.y.as_in(),
        }
    }

    /// One `Apply` over the block, where nothing stands in its way.
    fn apply_directly(&mut self, rows: Range<usize>, stats: &[Stats<T::Compute>]) -> bool {
        let Some(params) = self.task.params.direct::<T>() else { return false };
        let x = match (&self.residual, self.x) {
            (Some(residual), _) => residual.r.as_in(),
            (None, Some(x)) => x,
            (None, None) => return false,
        };
        let (Some(x), Some(y)) = (x.of::<T>(), self.y.of::<T>()) else { return false };
        apply_rows::<N, T>(self.task, x, y, rows, stats, params);
        true
    }

    fn apply_in_tiles(&mut self, row: usize, stats: Stats<T::Compute>) {
        let hidden = self.task.hidden;
        let mut start = 0;
        while start < hidden {
            let columns = start..(start + TILE).min(hidden);
            start = columns.end;
            let mut x = [T::default(); TILE];
            let x = &mut x[..columns.len()];
            let Some(from) = T::of(&self.input().row(row, columns.clone())) else { return };
            x.copy_from_slice(from);
            let y = self.y.row(row, columns.clone());
            apply_tile::<N, T>(self.task, x, y, columns.start, stats);
        }
    }

    /// `r = T_r(x + residual)` for one row.
    fn add(&mut self, row: usize) {
        let Some(Residual { residual, r }) = &mut self.residual else { return };
        let hidden = self.task.hidden;
        let x = self.x.unwrap_or(self.y.as_in());
        let mut start = 0;
        while start < hidden {
            let columns = start..(start + TILE).min(hidden);
            start = columns.end;
            let x = x.row(row, columns.clone());
            match residual {
                Some(residual) => {
                    add_tile::<T>(self.task.level, x, residual.row(row, columns.clone()), r.row(row, columns));
                }
                None => {
                    let mut own = [T::default(); TILE];
                    let own = &mut own[..columns.len()];
                    if let Some(from) = T::of(&r.as_in().row(row, columns.clone())) {
                        own.copy_from_slice(from);
                    }
                    add_tile::<T>(self.task.level, x, T::slice(own), r.row(row, columns));
                }
            }
        }
    }
}

/// Statistics of a block, under the range rule; whether any row is scaled.
fn measure_rows<N: RowNorm, T: Element>(
    task: &Task<'_, T::Compute>,
    x: In<'_, T>,
    rows: Range<usize>,
    stats: &mut [Stats<T::Compute>],
) -> bool {
    let measure = Measure::<N, T> { x, rows: rows.clone(), task, stats, norm: std::marker::PhantomData };
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
            let again = MeasureScaled::<N, T> { row, scale, norm: std::marker::PhantomData };
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
    norm: std::marker::PhantomData<N>,
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
    norm: std::marker::PhantomData<N>,
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

/// `Apply` with the parameters where they are.
fn apply_rows<N: RowNorm, T: Element>(
    task: &Task<'_, T::Compute>,
    x: In<'_, T>,
    y: Out<'_, T>,
    rows: Range<usize>,
    stats: &[Stats<T::Compute>],
    params: Direct<'_, T>,
) {
    match params {
        Direct::None => apply_affine::<N, T, _>(task, x, y, rows, stats, Plain),
        Direct::Weight(weight) => apply_affine::<N, T, _>(task, x, y, rows, stats, Weight(weight)),
        Direct::WideWeight(weight) => apply_affine::<N, T, _>(task, x, y, rows, stats, Weight(weight)),
        Direct::WeightBias(weight, bias) => {
            apply_affine::<N, T, _>(task, x, y, rows, stats, WeightBias(weight, bias));
        }
        Direct::WideWeightBias(weight, bias) => {
            apply_affine::<N, T, _>(task, x, y, rows, stats, WeightBias(weight, bias));
        }
    }
}

fn apply_affine<N: RowNorm, T: Element, A: Affine<T::Compute>>(
    task: &Task<'_, T::Compute>,
    x: In<'_, T>,
    y: Out<'_, T>,
    rows: Range<usize>,
    stats: &[Stats<T::Compute>],
    affine: A,
) {
    type Hatted<N, T> = <N as RowNorm>::Hat<<T as Element>::Compute>;
    match task.recipe {
        Recipe::Torch => {
            let apply = Apply::<Hatted<N, T>, T, T::Compute, T, A>::new(x, y, rows, stats, affine);
            T::Compute::enter(task.level, apply);
        }
        Recipe::Llama => {
            let apply = Apply::<Hatted<N, T>, T, T, T, A>::new(x, y, rows, stats, affine);
            T::Compute::enter(task.level, apply);
        }
    }
}

/// One tile of one row: x is its own copy, y where it belongs, which begins at column `start`.
fn apply_tile<N: RowNorm, T: Element>(
    task: &Task<'_, T::Compute>,
    x: &[T],
    mut y: SliceMut<'_>,
    start: usize,
    stats: Stats<T::Compute>,
) {
    let columns = start..start + x.len();
    if !stats.is_scaled() && y.dtype() == T::DTYPE {
        let mut weight = [T::Compute::ZERO; TILE];
        let mut bias = [T::Compute::ZERO; TILE];
        let params = match task.params.direct::<T>() {
            Some(params) => params.columns(columns),
            None => {
                let (weight, bias) = (&mut weight[..x.len()], &mut bias[..x.len()]);
                task.params.widen(start, weight, bias);
                Direct::WideWeightBias(weight, bias)
            }
        };
        if !task.stream {
            if let Some(y) = T::of_mut(y.reborrow()) {
                apply_rows::<N, T>(task, In::one(x), Out::one(y), 0..1, &[stats], params);
            }
            return;
        }
        let mut tile = [T::default(); TILE];
        let tile = &mut tile[..x.len()];
        apply_rows::<N, T>(task, In::one(x), Out::one(tile), 0..1, &[stats], params);
        if let Some(y) = T::of_mut(y) {
            T::Compute::enter(task.level, Stream { from: tile, to: y });
        }
        return;
    }
    apply_tile_widened::<T>(task, x, y, start, stats);
}

/// A tile of a scaled row, or of a y of another type than x: everything in the compute type.
fn apply_tile_widened<T: Element>(
    task: &Task<'_, T::Compute>,
    x: &[T],
    y: SliceMut<'_>,
    start: usize,
    stats: Stats<T::Compute>,
) {
    let n = x.len();
    let [mut wide, mut weight, mut bias, mut out] = [[T::Compute::ZERO; TILE]; 4];
    let (wide, weight, bias, out) = (&mut wide[..n], &mut weight[..n], &mut bias[..n], &mut out[..n]);
    T::Compute::enter(task.level, Convert { x, y: &mut *wide });
    task.params.widen(start, weight, bias);
    let (x, y_wide) = (In::one(&*wide), Out::one(&mut *out));
    let affine = WeightBias(&*weight, &*bias);
    match task.recipe {
        Recipe::Torch => {
            let apply = Apply::<ScaledHat, _, T::Compute, T::Compute, _>::new(x, y_wide, 0..1, std::slice::from_ref(&stats), affine);
            T::Compute::enter(task.level, apply);
        }
        Recipe::Llama => {
            let apply = Apply::<ScaledHat, _, T, T::Compute, _>::new(x, y_wide, 0..1, std::slice::from_ref(&stats), affine);
            T::Compute::enter(task.level, apply);
        }
    }
    store_tile(task.level, out, y);
}

/// Rounds a tile to y's type.
fn store_tile<C: Compute>(level: Level, from: &[C], to: SliceMut<'_>) {
    let _ = level;
    narrow_slice(from, to);
}

/// The residual add of one tile, whatever the types; the same types stay in registers.
fn add_tile<T: Element>(level: Level, x: Slice<'_>, residual: Slice<'_>, r: SliceMut<'_>) {
    let Some(r) = T::of_mut(r) else { return };
    if let (Some(x), Some(residual)) = (T::of(&x), T::of(&residual)) {
        return T::Compute::enter(level, Add { x, residual, r });
    }
    let [mut a, mut b] = [[T::Compute::ZERO; TILE]; 2];
    let (a, b) = (&mut a[..r.len()], &mut b[..r.len()]);
    widen_slice(x, a);
    widen_slice(residual, b);
    T::Compute::enter(level, Add { x: &*a, residual: &*b, r });
}
