//! Arrays of the library's types: what Python gives, brought into a form that a Rust slice can have.
#![allow(unsafe_code)]

use std::ops::Range;
use std::slice;

use isonorm::{DType, Element, Slice, bf16, f16};
use numpy::npyffi::{NPY_ARRAY_WRITEABLE, PY_ARRAY_API, npy_intp};
use numpy::{PyArrayDescr, PyArrayDescrMethods, PyUntypedArray, PyUntypedArrayMethods};
use pyo3::exceptions::PyTypeError;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyFloat, PyInt, PyList, PyTuple};

use super::dtype;

/// An `ndarray`, of no subclass, whose elements are of a type of the library's, in native byte order, aligned, and
/// whole elements apart. It keeps the memory alive.
#[derive(Clone)]
pub(super) struct Array<'py> {
    object: Bound<'py, PyUntypedArray>,
    dtype: DType,
}

impl<'py> Array<'py> {
    /// What `object` holds, copied where it is no such array. Objects without a type of their own take `like`'s.
    pub(super) fn read(name: &str, object: &Bound<'py, PyAny>, like: Option<&Array<'py>>) -> PyResult<Self> {
        let object = match object.cast_exact::<PyUntypedArray>() {
            Ok(array) => array.clone(),
            Err(_) => as_ndarray(name, object, like)?,
        };
        let dtype = dtype::expect_storage(name, &object.dtype())?;
        let array = Array { object, dtype };
        if array.is_addressable() { Ok(array) } else { array.native() }
    }

    /// An `ndarray` that the caller wants to be written, and whether that can be done where it is.
    pub(super) fn to_write(name: &str, object: &Bound<'py, PyAny>) -> PyResult<(Self, bool)> {
        let Ok(object) = object.cast::<PyUntypedArray>() else {
            let found = object.get_type().name()?;
            return Err(PyTypeError::new_err(format!("{name} is {found}, expected a numpy.ndarray to write into")));
        };
        let object = match object.cast_exact::<PyUntypedArray>() {
            Ok(array) => array.clone(),
            Err(_) => as_ndarray(name, object, None)?,
        };
        let dtype = dtype::expect_storage(name, &object.dtype())?;
        let array = Array { object, dtype };
        let is_addressable = array.is_addressable();
        Ok((array, is_addressable))
    }

    /// A new array in row-major order, its values not yet set.
    pub(super) fn empty(py: Python<'py>, shape: &[usize], descr: Bound<'py, PyArrayDescr>) -> PyResult<Self> {
        let dtype = dtype::expect_storage("a new array", &descr)?;
        let dims = shape.as_ptr().cast_mut().cast::<npy_intp>();
        let (count, descr) = (shape.len() as i32, descr.into_dtype_ptr());
        // SAFETY: `dims` has `count` lengths, which are read alone; the reference to the type is given away.
        let object = unsafe { PY_ARRAY_API.PyArray_Empty(py, count, dims, descr, 0) };
        // SAFETY: NumPy returns an owned reference, or null with an exception set.
        let object = unsafe { Bound::from_owned_ptr_or_err(py, object) }?;
        Ok(Array { object: object.cast_into()?, dtype })
    }

