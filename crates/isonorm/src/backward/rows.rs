//! The backward pass over rows: one pass over memory.
//!
//! ```text
//! for each block of rows, within one leaf of the batch:
//!     stats  = saved, or measure(row)
//!     slopes = correlate(rows)                          the means that dx takes off
//!     dx     = gradients(rows), and the leaf of dweight and dbias goes on
//!     dx     = T(dx + dresidual)                        after a residual add
//! ```
//!
//! Each piece that a thread takes begins where a leaf does and ends as a [`Sums`]; neighbours are merged as they come.
//! What the kernels cannot read in place goes row by row through `wide.rs`.

use std::marker::PhantomData;
use std::ops::Range;
use std::sync::{Mutex, MutexGuard, PoisonError};

use arrayvec::ArrayVec;

use crate::apply::Fence;
use crate::backward::correlate::{Correlate, Slope};
use crate::backward::gradients::{Gradients, Leaf, Way};
use crate::backward::spans::Spans;
use crate::backward::wide::Wide;
use crate::element::{Compute, Element, with_element};
use crate::forward::{Reach, RowNorm, Task};
use crate::isa::float_env::FloatEnv;
use crate::order::{BATCH_LEAF, Kind, Order, Sums};
use crate::params::Recipe;
use crate::pass::measure_rows;
use crate::residual::add_rows_in_place;
use crate::rows::{AnyIn, AnyOut, In, Out};
use crate::slice::SliceMut;
use crate::stats::Stats;
use crate::threads::Job;

/// Bytes of x in a block of rows, which are read two or three times: with as many of dy they stay in the second-level
/// cache (RMSNorm 2048 x 4096 f32 took 4.3 ms; 4.8 ms in blocks of 16 KiB, 4.6 ms of 128: Intel Xeon, November 2026).
const BLOCK_BYTES: usize = 64 << 10;

/// What one call computes, apart from where.
#[derive(Clone, Copy)]
pub(crate) struct Plan<'a, C> {
    pub(crate) task: Task<'a, C>,
    /// Elements, the first of a row, that its statistics depend on.
    pub(crate) measured: usize,
    /// The weight in the compute type, offset added; ones where there is none.
    pub(crate) weight: &'a [C],
    /// The same with the lanes of whole chunks as `T::load_split` has them.
    pub(crate) split_weight: &'a [C],
    pub(crate) spans: &'a Spans,
    /// The batch's first row among all that are summed, and what is summed.
    pub(crate) base: usize,
    pub(crate) kind: Option<Kind>,
    /// Whether dx is written past the caches.
    pub(crate) past: bool,
    /// Sums of finished pieces.
    pub(crate) finished: &'a Mutex<Vec<Sums<C>>>,
}

/// Rows of the batch to be differentiated. `T` is the storage type of x.
pub(crate) struct BackwardJob<'a, N, T: Element> {
    pub(crate) norm: PhantomData<N>,
    pub(crate) plan: &'a Plan<'a, T::Compute>,
    /// Numbers within the batch.
    pub(crate) rows: Range<usize>,
    pub(crate) x: In<'a, T>,
    /// `None`: what dx holds.
    pub(crate) dy: Option<AnyIn<'a>>,
    pub(crate) dx: AnyOut<'a>,
    /// `Some(None)`: what dr holds.
    pub(crate) dresidual: Option<Option<AnyIn<'a>>>,
    pub(crate) dr: Option<AnyOut<'a>>,
    pub(crate) stats: Option<In<'a, Stats<T::Compute>>>,
    /// Slopes that are known: neither x is measured nor dy correlated with it.
    pub(crate) known: Option<In<'a, Slope<T::Compute>>>,
    /// The sums that the first row goes on with; pieces after it begin their own.
    pub(crate) sums: Option<Sums<T::Compute>>,
}

impl<N: RowNorm, T: Element> BackwardJob<'_, N, T> {
    fn is_divisible(&self) -> bool {
        self.dx.is_nested() && self.dr.as_ref().is_none_or(AnyOut::is_nested)
    }

    /// The leaf of the batch that row `n` is in.
    fn leaf(&self, n: usize) -> usize {
        (self.plan.base + n) / BATCH_LEAF
    }
}

