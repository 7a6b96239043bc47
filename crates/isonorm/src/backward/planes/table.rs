//! Sums over the samples of what each sample's planes sum to, and the tables that hold those.

use crate::backward::planes::side::{LastPairs, WideSums};
use crate::backward::planes::sums::Lanes;
use crate::channels_blocks::WIDE;
use crate::element::{Compute, Element};
use crate::isa::Isa;
use crate::isa::float_env::FloatEnv;
use crate::level::{Kernel, Level};
use crate::order::{BatchSums, LANES};
use crate::planes::Shape;
use crate::stats::Stats;
use crate::threads::Job;

/// Sums two tables `[samples, channels]` over the samples; `see` is shown the sums of up to 32 channels at a time.
pub(super) fn sum_tables<C: Compute>(
    level: Level,
    tables: [&[C]; 2],
    channels: usize,
    mut see: impl FnMut(usize, usize, [&[C]; 2]),
) {
    let _env = FloatEnv::standard();
    for first in (0..channels).step_by(LANES) {
        let sums = tables.map(|table| C::enter(level, BatchTable { table: &table[first..], channels }));
        see(first, LANES.min(channels - first), [&sums[0], &sums[1]]);
    }
}

/// A table of all samples and channels, from some channel on, summed over the samples.
struct BatchTable<'a, C> {
    table: &'a [C],
    channels: usize,
}

impl<C: Compute> Kernel<C> for BatchTable<'_, C> {
    type Output = [C; LANES];

    #[inline(always)]
    fn eval<S: Isa<C>>(self, isa: S) -> [C; LANES] {
        let mut sums = BatchSums::new(isa);
        let mut at = 0;
        while at < self.table.len() {
            let row = &self.table[at..];
            let row = match row.first_chunk() {
                Some(chunk) => isa.load(chunk),
                None => isa.load_first(row),
            };
            sums.add(isa, [row]);
            at += self.channels;
        }
        let [sum] = sums.finish(isa);
        let mut lanes = [C::ZERO; LANES];
        isa.store(sum, &mut lanes);
        lanes
    }
}

/// Samples whose channels lie side by side, of each plane of which the sums are wanted.
pub(super) struct TableJob<'a, T: Element> {
    pub(super) level: Level,
    pub(super) shape: Shape,
    /// From the first sample's first channel that is wanted on.
    pub(super) x: &'a [T],
    pub(super) dy: &'a [T],
    pub(super) stats: &'a [Stats<T::Compute>],
    /// `[samples, stats.len()]`
    pub(super) dbias: &'a mut [T::Compute],
    pub(super) dweight: &'a mut [T::Compute],
}

impl<T: Element> Job for TableJob<'_, T> {
    fn units(&self) -> usize {
        self.dbias.len() / self.stats.len()
    }

    fn split(self, units: usize) -> (Self, Self) {
        let TableJob { level, shape, x, dy, stats, dbias, dweight } = self;
        let (at, rows) = (units * shape.sample(), units * stats.len());
        let (dbias, dbias_rest) = dbias.split_at_mut(rows);
        let (dweight, dweight_rest) = dweight.split_at_mut(rows);
        let (x_rest, dy_rest) = (&x[at.min(x.len())..], &dy[at.min(dy.len())..]);
        let rest = TableJob { level, shape, x: x_rest, dy: dy_rest, stats, dbias: dbias_rest, dweight: dweight_rest };
        (TableJob { level, shape, x, dy, stats, dbias, dweight }, rest)
    }

    fn run(&mut self) {
        let _env = FloatEnv::standard();
        let Shape { channels: stride, spatial, .. } = self.shape;
        for (block, stats) in self.stats.chunks(WIDE).enumerate() {
            let (low, high) = stats.split_at(stats.len().min(LANES));
            let lanes = &[Lanes::new(low), Lanes::new(high)];
            for n in 0..self.units() {
                let from = n * self.shape.sample() + block * WIDE;
                let pairs = LastPairs { x: &self.x[from..], dy: &self.dy[from..], stride, spatial };
                let [dbias, dweight] = T::Compute::enter(self.level, WideSums { pairs, lanes });
                let at = n * self.stats.len() + block * WIDE;
                self.dbias[at..at + stats.len()].copy_from_slice(&dbias[..stats.len()]);
                self.dweight[at..at + stats.len()].copy_from_slice(&dweight[..stats.len()]);
            }
        }
    }
}
