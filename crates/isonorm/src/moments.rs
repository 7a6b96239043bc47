//! The statistics of channels, up to 32 at a time, one a lane.
//!
//! ```text
//! for each sample:  lane c = its plane of channel c, reduced in row order
//! sum, s1, s2       = the samples' lanes, in batch order
//! mean, delta, var  = LayerNorm's, of n = samples * spatial values
//! ```
//!
//! Both layouts give the same lanes, so the same bits.

use std::ops::Range;

use crate::element::{Compute, Element};
use crate::isa::Isa;
use crate::layer_norm::{Deviations, Values, centered};
use crate::level::{Kernel, Level};
use crate::order::{BatchSums, ColumnTerms, LANES, LEAF, Row, reduce, reduce_columns, reduce_short};
use crate::planes::Shape;
use crate::stats::{Eps, Stats};
use crate::stripes::Source;
use crate::tables::{ahead, read_columns};

/// Up to 32 channels of a tensor.
pub(crate) trait Channels<C: Compute> {
    /// Lane c: the sum of sample `n`'s plane of channel c, times `scale`.
    fn sum<S: Isa<C>, const SCALED: bool>(&self, isa: S, n: usize, scale: &[C; LANES]) -> S::V;
    /// Lane c: the sums of the deviations from `mean` and of their squares.
    fn deviations<S: Isa<C>, const SCALED: bool>(
        &self,
        isa: S,
        n: usize,
        mean: &[C; LANES],
        scale: &[C; LANES],
    ) -> [S::V; 2];
    /// Lane c: the largest magnitude of channel c; NaN where there is one.
    fn largest(&self) -> [C; LANES];
    /// Samples, and values of a channel in each.
    fn lens(&self) -> (usize, usize);
}

/// The statistics of `stats.len()` channels, under the range rule.
pub(crate) fn measure<C: Compute, P: Channels<C>>(level: Level, planes: &P, eps: Eps<C>, stats: &mut [Stats<C>]) {
    let mut scale = [C::ONE; LANES];
    if !C::enter(level, Measure::<C, P, false> { planes, eps, scale, stats: &mut *stats }) {
        return;
    }
    let largest = planes.largest();
    for (l, stats) in stats.iter_mut().enumerate() {
        if stats.scale == C::ZERO {
            stats.scale = C::ONE;
            scale[l] = eps.scale(largest[l]);
        }
    }
    if scale.iter().all(|scale| *scale == C::ONE) {
        return;
    }
    let mut again = [Stats::default(); LANES];
    let again = &mut again[..stats.len()];
    C::enter(level, Measure::<C, P, true> { planes, eps, scale, stats: &mut *again });
    for (l, stats) in stats.iter_mut().enumerate() {
        if scale[l] != C::ONE {
            *stats = Stats { scale: scale[l], ..again[l] };
        }
    }
}

/// One computation of the statistics, of `x * scale`. A channel that the range rule wants to see has scale 0
/// afterwards; returns whether there is one.
struct Measure<'a, C, P, const SCALED: bool> {
    planes: &'a P,
    eps: Eps<C>,
    scale: [C; LANES],
    stats: &'a mut [Stats<C>],
}

impl<C: Compute, P: Channels<C>, const SCALED: bool> Kernel<C> for Measure<'_, C, P, SCALED> {
    type Output = bool;

    #[inline(always)]
    fn eval<S: Isa<C>>(self, isa: S) -> bool {
        let Measure { planes, eps, scale, stats } = self;
        let (samples, spatial) = planes.lens();
        let count = C::from_count(samples * spatial);
        let mut sums = BatchSums::new(isa);
        for n in 0..samples {
            sums.add(isa, [planes.sum::<S, SCALED>(isa, n, &scale)]);
        }
        let [sum] = unpack(isa, sums.finish(isa));
        let mut mean = sum;
        mean.iter_mut().for_each(|mean| *mean = *mean / count);
        let mut sums = BatchSums::new(isa);
        for n in 0..samples {
            sums.add(isa, planes.deviations::<S, SCALED>(isa, n, &mean, &scale));
        }
        let [s1, s2] = unpack(isa, sums.finish(isa));
        let mut any = false;
        for (l, stats) in stats.iter_mut().enumerate() {
            *stats = centered(mean[l], s1[l], s2[l], count);
            let eps = if SCALED { eps.scaled(scale[l]) } else { eps };
            stats.inv = eps.inverse_root(stats.var);
            let again = !(sum[l].finite() & s2[l].finite()) | eps.is_small(stats.var);
            stats.scale = if again { C::ZERO } else { C::ONE };
            any |= again;
        }
        any
    }
}

