//! Samples of channels in device memory, and what a call over them reads and writes.

use isonorm::DType;
use isonorm::rules::{self, PlaneLayout, PlaneShape};

use crate::error::Error;
use crate::kernels::{Planes as Argument, Tensor as Rows};
use crate::memory::{Slice, SliceMut};
use crate::row_norm::{self, STATS};
use crate::walk::check_disjoint;

/// A tensor `[samples, channels, spatial]` that is read. As `isonorm::Planes`.
#[derive(Clone, Copy, Debug)]
pub struct Planes<'a> {
    pub(crate) data: Slice<'a>,
    pub(crate) layout: PlaneLayout,
}

/// A tensor `[samples, channels, spatial]` that is written.
#[derive(Debug)]
pub struct PlanesMut<'a> {
    pub(crate) planes: Planes<'a>,
}

impl<'a> Planes<'a> {
    /// Channel after channel: NCHW, `(N, C)`.
    pub fn channels_first(data: Slice<'a>, channels: usize, spatial: usize) -> Self {
        Planes { data, layout: PlaneLayout { channels, spatial, last: false } }
    }
    /// Position after position, each with all channels: NHWC.
    pub fn channels_last(data: Slice<'a>, channels: usize, spatial: usize) -> Self {
        Planes { data, layout: PlaneLayout { channels, spatial, last: true } }
    }

    pub(crate) fn shape(&self, name: &'static str, channels: usize) -> Result<PlaneShape, Error> {
        Ok(PlaneShape::new(name, self.layout, self.data.len(), channels)?)
    }

    /// As a kernel takes it.
    pub(crate) fn argument(&self) -> Argument {
        let PlaneLayout { channels, spatial, last } = self.layout;
        let sample = (channels * spatial) as i64;
        let strides = if last { [sample, 1, channels as i64] } else { [sample, spatial as i64, 1] };
        Argument::new(self.data.pointer(), self.data.dtype(), strides)
    }

    /// As rows of `hidden` elements, where these lie one after the other.
    pub(crate) fn rows(&self, hidden: usize) -> Option<Rows> {
        let PlaneLayout { channels, spatial, last } = self.layout;
        let rows = Rows::new(self.data.pointer(), self.data.dtype(), hidden as i64, 0);
        (!last || channels == 1 || spatial == 1).then_some(rows)
    }

    /// Whether they are the very same elements in the same places.
    fn is_same(&self, other: &Planes<'_>) -> bool {
        self.data.pointer() == other.data.pointer() && self.data.kind() == other.data.kind()
    }
}

impl<'a> PlanesMut<'a> {
    /// As [`Planes::channels_first`].
    pub fn channels_first(data: SliceMut<'a>, channels: usize, spatial: usize) -> Self {
        PlanesMut { planes: Planes::channels_first(data.as_slice(), channels, spatial) }
    }
    /// As [`Planes::channels_last`].
    pub fn channels_last(data: SliceMut<'a>, channels: usize, spatial: usize) -> Self {
        PlanesMut { planes: Planes::channels_last(data.as_slice(), channels, spatial) }
    }
}

/// The tensors of one forward call of a channel-wise norm. As `isonorm::PlaneIo`.
#[derive(Debug)]
pub struct PlaneIo<'a> {
    pub(crate) x: Planes<'a>,
    pub(crate) y: PlanesMut<'a>,
    pub(crate) stats: Option<SliceMut<'a>>,
    pub(crate) scratch: Option<SliceMut<'a>>,
}

impl<'a> PlaneIo<'a> {
    /// x to y, of the same shape and layout. y may have another storage type than x (f64 goes with f64 alone).
    pub fn new(x: Planes<'a>, y: PlanesMut<'a>) -> Self {
        PlaneIo { x, y, stats: None, scratch: None }
    }
    /// x, which becomes y.
    pub fn in_place(x: PlanesMut<'a>) -> Self {
        PlaneIo { x: x.planes, y: x, stats: None, scratch: None }
    }
    /// Saves the statistics, the five values of `isonorm::Stats`, of the compute type: of each channel for BatchNorm,
    /// of each group of each sample for GroupNorm.
    pub fn stats(mut self, stats: SliceMut<'a>) -> Self {
        self.stats = Some(stats);
        self
    }
    /// Memory for what BatchNorm knows of its channels, of the compute type;
    /// [`BatchNorm::scratch`](crate::BatchNorm::scratch) says how much.
    pub fn scratch(mut self, scratch: SliceMut<'a>) -> Self {
        self.scratch = Some(scratch);
        self
    }

    pub(crate) fn shape(&self, channels: usize) -> Result<PlaneShape, Error> {
        let shape = self.x.shape("x", channels)?;
        check_like(&shape, &self.x, "y", &self.y.planes)?;
        Ok(shape)
    }

    /// What is written, by name.
    fn written(&self) -> impl Iterator<Item = Named<'a>> {
        let y = ("y", self.y.planes.data);
        [Some(y), named("stats", &self.stats), named("scratch", &self.scratch)].into_iter().flatten()
    }

    /// All tensors, by name.
    pub(crate) fn named(&self) -> impl Iterator<Item = Named<'a>> {
        self.written().chain([("x", self.x.data)])
    }

    /// Everything written lies apart from all else, but y from x where they are the very same.
    pub(crate) fn check_apart(&self, others: &[Named<'_>]) -> Result<(), Error> {
        let mut read = others.to_vec();
        if !self.y.planes.is_same(&self.x) {
            read.push(("x", self.x.data));
        }
        check_all_apart(&self.written().collect::<Vec<_>>(), &read)
    }
}

