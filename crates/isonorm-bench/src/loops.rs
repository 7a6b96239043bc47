//! The yardstick for one row, and for the sum over rows of a backward pass: the operation written
//! for speed alone, summed in whatever order is fastest, with no contract, no range rule and no
//! shape but whole vectors.
//!
//! The LayerNorm loop takes sum and sum of squares in one pass, which loses the variance of rows
//! far from zero; it is here for its time only.
#![allow(unsafe_code)] // AVX-512 loads and stores, and the entry into code compiled for it

#[cfg(target_arch = "x86_64")]
mod avx512;

use std::hint::black_box;

use half::bf16;

use crate::cells::{Cell, Dtype, EPS, Op, Pass};
use crate::memory::{Inputs, Outputs};
use crate::timing::{Contestant, Role, repeat};

/// The loops for `cell`; none where a whole tensor is the work.
pub(crate) fn contestants<'a>(cell: &Cell, inputs: &'a Inputs) -> Vec<Contestant<'a>> {
    if !cell.has_loops() {
        return Vec::new();
    }
    match (cell.op, cell.pass, cell.dtype) {
        (Op::RmsNorm, Pass::Forward, Dtype::F32) => rms_norm_loops(inputs),
        (Op::LayerNorm, Pass::Forward, Dtype::F32) => layer_norm_loops(inputs),
        (Op::RmsNorm, Pass::Forward, Dtype::Bf16) => rms_norm_bf16_loops(inputs),
        (Op::RmsNorm, Pass::Backward, Dtype::F32) => rms_norm_backward_loops(inputs),
        _ => Vec::new(),
    }
}

fn contestant<'a>(name: &str, mut call: impl FnMut(&mut Outputs) + 'a) -> Contestant<'a> {
    Contestant {
        name: format!("free-order loop ({name})"),
        role: Role::Loop,
        run: Box::new(move |calls, outputs| repeat(calls, || call(black_box(outputs)))),
    }
}

fn rms_norm_loops(inputs: &Inputs) -> Vec<Contestant<'_>> {
    let (x, w) = (inputs.x.as_slice(), inputs.weight.as_slice());
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("avx512f") {
        // SAFETY: AVX-512F was detected just now.
        let run = move |out: &mut Outputs| unsafe { avx512::rms_norm(x, w, out.y.as_mut_slice()) };
        return vec![contestant("AVX-512", run)];
    }
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
        // SAFETY: AVX2 and FMA were detected just now.
        let run = move |out: &mut Outputs| unsafe { avx2::rms_norm(x, w, out.y.as_mut_slice()) };
        return vec![contestant("AVX2", run)];
    }
    vec![contestant("portable", move |out| plain::rms_norm(x, w, out.y.as_mut_slice()))]
}

fn layer_norm_loops(inputs: &Inputs) -> Vec<Contestant<'_>> {
    let (x, w, b) = (inputs.x.as_slice(), inputs.weight.as_slice(), inputs.bias.as_slice());
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("avx512f") {
        let run = move |out: &mut Outputs| {
            // SAFETY: AVX-512F was detected just now.
            unsafe { avx512::layer_norm(x, w, b, out.y.as_mut_slice()) }
        };
        let corrected = move |out: &mut Outputs| {
            // SAFETY: as above.
            unsafe { avx512::layer_norm_corrected(x, w, b, out.y.as_mut_slice()) }
        };
        let corrected = Contestant { role: Role::OtherLoop, ..contestant("the contract's three passes", corrected) };
        return vec![contestant("AVX-512", run), corrected];
    }
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
        let run = move |out: &mut Outputs| {
            // SAFETY: AVX2 and FMA were detected just now.
            unsafe { avx2::layer_norm(x, w, b, out.y.as_mut_slice()) }
        };
        return vec![contestant("AVX2", run)];
    }
    vec![contestant("portable", move |out| plain::layer_norm(x, w, b, out.y.as_mut_slice()))]
}

