//! Arrays as rows: the normalized axes last, whatever their order in the caller's arrays.

use isonorm::{MAX_DIMS, Rows, RowsMut};
use numpy::PyArrayDescr;
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;

use super::array::Array;
use super::axes::{Axes, Axis};
use super::output::{Others, Output};

/// What the row-shaped arrays of a call share.
pub(super) struct Frame<'py> {
    py: Python<'py>,
    axes: Axes,
    /// As the caller has it.
    shape: Vec<usize>,
    /// With the normalized axes last.
    moved: Vec<usize>,
    pub(super) hidden: usize,
}

/// Where rows lie in an array.
#[derive(Clone, Copy)]
struct Layout {
    shape: [usize; MAX_DIMS],
    /// In elements.
    strides: [isize; MAX_DIMS],
    dims: usize,
    offset: usize,
    is_contiguous: bool,
}

/// Rows that are read.
pub(super) struct Input<'py> {
    array: Array<'py>,
    layout: Layout,
}

/// Rows that are written.
pub(super) struct Target<'py> {
    output: Output<'py>,
    layout: Layout,
    given: Option<Bound<'py, PyAny>>,
}

impl<'py> Frame<'py> {
    pub(super) fn new(py: Python<'py>, axis: &Axis, x: &Array<'py>) -> PyResult<Self> {
        let shape = x.shape().to_vec();
        let axes = Axes::new(py, axis, shape.len())?;
        let moved = axes.moved(&shape);
        let hidden = moved[moved.len() - axes.count..].iter().product();
        Ok(Frame { py, axes, shape, moved, hidden })
    }

    /// The shape that there is one statistic for each element of.
    pub(super) fn leading(&self) -> &[usize] {
        &self.moved[..self.moved.len() - self.axes.count]
    }
    /// The shape of weight and bias.
    pub(super) fn normalized(&self) -> &[usize] {
        &self.moved[self.moved.len() - self.axes.count..]
    }

    /// Rows of `array`; copied where the elements of a row do not follow one another.
    pub(super) fn input(&self, name: &str, array: Array<'py>) -> PyResult<Input<'py>> {
        self.check(name, &array)?;
        let array = match self.axes.order() {
            Some(order) => array.transposed(order)?,
            None => array,
        };
        match Layout::of(&array, self.axes.count) {
            Some(layout) => Ok(Input { array, layout }),
            None => Input::copy_of(&array),
        }
    }

    /// Refuses an array of another shape than x's.
    pub(super) fn check(&self, name: &str, array: &Array<'py>) -> PyResult<()> {
        let (found, expected) = (array.shape(), &*self.shape);
        if found == expected {
            return Ok(());
        }
        Err(PyValueError::new_err(format!("{name} has shape {found:?}, expected {expected:?} as x has")))
    }

    /// Rows to be written: of `given`, or of a new array whose normalized axes follow one another in memory.
    pub(super) fn output(
        &self,
        name: &str,
        given: Option<&Bound<'py, PyAny>>,
        descr: impl FnOnce() -> Bound<'py, PyArrayDescr>,
        place: Option<(&str, &Array<'py>)>,
        others: &Others<'_, 'py>,
    ) -> PyResult<Target<'py>> {
        let Some(object) = given else {
            let output = Output::new(self.py, &self.moved, descr())?;
            let layout = Layout::contiguous(&output);
            return Ok(Target { output, layout, given: None });
        };
        let output = Output::given(name, object, &self.shape, place, others)?;
        let output = match self.axes.order() {
            Some(order) => output.transposed(order)?,
            None => output,
        };
        let (output, layout) = match Layout::of(output.array(), self.axes.count) {
            Some(layout) => (output, layout),
            None => {
                let output = output.by_way_of_scratch()?;
                let layout = Layout::contiguous(&output);
                (output, layout)
            }
        };
        Ok(Target { output, layout, given: Some(object.clone()) })
    }

    /// Weight or bias, one element for each normalized one; copied where its elements do not follow one another.
    pub(super) fn parameter(
        &self,
        name: &'static str,
        object: Option<&Bound<'py, PyAny>>,
        x: &Array<'py>,
    ) -> PyResult<Option<Array<'py>>> {
        let Some(object) = object else { return Ok(None) };
        parameter(name, object, x, self.normalized(), "normalized axes").map(Some)
    }

