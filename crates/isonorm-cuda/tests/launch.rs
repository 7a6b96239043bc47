//! The way to a GPU, whole: options, checks, compilation, cache, launches, streams. Driver and compiler are emulated;
//! bits are the core's.
#![allow(unsafe_code)]

mod support;

use isonorm::{DType, Level};
use isonorm_cuda::{BackwardIo, Device, Error, Io, RowNorm, Rows, RowsMut, Slice, SliceMut, Stream};
use isonorm_testing::values::Kind;
use support::core::{Norm as Spec, Tensor, Which, assert_same_bits, one};
use support::gpu::{self, Memory, norm_of};
use support::memory::dtype;

type Name = isonorm_testing::DType;

fn stream(ordinal: usize) -> Stream<'static> {
    gpu::emulate();
    Stream::new(Device::new(ordinal).expect("the emulation has two GPUs")).expect("a stream")
}

/// A norm with parameters, and its rows.
struct Case {
    spec: Spec,
    x: Tensor,
    dy: Tensor,
    residual: Option<Tensor>,
    /// Whether dx takes dy's place.
    is_in_place: bool,
}

impl Case {
    fn new(which: Which, dtype: Name, params: Name, hidden: usize, rows: usize) -> Self {
        let values = |dtype, seed, n| Tensor::values(dtype, Kind::Normal, seed, n);
        let bias = (which == Which::Layer).then(|| values(params, 2, hidden));
        let spec = Spec { weight: Some(values(params, 1, hidden)), bias, ..Spec::new(which, hidden) };
        let [x, dy] = [3, 4].map(|seed| values(dtype, seed, rows * hidden));
        Case { spec, x, dy, residual: None, is_in_place: false }
    }

    /// y and r, then dx, dweight and dbias, of the core.
    fn expected(&self) -> [Option<Tensor>; 5] {
        let (spec, x, hidden) = (&self.spec, &self.x, self.spec.hidden);
        let (mut y, mut dx) = (Tensor::sentinel(x.dtype(), x.len()), Tensor::sentinel(x.dtype(), x.len()));
        let mut r = self.residual.as_ref().map(|residual| Tensor::sentinel(residual.dtype(), x.len()));
        let io = match (&mut r, &self.residual) {
            (Some(r), Some(residual)) => isonorm::Io::add(x.slice(), residual.slice(), r.slice_mut(), y.slice_mut()),
            _ => isonorm::Io::new(x.slice(), y.slice_mut()),
        };
        spec.apply(one(Level::detect()), io).expect("the core takes the call");
        let gradient = |param: &Option<Tensor>| param.as_ref().map(|param| Tensor::sentinel(param.dtype(), hidden));
        let (mut dweight, mut dbias) = (gradient(&spec.weight), gradient(&spec.bias));
        let mut io = isonorm::BackwardIo::new(x.slice(), self.dy.slice(), dx.slice_mut());
        if let Some(dweight) = &mut dweight {
            io = io.dweight(dweight.slice_mut());
        }
        if let Some(dbias) = &mut dbias {
            io = io.dbias(dbias.slice_mut());
        }
        spec.backward(one(Level::detect()), io).expect("the core takes the call");
        [Some(y), r, Some(dx), dweight, dbias]
    }

