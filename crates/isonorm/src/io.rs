//! What a call over rows reads and writes, and the checks that come before anything is written.

use std::marker::PhantomData;

use crate::element::{Compute, DType, Element, with_element};
use crate::error::Error;
use crate::forward::{Residual, RowNorm, RowsJob, Task};
use crate::params::{Params, Recipe, check_type};
use crate::rows::{AnyIn, AnyOut, Out, Rows, RowsMut, Tensor, Walk, arrange};
use crate::stats::{EpsOption, Stats};
use crate::threads::{self, Cpu};

/// The tensors of one forward call.
///
/// ```
/// use isonorm::{Io, RmsNorm, Stats};
/// let (x, residual) = ([1.0f32, 2.0, 3.0, 4.0], [0.5f32; 4]);
/// let (mut r, mut y, mut stats) = ([0.0f32; 4], [0.0f32; 4], [Stats::default(); 2]);
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

/// The walks of a call's tensors over one grid, in the order in which the output lies in memory.
struct Walks {
    x: Option<Walk>,
    y: Walk,
    residual: Option<Walk>,
    r: Option<Walk>,
    stats: Option<Walk>,
}

impl<N: RowNorm> Call<'_, N> {
    /// Checks everything, then computes.
    pub(crate) fn run(self, io: Io<'_>) -> Result<(), Error> {
        let dtype = match &io.r {
            Some(r) => r.data.dtype(),
            None => io.x.as_ref().map_or(io.y.data.dtype(), |x| x.data.dtype()),
        };
        self.check_types(&io, dtype)?;
        let walks = self.walks(&io)?;
        with_element!(dtype, T => self.run_typed::<T>(io, walks))
    }

    fn check_types(&self, io: &Io<'_>, dtype: DType) -> Result<(), Error> {
        self.params.check(self.hidden, "normalized element", dtype)?;
        check_type("y", io.y.data.dtype(), dtype)?;
        if let (Some(x), Some(_)) = (&io.x, &io.residual) {
            check_type("x", x.data.dtype(), dtype)?;
        }
        if let Some(Some(residual)) = &io.residual {
            check_type("residual", residual.data.dtype(), dtype)?;
        }
        let (found, expected) = match &io.stats {
            Some(StatsMut::F32(_)) if dtype == DType::F64 => (DType::F32, DType::F64),
            Some(StatsMut::F64(_)) if dtype != DType::F64 => (DType::F64, DType::F32),
            _ => return Ok(()),
        };
        Err(Error::TypeIsNot { name: "stats", found, expected })
    }

    fn walks(&self, io: &Io<'_>) -> Result<Walks, Error> {
        let hidden = self.hidden;
        let x = io.x.as_ref().map(|x| Tensor::read("x", x));
        let y = Tensor::write(if x.is_some() { "y" } else { "x" }, &io.y);
        let residual = io.residual.as_ref().and_then(Option::as_ref).map(|q| Tensor::read("residual", q));
        let r = io.r.as_ref().map(|r| Tensor::write(if residual.is_some() { "r" } else { "residual" }, r));
        let all = || x.iter().chain([&y]).chain(&residual).chain(&r);
        let Some(leader) = all().find(|tensor| tensor.is_strided()).or_else(|| all().next()) else { unreachable!() };
        let grid = leader.grid(hidden)?;
        let walk = |tensor: &Tensor<'_>| tensor.walk(grid, hidden, leader.name);
        let stats = io.stats.as_ref().map(|stats| match stats {
            StatsMut::F32(stats) => stats.len(),
            StatsMut::F64(stats) => stats.len(),
        });
        let stats = stats.map(|len| Tensor::plain("stats", len).walk(grid, 1, leader.name)).transpose()?;
        let mut walks = Walks {
            x: x.as_ref().map(walk).transpose()?,
            y: walk(&y)?,
            residual: residual.as_ref().map(walk).transpose()?,
            r: r.as_ref().map(walk).transpose()?,
            stats,
        };
        walks.y.check_own_rows(y.name)?;
        if let (Some(walk), Some(r)) = (walks.r, &r) {
            walk.check_own_rows(r.name)?;
        }
        let Walks { x, y, residual, r, stats } = &mut walks;
        let mut all: arrayvec::ArrayVec<&mut Walk, 5> = arrayvec::ArrayVec::new();
        all.push(y);
        all.extend(x.iter_mut().chain(residual).chain(r).chain(stats));
        arrange(&mut all);
        drop(all);
        Ok(walks)
    }

    fn run_typed<T: Element>(self, io: Io<'_>, walks: Walks) -> Result<(), Error> {
        let rows = walks.y.rows();
        self.cpu.check()?;
        let level = self.cpu.chosen_level()?;
        let eps = self.eps.rounded::<T::Compute>()?;
        let tensors = 2 + 2 * usize::from(walks.r.is_some());
        let bytes = rows.saturating_mul(self.hidden).saturating_mul(tensors * size_of::<T>());
        let task = Task {
            level,
            hidden: self.hidden,
            measured: self.measured,
            eps,
            params: self.params,
            recipe: self.recipe,
            stream: crate::threads::is_beyond_the_caches(bytes / tensors) && walks.x.is_some(),
        };
        if rows == 0 || self.hidden == 0 {
            return Ok(());
        }
        let residual = io.residual.zip(io.r).zip(walks.r).map(|((residual, r), walk)| Residual {
            residual: residual.zip(walks.residual).map(|(q, walk)| AnyIn::new(q.data, walk)),
            r: AnyOut::new(r.data, walk),
        });
        let stats = io.stats.zip(walks.stats).and_then(|(stats, walk)| T::Compute::stats(stats).map(|data| Out::new(data, walk)));
        let job = RowsJob::<N, T> {
            norm: self.norm,
            task,
            rows: 0..rows,
            x: io.x.zip(walks.x).map(|(x, walk)| AnyIn::new(x.data, walk)),
            y: AnyOut::new(io.y.data, walks.y),
            residual,
            stats,
            element: PhantomData,
        };
        threads::run(&self.cpu, job, bytes);
        Ok(())
    }
}
