//! BatchNorm in training where channels lie side by side and a few of them, of all samples, fit the second-level cache:
//! they are measured and written together, and read from memory once.

use std::ops::Range;

use crate::channels::{Output, Source, Task};
use crate::columns::Columns;
use crate::element::Element;
use crate::isa::float_env::FloatEnv;
use crate::moments::{Last, measure};
use crate::order::LANES;
use crate::planes::Shape;
use crate::slice::SliceMut;
use crate::stats::{Eps, Stats};
use crate::stripes::Stripes;
use crate::threads::Job;

/// Channels of a block: with fewer, half of the lines that memory gives ahead would be left unread.
pub(crate) const WIDE: usize = 2 * LANES;

/// Bytes that a block reads: they stay in the second-level cache.
const BLOCK_BYTES: usize = 1 << 20;

/// Positions of a sample from which the visit of its stripe is small beside it.
const POSITIONS: usize = 16;

/// Whether there are blocks for several threads, and small ones, of values whose reading takes `size` bytes each.
pub(crate) fn are_blocks_worth_it(shape: Shape, size: usize) -> bool {
    let bytes = shape.count().saturating_mul(WIDE * size);
    shape.last && shape.spatial >= POSITIONS && shape.channels >= 2 * WIDE && bytes <= BLOCK_BYTES
}

/// A tensor whose channels lie side by side in stripes of whole samples.
pub(crate) fn stripes_of_samples(tensor: SliceMut<'_>, shape: Shape) -> Stripes<'_> {
    Stripes::new(tensor, Shape { channels: 1, spatial: shape.sample(), ..shape })
}

/// The statistics of some channels from `first` on, under the range rule.
pub(crate) fn measure_side_by_side<T: Element>(
    task: &Task<'_, T::Compute>,
    x: &[T],
    first: usize,
    stats: &mut [Stats<T::Compute>],
) {
    let Shape { samples, spatial, channels: stride, .. } = task.shape;
    let eps: Eps<T::Compute> = task.eps;
    for (i, stats) in stats.chunks_mut(LANES).enumerate() {
        let (x, channels) = (&x[first + i * LANES..], stats.len());
        measure(task.level, &Last { x, stride, samples, spatial, channels }, eps, stats);
    }
}

/// Channels that lie side by side, [`WIDE`] of them at a time.
pub(crate) struct BlocksJob<'a, 'y, T: Element> {
    pub(crate) task: Task<'a, T::Compute>,
    pub(crate) x: &'a [T],
    pub(crate) y: &'a Stripes<'y>,
    pub(crate) channels: Range<usize>,
    pub(crate) stats: &'a mut [Stats<T::Compute>],
}

impl<T: Element> Job for BlocksJob<'_, '_, T> {
    fn units(&self) -> usize {
        self.channels.len().div_ceil(WIDE)
    }

    fn split(self, units: usize) -> (Self, Self) {
        let BlocksJob { task, x, y, channels, stats } = self;
        let (stats, stats_rest) = stats.split_at_mut(units * WIDE);
        let middle = channels.start + units * WIDE;
        let first = BlocksJob { task, x, y, channels: channels.start..middle, stats };
        (first, BlocksJob { task, x, y, channels: middle..channels.end, stats: stats_rest })
    }

    fn run(&mut self) {
        let _env = FloatEnv::standard();
        let shape = self.task.shape;
        let mut output = Output::<T>::new(&self.task);
        let mut columns = Columns::new(shape.channels);
        for (block, stats) in self.stats.chunks_mut(WIDE).enumerate() {
            let first = self.channels.start + block * WIDE;
            measure_side_by_side(&self.task, self.x, first, stats);
            let source = Source::Given { stats, first, per: 1 };
            columns.clear();
            columns.extend(&self.task.values(source, first..first + stats.len()), 1);
            let n = (shape.spatial - 1) * shape.channels + stats.len();
            for sample in 0..shape.samples {
                let from = sample * shape.sample() + first;
                let (mut stripe, at) = self.y.lock(sample, 0);
                output.columns(Some(&self.x[from..from + n]), stripe.reborrow().part(at + first, n), &columns);
            }
        }
        output.finish();
    }
}
