//! What `isonorm backward` refuses: one line that says what to do, status 2, and no file.

mod common;

use std::fs;

use common::{Folder, Tensor, refused};
use isonorm::DType;

fn folder() -> Folder {
    let folder = Folder::new();
    folder.npy("x.npy", &Tensor::varied(DType::F32, &[4, 6], 1));
    folder.npy("dy.npy", &Tensor::varied(DType::F32, &[4, 6], 2));
    folder.npy("w.npy", &Tensor::varied(DType::F32, &[6], 3));
    folder.npy("short.npy", &Tensor::varied(DType::F32, &[5], 3));
    folder.npy("other.npy", &Tensor::varied(DType::F32, &[6, 4], 3));
    folder.npy("wide.npy", &Tensor::varied(DType::F64, &[4, 6], 3));
    folder.npy("planes.npy", &Tensor::varied(DType::F32, &[2, 6, 3], 2));
    folder.npy("single.npy", &Tensor::varied(DType::F32, &[1, 6], 2));
    folder
}

#[test]
fn what_is_wrong_is_said_in_one_line() {
    let folder = folder();
    for (args, line) in [
        (
            "rms-norm x.npy --dy dy.npy",
            "none of the gradients is to be written: add --dx DX, --dweight DW or --dbias DB",
        ),
        (
            "instance-norm planes.npy --dy planes.npy",
            "none of the gradients is to be written: add --dx DX, --dweight DW or --dbias DB",
        ),
        ("rms-norm x.npy --dy other.npy --dx dx.npy", "other.npy has shape [6, 4], expected [4, 6] as x.npy has"),
        (
            "rms-norm x.npy --dy dy.npy --dresidual other.npy --dx dx.npy",
            "other.npy has shape [6, 4], expected [4, 6] as x.npy has",
        ),
        (
            "batch-norm planes.npy --dy x.npy --dx dx.npy",
            "x.npy has shape [4, 6], expected [2, 6, 3] as planes.npy has",
        ),
        (
            "rms-norm x.npy --dy wide.npy --dx dx.npy",
            "dy is f64, which does not go with x of f32: f64 goes with f64 alone, and an f64 dy needs x in f64",
        ),
        (
            "rms-norm x.npy --dy dy.npy --dtype f64 --dx dx.npy",
            "dx is f64, which does not go with x of f32: f64 goes with f64 alone, and an f64 dx needs x in f64",
        ),
        (
            "batch-norm x.npy --dy dy.npy --param-dtype f64 --dweight dw.npy",
            "dweight is f64, which does not go with x of f32: f64 goes with f64 alone, and an f64 dweight needs x in f64",
        ),
        (
            "rms-norm x.npy --dy dy.npy --weight short.npy --dx dx.npy",
            "weight has 5 elements, expected 6: one for each normalized element",
        ),
        (
            "rms-norm x.npy --dy dy.npy --param-dtype f32 --dx dx.npy",
            "--param-dtype is about the gradients of weight and bias, but neither is to be written: add --dweight DW or --dbias DB, or leave it out",
        ),
        (
            "rms-norm x.npy --dy dy.npy --dresidual dy.npy --dbias db.npy",
            "--dresidual is added to the gradient of X, which is not to be written: add --dx DX, or leave it out",
        ),
        (
            "rms-norm x.npy --dy dy.npy --param-dtype bf16 --dweight dw.npy",
            "dw.npy cannot hold bf16: npy has no such type; write .safetensors, or choose --param-dtype f32, or add --bf16 to write 2-byte items (|V2) as ml_dtypes does",
        ),
        (
            "rms-norm x.npy --dy dy.npy --recipe gemma --dx dx.npy",
            "--recipe gemma adds 1 to the weight, but no --weight is given: add --weight W, or leave out --recipe",
        ),
        (
            "layer-norm x.npy --dy dy.npy --recipe llama --dx dx.npy",
            "--recipe llama is of rms-norm alone: leave it out, or use rms-norm",
        ),
        (
            "batch-norm single.npy --dy single.npy --dx dx.npy",
            "batch norm in training has 1 value for each channel, expected at least 2: give a larger batch, or evaluate",
        ),
        (
            "group-norm planes.npy --dy planes.npy --groups 4 --dx dx.npy",
            "4 groups do not divide 6 channels: choose a divisor of 6",
        ),
        (
            "rms-norm x.npy --dy missing.npy --dx dx.npy",
            "cannot read missing.npy: no such file or folder: check the path",
        ),
        ("rms-norm x.npy --dy dy.npy --dx no/dx.npy", "cannot write no/dx.npy: no such file or folder: check the path"),
    ] {
        refused(&folder, &format!("backward {args}"), &[line]);
        folder.isonorm(&format!("backward {args}")).assert().code(2).stderr(format!("isonorm: {line}\n"));
    }
}

