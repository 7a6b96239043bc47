//! The backward pass of the channel-wise norms: sums of dy and `dy * x_hat` by layout, dx from them, and how threads
//! share the work.

mod batch;
mod factors;
mod groups;
mod io;
mod merged;
mod side;
mod strewn;
mod sums;
mod window;

pub(crate) use batch::{backward_evaluate, backward_train};
pub(crate) use groups::{add_samples, backward_groups};
pub use io::PlaneBackwardIo;
pub(crate) use merged::backward_merged;
pub(crate) use sums::{Lanes, PlaneSums};