impl<N: RowNorm, T: Element> Job for BackwardJob<'_, N, T> {
    const MERGES: bool = true;

    /// Leaves.
    fn units(&self) -> usize {
        if !self.is_divisible() || self.rows.is_empty() {
            return 1;
        }
        self.leaf(self.rows.end - 1) - self.leaf(self.rows.start) + 1
    }

    fn split(self, units: usize) -> (Self, Self) {
        let at = (self.leaf(self.rows.start) + units) * BATCH_LEAF - self.plan.base;
        let BackwardJob { norm, plan, rows, x, dy, dx, dresidual, dr, stats, known, sums } = self;
        let (row, _) = plan.spans.find(at);
        let (dx, dx_rest) = dx.split(row);
        let (dr, dr_rest) = dr.map(|dr| dr.split(row)).unzip();
        let first = BackwardJob { norm, plan, rows: rows.start..at, x, dy, dx, dresidual, dr, stats, known, sums };
        let rest = BackwardJob {
            norm,
            plan,
            rows: at..rows.end,
            x,
            dy,
            dx: dx_rest,
            dresidual,
            dr: dr_rest,
            stats,
            known,
            sums: None,
        };
        (first, rest)
    }

    fn run(&mut self) {
        let _env = FloatEnv::standard();
        let plan = self.plan;
        let hidden = plan.task.hidden();
        let new = |kind| Sums::new(Order::Batch, kind, hidden, plan.base + self.rows.start);
        let mut sums = self.sums.take().or_else(|| plan.kind.map(new));
        if let (Some(sums), Some(finished)) = (&mut sums, lock(plan.finished).first_mut()) {
            sums.take_spare(finished);
        }
        let mut wide = None;
        let mut n = self.rows.start;
        if n == 0 {
            self.clear(plan.spans.padding(0));
        }
        while n < self.rows.end {
            n = match self.block(n, sums.as_mut()) {
                0 => {
                    let wide = wide.get_or_insert_with(|| Wide::new(hidden));
                    wide.row::<N, T>(self, plan.spans.find(n).0, sums.as_mut());
                    n + 1
                }
                done => n + done,
            };
            self.clear(plan.spans.padding(n));
        }
        if plan.past {
            T::Compute::enter(plan.task.level, Fence);
        }
        if let Some(sums) = sums {
            collect(plan.finished, sums);
        }
    }
}

impl<N: RowNorm, T: Element> BackwardJob<'_, N, T> {
    /// Rows from number `n` on, by the kernels; how many: 0 where the next one is not theirs.
    fn block(&mut self, n: usize, mut sums: Option<&mut Sums<T::Compute>>) -> usize {
        let Plan { task, measured, spans, base, .. } = *self.plan;
        if measured < task.hidden() || sums.as_ref().is_some_and(|sums| sums.raw() > 0) {
            return 0;
        }
        let (first, run) = spans.find(n);
        let left = run.min(self.rows.end - n).min(BATCH_LEAF - (base + n) % BATCH_LEAF);
        // An even number, since the kernel takes them two by two.
        let most = (BLOCK_BYTES / (task.hidden() * size_of::<T>()) / 2 * 2).max(2).min(left);
        let ahead = (n + most < self.rows.end).then(|| spans.find(n + most).0);
        let Some(mut block) = self.in_place(first, most) else { return 0 };
        let mut slopes = block.slopes::<N>();
        if slopes.is_empty() {
            return 0;
        }
        let leaf = sums.as_deref_mut().map_or(Leaf::none(), leaf_of);
        if N::OF_LANGUAGE_MODELS && task.call.recipe == Recipe::Llama {
            block.differentiate::<N, T>(&mut slopes, leaf, ahead);
        } else {
            block.differentiate::<N, T::Compute>(&mut slopes, leaf, ahead);
        }
        block.add(first..first + slopes.len());
        if let Some(sums) = sums {
            sums.advance(slopes.len());
        }
        slopes.len()
    }

    /// At most `most` rows from `first` on, where all tensors are of x's type.
    fn in_place(&mut self, first: usize, most: usize) -> Option<Block<'_, T>> {
        let dy = match self.dy {
            Some(dy) => Some(dy.of::<T>()?),
            None => None,
        };
        let dresidual = match self.dresidual {
            Some(Some(dresidual)) => Some(Some(dresidual.of::<T>()?)),
            Some(None) => Some(None),
            None => None,
        };
        let dr = match &mut self.dr {
            Some(dr) => Some(dr.of::<T>()?),
            None => None,
        };
        let mut dx = self.dx.of::<T>()?;
        let (_, rows) = dx.run(first, most);
        Some(Block {
            plan: self.plan,
            first,
            rows,
            x: self.x,
            dy,
            dx,
            dresidual,
            dr,
            stats: self.stats,
            known: self.known,
        })
    }

    /// Rows that are padding.
    fn clear(&mut self, rows: Range<usize>) {
        let columns = 0..self.plan.task.hidden();
        for row in rows {
            clear(self.dx.row(row, columns.clone()));
            if let Some(dr) = &mut self.dr {
                clear(dr.row(row, columns.clone()));
            }
        }
    }
}

fn clear(row: SliceMut<'_>) {
    with_element!(row.dtype(), E => if let Some(row) = E::of_mut(row) { row.fill(E::default()) });
}