/// The tensors of one backward call of a channel-wise norm. As `isonorm::PlaneBackwardIo`.
#[derive(Debug)]
pub struct PlaneBackwardIo<'a> {
    pub(crate) x: Planes<'a>,
    pub(crate) dy: Planes<'a>,
    pub(crate) dx: PlanesMut<'a>,
    pub(crate) dweight: Option<SliceMut<'a>>,
    pub(crate) dbias: Option<SliceMut<'a>>,
    pub(crate) stats: Option<Slice<'a>>,
    pub(crate) scratch: Option<SliceMut<'a>>,
}

impl<'a> PlaneBackwardIo<'a> {
    /// x and dy to dx, of the same shape and layout. dx is rounded to x's type and then to its own.
    pub fn new(x: Planes<'a>, dy: Planes<'a>, dx: PlanesMut<'a>) -> Self {
        PlaneBackwardIo { x, dy, dx, dweight: None, dbias: None, stats: None, scratch: None }
    }
    /// x and dy, which becomes dx.
    pub fn in_place(x: Planes<'a>, dy: PlanesMut<'a>) -> Self {
        Self::new(x, dy.planes, dy)
    }
    /// Writes the gradient of the weight: one for each channel, rounded once.
    pub fn dweight(mut self, dweight: SliceMut<'a>) -> Self {
        self.dweight = Some(dweight);
        self
    }
    /// Writes the gradient of the bias: one for each channel, rounded once.
    pub fn dbias(mut self, dbias: SliceMut<'a>) -> Self {
        self.dbias = Some(dbias);
        self
    }
    /// The statistics that the forward call saved. Without them they are computed from x: the same bits. BatchNorm in
    /// evaluation takes the running statistics and leaves these unread.
    pub fn stats(mut self, stats: Slice<'a>) -> Self {
        self.stats = Some(stats);
        self
    }
    /// Memory for statistics and sums, of the compute type; `scratch` of the norm says how much.
    pub fn scratch(mut self, scratch: SliceMut<'a>) -> Self {
        self.scratch = Some(scratch);
        self
    }

    pub(crate) fn shape(&self, channels: usize) -> Result<PlaneShape, Error> {
        let shape = self.x.shape("x", channels)?;
        check_like(&shape, &self.x, "dy", &self.dy)?;
        check_like(&shape, &self.x, "dx", &self.dx.planes)?;
        Ok(shape)
    }

    pub(crate) fn wants_gradients(&self) -> bool {
        self.dweight.is_some() || self.dbias.is_some()
    }

    /// Whether dx lies where x or dy does.
    pub(crate) fn is_in_place(&self) -> bool {
        self.dx.planes.is_same(&self.dy) || self.dx.planes.is_same(&self.x)
    }

    /// Lengths and types of the parameters' gradients.
    pub(crate) fn check_gradients(&self, channels: usize) -> Result<(), Error> {
        for (name, gradient) in [("dweight", &self.dweight), ("dbias", &self.dbias)] {
            if let Some(gradient) = gradient {
                rules::check_param(name, gradient.as_slice().kind(), channels, "channel", self.x.data.dtype())?;
            }
        }
        Ok(())
    }

    /// Everything written lies apart from all else, but dx from x and dy where they are the very same.
    pub(crate) fn check_apart(&self, others: &[Named<'_>]) -> Result<(), Error> {
        let dx = &self.dx.planes;
        let written = [
            Some(("dx", dx.data)),
            named("dweight", &self.dweight),
            named("dbias", &self.dbias),
            named("scratch", &self.scratch),
        ];
        let written: Vec<_> = written.into_iter().flatten().collect();
        let mut read = others.to_vec();
        read.extend(self.stats.map(|stats| ("stats", stats)));
        for (name, planes) in [("x", &self.x), ("dy", &self.dy)] {
            if !dx.is_same(planes) {
                read.push((name, planes.data));
            }
        }
        check_all_apart(&written, &read)
    }
}

/// A tensor of a call and its name.
pub(crate) type Named<'a> = (&'static str, Slice<'a>);

fn named<'a>(name: &'static str, slice: &Option<SliceMut<'a>>) -> Option<Named<'a>> {
    slice.as_ref().map(|slice| (name, slice.as_slice()))
}

fn check_like(shape: &PlaneShape, x: &Planes<'_>, name: &'static str, planes: &Planes<'_>) -> Result<(), Error> {
    shape.check_same(x.layout, name, planes.layout, planes.data.len())?;
    Ok(rules::check_type(name, planes.data.dtype(), x.data.dtype())?)
}

/// Whether everything written lies apart from all else.
pub(crate) fn check_all_apart(written: &[Named<'_>], read: &[Named<'_>]) -> Result<(), Error> {
    for (i, (name, slice)) in written.iter().enumerate() {
        let others = written[i + 1..].iter().chain(read);
        others.into_iter().try_for_each(|(other, found)| check_disjoint(name, slice, other, found))?;
    }
    Ok(())
}

/// Type and number of saved statistics, five values each.
pub(crate) fn check_stats(
    stats: Option<&Slice<'_>>,
    x: DType,
    expected: usize,
    per: &'static str,
) -> Result<(), Error> {
    row_norm::check_stats(stats, x)?;
    let Some((len, dtype)) = stats.map(Slice::kind) else { return Ok(()) };
    Ok(rules::check_saved(x, (dtype, len / STATS), expected, per)?)
}
