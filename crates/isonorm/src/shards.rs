//! Rows whose columns lie on several ranks: tensor parallelism.
//!
//! ```text
//! measure.rs    what statistics come from, and correlate.rs what dx takes its means from, as
//! stretches.rs  nodes of the trees over whole rows, of the rank's columns
//! progress.rs   from merged sums to statistics, round by round;  measuring.rs  the same as a caller sees it
//! ```
//!
//! With statistics known, y and dx are the unsharded kernels' on narrower rows.

use std::marker::PhantomData;
use std::ops::Range;

use crate::backward::BackwardIo;
use crate::backward::call::{Known, Weight};
use crate::backward::correlate::Slope;
use crate::call::Call;
use crate::element::{Compute, DType, Element, with_element};
use crate::error::Error;
use crate::forward::RowNorm;
use crate::grid::{Place, Sequence, Tensor, Walks};
use crate::io::{Io, StatsRef};
use crate::isa::float_env::FloatEnv;
use crate::layer_norm::Layer;
use crate::order::{Extent, Kind, Order, Sums};
use crate::params::{Recipe, check_partial, check_type};
use crate::partial::Partial;
use crate::rms_norm::Rms;
use crate::rows::{AnyIn, In, Rows, RowsMut};
use crate::stats::{Eps, Stats, largest};

pub(crate) mod channels;
pub(crate) mod correlate;
pub(crate) mod measure;
pub(crate) mod measuring;
pub(crate) mod progress;
pub(crate) mod stretches;

use correlate::{Correlate, split_from};
use measure::{Measure, OfDeviations, OfSquares, OfX};
use measuring::{Measuring, Of, Typed};
use progress::{Length, Progress, Round, whole};
use stretches::{RowSums, sum_rows};

/// One rank's columns of the rows of an [`RmsNorm`](crate::RmsNorm) or [`LayerNorm`](crate::LayerNorm): tensor
/// parallelism.
///
/// The ranks hold consecutive columns of every row, cut anywhere, and have the bits of the norm over whole rows. They
/// exchange [`Partial`] sums; how is the caller's: an all-gather of [`to_bytes`](Partial::to_bytes), then
/// [`join`](Partial::join).
///
/// ```text
/// forward:   measure: a partial sum, exchange, take; until there is none        forward: y
/// backward:  correlate: a partial sum, exchange                                 backward: dx, dweight, dbias
/// ```
///
/// # Shapes
///
/// | argument | shape | type | |
/// |---|---|---|---|
/// | `x`, `y`, `dy`, `dx` | `[..., columns]` | as those of the norm | the rank's columns, any leading strides |
/// | `weight`, `bias`, `dweight`, `dbias` | `[columns]` | as those of the norm | of the rank's columns |
/// | a partial sum | `[rows]` | the compute type | 128 bytes of f32 for each row, sum and subtree |
///
/// A rank whose columns begin and end at multiples of [`LEAF`](crate::LEAF) times a power of two sends the fewest subtrees;
/// one that begins within a leaf sends the terms up to its end besides. A rank without columns says how many rows
/// there are by [`Rows::strided`].
///
/// # Example
///
/// The norm over all heads of q together, as OLMo 2 has it, where each rank has some of the heads. The ranks are threads
/// here.
///
/// ```
/// use isonorm::{BackwardIo, Error, Partial, RmsNorm};
/// # use std::sync::{Barrier, Mutex};
///
/// type AllGather<'a> = &'a (dyn Fn(Vec<u8>) -> Vec<Vec<u8>> + Sync);
///
/// fn exchange(sums: Partial, all_gather: AllGather<'_>) -> Result<Partial, Error> {
///     let all = all_gather(sums.to_bytes());
///     Partial::join(all.iter().map(|bytes| Partial::from_bytes(bytes)).collect::<Result<Vec<_>, _>>()?)
/// }
///
/// /// What a rank does: from its columns of q and dy to those of y and dx.
/// fn rank(norm: RmsNorm<'_>, first: usize, [q, dy]: [&[f32]; 2], tokens: usize, all_gather: AllGather<'_>)
///     -> Result<[Vec<f32>; 2], Error>
/// {
///     let shard = norm.shard(first..first + q.len() / tokens)?;
///     let mut measuring = shard.measure(q)?;
///     while let Some(sums) = measuring.partial() {
///         measuring.take(exchange(sums, all_gather)?)?;
///     }
///     let measured = measuring.finish()?;
///     let (mut y, mut dx) = (vec![0.0; q.len()], vec![0.0; q.len()]);
///     shard.forward(q, &measured, &mut y)?;
///     let merged = exchange(shard.correlate(q, dy, &measured)?, all_gather)?;
///     shard.backward(BackwardIo::new(q, dy, &mut dx), &measured, &merged)?;
///     Ok([y, dx])
/// }
///
/// let (tokens, heads, width) = (5, 4, 48);
/// let hidden = heads * width;
/// let q: Vec<f32> = (0..tokens * hidden).map(|i| (i % 37) as f32 - 18.0).collect();
/// let dy: Vec<f32> = (0..tokens * hidden).map(|i| (i % 23) as f32 / 16.0).collect();
/// let (mut y, mut dx) = (vec![0.0; q.len()], vec![0.0; q.len()]);
/// let norm = RmsNorm::new(hidden);
/// norm.forward(&q, &mut y)?;
/// norm.backward(BackwardIo::new(&q, &dy, &mut dx))?;
///
/// # let (barrier, gathered) = (Barrier::new(3), Mutex::new(Vec::new()));
/// # let all_gather = |bytes| {
/// #     gathered.lock().unwrap().push(bytes);
/// #     barrier.wait();
/// #     let all = gathered.lock().unwrap().clone();
/// #     if barrier.wait().is_leader() { gathered.lock().unwrap().clear(); }
/// #     barrier.wait();
/// #     all
/// # };
/// let part = |of: &[f32], heads: &std::ops::Range<usize>| -> Vec<f32> {
///     of.chunks(hidden).flat_map(|row| &row[heads.start * width..heads.end * width]).copied().collect()
/// };
/// std::thread::scope(|scope| {
///     for heads in [0..1, 1..3, 3..4] {
///         let ([q, dy], whole) = ([&q, &dy].map(|of| part(of, &heads)), [&y, &dx].map(|of| part(of, &heads)));
///         let all_gather = &all_gather;
///         scope.spawn(move || {
///             let found = rank(norm, heads.start * width, [&q, &dy], tokens, all_gather);
///             assert_eq!(found, Ok(whole)); // the bits of one process
///         });
///     }
/// });
/// # Ok::<(), isonorm::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct Shard<'a> {
    /// Of whole rows, with the parameters of the rank's columns.
    call: Call<'a>,
    which: Which,
    columns: Range<usize>,
}

