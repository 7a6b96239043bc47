//! Planes that are contiguous, channel by channel, as threads share them: with statistics known before, or their own.

use std::ops::Range;

use crate::channels::{Output, Source, TILE, Task, WINDOW};
use crate::columns::Columns;
use crate::element::Element;
use crate::groups::NARROW;
use crate::isa::float_env::FloatEnv;
use crate::moments::{First, measure};
use crate::order::LANES;
use crate::planes::Shape;
use crate::slice::SliceMut;
use crate::stats::Stats;
use crate::stripes::{self, Stripes};
use crate::threads::Job;

/// Planes that are normalized with statistics known before: plane p is channel `p % channels`.
pub(crate) struct PlanesJob<'a, T: Element> {
    pub(crate) task: Task<'a, T::Compute>,
    pub(crate) source: Source<'a, T::Compute>,
    pub(crate) planes: Range<usize>,
    /// `None`: x is what y holds.
    pub(crate) x: Option<&'a [T]>,
    pub(crate) y: SliceMut<'a>,
}

impl<T: Element> Job for PlanesJob<'_, T> {
    fn units(&self) -> usize {
        self.planes.len()
    }

    fn split(self, units: usize) -> (Self, Self) {
        let at = units * self.task.shape.spatial;
        let PlanesJob { task, source, planes, x, y } = self;
        let (y, y_rest) = y.split(at);
        let (x, x_rest) = x.map(|x| x.split_at(at)).unzip();
        let middle = planes.start + units;
        let first = PlanesJob { task, source, planes: planes.start..middle, x, y };
        (first, PlanesJob { task, source, planes: middle..planes.end, x: x_rest, y: y_rest })
    }

    fn run(&mut self) {
        let _env = FloatEnv::standard();
        let (channels, spatial) = (self.task.shape.channels, self.task.shape.spatial);
        let planes = self.planes.clone();
        let mut output = Output::<T>::new(&self.task);
        for window in (0..channels).step_by(WINDOW) {
            let end = channels.min(window + WINDOW);
            let mut values = None;
            for sample in planes.start / channels..planes.end.div_ceil(channels) {
                let from = planes.start.max(sample * channels + window);
                let to = planes.end.min(sample * channels + end);
                if from >= to {
                    continue;
                }
                let values = values.get_or_insert_with(|| self.task.values(self.source, window..end));
                let values = &values[from - sample * channels - window..][..to - from];
                let (at, n) = ((from - planes.start) * spatial, (to - from) * spatial);
                let x = self.x.map(|x| &x[at..at + n]);
                output.planes(x, self.y.reborrow().part(at, n), spatial, values);
            }
        }
        output.finish();
    }
}

/// Bytes of the planes that are measured and applied together: they stay in the second-level cache.
const BLOCK_BYTES: usize = 256 << 10;

/// How many channels `bytes` hold, at most a vector of them, where each of their values is read from `size` bytes; and
/// whether their planes are narrow, so that they are written as columns.
pub(crate) fn channels_together(y: &Stripes<'_>, shape: Shape, bytes: usize, size: usize) -> (usize, bool) {
    let is_narrow = shape.spatial < NARROW && shape.samples >= y.samples.max(2);
    let most = if is_narrow { LANES.min(TILE / shape.spatial) } else { LANES };
    ((bytes / shape.count().saturating_mul(size)).clamp(1, most), is_narrow)
}

/// Channels to be normalized with their own statistics.
pub(crate) struct TrainJob<'a, 'y, T: Element> {
    pub(crate) task: Task<'a, T::Compute>,
    /// `None`: x is what y holds.
    pub(crate) x: Option<&'a [T]>,
    pub(crate) y: &'a Stripes<'y>,
    pub(crate) channels: Range<usize>,
    pub(crate) stats: &'a mut [Stats<T::Compute>],
}

impl<T: Element> Job for TrainJob<'_, '_, T> {
    fn units(&self) -> usize {
        self.channels.len()
    }

    fn split(self, units: usize) -> (Self, Self) {
        let TrainJob { task, x, y, channels, stats } = self;
        let (stats, stats_rest) = stats.split_at_mut(units);
        let middle = channels.start + units;
        let first = TrainJob { task, x, y, channels: channels.start..middle, stats };
        (first, TrainJob { task, x, y, channels: middle..channels.end, stats: stats_rest })
    }

    fn run(&mut self) {
        let _env = FloatEnv::standard();
        let shape = self.task.shape;
        let (most, is_narrow) = channels_together(self.y, shape, BLOCK_BYTES, size_of::<T>());
        let mut output = Output::<T>::new(&self.task);
        let mut columns = is_narrow.then(|| Columns::new(shape.sample()));
        let mut first = self.channels.start;
        while first < self.channels.end {
            let channels = first..self.y.run(first, self.channels.end.min(first + most));
            self.block(channels.clone(), &mut output, columns.as_mut());
            first = channels.end;
        }
        output.finish();
    }
}

impl<T: Element> TrainJob<'_, '_, T> {
    fn block(&mut self, channels: Range<usize>, output: &mut Output<T>, columns: Option<&mut Columns<T::Compute>>) {
        let Task { level, shape, eps, .. } = self.task;
        let x = match self.x {
            Some(x) => stripes::Source::Given(x, shape),
            None => stripes::Source::Own(self.y),
        };
        let from = channels.start - self.channels.start;
        let stats = &mut self.stats[from..from + channels.len()];
        measure(level, &First { x, shape, channels: channels.clone() }, eps, stats);
        let source = Source::Given { stats, first: channels.start, per: 1 };
        let values = self.task.values(source, channels.clone());
        let (sample, n, size) = (shape.sample(), channels.len(), channels.len() * shape.spatial);
        output.next = if channels.end < self.channels.end { size } else { 0 };
        let columns = columns.map(|columns| {
            columns.clear();
            columns.extend(&values, shape.spatial);
            &*columns
        });
        for Range { start: first, end } in self.y.samples(channels.start / n) {
            let (mut stripe, at) = self.y.lock(first, channels.start);
            let x = self.x.map(|x| &x[first * sample + channels.start * shape.spatial..]);
            if let Some(columns) = columns {
                let n = (end - first - 1) * sample + size;
                output.columns(x.map(|x| &x[..n]), stripe.reborrow().part(at, n), columns);
                continue;
            }
            for i in 0..end - first {
                let x = x.map(|x| &x[i * sample..i * sample + size]);
                output.planes(x, stripe.reborrow().part(at + i * sample, size), shape.spatial, &values);
            }
        }
    }
}