fn rms_norm_bf16_loops(inputs: &Inputs) -> Vec<Contestant<'_>> {
    let (x, w): (&[bf16], &[bf16]) = (inputs.x.as_slice(), inputs.weight.as_slice());
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("avx512f") {
        let run = move |out: &mut Outputs| {
            // SAFETY: AVX-512F was detected just now.
            unsafe { avx512::rms_norm_bf16(x, w, out.y.as_mut_slice()) }
        };
        let mut loops = vec![contestant("AVX-512", run)];
        if is_x86_feature_detected!("avx512bw") && is_x86_feature_detected!("avx512bf16") {
            let run = move |out: &mut Outputs| {
                // SAFETY: AVX-512F, BW and BF16 were detected just now.
                unsafe { avx512::rms_norm_bf16_without_subnormals(x, w, out.y.as_mut_slice()) }
            };
            let lesser = contestant("BF16, no subnormals", run);
            loops.push(Contestant { role: Role::OtherLoop, ..lesser });
        }
        return loops;
    }
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
        // SAFETY: AVX2 and FMA were detected just now.
        let run = move |out: &mut Outputs| unsafe { avx2::rms_norm_bf16(x, w, out.y.as_mut_slice()) };
        return vec![contestant("AVX2", run)];
    }
    vec![contestant("portable", move |out| plain::rms_norm_bf16(x, w, out.y.as_mut_slice()))]
}

/// The weight's gradient is summed in one row of sums, row after row.
fn rms_norm_backward_loops(inputs: &Inputs) -> Vec<Contestant<'_>> {
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("avx512f") {
        // SAFETY: AVX-512F was detected just now.
        let cached = |backward: Backward<'_>| unsafe { avx512::rms_norm_backward::<false>(backward) };
        // SAFETY: as above.
        let streamed = |backward: Backward<'_>| unsafe { avx512::rms_norm_backward::<true>(backward) };
        return vec![
            backward_contestant("AVX-512", inputs, cached),
            backward_contestant("AVX-512, non-temporal", inputs, streamed),
        ];
    }
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
        // SAFETY: AVX2 and FMA were detected just now.
        let run = |backward: Backward<'_>| unsafe { avx2::rms_norm_backward(backward) };
        return vec![backward_contestant("AVX2", inputs, run)];
    }
    vec![backward_contestant("portable", inputs, plain::rms_norm_backward)]
}

/// The tensors of a backward pass; a row is as long as `w`.
struct Backward<'a> {
    x: &'a [f32],
    dy: &'a [f32],
    w: &'a [f32],
    /// Each row's.
    rstd: &'a [f32],
    dx: &'a mut [f32],
    dweight: &'a mut [f32],
}

