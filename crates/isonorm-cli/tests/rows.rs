//! `rms-norm` and `layer-norm` end to end: the program gives the library's bits, from and to every kind of file.

mod common;

use common::{Folder, TYPES, Tensor};
use isonorm::{DType, Io, LayerNorm, Recipe, RmsNorm, Stats};

#[test]
fn every_type_and_format_gives_the_librarys_bits() {
    let folder = Folder::new();
    for dtype in TYPES {
        let (x, w, b) =
            (Tensor::varied(dtype, &[3, 5, 40], 1), Tensor::varied(dtype, &[40], 2), Tensor::varied(dtype, &[40], 3));
        folder.safetensors("in.safetensors", &[("x", &x), ("w", &w), ("b", &b)]);
        let mut y = Tensor::zeros(dtype, &x.shape);
        RmsNorm::new(40).weight(w.slice()).forward(x.slice(), y.slice_mut()).expect("the library runs");
        folder.run("rms-norm in.safetensors:x --weight in.safetensors:w -o y.safetensors");
        assert_eq!(folder.read("y.safetensors:y"), y, "rms-norm {dtype}");
        LayerNorm::new(40)
            .weight(w.slice())
            .bias(b.slice())
            .forward(x.slice(), y.slice_mut())
            .expect("the library runs");
        folder.run("layer-norm in.safetensors:x --weight in.safetensors:w --bias in.safetensors:b -o y.safetensors:z");
        assert_eq!(folder.read("y.safetensors:z"), y, "layer-norm {dtype}");
        folder.npy("x.npy", &x);
        folder.npy("w.npy", &w);
        folder.npy("b.npy", &b);
        folder.run("layer-norm x.npy --weight w.npy --bias b.npy --bf16 -o y.npy");
        assert_eq!(folder.read("y.npy"), y, "npy {dtype}");
    }
}

#[test]
fn options_are_the_librarys() {
    let folder = Folder::new();
    let (x, w) = (Tensor::varied(DType::Bf16, &[4, 33], 1), Tensor::varied(DType::F32, &[33], 2));
    folder.safetensors("in.safetensors", &[("x", &x), ("w", &w)]);
    let base = RmsNorm::new(33).weight(w.slice());
    let cases = [
        ("", base),
        ("--eps 0.5", base.eps(0.5)),
        ("--eps 0.5 --eps-outside", base.eps(0.5).eps_outside()),
        ("--recipe torch", base),
        ("--recipe llama", base.recipe(Recipe::Llama)),
        ("--recipe gemma", base.weight_offset(1.0)),
        ("--partial 7", base.partial(7)),
    ];
    let mut digests = Vec::new();
    for (flags, norm) in cases {
        let mut y = Tensor::zeros(DType::Bf16, &x.shape);
        norm.forward(x.slice(), y.slice_mut()).expect("the library runs");
        let summary =
            folder.summary(&format!("rms-norm in.safetensors:x --weight in.safetensors:w {flags} -o y.safetensors"));
        assert_eq!(folder.read("y.safetensors:y"), y, "{flags}");
        assert_eq!(summary["blake3"], blake3::hash(y.data.bytes()).to_hex().as_str(), "{flags}");
        digests.push(summary["blake3"].to_string());
    }
    assert_eq!(digests[0], digests[3]);
    digests.sort();
    digests.dedup();
    assert_eq!(digests.len(), 6, "each option changes some bit");
    let mut y = Tensor::zeros(DType::F32, &x.shape);
    base.forward(x.slice(), y.slice_mut()).expect("the library runs");
    folder.run("rms-norm in.safetensors:x --weight in.safetensors:w --dtype f32 -o y.npy");
    assert_eq!(folder.read("y.npy"), y);
}

