//! What a call over rows reads and writes.

use crate::element::DType;
use crate::grid::{Grid, Tensor, Walk, Walks};
use crate::rows::{Rows, RowsMut};
use crate::stats::Stats;

/// The tensors of one forward call.
///
/// ```
/// use isonorm::{Io, RmsNorm, Stats};
/// let (x, residual) = ([1.0f32, 2.0, 3.0, 4.0], [0.5f32; 4]);
/// let (mut r, mut y, mut stats) = ([0.0f32; 4], [0.0f32; 4], [Stats::<f32>::default(); 2]);
/// RmsNorm::new(2).apply(Io::add(&x, &residual, &mut r, &mut y).stats(&mut stats))?;
/// assert_eq!(r, [1.5, 2.5, 3.5, 4.5]);
/// # Ok::<(), isonorm::Error>(())
/// ```
#[derive(Debug)]
pub struct Io<'a> {
    pub(crate) x: Option<Rows<'a>>,
    pub(crate) y: RowsMut<'a>,
    pub(crate) residual: Option<Option<Rows<'a>>>,
    pub(crate) r: Option<RowsMut<'a>>,
    pub(crate) stats: Option<StatsMut<'a>>,
}

/// Where statistics are saved: one [`Stats`] a row, `Stats<f64>` for an x of f64 and `Stats<f32>` for others.
#[derive(Debug)]
pub enum StatsMut<'a> {
    /// For f32, f16 and bf16.
    F32(&'a mut [Stats<f32>]),
    /// For f64.
    F64(&'a mut [Stats<f64>]),
}

impl StatsMut<'_> {
    /// The compute type that they are of.
    pub(crate) fn dtype(&self) -> DType {
        match self {
            StatsMut::F32(_) => DType::F32,
            StatsMut::F64(_) => DType::F64,
        }
    }
}

impl<'a> From<&'a mut [Stats<f32>]> for StatsMut<'a> {
    fn from(stats: &'a mut [Stats<f32>]) -> Self {
        StatsMut::F32(stats)
    }
}
impl<'a> From<&'a mut [Stats<f64>]> for StatsMut<'a> {
    fn from(stats: &'a mut [Stats<f64>]) -> Self {
        StatsMut::F64(stats)
    }
}
impl<'a> From<&'a mut Vec<Stats<f32>>> for StatsMut<'a> {
    fn from(stats: &'a mut Vec<Stats<f32>>) -> Self {
        StatsMut::F32(stats)
    }
}
impl<'a> From<&'a mut Vec<Stats<f64>>> for StatsMut<'a> {
    fn from(stats: &'a mut Vec<Stats<f64>>) -> Self {
        StatsMut::F64(stats)
    }
}
impl<'a, const N: usize> From<&'a mut [Stats<f32>; N]> for StatsMut<'a> {
    fn from(stats: &'a mut [Stats<f32>; N]) -> Self {
        StatsMut::F32(stats)
    }
}
impl<'a, const N: usize> From<&'a mut [Stats<f64>; N]> for StatsMut<'a> {
    fn from(stats: &'a mut [Stats<f64>; N]) -> Self {
        StatsMut::F64(stats)
    }
}

/// Statistics that a forward call saved, for its backward call.
#[derive(Clone, Copy, Debug)]
pub enum StatsRef<'a> {
    /// For f32, f16 and bf16.
    F32(&'a [Stats<f32>]),
    /// For f64.
    F64(&'a [Stats<f64>]),
}

impl StatsRef<'_> {
    pub(crate) fn len(&self) -> usize {
        match self {
            StatsRef::F32(stats) => stats.len(),
            StatsRef::F64(stats) => stats.len(),
        }
    }

    /// The compute type that they are of.
    pub(crate) fn dtype(&self) -> DType {
        match self {
            StatsRef::F32(_) => DType::F32,
            StatsRef::F64(_) => DType::F64,
        }
    }
}

