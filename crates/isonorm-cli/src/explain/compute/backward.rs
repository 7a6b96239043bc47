//! The library's gradients.

use isonorm::{BackwardIo, BatchNorm, GroupNorm, InstanceNorm, LayerNorm, PlaneBackwardIo, Planes, PlanesMut};

use super::{Affine, Kind, Options, channels, rms};
use crate::explain::layout::Layout;
use crate::explain::values::{Values, compute_type};

/// What the library made of x and dy: dx in the type of x, the others in the compute type.
#[derive(Debug)]
pub(crate) struct Backward {
    pub(crate) dx: Values,
    pub(crate) dweight: Values,
    pub(crate) dbias: Values,
}

/// The gradients of the norm of `x`.
pub(crate) fn backward(
    options: &Options,
    layout: &Layout,
    x: &Values,
    dy: &Values,
    weight: Option<&Values>,
) -> Result<Backward, isonorm::Error> {
    let zeros = |len, dtype| Values::filled(0.0, len, dtype);
    let (params, dtype) = (layout.parameters(), compute_type(x.dtype()));
    let mut made =
        Backward { dx: zeros(x.len(), x.dtype()), dweight: zeros(params, dtype), dbias: zeros(params, dtype) };
    let Backward { dx, dweight, dbias } = &mut made;
    let affine = Affine { weight, bias: None };
    if matches!(options.kind, Kind::Rms { .. } | Kind::Layer) {
        let io = BackwardIo::new(x.as_slice(), dy.as_slice(), dx.as_slice_mut());
        let io = io.dweight(dweight.as_slice_mut()).dbias(dbias.as_slice_mut());
        let hidden = layout.computed[2];
        match options.kind {
            Kind::Rms { recipe, weight_offset, partial } => {
                rms(options, hidden, affine, (recipe, weight_offset, partial)).backward(io)?
            }
            _ => common!(LayerNorm::new(hidden), options, affine).backward(io)?,
        }
        return Ok(made);
    }
    let (channels, spatial) = channels(layout);
    let planes = |values| Planes::channels_first(values, channels, spatial);
    let to = PlanesMut::channels_first(dx.as_slice_mut(), channels, spatial);
    let io = PlaneBackwardIo::new(planes(x.as_slice()), planes(dy.as_slice()), to);
    let io = io.dweight(dweight.as_slice_mut()).dbias(dbias.as_slice_mut());
    match options.kind {
        Kind::Group { groups } => common!(GroupNorm::new(groups, channels), options, affine).backward(io)?,
        Kind::Instance => common!(InstanceNorm::new(channels), options, affine).backward(io)?,
        _ => common!(BatchNorm::new(channels), options, affine).train_backward(io)?,
    }
    Ok(made)
}
