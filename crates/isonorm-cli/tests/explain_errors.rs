//! `explain` on bad input: one line that says what was found and what to do, exit status 2, nothing on standard output.

mod common;

use assert_cmd::Command;
use common::{Folder, Tensor};
use isonorm::DType;

/// The one line of a failing command.
fn refused(args: &[&str]) -> String {
    let mut command = Command::new(assert_cmd::cargo::cargo_bin!("isonorm"));
    let output = command.arg("explain").args(args).assert().code(2).get_output().clone();
    assert!(output.stdout.is_empty(), "{args:?}");
    let line = String::from_utf8(output.stderr).expect("UTF-8");
    assert_eq!(line.lines().count(), 1, "{line}");
    line
}

#[test]
fn bad_data_is_named_with_a_remedy() {
    for (data, expected) in [
        ("1,2,3", "--data is not JSON"),
        ("", "--data is empty: give numbers in brackets"),
        ("[]", "--data is an empty list"),
        ("7", "--data is the number 7, expected a list"),
        (
            "[[1,2,3],[4,5]]",
            "--data is ragged: --data[1] has length 2, the list before it 3: give every row the same length",
        ),
        ("[[1,\"two\"]]", "--data[0][1] is the string \"two\", expected a number: only numbers can be normalized"),
        ("[[1,null]]", "--data[0][1] is null, expected a number"),
        ("[[[[1]]]]", "--data has lists 4 deep, expected 1 to 3"),
        ("[1e39]", "--data holds 1e39, which is too large for f32: give smaller numbers, or add --dtype f64"),
    ] {
        let line = refused(&["layer-norm", "--data", data]);
        assert!(line.contains(expected), "{data}: {line}");
    }
}

#[test]
fn the_librarys_rules_are_the_programs() {
    for (args, expected) in [
        (&["layer-norm", "--data", "[1,2]", "--weight", "[1,2,3]"][..], "weight has 3 elements, expected 2"),
        (&["batch-norm", "--data", "[1,2,3]"], "expected at least 2"),
        (&["group-norm", "--groups", "3"], "3 groups do not divide 4 channels"),
        (&["layer-norm", "--eps", "-1"], "eps is -1"),
        (&["layer-norm", "--eps", "NaN"], "eps is NaN"),
        (&["rms-norm", "--data", "[1,2]", "--partial", "3"], "partial is 3"),
    ] {
        let line = refused(args);
        assert!(line.contains(expected), "{args:?}: {line}");
    }
}

#[test]
fn options_of_another_norm_are_refused() {
    for (args, expected) in [
        (&["layer-norm", "--recipe", "llama"][..], "--recipe is an option of rms-norm alone"),
        (&["layer-norm", "--groups", "2"], "--groups is an option of group-norm alone"),
        (&["compare", "--weight", "[1,1,1]"], "compare takes neither --weight"),
        (&["softmax"], "softmax"),
        (&["layer-norm", "x.npy", "--data", "[1]"], "cannot be used with"),
    ] {
        let line = refused(args);
        assert!(line.contains(expected), "{args:?}: {line}");
    }
}

#[test]
fn files_that_are_not_there_or_hold_nothing_are_named() {
    assert!(refused(&["layer-norm", "nowhere.npy"]).contains("nowhere.npy"));
    assert!(refused(&["layer-norm", "x.txt"]).contains("expected file.npy"));
    let folder = Folder::new();
    folder.npy("empty.npy", &Tensor::zeros(DType::F32, &[3, 0]));
    let output = folder.isonorm("explain layer-norm empty.npy").assert().code(2).get_output().clone();
    assert!(String::from_utf8_lossy(&output.stderr).contains("has shape [3, 0], which has no row to explain"));
}
