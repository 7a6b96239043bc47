//! `batch-norm`, `group-norm` and `instance-norm` end to end: the program gives the library's bits.

mod common;

use common::{Folder, TYPES, Tensor};
use isonorm::{BatchNorm, DType, GroupNorm, InstanceNorm, PlaneIo, Planes, PlanesMut, Running, Stats};

const SHAPE: [usize; 4] = [3, 6, 5, 4];

/// x of shape (3, 6, 5, 4) with channels first, and last.
fn layouts(dtype: DType) -> (Tensor, Tensor) {
    let x = Tensor::varied(dtype, &SHAPE, 1);
    let last = x.swapped(1, 2).swapped(2, 3);
    assert_eq!(last.shape, [3, 5, 4, 6]);
    (x, last)
}

/// Channels last as channels first.
fn first(y: &Tensor) -> Tensor {
    y.swapped(2, 3).swapped(1, 2)
}

fn read(x: &Tensor) -> Planes<'_> {
    Planes::channels_first(x.slice(), 6, 20)
}

fn write(y: &mut Tensor) -> PlanesMut<'_> {
    PlanesMut::channels_first(y.slice_mut(), 6, 20)
}

fn folder(dtype: DType, x: &Tensor, last: &Tensor) -> (Folder, Tensor, Tensor) {
    let folder = Folder::new();
    let (w, b) = (Tensor::varied(dtype, &[6], 2), Tensor::varied(dtype, &[6], 3));
    folder.safetensors("in.safetensors", &[("x", x), ("last", last), ("w", &w), ("b", &b)]);
    (folder, w, b)
}

const AFFINE: &str = "--weight in.safetensors:w --bias in.safetensors:b";

#[test]
fn group_and_instance_norm_in_every_type_and_layout() {
    for dtype in TYPES {
        let (x, last) = layouts(dtype);
        let (folder, w, b) = folder(dtype, &x, &last);
        let mut y = Tensor::zeros(dtype, &SHAPE);
        let norm = GroupNorm::new(3, 6).weight(w.slice()).bias(b.slice());
        norm.forward(read(&x), write(&mut y)).expect("the library runs");
        folder.run(&format!("group-norm in.safetensors:x --groups 3 {AFFINE} -o y.safetensors"));
        assert_eq!(folder.read("y.safetensors:y"), y, "group-norm {dtype}");
        folder.run(&format!("group-norm in.safetensors:last --groups 3 --layout nhwc {AFFINE} -o y.safetensors"));
        assert_eq!(first(&folder.read("y.safetensors:y")), y, "group-norm {dtype} nhwc");
        let norm = InstanceNorm::new(6).weight(w.slice()).bias(b.slice()).eps(0.1);
        norm.forward(read(&x), write(&mut y)).expect("the library runs");
        folder.run(&format!("instance-norm in.safetensors:x --eps 0.1 {AFFINE} -o y.safetensors"));
        assert_eq!(folder.read("y.safetensors:y"), y, "instance-norm {dtype}");
        folder.run(&format!("instance-norm in.safetensors:last --eps 0.1 --layout nhwc {AFFINE} -o y.safetensors"));
        assert_eq!(first(&folder.read("y.safetensors:y")), y, "instance-norm {dtype} nhwc");
    }
}

#[test]
fn batch_norm_trains_and_saves_what_it_measured() {
    for dtype in TYPES {
        let (x, last) = layouts(dtype);
        let (folder, w, b) = folder(dtype, &x, &last);
        let mut y = Tensor::zeros(dtype, &SHAPE);
        let norm = BatchNorm::new(6).weight(w.slice()).bias(b.slice());
        norm.train(PlaneIo::new(read(&x), write(&mut y)), None).expect("the library runs");
        folder.run(&format!("batch-norm in.safetensors:x {AFFINE} --save-stats s.safetensors -o y.safetensors"));
        assert_eq!(folder.read("y.safetensors:y"), y, "{dtype}");
        let expected = if dtype == DType::F64 { DType::F64 } else { DType::F32 };
        for name in ["mean", "var"] {
            let stats = folder.read(&format!("s.safetensors:{name}"));
            assert_eq!((stats.dtype, stats.shape.as_slice()), (expected, [6].as_slice()));
        }
        let summary =
            folder.summary(&format!("batch-norm in.safetensors:last --layout nhwc {AFFINE} -o y.safetensors"));
        let last = folder.read("y.safetensors:y");
        assert_eq!(first(&last), y, "{dtype} nhwc");
        assert_eq!(summary["blake3"], blake3::hash(last.data.bytes()).to_hex().as_str());
    }
}

