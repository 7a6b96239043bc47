//! Calls of channel-wise norms as launches of their kernels.

use std::ffi::c_void;
use std::ptr::null_mut;
use std::sync::OnceLock;

use isonorm_cuda::kernels::{
    Apply, ChannelLaunch, Channels, Correlate, Evaluate, GroupBackward, GroupForward, Groups, Instances, Kernel, Lines,
    Moments, PlaneGradients, PlaneKernel, Planes, Rows, Running, Shape, Storage, Tensor as Argument,
};
use isonorm_testing::DType;
use isonorm_testing::golden::Norm;
use isonorm_testing::oracle::forward::Channels as Size;

use crate::call::{Call, Found};
use crate::gradients::{Backward, Found as Gradient};
use crate::support::address;
use crate::support::core::{Saved, Tensor, compute_type};
use crate::support::emulation::Emulation;
use crate::support::memory::{Layout, Memory, argument, dtype};
use crate::support::planes::{PlaneLayout, PlaneMemory};

/// Rows or planes of a part of a warp, of several warps, of several pieces.
fn shapes(x: DType) -> [Shape; 4] {
    let whole = 16 / (x.digits() / 2);
    let shape = |groups, warps, is_long| Shape { node: 1, groups, warps, blocks: 1, is_long, is_whole: false };
    [shape(1, 1, false), shape(whole, 8, false), shape(whole, 1, true), shape(whole, 8, true)]
}

/// Rows without a question about what exists, and rows that blocks share.
fn whole(x: DType) -> Shape {
    Shape { is_whole: true, ..shapes(x)[1] }
}
fn clustered(x: DType) -> Shape {
    Shape { warps: 2, blocks: 4, ..shapes(x)[1] }
}

/// One library for each type of x. Tensors of other types go through kernels for long rows, which do all.
fn emulation(x: DType) -> &'static Emulation {
    static LIBRARIES: [OnceLock<Emulation>; 4] = [const { OnceLock::new() }; 4];
    let at = DType::ALL.iter().position(|dtype| *dtype == x).expect("one of all types");
    LIBRARIES[at].get_or_init(|| {
        let (x_type, compute) = (dtype(x), dtype(compute_type(x)));
        let (own, any) = (Storage::Of(x_type), Storage::Any);
        let mut kernels = vec![PlaneKernel::Evaluate { compute }, PlaneKernel::Instances { compute }];
        for (shape, others) in shapes(x).map(|shape| (shape, own)).into_iter().chain([(shapes(x)[3], any)]) {
            kernels.push(PlaneKernel::GroupForward { x: x_type, shape, y: others });
            kernels.push(PlaneKernel::GroupBackward { x: x_type, shape, dy: others, dx: others });
            kernels.push(PlaneKernel::Correlate { x: x_type, shape, dy: others, is_shared: others == any });
        }
        for shape in [whole(x), clustered(x)] {
            kernels.push(PlaneKernel::GroupForward { x: x_type, shape, y: own });
            kernels.push(PlaneKernel::GroupBackward { x: x_type, shape, dy: own, dx: own });
        }
        kernels.extend(shapes(x).map(|shape| PlaneKernel::Moments { x: x_type, shape, is_shared: false }));
        for is_shared in [false, true] {
            kernels.push(PlaneKernel::SideMoments { x: x_type, is_shared });
            kernels.push(PlaneKernel::SideCorrelate { x: x_type, is_shared });
        }
        let shape = shapes(x)[0];
        kernels.push(PlaneKernel::Moments { x: x_type, shape, is_shared: true });
        kernels.push(PlaneKernel::Correlate { x: x_type, shape, dy: own, is_shared: true });
        for others in [own, any] {
            kernels.push(PlaneKernel::Apply { compute, x: others, y: others });
            kernels.push(PlaneKernel::Gradients { x: x_type, dy: others, dx: others });
        }
        Emulation::new(kernels.into_iter().map(Kernel::Planes).collect())
    })
}

