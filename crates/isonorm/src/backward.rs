//! The backward pass: from dy to dx, and to the gradients of weight and bias.

mod call;
mod io;
mod kernel;
mod rows;
mod spans;
mod wide;

pub use io::{BackwardIo, Mask};
