//! The running statistics of BatchNorm and InstanceNorm, and how training moves them.

use crate::element::Compute;
use crate::error::Error;
use crate::io::StatsRef;
use crate::isa::float_env::FloatEnv;
use crate::params::{check_param, narrow_slice, widen_slice};
use crate::slice::SliceMut;
use crate::stats::Stats;
use crate::tables::sum_rows;
use crate::threads::Cpu;

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

    /// Moves them by a batch of [`InstanceNorm`](crate::InstanceNorm), whose statistics `stats` are, of planes of `count`
    /// values: towards the means over its samples, as PyTorch's `track_running_stats` does.
    ///
    /// ```text
    /// running_mean = momentum * mean over samples n of mean[n,c] + (1 - momentum) * running_mean
    /// running_var  = momentum * mean over samples n of var[n,c] * count / (count - 1) + (1 - momentum) * running_var
    /// ```
    ///
    /// The samples are summed in batch order, in the type of the statistics; each running one is rounded once. No
    /// samples change nothing.
    ///
    /// ```
    /// use isonorm::{InstanceNorm, PlaneIo, Planes, PlanesMut, Running, Stats};
    /// let x = [1.0f32, 3.0, 2.0, 6.0]; // 2 samples of a channel of 2 positions
    /// let (mut y, mut stats) = ([0.0f32; 4], [Stats::<f32>::default(); 2]);
    /// let io = PlaneIo::new(Planes::channels_first(&x, 1, 2), PlanesMut::channels_first(&mut y, 1, 2));
    /// InstanceNorm::new(1).apply(io.stats(&mut stats))?;
    /// let (mut mean, mut var) = ([0.0f32], [1.0f32]);
    /// Running::new(&mut mean, &mut var).instances(0.5, &stats, 2)?;
    /// assert_eq!((mean, var), ([1.5], [3.0])); // of means 2 and 4, and unbiased variances 2 and 8
    /// # Ok::<(), isonorm::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// An [`Error`] where lengths, types or the momentum do not fit, or a plane has a single value; nothing is written
    /// then.
    pub fn instances<'s>(&mut self, momentum: f64, stats: impl Into<StatsRef<'s>>, count: usize) -> Result<(), Error> {
        let stats = stats.into();
        let channels = self.mean.len();
        check_param("running_mean", self.mean.as_slice().kind(), channels, "channel", stats.dtype())?;
        check_param("running_var", self.var.as_slice().kind(), channels, "channel", stats.dtype())?;
        if stats.len() != 0 && stats.len().checked_rem(channels) != Some(0) {
            return Err(Error::NotWhole { name: "stats", what: "samples", found: stats.len(), size: channels });
        }
        if count == 1 {
            return Err(Error::TooFewValues { count });
        }
        match stats {
            StatsRef::F32(stats) => self.instances_of(momentum, stats, count),
            StatsRef::F64(stats) => self.instances_of(momentum, stats, count),
        }
    }

    fn instances_of<C: Compute>(&mut self, momentum: f64, stats: &[Stats<C>], count: usize) -> Result<(), Error> {
        let level = Cpu::new().chosen_level()?;
        let _env = FloatEnv::standard();
        let update = Update::new(momentum, count.max(2), false)?;
        if stats.is_empty() {
            return Ok(());
        }
        let channels = self.mean.len();
        let samples = C::from_count(stats.len() / channels);
        let (means, vars): (Vec<C>, Vec<C>) = stats.iter().map(|stats| (stats.mean(), stats.var())).unzip();
        let (mut mean, mut var) = (vec![C::ZERO; channels], vec![C::ZERO; channels]);
        sum_rows(level, &means, &mut mean);
        sum_rows(level, &vars, &mut var);
        let average = |(mean, var): (&C, &C)| {
            let (mean, var) = (*mean / samples, *var / samples);
            Stats { mean, var, scale: C::ONE, ..Stats::default() }
        };
        let stats: Vec<_> = mean.iter().zip(&var).map(average).collect();
        update.apply(self, 0, &stats);
        Ok(())
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
