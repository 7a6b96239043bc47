//! The order is the published one, and the one that its definition gives.

use isonorm_testing::golden;

use super::*;
use crate::isa::trace::{self, Trace};

struct Sum<'a>(Row<'a, f32>);
struct Dot<'a>(Row<'a, f32>);

impl Terms<f32, 1> for Sum<'_> {
    fn step<S: Isa<f32>>(&self, isa: S, [sum]: [S::V; 1], at: usize, n: usize) -> [S::V; 1] {
        [isa.add(sum, self.0.read(isa, at, n))]
    }
}

impl Terms<f32, 1> for Dot<'_> {
    fn step<S: Isa<f32>>(&self, isa: S, [sum]: [S::V; 1], at: usize, n: usize) -> [S::V; 1] {
        let x = self.0.read(isa, at, n);
        [isa.fma(x, x, sum)]
    }
}

/// Each element is its own name.
fn row(n: usize) -> Vec<f32> {
    (1..=n).map(|i| i as f32).collect()
}

/// The hashes of the row's sum and of its product with itself.
fn hashes(row: &[f32]) -> [u64; 2] {
    let [sum] = tree(Trace, &Sum(Row::new(row)), row.len());
    let [dot] = tree(Trace, &Dot(Row::new(row)), row.len());
    [fold::<f32, _>(Trace, sum)[0], fold::<f32, _>(Trace, dot)[0]]
}

#[test]
fn the_order_is_the_published_one() {
    let published = golden::order();
    assert!(!published.is_empty(), "no fingerprint in spec/golden/order.json");
    // The sum over nothing is +0 in the contract; here it is 32 of them, folded: +0 too, by another name.
    for golden::Fingerprint { n, row_sum, row_dot } in published.into_iter().filter(|f| f.n > 0) {
        assert_eq!(hashes(&row(n)), [row_sum, row_dot], "sum and dot, n = {n}");
    }
}

/// The tree by its definition: the left part holds the largest power of two of leaves below their number.
fn node(leaves: &[[u64; LANES]]) -> [u64; LANES] {
    if let [leaf] = leaves {
        return *leaf;
    }
    let (left, right) = leaves.split_at(leaves.len().next_power_of_two() / 2);
    let (left, right) = (node(left), node(right));
    std::array::from_fn(|l| trace::add(left[l], right[l]))
}

/// The order by its definition, element by element.
fn defined(row: &[f32], step: fn(u64, u64) -> u64) -> u64 {
    let leaf = |leaf: &[f32]| {
        let mut lanes = [trace::zero(); LANES];
        for (i, &x) in leaf.iter().enumerate() {
            lanes[i % LANES] = step(lanes[i % LANES], trace::loaded(x));
        }
        lanes
    };
    let leaves: Vec<_> = row.chunks(LEAF).map(leaf).collect();
    let mut lanes = if leaves.is_empty() { [trace::zero(); LANES] } else { node(&leaves) }.to_vec();
    while lanes.len() > 1 {
        let (low, high) = lanes.split_at(lanes.len() / 2);
        lanes = low.iter().zip(high).map(|(&low, &high)| trace::add(low, high)).collect();
    }
    lanes[0]
}

#[test]
fn the_binary_counter_is_the_recursive_tree() {
    let row = row(5000);
    for n in 0..=row.len() {
        let expected = [defined(&row[..n], trace::add), defined(&row[..n], |sum, x| trace::fma(x, x, sum))];
        assert_eq!(hashes(&row[..n]), expected, "sum and dot, n = {n}");
    }
}
