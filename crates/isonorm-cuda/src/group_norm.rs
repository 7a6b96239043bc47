//! GroupNorm and InstanceNorm of samples of channels in device memory: options, checks, and which kernels are launched.

use std::ffi::c_void;
use std::ptr::null_mut;

use isonorm::rules::{self, PlaneShape};

use crate::channel_options::{ChannelOptions, Known, Scratch};
use crate::device::Stream;
use crate::error::Error;
use crate::kernels::{
    Gradients, GroupBackward, GroupForward, Groups, Kernel, Launch, PlaneKernel, Planes as Argument, Rows, Shape,
};
use crate::launch::Grid;
use crate::memory::{Slice, SliceMut};
use crate::planes::{PlaneBackwardIo, PlaneIo, Planes, check_stats};
use crate::row_norm::{STATS, storage};
use crate::walk::parameter;

/// GroupNorm or InstanceNorm with its options: `isonorm::GroupNorm` and `isonorm::InstanceNorm` on a GPU, with the same
/// bits.
///
/// Equations, shapes, dtypes and precision are theirs. Calls return when the work is queued on the stream.
///
/// # Errors
///
/// An [`Error`] where the groups do not divide the channels, lengths, types, layouts or options do not fit one another,
/// tensors overlap, or CUDA fails; nothing is queued then but what was queued before CUDA failed.
///
/// # Example
///
/// ```no_run
/// use isonorm_cuda::{Device, GroupNorm, PlaneIo, Planes, PlanesMut, Stream};
/// let device = Device::new(0)?;
/// let stream = Stream::new(device)?;
/// let x = device.upload(&[1.0f32, 3.0, 5.0, 7.0])?; // one sample, 4 channels, 1 position
/// let mut y = device.allocate(16)?;
/// let planes = Planes::channels_first(x.slice::<f32>(), 4, 1);
/// let io = PlaneIo::new(planes, PlanesMut::channels_first(y.slice_mut::<f32>(), 4, 1));
/// GroupNorm::new(2, 4).eps(0.0).forward(&stream, io)?;
/// assert_eq!(y.read::<f32>(&stream)?, [-1.0, 1.0, -1.0, 1.0]);
/// # Ok::<(), isonorm_cuda::Error>(())
/// ```
#[derive(Clone, Copy, Debug)]
pub struct GroupNorm<'a> {
    groups: usize,
    options: ChannelOptions<'a>,
}

