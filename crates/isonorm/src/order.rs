//! The order of every sum along a row: the only reduction loop of the crate. `spec/order.md` is its prose.
//!
//! ```text
//! reduce(row):
//!     for each leaf of 128 elements:
//!         32 lanes start at +0; lane l takes elements l, l + 32, l + 64, l + 96 of the leaf, those that exist
//!     per lane, leaves are summed in a left-aligned binary tree
//!     the 32 lane totals are folded: lane[l] + lane[l + w] for w = 16, 8, 4, 2, 1
//! ```
//!
//! The code differs from it in three ways that change no bit. Sixteen leaves at a time, then four, are summed to a
//! node of level 4 or 2 in registers, since leaves are independent. The tree is a binary counter: a stack of nodes,
//! in which the newest two merge for every trailing one bit of the number of leaves. And lanes may lie in another
//! order while chunks are whole ([`Terms::in_order`]): no lane knows its place before the fold.

use arrayvec::ArrayVec;

mod columns;
mod extent;
mod sums;
#[cfg(test)]
mod tests;

pub(crate) use columns::{BatchSums, ColumnTerms, WINDOW, leaf_step, reduce_columns};
pub(crate) use extent::{Extent, Kind, Order};
pub(crate) use sums::Sums;

use crate::element::{Compute, Element};
use crate::isa::Isa;

/// Lanes of a vector value, on every instruction set.
pub const LANES: usize = 32;
/// Consecutive elements of a row that form one leaf.
pub const LEAF: usize = 128;
/// Consecutive rows that form one leaf of a sum over rows.
pub const BATCH_LEAF: usize = 16;

/// Steps of a whole leaf: elements that a lane takes.
const STEPS: usize = LEAF / LANES;
/// Rows of up to `LEAF << DEPTH` elements: 2^39.
const DEPTH: usize = 32;

/// What is summed: `K` sums at once over the same elements.
pub(crate) trait Terms<C: Compute, const K: usize>: Sized {
    /// The sums after one more step: chunk `at` (32 elements, the first `n` of which exist).
    fn step<S: Isa<C>>(&self, isa: S, sums: [S::V; K], at: usize, n: usize) -> [S::V; K];

    /// The terms of `leaves` whole leaves from `leaf` on alone, where that spares a bounds check for each chunk.
    #[inline(always)]
    fn whole_leaves(&self, _leaf: usize, _leaves: usize) -> Option<Self> {
        None
    }

    /// The lanes of sums over whole chunks in their own order, where `step` takes them in another.
    #[inline(always)]
    fn in_order<S: Isa<C>>(_: S, v: S::V) -> S::V {
        v
    }
}

/// A row of `E`, seen as chunks of 32 and a tail.
#[derive(Clone, Copy)]
pub(crate) struct Row<'a, E> {
    chunks: &'a [[E; LANES]],
    tail: &'a [E],
}

impl<'a, E: Element> Row<'a, E> {
    #[inline(always)]
    pub(crate) fn new(row: &'a [E]) -> Self {
        let (chunks, tail) = row.as_chunks();
        Row { chunks, tail }
    }

    /// The first `count` chunks, whole.
    #[inline(always)]
    pub(crate) fn whole(&self, count: usize) -> Self {
        Row { chunks: &self.chunks[..count], tail: &[] }
    }

    /// `leaves` whole leaves from `leaf` on.
    #[inline(always)]
    pub(crate) fn whole_leaves(&self, leaf: usize, leaves: usize) -> Self {
        Row { chunks: &self.chunks[leaf * STEPS..][..leaves * STEPS], tail: &[] }
    }

    /// Chunk `at`; lanes from `n` on hold +0 where the row has ended.
    #[inline(always)]
    pub(crate) fn read<S: Isa<E::Compute>>(&self, isa: S, at: usize, n: usize) -> S::V {
        if n == LANES { E::load(isa, &self.chunks[at]) } else { E::load_first(isa, self.tail) }
    }

    /// Asks for the elements `ahead` of whole chunk `at`.
    #[inline(always)]
    pub(crate) fn ask<S: Isa<E::Compute>>(&self, isa: S, at: usize, ahead: isize) {
        isa.prefetch_second(&self.chunks[at], ahead);
    }

    /// Chunk `at`; where it is whole and `split`, its lanes as `E::load_split` has them.
    #[inline(always)]
    pub(crate) fn read_as<S: Isa<E::Compute>>(&self, isa: S, at: usize, n: usize, split: bool) -> S::V {
        if n == LANES && split { E::load_split(isa, &self.chunks[at]) } else { self.read(isa, at, n) }
    }
}

