//! Normalization layers with the same bits everywhere, at the speed of memory.

mod apply;
mod element;
mod error;
mod forward;
mod io;
mod isa;
mod layer_norm;
mod level;
#[cfg(feature = "ndarray")]
mod ndarray;
mod order;
mod params;
mod rms_norm;
mod rows;
mod stats;
mod threads;

// Where a norm runs
pub use level::Level;
pub use threads::{Cpu, Pool};
// Tensors
pub use element::{Compute, DType, Element, Slice, SliceMut};
pub use io::{Io, StatsMut};
pub use rows::{MAX_DIMS, Rows, RowsMut};
// Norms
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
