//! `explain` as text: the numbers that tutorials agree on, the drawings, and what is said where conventions differ.

mod common;

use assert_cmd::Command;
use common::{Folder, Tensor};
use isonorm::DType;

/// The program with arguments that may hold blanks.
fn program(args: &[&str]) -> Command {
    let mut command = Command::new(assert_cmd::cargo::cargo_bin!("isonorm"));
    command.arg("explain").args(args);
    command
}

/// What it writes to a pipe.
fn explained(args: &[&str]) -> String {
    let output = program(args).assert().success().get_output().clone();
    assert!(output.stderr.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("UTF-8")
}

/// Whether these lines stand below each other, whatever stands around them.
fn assert_lines(text: &str, expected: &str) {
    let wanted: Vec<&str> = expected.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    let lines: Vec<&str> = text.lines().map(str::trim).collect();
    assert!(lines.windows(wanted.len()).any(|window| window == wanted), "no lines\n{expected}\nin\n{text}");
}

/// Whether the text says this, wherever its lines break.
fn assert_said(text: &str, expected: &str) {
    let said = text.split_whitespace().collect::<Vec<_>>().join(" ");
    assert!(said.contains(expected), "not said: {expected}\nin\n{text}");
}

const ONE_TO_NINE: &str = "[[1,2,3],[4,5,6],[7,8,9]]";

#[test]
fn layer_norm_shows_each_step_and_both_places_of_eps() {
    let text = explained(&["layer-norm", "--data", ONE_TO_NINE]);
    for line in [
        "row 1  mean = (4 + 5 + 6) / 3 = 5",
        "row 2  -1   0   1",
        "row 0  var = ((-1)² + 0² + 1²) / 3 = 0.6666667",
        "row 0  rstd = 1 / sqrt(var + eps) = 1 / sqrt(0.6666667 + 1e-5) = 1 / 0.81650275 = 1.2247356",
        "first element  x_hat = (x - mean) · rstd = (1 - 2) · 1.2247356 = -1.2247356",
        "row 0  -1.2247   0.0000   1.2247",
        "inside the root   1 / sqrt(var + eps)    -1.2247356      0  1.2247356",
        "outside the root  1 / (sqrt(var) + eps)  -1.2247298      0  1.2247298",
        "paper   Ba, Kiros & Hinton 2016, Layer Normalization, arXiv:1607.06450",
    ] {
        assert_lines(&text, line);
    }
    let outside = explained(&["layer-norm", "--data", ONE_TO_NINE, "--eps-outside"]);
    assert_lines(&outside, "first element  x_hat = (x - mean) · rstd = (1 - 2) · 1.2247298 = -1.2247298");
}

#[test]
fn rms_norm_gives_the_numbers_of_the_tutorials() {
    let text = explained(&["rms-norm", "--data", "[[1,2,3],[4,5,6]]"]);
    assert_lines(
        &text,
        "x_hat
         hidden →       0       1       2
         row 0  0.4629  0.9258  1.3887
         row 1  0.7895  0.9869  1.1843",
    );
    assert_lines(&text, "row 0  ms = (1² + 2² + 3²) / 3 = 4.6666665");
}

#[test]
fn the_axis_is_drawn_around_what_is_normalized_together() {
    assert_lines(
        &explained(&["layer-norm"]),
        "hidden →    0  1  2
         ┌─────────┐
         row 0  │ 1  2  3 │ → one mean, one variance
         ├─────────┤
         row 1  │ 4  5  6 │ → one mean, one variance
         ├─────────┤
         row 2  │ 7  8  9 │ → one mean, one variance
         └─────────┘",
    );
    assert_lines(
        &explained(&["batch-norm"]),
        "channel →    0   1   2
         ┌───┬───┬───┐
         sample 0  │ 1 │ 2 │ 3 │
         sample 1  │ 4 │ 5 │ 6 │
         sample 2  │ 7 │ 8 │ 9 │
         └───┴───┴───┘
         ↓   ↓   ↓   one mean, one variance for each column",
    );
}

#[test]
fn batch_norm_shows_the_running_variance_biased_and_unbiased() {
    let text = explained(&["batch-norm", "--data", ONE_TO_NINE]);
    for line in [
        "channel 0  mean = (1 + 4 + 7) / 3 = 4",
        "channel 2  var = ((-3)² + 0² + 3²) / 3 = 6",
        "running_var   0.9 · running_var + 0.1 · var · 3 / 2",
        "channel 0  0.4           6           9               1.8                    1.5",
        "sample 0  -1.2247  -1.2247  -1.2247",
    ] {
        assert_lines(&text, line);
    }
    // (1 - 0.4) / sqrt(1.8 + 1e-5)
    assert_lines(&text, "sample 0  0.4472  1.1180  1.7888");
}

#[test]
fn group_norm_and_instance_norm_take_channels_of_one_sample() {
    let text = explained(&["group-norm", "--groups", "2"]);
    assert_lines(&text, "sample 0, group 0  mean = (1 + 2 + 3 + 4 + 5 + …) / 6 = 3.5");
    assert_lines(&text, "sample 1, group 1  mean = (0 + 4 + 8 + 9 + 9 + …) / 6 = 5");
    let text = explained(&["instance-norm", "--data", "[[1,2,3],[4,6,11]]"]);
    assert_lines(&text, "x       1 sample of 2 channels of 3 positions, f32");
    assert_lines(&text, "sample 0, channel 1  mean = (4 + 6 + 11) / 3 = 7");
}

#[test]
fn three_axes_of_batch_norm_are_a_grid_for_each_sample() {
    let text = explained(&["batch-norm", "--data", "[[[1,2],[3,4]],[[5,6],[7,8]]]"]);
    assert_lines(&text, "channel 1  mean = (3 + 4 + 7 + 8) / 4 = 5.5");
    assert!(text.contains("x, sample 0") && text.contains("x, sample 1"), "{text}");
}

#[test]
fn weight_and_bias_are_shown_and_applied() {
    let text = explained(&["layer-norm", "--data", ONE_TO_NINE, "--weight", "[1,2,3]", "--bias", "[0, 0.5, 1]"]);
    assert_lines(&text, "weight  [1, 2, 3]");
    assert_lines(&text, "bias  [0, 0.5, 1]");
    assert_lines(&text, "row 0  -1.2247   0.5000   4.6742");
    let gemma = explained(&["rms-norm", "--data", "[1,2,3]", "--weight", "[0,1,2]", "--recipe", "gemma"]);
    assert_lines(&gemma, "row 0  0.4629  1.8516  4.1662");
}

#[test]
fn half_types_show_both_rounding_recipes() {
    let args = ["rms-norm", "--data", "[[1,2,3],[4,5,6]]", "--dtype", "bf16", "--weight", "[1.1,0.7,1.7]"];
    let text = explained(&args);
    assert_said(&text, "the two recipes differ in");
    assert!(
        text.contains("torch   at the end") && text.contains("llama   before the weight, and at the end"),
        "{text}"
    );
    assert_said(&explained(&args[..5]), "add --weight '[...]' to see the difference");
}

#[test]
fn partial_takes_the_first_elements_alone() {
    let text = explained(&["rms-norm", "--data", "[3,4,100]", "--partial", "2"]);
    assert_lines(&text, "row 0  ms = (3² + 4²) / 2 = 12.5");
}

#[test]
fn compare_shows_three_norms_side_by_side_and_what_they_leave() {
    let text = explained(&["compare", "--data", "[[1,2,3],[4,5,6]]"]);
    assert_lines(
        &text,
        "BatchNorm                             LayerNorm                   RMSNorm
         column →        0        1        2         0        1        2        0       1       2
         row 0  -1.0000  -1.0000  -1.0000   -1.2247   0.0000   1.2247   0.4629  0.9258  1.3887
         row 1   1.0000   1.0000   1.0000   -1.2247   0.0000   1.2247   0.7895  0.9869  1.1843",
    );
    assert_lines(
        &text,
        "row means                     row variances
         row →        0        1        0       1
         x   2.0000   5.0000   0.6667  0.6667
         BatchNorm  -1.0000   1.0000   0.0000  0.0000
         LayerNorm   0.0000   0.0000   1.0000  1.0000
         RMSNorm   0.9258   0.9869   0.1429  0.0260",
    );
    assert_lines(&text, "takes the mean off        yes                     yes                  no");
}

#[test]
fn the_order_is_drawn_and_ends_in_the_librarys_bits() {
    let row = |n: usize| format!("[{}]", (1..=n).map(|i| format!("{i}.7")).collect::<Vec<_>>().join(","));
    for norm in ["rms-norm", "layer-norm"] {
        // Around lanes, leaves and both ways of drawing the tree.
        for n in [1, 3, 31, 33, 127, 129, 300, 700, 1500] {
            let text = explained(&[norm, "--order", "--data", &row(n)]);
            assert_said(&text, "bit for bit what the library computed");
        }
    }
    let samples = format!("[{}]", (0..50).map(|i| format!("[{i}.3,{i}]")).collect::<Vec<_>>().join(","));
    let planes = format!("[{}]", (0..50).map(|i| format!("[[{i}.3,{i}]]")).collect::<Vec<_>>().join(","));
    for data in [samples, planes] {
        let text = explained(&["batch-norm", "--order", "--data", &data]);
        assert_said(&text, "bit for bit what the library computed");
    }
    for norm in ["group-norm", "instance-norm"] {
        assert_said(&explained(&[norm, "--order"]), "bit for bit what the library computed");
    }
}

#[test]
fn the_order_says_why_it_is_fixed_in_bits() {
    assert_lines(
        &explained(&["layer-norm", "--order"]),
        "left to right    0.70000005   0x3f333334   0 01111110 01100110011001100110100
         isonorm's order  0.7          0x3f333333   0 01111110 01100110011001100110011
         ^^^",
    );
    assert_lines(
        &explained(&["layer-norm", "--order"]),
        "lane l + lane l + 2    →   2 lanes    4  2
         lane l + lane l + 1    →   1 lane     6",
    );
}

#[test]
fn a_row_out_of_range_says_how_it_is_computed() {
    let text = explained(&["layer-norm", "--data", "[1e30, 2e30, -1e30]"]);
    assert_said(&text, "would leave the range of f32");
    assert_said(&text, "s = 2^-100");
    assert_lines(&text, "row 0   0.2673   1.0690  -1.3363");
}

#[test]
fn large_tensors_are_cut_short_with_exact_statistics() {
    let folder = Folder::new();
    let (x, w) = (Tensor::varied(DType::Bf16, &[4, 5, 4100], 1), Tensor::varied(DType::F32, &[4100], 2));
    folder.safetensors("in.safetensors", &[("x", &x), ("w", &w)]);
    let output = folder.isonorm("explain rms-norm in.safetensors:x --weight in.safetensors:w --order");
    let text = String::from_utf8(output.clone_output()).expect("UTF-8");
    assert_lines(&text, "x       20 rows of 4,100 elements, bf16, computed in f32");
    assert_said(&text, "left out: 14 more along row, 4,092 more along hidden");
    assert_said(&text, "bit for bit what the library computed");
    let output = folder.isonorm("explain batch-norm in.safetensors:x");
    assert!(
        String::from_utf8(output.clone_output()).expect("UTF-8").contains("4 samples of 5 channels of 4,100 positions")
    );
}

#[test]
fn a_pipe_gets_plain_text_of_bounded_width() {
    for norm in ["rms-norm", "layer-norm", "batch-norm", "group-norm", "instance-norm", "compare"] {
        let text = explained(&[norm]);
        assert!(!text.contains('\u{1b}'), "{norm}");
        for line in text.lines() {
            assert!(line.chars().count() <= 100, "{norm}: {line}");
            assert_eq!(line.trim_end(), line, "{norm}");
        }
    }
}

/// The standard output of a command that succeeds.
trait CloneOutput {
    fn clone_output(self) -> Vec<u8>;
}

impl CloneOutput for Command {
    fn clone_output(mut self) -> Vec<u8> {
        self.assert().success().get_output().stdout.clone()
    }
}
