//! From sums to statistics: eps, the inverse root and the range rule, once for every norm.
//!
//! Only scalars of one row are handled here; the sums themselves come from `order.rs`.

use std::hint::black_box;

use crate::element::{Compute, Element};
use crate::error::Error;
use crate::isa::float_env::FloatEnv;

/// The statistics of one row, group or channel, exactly as its computation used them.
///
/// Where the range rule did not apply `scale` is 1. `mean` and `delta` are 0 for RMSNorm, whose `var` is
/// the mean square. [`rstd`](Stats::rstd), [`mean`](Stats::mean) and [`var`](Stats::var) give the values
/// in x's own scale.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Stats<C> {
    /// The first mean, of `x * scale`.
    pub mean: C,
    /// The mean of the deviations from `mean`: what the first mean was off by.
    pub delta: C,
    /// The variance or mean square of `x * scale`, before eps.
    pub var: C,
    /// One over the root.
    pub inv: C,
    /// The power of two by which x was multiplied.
    pub scale: C,
}

impl<C: Compute> Stats<C> {
    /// `inv * scale`: one over the standard deviation or root mean square of x.
    pub fn rstd(&self) -> C {
        self.inv * self.scale
    }
    /// The mean of x.
    pub fn mean(&self) -> C {
        (self.mean + self.delta) / self.scale
    }
    /// The variance (RMSNorm: the mean square) of x.
    pub fn var(&self) -> C {
        (self.var / self.scale) / self.scale
    }
    /// The same, with NaN that `store_split` takes: a caller's statistics may hold any.
    #[inline(always)]
    pub(crate) fn quiet(self) -> Self {
        Stats { mean: self.mean.quiet(), delta: self.delta.quiet(), inv: self.inv.quiet(), ..self }
    }
    /// Whether x was multiplied by anything but 1.
    pub(crate) fn is_scaled(&self) -> bool {
        self.scale != C::ONE
    }
}

/// eps as a norm was given it: inside the root (PyTorch) or outside.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct EpsOption {
    pub(crate) value: f64,
    pub(crate) outside: bool,
}

impl EpsOption {
    pub(crate) const fn inside(value: f64) -> Self {
        EpsOption { value, outside: false }
    }

    /// What `rounded` would say.
    #[inline]
    pub(crate) fn check<C: Compute>(self) -> Result<(), Error> {
        // From +0 to 1, by their bits: a host may have numbers this small compare as 0.
        let is_common = self.value.to_bits() <= 1f64.to_bits();
        if is_common { Ok(()) } else { self.rounded::<C>().map(|_| ()) }
    }

    /// eps in the compute type, of one that has been checked, in the floating-point environment of the contract.
    #[inline]
    pub(crate) fn in_float_env<C: Compute>(self, _: &FloatEnv) -> Eps<C> {
        // The black boxes keep the rounding between the setting of the environment and its restoring.
        Eps { value: black_box(C::from_f64(black_box(self.value))).magnitude(), outside: self.outside }
    }

    /// eps in the compute type.
    pub(crate) fn rounded<C: Compute>(self) -> Result<Eps<C>, Error> {
        let env = FloatEnv::standard();
        let eps = self.in_float_env::<C>(&env);
        // Before the host's setting is back, under which a number this small may compare as 0.
        let is_zero = black_box(black_box(eps.value) == C::ZERO);
        drop(env);
        if eps.value.finite() && (!self.value.is_sign_negative() || is_zero) {
            Ok(eps)
        } else {
            Err(Error::Option { name: "eps", found: self.value, expected: "a finite number of at least 0" })
        }
    }
}

/// eps in the compute type.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Eps<C> {
    value: C,
    outside: bool,
}

impl<C: Compute> Eps<C> {
    /// One over the root of a mean square or variance.
    #[inline(always)]
    pub(crate) fn inverse_root(self, ms: C) -> C {
        if self.outside { C::ONE / (ms.root() + self.value) } else { C::ONE / (ms + self.value).root() }
    }

    /// eps for `x * scale`.
    #[inline(always)]
    pub(crate) fn scaled(self, scale: C) -> Self {
        let value = if self.outside { self.value * scale } else { (self.value * scale) * scale };
        Eps { value, ..self }
    }

