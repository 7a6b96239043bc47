//! Sums that are not finished: they take terms, nodes, or a neighbour's sums, and give the bits of one long sum.
//!
//! ```text
//! push(terms of a position):    raw before the first leaf border, then into the open leaf; a full leaf is a node
//! push_node(node):              while the node left of it is its sibling, the two are one: left + right
//! merge(neighbour):             its raw terms, its nodes, its open leaf
//! root:                         nodes and open leaf folded from the right; then lanes by halving
//! ```
//!
//! A node whose left sibling lies before `start` stays as it is, until a merge brings the two together.

use std::mem::take;

use super::LANES;
use super::extent::{Extent, Kind, Order};
use crate::element::Compute;
use crate::error::Error;

/// What is known of positions `start..end` of sums, `columns` of them side by side.
///
/// Leaves and nodes are laid out `[dot: columns][sum: columns]`, those that the kind has; in row order each of them
/// `[column][32 lanes]`. Of the largest, `[columns]`.
#[derive(Clone, Debug)]
pub(crate) struct Sums<C> {
    extent: Extent,
    /// Of each position `[a: columns][b: columns]`, b where there is a dot.
    raw: Vec<C>,
    nodes: Vec<Node<C>>,
    /// Empty where it is new.
    leaf: Vec<C>,
    /// Storage of nodes that have become part of another.
    spare: Vec<Vec<C>>,
}

/// What is kept of two spares when sums merge.
const SPARE: usize = 8;

/// The sum of 2^level leaves, the `index`-th of its level.
#[derive(Clone, Debug)]
struct Node<C> {
    level: u32,
    index: usize,
    values: Vec<C>,
}

impl<C: Compute> Sums<C> {
    pub(crate) fn new(order: Order, kind: Kind, columns: usize, start: usize) -> Self {
        Sums::empty(Extent { order, kind, columns, start, end: start })
    }

    fn empty(extent: Extent) -> Self {
        Sums { extent, raw: Vec::new(), nodes: Vec::new(), leaf: Vec::new(), spare: Vec::new() }
    }

    pub(crate) fn extent(&self) -> &Extent {
        &self.extent
    }
    pub(crate) fn order(&self) -> Order {
        self.extent.order
    }
    pub(crate) fn kind(&self) -> Kind {
        self.extent.kind
    }
    pub(crate) fn columns(&self) -> usize {
        self.extent.columns
    }
    pub(crate) fn start(&self) -> usize {
        self.extent.start
    }
    pub(crate) fn end(&self) -> usize {
        self.extent.end
    }

    /// Positions from `end` on that can only be kept as raw terms, since their leaf began before `start`.
    pub(crate) fn raw(&self) -> usize {
        self.extent.raw()
    }

    /// Takes the next position: `columns` values a, and as many b where there is a dot.
    pub(crate) fn push(&mut self, a: &[C], b: &[C]) {
        let Extent { order, kind, columns, end, .. } = self.extent;
        if self.raw() > 0 {
            self.raw.extend_from_slice(a);
            if kind.has_dot() {
                self.raw.extend_from_slice(b);
            }
            self.extent.end += 1;
            return;
        }
        let leaf = self.leaf_mut();
        if kind == Kind::Largest {
            for c in 0..columns {
                leaf[c] = larger(leaf[c], a[c].magnitude());
            }
            return self.advance(1);
        }
        let (lanes, lane) = (order.lanes(), end % order.lanes());
        let (dot, sum) = leaf.split_at_mut(if kind.has_dot() { columns * lanes } else { 0 });
        if kind.has_dot() {
            for c in 0..columns {
                let acc = dot[c * lanes + lane];
                dot[c * lanes + lane] = if kind == Kind::Pair { acc + b[c] } else { a[c].fused(b[c], acc) };
            }
        }
        if kind.has_sum() {
            for c in 0..columns {
                sum[c * lanes + lane] = sum[c * lanes + lane] + a[c];
            }
        }
        self.advance(1);
    }

    /// The accumulators of the open leaf, +0 where it is new, for a kernel that carries them on and then calls
    /// `advance`. Only where `raw()` is 0.
    pub(crate) fn leaf_mut(&mut self) -> &mut [C] {
        debug_assert_eq!(self.raw(), 0, "these positions are kept as raw terms");
        if self.leaf.is_empty() {
            self.leaf = self.zeros();
        }
        &mut self.leaf
    }

    /// As `leaf_mut`, for a kernel that overwrites a leaf that is new, since that one holds anything; and whether it is.
    pub(crate) fn open_leaf(&mut self) -> (&mut [C], bool) {
        let is_new = self.leaf.is_empty();
        if is_new {
            let width = self.extent.width();
            self.leaf = self.spare.pop().unwrap_or_else(|| vec![C::ZERO; width]);
        }
        (&mut self.leaf, is_new)
    }

    /// Storage that `other`, of as many columns, does not need: what a thread has allocated costs no page faults.
    pub(crate) fn take_spare(&mut self, other: &mut Self) {
        if self.extent.width() == other.extent.width() {
            self.spare.append(&mut other.spare);
        }
    }

    /// Storage for a leaf or a node, +0 throughout.
    pub(crate) fn zeros(&mut self) -> Vec<C> {
        let mut values = self.spare.pop().unwrap_or_default();
        values.clear();
        values.resize(self.extent.width(), C::ZERO);
        values
    }

