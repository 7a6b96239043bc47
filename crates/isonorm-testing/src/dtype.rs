//! The storage types, by integer and power-of-two arithmetic on f64.

use serde::Deserialize;

/// The name of a storage type.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DType {
    /// IEEE binary32.
    F32,
    /// IEEE binary64.
    F64,
    /// IEEE binary16.
    F16,
    /// The upper half of a binary32.
    Bf16,
}

impl DType {
    /// All four.
    pub const ALL: [DType; 4] = [DType::F32, DType::F64, DType::F16, DType::Bf16];

    /// Precision in bits, exponent of the least normal number, exponent of the greatest.
    pub const fn format(self) -> (i32, i32, i32) {
        match self {
            DType::F32 => (24, -126, 127),
            DType::F64 => (53, -1022, 1023),
            DType::F16 => (11, -14, 15),
            DType::Bf16 => (8, -126, 127),
        }
    }

    /// Width in hexadecimal digits.
    pub const fn digits(self) -> usize {
        match self {
            DType::F32 => 8,
            DType::F64 => 16,
            DType::F16 | DType::Bf16 => 4,
        }
    }

    /// The nearest value of this type, ties to even, in one rounding; NaN stays NaN.
    pub fn narrow(self, value: f64) -> f64 {
        let (precision, least_normal, greatest) = self.format();
        if self == DType::F64 || value == 0.0 || !value.is_finite() {
            return value;
        }
        // Subnormal f64 values count as exponent -1023: far below every narrower type's last place.
        let exponent = (value.to_bits() >> 52 & 0x7ff) as i32 - 1023;
        let last_place = exponent.max(least_normal) - precision + 1;
        // The scaled value is below 2^precision: adding and subtracting 2^52 would round it as well.
        let whole = (value * power_of_two(-last_place)).round_ties_even();
        let rounded = whole * power_of_two(last_place);
        let overflows = rounded.abs() >= 2.0 * power_of_two(greatest);
        if overflows { f64::INFINITY.copysign(value) } else { rounded.copysign(value) }
    }

    /// The storage pattern of a value this type can hold.
    pub fn bits(self, value: f64) -> u64 {
        match self {
            DType::F64 => value.to_bits(),
            DType::F32 => u64::from((value as f32).to_bits()),
            DType::Bf16 => u64::from((value as f32).to_bits() >> 16) | u64::from(value.is_nan()) << 6,
            DType::F16 => f16_bits(value),
        }
    }

    /// The value of a storage pattern.
    pub fn value(self, bits: u64) -> f64 {
        match self {
            DType::F64 => f64::from_bits(bits),
            DType::F32 => f64::from(f32::from_bits(bits as u32)),
            DType::Bf16 => f64::from(f32::from_bits((bits as u32) << 16)),
            DType::F16 => f16_value(bits),
        }
    }

    /// The greatest finite value.
    pub fn greatest(self) -> f64 {
        let (precision, _, greatest) = self.format();
        power_of_two(greatest) * (2.0 - power_of_two(1 - precision))
    }

    /// The smallest subnormal value.
    pub fn least(self) -> f64 {
        let (precision, least_normal, _) = self.format();
        power_of_two(least_normal) * power_of_two(1 - precision)
    }
}

/// 2^exponent, for the exponents of normal f64 numbers.
pub(crate) fn power_of_two(exponent: i32) -> f64 {
    assert!((-1022..=1023).contains(&exponent), "2^{exponent} is not a normal f64");
    f64::from_bits(((exponent + 1023) as u64) << 52)
}

fn f16_bits(value: f64) -> u64 {
    let sign = u64::from(value.is_sign_negative()) << 15;
    let magnitude = value.abs();
    sign | if value.is_nan() {
        0x7e00
    } else if value.is_infinite() {
        0x7c00
    } else if magnitude < power_of_two(-14) {
        (magnitude * power_of_two(24)) as u64
    } else {
        let bits = magnitude.to_bits();
        ((bits >> 52) + 15 - 1023) << 10 | (bits >> 42 & 0x3ff)
    }
}

fn f16_value(bits: u64) -> f64 {
    let (exponent, fraction) = ((bits >> 10 & 0x1f) as i32, (bits & 0x3ff) as f64);
    let magnitude = match exponent {
        0 => fraction * power_of_two(-24),
        31 if fraction == 0.0 => f64::INFINITY,
        31 => f64::NAN,
        _ => (1024.0 + fraction) * power_of_two(exponent - 25),
    };
    if bits >> 15 == 1 { -magnitude } else { magnitude }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_sixteen_bit_pattern_survives_a_round_trip() {
        for dtype in [DType::F16, DType::Bf16] {
            for bits in 0..=0xffff {
                let value = dtype.value(bits);
                if !value.is_nan() {
                    assert_eq!(dtype.bits(value), bits, "{dtype:?} {bits:04x}");
                    assert_eq!(dtype.bits(dtype.narrow(value)), bits, "{dtype:?} {bits:04x}");
                }
            }
        }
    }

    #[test]
    fn halfway_values_go_to_even_and_a_hair_beyond_goes_up() {
        for dtype in [DType::F16, DType::Bf16, DType::F32] {
            for bits in 0..0x7b00 {
                let (low, high) = (dtype.value(bits), dtype.value(bits + 1));
                let half = low + (high - low) / 2.0;
                let even = if bits % 2 == 0 { low } else { high };
                assert_eq!(dtype.narrow(half), even, "{dtype:?} {bits:04x}");
                assert_eq!(dtype.narrow(half.next_up()), high, "{dtype:?} {bits:04x}");
                assert_eq!(dtype.narrow(-half.next_down()), -low, "{dtype:?} {bits:04x}");
            }
        }
    }

    #[test]
    fn narrowing_to_f32_is_the_conversion_of_the_language() {
        for bits in (0..=u64::MAX - (1 << 40)).step_by(0x0003_1415_9265_3589) {
            let value = f64::from_bits(bits);
            let (found, expected) = (DType::F32.narrow(value), value as f32);
            assert!(
                found.is_nan() && expected.is_nan() || found.to_bits() == f64::from(expected).to_bits(),
                "{value:e}: {found:e} is not {expected:e}"
            );
        }
    }

    #[test]
    fn the_ends_of_each_range_are_where_they_should_be() {
        assert_eq!(DType::F16.narrow(65519.99), 65504.0);
        assert_eq!(DType::F16.narrow(65520.0), f64::INFINITY);
        assert_eq!(DType::Bf16.bits(DType::Bf16.narrow(1e-39)), 0x000b);
        assert_eq!(DType::F32.narrow(-f64::MAX), f64::NEG_INFINITY);
        assert_eq!(DType::F16.greatest(), 65504.0);
        assert_eq!(DType::F32.greatest(), f64::from(f32::MAX));
        assert_eq!(DType::F64.greatest(), f64::MAX);
        assert_eq!(DType::F64.least().to_bits(), 1);
        assert_eq!(DType::F32.least(), f64::from(f32::from_bits(1)));
        assert!(DType::Bf16.narrow(-1e-60).is_sign_negative());
    }
}
