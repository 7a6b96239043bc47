//! The gradients of the norms.

mod planes_batch;
mod planes_blocks;
mod planes_factors;
mod planes_groups;
mod planes_io;
mod planes_side;
mod planes_strewn;
mod planes_sums;
mod planes_table;
mod planes_window;

pub(crate) use planes_batch::{backward_evaluate, backward_train};
pub(crate) use planes_groups::backward_groups;
pub use planes_io::PlaneBackwardIo;