/// The leaf of unfinished sums of dweight, dbias or both.
pub(crate) fn leaf_of<C: Compute>(sums: &mut Sums<C>) -> Leaf<'_, C> {
    let (columns, kind) = (sums.columns(), sums.kind());
    let (leaf, is_new) = sums.open_leaf();
    let (dot, sum) = leaf.split_at_mut(if kind.has_dot() { columns } else { 0 });
    Leaf { dweight: kind.has_dot().then_some(dot), dbias: kind.has_sum().then_some(sum), is_new }
}

/// Rows that the kernels read and write where they are.
struct Block<'a, T: Element> {
    plan: &'a Plan<'a, T::Compute>,
    first: usize,
    rows: usize,
    x: In<'a, T>,
    dy: Option<In<'a, T>>,
    dx: Out<'a, T>,
    dresidual: Option<Option<In<'a, T>>>,
    dr: Option<Out<'a, T>>,
    stats: Option<In<'a, Stats<T::Compute>>>,
    known: Option<In<'a, Slope<T::Compute>>>,
}

impl<T: Element> Block<'_, T> {
    /// The statistics of the rows, up to the first that is scaled.
    fn slopes<N: RowNorm>(&self) -> ArrayVec<Slope<T::Compute>, BATCH_LEAF> {
        let (first, rows) = (self.first, self.first..self.first + self.rows);
        match (self.known, self.stats) {
            (Some(known), _) => {
                rows.map(|row| known.row(row)[0]).take_while(|slope| !slope.stats.is_scaled()).collect()
            }
            (None, Some(saved)) => {
                let stats = rows.map(|row| saved.row(row)[0]);
                stats.take_while(|stats| !stats.is_scaled()).map(Slope::of).collect()
            }
            (None, None) => {
                let stats = measure_rows::<N, T>(&self.plan.task, self.x.run(first), self.rows);
                stats.into_iter().map(Slope::of).collect()
            }
        }
    }

    /// The rows of `slopes`; row `ahead` is read next.
    fn differentiate<N: RowNorm, R: Element<Compute = T::Compute>>(
        &mut self,
        slopes: &mut [Slope<T::Compute>],
        leaf: Leaf<'_, T::Compute>,
        ahead: Option<usize>,
    ) {
        let (Plan { task, weight, split_weight, past, .. }, first) = (*self.plan, self.first);
        let (hidden, measured, eps, norm) = (task.hidden(), task.measured(), task.eps, PhantomData::<(N, R)>);
        let (x, level) = (self.x.run(first), task.level);
        let soon = ahead.filter(|_| task.reach != Reach::Near);
        // dy is asked for while sums are taken and x while dx is written, so that memory always has work.
        let from = self.dy.unwrap_or(self.dx.as_in());
        let (dy, ahead) = (from.run(first), soon.map(|soon| from.distance(first, soon)));
        if self.known.is_none() {
            let correlate = Correlate { hidden, measured, eps, x, dy, weight: split_weight, ahead, rows: slopes, norm };
            T::Compute::enter(level, correlate);
        }
        let way = Way { past, ahead: soon.map(|soon| self.x.distance(first, soon)) };
        let (dy, (dx, _)) = (self.dy.map(|dy| dy.run(first)), self.dx.run(first, 1));
        T::Compute::enter(level, Gradients { hidden, x, dy, dx, weight, rows: slopes, leaf, way, norm });
    }

    /// The gradient that reaches r from elsewhere, where there is one.
    fn add(&mut self, rows: Range<usize>) {
        let level = self.plan.task.level;
        match (self.dresidual, &mut self.dr) {
            (Some(Some(dresidual)), _) => add_rows_in_place(level, dresidual, self.dx.reborrow(), rows.clone()),
            (Some(None), Some(dr)) => {
                add_rows_in_place(level, dr.as_in(), self.dx.reborrow(), rows.clone());
            }
            _ => {}
        }
        if let Some(dr) = &mut self.dr {
            rows.for_each(|row| dr.row_mut(row).copy_from_slice(self.dx.row_mut(row)));
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Keeps the sums of a piece, merged with those of its neighbours that are there.
fn collect<C: Compute>(finished: &Mutex<Vec<Sums<C>>>, mut sums: Sums<C>) {
    loop {
        let mut others = lock(finished);
        let is_neighbour = |other: &Sums<C>| other.end() == sums.start() || sums.end() == other.start();
        let Some(at) = others.iter().position(is_neighbour) else { return others.push(sums) };
        let other = others.swap_remove(at);
        drop(others);
        let (mut left, right) = if other.end() == sums.start() { (other, sums) } else { (sums, other) };
        // Of one call, they are alike.
        if left.merge(right).is_err() {
            return;
        }
        sums = left;
    }
}
