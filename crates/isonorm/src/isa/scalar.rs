//! Plain arrays, for any CPU: the last resort, and what the other sets are compared with.
//!
//! Where the target has no fused multiply-add in its base instruction set (x86-64 has none), `mul_add`
//! calls the C library and a row takes about sixty times as long as on AVX2.

use super::Isa;
use crate::element::Compute;
use crate::level::Kernel;
use crate::order::LANES;

/// Proof of nothing: every CPU has these.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Scalar;

impl Scalar {
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

    #[inline(always)]
    fn splat(self, value: C) -> Self::V {
        [value; LANES]
    }
    #[inline(always)]
    fn add(self, a: Self::V, b: Self::V) -> Self::V {
        lanes(|l| a[l] + b[l])
    }
    #[inline(always)]
    fn sub(self, a: Self::V, b: Self::V) -> Self::V {
        lanes(|l| a[l] - b[l])
    }
    #[inline(always)]
    fn mul(self, a: Self::V, b: Self::V) -> Self::V {
        lanes(|l| a[l] * b[l])
    }
    #[inline(always)]
    fn fma(self, a: Self::V, b: Self::V, c: Self::V) -> Self::V {
        lanes(|l| a[l].fused(b[l], c[l]))
    }
    #[inline(always)]
    fn take_first(self, n: usize, new: Self::V, old: Self::V) -> Self::V {
        lanes(|l| if l < n { new[l] } else { old[l] })
    }
    #[inline(always)]
    fn down<const W: usize>(self, v: Self::V) -> Self::V {
        lanes(|l| v[(l + W) % LANES])
    }
    #[inline(always)]
    fn first(self, v: Self::V) -> C {
        v[0]
    }
    #[inline(always)]
    fn load(self, from: &[C; LANES]) -> Self::V {
        *from
    }
    #[inline(always)]
    fn store(self, v: Self::V, to: &mut [C; LANES]) {
        *to = v;
    }
}
