//! The conversions that the emulation has in place of the GPU's instructions: all of them, as crate `half` has them.

mod support;

use half::{bf16, f16};
use support::emulation::Conversions;

#[test]
fn f16_is_widened() {
    let conversions = Conversions::new();
    let widen = conversions.widen_f16();
    for bits in 0..=u16::MAX {
        let (expected, found) = (f16::from_bits(bits).to_f32(), widen(bits));
        assert!(same(expected, found), "{bits:04x}: expected {expected:e}, found {found:e}");
    }
}

#[test]
fn f16_and_bf16_are_rounded_to_nearest_even() {
    let conversions = Conversions::new();
    let (to_f16, to_bf16) = (conversions.narrow("narrow_f16"), conversions.narrow("narrow_bf16"));
    for bits in 0..=u16::MAX {
        for x in around(f16::from_bits(bits).to_f32(), f16::from_bits(bits.wrapping_add(1)).to_f32()) {
            let (expected, found) = (f16::from_f32(x), f16::from_bits(to_f16(x)));
            assert!(same(expected.to_f32(), found.to_f32()), "{x:e} to f16: expected {expected}, found {found}");
        }
        for x in around(bf16::from_bits(bits).to_f32(), bf16::from_bits(bits.wrapping_add(1)).to_f32()) {
            let (expected, found) = (bf16::from_f32(x), bf16::from_bits(to_bf16(x)));
            assert!(same(expected.to_f32(), found.to_f32()), "{x:e} to bf16: expected {expected}, found {found}");
        }
    }
    for x in [65519.996, 65520.0, f32::MAX, f32::INFINITY] {
        let (expected, found) = (f16::from_f32(x), f16::from_bits(to_f16(x)));
        assert_eq!(expected, found, "{x:e} to f16");
    }
}

/// A value, the point halfway to its neighbour, and what lies beside that.
fn around(value: f32, neighbour: f32) -> [f32; 4] {
    let halfway = ((f64::from(value) + f64::from(neighbour)) / 2.0) as f32;
    [value, halfway, halfway.next_down(), halfway.next_up()]
}

/// The same bits, or NaN both.
fn same(a: f32, b: f32) -> bool {
    a.to_bits() == b.to_bits() || (a.is_nan() && b.is_nan())
}
