//! NEON, which every 64-bit ARM CPU has: 32 f32 lanes in eight registers, 32 f64 lanes in sixteen.
#![allow(unsafe_code)] // intrinsics; every use is in `op!`

use std::arch::aarch64::*;

use half::{bf16, f16};

use super::Isa;
use crate::element::Compute;
use crate::level::Kernel;
use crate::order::LANES;

/// Proof that this CPU has NEON, which aarch64 Linux, macOS and Windows require.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Neon(());

impl Neon {
    pub(crate) fn detect() -> Self {
        Self(())
    }

    pub(crate) fn run<C: Compute, K: Kernel<C>>(self, kernel: K) -> K::Output
    where
        Self: Isa<C>,
    {
        #[target_feature(enable = "neon")]
        fn enter<C: Compute, K: Kernel<C>>(isa: Neon, kernel: K) -> K::Output
        where
            Neon: Isa<C>,
        {
            kernel.eval(isa)
        }
        // SAFETY: `self` exists, so this CPU has NEON.
        unsafe { enter(self, kernel) }
    }
}

/// One intrinsic.
macro_rules! op {
    ($intrinsic:expr) => {
        // SAFETY: a `Neon` exists, so the CPU has the instruction; pointers come from references
        // to arrays of exactly the bytes that are read or written.
        unsafe { $intrinsic }
    };
}

/// `$v` with each register replaced by `$op`, without a closure that could stay un-inlined.
macro_rules! each {
    ($v:expr, $i:ident => $op:expr) => {{
        let mut out = $v;
        for $i in 0..out.len() {
            out[$i] = op!($op);
        }
        out
    }};
}

impl Isa<f32> for Neon {
    type V = [float32x4_t; 8];

    #[inline(always)]
    fn splat(self, value: f32) -> Self::V {
        [op!(vdupq_n_f32(value)); 8]
    }
    #[inline(always)]
    fn add(self, a: Self::V, b: Self::V) -> Self::V {
        each!(a, i => vaddq_f32(a[i], b[i]))
    }
    #[inline(always)]
    fn sub(self, a: Self::V, b: Self::V) -> Self::V {
        each!(a, i => vsubq_f32(a[i], b[i]))
    }
    #[inline(always)]
    fn mul(self, a: Self::V, b: Self::V) -> Self::V {
        each!(a, i => vmulq_f32(a[i], b[i]))
    }
    #[inline(always)]
    fn fma(self, a: Self::V, b: Self::V, c: Self::V) -> Self::V {
        each!(c, i => vfmaq_f32(c[i], a[i], b[i]))
    }
    #[inline(always)]
    fn take_first(self, n: usize, new: Self::V, old: Self::V) -> Self::V {
        let iota = op!(vld1q_s32([0, 1, 2, 3].as_ptr()));
        each!(old, i => vbslq_f32(vcgtq_s32(vdupq_n_s32(n as i32 - 4 * i as i32), iota), new[i], old[i]))
    }
    #[inline(always)]
    fn down<const W: usize>(self, v: Self::V) -> Self::V {
        let mut out = v;
        match W {
            16 => [out[0], out[1], out[2], out[3]] = [v[4], v[5], v[6], v[7]],
            8 => [out[0], out[1]] = [v[2], v[3]],
            4 => out[0] = v[1],
            2 => out[0] = op!(vextq_f32::<2>(v[0], v[0])),
            _ => out[0] = op!(vextq_f32::<1>(v[0], v[0])),
        }
        out
    }
    #[inline(always)]
    fn first(self, v: Self::V) -> f32 {
        op!(vgetq_lane_f32::<0>(v[0]))
    }
    #[inline(always)]
    fn load(self, from: &[f32; LANES]) -> Self::V {
        let (fours, _) = from.as_chunks::<4>();
        each!([op!(vdupq_n_f32(0.0)); 8], i => vld1q_f32(fours[i].as_ptr()))
    }
    #[inline(always)]
    fn store(self, v: Self::V, to: &mut [f32; LANES]) {
        let (fours, _) = to.as_chunks_mut::<4>();
        for i in 0..8 {
            op!(vst1q_f32(fours[i].as_mut_ptr(), v[i]));
        }
    }
    #[inline(always)]
    fn load_f16(self, from: &[f16; LANES]) -> Self::V {
        let (fours, _) = from.as_chunks::<4>();
        let mut out = [op!(vdupq_n_f32(0.0)); 8];
        for i in 0..8 {
            let words = op!(vld1_u16(fours[i].as_ptr().cast()));
            out[i] = op!(vcvt_f32_f16(vreinterpret_f16_u16(words)));
        }
        out
    }
    #[inline(always)]
    fn store_f16(self, v: Self::V, to: &mut [f16; LANES]) {
        let (fours, _) = to.as_chunks_mut::<4>();
        for i in 0..8 {
            let words = op!(vreinterpret_u16_f16(vcvt_f16_f32(v[i]))); // IEEE while FPCR.AHP is 0: see float_env.rs
            op!(vst1_u16(fours[i].as_mut_ptr().cast(), words));
        }
    }
    #[inline(always)]
    fn load_bf16(self, from: &[bf16; LANES]) -> Self::V {
        let (fours, _) = from.as_chunks::<4>();
        let mut out = [op!(vdupq_n_f32(0.0)); 8];
        for i in 0..8 {
            let words = op!(vld1_u16(fours[i].as_ptr().cast()));
            out[i] = op!(vreinterpretq_f32_u32(vshll_n_u16::<16>(words)));
        }
        out
    }
    #[inline(always)]
    fn store_bf16(self, v: Self::V, to: &mut [bf16; LANES]) {
        let (fours, _) = to.as_chunks_mut::<4>();
        for i in 0..8 {
            op!(vst1_u16(fours[i].as_mut_ptr().cast(), round_bf16(v[i])));
        }
    }
}

