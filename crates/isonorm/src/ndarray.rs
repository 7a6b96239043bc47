//! Norms of `ndarray` arrays (feature `ndarray`): any number of dimensions, any axis, any strides.
//!
//! ```text
//! the axis is contiguous, x and y have no gaps    one call, nothing is copied, all threads
//! the axis is contiguous, x or y has gaps         one call for each stretch without gaps, nothing is copied
//! the axis is not contiguous                      rows are gathered into blocks of up to 1 MiB and scattered back
//! ```
//!
//! For the channel-wise norms, arrays `(N, C, ...)` convert into [`Planes`] and [`PlanesMut`].

use ndarray::{ArrayView, ArrayViewD, ArrayViewMut, ArrayViewMutD, Axis, Dimension, IxDyn};

use crate::element::Element;
use crate::error::Error;
use crate::layer_norm::LayerNorm;
use crate::planes::{Planes, PlanesMut};
use crate::rms_norm::RmsNorm;
use crate::rows::{MAX_DIMS, Rows, RowsMut};
use crate::slice::{Slice, SliceMut};

/// Bytes of x that are gathered at once: a part of a second-level cache.
const BLOCK_BYTES: usize = 1 << 20;
/// Rows that are gathered at once at most.
const BLOCK_ROWS: usize = 64;

impl RmsNorm<'_> {
    /// Normalizes `x` along `axis` into `y` (feature `ndarray`).
    ///
    /// # Shapes
    ///
    /// `x` and `y` have the same shape, of any number of dimensions and with any strides, negative ones and
    /// (for `x`) zeros among them; `axis` has `hidden` elements.
    ///
    /// # Precision
    ///
    /// The bits are those of [`forward`](RmsNorm::forward) on contiguous rows. Where the elements along `axis`
    /// follow one another in memory nothing is copied; otherwise rows are gathered, up to 1 MiB at a time, into
    /// scratch memory and the results scattered back.
    ///
    /// # Errors
    ///
    /// As `forward`; [`Error::Option`] for an axis that x does not have, [`Error::Shape`] where x, y and the norm
    /// do not fit one another. Nothing is written then.
    ///
    /// # Example
    ///
    /// ```
    /// use ndarray::{Axis, array};
    /// let x = array![[3.0f32, 1.0], [4.0, 1.0]];
    /// let mut y = x.clone();
    /// isonorm::RmsNorm::new(2).eps(0.0).forward_axis(x.view(), Axis(0), y.view_mut())?;
    /// assert_eq!(y.column(1), array![1.0, 1.0]);
    /// assert_eq!(y[[0, 0]], 3.0 * (1.0 / 12.5f32.sqrt()));
    /// # Ok::<(), isonorm::Error>(())
    /// ```
    pub fn forward_axis<X: Element, Y: Element, D: Dimension>(
        &self,
        x: ArrayView<'_, X, D>,
        axis: Axis,
        y: ArrayViewMut<'_, Y, D>,
    ) -> Result<(), Error> {
        along(x.into_dyn(), axis, y.into_dyn(), self.hidden(), &|x, y| self.forward(x, y))
    }
}

impl LayerNorm<'_> {
    /// Normalizes `x` along `axis` into `y` (feature `ndarray`).
    ///
    /// # Shapes
    ///
    /// As [`RmsNorm::forward_axis`].
    ///
    /// # Precision
    ///
    /// The bits of [`forward`](LayerNorm::forward); what is copied is as in [`RmsNorm::forward_axis`].
    ///
    /// # Errors
    ///
    /// As [`RmsNorm::forward_axis`].
    ///
    /// # Example
    ///
    /// ```
    /// use ndarray::{Axis, array};
    /// let x = array![[1.0f32, 4.0], [2.0, 5.0], [3.0, 6.0]];
    /// let mut y = x.clone();
    /// isonorm::LayerNorm::new(3).forward_axis(x.view(), Axis(0), y.view_mut())?;
    /// assert_eq!(y, array![[-1.2247356, -1.2247356], [0.0, 0.0], [1.2247356, 1.2247356]]);
    /// # Ok::<(), isonorm::Error>(())
    /// ```
    pub fn forward_axis<X: Element, Y: Element, D: Dimension>(
        &self,
        x: ArrayView<'_, X, D>,
        axis: Axis,
        y: ArrayViewMut<'_, Y, D>,
    ) -> Result<(), Error> {
        along(x.into_dyn(), axis, y.into_dyn(), self.hidden(), &|x, y| self.forward(x, y))
    }
}

