//! Everything that can be wrong with a command is one line that says what to do, status 2, and no file.

mod common;

use std::fs;

use common::{Folder, Tensor, npy_file, refused, safetensors_file};
use isonorm::DType;

/// A folder with good inputs.
fn folder() -> Folder {
    let folder = Folder::new();
    let x = Tensor::varied(DType::F32, &[4, 6], 1);
    folder.npy("x.npy", &x);
    folder.npy("w.npy", &Tensor::varied(DType::F32, &[6], 2));
    folder.npy("short.npy", &Tensor::varied(DType::F32, &[5], 2));
    folder.npy("turned.npy", &Tensor::varied(DType::F32, &[6, 4], 2));
    folder.npy("planes.npy", &Tensor::varied(DType::F32, &[2, 6, 3], 2));
    folder.safetensors("two.safetensors", &[("first", &x), ("second", &x)]);
    folder.safetensors("none.safetensors", &[]);
    folder
}

#[test]
fn files_that_are_not_what_they_should_be() {
    let folder = folder();
    fs::create_dir(folder.path("folder.npy")).expect("made");
    folder.write("empty.npy", b"");
    folder.write("empty.safetensors", b"");
    folder.write("text.npy", b"this is no array, whatever its name");
    for (args, words) in [
        ("rms-norm missing.npy -o y.npy", ["missing.npy", "no such file", "check the path"]),
        ("rms-norm x.npy --weight missing.npy -o y.npy", ["missing.npy", "no such file", "check"]),
        ("rms-norm x.pt -o y.npy", ["x.pt", ".npy", ".safetensors:name"]),
        ("rms-norm x.npy -o y.txt", ["y.txt", ".npy", ".safetensors"]),
        ("rms-norm two.safetensors:third -o y.npy", ["`third`", "first", "second"]),
        ("rms-norm two.safetensors -o y.npy", ["2 tensors", "first, second", "two.safetensors:name"]),
        ("rms-norm none.safetensors -o y.npy", ["0 tensors", "none", "name"]),
        ("rms-norm folder.npy -o y.npy", ["folder.npy", "a directory", "regular file"]),
        ("rms-norm empty.npy -o y.npy", ["empty.npy", "npy", "magic"]),
        ("rms-norm empty.safetensors -o y.npy", ["empty.safetensors", "shorter than a header", "again"]),
        ("rms-norm text.npy -o y.npy", ["text.npy", "magic", "numpy.save"]),
        ("rms-norm x.npy -o nowhere/y.npy", ["nowhere", "no such file or folder", "check"]),
        ("rms-norm x.npy -o folder.npy", ["folder.npy", "a directory", "name a file"]),
        ("rms-norm x.npy -o w.npy/y.npy", ["w.npy/y.npy", "folder", "check"]),
    ] {
        refused(&folder, args, &words);
    }
}

#[test]
fn the_systems_reason_is_said_once() {
    let folder = folder();
    for (args, line) in [
        ("rms-norm missing.npy -o y.npy", "cannot read missing.npy: no such file or folder: check the path"),
        ("rms-norm x.npy -o nowhere/y.npy", "cannot write nowhere/y.npy: no such file or folder: check the path"),
    ] {
        folder.isonorm(args).assert().code(2).stderr(format!("isonorm: {line}\n"));
    }
}

