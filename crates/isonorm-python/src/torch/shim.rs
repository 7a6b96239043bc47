//! PyTorch's C interface, found at run time in the libtorch that Python has loaded: nothing of it is needed to build,
//! and one build serves all versions that have the symbols.
#![allow(unsafe_code)]

use std::ffi::{CStr, c_char, c_void};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use isonorm::DType;
use libloading::Library;

use super::failure::Failure;

/// A tensor, `at::Tensor*`.
pub(super) type Handle = *mut c_void;
/// Operators of one namespace, or kernels of them for one kind of device.
pub(super) type LibraryHandle = *mut c_void;
/// 0, or what libtorch refused.
pub(super) type Status = i32;
/// How the dispatcher calls a kernel: the values of its arguments, which it owns and replaces with those of its results.
pub(super) type Boxed = unsafe extern "C-unwind" fn(*mut u64, u64, u64);

macro_rules! shim {
    ($($need:ident $name:ident: fn($($type:ty),*) $(-> $result:ty)?;)*) => {
        /// The functions. What a version of torch may lack is optional.
        pub(super) struct Shim {
            $(pub(super) $name: shim!(@type $need fn($($type),*) $(-> $result)?),)*
            /// libtorch's codes of f32, f64, f16 and bf16.
            pub(super) dtypes: [(i32, DType); 4],
            /// Its code of bool.
            pub(super) bool_code: i32,
        }

        impl Shim {
            fn of(library: &Library) -> Result<Shim, Failure> {
                $(let $name = shim!(@find $need library, $name);)*
                let (dtypes, bool_code) = (dtypes(library)?, code(library, "aoti_torch_dtype_bool")?);
                Ok(Shim { $($name,)* dtypes, bool_code })
            }
        }
    };
    (@type required fn($($type:ty),*) $(-> $result:ty)?) => { unsafe extern "C-unwind" fn($($type),*) $(-> $result)? };
    (@type optional fn($($type:ty),*) $(-> $result:ty)?) => {
        Option<unsafe extern "C-unwind" fn($($type),*) $(-> $result)?>
    };
    // SAFETY: the signature is the one of the C header, which libtorch keeps from version to version.
    (@find required $library:ident, $name:ident) => { *unsafe { $library.get(stringify!($name)) }.map_err(Failure::load)? };
    // SAFETY: as above.
    (@find optional $library:ident, $name:ident) => { unsafe { $library.get(stringify!($name)) }.ok().map(|found| *found) };
}

shim! {
    required aoti_torch_library_init_fragment: fn(*const c_char, *const c_char, u32, *mut LibraryHandle) -> Status;
    required aoti_torch_library_init_impl:
        fn(*const c_char, *const c_char, *const c_char, u32, *mut LibraryHandle) -> Status;
    required aoti_torch_library_def: fn(LibraryHandle, *const c_char) -> Status;
    required aoti_torch_library_impl: fn(LibraryHandle, *const c_char, Boxed) -> Status;
    required aoti_torch_check: fn(bool, *const c_char, *const c_char, u32, *const c_char);
    required aoti_torch_delete_tensor_object: fn(Handle) -> Status;
    required aoti_torch_get_data_ptr: fn(Handle, *mut *mut c_void) -> Status;
    required aoti_torch_get_dim: fn(Handle, *mut i64) -> Status;
    required aoti_torch_get_sizes: fn(Handle, *mut *mut i64) -> Status;
    required aoti_torch_get_strides: fn(Handle, *mut *mut i64) -> Status;
    required aoti_torch_get_dtype: fn(Handle, *mut i32) -> Status;
    required aoti_torch_empty_strided: fn(i64, *const i64, *const i64, i32, i32, i32, *mut Handle) -> Status;
    required aoti_torch_get_device_type: fn(Handle, *mut i32) -> Status;
    required aoti_torch_get_device_index: fn(Handle, *mut i32) -> Status;
    required aoti_torch_grad_mode_is_enabled: fn() -> bool;
    required aoti_torch_copy_: fn(Handle, Handle, i32) -> Status;
    optional torch_delete_stable_ivalue: fn(*mut u64) -> Status;
    optional torch_parallel_for:
        fn(i64, i64, i64, unsafe extern "C" fn(i64, i64, *mut c_void), *mut c_void) -> Status;
    optional torch_get_num_threads: fn(*mut u32) -> Status;
    optional torch_tensor_from_pyobject: fn(*mut c_void, *mut Handle) -> Status;
    optional torch_tensor_to_pyobject: fn(Handle, *mut c_void, *mut *mut c_void) -> Status;
    optional torch_exception_get_what_without_backtrace: fn() -> *const c_char;
}

