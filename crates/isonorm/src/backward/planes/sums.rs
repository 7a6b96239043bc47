//! The sums of dy and of dy * x_hat over planes, for up to 32 channels, one a lane.
//!
//! ```text
//! for each sample:  lane c = [rowsum(g), rowdot(g, x_hat)] of its plane of channel c,  g = dy * weight
//! [dbias, dweight]  = the samples' lanes, in batch order, with a weight of 1
//! ```
//!
//! Both layouts give the same lanes, so the same bits.

use std::ops::Range;

use crate::apply::{Hat, ScaledHat};
use crate::backward::planes::side::LastPairs;
use crate::backward::planes::strewn::AnyPairs;
use crate::element::{Compute, Element};
use crate::isa::Isa;
use crate::level::{Kernel, Level};
use crate::order::{BatchSums, LANES, LEAF, Row, Terms, reduce, reduce_short};
use crate::planes::Shape;
use crate::slice::Slice;
use crate::stats::Stats;
use crate::stripes::Source;

/// The statistics of up to 32 channels, and what their dy is multiplied by.
pub(crate) struct Lanes<C> {
    pub(super) mean: [C; LANES],
    pub(super) delta: [C; LANES],
    pub(super) inv: [C; LANES],
    pub(super) scale: [C; LANES],
    pub(super) weight: [C; LANES],
}

impl<C: Compute> Lanes<C> {
    /// With a weight of 1, which changes no bit.
    pub(crate) fn new(stats: &[Stats<C>]) -> Self {
        let [mean, delta, inv, scale] = [[C::ZERO; LANES]; 4];
        let mut lanes = Lanes { mean, delta, inv, scale, weight: [C::ONE; LANES] };
        for (l, stats) in stats.iter().enumerate() {
            lanes.mean[l] = stats.mean;
            lanes.delta[l] = stats.delta;
            lanes.inv[l] = stats.inv;
            lanes.scale[l] = stats.scale;
        }
        lanes
    }

    pub(crate) fn weighted(stats: &[Stats<C>], weight: &[C]) -> Self {
        let mut lanes = Lanes::new(stats);
        lanes.weight[..weight.len()].copy_from_slice(weight);
        lanes
    }

    /// Those of one lane.
    #[inline(always)]
    pub(crate) fn at(&self, l: usize) -> (Stats<C>, C) {
        let (mean, delta, inv, scale) = (self.mean[l], self.delta[l], self.inv[l], self.scale[l]);
        (Stats { mean, delta, var: C::ZERO, inv, scale }, self.weight[l])
    }
}

/// x and dy of up to 32 channels.
pub(crate) trait Pairs<C: Compute> {
    /// Lane c: the sums of sample `n`'s plane of channel c.
    fn sums<S: Isa<C>>(&self, isa: S, n: usize, lanes: &Lanes<C>) -> [S::V; 2];
}

/// The samples' sums in batch order; of one sample alone, as they are.
pub(crate) struct Sums<'a, C, P> {
    pub(crate) pairs: &'a P,
    pub(crate) samples: usize,
    pub(crate) lanes: &'a Lanes<C>,
    pub(crate) alone: bool,
}

impl<C: Compute, P: Pairs<C>> Kernel<C> for Sums<'_, C, P> {
    type Output = [[C; LANES]; 2];

    #[inline(always)]
    fn eval<S: Isa<C>>(self, isa: S) -> [[C; LANES]; 2] {
        let mut sums = BatchSums::new(isa);
        let mut last = [isa.splat(C::ZERO); 2];
        for n in 0..self.samples {
            last = self.pairs.sums(isa, n, self.lanes);
            sums.add(isa, last);
        }
        let [sum, product] = if self.alone { last } else { sums.finish(isa) };
        let mut lanes = [[C::ZERO; LANES]; 2];
        isa.store(sum, &mut lanes[0]);
        isa.store(product, &mut lanes[1]);
        lanes
    }
}

/// The sums of up to 32 channels, wherever they lie. x begins with the first sample of `shape`, as dy does.
pub(crate) struct PlaneSums<'a, T: Element> {
    pub(crate) level: Level,
    pub(crate) shape: Shape,
    pub(crate) x: &'a [T],
    pub(crate) dy: Slice<'a>,
}

