//! The forward pass over rows: one pass over memory.
//!
//! ```text
//! for each row:
//!     r      = x + residual                where there is one
//!     stats  = measure(row)                the norm's sums; a second time, scaled, under the range rule
//!     y      = apply(row, stats)
//! ```
//!
//! Rows are read and written where they are, by the kernels of `pass.rs`. What these cannot read or write in place
//! (rows under the range rule, parameters or outputs of other types) goes through tiles: `tiles.rs`.

use std::marker::PhantomData;
use std::ops::Range;

use crate::apply::{Fence, Hat};
use crate::call::Call;
use crate::element::{Compute, Element};
use crate::isa::Isa;
use crate::isa::float_env::FloatEnv;
use crate::level::{Kernel, Level};
use crate::pass::Pass;
use crate::residual::Residual;
use crate::rows::{AnyIn, AnyOut, In, Out};
use crate::stats::{Eps, Stats, largest};
use crate::threads::Job;
use crate::tiles;

/// Bytes of an output from which the tensors of a call do not fit the nearest cache: x, y and a weight of 16 KiB fill
/// one of 48 (RMSNorm 1 x 4096 f32 took 270 ns, 305 as if near).
const FAR: usize = 16 << 10;
/// Bytes of an output from which it is written past the caches.
const PAST: usize = 16 << 20;
/// Bytes of a block of rows whose sums with a residual are kept near: half of a small first-level cache.
const BLOCK_BYTES: usize = 16 << 10;
/// Elements of r that are kept near while r itself goes past the caches.
const NEAR: usize = 8 << 10;

/// A norm of rows: which sums it takes and how it centres x.
pub(crate) trait RowNorm: Copy + Send + Sync {
    /// From x to x_hat.
    type Hat<C: Compute>: Hat<C>;
    /// Whether it has the Llama recipe: RMSNorm alone.
    const OF_LANGUAGE_MODELS: bool;
    /// Whether a mean is taken off, so that one is off the gradient too.
    const CENTERED: bool;
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
    pub(crate) call: &'a Call<'a>,
    pub(crate) level: Level,
    pub(crate) eps: Eps<C>,
    pub(crate) reach: Reach,
}

impl<C> Task<'_, C> {
    pub(crate) fn hidden(&self) -> usize {
        self.call.hidden
    }

    /// Elements of a row that enter the statistics.
    pub(crate) fn measured(&self) -> usize {
        self.call.partial.unwrap_or(self.call.hidden)
    }
}

/// How far a call's tensors reach into the memory of the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reach {
    /// They fit the nearest cache.
    Near,
    /// They do not: lines of y are asked for before they are written.
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
    /// Statistics that are known: x is not measured.
    pub(crate) known: Option<In<'a, Stats<T::Compute>>>,
    pub(crate) element: PhantomData<T>,
}

impl<N: RowNorm, T: Element> RowsJob<'_, N, T> {
    /// Whether all that is written can be cut at the same row.
    pub(crate) fn is_divisible(&self) -> bool {
        self.y.is_nested()
            && self.residual.as_ref().is_none_or(|residual| residual.r.is_nested())
            && self.stats.as_ref().is_none_or(Out::is_nested)
    }
}

impl<N: RowNorm, T: Element> Job for RowsJob<'_, N, T> {
    fn units(&self) -> usize {
        if self.is_divisible() { self.rows.len() } else { 1 }
    }

    fn split(self, units: usize) -> (Self, Self) {
        let RowsJob { norm, task, rows, x, y, residual, stats, known, element } = self;
        let at = rows.start + units;
        let (y, y_rest) = y.split(at);
        let (residual, residual_rest) = residual
            .map(|Residual { residual, r }| {
                let (r, r_rest) = r.split(at);
                (Residual { residual, r }, Residual { residual, r: r_rest })
            })
            .unzip();
        let (stats, stats_rest) = stats.map(|stats| stats.split(at)).unzip();
        let first = RowsJob { norm, task, rows: rows.start..at, x, y, residual, stats, known, element };
        let rest = RowsJob {
            rows: at..rows.end,
            y: y_rest,
            residual: residual_rest,
            stats: stats_rest,
            norm,
            task,
            x,
            known,
            element,
        };
        (first, rest)
    }

    fn run(&mut self) {
        let _env = FloatEnv::standard();
        if self.residual.is_none() {
            self.normalize(self.rows.clone(), None);
        } else if self.task.reach == Reach::Past && self.task.hidden() <= NEAR {
            self.add_and_normalize(&mut [T::default(); NEAR]);
        } else {
            self.add_and_normalize(&mut []);
        }
        if self.task.reach == Reach::Past {
            T::Compute::enter(self.task.level, Fence);
        }
    }
}

