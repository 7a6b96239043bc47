//! Unfinished sums, for gradients whose batch is in pieces, and norms whose rows or batch are: micro-batches, threads,
//! ranks.

use std::any::Any;

use crate::element::{Compute, DType};
use crate::error::Error;
use crate::isa::float_env::FloatEnv;
use crate::order::{Kind, Order, Sums};
use crate::params::{check_type, narrow_slice, widen_slice};
use crate::slice::{Slice, SliceMut};

mod bytes;

/// What is known of rows `start..end` of the sums over all rows that are the gradients of weight and bias.
///
/// ```text
/// dweight[c] = sum over all rows r of dy[r,c] * x_hat[r,c]
/// dbias[c]   = sum over all rows r of dy[r,c]
/// ```
///
/// Rows are summed in batch order: leaves of [`BATCH_LEAF`](crate::BATCH_LEAF) rows, the leaves in a left-aligned
/// binary tree. A partial sum keeps the nodes of that tree that lie within its rows, and the rows themselves of a
/// leaf that began before `start`. So whoever merges all pieces, in whatever pairs and cut wherever, has the bits of
/// one sum over all rows.
///
/// - Micro-batches: one `Partial` goes on from each batch to the next.
/// - Threads and ranks: each starts where its rows start in the whole batch; [`join`](Partial::join) puts their pieces
///   together. [`to_bytes`](Partial::to_bytes) carries a piece from process to process.
///
/// The gradients of GroupNorm and InstanceNorm are sums over samples of what each sample's planes sum to:
/// [`samples`](Partial::samples), taken on by [`PlaneBackwardIo::partial`](crate::PlaneBackwardIo::partial).
///
/// [`Shard`](crate::Shard) and [`BatchShard`](crate::BatchShard) give sums of other kinds, over columns of rows and over
/// samples: what ranks tell one another of statistics. They merge and travel in the same way; `push`, `dweight` and
/// `dbias` refuse them.
///
/// # Shapes
///
/// | argument | shape | type | |
/// |---|---|---|---|
/// | `dy`, `x_hat` | `[rows, columns]` | any; f64 with sums of f64 alone | contiguous |
/// | `dweight`, `dbias` | `[columns]` | any; f64 of sums of f64 alone | overwritten |
///
/// # Precision
///
/// Sums are kept in the compute type, and rounded once to the type of `dweight` or `dbias`.
///
/// # Example
///
/// ```
/// use isonorm::{DType, Partial};
///
/// let (dy, x_hat) = ([1.0f32, 2.0, 3.0, 4.0, 5.0, 6.0], [0.5f32, 1.0, 1.5, 2.0, 2.5, 3.0]); // three rows of two
/// let mut first = Partial::rows(DType::F32, 2, 0);
/// first.push(&dy[..2], &x_hat[..2])?;
/// let mut second = Partial::rows(DType::F32, 2, 1); // elsewhere: its rows are 1 and 2 of the batch
/// second.push(&dy[2..], &x_hat[2..])?;
///
/// let whole = Partial::join([Partial::from_bytes(&second.to_bytes())?, first])?;
/// let (mut dweight, mut dbias) = ([0.0f32; 2], [0.0f32; 2]);
/// whole.dweight(&mut dweight)?;
/// whole.dbias(&mut dbias)?;
/// assert_eq!((dweight, dbias), ([17.5, 28.0], [9.0, 12.0]));
/// # Ok::<(), isonorm::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct Partial {
    sums: Typed,
}

#[derive(Clone, Debug)]
enum Typed {
    F32(Sums<f32>),
    F64(Sums<f64>),
}

/// Runs `$body` with `$sums` bound to the sums of either type.
macro_rules! with_sums {
    ($partial:expr, $sums:ident => $body:expr) => {
        match $partial {
            Typed::F32($sums) => $body,
            Typed::F64($sums) => $body,
        }
    };
}

impl Partial {
    /// No rows yet, of `columns` columns; the first will be row `start` of the whole batch. `dtype` is the type in
    /// which x is stored: sums are f64 for f64, else f32.
    pub fn rows(dtype: DType, columns: usize, start: usize) -> Partial {
        Partial::new(dtype, Order::Batch, Kind::Both, columns, start)
    }

    /// No samples yet, of a GroupNorm or InstanceNorm of `channels` channels; the first will be sample `start` of the
    /// whole batch.
    pub fn samples(dtype: DType, channels: usize, start: usize) -> Partial {
        Partial::new(dtype, Order::Batch, Kind::Pair, channels, start)
    }

    /// Sums of any kind.
    pub(crate) fn new(dtype: DType, order: Order, kind: Kind, columns: usize, start: usize) -> Partial {
        let sums = match dtype {
            DType::F64 => Typed::F64(Sums::new(order, kind, columns, start)),
            DType::F32 | DType::F16 | DType::Bf16 => Typed::F32(Sums::new(order, kind, columns, start)),
        };
        Partial { sums }
    }

