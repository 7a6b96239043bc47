//! GroupNorm: each sample's channels in groups, each group with its mean taken off, divided by its standard
//! deviation. InstanceNorm: every channel a group.

use crate::backward::planes::{PlaneBackwardIo, add_samples, backward_groups};
use crate::channels::Task;
use crate::channels_last::ChannelsLast;
use crate::element::{Compute, Element, with_element};
use crate::error::Error;
use crate::groups::GroupsJob;
use crate::isa::float_env::FloatEnv;
use crate::params::Params;
use crate::planes::{PlaneIo, Planes, PlanesMut, Shape};
use crate::rules::check_groups;
use crate::slice::{Slice, SliceMut};
use crate::stats::{EpsOption, Stats};
use crate::threads::{self, Cpu, Job};

/// Normalizes each group of a sample's channels by its mean and standard deviation, then applies the
/// `weight` and `bias` of each channel.
///
/// ```text
/// mean[n,g]    = mean over channels c of group g and positions s of x[n,c,s]
/// var[n,g]     = mean over the same of (x[n,c,s] - mean[n,g])^2
/// x_hat[n,c,s] = (x[n,c,s] - mean[n,g]) / sqrt(var[n,g] + eps)
/// y[n,c,s]     = x_hat[n,c,s] * (weight[c] + weight_offset) + bias[c]
/// ```
///
/// # Shapes
///
/// | argument | shape | dtype | |
/// |---|---|---|---|
/// | `x` | `[samples, channels, spatial]` | `f32 f64 f16 bf16` | [channels first or last](Planes) |
/// | `weight`, `bias` | `[channels]` | their own; f64 with x of f64 alone | optional |
/// | `y` | as `x`, in the same layout | its own; f64 with f64 alone | overwritten |
/// | `stats` | `[samples, groups]` | [`Stats`] of the compute type | optional |
///
/// # Precision
///
/// Computed in f32 (f64 where x is f64) in the [canonical order](crate#the-order) over a group's elements,
/// channel by channel, in either layout; in two passes of which the second corrects the mean of the first.
/// y is rounded once. Groups whose sums overflow or vanish are computed a second time, scaled by a power of
/// two. The same bits on every CPU, thread count and layout. `eps` is inside the root and 1e-5 by default, as
/// PyTorch's.
///
/// # Errors
///
/// An [`Error`] where the groups do not divide the channels, or lengths, types, layouts or options do not
/// fit one another; nothing is written then.
///
/// # Example
///
/// ```
/// use isonorm::{GroupNorm, Planes, PlanesMut};
/// let x = [1.0f32, 3.0, 5.0, 7.0]; // one sample, 4 channels, 1 position
/// let mut y = [0.0f32; 4];
/// let norm = GroupNorm::new(2, 4).eps(0.0).weight(&[1.0f32, 1.0, 2.0, 2.0]);
/// norm.forward(Planes::channels_first(&x, 4, 1), PlanesMut::channels_first(&mut y, 4, 1))?;
/// assert_eq!(y, [-1.0, 1.0, -2.0, 2.0]);
/// # Ok::<(), isonorm::Error>(())
/// ```
///
/// Source: Wu & He, *Group Normalization*, 2018. arXiv:1803.08494
#[derive(Clone, Copy, Debug)]
pub struct GroupNorm<'a> {
    groups: usize,
    channels: usize,
    eps: EpsOption,
    params: Params<'a>,
    cpu: Cpu<'a>,
}

