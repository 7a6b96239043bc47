//! The parameter gradients of GroupNorm and InstanceNorm over micro-batches and ranks: the bits of the whole batch, cut
//! anywhere, in either layout.

use std::ops::Range;

use isonorm::{
    BatchNorm, Cpu, DType, Error, GroupNorm, InstanceNorm, Partial, PlaneBackwardIo, Planes, PlanesMut, bf16,
};
use isonorm_testing::values::{Kind, SplitMix64, bf16s, f32s};

#[derive(Clone, Copy, Debug)]
struct Shape {
    samples: usize,
    channels: usize,
    spatial: usize,
    groups: usize,
    last: bool,
}

const SHAPES: [(usize, usize, usize, usize); 5] =
    [(37, 6, 5, 3), (20, 33, 49, 33), (18, 40, 1, 4), (33, 2, 300, 1), (70, 64, 20, 8)];

fn shapes() -> impl Iterator<Item = Shape> {
    SHAPES.into_iter().flat_map(|(samples, channels, spatial, groups)| {
        [false, true].map(|last| Shape { samples, channels, spatial, groups, last })
    })
}

/// Samples of a type, and the two calls there are: the whole batch, and some of its samples into a partial sum.
macro_rules! batch {
    ($name:ident, $type:ty, $dtype:expr, $values:expr) => {
        mod $name {
            use super::*;

            type Gradients = [Vec<$type>; 2];

            struct Batch {
                shape: Shape,
                x: Vec<$type>,
                dy: Vec<$type>,
                weight: Vec<$type>,
            }

            impl Batch {
                fn new(shape: Shape) -> Self {
                    let len = shape.samples * shape.channels * shape.spatial;
                    let of = |seed, n| -> Vec<$type> { $values(seed, n) };
                    Batch { shape, x: of(1, len), dy: of(2, len), weight: of(3, shape.channels) }
                }

                fn run(
                    &self,
                    samples: Range<usize>,
                    threads: usize,
                    partial: Option<&mut Partial>,
                    gradients: Option<&mut Gradients>,
                ) -> Vec<$type> {
                    let Shape { channels, spatial, groups, last, .. } = self.shape;
                    let size = channels * spatial;
                    let range = samples.start * size..samples.end * size;
                    let mut dx = vec![<$type>::default(); range.len()];
                    let [x, dy] = [&self.x[range.clone()], &self.dy[range]].map(|from| {
                        if last {
                            Planes::channels_last(from, channels, spatial)
                        } else {
                            Planes::channels_first(from, channels, spatial)
                        }
                    });
                    let to = if last {
                        PlanesMut::channels_last(&mut dx, channels, spatial)
                    } else {
                        PlanesMut::channels_first(&mut dx, channels, spatial)
                    };
                    let mut io = PlaneBackwardIo::new(x, dy, to);
                    if let Some(partial) = partial {
                        io = io.partial(partial);
                    }
                    if let Some([dweight, dbias]) = gradients {
                        io = io.dweight(dweight).dbias(dbias);
                    }
                    let cpu = Cpu::new().threads(threads);
                    if groups == channels {
                        InstanceNorm::new(channels).weight(&self.weight).on(cpu).backward(io).expect("valid");
                    } else {
                        GroupNorm::new(groups, channels).weight(&self.weight).on(cpu).backward(io).expect("valid");
                    }
                    dx
                }
            }

            #[test]
            fn have_the_bits_of_the_whole_batch() {
                let mut source = SplitMix64::new(9);
                for shape in shapes() {
                    let (batch, n) = (Batch::new(shape), shape.channels);
                    let new = || -> Gradients { [vec![<$type>::default(); n], vec![<$type>::default(); n]] };
                    let mut expected = new();
                    let dx = batch.run(0..shape.samples, 1, None, Some(&mut expected));
                    for round in 0..6 {
                        let mut cuts: Vec<usize> = (0..round).map(|_| source.below(shape.samples + 1)).collect();
                        cuts.extend([0, shape.samples]);
                        cuts.sort_unstable();
                        // One partial sum that goes on, and the last call rounds; and parts of ranks, as bytes.
                        let (mut on, mut parts) = (Partial::samples($dtype, n, 0), Vec::new());
                        let (mut found, mut found_dx) = (new(), Vec::new());
                        for cut in cuts.windows(2) {
                            let (samples, threads) = (cut[0]..cut[1], 1 + round % 2);
                            found_dx.extend(batch.run(samples.clone(), threads, Some(&mut on), Some(&mut found)));
                            let mut part = Partial::samples($dtype, n, cut[0]);
                            batch.run(samples, 1, Some(&mut part), None);
                            parts.push(Partial::from_bytes(&part.to_bytes()).expect("just written"));
                        }
                        let label = format!("{shape:?}, cut at {cuts:?}");
                        assert_eq!(found_dx, dx, "{label}");
                        assert_eq!(found, expected, "{label}");
                        parts.reverse();
                        let joined = Partial::join(parts).expect("all samples");
                        let [mut dweight, mut dbias] = new();
                        joined.dweight(&mut dweight).and_then(|()| joined.dbias(&mut dbias)).expect("whole");
                        assert_eq!([dweight, dbias], expected, "{label}, joined");
                    }
                }
            }
        }
    };
}