#[test]
fn batch_norm_updates_running_statistics_and_uses_them() {
    let (x, last) = layouts(DType::F32);
    let (folder, ..) = folder(DType::F32, &x, &last);
    let (mean, var) = (Tensor::varied(DType::F32, &[6], 4), Tensor::of(DType::F32, &[6], |i| i as f64 + 0.5));
    folder.safetensors("running.safetensors", &[("m", &mean), ("v", &var)]);
    let running = "--running-mean running.safetensors:m --running-var running.safetensors:v";
    let (mut y, mut stats) = (Tensor::zeros(DType::F32, &SHAPE), [Stats::<f32>::default(); 6]);
    let norms = [
        ("", BatchNorm::new(6)),
        ("--momentum 0.25", BatchNorm::new(6).momentum(0.25)),
        ("--cumulative 3", BatchNorm::new(6).cumulative(3)),
        ("--biased-running-var --eps-outside", BatchNorm::new(6).biased_running_var().eps_outside()),
    ];
    for (flags, norm) in norms {
        let (mut m, mut v) = (mean.swapped(0, 0), var.swapped(0, 0));
        let io = PlaneIo::new(read(&x), write(&mut y)).stats(&mut stats);
        norm.train(io, Some(Running::new(m.slice_mut(), v.slice_mut()))).expect("the library runs");
        folder.run(&format!("batch-norm in.safetensors:x {running} {flags} --save-stats s.safetensors -o y.npy"));
        assert_eq!(folder.read("y.npy"), y, "{flags}");
        assert_eq!(folder.read("s.safetensors:running_mean"), m, "{flags}");
        assert_eq!(folder.read("s.safetensors:running_var"), v, "{flags}");
        let measured: Vec<u8> = stats.iter().flat_map(|stats| stats.mean().to_le_bytes()).collect();
        assert_eq!(folder.read("s.safetensors:mean").data.bytes(), measured);
    }
    let io = PlaneIo::new(read(&x), write(&mut y));
    BatchNorm::new(6).evaluate(io, mean.slice(), var.slice()).expect("the library runs");
    folder.run(&format!("batch-norm in.safetensors:x {running} --eval -o y.npy"));
    assert_eq!(folder.read("y.npy"), y, "evaluation");
    folder.run(&format!("batch-norm in.safetensors:last --layout nhwc {running} --eval -o y.npy"));
    assert_eq!(first(&folder.read("y.npy")), y, "evaluation, nhwc");
}

#[test]
fn statistics_of_groups_are_saved_sample_by_sample() {
    let (x, last) = layouts(DType::Bf16);
    let (folder, ..) = folder(DType::Bf16, &x, &last);
    let (mut y, mut stats) = (Tensor::zeros(DType::Bf16, &SHAPE), [Stats::<f32>::default(); 6]);
    let io = PlaneIo::new(read(&x), write(&mut y)).stats(&mut stats);
    GroupNorm::new(2, 6).apply(io).expect("the library runs");
    folder.run("group-norm in.safetensors:x --groups 2 --save-stats s.safetensors -o y.safetensors");
    let rstd = folder.read("s.safetensors:rstd");
    assert_eq!(rstd.shape, [3, 2]);
    let expected: Vec<u8> = stats.iter().flat_map(|stats| stats.rstd().to_le_bytes()).collect();
    assert_eq!(rstd.data.bytes(), expected);
}

#[test]
fn samples_and_channels_alone_have_one_layout() {
    let folder = Folder::new();
    folder.npy("x.npy", &Tensor::varied(DType::F32, &[40, 7], 1));
    folder.run("batch-norm x.npy -o first.npy");
    folder.run("batch-norm x.npy --layout nhwc -o last.npy");
    assert_eq!(folder.read("first.npy"), folder.read("last.npy"));
    for shape in [vec![0, 3], vec![2, 0], vec![2, 3, 0]] {
        folder.npy("x.npy", &Tensor::zeros(DType::F32, &shape));
        folder.run("instance-norm x.npy -o y.npy");
        assert_eq!(folder.read("y.npy").shape, shape);
    }
}

#[test]
fn the_digest_is_the_same_for_any_threads_and_level() {
    let folder = Folder::new();
    folder.npy("x.npy", &Tensor::varied(DType::F32, &[37, 16, 4096], 1)); // two blocks of the stream
    let levels: Vec<_> = isonorm::Level::available().skip_while(|level| *level == isonorm::Level::Scalar).collect();
    for norm in ["batch-norm x.npy", "group-norm x.npy --groups 4", "instance-norm x.npy"] {
        let mut digests = Vec::new();
        for level in &levels {
            for threads in [1, 2, 5] {
                let summary = folder.summary(&format!("{norm} --threads {threads} --level {level} -o y.npy"));
                digests.push(summary["blake3"].to_string());
            }
        }
        digests.dedup();
        assert_eq!(digests.len().min(1), digests.len(), "{norm}: {digests:?}");
    }
}
