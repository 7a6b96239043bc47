//! Values, options and places of a valid call, as a fuzzer chooses them.

use arbitrary::Arbitrary;
use isonorm::{Cpu, Level};
use isonorm_testing::DType;
use isonorm_testing::golden::Array;
use isonorm_testing::oracle::Eps;
use isonorm_testing::values::{Kind, values};

use crate::support::Tensor;

const NARROW: [DType; 3] = [DType::F32, DType::F16, DType::Bf16];

fn one_of<T: Copy>(all: &[T], i: u8) -> T {
    all[usize::from(i) % all.len()]
}

/// A type that y, r or a residual may have with an x of `dtype`.
pub(crate) fn partner(dtype: DType, i: u8) -> DType {
    if dtype == DType::F64 { dtype } else { one_of(&NARROW, i) }
}

/// A tensor: values of a kind, and some elements of any bits.
#[derive(Arbitrary, Debug)]
pub(crate) struct Values {
    dtype: u8,
    kind: u8,
    seed: u64,
    bits: Vec<(u16, u64)>,
}

impl Values {
    pub(crate) fn tensor(&self, len: usize) -> Tensor {
        self.of_type(one_of(&DType::ALL, self.dtype), len)
    }

    pub(crate) fn of_type(&self, dtype: DType, len: usize) -> Tensor {
        let mut array = Array::from_values(dtype, &values(dtype, one_of(&Kind::ALL, self.kind), self.seed, len));
        for (at, bits) in &self.bits {
            array.bits[usize::from(*at) % len] = bits & (u64::MAX >> (64 - 4 * dtype.digits()));
        }
        Tensor::new(&array)
    }

    /// Of a type that goes with `x`, and of its length.
    pub(crate) fn beside(&self, x: &Tensor) -> Tensor {
        self.of_type(partner(x.dtype(), self.dtype), x.len())
    }
}

/// eps, weight and bias.
#[derive(Arbitrary, Debug)]
pub(crate) struct Affine {
    eps: u8,
    outside: bool,
    offset: u8,
    given: [bool; 2],
    types: [u8; 2],
    kinds: [u8; 2],
}

impl Affine {
    pub(crate) fn eps(&self) -> Eps {
        let all = [1e-5, 1e-6, 0.0, 1e-30, 1e-45, 1e-12, 1.0, 1e30];
        Eps { value: one_of(&all, self.eps), outside: self.outside }
    }

    /// The weight or the bias, where it is given, of a type that goes with `dtype`.
    pub(crate) fn parameter(&self, which: usize, dtype: DType, len: usize) -> Option<Tensor> {
        let types: &[DType] = if dtype == DType::F64 { &DType::ALL } else { &NARROW };
        let (own, kind) = (one_of(types, self.types[which]), one_of(&Kind::ALL, self.kinds[which]));
        self.given[which].then(|| Tensor::values(own, kind, 7 + which as u64, len))
    }

    /// Added to the weight, where there is one.
    pub(crate) fn offset(&self) -> f64 {
        if self.given[0] { one_of(&[0.0, 0.0, 1.0, -0.5, 1e-40], self.offset) } else { 0.0 }
    }
}

/// Elements of a call that threads share, whatever its type.
pub(crate) const MANY: usize = 400_000;

/// Where a call runs.
#[derive(Arbitrary, Debug)]
pub(crate) struct Place {
    level: u8,
    threads: u8,
    many: u8,
}

impl Place {
    pub(crate) fn cpu(&self) -> Cpu<'static> {
        let levels: Vec<Level> = Level::available().collect();
        Cpu::new().level(one_of(&levels, self.level)).threads(1 + usize::from(self.threads % 4))
    }

    /// Now and then a call that is large enough for threads.
    pub(crate) fn many(&self) -> bool {
        self.many == 255
    }
}
