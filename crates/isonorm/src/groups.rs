//! Groups of channels as rows: contiguous where planes are, gathered where channels lie side by side.

use std::ops::Range;

use crate::channels::{Elements, Output, Source, TILE, Task, WINDOW};
use crate::element::{Compute, Element};
use crate::forward::RowNorm;
use crate::isa::Isa;
use crate::isa::float_env::FloatEnv;
use crate::layer_norm::{Layer, centered};
use crate::level::{Kernel, Level};
use crate::order::{LANES, Terms, reduce};
use crate::slice::SliceMut;
use crate::stats::{Eps, Stats, largest};
use crate::threads::Job;

/// Planes of fewer elements are not worth a kernel's visit each.
pub(crate) const NARROW: usize = 64;

/// A group's elements in logical order, however they lie in memory.
pub(crate) trait Group<C: Compute>: Copy {
    /// As [`RowNorm::measure`].
    fn measure<S: Isa<C>, const SCALED: bool>(&self, isa: S, scale: C) -> (Stats<C>, bool);
    /// The largest magnitude; NaN where there is one.
    fn largest(&self) -> C;
}

/// A group's statistics, under the range rule.
pub(crate) fn measure_group<C: Compute, G: Group<C>>(level: Level, group: G, eps: Eps<C>) -> Stats<C> {
    let (stats, again) = C::enter(level, Measure::<C, G, false> { group, eps, scale: C::ONE });
    if !again {
        return stats;
    }
    let scale = eps.scale(group.largest());
    if scale == C::ONE {
        return stats;
    }
    C::enter(level, Measure::<C, G, true> { group, eps: eps.scaled(scale), scale }).0
}

/// One computation of the statistics, of `x * scale`; and whether the range rule wants another.
struct Measure<C, G, const SCALED: bool> {
    group: G,
    eps: Eps<C>,
    scale: C,
}

impl<C: Compute, G: Group<C>, const SCALED: bool> Kernel<C> for Measure<C, G, SCALED> {
    type Output = (Stats<C>, bool);

    #[inline(always)]
    fn eval<S: Isa<C>>(self, isa: S) -> (Stats<C>, bool) {
        let (mut stats, out_of_range) = self.group.measure::<S, SCALED>(isa, self.scale);
        stats.inv = self.eps.inverse_root(stats.var);
        stats.scale = self.scale;
        (stats, out_of_range | self.eps.is_small(stats.var))
    }
}

impl<C: Compute, T: Element<Compute = C>> Group<C> for &[T] {
    #[inline(always)]
    fn measure<S: Isa<C>, const SCALED: bool>(&self, isa: S, scale: C) -> (Stats<C>, bool) {
        Layer::measure::<C, S, T, SCALED>(isa, self, scale)
    }

    fn largest(&self) -> C {
        largest(self)
    }
}

/// The channels of a group that lie side by side, as a row: channel by channel.
#[derive(Clone, Copy)]
pub(crate) struct Gathered<'a, T> {
    /// From the group's first channel at the first position on.
    pub(crate) x: &'a [T],
    /// From position to position.
    pub(crate) stride: usize,
    pub(crate) spatial: usize,
    pub(crate) channels: usize,
}

impl<T: Element> Gathered<'_, T> {
    fn len(&self) -> usize {
        self.channels * self.spatial
    }

    /// Elements `32 * at..`, of which the first `n` exist; +0 for the others.
    #[inline(always)]
    fn read<S: Isa<T::Compute>>(&self, isa: S, at: usize, n: usize) -> S::V {
        let mut chunk = [T::default(); LANES];
        let (mut channel, mut position) = (at * LANES / self.spatial, at * LANES % self.spatial);
        let mut rest = &mut chunk[..n];
        while !rest.is_empty() {
            let run = rest.len().min(self.spatial - position);
            let (now, later) = rest.split_at_mut(run);
            let from = &self.x[position * self.stride + channel..];
            for (i, to) in now.iter_mut().enumerate() {
                *to = from[i * self.stride];
            }
            (rest, channel, position) = (later, channel + 1, 0);
        }
        T::load(isa, &chunk)
    }
}

/// `x`, gathered.
struct GatheredValues<'a, T: Element, const SCALED: bool>(Gathered<'a, T>, T::Compute);

/// `x - mean`, gathered, and its square.
struct GatheredDeviations<'a, T: Element, const SCALED: bool>(GatheredValues<'a, T, SCALED>, T::Compute);

impl<C: Compute, T: Element<Compute = C>, const SCALED: bool> GatheredValues<'_, T, SCALED> {
    #[inline(always)]
    fn read<S: Isa<C>>(&self, isa: S, at: usize, n: usize) -> S::V {
        let x = self.0.read(isa, at, n);
        if SCALED { isa.mul(x, isa.splat(self.1)) } else { x }
    }
}