    /// The same, on a GPU.
    fn found(&self, stream: &Stream<'_>) -> [Option<Tensor>; 5] {
        let (device, spec, x) = (stream.device(), &self.spec, &self.x);
        let [weight, bias] =
            [&spec.weight, &spec.bias].map(|param| param.as_ref().map(|param| Memory::of(device, param)));
        let norm = norm_of(spec, [weight.as_ref().map(Memory::slice), bias.as_ref().map(Memory::slice)]);
        let (from, mut dy) = (Memory::of(device, x), Memory::of(device, &self.dy));
        let empty = |dtype, n| Memory::empty(device, dtype, n);
        let (mut y, mut dx) = (empty(x.dtype(), x.len()), empty(x.dtype(), x.len()));
        let residual = self.residual.as_ref().map(|residual| Memory::of(device, residual));
        let mut r = self.residual.as_ref().map(|residual| empty(residual.dtype(), x.len()));
        let io = match (&residual, &mut r) {
            (Some(residual), Some(r)) => Io::add(from.slice(), residual.slice(), r.slice_mut(), y.slice_mut()),
            _ => Io::new(from.slice(), y.slice_mut()),
        };
        norm.forward(stream, io).unwrap_or_else(|e| panic!("{spec}: {e}"));
        let gradient = |param: &Option<Tensor>| param.as_ref().map(|param| empty(param.dtype(), spec.hidden));
        let (mut dweight, mut dbias) = (gradient(&spec.weight), gradient(&spec.bias));
        let compute = if x.dtype() == Name::F64 { Name::F64 } else { Name::F32 };
        let mut scratch = empty(compute, norm.scratch(device, x.len() / spec.hidden, dtype(x.dtype())));
        let mut io = if self.is_in_place {
            BackwardIo::in_place(from.slice(), dy.slice_mut())
        } else {
            BackwardIo::new(from.slice(), dy.slice(), dx.slice_mut())
        }
        .scratch(scratch.slice_mut());
        if let Some(dweight) = &mut dweight {
            io = io.dweight(dweight.slice_mut());
        }
        if let Some(dbias) = &mut dbias {
            io = io.dbias(dbias.slice_mut());
        }
        norm.backward(stream, io).unwrap_or_else(|e| panic!("{spec}: {e}"));
        let dx = if self.is_in_place { dy } else { dx };
        [Some(y), r, Some(dx), dweight, dbias].map(|memory| memory.map(|memory| memory.read(stream)))
    }

    fn check(&self, stream: &Stream<'_>) {
        let names = ["y", "r", "dx", "dweight", "dbias"];
        for ((name, expected), found) in names.into_iter().zip(self.expected()).zip(self.found(stream)) {
            if let (Some(expected), Some(found)) = (expected, found) {
                assert_same_bits(&format!("{} {name}", self.spec), self.spec.hidden, &expected, &found);
            }
        }
    }
}

#[test]
fn rows_have_the_bits_of_the_core() {
    let stream = stream(0);
    Case::new(Which::Rms, Name::Bf16, Name::Bf16, 128, 37).check(&stream);
    Case::new(Which::Layer, Name::Bf16, Name::F32, 1000, 20).check(&stream);
    Case::new(Which::Rms, Name::F32, Name::F16, 2048, 5).check(&stream);
    Case::new(Which::Layer, Name::F64, Name::F64, 300, 3).check(&stream);
    let mut case = Case::new(Which::Rms, Name::Bf16, Name::Bf16, 130, 9);
    case.residual = Some(Tensor::values(Name::F32, Kind::Normal, 9, case.x.len()));
    case.spec.llama = true;
    case.check(&stream);
}

/// On GPUs of two architectures, from several threads at once, each of which finds the kernels compiled or compiles them.
#[test]
fn devices_and_threads() {
    gpu::emulate();
    std::thread::scope(|scope| {
        for i in 0..6 {
            scope.spawn(move || Case::new(Which::Rms, Name::Bf16, Name::Bf16, 128, 37).check(&stream(i % 2)));
        }
    });
}

/// A row of several blocks where the GPU has clusters; one that is read again where it has none.
#[test]
fn long_rows() {
    for ordinal in [0, 1] {
        for is_in_place in [false, true] {
            Case { is_in_place, ..Case::new(Which::Rms, Name::Bf16, Name::Bf16, 40_000, 3) }.check(&stream(ordinal));
        }
    }
}

#[test]
fn rows_with_strides_and_in_place() {
    let stream = stream(0);
    let (device, hidden) = (stream.device(), 96);
    let data = Tensor::values(Name::F32, Kind::Normal, 1, 4 * 3 * 2 * hidden);
    let spec = Spec::new(Which::Rms, hidden);
    let (shape, strides) = ([4, 3], [6 * hidden as isize, 2 * hidden as isize]);
    let mut expected = data.clone();
    spec.apply(
        one(Level::detect()),
        isonorm::Io::in_place(isonorm::RowsMut::strided(expected.slice_mut(), hidden, &shape, &strides)),
    )
    .expect("the core takes the call");
    let (from, mut own) = (Memory::of(device, &data), Memory::of(device, &data));
    let norm = norm_of(&spec, [None, None]);
    let rows = Rows::strided(from.slice(), hidden, &shape, &strides);
    norm.forward(&stream, Io::new(rows, RowsMut::strided(own.slice_mut(), hidden, &shape, &strides))).expect("strides");
    assert_same_bits(&"strided", hidden, &expected, &own.read(&stream));
    own = Memory::of(device, &data);
    norm.forward(&stream, Io::in_place(RowsMut::strided(own.slice_mut(), hidden, &shape, &strides))).expect("in place");
    assert_same_bits(&"in place", hidden, &expected, &own.read(&stream));
}

