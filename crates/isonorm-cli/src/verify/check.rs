//! One golden forward case through the library, and the first bit that differs.

use isonorm::{Cpu, DType, Io, Level, PlaneIo, Planes, PlanesMut, Running};

use super::case::{Case, NormName};
use super::norms;
use crate::error::Result;
use crate::stats::{Column, Saved, compute_type};
use crate::tensor::Buffer;

/// What a call gave, by the names of the golden data.
pub(super) type Results = Vec<(&'static str, Buffer)>;

/// The first difference between the library's result on a level and the golden one, in words.
pub(super) fn difference(case: &Case, level: Level) -> Result<Option<String>> {
    let cpu = Cpu::new().threads(1).level(level);
    let results = match case.norm {
        NormName::RmsNorm | NormName::LayerNorm => rows(case, cpu)?,
        _ => {
            let first = planes(case, cpu, Layout::First)?;
            let last = planes(case, cpu, Layout::Last)?;
            if let Some(what) = compare(case, &last) {
                return Ok(Some(format!("channels last: {what}")));
            }
            first
        }
    };
    Ok(compare(case, &results))
}

pub(super) fn compare(case: &Case, results: &Results) -> Option<String> {
    case.expected.iter().find_map(|(name, expected)| {
        let Some((_, found)) = results.iter().find(|(result, _)| result == name) else {
            return Some(format!("{name} is no result of {}", case.norm));
        };
        unlike(expected, found).map(|what| format!("{name}{what}"))
    })
}

/// The first element whose bits differ. NaN matches any NaN.
fn unlike(expected: &Buffer, found: &Buffer) -> Option<String> {
    let dtype = expected.slice().dtype();
    if dtype != found.slice().dtype() || expected.len() != found.len() {
        let of = |buffer: &Buffer| format!("{} {}", buffer.len(), buffer.slice().dtype());
        return Some(format!(": {} expected, {} found", of(expected), of(found)));
    }
    let words = |buffer: &Buffer| -> Vec<u64> { buffer.bytes().chunks(dtype.size()).map(word).collect() };
    let differs =
        |(expected, found): (&u64, &u64)| expected != found && !(is_nan(dtype, *expected) && is_nan(dtype, *found));
    let (expected, found) = (words(expected), words(found));
    let at = expected.iter().zip(&found).position(differs)?;
    let digits = 2 * dtype.size();
    Some(format!("[{at}]: {:0digits$x} expected, {:0digits$x} found", expected[at], found[at]))
}

fn word(bytes: &[u8]) -> u64 {
    bytes.iter().rev().fold(0, |word, byte| word << 8 | u64::from(*byte))
}

fn is_nan(dtype: DType, word: u64) -> bool {
    let infinity = match dtype {
        DType::F32 => 0x7F80_0000,
        DType::F64 => 0x7FF0_0000_0000_0000,
        DType::F16 => 0x7C00,
        DType::Bf16 => 0x7F80,
    };
    let sign = 1 << (8 * dtype.size() - 1);
    word & !sign > infinity
}

fn rows(case: &Case, cpu: Cpu<'_>) -> Result<Results> {
    let rows = case.shape[0];
    let mut y = Buffer::zeroed(case.y_type, case.x.len());
    let mut r = case.r_type.map(|dtype| Buffer::zeroed(dtype, case.x.len()));
    let normalized = case.r_type.unwrap_or(case.x.slice().dtype());
    let mut saved = Saved::new(normalized, rows);
    let io = match (&case.residual, &mut r) {
        (Some(residual), Some(r)) => Io::add(case.x.slice(), residual.slice(), r.slice_mut(), y.slice_mut()),
        _ => Io::new(case.x.slice(), y.slice_mut()),
    };
    let io = io.stats(saved.as_mut());
    match case.norm {
        NormName::LayerNorm => norms::layer(case, cpu).apply(io)?,
        _ => norms::rms(case, cpu).apply(io)?,
    }
    let mut results = with_stats(y, &saved);
    results.extend(r.map(|r| ("r", r)));
    Ok(results)
}

fn with_stats(y: Buffer, saved: &Saved) -> Results {
    let columns = [Column::Mean, Column::Var, Column::Rstd];
    let stats = columns.into_iter().map(|column| (column.name(), saved.column(column)));
    [("y", y)].into_iter().chain(stats).collect()
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Layout {
    First,
    Last,
}

impl Layout {
    pub(super) fn read(self, x: &Buffer, channels: usize, spatial: usize) -> Planes<'_> {
        match self {
            Layout::First => Planes::channels_first(x.slice(), channels, spatial),
            Layout::Last => Planes::channels_last(x.slice(), channels, spatial),
        }
    }

    pub(super) fn write(self, y: &mut Buffer, channels: usize, spatial: usize) -> PlanesMut<'_> {
        match self {
            Layout::First => PlanesMut::channels_first(y.slice_mut(), channels, spatial),
            Layout::Last => PlanesMut::channels_last(y.slice_mut(), channels, spatial),
        }
    }
}

