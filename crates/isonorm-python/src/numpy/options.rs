//! Options of a call, as Python gives them.

use isonorm::{Cpu, Recipe};
use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::prelude::*;

use crate::fork;

/// A whole number of at least 0.
#[derive(Clone, Copy)]
pub(super) struct Count(pub(super) usize);

impl<'py> FromPyObject<'_, 'py> for Count {
    type Error = PyErr;

    fn extract(object: Borrowed<'_, 'py, PyAny>) -> PyResult<Self> {
        let found: i64 = object.extract()?;
        let refused = |_| PyValueError::new_err(format!("{found} is negative, expected a count of at least 0"));
        usize::try_from(found).map(Count).map_err(refused)
    }
}

/// `"torch"` or `"llama"`.
pub(super) struct RecipeName(pub(super) Recipe);

impl<'py> FromPyObject<'_, 'py> for RecipeName {
    type Error = PyErr;

    fn extract(object: Borrowed<'_, 'py, PyAny>) -> PyResult<Self> {
        match &*object.extract::<String>()? {
            "torch" => Ok(RecipeName(Recipe::Torch)),
            "llama" => Ok(RecipeName(Recipe::Llama)),
            found => Err(PyValueError::new_err(format!("recipe is {found:?}, expected \"torch\" or \"llama\""))),
        }
    }
}

/// A gradient that the caller wants: in a new array, in one of theirs, or not.
pub(super) enum Wanted<'py> {
    New,
    Into(Bound<'py, PyAny>),
    No,
}

impl<'py> Wanted<'py> {
    /// `True`, `False`, an array, or nothing, which stands for `default`.
    pub(super) fn of(name: &str, object: Option<Bound<'py, PyAny>>, default: bool) -> PyResult<Self> {
        let wanted = match object {
            None => default,
            Some(object) => match object.extract::<bool>() {
                Ok(wanted) => wanted,
                Err(_) if object.is_instance_of::<numpy::PyUntypedArray>() => return Ok(Wanted::Into(object)),
                Err(_) => {
                    let found = object.get_type().name()?;
                    return Err(PyTypeError::new_err(format!(
                        "{name} is {found}, expected True, False or a numpy.ndarray to write into"
                    )));
                }
            },
        };
        Ok(if wanted { Wanted::New } else { Wanted::No })
    }
}

/// At most so many threads.
pub(super) fn cpu(threads: Option<Count>) -> PyResult<Cpu<'static>> {
    let cpu = fork::cpu()?;
    Ok(threads.map_or(cpu, |Count(threads)| cpu.threads(threads)))
}
