//! A call over rows: its options, and the checks before anything is written.

use std::marker::PhantomData;

use crate::element::{Compute, DType, Element, with_element};
use crate::error::Error;
use crate::forward::{self, Reach, RowNorm, RowsJob, Task};
use crate::grid::{Place, Sequence, Tensor, Walks};
use crate::io::{Io, StatsMut, StatsRef};
use crate::params::{Params, Recipe, check_partial, check_type};
use crate::residual::Residual;
use crate::rows::{AnyIn, AnyOut, In, Out, Rows, RowsMut};
use crate::slice::{Slice, SliceMut};
use crate::stats::EpsOption;
use crate::threads::{self, Cpu};

/// A norm of rows with its options.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Call<'a> {
    pub(crate) hidden: usize,
    /// How many elements of a row enter the statistics, if not all.
    pub(crate) partial: Option<usize>,
    pub(crate) eps: EpsOption,
    pub(crate) params: Params<'a>,
    pub(crate) recipe: Recipe,
    pub(crate) cpu: Cpu<'a>,
}

impl Call<'_> {
    /// eps inside the root, no parameters.
    #[inline]
    pub(crate) fn new(hidden: usize, eps: f64) -> Self {
        let eps = EpsOption::inside(eps);
        Call { hidden, partial: None, eps, params: Params::default(), recipe: Recipe::Torch, cpu: Cpu::new() }
    }

    /// From x to y. A call that is nothing but rows of one type, too small for a second thread, spends no time on
    /// anything else.
    #[inline]
    pub(crate) fn forward<N: RowNorm>(&self, norm: N, x: Rows<'_>, y: RowsMut<'_>) -> Result<(), Error> {
        if self.is_alone(&x, &y) {
            return self.run_alone(norm, x.data, y.data);
        }
        self.run(norm, Io::new(x, y), None)
    }

    /// Whatever `io` says.
    pub(crate) fn apply<N: RowNorm>(&self, norm: N, io: Io<'_>) -> Result<(), Error> {
        match io {
            Io { x: Some(x), y, residual: None, r: None, stats: None } => self.forward(norm, x, y),
            io => self.run(norm, io, None),
        }
    }

    #[inline]
    fn is_alone(&self, x: &Rows<'_>, y: &RowsMut<'_>) -> bool {
        let (len, dtype) = (x.data.len(), x.data.dtype());
        x.is_contiguous(len)
            && y.is_contiguous(len)
            && y.data.dtype() == dtype
            && threads::is_alone(len.saturating_mul(2 * dtype.size()))
            && len > 0
            && (len == self.hidden || len.checked_rem(self.hidden) == Some(0))
    }

    fn run_alone<N: RowNorm>(&self, _: N, x: Slice<'_>, y: SliceMut<'_>) -> Result<(), Error> {
        self.check_params(x.dtype())?;
        let level = self.cpu.chosen_level()?;
        with_element!(x.dtype(), T => {
            self.eps.check::<<T as Element>::Compute>()?;
            if let (Some(x), Some(y)) = (T::of(&x), T::of_mut(y)) {
                forward::alone::<N, T>(self, level, x, y);
            }
            Ok(())
        })
    }

    /// y of rows whose statistics are known.
    pub(crate) fn write<N: RowNorm>(&self, norm: N, io: Io<'_>, known: StatsRef<'_>) -> Result<(), Error> {
        self.run(norm, io, Some(known))
    }

    /// Checks everything, then computes. Statistics are saved or known, not both.
    fn run<N: RowNorm>(&self, norm: N, io: Io<'_>, known: Option<StatsRef<'_>>) -> Result<(), Error> {
        let dtype = match &io.r {
            Some(r) => r.data.dtype(),
            None => io.x.as_ref().map_or(io.y.data.dtype(), |x| x.data.dtype()),
        };
        self.check_types(&io, known, dtype).map_err(|error| match error {
            Error::Type { name, found, expected, .. } if io.r.is_some() => {
                Error::Type { name, found, like: "x + residual", expected }
            }
            other => other,
        })?;
        let mut walks = Walks::none();
        if known.is_some() || !io.walk_contiguous(self.hidden, &mut walks) {
            let mut tensors = io.tensors();
            tensors[4] = known.map(|known| Tensor::scalars("stats", known.len())).or(tensors[4]);
            walks = Walks::of(&tensors, self.hidden, Sequence::Memory)?;
        }
        with_element!(dtype, T => self.run_typed::<N, T>(norm, io, known, &walks))
    }

    #[inline]
    pub(crate) fn check_params(&self, dtype: DType) -> Result<(), Error> {
        check_partial(self.partial, self.hidden)?;
        self.params.check(self.hidden, "normalized element", dtype)
    }

    fn check_types(&self, io: &Io<'_>, known: Option<StatsRef<'_>>, dtype: DType) -> Result<(), Error> {
        if let (Some(x), Some(_)) = (&io.x, &io.residual) {
            check_type("x", x.data.dtype(), dtype)?;
        }
        if let Some(Some(residual)) = &io.residual {
            check_type("residual", residual.data.dtype(), dtype)?;
        }
        self.check_params(dtype)?;
        check_type(if io.x.is_some() { "y" } else { "x" }, io.y.data.dtype(), dtype)?;
        let expected = if dtype == DType::F64 { DType::F64 } else { DType::F32 };
        let found = known.map(|known| known.dtype()).or(io.stats.as_ref().map(StatsMut::dtype)).unwrap_or(expected);
        if found == expected { Ok(()) } else { Err(Error::TypeIsNot { name: "stats", found, expected }) }
    }

    fn run_typed<N: RowNorm, T: Element>(
        &self,
        norm: N,
        io: Io<'_>,
        known: Option<StatsRef<'_>>,
        walks: &Walks<5>,
    ) -> Result<(), Error> {
        let (hidden, rows) = (self.hidden, walks.grid.rows);
        let bytes = rows.saturating_mul(hidden).saturating_mul(size_of::<T>());
        let level = self.cpu.chosen_level()?;
        let task = Task { call: self, level, eps: self.eps.rounded()?, reach: Reach::of(bytes) };
        if rows == 0 || hidden == 0 {
            return Ok(());
        }
        let place = |i: usize| Place::new(&walks.grid, &walks.each[i], if i == 4 { 1 } else { hidden });
        let residual = io.residual.zip(io.r).map(|(residual, r)| Residual {
            residual: residual.map(|residual| AnyIn::new(residual.data, place(2))),
            r: AnyOut::new(r.data, place(3)),
        });
        let stats = io.stats.and_then(T::Compute::stats).map(|data| Out::new(data, place(4)));
        let job = RowsJob::<N, T> {
            norm,
            task: &task,
            rows: 0..rows,
            x: io.x.map(|x| AnyIn::new(x.data, place(1))),
            y: AnyOut::new(io.y.data, place(0)),
            residual,
            stats,
            known: known.and_then(T::Compute::saved).map(|known| In::new(known, place(4))),
            element: PhantomData,
        };
        threads::run(&self.cpu, job, bytes.saturating_mul(2));
        Ok(())
    }
}
