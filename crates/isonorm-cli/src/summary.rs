//! What a run reports at its end: shape, type, time, speed against a copy, and the digest of the output.

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use isonorm::{Cpu, DType, Level};
use serde::Serialize;

use crate::OneLine;
use crate::copy_speed;
use crate::error::{Result, bytes_of};

/// The BLAKE3 digest of the output tensor's bytes: the same on every machine.
#[derive(Debug)]
pub(crate) struct Digest {
    hasher: blake3::Hasher,
    threads: usize,
}

/// Below this a single thread is as fast (BLAKE3's own advice is 128 KiB).
const SHARED: usize = 256 << 10;

impl Digest {
    /// Of nothing yet; on at most `threads` threads.
    pub(crate) fn new(threads: usize) -> Self {
        Digest { hasher: blake3::Hasher::new(), threads }
    }

    /// Takes more bytes in.
    pub(crate) fn update(&mut self, bytes: &[u8]) {
        if self.threads > 1 && bytes.len() >= SHARED {
            self.hasher.update_rayon(bytes);
        } else {
            self.hasher.update(bytes);
        }
    }

    /// As 64 hexadecimal digits.
    pub(crate) fn hex(&self) -> String {
        self.hasher.finalize().to_hex().to_string()
    }
}

/// Where a norm runs, as the command line says.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Machine {
    /// Threads.
    pub(crate) threads: usize,
    /// The level asked for.
    pub(crate) level: Option<Level>,
    started: Instant,
}

impl Machine {
    /// All cores unless a count is given. The library refuses a count of 0.
    pub(crate) fn new(threads: Option<usize>, level: Option<Level>) -> Self {
        Machine { threads: threads.unwrap_or_else(cores), level, started: Instant::now() }
    }

    /// The same with another count of threads.
    pub(crate) fn with_threads(self, threads: usize) -> Self {
        Machine { threads, ..self }
    }

    /// For the library.
    pub(crate) fn cpu(&self) -> Cpu<'static> {
        let cpu = Cpu::new().threads(self.threads);
        match self.level {
            Some(level) => cpu.level(level),
            None => cpu,
        }
    }

    /// The level that runs.
    pub(crate) fn chosen(&self) -> Level {
        let named = || std::env::var("ISONORM_LEVEL").ok()?.parse().ok();
        self.level.or_else(named).unwrap_or_else(Level::detect)
    }
}

/// The cores that this program may use.
pub(crate) fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, std::num::NonZero::get)
}

/// A norm of fewer seconds is not compared with a copy.
const SHORT: f64 = 1e-3;

/// The end of a run.
#[derive(Debug, Serialize)]
pub(crate) struct Summary {
    /// The command.
    pub(crate) norm: String,
    /// The shape of x and y.
    pub(crate) shape: Vec<usize>,
    /// The type of x.
    pub(crate) dtype: String,
    /// The type of y.
    pub(crate) output_dtype: String,
    /// The file written.
    pub(crate) output: PathBuf,
    /// The level that ran.
    pub(crate) level: String,
    /// Threads at most.
    pub(crate) threads: usize,
    /// Seconds in the norm.
    pub(crate) norm_seconds: f64,
    /// Seconds from opening the input to the output in its place.
    pub(crate) total_seconds: f64,
    /// Bytes read and written in the norm.
    pub(crate) bytes: u64,
    /// Their speed.
    pub(crate) gb_per_s: f64,
    /// The speed of a copy of the same size (64 MiB at most); none where there is no memory for it.
    pub(crate) copy_gb_per_s: Option<f64>,
    /// The ratio of the two; none also for a run so short that it measures page faults and waking threads.
    pub(crate) copy_share: Option<f64>,
    /// BLAKE3 of the output tensor's bytes, in row-major order.
    pub blake3: String,
    /// All outputs with a digest, that one first.
    pub(crate) outputs: Vec<Written>,
}

/// An output in its place.
#[derive(Debug, Serialize)]
pub(crate) struct Written {
    /// `y`, or which gradient.
    pub(crate) name: &'static str,
    /// Its type.
    pub(crate) dtype: String,
    /// Its file.
    pub(crate) output: PathBuf,
    /// BLAKE3 of its bytes.
    pub(crate) blake3: String,
}

