//! Statistics of rows, groups or channels, and the columns of them that are saved.

use isonorm::{DType, Stats, StatsMut, StatsRef};

use crate::error::{Error, Result, bytes_of};
use crate::output::Output;
use crate::tensor::safetensors::Entry;
use crate::tensor::{Buffer, Format, Place};

/// A statistic as people know it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Column {
    /// The mean.
    Mean,
    /// The biased variance.
    Var,
    /// One over the root.
    Rstd,
}

impl Column {
    /// Its name in the file.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Column::Mean => "mean",
            Column::Var => "var",
            Column::Rstd => "rstd",
        }
    }
}

/// Statistics in the compute type of a storage type.
#[derive(Debug)]
pub(crate) enum Saved {
    /// Of f32, f16, bf16.
    F32(Vec<Stats<f32>>),
    /// Of f64.
    F64(Vec<Stats<f64>>),
}

impl Saved {
    /// Room for `len`.
    pub(crate) fn new(dtype: DType, len: usize) -> Self {
        match compute_type(dtype) {
            DType::F64 => Saved::F64(vec![Stats::default(); len]),
            _ => Saved::F32(vec![Stats::default(); len]),
        }
    }

    /// To be filled by the library.
    pub(crate) fn as_mut(&mut self) -> StatsMut<'_> {
        match self {
            Saved::F32(stats) => stats.into(),
            Saved::F64(stats) => stats.into(),
        }
    }

    /// As the backward pass takes them.
    pub(crate) fn as_ref(&self) -> StatsRef<'_> {
        match self {
            Saved::F32(stats) => stats.into(),
            Saved::F64(stats) => stats.into(),
        }
    }

    /// One column.
    pub(crate) fn column(&self, column: Column) -> Buffer {
        macro_rules! values {
            ($dtype:expr, $stats:expr) => {{
                let value = |stats: &Stats<_>| match column {
                    Column::Mean => stats.mean(),
                    Column::Var => stats.var(),
                    Column::Rstd => stats.rstd(),
                };
                let values: Vec<_> = $stats.iter().map(value).collect();
                Buffer::of($dtype, &values)
            }};
        }
        match self {
            Saved::F32(stats) => values!(DType::F32, stats),
            Saved::F64(stats) => values!(DType::F64, stats),
        }
    }
}

/// The type in which statistics are computed and saved.
pub(crate) fn compute_type(dtype: DType) -> DType {
    if dtype == DType::F64 { DType::F64 } else { DType::F32 }
}

/// A file of statistics being written.
#[derive(Debug)]
pub(crate) struct StatsFile {
    /// The file.
    pub(crate) output: Output,
    columns: Vec<Column>,
    dtype: DType,
}

impl StatsFile {
    /// Makes the file: one tensor of `shape` for each column, and then `more`.
    pub(crate) fn create(
        place: &Place,
        columns: &[Column],
        x: DType,
        shape: &[usize],
        more: Vec<Entry>,
    ) -> Result<Self> {
        if place.format == Format::Npy || place.name.is_some() {
            let found = format!("--save-stats {place} names one tensor, but there are several statistics");
            return Err(Error::usage(found, "give a file.safetensors"));
        }
        let dtype = compute_type(x);
        let columns = columns.to_vec();
        let entry = |column: &Column| (column.name().to_owned(), dtype, shape.to_vec());
        let entries = columns.iter().map(entry).chain(more).collect();
        Ok(StatsFile { output: Output::create(place, entries, false)?, columns, dtype })
    }

    /// Writes statistics from row `start` on.
    pub(crate) fn write(&self, start: usize, saved: &Saved) -> Result<()> {
        for (i, column) in self.columns.iter().enumerate() {
            self.output.write(i, bytes_of(self.dtype, start), saved.column(*column).bytes())?;
        }
        Ok(())
    }
}
