//! Sums over one stretch of columns of every row, as nodes of the trees over whole rows.
//!
//! ```text
//! for each row:   raw terms up to the first leaf border; the root over each of the largest subtrees within the
//!                 stretch, which are nodes of the whole row's tree; the lanes of the leaf that is left open
//! ```

use std::ops::Range;

use crate::element::Compute;
use crate::isa::Isa;
use crate::isa::float_env::FloatEnv;
use crate::level::Kernel;
use crate::order::{Extent, LANES, LEAF, Sums, Terms, tree};
use crate::threads::{self, Cpu, Job};

/// Rows whose raw terms are laid out together, so that they are written in runs.
const RAW_ROWS: usize = 16;

/// Where the lanes of `K` sums go, for each stretch: `[rows][32 lanes]`.
pub(crate) type Lanes<'a, C, const K: usize> = [[&'a mut [C]; K]];

/// What is summed along rows: `K` sums over the same elements, a dot first.
pub(crate) trait RowSums<C: Compute, const K: usize>: Sync {
    /// The lanes of some rows over each stretch, columns as the shard counts them.
    fn sum(&self, rows: Range<usize>, stretches: &[Range<usize>], to: &mut Lanes<'_, C, K>);
    /// The terms of a row's first columns: the factors of a dot, or `a` alone.
    fn terms(&self, row: usize, a: &mut [C], b: &mut [C]);
}

/// The sums of `extent.columns` rows over the columns of `extent`, of which the shard has the first; `bytes` are read.
pub(crate) fn sum_rows<C, R, const K: usize>(cpu: &Cpu<'_>, sums: &R, extent: Extent, bytes: usize) -> Sums<C>
where
    C: Compute,
    R: RowSums<C, K>,
{
    let (rows, stretches) = (extent.columns, stretches_of(&extent));
    let mut nodes: Vec<Vec<C>> = stretches.iter().map(|_| vec![C::ZERO; extent.width()]).collect();
    let lanes = nodes.iter_mut().map(|node| {
        let mut each = node.chunks_exact_mut((rows * LANES).max(1));
        std::array::from_fn(|_| each.next().unwrap_or_default())
    });
    let job = SumsJob::<C, R, K> { sums, stretches: &stretches, rows: 0..rows, to: lanes.collect() };
    threads::run(cpu, job, bytes);
    let mut values = std::iter::once(raw_terms(sums, &extent)).chain(nodes);
    Sums::of_values(extent, |_| values.next().unwrap_or_default())
}

/// The columns of each node and of the open leaf, from the first column of `extent` on.
fn stretches_of(extent: &Extent) -> Vec<Range<usize>> {
    let nodes = extent.nodes().map(|(level, index)| (index << level) * LEAF..((index + 1) << level) * LEAF);
    let open = extent.is_open().then(|| extent.end / LEAF * LEAF..extent.end);
    nodes.chain(open).map(|columns| columns.start - extent.start..columns.end - extent.start).collect()
}

/// `[position][a: rows][b: rows]`, b where there is a dot.
fn raw_terms<C: Compute, const K: usize>(sums: &impl RowSums<C, K>, extent: &Extent) -> Vec<C> {
    let (rows, n, term) = (extent.columns, extent.raw_kept(), extent.term());
    let mut raw = vec![C::ZERO; n * term];
    if n == 0 {
        return raw;
    }
    let _env = FloatEnv::standard();
    let [mut a, mut b] = [(); 2].map(|()| vec![C::ZERO; RAW_ROWS * n]);
    for first in (0..rows).step_by(RAW_ROWS) {
        let some = RAW_ROWS.min(rows - first);
        for i in 0..some {
            sums.terms(first + i, &mut a[i * n..][..n], &mut b[i * n..][..n]);
        }
        for (position, raw) in raw.chunks_exact_mut(term).enumerate() {
            for i in 0..some {
                raw[first + i] = a[i * n + position];
            }
            if extent.kind.has_dot() {
                for i in 0..some {
                    raw[rows + first + i] = b[i * n + position];
                }
            }
        }
    }
    raw
}

/// Rows to be summed.
struct SumsJob<'a, C, R, const K: usize> {
    sums: &'a R,
    stretches: &'a [Range<usize>],
    rows: Range<usize>,
    to: Vec<[&'a mut [C]; K]>,
}

impl<C: Compute, R: RowSums<C, K>, const K: usize> Job for SumsJob<'_, C, R, K> {
    fn units(&self) -> usize {
        self.rows.len()
    }

    fn split(self, units: usize) -> (Self, Self) {
        let SumsJob { sums, stretches, rows, to } = self;
        let (middle, mut rest) = (rows.start + units, Vec::with_capacity(to.len()));
        let first = to.into_iter().map(|lanes| {
            let mut others = std::array::from_fn(|_| &mut [][..]);
            let mut k = 0;
            let lanes = lanes.map(|lanes| {
                let (lanes, after) = lanes.split_at_mut(units * LANES);
                others[k] = after;
                k += 1;
                lanes
            });
            rest.push(others);
            lanes
        });
        let first = SumsJob { sums, stretches, rows: rows.start..middle, to: first.collect() };
        (first, SumsJob { sums, stretches, rows: middle..rows.end, to: rest })
    }

    fn run(&mut self) {
        let _env = FloatEnv::standard();
        if !self.stretches.is_empty() {
            self.sums.sum(self.rows.clone(), self.stretches, &mut self.to);
        }
    }
}

/// Rows whose stretches have terms.
pub(crate) trait Stretches<C: Compute, const K: usize> {
    type Terms: Terms<C, K>;
    /// The terms of `len` columns of row `i`, from column `start` on.
    fn terms(&self, i: usize, start: usize, len: usize) -> Self::Terms;
}

/// The lanes of some rows, the first of which is row `first` of `to`.
pub(crate) struct SumStretches<'k, 'a, C, F, const K: usize> {
    pub(crate) from: F,
    pub(crate) rows: usize,
    pub(crate) stretches: &'k [Range<usize>],
    pub(crate) first: usize,
    pub(crate) to: &'k mut Lanes<'a, C, K>,
}

impl<C: Compute, F: Stretches<C, K>, const K: usize> Kernel<C> for SumStretches<'_, '_, C, F, K> {
    type Output = ();

    #[inline(always)]
    fn eval<S: Isa<C>>(self, isa: S) {
        let SumStretches { from, rows, stretches, first, to } = self;
        for i in 0..rows {
            for s in 0..stretches.len() {
                let (start, len) = (stretches[s].start, stretches[s].end - stretches[s].start);
                let lanes = tree(isa, &from.terms(i, start, len), len);
                for k in 0..K {
                    let to = &mut to[s][k][(first + i) * LANES..][..LANES];
                    isa.store(lanes[k], &mut to.as_chunks_mut().0[0]);
                }
            }
        }
    }
}
