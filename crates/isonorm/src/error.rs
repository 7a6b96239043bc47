//! What can be wrong with a call: one small enum, each variant a fact with its numbers.

use std::fmt;

use crate::element::DType;
use crate::level::Level;

/// Why a call was refused. Nothing has been written when one is returned.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A parameter does not span the normalized axis or the channels.
    #[error("{name} has {found} elements, expected {expected}: one for each {per}")]
    ParameterLen {
        /// Which parameter: `weight`, `bias`, `running_mean`, ...
        name: &'static str,
        /// What it has one of: `normalized element` or `channel`.
        per: &'static str,
        /// Elements expected.
        expected: usize,
        /// Elements found.
        found: usize,
    },
    /// A tensor is not a whole number of rows or of samples.
    #[error("{name} has {found} elements, which is not a whole number of {what} of {size} elements")]
    NotWhole {
        /// Which tensor.
        name: &'static str,
        /// `rows` or `samples`.
        what: &'static str,
        /// Elements found.
        found: usize,
        /// Elements of one.
        size: usize,
    },
    /// Two tensors that must agree in shape do not.
    #[error("{name} has shape {found:?}, expected {expected:?} as {like} has")]
    Shape {
        /// Which tensor.
        name: &'static str,
        /// The tensor it must agree with.
        like: &'static str,
        /// Shape expected.
        expected: Vec<usize>,
        /// Shape found.
        found: Vec<usize>,
    },
    /// Two tensors that must agree in layout do not.
    #[error("{name} is {found}, expected {expected} as {like} is")]
    Layout {
        /// Which tensor.
        name: &'static str,
        /// The tensor it must agree with.
        like: &'static str,
        /// Layout expected: `channels first` or `channels last`.
        expected: &'static str,
        /// Layout found.
        found: &'static str,
    },
    /// A strided view reaches outside its slice.
    #[error("{name} reaches element {reaches} of a slice of {len}: check its shape, strides and offset")]
    OutOfBounds {
        /// Which tensor.
        name: &'static str,
        /// The element that it reaches; -1 stands for any before the first.
        reaches: i128,
        /// Elements of the slice.
        len: usize,
    },
    /// A tensor that is written has rows that share elements.
    #[error("{name} has rows that overlap (shape {shape:?}, strides {strides:?}): an output needs rows of its own")]
    Overlap {
        /// Which tensor.
        name: &'static str,
        /// Its leading shape.
        shape: Vec<usize>,
        /// Its leading strides.
        strides: Vec<isize>,
    },
    /// More leading dimensions than a view can hold, or as many strides as dimensions are not given.
    #[error("{name} has {dims} leading dimensions and {strides} strides, expected as many of each, at most {most}")]
    Dims {
        /// Which tensor.
        name: &'static str,
        /// Dimensions found.
        dims: usize,
        /// Strides found.
        strides: usize,
        /// The most there can be.
        most: usize,
    },
    /// A span of rows that overlaps the one before it, ends before it starts, or leaves the tensor.
    #[error(
        "span {index} is rows {found:?}, expected a range within rows {after}..{rows}: spans rise and do not overlap"
    )]
    Span {
        /// Which span.
        index: usize,
        /// Its rows.
        found: std::ops::Range<usize>,
        /// Where it may begin.
        after: usize,
        /// The rows of the tensor.
        rows: usize,
    },
    /// A type that does not go with the type of what is normalized.
    #[error(
        "{name} is {found}, which does not go with {like} of {expected}: f64 goes with f64 alone, and {}",
        InF64 { name, found, like }
    )]
    Type {
        /// Which tensor.
        name: &'static str,
        /// Its type.
        found: DType,
        /// What is normalized: `x`, or `x + residual`, which has the type of r.
        like: &'static str,
        /// The type of that.
        expected: DType,
    },
    /// A tensor that must have one given type has another.
    #[error("{name} is {found}, expected {expected}")]
    TypeIsNot {
        /// Which tensor.
        name: &'static str,
        /// Its type.
        found: DType,
        /// The type expected.
        expected: DType,
    },
    /// An option whose value has no meaning.
    #[error("{name} is {found}, expected {expected}")]
    Option {
        /// Which option.
        name: &'static str,
        /// Its value.
        found: f64,
        /// What it may be.
        expected: &'static str,
    },
    /// `partial` outside 1..=hidden.
    #[error("partial is {found}, expected 1 to {hidden}, the normalized elements")]
    Partial {
        /// Its value.
        found: usize,
        /// The normalized elements.
        hidden: usize,
    },
    /// A weight offset without a weight.
    #[error("weight_offset is {offset}, but there is no weight to add it to: give a weight, or leave the offset out")]
    OffsetWithoutWeight {
        /// The offset.
        offset: f64,
    },
    /// Groups that do not divide the channels.
    #[error("{groups} groups do not divide {channels} channels: choose a divisor of {channels}")]
    Groups {
        /// Groups.
        groups: usize,
        /// Channels.
        channels: usize,
    },
    /// Batch statistics of too few values.
    #[error(
        "batch norm in training has {count} value for each channel, expected at least 2: give a larger batch, or evaluate"
    )]
    TooFewValues {
        /// Values for each channel.
        count: usize,
    },
    /// A partial sum that does not begin where the one before it ends.
    #[error("the next partial sum starts at {start}, expected {end}, where this one ends: merge neighbours")]
    PartialGap {
        /// Where this one ends.
        end: usize,
        /// Where the next one starts.
        start: usize,
    },
    /// A partial sum of something else than is needed.
    #[error("a partial sum holds {found}, expected {expected}")]
    PartialKind {
        /// What is needed.
        expected: String,
        /// What the sum is of.
        found: String,
    },
    /// A partial sum whose first terms are missing was asked for its result.
    #[error("the partial sum starts at {start}, expected 0: merge it into the one that ends at {start}")]
    PartialStart {
        /// Where it starts.
        start: usize,
    },
    /// A merged partial sum that lacks terms of some rank, or has too many.
    #[error("the partial sum ends at {found}, expected {expected}: merge those of all ranks")]
    PartialLen {
        /// Where it should end.
        expected: usize,
        /// Where it ends.
        found: usize,
    },
    /// Statistics of fewer values than a rank has of each channel, so of another batch.
    #[error("the statistics are of {found} values for each channel, expected at least {least}: this rank's")]
    TooFewMeasured {
        /// The rank's values for each channel.
        least: usize,
        /// Values that were measured.
        found: usize,
    },
    /// Statistics that were asked for before every round was taken.
    #[error("the statistics are not finished: exchange and take partial sums until there is none")]
    Unfinished,
    /// Columns of a shard that are not within a row.
    #[error("the shard has columns {found:?}, expected a range within 0..{hidden}")]
    Columns {
        /// Its columns.
        found: std::ops::Range<usize>,
        /// The normalized elements of a row.
        hidden: usize,
    },
    /// A partial sum longer than positions can be counted.
    #[error("{rows} more rows after {end} are too many, expected at most {} in all", usize::MAX)]
    PartialEnd {
        /// Where the sum ends.
        end: usize,
        /// Rows that were to be added.
        rows: usize,
    },
    /// Bytes that are no partial sum.
    #[error("the bytes are no partial sum: {name} is {found}, expected {expected}")]
    PartialBytes {
        /// Which field, or the length.
        name: &'static str,
        /// Its value.
        found: u64,
        /// What it may be.
        expected: String,
    },
    /// A thread count of 0.
    #[error("threads is 0, expected at least 1")]
    NoThreads,
    /// `hidden`, `channels` or `spatial` of 0 where elements are to be normalized, or no partial sum to join.
    #[error("{name} is 0, expected at least 1")]
    Zero {
        /// Which size.
        name: &'static str,
    },
    /// A level that this CPU does not have.
    #[error("level {level} is not available on this CPU; the best here is {best}")]
    LevelUnavailable {
        /// The level asked for.
        level: Level,
        /// The best level of this CPU.
        best: Level,
    },
    /// A name that is no level.
    #[error("`{found}` is no level, expected scalar, avx2, avx512 or neon (set with ISONORM_LEVEL or in the call)")]
    LevelUnknown {
        /// The name.
        found: String,
    },
}

/// Which of two tensors is f64 and so needs the other in f64.
struct InF64<'a> {
    name: &'a str,
    found: &'a DType,
    like: &'a str,
}

impl fmt::Display for InF64<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (wide, other) = if *self.found == DType::F64 { (self.name, self.like) } else { (self.like, self.name) };
        write!(f, "an f64 {wide} needs {other} in f64")
    }
}
