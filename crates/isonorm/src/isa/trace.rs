//! An instruction set that hashes operations instead of doing them, so that an order can be compared.
//!
//! Two orders of random numbers may round alike by luck; they do not hash alike. `spec/arithmetic.py` has
//! the same hash, `spec/golden/order.json` the hashes of the contract's sums.

use super::Isa;
use crate::order::LANES;

/// Thirty-two hashes at a time. f32 only.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Trace;

/// The hash of operation `op` on operands with these hashes.
pub(crate) fn mix(op: u64, operands: [u64; 3]) -> u64 {
    operands.into_iter().fold(op.wrapping_mul(0x9E37_79B9_7F4A_7C15), |hash, operand| {
        let hash = (hash ^ operand).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        hash ^ (hash >> 31)
    })
}

/// An element of a row.
pub(crate) fn loaded(x: f32) -> u64 {
    mix(1, [u64::from(x.to_bits()), 0, 0])
}

/// The +0 from which a lane starts.
pub(crate) fn zero() -> u64 {
    mix(2, [0; 3])
}

pub(crate) fn add(a: u64, b: u64) -> u64 {
    mix(3, [a, b, 0])
}

pub(crate) fn fma(a: u64, b: u64, c: u64) -> u64 {
    mix(6, [a, b, c])
}

/// What a lane that holds anything holds here.
const ANYTHING: u64 = 0xDEAD;

impl Isa<f32> for Trace {
    type V = [u64; LANES];

    fn splat(self, value: f32) -> Self::V {
        let bits = u64::from(value.to_bits());
        [if bits == 0 { zero() } else { mix(7, [bits, 0, 0]) }; LANES]
    }
    fn add(self, a: Self::V, b: Self::V) -> Self::V {
        std::array::from_fn(|l| add(a[l], b[l]))
    }
    fn mul(self, a: Self::V, b: Self::V) -> Self::V {
        std::array::from_fn(|l| mix(4, [a[l], b[l], 0]))
    }
    fn sub(self, a: Self::V, b: Self::V) -> Self::V {
        std::array::from_fn(|l| mix(5, [a[l], b[l], 0]))
    }
    fn fma(self, a: Self::V, b: Self::V, c: Self::V) -> Self::V {
        std::array::from_fn(|l| fma(a[l], b[l], c[l]))
    }
    fn take_first(self, n: usize, new: Self::V, old: Self::V) -> Self::V {
        std::array::from_fn(|l| if l < n { new[l] } else { old[l] })
    }
    fn down<const W: usize>(self, v: Self::V) -> Self::V {
        std::array::from_fn(|l| if l < W { v[l + W] } else { ANYTHING })
    }
    fn load(self, from: &[f32; LANES]) -> Self::V {
        from.map(loaded)
    }
    fn first(self, _: Self::V) -> f32 {
        unreachable!("a hash is no number")
    }
    fn store(self, _: Self::V, _: &mut [f32; LANES]) {
        unreachable!("a hash is no number")
    }
}