impl<C: Compute, T: Element<Compute = C>, const SCALED: bool> Terms<C, 1> for GatheredValues<'_, T, SCALED> {
    #[inline(always)]
    fn step<S: Isa<C>>(&self, isa: S, [sum]: [S::V; 1], at: usize, n: usize) -> [S::V; 1] {
        [isa.add(sum, self.read(isa, at, n))]
    }
}

impl<C: Compute, T: Element<Compute = C>, const SCALED: bool> Terms<C, 2> for GatheredDeviations<'_, T, SCALED> {
    #[inline(always)]
    fn step<S: Isa<C>>(&self, isa: S, [s1, s2]: [S::V; 2], at: usize, n: usize) -> [S::V; 2] {
        let d = isa.sub(self.0.read(isa, at, n), isa.splat(self.1));
        [isa.add(s1, d), isa.fma(d, d, s2)]
    }
}

impl<C: Compute, T: Element<Compute = C>> Group<C> for Gathered<'_, T> {
    #[inline(always)]
    fn measure<S: Isa<C>, const SCALED: bool>(&self, isa: S, scale: C) -> (Stats<C>, bool) {
        let (len, count) = (self.len(), C::from_count(self.len()));
        let values = GatheredValues::<T, SCALED>(*self, scale);
        let [sum] = reduce(isa, &values, len);
        let mean = sum / count;
        let [s1, s2] = reduce(isa, &GatheredDeviations(values, mean), len);
        (centered(mean, s1, s2, count), !(sum.finite() & s2.finite()))
    }

    fn largest(&self) -> C {
        let mut max = C::ZERO;
        for x in self.x.chunks(self.stride).take(self.spatial) {
            let row = largest(&x[..self.channels]);
            if row > max || row.nan() {
                max = row;
            }
            if max.nan() {
                break;
            }
        }
        max
    }
}

/// Rows that are measured one after the other.
struct MeasureRows<'a, T: Element> {
    x: &'a [T],
    hidden: usize,
    eps: Eps<T::Compute>,
    stats: &'a mut [Stats<T::Compute>],
}

impl<C: Compute, T: Element<Compute = C>> Kernel<C> for MeasureRows<'_, T> {
    /// Whether the range rule wants to see a row: those of scale 0.
    type Output = bool;

    #[inline(always)]
    fn eval<S: Isa<C>>(self, isa: S) -> bool {
        let mut any = false;
        for (row, stats) in self.x.chunks_exact(self.hidden).zip(self.stats) {
            let (found, out_of_range) = Layer::measure::<C, S, T, false>(isa, row, C::ONE);
            let inv = self.eps.inverse_root(found.var);
            let again = out_of_range | self.eps.is_small(found.var);
            *stats = Stats { inv, scale: if again { C::ZERO } else { C::ONE }, ..found };
            any |= again;
        }
        any
    }
}

/// Rows of a block at most.
const BLOCK: usize = 16;
/// Bytes of a block: it stays in the nearest caches from its measurement on.
const BLOCK_BYTES: usize = 64 << 10;

/// Contiguous groups, from `rows.start` on: row r is group `r % groups` of sample `r / groups`.
pub(crate) struct GroupsJob<'a, T: Element> {
    pub(crate) task: Task<'a, T::Compute>,
    pub(crate) groups: usize,
    pub(crate) rows: Range<usize>,
    /// `None`: x is what y holds.
    pub(crate) x: Option<&'a [T]>,
    pub(crate) y: SliceMut<'a>,
    pub(crate) stats: Option<&'a mut [Stats<T::Compute>]>,
}

/// Weights and biases of a row's elements, where planes are narrow.
struct Spread<C> {
    weight: [C; TILE],
    bias: [C; TILE],
    /// The channels they belong to.
    channels: Range<usize>,
}

impl<C: Compute> Spread<C> {
    /// Those of `channels`, each `times` times; where they fit, all channels' are kept for the rows to come.
    fn of(&mut self, task: &Task<'_, C>, channels: Range<usize>, times: usize) -> (&[C], &[C]) {
        let all = 0..task.shape.channels;
        let wanted = if all.len() * times <= TILE { all } else { channels.clone() };
        if self.channels != wanted {
            let n = wanted.len();
            task.params.widen(wanted.start, &mut self.weight[..n], &mut self.bias[..n]);
            for i in (0..n).rev() {
                let (weight, bias) = (self.weight[i], self.bias[i]);
                self.weight[i * times..(i + 1) * times].fill(weight);
                self.bias[i * times..(i + 1) * times].fill(bias);
            }
            self.channels = wanted;
        }
        let first = (channels.start - self.channels.start) * times;
        let elements = first..first + channels.len() * times;
        (&self.weight[elements.clone()], &self.bias[elements])
    }
}