#[derive(Clone, Copy, Debug)]
pub(crate) enum Which {
    Rms,
    Layer,
}

/// Runs `$body` with `$norm` bound to the norm.
macro_rules! with_norm {
    ($which:expr, $norm:ident => $body:expr) => {
        match $which {
            Which::Rms => {
                let $norm = Rms;
                $body
            }
            Which::Layer => {
                let $norm = Layer;
                $body
            }
        }
    };
}

impl<'a> Shard<'a> {
    pub(crate) fn new(call: Call<'a>, which: Which, columns: Range<usize>) -> Result<Self, Error> {
        check_partial(call.partial, call.hidden)?;
        if columns.start > columns.end || columns.end > call.hidden {
            return Err(Error::Columns { found: columns, hidden: call.hidden });
        }
        Ok(Shard { call, which, columns })
    }

    /// The norm on rows of the rank's columns, whose statistics are known.
    fn narrow(&self) -> Call<'a> {
        Call { hidden: self.columns.len(), partial: None, ..self.call }
    }

    /// Columns that enter the statistics: of the whole row, and of the rank's.
    fn measured(&self) -> (usize, Range<usize>) {
        let measured = self.call.partial.unwrap_or(self.call.hidden);
        (measured, self.columns.start.min(measured)..self.columns.end.min(measured))
    }

    /// Begins to measure the rows of x, of which this rank has its columns.
    ///
    /// # Errors
    ///
    /// An [`Error`] where shape, type or options do not fit one another.
    pub fn measure<'t>(&self, x: impl Into<Rows<'t>>) -> Result<Measuring<'t>, Error>
    where
        'a: 't,
    {
        let x = x.into();
        let (dtype, width) = (x.data.dtype(), self.columns.len());
        self.narrow().check_params(dtype)?;
        self.call.cpu.chosen_level()?;
        let walks = Walks::of(&[Some(Tensor::read("x", &x)), None], width, Sequence::Logical)?;
        let (length, is_centered) =
            (Length::Columns(self.measured().0), with_norm!(self.which, norm => centered(norm)));
        let progress = Typed::new(dtype, self.call.eps, is_centered, length, walks.grid.rows)?;
        Ok(Measuring { of: Of::Rows(self.clone(), x, walks), progress })
    }

    /// This rank's part of a round.
    pub(crate) fn sums(&self, x: &Rows<'_>, walks: &Walks<2>, progress: &Typed) -> Option<Partial> {
        with_element!(x.data.dtype(), T => {
            let x = In::new(T::of(&x.data)?, Place::new(&walks.grid, &walks.each[0], self.columns.len()));
            self.sums_typed::<T>(x, progress.of()?)
        })
    }

    fn sums_typed<T: Element>(&self, x: In<'_, T>, progress: &Progress<T::Compute>) -> Option<Partial> {
        let ((round, sets), cpu, level) = (progress.round()?, &self.call.cpu, self.call.cpu.chosen_level().ok()?);
        let (kind, columns) = progress.sums_of(round);
        let Range { start, end } = self.measured().1;
        let extent = Extent { order: Order::Row, kind, columns, start, end };
        let bytes = size_of::<T>().saturating_mul(columns).saturating_mul(end - start);
        Some(Partial::of(match round {
            Round::Sums => {
                let form = PhantomData::<OfX>;
                sum_rows::<_, _, 1>(cpu, &Measure { level, x, sets, form }, extent, bytes)
            }
            Round::Squares => {
                let form = PhantomData::<OfSquares>;
                sum_rows::<_, _, 1>(cpu, &Measure { level, x, sets, form }, extent, bytes)
            }
            Round::Deviations => {
                let form = PhantomData::<OfDeviations>;
                sum_rows::<_, _, 2>(cpu, &Measure { level, x, sets, form }, extent, bytes)
            }
            Round::Largest => {
                let mut sums = Sums::new(Order::Row, kind, columns, start);
                for (set, to) in sets.iter().zip(sums.leaf_mut()) {
                    *to = largest(&x.row(set.at)[..end - start]);
                }
                sums.advance(end - start);
                sums
            }
        }))
    }

    /// y of the rows of x, whose statistics are known: [`Measured`](crate::Measured), or as an earlier call saved them.
    ///
    /// # Errors
    ///
    /// An [`Error`] where shapes, types or options do not fit one another; nothing is written then.
    pub fn forward<'t>(
        &self,
        x: impl Into<Rows<'t>>,
        stats: impl Into<StatsRef<'t>>,
        y: impl Into<RowsMut<'t>>,
    ) -> Result<(), Error> {
        with_norm!(self.which, norm => self.narrow().write(norm, Io::new(x, y), stats.into()))
    }

    /// As [`forward`](Self::forward), from x to y in its place.
    ///
    /// # Errors
    ///
    /// Those of [`forward`](Self::forward).
    pub fn forward_in_place<'t>(&self, x: impl Into<RowsMut<'t>>, stats: impl Into<StatsRef<'t>>) -> Result<(), Error> {
        with_norm!(self.which, norm => self.narrow().write(norm, Io::in_place(x), stats.into()))
    }

    /// What this rank has to tell before [`backward`](Self::backward): the sums that dx takes its means from.
    ///
    /// # Errors
    ///
    /// An [`Error`] where shapes, types or options do not fit one another.
    pub fn correlate<'t>(
        &self,
        x: impl Into<Rows<'t>>,
        dy: impl Into<Rows<'t>>,
        stats: impl Into<StatsRef<'t>>,
    ) -> Result<Partial, Error> {
        let (x, dy, stats) = (x.into(), dy.into(), stats.into());
        let dtype = x.data.dtype();
        self.narrow().check_params(dtype)?;
        check_type("dy", dy.data.dtype(), dtype)?;
        let expected = if dtype == DType::F64 { DType::F64 } else { DType::F32 };
        if stats.dtype() != expected {
            return Err(Error::TypeIsNot { name: "stats", found: stats.dtype(), expected });
        }
        let tensors = [Tensor::read("dy", &dy), Tensor::read("x", &x), Tensor::scalars("stats", stats.len())];
        let walks = Walks::of(&tensors.map(Some), self.columns.len(), Sequence::Logical)?;
        with_element!(dtype, T => match (self.which, self.call.recipe) {
            (Which::Rms, Recipe::Llama) => self.correlate_typed::<Rms, T, T, 1>(x, dy, stats, &walks),
            (Which::Rms, _) => self.correlate_typed::<Rms, T, <T as Element>::Compute, 1>(x, dy, stats, &walks),
            (Which::Layer, _) => self.correlate_typed::<Layer, T, <T as Element>::Compute, 2>(x, dy, stats, &walks),
        })
    }

    fn correlate_typed<N, T, R, const K: usize>(
        &self,
        x: Rows<'_>,
        dy: Rows<'_>,
        stats: StatsRef<'_>,
        walks: &Walks<3>,
    ) -> Result<Partial, Error>
    where
        N: RowNorm,
        T: Element,
        R: Element<Compute = T::Compute>,
        for<'s> Correlate<'s, N, T, R>: RowSums<T::Compute, K>,
    {
        let (cpu, level, width) = (&self.call.cpu, self.call.cpu.chosen_level()?, self.columns.len());
        let Range { start, end } = self.columns;
        let (kind, columns) = (kind_of::<N>(), walks.grid.rows);
        let extent = Extent { order: Order::Row, kind, columns, start, end };
        let narrow = self.narrow();
        let weight = Weight::of::<T>(&narrow, level).ordered;
        let split_weight = split_from::<T>(level, &weight, extent.raw_kept());
        let place = |i: usize| Place::new(&walks.grid, &walks.each[i], if i == 2 { 1 } else { width });
        let correlate = Correlate::<N, T, R> {
            level,
            x: In::new(T::of(&x.data).unwrap_or_default(), place(1)),
            dy: AnyIn::new(dy.data, place(0)),
            stats: In::new(T::Compute::saved(stats).unwrap_or_default(), place(2)),
            weight: &weight,
            split_weight: &split_weight,
            norm: PhantomData,
        };
        let bytes = size_of::<T>().saturating_mul(columns).saturating_mul(2 * width);
        Ok(Partial::of(sum_rows(cpu, &correlate, extent, bytes)))
    }

    /// From dy to dx, and to the gradients of the rank's weight and bias: whatever `io` says. `merged` are the sums of
    /// [`correlate`](Self::correlate) of all ranks, `stats` those that it was given.
    ///
    /// # Errors
    ///
    /// An [`Error`] where shapes, types or options do not fit one another, or sums of a rank are missing; nothing is
    /// written then.
    pub fn backward<'t>(
        &self,
        io: BackwardIo<'t>,
        stats: impl Into<StatsRef<'t>>,
        merged: &Partial,
    ) -> Result<(), Error> {
        let (dtype, io) = (io.x.data.dtype(), io.stats(stats));
        self.narrow().check_backward(&io, dtype)?;
        with_norm!(self.which, norm => with_element!(dtype, T => self.backward_typed::<_, T>(norm, io, merged)))
    }

    fn backward_typed<N: RowNorm, T: Element>(&self, _: N, io: BackwardIo<'_>, merged: &Partial) -> Result<(), Error> {
        let call = self.narrow();
        let (walks, spans) = call.rows_of(&io)?;
        let stats = io.stats.and_then(T::Compute::saved).unwrap_or_default();
        let sums = whole(merged, Order::Row, kind_of::<N>(), stats.len(), Some(self.call.hidden))?;
        let eps = self.call.eps.rounded()?;
        let (measured, columns) = self.measured();
        let slopes = slopes::<N, _>(stats, sums, measured, eps);
        let known = Known { slopes: &slopes, measured: columns.len() };
        call.backward_typed::<N, T>(io, &walks, &spans, Some(known))
    }
}

fn centered<N: RowNorm>(_: N) -> bool {
    N::CENTERED
}

/// What dx takes its means from.
fn kind_of<N: RowNorm>() -> Kind {
    if N::CENTERED { Kind::Both } else { Kind::Dot }
}

/// What dx of each row needs, from the merged sums of all columns, of which `measured` enter the statistics.
fn slopes<N: RowNorm, C: Compute>(stats: &[Stats<C>], sums: &Sums<C>, measured: usize, eps: Eps<C>) -> Vec<Slope<C>> {
    let _env = FloatEnv::standard();
    let (root, count) = (sums.root(), C::from_count(measured));
    let slope = |row: usize| {
        let slope = Slope::of(stats[row]);
        let c1 = if N::CENTERED { root[stats.len() + row] / count } else { C::ZERO };
        let minus_c2 = -eps.times_q(root[row] / count, &slope.stats);
        // Other ranks' sums may hold any NaN.
        Slope { c1: c1.quiet(), minus_c2: minus_c2.quiet(), ..slope }
    };
    (0..stats.len()).map(slope).collect()
}
