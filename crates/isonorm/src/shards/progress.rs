//! From merged sums to statistics, round by round: of rows that are cut, and of channels of a batch that is.
//!
//! ```text
//! RMSNorm:     [dot of x with x]
//! the others:  [sum of x], [dot and sum of x - mean]
//! where the range rule wants some of them:  [largest |x|], and of those it scales the same sums of x * scale
//! ```

use crate::element::Compute;
use crate::error::Error;
use crate::layer_norm::centered;
use crate::order::{Kind, Order, Sums};
use crate::partial::Partial;
use crate::stats::{Eps, Stats};

/// A row or channel in a computation of its statistics.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Set<C> {
    /// Which one.
    pub(crate) at: usize,
    pub(crate) scale: C,
    pub(crate) mean: C,
    /// Whether a sum left the range.
    out_of_range: bool,
}

/// What the ranks tell one another next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Round {
    /// The sums of x.
    Sums,
    /// The dots of x with itself.
    Squares,
    /// The dots of x - mean with itself, and its sums.
    Deviations,
    /// The largest |x|.
    Largest,
}

/// The terms of each sum.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Length {
    /// So many columns of a row.
    Columns(usize),
    /// Samples of so many values each; the first merged sum says how many samples.
    Samples(usize),
}

/// Statistics on their way.
#[derive(Clone, Debug)]
pub(crate) struct Progress<C> {
    order: Order,
    eps: Eps<C>,
    centered: bool,
    length: Length,
    /// Positions of a merged sum, once they are known.
    positions: Option<usize>,
    stats: Vec<Stats<C>>,
    /// Those of this round.
    sets: Vec<Set<C>>,
    /// `None`: there is nothing more to tell.
    round: Option<Round>,
    is_scaled: bool,
}

impl<C: Compute> Progress<C> {
    pub(crate) fn new(eps: Eps<C>, centered: bool, length: Length, sets: usize) -> Self {
        let set = |at| Set { at, scale: C::ONE, mean: C::ZERO, out_of_range: false };
        let (order, positions) = match length {
            Length::Columns(columns) => (Order::Row, Some(columns)),
            Length::Samples(_) => (Order::Batch, None),
        };
        let stats = vec![Stats::default(); sets];
        let (sets, round) = ((0..sets).map(set).collect(), Some(first(centered)));
        Progress { order, eps, centered, length, positions, stats, sets, round, is_scaled: false }
    }

    pub(crate) fn round(&self) -> Option<(Round, &[Set<C>])> {
        self.round.map(|round| (round, &self.sets[..]))
    }

    /// What the sums of this round are: kind and columns.
    pub(crate) fn sums_of(&self, round: Round) -> (Kind, usize) {
        let sets = self.sets.len();
        match (round, self.order) {
            (Round::Largest, _) => (Kind::Largest, sets),
            (Round::Deviations, Order::Row) => (Kind::Both, sets),
            (Round::Squares, Order::Row) => (Kind::Dot, sets),
            // Of planes' scalars, which are sums and dots already.
            (Round::Deviations, Order::Batch) => (Kind::Sum, 2 * sets),
            _ => (Kind::Sum, sets),
        }
    }

    /// The statistics, and the values that went into each of their sums.
    pub(crate) fn finish(self) -> Result<(Vec<Stats<C>>, usize), Error> {
        let count = self.count();
        if self.round.is_some() { Err(Error::Unfinished) } else { Ok((self.stats, count)) }
    }

    fn count(&self) -> usize {
        self.positions.map_or(0, |positions| self.count_of(positions))
    }

    fn count_of(&self, positions: usize) -> usize {
        if let Length::Samples(spatial) = self.length { positions.saturating_mul(spatial) } else { positions }
    }

    /// Takes the sums of a round over all ranks.
    pub(crate) fn take(&mut self, merged: &Partial) -> Result<(), Error> {
        let Some(round) = self.round else {
            let (expected, found) = ("none: there is no round left".into(), merged.describe());
            return Err(Error::PartialKind { expected, found });
        };
        let (kind, columns) = self.sums_of(round);
        let merged = whole(merged, self.order, kind, columns, self.positions)?;
        if self.positions.is_none() {
            let count = self.count_of(merged.end());
            if count == 1 {
                return Err(Error::TooFewValues { count });
            }
            self.positions = Some(merged.end());
            if count == 0 {
                self.round = None;
                return Ok(());
            }
        }
        let root = merged.root();
        match round {
            Round::Sums => self.take_sums(&root),
            Round::Squares | Round::Deviations => self.take_squares(&root),
            Round::Largest => self.take_largest(&root),
        }
        Ok(())
    }

    fn take_sums(&mut self, sums: &[C]) {
        let count = C::from_count(self.count());
        for (set, sum) in self.sets.iter_mut().zip(sums) {
            set.mean = *sum / count;
            set.out_of_range = !sum.finite();
        }
        self.round = Some(Round::Deviations);
    }

    /// The last sums of a computation.
    fn take_squares(&mut self, sums: &[C]) {
        let (n, count) = (self.sets.len(), C::from_count(self.count()));
        for i in 0..n {
            let set = &mut self.sets[i];
            let mut stats = if self.centered {
                set.out_of_range |= !sums[i].finite();
                centered(set.mean, sums[n + i], sums[i], count)
            } else {
                set.out_of_range = sums[i] == C::INFINITY;
                Stats { var: sums[i] / count, ..Stats::default() }
            };
            let eps = if self.is_scaled { self.eps.scaled(set.scale) } else { self.eps };
            stats.inv = eps.inverse_root(stats.var);
            stats.scale = set.scale;
            self.stats[set.at] = stats.quiet(); // other ranks' sums may hold any NaN
        }
        let (eps, stats) = (self.eps, &self.stats);
        self.sets.retain(|set| set.out_of_range | eps.is_small(stats[set.at].var));
        self.round = (!self.is_scaled && !self.sets.is_empty()).then_some(Round::Largest);
    }

    fn take_largest(&mut self, largest: &[C]) {
        for (set, largest) in self.sets.iter_mut().zip(largest) {
            set.scale = self.eps.scale(*largest);
        }
        self.sets.retain(|set| set.scale != C::ONE);
        self.is_scaled = true;
        self.round = (!self.sets.is_empty()).then_some(first(self.centered));
    }
}

fn first(centered: bool) -> Round {
    if centered { Round::Sums } else { Round::Squares }
}

/// Sums of the wanted kind over all positions; `positions` is how many there are, where that is known.
pub(crate) fn whole<C: Compute>(
    merged: &Partial,
    order: Order,
    kind: Kind,
    columns: usize,
    positions: Option<usize>,
) -> Result<&Sums<C>, Error> {
    let sums = merged.sums(order, kind, columns)?;
    merged.check_start()?;
    match positions {
        Some(expected) if sums.end() != expected => Err(Error::PartialLen { expected, found: sums.end() }),
        _ => Ok(sums),
    }
}
