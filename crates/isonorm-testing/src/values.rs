//! Values to try norms on, the same on every machine: splitmix64 and exact f64 operations.

use half::{bf16, f16};

use crate::DType;

/// Steele, Lea & Flood's splitmix64, 2014.
#[derive(Clone, Debug)]
pub struct SplitMix64(u64);

impl SplitMix64 {
    /// The stream of a seed.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next 64 bits.
    pub fn word(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }

    /// Below `bound`, which is not 0.
    pub fn below(&mut self, bound: usize) -> usize {
        (self.word() % bound as u64) as usize
    }

    /// [0, 1), on a grid of 2^-53.
    pub fn uniform(&mut self) -> f64 {
        (self.word() >> 11) as f64 * f64::EPSILON / 2.0
    }

    /// Mean 0, variance 1: twelve uniforms, less six.
    pub fn normal(&mut self) -> f64 {
        (0..12).fold(-6.0, |sum, _| sum + self.uniform())
    }
}

/// What values look like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// N(0, 1).
    Normal,
    /// N(1000, 1): a mean far from 0.
    Offset,
    /// Squares leave the compute type above.
    Huge,
    /// Squares leave it below.
    Tiny,
    /// Subnormal in the storage type.
    Subnormal,
    /// Exponents from the whole range.
    Wide,
    /// N(0, 1) with zeros, subnormals, infinities, NaN and the greatest values strewn in.
    Hostile,
    /// The same value throughout.
    Constant,
}

impl Kind {
    /// Every kind.
    pub const ALL: [Kind; 8] = [
        Kind::Normal,
        Kind::Offset,
        Kind::Huge,
        Kind::Tiny,
        Kind::Subnormal,
        Kind::Wide,
        Kind::Hostile,
        Kind::Constant,
    ];
}

/// `n` values that `dtype` holds exactly.
pub fn values(dtype: DType, kind: Kind, seed: u64, n: usize) -> Vec<f64> {
    let mut source = SplitMix64::new(seed);
    let constant = source.normal();
    let mut next = || match kind {
        Kind::Normal => source.normal(),
        Kind::Offset => source.normal() + 1000.0,
        Kind::Huge => source.normal() * huge(dtype),
        Kind::Tiny => source.normal() / huge(dtype),
        Kind::Subnormal => source.normal() * 20.0 * dtype.least(),
        Kind::Wide => wide(dtype, &mut source),
        Kind::Hostile => hostile(dtype, &mut source),
        Kind::Constant => constant,
    };
    (0..n).map(|_| dtype.narrow(next())).collect()
}

fn huge(dtype: DType) -> f64 {
    match dtype {
        DType::F64 => 1e200,
        DType::F32 | DType::Bf16 => 1e30,
        DType::F16 => 8e3,
    }
}

fn wide(dtype: DType, source: &mut SplitMix64) -> f64 {
    let (_, least_normal, greatest) = dtype.format();
    let exponent = least_normal + source.below((greatest - least_normal) as usize) as i32;
    source.normal() / 8.0 * 2f64.powi(exponent)
}

fn hostile(dtype: DType, source: &mut SplitMix64) -> f64 {
    let sign = if source.word() & 1 == 0 { 1.0 } else { -1.0 };
    sign * match source.below(24) {
        0 | 1 => 0.0,
        2 => dtype.least(),
        3 => dtype.least() * 77.0,
        4 => dtype.greatest(),
        5 => dtype.greatest() / 3.0,
        6 => f64::INFINITY,
        7 => f64::NAN,
        _ => source.normal(),
    }
}

/// `n` values of mean 0 and variance 1, as `spec/accuracy` makes them: Irwin and Hall's twelve uniform numbers, less
/// six, in one rounding.
pub fn irwin_hall(seed: u64, n: usize) -> Vec<f64> {
    let mut source = SplitMix64::new(seed);
    let mut value = || {
        let sum: u64 = (0..12).map(|_| source.word() >> 12).sum();
        (sum as i64 - 6 * (1 << 52)) as f64 * f64::EPSILON
    };
    (0..n).map(|_| value()).collect()
}

/// [`values`] of f32.
pub fn f32s(kind: Kind, seed: u64, n: usize) -> Vec<f32> {
    values(DType::F32, kind, seed, n).into_iter().map(|v| v as f32).collect()
}

/// [`values`] of f64.
pub fn f64s(kind: Kind, seed: u64, n: usize) -> Vec<f64> {
    values(DType::F64, kind, seed, n)
}

/// [`values`] of f16.
pub fn f16s(kind: Kind, seed: u64, n: usize) -> Vec<f16> {
    let bits = |v| f16::from_bits(DType::F16.bits(v) as u16);
    values(DType::F16, kind, seed, n).into_iter().map(bits).collect()
}

/// [`values`] of bf16.
pub fn bf16s(kind: Kind, seed: u64, n: usize) -> Vec<bf16> {
    let bits = |v| bf16::from_bits(DType::Bf16.bits(v) as u16);
    values(DType::Bf16, kind, seed, n).into_iter().map(bits).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_stream_is_the_published_one() {
        let mut source = SplitMix64::new(1234567);
        let words: Vec<u64> = (0..3).map(|_| source.word()).collect();
        assert_eq!(words, [6457827717110365317, 3203168211198807973, 9817491932198370423]);
    }

    #[test]
    fn normal_values_have_mean_0_and_variance_1() {
        let x = f64s(Kind::Normal, 1, 20_000);
        let mean = x.iter().sum::<f64>() / x.len() as f64;
        let variance = x.iter().map(|v| (v - mean) * (v - mean)).sum::<f64>() / x.len() as f64;
        // Four standard errors: 1 / sqrt(20000) of the mean, sqrt(2 / 20000) of the variance.
        assert!(mean.abs() < 0.029, "mean {mean}");
        assert!((variance - 1.0).abs() < 0.04, "variance {variance}");
    }

    #[test]
    fn each_kind_is_what_it_says_in_every_type() {
        for dtype in DType::ALL {
            let of = |kind| values(dtype, kind, 7, 500);
            let (_, least_normal, _) = dtype.format();
            assert!(of(Kind::Normal).iter().all(|v| v.abs() < 6.0), "{dtype:?} normal");
            assert!(of(Kind::Offset).iter().all(|v| (990.0..1010.0).contains(v)), "{dtype:?} offset");
            assert!(of(Kind::Subnormal).iter().all(|v| v.abs() < 2f64.powi(least_normal)), "{dtype:?}");
            assert!(of(Kind::Subnormal).iter().any(|v| *v != 0.0), "{dtype:?} all zero");
            assert!(of(Kind::Wide).iter().all(|v| v.is_finite()), "{dtype:?} wide");
            let hostile = of(Kind::Hostile);
            assert!(hostile.iter().any(|v| v.is_nan()), "{dtype:?} without NaN");
            assert!(hostile.iter().any(|v| v.is_infinite()), "{dtype:?} without infinity");
            assert!(hostile.iter().any(|v| *v == 0.0 && v.is_sign_negative()), "{dtype:?} without -0");
            assert!(hostile.contains(&dtype.greatest()), "{dtype:?} without its greatest value");
            let constant = of(Kind::Constant);
            assert!(constant.iter().all(|v| *v == constant[0]), "{dtype:?} constant");
        }
    }
}