fn planes(case: &Case, cpu: Cpu<'_>, layout: Layout) -> Result<Results> {
    let [samples, channels, spatial] = *case.shape else { return Ok(Vec::new()) };
    let last = layout == Layout::Last;
    let x = if last { transposed(&case.x, samples, channels, spatial) } else { copied(&case.x) };
    let mut y = Buffer::zeroed(case.y_type, x.len());
    let groups = case.options.groups.unwrap_or(1);
    let stats = if case.norm == NormName::GroupNorm { samples * groups } else { channels };
    let mut saved = Saved::new(compute_type(x.slice().dtype()), stats);
    let (source, target) = (layout.read(&x, channels, spatial), layout.write(&mut y, channels, spatial));
    let io = PlaneIo::new(source, target);
    let mut updated = Vec::new();
    match (case.norm, &case.running) {
        (NormName::GroupNorm, _) => {
            norms::group(case, cpu, channels).apply(io.stats(saved.as_mut()))?;
        }
        (NormName::BatchNormEval, Some((mean, var))) => {
            norms::batch(case, cpu, channels).evaluate(io, mean.slice(), var.slice())?;
        }
        (_, running) => {
            let mut norm = norms::batch(case, cpu, channels);
            if let Some(momentum) = case.options.momentum {
                norm = norm.momentum(momentum);
            }
            if case.options.biased_running_var {
                norm = norm.biased_running_var();
            }
            let mut running = running.as_ref().map(|(mean, var)| (copied(mean), copied(var)));
            let updates = running.as_mut().map(|(mean, var)| Running::new(mean.slice_mut(), var.slice_mut()));
            norm.train(io.stats(saved.as_mut()), updates)?;
            updated.extend(running.into_iter().flat_map(|(mean, var)| [("running_mean", mean), ("running_var", var)]));
        }
    }
    let y = if last { transposed(&y, samples, spatial, channels) } else { y };
    let mut results = if case.norm == NormName::BatchNormEval { vec![("y", y)] } else { with_stats(y, &saved) };
    results.extend(updated);
    Ok(results)
}

pub(super) fn copied(from: &Buffer) -> Buffer {
    Buffer::copied(from.slice().dtype(), from.bytes())
}

/// (samples, a, b) as (samples, b, a).
pub(super) fn transposed(from: &Buffer, samples: usize, a: usize, b: usize) -> Buffer {
    let dtype = from.slice().dtype();
    let size = dtype.size();
    let mut to = Buffer::zeroed(dtype, from.len());
    let bytes = to.bytes_mut();
    for sample in 0..samples {
        for i in 0..a {
            for j in 0..b {
                let source = ((sample * a + i) * b + j) * size;
                let target = ((sample * b + j) * a + i) * size;
                bytes[target..target + size].copy_from_slice(&from.bytes()[source..source + size]);
            }
        }
    }
    to
}
