//! What a call over rows reads and writes, and the checks that come before anything is written.

use std::marker::PhantomData;

use crate::element::{Compute, DType, Element, Slice, SliceMut, with_element};
use crate::error::Error;
use crate::forward::{self, Reach, RowNorm, RowsJob, Task};
use crate::grid::{Grid, Place, Tensor, Walk, arrange};
use crate::params::{Params, Recipe, check_type};
use crate::residual::Residual;
use crate::rows::{AnyIn, AnyOut, Out, Rows, RowsMut};
use crate::stats::{EpsOption, Stats};
use crate::threads::{self, Cpu};

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
    x: Option<Rows<'a>>,
    y: RowsMut<'a>,
    residual: Option<Option<Rows<'a>>>,
    r: Option<RowsMut<'a>>,
    stats: Option<StatsMut<'a>>,
}

/// Where statistics are saved: one [`Stats`] a row, `Stats<f64>` for an x of f64 and `Stats<f32>` for others.
#[derive(Debug)]
pub enum StatsMut<'a> {
    /// For f32, f16 and bf16.
    F32(&'a mut [Stats<f32>]),
    /// For f64.
    F64(&'a mut [Stats<f64>]),
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

/// A norm of rows with its options.
pub(crate) struct Call<'c, N> {
    pub(crate) norm: N,
    pub(crate) hidden: usize,
    pub(crate) measured: usize,
    pub(crate) eps: EpsOption,
    pub(crate) params: Params<'c>,
    pub(crate) recipe: Recipe,
    pub(crate) cpu: Cpu<'c>,
}

/// The walks of a call's tensors over one grid, in the order in which y lies in memory.
struct Walks {
    grid: Grid,
    /// y, x, residual, r, stats; those that are absent stand still.
    each: [Walk; 5],
}

impl<N: RowNorm> Call<'_, N> {
    /// Checks everything, then computes.
    pub(crate) fn run(self, mut io: Io<'_>) -> Result<(), Error> {
        if let Some((x, y)) = io.plain(self.hidden) {
            self.params.check(self.hidden, "normalized element", x.dtype())?;
            return with_element!(x.dtype(), T => self.run_near::<T>(x, y));
        }
        let dtype = match &io.r {
            Some(r) => r.data.dtype(),
            None => io.x.as_ref().map_or(io.y.data.dtype(), |x| x.data.dtype()),
        };
        self.check_types(&io, dtype).map_err(|error| match error {
            Error::Type { name, found, expected, .. } if io.r.is_some() => {
                Error::Type { name, found, like: "x + residual", expected }
            }
            other => other,
        })?;
        let mut walks = Walks { grid: *Grid::ONE, each: [*Walk::ONE; 5] };
        if !io.walk_contiguous(self.hidden, &mut walks) {
            self.walk(&io, &mut walks)?;
        }
        with_element!(dtype, T => self.run_typed::<T>(io, &walks))
    }

    fn check_types(&self, io: &Io<'_>, dtype: DType) -> Result<(), Error> {
        if let (Some(x), Some(_)) = (&io.x, &io.residual) {
            check_type("x", x.data.dtype(), dtype)?;
        }
        if let Some(Some(residual)) = &io.residual {
            check_type("residual", residual.data.dtype(), dtype)?;
        }
        self.params.check(self.hidden, "normalized element", dtype)?;
        check_type(if io.x.is_some() { "y" } else { "x" }, io.y.data.dtype(), dtype)?;
        let (found, expected) = match &io.stats {
            Some(StatsMut::F32(_)) if dtype == DType::F64 => (DType::F32, DType::F64),
            Some(StatsMut::F64(_)) if dtype != DType::F64 => (DType::F64, DType::F32),
            _ => return Ok(()),
        };
        Err(Error::TypeIsNot { name: "stats", found, expected })
    }

    /// Checks all shapes and strides and brings them into one order.
    fn walk(&self, io: &Io<'_>, walks: &mut Walks) -> Result<(), Error> {
        let tensors = io.tensors();
        let present = || tensors.iter().flatten();
        let leader = present().find(|tensor| tensor.is_strided()).or(tensors[1].as_ref()).or(tensors[0].as_ref());
        let Some(leader) = leader else { return Ok(()) };
        walks.grid = leader.grid(self.hidden)?;
        let grid = walks.grid;
        for (i, (tensor, walk)) in tensors.iter().zip(&mut walks.each).enumerate() {
            let Some(tensor) = tensor else { continue };
            let hidden = if i == 4 { 1 } else { self.hidden };
            *walk = tensor.walk(&grid, hidden, leader.name)?;
            let is_written = i == 0 || i == 3;
            if is_written && tensor.is_strided() {
                walk.check_own_rows(tensor.name, &grid, hidden)?;
            }
        }
        if leader.is_strided() {
            arrange(&mut walks.grid, &mut walks.each);
        }
        Ok(())
    }

    fn run_near<T: Element>(&self, x: Slice<'_>, y: SliceMut<'_>) -> Result<(), Error> {
        let task = self.task::<T>(Reach::Near)?;
        if let (Some(x), Some(y)) = (T::of(&x), T::of_mut(y)) {
            forward::near::<N, T>(&task, x, y);
        }
        Ok(())
    }

    fn task<T: Element>(&self, reach: Reach) -> Result<Task<'_, T::Compute>, Error> {
        self.cpu.check()?;
        Ok(Task {
            level: self.cpu.chosen_level()?,
            hidden: self.hidden,
            measured: self.measured,
            eps: self.eps.rounded::<T::Compute>()?,
            params: self.params,
            recipe: self.recipe,
            reach,
        })
    }

    fn run_typed<T: Element>(self, io: Io<'_>, walks: &Walks) -> Result<(), Error> {
        let (hidden, rows) = (self.hidden, walks.grid.rows);
        let bytes = rows.saturating_mul(hidden).saturating_mul(size_of::<T>());
        let task = self.task::<T>(Reach::of(bytes))?;
        if rows == 0 || hidden == 0 {
            return Ok(());
        }
        let place = |i: usize| Place { grid: &walks.grid, walk: &walks.each[i], hidden };
        let residual = io.residual.zip(io.r).map(|(residual, r)| Residual {
            residual: residual.map(|residual| AnyIn::new(residual.data, place(2))),
            r: AnyOut::new(r.data, place(3)),
        });
        let stats = io.stats.and_then(T::Compute::stats).map(|data| Out::new(data, Place { hidden: 1, ..place(4) }));
        let job = RowsJob::<N, T> {
            norm: self.norm,
            task: &task,
            rows: 0..rows,
            x: io.x.map(|x| AnyIn::new(x.data, place(1))),
            y: AnyOut::new(io.y.data, place(0)),
            residual,
            stats,
            element: PhantomData,
        };
        threads::run(&self.cpu, job, bytes.saturating_mul(2));
        Ok(())
    }
}

