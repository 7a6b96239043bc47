//! Samples of planes: tensors `[samples, channels, spatial]` of the channel-wise norms, in two layouts, and
//! the checks that come before anything is written.

use crate::element::DType;
use crate::error::Error;
use crate::io::StatsMut;
use crate::params::check_type;
use crate::slice::{Slice, SliceMut};

/// A tensor `[samples, channels, spatial]` that is read.
///
/// `spatial` is the product of all axes but the first and the channels: 1 for `(N, C)`, the length for
/// `(N, C, L)`, `H * W` for images. The samples are whatever the length holds.
#[derive(Clone, Copy, Debug)]
pub struct Planes<'a> {
    pub(crate) data: Slice<'a>,
    pub(crate) layout: Layout,
}

/// A tensor `[samples, channels, spatial]` that is written.
#[derive(Debug)]
pub struct PlanesMut<'a> {
    pub(crate) data: SliceMut<'a>,
    pub(crate) layout: Layout,
}

/// Channels and positions of a sample, and which are innermost in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    /// Of a sample.
    pub channels: usize,
    /// Positions of a channel.
    pub spatial: usize,
    /// Whether channels lie side by side.
    pub last: bool,
}

impl<'a> Planes<'a> {
    /// Channel after channel: NCHW, `(N, C)`.
    pub fn channels_first(data: impl Into<Slice<'a>>, channels: usize, spatial: usize) -> Self {
        Planes { data: data.into(), layout: Layout { channels, spatial, last: false } }
    }
    /// Position after position, each with all channels: NHWC.
    pub fn channels_last(data: impl Into<Slice<'a>>, channels: usize, spatial: usize) -> Self {
        Planes { data: data.into(), layout: Layout { channels, spatial, last: true } }
    }
}

impl<'a> PlanesMut<'a> {
    /// As [`Planes::channels_first`].
    pub fn channels_first(data: impl Into<SliceMut<'a>>, channels: usize, spatial: usize) -> Self {
        PlanesMut { data: data.into(), layout: Layout { channels, spatial, last: false } }
    }
    /// As [`Planes::channels_last`].
    pub fn channels_last(data: impl Into<SliceMut<'a>>, channels: usize, spatial: usize) -> Self {
        PlanesMut { data: data.into(), layout: Layout { channels, spatial, last: true } }
    }
}

/// The tensors of one forward call of a channel-wise norm.
///
/// ```
/// use isonorm::{GroupNorm, PlaneIo, PlanesMut, Stats};
/// let mut x = [1.0f32, 3.0, 2.0, 6.0];
/// let mut stats = [Stats::<f32>::default(); 2];
/// let io = PlaneIo::in_place(PlanesMut::channels_first(&mut x, 2, 2)).stats(&mut stats);
/// GroupNorm::new(2, 2).eps(0.0).apply(io)?;
/// assert_eq!(x, [-1.0, 1.0, -1.0, 1.0]);
/// assert_eq!(stats.map(|s| (s.mean(), s.var())), [(2.0, 1.0), (4.0, 4.0)]);
/// # Ok::<(), isonorm::Error>(())
/// ```
#[derive(Debug)]
pub struct PlaneIo<'a> {
    pub(crate) x: Option<Planes<'a>>,
    pub(crate) y: PlanesMut<'a>,
    pub(crate) stats: Option<StatsMut<'a>>,
}

impl<'a> PlaneIo<'a> {
    /// x to y, of the same shape and layout. y may have another storage type than x (f64 goes with f64 alone).
    pub fn new(x: Planes<'a>, y: PlanesMut<'a>) -> Self {
        PlaneIo { x: Some(x), y, stats: None }
    }
    /// x, which becomes y.
    pub fn in_place(x: PlanesMut<'a>) -> Self {
        PlaneIo { x: None, y: x, stats: None }
    }
    /// Saves the statistics: one [`Stats`](crate::Stats) a channel for BatchNorm, one a group of each
    /// sample (sample by sample) for GroupNorm and InstanceNorm.
    pub fn stats(mut self, stats: impl Into<StatsMut<'a>>) -> Self {
        self.stats = Some(stats.into());
        self
    }

    /// The type of x.
    pub(crate) fn dtype(&self) -> DType {
        self.x.map_or(self.y.data.dtype(), |x| x.data.dtype())
    }

    /// The shape that x and y share, for a norm of `channels` channels.
    pub(crate) fn shape(&self, channels: usize) -> Result<Shape, Error> {
        let (y_layout, y_len) = (self.y.layout, self.y.data.len());
        let Some(x) = self.x else { return Shape::new("x", y_layout, y_len, channels) };
        let shape = Shape::new("x", x.layout, x.data.len(), channels)?;
        shape.check_same(x.layout, "y", y_layout, y_len)?;
        check_type("y", self.y.data.dtype(), x.data.dtype())?;
        Ok(shape)
    }

    /// The type and number of the saved statistics.
    pub(crate) fn check_stats(&self, expected: usize, per: &'static str) -> Result<(), Error> {
        let (found_type, found) = match &self.stats {
            None => return Ok(()),
            Some(StatsMut::F32(stats)) => (DType::F32, stats.len()),
            Some(StatsMut::F64(stats)) => (DType::F64, stats.len()),
        };
        check_saved(self.dtype(), (found_type, found), expected, per)
    }
}

