//! Some groups of one sample: their statistics, their sums, their dx.

use std::ops::Range;

use arrayvec::ArrayVec;

use crate::backward::planes::factors::{Columns, Factors, Output};
use crate::backward::planes::strewn::{Strewn, StrewnPairs, StrewnSums};
use crate::backward::planes::sums::{Lanes, PlaneSums};
use crate::channels::{TILE, Task};
use crate::element::{Compute, Element};
use crate::groups::{Gathered, NARROW, measure_group};
use crate::moments::{Last, measure};
use crate::order::LANES;
use crate::planes::Shape;
use crate::slice::{Slice, SliceMut};
use crate::stats::Stats;

/// Groups of a window at most.
pub(crate) const SETS: usize = 256;

/// Groups of one sample.
pub(crate) struct Window<'a, T: Element> {
    pub(crate) task: Task<'a, T::Compute>,
    /// Channels of a group.
    pub(crate) per: usize,
    /// Of x.
    pub(crate) shape: Shape,
    pub(crate) x: &'a [T],
    /// `None`: what dx holds.
    pub(crate) dy: Option<Slice<'a>>,
    /// The groups' channels, counted from the beginning of x.
    pub(crate) channels: Range<usize>,
    /// The first of them, as the parameters count.
    pub(crate) weights: usize,
}

