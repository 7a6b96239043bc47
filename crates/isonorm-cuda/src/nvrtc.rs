//! NVRTC, the compiler of kernels, loaded when first used: everything builds and starts without CUDA.
#![allow(unsafe_code)]

use std::ffi::{CString, c_char, c_int, c_void};
use std::path::{Path, PathBuf};
use std::ptr::null_mut;
use std::sync::OnceLock;

use libloading::Library;

use crate::error::Error;
use crate::kernel::{HEADERS, Kernel};

const WHAT: &str = "NVRTC";
const REMEDY: &str = "install CUDA 12 or later (`pip install nvidia-cuda-nvrtc`), or name the library in ISONORM_NVRTC";

/// Names of the library, the newest first.
#[cfg(windows)]
const NAMES: [&str; 2] = ["nvrtc64_130_0.dll", "nvrtc64_120_0.dll"];
#[cfg(not(windows))]
const NAMES: [&str; 3] = ["libnvrtc.so.13", "libnvrtc.so.12", "libnvrtc.so"];

/// What every kernel is compiled with: no contraction, no flushing, no estimate.
const FLAGS: [&str; 6] =
    ["--std=c++17", "--fmad=false", "--ftz=false", "--prec-div=true", "--prec-sqrt=true", "--ptxas-options=-v"];

type Program = *mut c_void;

static OTHERS: OnceLock<Vec<PathBuf>> = OnceLock::new();

/// The paths of a front-end, and of a CUDA toolkit that the environment names.
fn others() -> impl Iterator<Item = PathBuf> + Clone {
    let toolkits = ["CUDA_HOME", "CUDA_PATH"].into_iter().filter_map(std::env::var_os);
    let in_toolkits = toolkits.flat_map(|root| {
        NAMES.into_iter().map(move |name| Path::new(&root).join(if cfg!(windows) { "bin" } else { "lib64" }).join(name))
    });
    OTHERS.get().into_iter().flatten().cloned().chain(in_toolkits.collect::<Vec<_>>())
}

/// The functions of the library that are used.
#[derive(Debug)]
pub struct Nvrtc {
    version: unsafe extern "C" fn(*mut c_int, *mut c_int) -> c_int,
    create: unsafe extern "C" fn(
        *mut Program,
        *const c_char,
        *const c_char,
        c_int,
        *const *const c_char,
        *const *const c_char,
    ) -> c_int,
    compile: unsafe extern "C" fn(Program, c_int, *const *const c_char) -> c_int,
    log_size: unsafe extern "C" fn(Program, *mut usize) -> c_int,
    log: unsafe extern "C" fn(Program, *mut c_char) -> c_int,
    ptx_size: unsafe extern "C" fn(Program, *mut usize) -> c_int,
    ptx: unsafe extern "C" fn(Program, *mut c_char) -> c_int,
    cubin_size: unsafe extern "C" fn(Program, *mut usize) -> c_int,
    cubin: unsafe extern "C" fn(Program, *mut c_char) -> c_int,
    destroy: unsafe extern "C" fn(*mut Program) -> c_int,
    arch_count: unsafe extern "C" fn(*mut c_int) -> c_int,
    archs: unsafe extern "C" fn(*mut c_int) -> c_int,
    _library: Library,
}

/// A compiled kernel.
#[derive(Clone, Debug)]
pub struct Compiled {
    /// For an architecture `sm_*` its code, for one `compute_*` PTX, which drivers assemble.
    pub code: Vec<u8>,
    /// For `sm_*`, what the assembler says of registers and memory.
    pub log: String,
}