/// What is refused, before anything is queued: the output keeps what it held.
#[test]
fn refusals() {
    let stream = stream(0);
    let device = stream.device();
    let x = Memory::of(device, &Tensor::values(Name::F32, Kind::Normal, 1, 192));
    let weight = Memory::of(device, &Tensor::values(Name::F64, Kind::Normal, 1, 96));
    let mut y = Memory::empty(device, Name::F32, 192);
    let before = y.read(&stream);
    let norm = RowNorm::rms(96);
    let mut refused = |norm: RowNorm<'_>, expected: &str| {
        let error = norm.forward(&stream, Io::new(x.slice(), y.slice_mut())).expect_err(expected);
        assert!(error.to_string().contains(expected), "{error}");
    };
    refused(norm.eps(-1.0), "eps is -1, expected a finite number of at least 0");
    refused(norm.weight(weight.slice()), "weight is f64, which does not go with x of f32");
    refused(norm.weight_offset(1.0), "there is no weight to add it to");
    refused(norm.partial(97), "partial is 97, expected 1 to 96");
    refused(RowNorm::rms(100), "not a whole number of rows of 100 elements");
    refused(RowNorm::layer(96).recipe(isonorm::Recipe::Llama), "recipe is llama, which LayerNorm does not have");
    assert_same_bits(&"y", 96, &before, &y.read(&stream));
    let own = Memory::empty(device, Name::F32, 288);
    // SAFETY: the call is refused.
    let shifted = unsafe { SliceMut::from_raw(own.slice().pointer().wrapping_byte_add(4 * 96), 192, DType::F32) };
    // SAFETY: as above.
    let first = unsafe { Slice::from_raw(own.slice().pointer(), 192, DType::F32) };
    let error = norm.forward(&stream, Io::new(first, shifted)).expect_err("an overlap");
    assert_eq!(error, Error::Overlap { name: "y", other: "x" });
    let (mut dx, mut dweight) = (Memory::empty(device, Name::F32, 192), Memory::empty(device, Name::F32, 96));
    let io = BackwardIo::new(x.slice(), x.slice(), dx.slice_mut()).dweight(dweight.slice_mut());
    let error = norm.backward(&stream, io).expect_err("no scratch");
    assert!(matches!(error, Error::Scratch { found: 0, .. }), "{error}");
}

/// Sums of other types, statistics that are not whole, and scratch memory for more rows than there can be.
#[test]
fn refusals_name_what_is_wrong() {
    let stream = stream(0);
    let device = stream.device();
    let [x, wide] = [Name::F32, Name::F64].map(|name| Memory::of(device, &Tensor::values(name, Kind::Normal, 1, 192)));
    let [mut y, mut stats] = [192, 11].map(|len| Memory::empty(device, Name::F32, len));
    let mut r = Memory::empty(device, Name::F64, 192);
    let norm = RowNorm::rms(96);
    let refused = |result: Result<(), Error>, expected: &str| {
        let error = result.expect_err(expected).to_string();
        assert!(error.contains(expected), "{error}");
    };
    let io = Io::add(x.slice(), wide.slice(), r.slice_mut(), y.slice_mut());
    refused(norm.forward(&stream, io), "x is f32, which does not go with x + residual of f64");
    let io = Io::new(x.slice(), y.slice_mut()).stats(stats.slice_mut());
    refused(norm.forward(&stream, io), "stats has 11 elements, which is not a whole number of statistics of 5");
    let mut scratch = Memory::empty(device, Name::F32, 0);
    let io = BackwardIo::new(x.slice(), x.slice(), y.slice_mut()).stats(stats.slice());
    refused(norm.backward(&stream, io.scratch(scratch.slice_mut())), "not a whole number of statistics of 5");
    for hidden in [96, 40_000] {
        assert!(RowNorm::rms(hidden).scratch(device, usize::MAX, DType::F32) > 0, "{hidden}");
    }
    assert_eq!(
        RowNorm::rms(40_000).scratch(Stream::default(Device::new(1).expect("two")).device(), usize::MAX, DType::F32),
        usize::MAX
    );
}

