//! The sums of channels that lie side by side: down columns, one a lane.

use crate::apply::{Hat, ScaledHat};
use crate::backward::planes::sums::{Lanes, Pairs};
use crate::element::{Compute, Element};
use crate::isa::Isa;
use crate::level::{Kernel, Level};
use crate::order::{ColumnTerms, LANES, reduce_columns};
use crate::planes::Shape;
use crate::stats::Stats;
use crate::tables::{Samples, WIDE, ahead, read_columns, unpack_wide};

/// Channels that lie side by side: x and dy begin at the first of them.
pub(super) struct LastPairs<'a, T> {
    pub(super) x: &'a [T],
    pub(super) dy: &'a [T],
    /// From position to position.
    pub(super) stride: usize,
    pub(super) spatial: usize,
}

/// One sample's positions, from `start` on.
struct LastTerms<'a, T: Element> {
    pairs: &'a LastPairs<'a, T>,
    start: usize,
    lanes: &'a Lanes<T::Compute>,
    /// The first channel, counted from those at which x and dy begin.
    channel: usize,
}

impl<C: Compute, T: Element<Compute = C>> LastTerms<'_, T> {
    /// g and x_hat.
    #[inline(always)]
    fn read<S: Isa<C>>(&self, isa: S, at: usize) -> [S::V; 2] {
        let (LastPairs { x, dy, stride, spatial }, lanes) = (self.pairs, self.lanes);
        let start = (self.start + at) * stride + self.channel;
        let ahead = ahead(*spatial, *stride);
        let (x, dy) = (read_columns(isa, x, start, ahead), read_columns(isa, dy, start, ahead));
        let stats = [isa.load(&lanes.mean), isa.load(&lanes.delta), isa.load(&lanes.inv), isa.load(&lanes.scale)];
        [isa.mul(dy, isa.load(&lanes.weight)), ScaledHat::x_hat(isa, stats, x)]
    }
}

impl<C: Compute, T: Element<Compute = C>> ColumnTerms<C, 2> for LastTerms<'_, T> {
    #[inline(always)]
    fn step<S: Isa<C>>(&self, isa: S, [sum, product]: [S::V; 2], at: usize) -> [S::V; 2] {
        let [g, x_hat] = self.read(isa, at);
        [isa.add(sum, g), isa.fma(g, x_hat, product)]
    }
}

impl<C: Compute, T: Element<Compute = C>> Pairs<C> for LastPairs<'_, T> {
    #[inline(always)]
    fn sums<S: Isa<C>>(&self, isa: S, n: usize, lanes: &Lanes<C>) -> [S::V; 2] {
        let terms = LastTerms { pairs: self, start: n * self.spatial, lanes, channel: 0 };
        if self.spatial == 1 {
            // The other 31 lanes of the order are +0.
            let ([g, x_hat], zero) = (terms.read(isa, 0), isa.splat(C::ZERO));
            return [isa.add(g, zero), isa.add(isa.mul(g, x_hat), zero)];
        }
        reduce_columns(isa, &terms, self.spatial)
    }
}

/// The sums of dy and of dy * x_hat over each plane.
pub(super) struct PairSamples<'a, T: Element> {
    level: Level,
    shape: Shape,
    x: &'a [T],
    dy: &'a [T],
    lanes: Vec<[Lanes<T::Compute>; 2]>,
}

impl<'a, T: Element> PairSamples<'a, T> {
    /// Of the channels of `stats`, with the first of which x and dy begin.
    pub(super) fn new(level: Level, shape: Shape, [x, dy]: [&'a [T]; 2], stats: &[Stats<T::Compute>]) -> Self {
        let halves = |stats: &[Stats<T::Compute>]| {
            let (low, high) = stats.split_at(stats.len().min(LANES));
            [Lanes::new(low), Lanes::new(high)]
        };
        PairSamples { level, shape, x, dy, lanes: stats.chunks(WIDE).map(halves).collect() }
    }
}

impl<C: Compute, T: Element<Compute = C>> Samples<C, 2> for PairSamples<'_, T> {
    fn sums(&self, n: usize, channel: usize) -> [[C; WIDE]; 2] {
        let Shape { channels: stride, spatial, .. } = self.shape;
        let from = n * self.shape.sample() + channel;
        let pairs = LastPairs { x: &self.x[from..], dy: &self.dy[from..], stride, spatial };
        C::enter(self.level, WideSums { pairs, lanes: &self.lanes[channel / WIDE] })
    }
}

/// One sample's sums of up to [`WIDE`] channels.
struct WideSums<'a, T: Element> {
    pairs: LastPairs<'a, T>,
    lanes: &'a [Lanes<T::Compute>; 2],
}

impl<C: Compute, T: Element<Compute = C>> ColumnTerms<C, 4> for WideSums<'_, T> {
    #[inline(always)]
    fn step<S: Isa<C>>(&self, isa: S, [a, b, c, d]: [S::V; 4], at: usize) -> [S::V; 4] {
        let [low, high] = &self.lanes;
        let [a, b] = LastTerms { pairs: &self.pairs, start: 0, lanes: low, channel: 0 }.step(isa, [a, b], at);
        let [c, d] = LastTerms { pairs: &self.pairs, start: 0, lanes: high, channel: LANES }.step(isa, [c, d], at);
        [a, b, c, d]
    }
}

impl<C: Compute, T: Element<Compute = C>> Kernel<C> for WideSums<'_, T> {
    type Output = [[C; WIDE]; 2];

    #[inline(always)]
    fn eval<S: Isa<C>>(self, isa: S) -> [[C; WIDE]; 2] {
        let [sum, product, sum_high, product_high] = reduce_columns(isa, &self, self.pairs.spatial);
        unpack_wide(isa, [[sum, sum_high], [product, product_high]])
    }
}
