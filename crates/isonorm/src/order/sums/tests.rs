use isonorm_testing::DType;
use isonorm_testing::oracle::{self, batch_dot, batch_sum, row_dot, row_sum};
use isonorm_testing::values::{self, SplitMix64};
use proptest::prelude::*;

use super::*;

/// Values of each position, `columns` a and `columns` b.
struct Positions<C> {
    columns: usize,
    a: Vec<C>,
    b: Vec<C>,
}

impl<C: Compute> Positions<C> {
    fn new(dtype: DType, kind: values::Kind, seed: u64, len: usize, columns: usize) -> Self {
        let of = |seed| values::values(dtype, kind, seed, len * columns).into_iter().map(C::from_f64).collect();
        Positions { columns, a: of(seed), b: of(seed ^ 1) }
    }
    fn at(&self, i: usize) -> [&[C]; 2] {
        [&self.a, &self.b].map(|from| &from[i * self.columns..][..self.columns])
    }
    fn column(from: &[C], columns: usize, c: usize) -> Vec<C> {
        from.iter().copied().skip(c).step_by(columns).collect()
    }
}

/// Positions `from..to`, taken one by one; or, where that can be, as nodes and leaves that another has summed.
fn piece<C: Compute>(of: &Positions<C>, [order, kind]: [u8; 2], from: usize, to: usize, by_nodes: bool) -> Sums<C> {
    let (order, kind) = (ORDERS[usize::from(order)], KINDS[usize::from(kind)]);
    let mut sums = Sums::new(order, kind, of.columns, from);
    while sums.end() < to {
        let (at, leaf) = (sums.end(), order.leaf());
        let level = (at / leaf).trailing_zeros().min(((to - at) / leaf).checked_ilog2().unwrap_or(0));
        let is_node = by_nodes && kind != Kind::Largest && at % leaf == 0 && at + (leaf << level) <= to;
        if is_node && sums.raw() == 0 {
            let mut other = Sums::new(order, kind, of.columns, at);
            (at..at + (leaf << level)).for_each(|i| other.push(of.at(i)[0], of.at(i)[1]));
            let node = other.nodes.pop().expect("a whole subtree");
            assert!(other.nodes.is_empty() && node.level == level);
            sums.push_node(level, node.values);
        } else if by_nodes && sums.raw() == 0 && kind != Kind::Largest {
            let positions = (leaf - at % leaf).min(to - at);
            (at..at + positions).for_each(|i| carry_on(sums.leaf_mut(), order, kind, of.at(i), i));
            sums.advance(positions);
        } else {
            let [a, b] = of.at(at);
            sums.push(a, b);
        }
    }
    sums
}

/// The accumulators after one more position, as another's kernel would have them.
fn carry_on<C: Compute>(leaf: &mut [C], order: Order, kind: Kind, [a, b]: [&[C]; 2], i: usize) {
    let lanes = if order == Order::Row { 32 } else { 1 };
    let dots = if kind.has_dot() { a.len() } else { 0 };
    for c in 0..a.len() {
        if kind.has_dot() {
            let acc = &mut leaf[c * lanes + i % lanes];
            *acc = if kind == Kind::Pair { *acc + b[c] } else { a[c].fused(b[c], *acc) };
        }
        if kind.has_sum() {
            let acc = &mut leaf[(dots + c) * lanes + i % lanes];
            *acc = *acc + a[c];
        }
    }
}

const ORDERS: [Order; 2] = [Order::Row, Order::Batch];
const KINDS: [Kind; 5] = [Kind::Sum, Kind::Dot, Kind::Both, Kind::Largest, Kind::Pair];

/// Neighbours merged in an order drawn at random, some of them rebuilt from their values before.
fn merged<C: Compute>(mut parts: Vec<Sums<C>>, source: &mut SplitMix64) -> Sums<C> {
    while parts.len() > 1 {
        let at = source.below(parts.len() - 1);
        let next = parts.remove(at + 1);
        let next = if source.below(2) == 0 { next } else { rebuilt(&next) };
        parts[at].merge(next).expect("neighbours");
    }
    parts.remove(0)
}

fn rebuilt<C: Compute>(sums: &Sums<C>) -> Sums<C> {
    let all: Vec<C> = sums.values().flatten().copied().collect();
    assert_eq!(all.len() as u128, sums.extent().values());
    let mut rest = &all[..];
    let of_values = Sums::of_values(*sums.extent(), |len| rest.split_off(..len).expect("as many").to_vec());
    assert!(rest.is_empty());
    of_values
}

