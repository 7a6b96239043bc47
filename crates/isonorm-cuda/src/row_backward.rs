//! The backward pass of rows: checks, and which kernels are launched.

use std::ffi::c_void;
use std::ptr::null_mut;

use isonorm::rules::{self, Tensor};
use isonorm::{DType, Error as CallError};

use crate::device::{Device, Stream};
use crate::error::Error;
use crate::io::BackwardIo;
use crate::kernels::{
    Affine, Backward, Forward, Gradients, Kernel, Parameters, Scratch, Shape, Storage, Tensor as Argument, Units,
};
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
        let sums = Sums::of(self, stream.device(), &io, x, grid.rows())?;
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

    /// Elements of the compute type that [`BackwardIo::scratch`] needs on `device` for gradients of the parameters over
    /// `rows` rows of an x of type `x`. They do not depend on values or strides.
    pub fn scratch(&self, device: &Device, rows: usize, x: DType) -> usize {
        let cuts = [Gradients::Weight, Gradients::Both].map(|gradients| Cut::of(self, device, rows, x, gradients));
        cuts.iter().flatten().map(|cut| cut.values(self.hidden)).max().unwrap_or(0)
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
        let (shape, gradients) = Shape::backward(self.hidden, x, wanted(io), stream.device().capability());
        let (shape, launch) = self.shape(shape, x, &[x_rows, dy, dx, dresidual, dr, weight])?;
        let rows = self.shared(x, grid, eps, &launch);
        let others = [Some(&io.dx.rows), io.dresidual.as_ref(), io.dr.as_ref().map(|dr| &dr.rows)];
        let along = sums.filter(|sums| sums.cut.stats == 0);
        let kernel = Kernel::Backward {
            norm: self.kernel(),
            x,
            shape,
            params: self.params_storage(x, [self.weight, None]),
            affine: Affine::of(self.weight.is_some(), false, rows.weight_offset),
            dy: storage([io.dy.data.dtype()], x),
            others: storage(others.into_iter().flatten().map(|rows| rows.data.dtype()), x),
            gradients,
        };
        let known = match sums.filter(|sums| sums.cut.stats > 0) {
            Some(apart) => self.launch_parameters(stream, io, x, grid, eps, apart)?,
            None => io.stats.as_ref().map_or(null_mut(), Slice::pointer),
        };
        let scratch = along.map_or(Scratch::NONE, |sums| sums.cut.units.scratch(sums.nodes));
        let args = Backward { rows, x: x_rows, dy, weight, dresidual, dx, dr, known, stats: null_mut(), scratch };
        let work = along.map_or(grid.rows(), |sums| sums.cut.units.count);
        stream.launch(&kernel, &args, LaunchGrid::of(&launch, work))
    }

    /// The sums of units where the kernel of dx does not take them along; before it, since dx may lie where x or dy
    /// does. Returns where the rows' statistics are.
    fn launch_parameters(
        &self,
        stream: &Stream<'_>,
        io: &BackwardIo<'_>,
        x: DType,
        grid: &Grid<6>,
        eps: f64,
        sums: &Sums,
    ) -> Result<*mut c_void, Error> {
        let (from, dy) = (grid.argument(1, &io.x), grid.argument(2, &io.dy));
        let shape = Shape::forward(self.hidden, x, stream.device().capability());
        let (shape, launch) = self.shape(shape, x, &[from])?;
        let rows = self.shared(x, grid, eps, &launch);
        let (norm, none) = (self.kernel(), Argument::NONE);
        let stats = io.stats.as_ref().map_or(sums.stats, Slice::pointer);
        if io.stats.is_none() {
            let (params, y, affine) = (Storage::Of(x), Storage::None, Affine::Open);
            let kernel = Kernel::Forward { norm, x, shape, params, affine, y, summands: y };
            let args = Forward { rows, x: from, residual: none, r: none, weight: none, bias: none, y: none, stats };
            stream.launch(&kernel, &args, LaunchGrid::of(&launch, grid.rows()))?;
        }
        let args = Parameters { rows, x: from, dy, stats, scratch: sums.cut.units.scratch(sums.nodes) };
        let kernel = Kernel::Parameters { norm, x, dy: storage([io.dy.data.dtype()], x) };
        let (blocks, threads) = sums.cut.units.launch(self.hidden, x);
        stream.launch(&kernel, &args, LaunchGrid { blocks, threads, cluster: 1 })?;
        Ok(stats)
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

/// The gradients of parameters that a call asks for.
fn wanted(io: &BackwardIo<'_>) -> Gradients {
    match (io.dweight.is_some(), io.dbias.is_some()) {
        (_, true) => Gradients::Both,
        (true, false) => Gradients::Weight,
        (false, false) => Gradients::None,
    }
}

/// How rows are cut for sums over them.
struct Cut {
    units: Units,
    /// Values of the rows' statistics, where a kernel of its own sums over the rows.
    stats: usize,
}

impl Cut {
    /// Nothing where no kernel does such rows.
    fn of(norm: &RowNorm<'_>, device: &Device, rows: usize, x: DType, wanted: Gradients) -> Option<Self> {
        let (shape, gradients) = Shape::backward(norm.hidden, x, wanted, device.capability());
        let launch = shape.launch(norm.hidden, x)?;
        Some(match gradients {
            Gradients::None => Cut { units: Units::of_columns(rows), stats: rows.max(1).saturating_mul(STATS) },
            _ => Cut { units: Units::of(rows, &launch), stats: 0 },
        })
    }

    /// Values of scratch memory.
    fn values(&self, hidden: usize) -> usize {
        self.stats.saturating_add(self.units.values(hidden))
    }
}

/// Sums over rows, in scratch memory.
struct Sums {
    cut: Cut,
    stats: *mut c_void,
    nodes: *mut c_void,
}

impl Sums {
    /// Of a call that asks for gradients of parameters.
    fn of(
        norm: &RowNorm<'_>,
        device: &Device,
        io: &BackwardIo<'_>,
        x: DType,
        rows: usize,
    ) -> Result<Option<Self>, Error> {
        let wanted = wanted(io);
        if wanted == Gradients::None {
            return Ok(None);
        }
        let cut = Cut::of(norm, device, rows, x, wanted).ok_or(Error::TooLong { hidden: norm.hidden })?;
        let (expected, compute) = (cut.values(norm.hidden), rules::compute(x));
        let found = io.scratch.as_ref().map(SliceMut::as_slice);
        let (len, dtype) = found.map_or((0, compute), |scratch| scratch.kind());
        if dtype != compute {
            return Err(CallError::TypeIsNot { name: "scratch", found: dtype, expected: compute }.into());
        }
        if len < expected {
            return Err(Error::Scratch { found: len, expected });
        }
        let at = |at| found.map_or(null_mut(), |scratch| scratch.element(at));
        Ok(Some(Sums { stats: at(0), nodes: at(cut.stats), cut }))
    }

    fn launch_finish(&self, stream: &Stream<'_>, io: &BackwardIo<'_>, x: DType, hidden: usize) -> Result<(), Error> {
        let [dweight, dbias] =
            [&io.dweight, &io.dbias].map(|gradient| parameter(gradient.as_ref().map(SliceMut::as_slice).as_ref()));
        let (blocks, threads) = Units::finish(hidden);
        let args = self.cut.units.sums(self.nodes, hidden, dweight, dbias);
        let kernel = Kernel::Finish { compute: rules::compute(x) };
        stream.launch(&kernel, &args, LaunchGrid { blocks, threads, cluster: 1 })
    }
}
