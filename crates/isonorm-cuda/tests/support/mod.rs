//! Kernels on the CPU, and tensors laid out as a GPU's memory would have them.
#![allow(dead_code)] // each test uses a part of it

pub(crate) mod emulation;
pub(crate) mod memory;

#[path = "../../../isonorm/tests/support/mod.rs"]
pub(crate) mod core;
