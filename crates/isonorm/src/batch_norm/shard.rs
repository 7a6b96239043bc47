//! BatchNorm in training where the samples of the batch lie on several ranks.

use crate::backward::planes::{PlaneBackwardIo, backward_merged};
use crate::batch_norm::{BatchNorm, arranged};
use crate::channels::Source;
use crate::element::{Compute, DType, Element, with_element};
use crate::error::Error;
use crate::isa::float_env::FloatEnv;
use crate::order::{Kind, Order};
use crate::params::check_type;
use crate::partial::Partial;
use crate::planes::{PlaneIo, Planes, Shape, check_saved};
use crate::running::{Running, Update};
use crate::shards::channels::{correlate_samples, sum_samples};
use crate::shards::measuring::{Measured, Measuring, Of, Typed};
use crate::shards::progress::{Length, Progress, whole};
use crate::threads;

/// One rank's samples of the batch of a [`BatchNorm`] in training: any number of consecutive ones, none too.
///
/// All ranks have the bits of the norm over the whole batch, in y, running statistics and gradients, however unequal
/// their shares. They exchange [`Partial`] sums; how is the caller's: an all-gather of
/// [`to_bytes`](Partial::to_bytes), then [`join`](Partial::join).
///
/// ```text
/// forward:   measure: a partial sum, exchange, take; until there is none      train: y, running statistics
/// backward:  correlate: a partial sum, exchange                               train_backward: dx, dweight, dbias
/// ```
///
/// Every rank updates running statistics of its own, and has the whole dweight and dbias: all the same.
///
/// # Shapes
///
/// Those of [`BatchNorm`], with the samples of the rank. A partial sum has two values of the compute type at most for each
/// channel and subtree of 16 samples and more, and for each sample of a leaf that is cut.
///
/// # Example
///
/// One sample on the first rank, two on the second. Here the ranks run in turn; [`Shard`](crate::Shard) shows an exchange.
///
/// ```
/// use isonorm::{BatchNorm, Measuring, Partial, PlaneIo, Planes, PlanesMut, Running};
///
/// let x = [1.0f32, 10.0, 3.0, 30.0, 5.0, 20.0]; // 3 samples of 2 channels
/// let norm = BatchNorm::new(2);
/// let ranks = [(norm.shard(0), &x[..2]), (norm.shard(1), &x[2..])];
/// let planes = |x| Planes::channels_last(x, 2, 1);
///
/// let mut all = vec![ranks[0].0.measure(planes(ranks[0].1))?, ranks[1].0.measure(planes(ranks[1].1))?];
/// while let Some(sums) = all.iter().map(Measuring::partial).collect::<Option<Vec<Partial>>>() {
///     let merged = Partial::join(sums)?;
///     all[0].take(merged.clone())?;
///     all[1].take(merged)?;
/// }
///
/// let (mut whole, mut mean, mut var) = ([0.0f32; 6], [0.0f32; 2], [1.0f32; 2]);
/// let io = PlaneIo::new(planes(&x), PlanesMut::channels_last(&mut whole, 2, 1));
/// norm.train(io, Some(Running::new(&mut mean, &mut var)))?;
/// for (((shard, x), measuring), whole) in ranks.into_iter().zip(all).zip([&whole[..2], &whole[2..]]) {
///     let (mut y, mut own_mean, mut own_var) = (vec![0.0f32; x.len()], [0.0f32; 2], [1.0f32; 2]);
///     let io = PlaneIo::new(planes(x), PlanesMut::channels_last(&mut y, 2, 1));
///     shard.train(io, &measuring.finish()?, Some(Running::new(&mut own_mean, &mut own_var)))?;
///     assert_eq!((&y[..], own_mean, own_var), (whole, mean, var)); // the bits of one process
/// }
/// # Ok::<(), isonorm::Error>(())
/// ```
#[derive(Clone, Copy, Debug)]
pub struct BatchShard<'a> {
    norm: BatchNorm<'a>,
    first: usize,
}

impl<'a> BatchNorm<'a> {
    /// Of a batch the samples from number `first_sample` on: the others are on other ranks.
    pub fn shard(&self, first_sample: usize) -> BatchShard<'a> {
        BatchShard { norm: *self, first: first_sample }
    }
}

