//! Plain arrays, for any CPU: the last resort, and what the other sets are compared with.
//!
//! Where the target has no fused multiply-add in its base instruction set (x86-64 has none), `mul_add`
//! calls the C library and a row takes about sixty times as long as on AVX2. So here, and here alone,
//! primitives are calls: 32 lanes unrolled in every kernel were two thirds of the crate's compile time.

use half::{bf16, f16};

use super::Isa;
use crate::element::Compute;
use crate::level::Kernel;
use crate::order::LANES;

/// Proof of nothing: every CPU has these.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Scalar;

impl Scalar {
    /// Not inlined: its stack would be that of the doors into the other sets.
    #[inline(never)]
    pub(crate) fn run<C: Compute, K: Kernel<C>>(self, kernel: K) -> K::Output {
        kernel.eval(self)
    }
}

#[inline(always)]
fn lanes<C: Compute>(f: impl Fn(usize) -> C) -> [C; LANES] {
    let mut out = [C::ZERO; LANES];
    for (l, out) in out.iter_mut().enumerate() {
        *out = f(l);
    }
    out
}

impl<C: Compute> Isa<C> for Scalar {
    type V = [C; LANES];
    const LEAVES: usize = 1;

    #[inline]
    fn splat(self, value: C) -> Self::V {
        [value; LANES]
    }
    #[inline(never)]
    fn add(self, a: Self::V, b: Self::V) -> Self::V {
        lanes(|l| a[l] + b[l])
    }
    #[inline(never)]
    fn sub(self, a: Self::V, b: Self::V) -> Self::V {
        lanes(|l| a[l] - b[l])
    }
    #[inline(never)]
    fn mul(self, a: Self::V, b: Self::V) -> Self::V {
        lanes(|l| a[l] * b[l])
    }
    #[inline(never)]
    fn fma(self, a: Self::V, b: Self::V, c: Self::V) -> Self::V {
        lanes(|l| a[l].fused(b[l], c[l]))
    }
    #[inline(never)]
    fn take_first(self, n: usize, new: Self::V, old: Self::V) -> Self::V {
        lanes(|l| if l < n { new[l] } else { old[l] })
    }
    #[inline(never)]
    fn down<const W: usize>(self, v: Self::V) -> Self::V {
        lanes(|l| v[(l + W) % LANES])
    }
    #[inline]
    fn first(self, v: Self::V) -> C {
        v[0]
    }
    #[inline(never)]
    fn load(self, from: &[C; LANES]) -> Self::V {
        *from
    }
    #[inline(never)]
    fn store(self, v: Self::V, to: &mut [C; LANES]) {
        *to = v;
    }
    #[inline(never)]
    fn load_f16(self, from: &[f16; LANES]) -> Self::V {
        lanes(|l| C::from_f32(from[l].to_f32_const()))
    }
    #[inline(never)]
    fn load_bf16(self, from: &[bf16; LANES]) -> Self::V {
        lanes(|l| C::from_f32(from[l].to_f32_const()))
    }
    #[inline(never)]
    fn store_f16(self, v: Self::V, to: &mut [f16; LANES]) {
        for (to, x) in to.iter_mut().zip(v) {
            *to = f16::from_f32_const(x.to_f32());
        }
    }
    #[inline(never)]
    fn store_bf16(self, v: Self::V, to: &mut [bf16; LANES]) {
        for (to, x) in to.iter_mut().zip(v) {
            *to = bf16::from_f32_const(x.to_f32());
        }
    }
}