fn backward_contestant<'a>(name: &str, inputs: &'a Inputs, run: fn(Backward<'_>)) -> Contestant<'a> {
    let (x, dy, w): (&[f32], &[f32], &[f32]) = (inputs.x.as_slice(), inputs.dy.as_slice(), inputs.weight.as_slice());
    let rstd: Vec<f32> = x.chunks(w.len()).map(plain::rstd).collect();
    contestant(name, move |out| {
        run(Backward { x, dy, w, rstd: &rstd, dx: out.dx.as_mut_slice(), dweight: out.dweight.as_mut_slice() });
    })
}

/// The loops over arrays of `LANES` sums, which the compiler turns into whatever vectors its
/// caller is compiled for.
mod plain {
    use super::{Backward, EPS, bf16};

    const LANES: usize = 64;

    #[inline(always)]
    pub(super) fn rms_norm(x: &[f32], w: &[f32], y: &mut [f32]) {
        let rstd = rstd(x);
        for ((y, x), w) in y.iter_mut().zip(x).zip(w) {
            *y = x * rstd * w;
        }
    }

    #[inline(always)]
    pub(super) fn rstd(x: &[f32]) -> f32 {
        1.0 / (sums(x, |v| v)[1] / x.len() as f32 + EPS).sqrt()
    }

    #[inline(always)]
    pub(super) fn rms_norm_backward(tensors: Backward<'_>) {
        let Backward { x, dy, w, rstd, dx, dweight } = tensors;
        let n = w.len();
        dweight.fill(0.0);
        for (r, dx) in dx.chunks_exact_mut(n).enumerate() {
            let (x, dy, rstd) = (&x[r * n..][..n], &dy[r * n..][..n], rstd[r]);
            let mut dot = [0.0f32; LANES];
            for i in (0..n / LANES * LANES).step_by(LANES) {
                for lane in 0..LANES {
                    dot[lane] += dy[i + lane] * w[i + lane] * x[i + lane];
                }
            }
            let c = dot.iter().sum::<f32>() * rstd / n as f32;
            for i in 0..n {
                let x_hat = x[i] * rstd;
                dx[i] = (dy[i] * w[i] - x_hat * c) * rstd;
                dweight[i] += dy[i] * x_hat;
            }
        }
    }

    #[inline(always)]
    pub(super) fn layer_norm(x: &[f32], w: &[f32], b: &[f32], y: &mut [f32]) {
        let n = x.len() as f32;
        let [sum, squares] = sums(x, |v| v);
        let mean = sum / n;
        let rstd = 1.0 / (squares / n - mean * mean + EPS).sqrt();
        for (((y, x), w), b) in y.iter_mut().zip(x).zip(w).zip(b) {
            *y = (x - mean) * rstd * w + b;
        }
    }

    #[inline(always)]
    pub(super) fn rms_norm_bf16(x: &[bf16], w: &[bf16], y: &mut [bf16]) {
        let rstd = 1.0 / (sums(x, widen)[1] / x.len() as f32 + EPS).sqrt();
        for ((y, x), w) in y.iter_mut().zip(x).zip(w) {
            let bits = (widen(*x) * rstd * widen(*w)).to_bits();
            *y = bf16::from_bits(((bits + 0x7fff + ((bits >> 16) & 1)) >> 16) as u16);
        }
    }

    #[inline(always)]
    fn widen(x: bf16) -> f32 {
        f32::from_bits(u32::from(x.to_bits()) << 16)
    }

    /// Sum and sum of squares; the one that is not used costs nothing.
    #[inline(always)]
    fn sums<E: Copy>(x: &[E], widen: impl Fn(E) -> f32) -> [f32; 2] {
        let (mut sum, mut squares) = ([0.0f32; LANES], [0.0f32; LANES]);
        for chunk in x.as_chunks::<LANES>().0 {
            for i in 0..LANES {
                let v = widen(chunk[i]);
                sum[i] += v;
                squares[i] += v * v;
            }
        }
        [sum.iter().sum(), squares.iter().sum()]
    }
}

#[cfg(target_arch = "x86_64")]
mod avx2 {
    use super::{Backward, bf16, plain};

    #[target_feature(enable = "avx2,fma")]
    pub(super) fn rms_norm(x: &[f32], w: &[f32], y: &mut [f32]) {
        plain::rms_norm(x, w, y);
    }

    #[target_feature(enable = "avx2,fma")]
    pub(super) fn rms_norm_backward(tensors: Backward<'_>) {
        plain::rms_norm_backward(tensors);
    }

    #[target_feature(enable = "avx2,fma")]
    pub(super) fn layer_norm(x: &[f32], w: &[f32], b: &[f32], y: &mut [f32]) {
        plain::layer_norm(x, w, b, y);
    }

    #[target_feature(enable = "avx2,fma")]
    pub(super) fn rms_norm_bf16(x: &[bf16], w: &[bf16], y: &mut [bf16]) {
        plain::rms_norm_bf16(x, w, y);
    }
}
