//! What the backward call of a channel-wise norm reads and writes.

use crate::element::{Compute, DType};
use crate::error::Error;
use crate::io::StatsRef;
use crate::order::LANES;
use crate::params::{check_param, check_type, narrow_slice};
use crate::partial::Partial;
use crate::planes::{Planes, PlanesMut, Shape, check_saved};
use crate::slice::{Slice, SliceMut};

/// The tensors of one backward call of a channel-wise norm.
///
/// `x` is what forward normalized and `dy` the gradient of its result; `dx`, and where they are asked for `dweight` and
/// `dbias`, are overwritten. All tensors have one shape and layout. `dx` is rounded to x's type; a `dx` of another
/// type gets that value rounded to its own. `dy` has a type of its own too (f64 goes with f64 alone).
///
/// ```
/// use isonorm::{InstanceNorm, PlaneBackwardIo, Planes, PlanesMut};
/// let (x, dy) = ([1.0f32, 3.0, 2.0, 6.0], [1.0f32, 0.0, 0.0, 2.0]); // 2 channels of 2 positions
/// let (mut dx, mut dweight, mut dbias) = ([0.0f32; 4], [0.0f32; 2], [0.0f32; 2]);
/// let planes = |data| Planes::channels_first(data, 2, 2);
/// let io = PlaneBackwardIo::new(planes(&x), planes(&dy), PlanesMut::channels_first(&mut dx, 2, 2));
/// InstanceNorm::new(2).eps(0.0).backward(io.dweight(&mut dweight).dbias(&mut dbias))?;
/// assert_eq!((dweight, dbias), ([-1.0, 2.0], [1.0, 2.0])); // x_hat is -1 and 1 in either channel
/// assert_eq!(dx, [0.0; 4]); // two values are always -1 and 1
/// # Ok::<(), isonorm::Error>(())
/// ```
#[derive(Debug)]
pub struct PlaneBackwardIo<'a> {
    pub(crate) x: Planes<'a>,
    /// `None`: what dx holds.
    pub(crate) dy: Option<Planes<'a>>,
    pub(crate) dx: PlanesMut<'a>,
    pub(crate) gradients: Gradients<'a>,
    pub(crate) partial: Option<&'a mut Partial>,
    pub(crate) stats: Option<StatsRef<'a>>,
}

/// The gradients of weight and bias that a call asks for.
#[derive(Debug)]
pub(crate) struct Gradients<'a> {
    pub(crate) dweight: Option<SliceMut<'a>>,
    pub(crate) dbias: Option<SliceMut<'a>>,
}

impl<'a> PlaneBackwardIo<'a> {
    /// x and dy to dx, of the same shape and layout.
    pub fn new(x: Planes<'a>, dy: Planes<'a>, dx: PlanesMut<'a>) -> Self {
        let gradients = Gradients { dweight: None, dbias: None };
        PlaneBackwardIo { x, dy: Some(dy), dx, gradients, partial: None, stats: None }
    }
    /// x and dy, of x's type, which becomes dx.
    pub fn in_place(x: Planes<'a>, dy: PlanesMut<'a>) -> Self {
        let gradients = Gradients { dweight: None, dbias: None };
        PlaneBackwardIo { x, dy: None, dx: dy, gradients, partial: None, stats: None }
    }
    /// The gradient of the weight: one for each channel, rounded once; f64 with x of f64 alone.
    pub fn dweight(mut self, dweight: impl Into<SliceMut<'a>>) -> Self {
        self.gradients.dweight = Some(dweight.into());
        self
    }
    /// The gradient of the bias: one for each channel, rounded once; f64 with x of f64 alone.
    pub fn dbias(mut self, dbias: impl Into<SliceMut<'a>>) -> Self {
        self.gradients.dbias = Some(dbias.into());
        self
    }
    /// Adds the samples to unfinished gradients, [`Partial::samples`], after those that it has; `dweight` and `dbias` are
    /// over all samples that it has then. For GroupNorm and InstanceNorm: BatchNorm's samples have their statistics in
    /// common, and are summed over parts of a batch by [`BatchShard`](crate::BatchShard).
    ///
    /// ```
    /// use isonorm::{DType, InstanceNorm, Partial, PlaneBackwardIo, Planes, PlanesMut};
    /// let (x, dy) = ([1.0f32, 3.0, 2.0, 6.0], [1.0f32, 0.0, 0.0, 2.0]); // 2 samples of one channel
    /// let (mut dx, mut dweight) = ([0.0f32; 2], [0.0f32]);
    /// let mut partial = Partial::samples(DType::F32, 1, 0);
    /// for sample in [0..2, 2..4] {
    ///     let [x, dy] = [&x, &dy].map(|from| Planes::channels_first(&from[sample.clone()], 1, 2));
    ///     let io = PlaneBackwardIo::new(x, dy, PlanesMut::channels_first(&mut dx, 1, 2));
    ///     InstanceNorm::new(1).eps(0.0).backward(io.partial(&mut partial))?;
    /// }
    /// partial.dweight(&mut dweight)?;
    /// assert_eq!(dweight, [1.0]);
    /// # Ok::<(), isonorm::Error>(())
    /// ```
    pub fn partial(mut self, partial: &'a mut Partial) -> Self {
        self.partial = Some(partial);
        self
    }
    /// The statistics that the forward call on this x saved. Without them they are computed again: the same bits,
    /// and up to two passes over x more. BatchNorm in evaluation takes the running statistics and leaves these unread.
    pub fn stats(mut self, saved: impl Into<StatsRef<'a>>) -> Self {
        self.stats = Some(saved.into());
        self
    }

