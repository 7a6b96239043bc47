//! `batch-norm`, `group-norm` and `instance-norm`: channels of samples, in either layout.

pub(crate) mod backward;

use isonorm::{BatchNorm, DType, GroupNorm, InstanceNorm, PlaneIo, Planes, PlanesMut, Running, Slice, SliceMut};

use crate::args::{Batch, Common, Forward, Group, Instance, Layout};
use crate::error::{Error, Result};
use crate::output::{self, Output, check_distinct};
use crate::rows::param;
use crate::stats::{Column, Saved, StatsFile};
use crate::stream::{Done, Stream};
use crate::summary::{Digest, Finished, Machine, Written};
use crate::tensor::{Buffer, Place, Tensor};

/// Runs `batch-norm`.
pub(crate) fn batch(args: &Batch) -> Result<()> {
    check_batch(args)?;
    let mut input = Input::of(&args.forward, args.layout, [&args.running_mean, &args.running_var])?;
    let running = input.running.take();
    let norm = batch_norm(args, &input);
    match running {
        Some((mean, var)) if args.eval => {
            input.by_sample("batch-norm", &args.forward, None, |io| Ok(norm.evaluate(io, mean.slice(), var.slice())?))
        }
        running => train(&norm, running, &input, &args.forward),
    }
}

/// Refuses options of training in evaluation, and updates that would be written nowhere.
fn check_batch(args: &Batch) -> Result<()> {
    let saves = args.forward.save_stats.is_some();
    if args.running_mean.is_some() && !args.eval && !saves {
        let found = "training updates the running statistics, but they are written nowhere";
        return Err(Error::usage(found, "add --save-stats S.safetensors, or --eval to use them unchanged"));
    }
    let of_training = [
        (saves, "--save-stats", "computes no statistics to save"),
        (args.momentum.is_some(), "--momentum", "updates no running statistics, so it has no momentum"),
        (args.cumulative.is_some(), "--cumulative", "updates no running statistics, so it averages none"),
        (args.biased_running_var, "--biased-running-var", "updates no running variance, biased or not"),
    ];
    match of_training.into_iter().find(|(given, ..)| args.eval && *given) {
        Some((_, flag, why)) => Err(Error::usage(format!("--eval {why}"), format!("leave out {flag} or --eval"))),
        None => Ok(()),
    }
}

fn batch_norm<'a>(args: &Batch, input: &'a Input) -> BatchNorm<'a> {
    let mut norm = input.options(&args.forward.common, BatchNorm::new(input.geometry.channels));
    if let Some(momentum) = args.momentum {
        norm = norm.momentum(momentum);
    }
    if let Some(seen) = args.cumulative {
        norm = norm.cumulative(seen);
    }
    if args.biased_running_var { norm.biased_running_var() } else { norm }
}

/// Every channel needs the whole batch, so the input and the output are mapped whole and the kernel pages them.
fn train(norm: &BatchNorm<'_>, mut running: Option<(Buffer, Buffer)>, input: &Input, args: &Forward) -> Result<()> {
    let Input { x, geometry, .. } = input;
    let more = running.iter().flat_map(|(mean, var)| [("running_mean", mean), ("running_var", var)]);
    let more = more.map(|(name, value)| (name.to_owned(), value.slice().dtype(), vec![geometry.channels])).collect();
    let columns = [Column::Mean, Column::Var];
    let stats = args.save_stats.as_ref();
    let stats =
        stats.map(|place| StatsFile::create(place, &columns, x.dtype, &[geometry.channels], more)).transpose()?;
    let y = input.create_output(args)?;
    let mut saved = Saved::new(x.dtype, geometry.channels);
    let done = input.stream(&y, args).run_whole(input.digests(), |inputs, outputs| {
        let io = PlaneIo::new(geometry.read(inputs[0].slice()), geometry.write(outputs[0].slice_mut()));
        let updates = running.as_mut().map(|(mean, var)| Running::new(mean.slice_mut(), var.slice_mut()));
        Ok(norm.train(io.stats(saved.as_mut()), updates)?)
    })?;
    if let Some(stats) = &stats {
        stats.write(0, &saved)?;
        for (i, value) in running.iter().flat_map(|(mean, var)| [mean, var]).enumerate() {
            stats.output.write(columns.len() + i, 0, value.bytes())?;
        }
    }
    input.check_unchanged()?;
    output::finish(stats.map(|stats| stats.output).into_iter().chain([y]).collect())?;
    input.report("batch-norm", args, done)
}

