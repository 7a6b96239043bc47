//! The backward pass over rows: the stored bits, every form of a call, and batches that are cut into pieces.

#[path = "../support/mod.rs"]
mod support;

mod expected;
mod forms;
mod golden;
mod pieces;
mod refused;
