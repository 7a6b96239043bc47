//! Device memory as calls take it: the names of crate `isonorm`, but nothing here is ever read by the CPU.
#![allow(unsafe_code)]

use std::ffi::c_void;
use std::marker::PhantomData;

use isonorm::DType;
use isonorm::rules::{self, Kind, Layout};

/// Elements in device memory that are read.
#[derive(Clone, Copy, Debug)]
pub struct Slice<'a> {
    data: *mut c_void,
    len: usize,
    dtype: DType,
    of: PhantomData<&'a ()>,
}

/// Elements in device memory that are written.
#[derive(Debug)]
pub struct SliceMut<'a> {
    inner: Slice<'a>,
}

// SAFETY: they are addresses, which any thread may have; the GPU alone follows them.
unsafe impl Send for Slice<'_> {}
// SAFETY: as above.
unsafe impl Sync for Slice<'_> {}
// SAFETY: as above.
unsafe impl Send for SliceMut<'_> {}

impl Slice<'_> {
    /// `len` elements of `dtype` at a device's address.
    ///
    /// # Safety
    ///
    /// The memory is there, aligned to its elements, on the GPU of the stream that a call with it is launched on, and stays
    /// until the launch has run; nothing writes it meanwhile.
    pub unsafe fn from_raw(data: *mut c_void, len: usize, dtype: DType) -> Self {
        Slice { data, len, dtype, of: PhantomData }
    }

    /// Elements.
    pub fn len(&self) -> usize {
        self.len
    }
    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }
    /// Their type.
    pub fn dtype(&self) -> DType {
        self.dtype
    }
    pub(crate) fn kind(&self) -> Kind {
        (self.len, self.dtype)
    }
    /// Where the first one is.
    pub fn pointer(&self) -> *mut c_void {
        self.data
    }
    /// Element `at`.
    pub(crate) fn element(&self, at: usize) -> *mut c_void {
        self.data.wrapping_byte_add(at * self.dtype.size())
    }
    /// Whether the two share bytes.
    pub(crate) fn overlaps(&self, other: &Slice<'_>) -> bool {
        let range = |slice: &Slice<'_>| (slice.data.addr(), slice.data.addr() + slice.len * slice.dtype.size());
        let ((start, end), (other_start, other_end)) = (range(self), range(other));
        start < other_end && other_start < end && start < end && other_start < other_end
    }
}

impl<'a> SliceMut<'a> {
    /// As [`Slice::from_raw`].
    ///
    /// # Safety
    ///
    /// As there, and nothing else reads the memory until the launch has run.
    pub unsafe fn from_raw(data: *mut c_void, len: usize, dtype: DType) -> Self {
        // SAFETY: by the caller's word.
        SliceMut { inner: unsafe { Slice::from_raw(data, len, dtype) } }
    }
    /// The same elements, to be read.
    pub fn as_slice(&self) -> Slice<'a> {
        self.inner
    }
}

/// A tensor of rows that is read; a [`Slice`] converts into one of contiguous rows.
#[derive(Clone, Copy, Debug)]
pub struct Rows<'a> {
    pub(crate) data: Slice<'a>,
    pub(crate) layout: Option<Layout<'a>>,
}

/// A tensor of rows that is written; a [`SliceMut`] converts into one of contiguous rows.
#[derive(Debug)]
pub struct RowsMut<'a> {
    pub(crate) rows: Rows<'a>,
}

impl<'a> Rows<'a> {
    /// Rows whose leading dimensions have the given shape and strides, in elements; the first row starts at `offset`.
    pub fn strided(data: Slice<'a>, offset: usize, shape: &'a [usize], strides: &'a [isize]) -> Self {
        Rows { data, layout: Some(Layout { offset, shape, strides }) }
    }

    pub(crate) fn tensor(&self, name: &'static str, is_written: bool) -> rules::Tensor<'a> {
        rules::Tensor::rows(name, self.data.len, self.layout, is_written)
    }
}

impl<'a> RowsMut<'a> {
    /// As [`Rows::strided`]; rows must not share elements.
    pub fn strided(data: SliceMut<'a>, offset: usize, shape: &'a [usize], strides: &'a [isize]) -> Self {
        RowsMut { rows: Rows::strided(data.inner, offset, shape, strides) }
    }
}

impl<'a> From<Slice<'a>> for Rows<'a> {
    fn from(data: Slice<'a>) -> Self {
        Rows { data, layout: None }
    }
}

impl<'a> From<SliceMut<'a>> for RowsMut<'a> {
    fn from(data: SliceMut<'a>) -> Self {
        RowsMut { rows: Rows { data: data.inner, layout: None } }
    }
}
