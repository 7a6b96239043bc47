//! Which terms a sum has taken, and what is kept of them.

use super::{BATCH_LEAF, LANES, LEAF};

/// The order in which positions are summed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Order {
    /// Positions along a row: 32 lanes, leaves of 128.
    Row,
    /// Rows of a batch: leaves of 16.
    Batch,
}

impl Order {
    /// Positions of a whole leaf.
    pub(crate) const fn leaf(self) -> usize {
        match self {
            Order::Row => LEAF,
            Order::Batch => BATCH_LEAF,
        }
    }
    /// Accumulators of each sum.
    pub(crate) const fn lanes(self) -> usize {
        match self {
            Order::Row => LANES,
            Order::Batch => 1,
        }
    }
}

/// What is summed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// `acc + a`.
    Sum,
    /// `fma(a, b, acc)`.
    Dot,
    /// The dot and the sum over the same pairs, the dot first.
    Both,
    /// `acc + b` and `acc + a`: as the two above where b is a product already.
    Pair,
    /// The largest `|a|`; NaN wins. No sum, so it has neither leaves nor raw terms.
    Largest,
}

impl Kind {
    pub(crate) const fn has_dot(self) -> bool {
        matches!(self, Kind::Dot | Kind::Both | Kind::Pair)
    }
    pub(crate) const fn has_sum(self) -> bool {
        matches!(self, Kind::Sum | Kind::Both | Kind::Pair)
    }
}

/// Positions `start..end` of `columns` sums side by side. What is kept of them follows from it:
///
/// ```text
/// start . . . . . . . leaf border . . . . . . . . . . . . . . . leaf border . . . . . end
///   | raw terms: the leaf  | nodes: whole leaves, siblings merged  | accumulators of    |
///   | began before start   |                                       | the open leaf      |
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Extent {
    pub(crate) order: Order,
    pub(crate) kind: Kind,
    pub(crate) columns: usize,
    pub(crate) start: usize,
    pub(crate) end: usize,
}

impl Extent {
    /// The first leaf border from `start` on.
    fn border(&self) -> usize {
        match self.kind {
            Kind::Largest => self.start,
            _ => self.start.checked_next_multiple_of(self.order.leaf()).unwrap_or(usize::MAX),
        }
    }
    /// Positions from `end` on that can only be kept as raw terms.
    pub(crate) fn raw(&self) -> usize {
        self.border().saturating_sub(self.end)
    }
    /// Positions that are kept as raw terms.
    pub(crate) fn raw_kept(&self) -> usize {
        self.end.min(self.border()) - self.start
    }
    /// Values of one raw term.
    pub(crate) fn term(&self) -> usize {
        self.columns.saturating_mul(1 + usize::from(self.kind.has_dot()))
    }
    /// Whether the open leaf has taken a term.
    pub(crate) fn is_open(&self) -> bool {
        self.end > self.border() && (self.kind == Kind::Largest || !self.end.is_multiple_of(self.order.leaf()))
    }
    /// Accumulators of a leaf or node. Where there are none, any number of columns may be claimed.
    pub(crate) fn width(&self) -> usize {
        let sums = if self.kind.has_dot() && self.kind.has_sum() { 2 } else { 1 };
        let lanes = if self.kind == Kind::Largest { 1 } else { self.order.lanes() };
        (sums * lanes).saturating_mul(self.columns)
    }
    /// Level and index of each node, left to right: the largest subtrees between the borders.
    pub(crate) fn nodes(&self) -> impl Iterator<Item = (u32, usize)> + use<> {
        let (mut at, mut stop) = (self.border() / self.order.leaf(), self.end / self.order.leaf());
        if self.kind == Kind::Largest {
            stop = at;
        }
        std::iter::from_fn(move || {
            let level = stop.checked_sub(at)?.checked_ilog2()?.min(at.trailing_zeros());
            let index = at >> level;
            at += 1 << level;
            Some((level, index))
        })
    }
    /// All values that are kept.
    pub(crate) fn values(&self) -> u128 {
        let wide = |n: usize| n as u128;
        let one = Extent { columns: 1, ..*self };
        let nodes = self.nodes().count() + usize::from(self.is_open());
        (wide(one.term() * self.raw_kept()) + wide(one.width() * nodes)) * wide(self.columns)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nodes_are_the_largest_subtrees_between_the_borders() {
        for first in 0..40usize {
            for last in first..80usize {
                let (start, end) = (first * BATCH_LEAF, last * BATCH_LEAF);
                let extent = Extent { order: Order::Batch, kind: Kind::Both, columns: 1, start, end };
                let inside = |level: u32, index: usize| index << level >= first && (index + 1) << level <= last;
                let mut at = first;
                for (level, index) in extent.nodes() {
                    assert_eq!(index << level, at, "{first}..{last}");
                    assert!(inside(level, index) && !inside(level + 1, index / 2), "{first}..{last}");
                    at = (index + 1) << level;
                }
                assert_eq!(at, last, "{first}..{last}");
            }
        }
    }

    #[test]
    fn the_last_positions_there_are_do_not_overflow() {
        for back in 0..40 {
            let start = usize::MAX - back;
            let extent = Extent { order: Order::Batch, kind: Kind::Both, columns: usize::MAX, start, end: start };
            assert_eq!((extent.nodes().count(), extent.values()), (0, 0), "{start}");
            let to_the_end = Extent { end: usize::MAX, ..extent };
            assert!(to_the_end.values() >= to_the_end.raw_kept() as u128, "{start}");
        }
    }
}