fn expected<C: Compute + oracle::Compute>(of: &Positions<C>, order: Order, kind: Kind) -> Vec<C> {
    let column = |from: &[C], c| Positions::column(from, of.columns, c);
    let each = 0..of.columns;
    let sum_of = |from: &[C], c| match order {
        Order::Row => row_sum(&column(from, c)),
        Order::Batch => batch_sum(&column(from, c)),
    };
    let sum = |c| sum_of(&of.a, c);
    let dot = |c| match order {
        Order::Row => row_dot(&column(&of.a, c), &column(&of.b, c)),
        Order::Batch => batch_dot(&column(&of.a, c), &column(&of.b, c)),
    };
    let largest = |c| {
        let all = column(&of.a, c);
        let nan = all.iter().copied().find(|v| v.nan());
        nan.unwrap_or_else(|| all.into_iter().map(C::magnitude).fold(C::ZERO, |m, v| if v > m { v } else { m }))
    };
    match kind {
        Kind::Sum => each.map(sum).collect(),
        Kind::Dot => each.map(dot).collect(),
        Kind::Both => each.clone().map(dot).chain(each.map(sum)).collect(),
        Kind::Largest => each.map(largest).collect(),
        Kind::Pair => each.clone().map(|c| sum_of(&of.b, c)).chain(each.map(sum)).collect(),
    }
}

/// Which NaN it is, is left open.
fn bits<C: Compute>(values: &[C]) -> Vec<u64> {
    values.iter().map(|v| if v.nan() { u64::MAX } else { v.to_f64().to_bits() }).collect()
}

/// Positions cut in pieces, each of an own kind, and merged.
#[derive(Clone, Debug)]
struct Case {
    order: u8,
    kind: u8,
    values: values::Kind,
    len: usize,
    columns: usize,
    cuts: Vec<(usize, bool)>,
    seed: u64,
}

fn case() -> impl Strategy<Value = Case> {
    let len = prop_oneof![0..700usize, 0..40usize, 2000..2600usize];
    let cuts = prop::collection::vec((any::<prop::sample::Index>(), any::<bool>()), 0..9);
    let kind = prop::sample::select(values::Kind::ALL.to_vec());
    let made = (0..2u8, 0..4u8, kind, len, 1..4usize, cuts, any::<u64>());
    made.prop_map(|(order, kind, values, len, columns, cuts, seed)| {
        let cuts = cuts.into_iter().map(|(at, by_nodes)| (at.index(len + 1), by_nodes)).collect();
        Case { order, kind, values, len, columns, cuts, seed }
    })
}

fn hold<C: Compute + oracle::Compute>(case: &Case) {
    let Case { order, kind, len, columns, seed, .. } = *case;
    let of = Positions::<C>::new(<C as oracle::Compute>::DTYPE, case.values, seed, len, columns);
    let mut cuts = case.cuts.clone();
    cuts.extend([(0, seed % 2 == 0), (len, false)]);
    cuts.sort_unstable();
    let pieces = cuts.windows(2).map(|cut| piece(&of, [order, kind], cut[0].0, cut[1].0, cut[0].1)).collect();
    let whole = merged(pieces, &mut SplitMix64::new(seed));
    let (order, kind) = (ORDERS[usize::from(order)], KINDS[usize::from(kind)]);
    assert_eq!((whole.start(), whole.end()), (0, len));
    assert_eq!(bits(&whole.root()), bits(&expected(&of, order, kind)), "{case:?}");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn pieces_have_the_bits_of_the_whole(case in case()) {
        hold::<f32>(&case);
        hold::<f64>(&case);
    }
}

#[test]
fn a_sum_of_vanishing_products_is_negative_zero_where_no_lane_is_empty() {
    for (order, len, expected) in [(Order::Batch, 40, -0.0f32), (Order::Row, 300, -0.0), (Order::Row, 31, 0.0)] {
        let cuts = [0, 7, 129.min(len), len];
        let part = |cut: &[usize]| {
            let mut sums = Sums::new(order, Kind::Dot, 1, cut[0]);
            (cut[0]..cut[1]).for_each(|_| sums.push(&[1e-30f32], &[-1e-30]));
            sums
        };
        let [root] = merged(cuts.windows(2).map(part).collect(), &mut SplitMix64::new(1)).root()[..] else { panic!() };
        assert_eq!(root.to_bits(), expected.to_bits(), "{order:?} {len}");
    }
}

#[test]
fn every_cut_in_three_has_the_bits_of_the_whole() {
    let of = Positions::<f32>::new(DType::F32, values::Kind::Normal, 3, 70, 1);
    let whole = bits(&expected(&of, Order::Batch, Kind::Both));
    for first in 0..=70 {
        for second in first..=70 {
            let [a, b, c] =
                [(0, first), (first, second), (second, 70)].map(|(from, to)| piece(&of, [1, 2], from, to, false));
            let (mut left, mut right) = (a.clone(), b.clone());
            left.merge(b).and_then(|()| left.merge(c.clone())).expect("neighbours");
            assert_eq!(bits(&left.root()), whole, "(0..{first} {first}..{second}) {second}..70");
            let mut whole_right = a;
            right.merge(c).and_then(|()| whole_right.merge(right)).expect("neighbours");
            assert_eq!(bits(&whole_right.root()), whole, "0..{first} ({first}..{second} {second}..70)");
        }
    }
}

#[test]
fn a_long_sum_reuses_its_storage() {
    let mut sums = Sums::<f32>::new(Order::Batch, Kind::Sum, 1, 0);
    let mut places = std::collections::HashSet::new();
    for i in 0..16 << 9 {
        sums.push(&[i as f32], &[]);
        places.insert(sums.leaf.as_ptr());
    }
    assert!(places.len() <= 12, "leaves lay in {} places", places.len());
}