fn dtypes(library: &Library) -> Result<[(i32, DType); 4], Failure> {
    Ok([
        (code(library, "aoti_torch_dtype_float32")?, DType::F32),
        (code(library, "aoti_torch_dtype_bfloat16")?, DType::Bf16),
        (code(library, "aoti_torch_dtype_float16")?, DType::F16),
        (code(library, "aoti_torch_dtype_float64")?, DType::F64),
    ])
}

/// The code of a type, which the function of this name returns.
fn code(library: &Library, name: &str) -> Result<i32, Failure> {
    // SAFETY: all of these functions have this signature in the C header.
    let found = unsafe { library.get::<unsafe extern "C" fn() -> i32>(name) }.map_err(Failure::load)?;
    // SAFETY: they return a constant.
    Ok(unsafe { found() })
}

static SHIM: OnceLock<Shim> = OnceLock::new();

/// The functions, for kernels, which libtorch calls only after [`load`].
pub(super) fn shim() -> &'static Shim {
    SHIM.get().expect("kernels are registered after the functions are found")
}

static PATH: OnceLock<PathBuf> = OnceLock::new();

/// Where the library is: others of torch are beside it.
pub(super) fn library_path() -> Result<&'static Path, Failure> {
    PATH.get().map(PathBuf::as_path).ok_or_else(|| Failure::new("isonorm: torch has not been loaded"))
}

/// Whether there are functions.
pub(super) fn is_loaded() -> bool {
    SHIM.get().is_some()
}

/// Finds the functions in the library at `path`, which is loaded already and stays so.
pub(super) fn load(path: &str) -> Result<&'static Shim, Failure> {
    // SAFETY: libtorch's initializers have run when Python imported torch; this only finds it again.
    let library = unsafe { Library::new(path) }.map_err(Failure::load)?;
    let found = Shim::of(&library)?;
    std::mem::forget(library);
    _ = PATH.set(PathBuf::from(path));
    Ok(SHIM.get_or_init(|| found))
}

/// What libtorch says about the failure of a call just made: newer versions tell, older ones have logged it.
pub(super) fn refused(function: &str) -> Failure {
    let what = shim().torch_exception_get_what_without_backtrace;
    // SAFETY: the function takes nothing.
    let text = what.map_or(std::ptr::null(), |what| unsafe { what() });
    if text.is_null() {
        return Failure::new(format!("libtorch refused {function}"));
    }
    // SAFETY: the text is a C string that is valid until the next failure on this thread.
    let text = unsafe { CStr::from_ptr(text) };
    Failure::new(format!("libtorch refused {function}: {}", text.to_string_lossy()))
}

/// Calls a function of the C interface that returns a [`Status`].
macro_rules! call {
    ($function:ident($($argument:expr),* $(,)?)) => {{
        let function = $crate::torch::shim::shim().$function;
        // SAFETY: handles are live and owned by `Tensor`s or libraries, and what is written to are locals.
        match unsafe { function($($argument),*) } {
            0 => Ok(()),
            _ => Err($crate::torch::shim::refused(stringify!($function))),
        }
    }};
}
pub(super) use call;
