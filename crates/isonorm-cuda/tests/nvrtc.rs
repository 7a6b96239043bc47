//! NVRTC compiles every kernel, without spills. Skipped where it is not found: a GPU is not needed.

use std::path::PathBuf;

use isonorm_cuda::{Kernel, Norm, Nvrtc, Shape, Storage};
use isonorm::DType;

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
fn packages(target: &PathBuf) -> Vec<PathBuf> {
    let inside = |folder: PathBuf| std::fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path());
    let pythons = inside(target.clone()).flat_map(|venv| inside(venv.join("lib")));
    let packages = pythons.flat_map(|python| inside(python.join("site-packages/nvidia")));
    let files = packages.flat_map(|package| inside(package.join("lib")));
    files.filter(|path| path.to_string_lossy().contains("libnvrtc.so.")).collect()
}

/// The kernels that calls with tensors of x's type take, of some sizes.
fn kernels(x: DType) -> Vec<Kernel> {
    let (own, none) = (Storage::Of(x), Storage::None);
    let compute = if x == DType::F64 { x } else { DType::F32 };
    let mut kernels: Vec<Kernel> = vec![Kernel::Finish { compute }];
    for norm in [Norm::Rms, Norm::Layer] {
        kernels.push(Kernel::Parameters { norm, x, dy: own });
        for hidden in [64, 4096, 10_000, 300_000] {
            let shape = Shape::forward(hidden, x);
            kernels.push(Kernel::Forward { norm, x, shape, params: own, y: own, summands: none });
            let shape = Shape::backward(hidden, x);
            kernels.push(Kernel::Backward { norm, x, shape, params: own, dy: own, others: own });
        }
        let shape = Shape::forward(4096, x);
        kernels.push(Kernel::Forward { norm, x, shape, params: own, y: own, summands: own });
    }
    let (norm, any) = (Norm::Layer, Storage::Any);
    let shape = Shape::forward(4096, x);
    kernels.push(Kernel::Forward { norm, x, shape, params: any, y: any, summands: any });
    kernels.push(Kernel::Backward { norm, x, shape: Shape::backward(4096, x), params: any, dy: any, others: any });
    kernels
}

#[test]
fn every_kernel_compiles_and_none_spills() {
    let Some(nvrtc) = nvrtc() else {
        eprintln!("skipped: there is no NVRTC (ISONORM_NVRTC names one)");
        return;
    };
    let (major, minor) = nvrtc.version();
    let mut spills = Vec::new();
    // The other architectures differ by little, and a compilation takes half a second.
    let rest = [("sm_80", DType::Bf16), ("sm_100", DType::F32)];
    let all = [DType::F32, DType::F64, DType::F16, DType::Bf16].map(|x| ("sm_90", x));
    for (arch, x) in all.into_iter().chain(rest) {
        for kernel in kernels(x) {
            let compiled = nvrtc.compile(&kernel, arch).unwrap_or_else(|e| panic!("NVRTC {major}.{minor}: {e}"));
            assert!(compiled.cubin.starts_with(b"\x7fELF"), "{}: no code", kernel.name());
            let says = |word| compiled.log.lines().find(|line| line.contains(word)).unwrap_or("");
            let line = format!("{} for {arch}: {} {}", kernel.name(), says("spill").trim(), says("registers").trim());
            eprintln!("{line}");
            if !line.contains(" 0 bytes spill stores") {
                spills.push(line);
            }
        }
    }
    assert!(spills.is_empty(), "{}", spills.join("\n"));
}
