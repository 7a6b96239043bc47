//! How a tensor is laid out on grids, and which of its elements are normalized together.

use super::document::{Axis, Bands, Block, Grid, MOST_COLUMNS, MOST_GRIDS, MOST_ROWS};
use super::number::Format;

/// Which elements share one set of statistics.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Together {
    /// A row: across all grids where there are several, as a channel is across the samples of a batch.
    Row,
    /// A column.
    Column,
    /// This many rows of one grid.
    RowsOfOneGrid(usize),
}

/// The computed part of a tensor as `[grids, rows, columns]`, in row-major order.
#[derive(Clone, Debug)]
pub(crate) struct Layout {
    pub(crate) computed: [usize; 3],
    /// The extents of the whole tensor.
    pub(crate) whole: [usize; 3],
    /// What there is along each extent: `sample`, `channel`, `position`.
    pub(crate) names: [&'static str; 3],
    pub(crate) together: Together,
    /// What the elements of one set are called: `row`, `channel`, `group`.
    pub(crate) unit: &'static str,
}

impl Layout {
    pub(crate) fn len(&self) -> usize {
        self.computed.iter().product()
    }

    fn place(&self, index: usize) -> [usize; 3] {
        let [_, rows, columns] = self.computed;
        [index / (rows * columns), index / columns % rows, index % columns]
    }

    /// Whether there is a weight for each column, rather than for each row of a grid.
    fn weighs_columns(&self) -> bool {
        self.together == Together::Column || self.unit == "row"
    }

    /// The number of weights of the computed part.
    pub(crate) fn parameters(&self) -> usize {
        self.computed[if self.weighs_columns() { 2 } else { 1 }]
    }

    /// The weight that belongs to an element.
    pub(crate) fn parameter_of(&self, index: usize) -> usize {
        self.place(index)[if self.weighs_columns() { 2 } else { 1 }]
    }

    /// With all that one gradient of a weight is summed over.
    pub(crate) fn of_whole_batch(mut self) -> Self {
        let [samples, rows, _] = self.whole;
        self.computed[0] = samples;
        if self.unit == "row" {
            self.computed[1] = rows;
        }
        self
    }

    /// The number of sets of statistics in the computed part.
    pub(crate) fn units(&self) -> usize {
        let [grids, rows, columns] = self.computed;
        match self.together {
            Together::Row => rows,
            Together::Column => columns,
            Together::RowsOfOneGrid(size) => grids * (rows / size),
        }
    }

    /// The set to which an element belongs.
    pub(crate) fn unit_of(&self, index: usize) -> usize {
        let [grid, row, column] = self.place(index);
        match self.together {
            Together::Row => row,
            Together::Column => column,
            Together::RowsOfOneGrid(size) => grid * (self.computed[1] / size) + row / size,
        }
    }

    /// The elements of a set, in their order.
    pub(crate) fn members(&self, unit: usize) -> impl Iterator<Item = usize> {
        let [grids, rows, columns] = self.computed;
        let (grid, row, column) = match self.together {
            Together::Row => (0..grids, unit..unit + 1, 0..columns),
            Together::Column => (0..grids, 0..rows, unit..unit + 1),
            Together::RowsOfOneGrid(size) => {
                let of_grid = rows / size;
                let first = unit % of_grid * size;
                (unit / of_grid..unit / of_grid + 1, first..first + size, 0..columns)
            }
        };
        grid.flat_map(move |g| {
            let column = column.clone();
            row.clone().flat_map(move |r| column.clone().map(move |c| (g * rows + r) * columns + c))
        })
    }

    /// How many elements a set has.
    pub(crate) fn count(&self) -> usize {
        self.len().checked_div(self.units()).unwrap_or(0)
    }

    /// Sets that are shown.
    pub(crate) fn shown_units(&self) -> impl Iterator<Item = usize> {
        0..self.units().min(MOST_COLUMNS)
    }

    /// The name of a set: `row 0`; `sample 0, group 1`.
    pub(crate) fn label(&self, unit: usize) -> String {
        match self.together {
            Together::RowsOfOneGrid(size) => {
                let of_grid = self.computed[1] / size;
                format!("{} {}, {} {}", self.names[0], unit / of_grid, self.unit, unit % of_grid)
            }
            _ => format!("{} {unit}", self.unit),
        }
    }

    /// What is drawn as one band.
    pub(crate) fn bands(&self) -> Bands {
        match self.together {
            Together::Row => Bands::Rows(1),
            Together::Column => Bands::Columns(1),
            Together::RowsOfOneGrid(size) => Bands::Rows(size),
        }
    }

    /// Grids of the shown elements, all in one format; with `arrow` what is normalized together is framed.
    pub(crate) fn grids(
        &self,
        caption: &str,
        value: impl Fn(usize) -> f64,
        digits: usize,
        arrow: Option<&str>,
    ) -> Block {
        let [grids, rows, columns] = self.computed;
        let shown = [grids.min(MOST_GRIDS), rows.min(MOST_ROWS), columns.min(MOST_COLUMNS)];
        let cells = |grid: usize| -> Vec<Vec<f64>> {
            let cell = |row: usize, column: usize| value((grid * rows + row) * columns + column);
            (0..shown[1]).map(|row| (0..shown[2]).map(|column| cell(row, column)).collect()).collect()
        };
        let all: Vec<Vec<Vec<f64>>> = (0..shown[0]).map(cells).collect();
        let format = Format::of(all.iter().flatten().flatten().copied(), digits);
        let several = self.whole[0] > 1;
        let grid = |(i, cells): (usize, Vec<Vec<f64>>)| Grid {
            caption: match (several, self.whole[0] - shown[0]) {
                (true, more) if more > 0 && i + 1 == shown[0] => {
                    format!("{caption}, {} {i} (and {more} more)", self.names[0])
                }
                (true, _) => format!("{caption}, {} {i}", self.names[0]),
                (false, _) => caption.to_owned(),
            },
            rows: Axis::numbered(self.names[1], shown[1], self.whole[1]),
            columns: Axis::numbered(self.names[2], shown[2], self.whole[2]),
            cells,
            format,
            bands: self.bands(),
            arrow: arrow.map(str::to_owned),
        };
        Block::Grids(all.into_iter().enumerate().map(grid).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layout(computed: [usize; 3], together: Together, unit: &'static str) -> Layout {
        Layout { computed, whole: computed, names: ["sample", "channel", "position"], together, unit }
    }

    #[test]
    fn every_element_is_a_member_of_its_own_set_and_of_no_other() {
        for (computed, together) in [
            ([1, 4, 3], Together::Row),
            ([2, 4, 3], Together::Row),
            ([1, 4, 3], Together::Column),
            ([2, 4, 3], Together::RowsOfOneGrid(2)),
            ([2, 4, 1], Together::RowsOfOneGrid(1)),
        ] {
            let layout = layout(computed, together, "unit");
            let mut seen = vec![0; layout.len()];
            for unit in 0..layout.units() {
                assert_eq!(layout.members(unit).count(), layout.count());
                for index in layout.members(unit) {
                    assert_eq!(layout.unit_of(index), unit, "{computed:?} {together:?} {index}");
                    seen[index] += 1;
                }
            }
            assert!(seen.iter().all(|&n| n == 1), "{computed:?} {together:?}");
        }
    }

    #[test]
    fn labels_name_the_set() {
        assert_eq!(layout([2, 4, 3], Together::RowsOfOneGrid(2), "group").label(3), "sample 1, group 1");
        assert_eq!(layout([1, 4, 3], Together::Column, "channel").label(2), "channel 2");
    }
}
