//! The sums of channels over the samples of a rank, in batch order.
//!
//! ```text
//! for each sample:  its plane of each channel, reduced in row order to a scalar or two
//! ```
//!
//! Some samples at a time, 32 channels are reduced together; then the samples' scalars are taken one after the other.

use std::ops::Range;

use crate::backward::planes::{Lanes, PlaneSums};
use crate::element::{Compute, Element};
use crate::isa::Isa;
use crate::isa::float_env::FloatEnv;
use crate::level::{Kernel, Level};
use crate::moments::{Channels, First, Last};
use crate::order::{Kind, LANES, Order, Sums};
use crate::planes::Shape;
use crate::shards::progress::{Round, Set};
use crate::slice::Slice;
use crate::stats::Stats;
use crate::stripes::Source;
use crate::threads::{self, Cpu, Job};

/// Scalars of the samples that are reduced before they are taken.
const SCALARS: usize = 1 << 16;

/// The sums of a round, of the channels of `sets`. The rank's first sample has number `first` in the batch.
pub(crate) fn sum_samples<T: Element>(
    cpu: &Cpu<'_>,
    x: &[T],
    shape: Shape,
    first: usize,
    (kind, columns): (Kind, usize),
    round: Round,
    sets: &[Set<T::Compute>],
) -> Sums<T::Compute> {
    let mut sums = Sums::new(Order::Batch, kind, columns, first);
    let Ok(level) = cpu.chosen_level() else { return sums };
    let of_channel = Values::new(shape, sets);
    let measure = Measure { level, x, shape, round, values: &of_channel };
    if round == Round::Largest {
        let largest: Vec<_> = windows(shape).map(|channels| measure.largest(channels)).collect();
        for (set, to) in sets.iter().zip(sums.leaf_mut()) {
            *to = largest[set.at / LANES][set.at % LANES];
        }
        sums.advance(shape.samples);
        return sums;
    }
    let channels: Vec<usize> = sets.iter().map(|set| set.at).collect();
    let fill = |samples: Range<usize>, channels: Range<usize>, to: &mut [T::Compute]| {
        measure.fill(samples, channels, to);
    };
    push_samples(cpu, shape, size_of::<T>(), &channels, &fill, &mut sums);
    sums
}

/// The sums of dy and of dy * x_hat of every channel.
pub(crate) fn correlate_samples<T: Element>(
    cpu: &Cpu<'_>,
    x: &[T],
    dy: Slice<'_>,
    shape: Shape,
    first: usize,
    stats: &[Stats<T::Compute>],
) -> Sums<T::Compute> {
    let mut sums = Sums::new(Order::Batch, Kind::Pair, shape.channels, first);
    let Ok(level) = cpu.chosen_level() else { return sums };
    let channels: Vec<usize> = (0..shape.channels).collect();
    let (sample, one) = (shape.sample(), Shape { samples: 1, ..shape });
    let fill = |samples: Range<usize>, channels: Range<usize>, to: &mut [T::Compute]| {
        let lanes = Lanes::new(&stats[channels.clone()]);
        for (n, to) in samples.zip(to.chunks_exact_mut(2 * LANES)) {
            let at = n * sample;
            let planes = PlaneSums { level, shape: one, x: &x[at..at + sample], dy: dy.part(at, sample) };
            let [sum, product] = planes.of_one(channels.clone(), &lanes);
            to[..LANES].copy_from_slice(&sum);
            to[LANES..].copy_from_slice(&product);
        }
    };
    push_samples(cpu, shape, 2 * size_of::<T>(), &channels, &fill, &mut sums);
    sums
}

/// Takes every sample's scalars. `fill` writes those of some samples and up to 32 channels, `[sample][sum][32]`;
/// `channels` says which are taken.
fn push_samples<C, F>(cpu: &Cpu<'_>, shape: Shape, size: usize, channels: &[usize], fill: &F, sums: &mut Sums<C>)
where
    C: Compute,
    F: Fn(Range<usize>, Range<usize>, &mut [C]) + Sync,
{
    let k = sums.extent().term().checked_div(channels.len()).unwrap_or(0);
    let mut starts: Vec<usize> = channels.iter().map(|channel| channel / LANES * LANES).collect();
    starts.dedup();
    // Channels that lie side by side in a window: the window, and their lanes.
    let runs: Vec<(usize, Range<usize>)> = channels
        .chunk_by(|left, right| left + 1 == *right && right % LANES != 0)
        .map(|run| {
            let (window, lane) = (starts.partition_point(|start| start + LANES <= run[0]), run[0] % LANES);
            (window, lane..lane + run.len())
        })
        .collect();
    let most = (SCALARS / (starts.len() * k * LANES).max(1)).max(1);
    let mut scalars = vec![C::ZERO; starts.len() * k * LANES * most.min(shape.samples)];
    let mut row = Vec::with_capacity(sums.extent().term());
    for first in (0..shape.samples).step_by(most) {
        let samples = first..shape.samples.min(first + most);
        let each = samples.len() * k * LANES; // of a window
        if each > 0 {
            let scalars = &mut scalars[..starts.len() * each];
            let job =
                WindowsJob { fill, samples: samples.clone(), starts: &starts, channels: shape.channels, each, scalars };
            threads::run(cpu, job, samples.len() * starts.len() * LANES * shape.spatial * size);
        }
        let _env = FloatEnv::standard();
        for n in 0..samples.len() {
            row.clear();
            for sum in 0..k {
                for (window, lanes) in &runs {
                    row.extend_from_slice(&scalars[window * each + (n * k + sum) * LANES..][lanes.clone()]);
                }
            }
            let (a, b) = row.split_at(sums.columns());
            sums.push(a, b);
        }
    }
}

/// Windows of channels to be reduced, over some samples.
struct WindowsJob<'a, F, C> {
    fill: &'a F,
    samples: Range<usize>,
    /// The first channel of each window.
    starts: &'a [usize],
    /// All there are.
    channels: usize,
    /// Scalars of a window.
    each: usize,
    scalars: &'a mut [C],
}

