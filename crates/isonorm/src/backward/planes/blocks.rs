//! BatchNorm's gradients in training where channels lie side by side and a few of them, of all samples, fit the
//! second-level cache: they are read, summed and written together.

use std::ops::Range;

use crate::backward::planes::factors::{Columns, Factors, Output, batch_factors};
use crate::backward::planes::io::Gradients;
use crate::backward::planes::table::{TableJob, sum_tables};
use crate::channels::Task;
use crate::channels_blocks::{WIDE, measure_side_by_side};
use crate::element::{Compute, Element};
use crate::isa::float_env::FloatEnv;
use crate::stats::Stats;
use crate::stripes::Stripes;
use crate::threads::Job;

/// Channels that lie side by side, [`WIDE`] of them at a time.
pub(super) struct BlocksJob<'a, 'y, T: Element> {
    pub(super) task: Task<'a, T::Compute>,
    pub(super) x: &'a [T],
    pub(super) dy: &'a [T],
    pub(super) dx: &'a Stripes<'y>,
    pub(super) channels: Range<usize>,
    /// Of all channels.
    pub(super) saved: Option<&'a [Stats<T::Compute>]>,
    /// Of `channels`.
    pub(super) gradients: Gradients<'a>,
}

impl<T: Element> Job for BlocksJob<'_, '_, T> {
    fn units(&self) -> usize {
        self.channels.len().div_ceil(WIDE)
    }

    fn split(self, units: usize) -> (Self, Self) {
        let BlocksJob { task, x, dy, dx, channels, saved, gradients } = self;
        let (gradients, rest) = gradients.split(units * WIDE);
        let middle = channels.start + units * WIDE;
        let first = BlocksJob { task, x, dy, dx, channels: channels.start..middle, saved, gradients };
        (first, BlocksJob { task, x, dy, dx, channels: middle..channels.end, saved, gradients: rest })
    }

    fn run(&mut self) {
        let _env = FloatEnv::standard();
        let shape = self.task.shape;
        let mut output = Output::<T>::new(&self.task);
        let mut columns = Columns::new(shape.channels);
        let mut table = vec![T::Compute::ZERO; 2 * WIDE * shape.samples];
        for first in self.channels.clone().step_by(WIDE) {
            let channels = first..self.channels.end.min(first + WIDE);
            let mut factors = [Factors::default(); WIDE];
            let factors = &mut factors[..channels.len()];
            self.sum(channels.clone(), &mut table, factors);
            columns.clear(shape.channels);
            columns.extend(factors, 1);
            self.write(channels, &mut output, &columns);
        }
        output.finish();
    }
}

impl<T: Element> BlocksJob<'_, '_, T> {
    /// The factors of some channels, from their sums.
    fn sum(&mut self, channels: Range<usize>, table: &mut [T::Compute], factors: &mut [Factors<T::Compute>]) {
        let Task { level, shape, .. } = self.task;
        let (first, n) = (channels.start, channels.len());
        let mut stats = [Stats::default(); WIDE];
        let stats = &mut stats[..n];
        self.stats(first, stats);
        let (sums, products) = table.split_at_mut(WIDE * shape.samples);
        let (sums, products) = (&mut sums[..n * shape.samples], &mut products[..n * shape.samples]);
        let (x, dy) = (&self.x[first..], &self.dy[first..]);
        TableJob { level, shape, x, dy, stats, dbias: &mut *sums, dweight: &mut *products }.run();
        let [mut dbias, mut dweight] = [[T::Compute::ZERO; WIDE]; 2];
        sum_tables(level, [sums, products], n, |at, n, [sums, products]| {
            dbias[at..at + n].copy_from_slice(&sums[..n]);
            dweight[at..at + n].copy_from_slice(&products[..n]);
        });
        self.gradients.write(first - self.channels.start, n, [&dbias, &dweight]);
        batch_factors(&self.task, first, stats, [&dbias, &dweight], factors);
    }

    fn stats(&self, first: usize, stats: &mut [Stats<T::Compute>]) {
        if let Some(saved) = self.saved {
            return stats.copy_from_slice(&saved[first..first + stats.len()]);
        }
        measure_side_by_side(&self.task, self.x, first, stats);
    }

    fn write(&self, channels: Range<usize>, output: &mut Output<T>, columns: &Columns<T::Compute>) {
        let shape = self.task.shape;
        let n = (shape.spatial - 1) * shape.channels + channels.len();
        for sample in 0..shape.samples {
            let from = sample * shape.sample() + channels.start;
            let (x, dy) = (&self.x[from..from + n], &self.dy[from..from + n]);
            let (mut stripe, at) = self.dx.lock(sample, 0);
            output.columns(x, Some(T::slice(dy)), stripe.reborrow().part(at + channels.start, n), columns);
        }
    }
}
