//! One golden backward case through the library, in every form of the call.

use isonorm::{BackwardIo, Cpu, DType, Io, Level, Partial, PlaneBackwardIo, PlaneIo};

use super::case::{Case, NormName};
use super::check::{Layout, Results, compare, copied, transposed};
use super::norms;
use crate::error::Result;
use crate::stats::Saved;
use crate::tensor::Buffer;

/// A way to make the same call.
#[derive(Clone, Copy)]
struct Form {
    name: &'static str,
    threads: usize,
    /// With the statistics that forward saved.
    saved: bool,
    /// dx in dy's place, where it has its type.
    in_place: bool,
    /// Rows of a micro-batch, whose sums go on from one to the next; 0 for all at once.
    cut: usize,
}

const PLAIN: Form = Form { name: "one thread", threads: 1, saved: false, in_place: false, cut: 0 };
const FORMS: [Form; 6] = [
    PLAIN,
    Form { name: "three threads", threads: 3, ..PLAIN },
    Form { name: "saved statistics", saved: true, ..PLAIN },
    Form { name: "in place", in_place: true, ..PLAIN },
    Form { name: "micro-batches of a row", cut: 1, ..PLAIN },
    Form { name: "micro-batches of seven rows, two threads", threads: 2, cut: 7, ..PLAIN },
];

/// The first difference between the library's gradients on a level and the golden ones, in words.
pub(super) fn difference(case: &Case, dy: &Buffer, level: Level) -> Result<Option<String>> {
    let rows = matches!(case.norm, NormName::RmsNorm | NormName::LayerNorm);
    let x = if rows { normalized(case, level)? } else { copied(&case.x) };
    for form in FORMS.into_iter().filter(|form| rows || form.cut == 0) {
        let call = Call { case, form, level };
        let found = if rows {
            vec![("", call.rows(&x, dy)?)]
        } else {
            let planes = |layout| call.planes(&x, dy, layout);
            vec![("", planes(Layout::First)?), ("channels last, ", planes(Layout::Last)?)]
        };
        let differs = |(how, found): &(&str, Results)| Some(format!("{how}{}: {}", form.name, compare(case, found)?));
        if let Some(what) = found.iter().find_map(differs) {
            return Ok(Some(what));
        }
    }
    Ok(None)
}

/// x, or the r that a residual add leaves.
fn normalized(case: &Case, level: Level) -> Result<Buffer> {
    let (Some(residual), Some(r_type)) = (&case.residual, case.r_type) else { return Ok(copied(&case.x)) };
    let [mut r, mut y] = [r_type, case.y_type].map(|dtype| Buffer::zeroed(dtype, case.x.len()));
    forward(case, level, Io::add(case.x.slice(), residual.slice(), r.slice_mut(), y.slice_mut()))?;
    Ok(r)
}

fn forward(case: &Case, level: Level, io: Io<'_>) -> Result<()> {
    let cpu = Cpu::new().threads(1).level(level);
    match case.norm {
        NormName::LayerNorm => norms::layer(case, cpu).apply(io)?,
        _ => norms::rms(case, cpu).apply(io)?,
    }
    Ok(())
}

fn dtype(buffer: &Buffer) -> DType {
    buffer.slice().dtype()
}