impl<C: Compute, F: Fn(Range<usize>, Range<usize>, &mut [C]) + Sync> Job for WindowsJob<'_, F, C> {
    fn units(&self) -> usize {
        self.starts.len()
    }

    fn split(self, units: usize) -> (Self, Self) {
        let WindowsJob { fill, samples, starts, channels, each, scalars } = self;
        let ((starts, starts_rest), (scalars, rest)) = (starts.split_at(units), scalars.split_at_mut(units * each));
        let first = WindowsJob { fill, samples: samples.clone(), starts, channels, each, scalars };
        (first, WindowsJob { fill, samples, starts: starts_rest, channels, each, scalars: rest })
    }

    fn run(&mut self) {
        let _env = FloatEnv::standard();
        for (start, to) in self.starts.iter().zip(self.scalars.chunks_exact_mut(self.each)) {
            let channels = *start..self.channels.min(start + LANES);
            (self.fill)(self.samples.clone(), channels, to);
        }
    }
}

/// Up to 32 channels at a time.
fn windows(shape: Shape) -> impl Iterator<Item = Range<usize>> {
    (0..shape.channels).step_by(LANES).map(move |start| start..shape.channels.min(start + LANES))
}

/// Scale and mean of every channel, 32 at a time; 1 and 0 of those that are not measured in this round.
struct Values<C> {
    scale: Vec<[C; LANES]>,
    mean: Vec<[C; LANES]>,
}

impl<C: Compute> Values<C> {
    fn new(shape: Shape, sets: &[Set<C>]) -> Self {
        let windows = shape.channels.div_ceil(LANES);
        let mut values = Values { scale: vec![[C::ONE; LANES]; windows], mean: vec![[C::ZERO; LANES]; windows] };
        for set in sets {
            values.scale[set.at / LANES][set.at % LANES] = set.scale;
            values.mean[set.at / LANES][set.at % LANES] = set.mean;
        }
        values
    }
}

/// Samples of x to be measured.
struct Measure<'a, T: Element> {
    level: Level,
    x: &'a [T],
    shape: Shape,
    round: Round,
    values: &'a Values<T::Compute>,
}

impl<T: Element> Measure<'_, T> {
    fn first(&self, channels: Range<usize>) -> First<'_, '_, T> {
        First { x: Source::Given(self.x, self.shape), shape: self.shape, channels }
    }

    fn last(&self, channels: Range<usize>) -> Last<'_, T> {
        let Shape { samples, channels: stride, spatial, .. } = self.shape;
        let x = self.x.get(channels.start..).unwrap_or_default();
        Last { x, stride, samples, spatial, channels: channels.len() }
    }

    fn fill(&self, samples: Range<usize>, channels: Range<usize>, to: &mut [T::Compute]) {
        let window = channels.start / LANES;
        let (scale, mean) = (&self.values.scale[window], &self.values.mean[window]);
        let deviates = self.round == Round::Deviations;
        if self.shape.last {
            let planes = &self.last(channels);
            T::Compute::enter(self.level, Scalars { planes, samples, scale, mean, deviates, to });
        } else {
            let planes = &self.first(channels);
            T::Compute::enter(self.level, Scalars { planes, samples, scale, mean, deviates, to });
        }
    }

    fn largest(&self, channels: Range<usize>) -> [T::Compute; LANES] {
        if self.shape.last { self.last(channels).largest() } else { self.first(channels).largest() }
    }
}

/// The scalars of each sample: the sum; or the dot and sum of deviations.
struct Scalars<'a, P, C> {
    planes: &'a P,
    samples: Range<usize>,
    scale: &'a [C; LANES],
    mean: &'a [C; LANES],
    deviates: bool,
    to: &'a mut [C],
}

impl<C: Compute, P: Channels<C>> Kernel<C> for Scalars<'_, P, C> {
    type Output = ();

    #[inline(always)]
    fn eval<S: Isa<C>>(self, isa: S) {
        let Scalars { planes, samples, scale, mean, deviates, to } = self;
        let to = to.as_chunks_mut::<LANES>().0;
        for i in 0..samples.end - samples.start {
            let n = samples.start + i;
            if deviates {
                let [sum, dot] = planes.deviations::<S, true>(isa, n, mean, scale);
                isa.store(dot, &mut to[2 * i]);
                isa.store(sum, &mut to[2 * i + 1]);
            } else {
                isa.store(planes.sum::<S, true>(isa, n, scale), &mut to[i]);
            }
        }
    }
}