/// Normalizes each plane by its mean and standard deviation, then applies the `weight` and `bias` of its
/// channel: [`GroupNorm`] with as many groups as channels.
///
/// ```text
/// mean[n,c]    = mean_s(x[n,c,s])
/// var[n,c]     = mean_s((x[n,c,s] - mean[n,c])^2)
/// x_hat[n,c,s] = (x[n,c,s] - mean[n,c]) / sqrt(var[n,c] + eps)
/// y[n,c,s]     = x_hat[n,c,s] * (weight[c] + weight_offset) + bias[c]
/// ```
///
/// # Shapes
///
/// As [`GroupNorm`](GroupNorm#shapes); `stats` is `[samples, channels]`.
///
/// # Precision
///
/// As [`GroupNorm`](GroupNorm#precision). The statistics are those of each sample, in training and
/// evaluation alike; running statistics belong to [`BatchNorm`](crate::BatchNorm).
///
/// # Errors
///
/// As [`GroupNorm`](GroupNorm#errors).
///
/// # Example
///
/// ```
/// use isonorm::{InstanceNorm, Planes, PlanesMut};
/// let x = [1.0f32, 10.0, 3.0, 30.0]; // one sample, 2 positions of 2 channels
/// let mut y = [0.0f32; 4];
/// let norm = InstanceNorm::new(2).eps(0.0);
/// norm.forward(Planes::channels_last(&x, 2, 2), PlanesMut::channels_last(&mut y, 2, 2))?;
/// assert_eq!(y, [-1.0, -1.0, 1.0, 1.0]);
/// # Ok::<(), isonorm::Error>(())
/// ```
///
/// Source: Ulyanov, Vedaldi & Lempitsky, *Instance Normalization: The Missing Ingredient for Fast
/// Stylization*, 2016. arXiv:1607.08022
#[derive(Clone, Copy, Debug)]
pub struct InstanceNorm<'a>(GroupNorm<'a>);

impl<'a> GroupNorm<'a> {
    /// `groups` groups of `channels` channels, eps 1e-5, no weight, no bias.
    pub fn new(groups: usize, channels: usize) -> Self {
        GroupNorm { groups, channels, eps: EpsOption::inside(1e-5), params: Params::default(), cpu: Cpu::new() }
    }
    /// Added to the variance; rounded to the compute type first.
    pub fn eps(mut self, eps: f64) -> Self {
        self.eps.value = eps;
        self
    }
    /// eps outside the root: `(x - mean) / (std + eps)`.
    pub fn eps_outside(mut self) -> Self {
        self.eps.outside = true;
        self
    }
    /// One factor for each channel.
    pub fn weight(mut self, weight: impl Into<Slice<'a>>) -> Self {
        self.params.weight = Some(weight.into());
        self
    }
    /// One summand for each channel.
    pub fn bias(mut self, bias: impl Into<Slice<'a>>) -> Self {
        self.params.bias = Some(bias.into());
        self
    }
    /// Added to every weight in the compute type: 1 for weights stored as distances from 1.
    pub fn weight_offset(mut self, offset: f64) -> Self {
        self.params.offset = offset;
        self
    }
    /// Where it runs: level, threads, pool.
    pub fn on(mut self, cpu: Cpu<'a>) -> Self {
        self.cpu = cpu;
        self
    }

    /// x to y; [`apply`](Self::apply) has the other forms.
    pub fn forward(&self, x: Planes<'_>, y: PlanesMut<'_>) -> Result<(), Error> {
        self.apply(PlaneIo::new(x, y))
    }

    /// In place, saving statistics: whatever `io` says.
    pub fn apply(&self, io: PlaneIo<'_>) -> Result<(), Error> {
        let (groups, channels, dtype) = (self.groups, self.channels, io.dtype());
        check_groups(groups, channels)?;
        let shape = io.shape(channels)?;
        self.params.check(channels, "channel", dtype)?;
        io.check_stats(shape.samples * groups, "group of each sample")?;
        with_element!(dtype, T => self.apply_typed::<T>(shape, io))
    }

