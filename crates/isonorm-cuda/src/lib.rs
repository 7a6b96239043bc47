//! The norms of crate [`isonorm`] on NVIDIA GPUs from Ampere on: the same bits, by CUDA kernels.
//!
//! [`RowNorm`] is RMSNorm or LayerNorm, of [`Rows`] in device memory, on a [`Stream`] of a [`Device`]; [`BatchNorm`]
//! and [`GroupNorm`], which is InstanceNorm too, are of [`Planes`]. Memory and streams may be the caller's:
//! [`Slice::from_raw`], [`Stream::from_raw`].
//!
//! The kernels are CUDA C++ (`kernels/`), embedded here and compiled when first used, by NVRTC, which is found at run
//! time as the driver is: nothing of CUDA is needed to build. Compiled kernels are kept in the user's folder of caches,
//! or where the environment variable `ISONORM_CACHE` says (nowhere, if it is set to nothing). `ISONORM_NVRTC` and
//! `ISONORM_CUDA_DRIVER` name the libraries where they are not found by themselves.
//!
//! Which kernel a call takes and how it is launched depends on the length of its rows, the types and places of its
//! tensors; the bits depend on none of these. Calls only queue kernels, so they can be recorded in a CUDA graph, once
//! they have run: the first call of a kind compiles.

mod args;
mod batch_norm;
mod cache;
mod channel_options;
mod device;
mod driver;
mod error;
mod group_norm;
mod io;
mod kernel;
mod launch;
mod memory;
mod nvrtc;
mod plane_args;
mod plane_kernel;
mod planes;
mod row_backward;
mod row_norm;
mod running;
mod shape;
mod walk;

pub use batch_norm::BatchNorm;
pub use device::{Buffer, Device, Stream};
pub use error::Error;
pub use group_norm::GroupNorm;
pub use io::{BackwardIo, Io};
pub use memory::{Rows, RowsMut, Slice, SliceMut};
pub use nvrtc::Nvrtc;
pub use planes::{PlaneBackwardIo, PlaneIo, Planes, PlanesMut};
pub use row_norm::RowNorm;
pub use running::Running;

/// The kernels themselves: their sources, which there are, and what they take. For tests and other hosts.
pub mod kernels {
    pub use crate::args::{Backward, Finish, Forward, Parameters, Rows, Scratch, Sharing, Tensor};
    pub use crate::kernel::{Affine, Gradients, HEADERS, Kernel, Norm, SOURCES, Storage};
    pub use crate::nvrtc::Compiled;
    pub use crate::plane_args::{
        Apply, Channels, Correlate, Evaluate, GroupBackward, GroupForward, Groups, Instances, Lines, Moments,
        PlaneGradients, Planes, Running,
    };
    pub use crate::plane_kernel::{ChannelLaunch, PlaneKernel};
    pub use crate::shape::{Launch, Shape, Units};
}
