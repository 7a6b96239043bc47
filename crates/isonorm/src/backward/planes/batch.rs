//! BatchNorm's gradients.
//!
//! ```text
//! [dbias, dweight] = sums over a channel of dy, dy * x_hat
//! training:   k1 = dbias / n, k2 = (dweight / n) * q;  dx = T((fma(-x_hat, k2, dy - k1) * (weight * inv)) * scale)
//! evaluation: dx = T(dy * (weight * inv))
//! ```
//!
//! Channels first: a few channels of all samples are read, summed and written together, as far as they fit the
//! second-level cache. Channels last: the sums of up to 512 channels, then dx row by row.

use std::ops::Range;

use crate::backward::planes::factors::{Columns, Factors, Output, batch_factors};
use crate::backward::planes::io::{Gradients, PlaneBackwardIo};
use crate::backward::planes::side::PairSamples;
use crate::backward::planes::sums::{FirstPairs, Lanes, PlaneSums, Sums};
use crate::channels::{self, Task, WINDOW};
use crate::channels_first::channels_together;
use crate::element::{Compute, Element};
use crate::isa::float_env::FloatEnv;
use crate::moments::{First, measure};
use crate::order::LANES;
use crate::side_by_side::measure_side_by_side;
use crate::slice::{Slice, SliceMut};
use crate::stats::Stats;
use crate::stripes::{Source, Stripes};
use crate::tables::{is_table_worth_it, sum_samples};
use crate::threads::{self, Cpu, Job};

/// Channels whose sums are held at once.
const SETS: usize = 512;

/// Bytes of x and dy that are read, summed and read again: they stay in the second-level cache.
const BLOCK_BYTES: usize = 512 << 10;

/// The gradients of a training call.
pub(crate) fn backward_train<T: Element>(task: Task<'_, T::Compute>, cpu: &Cpu<'_>, io: PlaneBackwardIo<'_>) {
    let shape = task.shape;
    let bytes = shape.bytes(size_of::<T>()) / 2 * 3;
    let Some(x) = T::of(&io.x.data) else { return };
    let (dy, dx, gradients) = (io.dy.map(|dy| dy.data), io.dx.data, io.gradients);
    let saved = io.stats.and_then(T::Compute::saved);
    if shape.last {
        return Last { task, cpu, x, saved, bytes }.train(dy, dx, gradients);
    }
    let dx = Stripes::new(dx, shape);
    let channels = 0..shape.channels;
    threads::run(cpu, FirstJob { task, x, dy, dx: &dx, channels, saved, gradients }, bytes);
}

/// The gradients of an evaluation call apart from dx.
pub(crate) fn backward_evaluate<T: Element>(
    task: Task<'_, T::Compute>,
    cpu: &Cpu<'_>,
    source: channels::Source<'_, T::Compute>,
    io: &mut PlaneBackwardIo<'_>,
) {
    let shape = task.shape;
    let Some(x) = T::of(&io.x.data) else { return };
    let PlaneBackwardIo { dy, dx, gradients, .. } = io;
    let dy = dy.map_or(dx.data.as_slice(), |dy| dy.data);
    let last = Last { task, cpu, x, saved: None, bytes: shape.bytes(size_of::<T>()) };
    for first in (0..shape.channels).step_by(SETS) {
        let n = SETS.min(shape.channels - first);
        let mut stats = [Stats::default(); SETS];
        {
            let _env = FloatEnv::standard();
            for (i, stats) in stats[..n].chunks_mut(WINDOW).enumerate() {
                let from = first + i * WINDOW;
                stats.copy_from_slice(&source.stats(task.eps, from..from + stats.len()));
            }
        }
        let [mut dbias, mut dweight] = [[T::Compute::ZERO; SETS]; 2];
        last.sums(dy, first, &stats[..n], [&mut dbias[..n], &mut dweight[..n]]);
        gradients.write(first, n, [&dbias, &dweight]);
    }
}

/// Channels whose planes are contiguous.
struct FirstJob<'a, 'y, T: Element> {
    task: Task<'a, T::Compute>,
    x: &'a [T],
    /// `None`: what dx holds.
    dy: Option<Slice<'a>>,
    dx: &'a Stripes<'y>,
    channels: Range<usize>,
    /// Of all channels.
    saved: Option<&'a [Stats<T::Compute>]>,
    /// Of `channels`.
    gradients: Gradients<'a>,
}

impl<T: Element> Job for FirstJob<'_, '_, T> {
    fn units(&self) -> usize {
        self.channels.len()
    }

    fn split(self, units: usize) -> (Self, Self) {
        let FirstJob { task, x, dy, dx, channels, saved, gradients } = self;
        let (gradients, rest) = gradients.split(units);
        let middle = channels.start + units;
        let first = FirstJob { task, x, dy, dx, channels: channels.start..middle, saved, gradients };
        (first, FirstJob { task, x, dy, dx, channels: middle..channels.end, saved, gradients: rest })
    }