/// The tail of a row, filled up with +0.
#[inline(always)]
pub(crate) fn padded<E: Element>(tail: &[E]) -> [E; LANES] {
    let mut chunk = [E::default(); LANES];
    chunk[..tail.len()].copy_from_slice(tail);
    chunk
}

/// Reduces the terms of a row of `len` elements to `K` scalars.
#[inline(always)]
pub(crate) fn reduce<C, S, T, const K: usize>(isa: S, terms: &T, len: usize) -> [C; K]
where
    C: Compute,
    S: Isa<C>,
    T: Terms<C, K>,
{
    let lanes = tree(isa, terms, len);
    let mut sums = [C::ZERO; K];
    for k in 0..K {
        sums[k] = isa.first(fold(isa, lanes[k]));
    }
    sums
}

/// As [`reduce`], of a row shorter than a leaf: nothing is kept ready for more.
#[inline(always)]
pub(crate) fn reduce_short<C, S, T, const K: usize>(isa: S, terms: &T, len: usize) -> [C; K]
where
    C: Compute,
    S: Isa<C>,
    T: Terms<C, K>,
{
    let lanes = last_leaf(isa, terms, 0, len);
    let mut sums = [C::ZERO; K];
    for k in 0..K {
        sums[k] = isa.first(fold(isa, lanes[k]));
    }
    sums
}

/// The root of the tree, before the fold.
#[inline(always)]
pub(crate) fn tree<C, S, T, const K: usize>(isa: S, terms: &T, len: usize) -> [S::V; K]
where
    C: Compute,
    S: Isa<C>,
    T: Terms<C, K>,
{
    let mut tree = Tree::<_, K>::new();
    let whole = len / LEAF;
    let mut leaf = 0;
    while S::LEAVES >= 16 && leaf + 16 <= whole {
        let part = terms.whole_leaves(leaf, 16);
        let (terms, first) = part.as_ref().map_or((terms, leaf), |part| (part, 0));
        let left = both(isa, four_leaves(isa, terms, first), four_leaves(isa, terms, first + 4));
        let right = both(isa, four_leaves(isa, terms, first + 8), four_leaves(isa, terms, first + 12));
        tree.push(isa, in_order::<C, S, T, K>(isa, both(isa, left, right)), 4);
        leaf += 16;
    }
    while S::LEAVES >= 4 && leaf + 4 <= whole {
        let part = terms.whole_leaves(leaf, 4);
        let (terms, first) = part.as_ref().map_or((terms, leaf), |part| (part, 0));
        tree.push(isa, in_order::<C, S, T, K>(isa, four_leaves(isa, terms, first)), 2);
        leaf += 4;
    }
    while leaf < whole {
        tree.push(isa, in_order::<C, S, T, K>(isa, whole_leaf(isa, terms, leaf)), 0);
        leaf += 1;
    }
    if len > whole * LEAF {
        tree.push(isa, last_leaf(isa, terms, whole, len - whole * LEAF), 0);
    }
    tree.finish(isa)
}

/// Elements of a tile of [`reduce_tiles`]: whole leaves, of which a power of two is a node of the tree.
pub(crate) const TILE: usize = LEAF << TILE_LEVEL;
const TILE_LEVEL: u32 = 3;

/// What is summed where elements have to be brought together first, tile by tile.
pub(crate) trait Tiles<C: Compute, const K: usize> {
    /// The root of the tree over the elements `from..from + n`, at most [`TILE`].
    fn root<S: Isa<C>>(&self, isa: S, from: usize, n: usize) -> [S::V; K];
}

/// As [`reduce`].
#[inline(always)]
pub(crate) fn reduce_tiles<C, S, T, const K: usize>(isa: S, tiles: &T, len: usize) -> [C; K]
where
    C: Compute,
    S: Isa<C>,
    T: Tiles<C, K>,
{
    let mut tree = Tree::<_, K>::new();
    let mut from = 0;
    while from < len {
        tree.push(isa, tiles.root(isa, from, TILE.min(len - from)), TILE_LEVEL);
        from += TILE;
    }
    let lanes = tree.finish(isa);
    let mut sums = [C::ZERO; K];
    for k in 0..K {
        sums[k] = isa.first(fold(isa, lanes[k]));
    }
    sums
}

