//! The backward pass of rows: checks, and which kernels are launched.

use std::ffi::c_void;
use std::ptr::null_mut;

use isonorm::rules::{self, Tensor};
use isonorm::{DType, Error as CallError};

use crate::device::Stream;
use crate::error::Error;
use crate::io::BackwardIo;
use crate::kernels::{Backward, Gradients, Kernel, Parameters, Scratch, Shape, Tensor as Argument, Units};
use crate::launch::Grid as LaunchGrid;
use crate::memory::{Rows, Slice, SliceMut};
use crate::row_norm::{RowNorm, STATS, check_stats, storage};
use crate::walk::{Grid, check_disjoint, parameter};

impl RowNorm<'_> {
    /// Queues dx, and the gradients of weight and bias, on `stream`: whatever `io` says.
    pub fn backward(&self, stream: &Stream<'_>, io: BackwardIo<'_>) -> Result<(), Error> {
        let x = io.x.data.dtype();
        self.check(x)?;
        let grid = self.check_backward(&io, x)?;
        let eps = self.rounded_eps(x)?;
        let sums = Sums::of(self, &io, x, grid.rows())?;
        if self.hidden == 0 {
            return Ok(());
        }
        stream.device().within(|| {
            if grid.rows() > 0 {
                self.launch_backward(stream, &io, x, &grid, eps, sums.as_ref())?;
            }
            match sums {
                Some(sums) => sums.launch_finish(stream, &io, x, self.hidden),
                None => Ok(()),
            }
        })
    }

    /// Elements of the compute type that [`BackwardIo::scratch`] needs for gradients of the parameters over `rows` rows of
    /// an x of type `x`. They do not depend on values or strides.
    pub fn scratch(&self, rows: usize, x: DType) -> usize {
        Sums::units(self, rows, x).map_or(0, |(units, stats)| stats + units.values(self.hidden))
    }

    fn launch_backward(
        &self,
        stream: &Stream<'_>,
        io: &BackwardIo<'_>,
        x: DType,
        grid: &Grid<6>,
        eps: f64,
        sums: Option<&Sums>,
    ) -> Result<(), Error> {
        let [x_rows, dy, dx] = [(1, &io.x), (2, &io.dy), (0, &io.dx.rows)].map(|(i, rows)| grid.argument(i, rows));
        let dresidual = io.dresidual.as_ref().map_or(Argument::NONE, |dresidual| grid.argument(3, dresidual));
        let dr = io.dr.as_ref().map_or(Argument::NONE, |dr| grid.argument(4, &dr.rows));
        let weight = parameter(self.weight.as_ref());
        let (shape, launch) =
            self.shape(Shape::backward(self.hidden, x), x, &[x_rows, dy, dx, dresidual, dr, weight])?;
        let rows = self.shared(x, grid, eps, &launch);
        let others = [Some(&io.dx.rows), io.dresidual.as_ref(), io.dr.as_ref().map(|dr| &dr.rows)];
        let dy_storage = storage([io.dy.data.dtype()], x);
        let along = sums.filter(|_| !shape.is_long);
        let kernel = Kernel::Backward {
            norm: self.kernel(),
            x,
            shape,
            params: self.params_storage(x, [self.weight, None]),
            dy: dy_storage,
            others: storage(others.into_iter().flatten().map(|rows| rows.data.dtype()), x),
            gradients: match along {
                None => Gradients::None,
                Some(_) if io.dbias.is_some() => Gradients::Both,
                Some(_) => Gradients::Weight,
            },
        };
        let known = io.stats.as_ref().map_or(null_mut(), Slice::pointer);
        let apart = sums.filter(|_| shape.is_long);
        let stats = apart.map_or(null_mut(), |sums| sums.stats);
        let scratch = along.map_or(Scratch::NONE, |sums| sums.units.scratch(sums.nodes));
        let args = Backward { rows, x: x_rows, dy, weight, dresidual, dx, dr, known, stats, scratch };
        let work = along.map_or(grid.rows(), |sums| sums.units.count);
        stream.launch(&kernel, &args, LaunchGrid::of(&launch, work))?;
        let Some(sums) = apart else { return Ok(()) };
        let args = Parameters { rows, x: x_rows, dy, stats, scratch: sums.units.scratch(sums.nodes) };
        let kernel = Kernel::Parameters { norm: self.kernel(), x, dy: dy_storage };
        let (blocks, threads) = sums.units.launch(self.hidden, x);
        stream.launch(&kernel, &args, LaunchGrid { blocks, threads, cluster: 1 })
    }

    fn check_backward(&self, io: &BackwardIo<'_>, x: DType) -> Result<Grid<6>, Error> {
        let (dx, dr) = (&io.dx.rows, io.dr.as_ref().map(|dr| &dr.rows));
        rules::check_type("dy", io.dy.data.dtype(), x)?;
        rules::check_type("dx", dx.data.dtype(), x)?;
        let others = [("dresidual", io.dresidual.as_ref()), ("dr", dr)];
        for (name, rows) in others {
            rows.map_or(Ok(()), |rows| rules::check_type(name, rows.data.dtype(), x))?;
        }
        let gradients = [("dweight", &io.dweight), ("dbias", &io.dbias)];
        for (name, gradient) in gradients {
            if let Some(gradient) = gradient {
                rules::check_param(name, gradient.as_slice().kind(), self.hidden, "normalized element", x)?;
            }
        }
        check_stats(io.stats.as_ref(), x)?;
        let grid = Grid::of(
            &[
                Some(dx.tensor("dx", true)),
                Some(io.x.tensor("x", false)),
                Some(io.dy.tensor("dy", false)),
                io.dresidual.as_ref().map(|dresidual| dresidual.tensor("dresidual", false)),
                dr.map(|dr| dr.tensor("dr", true)),
                io.stats.as_ref().map(|stats| Tensor::scalars("stats", stats.len() / STATS)),
            ],
            self.hidden,
        )?;
        let read = [
            Some((1, "x", &io.x)),
            Some((2, "dy", &io.dy)),
            io.dresidual.as_ref().map(|dresidual| (3, "dresidual", dresidual)),
        ];
        for written in [Some((0, "dx", dx)), dr.map(|dr| (4, "dr", dr))].into_iter().flatten() {
            read.into_iter().flatten().try_for_each(|read| grid.check_apart(written, read))?;
            self.check_params_apart(written.1, &written.2.data)?;
            if let Some(stats) = &io.stats {
                check_disjoint(written.1, &written.2.data, "stats", stats)?;
            }
        }
        if let Some(dr) = dr {
            check_disjoint("dr", &dr.data, "dx", &dx.data)?;
        }
        self.check_gradients(io, dx, dr)?;
        Ok(grid)
    }

    /// Gradients of parameters, and scratch memory, lie apart from everything else.
    fn check_gradients(&self, io: &BackwardIo<'_>, dx: &Rows<'_>, dr: Option<&Rows<'_>>) -> Result<(), Error> {
        let own = [("dweight", &io.dweight), ("dbias", &io.dbias), ("scratch", &io.scratch)];
        let own = own.map(|(name, slice)| slice.as_ref().map(|slice| (name, slice.as_slice())));
        let rows = [Some(("x", &io.x)), Some(("dy", &io.dy)), Some(("dx", dx)), dr.map(|dr| ("dr", dr))];
        let others = rows.into_iter().flatten().map(|(name, rows)| (name, rows.data));
        let others: Vec<_> = others
            .chain(io.dresidual.as_ref().map(|dresidual| ("dresidual", dresidual.data)))
            .chain(io.stats.map(|stats| ("stats", stats)))
            .chain(self.weight.map(|weight| ("weight", weight)))
            .collect();
        for (i, (name, slice)) in own.iter().enumerate().filter_map(|(i, own)| Some((i, own.as_ref()?))) {
            others.iter().try_for_each(|(other, found)| check_disjoint(name, slice, other, found))?;
            let rest = own[i + 1..].iter().flatten();
            rest.into_iter().try_for_each(|(other, found)| check_disjoint(name, slice, other, found))?;
        }
        Ok(())
    }
}

