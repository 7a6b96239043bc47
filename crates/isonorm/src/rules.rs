//! For crates with kernels of their own: the core's checks, on lengths, types and strides alone, so that every front-end
//! refuses the same calls in the same words.

pub use crate::grid::{Grid, Sequence, Tensor, Walk, Walks};
pub use crate::params::{Kind, check_param, check_params, check_partial, check_type};
pub use crate::planes::{Layout as PlaneLayout, Shape as PlaneShape, check_saved};
pub use crate::rows::Layout;

use std::hint::black_box;

use crate::element::{Compute, DType, Element, with_element};
use crate::error::Error;
use crate::isa::float_env::FloatEnv;
use crate::running::Update;
use crate::stats::EpsOption;

/// The type in which an x of type `x` is computed.
pub fn compute(x: DType) -> DType {
    if x == DType::F64 { x } else { DType::F32 }
}

/// eps, rounded to the compute type of x.
pub fn eps(value: f64, outside: bool, x: DType) -> Result<f64, Error> {
    let eps = EpsOption { value, outside };
    with_element!(x, T => eps.rounded::<<T as Element>::Compute>().map(drop))?;
    Ok(rounded(value, x).abs())
}

/// Any other option, rounded to it, whatever the host does to small numbers.
pub fn rounded(value: f64, x: DType) -> f64 {
    let _env = FloatEnv::standard();
    // The black boxes keep the rounding between the setting of the environment and its restoring.
    with_element!(x, T => black_box(<T as Element>::Compute::from_f64(black_box(value)).to_f64()))
}

/// The share of a batch in running statistics, rounded to the compute type of x.
pub fn momentum(value: f64, x: DType) -> Result<f64, Error> {
    with_element!(x, T => Update::<<T as Element>::Compute>::new(value, 2, false).map(drop))?;
    Ok(rounded(value, x))
}

/// Refuses groups that do not divide the channels.
pub fn check_groups(groups: usize, channels: usize) -> Result<(), Error> {
    let is_divisor = groups <= channels && channels.checked_rem(groups).unwrap_or(channels) == 0;
    if is_divisor { Ok(()) } else { Err(Error::Groups { groups, channels }) }
}
