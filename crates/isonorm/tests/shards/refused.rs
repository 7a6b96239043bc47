//! Impossible merges and calls, each with an error that says what is wrong; nothing is written then.

use isonorm::{BackwardIo, BatchNorm, Error, LayerNorm, Measured, Measuring, Partial, Planes, RmsNorm, Shard};

const X: [f32; 6] = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0];

/// Holds an error to its text.
#[track_caller]
fn refused<T>(result: Result<T, Error>, text: &str) {
    match result {
        Ok(_) => panic!("not refused: {text}"),
        Err(error) => assert_eq!(error.to_string(), text),
    }
}

/// Columns 0..2 and 2..5 of two rows of 5.
fn ranks() -> [(Shard<'static>, &'static [f32]); 2] {
    let norm = LayerNorm::new(5);
    [(norm.shard(0..2).expect("columns"), &X[..4]), (norm.shard(2..5).expect("columns"), &X)]
}

fn begin() -> [Measuring<'static>; 2] {
    ranks().map(|(shard, x)| shard.measure(x).expect("rows"))
}

fn sums(of: &Measuring<'_>) -> Partial {
    of.partial().expect("a round")
}

fn measured() -> Measured {
    let [mut first, second] = begin();
    first.take(Partial::join([sums(&first), sums(&second)]).expect("neighbours")).expect("all ranks");
    let mut third = second.clone();
    third.take(Partial::join([sums(&begin()[0]), sums(&begin()[1])]).expect("neighbours")).expect("all ranks");
    first.take(Partial::join([sums(&first), sums(&third)]).expect("neighbours")).expect("all ranks");
    first.finish().expect("no round is left")
}

#[test]
fn sums_of_some_ranks_alone_are_refused_and_nothing_is_taken() {
    let [mut first, second] = begin();
    let before = sums(&first).to_bytes();
    let text = "the partial sum ends at 2, expected 5: merge those of all ranks";
    refused(first.take(sums(&first)), text);
    let text = "the partial sum starts at 2, expected 0: merge it into the one that ends at 2";
    refused(first.take(sums(&second)), text);
    let text = "the next partial sum starts at 2, expected 3, where this one ends: merge neighbours";
    let other = LayerNorm::new(5).shard(0..3).expect("columns").measure(&X).expect("rows");
    refused(Partial::join([sums(&other), sums(&second)]), text);
    assert_eq!(sums(&first).to_bytes(), before);
    refused(first.finish(), "the statistics are not finished: exchange and take partial sums until there is none");
}

#[test]
fn sums_of_something_else_are_refused() {
    let [mut first, second] = begin();
    let whole = Partial::join([sums(&first), sums(&second)]).expect("neighbours");
    let other = LayerNorm::new(5).shard(0..5).expect("columns");
    let three = [0.0f32; 15];
    let text =
        "a partial sum holds sums of 3 columns in row order and f32, expected sums of 2 columns in row order and f32";
    refused(first.take(sums(&other.measure(&three).expect("rows"))), text);
    let wide = [0.0f64; 10];
    let text =
        "a partial sum holds sums of 2 columns in row order and f64, expected sums of 2 columns in row order and f32";
    refused(first.take(sums(&other.measure(&wide).expect("rows"))), text);
    let squares = RmsNorm::new(5).shard(0..5).expect("columns");
    let text =
        "a partial sum holds dots of 2 columns in row order and f32, expected sums of 2 columns in row order and f32";
    refused(first.take(sums(&squares.measure(&three[..10]).expect("rows"))), text);
    first.take(whole.clone()).expect("all ranks");
    let text = "a partial sum holds sums of 2 columns in row order and f32, \
        expected dots and sums of 2 columns in row order and f32";
    refused(first.take(whole.clone()), text);
    let mut all = squares.measure(&three[..10]).expect("rows");
    all.take(sums(&all)).expect("the only rank");
    assert!(all.partial().is_none());
    let text = "a partial sum holds sums of 2 columns in row order and f32, expected none: there is no round left";
    refused(all.take(whole), text);
}

