//! `explain --html`: one page that is whole, well-formed, self-contained and says what the text says.

mod common;

use std::fs;

use common::{Folder, Tensor};
use isonorm::DType;

const NORMS: [&str; 6] = ["rms-norm", "layer-norm", "batch-norm", "group-norm", "instance-norm", "compare"];

fn page(folder: &Folder, args: &str) -> String {
    folder.run(&format!("explain {args} --html page.html"));
    fs::read_to_string(folder.path("page.html")).expect("a page")
}

/// Elements that never close.
const VOID: [&str; 3] = ["meta", "br", "hr"];

/// Checks that every element is closed in the right order.
fn assert_well_formed(page: &str) {
    let mut open: Vec<String> = Vec::new();
    let mut rest = page.strip_prefix("<!DOCTYPE html>").expect("a doctype");
    while let Some(start) = rest.find('<') {
        let end = start + rest[start..].find('>').expect("a closed tag");
        let tag = &rest[start + 1..end];
        rest = &rest[end + 1..];
        let name = tag.trim_start_matches('/').split_whitespace().next().expect("a name").to_owned();
        if tag.starts_with('/') {
            assert_eq!(open.pop().as_deref(), Some(name.as_str()), "before {}", &rest[..rest.len().min(80)]);
        } else if !VOID.contains(&name.as_str()) {
            assert_eq!(tag.matches('"').count() % 2, 0, "{tag}");
            open.push(name);
        }
    }
    assert!(open.is_empty(), "{open:?}");
}

#[test]
fn every_page_is_well_formed_and_needs_nothing_else() {
    let folder = Folder::new();
    for norm in NORMS {
        let order = if norm == "compare" { "" } else { "--order" };
        let page = page(&folder, &format!("{norm} {order}"));
        assert_well_formed(&page);
        for resource in ["src=", "<link", "<script", "<img", "<iframe", "url(", "@import", "@font-face"] {
            assert!(!page.contains(resource), "{norm} has {resource}");
        }
        for (at, _) in page.match_indices("http") {
            let link = page[at..].starts_with("https://arxiv.org/abs/") && page[..at].ends_with("href=\"");
            assert!(link || page[at..].starts_with("http-equiv"), "{norm}: {}", &page[at..at + 60]);
        }
        assert!(page.contains("prefers-color-scheme: dark") && page.contains("lang=\"en\""), "{norm}");
    }
}

#[test]
fn the_page_has_the_numbers_of_the_text() {
    let folder = Folder::new();
    let layer = page(&folder, "layer-norm");
    for number in ["-1.2247356", "-1.2247298", "0.6666667", "0.81650275", ">-1.2247</td>", "arXiv:1607.06450"] {
        assert!(layer.contains(number), "{number}");
    }
    let rms = page(&folder, "rms-norm --data [[1,2,3],[4,5,6]]");
    for number in ["0.4629", "0.9258", "1.3887", "0.7895", "0.9869", "1.1843"] {
        assert!(rms.contains(&format!(">{number}</td>")), "{number}");
    }
}

#[test]
fn formulae_are_read_aloud_as_lines_of_text() {
    let page = page(&Folder::new(), "layer-norm");
    assert!(page.contains("aria-label=\"y = (x - mean) / sqrt(var + eps) · weight + bias\""));
    assert!(page.contains("aria-label=\"mean = (1 + 2 + 3) / 3 = 2\""));
}

#[test]
fn the_page_replaces_what_was_there_and_leaves_nothing_else() {
    let folder = Folder::new();
    folder.write("page.html", b"old");
    let page = page(&folder, "layer-norm");
    assert!(page.ends_with("</html>"));
    assert_eq!(folder.files(), ["page.html"]);
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        let mode = fs::metadata(folder.path("page.html")).expect("a page").permissions().mode();
        assert_ne!(mode & 0o044, 0, "others may read what they may read otherwise: {mode:o}");
    }
}

#[test]
fn a_page_that_cannot_be_written_is_one_line_and_no_file() {
    let folder = Folder::new();
    folder.npy("x.npy", &Tensor::varied(DType::F32, &[2, 3], 1));
    for (args, expected) in [
        ("explain layer-norm --html nowhere/page.html", "nowhere/page.html"),
        ("explain layer-norm --html .", "a directory"),
        ("explain layer-norm x.npy --html x.npy", "is the same file as input x.npy"),
    ] {
        let output = folder.isonorm(args).assert().code(2).get_output().clone();
        let line = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(line.contains(expected) && line.lines().count() == 1, "{line}");
        assert_eq!(folder.files(), ["x.npy"]);
    }
}

#[test]
fn what_was_given_cannot_break_the_page() {
    let folder = Folder::new();
    let x = Tensor::varied(DType::F32, &[2, 3], 1);
    folder.safetensors("in.safetensors", &[("<script>", &x)]);
    assert_well_formed(&page(&folder, "layer-norm in.safetensors:<script>"));
}
