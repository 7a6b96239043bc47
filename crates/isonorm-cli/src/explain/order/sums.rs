//! The contract's order of summing, step by step, with every intermediate number kept for drawing.
//!
//! This follows `spec/order.md`, not the library's code; the drawing compares its last number with the
//! library's, bit for bit.

use isonorm::{BATCH_LEAF, LANES, LEAF};

use super::super::compute::Arithmetic;

/// What is summed of each element.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Terms {
    Elements,
    Squares,
}

impl Terms {
    pub(crate) fn step(self, arithmetic: Arithmetic, sum: f64, x: f64) -> f64 {
        match self {
            Terms::Elements => arithmetic.add(sum, x),
            Terms::Squares => arithmetic.fma(x, x, sum),
        }
    }

    /// The sum that one loop from left to right gives.
    pub(crate) fn left_to_right(self, arithmetic: Arithmetic, row: &[f64]) -> f64 {
        row.iter().fold(0.0, |sum, &x| self.step(arithmetic, sum, x))
    }
}

/// A sum along a row: lanes of leaves, levels of a tree, and the fold.
#[derive(Debug)]
pub(crate) struct RowSum {
    /// Level 0 holds the leaves, the last one the root; 32 lanes each.
    pub(crate) levels: Vec<Vec<Vec<f64>>>,
    /// The root's lanes after each halving: 16, 8, 4, 2, 1.
    pub(crate) fold: Vec<Vec<f64>>,
}

impl RowSum {
    pub(crate) fn new(arithmetic: Arithmetic, terms: Terms, row: &[f64]) -> Self {
        Self::of(arithmetic, row, |sum, &x| terms.step(arithmetic, sum, x))
    }

    /// The sum of products of pairs.
    pub(crate) fn dot(arithmetic: Arithmetic, pairs: &[(f64, f64)]) -> Self {
        Self::of(arithmetic, pairs, |sum, &(a, b)| arithmetic.fma(a, b, sum))
    }

    fn of<T>(arithmetic: Arithmetic, row: &[T], step: impl Fn(f64, &T) -> f64) -> Self {
        let leaf = |elements: &[T]| {
            let mut lanes = vec![0.0; LANES];
            for (i, x) in elements.iter().enumerate() {
                lanes[i % LANES] = step(lanes[i % LANES], x);
            }
            lanes
        };
        let leaves: Vec<Vec<f64>> = row.chunks(LEAF).map(leaf).collect();
        let add = |a: &Vec<f64>, b: &Vec<f64>| a.iter().zip(b).map(|(&a, &b)| arithmetic.add(a, b)).collect();
        let levels = tree(leaves, add);
        let mut lanes = levels.last().and_then(|root| root.first()).cloned().unwrap_or(vec![0.0; LANES]);
        let mut fold = Vec::new();
        while lanes.len() > 1 {
            let (low, high) = lanes.split_at(lanes.len() / 2);
            lanes = low.iter().zip(high).map(|(&a, &b)| arithmetic.add(a, b)).collect();
            fold.push(lanes.clone());
        }
        RowSum { levels, fold }
    }

    pub(crate) fn total(&self) -> f64 {
        self.fold.last().map_or(0.0, |lanes| lanes[0])
    }
}

/// A sum over the samples of a batch: leaves of 16 samples, levels of a tree.
#[derive(Debug)]
pub(crate) struct BatchSum {
    pub(crate) levels: Vec<Vec<f64>>,
}

impl BatchSum {
    pub(crate) fn new(arithmetic: Arithmetic, samples: &[f64]) -> Self {
        let leaf = |samples: &[f64]| samples.iter().fold(0.0, |sum, &x| arithmetic.add(sum, x));
        let leaves = samples.chunks(BATCH_LEAF).map(leaf).collect();
        BatchSum { levels: tree(leaves, |&a: &f64, &b: &f64| arithmetic.add(a, b)) }
    }

    pub(crate) fn total(&self) -> f64 {
        self.levels.last().and_then(|root| root.first()).copied().unwrap_or(0.0)
    }
}

/// All levels of the left-aligned binary tree: neighbours are added, one without a neighbour passes through.
fn tree<T: Clone>(leaves: Vec<T>, add: impl Fn(&T, &T) -> T) -> Vec<Vec<T>> {
    let mut levels = vec![leaves];
    while let Some(level) = levels.last().filter(|level| level.len() > 1) {
        let next = level
            .chunks(2)
            .map(|pair| match pair {
                [a, b] => add(a, b),
                alone => alone[0].clone(),
            })
            .collect();
        levels.push(next);
    }
    levels
}

#[cfg(test)]
mod tests {
    use isonorm::DType;

    use super::*;

    #[test]
    fn a_row_is_summed_lane_by_lane_and_folded() {
        let row: Vec<f64> = (1..=300).map(f64::from).collect();
        let sum = RowSum::new(Arithmetic(DType::F32), Terms::Elements, &row);
        assert_eq!(sum.levels.iter().map(Vec::len).collect::<Vec<_>>(), [3, 2, 1]);
        assert_eq!(sum.levels[0][0][0], 1.0 + 33.0 + 65.0 + 97.0);
        assert_eq!(sum.levels[0][2][31], 288.0, "lane 31 of the last leaf has one element, the 288th");
        assert_eq!(sum.fold.iter().map(Vec::len).collect::<Vec<_>>(), [16, 8, 4, 2, 1]);
        assert_eq!(sum.total(), 45150.0);
    }

    #[test]
    fn nothing_sums_to_zero() {
        assert_eq!(RowSum::new(Arithmetic(DType::F64), Terms::Squares, &[]).total(), 0.0);
        assert_eq!(BatchSum::new(Arithmetic(DType::F64), &[]).total(), 0.0);
    }
}
