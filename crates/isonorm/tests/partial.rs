//! Partial sums: cut anywhere, merged in any pairs, carried as bytes, they have the bits of the whole batch.

use isonorm::{DType, Error, Partial, Slice, bf16, f16};
use isonorm_testing::oracle::{self, batch_dot, batch_sum};
use isonorm_testing::values::{Kind, SplitMix64, values};
use proptest::prelude::*;

/// Rows of dy and x_hat in f64, each exact in `dtype`.
struct Batch {
    dtype: DType,
    columns: usize,
    dy: Vec<f64>,
    x_hat: Vec<f64>,
}

impl Batch {
    fn new(dtype: DType, kind: Kind, seed: u64, rows: usize, columns: usize) -> Self {
        let testing = match dtype {
            DType::F32 => isonorm_testing::DType::F32,
            DType::F64 => isonorm_testing::DType::F64,
            DType::F16 => isonorm_testing::DType::F16,
            DType::Bf16 => isonorm_testing::DType::Bf16,
        };
        let of = |seed| values(testing, kind, seed, rows * columns);
        Batch { dtype, columns, dy: of(seed), x_hat: of(seed ^ 1) }
    }

    /// Rows `from..to`, pushed in two calls.
    fn partial(&self, from: usize, to: usize) -> Partial {
        let mut partial = Partial::rows(self.dtype, self.columns, from);
        let middle = from + (to - from) / 3;
        for rows in [from..middle, middle..to] {
            let part = |of: &[f64]| of[rows.start * self.columns..rows.end * self.columns].to_vec();
            let (dy, x_hat) = (part(&self.dy), part(&self.x_hat));
            stored(self.dtype, &dy, |dy| stored(self.dtype, &x_hat, |x_hat| partial.push(dy, x_hat))).expect("rows");
        }
        partial
    }

    /// dweight, then dbias.
    fn expected<C: oracle::Compute>(&self) -> Vec<u64> {
        let column =
            |of: &[f64], c| -> Vec<C> { of.iter().skip(c).step_by(self.columns).map(|v| C::from_f64(*v)).collect() };
        let each = 0..self.columns;
        let dweight = each.clone().map(|c| batch_dot(&column(&self.dy, c), &column(&self.x_hat, c)));
        let dbias = each.map(|c| batch_sum(&column(&self.dy, c)));
        dweight.chain(dbias).map(|sum| bits(sum.to_f64())).collect()
    }
}