    fn run(&mut self) {
        let _env = FloatEnv::standard();
        let shape = self.task.shape;
        let (most, is_narrow) = channels_together(self.dx, shape, BLOCK_BYTES, 2 * size_of::<T>());
        let mut output = Output::<T>::new(&self.task);
        let mut columns = is_narrow.then(|| Columns::new(shape.sample()));
        let mut first = self.channels.start;
        while first < self.channels.end {
            let channels = first..self.dx.run(first, self.channels.end.min(first + most));
            self.block(channels.clone(), &mut output, columns.as_mut());
            first = channels.end;
        }
        output.finish();
    }
}

impl<T: Element> FirstJob<'_, '_, T> {
    fn block(&mut self, channels: Range<usize>, output: &mut Output<T>, columns: Option<&mut Columns<T::Compute>>) {
        let Task { level, shape, eps, .. } = self.task;
        let n = channels.len();
        let mut stats = [Stats::default(); LANES];
        let stats = &mut stats[..n];
        match self.saved {
            Some(saved) => stats.copy_from_slice(&saved[channels.clone()]),
            None => {
                let x = Source::Given(self.x, shape);
                measure(level, &First { x, shape, channels: channels.clone() }, eps, stats);
            }
        }
        let [dbias, dweight] = self.sums(channels.clone(), &Lanes::new(stats));
        self.gradients.write(channels.start - self.channels.start, n, [&dbias, &dweight]);
        let mut factors = [Factors::default(); LANES];
        let factors = &mut factors[..n];
        batch_factors(&self.task, channels.start, stats, [&dbias, &dweight], factors);
        let columns = columns.map(|columns| {
            columns.clear(shape.sample());
            columns.extend(factors, shape.spatial);
            &*columns
        });
        self.write(channels, output, factors, columns);
    }

    fn sums(&self, channels: Range<usize>, lanes: &Lanes<T::Compute>) -> [[T::Compute; LANES]; 2] {
        let Task { level, shape, .. } = self.task;
        if let Some(dy) = self.dy {
            return PlaneSums { level, shape, x: self.x, dy }.of_all(channels, lanes);
        }
        let pairs = &FirstPairs { x: self.x, dy: Source::Own(self.dx), shape, channels };
        T::Compute::enter(level, Sums { pairs, samples: shape.samples, lanes, alone: false })
    }

    fn write(
        &self,
        channels: Range<usize>,
        output: &mut Output<T>,
        factors: &[Factors<T::Compute>],
        columns: Option<&Columns<T::Compute>>,
    ) {
        let shape = self.task.shape;
        let (sample, n) = (shape.sample(), channels.len() * shape.spatial);
        output.next = if channels.end < self.channels.end { n } else { 0 };
        for Range { start: first, end } in self.dx.samples(channels.start / channels.len()) {
            let (mut stripe, at) = self.dx.lock(first, channels.start);
            let from = first * sample + channels.start * shape.spatial;
            if let Some(columns) = columns {
                let n = (end - first - 1) * sample + n;
                let dy = self.dy.map(|dy| dy.part(from, n));
                output.columns(&self.x[from..from + n], dy, stripe.reborrow().part(at, n), columns);
                continue;
            }
            for i in 0..end - first {
                let from = from + i * sample;
                let dy = self.dy.map(|dy| dy.part(from, n));
                let dx = stripe.reborrow().part(at + i * sample, n);
                output.planes(&self.x[from..from + n], dy, dx, shape.spatial, factors);
            }
        }
    }
}

/// Channels that lie side by side, and the sums of any.
struct Last<'a, T: Element> {
    task: Task<'a, T::Compute>,
    cpu: &'a Cpu<'a>,
    x: &'a [T],
    /// Of all channels.
    saved: Option<&'a [Stats<T::Compute>]>,
    bytes: usize,
}

