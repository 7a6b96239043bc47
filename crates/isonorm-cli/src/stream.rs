//! A tensor in blocks: one thread reads ahead, one normalizes, one writes and digests.
//!
//! At most three blocks of output are in memory, and two windows of each input, whatever the tensor's size.

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

/// Tensors cut into units that are normalized independently: rows, or samples.
pub(crate) struct Stream<'a> {
    /// x, and the residual.
    pub(crate) inputs: Vec<&'a Tensor>,
    /// y, and the residual's output; each with its type.
    pub(crate) outputs: Vec<(Option<&'a Output>, DType)>,
    /// Elements of a unit.
    pub(crate) unit: usize,
    /// Units.
    pub(crate) units: usize,
    pub(crate) progress: &'a Progress,
}

type Block = (Range<usize>, Vec<Buffer>);

impl Stream<'_> {
    /// Runs `compute` over all blocks in order: the units, the inputs' windows, the outputs' buffers. Returns the
    /// time spent in it, and the digest of the first output.
    pub(crate) fn run(
        &self,
        digest: Digest,
        mut compute: impl FnMut(Range<usize>, &[Buffer], &mut [Buffer]) -> Result<()>,
    ) -> Result<(Duration, Digest)> {
        thread::scope(|scope| {
            let (read, windows) = mpsc::sync_channel(1);
            let (full, written) = mpsc::sync_channel(1);
            let (empty, recycled) = mpsc::channel();
            scope.spawn(move || self.read(&read));
            let writer = scope.spawn(move || self.write(&written, &empty, digest));
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
            let digest = writer.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
            Ok((time, digest))
        })
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
        mut digest: Digest,
    ) -> Result<Digest> {
        for (range, buffers) in written {
            for ((output, dtype), buffer) in self.outputs.iter().zip(&buffers) {
                if let Some(output) = output {
                    output.write(0, bytes_of(*dtype, range.start * self.unit), buffer.bytes())?;
                }
            }
            let y = buffers[0].bytes();
            digest.update(y);
            self.progress.add(y.len() as u64);
            let _ = empty.send(buffers);
        }
        Ok(digest)
    }

    fn buffers(&self) -> Result<Vec<Buffer>> {
        let len = self.block() * self.unit;
        let beside = self.outputs.iter().find_map(|(output, _)| *output);
        let buffer = |(_, dtype): &(Option<&Output>, DType)| match beside {
            Some(beside) => buffer(*dtype, len, beside),
            None => Ok(Buffer::zeroed(*dtype, len)),
        };
        self.outputs.iter().map(buffer).collect()
    }
}

/// Room for `len` elements, in a scratch file beside `beside` where it is very large.
pub(crate) fn buffer(dtype: DType, len: usize, beside: &Output) -> Result<Buffer> {
    let bytes = bytes_of(dtype, len);
    if bytes <= MOST_IN_MEMORY {
        let mut buffer = Buffer::zeroed(dtype, len);
        buffer.bytes_mut().fill(0); // brings its pages in, so that the norm's time is the norm's
        return Ok(buffer);
    }
    Ok(Buffer::scratch(dtype, len, output::scratch(beside.target(), bytes)?))
}

/// Rows of a gathered block: enough neighbours that each line of memory read is used while it is in cache.
pub(crate) fn gathered_rows(row_bytes: usize, rows: usize) -> usize {
    const NEIGHBOURS: usize = 32;
    (BLOCK / row_bytes.max(1)).max(NEIGHBOURS).clamp(1, rows.max(1))
}
