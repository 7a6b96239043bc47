//! The limits of this machine: the operation's minimal traffic, moved and nothing else.
//!
//! Forward is a copy of x to y; of as many tensors as the operation reads and writes, and with two
//! of each a block of [`BLOCK`] lines of the one, then of the other. Backward is a merge: x and dy
//! read, dx written. The limit of a cell is the fastest way of either, or of one after the other.
#![allow(unsafe_code)] // vector loads and stores the compiler would not choose, and their detection

#[cfg(target_arch = "x86_64")]
mod x86;

use std::hint::black_box;

use crate::cells::{Cell, Pass};
use crate::memory::{Inputs, Line, Outputs};
use crate::timing::{Contestant, Role, repeat_on_threads};

/// Lines of one stream before the next stream's turn: 16 KiB, a row of 4096 f32.
const BLOCK: usize = 256;

/// A way to move lines.
#[derive(Clone, Copy)]
struct Way<F> {
    name: &'static str,
    run: F,
    /// Its stores have to be fenced before the results are anyone's.
    fence: Option<fn()>,
}

type Copier = fn(&[Line], &mut [Line]);
/// The exclusive or of two inputs' bits.
type Merger = fn(&[Line], &[Line], &mut [Line]);
type Reader = fn(&[Line]) -> u64;

/// The ways to move `cell`'s bytes, and the read of its inputs, that this machine can do.
pub(crate) fn contestants<'a>(cell: &Cell, inputs: &'a Inputs, threads: usize) -> Vec<Contestant<'a>> {
    let contestant = |copy: Option<Way<Copier>>, merge: Option<Way<Merger>>| Contestant {
        name: [copy.map(|copy| copy.name), merge.map(|merge| merge.name)]
            .into_iter()
            .flatten()
            .collect::<Vec<_>>()
            .join(", "),
        role: Role::Copy,
        run: Box::new(move |calls, outputs| repeat_on_threads(calls, parts(copy, merge, inputs, outputs, threads))),
    };
    let mut contestants: Vec<Contestant<'a>> = match cell.pass {
        Pass::Forward => copies().into_iter().map(|copy| contestant(Some(copy), None)).collect(),
        Pass::Backward => merges().into_iter().map(|merge| contestant(None, Some(merge))).collect(),
        Pass::ForwardBackward => {
            let with_each_merge = |copy| merges().into_iter().map(move |merge| (copy, merge));
            let pairs = copies_ahead().into_iter().flat_map(with_each_merge);
            pairs.map(|(copy, merge)| contestant(Some(copy), Some(merge))).collect()
        }
    };
    let (name, read) = reader();
    contestants.push(Contestant {
        name: name.to_string(),
        role: Role::Read,
        run: Box::new(move |calls, _| repeat_on_threads(calls, read_parts(read, inputs, threads))),
    });
    contestants
}

/// Whether everything that `cell` writes has been moved there.
pub(crate) fn moved(cell: &Cell, inputs: &Inputs, outputs: &Outputs) -> bool {
    let copied = outputs.y.bytes() == inputs.x.bytes() && outputs.sum.bytes() == inputs.residual.bytes();
    let inputs = inputs.x.bytes().iter().zip(inputs.dy.bytes());
    let merged = inputs.map(|(x, dy)| x ^ dy).eq(outputs.dx.bytes().iter().copied());
    (copied || !cell.pass.is_forward()) && merged
}

/// One thread's share of a cell.
struct Part<'a> {
    copies: Vec<(&'a [Line], &'a mut [Line])>,
    merge: Option<(&'a [Line], &'a [Line], &'a mut [Line])>,
}