/// Runs `group-norm`.
pub(crate) fn group(args: &Group) -> Result<()> {
    let input = Input::of(&args.forward, args.layout, [&None, &None])?;
    let norm = input.options(&args.forward.common, GroupNorm::new(args.groups, input.geometry.channels));
    input.by_sample("group-norm", &args.forward, Some(args.groups), |io| Ok(norm.apply(io)?))
}

/// Runs `instance-norm`.
pub(crate) fn instance(args: &Instance) -> Result<()> {
    let input = Input::of(&args.forward, args.layout, [&None, &None])?;
    let norm = input.options(&args.forward.common, InstanceNorm::new(input.geometry.channels));
    input.by_sample("instance-norm", &args.forward, Some(input.geometry.channels), |io| Ok(norm.apply(io)?))
}

/// Which axis is what.
#[derive(Debug, Clone, Copy)]
struct Geometry {
    layout: Layout,
    samples: usize,
    channels: usize,
    spatial: usize,
}

impl Geometry {
    fn of(x: &Tensor, layout: Layout) -> Result<Self> {
        let refuse = |expected: &str| {
            Err(Error::Shape { at: x.place.to_string(), found: x.shape.clone(), expected: expected.to_owned() })
        };
        if x.fortran {
            return refuse("it in row-major order: save numpy.ascontiguousarray(x)");
        }
        match (layout, x.shape.as_slice()) {
            (Layout::Nchw, [samples, channels, spatial @ ..]) | (Layout::Nhwc, [samples, spatial @ .., channels]) => {
                let spatial = spatial.iter().product();
                Ok(Geometry { layout, samples: *samples, channels: *channels, spatial })
            }
            _ => refuse("at least two axes, samples and channels"),
        }
    }

    fn read<'a>(&self, x: Slice<'a>) -> Planes<'a> {
        match self.layout {
            Layout::Nchw => Planes::channels_first(x, self.channels, self.spatial),
            Layout::Nhwc => Planes::channels_last(x, self.channels, self.spatial),
        }
    }

    fn write<'a>(&self, y: SliceMut<'a>) -> PlanesMut<'a> {
        match self.layout {
            Layout::Nchw => PlanesMut::channels_first(y, self.channels, self.spatial),
            Layout::Nhwc => PlanesMut::channels_last(y, self.channels, self.spatial),
        }
    }
}

/// The input with what every norm of channels takes.
struct Input {
    machine: Machine,
    x: Tensor,
    geometry: Geometry,
    weight: Option<Buffer>,
    bias: Option<Buffer>,
    /// The running mean and variance.
    running: Option<(Buffer, Buffer)>,
    weight_file: Option<Tensor>,
    /// The files of the others.
    others: Vec<Tensor>,
}

impl Input {
    /// Opens all that a forward call reads, and refuses outputs that would replace an input.
    fn of(args: &Forward, layout: Layout, running: [&Option<Place>; 2]) -> Result<Self> {
        let Forward { common, output, bias, save_stats, .. } = args;
        common.check_bf16([output].into_iter().chain(bias).chain(running.into_iter().flatten()))?;
        let input = Self::open(common, layout, bias, running)?;
        let outputs: Vec<&Place> = [output].into_iter().chain(save_stats).collect();
        check_distinct(&outputs, &input.all())?;
        Ok(input)
    }

    fn open(common: &Common, layout: Layout, bias: &Option<Place>, [mean, var]: [&Option<Place>; 2]) -> Result<Self> {
        let machine = Machine::new(common.threads, common.level);
        let open = |place: &Option<Place>| place.as_ref().map(|place| Tensor::open(place, common.bf16)).transpose();
        let x = Tensor::open(&common.x, common.bf16)?;
        let (weight, bias, mean, var) = (open(&common.weight)?, open(bias)?, open(mean)?, open(var)?);
        let geometry = Geometry::of(&x, layout)?;
        let load =
            |tensor: &Option<Tensor>| tensor.as_ref().map(|tensor| param(tensor, &[geometry.channels])).transpose();
        let params = (load(&weight)?, load(&bias)?, load(&mean)?.zip(load(&var)?));
        let (weight_file, others) = (weight, [bias, mean, var].into_iter().flatten().collect());
        let (weight, bias, running) = params;
        Ok(Input { machine, x, geometry, weight, bias, running, weight_file, others })
    }

    /// All files.
    fn all(&self) -> Vec<&Tensor> {
        [&self.x].into_iter().chain(&self.weight_file).chain(&self.others).collect()
    }

    /// Refuses inputs that somebody changed meanwhile.
    fn check_unchanged(&self) -> Result<()> {
        self.all().into_iter().try_for_each(Tensor::check_unchanged)
    }

