//! How the program ends when the world is against it: a full disk, Ctrl-C, a closed pipe, little memory.
#![cfg(unix)]

mod common;

use std::fs::{self, File};
use std::io::Read;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use common::{Folder, Tensor, sparse};
use isonorm::DType;

/// The program by way of a shell, so that limits can be set.
fn shell(folder: &Folder, script: &str) -> Command {
    let mut command = Command::new("bash");
    command.current_dir(folder.path(".")).arg("-c").arg(script);
    command.env("ISONORM", assert_cmd::cargo::cargo_bin!("isonorm"));
    command
}

fn stderr(child: &mut Child) -> String {
    let mut text = String::new();
    child.stderr.take().expect("piped").read_to_string(&mut text).expect("text");
    text
}

#[test]
fn a_file_size_limit_is_an_error_before_any_work() {
    let folder = Folder::new();
    folder.npy("x.npy", &Tensor::varied(DType::F32, &[64, 1024], 1));
    for norm in [
        "rms-norm x.npy -o y.npy",
        "layer-norm x.npy --axis 0 -o y.npy",
        "batch-norm x.npy -o y.npy",
        "backward rms-norm x.npy --dy x.npy --dweight dw.npy --dx dx.npy",
        "backward batch-norm x.npy --dy x.npy --dweight dw.npy --dx dx.npy",
    ] {
        let script = format!("ulimit -f 64; exec \"$ISONORM\" {norm}");
        let output = shell(&folder, &script).output().expect("bash runs");
        let text = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{norm}: {text}");
        assert!(
            text.starts_with("isonorm: cannot write") && text.contains("no room for its 262272 bytes"),
            "{norm}: {text}"
        );
        assert_eq!(text.lines().count(), 1, "{text}");
        assert_eq!(folder.files(), ["x.npy"], "{norm}");
    }
}

#[test]
fn a_full_disk_is_an_error_and_leaves_nothing() {
    let folder = Folder::new();
    folder.npy("x.npy", &Tensor::varied(DType::F32, &[512, 1024], 1));
    let script = "mkdir disk && mount -t tmpfs -o size=1m none disk";
    let mounted = shell(&folder, script).stderr(Stdio::null()).status().is_ok_and(|status| status.success());
    if !mounted {
        println!("skipped: a small disk cannot be mounted here");
        return;
    }
    let mut seen = Vec::new();
    for norm in ["rms-norm x.npy", "layer-norm x.npy --axis 0", "batch-norm x.npy"] {
        let output = shell(&folder, &format!("\"$ISONORM\" {norm} -o disk/y.npy; echo $?; ls -A disk"))
            .output()
            .expect("bash runs");
        seen.push((norm, output));
    }
    assert!(shell(&folder, "umount disk").status().expect("bash runs").success());
    for (norm, output) in seen {
        let text = String::from_utf8_lossy(&output.stderr);
        assert!(text.contains("the disk is full") && text.lines().count() == 1, "{norm}: {text}");
        assert_eq!(String::from_utf8_lossy(&output.stdout), "2\n", "{norm}");
    }
}

#[test]
fn an_interrupt_leaves_nothing() {
    let folder = Folder::new();
    sparse(&folder, "x.npy", &[1 << 16, 4096]); // 1 GiB: seconds of work
    for signal in ["INT", "TERM"] {
        let mut child = shell(&folder, "exec \"$ISONORM\" rms-norm x.npy --level scalar --threads 1 -o y.npy");
        let mut child = child.stderr(Stdio::piped()).spawn().expect("bash runs");
        let started = Instant::now();
        while folder.files().len() < 2 {
            assert!(started.elapsed() < Duration::from_secs(20), "no temporary file appears");
            std::thread::sleep(Duration::from_millis(2));
        }
        let id = child.id().to_string();
        assert!(Command::new("kill").args([&format!("-{signal}"), &id]).status().expect("kill runs").success());
        let status = child.wait().expect("it ends");
        let text = stderr(&mut child);
        if status.success() {
            println!("skipped: it was done before the signal came");
            fs::remove_file(folder.path("y.npy")).expect("removed");
            continue;
        }
        assert_eq!(status.code(), Some(130), "{signal}: {text}");
        assert!(text.starts_with("isonorm: interrupted") && text.lines().count() == 1, "{text}");
        assert_eq!(folder.files(), ["x.npy"]);
    }
}

