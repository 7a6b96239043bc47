//! The backward pass: from dy to dx, and to the gradients of weight and bias.

mod call;
mod correlate;
mod gradients;
mod io;
mod rows;
mod spans;
mod wide;

pub use io::{BackwardIo, Mask};
