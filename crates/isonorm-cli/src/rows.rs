//! `rms-norm` and `layer-norm`: rows along any axes.

use std::ops::Range;
use std::time::{Duration, Instant};

use isonorm::{DType, Io, LayerNorm, Recipe, RmsNorm, RowsMut, Slice, StatsMut};

use crate::args::{Common, Row};
use crate::axes::{Axes, Grid};
use crate::error::{Error, Result, bytes_of};
use crate::output::{self, Output, check_distinct};
use crate::progress::Progress;
use crate::stats::{Column, Saved, StatsFile};
use crate::stream::{self, Stream};
use crate::summary::{Digest, Finished, Machine};
use crate::tensor::buffer::view_mut;
use crate::tensor::{Buffer, Place, Tensor};

/// One of the norms of rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// `rms-norm`.
    Rms,
    /// `layer-norm`.
    Layer,
}

enum Norm<'a> {
    Rms(RmsNorm<'a>),
    Layer(LayerNorm<'a>),
}

impl Norm<'_> {
    fn apply(&self, io: Io<'_>) -> Result<()> {
        match self {
            Norm::Rms(norm) => norm.apply(io)?,
            Norm::Layer(norm) => norm.apply(io)?,
        }
        Ok(())
    }
}

/// Runs one norm of rows from files to files.
pub(crate) fn run(kind: Kind, args: &Row) -> Result<()> {
    let common = &args.common;
    common.check_bf16([&args.residual, &args.residual_out])?;
    let machine = Machine::new(common.threads, common.level);
    let inputs = Inputs::open(args)?;
    let axes = Axes::new(&inputs.x.shape, &args.axis)?;
    let params = Params::load(&inputs, &axes)?;
    let norm = norm(kind, args, &params, axes.hidden, &machine)?;
    let types = Types::new(&inputs, common);
    types.check(&norm)?;
    let mut places = vec![&common.output];
    places.extend(args.residual_out.iter().chain(&common.save_stats));
    check_distinct(&places, &inputs.all())?;
    let outputs = Outputs::create(kind, args, &inputs, &types, &axes)?;
    let job = Job { norm, inputs: &inputs, axes, types: &types, outputs: &outputs };
    let digest = Digest::new(machine.threads);
    let (time, digest) = if job.axes.are_last() && !inputs.any(|tensor| tensor.fortran) {
        job.stream(digest)?
    } else {
        job.gather(digest)?
    };
    inputs.all().into_iter().try_for_each(Tensor::check_unchanged)?;
    output::finish(outputs.into_files())?;
    let finished = Finished {
        norm: if kind == Kind::Rms { "rms-norm" } else { "layer-norm" },
        shape: inputs.x.shape.clone(),
        dtype: inputs.x.dtype,
        output_dtype: types.y,
        traffic: inputs.x.dtype.size() + types.y.size() + types.r.map_or(0, |r| 2 * r.size()),
        time,
        digest,
    };
    finished.report(&machine, common)
}

struct Inputs {
    x: Tensor,
    weight: Option<Tensor>,
    bias: Option<Tensor>,
    residual: Option<Tensor>,
}

impl Inputs {
    fn open(args: &Row) -> Result<Self> {
        let Common { x, weight, bias, bf16, .. } = &args.common;
        let open = |place: &Option<Place>| place.as_ref().map(|place| Tensor::open(place, *bf16)).transpose();
        let inputs = Inputs {
            x: Tensor::open(x, *bf16)?,
            weight: open(weight)?,
            bias: open(bias)?,
            residual: open(&args.residual)?,
        };
        if let Some(residual) = &inputs.residual {
            residual.expect_shape(&inputs.x)?;
        }
        Ok(inputs)
    }

    fn all(&self) -> Vec<&Tensor> {
        [Some(&self.x), self.weight.as_ref(), self.bias.as_ref(), self.residual.as_ref()]
            .into_iter()
            .flatten()
            .collect()
    }

    /// Whether x or the residual is so.
    fn any(&self, is: impl Fn(&Tensor) -> bool) -> bool {
        is(&self.x) || self.residual.as_ref().is_some_and(is)
    }
}

/// The parameters in memory.
struct Params {
    weight: Option<Buffer>,
    bias: Option<Buffer>,
}

impl Params {
    fn load(inputs: &Inputs, axes: &Axes) -> Result<Self> {
        let shape = axes.normalized_shape(&inputs.x.shape);
        let load = |tensor: &Option<Tensor>| tensor.as_ref().map(|tensor| param(tensor, &shape)).transpose();
        Ok(Params { weight: load(&inputs.weight)?, bias: load(&inputs.bias)? })
    }
}