    /// The accumulators of the open leaf have taken so many positions, not past the leaf's end.
    pub(crate) fn advance(&mut self, positions: usize) {
        if positions == 0 {
            return;
        }
        self.leaf_mut();
        let Extent { order, kind, end, .. } = self.extent;
        self.extent.end = end + positions;
        if kind == Kind::Largest {
            return;
        }
        debug_assert!(end % order.leaf() + positions <= order.leaf(), "past the leaf's end");
        if self.end().is_multiple_of(order.leaf()) {
            let values = take(&mut self.leaf);
            self.add_node(Node { level: 0, index: end / order.leaf(), values });
        }
    }

    /// The next 2^level whole leaves as one node; `end` is a multiple of as many.
    pub(crate) fn push_node(&mut self, level: u32, values: Vec<C>) {
        let leaf = self.extent.order.leaf();
        if self.kind() == Kind::Largest {
            keep_larger(self.leaf_mut(), &values);
        } else {
            debug_assert!(self.raw() == 0 && self.end().is_multiple_of(leaf << level), "a node of another place");
            self.add_node(Node { level, index: (self.end() / leaf) >> level, values });
        }
        self.extent.end += leaf << level;
    }

    fn add_node(&mut self, mut node: Node<C>) {
        while let Some(left) = self.nodes.pop_if(|left| left.level == node.level && left.index % 2 == 0) {
            add(&left.values, &mut node.values);
            node.level += 1;
            node.index /= 2;
            // Nodes, open leaf and spares are never more than a tree of this height needs.
            let height = self.nodes.first().map_or(0, |first| first.level).max(node.level);
            if self.spare.len() + self.nodes.len() <= height as usize {
                self.spare.push(left.values);
            }
        }
        self.nodes.push(node);
    }

    /// Takes the sums of the positions from `end` on.
    pub(crate) fn merge(&mut self, mut next: Self) -> Result<(), Error> {
        let extent = next.extent;
        if self.extent != (Extent { start: self.start(), end: self.end(), ..extent }) {
            return Err(Error::PartialKind { expected: self.describe(), found: next.describe() });
        }
        if self.end() != next.start() {
            return Err(Error::PartialGap { end: self.end(), start: next.start() });
        }
        if self.kind() == Kind::Largest {
            if extent.is_open() {
                keep_larger(self.leaf_mut(), &next.leaf);
            }
            self.extent.end = extent.end;
            return Ok(());
        }
        for i in 0..extent.raw_kept() {
            let (a, b) = next.raw[i * extent.term()..][..extent.term()].split_at(extent.columns);
            self.push(a, b);
        }
        self.take_spare(&mut next);
        self.spare.truncate(SPARE);
        for node in next.nodes {
            self.push_node(node.level, node.values);
        }
        if extent.is_open() {
            self.leaf = next.leaf; // it began at a border, so ours is new
            self.extent.end = extent.end;
        }
        Ok(())
    }

    /// The sums themselves, `[dot: columns][sum: columns]`; where nothing is missing before them.
    pub(crate) fn root(&self) -> Vec<C> {
        debug_assert_eq!(self.start(), 0, "positions before these are missing");
        let mut nodes = self.nodes.iter().rev();
        let newest = if self.extent.is_open() { Some(&self.leaf) } else { nodes.next().map(|node| &node.values) };
        let mut root = match newest {
            Some(newest) => newest.clone(),
            None => vec![C::ZERO; self.extent.width()],
        };
        for left in nodes {
            add(&left.values, &mut root);
        }
        if self.order() == Order::Batch || self.kind() == Kind::Largest {
            return root;
        }
        root.as_chunks_mut().0.iter_mut().map(fold).collect()
    }

    /// All values, for another to rebuild them by `of_values`: raw terms, nodes, open leaf.
    pub(crate) fn values(&self) -> impl Iterator<Item = &[C]> {
        let leaf = if self.extent.is_open() { &self.leaf[..] } else { &[] };
        let nodes = self.nodes.iter().map(|node| &node.values[..]);
        std::iter::once(&self.raw[..]).chain(nodes).chain([leaf])
    }

    /// The sums whose `values` are what `next(len)` gives, piece by piece.
    pub(crate) fn of_values(extent: Extent, mut next: impl FnMut(usize) -> Vec<C>) -> Self {
        let mut sums = Sums::empty(extent);
        sums.raw = next(extent.raw_kept() * extent.term());
        for (level, index) in extent.nodes() {
            sums.nodes.push(Node { level, index, values: next(extent.width()) });
        }
        if extent.is_open() {
            sums.leaf = next(extent.width());
        }
        sums
    }

    /// What is summed, for an error's text.
    pub(crate) fn describe(&self) -> String {
        let kind = match self.kind() {
            Kind::Sum => "sums",
            Kind::Dot => "dots",
            Kind::Both => "dots and sums",
            Kind::Pair => "samples' dots and sums",
            Kind::Largest => "largest magnitudes",
        };
        let order = match self.order() {
            Order::Row => "row order",
            Order::Batch => "batch order",
        };
        format!("{kind} of {} columns in {order} and {}", self.columns(), C::DTYPE)
    }
}

/// `right` becomes `left + right`.
fn add<C: Compute>(left: &[C], right: &mut [C]) {
    for i in 0..right.len() {
        right[i] = left[i] + right[i];
    }
}

fn larger<C: Compute>(left: C, right: C) -> C {
    if left.nan() || left >= right { left } else { right }
}

fn keep_larger<C: Compute>(to: &mut [C], from: &[C]) {
    for c in 0..to.len() {
        to[c] = larger(to[c], from[c]);
    }
}

/// The lanes folded by halving.
fn fold<C: Compute>(lanes: &mut [C; LANES]) -> C {
    let mut w = LANES / 2;
    while w > 0 {
        for l in 0..w {
            lanes[l] = lanes[l] + lanes[l + w];
        }
        w /= 2;
    }
    lanes[0]
}

#[cfg(test)]
mod tests;
