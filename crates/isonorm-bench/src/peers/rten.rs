//! rten-vecmath: one or two reductions, then `Normalize` into a given, uninitialized output.
//!
//! f32 only. It leaves threads and the residual's addition to its caller: rows go in one run to
//! each thread, and a plain loop adds, row by row, while the row is in the cache.

use std::mem::MaybeUninit;

use rten_simd::SimdOp;
use rten_vecmath::{Normalize, NormalizeOptions, Sum, SumSquare, SumSquareSub};

use super::Peer;
use super::parts::{Part, Row};
use crate::cells::{Cell, Dtype, EPS, Op};
use crate::memory::{Inputs, Line, Outputs, Results};

struct Rten<'a> {
    cell: Cell,
    inputs: &'a Inputs,
    /// `y` is this vector's spare capacity, from the first cache line on.
    y: Vec<f32>,
    threads: usize,
}

pub(super) fn prepare<'a>(cell: &Cell, inputs: &'a Inputs, threads: usize) -> Option<Box<dyn Peer + 'a>> {
    let y = Vec::with_capacity(cell.len() + size_of::<Line>() / size_of::<f32>());
    let rten = Rten { cell: *cell, inputs, y, threads };
    (cell.dtype == Dtype::F32).then(|| Box::new(rten) as Box<dyn Peer>)
}

impl Peer for Rten<'_> {
    fn call(&mut self, outputs: &mut Outputs) {
        let (op, threads) = (self.cell.op, self.threads);
        self.run(outputs, threads, |inputs, row| _ = normalize(op, inputs, row));
    }

    fn result(&mut self, outputs: &mut Outputs) -> Results {
        let op = self.cell.op;
        let rows = std::sync::Mutex::new(Vec::with_capacity(self.cell.len()));
        self.run(outputs, 1, |inputs, row| {
            let y = normalize(op, inputs, row);
            rows.lock().expect("one thread").extend_from_slice(y);
        });
        Results::forward(rows.into_inner().expect("one thread"))
    }
}

impl Rten<'_> {
    fn run(&mut self, outputs: &mut Outputs, threads: usize, work: impl Fn(&Inputs, Row<'_, MaybeUninit<f32>>) + Sync) {
        let spare = self.y.spare_capacity_mut();
        let start = spare.as_ptr().align_offset(align_of::<Line>());
        let y = &mut spare[start..][..self.cell.len()];
        let inputs = self.inputs;
        Part::all(self.cell.rows, inputs, outputs.sum.as_mut_slice(), y).for_each(threads, &|row| work(inputs, row));
    }
}

fn normalize<'y>(op: Op, inputs: &Inputs, row: Row<'y, MaybeUninit<f32>>) -> &'y mut [f32] {
    let weight: &[f32] = inputs.weight.as_slice();
    let n = row.x.len() as f32;
    let rstd = |var: f32| 1.0 / (var + EPS).sqrt();
    let rms = |x| NormalizeOptions {
        scale: rstd(SumSquare::new(x).dispatch() / n),
        element_scale: Some(weight),
        ..Default::default()
    };
    match op {
        Op::RmsNorm => Normalize::new(row.x, row.y, rms(row.x)).dispatch(),
        Op::AddRmsNorm => {
            for ((sum, x), residual) in row.sum.iter_mut().zip(row.x).zip(row.residual) {
                *sum = x + residual;
            }
            let options = rms(row.sum);
            Normalize::new(row.sum, row.y, options).dispatch()
        }
        Op::LayerNorm => {
            let mean = Sum::new(row.x).dispatch() / n;
            let options = NormalizeOptions {
                pre_scale_bias: mean,
                scale: rstd(SumSquareSub::new(row.x, mean).dispatch() / n),
                element_scale: Some(weight),
                element_bias: Some(inputs.bias.as_slice()),
                ..Default::default()
            };
            Normalize::new(row.x, row.y, options).dispatch()
        }
        Op::BatchNormTrain => unreachable!("not for inference"),
        Op::BatchNormEval => {
            let channel = row.number % weight.len();
            let at = |values: &[f32]| values[channel];
            let options = NormalizeOptions {
                pre_scale_bias: at(inputs.mean.as_slice()),
                scale: at(weight) * rstd(at(inputs.var.as_slice())),
                bias: at(inputs.bias.as_slice()),
                ..Default::default()
            };
            Normalize::new(row.x, row.y, options).dispatch()
        }
    }
}
