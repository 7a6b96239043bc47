//! What a call over rows reads and writes, all in device memory.

use crate::memory::{Rows, RowsMut, Slice, SliceMut};

/// The tensors of one forward call. As `isonorm::Io`.
#[derive(Debug)]
pub struct Io<'a> {
    pub(crate) x: Rows<'a>,
    pub(crate) y: RowsMut<'a>,
    /// The residual, and where the sum goes.
    pub(crate) sum: Option<(Rows<'a>, RowsMut<'a>)>,
    pub(crate) stats: Option<SliceMut<'a>>,
}

impl<'a> Io<'a> {
    /// x to y. y may have another storage type than x (f64 goes with f64 alone).
    pub fn new(x: impl Into<Rows<'a>>, y: impl Into<RowsMut<'a>>) -> Self {
        Io { x: x.into(), y: y.into(), sum: None, stats: None }
    }
    /// x, which becomes y.
    pub fn in_place(x: impl Into<RowsMut<'a>>) -> Self {
        let y = x.into();
        Io { x: y.rows, y, sum: None, stats: None }
    }
    /// `r = x + residual`, rounded to r's type and kept; y is the norm of the kept r.
    pub fn add(
        x: impl Into<Rows<'a>>,
        residual: impl Into<Rows<'a>>,
        r: impl Into<RowsMut<'a>>,
        y: impl Into<RowsMut<'a>>,
    ) -> Self {
        Io { x: x.into(), y: y.into(), sum: Some((residual.into(), r.into())), stats: None }
    }
    /// `residual += x`, rounded to the residual's type; x becomes the norm of it.
    pub fn add_in_place(x: impl Into<RowsMut<'a>>, residual: impl Into<RowsMut<'a>>) -> Self {
        let (y, r) = (x.into(), residual.into());
        Io { x: y.rows, y, sum: Some((r.rows, r)), stats: None }
    }
    /// Saves the statistics of each row: the five values of `isonorm::Stats`, of the compute type.
    pub fn stats(mut self, stats: SliceMut<'a>) -> Self {
        self.stats = Some(stats);
        self
    }
}

/// The tensors of one backward call. As `isonorm::BackwardIo`.
#[derive(Debug)]
pub struct BackwardIo<'a> {
    pub(crate) x: Rows<'a>,
    pub(crate) dy: Rows<'a>,
    pub(crate) dx: RowsMut<'a>,
    pub(crate) dresidual: Option<Rows<'a>>,
    pub(crate) dr: Option<RowsMut<'a>>,
    pub(crate) dweight: Option<SliceMut<'a>>,
    pub(crate) dbias: Option<SliceMut<'a>>,
    pub(crate) stats: Option<Slice<'a>>,
    pub(crate) scratch: Option<SliceMut<'a>>,
}

impl<'a> BackwardIo<'a> {
    /// dx from x and dy. dy may have another storage type than x; dx is rounded to x's type and then to its own.
    pub fn new(x: impl Into<Rows<'a>>, dy: impl Into<Rows<'a>>, dx: impl Into<RowsMut<'a>>) -> Self {
        BackwardIo {
            x: x.into(),
            dy: dy.into(),
            dx: dx.into(),
            dresidual: None,
            dr: None,
            dweight: None,
            dbias: None,
            stats: None,
            scratch: None,
        }
    }
    /// dy, which becomes dx.
    pub fn in_place(x: impl Into<Rows<'a>>, dy: impl Into<RowsMut<'a>>) -> Self {
        let dx = dy.into();
        Self::new(x, dx.rows, dx)
    }
    /// After a residual add: the gradient that reaches r from elsewhere is added to dx in r's type.
    pub fn dresidual(mut self, dresidual: impl Into<Rows<'a>>) -> Self {
        self.dresidual = Some(dresidual.into());
        self
    }
    /// After a residual add: also writes the gradient of the residual, dx rounded to another type.
    pub fn dr(mut self, dr: impl Into<RowsMut<'a>>) -> Self {
        self.dr = Some(dr.into());
        self
    }
    /// Writes the gradient of the weight, summed over all rows and rounded once. It needs [`scratch`](Self::scratch).
    pub fn dweight(mut self, dweight: SliceMut<'a>) -> Self {
        self.dweight = Some(dweight);
        self
    }
    /// As [`dweight`](Self::dweight), of the bias.
    pub fn dbias(mut self, dbias: SliceMut<'a>) -> Self {
        self.dbias = Some(dbias);
        self
    }
    /// The statistics that the forward call saved. Without them they are computed from x: the same bits.
    pub fn stats(mut self, stats: Slice<'a>) -> Self {
        self.stats = Some(stats);
        self
    }
    /// Memory for sums over rows, of the compute type; [`RowNorm::scratch`](crate::RowNorm::scratch) says how much.
    pub fn scratch(mut self, scratch: SliceMut<'a>) -> Self {
        self.scratch = Some(scratch);
        self
    }
}
