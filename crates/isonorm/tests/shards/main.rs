//! What ranks compute together has the bits of one process: rows whose columns are sharded, batches whose samples are.

#[path = "../support/mod.rs"]
mod support;

mod refused;
mod rows;

use isonorm::{Measured, Measuring, Partial, StatsRef};
use isonorm_testing::values::SplitMix64;

use support::{Saved, Tensor, assert_same_bits};

/// What every rank gets of all ranks' sums: through bytes, in any order.
fn exchange(sums: impl IntoIterator<Item = Partial>, source: &mut SplitMix64) -> Partial {
    let mut bytes: Vec<Vec<u8>> = sums.into_iter().map(|sums| sums.to_bytes()).collect();
    for i in (1..bytes.len()).rev() {
        bytes.swap(i, source.below(i + 1));
    }
    let parts = bytes.iter().map(|bytes| Partial::from_bytes(bytes).expect("just written"));
    Partial::join(parts).expect("the ranks' sums are neighbours")
}

/// All rounds; how many there were.
fn measure(mut ranks: Vec<Measuring<'_>>, source: &mut SplitMix64) -> (Vec<Measured>, usize) {
    let mut rounds = 0;
    loop {
        let sums: Vec<Partial> = ranks.iter().filter_map(Measuring::partial).collect();
        if sums.is_empty() {
            break;
        }
        assert_eq!(sums.len(), ranks.len(), "all ranks take the same rounds");
        let merged = exchange(sums, source);
        ranks.iter_mut().for_each(|rank| rank.take(merged.clone()).expect("all ranks' sums"));
        rounds += 1;
    }
    (ranks.into_iter().map(|rank| rank.finish().expect("no round is left")).collect(), rounds)
}

/// Where `n` positions are cut for so many ranks: evenly, or anywhere, so that some have none.
fn cuts(n: usize, ranks: usize, evenly: bool, source: &mut SplitMix64) -> Vec<usize> {
    let mut cuts: Vec<usize> =
        (1..ranks).map(|rank| if evenly { n * rank / ranks } else { source.below(n + 1) }).chain([0, n]).collect();
    cuts.sort_unstable();
    cuts
}

/// Every field of the statistics.
fn assert_same_stats(label: &dyn std::fmt::Display, expected: &Saved, found: StatsRef<'_>) {
    let fields = |stats: StatsRef<'_>| match stats {
        StatsRef::F32(stats) => {
            Tensor::F32(stats.iter().flat_map(|s| [s.mean, s.delta, s.var, s.inv, s.scale]).collect())
        }
        StatsRef::F64(stats) => {
            Tensor::F64(stats.iter().flat_map(|s| [s.mean, s.delta, s.var, s.inv, s.scale]).collect())
        }
    };
    let label = format!("{label}, mean, delta, var, inv, scale");
    assert_same_bits(&label, 5, &fields(expected.stats_ref()), &fields(found));
}