    /// The gradients of x, and of weight and bias where `io` asks for them.
    ///
    /// ```text
    /// g[n,c,s]   = dy[n,c,s] * w[c]
    /// dx[n,c,s]  = (g[n,c,s] - mean(g) - x_hat[n,c,s] * mean(g * x_hat)) / sqrt(var[n,g] + eps)
    /// dweight[c] = sum over n, s of dy[n,c,s] * x_hat[n,c,s]
    /// dbias[c]   = sum over n, s of dy[n,c,s]
    /// ```
    ///
    /// `w` is the weight with its offset, the means are over the group; with eps outside the root the last one has the
    /// factor (root + eps) / root. Sums are in the compute type and in a fixed order, and rounded once. The same bits on
    /// every CPU, thread count and layout, with saved statistics and without.
    ///
    /// ```
    /// use isonorm::{GroupNorm, PlaneBackwardIo, Planes, PlanesMut};
    /// let (x, dy) = ([1.0f32, 3.0, 1.0, 3.0], [1.0f32, 1.0, 2.0, 0.0]); // one sample, 4 channels
    /// let (mut dx, mut dweight) = ([0.0f32; 4], [0.0f32; 4]);
    /// let planes = |data| Planes::channels_first(data, 4, 1);
    /// let io = PlaneBackwardIo::new(planes(&x), planes(&dy), PlanesMut::channels_first(&mut dx, 4, 1));
    /// GroupNorm::new(1, 4).eps(0.0).backward(io.dweight(&mut dweight))?;
    /// assert_eq!(dx, [-0.5, 0.5, 0.5, -0.5]);
    /// assert_eq!(dweight, [-1.0, 1.0, -2.0, 0.0]);
    /// # Ok::<(), isonorm::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// An [`Error`] where lengths, types, layouts or options do not fit one another; nothing is written then.
    pub fn backward(&self, io: PlaneBackwardIo<'_>) -> Result<(), Error> {
        let (groups, channels, dtype) = (self.groups, self.channels, io.dtype());
        check_groups(groups, channels)?;
        let shape = io.shape(channels)?;
        self.params.check(channels, "channel", dtype)?;
        io.check(channels, shape.samples * groups, "group of each sample")?;
        io.check_partial(channels, shape.samples)?;
        with_element!(dtype, T => self.backward_typed::<T>(shape, io))
    }

    /// What a call computes, with a stream where nothing is done in place.
    fn task<T: Element>(&self, mut shape: Shape, in_place: bool) -> Result<Task<'a, T::Compute>, Error> {
        let (level, params) = (self.cpu.chosen_level()?, self.params);
        let _env = FloatEnv::standard();
        let eps = self.eps.rounded::<T::Compute>()?;
        // A group of the only position, or of all that one channel has, is contiguous in either layout.
        shape.last &= shape.spatial > 1 && shape.channels > 1;
        let stream = !(in_place || shape.is_empty()) && threads::is_beyond_the_caches(shape.bytes(size_of::<T>()) / 2);
        Ok(Task { level, shape, eps, params, stream, rounded: None })
    }

    fn backward_typed<T: Element>(&self, shape: Shape, mut io: PlaneBackwardIo<'_>) -> Result<(), Error> {
        let task = Task { rounded: io.rounded(), ..self.task::<T>(shape, io.dy.is_none())? };
        if shape.is_empty() {
            match &mut io.partial {
                Some(partial) => add_samples::<T::Compute>(partial, &[], &mut io.gradients),
                None => io.gradients.clear(),
            }
        } else {
            backward_groups::<T>(task, &self.cpu, self.groups, io);
        }
        Ok(())
    }

    fn apply_typed<T: Element>(&self, shape: Shape, io: PlaneIo<'_>) -> Result<(), Error> {
        let GroupNorm { groups, cpu, .. } = *self;
        let task = self.task::<T>(shape, io.x.is_none())?;
        if shape.is_empty() {
            return Ok(());
        }
        let shape = task.shape;
        let (per, bytes) = (shape.channels / groups, shape.bytes(size_of::<T>()));
        let x = io.x.and_then(|x| T::of(&x.data));
        let stats = io.stats.and_then(T::Compute::stats);
        if shape.last {
            SamplesJob { task, cpu, per, x, y: io.y.data, stats }.start(bytes);
        } else {
            let rows = 0..shape.samples * groups;
            threads::run(&cpu, GroupsJob { task, groups, rows, x, y: io.y.data, stats }, bytes);
        }
        Ok(())
    }
}

