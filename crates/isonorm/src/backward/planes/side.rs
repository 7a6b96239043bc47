//! The sums of channels that lie side by side: down columns, one a lane.

use crate::apply::{Hat, ScaledHat};
use crate::backward::planes::sums::{Lanes, Pairs};
use crate::channels_blocks::WIDE;
use crate::element::{Compute, Element};
use crate::isa::Isa;
use crate::level::Kernel;
use crate::order::{ColumnTerms, LANES, NEXT, reduce_columns};

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

/// 32 elements from `start` on; anything beyond the end. Those `ahead` are asked for.
#[inline(always)]
fn read<S: Isa<T::Compute>, T: Element>(isa: S, from: &[T], start: usize, ahead: isize) -> S::V {
    let from = &from[start.min(from.len())..];
    match from.first_chunk() {
        Some(chunk) => {
            isa.prefetch(chunk, ahead);
            T::load(isa, chunk)
        }
        None => T::load_first(isa, from),
    }
}

impl<C: Compute, T: Element<Compute = C>> LastTerms<'_, T> {
    /// g and x_hat.
    #[inline(always)]
    fn read<S: Isa<C>>(&self, isa: S, at: usize) -> [S::V; 2] {
        let (LastPairs { x, dy, stride, .. }, lanes) = (self.pairs, self.lanes);
        let start = (self.start + at) * stride + self.channel;
        let ahead = (NEXT * stride).cast_signed();
        let (x, dy) = (read(isa, x, start, ahead), read(isa, dy, start, ahead));
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

/// One sample's sums of up to [`WIDE`] channels.
pub(super) struct WideSums<'a, T: Element> {
    pub(super) pairs: LastPairs<'a, T>,
    pub(super) lanes: &'a [Lanes<T::Compute>; 2],
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
        let sums = reduce_columns(isa, &self, self.pairs.spatial);
        let mut lanes = [[C::ZERO; WIDE]; 2];
        for k in 0..4 {
            let (halves, _) = lanes[k % 2].as_chunks_mut();
            isa.store(sums[k], &mut halves[k / 2]);
        }
        lanes
    }
}
