//! NVRTC compiles every kernel, and rows stay in registers. Skipped where it is not found: a GPU is not needed.

use std::collections::HashSet;
use std::path::PathBuf;
use std::sync::Mutex;

use isonorm::DType;
use isonorm_cuda::Nvrtc;
use isonorm_cuda::kernels::{Affine, ChannelLaunch, Compiled, Gradients, Kernel, Norm, PlaneKernel, Shape, Storage};
use rayon::prelude::*;

/// What `ISONORM_NVRTC` names, the package that `./test` installs, or the system's.
fn nvrtc() -> Option<Nvrtc> {
    if let Some(path) = std::env::var_os("ISONORM_NVRTC") {
        return Some(Nvrtc::load(&PathBuf::from(path)).expect("ISONORM_NVRTC names NVRTC"));
    }
    let system = ["libnvrtc.so.13", "libnvrtc.so.12"].map(PathBuf::from);
    package().into_iter().chain(system).find_map(|path| Nvrtc::load(&path).ok())
}

/// `target/venv/lib/PYTHON/site-packages/nvidia/PACKAGE/lib/libnvrtc.so.N`
fn package() -> Option<PathBuf> {
    let inside = |folder: PathBuf| std::fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path());
    let pythons = inside(PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../target/venv/lib")));
    let packages = pythons.flat_map(|python| inside(python.join("site-packages/nvidia")));
    let mut files = packages.flat_map(|package| inside(package.join("lib")));
    files.find(|path| path.to_string_lossy().contains("libnvrtc.so."))
}

const TYPES: [DType; 4] = [DType::F32, DType::F64, DType::F16, DType::Bf16];

/// The compute capability of an architecture.
fn capability(arch: &str) -> (i32, i32) {
    let digits = arch.split('_').next_back().expect("a name has a last word");
    let number: i32 = digits.parse().expect("it is a number");
    (number / 10, number % 10)
}

const GRADIENTS: [Gradients; 3] = [Gradients::None, Gradients::Weight, Gradients::Both];

/// The kernels that calls with tensors of x's type take on this architecture, of some sizes: rows of a part of a warp,
/// of a block, of several blocks or a block with two leaves a thread, long ones.
fn kernels(x: DType, arch: &str, norms: &[Norm], gradients: &[Gradients]) -> Vec<Kernel> {
    let (own, any, none) = (Storage::Of(x), Storage::Any, Storage::None);
    let compute = if x == DType::F64 { x } else { DType::F32 };
    let mut kernels: Vec<Kernel> = vec![Kernel::Finish { compute }];
    for norm in norms.iter().copied() {
        kernels.push(Kernel::Parameters { norm, x, dy: own });
        for hidden in [64, 4096, 20_000, 3_000_000] {
            let shape = Shape::forward(hidden, x, capability(arch));
            let whole = Shape { is_whole: hidden == 4096, ..shape };
            kernels.extend([shape, whole].map(|shape| Kernel::Forward {
                norm,
                x,
                shape,
                params: own,
                affine: Affine::Open,
                y: own,
                summands: if hidden == 4096 { own } else { none },
            }));
            kernels.push(Kernel::Forward {
                norm,
                x,
                shape: whole,
                params: own,
                affine: Affine::Both,
                y: own,
                summands: none,
            });
            for gradients in gradients {
                let (shape, gradients) = Shape::backward(hidden, x, *gradients, capability(arch));
                let whole = Shape { is_whole: hidden == 4096, ..shape };
                kernels.extend([shape, whole].map(|shape| Kernel::Backward {
                    norm,
                    x,
                    shape,
                    params: own,
                    affine: if shape.is_whole { Affine::Weight } else { Affine::Open },
                    dy: own,
                    others: own,
                    gradients,
                }));
            }
        }
    }
    let (norm, gradients) = (Norm::Layer, gradients[0]);
    let shape = Shape::forward(4096, x, capability(arch));
    let affine = Affine::Open;
    kernels.push(Kernel::Forward { norm, x, shape, params: any, affine, y: any, summands: any });
    kernels.push(Kernel::Forward { norm, x, shape, params: own, affine, y: none, summands: none });
    let (shape, gradients) = Shape::backward(4096, x, gradients, capability(arch));
    for (norm, types) in [(norm, if x == DType::F64 { own } else { any }), (Norm::Llama, own)] {
        kernels.push(Kernel::Backward { norm, x, shape, params: types, affine, dy: types, others: types, gradients });
    }
    let mut seen = HashSet::new();
    kernels.retain(|kernel| seen.insert(*kernel));
    kernels
}