#[inline(always)]
fn in_order<C, S, T, const K: usize>(isa: S, sums: [S::V; K]) -> [S::V; K]
where
    C: Compute,
    S: Isa<C>,
    T: Terms<C, K>,
{
    let mut ordered = sums;
    for k in 0..K {
        ordered[k] = T::in_order(isa, sums[k]);
    }
    ordered
}

/// The node of four leaves: as many sums as registers allow are in flight.
#[inline(always)]
fn four_leaves<C, S, T, const K: usize>(isa: S, terms: &T, leaf: usize) -> [S::V; K]
where
    C: Compute,
    S: Isa<C>,
    T: Terms<C, K>,
{
    let left = both(isa, whole_leaf(isa, terms, leaf), whole_leaf(isa, terms, leaf + 1));
    let right = both(isa, whole_leaf(isa, terms, leaf + 2), whole_leaf(isa, terms, leaf + 3));
    both(isa, left, right)
}

#[inline(always)]
fn whole_leaf<C, S, T, const K: usize>(isa: S, terms: &T, leaf: usize) -> [S::V; K]
where
    C: Compute,
    S: Isa<C>,
    T: Terms<C, K>,
{
    let mut sums = [isa.splat(C::ZERO); K];
    for step in 0..STEPS {
        sums = terms.step(isa, sums, leaf * STEPS + step, LANES);
    }
    sums
}

/// A leaf of `len < LEAF` elements.
#[inline(always)]
fn last_leaf<C, S, T, const K: usize>(isa: S, terms: &T, leaf: usize, len: usize) -> [S::V; K]
where
    C: Compute,
    S: Isa<C>,
    T: Terms<C, K>,
{
    let mut sums = [isa.splat(C::ZERO); K];
    let mut at = leaf * STEPS;
    for _ in 0..len / LANES {
        sums = terms.step(isa, sums, at, LANES);
        at += 1;
    }
    let mut sums = in_order::<C, S, T, K>(isa, sums);
    let n = len % LANES;
    if n > 0 {
        let next = terms.step(isa, sums, at, n);
        for k in 0..K {
            sums[k] = isa.take_first(n, next[k], sums[k]); // an absent element is a step not taken
        }
    }
    sums
}

#[inline(always)]
fn both<C: Compute, S: Isa<C>, const K: usize>(isa: S, left: [S::V; K], right: [S::V; K]) -> [S::V; K] {
    let mut sum = left;
    for k in 0..K {
        sum[k] = isa.add(left[k], right[k]);
    }
    sum
}

/// Lane 0 of the result is the sum of the lanes, halved five times.
#[inline(always)]
fn fold<C: Compute, S: Isa<C>>(isa: S, v: S::V) -> S::V {
    let v = isa.add(v, isa.down::<16>(v));
    let v = isa.add(v, isa.down::<8>(v));
    let v = isa.add(v, isa.down::<4>(v));
    let v = isa.add(v, isa.down::<2>(v));
    isa.add(v, isa.down::<1>(v))
}

/// The finished nodes of a left-aligned binary tree, largest first: a binary counter. The newest stays in registers.
struct Tree<V, const K: usize, const D: usize = DEPTH> {
    nodes: ArrayVec<[V; K], D>,
    newest: Option<[V; K]>,
    leaves: usize,
}

impl<V: Copy, const K: usize, const D: usize> Tree<V, K, D> {
    #[inline(always)]
    const fn new() -> Self {
        Tree { nodes: ArrayVec::new_const(), newest: None, leaves: 0 }
    }

    /// Adds the node of the next 2^level leaves.
    #[inline(always)]
    fn push<C: Compute, S: Isa<C, V = V>>(&mut self, isa: S, node: [V; K], level: u32) {
        let mut node = node;
        let mut carry = self.leaves >> level;
        if let Some(newest) = self.newest {
            if carry & 1 == 1 {
                node = both(isa, newest, node);
                carry >>= 1;
                while carry & 1 == 1 {
                    let Some(left) = self.nodes.pop() else { break };
                    node = both(isa, left, node);
                    carry >>= 1;
                }
            } else {
                self.nodes.push(newest);
            }
        }
        self.newest = Some(node);
        self.leaves += 1 << level;
    }

    #[inline(always)]
    fn finish<C: Compute, S: Isa<C, V = V>>(&mut self, isa: S) -> [V; K] {
        let Some(mut node) = self.newest else { return [isa.splat(C::ZERO); K] };
        while let Some(left) = self.nodes.pop() {
            node = both(isa, left, node);
        }
        node
    }
}