batch!(f32_samples, f32, DType::F32, |seed, n| f32s(Kind::Normal, seed, n));
batch!(f64_samples, f64, DType::F64, |seed, n| f32s(Kind::Normal, seed, n).into_iter().map(f64::from).collect());
batch!(bf16_samples, bf16, DType::Bf16, |seed, n| bf16s(Kind::Normal, seed, n));

#[test]
fn a_partial_sum_that_does_not_fit_is_refused_and_nothing_is_written() {
    let x = [1.0f32, 2.0, 3.0, 5.0];
    let planes = || Planes::channels_first(&x, 2, 2);
    let run = |partial: &mut Partial, wants: bool| {
        let (mut dx, mut dweight) = ([7.0f32; 4], [7.0f32; 2]);
        let mut io =
            PlaneBackwardIo::new(planes(), planes(), PlanesMut::channels_first(&mut dx, 2, 2)).partial(partial);
        if wants {
            io = io.dweight(&mut dweight);
        }
        let result = InstanceNorm::new(2).backward(io);
        assert!(result.is_ok() || (dx == [7.0; 4] && dweight == [7.0; 2]), "written");
        result
    };
    let others =
        [Partial::rows(DType::F32, 2, 0), Partial::samples(DType::F32, 3, 0), Partial::samples(DType::F64, 2, 0)];
    for mut other in others {
        assert!(matches!(run(&mut other, false), Err(Error::PartialKind { .. })), "{}", other.columns());
        assert!(other.is_empty());
    }
    let mut late = Partial::samples(DType::F32, 2, 5);
    assert!(matches!(run(&mut late, true), Err(Error::PartialStart { start: 5 })));
    assert!(run(&mut late, false).is_ok() && late.end() == 6);
    assert!(matches!(late.dweight(&mut [0.0f32; 2]), Err(Error::PartialStart { start: 5 })));
    let mut full = Partial::samples(DType::F32, 2, usize::MAX);
    assert!(matches!(run(&mut full, false), Err(Error::PartialEnd { .. })));
    let mut batch = Partial::samples(DType::F32, 2, 0);
    let mut dx = [7.0f32; 4];
    let io = PlaneBackwardIo::new(planes(), planes(), PlanesMut::channels_first(&mut dx, 2, 2)).partial(&mut batch);
    let refused = BatchNorm::new(2).train_backward(io).map_err(|error| error.to_string());
    assert!(refused.is_err_and(|text| text.contains("BatchShard")) && dx == [7.0; 4]);
    assert!(matches!(batch.push(&x, &x), Err(Error::PartialKind { .. })));
    // What ranks tell one another of statistics is no gradient, whatever its length.
    let measured = BatchNorm::new(2).shard(0).measure(planes()).expect("planes").partial().expect("a round");
    for len in 0..3 {
        assert!(matches!(measured.dweight(&mut vec![0.0f32; len]), Err(Error::PartialKind { .. })), "{len}");
    }
}

#[test]
fn no_samples_are_no_gradients() {
    let (mut partial, mut dweight) = (Partial::samples(DType::F32, 3, 0), [7.0f32; 3]);
    let none: [f32; 0] = [];
    let mut dx = none;
    let planes = || Planes::channels_first(&none, 3, 2);
    let io = PlaneBackwardIo::new(planes(), planes(), PlanesMut::channels_first(&mut dx, 3, 2));
    GroupNorm::new(1, 3).backward(io.partial(&mut partial).dweight(&mut dweight)).expect("valid");
    assert_eq!((partial.len(), dweight), (0, [0.0; 3]));
}
