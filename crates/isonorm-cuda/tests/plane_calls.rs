//! BatchNorm, GroupNorm and InstanceNorm from options to bits: checks, kernels, launches. Driver and compiler are
//! emulated; bits are the core's.
#![allow(dead_code, unsafe_code)] // of what is shared with the core's tests; an overlap

#[path = "../../isonorm/tests/channels/call.rs"]
mod call;
#[path = "../../isonorm/tests/backward_planes/gradients.rs"]
mod gradients;
mod support;

use call::{Call, Found, How};
use gradients::{Backward, Found as Gradient};
use isonorm::Level;
use isonorm_cuda::{
    BatchNorm, Device, Error, GroupNorm, PlaneBackwardIo, PlaneIo, Planes, PlanesMut, Running, Slice, SliceMut, Stream,
};
use isonorm_testing::DType;
use isonorm_testing::golden::Norm;
use isonorm_testing::oracle::forward::Channels;
use isonorm_testing::values::Kind;
use support::core::{Tensor, assert_same_bits, compute_type, one};
use support::gpu::{self, Memory};

fn stream() -> Stream<'static> {
    gpu::emulate();
    Stream::new(Device::new(0).expect("the emulation has two GPUs")).expect("a stream")
}

/// A norm with its parameters in device memory.
enum AnyNorm<'a> {
    Batch(BatchNorm<'a>),
    Group(GroupNorm<'a>),
}

/// `$norm` with the options that both have.
macro_rules! with_options {
    ($call:expr, $weight:expr, $bias:expr, $norm:expr) => {{
        let mut norm = $norm.eps($call.eps.value).weight_offset($call.offset);
        norm = if $call.eps.outside { norm.eps_outside() } else { norm };
        norm = $weight.map_or(norm, |weight| norm.weight(weight));
        $bias.map_or(norm, |bias| norm.bias(bias))
    }};
}

fn norm_of<'a>(call: &Call, weight: Option<Slice<'a>>, bias: Option<Slice<'a>>) -> AnyNorm<'a> {
    let channels = call.shape.channels;
    match call.norm {
        Norm::GroupNorm if call.groups == channels => {
            AnyNorm::Group(with_options!(call, weight, bias, GroupNorm::instance(channels)))
        }
        Norm::GroupNorm => AnyNorm::Group(with_options!(call, weight, bias, GroupNorm::new(call.groups, channels))),
        _ => {
            let norm = with_options!(call, weight, bias, BatchNorm::new(channels)).momentum(call.momentum);
            AnyNorm::Batch(if call.biased { norm.biased_running_var() } else { norm })
        }
    }
}

/// A call's tensors in device memory, in the order of `how`.
struct Placed<'a> {
    call: &'a Call,
    how: How,
    stream: &'a Stream<'static>,
    weight: Option<Memory>,
    bias: Option<Memory>,
    running: Option<[Memory; 2]>,
    scratch: Memory,
    stats: Memory,
}

impl<'a> Placed<'a> {
    fn new(call: &'a Call, how: How, stream: &'a Stream<'static>) -> Self {
        let device = stream.device();
        let of = |tensor: &Option<Tensor>| tensor.as_ref().map(|tensor| Memory::of(device, tensor));
        let (compute, Channels { samples, channels, .. }) = (compute_type(call.x.dtype()), call.shape);
        let sets = if call.norm == Norm::GroupNorm { samples * call.groups } else { channels };
        let scratch = match norm_of(call, None, None) {
            AnyNorm::Batch(norm) => norm.scratch(),
            AnyNorm::Group(norm) => norm.scratch(samples),
        };
        Placed {
            call,
            how,
            stream,
            weight: of(&call.weight),
            bias: of(&call.bias),
            running: call.running.as_ref().map(|(mean, var)| [mean, var].map(|tensor| Memory::of(device, tensor))),
            scratch: Memory::empty(device, compute, scratch),
            stats: Memory::empty(device, compute, 5 * sets),
        }
    }

    fn memory(&self, tensor: &Tensor) -> Memory {
        Memory::of(self.stream.device(), &self.call.placed(self.how, tensor))
    }

