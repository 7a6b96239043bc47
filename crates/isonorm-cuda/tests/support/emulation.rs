//! The kernels as programs of the CPU: `tests/emulation` compiled with them by g++, once for a set of sources.
#![allow(unsafe_code)]

use std::collections::hash_map::DefaultHasher;
use std::ffi::c_void;
use std::fmt::Write;
use std::fs;
use std::hash::{Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};

use isonorm_cuda::kernels::{HEADERS, Kernel, SOURCES};
use libloading::Library;

const CUDA: &str = include_str!("../emulation/cuda.hpp");
const CONVERT: &str = include_str!("../emulation/convert.cuh");
const FLAGS: [&str; 8] =
    ["-std=c++20", "-O1", "-ffp-contract=off", "-fPIC", "-shared", "-Wall", "-Wno-unknown-pragmas", "-Werror"];

/// Compiled kernels.
pub(crate) struct Emulation {
    library: Library,
    kernels: Vec<Kernel>,
}

impl Emulation {
    pub(crate) fn new(kernels: Vec<Kernel>) -> Self {
        Emulation { library: library(&program(&kernels)), kernels }
    }

    pub(crate) fn kernels(&self) -> &[Kernel] {
        &self.kernels
    }

    /// Runs one of the kernels. `args` is the struct that its source takes.
    pub(crate) fn run<A: Copy>(&self, kernel: &Kernel, args: &A, blocks: u32, threads: u32) {
        self.run_in_clusters(kernel, args, blocks, threads, 1);
    }

    /// In clusters of this many blocks.
    pub(crate) fn run_in_clusters<A: Copy>(&self, kernel: &Kernel, args: &A, blocks: u32, threads: u32, cluster: u32) {
        assert!(self.kernels.contains(kernel), "{} was not compiled", kernel.name());
        let symbol = format!("run_{}", kernel.name());
        // SAFETY: `program` defines the function with this signature.
        let run = unsafe { self.library.get::<unsafe extern "C" fn(*const c_void, u32, u32, u32)>(symbol.as_bytes()) };
        let run = run.expect("each kernel has a function");
        // SAFETY: the arguments are those of the kernel's source; the tests lay out what they point to.
        unsafe { run(std::ptr::from_ref(args).cast(), blocks, threads, cluster) };
    }
}

/// Compiles a program, or loads what was compiled from the same text.
fn library(program: &str) -> Library {
    let mut hasher = DefaultHasher::new();
    (program, HEADERS, CUDA, CONVERT, FLAGS, SOURCES).hash(&mut hasher);
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("kernels-{:016x}", hasher.finish()));
    let library = folder.join("kernels.so");
    if !library.exists() {
        compile(program, &folder, &library);
    }
    // SAFETY: the library has no initializers but those of the C++ runtime.
    unsafe { Library::new(&library) }.expect("the compiled kernels can be loaded")
}

/// One translation unit with all kernels.
fn program(kernels: &[Kernel]) -> String {
    let mut text = String::from("#include \"cuda.hpp\"\n");
    for kernel in kernels {
        let macros = kernel.macros();
        for (name, value) in &macros {
            writeln!(text, "#define {name} {value}").expect("a string takes text");
        }
        let (name, ((file, _), args)) = (kernel.name(), kernel.source());
        write!(
            text,
            "#include \"{file}\"\nextern \"C\" void run_{name}(const void* args, unsigned blocks, unsigned threads, \
             unsigned cluster) {{\n    \
             emulation::launch([](const void* args) {{ {name}(*static_cast<const isonorm::{args}*>(args)); }}, args, \
             blocks, threads, cluster);\n}}\n"
        )
        .expect("a string takes text");
        for (name, _) in &macros {
            writeln!(text, "#undef {name}").expect("a string takes text");
        }
    }
    text
}

/// The functions of `convert.cuh`, on a CPU.
pub(crate) struct Conversions(Library);

impl Conversions {
    pub(crate) fn new() -> Self {
        let mut text = String::from("#include \"cuda.hpp\"\n#include \"convert.cuh\"\n");
        for (to, name, from) in [
            ("float", "widen_f16", "unsigned short"),
            ("unsigned short", "narrow_f16", "float"),
            ("unsigned short", "narrow_bf16", "float"),
        ] {
            writeln!(text, "extern \"C\" {to} run_{name}({from} x) {{ return isonorm::{name}(x); }}")
                .expect("a string takes text");
        }
        Conversions(library(&text))
    }

    pub(crate) fn widen_f16(&self) -> impl Fn(u16) -> f32 {
        // SAFETY: `new` defines the function with this signature, and `self` lives as long.
        let run = *unsafe { self.0.get::<unsafe extern "C" fn(u16) -> f32>(b"run_widen_f16") }.expect("it is there");
        // SAFETY: it takes any value.
        move |x| unsafe { run(x) }
    }

    /// `narrow_f16` or `narrow_bf16`.
    pub(crate) fn narrow(&self, name: &str) -> impl Fn(f32) -> u16 {
        let symbol = format!("run_{name}");
        // SAFETY: as above.
        let run = *unsafe { self.0.get::<unsafe extern "C" fn(f32) -> u16>(symbol.as_bytes()) }.expect("it is there");
        // SAFETY: as above.
        move |x| unsafe { run(x) }
    }
}

/// In a folder of its own, which gets its name when everything is there: other threads and processes may do the same.
fn compile(program: &str, folder: &Path, library: &Path) {
    static COUNT: AtomicUsize = AtomicUsize::new(0);
    let number = COUNT.fetch_add(1, Ordering::Relaxed);
    let own = PathBuf::from(format!("{}.{}.{number}", folder.display(), std::process::id()));
    fs::create_dir_all(&own).expect("the folder of temporary files can be written");
    let put = |name: &str, text: &str| fs::write(own.join(name), text).expect("the folder can be written");
    HEADERS.iter().chain(&SOURCES).for_each(|(name, text)| put(name, text));
    put("cuda.hpp", CUDA);
    put("convert.cuh", CONVERT);
    put("kernels.cpp", program);
    let mut command = Command::new("g++");
    command.args(FLAGS).arg("-o").arg(own.join("kernels.so")).arg(own.join("kernels.cpp"));
    let output = command.output().expect("g++ compiles the kernels for the CPU: install it (Debian: g++)");
    assert!(output.status.success(), "g++: {}", String::from_utf8_lossy(&output.stderr));
    if fs::rename(&own, folder).is_err() {
        assert!(library.exists(), "{} cannot be written", folder.display());
    }
}
