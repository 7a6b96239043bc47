//! Normalization with statistics of its own where channels lie side by side: measure up to 512 sets of
//! elements, then apply them row by row.

use std::ops::Range;

use crate::channels::{Source, Task};
use crate::columns::ColumnsJob;
use crate::element::Element;
use crate::groups::{Gathered, measure_group};
use crate::isa::float_env::FloatEnv;
use crate::moments::{Last, measure};
use crate::order::LANES;
use crate::side_by_side::measure_side_by_side;
use crate::slice::SliceMut;
use crate::stats::Stats;
use crate::threads::{self, Cpu, Job};

/// Statistics that are held at once.
const SETS: usize = 512;

/// A tensor whose channels lie side by side, each `per` of them one normalized set.
pub(crate) struct ChannelsLast<'a, T: Element> {
    pub(crate) task: Task<'a, T::Compute>,
    pub(crate) cpu: Cpu<'a>,
    pub(crate) per: usize,
    /// `None`: x is what y holds.
    pub(crate) x: Option<&'a [T]>,
    pub(crate) y: SliceMut<'a>,
}

impl<T: Element> ChannelsLast<'_, T> {
    /// Normalizes, and shows `see` the statistics of all sets, from the given one on.
    pub(crate) fn run(mut self, mut see: impl FnMut(usize, &[Stats<T::Compute>])) {
        let (shape, per) = (self.task.shape, self.per);
        let sets = shape.channels / per;
        for first in (0..sets).step_by(SETS) {
            let n = SETS.min(sets - first);
            let bytes = shape.count() * n * per * size_of::<T>();
            let mut stats = [Stats::default(); SETS];
            let stats = &mut stats[..n];
            self.measure(first, stats, 2 * bytes);
            see(first, stats);
            let job = ColumnsJob {
                task: self.task,
                source: Source::Given { stats, first: first * per, per },
                channels: first * per..(first + n) * per,
                repeat: 1,
                x: self.x,
                y: self.y.reborrow(),
            };
            threads::run(&self.cpu, job, 2 * bytes);
        }
    }

    fn measure(&self, first: usize, stats: &mut [Stats<T::Compute>], bytes: usize) {
        let Some(x) = self.x.or_else(|| T::of(&self.y.as_slice())) else { return };
        if self.per == 1 {
            return measure_side_by_side(&self.task, &self.cpu, x, first, stats);
        }
        let job = MeasureJob { task: self.task, per: self.per, x, sets: first..first + stats.len(), stats };
        threads::run(&self.cpu, job, bytes);
    }
}

/// Sets to be measured.
pub(crate) struct MeasureJob<'a, T: Element> {
    pub(crate) task: Task<'a, T::Compute>,
    pub(crate) per: usize,
    pub(crate) x: &'a [T],
    pub(crate) sets: Range<usize>,
    pub(crate) stats: &'a mut [Stats<T::Compute>],
}

impl<T: Element> MeasureJob<'_, T> {
    /// Sets that are measured at once.
    fn lanes(&self) -> usize {
        if self.per == 1 { LANES } else { 1 }
    }
}

impl<T: Element> Job for MeasureJob<'_, T> {
    fn units(&self) -> usize {
        self.sets.len().div_ceil(self.lanes())
    }

    fn split(self, units: usize) -> (Self, Self) {
        let n = units * self.lanes();
        let MeasureJob { task, per, x, sets, stats } = self;
        let (stats, stats_rest) = stats.split_at_mut(n);
        let first = MeasureJob { task, per, x, sets: sets.start..sets.start + n, stats };
        (first, MeasureJob { task, per, x, sets: sets.start + n..sets.end, stats: stats_rest })
    }

    fn run(&mut self) {
        let _env = FloatEnv::standard();
        let Task { level, shape, eps, .. } = self.task;
        let (stride, per, lanes) = (shape.channels, self.per, self.lanes());
        for (first, stats) in self.sets.clone().step_by(lanes).zip(self.stats.chunks_mut(lanes)) {
            let x = &self.x[first * per..];
            if per == 1 {
                let (samples, spatial, channels) = (shape.samples, shape.spatial, stats.len());
                measure(level, &Last { x, stride, samples, spatial, channels }, eps, stats);
            } else {
                stats[0] = measure_group(level, Gathered { x, stride, spatial: shape.spatial, channels: per }, eps);
            }
        }
    }
}