    fn options<'a, N: Options<'a>>(&'a self, common: &Common, norm: N) -> N {
        let mut norm = norm.cpu(&self.machine);
        if let Some(eps) = common.eps {
            norm = norm.with_eps(eps);
        }
        if common.eps_outside {
            norm = norm.outside();
        }
        if let Some(weight) = &self.weight {
            norm = norm.with_weight(weight.slice());
        }
        match &self.bias {
            Some(bias) => norm.with_bias(bias.slice()),
            None => norm,
        }
    }

    fn y_type(&self, args: &Forward) -> DType {
        args.dtype.map_or(self.x.dtype, DType::from)
    }

    fn create_output(&self, args: &Forward) -> Result<Output> {
        let name = args.output.name.clone().unwrap_or_else(|| "y".to_owned());
        Output::create(&args.output, vec![(name, self.y_type(args), self.x.shape.clone())], args.common.bf16)
    }

    /// From x to y, sample by sample or whole.
    fn stream<'a>(&'a self, y: &'a Output, args: &Forward) -> Stream<'a> {
        let (unit, units) = (self.geometry.channels * self.geometry.spatial, self.geometry.samples);
        Stream { inputs: vec![&self.x], outputs: vec![(Some(y), self.y_type(args))], beside: Some(y), unit, units }
    }

    fn digests(&self) -> Vec<Digest> {
        vec![Digest::new(self.machine.threads)]
    }

    /// Samples are normalized independently, so they are streamed; `groups` statistics each can be saved.
    fn by_sample(
        &self,
        name: &'static str,
        args: &Forward,
        groups: Option<usize>,
        apply: impl Fn(PlaneIo<'_>) -> Result<()>,
    ) -> Result<()> {
        let Input { x, geometry, .. } = self;
        let (empty, mut nothing) = (Buffer::zeroed(x.dtype, 0), Buffer::zeroed(self.y_type(args), 0));
        apply(PlaneIo::new(geometry.read(empty.slice()), geometry.write(nothing.slice_mut())))?;
        let y = self.create_output(args)?;
        let stats = args.save_stats.as_ref().zip(groups);
        let stats = stats.map(|(place, groups)| {
            let columns = [Column::Mean, Column::Rstd];
            let file = StatsFile::create(place, &columns, x.dtype, &[geometry.samples, groups], Vec::new())?;
            Ok::<_, Error>((file, groups))
        });
        let stats = stats.transpose()?;
        let done = self.stream(&y, args).run(self.digests(), |samples, inputs, outputs| {
            let io = PlaneIo::new(geometry.read(inputs[0].slice()), geometry.write(outputs[0].slice_mut()));
            let Some((file, groups)) = &stats else { return apply(io) };
            let mut saved = Saved::new(x.dtype, samples.len() * groups);
            apply(io.stats(saved.as_mut()))?;
            file.write(samples.start * groups, &saved)
        })?;
        self.check_unchanged()?;
        output::finish(stats.map(|(stats, _)| stats.output).into_iter().chain([y]).collect())?;
        self.report(name, args, done)
    }

    fn report(&self, norm: &str, args: &Forward, (time, digests): Done) -> Result<()> {
        let (dtype, output_dtype) = (self.x.dtype, self.y_type(args));
        let traffic = dtype.size() + output_dtype.size();
        let outputs = digests.iter().map(|digest| Written::new("y", output_dtype, &args.output.path, digest)).collect();
        let (norm, shape) = (norm.to_owned(), self.x.shape.clone());
        Finished { norm, shape, dtype, output_dtype, traffic, time, outputs }.report(&self.machine, args.common.json)
    }
}

/// The options that the norms of channels share.
trait Options<'a>: Sized {
    fn cpu(self, machine: &Machine) -> Self;
    fn with_eps(self, eps: f64) -> Self;
    fn outside(self) -> Self;
    fn with_weight(self, weight: Slice<'a>) -> Self;
    fn with_bias(self, bias: Slice<'a>) -> Self;
}

macro_rules! options {
    ($($norm:ident),*) => {$(
        impl<'a> Options<'a> for $norm<'a> {
            fn cpu(self, machine: &Machine) -> Self {
                self.on(machine.cpu())
            }
            fn with_eps(self, eps: f64) -> Self {
                self.eps(eps)
            }
            fn outside(self) -> Self {
                self.eps_outside()
            }
            fn with_weight(self, weight: Slice<'a>) -> Self {
                self.weight(weight)
            }
            fn with_bias(self, bias: Slice<'a>) -> Self {
                self.bias(bias)
            }
        }
    )*};
}

options!(BatchNorm, GroupNorm, InstanceNorm);