#[test]
fn a_residual_is_added_first_and_its_sum_written() {
    let folder = Folder::new();
    let (x, residual) = (Tensor::varied(DType::Bf16, &[6, 20], 1), Tensor::varied(DType::F32, &[6, 20], 2));
    folder.safetensors("in.safetensors", &[("x", &x), ("residual", &residual)]);
    let (mut y, mut r) = (Tensor::zeros(DType::Bf16, &x.shape), Tensor::zeros(DType::F32, &x.shape));
    for axis in ["-1", "1", "0"] {
        let (x, residual) = if axis == "0" {
            (x.swapped(0, 1), residual.swapped(0, 1))
        } else {
            (x.swapped(0, 0), residual.swapped(0, 0))
        };
        let hidden = x.shape[1];
        let (mut y_rows, mut r_rows) = (Tensor::zeros(DType::Bf16, &x.shape), Tensor::zeros(DType::F32, &x.shape));
        let io = Io::add(x.slice(), residual.slice(), r_rows.slice_mut(), y_rows.slice_mut());
        RmsNorm::new(hidden).apply(io).expect("the library runs");
        (y, r) = if axis == "0" { (y_rows.swapped(0, 1), r_rows.swapped(0, 1)) } else { (y_rows, r_rows) };
        folder.run(&format!("rms-norm in.safetensors:x --residual in.safetensors:residual --residual-out r.npy --axis {axis} -o y.safetensors"));
        assert_eq!(folder.read("y.safetensors:y"), y, "axis {axis}");
        assert_eq!(folder.read("r.npy"), r, "axis {axis}");
    }
    folder.run("rms-norm in.safetensors:x --residual in.safetensors:residual --axis 0 -o only.safetensors");
    assert_eq!(folder.read("only.safetensors:y"), y, "without --residual-out");
    drop(r);
}

#[test]
fn any_axis_or_several_equal_the_transposed_rows() {
    let folder = Folder::new();
    for dtype in TYPES {
        let x = Tensor::varied(dtype, &[3, 50, 4, 6], 1);
        folder.npy("x.npy", &x);
        for (axis, other) in [(0, 3), (1, 3), (2, 3)] {
            let rows = x.swapped(axis, other);
            let mut y = Tensor::zeros(dtype, &rows.shape);
            LayerNorm::new(rows.shape[3]).forward(rows.slice(), y.slice_mut()).expect("the library runs");
            folder.run(&format!("layer-norm x.npy --axis {axis} --bf16 -o y.npy"));
            assert_eq!(folder.read("y.npy"), y.swapped(axis, other), "axis {axis} of {dtype}");
            folder.run(&format!("layer-norm x.npy --axis {} --bf16 -o y.npy", axis as isize - 4));
            assert_eq!(folder.read("y.npy"), y.swapped(axis, other), "axis {axis} from the end");
        }
        let mut y = Tensor::zeros(dtype, &x.shape);
        LayerNorm::new(24).forward(x.slice(), y.slice_mut()).expect("the library runs");
        folder.run("layer-norm x.npy --axis 3,2 --bf16 -o y.npy");
        assert_eq!(folder.read("y.npy"), y, "the last two axes");
        let rows = x.swapped(0, 2); // axes 0 and 3 last and in order: (2, 1, 0, 3)
        let mut y = Tensor::zeros(dtype, &rows.shape);
        LayerNorm::new(18).forward(rows.slice(), y.slice_mut()).expect("the library runs");
        folder.run("layer-norm x.npy --axis 0,-1 --bf16 -o y.npy");
        assert_eq!(folder.read("y.npy"), y.swapped(0, 2), "axes that are not neighbours");
    }
}

#[test]
fn a_fortran_ordered_array_is_the_same_array() {
    let folder = Folder::new();
    let x = Tensor::varied(DType::F32, &[7, 30], 1);
    folder.npy("x.npy", &x);
    let mut fortran = common_fortran_header(&[7, 30]);
    fortran.extend_from_slice(x.swapped(0, 1).data.bytes());
    folder.write("f.npy", &fortran);
    for axis in ["-1", "0", "0,1"] {
        folder.run(&format!("rms-norm x.npy --axis {axis} -o y.npy"));
        folder.run(&format!("rms-norm f.npy --axis {axis} -o f_y.npy"));
        assert_eq!(folder.read("f_y.npy"), folder.read("y.npy"), "axis {axis}");
    }
}

fn common_fortran_header(shape: &[usize]) -> Vec<u8> {
    let header = isonorm_cli::tensor::npy::header(DType::F32, shape);
    let text = String::from_utf8_lossy(&header[10..]).replace("'fortran_order': False, ", "'fortran_order': True,  ");
    [&header[..10], text.as_bytes()].concat()
}

