//! More than 2^31 elements: nothing that counts them is 32 bits wide. Each test takes 4.3 GB of memory and up to half
//! a minute, so they run when they are asked for, by `./test huge` or
//!
//! ```text
//! cargo test -p isonorm --test huge -- --ignored --test-threads=1
//! ```

use half::bf16;
use half::slice::HalfFloatSliceExt;
use half::vec::HalfBitsVecExt;
use isonorm::{
    BatchNorm, Cpu, GroupNorm, InstanceNorm, Io, LayerNorm, PlaneIo, PlanesMut, RmsNorm, Rows, RowsMut, SliceMut, Stats,
};
use isonorm_testing::values::{Kind, bf16s};

const HUGE: usize = 1 << 31;

/// Zeros that take no memory until they are written.
fn zeros(len: usize) -> Vec<bf16> {
    vec![0u16; len].reinterpret_into()
}

/// `pattern` over and over, `len` elements.
fn repeated(pattern: &[bf16], len: usize) -> Vec<bf16> {
    let mut all = Vec::with_capacity(len);
    while all.len() < len {
        all.extend_from_slice(&pattern[..pattern.len().min(len - all.len())]);
    }
    all
}

fn bits(of: &[bf16]) -> &[u16] {
    of.reinterpret_cast()
}

/// Every element of `found`, to the last one, is that of `pattern`, repeated.
fn assert_repeated(label: &str, pattern: &[bf16], found: &[bf16]) {
    for (i, part) in found.chunks(pattern.len()).enumerate() {
        let same = bits(part) == bits(&pattern[..part.len()]);
        assert!(same, "{label}: the {} elements from {} on", part.len(), i * pattern.len());
    }
}

fn alone() -> Cpu<'static> {
    Cpu::new().threads(1)
}

/// Not a power of two, so that no row begins at one.
const HIDDEN: usize = 4099;
const DISTINCT: usize = 61;

fn rows() -> Vec<bf16> {
    bf16s(Kind::Normal, 1, DISTINCT * HIDDEN)
}

#[test]
#[ignore = "4.3 GB"]
fn rows_in_place_have_the_bits_of_the_same_rows_alone() {
    let weight = bf16s(Kind::Normal, 2, HIDDEN);
    let norm = RmsNorm::new(HIDDEN).weight(&weight);
    let (mut expected, mut few) = (rows(), [Stats::default(); DISTINCT]);
    norm.on(alone()).apply(Io::in_place(&mut expected).stats(&mut few)).expect("valid");
    let count = HUGE / HIDDEN + 100;
    let (mut x, mut stats) = (repeated(&rows(), count * HIDDEN), vec![Stats::<f32>::default(); count]);
    norm.apply(Io::in_place(&mut x).stats(&mut stats)).expect("valid");
    assert_repeated("RMSNorm", &expected, &x);
    assert!(stats.chunks(DISTINCT).all(|stats| stats == &few[..stats.len()]), "statistics");
}

#[test]
#[ignore = "4.3 GB"]
fn rows_out_of_place_have_the_bits_of_the_same_rows_alone() {
    let (x, mut expected) = (rows(), zeros(DISTINCT * HIDDEN));
    LayerNorm::new(HIDDEN).on(alone()).forward(&x, &mut expected).expect("valid");
    // The same rows of x again and again, so that y alone is large.
    let shape = [HUGE / x.len() + 2, DISTINCT];
    let mut y = zeros(shape[0] * x.len());
    let (again, strides) = ([0, HIDDEN as isize], [x.len() as isize, HIDDEN as isize]);
    let (from, to) = (Rows::strided(&x, 0, &shape, &again), RowsMut::strided(&mut y, 0, &shape, &strides));
    LayerNorm::new(HIDDEN).forward(from, to).expect("valid");
    assert_repeated("LayerNorm", &expected, &y);
}

/// The lanes of a leaf of squares.
fn leaf(elements: &[bf16]) -> [f32; 32] {
    let mut lanes = [0.0f32; 32];
    for (i, x) in elements.iter().enumerate() {
        lanes[i % 32] = x.to_f32().mul_add(x.to_f32(), lanes[i % 32]);
    }
    lanes
}

fn add(left: [f32; 32], right: [f32; 32]) -> [f32; 32] {
    std::array::from_fn(|l| left[l] + right[l])
}

/// 2^24 leaves that are all the same, whose tree only doubles, and six larger ones after them.
#[test]
#[ignore = "4.3 GB"]
fn one_row_is_summed_to_its_last_element() {
    let (same, last) = (bf16s(Kind::Normal, 3, 128), bf16s(Kind::Offset, 4, 5 * 128 + 77));
    let nodes: Vec<[f32; 32]> = last.chunks(128).map(leaf).collect();
    let first = leaf(&same).map(|lane| lane * (1 << 24) as f32);
    let rest = add(add(add(nodes[0], nodes[1]), add(nodes[2], nodes[3])), add(nodes[4], nodes[5]));
    let mut lanes = add(first, rest);
    assert!(lanes.iter().zip(first).all(|(lane, first)| *lane != first), "the last leaves change nothing");
    for w in [16, 8, 4, 2, 1] {
        (0..w).for_each(|l| lanes[l] += lanes[l + w]);
    }
    let n = HUGE + last.len();
    let ms = lanes[0] / n as f32;
    let inv = 1.0 / (ms + 1e-6).sqrt();

    let mut x = repeated(&same, HUGE);
    x.extend_from_slice(&last);
    let mut stats = [Stats::default()];
    RmsNorm::new(n).apply(Io::in_place(&mut x).stats(&mut stats)).expect("valid");
    assert_eq!((stats[0].var, stats[0].inv), (ms, inv));
    let y = |x: &[bf16]| x.iter().map(|x| bf16::from_f32(x.to_f32() * inv)).collect::<Vec<_>>();
    assert_repeated("one row", &y(&same), &x[..HUGE]);
    assert_eq!(bits(&x[HUGE..]), bits(&y(&last)));
}

