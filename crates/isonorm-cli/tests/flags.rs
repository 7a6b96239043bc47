//! Flags: a value without meaning, a flag of another norm, or one that would change nothing is refused.

mod common;

use common::{Folder, Tensor, refused};
use isonorm::DType;

/// A folder with good inputs.
fn folder() -> Folder {
    let folder = Folder::new();
    let x = Tensor::varied(DType::F32, &[4, 6], 1);
    folder.npy("x.npy", &x);
    folder.npy("w.npy", &Tensor::varied(DType::F32, &[6], 2));
    folder.npy("planes.npy", &Tensor::varied(DType::F32, &[2, 6, 3], 2));
    folder.safetensors("x.safetensors", &[("x", &x)]);
    folder
}

#[test]
fn options_that_have_no_meaning() {
    let folder = folder();
    for (args, words) in [
        ("rms-norm x.npy --eps -1e-6 -o y.npy", ["eps is -0.000001", "finite", "at least 0"]),
        ("rms-norm x.npy --eps=-1 -o y.npy", ["eps is -1", "finite", "at least 0"]),
        ("rms-norm x.npy --eps nan -o y.npy", ["eps is NaN", "finite", "at least 0"]),
        ("layer-norm x.npy --eps inf -o y.npy", ["eps is inf", "finite", "at least 0"]),
        ("group-norm planes.npy --groups 2 --eps nan -o y.npy", ["eps is NaN", "finite", "at least 0"]),
        ("batch-norm planes.npy --eps nan -o y.npy", ["eps is NaN", "finite", "at least 0"]),
        ("rms-norm x.npy --eps small -o y.npy", ["small", "--eps", "isonorm --help"]),
        ("rms-norm x.npy --threads 0 -o y.npy", ["threads is 0", "at least 1", "isonorm"]),
        ("rms-norm x.npy --threads -1 -o y.npy", ["'-1' for '--threads <N>'", "whole number of at least 0", "--help"]),
        ("rms-norm x.npy --partial -3 -o y.npy", ["'-3' for '--partial <K>'", "whole number of at least 0", "--help"]),
        ("group-norm planes.npy --groups 2.5 -o y.npy", ["'2.5' for '--groups <G>'", "whole number", "--help"]),
        (
            "batch-norm planes.npy --running-mean w.npy --running-var w.npy --cumulative -1 -o y.npy",
            ["'-1' for '--cumulative <N>'", "whole number of at least 0", "--help"],
        ),
        ("rms-norm x.npy --threads 99999999999999999999 -o y.npy", ["--threads <N>", "it is too large", "--help"]),
        ("explain group-norm --groups -1", ["'-1' for '--groups <G>'", "whole number of at least 0", "--help"]),
        ("explain rms-norm --weight -1", ["`-1` is no tensor", "expected file.npy", "file.safetensors:name"]),
        ("rms-norm x.npy --level sse2 -o y.npy", ["sse2", "scalar, avx2, avx512", "--help"]),
        ("rms-norm x.npy --recipe gemma -o y.npy", ["--recipe gemma adds 1", "no --weight is given", "add --weight W"]),
        ("rms-norm x.npy --recipe rounded -o y.npy", ["rounded", "torch, llama, gemma", "--help"]),
        ("layer-norm x.npy --recipe llama -o y.npy", ["llama", "rms-norm alone", "leave it out"]),
        ("layer-norm x.npy --partial 3 -o y.npy", ["--partial", "rms-norm alone", "leave it out"]),
        ("rms-norm x.npy --residual-out r.npy -o y.npy", ["--residual", "required", "--help"]),
        ("rms-norm x.npy", ["--output", "required", "--help"]),
        ("rms-norm x.npy --wieght w.npy -o y.npy", ["--wieght", "--weight", "--help"]),
        ("softmax x.npy -o y.npy", ["softmax", "unrecognized", "--help"]),
        ("rms-norm x.npy --save-stats s.npy -o y.npy", ["s.npy", "several statistics", "safetensors"]),
        ("batch-norm planes.npy --eval -o y.npy", ["--running-mean", "required", "--help"]),
        (
            "batch-norm planes.npy --running-mean w.npy --running-var w.npy -o y.npy",
            ["running statistics", "--save-stats", "--eval"],
        ),
        (
            "batch-norm planes.npy --running-mean w.npy --running-var w.npy --eval --save-stats s.safetensors -o y.npy",
            ["--eval", "no statistics", "leave out"],
        ),
        (
            "batch-norm planes.npy --running-mean w.npy --running-var w.npy --momentum nan --save-stats s.safetensors -o y.npy",
            ["momentum is NaN", "expected", "isonorm"],
        ),
    ] {
        refused(&folder, args, &words);
    }
    refused(&folder, "", &["--help"]);
}