impl<T: Element> Window<'_, T> {
    fn groups(&self) -> usize {
        self.channels.len() / self.per
    }

    /// The statistics of each group.
    pub(crate) fn measure(&self) -> ArrayVec<Stats<T::Compute>, SETS> {
        let Task { level, eps, .. } = self.task;
        let (per, spatial, stride) = (self.per, self.shape.spatial, self.shape.channels);
        let mut all = ArrayVec::new();
        if !self.shape.last {
            all.extend((0..self.groups()).map(|group| {
                let size = per * spatial;
                measure_group(level, &self.x[self.channels.start * spatial + group * size..][..size], eps)
            }));
        } else if per > 1 {
            all.extend((0..self.groups()).map(|group| {
                let x = &self.x[self.channels.start + group * per..];
                measure_group(level, Gathered { x, stride, spatial, channels: per }, eps)
            }));
        } else {
            for channels in windows(&self.channels) {
                let (x, mut stats) = (&self.x[channels.start..], [Stats::default(); LANES]);
                let stats = &mut stats[..channels.len()];
                measure(level, &Last { x, stride, samples: 1, spatial, channels: channels.len() }, eps, stats);
                all.extend(stats.iter().copied());
            }
        }
        all
    }

    fn sums<'s>(&'s self, own: Slice<'s>) -> PlaneSums<'s, T> {
        PlaneSums { level: self.task.level, shape: self.shape, x: self.x, dy: self.dy.unwrap_or(own) }
    }

    /// The sums of dy and of dy * x_hat over each plane. `own` is what dx holds.
    pub(crate) fn plane_sums(
        &self,
        own: Slice<'_>,
        stats: &[Stats<T::Compute>],
        [dbias, dweight]: [&mut [T::Compute]; 2],
    ) {
        for channels in windows(&self.channels) {
            let (from, n) = (channels.start - self.channels.start, channels.len());
            let of_channels: ArrayVec<_, LANES> = (from..from + n).map(|c| stats[c / self.per]).collect();
            let sums = self.sums(own).of_one(channels, &Lanes::new(&of_channels));
            dbias[from..from + n].copy_from_slice(&sums[0][..n]);
            dweight[from..from + n].copy_from_slice(&sums[1][..n]);
        }
    }

    /// What dx takes of each group: all but the weight. `own` is what dx holds.
    pub(crate) fn factors(&self, own: Slice<'_>, stats: &[Stats<T::Compute>]) -> ArrayVec<Factors<T::Compute>, SETS> {
        let count = T::Compute::from_count(self.per * self.shape.spatial);
        let factors = |stats: &Stats<T::Compute>, [sum, product]: [T::Compute; 2]| {
            let k2 = self.task.eps.times_q(product / count, stats);
            Factors { stats: *stats, weight: T::Compute::ONE, k1: sum / count, k2, factor: stats.inv }
        };
        if self.per > 1 {
            let sums = |group| self.group_sums(own, group, stats[group]);
            return (0..self.groups()).map(|group| factors(&stats[group], sums(group))).collect();
        }
        let mut all = ArrayVec::new();
        for channels in windows(&self.channels) {
            let (from, n) = (channels.start - self.channels.start, channels.len());
            let stats = &stats[from..from + n];
            let [sums, products] = self.sums(own).of_one(channels, &Lanes::weighted(stats, &self.weights(from, n)));
            all.extend((0..n).map(|l| factors(&stats[l], [sums[l], products[l]])));
        }
        all
    }

    /// The sums of g and of g * x_hat over one group of several channels.
    fn group_sums(&self, own: Slice<'_>, group: usize, stats: Stats<T::Compute>) -> [T::Compute; 2] {
        let Task { level, params, .. } = self.task;
        let (shape, first) = (self.shape, group * self.per);
        let strewn = |data| Strewn::new(data, shape, 0, self.channels.start + first);
        let (x, dy) = (strewn(T::slice(self.x)), strewn(self.dy.unwrap_or(own)));
        let offset = T::Compute::from_f64(params.offset);
        let weight = params.weight.map(|weight| (Strewn::of_channels(weight, shape, self.weights + first), offset));
        let pairs = StrewnPairs { x, dy, weight, stats, factor: T::Compute::ONE };
        T::Compute::enter(level, StrewnSums { pairs, len: self.per * shape.spatial })
    }

    /// The weights of up to 32 channels, the window's from number `from` on.
    fn weights(&self, from: usize, n: usize) -> ArrayVec<T::Compute, LANES> {
        let [mut weight, mut bias] = [[T::Compute::ONE; LANES]; 2];
        self.task.params.widen(self.weights + from, &mut weight[..n], &mut bias[..n]);
        weight.into_iter().take(n).collect()
    }

    /// The factors of up to 32 channels, the window's from number `from` on.
    fn of_channels(
        &self,
        groups: &[Factors<T::Compute>],
        from: usize,
        n: usize,
    ) -> ArrayVec<Factors<T::Compute>, LANES> {
        let weights = self.weights(from, n);
        (0..n).map(|i| Factors { weight: weights[i], ..groups[(from + i) / self.per] }).collect()
    }

    /// dx of all groups.
    pub(crate) fn write(
        &self,
        mut dx: SliceMut<'_>,
        groups: &[Factors<T::Compute>],
        output: &mut Output<T>,
        columns: &mut Columns<T::Compute>,
    ) {
        let (spatial, stride) = (self.shape.spatial, self.shape.channels);
        let is_wide = !self.shape.last && (spatial >= NARROW || self.per == 1);
        let repeat = if self.shape.last { 1 } else { spatial };
        let most = if is_wide { LANES } else { TILE / repeat };
        for first in self.channels.clone().step_by(most) {
            let some = first..self.channels.end.min(first + most);
            let from = some.start - self.channels.start;
            let (at, n) = if self.shape.last {
                (some.start, (spatial - 1) * stride + some.len())
            } else {
                (some.start * spatial, some.len() * spatial)
            };
            let (x, dy, dx) = (&self.x[at..at + n], self.dy.map(|dy| dy.part(at, n)), dx.reborrow().part(at, n));
            if is_wide {
                output.planes(x, dy, dx, spatial, &self.of_channels(groups, from, some.len()));
                continue;
            }
            columns.clear(if self.shape.last { stride } else { n });
            for window in windows(&some) {
                let from = window.start - self.channels.start;
                columns.extend(&self.of_channels(groups, from, window.len()), repeat);
            }
            if self.shape.last {
                columns.join_rows(spatial);
            }
            output.columns(x, dy, dx, columns);
        }
    }
}

/// Up to 32 channels at a time.
fn windows(channels: &Range<usize>) -> impl Iterator<Item = Range<usize>> + use<> {
    let Range { start, end } = *channels;
    (start..end).step_by(LANES).map(move |first| first..end.min(first + LANES))
}