#[test]
fn flags_that_have_no_meaning_are_refused() {
    let folder = folder();
    for (args, words) in [
        ("rms-norm x.npy --dx dx.npy", ["--dy <DY>", "required"]),
        ("rms-norm x.npy --dy dy.npy --bias w.npy --dx dx.npy", ["--bias", "unexpected argument"]),
        ("rms-norm x.npy --dy dy.npy --dtype f16 --dbias db.npy", ["--dx <DX>", "required"]),
        ("rms-norm x.npy --dy dy.npy --save-stats s.safetensors --dx dx.npy", ["--save-stats", "unexpected argument"]),
        ("rms-norm x.npy --dy dy.npy --residual x.npy --dx dx.npy", ["--residual", "unexpected argument"]),
        ("rms-norm x.npy --dy dy.npy -o dx.npy", ["'-o'", "unexpected argument"]),
        ("batch-norm planes.npy --dy planes.npy --momentum 0.1 --dx dx.npy", ["--momentum", "unexpected argument"]),
        ("batch-norm planes.npy --dy planes.npy --running-mean w.npy --dx dx.npy", ["--eval", "required"]),
        ("batch-norm planes.npy --dy planes.npy --eval --dx dx.npy", ["--running-mean", "required"]),
        ("group-norm planes.npy --dy planes.npy --dx dx.npy", ["--groups <G>", "required"]),
        (
            "group-norm planes.npy --dy planes.npy --groups 2 --dresidual x.npy --dx dx.npy",
            ["--dresidual", "unexpected"],
        ),
        ("softmax x.npy --dy dy.npy --dx dx.npy", ["softmax", "unrecognized"]),
    ] {
        refused(&folder, &format!("backward {args}"), &words);
    }
    folder.safetensors("x.safetensors", &[("x", &Tensor::varied(DType::F32, &[4, 6], 1))]);
    for norm in ["rms-norm", "batch-norm"] {
        let words = ["--bf16 says how npy files hold bf16", "none is named"];
        let args = format!("backward {norm} x.safetensors --dy x.safetensors --dx dx.safetensors --bf16");
        refused(&folder, &args, &words);
    }
}

#[test]
fn gradients_never_replace_an_input_or_one_another() {
    let folder = folder();
    let before = fs::read(folder.path("x.npy")).expect("an input");
    for args in [
        "rms-norm x.npy --dy dy.npy --dx x.npy",
        "rms-norm x.npy --dy dy.npy --dx ./dy.npy",
        "rms-norm x.npy --dy dy.npy --weight w.npy --dweight w.npy",
        "rms-norm x.npy --dy dy.npy --dx dx.npy --dr dx.npy",
        "layer-norm x.npy --dy dy.npy --dweight p.safetensors:dw --dbias p.safetensors:db",
        "batch-norm planes.npy --dy planes.npy --dx planes.npy",
        "group-norm planes.npy --dy planes.npy --groups 2 --dx d.npy --dweight d.npy",
    ] {
        let words = "is the same file as";
        refused(&folder, &format!("backward {args}"), &[words]);
    }
    assert_eq!(fs::read(folder.path("x.npy")).expect("an input"), before);
}

/// The last gradient cannot be made: none of the others appears.
#[test]
fn gradients_appear_together_or_not_at_all() {
    let folder = folder();
    fs::create_dir(folder.path("folder.npy")).expect("made");
    for args in [
        "rms-norm x.npy --dy dy.npy --dx dx.npy --dweight dw.npy --dbias folder.npy",
        "batch-norm planes.npy --dy planes.npy --dx dx.npy --dweight dw.npy --dbias folder.npy",
        "batch-norm single.npy --dy single.npy --dx dx.npy --dweight dw.npy --dbias db.npy",
    ] {
        refused(&folder, &format!("backward {args}"), &[]);
    }
}
