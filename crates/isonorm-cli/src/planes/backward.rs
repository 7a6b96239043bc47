//! The backward pass of `batch-norm`, `group-norm` and `instance-norm`.

use isonorm::{BatchNorm, GroupNorm, InstanceNorm, PlaneBackwardIo};

use super::{Geometry, Input};
use crate::args::{BackwardBatch, BackwardGroup, BackwardInstance, Gradients, Layout};
use crate::error::Result;
use crate::gradients::{Call, Files, Params};
use crate::output::check_distinct;
use crate::stream::Stream;
use crate::summary::Digest;
use crate::tensor::{Buffer, Place, Tensor};

/// Runs that of `batch-norm`.
pub(crate) fn batch(args: &BackwardBatch) -> Result<()> {
    let gradients = &args.gradients;
    let mut job = Job::open(gradients, args.layout, [&args.running_mean, &args.running_var])?;
    let running = job.input.running.take();
    let norm = job.input.options(&gradients.common, BatchNorm::new(job.input.geometry.channels));
    match running {
        Some((mean, var)) => {
            job.run("batch-norm", true, |io| Ok(norm.evaluate_backward(io, mean.slice(), var.slice())?))
        }
        None => job.run("batch-norm", false, |io| Ok(norm.train_backward(io)?)),
    }
}

/// Runs that of `group-norm`.
pub(crate) fn group(args: &BackwardGroup) -> Result<()> {
    let job = Job::open(&args.gradients, args.layout, [&None, &None])?;
    let norm = GroupNorm::new(args.groups, job.input.geometry.channels);
    let norm = job.input.options(&args.gradients.common, norm);
    job.run("group-norm", true, |io| Ok(norm.backward(io)?))
}

/// Runs that of `instance-norm`.
pub(crate) fn instance(args: &BackwardInstance) -> Result<()> {
    let job = Job::open(&args.gradients, args.layout, [&None, &None])?;
    let norm = job.input.options(&args.gradients.common, InstanceNorm::new(job.input.geometry.channels));
    job.run("instance-norm", true, |io| Ok(norm.backward(io)?))
}

struct Job<'a> {
    args: &'a Gradients,
    input: Input,
    dy: Tensor,
}

impl<'a> Job<'a> {
    /// Opens everything and refuses outputs that would replace an input.
    fn open(args: &'a Gradients, layout: Layout, running: [&'a Option<Place>; 2]) -> Result<Self> {
        args.check(None, running.into_iter().flatten())?;
        let input = Input::open(&args.common, layout, &None, running)?;
        let dy = Tensor::open(&args.dy, args.common.bf16)?;
        dy.expect_shape(&input.x)?;
        Geometry::of(&dy, layout)?;
        let job = Job { args, input, dy };
        check_distinct(&args.places(None), &job.all())?;
        Ok(job)
    }

    fn all(&self) -> Vec<&Tensor> {
        self.input.all().into_iter().chain([&self.dy]).collect()
    }

    /// Samples whose dx does not depend on the others are streamed; the gradients of weight and bias need them all,
    /// so that everything is mapped whole then, and the system pages it.
    fn run(
        &self,
        norm: &'static str,
        independent: bool,
        backward: impl Fn(PlaneBackwardIo<'_>) -> Result<()>,
    ) -> Result<()> {
        let Job { args, input: Input { x, geometry, machine, weight_file, .. }, dy } = self;
        let dx_type = args.dx_type(x.dtype);
        let weight = weight_file.as_ref();
        let param_type = args.param_type(weight.map(|weight| weight.dtype), x.dtype);
        let mut params = Params::new(args, param_type, geometry.channels);
        let call = |inputs: &[Buffer], outputs: &mut [Buffer], params: Option<&mut Params>| {
            let dx = geometry.write(outputs[0].slice_mut());
            let mut io = PlaneBackwardIo::new(geometry.read(inputs[0].slice()), geometry.read(inputs[1].slice()), dx);
            let [dweight, dbias] = params.map_or([None, None], Params::slices);
            if let Some(dweight) = dweight {
                io = io.dweight(dweight);
            }
            if let Some(dbias) = dbias {
                io = io.dbias(dbias);
            }
            backward(io)
        };
        let empty = [x.dtype, dy.dtype].map(|dtype| Buffer::zeroed(dtype, 0));
        call(&empty, &mut [Buffer::zeroed(dx_type, 0)], Some(&mut params))?;
        let files = Files::create(args, None, x, weight, &[geometry.channels])?;
        let stream = Stream {
            inputs: vec![x, dy],
            outputs: vec![(files.like_x(0), dx_type)],
            beside: files.any(),
            unit: geometry.channels * geometry.spatial,
            units: geometry.samples,
        };
        let digests = vec![Digest::new(machine.threads)];
        let done = if independent && !params.are_wanted() {
            stream.run(digests, |_, inputs, outputs| call(inputs, outputs, None))?
        } else {
            stream.run_whole(digests, |inputs, outputs| call(inputs, outputs, Some(&mut params)))?
        };
        let traffic = x.dtype.size() + dy.dtype.size() + dx_type.size();
        Call { norm, args, inputs: self.all(), machine, traffic }.finish(files, &params, done)
    }
}
