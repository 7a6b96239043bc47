//! Where an output may go: through links to what they point to, and nowhere but into a regular file.
#![cfg(unix)]

mod common;

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use common::{Folder, Tensor, refused};
use isonorm::DType;

fn folder() -> Folder {
    let folder = Folder::new();
    folder.npy("x.npy", &Tensor::varied(DType::F32, &[4, 6], 1));
    folder
}

/// A link in the folder.
fn link(folder: &Folder, to: impl AsRef<Path>, name: &str) {
    symlink(to, folder.path(name)).expect("a link");
}

/// As `refused`, of a command that must not wait for anybody.
fn refused_at_once(folder: &Folder, args: &str, words: &[&str]) {
    let before = folder.files();
    let assert = folder.isonorm(args).timeout(Duration::from_secs(20)).assert().code(2);
    let text = String::from_utf8_lossy(&assert.get_output().stderr).into_owned();
    assert!(words.iter().all(|word| text.contains(word)) && text.lines().count() == 1, "{args}: {text}");
    assert_eq!(folder.files(), before, "{args}");
}

#[test]
fn pipes_devices_sockets_and_folders_are_no_output() {
    let folder = folder();
    let fifo = Command::new("mkfifo").arg(folder.path("fifo.npy")).status();
    assert!(fifo.is_ok_and(|status| status.success()), "mkfifo is part of every Unix");
    let _socket = UnixListener::bind(folder.path("socket.npy")).expect("a socket");
    fs::create_dir(folder.path("folder.npy")).expect("a folder");
    link(&folder, "/dev/null", "null.npy");
    link(&folder, "/dev/full", "full.npy");
    link(&folder, "fifo.npy", "link.npy");
    for (name, what) in [
        ("fifo.npy", "a pipe or a device"),
        ("link.npy", "a pipe or a device"),
        ("null.npy", "a pipe or a device"),
        ("full.npy", "a pipe or a device"),
        ("socket.npy", "a socket"),
        ("folder.npy", "a directory"),
    ] {
        for args in [
            "rms-norm x.npy -o",
            "batch-norm x.npy -o",
            "rms-norm x.npy --residual x.npy -o y.npy --residual-out",
            "backward rms-norm x.npy --dy x.npy --dx",
            "backward rms-norm x.npy --dy x.npy --dx dx.npy --dr",
            "backward rms-norm x.npy --dy x.npy --dx dx.npy --dweight",
            "backward batch-norm x.npy --dy x.npy --dx dx.npy --dbias",
        ] {
            refused_at_once(&folder, &format!("{args} {name}"), &[name, what, "regular file", "name a file to write"]);
        }
        refused_at_once(&folder, &format!("explain rms-norm --html {name}"), &[name, what, "name a file to write"]);
        refused_at_once(&folder, &format!("rms-norm {name} -o y.npy"), &[name, what, "regular file"]);
        let inputs = [format!("--dy {name}"), format!("--dy x.npy --dresidual {name}")];
        for inputs in inputs {
            let args = format!("backward rms-norm x.npy {inputs} --dx dx.npy");
            refused_at_once(&folder, &args, &[name, what, "regular file"]);
        }
    }
    assert!(fs::symlink_metadata("/dev/null").is_ok_and(|about| !about.is_file()), "the device is still one");
}

#[test]
fn a_link_keeps_its_place_and_its_file_its_permissions() {
    let folder = folder();
    folder.run("rms-norm x.npy -o real.npy");
    fs::set_permissions(folder.path("real.npy"), fs::Permissions::from_mode(0o640)).expect("set");
    link(&folder, folder.path("real.npy"), "link.npy");
    folder.run("layer-norm x.npy -o link.npy");
    let about = fs::symlink_metadata(folder.path("link.npy")).expect("there");
    assert!(about.is_symlink(), "the link stays");
    assert_eq!(fs::metadata(folder.path("real.npy")).expect("there").permissions().mode() & 0o777, 0o640);
    folder.run("layer-norm x.npy -o direct.npy");
    assert_eq!(folder.read("real.npy"), folder.read("direct.npy"));
}

