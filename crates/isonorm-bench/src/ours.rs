//! isonorm, called as a program calls it.

use bytemuck::Pod;
use half::bf16;
use isonorm::{BatchNorm, Cpu, Element, Error, Io, LayerNorm, Level, PlaneIo, Planes, PlanesMut, RmsNorm};
use rayon::ThreadPool;

use crate::cells::{Cell, Dtype, EPS, Op};
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
            forward(cell, inputs, outputs, cpu).map_err(|error| format!("isonorm: {error}"))?;
            let mut hasher = blake3::Hasher::new();
            hasher.update(outputs.y.bytes()).update(outputs.sum.bytes());
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
    let (cell, threads) = (*cell, pool.current_num_threads());
    let sample = move |calls: usize, outputs: &mut Outputs| {
        repeat(calls, || {
            forward(&cell, inputs, outputs, Cpu::new().threads(threads)).expect("checked before");
        })
    };
    let mut contestants = vec![Contestant { name: "isonorm".to_string(), role: Role::Isonorm, run: Box::new(sample) }];
    if threads > 1 {
        contestants.push(Contestant {
            name: "isonorm (called in a pool)".to_string(),
            role: Role::IsonormInPool,
            run: Box::new(move |calls, outputs| pool.install(|| sample(calls, outputs))),
        });
    }
    contestants
}

fn forward(cell: &Cell, inputs: &Inputs, out: &mut Outputs, cpu: Cpu<'_>) -> Result<(), Error> {
    match cell.dtype {
        Dtype::F32 => forward_typed::<f32>(cell, inputs, out, cpu),
        Dtype::Bf16 => forward_typed::<bf16>(cell, inputs, out, cpu),
    }
}

fn forward_typed<E: Element + Pod>(cell: &Cell, inputs: &Inputs, out: &mut Outputs, cpu: Cpu<'_>) -> Result<(), Error> {
    let (x, y) = (inputs.x.as_slice::<E>(), out.y.as_mut_slice::<E>());
    let (weight, bias) = (inputs.weight.as_slice::<E>(), inputs.bias.as_slice::<E>());
    let eps = f64::from(EPS);
    let rms_norm = RmsNorm::new(cell.hidden).eps(eps).weight(weight).on(cpu);
    match cell.op {
        Op::RmsNorm => rms_norm.forward(x, y),
        Op::AddRmsNorm => {
            let (residual, sum) = (inputs.residual.as_slice::<E>(), out.sum.as_mut_slice::<E>());
            rms_norm.apply(Io::add(x, residual, sum, y))
        }
        Op::LayerNorm => LayerNorm::new(cell.hidden).eps(eps).weight(weight).bias(bias).on(cpu).forward(x, y),
        Op::BatchNormEval => {
            let (channels, plane) = (cell.params, cell.hidden);
            let x = Planes::channels_first(x, channels, plane);
            let y = PlanesMut::channels_first(y, channels, plane);
            let (mean, var) = (inputs.mean.as_slice::<E>(), inputs.var.as_slice::<E>());
            BatchNorm::new(channels).eps(eps).weight(weight).bias(bias).on(cpu).evaluate(PlaneIo::new(x, y), mean, var)
        }
    }
}