/// Leading dimensions of any strides, where there are no rows along them.
#[test]
fn no_rows() {
    let stream = stream(0);
    let (x, mut y) = (Memory::empty(stream.device(), Name::F32, 0), Memory::empty(stream.device(), Name::F32, 0));
    let (shape, strides) = ([2, 0, 3], [7, isize::MAX, -5]);
    let rows = || Rows::strided(x.slice(), usize::MAX, &shape, &strides);
    let norm = RowNorm::layer(96);
    norm.forward(&stream, Io::new(rows(), y.slice_mut())).expect("nothing to do");
    let mut dbias = Memory::of(stream.device(), &Tensor::sentinel(Name::F32, 96));
    let io = BackwardIo::new(rows(), rows(), y.slice_mut()).dbias(dbias.slice_mut());
    norm.backward(&stream, io).expect("a sum of nothing");
    assert_same_bits(&"dbias", 96, &Tensor::F32(vec![0.0; 96]), &dbias.read(&stream));
}

#[test]
fn what_is_missing_is_named() {
    gpu::emulate();
    assert_eq!(Device::new(7).expect_err("two GPUs"), Error::Ordinal { found: 7, count: 2 });
    assert_eq!(Device::current().expect_err("no context"), Error::NoContext);
    for (scenario, variable, value) in [
        ("no GPU", "ISONORM_EMULATED_GPUS", "0"),
        ("no driver", "ISONORM_CUDA_DRIVER", "/nowhere/libcuda.so"),
        ("no NVRTC", "ISONORM_NVRTC", "/nowhere/libnvrtc.so"),
        ("an old driver", "ISONORM_CUDA_DRIVER", "libm.so.6"),
    ] {
        gpu::in_a_process("scenarios", scenario, &[(variable, value)]);
    }
}

/// Kernels are kept; a damaged file is compiled again; a folder that cannot be written is no error.
#[test]
fn the_cache() {
    gpu::emulate();
    let folder = std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("cache-{}", std::process::id()));
    let cache = ("ISONORM_CACHE", folder.to_str().expect("a path of letters"));
    gpu::in_a_process("scenarios", "a kernel", &[cache]);
    let files = || std::fs::read_dir(&folder).expect("the cache").map(|entry| entry.expect("a file").path());
    let kept: Vec<_> = files().collect();
    assert_eq!(kept.len(), 1, "one kernel, and no temporary file");
    let whole = std::fs::read(&kept[0]).expect("a file");
    // A compiler that is not there is not missed, but for what was damaged.
    for damaged in [whole[..whole.len() - 1].to_vec(), Vec::new(), vec![0; 100]] {
        std::fs::write(&kept[0], damaged).expect("a file");
        gpu::in_a_process("scenarios", "a kernel", &[cache]);
        assert_eq!(std::fs::read(&kept[0]).expect("a file").len(), whole.len(), "it was compiled again");
    }
    std::fs::remove_dir_all(&folder).expect("the folder is the test's");
    gpu::in_a_process("scenarios", "a kernel", &[("ISONORM_CACHE", "/proc/nowhere")]);
    gpu::in_a_process("scenarios", "a kernel", &[("ISONORM_CACHE", "")]);
}

/// Runs in processes of their own, which the tests above start.
#[test]
#[ignore = "a part of other tests"]
fn scenarios() {
    let forward = || -> Result<(), Error> {
        let stream = Stream::default(Device::new(0)?);
        let x = Memory::of(stream.device(), &Tensor::values(Name::F32, Kind::Normal, 1, 4));
        let mut y = Memory::empty(stream.device(), Name::F32, 4);
        RowNorm::rms(4).forward(&stream, Io::new(x.slice(), y.slice_mut()))
    };
    let says = |text: &str| {
        let error = forward().expect_err(text).to_string();
        assert!(error.contains(text), "{error}");
    };
    match std::env::var("ISONORM_SCENARIO").as_deref() {
        Ok("no GPU") => says("there is no NVIDIA GPU that this process may use"),
        Ok("no driver") => says("NVIDIA's driver is not there: tried /nowhere/libcuda.so"),
        Ok("an old driver") => says("NVIDIA's driver has no function `cuInit`"),
        Ok("no NVRTC") => says("NVRTC is not there: tried /nowhere/libnvrtc.so; install CUDA 12 or later"),
        Ok("a kernel") => forward().expect("the kernel runs"),
        other => panic!("{other:?} is no scenario"),
    }
}
