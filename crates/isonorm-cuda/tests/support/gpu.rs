//! The emulated driver and NVRTC, under which this crate's own way to a GPU runs whole: `tests/emulation`.
#![allow(unsafe_code)]

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use half::{bf16, f16};
use isonorm::DType;
use isonorm_cuda::{Buffer, Device, RowNorm, Slice, SliceMut, Stream};
use isonorm_testing::DType as Name;

use super::core::{Norm as Spec, Tensor, Which};
use super::memory::dtype;

/// Builds the two libraries and names them to this process, before anything else of the crate is used. Kernels are kept
/// beside them, for the next run of the tests.
pub(crate) fn emulate() {
    static DONE: OnceLock<()> = OnceLock::new();
    DONE.get_or_init(|| {
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("gpu");
        std::fs::create_dir_all(&folder).expect("the folder of temporary files can be written");
        for (variable, name) in [("ISONORM_CUDA_DRIVER", "driver"), ("ISONORM_NVRTC", "nvrtc")] {
            // SAFETY: the tests of a file wait for this before they start anything that reads the environment.
            unsafe { std::env::set_var(variable, build(&folder, name)) };
        }
        // SAFETY: as above.
        unsafe { std::env::set_var("ISONORM_CACHE", folder.join(format!("cache-{:016x}", emulation_hash()))) };
    });
}

/// `tests/emulation`, on which the compiled kernels depend too.
fn emulation_hash() -> u64 {
    use std::hash::{DefaultHasher, Hash, Hasher};
    let mut hasher = DefaultHasher::new();
    for file in ["cuda.hpp", "convert.cuh", "nvrtc.cpp"] {
        std::fs::read(sources().join(file)).expect("the emulation's sources are there").hash(&mut hasher);
    }
    hasher.finish()
}

fn sources() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/emulation")
}

fn build(folder: &Path, name: &str) -> PathBuf {
    let library = folder.join(format!("{name}.so"));
    let own = folder.join(format!("{name}.{}", std::process::id()));
    let mut command = Command::new("g++");
    command.args(["-std=c++20", "-O1", "-Wall", "-Wextra", "-Werror", "-fPIC", "-shared"]);
    command.arg(format!("-DEMULATION=\"{}\"", sources().display()));
    command.arg("-o").arg(&own).arg(sources().join(format!("{name}.cpp")));
    let output = command.output().expect("g++ is there (Debian: g++)");
    assert!(output.status.success(), "g++: {}", String::from_utf8_lossy(&output.stderr));
    std::fs::rename(&own, &library).expect("the folder can be written");
    library
}

/// Runs an ignored test of this program in a process of its own, with these variables.
pub(crate) fn in_a_process(test: &str, scenario: &str, variables: &[(&str, &str)]) {
    let mut command = Command::new(std::env::current_exe().expect("the program has a path"));
    command.args(["--exact", test, "--ignored"]).env("ISONORM_SCENARIO", scenario);
    let output = command.envs(variables.iter().copied()).output().expect("the program starts");
    assert!(output.status.success(), "{scenario}: {}", String::from_utf8_lossy(&output.stdout));
}

/// A tensor in device memory.
pub(crate) struct Memory {
    buffer: Buffer,
    name: Name,
}

impl Memory {
    pub(crate) fn of(device: &Device, tensor: &Tensor) -> Self {
        let buffer = match tensor {
            Tensor::F32(v) => device.upload(v),
            Tensor::F64(v) => device.upload(v),
            Tensor::F16(v) => device.upload(v),
            Tensor::Bf16(v) => device.upload(v),
        };
        Memory { buffer: buffer.expect("the emulation has memory"), name: tensor.dtype() }
    }

    /// Of `len` elements.
    pub(crate) fn empty(device: &Device, name: Name, len: usize) -> Self {
        let buffer = device.allocate(len * name.digits() / 2).expect("the emulation has memory");
        Memory { buffer, name }
    }

    /// What it holds after all that was launched on `stream`.
    pub(crate) fn read(&self, stream: &Stream<'_>) -> Tensor {
        let (buffer, failed) = (&self.buffer, "the emulation copies");
        match self.name {
            Name::F32 => Tensor::F32(buffer.read(stream).expect(failed)),
            Name::F64 => Tensor::F64(buffer.read(stream).expect(failed)),
            Name::F16 => Tensor::F16(buffer.read(stream).expect(failed)),
            Name::Bf16 => Tensor::Bf16(buffer.read(stream).expect(failed)),
        }
    }

    pub(crate) fn slice(&self) -> Slice<'_> {
        match dtype(self.name) {
            DType::F32 => self.buffer.slice::<f32>(),
            DType::F64 => self.buffer.slice::<f64>(),
            DType::F16 => self.buffer.slice::<f16>(),
            DType::Bf16 => self.buffer.slice::<bf16>(),
        }
    }

    pub(crate) fn slice_mut(&mut self) -> SliceMut<'_> {
        match dtype(self.name) {
            DType::F32 => self.buffer.slice_mut::<f32>(),
            DType::F64 => self.buffer.slice_mut::<f64>(),
            DType::F16 => self.buffer.slice_mut::<f16>(),
            DType::Bf16 => self.buffer.slice_mut::<bf16>(),
        }
    }
}

/// A norm's options beside its parameters in device memory.
pub(crate) fn norm_of<'a>(spec: &Spec, params: [Option<Slice<'a>>; 2]) -> RowNorm<'a> {
    let mut norm = if spec.which == Which::Rms { RowNorm::rms(spec.hidden) } else { RowNorm::layer(spec.hidden) };
    norm = norm.eps(spec.eps.value).weight_offset(spec.offset);
    norm = if spec.eps.outside { norm.eps_outside() } else { norm };
    norm = if spec.llama { norm.recipe(isonorm::Recipe::Llama) } else { norm };
    norm = spec.partial.map_or(norm, |k| norm.partial(k));
    let [weight, bias] = params;
    norm = weight.map_or(norm, |weight| norm.weight(weight));
    bias.map_or(norm, |bias| norm.bias(bias))
}