impl<N: RowNorm, T: Element> RowsJob<'_, N, T> {
    /// Block by block; `near` has room for a block's rows of r, or for none.
    fn add_and_normalize(&mut self, near: &mut [T]) {
        let row_bytes = (self.task.hidden() * size_of::<T>()).max(1);
        let mut block = (BLOCK_BYTES / row_bytes).max(1);
        if !near.is_empty() {
            block = block.min(near.len() / self.task.hidden());
        }
        let mut at = self.rows.start;
        while at < self.rows.end {
            let rows = at..(at + block).min(self.rows.end);
            at = rows.end;
            let Some(residual) = &mut self.residual else { return };
            let x = self.x.unwrap_or(self.y.as_in());
            let is_near = residual.add::<T>(self.task, rows.clone(), self.rows.end, x, near);
            self.normalize(rows, is_near.then_some(&*near));
        }
    }

    /// Rows whose r, where there is a residual, is there; `near` holds it too.
    fn normalize(&mut self, rows: Range<usize>, near: Option<&[T]>) {
        let near = near.map(|near| In::contiguous(near, self.task.hidden(), rows.start));
        let mut at = rows.start;
        while at < rows.end {
            at = self.pass(at..rows.end, near).unwrap_or(at);
            if at < rows.end {
                self.row_by_tiles(at);
                at += 1;
            }
        }
    }

    /// Rows by a kernel, where their types have one; returns the first row that it left.
    fn pass(&mut self, rows: Range<usize>, near: Option<In<'_, T>>) -> Option<usize> {
        let task = self.task;
        let params = task.call.params.direct::<T>()?;
        let x = match (near, &self.residual, self.x) {
            (Some(near), ..) => Some(near),
            (None, Some(residual), _) => Some(residual.r.as_in().of::<T>()?),
            (None, None, Some(x)) => Some(x.of::<T>()?),
            (None, None, None) => None,
        };
        let (y, saved) = (self.y.of::<T>()?, self.stats.as_mut().map(Out::reborrow));
        let (known, is_near) = (self.known, near.is_some());
        Some(Pass { task, x, y, saved, known, is_near, params }.run::<N>(rows))
    }

    fn row_by_tiles(&mut self, row: usize) {
        let task = self.task;
        let input = match (&self.residual, self.x) {
            (Some(residual), _) => Some(residual.r.as_in()),
            (None, x) => x,
        };
        let x = input.unwrap_or(self.y.as_in()).row(row, 0..task.measured());
        let Some(x) = T::of(&x) else { return };
        let stats = self.known.map_or_else(|| measure::<N, T>(task, x), |known| known.row(row)[0]);
        if let Some(saved) = &mut self.stats {
            saved.row_mut(row)[0] = stats;
        }
        tiles::apply_row::<T>(task, row, input, &mut self.y, stats);
    }
}

/// Contiguous rows from x to y of the same type, on this thread.
#[inline]
pub(crate) fn alone<N: RowNorm, T: Element>(call: &Call<'_>, level: Level, x: &[T], y: &mut [T]) {
    let env = FloatEnv::standard();
    let task = &Task { call, level, eps: call.eps.in_float_env(&env), reach: Reach::of(size_of_val(x)) };
    let hidden = call.hidden;
    let rows = if x.len() == hidden { 1 } else { x.len() / hidden };
    let params = call.params.direct::<T>();
    let mut at = 0;
    while at < rows {
        if let Some(params) = params {
            let (x, y) = (In::contiguous(x, hidden, 0), Out::contiguous(&mut *y, hidden));
            at = Pass { task, x: Some(x), y, saved: None, known: None, is_near: false, params }.run::<N>(at..rows);
        }
        if at < rows {
            let (x, y) = (&x[at * hidden..][..hidden], &mut y[at * hidden..][..hidden]);
            tiles::apply_row_alone::<T>(task, x, y, measure::<N, T>(task, &x[..task.measured()]));
            at += 1;
        }
    }
    if task.reach == Reach::Past {
        T::Compute::enter(level, Fence);
    }
}

/// The statistics of a row, under the range rule.
pub(crate) fn measure<N: RowNorm, T: Element>(task: &Task<'_, T::Compute>, row: &[T]) -> Stats<T::Compute> {
    let one = T::Compute::ONE;
    let (mut stats, out_of_range) = T::Compute::enter(task.level, Measure::<N, T, false>::new(row, one));
    stats.inv = task.eps.inverse_root(stats.var);
    stats.scale = one;
    if !(out_of_range | task.eps.is_small(stats.var)) {
        return stats;
    }
    let scale = task.eps.scale(largest(row));
    if scale == one {
        return stats;
    }
    let (mut stats, _) = T::Compute::enter(task.level, Measure::<N, T, true>::new(row, scale));
    stats.inv = task.eps.scaled(scale).inverse_root(stats.var);
    stats.scale = scale;
    stats
}

/// The sums of `row * scale`, and whether one left the range.
struct Measure<'a, N, T: Element, const SCALED: bool> {
    row: &'a [T],
    scale: T::Compute,
    norm: PhantomData<N>,
}

impl<'a, N, T: Element, const SCALED: bool> Measure<'a, N, T, SCALED> {
    fn new(row: &'a [T], scale: T::Compute) -> Self {
        Measure { row, scale, norm: PhantomData }
    }
}

impl<C: Compute, N: RowNorm, T: Element<Compute = C>, const SCALED: bool> Kernel<C> for Measure<'_, N, T, SCALED> {
    type Output = (Stats<C>, bool);

    #[inline(always)]
    fn eval<S: Isa<C>>(self, isa: S) -> (Stats<C>, bool) {
        N::measure::<C, S, T, SCALED>(isa, self.row, self.scale)
    }
}
