//! Statistics over ranks, as a caller sees them.

use std::any::Any;

use crate::batch_norm::BatchShard;
use crate::element::{Compute, DType};
use crate::error::Error;
use crate::grid::Walks;
use crate::io::StatsRef;
use crate::isa::float_env::FloatEnv;
use crate::partial::Partial;
use crate::planes::Planes;
use crate::rows::Rows;
use crate::shards::Shard;
use crate::shards::progress::{Length, Progress};
use crate::stats::{EpsOption, Stats};

/// Statistics that ranks measure together, round by round.
///
/// In each round every rank gives a [`partial`](Measuring::partial) sum of what it holds, the ranks exchange them, and
/// every rank takes all of them, [joined](Partial::join). All ranks take the same rounds, since all see the same merged
/// sums: one for RMSNorm, two for LayerNorm and BatchNorm, and after those, where rows or channels come under the range
/// rule, another and the same again of those alone.
///
/// [`Shard`](crate::Shard) and [`BatchShard`](crate::BatchShard) have examples.
#[derive(Clone, Debug)]
pub struct Measuring<'a> {
    pub(crate) of: Of<'a>,
    pub(crate) progress: Typed,
}

/// What is measured.
#[derive(Clone, Debug)]
#[allow(clippy::large_enum_variant)] // one a round of messages
pub(crate) enum Of<'a> {
    Rows(Shard<'a>, Rows<'a>, Walks<2>),
    Planes(BatchShard<'a>, Planes<'a>),
}

#[derive(Clone, Debug)]
pub(crate) enum Typed {
    F32(Progress<f32>),
    F64(Progress<f64>),
}

impl Typed {
    /// Statistics of `sets` rows or channels of an x of type `dtype`.
    pub(crate) fn new(
        dtype: DType,
        eps: EpsOption,
        centered: bool,
        length: Length,
        sets: usize,
    ) -> Result<Self, Error> {
        Ok(match dtype {
            DType::F64 => Typed::F64(Progress::new(eps.rounded()?, centered, length, sets)),
            _ => Typed::F32(Progress::new(eps.rounded()?, centered, length, sets)),
        })
    }

    pub(crate) fn of<C: Compute>(&self) -> Option<&Progress<C>> {
        match self {
            Typed::F32(progress) => (progress as &dyn Any).downcast_ref(),
            Typed::F64(progress) => (progress as &dyn Any).downcast_ref(),
        }
    }
}

impl Measuring<'_> {
    /// What this rank has to tell in this round; `None` after the last.
    pub fn partial(&self) -> Option<Partial> {
        match &self.of {
            Of::Rows(shard, x, walks) => shard.sums(x, walks, &self.progress),
            Of::Planes(shard, x) => shard.sums(x, &self.progress),
        }
    }

    /// Takes the sums of all ranks.
    ///
    /// # Errors
    ///
    /// [`Error::PartialStart`] or [`Error::PartialLen`] if those of a rank are missing, [`Error::PartialKind`] if they
    /// are of another round, of other rows or channels or of another type, [`Error::TooFewValues`] if a channel has a
    /// single value in all the batch. Nothing is taken then.
    pub fn take(&mut self, merged: Partial) -> Result<(), Error> {
        let _env = FloatEnv::standard();
        match &mut self.progress {
            Typed::F32(progress) => progress.take(&merged),
            Typed::F64(progress) => progress.take(&merged),
        }
    }

    /// The statistics, once there is no round left.
    ///
    /// # Errors
    ///
    /// [`Error::Unfinished`] if there is one.
    pub fn finish(self) -> Result<Measured, Error> {
        let (stats, count) = match self.progress {
            Typed::F32(progress) => progress.finish().map(|(stats, count)| (Owned::F32(stats), count)),
            Typed::F64(progress) => progress.finish().map(|(stats, count)| (Owned::F64(stats), count)),
        }?;
        Ok(Measured { stats, count })
    }
}

/// Statistics that ranks have measured together: one [`Stats`] for each row or channel, the same bits on every rank and
/// without ranks.
///
/// Forward and backward calls of the same x read them: as [`StatsRef`], or whole.
#[derive(Clone, Debug, PartialEq)]
pub struct Measured {
    stats: Owned,
    count: usize,
}

#[derive(Clone, Debug, PartialEq)]
enum Owned {
    F32(Vec<Stats<f32>>),
    F64(Vec<Stats<f64>>),
}

impl Measured {
    /// The statistics, of the compute type of x.
    pub fn stats(&self) -> StatsRef<'_> {
        match &self.stats {
            Owned::F32(stats) => stats.into(),
            Owned::F64(stats) => stats.into(),
        }
    }
    /// Values that each of them is of, over all ranks.
    pub fn count(&self) -> usize {
        self.count
    }
    /// The compute type.
    pub fn dtype(&self) -> DType {
        self.stats().dtype()
    }
}

impl<'a> From<&'a Measured> for StatsRef<'a> {
    fn from(measured: &'a Measured) -> Self {
        measured.stats()
    }
}
