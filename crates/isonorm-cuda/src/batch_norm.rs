//! BatchNorm of samples of channels in device memory: options, checks, and which kernels are launched.

use std::ffi::c_void;
use std::ptr::null_mut;

use isonorm::rules::{self, PlaneShape};
use isonorm::{DType, Error as CallError};

use crate::channel_options::{ChannelOptions, Known, Scratch, grid_of_channels, is_side_by_side};
use crate::device::Stream;
use crate::error::Error;
use crate::kernels::{Apply, Evaluate, Kernel, Lines, Moments, PlaneGradients, PlaneKernel, Running as Moved, Storage};
use crate::launch::Grid;
use crate::memory::{Slice, SliceMut};
use crate::planes::{Named, PlaneBackwardIo, PlaneIo, Planes, check_stats};
use crate::row_norm::{STATS, storage};
use crate::running::Running;
use crate::walk::parameter;

/// BatchNorm with its options: `isonorm::BatchNorm` on a GPU, with the same bits.
///
/// Equations, shapes, dtypes and precision are its. Calls return when the work is queued on the stream. Every call
/// needs scratch memory: [`scratch`](Self::scratch) says how much.
///
/// # Errors
///
/// An [`Error`] where lengths, types, layouts or options do not fit one another, tensors overlap, a channel has a
/// single value in training, or CUDA fails; nothing is queued then but what was queued before CUDA failed.
///
/// # Example
///
/// ```no_run
/// use isonorm_cuda::{BatchNorm, Device, PlaneIo, Planes, PlanesMut, Running, Stream};
/// let device = Device::new(0)?;
/// let stream = Stream::new(device)?;
/// let x = device.upload(&[1.0f32, 10.0, 3.0, 30.0])?; // 2 samples of 2 channels
/// let (mut mean, mut var) = (device.upload(&[0.0f32; 2])?, device.upload(&[1.0f32; 2])?);
/// let norm = BatchNorm::new(2).eps(0.0).momentum(0.5);
/// let (mut y, mut scratch) = (device.allocate(16)?, device.allocate(4 * norm.scratch())?);
/// let planes = Planes::channels_first(x.slice::<f32>(), 2, 1);
/// let io = PlaneIo::new(planes, PlanesMut::channels_first(y.slice_mut::<f32>(), 2, 1));
/// let running = Running::new(mean.slice_mut::<f32>(), var.slice_mut::<f32>());
/// norm.train(&stream, io.scratch(scratch.slice_mut::<f32>()), Some(running))?;
/// assert_eq!(y.read::<f32>(&stream)?, [-1.0, -1.0, 1.0, 1.0]);
/// # Ok::<(), isonorm_cuda::Error>(())
/// ```
#[derive(Clone, Copy, Debug)]
pub struct BatchNorm<'a> {
    options: ChannelOptions<'a>,
    momentum: f64,
    biased: bool,
}

impl<'a> BatchNorm<'a> {
    /// `channels` channels, eps 1e-5, no weight, no bias, momentum 0.1.
    pub fn new(channels: usize) -> Self {
        BatchNorm { options: ChannelOptions::new(channels), momentum: 0.1, biased: false }
    }
    /// Added to the variance; rounded to the compute type first.
    pub fn eps(mut self, eps: f64) -> Self {
        self.options.eps = eps;
        self
    }
    /// eps outside the root.
    pub fn eps_outside(mut self) -> Self {
        self.options.eps_outside = true;
        self
    }
    /// One factor for each channel.
    pub fn weight(mut self, weight: Slice<'a>) -> Self {
        self.options.weight = Some(weight);
        self
    }
    /// One summand for each channel.
    pub fn bias(mut self, bias: Slice<'a>) -> Self {
        self.options.bias = Some(bias);
        self
    }
    /// Added to every weight in the compute type.
    pub fn weight_offset(mut self, offset: f64) -> Self {
        self.options.offset = offset;
        self
    }
    /// The share of the batch in the running statistics; rounded to the compute type first.
    pub fn momentum(mut self, momentum: f64) -> Self {
        self.momentum = momentum;
        self
    }
    /// The running variance takes the batch's variance as it is, without the factor count / (count - 1).
    pub fn biased_running_var(mut self) -> Self {
        self.biased = true;
        self
    }

    /// Elements of the compute type that `scratch` of a call needs.
    pub fn scratch(&self) -> usize {
        self.options.channels.saturating_mul(STATS + PlaneGradients::VALUES)
    }

