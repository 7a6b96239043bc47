//! The statistics of channels that lie side by side, with the bits of [`measure`]: by tables, where there are samples
//! for all threads, else some channels of all samples at a time.

use crate::channels::Task;
use crate::channels_last::MeasureJob;
use crate::element::{Compute, Element};
use crate::isa::Isa;
use crate::isa::float_env::FloatEnv;
use crate::layer_norm::centered;
use crate::level::{Kernel, Level};
use crate::moments::{Last, measure};
use crate::order::{ColumnTerms, LANES, reduce_columns};
use crate::planes::Shape;
use crate::stats::{Eps, Stats};
use crate::tables::{Samples, WIDE, ahead, is_table_worth_it, read_columns, sum_samples, unpack_wide};
use crate::threads::{self, Cpu};

/// The statistics of the channels from `first` on, under the range rule; x is read once and once more.
pub(crate) fn measure_side_by_side<T: Element>(
    task: &Task<'_, T::Compute>,
    cpu: &Cpu<'_>,
    x: &[T],
    first: usize,
    stats: &mut [Stats<T::Compute>],
) {
    let (Task { level, shape, eps, .. }, n) = (*task, stats.len());
    let bytes = shape.count() * n * size_of::<T>();
    if !is_table_worth_it(shape, n, bytes) {
        let job = MeasureJob { task: *task, per: 1, x, sets: first..first + n, stats };
        return threads::run(cpu, job, 2 * bytes);
    }
    let (x, samples) = (&x[first..], shape.samples);
    let mut sums = vec![T::Compute::ZERO; n];
    sum_samples((cpu, level), &Values { level, shape, x }, samples, bytes, &mut sums);
    let count = T::Compute::from_count(shape.count());
    let mut mean = vec![[[T::Compute::ZERO; LANES]; 2]; n.div_ceil(WIDE)];
    {
        let _env = FloatEnv::standard();
        for (mean, sum) in mean.as_flattened_mut().as_flattened_mut().iter_mut().zip(&sums) {
            *mean = *sum / count;
        }
    }
    let mut deviations = vec![T::Compute::ZERO; 2 * n];
    sum_samples((cpu, level), &Deviations { level, shape, x, mean: &mean }, samples, bytes, &mut deviations);
    let _env = FloatEnv::standard();
    T::Compute::enter(level, Conclude { sums: &sums, mean: &mean, deviations: &deviations, count, eps, stats });
    for (window, stats) in stats.chunks_mut(LANES).enumerate() {
        if stats.iter().any(|stats| stats.scale == T::Compute::ZERO) {
            let (x, stride, channels) = (&x[window * LANES..], shape.channels, stats.len());
            measure(level, &Last { x, stride, samples, spatial: shape.spatial, channels }, eps, stats);
        }
    }
}

/// The statistics from their sums; a channel that the range rule wants to see has scale 0 afterwards.
struct Conclude<'a, C> {
    sums: &'a [C],
    mean: &'a [[[C; LANES]; 2]],
    deviations: &'a [C],
    count: C,
    eps: Eps<C>,
    stats: &'a mut [Stats<C>],
}

impl<C: Compute> Kernel<C> for Conclude<'_, C> {
    type Output = ();

    #[inline(always)]
    fn eval<S: Isa<C>>(self, _: S) {
        let Conclude { sums, mean, deviations, count, eps, stats } = self;
        let mean = mean.as_flattened().as_flattened();
        let (s1, s2) = deviations.split_at(stats.len());
        for (l, stats) in stats.iter_mut().enumerate() {
            *stats = centered(mean[l], s1[l], s2[l], count);
            stats.inv = eps.inverse_root(stats.var);
            let again = !(sums[l].finite() & s2[l].finite()) | eps.is_small(stats.var);
            stats.scale = if again { C::ZERO } else { C::ONE };
        }
    }
}

/// The values of each plane.
struct Values<'a, T> {
    level: Level,
    shape: Shape,
    /// From the first channel that is wanted on.
    x: &'a [T],
}

impl<C: Compute, T: Element<Compute = C>> Samples<C, 1> for Values<'_, T> {
    fn sums(&self, n: usize, channel: usize) -> [[C; WIDE]; 1] {
        let Values { level, shape, x } = *self;
        C::enter(level, WideValues { x: &x[n * shape.sample() + channel..], shape })
    }
}

/// The deviations from the mean, and their squares.
struct Deviations<'a, T: Element> {
    level: Level,
    shape: Shape,
    x: &'a [T],
    mean: &'a [[[T::Compute; LANES]; 2]],
}

impl<C: Compute, T: Element<Compute = C>> Samples<C, 2> for Deviations<'_, T> {
    fn sums(&self, n: usize, channel: usize) -> [[C; WIDE]; 2] {
        let Deviations { level, shape, x, mean } = *self;
        let values = WideValues { x: &x[n * shape.sample() + channel..], shape };
        C::enter(level, WideDeviations { values, mean: &mean[channel / WIDE] })
    }
}

/// Up to [`WIDE`] channels of one sample, which x begins with.
struct WideValues<'a, T> {
    x: &'a [T],
    shape: Shape,
}

struct WideDeviations<'a, T: Element> {
    values: WideValues<'a, T>,
    mean: &'a [[T::Compute; LANES]; 2],
}

impl<T: Element> WideValues<'_, T> {
    #[inline(always)]
    fn read<S: Isa<T::Compute>>(&self, isa: S, at: usize) -> [S::V; 2] {
        let Shape { spatial, channels: stride, .. } = self.shape;
        let (start, ahead) = (at * stride, ahead(spatial, stride));
        [read_columns(isa, self.x, start, ahead), read_columns(isa, self.x, start + LANES, ahead)]
    }
}

impl<C: Compute, T: Element<Compute = C>> ColumnTerms<C, 2> for WideValues<'_, T> {
    #[inline(always)]
    fn step<S: Isa<C>>(&self, isa: S, [low, high]: [S::V; 2], at: usize) -> [S::V; 2] {
        let [x_low, x_high] = self.read(isa, at);
        [isa.add(low, x_low), isa.add(high, x_high)]
    }
}

impl<C: Compute, T: Element<Compute = C>> ColumnTerms<C, 4> for WideDeviations<'_, T> {
    #[inline(always)]
    fn step<S: Isa<C>>(&self, isa: S, [low, high, low2, high2]: [S::V; 4], at: usize) -> [S::V; 4] {
        let [x_low, x_high] = self.values.read(isa, at);
        let d_low = isa.sub(x_low, isa.load(&self.mean[0]));
        let d_high = isa.sub(x_high, isa.load(&self.mean[1]));
        let squares = [isa.fma(d_low, d_low, low2), isa.fma(d_high, d_high, high2)];
        [isa.add(low, d_low), isa.add(high, d_high), squares[0], squares[1]]
    }
}

impl<C: Compute, T: Element<Compute = C>> Kernel<C> for WideValues<'_, T> {
    type Output = [[C; WIDE]; 1];

    #[inline(always)]
    fn eval<S: Isa<C>>(self, isa: S) -> [[C; WIDE]; 1] {
        unpack_wide(isa, [reduce_columns(isa, &self, self.shape.spatial)])
    }
}

impl<C: Compute, T: Element<Compute = C>> Kernel<C> for WideDeviations<'_, T> {
    type Output = [[C; WIDE]; 2];

    #[inline(always)]
    fn eval<S: Isa<C>>(self, isa: S) -> [[C; WIDE]; 2] {
        let [low, high, low2, high2] = reduce_columns(isa, &self, self.values.shape.spatial);
        unpack_wide(isa, [[low, high], [low2, high2]])
    }
}