impl<'a> GroupNorm<'a> {
    /// `groups` groups of `channels` channels, eps 1e-5, no weight, no bias.
    pub fn new(groups: usize, channels: usize) -> Self {
        GroupNorm { groups, options: ChannelOptions::new(channels) }
    }
    /// InstanceNorm: every channel a group.
    pub fn instance(channels: usize) -> Self {
        Self::new(channels, channels)
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

    /// Queues y on `stream`: whatever `io` says.
    pub fn forward(&self, stream: &Stream<'_>, io: PlaneIo<'_>) -> Result<(), Error> {
        let (x, stats) = (io.x.data.dtype(), io.stats.as_ref().map(SliceMut::as_slice));
        rules::check_groups(self.groups, self.options.channels)?;
        let shape = io.shape(self.options.channels)?;
        self.options.check(&shape, x)?;
        check_stats(stats.as_ref(), x, shape.samples * self.groups, "group of each sample")?;
        io.check_apart(&self.options.named().collect::<Vec<_>>())?;
        self.options.rounded_eps(x)?;
        if shape.is_empty() {
            return Ok(());
        }
        let stats = stats.map_or(null_mut(), |stats| stats.pointer());
        stream.device().within(|| self.launch_forward(stream, &shape, &io.x, Some(&io.y.planes), stats))
    }

    /// Queues dx, and the gradients of weight and bias, on `stream`: whatever `io` says.
    pub fn backward(&self, stream: &Stream<'_>, io: PlaneBackwardIo<'_>) -> Result<(), Error> {
        let x = io.x.data.dtype();
        rules::check_groups(self.groups, self.options.channels)?;
        let shape = io.shape(self.options.channels)?;
        self.options.check(&shape, x)?;
        io.check_gradients(self.options.channels)?;
        check_stats(io.stats.as_ref(), x, shape.samples * self.groups, "group of each sample")?;
        io.check_apart(&self.options.named().collect::<Vec<_>>())?;
        self.options.rounded_eps(x)?;
        let is_needed = io.wants_gradients() && io.stats.is_none();
        let scratch = Scratch::of(io.scratch.as_ref(), if is_needed { self.scratch(shape.samples) } else { 0 }, x)?;
        let mut known = io.stats.map_or(null_mut(), |stats| stats.pointer());
        let room = if is_needed { scratch.at(0) } else { null_mut() };
        if shape.is_empty() {
            return stream.device().within(|| self.correlate(stream, &shape, &io, room));
        }
        let work = self.backward_work(stream, &shape, &io)?;
        stream.device().within(|| {
            // What dx overwrites is read before.
            let is_first = io.wants_gradients() && (io.is_in_place() || !is_needed);
            if is_first && is_needed {
                self.launch_forward(stream, &shape, &io.x, None, room)?;
                known = room;
            }
            if is_first {
                self.correlate(stream, &shape, &io, known)?;
            }
            self.launch_backward(stream, &work, &io, known, if known.is_null() { room } else { null_mut() })?;
            if is_first { Ok(()) } else { self.correlate(stream, &shape, &io, room) }
        })
    }

    /// Elements of the compute type that [`PlaneBackwardIo::scratch`] needs for gradients of the parameters over
    /// `samples` samples, where statistics are not given.
    pub fn scratch(&self, samples: usize) -> usize {
        samples.saturating_mul(self.groups).saturating_mul(STATS)
    }

    fn correlate(
        &self,
        stream: &Stream<'_>,
        shape: &PlaneShape,
        io: &PlaneBackwardIo<'_>,
        stats: *mut c_void,
    ) -> Result<(), Error> {
        if !io.wants_gradients() {
            return Ok(());
        }
        self.options.correlate(stream, shape, io, Known { stats, groups: self.groups }, None)
    }

    /// Groups as rows, in the shape of a kernel. `tensors` are all of the call, x the first.
    fn groups(
        &self,
        shape: &PlaneShape,
        tensors: &[&Planes<'_>],
        kernel: impl Fn(usize) -> Shape,
    ) -> Result<Work, Error> {
        let x = tensors[0].data.dtype();
        let per = shape.channels / self.groups;
        let (count, hidden) = (shape.samples * self.groups, per * shape.spatial);
        let as_rows: Option<Vec<_>> = tensors.iter().map(|planes| planes.rows(hidden)).collect();
        let kernel = as_rows.map_or(kernel(hidden), |tensors| kernel(hidden).with(hidden, x, &tensors));
        let launch = kernel.launch(hidden, x).filter(|_| i32::try_from(hidden).is_ok());
        let launch = launch.ok_or(Error::TooLong { hidden })?;
        let rows = Rows {
            eps: self.options.rounded_eps(x)?,
            eps_outside: self.options.eps_outside.into(),
            weight_offset: rules::rounded(self.options.offset, x),
            ..Rows::new(count, hidden, &launch)
        };
        let [groups, per, spatial] = [self.groups, per, shape.spatial].map(|len| len as i64);
        Ok(Work { shape: kernel, launch, count, groups: Groups { rows, groups, per, spatial } })
    }

    fn launch_forward(
        &self,
        stream: &Stream<'_>,
        shape: &PlaneShape,
        x: &Planes<'_>,
        y: Option<&Planes<'_>>,
        stats: *mut c_void,
    ) -> Result<(), Error> {
        let dtype = x.data.dtype();
        let tensors: Vec<_> = [Some(x), y].into_iter().flatten().collect();
        let capability = stream.device().capability();
        let work = self.groups(shape, &tensors, |hidden| Shape::forward(hidden, dtype, capability))?;
        let args = GroupForward {
            groups: work.groups,
            x: x.argument(),
            y: y.map_or(Argument::NONE, Planes::argument),
            weight: parameter(self.options.weight.as_ref()),
            bias: parameter(self.options.bias.as_ref()),
            stats,
        };
        let y = storage(y.map(|y| y.data.dtype()), dtype);
        let kernel = PlaneKernel::GroupForward { x: dtype, shape: work.shape, y };
        stream.launch(&Kernel::Planes(kernel), &args, work.grid())
    }

    fn backward_work(&self, stream: &Stream<'_>, shape: &PlaneShape, io: &PlaneBackwardIo<'_>) -> Result<Work, Error> {
        let (x, capability) = (io.x.data.dtype(), stream.device().capability());
        let kernel = |hidden| Shape::backward(hidden, x, Gradients::None, capability).0;
        self.groups(shape, &[&io.x, &io.dy, &io.dx.planes], kernel)
    }

    fn launch_backward(
        &self,
        stream: &Stream<'_>,
        work: &Work,
        io: &PlaneBackwardIo<'_>,
        known: *mut c_void,
        stats: *mut c_void,
    ) -> Result<(), Error> {
        let (x, dx) = (io.x.data.dtype(), &io.dx.planes);
        let args = GroupBackward {
            groups: work.groups,
            x: io.x.argument(),
            dy: io.dy.argument(),
            dx: dx.argument(),
            weight: parameter(self.options.weight.as_ref()),
            known,
            stats,
        };
        let [dy, dx] = [&io.dy, dx].map(|planes| storage([planes.data.dtype()], x));
        let kernel = PlaneKernel::GroupBackward { x, shape: work.shape, dy, dx };
        stream.launch(&Kernel::Planes(kernel), &args, work.grid())
    }
}

/// Groups on their way to a kernel.
struct Work {
    shape: Shape,
    launch: Launch,
    count: usize,
    groups: Groups,
}

impl Work {
    fn grid(&self) -> Grid {
        Grid::of(&self.launch, self.count)
    }
}