/// Starts a run of seconds on 1 GiB of zeros, shortens its input to `len(whole)` bytes when its temporary file
/// appears, and gives its status and what it says.
fn shortened(folder: &Folder, norm: &str, len: impl Fn(u64) -> u64) -> (Option<i32>, String) {
    sparse(folder, "x.npy", &[1 << 8, 1 << 8, 4096]);
    let mut child = shell(folder, &format!("exec \"$ISONORM\" {norm} --level scalar --threads 2"));
    let mut child = child.stderr(Stdio::piped()).spawn().expect("bash runs");
    let started = Instant::now();
    while folder.files().len() < 2 {
        assert!(started.elapsed() < Duration::from_secs(20), "no temporary file appears");
        std::thread::sleep(Duration::from_millis(2));
    }
    let file = File::options().write(true).open(folder.path("x.npy")).expect("there");
    file.set_len(len(file.metadata().expect("there").len())).expect("shortened");
    let status = child.wait().expect("it ends");
    (status.code(), stderr(&mut child))
}

#[test]
fn an_input_that_loses_its_pages_is_an_error_and_leaves_nothing() {
    let folder = Folder::new();
    for norm in [
        "rms-norm x.npy -o y.npy",
        "layer-norm x.npy --axis 0 -o y.npy",
        "batch-norm x.npy -o y.npy",
        "instance-norm x.npy -o y.npy",
        "backward layer-norm x.npy --dy x.npy --dx dx.npy --dbias db.npy",
        "backward batch-norm x.npy --dy x.npy --dx dx.npy",
    ] {
        let (status, text) = shortened(&folder, norm, |_| 1 << 20);
        assert_eq!(status, Some(2), "{norm}: {text}");
        assert!(text.starts_with("isonorm: a file was shortened while it was read: no output"), "{norm}: {text}");
        assert_eq!(text.lines().count(), 1, "{norm}: {text}");
        assert_eq!(folder.files(), ["x.npy"], "{norm}");
    }
}

#[test]
fn an_input_that_loses_its_last_bytes_is_an_error_and_leaves_nothing() {
    let folder = Folder::new();
    for norm in [
        "rms-norm x.npy -o y.npy",
        "instance-norm x.npy -o y.npy",
        "backward rms-norm x.npy --dy x.npy --dx dx.npy --dweight dw.npy",
    ] {
        let (status, text) = shortened(&folder, norm, |whole| whole - 100); // the rest of the page reads as zeros
        assert_eq!(status, Some(2), "{norm}: {text}");
        assert!(text.starts_with("isonorm: x.npy changed while it was read: no output"), "{norm}: {text}");
        assert_eq!(text.lines().count(), 1, "{norm}: {text}");
        assert_eq!(folder.files(), ["x.npy"], "{norm}");
    }
}

#[test]
fn a_folder_that_goes_away_is_an_error_and_leaves_nothing() {
    let folder = Folder::new();
    sparse(&folder, "x.npy", &[1 << 15, 4096]); // half a second of work
    for (args, gone) in [
        ("rms-norm x.npy --save-stats there/s.safetensors -o y.npy", "there/s.safetensors"),
        ("rms-norm x.npy --save-stats s.safetensors -o there/y.npy", "there/y.npy"),
        ("batch-norm x.npy --save-stats there/s.safetensors -o y.npy", "there/s.safetensors"),
    ] {
        fs::create_dir(folder.path("there")).expect("made");
        let mut child = shell(&folder, &format!("exec timeout -s KILL 60 \"$ISONORM\" {args} --level scalar"));
        let mut child = child.stderr(Stdio::piped()).spawn().expect("bash runs");
        let started = Instant::now();
        while fs::read_dir(folder.path("there")).expect("a folder").count() == 0 {
            assert!(started.elapsed() < Duration::from_secs(20), "no temporary file appears");
            std::thread::sleep(Duration::from_millis(2));
        }
        std::thread::sleep(Duration::from_millis(50)); // all outputs are made one after another
        fs::remove_dir_all(folder.path("there")).expect("removed");
        let status = child.wait().expect("it ends");
        let text = stderr(&mut child);
        assert_eq!(status.code(), Some(2), "{args}: {text}");
        assert!(text.contains(gone) && text.contains("no such file or folder") && text.lines().count() == 1, "{text}");
        let left: Vec<String> =
            folder.files().into_iter().filter(|name| name.contains("tmp") || name == "y.npy").collect();
        assert!(left.is_empty(), "{args}: {left:?}");
    }
}