    fn planes<'m>(&self, memory: &'m Memory) -> Planes<'m> {
        let Channels { channels, spatial, .. } = self.call.shape;
        let planes = if self.how.last { Planes::channels_last } else { Planes::channels_first };
        planes(memory.slice(), channels, spatial)
    }

    fn planes_mut<'m>(&self, memory: &'m mut Memory) -> PlanesMut<'m> {
        let Channels { channels, spatial, .. } = self.call.shape;
        let planes = if self.how.last { PlanesMut::channels_last } else { PlanesMut::channels_first };
        planes(memory.slice_mut(), channels, spatial)
    }

    fn read(&self, memory: &Memory) -> Tensor {
        self.call.logical(self.how, &memory.read(self.stream))
    }

    fn forward(&mut self) -> Result<Found, Error> {
        let (stream, call, mut scratch, mut stats) = (self.stream, self.call, self.take_scratch(), self.take_stats());
        let (weight, bias) = (self.weight.take(), self.bias.take());
        let (mut x, mut running) = (self.memory(&call.x), self.running.take());
        let mut y = Memory::empty(stream.device(), call.y_type, call.x.len());
        let norm = norm_of(call, weight.as_ref().map(Memory::slice), bias.as_ref().map(Memory::slice));
        let io = if self.how.in_place {
            PlaneIo::in_place(self.planes_mut(&mut x))
        } else {
            PlaneIo::new(self.planes(&x), self.planes_mut(&mut y))
        };
        let io = io.stats(stats.slice_mut());
        match (norm, &mut running) {
            (AnyNorm::Group(norm), _) => norm.forward(stream, io)?,
            (AnyNorm::Batch(norm), Some([mean, var])) if call.norm == Norm::BatchNormEval => {
                norm.evaluate(stream, io.scratch(scratch.slice_mut()), mean.slice(), var.slice())?;
            }
            (AnyNorm::Batch(norm), running) => {
                let running = running.as_mut().map(|[mean, var]| Running::new(mean.slice_mut(), var.slice_mut()));
                norm.train(stream, io.scratch(scratch.slice_mut()), running)?;
            }
        }
        let y = self.read(if self.how.in_place { &x } else { &y });
        let running = running.map(|[mean, var]| (mean.read(stream), var.read(stream)));
        let saved = stats.read(stream);
        (self.weight, self.bias, self.scratch, self.stats) = (weight, bias, scratch, stats);
        Ok(Found { y, reported: reported(&saved), running })
    }

    fn take_scratch(&mut self) -> Memory {
        std::mem::replace(&mut self.scratch, Memory::empty(self.stream.device(), DType::F32, 0))
    }

    fn take_stats(&mut self) -> Memory {
        std::mem::replace(&mut self.stats, Memory::empty(self.stream.device(), DType::F32, 0))
    }

    /// With the statistics that `forward` has saved, or without.
    fn backward(&mut self, backward: &Backward, is_known: bool) -> Result<Gradient, Error> {
        let (stream, call, mut scratch) = (self.stream, self.call, self.take_scratch());
        let device = stream.device();
        let (x, mut dy) = (self.memory(&call.x), self.memory(&backward.dy));
        let mut dx = Memory::empty(device, backward.dx_type, call.x.len());
        let [mut dweight, mut dbias] = [backward.dweight, backward.dbias]
            .map(|dtype| dtype.map(|dtype| Memory::empty(device, dtype, call.shape.channels)));
        let norm = norm_of(call, self.weight.as_ref().map(Memory::slice), None);
        let mut io = if self.how.in_place {
            PlaneBackwardIo::in_place(self.planes(&x), self.planes_mut(&mut dy))
        } else {
            PlaneBackwardIo::new(self.planes(&x), self.planes(&dy), self.planes_mut(&mut dx))
        };
        io = io.scratch(scratch.slice_mut());
        io = if is_known { io.stats(self.stats.slice()) } else { io };
        io = dweight.as_mut().map(Memory::slice_mut).into_iter().fold(io, PlaneBackwardIo::dweight);
        io = dbias.as_mut().map(Memory::slice_mut).into_iter().fold(io, PlaneBackwardIo::dbias);
        match (norm, &self.call.running) {
            (AnyNorm::Group(norm), _) => norm.backward(stream, io)?,
            (AnyNorm::Batch(norm), Some((mean, var))) if call.norm == Norm::BatchNormEval => {
                let [mean, var] = [mean, var].map(|tensor| Memory::of(device, tensor));
                norm.evaluate_backward(stream, io, mean.slice(), var.slice())?;
                stream.synchronize()?;
            }
            (AnyNorm::Batch(norm), _) => norm.train_backward(stream, io)?,
        }
        let [dweight, dbias] = [dweight, dbias].map(|memory| memory.map(|memory| memory.read(stream)));
        let dx = self.read(if self.how.in_place { &dy } else { &dx });
        self.scratch = scratch;
        Ok(Gradient { dx, dweight, dbias })
    }
}

