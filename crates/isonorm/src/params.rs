//! Weight, bias, weight offset and the rounding recipe: options that every norm shares.

use std::hint::black_box;

use crate::element::{Compute, DType, Element, with_element};
use crate::error::Error;
use crate::slice::{Slice, SliceMut};

/// When x_hat is rounded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Recipe {
    /// Once, after weight and bias: PyTorch, Gemma.
    #[default]
    Torch,
    /// To x's storage type before the weight too: Hugging Face's `LlamaRMSNorm`.
    Llama,
}

/// Weight and bias as a norm was given them.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Params<'a> {
    pub(crate) weight: Option<Slice<'a>>,
    pub(crate) bias: Option<Slice<'a>>,
    pub(crate) offset: f64,
}

impl<'a> Params<'a> {
    /// Checks lengths and types for `len` elements or channels of an x stored as `x`.
    #[inline]
    pub(crate) fn check(&self, len: usize, per: &'static str, x: DType) -> Result<(), Error> {
        let kind = |param: Option<Slice<'_>>| param.map(|param| param.kind());
        check_params(kind(self.weight), kind(self.bias), self.offset, len, per, x)
    }

    /// The parameters as a kernel of x stored as `T` can read them in place, or `None` where they have to
    /// be widened first.
    #[inline]
    pub(crate) fn direct<T: Element>(&self) -> Option<Direct<'a, T>> {
        let offset = T::Compute::from_f64(self.offset);
        if offset != T::Compute::ZERO {
            return match (self.weight, self.bias) {
                (Some(weight), None) => Some(Direct::OffsetWeight(T::of(&weight)?, offset)),
                _ => None,
            };
        }
        match (self.weight, self.bias) {
            (None, None) => Some(Direct::None),
            (Some(weight), None) => {
                T::of(&weight).map(Direct::Weight).or_else(|| T::Compute::of(&weight).map(Direct::WideWeight))
            }
            (Some(weight), Some(bias)) => match (T::of(&weight), T::of(&bias)) {
                (Some(weight), Some(bias)) => Some(Direct::WeightBias(weight, bias)),
                _ => Some(Direct::WideWeightBias(T::Compute::of(&weight)?, T::Compute::of(&bias)?)),
            },
            (None, Some(_)) => None,
        }
    }

    /// Weight and bias of the elements from `start` on, widened; 1 and -0 where there are none, which
    /// change no bit of `fma(x_hat, weight, bias)`.
    pub(crate) fn widen<C: Compute>(&self, start: usize, weight: &mut [C], bias: &mut [C]) {
        self.widen_weight(start, weight);
        match self.bias {
            Some(from) => widen_slice(from.part(start, bias.len()), bias),
            None => bias.fill(C::NEG_ZERO),
        }
    }

    /// The weight of the elements from `start` on, widened and with its offset; 1 where there is none.
    pub(crate) fn widen_weight<C: Compute>(&self, start: usize, weight: &mut [C]) {
        match self.weight {
            Some(from) => widen_slice(from.part(start, weight.len()), weight),
            None => weight.fill(C::ONE),
        }
        let offset = C::from_f64(self.offset);
        if offset != C::ZERO {
            weight.iter_mut().for_each(|w| *w = *w + offset);
        }
    }
}

/// Length and type of a parameter.
pub type Kind = (usize, DType);

/// Weight, bias and what is added to the weight, for `len` elements or channels of an x stored as `x`.
#[inline]
pub fn check_params(
    weight: Option<Kind>,
    bias: Option<Kind>,
    offset: f64,
    len: usize,
    per: &'static str,
    x: DType,
) -> Result<(), Error> {
    if let Some(weight) = weight {
        check_param("weight", weight, len, per, x)?;
    }
    if let Some(bias) = bias {
        check_param("bias", bias, len, per, x)?;
    }
    // +0 or -0, by the bits: a host may have small numbers compare as 0. Unseen, this would become a comparison.
    if black_box(offset.to_bits()) << 1 == 0 {
        return Ok(());
    }
    if !offset.is_finite() {
        return Err(Error::Option { name: "weight_offset", found: offset, expected: "a finite number" });
    }
    // What rounds to 0 in the compute type counts as not given: half of f32's smallest value is 2^-150.
    let is_given = x == DType::F64 || offset.abs() > 0.5 * f64::from(f32::from_bits(1));
    if is_given && weight.is_none() {
        return Err(Error::OffsetWithoutWeight { offset });
    }
    Ok(())
}

