//! The backward pass: from dy to dx, and to the gradients of weight and bias.

pub(crate) mod call;
pub(crate) mod correlate;
mod gradients;
mod io;
pub(crate) mod planes;
mod rows;
mod spans;
mod wide;

pub use io::{BackwardIo, Mask};
pub use planes::PlaneBackwardIo;