    pub(super) fn py(&self) -> Python<'py> {
        self.object.py()
    }
    pub(super) fn object(&self) -> &Bound<'py, PyUntypedArray> {
        &self.object
    }
    pub(super) fn dtype(&self) -> DType {
        self.dtype
    }
    /// NumPy's type: of a new array like this one.
    pub(super) fn descr(&self) -> Bound<'py, PyArrayDescr> {
        self.object.dtype()
    }
    pub(super) fn shape(&self) -> &[usize] {
        self.object.shape()
    }
    /// In bytes.
    pub(super) fn strides(&self) -> &[isize] {
        self.object.strides()
    }
    pub(super) fn is_contiguous(&self) -> bool {
        self.object.is_c_contiguous()
    }
    pub(super) fn is_empty(&self) -> bool {
        self.object.is_empty()
    }
    pub(super) fn is_writable(&self) -> bool {
        // SAFETY: an `ndarray` begins with these fields.
        let flags = unsafe { (*self.object.as_array_ptr()).fields.flags };
        flags & NPY_ARRAY_WRITEABLE != 0
    }

    /// The address of the first element.
    pub(super) fn address(&self) -> usize {
        // SAFETY: an `ndarray` begins with these fields.
        let data = unsafe { (*self.object.as_array_ptr()).fields.data };
        data.addr()
    }

    /// The addresses from its lowest element's to the end of its highest; none where it is empty.
    pub(super) fn span(&self) -> Range<usize> {
        let start = self.address();
        if self.is_empty() {
            return start..start;
        }
        let (mut low, mut high) = (0isize, self.dtype.size() as isize);
        for (len, stride) in self.shape().iter().zip(self.strides()) {
            let reach = stride * (*len as isize - 1);
            if reach < 0 { low += reach } else { high += reach }
        }
        start.wrapping_add_signed(low)..start.wrapping_add_signed(high)
    }

    /// Its elements, and those between them, in the order of their addresses.
    pub(super) fn slice(&self) -> Slice<'_> {
        match self.dtype {
            DType::F32 => Slice::F32(self.elements()),
            DType::F64 => Slice::F64(self.elements()),
            DType::F16 => Slice::F16(self.elements::<f16>()),
            DType::Bf16 => Slice::Bf16(self.elements::<bf16>()),
        }
    }

    fn elements<T: Element>(&self) -> &[T] {
        let span = self.span();
        if span.is_empty() {
            return &[];
        }
        let start = std::ptr::with_exposed_provenance(span.start);
        // SAFETY: the array, which `self` keeps alive, lies in one allocation that holds its span; it is aligned, and
        // every bit pattern is a value of its type.
        unsafe { slice::from_raw_parts(start, span.len() / size_of::<T>()) }
    }

    /// The same elements with their axes in another order.
    pub(super) fn transposed(&self, axes: &[usize]) -> PyResult<Self> {
        let object = self.object.call_method1("transpose", PyTuple::new(self.py(), axes)?)?;
        Ok(Array { object: object.cast_into()?, dtype: self.dtype })
    }

    /// A copy in row-major order.
    pub(super) fn copied(&self) -> PyResult<Self> {
        let object = self.object.call_method1("copy", ("C",))?;
        Ok(Array { object: object.cast_into()?, dtype: self.dtype })
    }

    /// NumPy's type in native byte order.
    pub(super) fn native_descr(&self) -> PyResult<Bound<'py, PyArrayDescr>> {
        Ok(self.descr().call_method1("newbyteorder", ("=",))?.cast_into()?)
    }

    /// A copy in row-major order and native byte order.
    fn native(&self) -> PyResult<Self> {
        let descr = self.native_descr()?;
        let object = self.object.call_method1("astype", (descr, "C"))?;
        Ok(Array { object: object.cast_into()?, dtype: self.dtype })
    }

    fn is_addressable(&self) -> bool {
        let size = self.dtype.size() as isize;
        let is_native = self.descr().is_native_byteorder() != Some(false);
        let are_whole = || self.strides().iter().all(|stride| stride % size == 0);
        is_native && self.object.is_aligned() && (self.is_contiguous() || are_whole())
    }
}

/// `object` as an `ndarray` of no subclass: through DLPack where it has that, else as `numpy.asarray` has it.
fn as_ndarray<'py>(
    name: &str,
    object: &Bound<'py, PyAny>,
    like: Option<&Array<'py>>,
) -> PyResult<Bound<'py, PyUntypedArray>> {
    let numpy = object.py().import("numpy")?;
    if object.is_instance_of::<PyUntypedArray>() {
        if object.is_instance(&numpy.getattr("ma")?.getattr("MaskedArray")?)? {
            let advice = "expected one without a mask: fill it with filled()";
            return Err(PyTypeError::new_err(format!("{name} is a masked array, {advice}")));
        }
    } else if object.hasattr("__dlpack__")? {
        return Ok(numpy.call_method1("from_dlpack", (object,))?.cast_into()?);
    }
    let options = PyDict::new(object.py());
    let is_typeless = object.is_instance_of::<PyList>()
        || object.is_instance_of::<PyTuple>()
        || object.is_instance_of::<PyFloat>()
        || object.is_instance_of::<PyInt>();
    if let (Some(like), true) = (like, is_typeless) {
        options.set_item("dtype", like.descr())?;
    }
    Ok(numpy.call_method("asarray", (object,), Some(&options))?.cast_into()?)
}
