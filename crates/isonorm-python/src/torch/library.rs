//! The operators of the namespace `isonorm`, registered once in a process.
#![allow(unsafe_code)]

use std::ffi::{CStr, CString};
use std::ptr::null_mut;
use std::sync::{Mutex, PoisonError};

use super::failure::Failure;
use super::kernel::{Kernel, boxed, boxed_emulated};
use super::shim::{Boxed, LibraryHandle, call, load};
use super::{partials, plane_ops, row_ops};

/// The namespace of the operators, and that of the same for an emulated GPU, which tests call.
const NAMESPACE: &CStr = c"isonorm";
const EMULATED: &CStr = c"isonorm_emulated";

/// Whether each has been done: a second registration would be refused.
static DONE: Mutex<[bool; 2]> = Mutex::new([false; 2]);

/// Registers all operators with the libtorch at `path`.
pub(super) fn register(path: &str) -> Result<(), Failure> {
    once(0, || {
        load(path)?;
        let operators = Operators {
            schemas: fragment(NAMESPACE)?,
            cpu: Some(kernels(NAMESPACE, c"CPU")?),
            cuda: (kernels(NAMESPACE, c"CUDA")?, false),
        };
        operators.add_all()
    })
}

/// Registers those that GPUs have once more, in another namespace, for tensors on the CPU that count as a GPU's.
pub(super) fn register_emulated(path: &str) -> Result<(), Failure> {
    once(1, || {
        load(path)?;
        let cuda = (kernels(EMULATED, c"CPU")?, true);
        Operators { schemas: fragment(EMULATED)?, cpu: None, cuda }.add_all()
    })
}

fn once(which: usize, register: impl FnOnce() -> Result<(), Failure>) -> Result<(), Failure> {
    let mut done = DONE.lock().unwrap_or_else(PoisonError::into_inner);
    if std::mem::replace(&mut done[which], true) {
        return Ok(()); // after a failure too: a second attempt would find half of the operators there
    }
    register()
}

// The handles are never given back: that would take the operators away.

fn fragment(namespace: &CStr) -> Result<LibraryHandle, Failure> {
    let mut handle = null_mut();
    call!(aoti_torch_library_init_fragment(namespace.as_ptr(), c"isonorm".as_ptr(), 0, &mut handle))?;
    Ok(handle)
}

fn kernels(namespace: &CStr, key: &CStr) -> Result<LibraryHandle, Failure> {
    let (mut handle, file) = (null_mut(), c"isonorm".as_ptr());
    call!(aoti_torch_library_init_impl(namespace.as_ptr(), key.as_ptr(), file, 0, &mut handle))?;
    Ok(handle)
}

/// Where operators are registered.
struct Operators {
    schemas: LibraryHandle,
    cpu: Option<LibraryHandle>,
    /// And whether GPUs are emulated.
    cuda: (LibraryHandle, bool),
}

impl Operators {
    fn add_all(&self) -> Result<(), Failure> {
        self.add::<row_ops::RmsNorm>()?;
        self.add::<row_ops::LlamaRmsNorm>()?;
        self.add::<row_ops::LayerNorm>()?;
        self.add::<row_ops::AnyRowNorm>()?;
        self.add::<row_ops::RowNormOut>()?;
        self.add::<row_ops::RowNormBackward>()?;
        self.add::<row_ops::RmsNormBackward>()?;
        self.add::<row_ops::LayerNormBackward>()?;
        self.add::<row_ops::AddRowNorm>()?;
        self.add::<row_ops::AddRowNormInPlace>()?;
        self.add::<row_ops::AddRowNormBackward>()?;
        self.add::<plane_ops::BatchNormTrain>()?;
        self.add::<plane_ops::BatchNormTrainOut>()?;
        self.add::<plane_ops::BatchNormTrainBackward>()?;
        self.add::<plane_ops::BatchNormEval>()?;
        self.add::<plane_ops::BatchNormEvalOut>()?;
        self.add::<plane_ops::BatchNormEvalBackward>()?;
        self.add::<plane_ops::GroupNorm>()?;
        self.add::<plane_ops::GroupNormOut>()?;
        self.add::<plane_ops::GroupNormBackward>()?;
        self.add::<plane_ops::InstanceNormRunning>()?;
        self.add_on_cpu::<partials::RowNormBackwardPartial>()?;
        self.add_on_cpu::<partials::AddRowNormBackwardPartial>()?;
        self.add_on_cpu::<partials::GroupNormBackwardPartial>()?;
        self.add_on_cpu::<partials::FinishPartial>()
    }

    /// For the CPU and for CUDA.
    fn add<K: Kernel>(&self) -> Result<(), Failure> {
        self.define::<K>()?;
        if let Some(cpu) = self.cpu {
            implement::<K>(cpu, boxed::<K>)?;
        }
        let (cuda, is_emulated) = self.cuda;
        implement::<K>(cuda, if is_emulated { boxed_emulated::<K> } else { boxed::<K> })
    }

    fn add_on_cpu<K: Kernel>(&self) -> Result<(), Failure> {
        let Some(cpu) = self.cpu else { return Ok(()) };
        self.define::<K>()?;
        implement::<K>(cpu, boxed::<K>)
    }

    fn define<K: Kernel>(&self) -> Result<(), Failure> {
        call!(aoti_torch_library_def(self.schemas, K::SCHEMA.as_ptr()))
    }
}

fn implement<K: Kernel>(library: LibraryHandle, kernel: Boxed) -> Result<(), Failure> {
    let name = name_of(K::SCHEMA);
    call!(aoti_torch_library_impl(library, name.as_ptr(), kernel))
}

/// What is before the parenthesis.
fn name_of(schema: &CStr) -> CString {
    let name = schema.to_bytes().split(|byte| *byte == b'(').next().unwrap_or_default();
    CString::new(name).unwrap_or_default()
}
