//! Arrays as samples of channels: channels second, in the order in which they lie in memory.

use isonorm::{Planes, PlanesMut};
use numpy::PyArrayDescr;
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;

use super::array::Array;
use super::axes::{Axes, Axis};
use super::output::{Others, Output};
use super::rows;

/// What the arrays of a call share that have x's shape. All of them lie in memory as x does.
pub(super) struct Frame<'py> {
    py: Python<'py>,
    axes: Axes,
    /// As the caller has it.
    shape: Vec<usize>,
    pub(super) samples: usize,
    pub(super) channels: usize,
    spatial: usize,
    /// Whether channels lie side by side: NHWC.
    is_last: bool,
}

/// Samples that are written.
pub(super) struct Target<'py> {
    pub(super) output: Output<'py>,
    given: Option<Bound<'py, PyAny>>,
}

impl<'py> Target<'py> {
    /// The caller's array, if it is one.
    pub(super) fn given(&self) -> Option<&Array<'py>> {
        self.given.as_ref().map(|_| self.output.memory())
    }
}

impl<'py> Frame<'py> {
    /// `axis` is the one of the channels.
    pub(super) fn new(py: Python<'py>, axis: &Axis, x: &Array<'py>) -> PyResult<Self> {
        let Axis::One(axis) = axis else {
            return Err(pyo3::exceptions::PyTypeError::new_err("axis is a tuple, expected an int: the channels' axis"));
        };
        let shape = x.shape().to_vec();
        let axes = Axes::second(py, *axis, shape.len())?;
        let moved = axes.moved(&shape);
        let (samples, channels, spatial) = (moved[0], moved[1], moved[2..].iter().product());
        let mut frame = Frame { py, axes, shape, samples, channels, spatial, is_last: false };
        let x = frame.moved(x.clone())?;
        frame.is_last = !frame.lies_so(&x) && is_contiguous(&x, &last(x.shape().len()));
        Ok(frame)
    }

    /// `array` with its axes in the order in which x's lie in memory; copied where it does not.
    pub(super) fn input(&self, name: &str, array: Array<'py>) -> PyResult<Array<'py>> {
        self.check(name, &array)?;
        let array = self.moved(array)?;
        let lies_so = self.lies_so(&array);
        let array = if self.is_last { array.transposed(&self.order())? } else { array };
        if lies_so { Ok(array) } else { array.copied() }
    }

    /// Whether there is nothing to have statistics of.
    pub(super) fn is_empty(&self) -> bool {
        self.shape.contains(&0)
    }

    /// Refuses an array of another shape than x's.
    pub(super) fn check(&self, name: &str, array: &Array<'py>) -> PyResult<()> {
        let (found, expected) = (array.shape(), &*self.shape);
        if found == expected {
            return Ok(());
        }
        Err(PyValueError::new_err(format!("{name} has shape {found:?}, expected {expected:?} as x has")))
    }

    /// An array to be written: `given`, or a new one that lies in memory as x does.
    pub(super) fn output(
        &self,
        name: &str,
        given: Option<&Bound<'py, PyAny>>,
        descr: impl FnOnce() -> Bound<'py, PyArrayDescr>,
        place: Option<(&str, &Array<'py>)>,
        others: &Others<'_, 'py>,
    ) -> PyResult<Target<'py>> {
        let Some(object) = given else {
            let output = Output::new(self.py, &self.in_memory(), descr())?;
            return Ok(Target { output, given: None });
        };
        let mut output = Output::given(name, object, &self.shape, place, others)?;
        if let Some(order) = self.axes.order() {
            output = output.transposed(order)?;
        }
        let lies_so = self.lies_so(output.array());
        if self.is_last {
            output = output.transposed(&self.order())?;
        }
        if !lies_so {
            output = output.by_way_of_scratch()?;
        }
        Ok(Target { output, given: Some(object.clone()) })
    }

    /// Something of each channel; copied where its elements do not follow one another.
    pub(super) fn parameter(
        &self,
        name: &'static str,
        object: Option<&Bound<'py, PyAny>>,
        x: &Array<'py>,
    ) -> PyResult<Option<Array<'py>>> {
        let Some(object) = object else { return Ok(None) };
        rows::parameter(name, object, x, &[self.channels], "channels").map(Some)
    }

    pub(super) fn planes<'a>(&self, array: &'a Array<'py>) -> Planes<'a> {
        let of = if self.is_last { Planes::channels_last } else { Planes::channels_first };
        of(array.slice(), self.channels, self.spatial)
    }

    pub(super) fn planes_mut<'a>(&self, target: &'a mut Target<'py>) -> PlanesMut<'a> {
        let of = if self.is_last { PlanesMut::channels_last } else { PlanesMut::channels_first };
        of(target.output.slice_mut(), self.channels, self.spatial)
    }

    /// What the caller gets: the array they gave, or the new one with its axes in their order.
    pub(super) fn finish(&self, target: &Target<'py>) -> PyResult<Bound<'py, PyAny>> {
        target.output.finish()?;
        if let Some(given) = &target.given {
            return Ok(given.clone());
        }
        let mut array = target.output.array().clone();
        if self.is_last {
            array = array.transposed(&second_from_last(self.shape.len()))?;
        }
        if let Some(back) = self.axes.back() {
            array = array.transposed(back)?;
        }
        Ok(array.object().clone().into_any())
    }

    /// The axes as the library names them: samples, channels, positions.
    fn moved(&self, array: Array<'py>) -> PyResult<Array<'py>> {
        match self.axes.order() {
            Some(order) => array.transposed(order),
            None => Ok(array),
        }
    }

    /// The order of those axes in which they lie in memory.
    fn order(&self) -> Vec<usize> {
        let ndim = self.shape.len();
        if self.is_last { last(ndim) } else { (0..ndim).collect() }
    }

    /// The shape in that order.
    fn in_memory(&self) -> Vec<usize> {
        let moved = self.axes.moved(&self.shape);
        self.order().into_iter().map(|axis| moved[axis]).collect()
    }

    /// Whether `array`, its channels second, lies in memory as x does.
    fn lies_so(&self, array: &Array<'py>) -> bool {
        is_contiguous(array, &self.order())
    }
}

/// The order of axes that puts the second one last.
fn last(ndim: usize) -> Vec<usize> {
    [0].into_iter().chain(2..ndim).chain([1]).collect()
}

/// And back.
fn second_from_last(ndim: usize) -> Vec<usize> {
    [0, ndim - 1].into_iter().chain(1..ndim - 1).collect()
}

/// Whether elements follow one another with the axes in this order.
fn is_contiguous(array: &Array<'_>, order: &[usize]) -> bool {
    let (shape, strides) = (array.shape(), array.strides());
    let mut next = array.dtype().size() as isize;
    let mut axes = order.iter().rev().filter(|axis| shape[**axis] != 1);
    array.is_empty()
        || axes.all(|axis| {
            let is_next = strides[*axis] == next;
            next = next.saturating_mul(shape[*axis] as isize);
            is_next
        })
}