impl<C: Compute, T: Element<Compute = C>> PlaneSums<'_, T> {
    /// `[dbias, dweight]`, before their rounding.
    pub(crate) fn of_all(&self, channels: Range<usize>, lanes: &Lanes<C>) -> [[C; LANES]; 2] {
        self.run(channels, lanes, false)
    }

    /// The sums of the only sample.
    pub(crate) fn of_one(&self, channels: Range<usize>, lanes: &Lanes<C>) -> [[C; LANES]; 2] {
        self.run(channels, lanes, true)
    }

    fn run(&self, channels: Range<usize>, lanes: &Lanes<C>, alone: bool) -> [[C; LANES]; 2] {
        let PlaneSums { level, shape, x, dy } = *self;
        let samples = shape.samples;
        let Some(own) = T::of(&dy) else {
            let pairs = &AnyPairs { x: T::slice(x), dy, shape, channels };
            return C::enter(level, Sums { pairs, samples, lanes, alone });
        };
        if shape.last || shape.spatial == 1 {
            let (x, dy) = (&x[channels.start..], &own[channels.start..]);
            let pairs = &LastPairs { x, dy, stride: shape.channels, spatial: shape.spatial };
            return C::enter(level, Sums { pairs, samples, lanes, alone });
        }
        let pairs = &FirstPairs { x, dy: Source::Given(own, shape), shape, channels };
        C::enter(level, Sums { pairs, samples, lanes, alone })
    }
}

/// `g` and `g * x_hat` along a row.
pub(crate) struct PairTerms<'a, T: Element> {
    pub(crate) x: Row<'a, T>,
    pub(crate) dy: Row<'a, T>,
    pub(crate) stats: Stats<T::Compute>,
    pub(crate) weight: T::Compute,
}

impl<C: Compute, T: Element<Compute = C>> Terms<C, 2> for PairTerms<'_, T> {
    #[inline(always)]
    fn step<S: Isa<C>>(&self, isa: S, [sum, product]: [S::V; 2], at: usize, n: usize) -> [S::V; 2] {
        let (x, dy) = (self.x.read_as(isa, at, n, true), self.dy.read_as(isa, at, n, true));
        let x_hat = ScaledHat::x_hat(isa, ScaledHat::splat(isa, &self.stats), x);
        let g = isa.mul(dy, isa.splat(self.weight));
        [isa.add(sum, g), isa.fma(g, x_hat, product)]
    }
    #[inline(always)]
    fn whole_leaves(&self, leaf: usize, leaves: usize) -> Option<Self> {
        let (x, dy) = (self.x.whole_leaves(leaf, leaves), self.dy.whole_leaves(leaf, leaves));
        Some(PairTerms { x, dy, ..*self })
    }
    #[inline(always)]
    fn in_order<S: Isa<C>>(isa: S, v: S::V) -> S::V {
        T::in_order(isa, v)
    }
}

/// Channels whose planes are contiguous.
pub(crate) struct FirstPairs<'s, 'y, T: Element> {
    pub(crate) x: &'s [T],
    pub(crate) dy: Source<'s, 'y, T>,
    pub(crate) shape: Shape,
    pub(crate) channels: Range<usize>,
}

impl<C: Compute, T: Element<Compute = C>> Pairs<C> for FirstPairs<'_, '_, T> {
    #[inline(always)]
    fn sums<S: Isa<C>>(&self, isa: S, n: usize, lanes: &Lanes<C>) -> [S::V; 2] {
        let spatial = self.shape.spatial;
        let (mut sum, mut product) = ([C::ZERO; LANES], [C::ZERO; LANES]);
        let x = &self.x[(n * self.shape.channels + self.channels.start) * spatial..];
        let dy = self.dy.planes(n, &self.channels);
        let dy = &*dy;
        for l in 0..self.channels.len().min(LANES) {
            let plane = l * spatial..(l + 1) * spatial;
            let (x, dy) = (Row::new(&x[plane.clone()]), Row::new(&dy[plane]));
            let (stats, weight) = lanes.at(l);
            let terms = PairTerms { x, dy, stats, weight };
            let sums = if spatial < LEAF { reduce_short(isa, &terms, spatial) } else { reduce(isa, &terms, spatial) };
            [sum[l], product[l]] = sums;
        }
        [isa.load(&sum), isa.load(&product)]
    }
}
