//! The norms of crate [`isonorm`] on NVIDIA GPUs from Ampere on: the same bits, by CUDA kernels.
//!
//! The kernels are CUDA C++ (`kernels/`), embedded here and compiled when first used. Which kernel a call takes and how
//! it is launched depends on the length of its rows and the types of its tensors ([`Kernel`], [`Shape`]); the bits depend
//! on neither.

mod args;
mod error;
mod kernel;
mod nvrtc;
mod shape;

pub use args::{Backward, Finish, Forward, Parameters, Rows, Scratch, Sharing, Tensor};
pub use error::Error;
pub use kernel::{Gradients, HEADERS, Kernel, Norm, SOURCES, Storage};
pub use nvrtc::{Compiled, Nvrtc};
pub use shape::{Launch, Shape, Units};
