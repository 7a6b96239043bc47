//! Normalization layers with the same bits everywhere, at the speed of memory.

mod apply;
mod batch_norm;
mod channels;
mod channels_first;
mod channels_last;
mod columns;
mod element;
mod error;
mod forward;
mod grid;
mod group_norm;
mod groups;
mod io;
mod isa;
mod layer_norm;
mod level;
mod moments;
#[cfg(feature = "ndarray")]
mod ndarray;
mod order;
mod params;
mod planes;
mod residual;
mod rms_norm;
mod rows;
mod stats;
mod stripes;
mod threads;
mod tiles;

// Where a norm runs
pub use level::Level;
pub use threads::{Cpu, Pool};
// Tensors
pub use element::{Compute, DType, Element, Slice, SliceMut};
pub use io::{Io, StatsMut};
pub use planes::{PlaneIo, Planes, PlanesMut};
pub use rows::{MAX_DIMS, Rows, RowsMut};
// Norms
pub use batch_norm::{BatchNorm, Running};
pub use group_norm::{GroupNorm, InstanceNorm};
pub use layer_norm::LayerNorm;
pub use params::Recipe;
pub use rms_norm::RmsNorm;
pub use stats::Stats;
// Errors
pub use error::Error;
// Re-exported, so that callers use the very types that `Element` is for
pub use half::{bf16, f16};
// The order
pub use order::{BATCH_LEAF, LANES, LEAF};