/// Those of samples of channels, whose tensors beside x are of these types.
fn plane_kernels(x: DType, arch: &str, storages: &[Storage]) -> Vec<Kernel> {
    let capability = capability(arch);
    let backward = |hidden| Shape::backward(hidden, x, Gradients::None, capability).0;
    let own = Storage::Of(x);
    let compute = if x == DType::F64 { x } else { DType::F32 };
    let mut kernels = vec![PlaneKernel::Evaluate { compute }, PlaneKernel::Instances { compute }];
    for channels in [64, 4096] {
        let launch = ChannelLaunch::side_by_side([64, channels, 49], x, capability);
        kernels.extend([launch.moments(x), launch.correlate(x, own)]);
    }
    for storage in storages.iter().copied() {
        kernels.push(PlaneKernel::Apply { compute, x: storage, y: storage });
        kernels.push(PlaneKernel::Gradients { x, dy: storage, dx: storage });
        let shape = backward(4096);
        kernels.push(PlaneKernel::GroupBackward { x, shape, dy: storage, dx: storage });
    }
    for hidden in [64, 4096, 3_000_000] {
        let whole = |shape| Shape { is_whole: hidden == 4096, ..shape };
        kernels.push(PlaneKernel::GroupForward { x, shape: whole(Shape::forward(hidden, x, capability)), y: own });
        kernels.push(PlaneKernel::GroupBackward { x, shape: whole(backward(hidden)), dy: own, dx: own });
        let samples = if hidden == 4096 { 32 } else { 2 };
        let launch = ChannelLaunch::new([samples, 64, hidden], x, capability).expect("planes fit");
        kernels.extend([launch.moments(x), launch.correlate(x, own)]);
    }
    kernels.into_iter().map(Kernel::Planes).collect()
}

fn all_kernels(x: DType, arch: &str) -> Vec<Kernel> {
    let mut all = kernels(x, arch, &[Norm::Rms, Norm::Layer], &GRADIENTS);
    // f64 goes with f64 alone.
    let storages = [Storage::Of(x), Storage::Any];
    all.extend(plane_kernels(x, arch, &storages[..if x == DType::F64 { 1 } else { 2 }]));
    all
}

/// A third of the kernels, each type on one architecture, and every architecture; all of them with all take many
/// minutes.
#[test]
fn kernels_fit_the_registers() {
    for (arch, x) in [("sm_80", DType::F16), ("sm_90", DType::Bf16), ("sm_100", DType::F32), ("sm_90", DType::F64)] {
        fit(arch, all_kernels(x, arch).into_iter().step_by(3).collect());
    }
}

#[test]
#[ignore = "takes many minutes"]
fn all_kernels_fit_the_registers() {
    for arch in ["sm_80", "sm_90", "sm_100"] {
        fit(arch, TYPES.into_iter().flat_map(|x| all_kernels(x, arch)).collect());
    }
}

/// PTX, which a driver assembles for GPUs that are newer than NVRTC.
#[test]
fn kernels_compile_to_ptx() {
    let arch = "compute_90";
    let few = kernels(DType::Bf16, arch, &[Norm::Layer], &GRADIENTS).into_iter().step_by(10).collect();
    each(arch, few, |kernel, compiled| assert!(compiled.code.starts_with(b"//"), "{}: no PTX", kernel.name()));
}

/// The assembler moves nothing from registers to memory.
fn fit(arch: &str, kernels: Vec<Kernel>) {
    let spills = Mutex::new(Vec::new());
    each(arch, kernels, |kernel, compiled| {
        assert!(compiled.code.starts_with(b"\x7fELF"), "{}: no code", kernel.name());
        let says = |word| compiled.log.lines().find(|line| line.contains(word)).unwrap_or("").trim();
        let (memory, registers) = (says("bytes spill stores"), says("registers"));
        let line = format!("{} for {arch}: {memory} {registers}", kernel.name());
        eprintln!("{line}");
        let words: Vec<&str> = memory.split_whitespace().collect();
        let before = |word| words.iter().position(|w| *w == word).and_then(|at| words[at - 3].parse::<usize>().ok());
        if before("stores,") != Some(0) {
            spills.lock().expect("no test panicked").push(line);
        }
    });
    let spills = spills.into_inner().expect("no test panicked");
    assert!(spills.is_empty(), "{}", spills.join("\n"));
}

/// Compiles kernels, on all processors.
fn each(arch: &str, kernels: Vec<Kernel>, check: impl Fn(&Kernel, Compiled) + Sync) {
    let Some(nvrtc) = nvrtc() else {
        eprintln!("skipped: there is no NVRTC (ISONORM_NVRTC names one)");
        return;
    };
    let (major, minor) = nvrtc.version();
    kernels.into_par_iter().for_each(|kernel| {
        let compiled = nvrtc.compile(&kernel, arch).unwrap_or_else(|e| panic!("NVRTC {major}.{minor}: {e}"));
        check(&kernel, compiled);
    });
}
