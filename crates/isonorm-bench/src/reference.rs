//! What every contestant's result is held against before it is timed: the definition in f64.
//! Loose on purpose. It says that they all compute the same thing; the library's own tests say
//! how exactly.

use half::bf16;

use crate::cells::{Cell, Dtype, EPS, Op};
use crate::memory::Inputs;

/// The result by definition, computed in f64.
pub(crate) fn reference(cell: &Cell, inputs: &Inputs) -> Vec<f32> {
    let mut x = inputs.x.to_f32();
    let residual = inputs.residual.to_f32();
    for (x, residual) in x.iter_mut().zip(&residual) {
        *x = stored(cell.dtype, *x + residual);
    }
    let [weight, bias, mean, var] =
        [&inputs.weight, &inputs.bias, &inputs.mean, &inputs.var].map(|buffer| buffer.to_f32());
    let at = |values: &[f32], i: usize, missing: f64| values.get(i).map_or(missing, |value| f64::from(*value));
    for (r, row) in x.chunks_mut(cell.hidden).enumerate() {
        let channel = r % cell.params;
        let (mean, var) = match cell.op {
            Op::BatchNormEval => (at(&mean, channel, 0.0), at(&var, channel, 1.0)),
            Op::LayerNorm => {
                let mean = average(row, |v| v);
                (mean, average(row, |v| (v - mean).powi(2)))
            }
            Op::RmsNorm | Op::AddRmsNorm => (0.0, average(row, |v| v * v)),
        };
        let rstd = 1.0 / (var + f64::from(EPS)).sqrt();
        for (i, v) in row.iter_mut().enumerate() {
            let p = if cell.op == Op::BatchNormEval { channel } else { i };
            *v = ((f64::from(*v) - mean) * rstd * at(&weight, p, 1.0) + at(&bias, p, 0.0)) as f32;
        }
    }
    x
}

/// Says where `found` is not the operation.
pub(crate) fn compare(dtype: Dtype, found: &[f32], expected: &[f32]) -> Result<(), String> {
    // bf16 has 8 bits; a contestant that rounds at every step loses two or three of them.
    let tolerance = match dtype {
        Dtype::F32 => 1e-4,
        Dtype::Bf16 => 3e-2,
    };
    if found.len() != expected.len() {
        return Err(format!("{} elements instead of {}", found.len(), expected.len()));
    }
    let close = |(f, e): (&f32, &f32)| (f - e).abs() <= tolerance * e.abs().max(1.0);
    match found.iter().zip(expected).position(|pair| !close(pair)) {
        Some(i) => Err(format!("element {i} is {} instead of {}", found[i], expected[i])),
        None => Ok(()),
    }
}

fn average(row: &[f32], term: impl Fn(f64) -> f64) -> f64 {
    row.iter().map(|v| term(f64::from(*v))).sum::<f64>() / row.len() as f64
}

fn stored(dtype: Dtype, value: f32) -> f32 {
    match dtype {
        Dtype::F32 => value,
        Dtype::Bf16 => bf16::from_f32(value).to_f32(),
    }
}