impl<'a> BatchShard<'a> {
    /// Begins to measure the channels of x, of whose samples this rank has some.
    ///
    /// # Errors
    ///
    /// An [`Error`] where lengths, types or options do not fit one another.
    pub fn measure<'t>(&self, x: Planes<'t>) -> Result<Measuring<'t>, Error>
    where
        'a: 't,
    {
        let (shape, dtype) = (self.shape(&x)?, x.data.dtype());
        let length = Length::Samples(shape.spatial);
        let progress = Typed::new(dtype, self.norm.eps, true, length, shape.channels)?;
        Ok(Measuring { of: Of::Planes(*self, x), progress })
    }

    /// The shape of x, of a call that makes sense.
    fn shape(&self, x: &Planes<'_>) -> Result<Shape, Error> {
        let shape = Shape::new("x", x.layout, x.data.len(), self.norm.channels)?;
        self.norm.params.check(self.norm.channels, "channel", x.data.dtype())?;
        self.norm.cpu.chosen_level()?;
        match self.first.checked_add(shape.samples) {
            Some(_) => Ok(arranged(shape)),
            None => Err(Error::PartialEnd { end: self.first, rows: shape.samples }),
        }
    }

    /// This rank's part of a round.
    pub(crate) fn sums(&self, x: &Planes<'_>, progress: &Typed) -> Option<Partial> {
        let shape = self.shape(x).ok()?; // `measure` has seen it
        with_element!(x.data.dtype(), T => self.sums_typed::<T>(T::of(&x.data)?, shape, progress.of()?))
    }

    fn sums_typed<T: Element>(&self, x: &[T], shape: Shape, progress: &Progress<T::Compute>) -> Option<Partial> {
        let (round, sets) = progress.round()?;
        let (cpu, first) = (&self.norm.cpu, self.first);
        Some(Partial::of(sum_samples(cpu, x, shape, first, progress.sums_of(round), round, sets)))
    }

    /// As [`BatchNorm::train`], with statistics of the whole batch.
    ///
    /// # Errors
    ///
    /// An [`Error`] where lengths, types, layouts or options do not fit one another; nothing is written then. Without
    /// samples on any rank nothing is written either.
    pub fn train(&self, io: PlaneIo<'_>, measured: &Measured, running: Option<Running<'_>>) -> Result<(), Error> {
        let (dtype, shape) = (io.dtype(), self.norm.check(&io)?);
        self.check_measured(dtype, shape, measured)?;
        if let Some(running) = &running {
            self.norm.check_running(dtype, running.mean.as_slice(), running.var.as_slice())?;
        }
        with_element!(dtype, T => self.train_typed::<T>(shape, io, measured, running))
    }

    fn train_typed<T: Element>(
        &self,
        shape: Shape,
        io: PlaneIo<'_>,
        measured: &Measured,
        running: Option<Running<'_>>,
    ) -> Result<(), Error> {
        let bytes = if shape.is_empty() { 0 } else { shape.bytes(size_of::<T>()) };
        let stream = io.x.is_some() && threads::is_beyond_the_caches(bytes / 2);
        let task = self.norm.task::<T::Compute>(shape, stream)?;
        let update = Update::new(self.norm.momentum, measured.count().max(2), self.norm.biased)?;
        let stats = T::Compute::saved(measured.stats()).unwrap_or_default();
        if measured.count() == 0 {
            return Ok(());
        }
        if let Some(saved) = io.stats.and_then(T::Compute::stats) {
            saved.copy_from_slice(stats);
        }
        if let Some(mut running) = running {
            update.apply(&mut running, 0, stats);
        }
        if !shape.is_empty() {
            let source = Source::Given { stats, first: 0, per: 1 };
            self.norm.write::<T>(task, source, io.x.map(|x| x.data), io.y.data);
        }
        Ok(())
    }

    /// Statistics of another x are refused where that can be seen.
    fn check_measured(&self, dtype: DType, shape: Shape, measured: &Measured) -> Result<(), Error> {
        check_saved(dtype, (measured.dtype(), measured.stats().len()), self.norm.channels, "channel")?;
        let (least, found) = (shape.count(), measured.count());
        if !shape.is_empty() && least > found {
            return Err(Error::TooFewMeasured { least, found });
        }
        Ok(())
    }

    /// What this rank has to tell before [`train_backward`](Self::train_backward): the sums of dy, and of dy and x_hat.
    ///
    /// # Errors
    ///
    /// An [`Error`] where lengths, types, layouts or options do not fit one another.
    pub fn correlate(&self, x: Planes<'_>, dy: Planes<'_>, measured: &Measured) -> Result<Partial, Error> {
        let (shape, dtype) = (self.shape(&x)?, x.data.dtype());
        shape.check_same(x.layout, "dy", dy.layout, dy.data.len())?;
        check_type("dy", dy.data.dtype(), dtype)?;
        self.check_measured(dtype, shape, measured)?;
        let (cpu, first) = (&self.norm.cpu, self.first);
        with_element!(dtype, T => {
            let stats = <T as Element>::Compute::saved(measured.stats()).unwrap_or_default();
            let x = T::of(&x.data).unwrap_or_default();
            Ok(Partial::of(correlate_samples(cpu, x, dy.data, shape, first, stats)))
        })
    }

    /// As [`BatchNorm::train_backward`]. `merged` are the sums of [`correlate`](Self::correlate) of all ranks, and
    /// `measured` the statistics that it was given; those of `io` are left unread.
    ///
    /// # Errors
    ///
    /// An [`Error`] where lengths, types, layouts or options do not fit one another, or sums of a rank are missing;
    /// nothing is written then.
    pub fn train_backward(&self, io: PlaneBackwardIo<'_>, measured: &Measured, merged: &Partial) -> Result<(), Error> {
        let (dtype, shape) = (io.dtype(), self.norm.check_backward(&io)?);
        self.check_measured(dtype, shape, measured)?;
        with_element!(dtype, T => self.backward_typed::<T>(shape, io, measured, merged))
    }

    fn backward_typed<T: Element>(
        &self,
        shape: Shape,
        mut io: PlaneBackwardIo<'_>,
        measured: &Measured,
        merged: &Partial,
    ) -> Result<(), Error> {
        let samples = measured.count().checked_div(shape.spatial).unwrap_or(0);
        let sums = whole::<T::Compute>(merged, Order::Batch, Kind::Pair, shape.channels, Some(samples))?;
        let bytes = if shape.is_empty() { 0 } else { shape.bytes(size_of::<T>()) };
        let stream = io.dy.is_some() && threads::is_beyond_the_caches(bytes / 2);
        let task = self.norm.task::<T::Compute>(shape, stream)?;
        let env = FloatEnv::standard();
        let root = sums.root();
        let (dweight, dbias) = root.split_at(shape.channels);
        io.gradients.write(0, shape.channels, [dbias, dweight]);
        drop(env);
        if !shape.is_empty() {
            let stats = T::Compute::saved(measured.stats()).unwrap_or_default();
            backward_merged::<T>(task, &self.norm.cpu, io, samples, stats, [dbias, dweight]);
        }
        Ok(())
    }
}