    /// Queues y, normalized by the batch's own statistics, and moves the running ones where there are any.
    pub fn train(&self, stream: &Stream<'_>, io: PlaneIo<'_>, running: Option<Running<'_>>) -> Result<(), Error> {
        let (x, running) = (io.x.data.dtype(), running.as_ref());
        let shape = self.check(&io)?;
        let params: Vec<_> = self.options.named().collect();
        if let Some(running) = running {
            running.check(self.options.channels, x)?;
            running.check_apart(&io.named().chain(params.iter().copied()).collect::<Vec<_>>())?;
        }
        io.check_apart(&params)?;
        check_count(&shape)?;
        let momentum = rules::momentum(self.momentum, x)?;
        self.options.rounded_eps(x)?;
        let scratch = Scratch::of(io.scratch.as_ref(), self.scratch(), x)?;
        if shape.is_empty() {
            return Ok(());
        }
        let moved = Running::argument(running, momentum, self.biased);
        let stats = io.stats.as_ref().map_or(null_mut(), |stats| stats.as_slice().pointer());
        stream.device().within(|| {
            self.launch_moments(stream, &shape, &io.x, moved, stats, scratch.at(0))?;
            self.launch_apply(stream, &shape, [&io.x, &io.y.planes], x, scratch.at(0), None)
        })
    }

    /// Queues y, normalized by the running statistics.
    pub fn evaluate(&self, stream: &Stream<'_>, io: PlaneIo<'_>, mean: Slice<'_>, var: Slice<'_>) -> Result<(), Error> {
        let x = io.x.data.dtype();
        let shape = self.check(&io)?;
        check_running(mean, var, self.options.channels, x)?;
        io.check_apart(
            &self.options.named().chain([("running_mean", mean), ("running_var", var)]).collect::<Vec<_>>(),
        )?;
        self.options.rounded_eps(x)?;
        let scratch = Scratch::of(io.scratch.as_ref(), self.scratch(), x)?;
        let stats = io.stats.as_ref().map_or(null_mut(), |stats| stats.as_slice().pointer());
        stream.device().within(|| {
            self.launch_evaluate(stream, x, false, [mean, var], stats, scratch.at(0))?;
            if shape.is_empty() {
                return Ok(());
            }
            self.launch_apply(stream, &shape, [&io.x, &io.y.planes], x, scratch.at(0), None)
        })
    }

    /// Queues the gradients of [`train`](Self::train): dx, and those of weight and bias.
    pub fn train_backward(&self, stream: &Stream<'_>, io: PlaneBackwardIo<'_>) -> Result<(), Error> {
        let x = io.x.data.dtype();
        let shape = self.check_backward(&io, &[])?;
        check_count(&shape)?;
        let scratch = Scratch::of(io.scratch.as_ref(), self.scratch(), x)?;
        let (stats, values) = (scratch.at(0), scratch.at(STATS * self.options.channels));
        let known = Known { stats: io.stats.map_or(stats, |stats| stats.pointer()), groups: 0 };
        stream.device().within(|| {
            if shape.is_empty() {
                return self.options.correlate(stream, &shape, &io, known, None);
            }
            if io.stats.is_none() {
                let moved = Running::argument(None, 0.0, false);
                self.launch_moments(stream, &shape, &io.x, moved, stats, null_mut())?;
            }
            self.options.correlate(stream, &shape, &io, known, Some(values))?;
            self.launch_gradients(stream, &shape, &io, values)
        })
    }

    /// Queues the gradients of [`evaluate`](Self::evaluate): dx, and those of weight and bias.
    pub fn evaluate_backward(
        &self,
        stream: &Stream<'_>,
        io: PlaneBackwardIo<'_>,
        mean: Slice<'_>,
        var: Slice<'_>,
    ) -> Result<(), Error> {
        let x = io.x.data.dtype();
        check_running(mean, var, self.options.channels, x)?;
        let shape = self.check_backward(&io, &[("running_mean", mean), ("running_var", var)])?;
        let scratch = Scratch::of(io.scratch.as_ref(), self.scratch(), x)?;
        let (stats, values) = (scratch.at(0), scratch.at(STATS * self.options.channels));
        if io.wants_gradients() {
            // Before anything is queued.
            self.options.over_channels(&shape, x, is_side_by_side(&shape), stream.device().capability())?;
        }
        stream.device().within(|| {
            self.launch_evaluate(stream, x, true, [mean, var], stats, values)?;
            if io.wants_gradients() {
                self.options.correlate(stream, &shape, &io, Known { stats, groups: 0 }, None)?;
            }
            if shape.is_empty() {
                return Ok(());
            }
            self.launch_apply(stream, &shape, [&io.dy, &io.dx.planes], x, values, Some(x))
        })
    }

    fn check(&self, io: &PlaneIo<'_>) -> Result<PlaneShape, Error> {
        let (x, shape) = (io.x.data.dtype(), io.shape(self.options.channels)?);
        self.options.check(&shape, x)?;
        let stats = io.stats.as_ref().map(SliceMut::as_slice);
        check_stats(stats.as_ref(), x, self.options.channels, "channel")?;
        Ok(shape)
    }

