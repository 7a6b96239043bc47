//! The same sums down 32 columns at once, one column a lane: planes whose channels lie side by side, and
//! rows of a batch.
//!
//! ```text
//! reduce_columns(plane):     row order over the positions; its 32 lanes are 32 vectors of columns
//! BatchSums(rows):           leaves of 16 rows from +0, leaves in a left-aligned binary tree
//! ```

use super::{BATCH_LEAF, LANES, LEAF, STEPS, Tree, both};
use crate::element::Compute;
use crate::isa::Isa;

/// What is summed down columns: `K` sums at once over the same elements.
pub(crate) trait ColumnTerms<C: Compute, const K: usize> {
    /// The sums after position `at`, one column a lane.
    fn step<S: Isa<C>>(&self, isa: S, sums: [S::V; K], at: usize) -> [S::V; K];
}

/// Positions of a window: four leaves, of which each lane makes one node before its tree sees it.
pub(crate) const WINDOW: usize = LEAF << WINDOW_LEVEL;
const WINDOW_LEVEL: u32 = 2;

/// Positions of a chunk, whose 32 trees lie on the stack.
const CHUNK: usize = LEAF << CHUNK_LEVEL;
const CHUNK_LEVEL: usize = 6;

/// Reduces `len` positions in row order, each column for itself.
#[inline(always)]
pub(crate) fn reduce_columns<C, S, T, const K: usize>(isa: S, terms: &T, len: usize) -> [S::V; K]
where
    C: Compute,
    S: Isa<C>,
    T: ColumnTerms<C, K>,
{
    if len <= LEAF {
        return fold_leaf(isa, terms, len);
    }
    let mut nodes = Vec::new();
    let mut at = 0;
    loop {
        let end = len.min(at + CHUNK);
        let mut lanes = chunk_lanes(isa, terms, at, end);
        let mut carry = at / CHUNK;
        while carry & 1 == 1 || end == len {
            let Some(left) = nodes.pop() else { break };
            for l in 0..LANES {
                let left: &[[S::V; K]; LANES] = &left;
                lanes[l] = both(isa, left[l], lanes[l]);
            }
            carry >>= 1;
        }
        if end == len {
            return fold_lanes(isa, lanes);
        }
        nodes.push(lanes);
        at = end;
    }
}

#[inline(always)]
fn fold_lanes<C, S, const K: usize>(isa: S, lanes: [[S::V; K]; LANES]) -> [S::V; K]
where
    C: Compute,
    S: Isa<C>,
{
    let mut lanes = lanes;
    let mut w = LANES / 2;
    while w > 0 {
        for l in 0..w {
            lanes[l] = both(isa, lanes[l], lanes[l + w]);
        }
        w /= 2;
    }
    lanes[0]
}

/// The only leaf, of `len` positions: its lanes are folded as they come, four lanes' sums at a time.
#[inline(always)]
fn fold_leaf<C, S, T, const K: usize>(isa: S, terms: &T, len: usize) -> [S::V; K]
where
    C: Compute,
    S: Isa<C>,
    T: ColumnTerms<C, K>,
{
    let mut quarters = [[isa.splat(C::ZERO); K]; 4];
    for (l, quarter) in quarters.iter_mut().enumerate().take(len) {
        // Lanes l, l + 16; l + 8, l + 24; l + 4, l + 20; l + 12, l + 28: the order of the fold.
        let mut eighths = [[isa.splat(C::ZERO); K]; 4];
        for (i, eighth) in eighths.iter_mut().enumerate() {
            let lane = l + [0, 8, 4, 12][i];
            if lane >= len {
                continue; // as are its sums: +0
            }
            let (low, high) = (lane_of_leaf(isa, terms, lane, len), lane_of_leaf(isa, terms, lane + 16, len));
            *eighth = both(isa, low, high);
        }
        *quarter = both(isa, both(isa, eighths[0], eighths[1]), both(isa, eighths[2], eighths[3]));
    }
    both(isa, both(isa, quarters[0], quarters[2]), both(isa, quarters[1], quarters[3]))
}

