//! BatchNorm: each channel with its mean over the batch taken off, divided by its standard deviation.

use crate::backward::planes::{PlaneBackwardIo, backward_evaluate, backward_train};
use crate::channels::{Source, Task, WINDOW};
use crate::channels_first::{PlanesJob, TrainJob};
use crate::channels_last::ChannelsLast;
use crate::columns::ColumnsJob;
use crate::element::{Compute, DType, Element, with_element};
use crate::error::Error;
use crate::groups::NARROW;
use crate::isa::float_env::FloatEnv;
use crate::params::{Params, check_param};
use crate::planes::{PlaneIo, Shape};
use crate::running::{Running, Update};
use crate::slice::{Slice, SliceMut};
use crate::stats::{EpsOption, Stats};
use crate::stripes::Stripes;
use crate::threads::{self, Cpu};

mod shard;

pub use shard::BatchShard;

/// Samples from which the values of narrow planes are worth laying out as columns.
const BATCH: usize = 4;

/// Channels whose statistics training holds at once: enough of small planes to be worth several threads.
const HELD: usize = 512;

/// Normalizes each channel by its mean and standard deviation over the batch (in training) or by running
/// statistics (in evaluation), then applies the `weight` and `bias` of the channel.
///
/// ```text
/// mean[c]      = mean over samples n and positions s of x[n,c,s]          running_mean[c] in evaluation
/// var[c]       = mean over the same of (x[n,c,s] - mean[c])^2             running_var[c] in evaluation
/// x_hat[n,c,s] = (x[n,c,s] - mean[c]) / sqrt(var[c] + eps)
/// y[n,c,s]     = x_hat[n,c,s] * (weight[c] + weight_offset) + bias[c]
///
/// running_mean = momentum * mean + (1 - momentum) * running_mean          in training
/// running_var  = momentum * var * count / (count - 1) + (1 - momentum) * running_var
/// ```
///
/// # Shapes
///
/// | argument | shape | dtype | |
/// |---|---|---|---|
/// | `x` | `[samples, channels, spatial]` | `f32 f64 f16 bf16` | [channels first or last](crate::Planes) |
/// | `weight`, `bias` | `[channels]` | their own; f64 with x of f64 alone | optional |
/// | running mean, variance | `[channels]` | their own; f64 with x of f64 alone | optional in training |
/// | `y` | as `x`, in the same layout | its own; f64 with f64 alone | overwritten |
/// | `stats` | `[channels]` | [`Stats`] of the compute type | optional |
///
/// # Precision
///
/// Computed in f32 (f64 where x is f64). Each sample's plane is summed in the [canonical
/// order](crate#the-order), then the samples' sums in leaves of 16 and a binary tree; in two passes of which
/// the second corrects the mean of the first. y and the running statistics are rounded once. In training,
/// channels whose sums overflow or vanish are computed a second time, scaled by a power of two. The same
/// bits on every CPU, thread count and layout. `eps` is inside the root and 1e-5 by default, momentum is 0.1,
/// and the running variance is the unbiased one, as PyTorch's.
///
/// # Errors
///
/// An [`Error`] where lengths, types, layouts or options do not fit one another, and in training where a
/// channel has a single value; nothing is written then. An empty batch changes nothing.
///
/// # Example
///
/// ```
/// use isonorm::{BatchNorm, PlaneIo, Planes, PlanesMut, Running};
/// let x = [1.0f32, 10.0, 3.0, 30.0]; // 2 samples of 2 channels
/// let (mut y, mut mean, mut var) = ([0.0f32; 4], [0.0f32; 2], [1.0f32; 2]);
/// let norm = BatchNorm::new(2).eps(0.0).momentum(0.5);
/// let io = PlaneIo::new(Planes::channels_last(&x, 2, 1), PlanesMut::channels_last(&mut y, 2, 1));
/// norm.train(io, Some(Running::new(&mut mean, &mut var)))?;
/// assert_eq!(y, [-1.0, -1.0, 1.0, 1.0]);
/// assert_eq!((mean, var), ([1.0, 10.0], [1.5, 100.5]));
///
/// let io = PlaneIo::new(Planes::channels_last(&x, 2, 1), PlanesMut::channels_last(&mut y, 2, 1));
/// norm.evaluate(io, &[1.0f32, 10.0], &[4.0f32, 100.0])?;
/// assert_eq!(y, [0.0, 0.0, 1.0, 2.0]);
/// # Ok::<(), isonorm::Error>(())
/// ```
///
/// Source: Ioffe & Szegedy, *Batch Normalization: Accelerating Deep Network Training by Reducing Internal
/// Covariate Shift*, 2015. arXiv:1502.03167
#[derive(Clone, Copy, Debug)]
pub struct BatchNorm<'a> {
    channels: usize,
    eps: EpsOption,
    params: Params<'a>,
    momentum: f64,
    biased: bool,
    cpu: Cpu<'a>,
}

