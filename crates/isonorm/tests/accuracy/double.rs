//! Numbers of 106 bits: the unevaluated sum of two f64 (Dekker 1971; Knuth's and FMA's exact sums and products).

use std::ops::{Add, Div, Mul, Sub};

#[derive(Clone, Copy, Debug)]
pub(crate) struct Double {
    pub(crate) high: f64,
    pub(crate) low: f64,
}

impl Double {
    fn sum(a: f64, b: f64) -> Self {
        let high = a + b;
        let of_b = high - a;
        Double { high, low: (a - (high - of_b)) + (b - of_b) }
    }

    fn product(a: f64, b: f64) -> Self {
        let high = a * b;
        Double { high, low: a.mul_add(b, -high) }
    }

    fn joined(self, low: f64) -> Self {
        Self::sum(self.high, self.low + low)
    }

    /// One step of Newton from f64's root doubles its bits.
    pub(crate) fn sqrt(self) -> Self {
        let root = Double::from(self.high.sqrt());
        let rest = self - root * root;
        root + Double::from(rest.high / (2.0 * root.high))
    }
}

impl From<f64> for Double {
    fn from(high: f64) -> Self {
        Double { high, low: 0.0 }
    }
}

impl Add for Double {
    type Output = Self;
    fn add(self, other: Self) -> Self {
        let high = Self::sum(self.high, other.high);
        let low = Self::sum(self.low, other.low);
        high.joined(low.high).joined(low.low)
    }
}

impl Sub for Double {
    type Output = Self;
    fn sub(self, other: Self) -> Self {
        self + Double { high: -other.high, low: -other.low }
    }
}

impl Mul for Double {
    type Output = Self;
    fn mul(self, other: Self) -> Self {
        Self::product(self.high, other.high).joined(self.high.mul_add(other.low, self.low * other.high))
    }
}

impl Div for Double {
    type Output = Self;
    fn div(self, other: Self) -> Self {
        let first = Double::from(self.high / other.high);
        let rest = self - first * other;
        let second = Double::from(rest.high / other.high);
        let rest = rest - second * other;
        first + second + Double::from(rest.high / other.high)
    }
}

#[test]
fn a_third_times_three_and_the_square_of_a_root_are_right_to_100_bits() {
    let third = Double::from(1.0) / Double::from(3.0);
    let one = third * Double::from(3.0) - Double::from(1.0);
    assert!(one.high.abs() < 2f64.powi(-100), "{one:?}");
    let two = Double::from(2.0).sqrt() * Double::from(2.0).sqrt() - Double::from(2.0);
    assert!(two.high.abs() < 2f64.powi(-100), "{two:?}");
    let tenth = Double::from(0.1) + Double::from(1e-20) - Double::from(0.1);
    assert!((tenth.high - 1e-20).abs() < 1e-34, "{tenth:?}");
}