/// Arrays `(N, C, ...)` in standard order, or as a view with the channels moved to axis 1 of an array
/// `(N, ..., C)` in standard order (feature `ndarray`). Nothing is copied.
///
/// # Errors
///
/// [`Error::Layout`] for all other strides, and for fewer than two dimensions.
///
/// # Example
///
/// ```
/// use ndarray::Array4;
/// let nhwc = Array4::<f32>::ones((2, 5, 5, 3));
/// let mut y = nhwc.clone();
/// let (x, to) = (nhwc.view().permuted_axes([0, 3, 1, 2]), y.view_mut().permuted_axes([0, 3, 1, 2]));
/// isonorm::GroupNorm::new(3, 3).forward(x.try_into()?, to.try_into()?)?;
/// assert_eq!(y, Array4::zeros((2, 5, 5, 3)));
/// # Ok::<(), isonorm::Error>(())
/// ```
impl<'a, X: Element, D: Dimension> TryFrom<ArrayView<'a, X, D>> for Planes<'a> {
    type Error = Error;

    fn try_from(x: ArrayView<'a, X, D>) -> Result<Self, Error> {
        let x = x.into_dyn();
        let (channels, spatial) = channels_and_spatial(x.shape())?;
        if let Some(data) = x.to_slice() {
            return Ok(Planes::channels_first(data, channels, spatial));
        }
        let last = channels_last(x.ndim());
        match x.permuted_axes(last).to_slice() {
            Some(data) => Ok(Planes::channels_last(data, channels, spatial)),
            None => Err(WITH_GAPS),
        }
    }
}

/// As for [`Planes`].
impl<'a, Y: Element, D: Dimension> TryFrom<ArrayViewMut<'a, Y, D>> for PlanesMut<'a> {
    type Error = Error;

    fn try_from(y: ArrayViewMut<'a, Y, D>) -> Result<Self, Error> {
        let y = y.into_dyn();
        let (channels, spatial) = channels_and_spatial(y.shape())?;
        if y.is_standard_layout() {
            let data = y.into_slice().ok_or(WITH_GAPS)?;
            return Ok(PlanesMut::channels_first(data, channels, spatial));
        }
        let last = channels_last(y.ndim());
        match y.permuted_axes(last).into_slice() {
            Some(data) => Ok(PlanesMut::channels_last(data, channels, spatial)),
            None => Err(WITH_GAPS),
        }
    }
}

const WITH_GAPS: Error = Error::Layout {
    name: "the array",
    like: "a whole tensor",
    expected: "channels first or channels last without gaps",
    found: "in neither layout",
};

fn channels_and_spatial(shape: &[usize]) -> Result<(usize, usize), Error> {
    match shape {
        [_, channels, spatial @ ..] => Ok((*channels, spatial.iter().product())),
        _ => Err(Error::Layout {
            name: "the array",
            like: "a batch",
            expected: "(N, C, ...)",
            found: "of fewer than two dimensions",
        }),
    }
}

/// (N, C, ...) to (N, ..., C).
fn channels_last(dims: usize) -> IxDyn {
    let axes: Vec<usize> = std::iter::once(0).chain(2..dims).chain([1]).collect();
    IxDyn(&axes)
}

/// One call of a norm on rows.
type Forward<'f> = &'f dyn Fn(Rows<'_>, RowsMut<'_>) -> Result<(), Error>;