#[inline(always)]
fn unpack<C: Compute, S: Isa<C>, const K: usize>(isa: S, sums: [S::V; K]) -> [[C; LANES]; K] {
    let mut lanes = [[C::ZERO; LANES]; K];
    for (lanes, sums) in lanes.iter_mut().zip(sums) {
        isa.store(sums, lanes);
    }
    lanes
}

/// Channels whose planes are contiguous.
pub(crate) struct First<'s, 'y, T: Element> {
    pub(crate) x: Source<'s, 'y, T>,
    pub(crate) shape: Shape,
    pub(crate) channels: Range<usize>,
}

impl<C: Compute, T: Element<Compute = C>> Channels<C> for First<'_, '_, T> {
    #[inline(always)]
    fn sum<S: Isa<C>, const SCALED: bool>(&self, isa: S, n: usize, scale: &[C; LANES]) -> S::V {
        let spatial = self.shape.spatial;
        let mut lanes = [C::ZERO; LANES];
        let x = self.x.planes(n, &self.channels);
        let x = &*x;
        for l in 0..self.channels.len().min(LANES) {
            let row = Row::new(&x[l * spatial..][..spatial]);
            let terms = Values::<T, SCALED> { row, scale: scale[l] };
            [lanes[l]] = if spatial < LEAF { reduce_short(isa, &terms, spatial) } else { reduce(isa, &terms, spatial) };
        }
        isa.load(&lanes)
    }

    #[inline(always)]
    fn deviations<S: Isa<C>, const SCALED: bool>(
        &self,
        isa: S,
        n: usize,
        mean: &[C; LANES],
        scale: &[C; LANES],
    ) -> [S::V; 2] {
        let spatial = self.shape.spatial;
        let mut lanes = [[C::ZERO; LANES]; 2];
        let x = self.x.planes(n, &self.channels);
        let x = &*x;
        for l in 0..self.channels.len().min(LANES) {
            let row = Row::new(&x[l * spatial..][..spatial]);
            let terms = Deviations::<T, SCALED> { row, scale: scale[l], mean: mean[l] };
            let sums = if spatial < LEAF { reduce_short(isa, &terms, spatial) } else { reduce(isa, &terms, spatial) };
            [lanes[0][l], lanes[1][l]] = sums;
        }
        [isa.load(&lanes[0]), isa.load(&lanes[1])]
    }

    fn largest(&self) -> [C; LANES] {
        let mut largest = [C::ZERO; LANES];
        for n in 0..self.shape.samples {
            let x = self.x.planes(n, &self.channels);
            for (plane, largest) in x.chunks_exact(self.shape.spatial).zip(&mut largest) {
                plane.iter().for_each(|x| keep_larger(largest, x.widen()));
            }
        }
        largest
    }

    fn lens(&self) -> (usize, usize) {
        (self.shape.samples, self.shape.spatial)
    }
}

/// Channels that lie side by side: `x` begins at the first of them, and its positions are `stride` apart.
pub(crate) struct Last<'a, T> {
    pub(crate) x: &'a [T],
    pub(crate) stride: usize,
    pub(crate) samples: usize,
    pub(crate) spatial: usize,
    pub(crate) channels: usize,
}