/// Sums over rows, in scratch memory: where, and how rows are cut.
struct Sums {
    units: Units,
    /// Of each row, where a kernel of its own sums over the rows.
    stats: *mut c_void,
    nodes: *mut c_void,
}

impl Sums {
    /// How rows are cut, and how many values the statistics of rows take. Nothing where no kernel does such rows.
    fn units(norm: &RowNorm<'_>, rows: usize, x: DType) -> Option<(Units, usize)> {
        let shape = Shape::backward(norm.hidden, x);
        let launch = shape.launch(norm.hidden, x)?;
        Some(if shape.is_long { (Units::of_columns(rows), STATS * rows) } else { (Units::of(rows, &launch), 0) })
    }

    /// Of a call that asks for gradients of parameters.
    fn of(norm: &RowNorm<'_>, io: &BackwardIo<'_>, x: DType, rows: usize) -> Result<Option<Self>, Error> {
        if io.dweight.is_none() && io.dbias.is_none() {
            return Ok(None);
        }
        let (units, stats) = Self::units(norm, rows, x).ok_or(Error::TooLong { hidden: norm.hidden })?;
        let (expected, compute) = (stats + units.values(norm.hidden), rules::compute(x));
        let found = io.scratch.as_ref().map(SliceMut::as_slice);
        let (len, dtype) = found.map_or((0, compute), |scratch| scratch.kind());
        if dtype != compute {
            return Err(CallError::TypeIsNot { name: "scratch", found: dtype, expected: compute }.into());
        }
        if len < expected {
            return Err(Error::Scratch { found: len, expected });
        }
        if stats > 0 && io.dy.data.overlaps(&io.dx.rows.data) {
            return Err(Error::Overlap { name: "dx", other: "dy" }); // which is read again for the gradients
        }
        let at = |at| found.map_or(null_mut(), |scratch| scratch.element(at));
        Ok(Some(Sums { units, stats: at(0), nodes: at(stats) }))
    }

    fn launch_finish(&self, stream: &Stream<'_>, io: &BackwardIo<'_>, x: DType, hidden: usize) -> Result<(), Error> {
        let [dweight, dbias] =
            [&io.dweight, &io.dbias].map(|gradient| parameter(gradient.as_ref().map(SliceMut::as_slice).as_ref()));
        let (blocks, threads) = Units::finish(hidden);
        let args = self.units.sums(self.nodes, hidden, dweight, dbias);
        let kernel = Kernel::Finish { compute: rules::compute(x) };
        stream.launch(&kernel, &args, LaunchGrid { blocks, threads, cluster: 1 })
    }
}
