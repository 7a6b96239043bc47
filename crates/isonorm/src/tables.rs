//! Sums over channels that lie side by side, memory from one end to the other: of each sample's planes first, in a
//! table, whose rows are then summed in batch order.
//!
//! ```text
//! table[n] = [K sums of sample n: channels]        row order, samples over threads
//! sums     = the rows of the table                 batch order
//! ```

use crate::element::{Compute, Element};
use crate::isa::Isa;
use crate::isa::float_env::FloatEnv;
use crate::level::{Kernel, Level};
use crate::order::{BatchSums, LANES, WINDOW};
use crate::planes::Shape;
use crate::threads::{self, Cpu, Job};

/// Channels of a sample that are summed at once: lines of memory come in pairs.
pub(crate) const WIDE: usize = 2 * LANES;

/// Positions of a sample from which a table is small beside it.
const POSITIONS: usize = 16;

/// Bytes from which it is: what the nearest cache holds may be read in any order, and no memory is asked for then.
const BYTES: usize = 128 << 10;

/// Whether a table is worth it for so many of the channels, of `bytes` bytes: there are samples enough for threads to
/// share.
pub(crate) fn is_table_worth_it(shape: Shape, channels: usize, bytes: usize) -> bool {
    let has_samples = shape.samples >= channels.div_ceil(LANES).min(POSITIONS);
    shape.last && shape.spatial >= POSITIONS && has_samples && bytes >= BYTES
}

/// What is summed: `K` sums over each plane of a sample.
pub(crate) trait Samples<C: Compute, const K: usize>: Sync {
    /// The sums over sample `n` of up to [`WIDE`] channels from `channel` on; those of channels that are none are
    /// anything.
    fn sums(&self, n: usize, channel: usize) -> [[C; WIDE]; K];
}

/// The sums over all `samples`: `K` times those of `sums.len() / K` channels. Reads `bytes` bytes.
pub(crate) fn sum_samples<C: Compute, const K: usize>(
    (cpu, level): (&Cpu<'_>, Level),
    of: &impl Samples<C, K>,
    samples: usize,
    bytes: usize,
    sums: &mut [C],
) {
    let mut table = vec![C::ZERO; samples * sums.len()];
    let width = sums.len();
    threads::run(cpu, TableJob { of, first: 0, channels: width / K, table: &mut table }, bytes);
    sum_rows(level, &table, sums);
}

/// The rows of a table, each as long as `sums`, summed in batch order.
pub(crate) fn sum_rows<C: Compute>(level: Level, table: &[C], sums: &mut [C]) {
    let _env = FloatEnv::standard();
    let width = sums.len();
    for (i, sums) in sums.chunks_mut(LANES).enumerate() {
        let table = table.get(i * LANES..).unwrap_or_default();
        let lanes = C::enter(level, Rows { table, width });
        sums.copy_from_slice(&lanes[..sums.len()]);
    }
}

/// Columns of a table, from some column on.
struct Rows<'a, C> {
    table: &'a [C],
    width: usize,
}

impl<C: Compute> Kernel<C> for Rows<'_, C> {
    type Output = [C; LANES];

    #[inline(always)]
    fn eval<S: Isa<C>>(self, isa: S) -> [C; LANES] {
        let mut sums = BatchSums::new(isa);
        let mut at = 0;
        while at < self.table.len() {
            sums.add(isa, [read_columns(isa, self.table, at, 0)]);
            at += self.width;
        }
        let [sum] = sums.finish(isa);
        let mut lanes = [C::ZERO; LANES];
        isa.store(sum, &mut lanes);
        lanes
    }
}

/// Some samples, whose rows of the table are filled.
struct TableJob<'a, C, M, const K: usize> {
    of: &'a M,
    first: usize,
    channels: usize,
    table: &'a mut [C],
}

impl<C: Compute, M: Samples<C, K>, const K: usize> Job for TableJob<'_, C, M, K> {
    fn units(&self) -> usize {
        self.table.len() / (K * self.channels)
    }

    fn split(self, units: usize) -> (Self, Self) {
        let TableJob { of, first, channels, table } = self;
        let (table, rest) = table.split_at_mut(units * K * channels);
        (TableJob { of, first, channels, table }, TableJob { of, first: first + units, channels, table: rest })
    }

    fn run(&mut self) {
        let _env = FloatEnv::standard();
        for (n, row) in self.table.chunks_exact_mut(K * self.channels).enumerate() {
            for channel in (0..self.channels).step_by(WIDE) {
                let sums = self.of.sums(self.first + n, channel);
                for (row, sums) in row.chunks_exact_mut(self.channels).zip(&sums) {
                    let end = self.channels.min(channel + WIDE);
                    row[channel..end].copy_from_slice(&sums[..end - channel]);
                }
            }
        }
    }
}

/// 32 elements from `start` on; anything beyond the end. Those `ahead` are asked for.
#[inline(always)]
pub(crate) fn read_columns<S: Isa<T::Compute>, T: Element>(isa: S, from: &[T], start: usize, ahead: isize) -> S::V {
    let from = &from[start.min(from.len())..];
    match from.first_chunk() {
        Some(chunk) => {
            isa.prefetch_second(chunk, ahead);
            T::load(isa, chunk)
        }
        None => T::load_first(isa, from),
    }
}

/// Elements from a position to the one that is worth asking for, of planes of `spatial` positions `stride` apart.
#[inline(always)]
pub(crate) fn ahead(spatial: usize, stride: usize) -> isize {
    (WINDOW.min(spatial) * stride).cast_signed()
}

/// The sums of two halves of [`WIDE`] channels, `[[low, high]; K]`, as lanes.
#[inline(always)]
pub(crate) fn unpack_wide<C: Compute, S: Isa<C>, const K: usize>(isa: S, sums: [[S::V; 2]; K]) -> [[C; WIDE]; K] {
    let mut lanes = [[C::ZERO; WIDE]; K];
    for k in 0..K {
        let (halves, _) = lanes[k].as_chunks_mut();
        isa.store(sums[k][0], &mut halves[0]);
        isa.store(sums[k][1], &mut halves[1]);
    }
    lanes
}
