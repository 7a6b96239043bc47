//! Weight, bias, weight offset and the rounding recipe: options that every norm shares.

use crate::element::{Compute, DType, Element, Slice, SliceMut, with_element};
use crate::error::Error;

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
    pub(crate) fn check(&self, len: usize, per: &'static str, x: DType) -> Result<(), Error> {
        for (name, param) in [("weight", self.weight), ("bias", self.bias)] {
            if let Some(param) = param {
                check_param(name, param, len, per, x)?;
            }
        }
        let offset = self.offset;
        if !offset.is_finite() {
            return Err(Error::Option { name: "weight_offset", found: offset, expected: "a finite number" });
        }
        // What rounds to 0 in the compute type counts as not given: half of f32's smallest value is 2^-150.
        let is_given = if x == DType::F64 { offset != 0.0 } else { offset.abs() > 0.5 * f64::from(f32::from_bits(1)) };
        if is_given && self.weight.is_none() {
            return Err(Error::OffsetWithoutWeight { offset });
        }
        Ok(())
    }

    /// The parameters as a kernel of x stored as `T` can read them in place, or `None` where they have to
    /// be widened first.
    pub(crate) fn direct<T: Element>(&self) -> Option<Direct<'a, T>> {
        if T::Compute::from_f64(self.offset) != T::Compute::ZERO {
            return None;
        }
        match (self.weight, self.bias) {
            (None, None) => Some(Direct::None),
            (Some(weight), None) => T::of(&weight)
                .map(Direct::Weight)
                .or_else(|| T::Compute::of(&weight).map(Direct::WideWeight)),
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
        match self.weight {
            Some(from) => widen_slice(from.part(start, weight.len()), weight),
            None => weight.fill(C::ONE),
        }
        let offset = C::from_f64(self.offset);
        if offset != C::ZERO {
            weight.iter_mut().for_each(|w| *w = *w + offset);
        }
        match self.bias {
            Some(from) => widen_slice(from.part(start, bias.len()), bias),
            None => bias.fill(C::NEG_ZERO),
        }
    }
}

/// A parameter's length and type.
pub(crate) fn check_param(
    name: &'static str,
    param: Slice<'_>,
    expected: usize,
    per: &'static str,
    x: DType,
) -> Result<(), Error> {
    if param.len() != expected {
        return Err(Error::ParameterLen { name, per, expected, found: param.len() });
    }
    if param.dtype() == DType::F64 && x != DType::F64 {
        return Err(Error::Type { name, found: DType::F64, x });
    }
    Ok(())
}

/// f64 goes with f64 alone.
pub(crate) fn check_type(name: &'static str, found: DType, x: DType) -> Result<(), Error> {
    if (found == DType::F64) == (x == DType::F64) { Ok(()) } else { Err(Error::Type { name, found, x }) }
}

/// Parameters that a kernel reads where they are.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Direct<'a, T: Element> {
    None,
    Weight(&'a [T]),
    WideWeight(&'a [T::Compute]),
    WeightBias(&'a [T], &'a [T]),
    WideWeightBias(&'a [T::Compute], &'a [T::Compute]),
}

impl<'a, T: Element> Direct<'a, T> {
    /// The parameters of some columns.
    pub(crate) fn columns(self, columns: std::ops::Range<usize>) -> Direct<'a, T> {
        match self {
            Direct::None => Direct::None,
            Direct::Weight(weight) => Direct::Weight(&weight[columns]),
            Direct::WideWeight(weight) => Direct::WideWeight(&weight[columns]),
            Direct::WeightBias(weight, bias) => Direct::WeightBias(&weight[columns.clone()], &bias[columns]),
            Direct::WideWeightBias(weight, bias) => {
                Direct::WideWeightBias(&weight[columns.clone()], &bias[columns])
            }
        }
    }
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
                *to = E::narrow(<E as Element>::Compute::from_f64(from.to_f64()));
            }
        }
    });
}
