//! The backward pass: from dy to dx, and to the gradients of weight and bias.

pub(crate) mod call;
pub(crate) mod correlate;
mod gradients;
mod io;
mod planes_batch;
mod planes_blocks;
mod planes_factors;
mod planes_groups;
mod planes_io;
mod planes_merged;
mod planes_side;
mod planes_strewn;
mod planes_sums;
mod planes_table;
mod planes_window;
mod rows;
mod spans;
mod wide;

pub use io::{BackwardIo, Mask};
pub(crate) use planes_batch::{backward_evaluate, backward_train};
pub(crate) use planes_groups::backward_groups;
pub use planes_io::PlaneBackwardIo;
pub(crate) use planes_merged::backward_merged;
pub(crate) use planes_sums::{Lanes as PlaneLanes, PlaneSums};