    /// What the caller gets: the array they gave, or the new one with its axes in their order.
    pub(super) fn finish(&self, target: &Target<'py>) -> PyResult<Bound<'py, PyAny>> {
        target.output.finish()?;
        if let Some(given) = &target.given {
            return Ok(given.clone());
        }
        let array = target.output.array();
        match self.axes.back() {
            Some(back) => Ok(array.transposed(back)?.object().clone().into_any()),
            None => Ok(array.object().clone().into_any()),
        }
    }
}

/// A parameter of `shape`, which is that of `of` x.
pub(super) fn parameter<'py>(
    name: &'static str,
    object: &Bound<'py, PyAny>,
    x: &Array<'py>,
    shape: &[usize],
    of: &str,
) -> PyResult<Array<'py>> {
    let array = Array::read(name, object, Some(x))?;
    let found = array.shape();
    if found != shape {
        return Err(PyValueError::new_err(format!("{name} has shape {found:?}, expected {shape:?}: that of x's {of}")));
    }
    if array.is_contiguous() { Ok(array) } else { array.copied() }
}

impl Layout {
    /// Rows one after another.
    fn contiguous(output: &Output<'_>) -> Self {
        debug_assert!(output.array().is_contiguous(), "new arrays are in row-major order");
        Layout { shape: [0; MAX_DIMS], strides: [0; MAX_DIMS], dims: 0, offset: 0, is_contiguous: true }
    }

    /// Rows along the last `count` axes of `array`, unless their elements are apart or the others too many.
    fn of(array: &Array<'_>, count: usize) -> Option<Self> {
        let mut layout =
            Layout { shape: [0; MAX_DIMS], strides: [0; MAX_DIMS], dims: 0, offset: 0, is_contiguous: true };
        if array.is_contiguous() || array.is_empty() {
            return Some(layout);
        }
        layout.is_contiguous = false;
        let (shape, strides, size) = (array.shape(), array.strides(), array.dtype().size() as isize);
        let dims = shape.len() - count;
        let mut next = size;
        for (len, stride) in shape[dims..].iter().zip(&strides[dims..]).rev().filter(|(len, _)| **len != 1) {
            if *stride != next {
                return None;
            }
            next = stride * *len as isize;
        }
        for d in 0..dims {
            *layout.shape.get_mut(d)? = shape[d];
            *layout.strides.get_mut(d)? = strides[d] / size;
        }
        layout.dims = dims;
        layout.offset = (array.address() - array.span().start) / size as usize;
        Some(layout)
    }
}

impl<'py> Input<'py> {
    fn copy_of(array: &Array<'py>) -> PyResult<Self> {
        let array = array.copied()?;
        let layout = Layout { shape: [0; MAX_DIMS], strides: [0; MAX_DIMS], dims: 0, offset: 0, is_contiguous: true };
        Ok(Input { array, layout })
    }

    /// A copy, where something else is to take this one's place.
    pub(super) fn copied(&self) -> PyResult<Self> {
        Input::copy_of(&self.array)
    }

    pub(super) fn rows(&self) -> Rows<'_> {
        let Layout { shape, strides, dims, offset, is_contiguous } = &self.layout;
        if *is_contiguous {
            return self.array.slice().into();
        }
        Rows::strided(self.array.slice(), *offset, &shape[..*dims], &strides[..*dims])
    }
}

impl<'py> Target<'py> {
    /// Whether it takes the place of its input.
    pub(super) fn is_in_place(&self) -> bool {
        self.output.in_place
    }

    /// The memory that the caller will find written.
    pub(super) fn memory(&self) -> &Array<'py> {
        self.output.memory()
    }

    pub(super) fn rows_mut(&mut self) -> RowsMut<'_> {
        let Layout { shape, strides, dims, offset, is_contiguous } = &self.layout;
        if *is_contiguous {
            return self.output.slice_mut().into();
        }
        RowsMut::strided(self.output.slice_mut(), *offset, &shape[..*dims], &strides[..*dims])
    }
}
