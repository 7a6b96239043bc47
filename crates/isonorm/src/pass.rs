//! The kernels of the forward pass: blocks of rows from x to y of one type, first measured, then written.
//!
//! Two kernels a block, since there are many more ways to write a row than to measure one: one kernel that did both
//! would hold each norm's sums once for every kind of parameters.

use std::marker::PhantomData;
use std::ops::Range;

use arrayvec::ArrayVec;

use crate::affine::{Affine, OffsetWeight, Plain, Weight, WeightBias};
use crate::apply::{Far, Hat, Near, Past, Way, apply_in_place, apply_row};
use crate::element::{Compute, Element};
use crate::forward::{Reach, RowNorm, Task};
use crate::isa::Isa;
use crate::level::{Kernel, Level};
use crate::params::{Direct, Recipe};
use crate::rows::{In, Out, Run, RunMut};
use crate::stats::Stats;

/// Rows of a block at most.
pub(crate) const BLOCK: usize = 16;
/// Bytes of a block: while one is measured, nothing is written. (65536 x 128 f32 took 2.62 ms in blocks of 4 rows,
/// 2.89 ms of 16: Intel Xeon, November 2026.)
const BLOCK_BYTES: usize = 2 << 10;
/// Bytes by which x is read ahead of the row that is written: half of a small first-level cache. Longer rows are read
/// into the second one (LayerNorm 4096 x 4096 f32 took 5.85 ms, 6.20 ms by way of the first).
const AHEAD_BYTES: usize = 16 << 10;
/// Rows by which it is at most. (65536 x 128 bf16 took 1.65 ms by 32 rows, 1.75 ms by 64.)
const AHEAD: usize = 32;

/// Rows that kernels can do where they are.
pub(crate) struct Pass<'a, T: Element> {
    pub(crate) task: &'a Task<'a, T::Compute>,
    /// `None`: y holds x.
    pub(crate) x: Option<In<'a, T>>,
    pub(crate) y: Out<'a, T>,
    pub(crate) saved: Option<Out<'a, Stats<T::Compute>>>,
    /// Statistics that are known: x is not measured.
    pub(crate) known: Option<In<'a, Stats<T::Compute>>>,
    /// Whether x is in the nearest cache.
    pub(crate) is_near: bool,
    pub(crate) params: Direct<'a, T>,
}

impl<T: Element> Pass<'_, T> {
    /// Does rows until one has to be computed by the range rule; returns the first that is left.
    #[inline(always)]
    pub(crate) fn run<N: RowNorm>(mut self, rows: Range<usize>) -> usize {
        let rows_of = |bytes: usize| (bytes / (self.task.hidden() * size_of::<T>())).max(1);
        let (most, ahead) =
            if rows.len() == 1 { (1, 0) } else { (rows_of(BLOCK_BYTES).min(BLOCK), rows_of(AHEAD_BYTES).min(AHEAD)) };
        let mut at = rows.start;
        while at < rows.end {
            let (_, block) = self.y.run(at, most.min(rows.end - at));
            let mut stats = ArrayVec::new();
            let x = self.x.unwrap_or(self.y.as_in());
            if let Some(known) = self.known {
                let known = (at..at + block).map(|r| known.row(r)[0].quiet());
                stats.extend(known.take_while(|stats| !stats.is_scaled()));
            } else {
                let (task, x, stats, norm) = (self.task, x.run(at), &mut stats, PhantomData);
                T::Compute::enter(task.level, Measure::<N, T> { task, x, rows: block, stats, norm });
            }
            if let Some(saved) = &mut self.saved {
                (at..).zip(&stats).for_each(|(r, stats)| saved.row_mut(r)[0] = *stats);
            }
            let soon = (at + ahead).min(rows.end - 1);
            self.apply::<N>(at, soon, &stats);
            at += stats.len();
            if stats.len() < block {
                break;
            }
        }
        at
    }

    /// The rows of `stats`, from row `first` on; row `soon` is read next.
    #[inline(always)]
    fn apply<N: RowNorm>(&mut self, first: usize, soon: usize, stats: &[Stats<T::Compute>]) {
        let task = self.task;
        let is_long = task.hidden() * size_of::<T>() >= AHEAD_BYTES;
        let way = match (task.reach, self.x) {
            (Reach::Near, _) | (_, None) => AnyWay::Near,
            (Reach::Far, _) => AnyWay::Far,
            (Reach::Past, Some(_)) if self.is_near => AnyWay::Past(Past { ahead: 0, is_long }),
            (Reach::Past, Some(x)) => AnyWay::Past(Past { ahead: x.distance(first, soon), is_long }),
        };
        let (x, (y, _)) = (self.x.map(|x| x.run(first)), self.y.run(first, 1));
        let rows = Rows { hidden: task.hidden(), x, y, stats, way };
        let recipe = task.call.recipe;
        match self.params {
            Direct::None => rows.recipe::<N, _>(task.level, recipe, Plain),
            Direct::Weight(weight) => rows.recipe::<N, _>(task.level, recipe, Weight(weight)),
            Direct::WideWeight(weight) => rows.recipe::<N, _>(task.level, recipe, Weight(weight)),
            Direct::OffsetWeight(weight, offset) => {
                rows.recipe::<N, _>(task.level, recipe, OffsetWeight(weight, offset))
            }
            Direct::WeightBias(weight, bias) => rows.recipe::<N, _>(task.level, recipe, WeightBias(weight, bias)),
            Direct::WideWeightBias(weight, bias) => rows.recipe::<N, _>(task.level, recipe, WeightBias(weight, bias)),
        }
    }
}

