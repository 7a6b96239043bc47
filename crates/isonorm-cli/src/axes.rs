//! Any axes of a tensor as rows: where each row begins, where its elements lie, and copies in and out.

use isonorm::{Slice, SliceMut};

use crate::error::{Error, Result};
use crate::tensor::Tensor;

/// Which axes are normalized; the others say which row.
#[derive(Debug, Clone)]
pub(crate) struct Axes {
    /// The normalized axes, in increasing order.
    pub(crate) normalized: Vec<usize>,
    /// The others, in increasing order.
    pub(crate) leading: Vec<usize>,
    /// Elements of a row.
    pub(crate) hidden: usize,
    /// Rows.
    pub(crate) rows: usize,
}

impl Axes {
    /// Checks axes as given; negative ones count from the end.
    pub(crate) fn new(shape: &[usize], given: &[isize]) -> Result<Self> {
        let mut is_normalized = vec![false; shape.len()];
        for &axis in given {
            let index = if axis < 0 { axis.checked_add_unsigned(shape.len()) } else { Some(axis) };
            let index = index.and_then(|index| usize::try_from(index).ok()).filter(|index| *index < shape.len());
            let index = index.ok_or_else(|| Error::Axis { axis, shape: shape.to_vec() })?;
            if std::mem::replace(&mut is_normalized[index], true) {
                return Err(Error::AxisTwice { axis: index });
            }
        }
        let (normalized, leading): (Vec<usize>, Vec<usize>) = (0..shape.len()).partition(|axis| is_normalized[*axis]);
        let product = |axes: &[usize]| axes.iter().map(|axis| shape[*axis]).product();
        Ok(Axes { hidden: product(&normalized), rows: product(&leading), normalized, leading })
    }

    /// Whether rows lie one after another as they are.
    pub(crate) fn are_last(&self) -> bool {
        self.leading.iter().max() < self.normalized.iter().min() || self.leading.is_empty()
    }

    /// The shape without the normalized axes.
    pub(crate) fn leading_shape(&self, shape: &[usize]) -> Vec<usize> {
        self.leading.iter().map(|axis| shape[*axis]).collect()
    }

    /// The shape of the normalized axes alone.
    pub(crate) fn normalized_shape(&self, shape: &[usize]) -> Vec<usize> {
        self.normalized.iter().map(|axis| shape[*axis]).collect()
    }
}

/// A tensor's axes as a list of lengths and steps; element `i` of their row-major order has an offset.
#[derive(Debug, Clone)]
pub(crate) struct Steps(Vec<(usize, usize)>);

impl Steps {
    /// Of some axes of a shape.
    pub(crate) fn new(axes: &[usize], shape: &[usize], strides: &[usize]) -> Self {
        Steps(axes.iter().map(|axis| (shape[*axis], strides[*axis])).collect())
    }

    fn offset(&self, mut i: usize) -> usize {
        let mut offset = 0;
        for (len, stride) in self.0.iter().rev() {
            offset += i % len * stride;
            i /= len;
        }
        offset
    }
}

/// Where the elements of rows lie in a tensor's memory.
#[derive(Debug, Clone)]
pub(crate) struct Grid {
    rows: Steps,
    columns: Steps,
    hidden: usize,
}

/// Rows and columns of a tile: its lines of memory on both sides fit the nearest cache.
const TILE: usize = 32;

impl Grid {
    /// Of a tensor as its file has it.
    pub(crate) fn of(tensor: &Tensor, axes: &Axes) -> Self {
        Self::new(&tensor.shape, &tensor.strides(), axes)
    }

    /// Of a shape in row-major order, as outputs have it.
    pub(crate) fn row_major(shape: &[usize], axes: &Axes) -> Self {
        let mut strides = vec![1; shape.len()];
        for axis in (1..shape.len()).rev() {
            strides[axis - 1] = strides[axis] * shape[axis].max(1);
        }
        Self::new(shape, &strides, axes)
    }

    fn new(shape: &[usize], strides: &[usize], axes: &Axes) -> Self {
        let steps = |axes: &[usize]| Steps::new(axes, shape, strides);
        Grid { rows: steps(&axes.leading), columns: steps(&axes.normalized), hidden: axes.hidden }
    }