    /// The sums as those of a compute type, where they are.
    pub(crate) fn sums_mut<C: Compute>(&mut self) -> Option<&mut Sums<C>> {
        with_sums!(&mut self.sums, sums => (sums as &mut dyn Any).downcast_mut())
    }

    /// Finished or not, of a kernel.
    pub(crate) fn of<C: Compute>(sums: Sums<C>) -> Partial {
        let mut partial = Partial::new(C::DTYPE, sums.order(), sums.kind(), 0, 0);
        if let Some(own) = partial.sums_mut() {
            *own = sums;
        }
        partial
    }

    /// The sums, where they are of this kind.
    pub(crate) fn sums<C: Compute>(&self, order: Order, kind: Kind, columns: usize) -> Result<&Sums<C>, Error> {
        let wanted = Sums::<C>::new(order, kind, columns, 0);
        let sums = with_sums!(&self.sums, sums => (sums as &dyn Any).downcast_ref::<Sums<C>>());
        let is_wanted = |sums: &&Sums<C>| (sums.order(), sums.kind(), sums.columns()) == (order, kind, columns);
        let refused = || Error::PartialKind { expected: wanted.describe(), found: self.describe() };
        sums.filter(is_wanted).ok_or_else(refused)
    }

    /// What is summed, for an error's text.
    pub(crate) fn describe(&self) -> String {
        with_sums!(&self.sums, sums => sums.describe())
    }

    /// The first row in the whole batch; of other sums the first column or sample.
    pub fn start(&self) -> usize {
        with_sums!(&self.sums, sums => sums.start())
    }
    /// The one after the last.
    pub fn end(&self) -> usize {
        with_sums!(&self.sums, sums => sums.end())
    }
    /// The number of rows, columns or samples that are summed.
    pub fn len(&self) -> usize {
        self.end() - self.start()
    }
    /// Whether there is no row.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
    /// The number of sums side by side: columns; of sums over columns of rows, rows.
    pub fn columns(&self) -> usize {
        with_sums!(&self.sums, sums => sums.columns())
    }
    /// The type in which is summed: f32 or f64.
    pub fn dtype(&self) -> DType {
        match self.sums {
            Typed::F32(_) => DType::F32,
            Typed::F64(_) => DType::F64,
        }
    }