fn named<const N: usize>(results: [(&'static str, Option<Buffer>); N]) -> Results {
    results.into_iter().filter_map(|(name, buffer)| Some((name, buffer?))).collect()
}

/// A case in one form on one level.
struct Call<'a> {
    case: &'a Case,
    form: Form,
    level: Level,
}

/// The gradients of weight and bias, and their unfinished sums where the batch is cut.
struct Params {
    dweight: Option<Buffer>,
    dbias: Option<Buffer>,
    sums: Option<Partial>,
}

impl Call<'_> {
    fn cpu(&self) -> Cpu<'static> {
        Cpu::new().threads(self.form.threads).level(self.level)
    }

    /// Room for a result, where the case has it, in a call of `len` elements.
    fn room(&self, name: &str, len: usize) -> Option<Buffer> {
        self.case.out(name).map(|out| Buffer::zeroed(dtype(out), len))
    }

    /// dx, with dy in it where the call is to be in place.
    fn dx(&self, dy: &Buffer) -> (Buffer, bool) {
        match self.room("dx", dy.len()) {
            Some(dx) if !self.form.in_place || dtype(&dx) != dtype(dy) => (dx, false),
            _ => (copied(dy), true),
        }
    }

    fn params(&self, sums: Option<Partial>) -> Params {
        let room = |name| self.case.out(name).and_then(|out| self.room(name, out.len()));
        Params { dweight: room("dweight"), dbias: room("dbias"), sums }
    }

    fn rows(&self, x: &Buffer, dy: &Buffer) -> Result<Results> {
        let Call { case, form, .. } = self;
        let (rows, hidden) = (case.shape[0], case.shape[1]);
        let cut = if form.cut == 0 { rows.max(1) } else { form.cut };
        let mut params = self.params((form.cut > 0).then(|| Partial::rows(dtype(x), hidden, 0)));
        let (mut all_dx, mut all_dr) = (Vec::new(), Vec::new());
        for start in (0..rows).step_by(cut) {
            let elements = start * hidden..(start + cut).min(rows) * hidden;
            let part = |from: &Buffer| {
                let size = dtype(from).size();
                Buffer::copied(dtype(from), &from.bytes()[elements.start * size..elements.end * size])
            };
            let dresidual = case.dresidual.as_ref().map(part);
            let (dx, dr) = self.batch(&part(x), &part(dy), dresidual.as_ref(), &mut params)?;
            all_dx.extend_from_slice(dx.bytes());
            dr.iter().for_each(|dr| all_dr.extend_from_slice(dr.bytes()));
        }
        let Params { mut dweight, mut dbias, sums } = params;
        if let Some(sums) = sums {
            dweight.as_mut().map(|to| sums.dweight(to.slice_mut())).transpose()?;
            dbias.as_mut().map(|to| sums.dbias(to.slice_mut())).transpose()?;
        }
        let whole = |name, bytes: &[u8]| case.out(name).map(|out| Buffer::copied(dtype(out), bytes));
        let (dx, dr) = (whole("dx", &all_dx), whole("dr", &all_dr));
        Ok(named([("dx", dx), ("dr", dr), ("dweight", dweight), ("dbias", dbias)]))
    }

    /// dx and dr of some rows, which are added to the sums.
    fn batch(
        &self,
        x: &Buffer,
        dy: &Buffer,
        dresidual: Option<&Buffer>,
        params: &mut Params,
    ) -> Result<(Buffer, Option<Buffer>)> {
        let case = self.case;
        let mut saved = Saved::new(dtype(x), x.len() / case.shape[1].max(1));
        if self.form.saved {
            let mut y = Buffer::zeroed(dtype(x), x.len());
            forward(case, self.level, Io::new(x.slice(), y.slice_mut()).stats(saved.as_mut()))?;
        }
        let ((mut dx, in_place), mut dr) = (self.dx(dy), self.room("dr", x.len()));
        let mut io = if in_place {
            BackwardIo::in_place(x.slice(), dx.slice_mut())
        } else {
            BackwardIo::new(x.slice(), dy.slice(), dx.slice_mut())
        };
        if let Some(dresidual) = dresidual {
            io = io.dresidual(dresidual.slice());
        }
        if let Some(dr) = &mut dr {
            io = io.dr(dr.slice_mut());
        }
        if self.form.saved {
            io = io.stats(saved.as_ref());
        }
        let Params { dweight, dbias, sums } = params;
        if let Some(sums) = sums {
            io = io.partial(sums);
        } else {
            io = match dweight {
                Some(dweight) => io.dweight(dweight.slice_mut()),
                None => io,
            };
            io = match dbias {
                Some(dbias) => io.dbias(dbias.slice_mut()),
                None => io,
            };
        }
        match case.norm {
            NormName::LayerNorm => norms::layer(case, self.cpu()).backward(io)?,
            _ => norms::rms(case, self.cpu()).backward(io)?,
        }
        Ok((dx, dr))
    }

    fn planes(&self, x: &Buffer, dy: &Buffer, layout: Layout) -> Result<Results> {
        let [samples, channels, spatial] = *self.case.shape else { return Ok(Vec::new()) };
        let turned = |from: &Buffer, a, b| match layout {
            Layout::First => copied(from),
            Layout::Last => transposed(from, samples, a, b),
        };
        let (x, dy) = (turned(x, channels, spatial), turned(dy, channels, spatial));
        let saved = self.saved(&x, layout)?;
        let ((mut dx, in_place), mut params) = (self.dx(&dy), self.params(None));
        let (from, to) = (layout.read(&x, channels, spatial), layout.write(&mut dx, channels, spatial));
        let mut io = if in_place {
            PlaneBackwardIo::in_place(from, to)
        } else {
            PlaneBackwardIo::new(from, layout.read(&dy, channels, spatial), to)
        };
        if let Some(saved) = &saved {
            io = io.stats(saved.as_ref());
        }
        if let Some(dweight) = &mut params.dweight {
            io = io.dweight(dweight.slice_mut());
        }
        if let Some(dbias) = &mut params.dbias {
            io = io.dbias(dbias.slice_mut());
        }
        match (self.case.norm, &self.case.running) {
            (NormName::GroupNorm, _) => norms::group(self.case, self.cpu(), channels).backward(io)?,
            (NormName::BatchNormEval, Some((mean, var))) => {
                norms::batch(self.case, self.cpu(), channels).evaluate_backward(io, mean.slice(), var.slice())?
            }
            _ => norms::batch(self.case, self.cpu(), channels).train_backward(io)?,
        }
        let Params { dweight, dbias, .. } = params;
        Ok(named([("dx", Some(turned(&dx, spatial, channels))), ("dweight", dweight), ("dbias", dbias)]))
    }

    /// The statistics that the forward pass saves, where the form has them; evaluation has none.
    fn saved(&self, x: &Buffer, layout: Layout) -> Result<Option<Saved>> {
        let [samples, channels, spatial] = *self.case.shape else { return Ok(None) };
        if !self.form.saved || self.case.norm == NormName::BatchNormEval {
            return Ok(None);
        }
        let is_group = self.case.norm == NormName::GroupNorm;
        let stats = if is_group { samples * self.case.options.groups.unwrap_or(1) } else { channels };
        let mut saved = Saved::new(dtype(x), stats);
        let mut y = Buffer::zeroed(dtype(x), x.len());
        let io = PlaneIo::new(layout.read(x, channels, spatial), layout.write(&mut y, channels, spatial));
        let io = io.stats(saved.as_mut());
        if is_group {
            norms::group(self.case, self.cpu(), channels).apply(io)?;
        } else {
            norms::batch(self.case, self.cpu(), channels).train(io, None)?;
        }
        Ok(Some(saved))
    }
}
