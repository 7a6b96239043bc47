//! The functions of NVIDIA's driver that are used, loaded when first used.
//!
//! `cudarc` has these too, but wants the CUDA version when it is compiled and panics where a function is missing; kernels
//! need twenty of them, the same since CUDA 12.
#![allow(unsafe_code)]

use std::ffi::{CStr, OsString, c_char, c_int, c_uint, c_void};
use std::path::Path;
use std::ptr::null;
use std::sync::OnceLock;

use libloading::Library;

use crate::error::Error;

const WHAT: &str = "NVIDIA's driver";
const REMEDY: &str = "run this on a machine with an NVIDIA GPU and its driver (525 or later)";

#[cfg(windows)]
const NAME: &str = "nvcuda.dll";
#[cfg(not(windows))]
const NAME: &str = "libcuda.so.1";

/// `CUresult`: 0, or what went wrong.
pub(crate) type Status = c_int;
/// `CUcontext`
pub(crate) type Context = *mut c_void;
/// `CUstream`
pub(crate) type RawStream = *mut c_void;
/// `CUlibrary`
pub(crate) type RawLibrary = *mut c_void;
/// `CUkernel`, which can be launched in every context.
pub(crate) type RawKernel = *mut c_void;
/// `CUdeviceptr`
pub(crate) type Address = u64;

/// `CUDA_ERROR_NO_DEVICE`
const NO_DEVICE: Status = 100;
/// `CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR`, `_MINOR`
pub(crate) const CAPABILITY: [c_int; 2] = [75, 76];
/// `CU_STREAM_CAPTURE_MODE_RELAXED`
pub(crate) const RELAXED: c_int = 2;

/// `CUlaunchConfig`
#[repr(C)]
pub(crate) struct LaunchConfig {
    pub(crate) grid: [c_uint; 3],
    pub(crate) block: [c_uint; 3],
    pub(crate) shared_bytes: c_uint,
    pub(crate) stream: RawStream,
    pub(crate) attributes: *const LaunchAttribute,
    pub(crate) attribute_count: c_uint,
}

/// `CUlaunchAttribute` with a value of three integers, as that of a cluster's dimensions has.
#[repr(C, align(8))]
pub(crate) struct LaunchAttribute {
    id: c_int,
    padding: c_int,
    value: [c_uint; 16],
}

impl LaunchAttribute {
    /// `CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION`
    pub(crate) fn cluster(blocks: u32) -> Self {
        let mut value = [0; 16];
        value[..3].copy_from_slice(&[blocks, 1, 1]);
        LaunchAttribute { id: 4, padding: 0, value }
    }
}

macro_rules! driver {
    ($($name:ident = $symbol:literal: fn($($type:ty),*);)*) => {
        /// The functions.
        pub(crate) struct Driver {
            $(pub(crate) $name: unsafe extern "C" fn($($type),*) -> Status,)*
            _library: Library,
        }

        impl Driver {
            fn of(library: Library) -> Result<Self, Error> {
                // SAFETY: the types are those of the driver's documentation, the same in all versions that have the symbol.
                $(let $name = *unsafe { library.get($symbol.as_bytes()) }
                    .map_err(|_| Error::Function { what: WHAT, function: $symbol })?;)*
                Ok(Driver { $($name,)* _library: library })
            }
        }
    };
}

driver! {
    init = "cuInit": fn(c_uint);
    error_name = "cuGetErrorName": fn(Status, *mut *const c_char);
    error_text = "cuGetErrorString": fn(Status, *mut *const c_char);
    device_count = "cuDeviceGetCount": fn(*mut c_int);
    device_attribute = "cuDeviceGetAttribute": fn(*mut c_int, c_int, c_int);
    primary_context = "cuDevicePrimaryCtxRetain": fn(*mut Context, c_int);
    current_context = "cuCtxGetCurrent": fn(*mut Context);
    current_device = "cuCtxGetDevice": fn(*mut c_int);
    push_context = "cuCtxPushCurrent_v2": fn(Context);
    pop_context = "cuCtxPopCurrent_v2": fn(*mut Context);
    load_library = "cuLibraryLoadData":
        fn(*mut RawLibrary, *const c_void, *mut c_int, *mut *mut c_void, c_uint, *mut c_int, *mut *mut c_void, c_uint);
    library_kernel = "cuLibraryGetKernel": fn(*mut RawKernel, RawLibrary, *const c_char);
    kernel_function = "cuKernelGetFunction": fn(*mut *mut c_void, RawKernel);
    launch = "cuLaunchKernelEx": fn(*const LaunchConfig, RawKernel, *mut *mut c_void, *mut *mut c_void);
    exchange_capture_mode = "cuThreadExchangeStreamCaptureMode": fn(*mut c_int);
    allocate = "cuMemAlloc_v2": fn(*mut Address, usize);
    free = "cuMemFree_v2": fn(Address);
    to_device = "cuMemcpyHtoDAsync_v2": fn(Address, *const c_void, usize, RawStream);
    to_host = "cuMemcpyDtoHAsync_v2": fn(*mut c_void, Address, usize, RawStream);
    new_stream = "cuStreamCreate": fn(*mut RawStream, c_uint);
    delete_stream = "cuStreamDestroy_v2": fn(RawStream);
    synchronize = "cuStreamSynchronize": fn(RawStream);
}

impl Driver {
    /// The library that `ISONORM_CUDA_DRIVER` names, or the system's; loaded and initialized once.
    pub(crate) fn get() -> Result<&'static Driver, Error> {
        static DRIVER: OnceLock<Result<Driver, Error>> = OnceLock::new();
        let load = || {
            let path =
                std::env::var_os("ISONORM_CUDA_DRIVER").filter(|path| !path.is_empty()).unwrap_or(OsString::from(NAME));
            // SAFETY: the driver's initializers have no preconditions; another library is the user's own choice.
            let library = unsafe { Library::new(Path::new(&path)) };
            let library = library.map_err(|_| Error::Library {
                what: WHAT,
                tried: path.to_string_lossy().into_owned(),
                remedy: REMEDY,
            })?;
            let driver = Driver::of(library)?;
            // SAFETY: flags are 0, as they must be.
            driver.check("cuInit", unsafe { (driver.init)(0) })?;
            Ok(driver)
        };
        DRIVER.get_or_init(load).as_ref().map_err(Clone::clone)
    }

    /// An error unless `status` is 0.
    #[inline]
    pub(crate) fn check(&self, function: &'static str, status: Status) -> Result<(), Error> {
        if status == 0 { Ok(()) } else { Err(self.error(function, status)) }
    }

    #[cold]
    fn error(&self, function: &'static str, status: Status) -> Error {
        if status == NO_DEVICE {
            return Error::NoDevice;
        }
        let text = |get: unsafe extern "C" fn(Status, *mut *const c_char) -> Status| {
            let mut text = null();
            // SAFETY: writes a pointer to a constant string, or null.
            unsafe { get(status, &mut text) };
            // SAFETY: as said above.
            if text.is_null() { String::new() } else { unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned() }
        };
        Error::Driver { function, status, name: text(self.error_name), text: text(self.error_text) }
    }
}

/// Calls a function of the driver, named as in [`Driver`].
macro_rules! cuda {
    ($driver:expr, $function:ident($($argument:expr),* $(,)?)) => {{
        let driver: &$crate::driver::Driver = $driver;
        // SAFETY: handles are the driver's own and live; what is written to are locals or memory of the given length.
        let status = unsafe { (driver.$function)($($argument),*) };
        driver.check(stringify!($function), status)
    }};
}
pub(crate) use cuda;