    /// Takes the next rows, from `end` on.
    ///
    /// # Errors
    ///
    /// [`Error::NotWhole`] if `dy` is not a whole number of rows, [`Error::Shape`] if `x_hat` has not as many elements,
    /// [`Error::Type`] if one is f64 and the sums are not, or the reverse, [`Error::PartialEnd`] if there would be more
    /// than `usize::MAX` rows.
    pub fn push<'a>(&mut self, dy: impl Into<Slice<'a>>, x_hat: impl Into<Slice<'a>>) -> Result<(), Error> {
        let (dy, x_hat) = (dy.into(), x_hat.into());
        let rows = self.check_rows(dy, x_hat)?;
        let _env = FloatEnv::standard();
        with_sums!(&mut self.sums, sums => push_rows(sums, dy, x_hat, rows));
        Ok(())
    }

    fn check_rows(&self, dy: Slice<'_>, x_hat: Slice<'_>) -> Result<usize, Error> {
        self.check_kind(&[Kind::Both])?;
        let columns = self.columns();
        let rows = dy.len().checked_div(columns).unwrap_or(0);
        if rows.checked_mul(columns) != Some(dy.len()) {
            return Err(Error::NotWhole { name: "dy", what: "rows", found: dy.len(), size: columns });
        }
        if x_hat.len() != dy.len() {
            let (expected, found) = (vec![dy.len()], vec![x_hat.len()]);
            return Err(Error::Shape { name: "x_hat", like: "dy", expected, found });
        }
        check_type("dy", dy.dtype(), self.dtype())?;
        check_type("x_hat", x_hat.dtype(), self.dtype())?;
        self.check_room(rows)?;
        Ok(rows)
    }

    /// Takes the rows of `next`, which starts where this one ends.
    ///
    /// # Errors
    ///
    /// [`Error::PartialGap`] if it starts elsewhere, [`Error::PartialKind`] if it has other columns or another type.
    /// Nothing is taken then.
    pub fn merge(&mut self, next: Partial) -> Result<(), Error> {
        let _env = FloatEnv::standard();
        match (&mut self.sums, next.sums) {
            (Typed::F32(sums), Typed::F32(next)) => sums.merge(next),
            (Typed::F64(sums), Typed::F64(next)) => sums.merge(next),
            (sums, next) => Err(differ(sums, &next)),
        }
    }

    /// All the parts merged, in whatever order they are given. A part without rows changes nothing, wherever it starts.
    ///
    /// # Errors
    ///
    /// [`Error::PartialGap`] where rows between two parts are missing or are in both, [`Error::PartialKind`] if parts
    /// have other columns or another type, [`Error::Zero`] if there is no part.
    pub fn join(parts: impl IntoIterator<Item = Partial>) -> Result<Partial, Error> {
        let mut parts: Vec<Partial> = parts.into_iter().collect();
        // Stable, and parts without rows last: what is first is where the joined rows start.
        parts.sort_by_key(|part| (part.is_empty(), part.start()));
        let mut parts = parts.into_iter();
        let mut joined = parts.next().ok_or(Error::Zero { name: "the number of parts" })?;
        for part in parts {
            if !part.is_empty() {
                joined.merge(part)?;
            } else if joined.kind() != part.kind() {
                return Err(differ(&joined.sums, &part.sums));
            }
        }
        Ok(joined)
    }

    /// The gradient of the weight, rounded once to the type of `to`. No rows: +0.
    ///
    /// # Errors
    ///
    /// [`Error::PartialStart`] if rows before these are missing, [`Error::ParameterLen`] if `to` has not one element
    /// for each column, [`Error::Type`] if it is f64 and the sums are f32.
    pub fn dweight<'a>(&self, to: impl Into<SliceMut<'a>>) -> Result<(), Error> {
        self.finish("dweight", 0, to.into())
    }

    /// The gradient of the bias, rounded once to the type of `to`. No rows: +0.
    ///
    /// # Errors
    ///
    /// Those of [`dweight`](Partial::dweight).
    pub fn dbias<'a>(&self, to: impl Into<SliceMut<'a>>) -> Result<(), Error> {
        self.finish("dbias", 1, to.into())
    }

    /// What a backward call of a norm of `columns` elements, in the compute type `dtype`, can push into.
    pub(crate) fn check_gradients(&self, dtype: DType, columns: usize) -> Result<(), Error> {
        self.check_like(&Partial::rows(dtype, columns, 0))
    }

    /// Whether the two could be merged.
    pub(crate) fn check_like(&self, wanted: &Partial) -> Result<(), Error> {
        if wanted.kind() == self.kind() { Ok(()) } else { Err(differ(&wanted.sums, &self.sums)) }
    }

    /// Whether so many rows more can be counted.
    pub(crate) fn check_room(&self, rows: usize) -> Result<(), Error> {
        let end = self.end();
        if end.checked_add(rows).is_some() { Ok(()) } else { Err(Error::PartialEnd { end, rows }) }
    }

    /// Whether no row is missing before the first.
    pub(crate) fn check_start(&self) -> Result<(), Error> {
        match self.start() {
            0 => Ok(()),
            start => Err(Error::PartialStart { start }),
        }
    }

    fn finish(&self, name: &'static str, which: usize, to: SliceMut<'_>) -> Result<(), Error> {
        self.check_kind(&[Kind::Both, Kind::Pair])?;
        self.check_start()?;
        let columns = self.columns();
        if to.len() != columns {
            return Err(Error::ParameterLen { name, per: "column", expected: columns, found: to.len() });
        }
        if to.dtype() == DType::F64 && self.dtype() != DType::F64 {
            return Err(Error::Type { name, found: DType::F64, like: "the partial sum", expected: self.dtype() });
        }
        let _env = FloatEnv::standard();
        with_sums!(&self.sums, sums => narrow_slice(&sums.root()[which * columns..][..columns], to));
        Ok(())
    }

    /// Sums read from bytes, or of ranks, may be others than gradients.
    fn check_kind(&self, kinds: &[Kind]) -> Result<(), Error> {
        let (_, order, kind, _) = self.kind();
        if order == Order::Batch && kinds.contains(&kind) {
            Ok(())
        } else {
            Err(Error::PartialKind { expected: "dots and sums in batch order".into(), found: self.describe() })
        }
    }

    /// What must agree for two to be merged.
    fn kind(&self) -> (DType, Order, Kind, usize) {
        with_sums!(&self.sums, sums => (self.dtype(), sums.order(), sums.kind(), sums.columns()))
    }
}

fn differ(sums: &Typed, next: &Typed) -> Error {
    let [expected, found] = [sums, next].map(|sums| with_sums!(sums, sums => sums.describe()));
    Error::PartialKind { expected, found }
}

fn push_rows<C: Compute>(sums: &mut Sums<C>, dy: Slice<'_>, x_hat: Slice<'_>, rows: usize) {
    let columns = sums.columns();
    if let (Some(dy), Some(x_hat)) = (C::of(&dy), C::of(&x_hat)) {
        for r in 0..rows {
            sums.push(&dy[r * columns..][..columns], &x_hat[r * columns..][..columns]);
        }
    } else if rows > 0 {
        let (mut a, mut b) = (vec![C::ZERO; columns], vec![C::ZERO; columns]);
        for r in 0..rows {
            widen_slice(dy.part(r * columns, columns), &mut a);
            widen_slice(x_hat.part(r * columns, columns), &mut b);
            sums.push(&a, &b);
        }
    }
}