/// A parameter's length and type, or those of its gradient.
#[inline]
pub fn check_param(
    name: &'static str,
    (found, dtype): Kind,
    expected: usize,
    per: &'static str,
    x: DType,
) -> Result<(), Error> {
    if found != expected {
        return Err(Error::ParameterLen { name, per, expected, found });
    }
    if dtype == DType::F64 && x != DType::F64 {
        return Err(Error::Type { name, found: DType::F64, like: "x", expected: x });
    }
    Ok(())
}

/// Elements of a row that enter the statistics, if not all.
#[inline]
pub fn check_partial(partial: Option<usize>, hidden: usize) -> Result<(), Error> {
    match partial {
        Some(k) if k == 0 || k > hidden => Err(Error::Partial { found: k, hidden }),
        _ => Ok(()),
    }
}

/// f64 goes with f64 alone.
pub fn check_type(name: &'static str, found: DType, x: DType) -> Result<(), Error> {
    let is_same = (found == DType::F64) == (x == DType::F64);
    if is_same { Ok(()) } else { Err(Error::Type { name, found, like: "x", expected: x }) }
}

/// Parameters that a kernel reads where they are.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Direct<'a, T: Element> {
    None,
    Weight(&'a [T]),
    WideWeight(&'a [T::Compute]),
    OffsetWeight(&'a [T], T::Compute),
    WeightBias(&'a [T], &'a [T]),
    WideWeightBias(&'a [T::Compute], &'a [T::Compute]),
}

/// Copies `from` to `to`, exactly. An f64 goes to f64 alone, which `check_param` has seen to.
pub(crate) fn widen_slice<C: Compute>(from: Slice<'_>, to: &mut [C]) {
    if let Some(from) = C::of(&from) {
        return to.copy_from_slice(from);
    }
    with_element!(from.dtype(), E => {
        if let Some(from) = E::of(&from) {
            for (to, from) in to.iter_mut().zip(from) {
                *to = C::from_f32(from.widen().to_f32());
            }
        }
    });
}

/// Rounds `from` to the type of `to`, once.
pub(crate) fn narrow_slice<C: Compute>(from: &[C], to: SliceMut<'_>) {
    with_element!(to.dtype(), E => {
        if let Some(to) = E::of_mut(to) {
            for (to, from) in to.iter_mut().zip(from) {
                *to = narrow_once::<E>(from.to_f64());
            }
        }
    });
}

/// The nearest `E` to `value`: from f64 to f16 or bf16 by way of an f32 rounded to odd, which keeps whether
/// the value lies above, below or on a halfway point.
fn narrow_once<E: Element>(value: f64) -> E {
    if E::DTYPE.size() >= size_of::<f32>() {
        return E::narrow(E::Compute::from_f64(value));
    }
    let near = value as f32;
    let toward_zero = if f64::from(near).abs() > value.abs() { f32::from_bits(near.to_bits() - 1) } else { near };
    let is_exact = f64::from(near) == value || value.is_nan();
    let odd = if is_exact { near } else { f32::from_bits(toward_zero.to_bits() | 1) };
    E::narrow(E::Compute::from_f32(odd))
}

#[cfg(test)]
mod tests {
    use half::{bf16, f16};

    use super::*;

    #[test]
    fn an_f64_goes_to_a_half_type_in_one_rounding() {
        let above = f64::EPSILON * 4.0;
        for (value, bits) in [
            (1.0 + 1.0 / 256.0, 0x3F80), // halfway, to even
            (1.0 + 1.0 / 256.0 + above, 0x3F81),
            (-1.0 - 3.0 / 256.0 + above, 0xBF81),
            (f64::MAX, 0x7F80),
            (f64::MIN_POSITIVE, 0),
            (f64::NEG_INFINITY, 0xFF80),
            (1e-39, 0x000B),
        ] {
            assert_eq!(narrow_once::<bf16>(value).to_bits(), bits, "{value:e}");
        }
        assert_eq!(narrow_once::<f16>(1.0 + 1.0 / 2048.0).to_bits(), 0x3C00);
        assert_eq!(narrow_once::<f16>(1.0 + 1.0 / 2048.0 + above).to_bits(), 0x3C01);
        assert_eq!(narrow_once::<f16>(65520.0 - 1e-9).to_bits(), 0x7BFF);
        assert!(narrow_once::<bf16>(f64::NAN).is_nan());
    }
}
