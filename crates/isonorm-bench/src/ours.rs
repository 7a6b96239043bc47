//! isonorm, called as a program calls it.

use std::time::Duration;

use bytemuck::Pod;
use half::bf16;
use isonorm::{
    BackwardIo, BatchNorm, Cpu, Element, Error, Io, LayerNorm, Level, PlaneBackwardIo, PlaneIo, Planes, PlanesMut,
    RmsNorm, Stats,
};
use rayon::ThreadPool;

use crate::cells::{Cell, Dtype, EPS, Layout, Op, Pass};
use crate::memory::{Inputs, Outputs};
use crate::timing::{Contestant, Role, repeat};

/// The level that is timed: the fastest, or the one `ISONORM_LEVEL` names.
pub(crate) fn level() -> String {
    std::env::var("ISONORM_LEVEL").unwrap_or_else(|_| Level::detect().to_string())
}

/// BLAKE3 of the results, which have to be the same on every level, on each of `threads`.
/// The results stay in `outputs`.
pub(crate) fn digest(cell: &Cell, inputs: &Inputs, outputs: &mut Outputs, threads: &[usize]) -> Result<String, String> {
    let mut first: Option<(blake3::Hash, String)> = None;
    for level in Level::available() {
        for threads in threads {
            outputs.scrub();
            let cpu = Cpu::new().level(level).threads(*threads);
            let mut stats = stats(cell, inputs);
            run(cell, inputs, outputs, &mut stats, cpu).map_err(|error| format!("isonorm: {error}"))?;
            let mut hasher = blake3::Hasher::new();
            for tensor in outputs.bytes() {
                hasher.update(tensor);
            }
            let (found, whose) = (hasher.finalize(), format!("{level}, {threads} threads"));
            match &first {
                None => first = Some((found, whose)),
                Some((expected, _)) if *expected == found => {}
                Some((expected, other)) => {
                    return Err(format!("isonorm: {expected} on {other}, {found} on {whose}"));
                }
            }
        }
    }
    first.map(|(hash, _)| hash.to_string()).ok_or_else(|| "isonorm has no level here".to_string())
}

/// isonorm with the threads of `pool`; the second, where there are threads to hand work to, is
/// called inside that pool as the peers are, the first from outside any.
pub(crate) fn contestants<'a>(cell: &Cell, inputs: &'a Inputs, pool: &'a ThreadPool) -> Vec<Contestant<'a>> {
    let threads = pool.current_num_threads();
    let mut outside = sample(cell, inputs, threads);
    let mut contestants = vec![Contestant {
        name: "isonorm".to_string(),
        role: Role::Isonorm,
        run: Box::new(move |calls, outputs| outside(calls, outputs)),
    }];
    if threads > 1 {
        let mut inside = sample(cell, inputs, threads);
        contestants.push(Contestant {
            name: "isonorm (called in a pool)".to_string(),
            role: Role::IsonormInPool,
            run: Box::new(move |calls, outputs| pool.install(|| inside(calls, outputs))),
        });
    }
    contestants
}

fn sample<'a>(
    cell: &Cell,
    inputs: &'a Inputs,
    threads: usize,
) -> impl FnMut(usize, &mut Outputs) -> Duration + Send + use<'a> {
    let (cell, mut stats) = (*cell, stats(cell, inputs));
    move |calls, outputs| {
        repeat(calls, || {
            run(&cell, inputs, outputs, &mut stats, Cpu::new().threads(threads)).expect("checked before");
        })
    }
}

/// Where the statistics go between the passes; for a backward pass alone, those of `inputs`.
fn stats(cell: &Cell, inputs: &Inputs) -> Vec<Stats<f32>> {
    let len = if cell.pass.is_backward() { cell.groups() } else { 0 };
    let mut stats = vec![Stats::default(); len];
    if cell.pass == Pass::Backward {
        let both = Cell { pass: Pass::ForwardBackward, ..*cell };
        run(&both, inputs, &mut Outputs::new(&both, inputs), &mut stats, Cpu::new()).expect("the inputs fit the cell");
    }
    stats
}

fn run(cell: &Cell, inputs: &Inputs, out: &mut Outputs, stats: &mut [Stats<f32>], cpu: Cpu<'_>) -> Result<(), Error> {
    match (cell.dtype, cell.pass) {
        (Dtype::F32, Pass::Forward) => forward::<f32>(cell, inputs, out, cpu),
        (Dtype::Bf16, Pass::Forward) => forward::<bf16>(cell, inputs, out, cpu),
        (Dtype::F32, _) => backward::<f32>(cell, inputs, out, stats, cpu),
        (Dtype::Bf16, _) => backward::<bf16>(cell, inputs, out, stats, cpu),
    }
}

fn rms_norm<'a, E: Element + Pod>(cell: &Cell, inputs: &'a Inputs, cpu: Cpu<'a>) -> RmsNorm<'a> {
    RmsNorm::new(cell.hidden).eps(f64::from(EPS)).weight(inputs.weight.as_slice::<E>()).on(cpu)
}