#[test]
fn types_that_no_norm_takes() {
    let folder = folder();
    let header =
        |descr: &str| npy_file(&format!("{{'descr': '{descr}', 'fortran_order': False, 'shape': (2, 3), }}\n"), 96);
    for (descr, words) in [
        ("<i4", ["<i4", "f32, f64, f16 or bf16", "astype"]),
        ("|b1", ["|b1", "expected", "astype"]),
        ("<c16", ["<c16", "expected", "astype"]),
        ("|O", ["|O", "expected", "astype"]),
        (">f4", ["big-endian (>f4)", "little-endian", "newbyteorder"]),
        ("|V2", ["|V2", "bf16", "--bf16"]),
    ] {
        folder.write("typed.npy", &header(descr));
        refused(&folder, "rms-norm typed.npy -o y.npy", &words);
    }
    folder.write("i32.safetensors", &safetensors_file(r#"{"a":{"dtype":"I32","shape":[2],"data_offsets":[0,8]}}"#, 8));
    refused(&folder, "rms-norm i32.safetensors -o y.npy", &["i32.safetensors:a", "I32", "convert"]);
    folder.write("q.safetensors", &safetensors_file(r#"{"a":{"dtype":"Q7","shape":[2],"data_offsets":[0,8]}}"#, 8));
    refused(&folder, "rms-norm q.safetensors -o y.npy", &["q.safetensors", "Q7"]);
    folder.safetensors("b.safetensors", &[("x", &Tensor::varied(DType::Bf16, &[2, 3], 1))]);
    refused(&folder, "rms-norm b.safetensors -o y.npy", &["y.npy", "bf16", "--dtype f32"]);
    folder.npy("d.npy", &Tensor::varied(DType::F64, &[6], 1));
    refused(&folder, "rms-norm x.npy --weight d.npy -o y.npy", &["weight", "f64", "f32"]);
    refused(&folder, "rms-norm x.npy --dtype f64 -o y.npy", &["y is f64", "f32"]);
}

#[test]
fn types_of_a_residual_that_do_not_go_together() {
    let folder = folder();
    folder.npy("f16.npy", &Tensor::varied(DType::F16, &[4, 6], 1));
    folder.npy("f64.npy", &Tensor::varied(DType::F64, &[4, 6], 1));
    folder.npy("w64.npy", &Tensor::varied(DType::F64, &[6], 1));
    for (args, words) in [
        ("x.npy --residual f64.npy", ["x is f32", "x + residual of f64", "an f64 x + residual needs x in f64"]),
        ("x.npy --residual f64.npy --weight w64.npy", ["x is f32", "x + residual of f64", "needs x in f64"]),
        ("f64.npy --residual x.npy --dtype f32", ["x is f64", "x + residual of f32", "needs x + residual in f64"]),
        ("x.npy --residual f16.npy --weight w64.npy", ["weight is f64", "x + residual of f16", "f64 weight needs"]),
        ("x.npy --residual f16.npy --dtype f64", ["y is f64", "x + residual of f16", "an f64 y needs"]),
    ] {
        refused(&folder, &format!("rms-norm {args} -o y.npy"), &words);
    }
}

#[test]
fn truncated_and_malicious_headers() {
    let folder = folder();
    for name in ["x.npy", "two.safetensors"] {
        let whole = fs::read(folder.path(name)).expect("an input");
        let place = if name == "x.npy" { "cut.npy" } else { "cut.safetensors:first" };
        for len in (0..whole.len()).step_by(5).chain([whole.len() - 1]) {
            folder.write(place.split(':').next().expect("a file"), &whole[..len]);
            refused(&folder, &format!("rms-norm {place} -o y.npy"), &["cut"]);
        }
        refused(&folder, &format!("rms-norm {place} -o y.npy"), &["is truncated", "expected", "found"][..1]);
    }
    for shape in [
        "(9223372036854775808,)",
        "(9223372036854775807, 2)",
        "(18446744073709551615, 0)",
        "(-1,)",
        "(1e3,)",
        "(4294967296, 4294967296)",
        "(99999999999999999999999,)",
    ] {
        let text = format!("{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}\n");
        folder.write("evil.npy", &npy_file(&text, 96));
        refused(&folder, "rms-norm evil.npy -o y.npy", &["evil.npy"]);
    }
    folder.write("evil.npy", &[b"\x93NUMPY\x02\x00\xff\xff\xff\xff".as_slice(), &[b'('; 5000]].concat());
    refused(&folder, "rms-norm evil.npy -o y.npy", &["evil.npy", "4294967295 bytes long", "numpy.save"]);
    for header in [
        r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"b":{"dtype":"F32","shape":[2],"data_offsets":[4,12]}}"#,
        r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[8,0]}}"#,
        r#"{"a":{"dtype":"F32","shape":[9223372036854775808],"data_offsets":[0,8]}}"#,
        r#"{"a":{"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,8]}}"#,
        r#"{"a":{"dtype":"F32","shape":[4611686018427387904],"data_offsets":[0,18446744073709551615]}}"#,
        r#"{"a":{"dtype":"U8","shape":[2305843009213693951],"data_offsets":[0,2305843009213693951]}}"#,
        r#"{"a":{"dtype":"F32","shape":[-1],"data_offsets":[0,8]}}"#,
        r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}"#,
        r#"{"a":7}"#,
        r#"[]"#,
        "\u{0}\u{1}",
    ] {
        folder.write("evil.safetensors", &safetensors_file(header, 12));
        refused(&folder, "rms-norm evil.safetensors:a -o y.npy", &["evil.safetensors"]);
    }
    let deep = "[".repeat(200_000);
    folder.write("evil.safetensors", &safetensors_file(&deep, 0));
    refused(&folder, "rms-norm evil.safetensors -o y.npy", &["evil.safetensors"]);
    folder.write("evil.safetensors", &[&u64::MAX.to_le_bytes()[..], &[b' '; 64]].concat());
    refused(&folder, "rms-norm evil.safetensors -o y.npy", &["evil.safetensors", "header too large"]);
    let name = r#"{"a\nb\u001b[31m":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}"#;
    folder.write("evil.safetensors", &safetensors_file(name, 8));
    refused(&folder, "rms-norm evil.safetensors:x -o y.npy", &["a b\\u{1b}[31m"]);
}

