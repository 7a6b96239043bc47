//! `isonorm backward`: what the backward passes of all norms share. Each norm's own half is beside its forward pass.

use std::path::PathBuf;

use isonorm::{DType, SliceMut};

use crate::args::{Backward, Gradients};
use crate::error::{Error, Result};
use crate::output::{self, Output};
use crate::rows::Kind;
use crate::stream::Done;
use crate::summary::{Digest, Finished, Machine, Written};
use crate::tensor::{Buffer, Place, Tensor};
use crate::{planes, rows};

/// Runs the backward pass of one norm from files to files.
pub(crate) fn run(norm: &Backward) -> Result<()> {
    match norm {
        Backward::RmsNorm(args) => rows::backward::run(Kind::Rms, args),
        Backward::LayerNorm(args) => rows::backward::run(Kind::Layer, args),
        Backward::BatchNorm(args) => planes::backward::batch(args),
        Backward::GroupNorm(args) => planes::backward::group(args),
        Backward::InstanceNorm(args) => planes::backward::instance(args),
    }
}

/// The gradients of weight and bias that are asked for, in memory.
pub(crate) struct Params {
    pub(crate) dweight: Option<Buffer>,
    pub(crate) dbias: Option<Buffer>,
}

impl Params {
    pub(crate) fn new(args: &Gradients, dtype: DType, len: usize) -> Self {
        let zeros = |place: &Option<Place>| place.as_ref().map(|_| Buffer::zeroed(dtype, len));
        Params { dweight: zeros(&args.dweight), dbias: zeros(&args.dbias) }
    }

    /// Whether any is asked for.
    pub(crate) fn are_wanted(&self) -> bool {
        self.dweight.is_some() || self.dbias.is_some()
    }

    /// dweight and dbias, for the library to write to.
    pub(crate) fn slices(&mut self) -> [Option<SliceMut<'_>>; 2] {
        [self.dweight.as_mut().map(Buffer::slice_mut), self.dbias.as_mut().map(Buffer::slice_mut)]
    }
}

/// The file of a gradient.
struct File {
    name: &'static str,
    path: PathBuf,
    dtype: DType,
    output: Output,
}

impl File {
    fn create(name: &'static str, place: &Place, dtype: DType, shape: &[usize], bf16: bool) -> Result<Self> {
        let tensor = (place.name.clone().unwrap_or_else(|| name.to_owned()), dtype, shape.to_vec());
        let output = Output::create(place, vec![tensor], bf16)?;
        Ok(File { name, path: place.path.clone(), dtype, output })
    }

    fn written(&self, digest: &Digest) -> Written {
        Written::new(self.name, self.dtype, &self.path, digest)
    }
}

/// The files of all gradients that are written.
pub(crate) struct Files {
    /// dx, and the gradient of the residual.
    like_x: [Option<File>; 2],
    /// dweight and dbias.
    params: [Option<File>; 2],
}

impl Files {
    /// Makes them; `weight` has the shape of dweight and dbias, or `shape` where there is none.
    pub(crate) fn create(
        args: &Gradients,
        dr: Option<&Place>,
        x: &Tensor,
        weight: Option<&Tensor>,
        shape: &[usize],
    ) -> Result<Self> {
        let bf16 = args.common.bf16;
        let like_x = |name, place: Option<&Place>, dtype| {
            place.map(|place| File::create(name, place, dtype, &x.shape, bf16)).transpose()
        };
        let dtype = args.param_type(weight.map(|weight| weight.dtype), x.dtype);
        let shape = weight.map_or(shape, |weight| &weight.shape);
        let param = |name, place: &Option<Place>| {
            let file = place.as_ref().map(|place| File::create(name, place, dtype, shape, bf16)).transpose();
            file.map_err(|error| match error {
                Error::NpyBf16 { path, .. } => Error::NpyBf16 { path, flag: "--param-dtype" },
                error => error,
            })
        };
        Ok(Files {
            like_x: [like_x("dx", args.dx.as_ref(), args.dx_type(x.dtype))?, like_x("dr", dr, x.dtype)?],
            params: [param("dweight", &args.dweight)?, param("dbias", &args.dbias)?],
        })
    }

    /// dx or the gradient of the residual, where it is written.
    pub(crate) fn like_x(&self, index: usize) -> Option<&Output> {
        self.like_x[index].as_ref().map(|file| &file.output)
    }

    /// Any of them.
    pub(crate) fn any(&self) -> Option<&Output> {
        self.like_x.iter().chain(&self.params).flatten().map(|file| &file.output).next()
    }

    /// Writes the gradients of weight and bias, puts all files in their places, and lists them.
    fn finish(self, digests: &[Digest], params: &Params, threads: usize) -> Result<Vec<Written>> {
        let Files { like_x, params: files } = self;
        let written = like_x.iter().zip(digests).filter_map(|(file, digest)| Some(file.as_ref()?.written(digest)));
        let mut written: Vec<Written> = written.collect();
        for (file, value) in files.iter().zip([&params.dweight, &params.dbias]) {
            if let (Some(file), Some(value)) = (file, value) {
                file.output.write(0, 0, value.bytes())?;
                let mut digest = Digest::new(threads);
                digest.update(value.bytes());
                written.push(file.written(&digest));
            }
        }
        let [dx, dr] = like_x;
        let outputs = dr.into_iter().chain(files.into_iter().flatten()).chain(dx).map(|file| file.output).collect();
        output::finish(outputs)?;
        Ok(written)
    }
}

/// A backward call whose work is done.
pub(crate) struct Call<'a> {
    pub(crate) norm: &'static str,
    pub(crate) args: &'a Gradients,
    pub(crate) inputs: Vec<&'a Tensor>,
    pub(crate) machine: &'a Machine,
    /// Bytes read and written for each element of x.
    pub(crate) traffic: usize,
}

impl Call<'_> {
    /// Puts the files in their places, unless an input has changed, and reports.
    pub(crate) fn finish(self, files: Files, params: &Params, (time, digests): Done) -> Result<()> {
        self.inputs.iter().try_for_each(|input| input.check_unchanged())?;
        let outputs = files.finish(&digests, params, self.machine.threads)?;
        let x = self.inputs[0];
        let finished = Finished {
            norm: format!("backward {}", self.norm),
            shape: x.shape.clone(),
            dtype: x.dtype,
            output_dtype: self.args.dx_type(x.dtype),
            traffic: self.traffic,
            time,
            outputs,
        };
        finished.report(self.machine, self.args.common.json)
    }
}