#[test]
fn evaluation_takes_no_option_of_training() {
    let folder = folder();
    for (flags, words) in [
        ("--momentum 0.1", ["--eval", "no momentum", "leave out --momentum or --eval"]),
        ("--cumulative 7", ["--eval", "averages none", "leave out --cumulative or --eval"]),
        ("--biased-running-var", ["--eval", "biased or not", "leave out --biased-running-var or --eval"]),
        ("--save-stats s.safetensors", ["--eval", "no statistics to save", "leave out --save-stats or --eval"]),
    ] {
        let args = "batch-norm planes.npy --running-mean w.npy --running-var w.npy --eval -o y.npy";
        refused(&folder, &format!("{args} {flags}"), &words);
    }
    for flags in ["--momentum 0.1", "--cumulative 7", "--biased-running-var"] {
        refused(&folder, &format!("batch-norm planes.npy {flags} -o y.npy"), &["--running-mean", "required"]);
    }
}

#[test]
fn flags_of_another_norm_are_refused() {
    let folder = folder();
    for args in [
        "rms-norm x.npy --layout nhwc",
        "rms-norm x.npy --groups 2",
        "rms-norm x.npy --eval",
        "layer-norm x.npy --momentum 0.1",
        "batch-norm planes.npy --groups 2",
        "batch-norm planes.npy --axis 1",
        "batch-norm planes.npy --residual planes.npy",
        "group-norm planes.npy --groups 2 --recipe llama",
        "group-norm planes.npy --groups 2 --eval",
        "instance-norm planes.npy --groups 2",
        "instance-norm planes.npy --partial 2",
        "instance-norm planes.npy --running-mean w.npy",
    ] {
        refused(&folder, &format!("{args} -o y.npy"), &["unexpected argument", "isonorm --help"]);
    }
}

#[test]
fn a_recipe_without_the_weight_it_changes_is_refused() {
    let folder = folder();
    for args in ["rms-norm x.npy -o y.npy", "layer-norm x.npy -o y.npy", "explain rms-norm"] {
        let words = ["--recipe gemma adds 1", "no --weight is given", "add --weight W, or leave out --recipe"];
        refused(&folder, &format!("{args} --recipe gemma"), &words);
    }
}

#[test]
fn bf16_of_npy_files_without_an_npy_file_is_refused() {
    let folder = folder();
    folder.safetensors("p.safetensors", &[("p", &Tensor::varied(DType::F32, &[2, 6, 3], 2))]);
    for args in [
        "rms-norm x.safetensors -o y.safetensors",
        "batch-norm p.safetensors -o y.safetensors",
        "group-norm p.safetensors --groups 2 -o y.safetensors",
        "instance-norm p.safetensors -o y.safetensors",
        "explain rms-norm",
        "explain rms-norm --data [[1,2]]",
        "explain rms-norm x.safetensors",
    ] {
        let words = ["--bf16 says how npy files hold bf16", "none is named", "--dtype bf16 chooses the type"];
        refused(&folder, &format!("{args} --bf16"), &words);
    }
    for args in [
        "rms-norm x.safetensors --weight w.npy -o y.safetensors",
        "rms-norm x.safetensors --dtype bf16 -o y.npy",
        "batch-norm p.safetensors --running-mean w.npy --running-var w.npy --eval -o y.safetensors",
        "explain rms-norm x.npy",
    ] {
        folder.run(&format!("{args} --bf16"));
    }
}
