//! What norms of channels have in common: options, checks, and the kernels that sum over channels.

use std::ffi::c_void;
use std::ptr::null_mut;

use isonorm::DType;
use isonorm::rules::{self, PlaneShape};

use crate::device::Stream;
use crate::error::Error;
use crate::kernels::{ChannelLaunch, Channels, Correlate, Kernel, Storage};
use crate::launch::Grid;
use crate::memory::{Slice, SliceMut};
use crate::planes::{Named, PlaneBackwardIo};
use crate::row_norm::storage;
use crate::shape::SMALL_BLOCK;
use crate::walk::parameter;

/// Options of a norm of channels.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ChannelOptions<'a> {
    pub(crate) channels: usize,
    pub(crate) eps: f64,
    pub(crate) eps_outside: bool,
    pub(crate) weight: Option<Slice<'a>>,
    pub(crate) bias: Option<Slice<'a>>,
    pub(crate) offset: f64,
}

/// Where the statistics of a sum over channels are.
#[derive(Clone, Copy)]
pub(crate) struct Known {
    /// Of each channel, or of each group of each sample.
    pub(crate) stats: *mut c_void,
    /// Groups of a sample; 0: of channels.
    pub(crate) groups: usize,
}

impl<'a> ChannelOptions<'a> {
    /// eps 1e-5, no weight, no bias.
    pub(crate) fn new(channels: usize) -> Self {
        ChannelOptions { channels, eps: 1e-5, eps_outside: false, weight: None, bias: None, offset: 0.0 }
    }

    /// Weight, bias and offset beside an x of this type, in a shape that kernels can count.
    pub(crate) fn check(&self, shape: &PlaneShape, x: DType) -> Result<(), Error> {
        let kind = |param: &Option<Slice<'_>>| param.as_ref().map(Slice::kind);
        rules::check_params(kind(&self.weight), kind(&self.bias), self.offset, self.channels, "channel", x)?;
        match [shape.channels, shape.spatial].into_iter().find(|len| i32::try_from(*len).is_err()) {
            Some(hidden) => Err(Error::TooLong { hidden }),
            None => Ok(()),
        }
    }

    /// Weight and bias, by name.
    pub(crate) fn named(&self) -> impl Iterator<Item = Named<'a>> + use<'a> {
        [("weight", self.weight), ("bias", self.bias)].into_iter().filter_map(|(name, slice)| Some((name, slice?)))
    }

    /// eps in the compute type.
    pub(crate) fn rounded_eps(&self, x: DType) -> Result<f64, Error> {
        Ok(rules::eps(self.eps, self.eps_outside, x)?)
    }

    /// How sums over channels are launched, and what their kernels are given.
    pub(crate) fn over_channels(
        &self,
        shape: &PlaneShape,
        x: DType,
        side_by_side: bool,
        capability: (i32, i32),
    ) -> Result<(ChannelLaunch, Channels), Error> {
        let sizes = [shape.samples, shape.channels, shape.spatial];
        let launch = if side_by_side {
            ChannelLaunch::side_by_side(sizes, x, capability)
        } else {
            ChannelLaunch::new(sizes, x, capability).ok_or(Error::TooLong { hidden: shape.spatial })?
        };
        let channels = Channels {
            eps: self.rounded_eps(x)?,
            eps_outside: self.eps_outside.into(),
            weight_offset: rules::rounded(self.offset, x),
            ..Channels::new(sizes, &launch)
        };
        Ok((launch, channels))
    }

    /// Queues dweight and dbias, and the values of BatchNorm's dx where there is room for them.
    pub(crate) fn correlate(
        &self,
        stream: &Stream<'_>,
        shape: &PlaneShape,
        io: &PlaneBackwardIo<'_>,
        known: Known,
        values: Option<*mut c_void>,
    ) -> Result<(), Error> {
        if shape.channels == 0 {
            return Ok(());
        }
        let (x, dy) = (io.x.data.dtype(), storage([io.dy.data.dtype()], io.x.data.dtype()));
        let (side_by_side, capability) = (is_side_by_side(shape) && dy == Storage::Of(x), stream.device().capability());
        let (launch, channels) = self.over_channels(shape, x, side_by_side, capability)?;
        let gradient = |slice: &Option<SliceMut<'_>>| parameter(slice.as_ref().map(SliceMut::as_slice).as_ref());
        let args = Correlate {
            channels,
            x: io.x.argument(),
            dy: io.dy.argument(),
            groups: known.groups as i64,
            stats: known.stats,
            weight: parameter(self.weight.as_ref()),
            dweight: gradient(&io.dweight),
            dbias: gradient(&io.dbias),
            values: values.unwrap_or(null_mut()),
        };
        stream.launch(&Kernel::Planes(launch.correlate(x, dy)), &args, Grid::of_channels(&launch))
    }
}

/// Whether the channels of a position lie side by side.
pub(crate) fn is_side_by_side(shape: &PlaneShape) -> bool {
    (shape.last || shape.spatial == 1) && shape.channels > 1
}

/// The grid of a kernel whose threads have a channel each.
pub(crate) fn grid_of_channels(channels: usize) -> Grid {
    let blocks = channels.div_ceil(SMALL_BLOCK).clamp(1, i32::MAX as usize) as u32;
    Grid { blocks, threads: SMALL_BLOCK as u32, cluster: 1 }
}

/// A call's scratch memory.
pub(crate) struct Scratch<'a>(Option<Slice<'a>>);

impl<'a> Scratch<'a> {
    /// Of at least `expected` elements of the compute type.
    pub(crate) fn of(scratch: Option<&SliceMut<'a>>, expected: usize, x: DType) -> Result<Self, Error> {
        let (compute, found) = (rules::compute(x), scratch.map(SliceMut::as_slice));
        let (len, dtype) = found.map_or((0, compute), |scratch| scratch.kind());
        if dtype != compute {
            return Err(isonorm::Error::TypeIsNot { name: "scratch", found: dtype, expected: compute }.into());
        }
        if len < expected { Err(Error::Scratch { found: len, expected }) } else { Ok(Scratch(found)) }
    }

    /// Element `at`.
    pub(crate) fn at(&self, at: usize) -> *mut c_void {
        self.0.map_or(null_mut(), |scratch| scratch.element(at))
    }
}
