//! A call over channels with its tensors in device memory, beside the core.

use isonorm::Level;
use isonorm_cuda::{
    BatchNorm, Device, Error, GroupNorm, PlaneBackwardIo, PlaneIo, Planes, PlanesMut, Running, Slice, Stream,
};
use isonorm_testing::DType;
use isonorm_testing::golden::Norm;
use isonorm_testing::oracle::forward::Channels;

use crate::call::{Call, Found, How};
use crate::gradients::{Backward, Found as Gradient};
use crate::support::core::{Tensor, assert_same_bits, compute_type, one};
use crate::support::gpu::{self, Memory};

pub(crate) fn stream() -> Stream<'static> {
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
pub(crate) struct Placed<'a> {
    call: &'a Call,
    how: How,
    stream: &'a Stream<'static>,
    weight: Option<Memory>,
    bias: Option<Memory>,
    running: Option<[Memory; 2]>,
    scratch: Memory,
    pub(crate) stats: Memory,
}

impl<'a> Placed<'a> {
    pub(crate) fn new(call: &'a Call, how: How, stream: &'a Stream<'static>) -> Self {
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

    pub(crate) fn forward(&mut self) -> Result<Found, Error> {
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
    pub(crate) fn backward(&mut self, backward: &Backward, is_known: bool) -> Result<Gradient, Error> {
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

pub(crate) fn check(backward: &Backward, how: How) {
    let (stream, call) = (stream(), &backward.call);
    let label = format!("{:?} {:?} in {}, {:?}, {how:?}", call.norm, call.shape, call.groups, call.x.dtype());
    let mut placed = Placed::new(call, how, &stream);
    let (expected, found) = (call.run(how, one(Level::detect())), placed.forward().expect("a valid call"));
    assert_same_bits(&format!("{label}, y"), call.shape.spatial, &expected.y, &found.y);
    let reported = expected.reported.iter().zip(&found.reported);
    // Of no values nothing is reported.
    for (name, (expected, found)) in ["mean", "var", "rstd"].iter().zip(reported).filter(|_| call.x.len() > 0) {
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
