//! `isonorm bench`: this machine's norms against its copy speed.
//!
//! A quick look, not the project's benchmark: each cell is the best of the rounds that fit a fifth of a second,
//! over the time of a copy that moves as many bytes, both in rounds by turns.

use std::fmt;
use std::io::{self, Write};
use std::path::Path;
use std::time::{Duration, Instant};

use isonorm::{BatchNorm, Cpu, DType, LayerNorm, PlaneIo, Planes, PlanesMut, RmsNorm};
use serde::Serialize;

use crate::args::Bench;
use crate::copy_speed;
use crate::error::{Error, Result};
use crate::summary::{Machine, Seconds};
use crate::tensor::Buffer;

const BUDGET: Duration = Duration::from_millis(200);

/// What is measured.
#[derive(Clone, Copy)]
enum Work {
    Rms,
    Layer,
    BatchEval,
}

/// Norm, type, rows and row length (batch-norm: samples, channels, positions).
const WORKS: [(Work, DType, &[usize]); 8] = [
    (Work::Rms, DType::F32, &[1, 4096]),
    (Work::Rms, DType::F32, &[32, 4096]),
    (Work::Rms, DType::F32, &[4096, 4096]),
    (Work::Rms, DType::Bf16, &[4096, 4096]),
    (Work::Rms, DType::F32, &[65536, 128]),
    (Work::Layer, DType::F32, &[1, 4096]),
    (Work::Layer, DType::F32, &[4096, 4096]),
    (Work::BatchEval, DType::F32, &[32, 64, 3136]),
];

#[derive(Serialize)]
struct Cell {
    threads: usize,
    seconds: f64,
    gb_per_s: f64,
    copy_gb_per_s: f64,
    copy_share: f64,
}

#[derive(Serialize)]
struct Line {
    norm: &'static str,
    dtype: String,
    shape: Vec<usize>,
    cells: Vec<Cell>,
}

#[derive(Serialize)]
struct Report {
    level: String,
    lines: Vec<Line>,
}

/// Measures and prints the table.
pub(crate) fn run(args: &Bench) -> Result<()> {
    let machine = Machine::new(args.threads, args.level);
    let mut threads = vec![1, machine.threads];
    threads.dedup();
    let mut report = Report { level: machine.chosen().to_string(), lines: Vec::new() };
    for (work, dtype, shape) in WORKS {
        let cells = threads.iter().map(|threads| work.measure(dtype, shape, *threads, &machine));
        let cells = cells.collect::<Result<_>>()?;
        report.lines.push(Line { norm: work.name(), dtype: dtype.to_string(), shape: shape.to_vec(), cells });
    }
    if args.json {
        return crate::print_json(&report);
    }
    let mut out = io::stdout().lock();
    let printed = write!(out, "{report}").and_then(|()| out.flush());
    printed.map_err(Error::io("write", Path::new("standard output")))
}

impl Work {
    fn name(self) -> &'static str {
        match self {
            Work::Rms => "rms-norm",
            Work::Layer => "layer-norm",
            Work::BatchEval => "batch-norm --eval",
        }
    }

    fn measure(self, dtype: DType, shape: &[usize], threads: usize, machine: &Machine) -> Result<Cell> {
        let len: usize = shape.iter().product();
        let bytes = len * dtype.size();
        let cpu = machine.with_threads(threads).cpu();
        let (x, mut y) = (ramp(dtype, len), Buffer::zeroed(dtype, len));
        let params = [1.0f32; 4096];
        let mut once = || self.once(shape, &x, &mut y, &params, cpu);
        once()?;
        let clock = Instant::now();
        once()?;
        let repeats = (20e-6 / clock.elapsed().as_secs_f64().max(1e-8)).clamp(1.0, 1000.0) as u32;
        let copiers = if bytes < 1 << 20 { 1 } else { threads };
        let (clock, mut best, mut copy) = (Instant::now(), f64::INFINITY, 0.0f64);
        while best.is_infinite() || clock.elapsed() < BUDGET {
            let round = Instant::now();
            for _ in 0..repeats {
                once()?;
            }
            best = best.min(round.elapsed().as_secs_f64() / f64::from(repeats));
            if copy == 0.0 || clock.elapsed() > BUDGET / 2 {
                copy = copy.max(copy_speed::measure(bytes, copiers).unwrap_or(f64::NAN));
            }
        }
        let speed = 2.0 * bytes as f64 / best;
        let share = speed / copy;
        Ok(Cell { threads, seconds: best, gb_per_s: speed / 1e9, copy_gb_per_s: copy / 1e9, copy_share: share })
    }

    fn once(self, shape: &[usize], x: &Buffer, y: &mut Buffer, params: &[f32], cpu: Cpu<'_>) -> Result<()> {
        match self {
            Work::Rms => {
                let norm = RmsNorm::new(shape[1]).weight(&params[..shape[1]]).on(cpu);
                norm.forward(x.slice(), y.slice_mut())?;
            }
            Work::Layer => {
                let params = &params[..shape[1]];
                let norm = LayerNorm::new(shape[1]).weight(params).bias(params).on(cpu);
                norm.forward(x.slice(), y.slice_mut())?;
            }
            Work::BatchEval => {
                let (channels, spatial) = (shape[1], shape[2]);
                let params = &params[..channels];
                let x = Planes::channels_first(x.slice(), channels, spatial);
                let y = PlanesMut::channels_first(y.slice_mut(), channels, spatial);
                let norm = BatchNorm::new(channels).weight(params).bias(params).on(cpu);
                norm.evaluate(PlaneIo::new(x, y), params, params)?;
            }
        }
        Ok(())
    }
}

/// Values of ordinary size, no two neighbours alike.
fn ramp(dtype: DType, len: usize) -> Buffer {
    let value = |i: usize| (i * 37 % 1009) as f32 / 256.0 - 2.0;
    match dtype {
        DType::Bf16 => Buffer::of(dtype, &(0..len).map(|i| half::bf16::from_f32(value(i))).collect::<Vec<_>>()),
        DType::F16 => Buffer::of(dtype, &(0..len).map(|i| half::f16::from_f32(value(i))).collect::<Vec<_>>()),
        DType::F64 => Buffer::of(dtype, &(0..len).map(|i| f64::from(value(i))).collect::<Vec<_>>()),
        DType::F32 => Buffer::of(dtype, &(0..len).map(value).collect::<Vec<_>>()),
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "level {}; share: of the speed of a copy of the same size on as many threads", self.level)?;
        write!(f, "{:<18}{:<6}{:<16}", "norm", "type", "shape")?;
        for cell in self.lines.iter().take(1).flat_map(|line| &line.cells) {
            write!(
                f,
                "{:>12}{:>8}{:>7}",
                format!("{} thread{}", cell.threads, if cell.threads > 1 { "s" } else { "" }),
                "GB/s",
                "share"
            )?;
        }
        writeln!(f)?;
        for line in &self.lines {
            let shape: Vec<String> = line.shape.iter().map(usize::to_string).collect();
            write!(f, "{:<18}{:<6}{:<16}", line.norm, line.dtype, shape.join(" x "))?;
            for cell in &line.cells {
                let share = format!("{:.0} %", 100.0 * cell.copy_share);
                write!(f, "{:>12}{:>8.1}{share:>7}", Seconds(cell.seconds).to_string(), cell.gb_per_s)?;
            }
            writeln!(f)?;
        }
        Ok(())
    }
}
