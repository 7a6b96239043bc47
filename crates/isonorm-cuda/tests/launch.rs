//! The way to a GPU, whole: options, checks, compilation, cache, launches, streams. Driver and compiler are emulated;
//! bits are the core's.

mod support;

use isonorm::{DType, Level};
use isonorm_cuda::{Buffer, Device, Error, Io, RowNorm, Rows, RowsMut, Slice, SliceMut, Stream};
use isonorm_testing::values::Kind;
use support::core::{Norm as Spec, Tensor, Which, assert_same_bits, one};
use support::gpu::{self, download, upload};
use support::memory::dtype;

type Name = isonorm_testing::DType;

/// A norm's options beside its parameters in device memory.
fn norm_of<'a>(spec: &Spec, params: [Option<Slice<'a>>; 2]) -> RowNorm<'a> {
    let mut norm = if spec.which == Which::Rms { RowNorm::rms(spec.hidden) } else { RowNorm::layer(spec.hidden) };
    norm = norm.eps(spec.eps.value).weight_offset(spec.offset);
    norm = if spec.eps.outside { norm.eps_outside() } else { norm };
    norm = if spec.llama { norm.recipe(isonorm::Recipe::Llama) } else { norm };
    norm = spec.partial.map_or(norm, |k| norm.partial(k));
    let [weight, bias] = params;
    norm = weight.map_or(norm, |weight| norm.weight(weight));
    bias.map_or(norm, |bias| norm.bias(bias))
}

/// y of contiguous rows, on a GPU.
fn forward(stream: &Stream<'_>, spec: &Spec, x: &Tensor, y_type: Name) -> Tensor {
    let device = stream.device();
    let params = [&spec.weight, &spec.bias].map(|param| param.as_ref().map(|param| upload(device, param)));
    let params = params.each_ref().map(|param| param.as_ref().map(|(buffer, dtype)| gpu::slice(buffer, *dtype)));
    let (from, x_type) = upload(device, x);
    let mut to = device.allocate(x.len() * y_type.digits() / 2).expect("memory");
    let io = Io::new(gpu::slice(&from, x_type), gpu::slice_mut(&mut to, dtype(y_type)));
    norm_of(spec, params).forward(stream, io).unwrap_or_else(|e| panic!("{spec}: {e}"));
    download(stream, &to, y_type)
}

/// y of the core.
fn expected(spec: &Spec, x: &Tensor, y_type: Name) -> Tensor {
    let mut y = Tensor::sentinel(y_type, x.len());
    spec.apply(one(Level::detect()), isonorm::Io::new(x.slice(), y.slice_mut())).expect("the core takes the call");
    y
}

fn stream(ordinal: usize) -> Stream<'static> {
    gpu::emulate();
    Stream::new(Device::new(ordinal).expect("the emulation has two GPUs")).expect("a stream")
}

#[test]
fn rows_have_the_bits_of_the_core() {
    let stream = stream(0);
    for (x_type, param_type, hidden, which) in [
        (Name::Bf16, Name::Bf16, 128, Which::Rms),
        (Name::Bf16, Name::F32, 1000, Which::Layer),
        (Name::F32, Name::F16, 4096, Which::Rms),
        (Name::F64, Name::F64, 300, Which::Layer),
    ] {
        let x = Tensor::values(x_type, Kind::Wide, 1, 5 * hidden);
        let weight = Some(Tensor::values(param_type, Kind::Normal, 2, hidden));
        let bias = (which == Which::Layer).then(|| Tensor::values(param_type, Kind::Normal, 3, hidden));
        let spec = Spec { weight, bias, ..Spec::new(which, hidden) };
        let found = forward(&stream, &spec, &x, x_type);
        assert_same_bits(&spec.to_string(), hidden, &expected(&spec, &x, x_type), &found);
    }
}