impl<T: Element> Last<'_, T> {
    /// The channels at position `at` of all samples' positions. Lanes beyond the channels hold anything.
    #[inline(always)]
    fn read<S: Isa<T::Compute>>(&self, isa: S, at: usize) -> S::V {
        read_columns(isa, self.x, at * self.stride, ahead(self.spatial, self.stride))
    }
}

/// Values of one sample's positions, from `start` on.
struct LastValues<'a, T: Element, const SCALED: bool> {
    planes: &'a Last<'a, T>,
    start: usize,
    scale: &'a [T::Compute; LANES],
}

struct LastDeviations<'a, T: Element, const SCALED: bool> {
    values: LastValues<'a, T, SCALED>,
    mean: &'a [T::Compute; LANES],
}

impl<C: Compute, T: Element<Compute = C>, const SCALED: bool> LastValues<'_, T, SCALED> {
    #[inline(always)]
    fn read<S: Isa<C>>(&self, isa: S, at: usize) -> S::V {
        let x = self.planes.read(isa, self.start + at);
        if SCALED { isa.mul(x, isa.load(self.scale)) } else { x }
    }
}

impl<C: Compute, T: Element<Compute = C>, const SCALED: bool> ColumnTerms<C, 1> for LastValues<'_, T, SCALED> {
    #[inline(always)]
    fn step<S: Isa<C>>(&self, isa: S, [sum]: [S::V; 1], at: usize) -> [S::V; 1] {
        [isa.add(sum, self.read(isa, at))]
    }
}

impl<C: Compute, T: Element<Compute = C>, const SCALED: bool> ColumnTerms<C, 2> for LastDeviations<'_, T, SCALED> {
    #[inline(always)]
    fn step<S: Isa<C>>(&self, isa: S, [s1, s2]: [S::V; 2], at: usize) -> [S::V; 2] {
        let d = isa.sub(self.values.read(isa, at), isa.load(self.mean));
        [isa.add(s1, d), isa.fma(d, d, s2)]
    }
}

impl<C: Compute, T: Element<Compute = C>> Channels<C> for Last<'_, T> {
    #[inline(always)]
    fn sum<S: Isa<C>, const SCALED: bool>(&self, isa: S, n: usize, scale: &[C; LANES]) -> S::V {
        let values = LastValues::<T, SCALED> { planes: self, start: n * self.spatial, scale };
        if self.spatial == 1 {
            return values.read(isa, 0); // -0 instead of +0, which a sum over samples from +0 does not tell apart
        }
        let [sum] = reduce_columns(isa, &values, self.spatial);
        sum
    }

    #[inline(always)]
    fn deviations<S: Isa<C>, const SCALED: bool>(
        &self,
        isa: S,
        n: usize,
        mean: &[C; LANES],
        scale: &[C; LANES],
    ) -> [S::V; 2] {
        let values = LastValues::<T, SCALED> { planes: self, start: n * self.spatial, scale };
        if self.spatial == 1 {
            let d = isa.sub(values.read(isa, 0), isa.load(mean));
            return [d, isa.mul(d, d)]; // as above; a square is its own fused sum with +0
        }
        reduce_columns(isa, &LastDeviations { values, mean }, self.spatial)
    }

    fn largest(&self) -> [C; LANES] {
        let mut largest = [C::ZERO; LANES];
        for x in self.x.chunks(self.stride).take(self.samples * self.spatial) {
            for (x, largest) in x.iter().take(self.channels).zip(&mut largest) {
                keep_larger(largest, x.widen());
            }
        }
        largest
    }

    fn lens(&self) -> (usize, usize) {
        (self.samples, self.spatial)
    }
}

/// The larger magnitude of the two; NaN where one is.
fn keep_larger<C: Compute>(largest: &mut C, x: C) {
    let x = x.magnitude();
    if x > *largest || x.nan() {
        *largest = x;
    }
}