/// Each thread's share of the copy of `x` and, where there is one, of the residual, and of the merge.
fn parts<'a>(
    copy: Option<Way<Copier>>,
    merge: Option<Way<Merger>>,
    inputs: &'a Inputs,
    outputs: &'a mut Outputs,
    threads: usize,
) -> Vec<impl FnMut() + Send + use<'a>> {
    let x = inputs.x.lines();
    let share = x.len().div_ceil(threads);
    let mut parts: Vec<Part<'a>> = (0..threads).map(|_| Part { copies: Vec::new(), merge: None }).collect();
    for (from, to) in [(x, outputs.y.lines_mut()), (inputs.residual.lines(), outputs.sum.lines_mut())] {
        for (part, pair) in parts.iter_mut().zip(from.chunks(share).zip(to.chunks_mut(share))) {
            part.copies.push(pair);
        }
    }
    let inputs = x.chunks(share).zip(inputs.dy.lines().chunks(share));
    for (part, ((x, dy), dx)) in parts.iter_mut().zip(inputs.zip(outputs.dx.lines_mut().chunks_mut(share))) {
        part.merge = Some((x, dy, dx));
    }
    let run = move |part: &mut Part<'a>| {
        if let Some(copy) = copy {
            copy_pairs(copy, &mut part.copies);
        }
        if let (Some(way), Some((x, dy, dx))) = (merge, &mut part.merge) {
            (way.run)(x, dy, dx);
            way.fence.into_iter().for_each(|fence| fence());
        }
    };
    parts.into_iter().map(|mut part| move || run(black_box(&mut part))).collect()
}

fn copy_pairs(way: Way<Copier>, pairs: &mut [(&[Line], &mut [Line])]) {
    let len = pairs.first().map_or(0, |(from, _)| from.len());
    let block = if pairs.len() == 1 { len } else { BLOCK };
    for start in (0..len).step_by(block.max(1)) {
        let lines = start..(start + block).min(len);
        for (from, to) in pairs.iter_mut() {
            (way.run)(&from[lines.clone()], &mut to[lines.clone()]);
        }
    }
    way.fence.into_iter().for_each(|fence| fence());
}

/// Each thread's share of reading the inputs, each once.
fn read_parts<'a>(read: Reader, inputs: &'a Inputs, threads: usize) -> Vec<impl FnMut() + Send + use<'a>> {
    let share = inputs.x.lines().len().div_ceil(threads);
    let part = |i: usize| {
        [&inputs.x, &inputs.residual, &inputs.dy].map(|tensor| tensor.lines().chunks(share).nth(i).unwrap_or(&[]))
    };
    let work = |tensors: [&'a [Line]; 3]| {
        move || {
            for lines in tensors {
                black_box(read(black_box(lines)));
            }
        }
    };
    (0..threads).map(part).map(work).collect()
}

fn copies() -> Vec<Way<Copier>> {
    let memcpy = Way { name: "memcpy", run: memcpy as Copier, fence: None };
    #[cfg(target_arch = "x86_64")]
    return [vec![memcpy], x86::copies()].concat();
    #[cfg(not(target_arch = "x86_64"))]
    vec![memcpy]
}

/// Copies that ask for lines ahead, or all others where there are none. Forward cells go without:
/// what they have to reach was set by the copies that do not.
fn copies_ahead() -> Vec<Way<Copier>> {
    #[cfg(target_arch = "x86_64")]
    let ahead = x86::copies_ahead();
    #[cfg(not(target_arch = "x86_64"))]
    let ahead = Vec::new();
    if ahead.is_empty() { copies() } else { ahead }
}

fn merges() -> Vec<Way<Merger>> {
    #[cfg(target_arch = "x86_64")]
    let merges = x86::merges();
    #[cfg(not(target_arch = "x86_64"))]
    let merges = Vec::new();
    let portable = Way { name: "merge", run: merge as Merger, fence: None };
    if merges.is_empty() { vec![portable] } else { merges }
}

fn reader() -> (&'static str, Reader) {
    #[cfg(target_arch = "x86_64")]
    if let Some(reader) = x86::reader() {
        return reader;
    }
    ("read", read_lines)
}

fn memcpy(from: &[Line], to: &mut [Line]) {
    to.copy_from_slice(from);
}

fn merge(a: &[Line], b: &[Line], to: &mut [Line]) {
    let [a, b]: [&[u64]; 2] = [a, b].map(bytemuck::cast_slice);
    for ((to, a), b) in bytemuck::cast_slice_mut(to).iter_mut().zip(a).zip(b) {
        *to = a ^ b;
    }
}

fn read_lines(lines: &[Line]) -> u64 {
    let words: &[u64] = bytemuck::cast_slice(lines);
    words.iter().fold(0, |sum, word| sum.wrapping_add(*word))
}