/// The statistics of some rows, at most [`BLOCK`], up to the first that the range rule wants to see.
pub(crate) fn measure_rows<N: RowNorm, T: Element>(
    task: &Task<'_, T::Compute>,
    x: Run<'_, T>,
    rows: usize,
) -> ArrayVec<Stats<T::Compute>, BLOCK> {
    let mut stats = ArrayVec::new();
    T::Compute::enter(task.level, Measure::<N, T> { task, x, rows, stats: &mut stats, norm: PhantomData });
    stats
}

/// The kernel of `measure_rows`.
struct Measure<'a, N, T: Element> {
    task: &'a Task<'a, T::Compute>,
    x: Run<'a, T>,
    rows: usize,
    stats: &'a mut ArrayVec<Stats<T::Compute>, BLOCK>,
    norm: PhantomData<N>,
}

impl<C: Compute, N: RowNorm, T: Element<Compute = C>> Kernel<C> for Measure<'_, N, T> {
    type Output = ();

    #[inline(always)]
    fn eval<S: Isa<C>>(self, isa: S) {
        let (eps, measured) = (self.task.eps, self.task.measured());
        for i in 0..self.rows {
            let (mut row, out_of_range) = N::measure::<C, S, T, false>(isa, self.x.row(i, measured), C::ONE);
            row.inv = eps.inverse_root(row.var);
            row.scale = C::ONE;
            if out_of_range | eps.is_small(row.var) {
                return;
            }
            self.stats.push(row);
        }
    }
}

/// [`Way`](crate::apply::Way), chosen once a block.
#[derive(Clone, Copy)]
enum AnyWay {
    Near,
    Far,
    Past(Past),
}

/// Rows whose statistics are known.
struct Rows<'a, T: Element> {
    hidden: usize,
    /// `None`: y holds x.
    x: Option<Run<'a, T>>,
    y: RunMut<'a, T>,
    stats: &'a [Stats<T::Compute>],
    way: AnyWay,
}

impl<T: Element> Rows<'_, T> {
    #[inline(always)]
    fn recipe<N: RowNorm, A: Affine<T::Compute>>(self, level: Level, recipe: Recipe, affine: A) {
        if N::OF_LANGUAGE_MODELS && recipe == Recipe::Llama {
            self.enter::<N::Hat<T::Compute>, T, A>(level, affine);
        } else {
            self.enter::<N::Hat<T::Compute>, T::Compute, A>(level, affine);
        }
    }

    #[inline(always)]
    fn enter<H, R, A>(self, level: Level, affine: A)
    where
        H: Hat<T::Compute>,
        R: Element<Compute = T::Compute>,
        A: Affine<T::Compute>,
    {
        let Rows { hidden, x, y, stats, way } = self;
        let recipe = PhantomData::<(H, R)>;
        match x {
            Some(x) => T::Compute::enter(level, Apply { hidden, x, y, stats, way, affine, recipe }),
            None => T::Compute::enter(level, ApplyInPlace { hidden, y, stats, affine, recipe }),
        }
    }
}

struct Apply<'a, T: Element, H, R, A> {
    hidden: usize,
    x: Run<'a, T>,
    y: RunMut<'a, T>,
    stats: &'a [Stats<T::Compute>],
    way: AnyWay,
    affine: A,
    recipe: PhantomData<(H, R)>,
}

impl<C, T, H, R, A> Kernel<C> for Apply<'_, T, H, R, A>
where
    C: Compute,
    T: Element<Compute = C>,
    H: Hat<C>,
    R: Element<Compute = C>,
    A: Affine<C>,
{
    type Output = ();

    #[inline(always)]
    fn eval<S: Isa<C>>(self, isa: S) {
        if S::LEAVES == 1 {
            return self.rows(isa, Near); // nothing is asked for where primitives are calls
        }
        match self.way {
            AnyWay::Near => self.rows(isa, Near),
            AnyWay::Far => self.rows(isa, Far),
            AnyWay::Past(way) => self.rows(isa, way),
        }
    }
}

impl<T: Element, H, R, A> Apply<'_, T, H, R, A> {
    #[inline(always)]
    fn rows<S: Isa<T::Compute>, W: Way>(self, isa: S, way: W)
    where
        H: Hat<T::Compute>,
        R: Element<Compute = T::Compute>,
        A: Affine<T::Compute>,
    {
        let Apply { hidden, x, mut y, stats, affine, .. } = self;
        for (i, stats) in stats.iter().enumerate() {
            let (x, y, splat) = (x.row(i, hidden), y.row_mut(i, hidden), H::splat(isa, stats));
            apply_row::<T::Compute, S, H, T, R, T, A, W>(isa, x, y, splat, affine, way);
        }
    }
}

/// Where y holds x.
struct ApplyInPlace<'a, T: Element, H, R, A> {
    hidden: usize,
    y: RunMut<'a, T>,
    stats: &'a [Stats<T::Compute>],
    affine: A,
    recipe: PhantomData<(H, R)>,
}

impl<C, T, H, R, A> Kernel<C> for ApplyInPlace<'_, T, H, R, A>
where
    C: Compute,
    T: Element<Compute = C>,
    H: Hat<C>,
    R: Element<Compute = C>,
    A: Affine<C>,
{
    type Output = ();

    #[inline(always)]
    fn eval<S: Isa<C>>(self, isa: S) {
        let ApplyInPlace { hidden, mut y, stats, affine, .. } = self;
        for (i, stats) in stats.iter().enumerate() {
            let splat = H::splat(isa, stats);
            apply_in_place::<C, S, H, T, R, A>(isa, y.row_mut(i, hidden), splat, affine);
        }
    }
}