impl<'a> BatchNorm<'a> {
    /// `channels` channels, eps 1e-5, no weight, no bias, momentum 0.1.
    pub fn new(channels: usize) -> Self {
        BatchNorm {
            channels,
            eps: EpsOption::inside(1e-5),
            params: Params::default(),
            momentum: 0.1,
            biased: false,
            cpu: Cpu::new(),
        }
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
    /// The share of the batch in the running statistics; rounded to the compute type first.
    pub fn momentum(mut self, momentum: f64) -> Self {
        self.momentum = momentum;
        self
    }
    /// Running statistics that are the average over all batches: momentum 1 / (`batches_seen` + 1), where
    /// `batches_seen` does not count the batch of the coming call.
    pub fn cumulative(self, batches_seen: u64) -> Self {
        self.momentum(1.0 / (batches_seen as f64 + 1.0))
    }
    /// The running variance takes the batch's variance as it is, without the factor count / (count - 1).
    pub fn biased_running_var(mut self) -> Self {
        self.biased = true;
        self
    }
    /// Where it runs: level, threads, pool.
    pub fn on(mut self, cpu: Cpu<'a>) -> Self {
        self.cpu = cpu;
        self
    }

    /// Normalizes by the batch's own statistics, and updates the running ones where there are any.
    pub fn train(&self, io: PlaneIo<'_>, running: Option<Running<'_>>) -> Result<(), Error> {
        let (dtype, shape) = (io.dtype(), self.check(&io)?);
        if let Some(running) = &running {
            self.check_running(dtype, running.mean.as_slice(), running.var.as_slice())?;
        }
        if shape.count() == 1 && !shape.is_empty() {
            return Err(Error::TooFewValues { count: 1 });
        }
        with_element!(dtype, T => self.train_typed::<T>(shape, io, running))
    }

    /// Normalizes by the running statistics.
    pub fn evaluate<'r>(
        &self,
        io: PlaneIo<'_>,
        running_mean: impl Into<Slice<'r>>,
        running_var: impl Into<Slice<'r>>,
    ) -> Result<(), Error> {
        let (dtype, shape) = (io.dtype(), self.check(&io)?);
        let (mean, var) = (running_mean.into(), running_var.into());
        self.check_running(dtype, mean, var)?;
        with_element!(dtype, T => self.evaluate_typed::<T>(shape, io, mean, var))
    }

    /// The gradients of [`train`](Self::train): of x, and of weight and bias where `io` asks for them.
    ///
    /// ```text
    /// dbias[c]   = sum over n, s of dy[n,c,s]
    /// dweight[c] = sum over n, s of dy[n,c,s] * x_hat[n,c,s]
    /// dx[n,c,s]  = (dy[n,c,s] - dbias[c] / count - x_hat[n,c,s] * dweight[c] / count) * w[c] / sqrt(var[c] + eps)
    /// ```
    ///
    /// `w` is the weight with its offset, `count` the values of a channel; with eps outside the root the last summand
    /// has the factor (root + eps) / root. Sums are in the compute type and in forward's order, and rounded once, after
    /// dx has taken them. The same bits on every CPU, thread count and layout, with saved statistics and without.
    ///
    /// ```
    /// use isonorm::{BatchNorm, PlaneBackwardIo, Planes, PlanesMut};
    /// let (x, dy) = ([1.0f32, 3.0, 1.0, 3.0], [1.0f32, 1.0, 2.0, 0.0]); // 4 samples of one channel
    /// let (mut dx, mut dweight, mut dbias) = ([0.0f32; 4], [0.0f32], [0.0f32]);
    /// let planes = |data| Planes::channels_first(data, 1, 1);
    /// let io = PlaneBackwardIo::new(planes(&x), planes(&dy), PlanesMut::channels_first(&mut dx, 1, 1));
    /// BatchNorm::new(1).eps(0.0).train_backward(io.dweight(&mut dweight).dbias(&mut dbias))?;
    /// assert_eq!((dweight, dbias), ([-2.0], [4.0]));
    /// assert_eq!(dx, [-0.5, 0.5, 0.5, -0.5]);
    /// # Ok::<(), isonorm::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// An [`Error`] where lengths, types, layouts or options do not fit one another, or a channel has a single value;
    /// nothing is written then.
    pub fn train_backward(&self, io: PlaneBackwardIo<'_>) -> Result<(), Error> {
        let (dtype, shape) = (io.dtype(), self.check_backward(&io)?);
        if shape.count() == 1 && !shape.is_empty() {
            return Err(Error::TooFewValues { count: 1 });
        }
        with_element!(dtype, T => self.train_backward_typed::<T>(shape, io))
    }