    /// The type of x.
    pub(crate) fn dtype(&self) -> DType {
        self.x.data.dtype()
    }

    /// The type that dx is rounded to on the way to its own.
    pub(crate) fn rounded(&self) -> Option<DType> {
        let (x, dx) = (self.dtype(), self.dx.data.dtype());
        (dx != x && matches!(x, DType::F16 | DType::Bf16)).then_some(x)
    }

    /// The shape that all tensors share, for a norm of `channels` channels.
    pub(crate) fn shape(&self, channels: usize) -> Result<Shape, Error> {
        let (x, layout) = (self.x.data, self.x.layout);
        let shape = Shape::new("x", layout, x.len(), channels)?;
        let (dx, dx_type) = (&self.dx, self.dx.data.dtype());
        let Some(dy) = self.dy else {
            shape.check_same(layout, "dy", dx.layout, dx.data.len())?;
            if dx_type != x.dtype() {
                return Err(Error::TypeIsNot { name: "dy", found: dx_type, expected: x.dtype() });
            }
            return Ok(shape);
        };
        shape.check_same(layout, "dy", dy.layout, dy.data.len())?;
        check_type("dy", dy.data.dtype(), x.dtype())?;
        shape.check_same(layout, "dx", dx.layout, dx.data.len())?;
        check_type("dx", dx_type, x.dtype())?;
        Ok(shape)
    }

    /// Lengths and types of the parameters' gradients, and of the `saved` statistics, one `per` what.
    pub(crate) fn check(&self, channels: usize, saved: usize, per: &'static str) -> Result<(), Error> {
        let Gradients { dweight, dbias } = &self.gradients;
        for (name, gradient) in [("dweight", dweight), ("dbias", dbias)] {
            if let Some(gradient) = gradient {
                check_param(name, gradient.as_slice().kind(), channels, "channel", self.dtype())?;
            }
        }
        match self.stats {
            None => Ok(()),
            Some(StatsRef::F32(stats)) => check_saved(self.dtype(), (DType::F32, stats.len()), saved, per),
            Some(StatsRef::F64(stats)) => check_saved(self.dtype(), (DType::F64, stats.len()), saved, per),
        }
    }

    /// Whether the partial sum can take `samples` samples of `channels` channels.
    pub(crate) fn check_partial(&self, channels: usize, samples: usize) -> Result<(), Error> {
        let Some(partial) = &self.partial else { return Ok(()) };
        partial.check_like(&Partial::samples(self.dtype(), channels, 0))?;
        partial.check_room(samples)?;
        if self.gradients.are_wanted() { partial.check_start() } else { Ok(()) }
    }

    /// For norms whose samples cannot be summed one after the other.
    pub(crate) fn refuse_partial(&self) -> Result<(), Error> {
        let Some(partial) = &self.partial else { return Ok(()) };
        let expected = "none: for parts of BatchNorm's batch there is BatchShard".into();
        Err(Error::PartialKind { expected, found: partial.describe() })
    }

    /// What dy is read from while nothing is written.
    pub(crate) fn dy(&self) -> Slice<'_> {
        self.dy.map_or(self.dx.data.as_slice(), |dy| dy.data)
    }
}

impl Gradients<'_> {
    pub(crate) fn are_wanted(&self) -> bool {
        self.dweight.is_some() || self.dbias.is_some()
    }

    /// Those of the first `channels` channels, and the rest.
    pub(crate) fn split(self, channels: usize) -> (Self, Self) {
        let (dweight, dweight_rest) = self.dweight.map(|slice| slice.split(channels)).unzip();
        let (dbias, dbias_rest) = self.dbias.map(|slice| slice.split(channels)).unzip();
        (Gradients { dweight, dbias }, Gradients { dweight: dweight_rest, dbias: dbias_rest })
    }

    /// Rounds the sums of `n` channels from `first` on.
    pub(crate) fn write<C: Compute>(&mut self, first: usize, n: usize, [dbias, dweight]: [&[C]; 2]) {
        for (to, from) in [(&mut self.dbias, dbias), (&mut self.dweight, dweight)] {
            if let Some(to) = to {
                narrow_slice(&from[..n], to.reborrow().part(first, n));
            }
        }
    }

    /// The gradients of no sample: +0.
    pub(crate) fn clear(&mut self) {
        let channels = [&self.dweight, &self.dbias].into_iter().flatten().map(SliceMut::len).max().unwrap_or(0);
        for first in (0..channels).step_by(LANES) {
            self.write::<f32>(first, LANES.min(channels - first), [&[0.0; LANES]; 2]);
        }
    }
}