    /// A mean of gradients times q: `(root + eps) / root` with eps outside, 0 where root is 0. With eps inside there is
    /// no q.
    #[inline(always)]
    pub(crate) fn times_q(self, mean: C, stats: &Stats<C>) -> C {
        if !self.outside {
            return mean;
        }
        let eps = if stats.is_scaled() { self.scaled(stats.scale) } else { self };
        let root = stats.var.root();
        mean * if root == C::ZERO { C::ZERO } else { (root + eps.value) / root }
    }

    /// Whether `ms` is so small that a second computation keeps more of it.
    #[inline(always)]
    pub(crate) fn is_small(self, ms: C) -> bool {
        let limit = if self.outside { C::RANGE.eps_outside } else { C::RANGE.eps_inside };
        ms < C::RANGE.var && self.value < limit
    }

    /// The power of two that brings a row whose largest magnitude is `max` into range.
    pub(crate) fn scale(self, max: C) -> C {
        if !max.finite() {
            return C::ONE;
        }
        let eps = if self.outside { self.value } else { self.value.root() };
        let larger = if max > eps { max } else { eps };
        if larger == C::ZERO { C::ONE } else { (C::RANGE.scale)(larger) }
    }
}

/// The largest magnitude of a row; NaN where there is one.
pub(crate) fn largest<E: Element>(row: &[E]) -> E::Compute {
    let mut max = E::Compute::ZERO;
    for x in row {
        let x = x.widen().magnitude();
        if x > max || x.nan() {
            max = x;
        }
        if x.nan() {
            break;
        }
    }
    max
}

/// The limits of the range rule for one compute type.
#[doc(hidden)]
#[derive(Clone, Copy, Debug)]
pub struct Range<C> {
    var: C,
    eps_inside: C,
    eps_outside: C,
    /// 2^-e for a value in [2^e, 2^(e+1)), within the normal powers whose reciprocal is normal too.
    scale: fn(C) -> C,
}

impl Range<f32> {
    pub(crate) const fn f32() -> Self {
        Range {
            var: power(-100) as f32,
            eps_inside: power(-76) as f32,
            eps_outside: power(-26) as f32,
            scale: |value| {
                let exponent = exponent(f64::from(value)).clamp(-126, 126);
                power(-exponent) as f32
            },
        }
    }
}

impl Range<f64> {
    pub(crate) const fn f64() -> Self {
        Range {
            var: power(-900),
            eps_inside: power(-840),
            eps_outside: power(-416),
            scale: |value| {
                // A subnormal's exponent field is 0 and its true one lies below the clamp.
                power(-exponent(value).clamp(-1022, 1022))
            },
        }
    }
}

/// The exponent field of a finite f64, unbiased.
fn exponent(value: f64) -> i32 {
    ((value.to_bits() >> 52) & 0x7FF) as i32 - 1023
}

/// 2^e for -1022 <= e <= 1023.
const fn power(e: i32) -> f64 {
    f64::from_bits(((e + 1023) as u64) << 52)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_scale_puts_the_larger_value_into_one_to_two_and_is_clamped() {
        let eps = EpsOption::inside(0.0).rounded::<f32>().expect("0 is an eps");
        for (max, scale) in [
            (1.0f32, 1.0f32),
            (1.9999999, 1.0),
            (2.0, 0.5),
            (3e38, power(-126) as f32), // 2^127 asks for 2^-127
            (1e-45, power(126) as f32),
            (0.0, 1.0),
            (f32::INFINITY, 1.0),
            (f32::NAN, 1.0),
        ] {
            assert_eq!(eps.scale(max).to_bits(), scale.to_bits(), "max {max}");
        }
        let eps = EpsOption::inside(0.0).rounded::<f64>().expect("0 is an eps");
        for (max, scale) in [(1e308f64, power(-1022)), (5e-324, power(1022)), (3.0, 0.5)] {
            assert_eq!(eps.scale(max).to_bits(), scale.to_bits(), "max {max}");
        }
    }

    #[test]
    fn a_negative_infinite_or_nan_eps_is_refused() {
        for value in [-1e-6, f64::NAN, f64::INFINITY, 1e39] {
            assert!(EpsOption::inside(value).rounded::<f32>().is_err(), "{value}");
        }
        assert!(EpsOption::inside(1e39).rounded::<f64>().is_ok());
    }
}
