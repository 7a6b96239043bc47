//! The same sums down 32 columns at once, one column a lane: planes whose channels lie side by side, and
//! rows of a batch.
//!
//! ```text
//! reduce_columns(plane):     row order over the positions; its 32 lanes are 32 vectors of columns
//! BatchSums(rows):           leaves of 16 rows from +0, leaves in a left-aligned binary tree
//! ```

use super::{BATCH_LEAF, LANES, LEAF, Tree, both};
use crate::element::Compute;
use crate::isa::Isa;

/// What is summed down columns: `K` sums at once over the same elements.
pub(crate) trait ColumnTerms<C: Compute, const K: usize> {
    /// The sums after position `at`, one column a lane.
    fn step<S: Isa<C>>(&self, isa: S, sums: [S::V; K], at: usize) -> [S::V; K];
}

/// Lanes of the order that are summed in one sweep over the positions: consecutive positions, so that
/// memory is read in longer runs, and few enough for their trees to lie on the stack.
const SWEEP: usize = 8;

/// Reduces `len` positions in row order, each column for itself.
#[inline(always)]
pub(crate) fn reduce_columns<C, S, T, const K: usize>(isa: S, terms: &T, len: usize) -> [S::V; K]
where
    C: Compute,
    S: Isa<C>,
    T: ColumnTerms<C, K>,
{
    let mut lanes = [[isa.splat(C::ZERO); K]; LANES];
    if len <= LEAF {
        for (l, lane) in lanes.iter_mut().enumerate().take(len) {
            *lane = lane_of_leaf(isa, terms, l, len);
        }
    } else {
        for (sweep, lanes) in lanes.chunks_exact_mut(SWEEP).enumerate() {
            sweep_lanes(isa, terms, len, sweep * SWEEP, lanes);
        }
    }
    let mut w = LANES / 2;
    while w > 0 {
        for l in 0..w {
            // Lanes that no position reached are +0, which changes no sum of values or squares that began at
            // +0: those are never -0. (A sum of products of two signs can underflow to -0: not for those.)
            if l + w < len {
                lanes[l] = both(isa, lanes[l], lanes[l + w]);
            }
        }
        w /= 2;
    }
    lanes[0]
}

/// Lanes `first..` over all leaves.
#[inline(always)]
fn sweep_lanes<C, S, T, const K: usize>(isa: S, terms: &T, len: usize, first: usize, lanes: &mut [[S::V; K]])
where
    C: Compute,
    S: Isa<C>,
    T: ColumnTerms<C, K>,
{
    let mut trees = [const { Tree::<S::V, K>::new() }; SWEEP];
    let mut leaf = 0;
    while leaf < len {
        let end = (leaf + LEAF).min(len);
        for (l, tree) in trees.iter_mut().enumerate() {
            tree.push(isa, lane_of_leaf(isa, terms, leaf + first + l, end), 0);
        }
        leaf += LEAF;
    }
    for (lane, tree) in lanes.iter_mut().zip(&mut trees) {
        *lane = tree.finish(isa);
    }
}

/// Positions `at`, `at + 32`, ... below `end`, from +0.
#[inline(always)]
fn lane_of_leaf<C, S, T, const K: usize>(isa: S, terms: &T, at: usize, end: usize) -> [S::V; K]
where
    C: Compute,
    S: Isa<C>,
    T: ColumnTerms<C, K>,
{
    let mut sums = [isa.splat(C::ZERO); K];
    let mut at = at;
    while at < end {
        sums = terms.step(isa, sums, at);
        at += LANES;
    }
    sums
}

/// Sums over rows in batch order, one column a lane.
pub(crate) struct BatchSums<V, const K: usize> {
    tree: Tree<V, K>,
    leaf: [V; K],
    rows: usize,
}

impl<V: Copy, const K: usize> BatchSums<V, K> {
    #[inline(always)]
    pub(crate) fn new<C: Compute, S: Isa<C, V = V>>(isa: S) -> Self {
        BatchSums { tree: Tree::new(), leaf: [isa.splat(C::ZERO); K], rows: 0 }
    }

    /// `acc + t` for the next row.
    #[inline(always)]
    pub(crate) fn add<C: Compute, S: Isa<C, V = V>>(&mut self, isa: S, terms: [V; K]) {
        self.leaf = both(isa, self.leaf, terms);
        self.rows += 1;
        if self.rows.is_multiple_of(BATCH_LEAF) {
            self.tree.push(isa, self.leaf, 0);
            self.leaf = [isa.splat(C::ZERO); K];
        }
    }

    #[inline(always)]
    pub(crate) fn finish<C: Compute, S: Isa<C, V = V>>(mut self, isa: S) -> [V; K] {
        if !self.rows.is_multiple_of(BATCH_LEAF) {
            self.tree.push(isa, self.leaf, 0);
        }
        self.tree.finish(isa)
    }
}