/// Where tensors lie and how kernels are chosen.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Gpu {
    pub(crate) layout: PlaneLayout,
    pub(crate) is_in_place: bool,
    /// Which of the kernels that can do it.
    pub(crate) choice: usize,
}

/// One call on the way: its kernels, its parameters' memory.
struct Work<'a> {
    gpu: Gpu,
    call: &'a Call,
    emulation: &'static Emulation,
    weight: Option<Memory>,
    bias: Option<Memory>,
    running: Option<[Memory; 2]>,
    /// More than any kernel needs.
    values: Vec<f64>,
}

fn parameter(tensor: &Tensor) -> Memory {
    Memory::new(tensor, tensor.len(), Layout { stride: tensor.len(), offset: 1 })
}

impl Gpu {
    fn work(self, call: &Call) -> Work<'_> {
        let parameter_of = |tensor: &Option<Tensor>| tensor.as_ref().map(parameter);
        Work {
            gpu: self,
            call,
            emulation: emulation(call.x.dtype()),
            weight: parameter_of(&call.weight),
            bias: parameter_of(&call.bias),
            running: call.running.as_ref().map(|(mean, var)| [mean, var].map(parameter)),
            values: vec![f64::NAN; 7 * call.shape.channels + 2],
        }
    }

    pub(crate) fn forward(self, call: &Call) -> Found {
        let mut work = self.work(call);
        let (mut x, mut y) = (work.place(&call.x), PlaneMemory::empty(call.y_type, call.shape, self.layout));
        let in_place = self.is_in_place && call.x.dtype() == call.y_type;
        let y_argument = if in_place { x.argument() } else { y.argument() };
        let mut saved = work.room();
        match call.norm {
            Norm::GroupNorm => work.group_forward(x.argument(), y_argument, call.y_type, &mut saved),
            _ => {
                let values = work.values();
                if call.norm == Norm::BatchNormEval {
                    work.evaluate(false, &mut saved, values);
                } else {
                    work.moments(x.argument(), &mut saved, values);
                }
                work.apply([(x.argument(), call.x.dtype()), (y_argument, call.y_type)], None);
            }
        }
        let running = work.running.map(|[mean, var]| (mean.rows(), var.rows()));
        Found { y: if in_place { x.tensor() } else { y.tensor() }, reported: saved.reported(), running }
    }

    /// What forward saves, without y.
    pub(crate) fn statistics(self, call: &Call) -> Saved {
        let (mut work, mut saved) = (self.work(call), self.work(call).room());
        let mut x = work.place(&call.x);
        match call.norm {
            Norm::GroupNorm => work.group_forward(x.argument(), Planes::NONE, call.x.dtype(), &mut saved),
            Norm::BatchNormEval => work.evaluate(false, &mut saved, null_mut()),
            _ => work.moments(x.argument(), &mut saved, null_mut()),
        }
        saved
    }

    pub(crate) fn backward(self, backward: &Backward, is_known: bool) -> Gradient {
        let call = &backward.call;
        let in_place = self.is_in_place && backward.dy.dtype() == call.x.dtype() && backward.dx_type == call.x.dtype();
        let mut work = self.work(call);
        let [mut x, mut dy] = [&call.x, &backward.dy].map(|tensor| work.place(tensor));
        let mut dx = PlaneMemory::empty(backward.dx_type, call.shape, self.layout);
        let dx_argument = if in_place { dy.argument() } else { dx.argument() };
        let all =
            [(x.argument(), call.x.dtype()), (dy.argument(), backward.dy.dtype()), (dx_argument, backward.dx_type)];
        let channels = call.shape.channels;
        let layout = Layout { stride: channels, offset: 1 };
        let mut wanted = [backward.dweight, backward.dbias]
            .map(|dtype| dtype.map(|dtype| Memory::empty(dtype, 1, channels, layout)));
        let mut saved = if is_known || in_place { self.statistics(call) } else { work.room() };
        match call.norm {
            Norm::GroupNorm => {
                if is_known || in_place {
                    work.correlate(all, &mut saved, &mut wanted, null_mut());
                    work.group_backward(all, true, &mut saved);
                } else {
                    work.group_backward(all, false, &mut saved);
                    work.correlate(all, &mut saved, &mut wanted, null_mut());
                }
            }
            Norm::BatchNormEval => {
                let values = work.values();
                work.evaluate(true, &mut saved, values);
                work.correlate(all, &mut saved, &mut wanted, null_mut());
                work.apply([all[1], all[2]], Some(call.x.dtype()));
            }
            _ => {
                if !(is_known || in_place) {
                    work.moments(all[0].0, &mut saved, null_mut());
                }
                let values = work.values();
                work.correlate(all, &mut saved, &mut wanted, values);
                work.gradients(all);
            }
        }
        let [dweight, dbias] = wanted.map(|memory| memory.map(|memory| memory.rows()));
        Gradient { dx: if in_place { dy.tensor() } else { dx.tensor() }, dweight, dbias }
    }
}