fn layer_norm<'a, E: Element + Pod>(cell: &Cell, inputs: &'a Inputs, cpu: Cpu<'a>) -> LayerNorm<'a> {
    let (weight, bias) = (inputs.weight.as_slice::<E>(), inputs.bias.as_slice::<E>());
    LayerNorm::new(cell.hidden).eps(f64::from(EPS)).weight(weight).bias(bias).on(cpu)
}

fn batch_norm<'a, E: Element + Pod>(cell: &Cell, inputs: &'a Inputs, cpu: Cpu<'a>) -> BatchNorm<'a> {
    let (weight, bias) = (inputs.weight.as_slice::<E>(), inputs.bias.as_slice::<E>());
    BatchNorm::new(cell.params).eps(f64::from(EPS)).weight(weight).bias(bias).on(cpu)
}

fn planes<'a, E: Element>(cell: &Cell, x: &'a [E]) -> Planes<'a> {
    match cell.layout {
        Layout::ChannelsLast => Planes::channels_last(x, cell.params, cell.hidden),
        _ => Planes::channels_first(x, cell.params, cell.hidden),
    }
}

fn planes_mut<'a, E: Element>(cell: &Cell, y: &'a mut [E]) -> PlanesMut<'a> {
    match cell.layout {
        Layout::ChannelsLast => PlanesMut::channels_last(y, cell.params, cell.hidden),
        _ => PlanesMut::channels_first(y, cell.params, cell.hidden),
    }
}

fn forward<E: Element + Pod>(cell: &Cell, inputs: &Inputs, out: &mut Outputs, cpu: Cpu<'_>) -> Result<(), Error> {
    let (x, y) = (inputs.x.as_slice::<E>(), out.y.as_mut_slice::<E>());
    match cell.op {
        Op::RmsNorm => rms_norm::<E>(cell, inputs, cpu).forward(x, y),
        Op::AddRmsNorm => {
            let (residual, sum) = (inputs.residual.as_slice::<E>(), out.sum.as_mut_slice::<E>());
            rms_norm::<E>(cell, inputs, cpu).apply(Io::add(x, residual, sum, y))
        }
        Op::LayerNorm => layer_norm::<E>(cell, inputs, cpu).forward(x, y),
        Op::BatchNormEval => {
            let io = PlaneIo::new(planes(cell, x), planes_mut(cell, y));
            let (mean, var) = (inputs.mean.as_slice::<E>(), inputs.var.as_slice::<E>());
            batch_norm::<E>(cell, inputs, cpu).evaluate(io, mean, var)
        }
        Op::BatchNormTrain => {
            let io = PlaneIo::new(planes(cell, x), planes_mut(cell, y));
            batch_norm::<E>(cell, inputs, cpu).train(io, None)
        }
    }
}

/// The backward pass with its gradients, and before it, where the cell has one, the forward pass that
/// saves `stats` for it.
fn backward<E: Element + Pod>(
    cell: &Cell,
    inputs: &Inputs,
    out: &mut Outputs,
    stats: &mut [Stats<f32>],
    cpu: Cpu<'_>,
) -> Result<(), Error> {
    let (x, dy) = (inputs.x.as_slice::<E>(), inputs.dy.as_slice::<E>());
    let (y, dx) = (out.y.as_mut_slice::<E>(), out.dx.as_mut_slice::<E>());
    let (dweight, dbias) = (out.dweight.as_mut_slice::<E>(), out.dbias.as_mut_slice::<E>());
    let is_forward = cell.pass.is_forward();
    match cell.op {
        Op::RmsNorm => {
            let norm = rms_norm::<E>(cell, inputs, cpu);
            if is_forward {
                norm.apply(Io::new(x, y).stats(&mut *stats))?;
            }
            norm.backward(BackwardIo::new(x, dy, dx).stats(&*stats).dweight(dweight))
        }
        Op::LayerNorm => {
            let norm = layer_norm::<E>(cell, inputs, cpu);
            if is_forward {
                norm.apply(Io::new(x, y).stats(&mut *stats))?;
            }
            norm.backward(BackwardIo::new(x, dy, dx).stats(&*stats).dweight(dweight).dbias(dbias))
        }
        Op::BatchNormTrain => {
            let norm = batch_norm::<E>(cell, inputs, cpu);
            if is_forward {
                norm.train(PlaneIo::new(planes(cell, x), planes_mut(cell, y)).stats(&mut *stats), None)?;
            }
            let io = PlaneBackwardIo::new(planes(cell, x), planes(cell, dy), planes_mut(cell, dx));
            norm.train_backward(io.stats(&*stats).dweight(dweight).dbias(dbias))
        }
        Op::AddRmsNorm | Op::BatchNormEval => unreachable!("no cell has their backward pass"),
    }
}
