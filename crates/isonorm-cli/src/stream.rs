//! A call over files: its tensors in blocks, or whole.
//!
//! In blocks, one thread reads ahead, one normalizes, one writes and digests; at most three blocks of output are in
//! memory, and two windows of each input, whatever the tensor's size.

use std::ops::Range;
use std::sync::mpsc::{self, Receiver, SyncSender};
use std::thread;
use std::time::{Duration, Instant};

use isonorm::DType;

use crate::error::{Result, bytes_of};
use crate::output::{self, Output};
use crate::progress::Progress;
use crate::summary::Digest;
use crate::tensor::{Buffer, Tensor};

/// Bytes of a block of x: several of them fit the last-level cache, and each is worth sharing among threads.
const BLOCK: usize = 8 << 20;
/// Larger blocks (a single row or sample of that size) are kept in a scratch file.
const MOST_IN_MEMORY: u64 = 512 << 20;
/// One block being computed, one waiting, one being written.
const IN_FLIGHT: usize = 3;

/// What a call reads and writes: tensors of one shape, cut into units such as rows or samples.
pub(crate) struct Stream<'a> {
    /// x, and what else has its shape.
    pub(crate) inputs: Vec<&'a Tensor>,
    /// The results, each with its type; without a file it is computed and dropped.
    pub(crate) outputs: Vec<(Option<&'a Output>, DType)>,
    /// Beside which scratch files may lie.
    pub(crate) beside: Option<&'a Output>,
    /// Elements of a unit.
    pub(crate) unit: usize,
    /// Units.
    pub(crate) units: usize,
}

/// The time spent in the library, and the digests of the first results.
pub(crate) type Done = (Duration, Vec<Digest>);

type Block = (Range<usize>, Vec<Buffer>);

impl Stream<'_> {
    /// Runs `compute` over all blocks in order: the units, the inputs' windows, the outputs' buffers. Each digest takes
    /// in the output of its place.
    pub(crate) fn run(
        &self,
        digests: Vec<Digest>,
        mut compute: impl FnMut(Range<usize>, &[Buffer], &mut [Buffer]) -> Result<()>,
    ) -> Result<Done> {
        let progress = &self.progress();
        thread::scope(|scope| {
            let (read, windows) = mpsc::sync_channel(1);
            let (full, written) = mpsc::sync_channel(1);
            let (empty, recycled) = mpsc::channel();
            scope.spawn(move || self.read(&read));
            let writer = scope.spawn(move || self.write(&written, &empty, digests, progress));
            let (mut time, mut made) = (Duration::ZERO, 0);
            for window in windows {
                let (range, inputs): Block = window?;
                let recycled: Option<Vec<Buffer>> =
                    if made < IN_FLIGHT { recycled.try_recv().ok() } else { recycled.recv().ok() };
                let mut outputs = match recycled {
                    Some(outputs) => outputs,
                    None if made < IN_FLIGHT => {
                        made += 1;
                        self.buffers()?
                    }
                    None => break, // the writer has failed
                };
                outputs.iter_mut().for_each(|output| output.set_len(range.len() * self.unit));
                let start = Instant::now();
                compute(range.clone(), &inputs, &mut outputs)?;
                time += start.elapsed();
                if full.send((range, outputs)).is_err() {
                    break;
                }
            }
            drop(full);
            let digests = writer.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
            Ok((time, digests))
        })
    }

    /// Runs `compute` once over all units, with the tensors mapped, so that the system pages them.
    pub(crate) fn run_whole(
        &self,
        mut digests: Vec<Digest>,
        compute: impl FnOnce(&[Buffer], &mut [Buffer]) -> Result<()>,
    ) -> Result<Done> {
        let inputs: Vec<Buffer> = self.inputs.iter().map(|input| input.whole()).collect::<Result<_>>()?;
        let mut outputs = self.map()?;
        let progress = Progress::new(0);
        let start = Instant::now();
        compute(&inputs, &mut outputs)?;
        let time = start.elapsed();
        drop(progress);
        self.digest(&mut digests, &outputs);
        Ok((time, digests))
    }

    /// The outputs in memory, each its file where it has one, else scratch.
    fn map(&self) -> Result<Vec<Buffer>> {
        let buffer = |(output, dtype): &(Option<&Output>, DType)| match output {
            Some(output) => output.map(*dtype),
            None => buffer(*dtype, self.unit * self.units, self.beside),
        };
        self.outputs.iter().map(buffer).collect()
    }

    /// Takes results into the digests of their places, where there are files of them.
    fn digest(&self, digests: &mut [Digest], results: &[Buffer]) {
        for ((digest, buffer), (output, _)) in digests.iter_mut().zip(results).zip(&self.outputs) {
            if output.is_some() {
                digest.update(buffer.bytes());
            }
        }
    }

    /// A bar over the bytes of the first output.
    pub(crate) fn progress(&self) -> Progress {
        Progress::new(bytes_of(self.outputs[0].1, self.unit * self.units))
    }

    /// Units of a block.
    fn block(&self) -> usize {
        let unit = self.unit * self.inputs.first().map_or(1, |x| x.dtype.size());
        (BLOCK / unit.max(1)).clamp(1, self.units.max(1))
    }

    fn read(&self, read: &SyncSender<Result<Block>>) {
        for start in (0..self.units).step_by(self.block()) {
            let range = start..(start + self.block()).min(self.units);
            let elements = range.start * self.unit..range.end * self.unit;
            let windows: Result<Vec<_>> = self.inputs.iter().map(|input| input.window(elements.clone())).collect();
            let failed = windows.is_err();
            if read.send(windows.map(|windows| (range, windows))).is_err() || failed {
                return;
            }
        }
    }

    fn write(
        &self,
        written: &Receiver<Block>,
        empty: &mpsc::Sender<Vec<Buffer>>,
        mut digests: Vec<Digest>,
        progress: &Progress,
    ) -> Result<Vec<Digest>> {
        for (range, buffers) in written {
            for ((output, dtype), buffer) in self.outputs.iter().zip(&buffers) {
                if let Some(output) = output {
                    output.write(0, bytes_of(*dtype, range.start * self.unit), buffer.bytes())?;
                }
            }
            self.digest(&mut digests, &buffers);
            progress.add(buffers[0].bytes().len() as u64);
            let _ = empty.send(buffers);
        }
        Ok(digests)
    }

    fn buffers(&self) -> Result<Vec<Buffer>> {
        let len = self.block() * self.unit;
        self.outputs.iter().map(|(_, dtype)| buffer(*dtype, len, self.beside)).collect()
    }
}

/// Room for `len` elements, in a scratch file beside `beside` where it is very large.
pub(crate) fn buffer(dtype: DType, len: usize, beside: Option<&Output>) -> Result<Buffer> {
    let bytes = bytes_of(dtype, len);
    if let Some(beside) = beside
        && bytes > MOST_IN_MEMORY
    {
        return Ok(Buffer::file(dtype, len, output::scratch(beside.target(), bytes)?, 0));
    }
    let mut buffer = Buffer::zeroed(dtype, len);
    buffer.bytes_mut().fill(0); // brings its pages in, so that the norm's time is the norm's
    Ok(buffer)
}

/// Rows of a gathered block: enough neighbours that each line of memory read is used while it is in cache.
pub(crate) fn gathered_rows(row_bytes: usize, rows: usize) -> usize {
    const NEIGHBOURS: usize = 32;
    (BLOCK / row_bytes.max(1)).max(NEIGHBOURS).clamp(1, rows.max(1))
}
