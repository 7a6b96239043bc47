//! NVRTC compiles every kernel, and rows stay in registers. Skipped where it is not found: a GPU is not needed.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use isonorm::DType;
use isonorm_cuda::Nvrtc;
use isonorm_cuda::kernels::{Affine, ChannelLaunch, Compiled, Gradients, Kernel, Norm, PlaneKernel, Shape, Storage};
use rayon::prelude::*;

/// What `ISONORM_NVRTC` names, the system's, or one that Python packages of the tests brought along.
fn nvrtc() -> Option<Nvrtc> {
    if let Some(path) = std::env::var_os("ISONORM_NVRTC") {
        return Some(Nvrtc::load(&PathBuf::from(path)).expect("ISONORM_NVRTC names NVRTC"));
    }
    let system = ["libnvrtc.so.13", "libnvrtc.so.12"].map(PathBuf::from);
    let target = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../target"));
    system.into_iter().chain(packages(&target)).find_map(|path| Nvrtc::load(&path).ok())
}

/// `VENV/lib/PYTHON/site-packages/nvidia/PACKAGE/lib/libnvrtc.so.N`
fn packages(target: &Path) -> Vec<PathBuf> {
    let inside = |folder: PathBuf| std::fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path());
    let pythons = inside(target.to_path_buf()).flat_map(|venv| inside(venv.join("lib")));
    let packages = pythons.flat_map(|python| inside(python.join("site-packages/nvidia")));
    let files = packages.flat_map(|package| inside(package.join("lib")));
    files.filter(|path| path.to_string_lossy().contains("libnvrtc.so.")).collect()
}

const TYPES: [DType; 4] = [DType::F32, DType::F64, DType::F16, DType::Bf16];

/// The compute capability of an architecture.
fn capability(arch: &str) -> (i32, i32) {
    let digits = arch.split('_').next_back().expect("a name has a last word");
    let number: i32 = digits.parse().expect("it is a number");
    (number / 10, number % 10)
}

const GRADIENTS: [Gradients; 3] = [Gradients::None, Gradients::Weight, Gradients::Both];

/// The kernels that calls with tensors of x's type take on this architecture, of some sizes: rows of a part of a warp, of a
/// block, of several blocks or a block with two leaves a thread, long ones.
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
    for (norm, types) in [(norm, any), (Norm::Llama, own)] {
        kernels.push(Kernel::Backward { norm, x, shape, params: types, affine, dy: types, others: types, gradients });
    }
    kernels.extend(plane_kernels(x, capability(arch)).into_iter().map(Kernel::Planes));
    let mut seen = HashSet::new();
    kernels.retain(|kernel| seen.insert(*kernel));
    kernels
}

/// Those of samples of channels.
fn plane_kernels(x: DType, capability: (i32, i32)) -> Vec<PlaneKernel> {
    let backward = |hidden| Shape::backward(hidden, x, Gradients::None, capability).0;
    let (own, any) = (Storage::Of(x), Storage::Any);
    let compute = if x == DType::F64 { x } else { DType::F32 };
    let mut kernels = vec![PlaneKernel::Evaluate { compute }, PlaneKernel::Instances { compute }];
    kernels.extend([PlaneKernel::SideMoments { x }, PlaneKernel::SideCorrelate { x }]);
    for storage in [own, any] {
        kernels.push(PlaneKernel::Apply { compute, x: storage, y: storage });
        kernels.push(PlaneKernel::Gradients { x, dy: storage, dx: storage });
        let shape = backward(4096);
        kernels.push(PlaneKernel::GroupBackward { x, shape, dy: storage, dx: storage });
    }
    for hidden in [64, 4096, 300_000] {
        kernels.push(PlaneKernel::GroupForward { x, shape: Shape::forward(hidden, x, capability), y: own });
        kernels.push(PlaneKernel::GroupBackward { x, shape: backward(hidden), dy: own, dx: own });
        for samples in [2, 32] {
            let shape = ChannelLaunch::new(samples, hidden, x).expect("planes fit").shape;
            kernels.push(PlaneKernel::Moments { x, shape });
            kernels.push(PlaneKernel::Correlate { x, shape, dy: own });
        }
    }
    kernels
}

#[test]
fn every_kernel_compiles() {
    // The front end knows little of architectures: one for all types, and one type for another.
    let layer = TYPES.map(|x| ("compute_90", x, Norm::Layer)).into_iter();
    for (arch, x, norm) in layer.chain([("compute_80", DType::Bf16, Norm::Rms)]) {
        each(arch, kernels(x, arch, &[norm], &[Gradients::Both]), |kernel, compiled| {
            assert!(compiled.code.starts_with(b"//"), "{}: no PTX", kernel.name());
        });
    }
}

/// The kernels of Llama's widths; `all_kernels_fit_the_registers` takes minutes.
#[test]
fn kernels_fit_the_registers() {
    let (x, arch) = (DType::Bf16, "sm_90");
    let is_wide = |kernel: &Kernel| match kernel {
        Kernel::Forward { shape, .. } | Kernel::Backward { shape, .. } => shape.is_whole,
        _ => true,
    };
    fit(arch, kernels(x, arch, &[Norm::Rms], &GRADIENTS).into_iter().filter(is_wide).collect());
}

#[test]
#[ignore = "takes minutes"]
fn all_kernels_fit_the_registers() {
    for arch in ["sm_80", "sm_90", "sm_100"] {
        fit(arch, TYPES.into_iter().flat_map(|x| kernels(x, arch, &[Norm::Rms, Norm::Layer], &GRADIENTS)).collect());
    }
}

/// The assembler moves nothing from registers to memory.
fn fit(arch: &str, kernels: Vec<Kernel>) {
    each(arch, kernels, |kernel, compiled| {
        assert!(compiled.code.starts_with(b"\x7fELF"), "{}: no code", kernel.name());
        let says = |word| compiled.log.lines().find(|line| line.contains(word)).unwrap_or("").trim();
        let (memory, registers) = (says("bytes spill stores"), says("registers"));
        eprintln!("{} for {arch}: {memory} {registers}", kernel.name());
        let words: Vec<&str> = memory.split_whitespace().collect();
        let before = |word| words.iter().position(|w| *w == word).and_then(|at| words[at - 3].parse::<usize>().ok());
        assert_eq!(before("stores,"), Some(0), "{} for {arch}: {memory}", kernel.name());
    });
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