/// A tensor's argument and type.
type Typed = (Planes, DType);

impl Work<'_> {
    fn place(&self, tensor: &Tensor) -> PlaneMemory {
        PlaneMemory::new(tensor, self.call.shape, self.gpu.layout)
    }

    fn sizes(&self) -> [usize; 3] {
        let Size { samples, channels, spatial } = self.call.shape;
        [samples, channels, spatial]
    }

    /// For the statistics.
    fn room(&self) -> Saved {
        let Size { samples, channels, .. } = self.call.shape;
        let sets = if self.call.norm == Norm::GroupNorm { samples * self.call.groups } else { channels };
        Saved::new(self.call.x.dtype(), sets)
    }

    fn values(&mut self) -> *mut c_void {
        self.values.as_mut_ptr().cast()
    }

    fn round(&self, value: f64) -> f64 {
        compute_type(self.call.x.dtype()).narrow(value)
    }

    fn compute(&self) -> isonorm::DType {
        dtype(compute_type(self.call.x.dtype()))
    }

    /// How a kernel takes tensors of these types.
    fn storage<const N: usize>(&self, types: [DType; N]) -> Storage {
        let x = self.call.x.dtype();
        if types.iter().all(|dtype| *dtype == x) { Storage::Of(dtype(x)) } else { Storage::Any }
    }

    /// One of the shapes in which `launch` works, for tensors of this storage.
    fn choose<L>(&self, storage: Storage, more: Option<Shape>, launch: impl Fn(Shape) -> Option<L>) -> (Shape, L) {
        let shapes = shapes(self.call.x.dtype());
        let shapes = if storage == Storage::Any { &shapes[3..] } else { &shapes };
        let all = shapes.iter().copied().chain(more);
        let mut all: Vec<_> = all.filter_map(|shape| Some((shape, launch(shape)?))).collect();
        all.swap_remove(self.gpu.choice % all.len())
    }

    fn groups(&self, storage: Storage) -> (Shape, Groups, [u32; 3]) {
        let ([samples, channels, spatial], call) = (self.sizes(), self.call);
        let (per, count) = (channels / call.groups, samples * call.groups);
        let hidden = per * spatial;
        let launch = |shape: Shape| shape.launch(hidden, dtype(call.x.dtype()));
        let whole = whole(call.x.dtype());
        let is_whole = self.gpu.layout.strides[1..] == [spatial, 1] && self.gpu.layout.offset == 0;
        let launch_whole = launch(whole).filter(|_| is_whole && storage != Storage::Any);
        let more = Some(clustered(call.x.dtype())).filter(|_| storage != Storage::Any);
        let (shape, launch) = launch_whole.map_or_else(|| self.choose(storage, more, launch), |launch| (whole, launch));
        let rows = Rows {
            eps: self.round(call.eps.value),
            eps_outside: call.eps.outside.into(),
            weight_offset: self.round(call.offset),
            ..Rows::new(count, hidden, &launch)
        };
        let groups = Groups { rows, groups: call.groups as i64, per: per as i64, spatial: spatial as i64 };
        // One cluster less than there is work for, if that is any: blocks go on to further rows.
        (shape, groups, [(launch.blocks(count) - launch.cluster).max(launch.cluster), launch.threads, launch.cluster])
    }

    fn group_forward(&mut self, x: Planes, y: Planes, y_type: DType, saved: &mut Saved) {
        let storage = self.storage([y_type]);
        let (shape, groups, grid) = self.groups(storage);
        let (weight, bias) = (argument(&mut self.weight), argument(&mut self.bias));
        let args = GroupForward { groups, x, y, weight, bias, stats: address(saved) };
        let kernel = PlaneKernel::GroupForward { x: dtype(self.call.x.dtype()), shape, y: storage };
        self.run(kernel, &args, grid);
    }

    fn group_backward(
        &mut self,
        [(x, _), (dy, dy_type), (dx, dx_type)]: [Typed; 3],
        is_known: bool,
        saved: &mut Saved,
    ) {
        let storage = self.storage([dy_type, dx_type]);
        let (shape, groups, grid) = self.groups(storage);
        let (known, stats) = if is_known { (address(saved), null_mut()) } else { (null_mut(), address(saved)) };
        let args = GroupBackward { groups, x, dy, dx, weight: argument(&mut self.weight), known, stats };
        let kernel = PlaneKernel::GroupBackward { x: dtype(self.call.x.dtype()), shape, dy: storage, dx: storage };
        self.run(kernel, &args, grid);
    }

    /// Which of the two kernels sums over channels, its blocks and threads, and what it takes.
    fn channels(&self, storage: Storage) -> (ChannelLaunch, [u32; 3], Channels) {
        let (call, sizes, x) = (self.call, self.sizes(), dtype(self.call.x.dtype()));
        let is_side_by_side = self.gpu.layout.is_last() && storage == Storage::Of(x) && self.gpu.choice % 4 != 3;
        let launch = if is_side_by_side {
            ChannelLaunch::side_by_side_in(sizes, x, [1, 2, 3][self.gpu.choice % 3])
        } else {
            let shared = if storage == Storage::Any { 2 } else { 1 };
            let (shape, launch) = self.choose(storage, None, |shape| ChannelLaunch::in_shape(shape, sizes, x, shared));
            // Planes of a part of a warp are shared by blocks too.
            let is_small = shape == shapes(call.x.dtype())[0] && self.gpu.choice % 8 == 4;
            if is_small { ChannelLaunch::in_shape(shape, sizes, x, 3).unwrap_or(launch) } else { launch }
        };
        let channels = Channels {
            eps: self.round(call.eps.value),
            eps_outside: call.eps.outside.into(),
            weight_offset: self.round(call.offset),
            ..Channels::new(sizes, &launch)
        };
        // One cluster less than there is work for: it goes on to another channel. Side by side there is one for each.
        let less = if is_side_by_side { 0 } else { launch.cluster };
        (launch, [(launch.blocks - less).max(launch.cluster), launch.threads, launch.cluster], channels)
    }

    fn run<A: Copy>(&self, kernel: PlaneKernel, args: &A, [blocks, threads, cluster]: [u32; 3]) {
        self.emulation.run_in_clusters(&Kernel::Planes(kernel), args, blocks, threads, cluster);
    }

    fn running(&mut self) -> Running {
        let [mean, var] =
            self.running.as_mut().map_or([Argument::NONE; 2], |both| both.each_mut().map(Memory::argument));
        Running { mean, var, momentum: self.round(self.call.momentum), biased: self.call.biased.into() }
    }

    fn moments(&mut self, x: Planes, saved: &mut Saved, values: *mut c_void) {
        let x_type = dtype(self.call.x.dtype());
        let (launch, grid, channels) = self.channels(Storage::Of(x_type));
        let (weight, bias) = (argument(&mut self.weight), argument(&mut self.bias));
        let running = self.running();
        let args = Moments { channels, x, weight, bias, running, stats: address(saved), values };
        self.run(launch.moments(x_type), &args, grid);
    }

    fn correlate(
        &mut self,
        [(x, _), (dy, dy_type), _]: [Typed; 3],
        saved: &mut Saved,
        wanted: &mut [Option<Memory>; 2],
        values: *mut c_void,
    ) {
        let storage = self.storage([dy_type]);
        let x_type = dtype(self.call.x.dtype());
        let (launch, grid, channels) = self.channels(storage);
        let [dweight, dbias] = wanted.each_mut().map(argument);
        let groups = if self.call.norm == Norm::GroupNorm { self.call.groups as i64 } else { 0 };
        let (stats, weight) = (address(saved), argument(&mut self.weight));
        let args = Correlate { channels, x, dy, groups, stats, weight, dweight, dbias, values };
        self.run(launch.correlate(x_type, storage), &args, grid);
    }

    fn evaluate(&mut self, is_backward: bool, saved: &mut Saved, values: *mut c_void) {
        let Running { mean, var, .. } = self.running();
        let args = Evaluate {
            channels: self.call.shape.channels as i64,
            eps_outside: self.call.eps.outside.into(),
            is_backward: is_backward.into(),
            eps: self.round(self.call.eps.value),
            weight_offset: self.round(self.call.offset),
            mean,
            var,
            weight: argument(&mut self.weight),
            bias: argument(&mut self.bias),
            stats: address(saved),
            values,
        };
        let kernel = PlaneKernel::Evaluate { compute: self.compute() };
        self.each_channel(&Kernel::Planes(kernel), &args);
    }

    fn each_channel<A: Copy>(&self, kernel: &Kernel, args: &A) {
        self.emulation.run(kernel, args, self.call.shape.channels.div_ceil(64) as u32, 64);
    }

    /// Fewer threads than there is work for: they go on.
    fn each_line<A: Copy>(&self, kernel: PlaneKernel, lines: Lines, args: &A) {
        let (blocks, _) = lines.launch(8);
        self.emulation.run(&Kernel::Planes(kernel), args, blocks, 64);
    }

    fn apply(&mut self, [(x, x_type), (y, y_type)]: [Typed; 2], rounded: Option<DType>) {
        let storage = self.storage([x_type, y_type]);
        let lines = Lines::new(self.sizes(), self.gpu.layout.is_last());
        let rounded = rounded.map(dtype);
        let args = Apply::new(lines, x, y, self.values(), self.call.shape.channels, rounded);
        let kernel = PlaneKernel::Apply { compute: self.compute(), x: storage, y: storage };
        self.each_line(kernel, lines, &args);
    }

    fn gradients(&mut self, [(x, _), (dy, dy_type), (dx, dx_type)]: [Typed; 3]) {
        let storage = self.storage([dy_type, dx_type]);
        let lines = Lines::new(self.sizes(), self.gpu.layout.is_last());
        let channels = self.call.shape.channels as i64;
        let args = PlaneGradients { lines, x, dy, dx, values: self.values(), channels };
        let kernel = PlaneKernel::Gradients { x: dtype(self.call.x.dtype()), dy: storage, dx: storage };
        self.each_line(kernel, lines, &args);
    }
}

/// Running statistics after a batch of InstanceNorm with these statistics.
pub(crate) fn instances(saved: &mut Saved, shape: Size, momentum: f64, running: &[Tensor; 2]) -> [Tensor; 2] {
    let (x, mut memory) =
        (if matches!(saved, Saved::F64(_)) { DType::F64 } else { DType::F32 }, running.each_ref().map(parameter));
    let [mean, var] = memory.each_mut().map(Memory::argument);
    let running = Running { mean, var, momentum: x.narrow(momentum), biased: 0 };
    let Size { samples, channels, spatial } = shape;
    let [samples, channels, spatial] = [samples, channels, spatial].map(|n| n as i64);
    let args = Instances { samples, channels, spatial, stats: address(saved), running };
    let kernel = Kernel::Planes(PlaneKernel::Instances { compute: dtype(x) });
    emulation(x).run(&kernel, &args, 1, 32);
    memory.map(|memory| memory.rows())
}