    fn check_backward(&self, io: &PlaneBackwardIo<'_>, running: &[Named<'_>]) -> Result<PlaneShape, Error> {
        let (x, shape) = (io.x.data.dtype(), io.shape(self.options.channels)?);
        self.options.check(&shape, x)?;
        io.check_gradients(self.options.channels)?;
        check_stats(io.stats.as_ref(), x, self.options.channels, "channel")?;
        io.check_apart(&self.options.named().chain(running.iter().copied()).collect::<Vec<_>>())?;
        self.options.rounded_eps(x)?;
        Ok(shape)
    }

    fn launch_moments(
        &self,
        stream: &Stream<'_>,
        shape: &PlaneShape,
        x: &Planes<'_>,
        running: Moved,
        stats: *mut c_void,
        values: *mut c_void,
    ) -> Result<(), Error> {
        let dtype = x.data.dtype();
        let capability = stream.device().capability();
        let (launch, channels) = self.options.over_channels(shape, dtype, is_side_by_side(shape), capability)?;
        let [weight, bias] = [&self.options.weight, &self.options.bias].map(|param| parameter(param.as_ref()));
        let args = Moments { channels, x: x.argument(), weight, bias, running, stats, values };
        stream.launch(&Kernel::Planes(launch.moments(dtype)), &args, Grid::of_channels(&launch))
    }

    /// y of x, or evaluation's dx of dy, rounded to `rounded` on the way to its own type.
    fn launch_apply(
        &self,
        stream: &Stream<'_>,
        shape: &PlaneShape,
        [from, to]: [&Planes<'_>; 2],
        x: DType,
        values: *mut c_void,
        rounded: Option<DType>,
    ) -> Result<(), Error> {
        let lines = lines_of(shape);
        let dtype = from.data.dtype();
        let storage = storage([to.data.dtype()], dtype);
        let args = Apply::new(lines, from.argument(), to.argument(), values, shape.channels, rounded);
        let kernel = PlaneKernel::Apply { compute: rules::compute(x), x: Storage::Of(dtype), y: storage };
        let (blocks, threads) = lines.launch(16 / dtype.size());
        stream.launch(&Kernel::Planes(kernel), &args, Grid { blocks, threads, cluster: 1 })
    }

    fn launch_gradients(
        &self,
        stream: &Stream<'_>,
        shape: &PlaneShape,
        io: &PlaneBackwardIo<'_>,
        values: *mut c_void,
    ) -> Result<(), Error> {
        let (x, lines, dx) = (io.x.data.dtype(), lines_of(shape), &io.dx.planes);
        let args = PlaneGradients {
            lines,
            x: io.x.argument(),
            dy: io.dy.argument(),
            dx: dx.argument(),
            values,
            channels: shape.channels as i64,
        };
        let [dy, dx] = [&io.dy, dx].map(|planes| storage([planes.data.dtype()], x));
        let (blocks, threads) = lines.launch(16 / x.size());
        let kernel = Kernel::Planes(PlaneKernel::Gradients { x, dy, dx });
        stream.launch(&kernel, &args, Grid { blocks, threads, cluster: 1 })
    }

    fn launch_evaluate(
        &self,
        stream: &Stream<'_>,
        x: DType,
        is_backward: bool,
        running: [Slice<'_>; 2],
        stats: *mut c_void,
        values: *mut c_void,
    ) -> Result<(), Error> {
        let channels = self.options.channels;
        if channels == 0 {
            return Ok(());
        }
        let [mean, var] = running.map(|slice| parameter(Some(&slice)));
        let args = Evaluate {
            channels: channels as i64,
            eps_outside: self.options.eps_outside.into(),
            is_backward: is_backward.into(),
            eps: self.options.rounded_eps(x)?,
            weight_offset: rules::rounded(self.options.offset, x),
            mean,
            var,
            weight: parameter(self.options.weight.as_ref()),
            bias: parameter(self.options.bias.as_ref()),
            stats,
            values,
        };
        let kernel = PlaneKernel::Evaluate { compute: rules::compute(x) };
        stream.launch(&Kernel::Planes(kernel), &args, grid_of_channels(channels))
    }
}

/// A channel of a single value has no variance.
fn check_count(shape: &PlaneShape) -> Result<(), Error> {
    if shape.count() == 1 && !shape.is_empty() { Err(CallError::TooFewValues { count: 1 }.into()) } else { Ok(()) }
}

/// Running statistics' lengths and types.
fn check_running(mean: Slice<'_>, var: Slice<'_>, channels: usize, x: DType) -> Result<(), Error> {
    rules::check_param("running_mean", mean.kind(), channels, "channel", x)?;
    Ok(rules::check_param("running_var", var.kind(), channels, "channel", x)?)
}

fn lines_of(shape: &PlaneShape) -> Lines {
    Lines::new([shape.samples, shape.channels, shape.spatial], is_side_by_side(shape))
}