/// The type and number of saved statistics, for an x of type `x`.
pub fn check_saved(
    x: DType,
    (found_type, found): (DType, usize),
    expected: usize,
    per: &'static str,
) -> Result<(), Error> {
    let expected_type = if x == DType::F64 { DType::F64 } else { DType::F32 };
    if found_type != expected_type {
        return Err(Error::TypeIsNot { name: "stats", found: found_type, expected: expected_type });
    }
    if found != expected {
        return Err(Error::ParameterLen { name: "stats", per, expected, found });
    }
    Ok(())
}

/// The logical shape of a call, and which axis is innermost in memory.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    /// How many.
    pub samples: usize,
    /// Of a sample.
    pub channels: usize,
    /// Positions of a channel.
    pub spatial: usize,
    /// Whether channels lie side by side.
    pub last: bool,
}

impl Shape {
    /// Of a tensor of `len` elements, for a norm of `channels` channels.
    pub fn new(name: &'static str, layout: Layout, len: usize, channels: usize) -> Result<Self, Error> {
        let size = layout.channels.saturating_mul(layout.spatial);
        if size == 0 && len > 0 {
            return Err(Error::Zero { name: if layout.channels == 0 { "channels" } else { "spatial" } });
        }
        let samples = len.checked_div(size).unwrap_or(0);
        if len.checked_rem(size).unwrap_or(0) != 0 {
            return Err(Error::NotWhole { name, what: "samples", found: len, size });
        }
        let shape = Shape { samples, channels: layout.channels, spatial: layout.spatial, last: layout.last };
        if layout.channels != channels {
            let expected = vec![samples, channels, layout.spatial];
            return Err(Error::Shape { name, like: "the norm", expected, found: shape.lens().to_vec() });
        }
        Ok(shape)
    }

    /// Refuses a tensor whose shape or layout is not x's.
    pub fn check_same(&self, x: Layout, name: &'static str, layout: Layout, len: usize) -> Result<(), Error> {
        let other = Shape::new(name, layout, len, self.channels)?;
        if other.lens() != self.lens() {
            let (expected, found) = (self.lens().to_vec(), other.lens().to_vec());
            return Err(Error::Shape { name, like: "x", expected, found });
        }
        let is_ambiguous = self.channels == 1 || self.spatial == 1 || self.is_empty();
        if x.last != layout.last && !is_ambiguous {
            let name_of = |last| if last { "channels last" } else { "channels first" };
            let (expected, found) = (name_of(x.last), name_of(layout.last));
            return Err(Error::Layout { name, like: "x", expected, found });
        }
        Ok(())
    }

    fn lens(&self) -> [usize; 3] {
        [self.samples, self.channels, self.spatial]
    }

    /// Elements of one sample.
    pub(crate) fn sample(&self) -> usize {
        self.channels * self.spatial
    }

    /// Values of one channel over all samples.
    pub fn count(&self) -> usize {
        self.samples * self.spatial
    }

    /// Whether there are no elements.
    pub fn is_empty(&self) -> bool {
        self.samples == 0 || self.channels == 0 || self.spatial == 0
    }

    /// Bytes that are read and written, for elements of `size` bytes.
    pub(crate) fn bytes(&self, size: usize) -> usize {
        self.samples.saturating_mul(self.sample()).saturating_mul(2 * size)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The shape of an x of `len` elements and a y of 12, both of 3 channels and 2 positions.
    fn shape(x: Planes<'_>, last: bool) -> Result<[usize; 3], String> {
        let mut y = [0.0f32; 12];
        let layout = if last { PlanesMut::channels_last } else { PlanesMut::channels_first };
        let y = layout(SliceMut::from(&mut y), 3, 2);
        PlaneIo::new(x, y).shape(3).map(|shape| shape.lens()).map_err(|e| e.to_string())
    }

    #[test]
    fn shapes_that_do_not_fit_are_refused_with_both_numbers() {
        let x = [0.0f32; 18];
        let first = |n| Planes::channels_first(&x[..n], 3, 2);
        let refused = |message: &str| Err(message.to_owned());
        assert_eq!(shape(first(12), false), Ok([2, 3, 2]));
        let message = "x has 11 elements, which is not a whole number of samples of 6 elements";
        assert_eq!(shape(first(11), false), refused(message));
        assert_eq!(shape(first(18), false), refused("y has shape [2, 3, 2], expected [3, 3, 2] as x has"));
        assert_eq!(shape(first(12), true), refused("y is channels last, expected channels first as x is"));
        let zero = Planes::channels_first(&x, 0, 2);
        assert_eq!(shape(zero, false), refused("channels is 0, expected at least 1"));
        let other = Planes::channels_first(&x[..12], 2, 2);
        assert_eq!(shape(other, false), refused("x has shape [3, 2, 2], expected [3, 3, 2] as the norm has"));
        let wide = [0.0f64; 12];
        let refused = shape(Planes::channels_first(&wide, 3, 2), false);
        assert!(refused.is_err_and(|message| message.starts_with("y is f32, which does not go with x of f64")));
    }

    #[test]
    fn sizes_whose_product_does_not_fit_are_refused() {
        let x = [0.0f32; 12];
        let huge = Planes::channels_first(&x, usize::MAX, 2);
        let refused = PlaneIo::new(huge, PlanesMut::channels_first(&mut [0.0f32; 12], usize::MAX, 2)).shape(usize::MAX);
        assert!(matches!(refused, Err(Error::NotWhole { found: 12, size: usize::MAX, .. })), "{refused:?}");
    }
}