/// mean, var and rstd of saved statistics.
fn reported(saved: &Tensor) -> [Tensor; 3] {
    macro_rules! of {
        ($values:expr, $variant:ident) => {{
            let sets = || $values.as_chunks::<5>().0.iter();
            let stats = |[mean, delta, var, inv, scale]: &[_; 5]| isonorm::Stats {
                mean: *mean,
                delta: *delta,
                var: *var,
                inv: *inv,
                scale: *scale,
            };
            [isonorm::Stats::mean, isonorm::Stats::var, isonorm::Stats::rstd]
                .map(|of| Tensor::$variant(sets().map(|set| of(&stats(set))).collect()))
        }};
    }
    match saved {
        Tensor::F32(values) => of!(values, F32),
        Tensor::F64(values) => of!(values, F64),
        _ => panic!("statistics are of the compute type"),
    }
}

fn check(backward: &Backward, how: How) {
    let (stream, call) = (stream(), &backward.call);
    let label = format!("{:?} {:?} in {}, {:?}, {how:?}", call.norm, call.shape, call.groups, call.x.dtype());
    let mut placed = Placed::new(call, how, &stream);
    let (expected, found) = (call.run(how, one(Level::detect())), placed.forward().expect("a valid call"));
    assert_same_bits(&format!("{label}, y"), call.shape.spatial, &expected.y, &found.y);
    for (name, (expected, found)) in ["mean", "var", "rstd"].iter().zip(expected.reported.iter().zip(&found.reported)) {
        assert_same_bits(&format!("{label}, {name}"), 1, expected, found);
    }
    if let (Some(expected), Some(found)) = (&expected.running, &found.running) {
        assert_same_bits(&format!("{label}, running mean"), 1, &expected.0, &found.0);
        assert_same_bits(&format!("{label}, running var"), 1, &expected.1, &found.1);
    }
    let expected = backward.run(how, one(Level::detect()), false);
    for is_known in [false, true] {
        let found = placed.backward(backward, is_known).expect("a valid call");
        for ((name, expected), (_, found)) in expected.named().into_iter().zip(found.named()) {
            assert_same_bits(&format!("{label}, known {is_known}, {name}"), call.shape.spatial, expected, found);
        }
    }
}

fn both_ways(norm: Norm, sizes: [usize; 3], groups: usize, dtype: DType, last: bool) {
    let [samples, channels, spatial] = sizes;
    let shape = Channels { samples, channels, spatial };
    let mut backward = Backward::new(norm, shape, groups, dtype, Kind::Offset);
    backward.call.biased = last;
    for in_place in [false, true] {
        check(&backward, How { last, in_place });
    }
}

#[test]
fn groups_have_the_bits_of_the_core() {
    both_ways(Norm::GroupNorm, [3, 6, 49], 2, DType::Bf16, false);
    both_ways(Norm::GroupNorm, [2, 8, 128], 1, DType::Bf16, false);
    both_ways(Norm::GroupNorm, [3, 4, 5], 4, DType::F32, true);
}

#[test]
fn batches_have_the_bits_of_the_core() {
    both_ways(Norm::BatchNormTrain, [5, 3, 20], 3, DType::F32, false);
    both_ways(Norm::BatchNormTrain, [40, 24, 1], 24, DType::Bf16, true);
    // So many samples of so few channels that blocks share them.
    both_ways(Norm::BatchNormTrain, [64, 2, 3], 2, DType::F32, false);
    both_ways(Norm::BatchNormTrain, [16, 4, 33], 4, DType::F32, true);
    both_ways(Norm::BatchNormEval, [5, 3, 20], 3, DType::F32, false);
    both_ways(Norm::BatchNormEval, [3, 4, 5], 4, DType::F32, true);
}

#[test]
fn instances_move_running_statistics() {
    let (stream, shape) = (stream(), Channels { samples: 3, channels: 4, spatial: 5 });
    let call = Call::new(Norm::GroupNorm, shape, 4, DType::F32, Kind::Normal);
    let mut placed = Placed::new(&call, How { last: true, in_place: false }, &stream);
    placed.forward().expect("a valid call");
    let [mut mean, mut var] = [8, 9].map(|seed| Tensor::values(DType::F32, Kind::Normal, seed, 4));
    let [mut found_mean, mut found_var] = [&mean, &var].map(|tensor| Memory::of(stream.device(), tensor));
    let mut running = Running::new(found_mean.slice_mut(), found_var.slice_mut());
    running.instances(&stream, 0.3, placed.stats.slice(), 5).expect("a valid call");
    let Tensor::F32(saved) = placed.stats.read(&stream) else { panic!("f32 is computed in f32") };
    let stats = |[mean, delta, var, inv, scale]: &[f32; 5]| isonorm::Stats {
        mean: *mean,
        delta: *delta,
        var: *var,
        inv: *inv,
        scale: *scale,
    };
    let saved: Vec<_> = saved.as_chunks().0.iter().map(stats).collect();
    isonorm::Running::new(mean.slice_mut(), var.slice_mut()).instances(0.3, &saved, 5).expect("the core takes it");
    assert_same_bits(&"running mean", 1, &mean, &found_mean.read(&stream));
    assert_same_bits(&"running var", 1, &var, &found_var.read(&stream));
}