/// The order's lanes over the positions `from..to` of a chunk: memory from one end to the other, window by window.
#[inline(always)]
fn chunk_lanes<C, S, T, const K: usize>(isa: S, terms: &T, from: usize, to: usize) -> [[S::V; K]; LANES]
where
    C: Compute,
    S: Isa<C>,
    T: ColumnTerms<C, K>,
{
    let mut trees = [const { Tree::<S::V, K, { CHUNK_LEVEL + 1 }>::new() }; LANES];
    let mut at = from;
    while at + WINDOW <= to {
        for (l, tree) in trees.iter_mut().enumerate() {
            tree.push(isa, lane_of_window(isa, terms, at + l), WINDOW_LEVEL);
        }
        at += WINDOW;
    }
    while at < to {
        let end = to.min(at + LEAF);
        for (l, tree) in trees.iter_mut().enumerate() {
            tree.push(isa, lane_of_leaf(isa, terms, at + l, end), 0);
        }
        at += LEAF;
    }
    let mut lanes = [[isa.splat(C::ZERO); K]; LANES];
    for (lane, tree) in lanes.iter_mut().zip(&mut trees) {
        *lane = tree.finish(isa);
    }
    lanes
}

/// One lane of four whole leaves, from position `at` on.
#[inline(always)]
fn lane_of_window<C, S, T, const K: usize>(isa: S, terms: &T, at: usize) -> [S::V; K]
where
    C: Compute,
    S: Isa<C>,
    T: ColumnTerms<C, K>,
{
    let mut leaves = [[isa.splat(C::ZERO); K]; 1 << WINDOW_LEVEL];
    for (leaf, sums) in leaves.iter_mut().enumerate() {
        for step in 0..STEPS {
            *sums = terms.step(isa, *sums, at + leaf * LEAF + step * LANES);
        }
    }
    both(isa, both(isa, leaves[0], leaves[1]), both(isa, leaves[2], leaves[3]))
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

/// The sums of a leaf of rows after one more: `fma(a, b, dot)` and `sum + a`, one column a lane.
#[inline(always)]
pub(crate) fn leaf_step<C: Compute, S: Isa<C>>(isa: S, [dot, sum]: [S::V; 2], a: S::V, b: S::V) -> [S::V; 2] {
    [isa.fma(a, b, dot), isa.add(sum, a)]
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

#[cfg(test)]
mod tests {
    use isonorm_testing::oracle::row_dot;

    use super::*;
    use crate::level::{Kernel, Level};
    use crate::order::Row;

    /// The sum of `a * b` down 32 columns.
    struct Products<'a> {
        a: &'a [f32],
        b: &'a [f32],
    }

    impl ColumnTerms<f32, 1> for Products<'_> {
        fn step<S: Isa<f32>>(&self, isa: S, [sum]: [S::V; 1], at: usize) -> [S::V; 1] {
            let [a, b] = [self.a, self.b].map(|from| Row::new(from).read(isa, at, LANES));
            [isa.fma(a, b, sum)]
        }
    }

    struct Columns<'a>(Products<'a>);

    impl Kernel<f32> for Columns<'_> {
        type Output = [f32; LANES];
        fn eval<S: Isa<f32>>(self, isa: S) -> [f32; LANES] {
            let [sums] = reduce_columns(isa, &self.0, self.0.a.len() / LANES);
            let mut lanes = [f32::NAN; LANES];
            isa.store(sums, &mut lanes);
            lanes
        }
    }

    /// Column c of `len` positions: products that vanish below zero, at every position, from position c on or at one
    /// alone, beside others.
    fn columns(len: usize) -> [Vec<f32>; 2] {
        let value = |i: usize| {
            let (at, c) = (i / LANES, i % LANES);
            let vanishes = match c % 4 {
                0 => true,
                1 => at >= c,
                2 => at == c,
                _ => false,
            };
            match (vanishes, c % 4) {
                (true, _) => (1e-30, -1e-30),
                (false, 1) => (1.0, 0.0),
                (false, 2) => (-1.0, 0.0),
                _ => ((at * 7 + c) as f32 - 40.0, 1.0 / (at + c + 1) as f32),
            }
        };
        let (a, b) = (0..len * LANES).map(value).unzip();
        [a, b]
    }

    #[test]
    fn each_column_has_the_bits_of_its_row() {
        let mut negative_zeros = 0;
        for len in (0..=40).chain([127, 128, 129, 160, 257, 300, 512, 640, 1100, 8192, 8300, 16_384, 25_000]) {
            let [a, b] = columns(len);
            let column = |from: &[f32], c| from.iter().copied().skip(c).step_by(LANES).collect::<Vec<_>>();
            let expected: Vec<u32> = (0..LANES).map(|c| row_dot(&column(&a, c), &column(&b, c)).to_bits()).collect();
            negative_zeros += expected.iter().filter(|bits| **bits == (-0.0f32).to_bits()).count();
            for level in Level::available() {
                let found = f32::enter(level, Columns(Products { a: &a, b: &b })).map(f32::to_bits);
                assert_eq!(found[..], expected[..], "{len} positions, level {level}");
            }
        }
        assert!(negative_zeros > 0, "no sum was -0: the test lost its case");
    }
}
