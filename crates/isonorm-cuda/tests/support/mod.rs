//! Kernels on the CPU, and tensors laid out as a GPU's memory would have them.
#![allow(dead_code)] // each test uses a part of it

pub(crate) mod emulation;
pub(crate) mod gpu;
pub(crate) mod memory;
pub(crate) mod planes;

#[path = "../../../isonorm/tests/support/mod.rs"]
pub(crate) mod core;

use std::ffi::c_void;

use isonorm_cuda::kernels::{Launch, Norm, Rows, Storage};
use isonorm_testing::DType;

use self::core::{Norm as Spec, Which, compute_type};
#[allow(unused_imports)] // the core's files name them so
pub(crate) use self::core::{Saved, Tensor, with_options};

/// Whether a kernel of this storage takes a tensor of this type, or none.
pub(crate) fn takes(storage: Storage, found: Option<DType>) -> bool {
    match storage {
        Storage::None => found.is_none(),
        Storage::Of(own) => found.is_none_or(|found| own == memory::dtype(found)),
        Storage::Any => true,
    }
}

/// The kernels' name of a norm.
pub(crate) fn norm_of(norm: &Spec) -> Norm {
    match norm.which {
        Which::Rms if norm.llama => Norm::Llama,
        Which::Rms => Norm::Rms,
        Which::Layer => Norm::Layer,
    }
}

/// A norm's options for `count` rows of `x`.
pub(crate) fn rows_of(norm: &Spec, x: DType, count: usize, launch: &Launch) -> Rows {
    let round = |value: f64| compute_type(x).narrow(value);
    Rows {
        eps: round(norm.eps.value),
        eps_outside: norm.eps.outside.into(),
        weight_offset: round(norm.offset),
        measured: norm.partial.unwrap_or(norm.hidden) as i64,
        ..Rows::new(count, norm.hidden, launch)
    }
}

/// Where statistics lie.
pub(crate) fn address(saved: &mut Saved) -> *mut c_void {
    match saved {
        Saved::F32(stats) => stats.as_mut_ptr().cast(),
        Saved::F64(stats) => stats.as_mut_ptr().cast(),
    }
}
