//! Numbers in one of the four storage types, as the library takes them.

use half::{bf16, f16};
use isonorm::{DType, Slice, SliceMut};

/// The elements of a tensor.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Values {
    F32(Vec<f32>),
    F64(Vec<f64>),
    F16(Vec<f16>),
    Bf16(Vec<bf16>),
}

/// Runs `$body` with `$v` bound to the vector, whatever its type.
macro_rules! with_vec {
    ($values:expr, $v:ident => $body:expr) => {
        match $values {
            Values::F32($v) => $body,
            Values::F64($v) => $body,
            Values::F16($v) => $body,
            Values::Bf16($v) => $body,
        }
    };
}

impl Values {
    /// Numbers, each rounded once to `dtype`.
    pub(crate) fn rounded(numbers: impl Iterator<Item = f64>, dtype: DType) -> Self {
        match dtype {
            DType::F32 => Values::F32(numbers.map(|v| v as f32).collect()),
            DType::F64 => Values::F64(numbers.collect()),
            DType::F16 => Values::F16(numbers.map(f16::from_f64).collect()),
            DType::Bf16 => Values::Bf16(numbers.map(bf16::from_f64).collect()),
        }
    }

    pub(crate) fn filled(value: f64, len: usize, dtype: DType) -> Self {
        Values::rounded(std::iter::repeat_n(value, len), dtype)
    }

    pub(crate) fn len(&self) -> usize {
        with_vec!(self, v => v.len())
    }

    pub(crate) fn dtype(&self) -> DType {
        self.as_slice().dtype()
    }

    /// The element, widened exactly.
    pub(crate) fn at(&self, i: usize) -> f64 {
        match self {
            Values::F32(v) => f64::from(v[i]),
            Values::F64(v) => v[i],
            Values::F16(v) => f64::from(v[i]),
            Values::Bf16(v) => f64::from(v[i]),
        }
    }

    /// The elements, widened exactly.
    pub(crate) fn iter(&self) -> impl Iterator<Item = f64> {
        (0..self.len()).map(|i| self.at(i))
    }

    pub(crate) fn as_slice(&self) -> Slice<'_> {
        with_vec!(self, v => v.into())
    }

    pub(crate) fn as_slice_mut(&mut self) -> SliceMut<'_> {
        with_vec!(self, v => v.into())
    }
}

/// The type in which norms of `dtype` are computed.
pub(crate) fn compute_type(dtype: DType) -> DType {
    if dtype == DType::F64 { DType::F64 } else { DType::F32 }
}

/// The elements of `slice` at `indices`.
pub(crate) fn gather(slice: Slice<'_>, indices: impl Iterator<Item = usize>) -> Values {
    match slice {
        Slice::F32(s) => Values::F32(indices.map(|i| s[i]).collect()),
        Slice::F64(s) => Values::F64(indices.map(|i| s[i]).collect()),
        Slice::F16(s) => Values::F16(indices.map(|i| s[i]).collect()),
        Slice::Bf16(s) => Values::Bf16(indices.map(|i| s[i]).collect()),
    }
}