impl<T: Element> GroupsJob<'_, T> {
    /// Channels of a group.
    fn per(&self) -> usize {
        self.task.shape.channels / self.groups
    }

    fn hidden(&self) -> usize {
        self.per() * self.task.shape.spatial
    }

    /// Statistics of the rows of `x`, under the range rule.
    fn measure(&self, x: &[T], stats: &mut [Stats<T::Compute>]) {
        let Task { level, eps, .. } = self.task;
        let hidden = self.hidden();
        if T::Compute::enter(level, MeasureRows { x, hidden, eps, stats: &mut *stats }) {
            for (row, stats) in x.chunks_exact(hidden).zip(stats) {
                if stats.scale == T::Compute::ZERO {
                    *stats = measure_group(level, row, eps);
                }
            }
        }
    }

    /// Writes elements `at..at + n` of the job's, planes of the given channels with these statistics.
    fn planes(&mut self, output: &mut Output<T>, at: usize, channels: Range<usize>, stats: &[Stats<T::Compute>]) {
        let spatial = self.task.shape.spatial;
        let source = Source::Given { stats, first: channels.start, per: channels.len() / stats.len() };
        for channel in channels.clone().step_by(WINDOW) {
            let end = (channel + WINDOW).min(channels.end);
            let values = self.task.values(source, channel..end);
            let (at, n) = (at + (channel - channels.start) * spatial, (end - channel) * spatial);
            output.planes(self.x.map(|x| &x[at..at + n]), self.y.reborrow().part(at, n), spatial, &values);
        }
    }

    /// Writes one row where planes are narrow: with the weight and bias of each element.
    fn elements(
        &mut self,
        output: &mut Output<T>,
        spread: &mut Spread<T::Compute>,
        at: usize,
        channels: Range<usize>,
        stats: Stats<T::Compute>,
    ) {
        let spatial = self.task.shape.spatial;
        let most = TILE / spatial;
        for channel in channels.clone().step_by(most) {
            let some = channel..(channel + most).min(channels.end);
            let (at, n) = (at + (channel - channels.start) * spatial, some.len() * spatial);
            let (weight, bias) = spread.of(&self.task, some, spatial);
            let elements = Elements { stats, weight, bias };
            output.elements(self.x.map(|x| &x[at..at + n]), self.y.reborrow().part(at, n), &elements);
        }
    }
}

impl<T: Element> Job for GroupsJob<'_, T> {
    fn units(&self) -> usize {
        self.rows.len()
    }

    fn split(self, units: usize) -> (Self, Self) {
        let at = units * self.hidden();
        let GroupsJob { task, groups, rows, x, y, stats } = self;
        let (y, y_rest) = y.split(at);
        let (x, x_rest) = x.map(|x| x.split_at(at)).unzip();
        let (stats, stats_rest) = stats.map(|stats| stats.split_at_mut(units)).unzip();
        let middle = rows.start + units;
        let first = GroupsJob { task, groups, rows: rows.start..middle, x, y, stats };
        (first, GroupsJob { task, groups, rows: middle..rows.end, x: x_rest, y: y_rest, stats: stats_rest })
    }

    fn run(&mut self) {
        let _env = FloatEnv::standard();
        let (hidden, per, groups) = (self.hidden(), self.per(), self.groups);
        let most = (BLOCK_BYTES / (hidden * size_of::<T>())).clamp(1, BLOCK);
        let mut output = Output::<T>::new(&self.task);
        let [weight, bias] = [[T::Compute::ZERO; TILE]; 2];
        let mut spread = Spread { weight, bias, channels: 0..0 };
        let mut row = self.rows.start;
        while row < self.rows.end {
            let group = row % groups;
            let n = most.min(groups - group).min(self.rows.end - row); // of one sample
            let (i, at) = (row - self.rows.start, (row - self.rows.start) * hidden);
            let mut stats = [Stats::default(); BLOCK];
            let stats = &mut stats[..n];
            let Some(x) = self.x.or_else(|| T::of(&self.y.as_slice())) else { return };
            self.measure(&x[at..at + n * hidden], stats);
            if let Some(saved) = &mut self.stats {
                saved[i..i + n].copy_from_slice(stats);
            }
            if per == 1 || self.task.shape.spatial >= NARROW {
                self.planes(&mut output, at, group * per..(group + n) * per, stats);
            } else {
                for (i, stats) in stats.iter().enumerate() {
                    let channels = (group + i) * per..(group + i + 1) * per;
                    self.elements(&mut output, &mut spread, at + i * hidden, channels, *stats);
                }
            }
            row += n;
        }
        output.finish();
    }
}
