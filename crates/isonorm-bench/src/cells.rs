//! What is measured: the table of cells, each with its shape and the ratio it has to reach.

use clap::ValueEnum;
use serde::Serialize;

/// Added under every root, in every contestant.
pub(crate) const EPS: f32 = 1e-6;

/// The element type of a cell's tensors, parameters included.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Dtype {
    F32,
    Bf16,
}

impl Dtype {
    pub(crate) fn bytes(self) -> usize {
        match self {
            Dtype::F32 => 4,
            Dtype::Bf16 => 2,
        }
    }
}

/// The operation of a cell.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Op {
    RmsNorm,
    LayerNorm,
    /// `sum = x + residual`, `y = rms_norm(sum)`; both are results.
    AddRmsNorm,
    /// NCHW: a row is one channel's plane of one sample.
    BatchNormEval,
}

/// What a cell has to reach.
#[derive(Clone, Copy, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Goal {
    /// At least this share of the speed of the fastest copy of the same bytes.
    ShareOfLimit(f64),
    /// At most this many times the time of the free-order loop.
    TimesLoop(f64),
}

/// One cell: an operation on one shape of one type.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct Cell {
    pub(crate) op: Op,
    pub(crate) dtype: Dtype,
    /// Rows; for BatchNorm samples times channels.
    pub(crate) rows: usize,
    /// Elements of a row; for BatchNorm of one plane.
    pub(crate) hidden: usize,
    /// Length of weight and bias.
    pub(crate) params: usize,
    pub(crate) goal: Goal,
}

impl Cell {
    const fn rows(op: Op, dtype: Dtype, rows: usize, hidden: usize, goal: Goal) -> Cell {
        Cell { op, dtype, rows, hidden, params: hidden, goal }
    }

    pub(crate) fn name(&self) -> String {
        let dtype = match self.dtype {
            Dtype::F32 => "f32",
            Dtype::Bf16 => "bf16",
        };
        match self.op {
            Op::RmsNorm => format!("RMSNorm {dtype} {}x{}", self.rows, self.hidden),
            Op::LayerNorm => format!("LayerNorm {dtype} {}x{}", self.rows, self.hidden),
            Op::AddRmsNorm => format!("add + RMSNorm {dtype} {}x{}", self.rows, self.hidden),
            Op::BatchNormEval => {
                let side = self.hidden.isqrt();
                let batch = self.rows / self.params;
                format!("BatchNorm eval {dtype} {batch}x{}x{side}x{side}", self.params)
            }
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.rows * self.hidden
    }

    /// Tensors read, and as many written.
    pub(crate) fn streams(&self) -> usize {
        if self.op == Op::AddRmsNorm { 2 } else { 1 }
    }

    /// Bytes that have to be read and written, parameters aside.
    pub(crate) fn traffic(&self) -> usize {
        2 * self.streams() * self.len() * self.dtype.bytes()
    }

    /// One row is work for one thread.
    pub(crate) fn wants_threads(&self, threads: usize) -> bool {
        threads == 1 || self.rows > 1
    }
}

/// Every cell, in the order of the table.
pub(crate) const CELLS: [Cell; 13] = {
    use Dtype::{Bf16, F32};
    use Goal::{ShareOfLimit, TimesLoop};
    use Op::{AddRmsNorm, BatchNormEval, LayerNorm, RmsNorm};
    [
        Cell::rows(RmsNorm, F32, 1, 2048, TimesLoop(1.10)),
        Cell::rows(RmsNorm, F32, 1, 4096, TimesLoop(1.10)),
        Cell::rows(LayerNorm, F32, 1, 4096, TimesLoop(1.25)),
        Cell::rows(RmsNorm, Bf16, 1, 4096, TimesLoop(1.10)),
        Cell::rows(RmsNorm, F32, 32, 4096, ShareOfLimit(0.75)),
        Cell::rows(RmsNorm, F32, 512, 4096, ShareOfLimit(0.90)),
        Cell::rows(RmsNorm, F32, 4096, 4096, ShareOfLimit(0.90)),
        Cell::rows(RmsNorm, Bf16, 4096, 4096, ShareOfLimit(0.75)),
        Cell::rows(LayerNorm, F32, 4096, 4096, ShareOfLimit(0.85)),
        Cell::rows(AddRmsNorm, F32, 4096, 4096, ShareOfLimit(0.90)),
        Cell::rows(RmsNorm, F32, 65536, 128, ShareOfLimit(0.80)),
        Cell::rows(RmsNorm, Bf16, 65536, 128, ShareOfLimit(0.70)),
        Cell { op: BatchNormEval, dtype: F32, rows: 32 * 64, hidden: 56 * 56, params: 64, goal: ShareOfLimit(0.85) },
    ]
};
