//! A backward call over rows: the checks before anything is written, and the end of the sums.

use std::borrow::Cow;
use std::marker::PhantomData;
use std::sync::{Mutex, PoisonError};

use crate::apply::narrow_tile;
use crate::backward::correlate::{Slope, SplitWeight};
use crate::backward::io::BackwardIo;
use crate::backward::rows::{BackwardJob, Plan};
use crate::backward::spans::Spans;
use crate::call::Call;
use crate::element::{Compute, DType, Element, with_element};
use crate::error::Error;
use crate::forward::{Reach, RowNorm, Task};
use crate::grid::{Place, Sequence, Walks};
use crate::isa::float_env::FloatEnv;
use crate::level::Level;
use crate::order::{Kind, Order, Sums};
use crate::params::{check_param, check_type, narrow_slice};
use crate::partial::Partial;
use crate::rows::{AnyIn, AnyOut, In};
use crate::slice::SliceMut;
use crate::threads;

/// What a rank knows of its rows, of which it has some columns only.
pub(crate) struct Known<'a, C> {
    /// One for each row, as `stats` of the call has them.
    pub(crate) slopes: &'a [Slope<C>],
    /// Elements, the first of the rank's, that the statistics depend on.
    pub(crate) measured: usize,
}

impl Call<'_> {
    /// Checks everything, then computes.
    pub(crate) fn backward<N: RowNorm>(&self, _: N, io: BackwardIo<'_>) -> Result<(), Error> {
        let dtype = io.x.data.dtype();
        self.check_backward(&io, dtype)?;
        let (walks, spans) = self.rows_of(&io)?;
        with_element!(dtype, T => self.backward_typed::<N, T>(io, &walks, &spans, None))
    }

    /// The rows of a call's tensors, and which of them are the batch.
    pub(crate) fn rows_of(&self, io: &BackwardIo<'_>) -> Result<(Walks<6>, Spans), Error> {
        let sums_rows = io.dweight.is_some() || io.dbias.is_some() || io.partial.is_some() || io.mask.is_some();
        let sequence = if sums_rows { Sequence::Logical } else { Sequence::Memory };
        let walks = Walks::of(&io.tensors(), self.hidden, sequence)?;
        let spans = Spans::new(io.mask, walks.grid.rows)?;
        if let Some(partial) = &io.partial {
            partial.check_room(spans.len)?;
        }
        Ok((walks, spans))
    }

    pub(crate) fn check_backward(&self, io: &BackwardIo<'_>, dtype: DType) -> Result<(), Error> {
        self.check_params(dtype)?;
        if let Some(dy) = &io.dy {
            check_type("dy", dy.data.dtype(), dtype)?;
        }
        check_type(if io.dy.is_some() { "dx" } else { "dy" }, io.dx.data.dtype(), dtype)?;
        if let Some(Some(dresidual)) = &io.dresidual {
            check_type("dresidual", dresidual.data.dtype(), dtype)?;
        }
        if let Some(dr) = &io.dr {
            check_type(if matches!(io.dresidual, Some(None)) { "dresidual" } else { "dr" }, dr.data.dtype(), dtype)?;
        }
        for (name, gradient) in [("dweight", &io.dweight), ("dbias", &io.dbias)] {
            if let Some(gradient) = gradient {
                check_param(name, gradient.as_slice().kind(), self.hidden, "normalized element", dtype)?;
            }
        }
        let expected = if dtype == DType::F64 { DType::F64 } else { DType::F32 };
        if let Some(found) = io.stats.map(|stats| stats.dtype()).filter(|found| *found != expected) {
            return Err(Error::TypeIsNot { name: "stats", found, expected });
        }
        if let Some(partial) = &io.partial {
            partial.check_gradients(expected, self.hidden)?;
            if io.dweight.is_some() || io.dbias.is_some() {
                partial.check_start()?;
            }
        }
        Ok(())
    }

    pub(crate) fn backward_typed<N: RowNorm, T: Element>(
        &self,
        mut io: BackwardIo<'_>,
        walks: &Walks<6>,
        spans: &Spans,
        known: Option<Known<'_, T::Compute>>,
    ) -> Result<(), Error> {
        let (hidden, rows) = (self.hidden, walks.grid.rows);
        let bytes = rows.saturating_mul(hidden).saturating_mul(size_of::<T>());
        let (level, eps) = (self.cpu.chosen_level()?, self.eps.rounded()?);
        let task = Task { call: self, level, eps, reach: Reach::of(bytes) };
        let kind = kind(&io);
        let new = |kind| Sums::new(Order::Batch, kind, hidden, 0);
        let mut kept = io.partial.as_deref_mut().and_then(Partial::sums_mut::<T::Compute>);
        let sums = match &mut kept {
            Some(kept) => Some(std::mem::replace(*kept, new(Kind::Both))),
            None => kind.map(new),
        };
        if rows == 0 || hidden == 0 {
            sums.iter().for_each(|sums| finish(level, sums, io.dweight.take(), io.dbias.take()));
            kept.into_iter().zip(sums).for_each(|(kept, sums)| *kept = sums);
            return Ok(());
        }
        let weight = Weight::of::<T>(self, level);
        let finished = Mutex::new(Vec::new());
        let base = sums.as_ref().map_or(0, Sums::end);
        let past = task.reach == Reach::Past && io.dy.is_some() && io.dresidual.is_none() && io.dr.is_none();
        let (weight, split_weight) = (&*weight.ordered, &*weight.split);
        let measured = known.as_ref().map_or(task.measured(), |known| known.measured);
        let plan = Plan { task, measured, weight, split_weight, spans, base, kind, past, finished: &finished };
        let place = |i: usize| Place::new(&walks.grid, &walks.each[i], if i == 5 { 1 } else { hidden });
        let job = BackwardJob::<N, T> {
            norm: PhantomData,
            plan: &plan,
            rows: 0..spans.len,
            x: In::new(T::of(&io.x.data).unwrap_or(&[]), place(1)),
            dy: io.dy.map(|dy| AnyIn::new(dy.data, place(2))),
            dx: AnyOut::new(io.dx.data, place(0)),
            dresidual: io.dresidual.map(|from| from.map(|from| AnyIn::new(from.data, place(3)))),
            dr: io.dr.map(|dr| AnyOut::new(dr.data, place(4))),
            stats: io.stats.and_then(|stats| T::Compute::saved(stats)).map(|stats| In::new(stats, place(5))),
            known: known.map(|known| In::new(known.slopes, place(5))),
            sums,
        };
        threads::run(&self.cpu, job, bytes.saturating_mul(3));
        let sums = finished.into_inner().unwrap_or_else(PoisonError::into_inner).pop();
        sums.iter().for_each(|sums| finish(level, sums, io.dweight.take(), io.dbias.take()));
        kept.into_iter().zip(sums).for_each(|(kept, sums)| *kept = sums);
        Ok(())
    }
}

