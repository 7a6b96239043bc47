//! How the rows of a call's tensors lie, as kernels walk them: with two strides at most.

use isonorm::rules::{Sequence, Tensor, Walks};

use crate::error::Error;
use crate::kernels::Tensor as Argument;
use crate::memory::{Rows, Slice};

/// The tensors of a call, brought into one shape.
pub(crate) struct Grid<const N: usize> {
    walks: Walks<N>,
}

impl<const N: usize> Grid<N> {
    /// Checks shapes and strides.
    pub(crate) fn of(tensors: &[Option<Tensor<'_>>; N], hidden: usize) -> Result<Self, Error> {
        let walks = Walks::of(tensors, hidden, Sequence::Logical)?;
        match walks.grid.lens().len() {
            found @ 3.. if walks.grid.rows > 0 => Err(Error::Strides { found }),
            _ => Ok(Grid { walks }),
        }
    }

    pub(crate) fn rows(&self) -> usize {
        self.walks.grid.rows
    }

    /// Rows for which the outer strides count once.
    pub(crate) fn inner(&self) -> i64 {
        self.walks.grid.lens().get(1).map_or(1, |inner| *inner as i64)
    }

    /// Tensor `i` as a kernel takes it.
    pub(crate) fn argument(&self, i: usize, rows: &Rows<'_>) -> Argument {
        let walk = &self.walks.each[i];
        let inner = if self.walks.grid.lens().len() > 1 { walk.stride(1) } else { 0 };
        Argument::new(rows.data.element(walk.offset()), rows.data.dtype(), walk.stride(0) as i64, inner as i64)
    }

    /// Whether tensors `i` and `j` are the very same rows.
    fn are_same(&self, (i, a): (usize, &Rows<'_>), (j, b): (usize, &Rows<'_>)) -> bool {
        let is_same_walk = (0..self.walks.grid.lens().len())
            .all(|d| self.walks.each[i].stride(d) == self.walks.each[j].stride(d))
            && self.walks.each[i].offset() == self.walks.each[j].offset();
        is_same_walk && a.data.pointer() == b.data.pointer() && a.data.dtype() == b.data.dtype()
    }

    /// Refuses a tensor that is written where another lies, unless they are the very same rows. Which are read and which
    /// written too does not matter: a row is read before it is written.
    pub(crate) fn check_apart(&self, written: Named<'_>, other: Named<'_>) -> Result<(), Error> {
        let ((i, name, a), (j, other, b)) = (written, other);
        if a.data.overlaps(&b.data) && !self.are_same((i, a), (j, b)) {
            return Err(Error::Overlap { name, other });
        }
        Ok(())
    }
}

/// A tensor of a call: its place among them, its name, its rows.
pub(crate) type Named<'a> = (usize, &'static str, &'a Rows<'a>);

/// Refuses an output that lies where a parameter or another output does.
pub(crate) fn check_disjoint(
    name: &'static str,
    a: &Slice<'_>,
    other: &'static str,
    b: &Slice<'_>,
) -> Result<(), Error> {
    if a.overlaps(b) { Err(Error::Overlap { name, other }) } else { Ok(()) }
}

/// A parameter, or its gradient, as a kernel takes it.
pub(crate) fn parameter(slice: Option<&Slice<'_>>) -> Argument {
    slice.map_or(Argument::NONE, |slice| Argument::new(slice.pointer(), slice.dtype(), 0, 0))
}