impl<'a> Io<'a> {
    /// x and y of a call that is nothing but rows near the caches.
    #[inline]
    fn plain(&mut self, hidden: usize) -> Option<(Slice<'a>, SliceMut<'_>)> {
        let Io { x: Some(x), y, residual: None, r: None, stats: None } = self else { return None };
        let (len, dtype) = (x.data.len(), x.data.dtype());
        let is_plain = x.is_contiguous(len) && y.is_contiguous(len) && y.data.dtype() == dtype;
        let is_near = Reach::of(len.saturating_mul(dtype.size())) == Reach::Near;
        (is_plain && is_near && len > 0 && len.checked_rem(hidden) == Some(0)).then(|| (x.data, y.data.reborrow()))
    }

    /// The walks of contiguous tensors of one length: no time is spent on grids. False for all other calls.
    #[inline]
    fn walk_contiguous(&self, hidden: usize, walks: &mut Walks) -> bool {
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
    fn tensors(&self) -> [Option<Tensor<'a>>; 5] {
        let Io { x, y, residual, r, stats } = self;
        let own_residual = matches!(residual, Some(Some(_)));
        [
            Some(Tensor::write(if x.is_some() { "y" } else { "x" }, y)),
            x.as_ref().map(|x| Tensor::read("x", x)),
            residual.as_ref().and_then(Option::as_ref).map(|residual| Tensor::read("residual", residual)),
            r.as_ref().map(|r| Tensor::write(if own_residual { "r" } else { "residual" }, r)),
            stats.as_ref().map(|stats| match stats {
                StatsMut::F32(stats) => Tensor::plain("stats", stats.len()),
                StatsMut::F64(stats) => Tensor::plain("stats", stats.len()),
            }),
        ]
    }
}
