//! Where tensors are.
#![allow(unsafe_code)]

use std::cell::Cell;

use super::failure::Failure;
use super::shim::{Handle, call};

/// libtorch's codes, the same in all versions.
const CPU: i32 = 0;
const CUDA: i32 = 1;

/// The device of a tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Device {
    Cpu,
    /// A GPU's number.
    Cuda(i32),
    /// Any other.
    Other,
}

thread_local! {
    /// Whether tensors on the CPU count as those of GPU 0: under an emulated driver, whose GPUs have the CPU's memory.
    static IS_EMULATED: Cell<bool> = const { Cell::new(false) };
}

impl Device {
    pub(super) fn of(handle: Handle) -> Device {
        let (mut kind, mut index) = (CPU, 0);
        if call!(aoti_torch_get_device_type(handle, &mut kind)).is_err() {
            return Device::Other;
        }
        match kind {
            CPU if IS_EMULATED.get() => Device::Cuda(0),
            CPU => Device::Cpu,
            CUDA if call!(aoti_torch_get_device_index(handle, &mut index)).is_ok() => Device::Cuda(index),
            _ => Device::Other,
        }
    }

    /// libtorch's code and number.
    pub(super) fn codes(self) -> (i32, i32) {
        match self {
            Device::Cuda(index) if !IS_EMULATED.get() => (CUDA, index),
            _ => (CPU, 0),
        }
    }

    /// An error unless `found`, another tensor of the call, is here too.
    pub(super) fn check(self, found: Device) -> Result<(), Failure> {
        if self == found {
            return Ok(());
        }
        Err(Failure::new(format!(
            "isonorm: Expected all tensors to be on the same device, but found at least two devices, {self} and {found}"
        )))
    }
}

impl std::fmt::Display for Device {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Device::Cpu => write!(f, "cpu"),
            Device::Cuda(index) => write!(f, "cuda:{index}"),
            Device::Other => write!(f, "one that isonorm does not know"),
        }
    }
}

/// Whether this call is of an operator for an emulated GPU.
pub(super) fn is_emulated() -> bool {
    IS_EMULATED.get()
}

/// While it lives, tensors on the CPU count as a GPU's.
pub(super) struct Emulated;

impl Emulated {
    pub(super) fn new() -> Emulated {
        IS_EMULATED.set(true);
        Emulated
    }
}

impl Drop for Emulated {
    fn drop(&mut self) {
        IS_EMULATED.set(false);
    }
}