#[test]
fn statistics_are_saved_in_the_order_of_the_rows() {
    let folder = Folder::new();
    for (dtype, stats_type) in [(DType::F16, DType::F32), (DType::F64, DType::F64)] {
        let x = Tensor::varied(dtype, &[5, 3, 8], 1);
        folder.npy("x.npy", &x);
        folder.run("layer-norm x.npy --save-stats s.safetensors -o y.npy");
        let mean = folder.read("s.safetensors:mean");
        assert_eq!((mean.dtype, mean.shape.as_slice()), (stats_type, [5, 3].as_slice()));
        folder.run("layer-norm x.npy --axis 1 --save-stats s.safetensors -o y.npy");
        assert_eq!(folder.read("s.safetensors:rstd").shape, [5, 8]);
    }
    let x = Tensor::varied(DType::F32, &[4, 10], 1);
    folder.npy("x.npy", &x);
    folder.run("rms-norm x.npy --save-stats s.safetensors -o y.npy");
    let (mut y, mut stats) = (Tensor::zeros(DType::F32, &[4, 10]), [Stats::<f32>::default(); 4]);
    RmsNorm::new(10).apply(Io::new(x.slice(), y.slice_mut()).stats(&mut stats)).expect("the library runs");
    let rstd: Vec<u8> = stats.iter().flat_map(|stats| stats.rstd().to_le_bytes()).collect();
    assert_eq!(folder.read("s.safetensors:rstd").data.bytes(), rstd);
}

#[test]
fn unaligned_data_and_odd_shapes_are_no_matter() {
    let folder = Folder::new();
    for dtype in TYPES {
        let x = Tensor::varied(dtype, &[3, 7], 1);
        let aligned = common::safetensors(&[("x", &x)]);
        let len = u64::from_le_bytes(*aligned.first_chunk().expect("a header")) as usize;
        let mut y = Tensor::zeros(dtype, &x.shape);
        RmsNorm::new(7).forward(x.slice(), y.slice_mut()).expect("the library runs");
        for blanks in [1, 3] {
            let header = [&aligned[8..8 + len], " ".repeat(blanks).as_bytes()].concat();
            let file = [&(header.len() as u64).to_le_bytes(), header.as_slice(), &aligned[8 + len..]].concat();
            folder.write("u.safetensors", &file);
            folder.run("rms-norm u.safetensors -o y.safetensors");
            assert_eq!(folder.read("y.safetensors:y"), y, "{dtype} moved by {blanks}");
        }
    }
    for shape in [vec![0], vec![0, 5], vec![5, 0], vec![1], vec![3, 1], vec![1, 1, 1, 1]] {
        folder.npy("x.npy", &Tensor::varied(DType::F32, &shape, 1));
        folder.run("rms-norm x.npy -o y.npy");
        assert_eq!(folder.read("y.npy").shape, shape);
        folder.run("layer-norm x.npy --axis 0 -o y.npy");
        assert_eq!(folder.read("y.npy").shape, shape);
    }
}

#[test]
fn parameters_may_have_the_shape_of_the_axes() {
    let folder = Folder::new();
    folder.npy("x.npy", &Tensor::varied(DType::F32, &[2, 3, 4], 1));
    for shape in [vec![12], vec![3, 4], vec![1, 3, 4], vec![1, 12]] {
        folder.npy("w.npy", &Tensor::varied(DType::F32, &shape, 2));
        folder.run("layer-norm x.npy --axis 1,2 --weight w.npy -o y.npy");
    }
}

#[test]
fn the_digest_is_the_same_for_any_threads_level_and_format() {
    let folder = Folder::new();
    let x = Tensor::varied(DType::F32, &[3000, 1025], 1); // two blocks of the stream
    folder.npy("x.npy", &x);
    folder.safetensors("x.safetensors", &[("x", &x)]);
    let mut y = Tensor::zeros(DType::F32, &x.shape);
    LayerNorm::new(1025).forward(x.slice(), y.slice_mut()).expect("the library runs");
    let expected = blake3::hash(y.data.bytes()).to_hex().to_string();
    let levels: Vec<_> = isonorm::Level::available().skip_while(|level| *level == isonorm::Level::Scalar).collect();
    for level in levels {
        for threads in [1, 2, 3, 8] {
            let summary = folder.summary(&format!("layer-norm x.npy --threads {threads} --level {level} -o y.npy"));
            assert_eq!(summary["blake3"], expected, "{threads} threads, {level}");
        }
    }
    assert_eq!(folder.summary("layer-norm x.safetensors -o y.safetensors")["blake3"], expected);
    assert_eq!(folder.read("y.npy"), y);
    assert_eq!(folder.read("y.safetensors:y"), y);
}