    /// The gradients of [`evaluate`](Self::evaluate): `dx = dy * w[c] / sqrt(running_var[c] + eps)`; `dweight` and
    /// `dbias` as those of [`train_backward`](Self::train_backward), of evaluation's x_hat.
    ///
    /// # Errors
    ///
    /// An [`Error`] where lengths, types, layouts or options do not fit one another; nothing is written then.
    pub fn evaluate_backward<'r>(
        &self,
        mut io: PlaneBackwardIo<'_>,
        running_mean: impl Into<Slice<'r>>,
        running_var: impl Into<Slice<'r>>,
    ) -> Result<(), Error> {
        let (dtype, shape) = (io.dtype(), self.check_backward(&io)?);
        let (mean, var) = (running_mean.into(), running_var.into());
        self.check_running(dtype, mean, var)?;
        with_element!(dtype, T => self.evaluate_sums::<T>(shape, &mut io, mean, var))?;
        with_element!(io.dy().dtype(), D => self.scale::<D>(shape, io, var))
    }

    fn check(&self, io: &PlaneIo<'_>) -> Result<Shape, Error> {
        let shape = io.shape(self.channels)?;
        self.params.check(self.channels, "channel", io.dtype())?;
        io.check_stats(self.channels, "channel")?;
        Ok(arranged(shape))
    }

    fn check_backward(&self, io: &PlaneBackwardIo<'_>) -> Result<Shape, Error> {
        let shape = io.shape(self.channels)?;
        self.params.check(self.channels, "channel", io.dtype())?;
        io.check(self.channels, self.channels, "channel")?;
        io.refuse_partial()?;
        Ok(arranged(shape))
    }

    fn check_running(&self, x: DType, mean: Slice<'_>, var: Slice<'_>) -> Result<(), Error> {
        check_param("running_mean", mean.kind(), self.channels, "channel", x)?;
        check_param("running_var", var.kind(), self.channels, "channel", x)
    }

    fn task<C: Compute>(&self, shape: Shape, stream: bool) -> Result<Task<'a, C>, Error> {
        let _env = FloatEnv::standard();
        let (level, eps) = (self.cpu.chosen_level()?, self.eps.rounded()?);
        Ok(Task { level, shape, eps, params: self.params, stream, rounded: None })
    }

    fn evaluate_typed<T: Element>(
        &self,
        shape: Shape,
        io: PlaneIo<'_>,
        mean: Slice<'_>,
        var: Slice<'_>,
    ) -> Result<(), Error> {
        let bytes = if shape.is_empty() { 0 } else { shape.bytes(size_of::<T>()) };
        let stream = io.x.is_some() && threads::is_beyond_the_caches(bytes / 2);
        let task = self.task::<T::Compute>(shape, stream)?;
        let source = Source::Running { mean, var };
        if let Some(saved) = io.stats.and_then(T::Compute::stats) {
            let _env = FloatEnv::standard();
            for (i, saved) in saved.chunks_mut(WINDOW).enumerate() {
                let first = i * WINDOW;
                saved.copy_from_slice(&source.stats(task.eps, first..first + saved.len()));
            }
        }
        if shape.is_empty() {
            return Ok(());
        }
        self.write::<T>(task, source, io.x.map(|x| x.data), io.y.data);
        Ok(())
    }

    /// y from statistics, or factors, known before.
    fn write<T: Element>(
        &self,
        task: Task<'_, T::Compute>,
        source: Source<'_, T::Compute>,
        x: Option<Slice<'_>>,
        y: SliceMut<'_>,
    ) {
        let shape = task.shape;
        let (x, bytes) = (x.and_then(|x| T::of(&x)), shape.bytes(size_of::<T>()));
        let is_narrow = shape.spatial < NARROW && shape.samples >= BATCH;
        if shape.last || is_narrow {
            let repeat = if shape.last { 1 } else { shape.spatial };
            let channels = 0..shape.channels;
            threads::run(&self.cpu, ColumnsJob::<T> { task, source, channels, repeat, x, y }, bytes);
        } else {
            let planes = 0..shape.samples * shape.channels;
            threads::run(&self.cpu, PlanesJob::<T> { task, source, planes, x, y }, bytes);
        }
    }

    /// The gradients of weight and bias in evaluation.
    fn evaluate_sums<T: Element>(
        &self,
        shape: Shape,
        io: &mut PlaneBackwardIo<'_>,
        mean: Slice<'_>,
        var: Slice<'_>,
    ) -> Result<(), Error> {
        let task = self.task::<T::Compute>(shape, false)?;
        if shape.is_empty() {
            io.gradients.clear();
        } else if io.gradients.are_wanted() {
            backward_evaluate::<T>(task, &self.cpu, Source::Running { mean, var }, io);
        }
        Ok(())
    }

    /// dx in evaluation, of a dy of type `D`.
    fn scale<D: Element>(&self, shape: Shape, io: PlaneBackwardIo<'_>, var: Slice<'_>) -> Result<(), Error> {
        if !shape.is_empty() {
            let stream = io.dy.is_some() && threads::is_beyond_the_caches(shape.bytes(size_of::<D>()) / 2);
            let task = self.task::<D::Compute>(shape, stream)?;
            let task = Task { params: Params::default(), rounded: io.rounded(), ..task };
            self.write::<D>(task, Source::Factors { params: self.params, var }, io.dy.map(|dy| dy.data), io.dx.data);
        }
        Ok(())
    }

    fn train_backward_typed<T: Element>(&self, shape: Shape, mut io: PlaneBackwardIo<'_>) -> Result<(), Error> {
        let bytes = if shape.is_empty() { 0 } else { shape.bytes(size_of::<T>()) };
        let stream = io.dy.is_some() && threads::is_beyond_the_caches(bytes / 2);
        let task = Task { rounded: io.rounded(), ..self.task::<T::Compute>(shape, stream)? };
        if shape.is_empty() {
            io.gradients.clear();
            return Ok(());
        }
        backward_train::<T>(task, &self.cpu, io);
        Ok(())
    }

    fn train_typed<T: Element>(
        &self,
        shape: Shape,
        io: PlaneIo<'_>,
        mut running: Option<Running<'_>>,
    ) -> Result<(), Error> {
        let bytes = if shape.is_empty() { 0 } else { shape.bytes(size_of::<T>()) };
        let stream = io.x.is_some() && threads::is_beyond_the_caches(bytes / 2);
        let task = self.task::<T::Compute>(shape, stream)?;
        let update = Update::new(self.momentum, shape.count().max(2), self.biased)?;
        if shape.is_empty() {
            return Ok(());
        }
        let (x, y) = (io.x.and_then(|x| T::of(&x.data)), io.y.data);
        let mut saved = io.stats.and_then(T::Compute::stats);
        let mut see = |first: usize, stats: &[Stats<T::Compute>]| {
            if let Some(saved) = &mut saved {
                saved[first..first + stats.len()].copy_from_slice(stats);
            }
            if let Some(running) = &mut running {
                update.apply(running, first, stats);
            }
        };
        if shape.last {
            ChannelsLast { task, cpu: self.cpu, per: 1, x, y }.run(see);
            return Ok(());
        }
        let y = &Stripes::new(y, shape);
        for first in (0..shape.channels).step_by(HELD) {
            let mut stats = [Stats::default(); HELD];
            let n = HELD.min(shape.channels - first);
            let (stats, channels) = (&mut stats[..n], first..first + n);
            let bytes = bytes / shape.channels * n;
            threads::run(&self.cpu, TrainJob { task, x, y, channels, stats: &mut *stats }, bytes);
            see(first, stats);
        }
        Ok(())
    }
}

/// A single position lies as channels last do, a single channel as channels first do.
fn arranged(shape: Shape) -> Shape {
    Shape { last: (shape.last || shape.spatial == 1) && shape.channels > 1, ..shape }
}
