//! Files and flags that are meant to break the program: an error in one line or the right result, and soon.

mod common;

use std::time::Duration;

use common::{Folder, Tensor, npy_file, refused, safetensors_file, sparse};
use isonorm::DType;

fn folder() -> Folder {
    let folder = Folder::new();
    folder.npy("x.npy", &Tensor::varied(DType::F32, &[4, 6], 1));
    folder
}

/// Runs it to its success, which must not take long.
fn done_soon(folder: &Folder, args: &str) {
    folder.isonorm(args).timeout(Duration::from_secs(60)).assert().success();
}

#[test]
fn the_name_that_belongs_to_the_format_is_no_tensor() {
    let folder = folder();
    let tensor = r#""dtype":"F32","shape":[2,2],"data_offsets":[0,16]"#;
    folder.write("only.safetensors", &safetensors_file(&format!(r#"{{"__metadata__":{{{tensor}}}}}"#), 16));
    let both = format!(r#"{{"__metadata__":{{"eps":"1e-6"}},"a":{{{tensor}}}}}"#);
    folder.write("both.safetensors", &safetensors_file(&both, 16));
    refused(&folder, "rms-norm only.safetensors -o y.npy", &["only.safetensors", "not a valid safetensors file"]);
    for args in [
        "rms-norm only.safetensors:__metadata__ -o y.npy",
        "rms-norm both.safetensors:__metadata__ -o y.npy",
        "rms-norm x.npy -o y.safetensors:__metadata__",
        "rms-norm x.npy --weight both.safetensors:__metadata__ -o y.npy",
        "rms-norm x.npy --residual x.npy --residual-out r.safetensors:__metadata__ -o y.npy",
        "rms-norm x.npy --save-stats s.safetensors:__metadata__ -o y.npy",
        "explain rms-norm both.safetensors:__metadata__",
        "backward rms-norm x.npy --dy both.safetensors:__metadata__ --dx dx.npy",
        "backward rms-norm x.npy --dy x.npy --dweight w.safetensors:__metadata__",
    ] {
        refused(&folder, args, &["names a tensor __metadata__", "belongs to the format", "choose another"]);
    }
    folder.run("rms-norm both.safetensors -o y.npy"); // metadata are no tensor to choose from
}

const NORMS: [&str; 6] = [
    "rms-norm",
    "layer-norm --axis 0",
    "batch-norm",
    "batch-norm --layout nhwc",
    "instance-norm",
    "group-norm --groups 1 --save-stats s.safetensors",
];

#[test]
fn empty_tensors_of_huge_shapes_are_refused() {
    let folder = folder();
    for (first, second) in [(0, 1u64 << 60), (1u64 << 40, 0), (0, 1 << 63), (1 << 63, 0), (1 << 25, 0)] {
        let npy = format!("{{'descr': '<f4', 'fortran_order': False, 'shape': ({first}, {second}), }}\n");
        folder.write("e.npy", &npy_file(&npy, 0));
        let header = format!(r#"{{"a":{{"dtype":"F32","shape":[{first},{second}],"data_offsets":[0,0]}}}}"#);
        folder.write("e.safetensors", &safetensors_file(&header, 0));
        let shape = format!("[{first}, {second}]");
        for file in ["e.npy", "e.safetensors"] {
            for norm in NORMS {
                refused(
                    &folder,
                    &format!("{norm} {file} -o y.npy"),
                    &[file, "no elements", &shape, "at most 16777216"],
                );
            }
            refused(&folder, &format!("rms-norm x.npy --weight {file} -o y.npy"), &[file, "no elements", &shape]);
            refused(&folder, &format!("explain rms-norm {file}"), &[file, "no elements", &shape]);
            let args = format!("backward rms-norm {file} --dy {file} --dx dx.npy --dbias db.npy");
            refused(&folder, &args, &[file, "no elements", &shape]);
        }
    }
}

#[test]
fn empty_tensors_of_ordinary_shapes_are_done_soon() {
    let folder = folder();
    for shape in [vec![0, 1 << 24], vec![1 << 24, 0], vec![1 << 12, 0, 1 << 12], vec![0, 0]] {
        folder.npy("e.npy", &Tensor::zeros(DType::F32, &shape));
        folder.safetensors("e.safetensors", &[("e", &Tensor::zeros(DType::F32, &shape))]);
        for norm in ["rms-norm", "layer-norm --axis 0", "instance-norm", "batch-norm --layout nhwc"] {
            done_soon(&folder, &format!("{norm} e.npy -o y.npy"));
            assert_eq!(folder.read("y.npy").shape, shape, "{norm}");
            done_soon(&folder, &format!("{norm} e.safetensors -o y.safetensors"));
            assert_eq!(folder.read("y.safetensors:y").shape, shape, "{norm}");
            done_soon(&folder, &format!("backward {norm} e.npy --dy e.npy --dx dx.npy --dbias db.npy"));
            assert_eq!(folder.read("dx.npy").shape, shape, "{norm}");
        }
    }
}

#[test]
fn more_dimensions_than_numpy_has_are_refused() {
    let folder = folder();
    for dims in [65, 5000, 100_000] {
        let ones = vec!["1"; dims].join(",");
        let header = format!(r#"{{"a":{{"dtype":"F32","shape":[{ones}],"data_offsets":[0,4]}}}}"#);
        folder.write("deep.safetensors", &safetensors_file(&header, 4));
        let words = ["deep.safetensors:a", &format!("has {dims} dimensions"), "at most 64", "reshape"];
        for args in ["rms-norm deep.safetensors -o y.npy", "instance-norm deep.safetensors -o y.safetensors"] {
            refused(&folder, args, &words);
        }
        refused(&folder, "explain rms-norm deep.safetensors", &words);
    }
    let deepest = Tensor::varied(DType::F32, &[1; 64], 1);
    folder.safetensors("deep.safetensors", &[("a", &deepest)]);
    folder.run("rms-norm deep.safetensors -o y.npy");
    folder.run("rms-norm y.npy -o z.npy");
    assert_eq!(folder.read("z.npy").shape, [1; 64]);
}

#[test]
fn names_cannot_turn_or_flood_a_message() {
    let folder = folder();
    let x = Tensor::varied(DType::F32, &[2, 3], 1);
    folder.safetensors("turned.safetensors", &[("a\u{202e}b\u{2028}c\u{85}", &x), ("d", &x)]);
    refused(&folder, "rms-norm turned.safetensors -o y.npy", &["a\\u{202e}b\\u{2028}c\\u{85}, d"]);
    let long: Vec<String> = (0..20).map(|i| format!("{i:02}{}", "\u{e9}".repeat(5000))).collect();
    let tensors: Vec<(&str, &Tensor)> = long.iter().map(|name| (name.as_str(), &x)).collect();
    folder.safetensors("long.safetensors", &tensors);
    let assert = folder.isonorm("rms-norm long.safetensors -o y.npy").assert().code(2);
    let text = String::from_utf8_lossy(&assert.get_output().stderr).into_owned();
    assert!(text.contains("\u{e9}\u{e9}..., 01") && text.contains("and 8 more") && text.len() < 3000, "{text}");
    let assert = folder.isonorm("rms-norm x.npy").args(["-o", "y\n\u{1b}[31m.npy"]).assert().success();
    let text = String::from_utf8_lossy(&assert.get_output().stderr).into_owned();
    assert!(text.contains("written to y \\u{1b}[31m.npy\n") && !text.contains('\u{1b}'), "{text:?}");
}

#[test]
fn more_threads_than_can_be_are_no_more_than_there_are_cores() {
    let folder = folder();
    folder.npy("rows.npy", &Tensor::zeros(DType::F32, &[1024, 1024]));
    folder.npy("planes.npy", &Tensor::zeros(DType::F32, &[64, 64, 256]));
    for threads in [1000, 1 << 20, usize::MAX] {
        for norm in ["rms-norm rows.npy", "layer-norm rows.npy --axis 0", "batch-norm planes.npy"] {
            done_soon(&folder, &format!("{norm} --threads {threads} -o y.npy"));
        }
    }
}

#[test]
fn an_explanation_of_more_than_anybody_reads_is_refused() {
    let folder = folder();
    sparse(&folder, "row.npy", &[1 << 26]);
    sparse(&folder, "rows.npy", &[1 << 16, 1 << 10]);
    for args in ["rms-norm row.npy --order", "layer-norm row.npy", "group-norm row.npy", "compare rows.npy"] {
        refused(
            &folder,
            &format!("explain {args}"),
            &["x has shape [", "more than 16777216 elements", "name a part of it"],
        );
    }
    done_soon(&folder, "explain rms-norm rows.npy"); // the first rows alone are computed
}

#[test]
fn the_shape_of_a_parameter_is_asked_for_once() {
    let folder = folder();
    folder.npy("w.npy", &Tensor::varied(DType::F32, &[2, 3], 1));
    folder.npy("x3.npy", &Tensor::varied(DType::F32, &[4, 3, 2], 1));
    let line = "isonorm: w.npy has shape [2, 3], expected [6]\n";
    folder.isonorm("rms-norm x.npy --weight w.npy -o y.npy").assert().code(2).stderr(line);
    let line = "isonorm: w.npy has shape [2, 3], expected [6] or [3, 2]\n";
    folder.isonorm("rms-norm x3.npy --axis 1,2 --weight w.npy -o y.npy").assert().code(2).stderr(line);
}
