//! Running statistics in device memory, which training moves.

use isonorm::DType;
use isonorm::Error as CallError;
use isonorm::rules;

use crate::channel_options::grid_of_channels;
use crate::device::Stream;
use crate::error::Error;
use crate::kernels::{Instances, Kernel, PlaneKernel, Running as Argument, Tensor};
use crate::memory::{Slice, SliceMut};
use crate::planes::{Named, check_all_apart};
use crate::row_norm::STATS;
use crate::walk::parameter;

/// The running statistics of a norm of channels. As `isonorm::Running`.
#[derive(Debug)]
pub struct Running<'a> {
    mean: SliceMut<'a>,
    var: SliceMut<'a>,
}

impl<'a> Running<'a> {
    /// One mean and one variance for each channel, each in its own storage type.
    pub fn new(mean: SliceMut<'a>, var: SliceMut<'a>) -> Self {
        Running { mean, var }
    }

    /// Queues their move by a batch of [`GroupNorm::instance`](crate::GroupNorm::instance), whose statistics `stats`
    /// are, of planes of `count` values: towards the means over its samples. As `isonorm::Running::instances`.
    ///
    /// # Errors
    ///
    /// An [`Error`] where lengths, types or the momentum do not fit, a plane has a single value, tensors overlap, or
    /// CUDA fails.
    pub fn instances(
        &mut self,
        stream: &Stream<'_>,
        momentum: f64,
        stats: Slice<'_>,
        count: usize,
    ) -> Result<(), Error> {
        let (channels, x, len) = (self.mean.as_slice().len(), stats.dtype(), stats.len());
        if !matches!(x, DType::F32 | DType::F64) {
            return Err(CallError::TypeIsNot { name: "stats", found: x, expected: DType::F32 }.into());
        }
        self.check(channels, x)?;
        let size = STATS * channels;
        if len != 0 && len.checked_rem(size) != Some(0) {
            return Err(CallError::NotWhole { name: "stats", what: "samples", found: len, size }.into());
        }
        if count == 1 {
            return Err(CallError::TooFewValues { count }.into());
        }
        self.check_apart(&[("stats", stats)])?;
        let running = Self::argument(Some(self), rules::momentum(momentum, x)?, false);
        if len == 0 {
            return Ok(());
        }
        let [samples, spatial] = [len / size, count].map(|n| n as i64);
        let args = Instances { samples, channels: channels as i64, spatial, stats: stats.pointer(), running };
        let kernel = Kernel::Planes(PlaneKernel::Instances { compute: x });
        stream.device().within(|| stream.launch(&kernel, &args, grid_of_channels(channels)))
    }

    /// Lengths and types beside an x of this type.
    pub(crate) fn check(&self, channels: usize, x: DType) -> Result<(), Error> {
        for (name, slice) in self.named() {
            rules::check_param(name, slice.kind(), channels, "channel", x)?;
        }
        Ok(())
    }

    /// Whether they lie apart from each other and from all else.
    pub(crate) fn check_apart(&self, others: &[Named<'_>]) -> Result<(), Error> {
        check_all_apart(&self.named(), others)
    }

    fn named(&self) -> [Named<'a>; 2] {
        [("running_mean", self.mean.as_slice()), ("running_var", self.var.as_slice())]
    }

    /// As a kernel takes them, if there are any.
    pub(crate) fn argument(running: Option<&Self>, momentum: f64, biased: bool) -> Argument {
        let [mean, var] =
            running.map_or([Tensor::NONE; 2], |running| running.named().map(|(_, slice)| parameter(Some(&slice))));
        Argument { mean, var, momentum, biased: biased.into() }
    }
}
