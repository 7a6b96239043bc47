//! `backward rms-norm` and `backward layer-norm` end to end: the program gives the library's bits.

mod common;

use common::{Folder, TYPES, Tensor};
use isonorm::{BackwardIo, DType, LayerNorm, Recipe, RmsNorm};

/// x, dy and the weight in one file.
fn inputs(folder: &Folder, dtype: DType, shape: &[usize], hidden: usize) -> [Tensor; 3] {
    let inputs =
        [Tensor::varied(dtype, shape, 1), Tensor::varied(dtype, shape, 2), Tensor::varied(dtype, &[hidden], 3)];
    let [x, dy, w] = &inputs;
    folder.safetensors("in.safetensors", &[("x", x), ("dy", dy), ("w", w)]);
    inputs
}

const CALL: &str = "in.safetensors:x --dy in.safetensors:dy --weight in.safetensors:w";
const ALL: &str = "--dx dx.safetensors --dweight dw.safetensors --dbias db.safetensors";

/// What the program wrote with `ALL`.
fn written(folder: &Folder) -> [Tensor; 3] {
    ["dx.safetensors:dx", "dw.safetensors:dweight", "db.safetensors:dbias"].map(|place| folder.read(place))
}

/// dx, dweight and dbias of the library's one call, of these types.
fn gradients(
    x: &Tensor,
    dy: &Tensor,
    [dx_type, param_type]: [DType; 2],
    backward: impl Fn(BackwardIo<'_>) -> Result<(), isonorm::Error>,
) -> [Tensor; 3] {
    let hidden = *x.shape.last().expect("an axis");
    let mut dx = Tensor::zeros(dx_type, &x.shape);
    let [mut dweight, mut dbias] = [(); 2].map(|()| Tensor::zeros(param_type, &[hidden]));
    let io = BackwardIo::new(x.slice(), dy.slice(), dx.slice_mut());
    backward(io.dweight(dweight.slice_mut()).dbias(dbias.slice_mut())).expect("the library runs");
    [dx, dweight, dbias]
}

#[test]
fn every_type_and_format_gives_the_librarys_bits() {
    for dtype in TYPES {
        let folder = Folder::new();
        let [x, dy, w] = inputs(&folder, dtype, &[3, 7, 40], 40);
        let types = [dtype; 2];
        let expected = gradients(&x, &dy, types, |io| RmsNorm::new(40).weight(w.slice()).backward(io));
        folder.run(&format!("backward rms-norm {CALL} {ALL}"));
        assert_eq!(written(&folder), expected, "rms-norm {dtype}");
        let expected = gradients(&x, &dy, types, |io| LayerNorm::new(40).weight(w.slice()).backward(io));
        folder.run(&format!("backward layer-norm {CALL} {ALL}"));
        assert_eq!(written(&folder), expected, "layer-norm {dtype}");
        folder.npy("x.npy", &x);
        folder.npy("dy.npy", &dy);
        folder.npy("w.npy", &w);
        folder.run("backward layer-norm x.npy --dy dy.npy --weight w.npy --bf16 --dx dx.npy --dbias db.npy");
        assert_eq!(folder.read("dx.npy"), expected[0], "npy {dtype}");
        assert_eq!(folder.read("db.npy"), expected[2], "npy {dtype}");
        folder.run("backward layer-norm x.npy --dy dy.npy --weight w.npy --bf16 --dweight only.npy");
        assert_eq!(folder.read("only.npy"), expected[1], "dweight alone, {dtype}");
    }
}

#[test]
fn options_are_the_librarys() {
    let folder = Folder::new();
    let [x, dy, w] = inputs(&folder, DType::Bf16, &[40, 33], 33);
    let base = RmsNorm::new(33).weight(w.slice());
    let cases = [
        ("", base),
        ("--eps 0.5", base.eps(0.5)),
        ("--eps 0.5 --eps-outside", base.eps(0.5).eps_outside()),
        ("--recipe llama", base.recipe(Recipe::Llama)),
        ("--recipe gemma", base.weight_offset(1.0)),
        ("--partial 7", base.partial(7)),
    ];
    let mut digests = Vec::new();
    for (flags, norm) in cases {
        let expected = gradients(&x, &dy, [DType::Bf16; 2], |io| norm.backward(io));
        let summary = folder.summary(&format!("backward rms-norm {CALL} {flags} {ALL}"));
        assert_eq!(written(&folder), expected, "{flags}");
        assert_eq!(summary["norm"], "backward rms-norm");
        for (name, (gradient, reported)) in
            ["dx", "dweight", "dbias"].iter().zip(expected.iter().zip(summary["outputs"].as_array().expect("a list")))
        {
            assert_eq!(reported["name"], *name);
            assert_eq!(reported["blake3"], blake3::hash(gradient.data.bytes()).to_hex().as_str(), "{flags} {name}");
        }
        assert_eq!(summary["blake3"], summary["outputs"][0]["blake3"]);
        digests.push(summary["blake3"].to_string());
    }
    digests.sort();
    digests.dedup();
    assert_eq!(digests.len(), 6, "each option changes some bit");
    let expected = gradients(&x, &dy, [DType::F16, DType::F32], |io| base.backward(io));
    folder.run(&format!("backward rms-norm {CALL} --dtype f16 --param-dtype f32 {ALL}"));
    assert_eq!(written(&folder), expected, "types");
}

#[test]
fn a_gradient_that_reaches_the_sum_from_elsewhere_is_added() {
    let folder = Folder::new();
    let [x, dy, w] = inputs(&folder, DType::F32, &[6, 20], 20);
    let dresidual = Tensor::varied(DType::Bf16, &[6, 20], 4);
    folder.safetensors("more.safetensors", &[("dresidual", &dresidual)]);
    let (mut dx, mut dr) = (Tensor::zeros(DType::Bf16, &[6, 20]), Tensor::zeros(DType::F32, &[6, 20]));
    let io = BackwardIo::new(x.slice(), dy.slice(), dx.slice_mut()).dresidual(dresidual.slice()).dr(dr.slice_mut());
    RmsNorm::new(20).weight(w.slice()).backward(io).expect("the library runs");
    let call = format!("backward rms-norm {CALL} --dresidual more.safetensors");
    folder.run(&format!("{call} --dx dx.safetensors --dtype bf16 --dr dr.npy"));
    assert_eq!(folder.read("dx.safetensors:dx"), dx);
    assert_eq!(folder.read("dr.npy"), dr);
    folder.run(&format!("{call} --dr alone.npy"));
    assert_eq!(folder.read("alone.npy"), dr);
}

#[test]
fn any_axis_equals_the_transposed_rows() {
    for dtype in [DType::F32, DType::Bf16] {
        let folder = Folder::new();
        let [x, dy] = [1, 2].map(|seed| Tensor::varied(dtype, &[3, 50, 4, 6], seed));
        folder.safetensors("in.safetensors", &[("x", &x), ("dy", &dy)]);
        for axis in [0, 1, 2] {
            let (rows, dy_rows) = (x.swapped(axis, 3), dy.swapped(axis, 3));
            let hidden = rows.shape[3];
            // Rows in logical order of the remaining axes, which is not that of the transposed tensor.
            let [dx, ..] = gradients(&rows, &dy_rows, [dtype; 2], |io| LayerNorm::new(hidden).backward(io));
            folder.run(&format!(
                "backward layer-norm in.safetensors:x --dy in.safetensors:dy --axis {axis} --dx dx.safetensors"
            ));
            assert_eq!(folder.read("dx.safetensors:dx"), dx.swapped(axis, 3), "axis {axis} of {dtype}");
        }
        let flat = |tensor: &Tensor| Tensor { shape: vec![150, 24], ..tensor.swapped(0, 0) };
        let [_, dweight, dbias] = gradients(&flat(&x), &flat(&dy), [dtype; 2], |io| LayerNorm::new(24).backward(io));
        folder.run("backward layer-norm in.safetensors:x --dy in.safetensors:dy --axis 2,3 --dweight dw.safetensors --dbias db.safetensors");
        let dw = folder.read("dw.safetensors:dweight");
        assert_eq!((dw.shape.as_slice(), dw.data.bytes()), ([4, 6].as_slice(), dweight.data.bytes()));
        assert_eq!(folder.read("db.safetensors:dbias").data.bytes(), dbias.data.bytes());
    }
}

#[test]
fn a_dweight_has_the_shape_of_the_weight() {
    let folder = Folder::new();
    let x = Tensor::varied(DType::F32, &[2, 3, 4], 1);
    folder.npy("x.npy", &x);
    for shape in [vec![12], vec![3, 4], vec![1, 12]] {
        folder.npy("w.npy", &Tensor::varied(DType::F16, &shape, 2));
        folder.run("backward layer-norm x.npy --dy x.npy --axis 1,2 --weight w.npy --dweight dw.npy");
        let dweight = folder.read("dw.npy");
        assert_eq!((dweight.dtype, dweight.shape), (DType::F16, shape));
    }
    for shape in [vec![0], vec![0, 5], vec![5, 0], vec![1], vec![3, 1]] {
        folder.npy("x.npy", &Tensor::varied(DType::F32, &shape, 1));
        for axis in [-1, 0] {
            folder.run(&format!("backward layer-norm x.npy --dy x.npy --axis {axis} --dx dx.npy --dweight dw.npy"));
            assert_eq!(folder.read("dx.npy").shape, shape);
        }
    }
    folder.npy("x.npy", &Tensor::zeros(DType::F32, &[0, 5]));
    folder.run("backward rms-norm x.npy --dy x.npy --dweight dw.npy --dbias db.npy");
    assert_eq!(folder.read("dw.npy"), Tensor::zeros(DType::F32, &[5]), "no rows: +0");
}

/// Several blocks of the stream, so that the sums go on from block to block.
#[test]
fn blocks_threads_and_levels_give_the_bits_of_one_call() {
    let folder = Folder::new();
    let [x, dy] = [1, 2].map(|seed| Tensor::varied(DType::F32, &[3001, 1025], seed));
    folder.npy("x.npy", &x);
    folder.npy("dy.npy", &dy);
    let expected = gradients(&x, &dy, [DType::F32; 2], |io| LayerNorm::new(1025).backward(io));
    let levels: Vec<_> = isonorm::Level::available().skip_while(|level| *level == isonorm::Level::Scalar).collect();
    for level in levels {
        for threads in [1, 2, 3] {
            folder.run(&format!("backward layer-norm x.npy --dy dy.npy --threads {threads} --level {level} {ALL}"));
            assert!(written(&folder) == expected, "{threads} threads, {level}");
        }
    }
    folder.npy("x.npy", &x.swapped(0, 1));
    folder.npy("dy.npy", &dy.swapped(0, 1));
    folder.run(&format!("backward layer-norm x.npy --dy dy.npy --axis 0 {ALL}"));
    let [dx, dweight, dbias] = written(&folder);
    assert!([dx.swapped(0, 1), dweight, dbias] == expected, "gathered");
}
