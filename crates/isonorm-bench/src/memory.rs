//! The memory every contestant works on: buffers of whole cache lines, so that every start is
//! 64-byte aligned, and inputs that are the same on every machine.

use bytemuck::{Pod, Zeroable};
use half::bf16;

use crate::cells::{Cell, Dtype, Op};

/// One cache line.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C, align(64))]
pub(crate) struct Line([u8; 64]);

/// A tensor, 64-byte aligned, every page touched.
pub(crate) struct Buffer {
    lines: Vec<Line>,
    len: usize,
    dtype: Dtype,
}

impl Buffer {
    /// `len` elements, written once so that every page exists before anything is timed.
    pub(crate) fn new(dtype: Dtype, len: usize) -> Buffer {
        let lines = (len * dtype.bytes()).div_ceil(size_of::<Line>());
        Buffer { lines: vec![Line([0xff; 64]); lines], len, dtype }
    }

    /// `scale * u + shift`, `u` from -1 to 1, the same for the same `seed` on every machine.
    fn random(dtype: Dtype, len: usize, seed: u64, scale: f32, shift: f32) -> Buffer {
        let mut buffer = Buffer::new(dtype, len);
        let value = |i: usize| uniform(seed, i as u64).mul_add(scale, shift);
        match dtype {
            Dtype::F32 => {
                for (i, x) in buffer.as_mut_slice::<f32>().iter_mut().enumerate() {
                    *x = value(i);
                }
            }
            Dtype::Bf16 => {
                for (i, x) in buffer.as_mut_slice::<bf16>().iter_mut().enumerate() {
                    *x = bf16::from_f32(value(i));
                }
            }
        }
        buffer
    }

    pub(crate) fn as_slice<T: Pod>(&self) -> &[T] {
        debug_assert_eq!(size_of::<T>(), self.dtype.bytes(), "element size");
        &bytemuck::cast_slice(&self.lines)[..self.len]
    }

    pub(crate) fn as_mut_slice<T: Pod>(&mut self) -> &mut [T] {
        debug_assert_eq!(size_of::<T>(), self.dtype.bytes(), "element size");
        &mut bytemuck::cast_slice_mut(&mut self.lines)[..self.len]
    }

    pub(crate) fn lines(&self) -> &[Line] {
        &self.lines
    }

    pub(crate) fn lines_mut(&mut self) -> &mut [Line] {
        &mut self.lines
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        &bytemuck::cast_slice(&self.lines)[..self.len * self.dtype.bytes()]
    }

    /// The values, widened.
    pub(crate) fn to_f32(&self) -> Vec<f32> {
        match self.dtype {
            Dtype::F32 => self.as_slice::<f32>().to_vec(),
            Dtype::Bf16 => self.as_slice::<bf16>().iter().map(|x| x.to_f32()).collect(),
        }
    }

    /// Overwrites everything, so that a stale result cannot pass for a new one.
    pub(crate) fn scrub(&mut self) {
        self.lines.fill(Line([0xff; 64]));
    }
}

/// The inputs of a cell. What the operation does not read is empty.
pub(crate) struct Inputs {
    pub(crate) x: Buffer,
    pub(crate) residual: Buffer,
    pub(crate) dy: Buffer,
    pub(crate) weight: Buffer,
    pub(crate) bias: Buffer,
    pub(crate) mean: Buffer,
    pub(crate) var: Buffer,
}

impl Inputs {
    pub(crate) fn new(cell: &Cell) -> Inputs {
        let when = |needed: bool, len: usize| if needed { len } else { 0 };
        let eval = cell.op == Op::BatchNormEval;
        let biased = matches!(cell.op, Op::LayerNorm | Op::BatchNormEval | Op::BatchNormTrain);
        let added = when(cell.op == Op::AddRmsNorm, cell.len());
        let random = |len, seed, scale, shift| Buffer::random(cell.dtype, len, seed, scale, shift);
        Inputs {
            x: random(cell.len(), 1, 2.0, 0.0625),
            residual: random(added, 2, 1.0, 0.0),
            dy: random(when(cell.pass.is_backward(), cell.len()), 7, 1.0, 0.0),
            weight: random(cell.params, 3, 0.25, 1.0),
            bias: random(when(biased, cell.params), 4, 0.5, 0.0),
            mean: random(when(eval, cell.params), 5, 0.25, 0.0),
            var: random(when(eval, cell.params), 6, 0.5, 1.0),
        }
    }
}

/// The results of a cell, written by each contestant in turn. What the operation does not yield is empty.
pub(crate) struct Outputs {
    pub(crate) y: Buffer,
    /// `x + residual`.
    pub(crate) sum: Buffer,
    pub(crate) dx: Buffer,
    pub(crate) dweight: Buffer,
    pub(crate) dbias: Buffer,
}

impl Outputs {
    pub(crate) fn new(cell: &Cell, inputs: &Inputs) -> Outputs {
        let like = |input: &Buffer, needed: bool| Buffer::new(cell.dtype, if needed { input.len } else { 0 });
        let backward = cell.pass.is_backward();
        Outputs {
            y: like(&inputs.x, cell.pass.is_forward()),
            sum: like(&inputs.residual, cell.pass.is_forward()),
            dx: like(&inputs.x, backward),
            dweight: like(&inputs.weight, backward),
            dbias: like(&inputs.bias, backward),
        }
    }

    pub(crate) fn scrub(&mut self) {
        for tensor in [&mut self.y, &mut self.sum, &mut self.dx, &mut self.dweight, &mut self.dbias] {
            tensor.scrub();
        }
    }

    /// The bytes of every result, one after the other.
    pub(crate) fn bytes(&self) -> [&[u8]; 5] {
        [&self.y, &self.sum, &self.dx, &self.dweight, &self.dbias].map(Buffer::bytes)
    }

    pub(crate) fn results(&self) -> Results {
        let [y, dx, dweight, dbias] = [&self.y, &self.dx, &self.dweight, &self.dbias].map(Buffer::to_f32);
        Results { y, dx, dweight, dbias }
    }
}

/// Results to compare, widened. What the operation does not yield is empty.
#[derive(Default)]
pub(crate) struct Results {
    pub(crate) y: Vec<f32>,
    pub(crate) dx: Vec<f32>,
    pub(crate) dweight: Vec<f32>,
    pub(crate) dbias: Vec<f32>,
}

#[cfg(feature = "peers")]
impl Results {
    pub(crate) fn forward(y: Vec<f32>) -> Results {
        Results { y, ..Results::default() }
    }
}

/// A number from -1 to 1 for each `seed` and `index` (splitmix64), exact in f32.
fn uniform(seed: u64, index: u64) -> f32 {
    let mut z = (seed << 40).wrapping_add(index).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^= z >> 31;
    let steps = (z >> 41) as i32 - (1 << 22);
    steps as f32 / (1 << 22) as f32
}