impl<'a> InstanceNorm<'a> {
    /// `channels` channels, eps 1e-5, no weight, no bias.
    pub fn new(channels: usize) -> Self {
        InstanceNorm(GroupNorm::new(channels, channels))
    }
    /// Added to the variance; rounded to the compute type first.
    pub fn eps(self, eps: f64) -> Self {
        InstanceNorm(self.0.eps(eps))
    }
    /// eps outside the root: `(x - mean) / (std + eps)`.
    pub fn eps_outside(self) -> Self {
        InstanceNorm(self.0.eps_outside())
    }
    /// One factor for each channel.
    pub fn weight(self, weight: impl Into<Slice<'a>>) -> Self {
        InstanceNorm(self.0.weight(weight))
    }
    /// One summand for each channel.
    pub fn bias(self, bias: impl Into<Slice<'a>>) -> Self {
        InstanceNorm(self.0.bias(bias))
    }
    /// Added to every weight in the compute type: 1 for weights stored as distances from 1.
    pub fn weight_offset(self, offset: f64) -> Self {
        InstanceNorm(self.0.weight_offset(offset))
    }
    /// Where it runs: level, threads, pool.
    pub fn on(self, cpu: Cpu<'a>) -> Self {
        InstanceNorm(self.0.on(cpu))
    }

    /// x to y; [`apply`](Self::apply) has the other forms.
    pub fn forward(&self, x: Planes<'_>, y: PlanesMut<'_>) -> Result<(), Error> {
        self.0.forward(x, y)
    }

    /// In place, saving statistics: whatever `io` says.
    pub fn apply(&self, io: PlaneIo<'_>) -> Result<(), Error> {
        self.0.apply(io)
    }

    /// The gradients: [`GroupNorm::backward`] with as many groups as channels.
    pub fn backward(&self, io: PlaneBackwardIo<'_>) -> Result<(), Error> {
        self.0.backward(io)
    }
}

/// Samples whose channels lie side by side.
struct SamplesJob<'a, T: Element> {
    task: Task<'a, T::Compute>,
    cpu: Cpu<'a>,
    per: usize,
    x: Option<&'a [T]>,
    y: SliceMut<'a>,
    stats: Option<&'a mut [Stats<T::Compute>]>,
}

impl<T: Element> SamplesJob<'_, T> {
    /// Threads share the samples, or the groups of the only one.
    fn start(mut self, bytes: usize) {
        if self.task.shape.samples == 1 {
            return self.run();
        }
        let cpu = self.cpu;
        self.cpu = cpu.threads(1);
        threads::run(&cpu, self, bytes);
    }
}

impl<T: Element> Job for SamplesJob<'_, T> {
    fn units(&self) -> usize {
        self.y.len() / self.task.shape.sample()
    }

    fn split(self, units: usize) -> (Self, Self) {
        let at = units * self.task.shape.sample();
        let SamplesJob { task, cpu, per, x, y, stats } = self;
        let (y, y_rest) = y.split(at);
        let (x, x_rest) = x.map(|x| x.split_at(at)).unzip();
        let sets = units * (task.shape.channels / per);
        let (stats, stats_rest) = stats.map(|stats| stats.split_at_mut(sets)).unzip();
        let first = SamplesJob { task, cpu, per, x, y, stats };
        (first, SamplesJob { task, cpu, per, x: x_rest, y: y_rest, stats: stats_rest })
    }

    fn run(&mut self) {
        let size = self.task.shape.sample();
        let sets = self.task.shape.channels / self.per;
        let task = Task { shape: Shape { samples: 1, ..self.task.shape }, ..self.task };
        for n in 0..self.units() {
            let x = self.x.map(|x| &x[n * size..(n + 1) * size]);
            let y = self.y.reborrow().part(n * size, size);
            let mut stats = self.stats.as_deref_mut().map(|stats| &mut stats[n * sets..(n + 1) * sets]);
            ChannelsLast { task, cpu: self.cpu, per: self.per, x, y }.run(|first, found| {
                if let Some(stats) = &mut stats {
                    stats[first..first + found.len()].copy_from_slice(found);
                }
            });
        }
    }
}