    /// Copies rows `start..` of the tensor into contiguous rows.
    pub(crate) fn gather(&self, start: usize, from: Slice<'_>, to: SliceMut<'_>) {
        match (from, to) {
            (Slice::F32(from), SliceMut::F32(to)) => self.tiles(start, to.len(), |at, i| to[i] = from[at]),
            (Slice::F64(from), SliceMut::F64(to)) => self.tiles(start, to.len(), |at, i| to[i] = from[at]),
            (Slice::F16(from), SliceMut::F16(to)) => self.tiles(start, to.len(), |at, i| to[i] = from[at]),
            (Slice::Bf16(from), SliceMut::Bf16(to)) => self.tiles(start, to.len(), |at, i| to[i] = from[at]),
            _ => unreachable!("a block has its tensor's type"),
        }
    }

    /// Copies contiguous rows into rows `start..` of the tensor.
    pub(crate) fn scatter(&self, start: usize, from: Slice<'_>, to: SliceMut<'_>) {
        match (from, to) {
            (Slice::F32(from), SliceMut::F32(to)) => self.tiles(start, from.len(), |at, i| to[at] = from[i]),
            (Slice::F64(from), SliceMut::F64(to)) => self.tiles(start, from.len(), |at, i| to[at] = from[i]),
            (Slice::F16(from), SliceMut::F16(to)) => self.tiles(start, from.len(), |at, i| to[at] = from[i]),
            (Slice::Bf16(from), SliceMut::Bf16(to)) => self.tiles(start, from.len(), |at, i| to[at] = from[i]),
            _ => unreachable!("a block has its tensor's type"),
        }
    }

    /// Visits every element of the rows as (its place in the tensor, its place in contiguous rows), in tiles.
    #[inline(always)]
    fn tiles(&self, start: usize, elements: usize, mut visit: impl FnMut(usize, usize)) {
        let rows = elements.checked_div(self.hidden).unwrap_or(0);
        let starts: Vec<usize> = (start..start + rows).map(|row| self.rows.offset(row)).collect();
        for first_column in (0..self.hidden).step_by(TILE) {
            let columns = first_column..(first_column + TILE).min(self.hidden);
            let offsets: Vec<usize> = columns.map(|column| self.columns.offset(column)).collect();
            for first_row in (0..rows).step_by(TILE) {
                let starts = &starts[first_row..(first_row + TILE).min(rows)];
                for (c, offset) in offsets.iter().enumerate() {
                    for (r, start) in starts.iter().enumerate() {
                        visit(start + offset, (first_row + r) * self.hidden + first_column + c);
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn axes_are_counted_from_both_ends_and_sorted() {
        let axes = Axes::new(&[2, 3, 4], &[-1, 0]).expect("valid");
        assert_eq!((axes.normalized.as_slice(), axes.leading.as_slice()), ([0, 2].as_slice(), [1].as_slice()));
        assert_eq!((axes.hidden, axes.rows, axes.are_last()), (8, 3, false));
        assert!(Axes::new(&[2, 3], &[-1]).expect("valid").are_last());
        assert!(Axes::new(&[2, 3], &[0, 1]).expect("valid").are_last());
        for bad in [vec![2], vec![-3], vec![1, -1], vec![isize::MIN], vec![isize::MAX]] {
            assert!(Axes::new(&[2, 3], &bad).is_err(), "{bad:?}");
        }
        assert!(Axes::new(&[], &[-1]).is_err());
    }

    #[test]
    fn gather_and_scatter_are_inverse_over_any_axes() {
        let shape = [3, 5, 2, 7];
        let x: Vec<f32> = (0..210).map(|i| i as f32).collect();
        for given in [vec![0], vec![1], vec![2], vec![3], vec![0, 2], vec![1, 3], vec![0, 1, 2]] {
            let axes = Axes::new(&shape, &given).expect("valid");
            let grid = Grid::row_major(&shape, &axes);
            let (mut rows, mut back) = (vec![0.0f32; 210], vec![0.0f32; 210]);
            for start in [0, axes.rows / 2] {
                let end = if start == 0 { axes.rows / 2 } else { axes.rows };
                let part = &mut rows[start * axes.hidden..end * axes.hidden];
                grid.gather(start, (&x).into(), part.into());
                grid.scatter(start, (&*part).into(), (&mut back).into());
            }
            assert_eq!(back, x, "axes {given:?}");
        }
        let axes = Axes::new(&[2, 3], &[0]).expect("valid");
        let mut rows = [0.0f32; 6];
        Grid::row_major(&[2, 3], &axes).gather(0, (&[0.0f32, 1.0, 2.0, 3.0, 4.0, 5.0]).into(), (&mut rows).into());
        assert_eq!(rows, [0.0, 3.0, 1.0, 4.0, 2.0, 5.0]);
    }
}