impl<T: Element> Last<'_, T> {
    fn train(&self, dy: Option<Slice<'_>>, mut dx: SliceMut<'_>, mut gradients: Gradients<'_>) {
        let channels = self.task.shape.channels;
        for first in (0..channels).step_by(SETS) {
            let n = SETS.min(channels - first);
            let mut stats = [Stats::default(); SETS];
            let stats = &mut stats[..n];
            self.stats(first, stats);
            let [mut dbias, mut dweight] = [[T::Compute::ZERO; SETS]; 2];
            self.sums(dy.unwrap_or(dx.as_slice()), first, stats, [&mut dbias[..n], &mut dweight[..n]]);
            gradients.write(first, n, [&dbias, &dweight]);
            let mut factors = [Factors::default(); SETS];
            let factors = &mut factors[..n];
            {
                let _env = FloatEnv::standard();
                batch_factors(&self.task, first, stats, [&dbias, &dweight], factors);
            }
            let job = ColumnsJob { task: self.task, x: self.x, dy, dx: dx.reborrow(), first, factors };
            threads::run(self.cpu, job, self.bytes / channels * n);
        }
    }

    fn stats(&self, first: usize, stats: &mut [Stats<T::Compute>]) {
        match self.saved {
            Some(saved) => stats.copy_from_slice(&saved[first..first + stats.len()]),
            None => measure_side_by_side(&self.task, self.cpu, self.x, first, stats),
        }
    }

    fn sums(&self, dy: Slice<'_>, first: usize, stats: &[Stats<T::Compute>], [dbias, dweight]: [&mut [T::Compute]; 2]) {
        let Task { level, shape, .. } = self.task;
        let bytes = self.bytes / shape.channels * stats.len();
        if let Some(dy) = T::of(&dy).filter(|_| is_table_worth_it(shape, stats.len(), bytes)) {
            let pairs = PairSamples::new(level, shape, [&self.x[first..], &dy[first..]], stats);
            let mut sums = vec![T::Compute::ZERO; 2 * stats.len()];
            sum_samples((self.cpu, level), &pairs, shape.samples, bytes, &mut sums);
            dbias.copy_from_slice(&sums[..stats.len()]);
            return dweight.copy_from_slice(&sums[stats.len()..]);
        }
        let sums = PlaneSums { level, shape, x: self.x, dy };
        threads::run(self.cpu, SumsJob { sums, first, stats, dbias, dweight }, bytes);
    }
}

/// Channels to be summed.
struct SumsJob<'a, T: Element> {
    sums: PlaneSums<'a, T>,
    first: usize,
    stats: &'a [Stats<T::Compute>],
    dbias: &'a mut [T::Compute],
    dweight: &'a mut [T::Compute],
}

impl<T: Element> Job for SumsJob<'_, T> {
    fn units(&self) -> usize {
        self.stats.len().div_ceil(LANES)
    }

    fn split(self, units: usize) -> (Self, Self) {
        let at = units * LANES;
        let SumsJob { sums: PlaneSums { level, shape, x, dy }, first, stats, dbias, dweight } = self;
        let sums = || PlaneSums { level, shape, x, dy };
        let (stats, stats_rest) = stats.split_at(at);
        let (dbias, dbias_rest) = dbias.split_at_mut(at);
        let (dweight, dweight_rest) = dweight.split_at_mut(at);
        let rest =
            SumsJob { sums: sums(), first: first + at, stats: stats_rest, dbias: dbias_rest, dweight: dweight_rest };
        (SumsJob { sums: sums(), first, stats, dbias, dweight }, rest)
    }

    fn run(&mut self) {
        let _env = FloatEnv::standard();
        for (window, stats) in self.stats.chunks(LANES).enumerate() {
            let (from, n) = (window * LANES, stats.len());
            let channel = self.first + from;
            let [dbias, dweight] = self.sums.of_all(channel..channel + n, &Lanes::new(stats));
            self.dbias[from..from + n].copy_from_slice(&dbias[..n]);
            self.dweight[from..from + n].copy_from_slice(&dweight[..n]);
        }
    }
}

/// Rows of channels whose sums are known, from channel `first` on.
struct ColumnsJob<'a, T: Element> {
    task: Task<'a, T::Compute>,
    x: &'a [T],
    dy: Option<Slice<'a>>,
    dx: SliceMut<'a>,
    first: usize,
    factors: &'a [Factors<T::Compute>],
}

impl<T: Element> Job for ColumnsJob<'_, T> {
    fn units(&self) -> usize {
        self.x.len() / self.task.shape.channels
    }

    fn split(self, units: usize) -> (Self, Self) {
        let at = units * self.task.shape.channels;
        let ColumnsJob { task, x, dy, dx, first, factors } = self;
        let ((x, x_rest), (dx, dx_rest)) = (x.split_at(at), dx.split(at));
        let (dy, dy_rest) = dy.map(|dy| (dy.part(0, at), dy.part(at, dy.len() - at))).unzip();
        let rest = ColumnsJob { task, x: x_rest, dy: dy_rest, dx: dx_rest, first, factors };
        (ColumnsJob { task, x, dy, dx, first, factors }, rest)
    }

    fn run(&mut self) {
        let _env = FloatEnv::standard();
        let (stride, rows) = (self.task.shape.channels, self.units());
        let mut output = Output::<T>::new(&self.task);
        let mut columns = Columns::new(stride);
        columns.extend(self.factors, 1);
        columns.join_rows(rows);
        // From the first column of the first row to the last column of the last.
        let (from, to) = (self.first, self.x.len() - stride + self.first + self.factors.len());
        let dy = self.dy.map(|dy| dy.part(from, to - from));
        output.columns(&self.x[from..to], dy, self.dx.reborrow().part(from, to - from), &columns);
        output.finish();
    }
}