/// A parameter: as many elements as `shape`, in one axis or as that shape. The library checks how many.
pub(crate) fn param(tensor: &Tensor, shape: &[usize]) -> Result<Buffer> {
    let without_ones = |shape: &[usize]| shape.iter().copied().filter(|len| *len != 1).collect::<Vec<_>>();
    let found = without_ones(&tensor.shape);
    if tensor.fortran || (found.len() > 1 && found != without_ones(shape)) {
        let len: usize = shape.iter().product();
        let order = if tensor.fortran { " in row-major order (numpy.ascontiguousarray)" } else { "" };
        let same = if shape == [len] { String::new() } else { format!(" or {shape:?}") };
        let expected = format!("[{len}]{same}{order}");
        return Err(Error::Shape { at: tensor.place.to_string(), found: tensor.shape.clone(), expected });
    }
    tensor.whole()
}

/// The gemma recipe adds to the weight, so there must be one.
pub(crate) fn gemma_without_weight() -> Error {
    Error::usage(
        "--recipe gemma adds 1 to the weight, but no --weight is given",
        "add --weight W, or leave out --recipe",
    )
}

fn norm<'a>(kind: Kind, args: &Row, params: &'a Params, hidden: usize, machine: &Machine) -> Result<Norm<'a>> {
    let Common { eps, eps_outside, .. } = &args.common;
    let (recipe, offset) = args.recipe.parts();
    if kind == Kind::Layer && recipe == Recipe::Llama {
        return Err(Error::usage("--recipe llama is of rms-norm alone", "leave it out, or use rms-norm"));
    }
    if kind == Kind::Layer && args.partial.is_some() {
        return Err(Error::usage("--partial is of rms-norm alone", "leave it out, or use rms-norm"));
    }
    if offset != 0.0 && params.weight.is_none() {
        return Err(gemma_without_weight());
    }
    macro_rules! options {
        ($norm:expr) => {{
            let mut norm = $norm.on(machine.cpu()).weight_offset(offset);
            if let Some(eps) = eps {
                norm = norm.eps(*eps);
            }
            if *eps_outside {
                norm = norm.eps_outside();
            }
            if let Some(weight) = &params.weight {
                norm = norm.weight(weight.slice());
            }
            if let Some(bias) = &params.bias {
                norm = norm.bias(bias.slice());
            }
            norm
        }};
    }
    Ok(match kind {
        Kind::Layer => Norm::Layer(options!(LayerNorm::new(hidden))),
        Kind::Rms => {
            let norm = options!(RmsNorm::new(hidden)).recipe(recipe);
            Norm::Rms(args.partial.map_or(norm, |k| norm.partial(k)))
        }
    })
}

/// Storage types: r has the residual's, y that of x unless another is asked for.
struct Types {
    x: DType,
    y: DType,
    r: Option<DType>,
}

impl Types {
    fn new(inputs: &Inputs, common: &Common) -> Self {
        let x = inputs.x.dtype;
        Types { x, y: common.dtype.map_or(x, DType::from), r: inputs.residual.as_ref().map(|residual| residual.dtype) }
    }

    /// The type of the norm's input, which decides the type of its statistics.
    fn normalized(&self) -> DType {
        self.r.unwrap_or(self.x)
    }

    /// Lets the library refuse options, parameters and types before any file is made.
    fn check(&self, norm: &Norm<'_>) -> Result<()> {
        let x = Buffer::zeroed(self.x, 0);
        let mut y = Buffer::zeroed(self.y, 0);
        match self.r {
            None => norm.apply(Io::new(x.slice(), y.slice_mut())),
            Some(r) => {
                let (residual, mut r) = (Buffer::zeroed(r, 0), Buffer::zeroed(r, 0));
                norm.apply(Io::add(x.slice(), residual.slice(), r.slice_mut(), y.slice_mut()))
            }
        }
    }
}

struct Outputs {
    y: Output,
    r: Option<Output>,
    stats: Option<StatsFile>,
}

impl Outputs {
    fn create(kind: Kind, args: &Row, inputs: &Inputs, types: &Types, axes: &Axes) -> Result<Self> {
        let shape = &inputs.x.shape;
        let tensor = |place: &Place, default: &str, dtype| {
            let name = place.name.clone().unwrap_or_else(|| default.to_owned());
            Output::create(place, vec![(name, dtype, shape.clone())], args.common.bf16)
        };
        let stats = |place: &Place| {
            let columns: &[Column] = if kind == Kind::Rms { &[Column::Rstd] } else { &[Column::Mean, Column::Rstd] };
            StatsFile::create(place, columns, types.normalized(), &axes.leading_shape(shape), Vec::new())
        };
        Ok(Outputs {
            y: tensor(&args.common.output, "y", types.y)?,
            r: args.residual_out.as_ref().zip(types.r).map(|(place, dtype)| tensor(place, "r", dtype)).transpose()?,
            stats: args.common.save_stats.as_ref().map(stats).transpose()?,
        })
    }

