//! Rows along any axes: streamed where they lie one after another, else gathered block by block.

use std::ops::Range;
use std::time::{Duration, Instant};

use isonorm::DType;

use crate::axes::{Axes, Grid};
use crate::error::Result;
use crate::stream::{self, Done, Stream};
use crate::summary::Digest;
use crate::tensor::Buffer;

/// Runs `compute` over all rows in order: which rows, the inputs' buffers, the outputs' buffers. The unit of `stream` is
/// a row.
pub(crate) fn run(
    stream: &Stream<'_>,
    axes: &Axes,
    digests: Vec<Digest>,
    compute: impl FnMut(Range<usize>, &[Buffer], &mut [Buffer]) -> Result<()>,
) -> Result<Done> {
    if axes.are_last() && !stream.inputs.iter().any(|tensor| tensor.fortran) {
        stream.run(digests, compute)
    } else {
        gather(stream, axes, digests, compute)
    }
}

/// Blocks of rows copied together from wherever their elements lie, and back.
fn gather(
    stream: &Stream<'_>,
    axes: &Axes,
    mut digests: Vec<Digest>,
    mut compute: impl FnMut(Range<usize>, &[Buffer], &mut [Buffer]) -> Result<()>,
) -> Result<Done> {
    let Stream { inputs, outputs, .. } = stream;
    let progress = stream.progress();
    let sources: Vec<(Buffer, Grid)> =
        inputs.iter().map(|tensor| Ok((tensor.whole()?, Grid::of(tensor, axes)))).collect::<Result<_>>()?;
    let grid = Grid::row_major(&inputs[0].shape, axes);
    let mut targets: Vec<Option<Buffer>> = outputs
        .iter()
        .map(|(output, dtype)| output.map(|output| output.map(*dtype)).transpose())
        .collect::<Result<_>>()?;
    let block = stream::gathered_rows(axes.hidden * inputs[0].dtype.size(), axes.rows);
    let buffer = |dtype: DType| stream::buffer(dtype, block * axes.hidden, stream.beside);
    let mut from: Vec<Buffer> = inputs.iter().map(|tensor| buffer(tensor.dtype)).collect::<Result<_>>()?;
    let mut to: Vec<Buffer> = outputs.iter().map(|(_, dtype)| buffer(*dtype)).collect::<Result<_>>()?;
    let mut time = Duration::ZERO;
    for start in (0..axes.rows).step_by(block) {
        let rows = start..(start + block).min(axes.rows);
        from.iter_mut().chain(&mut to).for_each(|buffer| buffer.set_len(rows.len() * axes.hidden));
        for ((source, grid), buffer) in sources.iter().zip(&mut from) {
            grid.gather(start, source.slice(), buffer.slice_mut());
        }
        let clock = Instant::now();
        compute(rows, &from, &mut to)?;
        time += clock.elapsed();
        for (target, buffer) in targets.iter_mut().zip(&to) {
            if let Some(target) = target {
                grid.scatter(start, buffer.slice(), target.slice_mut());
            }
        }
        progress.add(to[0].bytes().len() as u64);
    }
    for (digest, target) in digests.iter_mut().zip(&targets) {
        target.iter().for_each(|target| digest.update(target.bytes()));
    }
    Ok((time, digests))
}