/// The weight in the compute type, offset added, ones where there is none; in order, and with the lanes of whole chunks
/// as `T::load_split` has them.
pub(crate) struct Weight<'a, C: Clone> {
    pub(crate) ordered: Cow<'a, [C]>,
    split: Cow<'a, [C]>,
}

impl<'a, C: Compute> Weight<'a, C> {
    pub(crate) fn of<T: Element<Compute = C>>(call: &Call<'a>, level: Level) -> Self {
        let _env = FloatEnv::standard();
        let given = call.params.weight.as_ref().and_then(C::of).filter(|_| C::from_f64(call.params.offset) == C::ZERO);
        if let (Some(given), false) = (given, T::DTYPE == DType::Bf16) {
            return Weight { ordered: Cow::Borrowed(given), split: Cow::Borrowed(given) };
        }
        let [mut ordered, mut split] = [(); 2].map(|()| vec![C::ZERO; call.hidden]);
        call.params.widen_weight(0, &mut ordered);
        C::enter(level, SplitWeight::<T> { from: &mut ordered, split: &mut split });
        Weight { ordered: Cow::Owned(ordered), split: Cow::Owned(split) }
    }
}

/// What is summed over rows.
fn kind(io: &BackwardIo<'_>) -> Option<Kind> {
    match (io.partial.is_some(), io.dweight.is_some(), io.dbias.is_some()) {
        (true, ..) | (_, true, true) => Some(Kind::Both),
        (_, true, false) => Some(Kind::Dot),
        (_, false, true) => Some(Kind::Sum),
        _ => None,
    }
}

/// The gradients of the parameters, rounded once.
fn finish<C: Compute>(level: Level, sums: &Sums<C>, dweight: Option<SliceMut<'_>>, dbias: Option<SliceMut<'_>>) {
    if dweight.is_none() && dbias.is_none() {
        return;
    }
    let _env = FloatEnv::standard();
    let root = sums.root();
    let (dot, sum) = root.split_at(if sums.kind().has_dot() { sums.columns() } else { 0 });
    for (from, to) in [(dot, dweight), (sum, dbias)] {
        match to {
            Some(to) if C::DTYPE == DType::F32 => narrow_tile(level, from, to),
            Some(to) => narrow_slice(from, to),
            None => {}
        }
    }
}