#[test]
fn a_closed_pipe_is_quiet_and_the_output_whole() {
    let folder = Folder::new();
    folder.npy("x.npy", &Tensor::varied(DType::F32, &[4, 6], 1));
    let script = "\"$ISONORM\" rms-norm x.npy --json -o y.npy | sleep 0; exit ${PIPESTATUS[0]}";
    let script = script.replace("| sleep 0", "> >(exec true)"); // `true` is gone before the summary comes
    let output = shell(&folder, &format!("{}; sleep 0.1", script.split(';').next().expect("a command")))
        .output()
        .expect("bash runs");
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(text.is_empty(), "{text}");
    assert_eq!(folder.read("y.npy").shape, [4, 6]);
    let output = shell(&folder, "\"$ISONORM\" --help | head -1").output().expect("bash runs");
    assert!(output.stderr.is_empty());
}

#[test]
fn a_closed_standard_output_is_no_panic() {
    let folder = Folder::new();
    folder.npy("x.npy", &Tensor::varied(DType::F32, &[4, 6], 1));
    if !std::path::Path::new("/dev/full").exists() {
        println!("skipped: there is no /dev/full");
        return;
    }
    let commands = [
        "rms-norm x.npy --json -o y.npy",
        "backward rms-norm x.npy --dy x.npy --json --dx dx.npy",
        "verify --json --level scalar",
        "explain rms-norm",
        "--help",
        "--version",
    ];
    for command in commands {
        let output = shell(&folder, &format!("\"$ISONORM\" {command} > /dev/full")).output().expect("bash runs");
        let text = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{text}");
        assert!(text.contains("cannot write standard output") && text.lines().count() == 1, "{text}");
    }
}

/// The most memory that a run had, in MiB. Pages of files that are mapped count while they are.
fn peak(folder: &Folder, args: &str) -> Option<u64> {
    let mut child = shell(folder, &format!("exec \"$ISONORM\" {args} 2>/dev/null")).spawn().expect("bash runs");
    let (status, mut peak) = (format!("/proc/{}/status", child.id()), None);
    loop {
        if let Ok(text) = fs::read_to_string(&status)
            && text.starts_with("Name:\tisonorm")
            && let Some(line) = text.lines().find_map(|line| line.strip_prefix("VmHWM:"))
        {
            peak = line.trim().trim_end_matches(" kB").parse().ok().map(|kib: u64| kib >> 10).max(peak);
        }
        if let Some(ended) = child.try_wait().expect("it runs") {
            assert!(ended.success(), "{args}");
            return peak;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn memory_stays_bounded_whatever_the_input() {
    let folder = Folder::new();
    sparse(&folder, "x.npy", &[1 << 15, 4096]); // 512 MiB
    sparse(&folder, "planes.npy", &[1 << 9, 64, 4096]);
    for args in [
        "rms-norm x.npy -o y.npy",
        "layer-norm x.npy --save-stats s.safetensors -o y.safetensors",
        "rms-norm x.npy --residual x.npy -o y.npy",
        "backward layer-norm x.npy --dy x.npy --dx y.npy --dweight dw.npy --dbias db.npy",
        "backward rms-norm x.npy --dy x.npy --dweight dw.npy",
        "backward instance-norm planes.npy --dy planes.npy --dx y.npy",
        "group-norm planes.npy --groups 8 -o y.npy",
        "instance-norm planes.npy --layout nhwc -o y.npy",
    ] {
        match peak(&folder, args) {
            Some(peak) => assert!(peak < 200, "{args}: {peak} MiB for an input of 512 MiB"),
            None => println!("skipped: the peak of {args} could not be seen"),
        }
    }
}

#[test]
fn little_address_space_is_enough_for_rows() {
    let folder = Folder::new();
    sparse(&folder, "x.npy", &[1 << 14, 4096]); // 256 MiB
    let script = "ulimit -v 220000; exec \"$ISONORM\" rms-norm x.npy --threads 1 -o y.npy";
    let output = shell(&folder, script).output().expect("bash runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}
