//! What every part of isonorm is held to: [`oracle`] (the contract by definition), [`golden`] (stored
//! bits), [`values`] (inputs that break norms), [`ulps`] (how far apart two results are).
//!
//! Nothing here uses crate `isonorm`, so nothing here can share a mistake with it.

pub mod dtype;
pub mod golden;
pub mod oracle;
pub mod ulps;
pub mod values;

pub use dtype::DType;
