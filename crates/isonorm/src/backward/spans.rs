//! Which rows of a tensor are the batch, and which are padding.

use std::ops::Range;

use crate::backward::io::Mask;
use crate::error::Error;

/// The rows of a batch, numbered as if there were no padding.
pub(crate) struct Spans {
    /// Of each span its first number and its rows; `None`: all rows.
    spans: Option<Vec<(usize, Range<usize>)>>,
    /// Rows in the batch.
    pub(crate) len: usize,
    /// Rows there are.
    rows: usize,
}

impl Spans {
    pub(crate) fn new(mask: Option<Mask<'_>>, rows: usize) -> Result<Self, Error> {
        let ranges = match mask {
            None => return Ok(Spans { spans: None, len: rows, rows }),
            Some(Mask::Rows(mask)) if mask.len() == rows => runs(mask),
            Some(Mask::Rows(mask)) => {
                return Err(Error::ParameterLen { name: "mask", per: "row", expected: rows, found: mask.len() });
            }
            Some(Mask::Spans(spans)) => checked(spans, rows)?,
        };
        let mut len = 0;
        let mut spans = Vec::with_capacity(ranges.len());
        for range in ranges {
            let first = len;
            len += range.len();
            spans.push((first, range));
        }
        Ok(Spans { spans: Some(spans), len, rows })
    }

    /// Where number `n` is, and how many rows from there on are numbered in sequence.
    pub(crate) fn find(&self, n: usize) -> (usize, usize) {
        let Some(spans) = &self.spans else { return (n, self.len - n) };
        let after = spans.partition_point(|(first, _)| *first <= n);
        let (first, range) = &spans[after - 1];
        (range.start + (n - first), range.len() - (n - first))
    }

    /// The rows of the padding between number `n` and the one before it, or the ends.
    pub(crate) fn padding(&self, n: usize) -> Range<usize> {
        let start = if n == 0 { 0 } else { self.find(n - 1).0 + 1 };
        let end = if n == self.len { self.rows } else { self.find(n).0 };
        start..end
    }
}

/// Runs of rows that are set.
fn runs(mask: &[bool]) -> Vec<Range<usize>> {
    let mut at = 0;
    let mut runs = Vec::new();
    for run in mask.chunk_by(|a, b| a == b) {
        if run[0] {
            runs.push(at..at + run.len());
        }
        at += run.len();
    }
    runs
}

/// The spans that have rows, joined to no others.
fn checked(spans: &[Range<usize>], rows: usize) -> Result<Vec<Range<usize>>, Error> {
    let mut end = 0;
    for (index, span) in spans.iter().enumerate() {
        if span.start < end || span.end < span.start || span.end > rows {
            return Err(Error::Span { index, found: span.clone(), after: end, rows });
        }
        end = span.end;
    }
    Ok(spans.iter().filter(|span| !span.is_empty()).cloned().collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn masks_and_spans_number_the_same_rows() {
        let mask = [false, true, true, false, false, true, false];
        for mask in [Mask::Rows(&mask), Mask::Spans(&[1..3, 4..4, 5..6])] {
            let spans = Spans::new(Some(mask), 7).expect("the mask fits");
            assert_eq!(spans.len, 3);
            assert_eq!([0, 1, 2].map(|n| spans.find(n)), [(1, 2), (2, 1), (5, 1)]);
            assert_eq!([0, 1, 2, 3].map(|n| spans.padding(n)), [0..1, 2..2, 3..5, 6..7]);
        }
        let none = Spans::new(Some(Mask::Rows(&[false; 4])), 4).expect("a mask may leave out every row");
        assert_eq!((none.len, none.padding(0)), (0, 0..4));
    }

    #[test]
    #[allow(clippy::reversed_empty_ranges)] // one of them is the error
    fn spans_that_overlap_or_leave_the_tensor_are_refused() {
        for (spans, index) in [([0..2, 1..3], 1), ([0..2, 3..5], 1), ([2..1, 3..4], 0)] {
            let refused = Spans::new(Some(Mask::Spans(&spans)), 4);
            assert!(matches!(refused, Err(Error::Span { index: found, .. }) if found == index), "{spans:?}");
        }
    }
}