/// Nothing is written, but the parameters' gradients: +0.
#[test]
fn empty_batches() {
    let shape = Channels { samples: 0, channels: 3, spatial: 20 };
    for norm in [Norm::BatchNormTrain, Norm::BatchNormEval, Norm::GroupNorm] {
        let mut backward = Backward::new(norm, shape, 3, DType::F32, Kind::Normal);
        backward.dweight = Some(DType::Bf16);
        let call = &backward.call;
        let stream = stream();
        let mut placed = Placed::new(call, How { last: false, in_place: false }, &stream);
        let found = placed.forward().expect("a valid call");
        if norm == Norm::BatchNormTrain {
            let (before, after) = (call.running.as_ref(), found.running.as_ref());
            let (before, after) = (before.expect("given"), after.expect("given"));
            assert_same_bits(&"running mean", 1, &before.0, &after.0);
        }
        let found = placed.backward(&backward, false).expect("a valid call");
        let zero = Tensor::F32(vec![0.0; 3]);
        assert_same_bits(&format!("{norm:?}"), 1, &zero, &found.dbias.expect("it was asked for"));
    }
}

/// What is refused, in the core's words, before anything is queued: the output keeps what it held.
#[test]
fn refusals() {
    let stream = stream();
    let device = stream.device();
    let x = Memory::of(device, &Tensor::values(DType::F32, Kind::Normal, 1, 24));
    let wide = Memory::of(device, &Tensor::values(DType::F64, Kind::Normal, 1, 6));
    let mut y = Memory::empty(device, DType::F32, 24);
    let mut scratch = Memory::empty(device, DType::F32, 100);
    let before = y.read(&stream);
    let refused = |error: Error, expected: &str| assert!(error.to_string().contains(expected), "{error}");
    let mut group = |norm: GroupNorm<'_>, channels, expected: &str| {
        let y = PlanesMut::channels_first(y.slice_mut(), channels, 24 / channels);
        let io = PlaneIo::new(Planes::channels_first(x.slice(), channels, 24 / channels), y);
        refused(norm.forward(&stream, io).expect_err(expected), expected);
    };
    group(GroupNorm::new(4, 6), 6, "4 groups do not divide 6 channels");
    group(GroupNorm::new(2, 6), 3, "x has shape [1, 3, 8], expected [1, 6, 8] as the norm has");
    group(GroupNorm::new(2, 6).eps(-1.0), 6, "eps is -1, expected a finite number of at least 0");
    group(GroupNorm::new(2, 6).weight(wide.slice()), 6, "weight is f64, which does not go with x of f32");
    group(GroupNorm::new(2, 6).weight_offset(1.0), 6, "there is no weight to add it to");
    let planes = |spatial| Planes::channels_first(x.slice(), 24 / spatial, spatial);
    let last = PlaneIo::new(planes(4), PlanesMut::channels_last(y.slice_mut(), 6, 4));
    refused(GroupNorm::new(2, 6).forward(&stream, last).expect_err("a layout"), "y is channels last, expected");
    let io = PlaneIo::new(planes(1), PlanesMut::channels_first(y.slice_mut(), 24, 1)).scratch(scratch.slice_mut());
    refused(BatchNorm::new(24).train(&stream, io, None).expect_err("a count"), "has 1 value for each channel");
    let io = PlaneIo::new(planes(4), PlanesMut::channels_first(y.slice_mut(), 6, 4));
    let error = BatchNorm::new(6).train(&stream, io, None).expect_err("no scratch");
    assert_eq!(error, Error::Scratch { found: 0, expected: 72 });
    let io = PlaneIo::new(planes(4), PlanesMut::channels_first(y.slice_mut(), 6, 4)).scratch(scratch.slice_mut());
    let error = BatchNorm::new(6).momentum(f64::NAN).train(&stream, io, None).expect_err("a momentum");
    refused(error, "momentum is NaN, expected a finite number");
    // SAFETY: the call is refused.
    let shifted = unsafe { SliceMut::from_raw(x.slice().pointer().wrapping_byte_add(8), 20, isonorm::DType::F32) };
    // SAFETY: as above.
    let first = unsafe { Slice::from_raw(x.slice().pointer(), 20, isonorm::DType::F32) };
    let io = PlaneIo::new(Planes::channels_first(first, 2, 5), PlanesMut::channels_first(shifted, 2, 5));
    let error = GroupNorm::new(1, 2).forward(&stream, io).expect_err("an overlap");
    assert_eq!(error, Error::Overlap { name: "y", other: "x" });
    assert_same_bits(&"y", 24, &before, &y.read(&stream));
}