#[test]
#[ignore = "4.3 GB, though hardly any of it is touched"]
fn strides_of_more_than_two_to_the_31_elements_reach_their_rows() {
    let (stride, x) = (HUGE + 3, rows());
    let mut expected = x[..2 * HIDDEN].to_vec();
    RmsNorm::new(HIDDEN).on(alone()).apply(Io::in_place(&mut expected)).expect("valid");
    for (offset, by) in [(5, stride as isize), (5 + stride, -(stride as isize))] {
        let mut far = zeros(stride + HIDDEN + 10);
        let start = |r: usize| offset.wrapping_add_signed(r as isize * by);
        (0..2).for_each(|r| far[start(r)..][..HIDDEN].copy_from_slice(&x[r * HIDDEN..][..HIDDEN]));
        let mut y = zeros(2 * HIDDEN);
        RmsNorm::new(HIDDEN).forward(Rows::strided(&far, offset, &[2], &[by]), &mut y).expect("valid");
        assert_eq!(bits(&y), bits(&expected), "read by {by}");
        RmsNorm::new(HIDDEN).apply(Io::in_place(RowsMut::strided(&mut far, offset, &[2], &[by]))).expect("valid");
        for r in 0..2 {
            assert_eq!(bits(&far[start(r)..][..HIDDEN]), bits(&expected[r * HIDDEN..][..HIDDEN]), "row {r} by {by}");
            let around = [&far[start(r) - 5..start(r)], &far[start(r) + HIDDEN..][..5]].concat();
            assert!(bits(&around).iter().all(|bits| *bits == 0), "beside row {r} by {by}");
        }
    }
}

const CHANNELS: usize = 6;
const SPATIAL: usize = 1013;
const SAMPLES: usize = 37;

/// Many samples against a few alone, in both layouts.
fn check_samples(label: &str, call: impl Fn(PlaneIo<'_>, bool)) {
    let few = bf16s(Kind::Normal, 5, SAMPLES * CHANNELS * SPATIAL);
    let run = |x: &mut [bf16], last, is_alone| {
        let layout = if last { PlanesMut::channels_last } else { PlanesMut::channels_first };
        call(PlaneIo::in_place(layout(SliceMut::from(x), CHANNELS, SPATIAL)), is_alone);
    };
    for last in [false, true] {
        let mut expected = few.clone();
        run(&mut expected, last, true);
        let mut x = repeated(&few, (HUGE / few.len() + 2) * few.len());
        run(&mut x, last, false);
        assert_repeated(&format!("{label}, channels last: {last}"), &expected, &x);
    }
}

fn cpu(is_alone: bool) -> Cpu<'static> {
    if is_alone { alone() } else { Cpu::new() }
}

#[test]
#[ignore = "4.3 GB"]
fn samples_in_evaluation_have_the_bits_of_the_same_samples_alone() {
    let (mean, var) = ([0.5f32, -1.0, 2.0, 0.0, 0.1, -0.3], [1.0f32, 2.0, 0.5, 0.1, 3.0, 1.5]);
    check_samples("BatchNorm", |io, is_alone| {
        BatchNorm::new(CHANNELS).on(cpu(is_alone)).evaluate(io, &mean, &var).expect("valid");
    });
}

#[test]
#[ignore = "4.3 GB"]
fn groups_have_the_bits_of_the_same_groups_alone() {
    check_samples("InstanceNorm", |io, is_alone| {
        InstanceNorm::new(CHANNELS).on(cpu(is_alone)).apply(io).expect("valid");
    });
}

#[test]
#[ignore = "4.3 GB"]
fn groups_of_several_channels_have_the_bits_of_the_same_groups_alone() {
    let few = bf16s(Kind::Normal, 6, SAMPLES * CHANNELS * SPATIAL);
    let run = |x: &mut [bf16], cpu| {
        let io = PlaneIo::in_place(PlanesMut::channels_first(x, CHANNELS, SPATIAL));
        GroupNorm::new(2, CHANNELS).on(cpu).apply(io).expect("valid");
    };
    let mut expected = few.clone();
    run(&mut expected, alone());
    let mut x = repeated(&few, (HUGE / few.len() + 2) * few.len());
    run(&mut x, Cpu::new());
    assert_repeated("GroupNorm", &expected, &x);
}

/// One sample, whose second plane ends beyond 2^31.
#[test]
#[ignore = "4.3 GB"]
fn planes_of_more_than_two_to_the_30_positions_reach_their_ends() {
    let (mean, var) = ([0.5f32, -1.0], [1.0f32, 2.0]);
    let (spatial, some) = (HUGE / 2 + 1000, bf16s(Kind::Normal, 7, 1000));
    let norm = BatchNorm::new(2).weight(&[1.0f32, -3.0]);
    let mut expected = [&some[..], &some[..]].concat();
    let io = PlaneIo::in_place(PlanesMut::channels_first(&mut expected, 2, some.len()));
    norm.on(alone()).evaluate(io, &mean, &var).expect("valid");
    let mut x = repeated(&some, spatial);
    x.extend_from_within(..);
    norm.evaluate(PlaneIo::in_place(PlanesMut::channels_first(&mut x, 2, spatial)), &mean, &var).expect("valid");
    for (c, plane) in x.chunks(spatial).enumerate() {
        assert_repeated(&format!("channel {c}"), &expected[c * some.len()..][..some.len()], plane);
    }
}