impl Written {
    pub(crate) fn new(name: &'static str, dtype: DType, output: &Path, digest: &Digest) -> Self {
        Written { name, dtype: dtype.to_string(), output: output.to_owned(), blake3: digest.hex() }
    }
}

/// What a norm hands to its summary.
#[derive(Debug)]
pub(crate) struct Finished {
    pub(crate) norm: String,
    pub(crate) shape: Vec<usize>,
    pub(crate) dtype: DType,
    pub(crate) output_dtype: DType,
    /// Bytes read and written for each element.
    pub(crate) traffic: usize,
    pub(crate) time: Duration,
    /// What was written, the main output first.
    pub(crate) outputs: Vec<Written>,
}

impl Finished {
    /// Measures this machine and reports.
    pub(crate) fn report(self, machine: &Machine, json: bool) -> Result<()> {
        let total_seconds = machine.started.elapsed().as_secs_f64();
        let elements: usize = self.shape.iter().product();
        let bytes = elements as u64 * self.traffic as u64;
        let norm_seconds = self.time.as_secs_f64();
        let copied = usize::try_from(bytes_of(self.output_dtype, elements)).unwrap_or(usize::MAX);
        let threads = if copied < 1 << 20 { 1 } else { machine.threads };
        let copy = copy_speed::measure(copied.clamp(1 << 16, 64 << 20), threads).map(|speed| speed / 1e9);
        let speed = if norm_seconds > 0.0 { bytes as f64 / norm_seconds / 1e9 } else { 0.0 };
        let summary = Summary {
            norm: self.norm,
            shape: self.shape,
            dtype: self.dtype.to_string(),
            output_dtype: self.output_dtype.to_string(),
            output: self.outputs.first().map(|first| first.output.clone()).unwrap_or_default(),
            level: machine.chosen().to_string(),
            threads: machine.threads,
            norm_seconds,
            total_seconds,
            bytes,
            gb_per_s: speed,
            copy_gb_per_s: copy,
            copy_share: copy.filter(|_| norm_seconds >= SHORT).map(|copy| speed / copy),
            blake3: self.outputs.first().map(|first| first.blake3.clone()).unwrap_or_default(),
            outputs: self.outputs,
        };
        if json {
            return crate::print_json(&summary);
        }
        crate::tell(&summary);
        Ok(())
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let types = if self.dtype == self.output_dtype {
            self.dtype.clone()
        } else {
            format!("{} to {}", self.dtype, self.output_dtype)
        };
        write!(f, "{:<9} {:?} {types}, written to", self.norm, self.shape)?;
        for (i, Written { output, .. }) in self.outputs.iter().enumerate() {
            write!(f, "{} {}", if i > 0 { "," } else { "" }, OneLine(output.display()))?;
        }
        writeln!(f)?;
        writeln!(
            f,
            "time      {} in the norm, {} in all ({}, {} thread{})",
            Seconds(self.norm_seconds),
            Seconds(self.total_seconds),
            self.level,
            self.threads,
            if self.threads == 1 { "" } else { "s" }
        )?;
        write!(f, "speed     {:.1} GB/s", self.gb_per_s)?;
        match (self.copy_share, self.copy_gb_per_s) {
            (Some(share), Some(copy)) => {
                writeln!(f, ", {:.0} % of this machine's copy ({copy:.1} GB/s)", 100.0 * share)?
            }
            (None, Some(copy)) => {
                writeln!(f, ", too short a run to compare with this machine's copy ({copy:.1} GB/s)")?
            }
            (_, None) => writeln!(f)?,
        }
        for (i, Written { name, blake3, .. }) in self.outputs.iter().enumerate() {
            let line = if i > 0 { "\n" } else { "" };
            let of = if *name == "y" { String::new() } else { format!(" {name}") };
            write!(f, "{line}blake3    {blake3}{of}")?;
        }
        Ok(())
    }
}

/// Seconds in a readable unit.
pub(crate) struct Seconds(pub(crate) f64);

impl fmt::Display for Seconds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (value, unit) = match self.0 {
            s if s < 1e-3 => (s * 1e6, "us"),
            s if s < 1.0 => (s * 1e3, "ms"),
            s => (s, "s"),
        };
        let decimals = if value < 10.0 { 2 } else { 1 };
        write!(f, "{value:.decimals$} {unit}")
    }
}
