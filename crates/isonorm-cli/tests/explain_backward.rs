//! `explain --backward`: the steps have the library's bits, and the differences agree.

mod common;

use assert_cmd::Command;
use common::{Folder, Tensor};
use isonorm::DType;

fn run(folder: &Folder, args: &[&str]) -> std::process::Output {
    let mut command = Command::new(assert_cmd::cargo::cargo_bin!("isonorm"));
    command.current_dir(folder.path("")).arg("explain").args(args).output().expect("it runs")
}

fn explained(folder: &Folder, args: &[&str]) -> String {
    let output = run(folder, args);
    assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("UTF-8")
}

fn words(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[test]
fn layer_norm_shows_each_step() {
    let folder = Folder::new();
    let data = ["--data", "[[1,2,3],[4,5,6]]", "--eps", "0", "--weight", "[1,2,3]"];
    let text = explained(&folder, &[&["layer-norm", "--backward", "--dy", "[[1,0,0],[0,1,0]]"], &data[..]].concat());
    let text = words(&text);
    for line in [
        "LayerNorm, backward",
        "g = dy · weight",
        "row 0 c1 = (1 + 0 + 0) / 3 = 0.33333334, c2 = (1 · (-1.2247) + 0 · 0 + 0 · 1.2247) / 3 = -0.40824828",
        "element 0 dweight = 1 · (-1.2247) + 0 · (-1.2247) = -1.2247448",
        "element 1 dbias = 0 + 1 = 1",
        "give the library's dx bit for bit in all 6 elements shown",
    ] {
        assert!(text.contains(line), "not said: {line}\nin {text}");
    }
    assert!(!text.contains("No --dy is given"));
    let text = words(&explained(&folder, &[&["layer-norm", "--backward"], &data[..]].concat()));
    assert!(text.contains("No --dy is given, so dy is 1 everywhere"), "{text}");
}

/// Rows of a table of two lines that stand below each other: the formula's numbers and the measured ones.
fn compared(text: &str) -> Vec<(f64, f64)> {
    let numbers = |name: &str| -> Vec<f64> {
        let line = text.lines().find(|line| line.trim().starts_with(name)).expect("a line of the table");
        line.trim()[name.len()..].split_whitespace().map(|number| number.parse().expect("a number")).collect()
    };
    numbers("by the formula").into_iter().zip(numbers("by differences, in f64")).collect()
}

#[test]
fn every_norm_has_the_librarys_bits_and_the_slope_of_the_loss() {
    let folder = Folder::new();
    for dtype in [DType::F32, DType::F64, DType::Bf16] {
        let [x, dy] = [1, 2].map(|seed| Tensor::varied(dtype, &[20, 6, 7], seed));
        let [of_row, of_channel] = [7, 6].map(|len| Tensor::varied(dtype, &[len], 3));
        folder.safetensors("in.safetensors", &[("x", &x), ("dy", &dy), ("row", &of_row), ("channel", &of_channel)]);
        for (norm, weight) in [
            ("rms-norm", "row"),
            ("rms-norm --eps-outside --eps 0.1", "row"),
            ("rms-norm --partial 3 --eps-outside", "row"),
            ("rms-norm --recipe gemma", "row"),
            ("rms-norm --recipe llama", "row"),
            ("layer-norm", "row"),
            ("layer-norm --eps-outside --eps 0.1", "row"),
            ("group-norm --groups 3", "channel"),
            ("instance-norm --eps-outside", "channel"),
            ("batch-norm", "channel"),
            ("batch-norm --eps-outside --eps 0.1", "channel"),
        ] {
            for weight in [format!("--weight in.safetensors:{weight}"), String::new()] {
                if weight.is_empty() && norm.contains("gemma") {
                    continue;
                }
                let args = format!("{norm} in.safetensors:x --backward --dy in.safetensors:dy {weight}");
                let text = explained(&folder, &args.split_whitespace().collect::<Vec<_>>());
                assert!(words(&text).contains("bit for bit in all"), "{dtype} {args}\n{text}");
                for (formula, measured) in compared(&text) {
                    let bound = if dtype == DType::Bf16 { 3e-2 } else { 1e-4 };
                    let near = (formula - measured).abs() <= bound * (1.0 + measured.abs());
                    assert!(near, "{dtype} {args}: {formula} {measured}");
                }
            }
        }
    }
}

#[test]
fn what_has_no_meaning_is_refused() {
    let folder = Folder::new();
    folder.npy("wide.npy", &Tensor::varied(DType::F64, &[3, 3], 1));
    for (args, line) in [
        (&["layer-norm", "--dy", "[1]"][..], "--backward"),
        (&["layer-norm", "--backward", "--bias", "[1,1,1]"], "--bias"),
        (&["layer-norm", "--backward", "--order"], "--order"),
        (&["compare", "--backward"], "compare takes neither --weight, --bias, --order nor --backward"),
        (&["layer-norm", "--backward", "--dy", "[1,2]"], "--dy has shape [2], expected [3, 3] as x has"),
        (&["layer-norm", "--backward", "--dy", "[[1,2],[3]]"], "--dy is ragged"),
        (&["layer-norm", "--backward", "--dy", "wide.npy"], "dy is f64, which does not go with x of f32"),
    ] {
        let output = run(&folder, args);
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!((output.status.code(), text.lines().count()), (Some(2), 1), "{args:?}: {text}");
        assert!(text.contains(line), "{args:?}: {text}");
    }
}

#[test]
fn a_page_has_the_same_steps() {
    let folder = Folder::new();
    let output = run(&folder, &["batch-norm", "--backward", "--html", "page.html"]);
    assert!(output.status.success());
    let page = std::fs::read_to_string(folder.path("page.html")).expect("a page");
    assert!(page.contains("BatchNorm, backward") && page.contains("dweight") && page.ends_with("</html>"));
}