    fn into_files(self) -> Vec<Output> {
        self.r.into_iter().chain(self.stats.map(|stats| stats.output)).chain([self.y]).collect()
    }
}

/// Everything that is known when the work begins.
struct Job<'a> {
    norm: Norm<'a>,
    inputs: &'a Inputs,
    axes: Axes,
    types: &'a Types,
    outputs: &'a Outputs,
}

impl Job<'_> {
    /// Rows as they lie in the files, block by block.
    fn stream(&self, digest: Digest) -> Result<(Duration, Digest)> {
        let progress = Progress::new(bytes_of(self.types.y, self.inputs.x.len()));
        let mut outputs = vec![(Some(&self.outputs.y), self.types.y)];
        outputs.extend(self.types.r.map(|r| (self.outputs.r.as_ref(), r)));
        let inputs = [Some(&self.inputs.x), self.inputs.residual.as_ref()].into_iter().flatten().collect();
        let (unit, units) = (self.axes.hidden, self.axes.rows);
        let stream = Stream { inputs, outputs, unit, units, progress: &progress };
        stream.run(digest, |rows, inputs, outputs| self.block(rows, inputs, outputs))
    }

    /// Blocks of rows copied together from wherever their elements lie, and back.
    fn gather(&self, mut digest: Digest) -> Result<(Duration, Digest)> {
        let Job { inputs, outputs, types, axes, .. } = self;
        let progress = Progress::new(bytes_of(types.y, inputs.x.len()));
        let sources: Vec<(Buffer, Grid)> = [Some(&inputs.x), inputs.residual.as_ref()]
            .into_iter()
            .flatten()
            .map(|tensor| Ok((tensor.whole()?, Grid::of(tensor, axes))))
            .collect::<Result<_>>()?;
        let target = Grid::row_major(&inputs.x.shape, axes);
        let mut y = outputs.y.map()?;
        let mut r = outputs.r.as_ref().map(Output::map).transpose()?;
        let block = stream::gathered_rows(axes.hidden * types.x.size(), axes.rows);
        let buffers = |types: &[DType]| -> Result<Vec<Buffer>> {
            types.iter().map(|dtype| stream::buffer(*dtype, block * axes.hidden, &outputs.y)).collect()
        };
        let mut from = buffers(&[Some(types.x), types.r].into_iter().flatten().collect::<Vec<_>>())?;
        let mut to = buffers(&[Some(types.y), types.r].into_iter().flatten().collect::<Vec<_>>())?;
        let mut time = Duration::ZERO;
        for start in (0..axes.rows).step_by(block) {
            let rows = start..(start + block).min(axes.rows);
            from.iter_mut().chain(&mut to).for_each(|buffer| buffer.set_len(rows.len() * axes.hidden));
            for ((source, grid), buffer) in sources.iter().zip(&mut from) {
                grid.gather(start, source.slice(), buffer.slice_mut());
            }
            let clock = Instant::now();
            self.block(rows, &from, &mut to)?;
            time += clock.elapsed();
            target.scatter(start, to[0].slice(), view_mut(types.y, y.bytes()));
            if let (Some(r), Some(dtype)) = (&mut r, types.r) {
                target.scatter(start, to[1].slice(), view_mut(dtype, r.bytes()));
            }
            progress.add(to[0].bytes().len() as u64);
        }
        digest.update(y.bytes());
        Ok((time, digest))
    }

    /// One call of the library: inputs x and residual, outputs y and r.
    fn block(&self, rows: Range<usize>, inputs: &[Buffer], outputs: &mut [Buffer]) -> Result<()> {
        let mut saved = self.outputs.stats.as_ref().map(|_| Saved::new(self.types.normalized(), rows.len()));
        let stats: Option<StatsMut<'_>> = saved.as_mut().map(Saved::as_mut);
        let x: Slice<'_> = inputs[0].slice();
        let (y, r) = outputs.split_at_mut(1);
        let y = RowsMut::from(y[0].slice_mut());
        let io = match (inputs.get(1), r.first_mut()) {
            (Some(residual), Some(r)) => Io::add(x, residual.slice(), r.slice_mut(), y),
            _ => Io::new(x, y),
        };
        self.norm.apply(match stats {
            Some(stats) => io.stats(stats),
            None => io,
        })?;
        if let (Some(file), Some(saved)) = (&self.outputs.stats, &saved) {
            file.write(rows.start, saved)?;
        }
        Ok(())
    }
}