macro_rules! stats_ref {
    ($($variant:ident $type:ty),*) => {$(
        impl<'a> From<&'a [Stats<$type>]> for StatsRef<'a> {
            fn from(stats: &'a [Stats<$type>]) -> Self {
                StatsRef::$variant(stats)
            }
        }
        impl<'a> From<&'a Vec<Stats<$type>>> for StatsRef<'a> {
            fn from(stats: &'a Vec<Stats<$type>>) -> Self {
                StatsRef::$variant(stats)
            }
        }
        impl<'a, const N: usize> From<&'a [Stats<$type>; N]> for StatsRef<'a> {
            fn from(stats: &'a [Stats<$type>; N]) -> Self {
                StatsRef::$variant(stats)
            }
        }
    )*};
}
stats_ref!(F32 f32, F64 f64);

impl<'a> Io<'a> {
    /// x to y. y may have another storage type than x (f64 goes with f64 alone).
    pub fn new(x: impl Into<Rows<'a>>, y: impl Into<RowsMut<'a>>) -> Self {
        Io { x: Some(x.into()), y: y.into(), residual: None, r: None, stats: None }
    }
    /// x, which becomes y.
    pub fn in_place(x: impl Into<RowsMut<'a>>) -> Self {
        Io { x: None, y: x.into(), residual: None, r: None, stats: None }
    }
    /// `r = x + residual`, rounded to r's type and kept; y is the norm of the kept r.
    pub fn add(
        x: impl Into<Rows<'a>>,
        residual: impl Into<Rows<'a>>,
        r: impl Into<RowsMut<'a>>,
        y: impl Into<RowsMut<'a>>,
    ) -> Self {
        Io { x: Some(x.into()), y: y.into(), residual: Some(Some(residual.into())), r: Some(r.into()), stats: None }
    }
    /// `residual += x`, rounded to the residual's type; x becomes the norm of it.
    pub fn add_in_place(x: impl Into<RowsMut<'a>>, residual: impl Into<RowsMut<'a>>) -> Self {
        Io { x: None, y: x.into(), residual: Some(None), r: Some(residual.into()), stats: None }
    }
    /// Saves the statistics of each row, in the logical order of the rows.
    pub fn stats(mut self, stats: impl Into<StatsMut<'a>>) -> Self {
        self.stats = Some(stats.into());
        self
    }
}

impl<'a> Io<'a> {
    /// The walks of contiguous tensors of one length: no time is spent on grids. False for all other calls.
    #[inline]
    pub(crate) fn walk_contiguous(&self, hidden: usize, walks: &mut Walks<5>) -> bool {
        let Io { x, y, residual, r, stats } = self;
        let len = y.data.len();
        let Some(rows) = len.checked_div(hidden) else { return false };
        let plain = |rows: &Rows<'_>| rows.is_contiguous(len);
        let stats = stats.as_ref().is_none_or(|stats| match stats {
            StatsMut::F32(stats) => stats.len() == rows,
            StatsMut::F64(stats) => stats.len() == rows,
        });
        let reads = x.as_ref().is_none_or(plain) && residual.as_ref().and_then(Option::as_ref).is_none_or(plain);
        let writes = y.is_contiguous(len) && r.as_ref().is_none_or(|r| r.is_contiguous(len));
        if rows * hidden != len || !(reads && writes && stats) {
            return false;
        }
        walks.grid = Grid::of(rows);
        let row = Walk::contiguous(hidden);
        walks.each = [row, row, row, row, Walk::contiguous(1)];
        true
    }

    /// y, x, residual, r, stats.
    pub(crate) fn tensors(&self) -> [Option<Tensor<'a>>; 5] {
        let Io { x, y, residual, r, stats } = self;
        let own_residual = matches!(residual, Some(Some(_)));
        [
            Some(Tensor::write(if x.is_some() { "y" } else { "x" }, y)),
            x.as_ref().map(|x| Tensor::read("x", x)),
            residual.as_ref().and_then(Option::as_ref).map(|residual| Tensor::read("residual", residual)),
            r.as_ref().map(|r| Tensor::write(if own_residual { "r" } else { "residual" }, r)),
            stats.as_ref().map(|stats| match stats {
                StatsMut::F32(stats) => Tensor::scalars("stats", stats.len()),
                StatsMut::F64(stats) => Tensor::scalars("stats", stats.len()),
            }),
        ]
    }
}
