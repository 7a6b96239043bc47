//! The operators of the namespace `isonorm`, registered once in a process.
#![allow(unsafe_code)]

use std::ffi::{CStr, CString};
use std::ptr::null_mut;
use std::sync::Mutex;

use super::failure::Failure;
use super::kernel::{Kernel, boxed};
use super::shim::{LibraryHandle, call, load};
use super::{partials, plane_ops, row_ops};

/// Whether it has been done: a second registration would be refused.
static DONE: Mutex<bool> = Mutex::new(false);

/// Registers all operators with the libtorch at `path`.
pub(super) fn register(path: &str) -> Result<(), Failure> {
    let mut done = DONE.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    if *done {
        return Ok(());
    }
    load(path)?;
    *done = true; // a second attempt would find half of the operators there
    // The handles are never given back: that would take the operators away.
    let (mut schemas, mut kernels) = (null_mut(), null_mut());
    let (namespace, file) = (c"isonorm".as_ptr(), c"isonorm".as_ptr());
    call!(aoti_torch_library_init_fragment(namespace, file, 0, &mut schemas))?;
    call!(aoti_torch_library_init_impl(namespace, c"CPU".as_ptr(), file, 0, &mut kernels))?;
    let library = Library { schemas, kernels };
    library.add::<row_ops::RmsNorm>()?;
    library.add::<row_ops::LlamaRmsNorm>()?;
    library.add::<row_ops::LayerNorm>()?;
    library.add::<row_ops::AnyRowNorm>()?;
    library.add::<row_ops::RowNormOut>()?;
    library.add::<row_ops::RowNormBackward>()?;
    library.add::<row_ops::RmsNormBackward>()?;
    library.add::<row_ops::LayerNormBackward>()?;
    library.add::<row_ops::AddRowNorm>()?;
    library.add::<row_ops::AddRowNormInPlace>()?;
    library.add::<row_ops::AddRowNormBackward>()?;
    library.add::<partials::RowNormBackwardPartial>()?;
    library.add::<partials::AddRowNormBackwardPartial>()?;
    library.add::<partials::GroupNormBackwardPartial>()?;
    library.add::<partials::FinishPartial>()?;
    library.add::<plane_ops::BatchNormTrain>()?;
    library.add::<plane_ops::BatchNormTrainOut>()?;
    library.add::<plane_ops::BatchNormTrainBackward>()?;
    library.add::<plane_ops::BatchNormEval>()?;
    library.add::<plane_ops::BatchNormEvalOut>()?;
    library.add::<plane_ops::BatchNormEvalBackward>()?;
    library.add::<plane_ops::GroupNorm>()?;
    library.add::<plane_ops::GroupNormOut>()?;
    library.add::<plane_ops::GroupNormBackward>()?;
    library.add::<plane_ops::InstanceNormRunning>()
}

struct Library {
    schemas: LibraryHandle,
    kernels: LibraryHandle,
}

impl Library {
    fn add<K: Kernel>(&self) -> Result<(), Failure> {
        call!(aoti_torch_library_def(self.schemas, K::SCHEMA.as_ptr()))?;
        let name = name_of(K::SCHEMA);
        call!(aoti_torch_library_impl(self.kernels, name.as_ptr(), boxed::<K>))
    }
}

/// What is before the parenthesis.
fn name_of(schema: &CStr) -> CString {
    let name = schema.to_bytes().split(|byte| *byte == b'(').next().unwrap_or_default();
    CString::new(name).unwrap_or_default()
}
