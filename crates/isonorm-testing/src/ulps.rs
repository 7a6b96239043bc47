//! The distance of two values in units in the last place.

use half::{bf16, f16};

use crate::DType;

/// How many representable values lie from `a` to `b`; 0 for equal values, +0 and -0, and two NaN;
/// `u64::MAX` where one alone is NaN. Infinity is one step beyond the greatest value.
pub fn between(dtype: DType, a: u64, b: u64) -> u64 {
    match (dtype.value(a).is_nan(), dtype.value(b).is_nan()) {
        (true, true) => 0,
        (false, false) => place(dtype, a).abs_diff(place(dtype, b)),
        _ => u64::MAX,
    }
}

/// The pattern's place on the line of values, both zeros at 0.
fn place(dtype: DType, bits: u64) -> i64 {
    let sign = 1u64 << (dtype.digits() * 4 - 1);
    let magnitude = (bits & (sign - 1)) as i64;
    if bits & sign == 0 { magnitude } else { -magnitude }
}

/// [`between`] two f32.
pub fn f32(a: f32, b: f32) -> u64 {
    between(DType::F32, a.to_bits().into(), b.to_bits().into())
}

/// [`between`] two f64.
pub fn f64(a: f64, b: f64) -> u64 {
    between(DType::F64, a.to_bits(), b.to_bits())
}

/// [`between`] two f16.
pub fn f16(a: f16, b: f16) -> u64 {
    between(DType::F16, a.to_bits().into(), b.to_bits().into())
}

/// [`between`] two bf16.
pub fn bf16(a: bf16, b: bf16) -> u64 {
    between(DType::Bf16, a.to_bits().into(), b.to_bits().into())
}

#[cfg(test)]
mod tests {
    #[test]
    fn neighbours_are_one_apart_across_exponents_zero_and_infinity() {
        assert_eq!(super::f32(1.0, 1.0f32.next_up()), 1);
        assert_eq!(super::f32(1.0f32.next_down(), 1.0f32.next_up()), 2);
        assert_eq!(super::f32(0.0, -0.0), 0);
        assert_eq!(super::f32(f32::from_bits(1), -f32::from_bits(1)), 2);
        assert_eq!(super::f64(f64::MAX, f64::INFINITY), 1);
        assert_eq!(super::f64(f64::NEG_INFINITY, f64::INFINITY), 2 * (0x7ff << 52));
    }

    #[test]
    fn sixteen_bit_types_count_in_their_own_steps() {
        use half::{bf16, f16};
        assert_eq!(super::bf16(bf16::ONE, bf16::from_bits(0x3f83)), 3);
        assert_eq!(super::f16(f16::NEG_ONE, f16::from_bits(0xbc02)), 2);
    }

    #[test]
    fn nan_is_near_nan_alone() {
        assert_eq!(super::f32(f32::NAN, -f32::NAN), 0);
        assert_eq!(super::f32(f32::NAN, f32::INFINITY), u64::MAX);
    }
}