#[test]
fn shards_and_tensors_that_do_not_fit_are_refused() {
    refused(RmsNorm::new(5).shard(3..6), "the shard has columns 3..6, expected a range within 0..5");
    #[allow(clippy::reversed_empty_ranges)] // the error
    let reversed = LayerNorm::new(5).shard(3..2);
    refused(reversed, "the shard has columns 3..2, expected a range within 0..5");
    refused(RmsNorm::new(5).partial(6).shard(0..2), "partial is 6, expected 1 to 5, the normalized elements");
    let [(shard, x), _] = ranks();
    refused(shard.measure(&X[..5]), "x has 5 elements, which is not a whole number of rows of 2 elements");
    refused(shard.correlate(x, &X[..2], &measured()), "dy has shape [1, 2], expected [2, 2] as x has");
    let weight = [1.0f32; 5];
    let whole = LayerNorm::new(5).weight(&weight).shard(0..2).expect("columns");
    refused(whole.measure(x), "weight has 5 elements, expected 2: one for each normalized element");
    let mut y = [7.0f32; 4];
    refused(shard.forward(&X[..2], &measured(), &mut y[..2]), "stats has shape [2, 1], expected [1, 1] as x has");
    assert_eq!(y, [7.0; 4]);
}

#[test]
fn a_backward_call_without_the_sums_of_all_ranks_is_refused() {
    let ([(shard, x), (other, more)], measured) = (ranks(), measured());
    let own = shard.correlate(x, x, &measured).expect("rows");
    let text = "the partial sum ends at 2, expected 5: merge those of all ranks";
    let (mut dx, mut dweight) = ([7.0f32; 4], [7.0f32; 2]);
    let io = BackwardIo::new(x, x, &mut dx).dweight(&mut dweight);
    refused(shard.backward(io, &measured, &own), text);
    let text = "the partial sum starts at 2, expected 0: merge it into the one that ends at 2";
    let io = BackwardIo::new(x, x, &mut dx).dweight(&mut dweight);
    refused(shard.backward(io, &measured, &other.correlate(more, more, &measured).expect("rows")), text);
    let text = "a partial sum holds sums of 2 columns in row order and f32, \
        expected dots and sums of 2 columns in row order and f32";
    let io = BackwardIo::new(x, x, &mut dx).dweight(&mut dweight);
    refused(shard.backward(io, &measured, &sums(&begin()[0])), text);
    assert_eq!((dx, dweight), ([7.0; 4], [7.0; 2]));
}

#[test]
fn a_batch_without_the_samples_of_all_ranks_is_refused() {
    let norm = BatchNorm::new(1);
    let x = |samples: std::ops::Range<usize>| Planes::channels_first(&X[samples], 1, 1);
    let mut first = norm.shard(0).measure(x(0..2)).expect("planes");
    let second = norm.shard(2).measure(x(2..6)).expect("planes");
    let text = "the partial sum starts at 2, expected 0: merge it into the one that ends at 2";
    refused(first.take(sums(&second)), text);
    first.take(Partial::join([sums(&second), sums(&first)]).expect("neighbours")).expect("all ranks");
    let text = "the partial sum ends at 2, expected 6: merge those of all ranks";
    refused(first.take(sums(&first)), text);
    let text = "6 more rows after 18446744073709551615 are too many, expected at most 18446744073709551615 in all";
    refused(norm.shard(usize::MAX).measure(x(0..6)), text);
    let mut small = norm.shard(0).measure(x(0..2)).expect("planes");
    for _ in 0..2 {
        small.take(sums(&small)).expect("the only rank");
    }
    let text = "the statistics are of 2 values for each channel, expected at least 6: this rank's";
    refused(norm.shard(0).correlate(x(0..6), x(0..6), &small.finish().expect("no round is left")), text);
}