#[test]
fn shapes_and_axes_that_do_not_fit() {
    let folder = folder();
    folder.npy("scalar.npy", &Tensor::varied(DType::F32, &[], 1));
    for (args, words) in [
        ("rms-norm x.npy --weight short.npy -o y.npy", ["weight has 5", "expected 6", "normalized element"]),
        ("layer-norm x.npy --bias short.npy -o y.npy", ["bias has 5", "expected 6", "normalized element"]),
        ("layer-norm x.npy --axis 0,1 --weight turned.npy -o y.npy", ["turned.npy", "[6, 4]", "[4, 6]"]),
        ("rms-norm x.npy --residual turned.npy -o y.npy", ["turned.npy", "[6, 4]", "[4, 6]"]),
        ("rms-norm x.npy --axis 2 -o y.npy", ["axis 2", "[4, 6]", "-2 to 1"]),
        ("rms-norm x.npy --axis -3 -o y.npy", ["axis -3", "[4, 6]", "-2 to 1"]),
        ("rms-norm x.npy --axis 1,-1 -o y.npy", ["axis 1", "twice", "once"]),
        ("rms-norm x.npy --axis one -o y.npy", ["one", "--axis", "isonorm --help"]),
        ("rms-norm scalar.npy -o y.npy", ["axis -1", "[]", "at least one axis"]),
        ("rms-norm x.npy --partial 7 -o y.npy", ["partial is 7", "1 to 6", "normalized"]),
        ("rms-norm x.npy --partial 0 -o y.npy", ["partial is 0", "1 to 6", "normalized"]),
        ("group-norm planes.npy --groups 4 -o y.npy", ["4 groups", "6 channels", "divisor"]),
        ("group-norm planes.npy --groups 0 -o y.npy", ["0 groups", "6 channels", "divisor"]),
        ("group-norm planes.npy --groups 2 --weight short.npy -o y.npy", ["weight has 5", "expected 6", "channel"]),
        ("instance-norm short.npy -o y.npy", ["short.npy", "[5]", "two axes"]),
        (
            "batch-norm planes.npy --running-mean w.npy --running-var short.npy --eval -o y.npy",
            ["running_var has 5", "expected 6", "channel"],
        ),
    ] {
        refused(&folder, args, &words);
    }
    folder.npy("one.npy", &Tensor::varied(DType::F32, &[1, 6], 1));
    refused(&folder, "batch-norm one.npy -o y.npy", &["1 value", "at least 2", "larger batch"]);
}

#[test]
fn an_output_never_replaces_an_input_or_another_output() {
    let folder = folder();
    let before = fs::read(folder.path("x.npy")).expect("an input");
    fs::hard_link(folder.path("x.npy"), folder.path("hard.npy")).expect("a link");
    #[cfg(unix)]
    std::os::unix::fs::symlink(folder.path("x.npy"), folder.path("soft.npy")).expect("a link");
    for args in [
        "rms-norm x.npy -o x.npy",
        "rms-norm x.npy -o ./x.npy",
        "rms-norm x.npy -o hard.npy",
        "rms-norm x.npy -o soft.npy",
        "rms-norm soft.npy -o x.npy",
        "rms-norm x.npy --weight w.npy -o w.npy",
        "rms-norm two.safetensors:first -o two.safetensors:third",
        "rms-norm x.npy --residual x.npy --residual-out x.npy -o y.npy",
        "rms-norm x.npy --residual x.npy --residual-out y.npy -o y.npy",
        "rms-norm x.npy --residual x.npy --residual-out ./y.npy -o y.npy",
        "rms-norm x.npy --save-stats y.safetensors -o y.safetensors",
        "rms-norm x.npy --save-stats two.safetensors -o y.npy --weight two.safetensors:first --axis 0,1",
        "batch-norm planes.npy --running-mean w.npy --running-var w.npy --eval -o w.npy",
        "group-norm planes.npy --groups 2 -o planes.npy",
    ] {
        refused(&folder, args, &["is the same file as", "choose another name"]);
    }
    assert_eq!(fs::read(folder.path("x.npy")).expect("an input"), before);
}
