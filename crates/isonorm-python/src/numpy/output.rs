//! Arrays that a call writes, and the rules by which their memory is the call's alone.
#![allow(unsafe_code)]

use std::slice;

use isonorm::{DType, Element, SliceMut, bf16, f16};
use numpy::PyArrayDescr;
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;

use super::array::Array;

/// An array that a call writes: new, the caller's, or scratch whose values are the caller's in the end.
///
/// No other array of the call reaches into its memory, except the input whose place it takes (`in_place`), which is not
/// read as an array of its own then.
pub(super) struct Output<'py> {
    array: Array<'py>,
    /// The caller's array, where `array` is scratch.
    to: Option<Array<'py>>,
    /// Whether it is the very array of the input whose place it may take.
    pub(super) in_place: bool,
}

/// The arrays of a call that an output may not reach into, by name.
pub(super) type Others<'a, 'py> = [(&'a str, Option<&'a Array<'py>>)];

/// How the memory of two arrays meets.
#[derive(PartialEq)]
enum Meeting {
    Apart,
    /// The same elements in the same order.
    Same,
    /// No element is in both, but some lie between the other's.
    Interleaved,
    Overlap,
}

impl<'py> Output<'py> {
    /// A new array in row-major order.
    pub(super) fn new(py: Python<'py>, shape: &[usize], descr: Bound<'py, PyArrayDescr>) -> PyResult<Self> {
        Ok(Output { array: Array::empty(py, shape, descr)?, to: None, in_place: false })
    }

    /// The caller's array `object`, of `shape`. It may be `place`, the array of which it takes the place; with
    /// `others` it may share no element.
    pub(super) fn given(
        name: &str,
        object: &Bound<'py, PyAny>,
        shape: &[usize],
        place: Option<(&str, &Array<'py>)>,
        others: &Others<'_, 'py>,
    ) -> PyResult<Self> {
        let (array, is_addressable) = Array::to_write(name, object)?;
        if array.shape() != shape {
            let found = array.shape();
            return Err(PyValueError::new_err(format!("{name} has shape {found:?}, expected {shape:?}")));
        }
        if !array.is_writable() {
            return Err(PyValueError::new_err(format!("{name} is read-only, expected a writable array: give a copy")));
        }
        if array.shape().iter().zip(array.strides()).any(|(len, stride)| *len > 1 && *stride == 0) {
            let advice = "expected elements of its own: give a copy";
            return Err(PyValueError::new_err(format!("{name} has strides of 0, {advice}")));
        }
        let mut is_apart = is_addressable;
        for (other_name, other) in others {
            let Some(other) = other else { continue };
            match meeting(&array, other)? {
                Meeting::Apart => {}
                Meeting::Interleaved => is_apart = false,
                Meeting::Same | Meeting::Overlap => return Err(overlap(name, other_name, "an array of its own")),
            }
        }
        let mut in_place = false;
        if let Some((place_name, place)) = place {
            match meeting(&array, place)? {
                Meeting::Apart => {}
                Meeting::Same => in_place = is_apart,
                Meeting::Interleaved => is_apart = false,
                Meeting::Overlap => {
                    let advice = format!("{place_name} itself or an array of its own");
                    return Err(overlap(name, place_name, &advice));
                }
            }
        }
        let output = Output { array, to: None, in_place };
        if is_apart { Ok(output) } else { output.by_way_of_scratch() }
    }

    /// The same output, written by way of a new array in row-major order.
    pub(super) fn by_way_of_scratch(self) -> PyResult<Self> {
        let descr = self.array.native_descr()?;
        let array = Array::empty(self.array.py(), self.array.shape(), descr)?;
        let to = self.to.unwrap_or(self.array);
        Ok(Output { array, to: Some(to), in_place: false })
    }

    /// The same output, its elements one after another.
    pub(super) fn contiguous(self) -> PyResult<Self> {
        if self.array.is_contiguous() { Ok(self) } else { self.by_way_of_scratch() }
    }

    /// The array that is written, to be looked at.
    pub(super) fn array(&self) -> &Array<'py> {
        &self.array
    }

    /// The array that has the values in the end.
    pub(super) fn memory(&self) -> &Array<'py> {
        self.to.as_ref().unwrap_or(&self.array)
    }

    /// With the axes in another order, of the caller's array too.
    pub(super) fn transposed(self, axes: &[usize]) -> PyResult<Self> {
        let to = self.to.map(|to| to.transposed(axes)).transpose()?;
        Ok(Output { array: self.array.transposed(axes)?, to, in_place: self.in_place })
    }

    /// The caller's values in the scratch array, for what is read before it is written.
    pub(super) fn fill(&self) -> PyResult<()> {
        match &self.to {
            Some(to) => copy(&self.array, to),
            None => Ok(()),
        }
    }

    /// After the call: the caller's array has the values.
    pub(super) fn finish(&self) -> PyResult<()> {
        match &self.to {
            Some(to) => copy(to, &self.array),
            None => Ok(()),
        }
    }

    /// Its elements, and those between them, in the order of their addresses.
    pub(super) fn slice_mut(&mut self) -> SliceMut<'_> {
        match self.array.dtype() {
            DType::F32 => SliceMut::F32(self.elements()),
            DType::F64 => SliceMut::F64(self.elements()),
            DType::F16 => SliceMut::F16(self.elements::<f16>()),
            DType::Bf16 => SliceMut::Bf16(self.elements::<bf16>()),
        }
    }

    fn elements<T: Element>(&mut self) -> &mut [T] {
        let span = self.array.span();
        if span.is_empty() {
            return &mut [];
        }
        let start = std::ptr::with_exposed_provenance_mut(span.start);
        // SAFETY: as `Array::slice`; no other array of the call reaches into the span, as `given` has checked, and new
        // memory is nobody else's.
        unsafe { slice::from_raw_parts_mut(start, span.len() / size_of::<T>()) }
    }
}

fn copy<'py>(to: &Array<'py>, from: &Array<'py>) -> PyResult<()> {
    to.py().import("numpy")?.call_method1("copyto", (to.object(), from.object())).map(|_| ())
}

fn overlap(name: &str, other: &str, advice: &str) -> PyErr {
    PyValueError::new_err(format!("{name} overlaps {other} in memory, expected {advice}"))
}

fn meeting(array: &Array<'_>, other: &Array<'_>) -> PyResult<Meeting> {
    let (span, with) = (array.span(), other.span());
    if span.is_empty() || with.is_empty() || span.end <= with.start || with.end <= span.start {
        return Ok(Meeting::Apart);
    }
    let is_same = array.address() == other.address()
        && array.dtype() == other.dtype()
        && array.shape() == other.shape()
        && array.shape().iter().enumerate().all(|(d, len)| *len == 1 || array.strides()[d] == other.strides()[d]);
    if is_same {
        return Ok(Meeting::Same);
    }
    let numpy = array.py().import("numpy")?;
    let shared = numpy.call_method1("shares_memory", (array.object(), other.object()))?.is_truthy()?;
    Ok(if shared { Meeting::Overlap } else { Meeting::Interleaved })
}