fn along<X: Element, Y: Element>(
    x: ArrayViewD<'_, X>,
    axis: Axis,
    y: ArrayViewMutD<'_, Y>,
    hidden: usize,
    forward: Forward<'_>,
) -> Result<(), Error> {
    if axis.index() >= x.ndim() {
        return Err(Error::Option { name: "axis", found: axis.index() as f64, expected: "an axis of x" });
    }
    if x.shape() != y.shape() {
        let (expected, found) = (x.shape().to_vec(), y.shape().to_vec());
        return Err(Error::Shape { name: "y", like: "x", expected, found });
    }
    if x.len_of(axis) != hidden {
        let (found, mut expected) = (x.shape().to_vec(), x.shape().to_vec());
        expected[axis.index()] = hidden;
        return Err(Error::Shape { name: "x", like: "the norm", expected, found });
    }
    if x.is_empty() {
        return forward(X::slice(&[]).into(), Y::slice_mut(&mut []).into());
    }
    let mut axes: Vec<usize> = (0..x.ndim()).filter(|a| *a != axis.index()).collect();
    axes.push(axis.index());
    let (x, y) = (x.permuted_axes(IxDyn(&axes)), y.permuted_axes(IxDyn(&axes)));
    let steps = |strides: &[isize]| hidden == 1 || strides.last() == Some(&1);
    if steps(x.strides()) && steps(y.strides()) { in_stretches(x, y, forward) } else { gathered(x, y, hidden, forward) }
}

/// Rows of the last axis, whose elements follow one another: one call for each stretch in which neither has gaps.
fn in_stretches<X: Element, Y: Element>(
    x: ArrayViewD<'_, X>,
    mut y: ArrayViewMutD<'_, Y>,
    forward: Forward<'_>,
) -> Result<(), Error> {
    let leading = x.ndim() - 1;
    let shape = x.shape()[..leading].to_vec();
    let (x_strides, y_strides) = (x.strides()[..leading].to_vec(), y.strides()[..leading].to_vec());
    if leading <= MAX_DIMS
        && let (Some(from), Some(to)) = (x.as_slice_memory_order(), y.as_slice_memory_order_mut())
    {
        let (from, to): (Slice<'_>, SliceMut<'_>) = (from.into(), to.into());
        let from = Rows::strided(from, first(&shape, &x_strides), &shape, &x_strides);
        return forward(from, RowsMut::strided(to, first(&shape, &y_strides), &shape, &y_strides));
    }
    x.outer_iter().zip(y.outer_iter_mut()).try_for_each(|(x, y)| in_stretches(x, y, forward))
}

/// Where the first row lies, in elements from the lowest address.
fn first(shape: &[usize], strides: &[isize]) -> usize {
    shape.iter().zip(strides).map(|(len, stride)| if *stride < 0 { (len - 1) * stride.unsigned_abs() } else { 0 }).sum()
}

/// Rows of the last axis, whose elements lie apart: copied to and from contiguous blocks.
fn gathered<X: Element, Y: Element>(
    x: ArrayViewD<'_, X>,
    mut y: ArrayViewMutD<'_, Y>,
    hidden: usize,
    forward: Forward<'_>,
) -> Result<(), Error> {
    let last = Axis(x.ndim() - 1);
    let rows = (BLOCK_BYTES / (hidden * size_of::<X>())).clamp(1, BLOCK_ROWS).min(x.len() / hidden);
    let (mut from, mut to) = (vec![X::default(); rows * hidden], vec![Y::default(); rows * hidden]);
    let (mut x_rows, mut y_rows) = (x.lanes(last).into_iter(), y.lanes_mut(last).into_iter());
    loop {
        let block: Vec<_> = x_rows.by_ref().take(rows).collect();
        if block.is_empty() {
            return Ok(());
        }
        // Element by element, not row by row: neighbouring rows share cache lines.
        for i in 0..hidden {
            block.iter().enumerate().for_each(|(r, row)| from[r * hidden + i] = row[i]);
        }
        let len = block.len() * hidden;
        forward(X::slice(&from[..len]).into(), Y::slice_mut(&mut to[..len]).into())?;
        let mut block: Vec<_> = y_rows.by_ref().take(block.len()).collect();
        for i in 0..hidden {
            block.iter_mut().enumerate().for_each(|(r, row)| row[i] = to[r * hidden + i]);
        }
    }
}