#[test]
fn a_link_to_nothing_is_written_through() {
    let folder = folder();
    folder.run("layer-norm x.npy -o direct.npy");
    fs::create_dir(folder.path("there")).expect("a folder");
    link(&folder, "there/real.npy", "relative.npy");
    link(&folder, folder.path("there/other.npy"), "absolute.npy");
    link(&folder, "../chain.npy", "there/chained.npy");
    link(&folder, "there/last.npy", "chain.npy");
    for (name, target) in [
        ("relative.npy", "there/real.npy"),
        ("absolute.npy", "there/other.npy"),
        ("there/chained.npy", "there/last.npy"),
    ] {
        folder.run(&format!("layer-norm x.npy -o {name}"));
        assert!(fs::symlink_metadata(folder.path(name)).expect("there").is_symlink(), "{name} stays a link");
        assert!(fs::symlink_metadata(folder.path(target)).expect("there").is_file(), "{target} is a file");
        assert_eq!(folder.read(target), folder.read("direct.npy"));
        folder.run(&format!("rms-norm x.npy -o {name}")); // and once more, now that it leads somewhere
        assert!(fs::symlink_metadata(folder.path(name)).expect("there").is_symlink(), "{name} stays a link");
    }
    link(&folder, "there/dw.npy", "dw.npy");
    folder.run("backward rms-norm x.npy --dy x.npy --dx dx.npy --dweight dw.npy");
    assert!(fs::symlink_metadata(folder.path("dw.npy")).expect("there").is_symlink(), "dw.npy stays a link");
    assert!(fs::symlink_metadata(folder.path("there/dw.npy")).expect("there").is_file());
    link(&folder, "there/page.html", "page.html");
    folder.run("explain rms-norm --html page.html");
    assert!(fs::symlink_metadata(folder.path("page.html")).expect("there").is_symlink());
    assert!(fs::read_to_string(folder.path("there/page.html")).expect("a page").ends_with("</html>"));
    let names: Vec<_> = fs::read_dir(folder.path("there")).expect("a folder").collect();
    assert_eq!(names.len(), 6, "nothing temporary stays: {names:?}");
}

#[test]
fn links_that_lead_nowhere_are_refused_and_stay() {
    let folder = folder();
    link(&folder, "missing/y.npy", "astray.npy");
    link(&folder, "loop.npy", "loop.npy");
    link(&folder, "x.npy/y.npy", "file.npy");
    refused(&folder, "rms-norm x.npy -o astray.npy", &["missing/y.npy", "no such file or folder", "check the path"]);
    refused(&folder, "rms-norm x.npy -o loop.npy", &["cannot write loop.npy", "symbolic link"]);
    refused(&folder, "rms-norm x.npy -o file.npy", &["cannot write file.npy", "a file stands where a folder", "check"]);
    let assert = folder.isonorm("rms-norm x.npy -o loop.npy").assert();
    let text = String::from_utf8_lossy(&assert.get_output().stderr).into_owned();
    assert_eq!(text.matches("symbolic link").count(), 1, "the system's reason stands once: {text}");
    for name in ["astray.npy", "loop.npy", "file.npy"] {
        assert!(fs::symlink_metadata(folder.path(name)).expect("there").is_symlink(), "{name} stays a link");
    }
}

#[test]
fn two_outputs_that_lead_to_one_file_are_refused() {
    let folder = folder();
    link(&folder, "y.npy", "link.npy");
    link(&folder, "s.safetensors", "s.link.safetensors");
    fs::create_dir(folder.path("sub")).expect("a folder");
    for args in [
        "rms-norm x.npy --residual x.npy --residual-out y.npy -o link.npy",
        "rms-norm x.npy --residual x.npy --residual-out link.npy -o y.npy",
        "rms-norm x.npy --residual x.npy --residual-out sub/../y.npy -o y.npy",
        "rms-norm x.npy --residual x.npy --residual-out s.safetensors:a -o s.safetensors:b",
        "layer-norm x.npy --save-stats s.link.safetensors -o s.safetensors",
        "backward layer-norm x.npy --dy x.npy --dx link.npy --dweight y.npy",
        "backward batch-norm x.npy --dy x.npy --dweight s.safetensors:a --dbias s.link.safetensors:b",
    ] {
        refused(&folder, args, &["is the same file as output", "choose another name"]);
    }
}
