//! What every contestant's results are held against before it is timed: the definition in f64.
//! Loose on purpose. It says that they all compute the same thing; the library's own tests say
//! how exactly.

use half::bf16;

use crate::cells::{Cell, Dtype, EPS, Op};
use crate::memory::{Buffer, Inputs, Results};

/// The results by definition, computed in f64.
pub(crate) fn reference(cell: &Cell, inputs: &Inputs) -> Results {
    let norm = Norm::new(cell, inputs);
    let mut results = Results::default();
    if cell.pass.is_forward() {
        results.y = norm.forward(inputs);
    }
    if cell.pass.is_backward() {
        (results.dx, results.dweight, results.dbias) = norm.backward(inputs);
    }
    results
}

/// Says where `found` is not the operation.
pub(crate) fn compare(dtype: Dtype, found: &Results, expected: &Results) -> Result<(), String> {
    // bf16 has 8 bits; a contestant that rounds at every step loses two or three of them.
    let tolerance = match dtype {
        Dtype::F32 => 1e-4,
        Dtype::Bf16 => 3e-2,
    };
    let close = |name, found, expected, size| {
        compare_tensor(tolerance, found, expected, size).map_err(|what| format!("{name}: {what}"))
    };
    let own: Size = |e, _| e.abs();
    // A sum of thousands may be small where its terms are not.
    let largest: Size = |_, largest| largest;
    close("y", &found.y, &expected.y, own)?;
    close("dx", &found.dx, &expected.dx, own)?;
    close("dweight", &found.dweight, &expected.dweight, largest)?;
    close("dbias", &found.dbias, &expected.dbias, largest)
}

/// What the tolerance is a share of, where it is more than 1, from an element and the largest one.
type Size = fn(f32, f32) -> f32;

fn compare_tensor(tolerance: f32, found: &[f32], expected: &[f32], size: Size) -> Result<(), String> {
    if found.len() != expected.len() {
        return Err(format!("{} elements instead of {}", found.len(), expected.len()));
    }
    let largest = expected.iter().fold(0.0, |largest: f32, e| largest.max(e.abs()));
    let close = |(f, e): (&f32, &f32)| (f - e).abs() <= tolerance * size(*e, largest).max(1.0);
    match found.iter().zip(expected).position(|pair| !close(pair)) {
        Some(i) => Err(format!("element {i} is {} instead of {}", found[i], expected[i])),
        None => Ok(()),
    }
}

/// Everything per element and per group that both passes need.
struct Norm<'a> {
    cell: &'a Cell,
    x_hat: Vec<f64>,
    rstd: Vec<f64>,
    weight: Vec<f64>,
}

impl<'a> Norm<'a> {
    fn new(cell: &'a Cell, inputs: &Inputs) -> Norm<'a> {
        let mut x = widen(&inputs.x);
        for (x, residual) in x.iter_mut().zip(widen(&inputs.residual)) {
            *x = f64::from(stored(cell.dtype, (*x + residual) as f32));
        }
        let zero = vec![0.0; cell.groups()];
        let (mean, var) = match cell.op {
            Op::BatchNormEval => (widen(&inputs.mean), widen(&inputs.var)),
            Op::LayerNorm | Op::BatchNormTrain => {
                let mean = averages(cell, &x, |_, x| x);
                let var = averages(cell, &x, |i, x| (x - mean[cell.group(i)]).powi(2));
                (mean, var)
            }
            Op::RmsNorm | Op::AddRmsNorm => (zero, averages(cell, &x, |_, x| x * x)),
        };
        let rstd: Vec<f64> = var.iter().map(|var| 1.0 / (var + f64::from(EPS)).sqrt()).collect();
        for (i, x) in x.iter_mut().enumerate() {
            let group = cell.group(i);
            *x = (*x - mean[group]) * rstd[group];
        }
        Norm { cell, x_hat: x, rstd, weight: widen(&inputs.weight) }
    }

    fn forward(&self, inputs: &Inputs) -> Vec<f32> {
        let bias = widen(&inputs.bias);
        let y = |(i, x_hat): (usize, &f64)| {
            let param = self.cell.param(i);
            (x_hat * self.weight[param] + bias.get(param).unwrap_or(&0.0)) as f32
        };
        self.x_hat.iter().enumerate().map(y).collect()
    }

    /// dx, dweight, dbias.
    fn backward(&self, inputs: &Inputs) -> (Vec<f32>, Vec<f32>, Vec<f32>) {
        let (cell, dy) = (self.cell, widen(&inputs.dy));
        let g = |i: usize, dy: f64| dy * self.weight[cell.param(i)];
        let c1 = match cell.op {
            Op::LayerNorm | Op::BatchNormTrain => averages(cell, &dy, g),
            _ => vec![0.0; cell.groups()],
        };
        let c2 = averages(cell, &dy, |i, dy| g(i, dy) * self.x_hat[i]);
        let (mut dweight, mut dbias) = (vec![0.0; cell.params], vec![0.0; cell.params]);
        let mut dx = Vec::with_capacity(dy.len());
        for (i, (dy, x_hat)) in dy.into_iter().zip(&self.x_hat).enumerate() {
            let (group, param) = (cell.group(i), cell.param(i));
            dx.push(((g(i, dy) - c1[group] - x_hat * c2[group]) * self.rstd[group]) as f32);
            dweight[param] += dy * x_hat;
            dbias[param] += dy;
        }
        if inputs.bias.bytes().is_empty() {
            dbias.clear();
        }
        let narrow = |sums: Vec<f64>| sums.into_iter().map(|sum| sum as f32).collect();
        (dx, narrow(dweight), narrow(dbias))
    }
}

/// Of each group, the average of `term(i, values[i])`.
fn averages(cell: &Cell, values: &[f64], term: impl Fn(usize, f64) -> f64) -> Vec<f64> {
    let mut sums = vec![0.0; cell.groups()];
    for (i, value) in values.iter().enumerate() {
        sums[cell.group(i)] += term(i, *value);
    }
    let n = (values.len() / cell.groups()) as f64;
    sums.into_iter().map(|sum| sum / n).collect()
}

fn widen(buffer: &Buffer) -> Vec<f64> {
    buffer.to_f32().into_iter().map(f64::from).collect()
}

fn stored(dtype: Dtype, value: f32) -> f32 {
    match dtype {
        Dtype::F32 => value,
        Dtype::Bf16 => bf16::from_f32(value).to_f32(),
    }
}