impl Isa<f64> for Neon {
    type V = [float64x2_t; 16];

    #[inline(always)]
    fn splat(self, value: f64) -> Self::V {
        [op!(vdupq_n_f64(value)); 16]
    }
    #[inline(always)]
    fn add(self, a: Self::V, b: Self::V) -> Self::V {
        each!(a, i => vaddq_f64(a[i], b[i]))
    }
    #[inline(always)]
    fn sub(self, a: Self::V, b: Self::V) -> Self::V {
        each!(a, i => vsubq_f64(a[i], b[i]))
    }
    #[inline(always)]
    fn mul(self, a: Self::V, b: Self::V) -> Self::V {
        each!(a, i => vmulq_f64(a[i], b[i]))
    }
    #[inline(always)]
    fn fma(self, a: Self::V, b: Self::V, c: Self::V) -> Self::V {
        each!(c, i => vfmaq_f64(c[i], a[i], b[i]))
    }
    #[inline(always)]
    fn take_first(self, n: usize, new: Self::V, old: Self::V) -> Self::V {
        let iota = op!(vld1q_s64([0, 1].as_ptr()));
        each!(old, i => vbslq_f64(vcgtq_s64(vdupq_n_s64(n as i64 - 2 * i as i64), iota), new[i], old[i]))
    }
    #[inline(always)]
    fn down<const W: usize>(self, v: Self::V) -> Self::V {
        let mut out = v;
        match W {
            16 => {
                [out[0], out[1], out[2], out[3]] = [v[8], v[9], v[10], v[11]];
                [out[4], out[5], out[6], out[7]] = [v[12], v[13], v[14], v[15]];
            }
            8 => [out[0], out[1], out[2], out[3]] = [v[4], v[5], v[6], v[7]],
            4 => [out[0], out[1]] = [v[2], v[3]],
            2 => out[0] = v[1],
            _ => out[0] = op!(vextq_f64::<1>(v[0], v[0])),
        }
        out
    }
    #[inline(always)]
    fn first(self, v: Self::V) -> f64 {
        op!(vgetq_lane_f64::<0>(v[0]))
    }
    #[inline(always)]
    fn load(self, from: &[f64; LANES]) -> Self::V {
        let (pairs, _) = from.as_chunks::<2>();
        each!([op!(vdupq_n_f64(0.0)); 16], i => vld1q_f64(pairs[i].as_ptr()))
    }
    #[inline(always)]
    fn store(self, v: Self::V, to: &mut [f64; LANES]) {
        let (pairs, _) = to.as_chunks_mut::<2>();
        for i in 0..16 {
            op!(vst1q_f64(pairs[i].as_mut_ptr(), v[i]));
        }
    }
}

/// Each lane rounded to the nearest bf16, ties to even; NaN becomes quiet.
#[inline(always)]
fn round_bf16(v: float32x4_t) -> uint16x4_t {
    let bits = op!(vreinterpretq_u32_f32(v));
    let odd = op!(vandq_u32(vshrq_n_u32::<16>(bits), vdupq_n_u32(1)));
    let rounded = op!(vaddq_u32(vaddq_u32(bits, vdupq_n_u32(0x7FFF)), odd));
    let quiet = op!(vorrq_u32(bits, vdupq_n_u32(0x0040_0000)));
    op!(vshrn_n_u32::<16>(vbslq_u32(vceqq_f32(v, v), rounded, quiet)))
}
