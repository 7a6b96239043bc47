//! The running statistics of BatchNorm, and how training moves them.

use crate::element::Compute;
use crate::error::Error;
use crate::isa::float_env::FloatEnv;
use crate::params::{narrow_slice, widen_slice};
use crate::slice::SliceMut;
use crate::stats::Stats;

/// The running statistics of a [`BatchNorm`](crate::BatchNorm), which training updates.
#[derive(Debug)]
pub struct Running<'a> {
    /// One mean for each channel.
    pub mean: SliceMut<'a>,
    /// One variance for each channel.
    pub var: SliceMut<'a>,
}

impl<'a> Running<'a> {
    /// Both, each in its own storage type.
    pub fn new(mean: impl Into<SliceMut<'a>>, var: impl Into<SliceMut<'a>>) -> Self {
        Running { mean: mean.into(), var: var.into() }
    }
}

/// How running statistics move towards a batch's.
pub(crate) struct Update<C> {
    momentum: C,
    keep: C,
    /// `n / (n - 1)` where the running variance is the unbiased one.
    factor: Option<C>,
}

impl<C: Compute> Update<C> {
    /// After a batch of `count` values for each channel.
    pub(crate) fn new(momentum: f64, count: usize, biased: bool) -> Result<Self, Error> {
        let _env = FloatEnv::standard();
        let given = momentum;
        let momentum = C::from_f64(given);
        if !momentum.finite() {
            return Err(Error::Option { name: "momentum", found: given, expected: "a finite number" });
        }
        let factor = C::from_count(count) / C::from_count(count - 1);
        Ok(Update { momentum, keep: C::ONE - momentum, factor: (!biased).then_some(factor) })
    }

    /// Moves those of the channels from `first` on.
    pub(crate) fn apply(&self, running: &mut Running<'_>, first: usize, stats: &[Stats<C>]) {
        let _env = FloatEnv::standard();
        for (i, stats) in stats.iter().enumerate() {
            let var = self.factor.map_or(stats.var(), |factor| stats.var() * factor);
            self.moved(running.mean.reborrow().part(first + i, 1), stats.mean());
            self.moved(running.var.reborrow().part(first + i, 1), var);
        }
    }

    fn moved(&self, running: SliceMut<'_>, new: C) {
        let mut old = [C::ZERO];
        widen_slice(running.as_slice(), &mut old);
        narrow_slice(&[self.momentum.fused(new, self.keep * old[0])], running);
    }
}