/// Values as a slice of their type.
fn stored<R>(dtype: DType, values: &[f64], run: impl FnOnce(Slice<'_>) -> R) -> R {
    match dtype {
        DType::F32 => run((&values.iter().map(|v| *v as f32).collect::<Vec<_>>()).into()),
        DType::F64 => run(values.into()),
        DType::F16 => run((&values.iter().map(|v| f16::from_f64(*v)).collect::<Vec<_>>()).into()),
        DType::Bf16 => run((&values.iter().map(|v| bf16::from_f64(*v)).collect::<Vec<_>>()).into()),
    }
}

/// Which NaN it is, is left open.
fn bits(value: f64) -> u64 {
    if value.is_nan() { u64::MAX } else { value.to_bits() }
}

fn found(partial: &Partial) -> Vec<u64> {
    let n = partial.columns();
    if partial.dtype() == DType::F64 {
        let mut sums = vec![f64::MAX; 2 * n];
        partial.dweight(&mut sums[..n]).and_then(|()| partial.dbias(&mut sums[n..])).expect("whole");
        sums.into_iter().map(bits).collect()
    } else {
        let mut sums = vec![f32::MAX; 2 * n];
        partial.dweight(&mut sums[..n]).and_then(|()| partial.dbias(&mut sums[n..])).expect("whole");
        sums.into_iter().map(|v| bits(v.into())).collect()
    }
}

fn through_bytes(partial: &Partial) -> Partial {
    let bytes = partial.to_bytes();
    let read = Partial::from_bytes(&bytes).expect("just written");
    assert_eq!(read.to_bytes(), bytes);
    assert_eq!((read.start(), read.end(), read.columns()), (partial.start(), partial.end(), partial.columns()));
    read
}

#[derive(Clone, Debug)]
struct Case {
    dtype: DType,
    kind: Kind,
    rows: usize,
    columns: usize,
    cuts: Vec<usize>,
    seed: u64,
}

fn case() -> impl Strategy<Value = Case> {
    let dtype = prop::sample::select(vec![DType::F32, DType::F64, DType::F16, DType::Bf16]);
    let kind = prop::sample::select(Kind::ALL.to_vec());
    let cuts = prop::collection::vec(any::<prop::sample::Index>(), 0..8);
    let rows = prop_oneof![0..700usize, 0..40usize];
    (dtype, kind, rows, 1..5usize, cuts, any::<u64>()).prop_map(|(dtype, kind, rows, columns, cuts, seed)| {
        let mut cuts: Vec<usize> = cuts.into_iter().map(|cut| cut.index(rows + 1)).chain([0, rows]).collect();
        cuts.sort_unstable();
        Case { dtype, kind, rows, columns, cuts, seed }
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn pieces_have_the_bits_of_the_whole_batch(case in case()) {
        let batch = Batch::new(case.dtype, case.kind, case.seed, case.rows, case.columns);
        let expected = if case.dtype == DType::F64 { batch.expected::<f64>() } else { batch.expected::<f32>() };
        let mut source = SplitMix64::new(case.seed);
        let mut parts: Vec<Partial> = case.cuts.windows(2).map(|cut| batch.partial(cut[0], cut[1])).collect();
        let mut shuffled: Vec<Partial> = parts.iter().map(through_bytes).collect();
        while parts.len() > 1 {
            let at = source.below(parts.len() - 1);
            let next = parts.remove(at + 1);
            parts[at].merge(next).expect("neighbours");
            if source.below(2) == 0 {
                parts[at] = through_bytes(&parts[at]);
            }
        }
        prop_assert_eq!(found(&parts[0]), &expected[..], "merged");
        for i in (1..shuffled.len()).rev() {
            shuffled.swap(i, source.below(i + 1));
        }
        prop_assert_eq!(found(&Partial::join(shuffled).expect("all")), expected, "joined");
    }

    #[test]
    fn bytes_that_are_changed_are_refused_or_are_another_sum(
        (rows, start) in (0..50usize, 0..40usize),
        [at, cut] in any::<[prop::sample::Index; 2]>(),
        byte in any::<u8>(),
    ) {
        let batch = Batch::new(DType::F32, Kind::Hostile, 1, start + rows, 2);
        let mut bytes = batch.partial(start, start + rows).to_bytes();
        let shorter = cut.index(bytes.len());
        let cut = Partial::from_bytes(&bytes[..shorter]);
        prop_assert!(matches!(cut, Err(Error::PartialBytes { name: "the length", .. })), "{}", shorter);
        let at = at.index(bytes.len());
        bytes[at] = byte;
        any_bytes(&bytes);
    }

    #[test]
    fn any_header_is_refused_or_read(
        (order, kind) in (0..3u8, 0..6u8),
        size in prop::sample::select(vec![4u8, 8, 2]),
        [columns, start, len] in [count(), count(), count()],
        values in 0..3000usize,
    ) {
        let mut bytes = [b"ISOP", &[1, order, kind, size][..]].concat();
        bytes.extend([columns, start, start.wrapping_add(len)].iter().flat_map(|n| n.to_le_bytes()));
        bytes.resize(32 + values, 0);
        any_bytes(&bytes);
        // With as many values as it asks for.
        if let Err(Error::PartialBytes { name: "the length", expected, .. }) = Partial::from_bytes(&bytes)
            && let Ok(len @ 0..100_000) = expected.parse()
        {
            bytes.resize(len, 0);
            any_bytes(&bytes);
            prop_assert!(Partial::from_bytes(&bytes).is_ok());
        }
    }
}

#[test]
fn without_rows_any_number_of_columns_can_be_claimed() {
    for (order, kind) in (0..2).flat_map(|order| (0..5).map(move |kind| (order, kind))) {
        for columns in [u64::MAX, u64::MAX / 2, u64::MAX / 64 + 1, 0] {
            let bytes = [&b"ISOP"[..], &[1, order, kind, 8], &columns.to_le_bytes(), &[7; 16]].concat();
            assert!(Partial::from_bytes(&bytes).is_ok());
            any_bytes(&bytes);
        }
    }
}

fn count() -> impl Strategy<Value = u64> {
    prop_oneof![
        0..300u64,
        any::<u64>(),
        (0..300u64).prop_map(|back| u64::MAX - back),
        (0..64u32).prop_map(|bit| 1 << bit)
    ]
}

/// An error with a text, or a sum that can be used.
fn any_bytes(bytes: &[u8]) {
    match Partial::from_bytes(bytes) {
        Err(error) => assert!(!error.to_string().is_empty()),
        Ok(partial) => {
            assert_eq!(partial.to_bytes(), bytes);
            let n = partial.columns().min(1000);
            let mut sums = [vec![0.0f32; n], vec![0.0f32; n]];
            let _ = partial.dweight(&mut sums[0]).and_then(|()| partial.dbias(&mut sums[1]));
            let mut twice = partial.clone();
            assert_eq!(twice.merge(partial.clone()).is_ok(), partial.is_empty());
            let rows = vec![1.0f32; n * 20];
            let _ = twice.push(&rows, &rows);
            let _ = twice.push(&[0.0f32; 0], &[0.0f32; 0]);
        }
    }
}

#[test]
fn the_bytes_are_the_published_ones() {
    let mut partial = Partial::rows(DType::Bf16, 1, 15);
    let rows: Vec<f32> = (0..18).map(|i| i as f32).collect();
    partial.push(&rows, &rows).expect("rows");
    // Row 15 as it is; rows 16..32 as a node; row 32 in the open leaf. Of each dot and sum, of row 15 dy and x_hat.
    let values = [0.0f32, 0.0, 1496.0, 136.0, 289.0, 17.0];
    let mut expected = b"ISOP\x01\x01\x02\x04".to_vec();
    expected.extend([1u64, 15, 33].iter().flat_map(|n| n.to_le_bytes()));
    expected.extend(values.iter().flat_map(|v| v.to_le_bytes()));
    assert_eq!(partial.to_bytes(), expected);
}

#[test]
fn the_bits_of_a_nan_travel_unchanged() {
    let nan = f32::from_bits(0xFFC1_2345);
    let mut partial = Partial::rows(DType::F32, 1, 1);
    partial.push(&[nan], &[nan]).expect("a row");
    let bytes = through_bytes(&through_bytes(&partial)).to_bytes();
    assert_eq!(bytes[32..], [nan.to_le_bytes(), nan.to_le_bytes()].concat());
}

#[test]
fn an_unfinished_sum_is_rounded_once_to_each_type() {
    let mut partial = Partial::rows(DType::F64, 1, 0);
    let value = 1.0 + 2f64.powi(-8) + 2f64.powi(-50);
    partial.push(&[value], &[1.0f64]).expect("a row");
    let (mut half, mut single, mut double) = ([bf16::ZERO], [0.0f32], [0.0f64]);
    partial.dweight(&mut half).expect("bf16");
    partial.dweight(&mut single).expect("f32");
    partial.dbias(&mut double).expect("f64");
    assert_eq!((half[0].to_bits(), single[0], double[0]), (0x3F81, value as f32, value));
}

/// Holds an error to its text.
#[track_caller]
fn refused<T>(result: Result<T, Error>, text: &str) {
    match result {
        Ok(_) => panic!("not refused: {text}"),
        Err(error) => assert_eq!(error.to_string(), text),
    }
}

/// Rows of ones, of three columns.
fn ones(start: usize, rows: usize) -> Partial {
    let mut partial = Partial::rows(DType::F32, 3, start);
    let ones = vec![1.0f32; rows * 3];
    partial.push(&ones, &ones).expect("rows");
    partial
}

#[test]
fn rows_that_do_not_fit_are_refused_and_nothing_is_taken() {
    let mut partial = ones(0, 5);
    let before = partial.to_bytes();
    let text = "dy has 7 elements, which is not a whole number of rows of 3 elements";
    refused(partial.push(&[0.0f32; 7], &[0.0f32; 7]), text);
    refused(partial.push(&[0.0f32; 6], &[0.0f32; 3]), "x_hat has shape [3], expected [6] as dy has");
    let text =
        "x_hat is f64, which does not go with x of f32: f64 goes with f64 alone, and an f64 x_hat needs x in f64";
    refused(partial.push(&[0.0f32; 3], &[0.0f64; 3]), text);
    assert_eq!(partial.to_bytes(), before);
    let text = format!("2 more rows after {} are too many, expected at most {} in all", usize::MAX - 1, usize::MAX);
    refused(ones(usize::MAX - 2, 1).push(&[0.0f32; 6], &[0.0f32; 6]), &text);
}

#[test]
fn sums_that_are_no_neighbours_are_refused_and_nothing_is_taken() {
    let mut partial = ones(0, 20);
    let before = partial.to_bytes();
    let text = "the next partial sum starts at 21, expected 20, where this one ends: merge neighbours";
    refused(partial.merge(ones(21, 3)), text);
    refused(Partial::join([ones(21, 3), ones(0, 20)]), text);
    refused(Partial::join([ones(0, 20), ones(19, 3)]), &text.replace("21", "19"));
    let other = Partial::rows(DType::F32, 4, 20);
    let text = "a partial sum holds dots and sums of 4 columns in batch order and f32, \
        expected dots and sums of 3 columns in batch order and f32";
    refused(partial.merge(other.clone()), text);
    refused(Partial::join([ones(0, 20), other]), text);
    let text = "a partial sum holds dots and sums of 3 columns in batch order and f64, \
        expected dots and sums of 3 columns in batch order and f32";
    refused(partial.merge(Partial::rows(DType::F64, 3, 20)), text);
    assert_eq!(partial.to_bytes(), before);
    refused(Partial::join([]), "the number of parts is 0, expected at least 1");
}

#[test]
fn parts_without_rows_change_nothing() {
    let parts = [ones(9, 0), ones(16, 7), ones(3, 13), ones(0, 0), ones(0, 3), ones(100, 0)];
    let joined = Partial::join(parts).expect("neighbours");
    assert_eq!(joined.to_bytes(), ones(0, 23).to_bytes());
    let joined = Partial::join([ones(9, 0), ones(5, 0)]).expect("no rows");
    assert_eq!((joined.start(), joined.len(), joined.is_empty()), (5, 0, true));
}

#[test]
fn a_result_is_refused_where_it_would_be_wrong_and_nothing_is_written() {
    let mut to = [7.0f32; 3];
    let text = "the partial sum starts at 2, expected 0: merge it into the one that ends at 2";
    refused(ones(2, 5).dweight(&mut to), text);
    refused(ones(2, 5).dbias(&mut to), text);
    refused(ones(0, 5).dbias(&mut to[..2]), "dbias has 2 elements, expected 3: one for each column");
    let text = "dweight is f64, which does not go with the partial sum of f32: f64 goes with f64 alone, and an \
        f64 dweight needs the partial sum in f64";
    refused(ones(0, 5).dweight(&mut [7.0f64; 3]), text);
    assert_eq!(to, [7.0; 3]);
    Partial::rows(DType::F16, 3, 0).dweight(&mut to).expect("no rows");
    assert_eq!(to.map(f32::to_bits), [0; 3]);
}

#[test]
fn bytes_that_are_no_partial_sum_are_refused() {
    let bytes = ones(3, 20).to_bytes();
    let text = |what: &str| format!("the bytes are no partial sum: {what}");
    let with = |at: usize, byte: u8| {
        let mut bytes = bytes.clone();
        bytes[at] = byte;
        Partial::from_bytes(&bytes)
    };
    refused(Partial::from_bytes(&[]), &text("the length is 0, expected at least 32"));
    refused(Partial::from_bytes(&bytes[..100]), &text(&format!("the length is 100, expected {}", bytes.len())));
    let longer = [&bytes[..], &[0]].concat();
    refused(
        Partial::from_bytes(&longer),
        &text(&format!("the length is {}, expected {}", bytes.len() + 1, bytes.len())),
    );
    refused(with(0, b'X'), &text("the magic number is 1347375960, expected 1347375945"));
    refused(with(4, 2), &text("the version is 2, expected 1"));
    refused(with(5, 2), &text("the order is 2, expected 0 or 1"));
    refused(with(6, 5), &text("the kind is 5, expected 0 to 4"));
    refused(with(7, 2), &text("the size of the compute type is 2, expected 4 or 8"));
    refused(with(24, 2), &text("the end is 2, expected at least 3, the start"));
}
