//! The bits of a row depend on its values and the options alone.
//!
//! What is computed is held to the recursive oracle; where that is too slow, to one scalar thread, which the
//! tests of `values` hold to the oracle.

#[path = "../support/mod.rs"]
mod support;

mod layouts;
mod residual;
mod threads;
mod values;
