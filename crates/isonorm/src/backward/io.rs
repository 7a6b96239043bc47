//! What a backward call over rows reads and writes.

use std::ops::Range;

use crate::grid::Tensor;
use crate::io::StatsRef;
use crate::partial::Partial;
use crate::rows::{Rows, RowsMut};
use crate::slice::SliceMut;

/// The tensors of one backward call.
///
/// ```
/// use isonorm::{BackwardIo, RmsNorm};
/// let (x, dy) = ([3.0f32, 4.0, 6.0, 8.0], [1.0f32, 0.0, 0.0, 1.0]);
/// let (mut dx, mut dweight) = ([0.0f32; 4], [0.0f32; 2]);
/// let norm = RmsNorm::new(2).eps(0.0).weight(&[1.0f32, 1.0]);
/// norm.backward(BackwardIo::new(&x, &dy, &mut dx).dweight(&mut dweight))?;
/// assert_eq!(dweight, [3.0 / 12.5f32.sqrt(), 8.0 / 50.0f32.sqrt()]);
/// # Ok::<(), isonorm::Error>(())
/// ```
///
/// After a residual add, x is the r that was kept: `BackwardIo::new(&r, &dy, &mut dx).dresidual(&dresidual)`.
#[derive(Debug)]
pub struct BackwardIo<'a> {
    pub(crate) x: Rows<'a>,
    /// `None`: what dx holds.
    pub(crate) dy: Option<Rows<'a>>,
    pub(crate) dx: RowsMut<'a>,
    /// `Some(None)`: what dr holds.
    pub(crate) dresidual: Option<Option<Rows<'a>>>,
    pub(crate) dr: Option<RowsMut<'a>>,
    pub(crate) dweight: Option<SliceMut<'a>>,
    pub(crate) dbias: Option<SliceMut<'a>>,
    pub(crate) partial: Option<&'a mut Partial>,
    pub(crate) stats: Option<StatsRef<'a>>,
    pub(crate) mask: Option<Mask<'a>>,
}

/// Which rows are the batch: one `bool` a row, or ranges of rows in rising order.
#[derive(Clone, Copy, Debug)]
pub enum Mask<'a> {
    /// Row r where `mask[r]`.
    Rows(&'a [bool]),
    /// The rows of each range: the sequences of a padded batch.
    Spans(&'a [Range<usize>]),
}

impl<'a> From<&'a [bool]> for Mask<'a> {
    fn from(rows: &'a [bool]) -> Self {
        Mask::Rows(rows)
    }
}
impl<'a> From<&'a Vec<bool>> for Mask<'a> {
    fn from(rows: &'a Vec<bool>) -> Self {
        Mask::Rows(rows)
    }
}
impl<'a, const N: usize> From<&'a [bool; N]> for Mask<'a> {
    fn from(rows: &'a [bool; N]) -> Self {
        Mask::Rows(rows)
    }
}
impl<'a> From<&'a [Range<usize>]> for Mask<'a> {
    fn from(spans: &'a [Range<usize>]) -> Self {
        Mask::Spans(spans)
    }
}
impl<'a> From<&'a Vec<Range<usize>>> for Mask<'a> {
    fn from(spans: &'a Vec<Range<usize>>) -> Self {
        Mask::Spans(spans)
    }
}
impl<'a, const N: usize> From<&'a [Range<usize>; N]> for Mask<'a> {
    fn from(spans: &'a [Range<usize>; N]) -> Self {
        Mask::Spans(spans)
    }
}

impl<'a> BackwardIo<'a> {
    /// dx from x and dy. dy may have another storage type than x; dx is rounded to x's type and then to its own, which
    /// is another after a residual add alone (f64 goes with f64 alone).
    pub fn new(x: impl Into<Rows<'a>>, dy: impl Into<Rows<'a>>, dx: impl Into<RowsMut<'a>>) -> Self {
        let mut io = Self::in_place(x, dx);
        io.dy = Some(dy.into());
        io
    }
    /// dy, which becomes dx.
    pub fn in_place(x: impl Into<Rows<'a>>, dy: impl Into<RowsMut<'a>>) -> Self {
        BackwardIo {
            x: x.into(),
            dy: None,
            dx: dy.into(),
            dresidual: None,
            dr: None,
            dweight: None,
            dbias: None,
            partial: None,
            stats: None,
            mask: None,
        }
    }
    /// After a residual add: the gradient that reaches r from elsewhere is added to dx in r's type.
    pub fn dresidual(mut self, dresidual: impl Into<Rows<'a>>) -> Self {
        self.dresidual = Some(Some(dresidual.into()));
        self
    }
    /// As [`dresidual`](Self::dresidual), which is then overwritten with the gradient of the residual that was added:
    /// dx, rounded to its type.
    pub fn dresidual_in_place(mut self, dresidual: impl Into<RowsMut<'a>>) -> Self {
        self.dresidual = Some(None);
        self.dr = Some(dresidual.into());
        self
    }
    /// After a residual add: also writes the gradient of the residual, dx rounded to another type.
    pub fn dr(mut self, dr: impl Into<RowsMut<'a>>) -> Self {
        self.dresidual = self.dresidual.filter(Option::is_some);
        self.dr = Some(dr.into());
        self
    }
    /// Writes the gradient of the weight, summed over all rows and rounded once; with a [`partial`](Self::partial)
    /// over all rows that it has then.
    pub fn dweight(mut self, dweight: impl Into<SliceMut<'a>>) -> Self {
        self.dweight = Some(dweight.into());
        self
    }
    /// As [`dweight`](Self::dweight), of the bias.
    pub fn dbias(mut self, dbias: impl Into<SliceMut<'a>>) -> Self {
        self.dbias = Some(dbias.into());
        self
    }
    /// Adds the rows to unfinished gradients of weight and bias, after those that it has.
    pub fn partial(mut self, partial: &'a mut Partial) -> Self {
        self.partial = Some(partial);
        self
    }
    /// The statistics that the forward call saved. Without them they are computed from x: the same bits.
    pub fn stats(mut self, stats: impl Into<StatsRef<'a>>) -> Self {
        self.stats = Some(stats.into());
        self
    }
    /// Only these rows, in logical order, are the batch: padding. dx of the others is +0, and so is dr.
    pub fn mask(mut self, mask: impl Into<Mask<'a>>) -> Self {
        self.mask = Some(mask.into());
        self
    }

    /// dx, x, dy, dresidual, dr, stats.
    pub(crate) fn tensors(&self) -> [Option<Tensor<'_>>; 6] {
        let dresidual = self.dresidual.as_ref().and_then(Option::as_ref);
        let dr_name = if matches!(self.dresidual, Some(None)) { "dresidual" } else { "dr" };
        [
            Some(Tensor::write(if self.dy.is_some() { "dx" } else { "dy" }, &self.dx)),
            Some(Tensor::read("x", &self.x)),
            self.dy.as_ref().map(|dy| Tensor::read("dy", dy)),
            dresidual.map(|dresidual| Tensor::read("dresidual", dresidual)),
            self.dr.as_ref().map(|dr| Tensor::write(dr_name, dr)),
            self.stats.as_ref().map(|stats| Tensor::scalars("stats", stats.len())),
        ]
    }
}
