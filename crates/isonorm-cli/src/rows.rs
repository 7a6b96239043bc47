//! `rms-norm` and `layer-norm`: rows along any axes.

pub(crate) mod backward;

use std::ops::Range;

use isonorm::{BackwardIo, DType, Io, LayerNorm, Recipe, RmsNorm, RowsMut, Slice, StatsMut};

use crate::args::{Common, Forward, Row, RowOptions};
use crate::axes::Axes;
use crate::error::{Error, Result};
use crate::gather;
use crate::output::{self, Output, check_distinct};
use crate::stats::{Column, Saved, StatsFile};
use crate::stream::Stream;
use crate::summary::{Digest, Finished, Machine, Written};
use crate::tensor::{Buffer, Place, Tensor};

/// One of the norms of rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// `rms-norm`.
    Rms,
    /// `layer-norm`.
    Layer,
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Kind::Rms => "rms-norm",
            Kind::Layer => "layer-norm",
        }
    }
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

    fn backward(&self, io: BackwardIo<'_>) -> Result<()> {
        match self {
            Norm::Rms(norm) => norm.backward(io)?,
            Norm::Layer(norm) => norm.backward(io)?,
        }
        Ok(())
    }
}

/// Runs one norm of rows from files to files.
pub(crate) fn run(kind: Kind, args: &Row) -> Result<()> {
    let forward = &args.forward;
    let Forward { common, output, bias, save_stats, .. } = forward;
    common.check_bf16([output].into_iter().chain(bias).chain(&args.residual).chain(&args.residual_out))?;
    let machine = Machine::new(common.threads, common.level);
    let inputs = Inputs::open(args)?;
    let axes = Axes::new(&inputs.x.shape, &args.rows.axis)?;
    let params = Params::load(&inputs.x, inputs.weight.as_ref(), inputs.bias.as_ref(), &axes)?;
    let norm = norm(kind, &args.rows, common, &params, axes.hidden, &machine)?;
    let types = Types::new(&inputs, forward);
    types.check(&norm)?;
    let mut places = vec![output];
    places.extend(args.residual_out.iter().chain(save_stats));
    check_distinct(&places, &inputs.all())?;
    let outputs = Outputs::create(kind, args, &inputs, &types, &axes)?;
    let job = Job { norm, types: &types, outputs: &outputs };
    let mut results = vec![(Some(&outputs.y), types.y)];
    results.extend(types.r.map(|r| (outputs.r.as_ref(), r)));
    let stream = Stream {
        inputs: [Some(&inputs.x), inputs.residual.as_ref()].into_iter().flatten().collect(),
        outputs: results,
        beside: Some(&outputs.y),
        unit: axes.hidden,
        units: axes.rows,
    };
    let digests = vec![Digest::new(machine.threads)];
    let (time, digests) =
        gather::run(&stream, &axes, digests, |rows, inputs, outputs| job.block(rows, inputs, outputs))?;
    inputs.all().into_iter().try_for_each(Tensor::check_unchanged)?;
    output::finish(outputs.into_files())?;
    let finished = Finished {
        norm: kind.name().to_owned(),
        shape: inputs.x.shape.clone(),
        dtype: inputs.x.dtype,
        output_dtype: types.y,
        traffic: inputs.x.dtype.size() + types.y.size() + types.r.map_or(0, |r| 2 * r.size()),
        time,
        outputs: digests.iter().map(|digest| Written::new("y", types.y, &output.path, digest)).collect(),
    };
    finished.report(&machine, common.json)
}

struct Inputs {
    x: Tensor,
    weight: Option<Tensor>,
    bias: Option<Tensor>,
    residual: Option<Tensor>,
}

impl Inputs {
    fn open(args: &Row) -> Result<Self> {
        let Forward { common: Common { x, weight, bf16, .. }, bias, .. } = &args.forward;
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
}

/// The parameters in memory.
struct Params {
    weight: Option<Buffer>,
    bias: Option<Buffer>,
}

impl Params {
    fn load(x: &Tensor, weight: Option<&Tensor>, bias: Option<&Tensor>, axes: &Axes) -> Result<Self> {
        let shape = axes.normalized_shape(&x.shape);
        let load = |tensor: Option<&Tensor>| tensor.map(|tensor| param(tensor, &shape)).transpose();
        Ok(Params { weight: load(weight)?, bias: load(bias)? })
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

fn norm<'a>(
    kind: Kind,
    rows: &RowOptions,
    common: &Common,
    params: &'a Params,
    hidden: usize,
    machine: &Machine,
) -> Result<Norm<'a>> {
    let Common { eps, eps_outside, .. } = common;
    let (recipe, offset) = rows.recipe.parts();
    if kind == Kind::Layer && recipe == Recipe::Llama {
        return Err(Error::usage("--recipe llama is of rms-norm alone", "leave it out, or use rms-norm"));
    }
    if kind == Kind::Layer && rows.partial.is_some() {
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
            Norm::Rms(rows.partial.map_or(norm, |k| norm.partial(k)))
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
    fn new(inputs: &Inputs, args: &Forward) -> Self {
        let x = inputs.x.dtype;
        Types { x, y: args.dtype.map_or(x, DType::from), r: inputs.residual.as_ref().map(|residual| residual.dtype) }
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
            Output::create(place, vec![(name, dtype, shape.clone())], args.forward.common.bf16)
        };
        let stats = |place: &Place| {
            let columns: &[Column] = if kind == Kind::Rms { &[Column::Rstd] } else { &[Column::Mean, Column::Rstd] };
            StatsFile::create(place, columns, types.normalized(), &axes.leading_shape(shape), Vec::new())
        };
        Ok(Outputs {
            y: tensor(&args.forward.output, "y", types.y)?,
            r: args.residual_out.as_ref().zip(types.r).map(|(place, dtype)| tensor(place, "r", dtype)).transpose()?,
            stats: args.forward.save_stats.as_ref().map(stats).transpose()?,
        })
    }

    fn into_files(self) -> Vec<Output> {
        self.r.into_iter().chain(self.stats.map(|stats| stats.output)).chain([self.y]).collect()
    }
}

/// Everything that is known when the work begins.
struct Job<'a> {
    norm: Norm<'a>,
    types: &'a Types,
    outputs: &'a Outputs,
}

impl Job<'_> {
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
