//! The backward pass of `rms-norm` and `layer-norm`.

use isonorm::{BackwardIo, DType, Partial};

use super::{Kind, Norm};
use crate::args::{BackwardRow, Gradients};
use crate::axes::Axes;
use crate::error::{Error, Result};
use crate::gather;
use crate::gradients::{Call, Files, Params};
use crate::output::check_distinct;
use crate::stream::Stream;
use crate::summary::{Digest, Machine};
use crate::tensor::{Buffer, Place, Tensor};

/// Runs it from files to files.
pub(crate) fn run(kind: Kind, args: &BackwardRow) -> Result<()> {
    let gradients = &args.gradients;
    check(args)?;
    let common = &gradients.common;
    let machine = Machine::new(common.threads, common.level);
    let inputs = Inputs::open(args)?;
    let (x, weight) = (&inputs.x, inputs.weight.as_ref());
    let axes = Axes::new(&x.shape, &args.rows.axis)?;
    let loaded = super::Params::load(x, weight, None, &axes)?;
    let norm = super::norm(kind, &args.rows, common, &loaded, axes.hidden, &machine)?;
    let param_type = gradients.param_type(weight.map(|weight| weight.dtype), x.dtype);
    let mut params = Params::new(gradients, param_type, axes.hidden);
    let types = Types::new(args, &inputs);
    types.check(&norm, &mut params)?;
    check_distinct(&gradients.places(args.dr.as_ref()), &inputs.all())?;
    let files = Files::create(gradients, args.dr.as_ref(), x, weight, &axes.normalized_shape(&x.shape))?;
    let outputs = types.outputs.iter().enumerate().map(|(i, dtype)| (files.like_x(i), *dtype)).collect();
    let stream = Stream { inputs: inputs.rows(), outputs, beside: files.any(), unit: axes.hidden, units: axes.rows };
    let digests = types.outputs.iter().map(|_| Digest::new(machine.threads)).collect();
    let mut partial = params.are_wanted().then(|| Partial::rows(x.dtype, axes.hidden, 0));
    let done = gather::run(&stream, &axes, digests, |_, inputs, outputs| {
        let io = io(inputs, outputs);
        norm.backward(match &mut partial {
            Some(partial) => io.partial(partial),
            None => io,
        })
    })?;
    if let Some(partial) = partial {
        let [dweight, dbias] = params.slices();
        dweight.map(|dweight| partial.dweight(dweight)).transpose()?;
        dbias.map(|dbias| partial.dbias(dbias)).transpose()?;
    }
    let traffic = types.inputs.iter().chain(&types.outputs).map(|dtype| dtype.size()).sum();
    Call { norm: kind.name(), args: gradients, inputs: inputs.all(), machine: &machine, traffic }
        .finish(files, &params, done)
}

/// Refuses what has no effect.
fn check(args: &BackwardRow) -> Result<()> {
    let BackwardRow { gradients, dresidual, dr, .. } = args;
    gradients.check(dr.as_ref(), dresidual)?;
    if dresidual.is_some() && gradients.dx.is_none() && dr.is_none() {
        let found = "--dresidual is added to the gradient of X, which is not to be written";
        return Err(Error::usage(found, "add --dx DX, or leave it out"));
    }
    Ok(())
}

/// x, dy and dresidual to dx and dr.
fn io<'a>(inputs: &'a [Buffer], outputs: &'a mut [Buffer]) -> BackwardIo<'a> {
    let (dx, dr) = outputs.split_at_mut(1);
    let mut io = BackwardIo::new(inputs[0].slice(), inputs[1].slice(), dx[0].slice_mut());
    if let Some(dresidual) = inputs.get(2) {
        io = io.dresidual(dresidual.slice());
    }
    match dr.first_mut() {
        Some(dr) => io.dr(dr.slice_mut()),
        None => io,
    }
}

struct Inputs {
    x: Tensor,
    dy: Tensor,
    dresidual: Option<Tensor>,
    weight: Option<Tensor>,
}

impl Inputs {
    fn open(args: &BackwardRow) -> Result<Self> {
        let Gradients { common, dy, .. } = &args.gradients;
        let open = |place: &Place| Tensor::open(place, common.bf16);
        let inputs = Inputs {
            x: open(&common.x)?,
            dy: open(dy)?,
            dresidual: args.dresidual.as_ref().map(open).transpose()?,
            weight: common.weight.as_ref().map(open).transpose()?,
        };
        [&inputs.dy].into_iter().chain(&inputs.dresidual).try_for_each(|like| like.expect_shape(&inputs.x))?;
        Ok(inputs)
    }

    /// Those of x's shape.
    fn rows(&self) -> Vec<&Tensor> {
        [&self.x, &self.dy].into_iter().chain(&self.dresidual).collect()
    }

    fn all(&self) -> Vec<&Tensor> {
        self.rows().into_iter().chain(&self.weight).collect()
    }
}

/// The types of what has x's shape.
struct Types {
    /// x, dy, dresidual.
    inputs: Vec<DType>,
    /// dx, and dr where it is asked for.
    outputs: Vec<DType>,
}

impl Types {
    fn new(args: &BackwardRow, inputs: &Inputs) -> Self {
        let x = inputs.x.dtype;
        Types {
            inputs: inputs.rows().iter().map(|tensor| tensor.dtype).collect(),
            outputs: [args.gradients.dx_type(x)].into_iter().chain(args.dr.as_ref().map(|_| x)).collect(),
        }
    }

    /// Lets the library refuse options, parameters and types before any file is made.
    fn check(&self, norm: &Norm<'_>, params: &mut Params) -> Result<()> {
        let empty = |types: &[DType]| types.iter().map(|dtype| Buffer::zeroed(*dtype, 0)).collect::<Vec<_>>();
        let (inputs, mut outputs) = (empty(&self.inputs), empty(&self.outputs));
        let mut io = io(&inputs, &mut outputs);
        let [dweight, dbias] = params.slices();
        if let Some(dweight) = dweight {
            io = io.dweight(dweight);
        }
        if let Some(dbias) = dbias {
            io = io.dbias(dbias);
        }
        norm.backward(io)
    }
}