impl Nvrtc {
    /// The library that `ISONORM_NVRTC` names, the system's, or one of [`also_try`](Self::also_try); loaded once.
    pub fn get() -> Result<&'static Nvrtc, Error> {
        static NVRTC: OnceLock<Result<Nvrtc, Error>> = OnceLock::new();
        let loaded = NVRTC.get_or_init(|| match std::env::var_os("ISONORM_NVRTC").filter(|path| !path.is_empty()) {
            Some(path) => Nvrtc::load(Path::new(&path)),
            None => {
                let names = NAMES.iter().map(PathBuf::from).chain(others());
                names.clone().find_map(|name| Nvrtc::load(&name).ok()).ok_or_else(|| Error::Library {
                    what: WHAT,
                    tried: names.map(|name| name.display().to_string()).collect::<Vec<_>>().join(", "),
                    remedy: REMEDY,
                })
            }
        });
        loaded.as_ref().map_err(Clone::clone)
    }

    /// Paths that [`get`](Self::get) tries after the system's names: a front-end knows where its packages are. It has no
    /// effect after the first call of `get`, or of this.
    pub fn also_try(paths: Vec<PathBuf>) {
        _ = OTHERS.set(paths);
    }

    /// A library of this name or path.
    pub fn load(path: &Path) -> Result<Self, Error> {
        // SAFETY: NVRTC's initializers have no preconditions; a library of another kind is the user's own choice.
        let library = unsafe { Library::new(path) }.map_err(|_| Error::Library {
            what: WHAT,
            tried: path.display().to_string(),
            remedy: REMEDY,
        })?;
        macro_rules! function {
            ($name:literal) => {{
                // SAFETY: the types of the fields are those of NVRTC's documentation, the same in all versions.
                let symbol = unsafe { library.get($name.as_bytes()) };
                *symbol.map_err(|_| Error::Function { what: WHAT, function: $name })?
            }};
        }
        Ok(Nvrtc {
            version: function!("nvrtcVersion"),
            create: function!("nvrtcCreateProgram"),
            compile: function!("nvrtcCompileProgram"),
            log_size: function!("nvrtcGetProgramLogSize"),
            log: function!("nvrtcGetProgramLog"),
            ptx_size: function!("nvrtcGetPTXSize"),
            ptx: function!("nvrtcGetPTX"),
            cubin_size: function!("nvrtcGetCUBINSize"),
            cubin: function!("nvrtcGetCUBIN"),
            destroy: function!("nvrtcDestroyProgram"),
            arch_count: function!("nvrtcGetNumSupportedArchs"),
            archs: function!("nvrtcGetSupportedArchs"),
            _library: library,
        })
    }

    /// Major and minor version.
    pub fn version(&self) -> (i32, i32) {
        let (mut major, mut minor) = (0, 0);
        // SAFETY: both point to integers.
        unsafe { (self.version)(&mut major, &mut minor) };
        (major, minor)
    }

    /// What kernels are compiled for where GPUs have this capability, 90 for 9.0: their machine code, or PTX for the newest
    /// architecture that NVRTC knows and they can run.
    pub fn arch(&self, capability: i32) -> String {
        let mut count = 0;
        // SAFETY: writes an integer.
        unsafe { (self.arch_count)(&mut count) };
        let mut archs = vec![0; usize::try_from(count).unwrap_or(0)];
        // SAFETY: there is room for as many integers as were announced.
        unsafe { (self.archs)(archs.as_mut_ptr()) };
        let newest = archs.into_iter().filter(|arch| *arch <= capability).max().unwrap_or(capability);
        format!("{}_{newest}", if newest == capability { "sm" } else { "compute" })
    }

    /// What every kernel is compiled with.
    pub(crate) fn flags() -> [&'static str; 6] {
        FLAGS
    }

    /// Compiles a kernel for an architecture such as `sm_90` or `compute_90`.
    pub fn compile(&self, kernel: &Kernel, arch: &str) -> Result<Compiled, Error> {
        let mut options: Vec<String> = FLAGS.map(String::from).to_vec();
        options.push(format!("--gpu-architecture={arch}"));
        options.extend(kernel.macros().iter().map(|(name, value)| format!("--define-macro={name}={value}")));
        let options = Strings::new(options.iter().map(String::as_str));
        let texts = Strings::new(HEADERS.iter().map(|(_, text)| *text));
        let names = Strings::new(HEADERS.iter().map(|(name, _)| *name));
        let ((name, text), _) = kernel.source();
        let source = Strings::new([text, name].into_iter());
        let mut job = Job { nvrtc: self, program: null_mut() };
        // SAFETY: the strings live to the end of this function, and the counts are theirs.
        let status = unsafe {
            (self.create)(
                &mut job.program,
                source.pointers[0],
                source.pointers[1],
                texts.pointers.len() as c_int,
                texts.pointers.as_ptr(),
                names.pointers.as_ptr(),
            )
        };
        let error = |log| Error::Compile { kernel: kernel.name(), arch: arch.into(), log };
        if status != 0 {
            return Err(error(format!("status {status}")));
        }
        // SAFETY: the program was created; the options live to the end of this function.
        let status = unsafe { (self.compile)(job.program, options.pointers.len() as c_int, options.pointers.as_ptr()) };
        let log = String::from_utf8_lossy(&job.bytes(self.log_size, self.log)).trim_end_matches('\0').to_string();
        if status != 0 {
            return Err(error(log));
        }
        let code = if arch.starts_with("sm_") {
            job.bytes(self.cubin_size, self.cubin)
        } else {
            job.bytes(self.ptx_size, self.ptx)
        };
        Ok(Compiled { code, log })
    }
}

/// A program, destroyed in the end.
struct Job<'a> {
    nvrtc: &'a Nvrtc,
    program: Program,
}

impl Job<'_> {
    /// What a pair of functions gives.
    fn bytes(
        &self,
        size: unsafe extern "C" fn(Program, *mut usize) -> c_int,
        get: unsafe extern "C" fn(Program, *mut c_char) -> c_int,
    ) -> Vec<u8> {
        let mut count = 0;
        // SAFETY: the program was created.
        unsafe { size(self.program, &mut count) };
        let mut bytes = vec![0u8; count];
        // SAFETY: there is room for as many bytes as were announced.
        unsafe { get(self.program, bytes.as_mut_ptr().cast()) };
        bytes
    }
}

impl Drop for Job<'_> {
    fn drop(&mut self) {
        if !self.program.is_null() {
            // SAFETY: the program was created, and nobody uses it any more.
            unsafe { (self.nvrtc.destroy)(&mut self.program) };
        }
    }
}

/// Strings as C has them.
struct Strings {
    pointers: Vec<*const c_char>,
    _owned: Vec<CString>,
}

impl Strings {
    fn new<'a>(strings: impl Iterator<Item = &'a str>) -> Self {
        let owned: Vec<CString> = strings.map(|s| CString::new(s).unwrap_or_default()).collect();
        Strings { pointers: owned.iter().map(|s| s.as_ptr()).collect(), _owned: owned }
    }
}
