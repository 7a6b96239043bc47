//! The hot loops hold no calls: a helper that the compiler left un-inlined costs three to four times, silently.
//!
//! Disassembles this very test, which links every kernel: `cargo test --release --test disassembly`, since a debug
//! build is optimized less.
#![cfg(all(target_arch = "x86_64", target_os = "linux"))]

use std::collections::BTreeMap;
use std::process::Command;

use isonorm::{BatchNorm, GroupNorm, LayerNorm, PlaneBackwardIo, PlaneIo, Planes, PlanesMut, RmsNorm, Stats};

/// The only function of an instruction set with its features; kernels are inlined into it.
const DOORS: [&str; 2] = ["isonorm::isa::avx2::Avx2>::run::enter", "isonorm::isa::avx512::Avx512>::run::enter"];

/// What a kernel may call, none of it for each element: a row's place in a grid of several dimensions (once a row);
/// taking and leaving the lock of a stripe (once for each sample and run of channels); the trees of a chunk of 8192
/// positions, their end and the list of what they came to; the ends of failed checks; copies of whole tiles.
const ALLOWED: [&str; 23] = [
    "alloc::raw_vec::RawVec<",
    "drop_in_place<alloc::vec::Vec<",
    "__rust_dealloc",
    "Walk::start_in_grid",
    "isonorm::stripes::Stripes::lock",
    "drop_in_place<isonorm::stripes::Reading<",
    "drop_in_place<std::sync::poison::mutex::MutexGuard<",
    "std::sys::sync::mutex::",
    "std::panicking::panic_count::",
    "drop_in_place<[isonorm::order::Tree<",
    "core::panicking::",
    "core::slice::index::",
    "core::slice::copy_from_slice",
    "core::option::expect_failed",
    "core::option::unwrap_failed",
    "core::result::unwrap_failed",
    "core::str::slice_error_fail",
    "core::fmt::Display>::fmt",
    "_Unwind_Resume",
    "memcpy",
    "memmove",
    "memset",
    "bcmp",
];

/// A disassembled program: the text of `objdump`, and where the slots of its global offset table point.
struct Program {
    listing: String,
    slots: BTreeMap<u64, String>,
}

impl Program {
    /// `None` without `objdump`.
    fn read(path: &std::path::Path) -> Option<Self> {
        let run = |arguments: &[&str]| {
            let output = Command::new("objdump").args(arguments).arg(path).output().ok()?;
            Some(String::from_utf8_lossy(&output.stdout).into_owned())
        };
        let listing = run(&["--disassemble", "--demangle", "--no-show-raw-insn", "--section=.text"])?;
        Some(Self::new(listing, &run(&["--dynamic-reloc"])?))
    }

    /// Slots are relocated to an address ("*ABS*+0x1234") or a name ("memcpy@GLIBC_2.14").
    fn new(listing: String, relocations: &str) -> Self {
        let functions: BTreeMap<u64, &str> = listing.lines().filter_map(heading).collect();
        let slot = |line: &str| {
            let mut words = line.split_whitespace();
            let at = hex(words.next()?)?;
            let value = words.nth(1)?;
            let name = match value.strip_prefix("*ABS*+0x") {
                Some(address) => (*functions.get(&hex(address)?)?).to_owned(),
                None => value.split('@').next()?.to_owned(),
            };
            Some((at, normalized(&name)))
        };
        let slots = relocations.lines().filter_map(slot).collect();
        Program { listing, slots }
    }

    /// The functions that each `enter` refers to, by the function's name with its address.
    fn calls_of_doors(&self) -> BTreeMap<String, Vec<String>> {
        let mut doors = BTreeMap::new();
        let mut door: Option<String> = None;
        for line in self.listing.lines() {
            if let Some((address, name)) = heading(line) {
                let name = normalized(name);
                let is_door = DOORS.iter().any(|end| name.contains(end));
                door = is_door.then(|| format!("{name} at {address:x}"));
                doors.extend(door.clone().map(|door| (door, Vec::new())));
            } else if let (Some(door), Some(target)) = (&door, self.target(line)) {
                let own = door.split(" at ").next().unwrap_or_default();
                if target.split("+0x").next() != Some(own) {
                    doors.entry(door.clone()).or_default().push(target);
                }
            }
        }
        doors
    }

    /// Where this line calls or jumps to, or the function whose address it loads:
    /// "call 1234 <name>", "jne 1234 <name+0x10>", "call *0x12(%rip) # 5678 <slot>", "mov 0x12(%rip),%rbp # 5678 <slot>".
    fn target(&self, line: &str) -> Option<String> {
        let instruction = line.split('\t').nth(1)?.trim();
        if let Some((_, slot)) = instruction.split_once("# ") {
            return self.slots.get(&hex(slot.split(' ').next()?)?).cloned();
        }
        let (operation, operand) = instruction.split_once(' ')?;
        let is_transfer = operation == "call" || operation.starts_with('j');
        let name = operand.split_once('<')?.1.strip_suffix('>')?;
        is_transfer.then(|| normalized(name))
    }
}

/// "0000000000012340 <isonorm::...::enter>:"
fn heading(line: &str) -> Option<(u64, &str)> {
    let (address, name) = line.strip_suffix(">:")?.split_once(" <")?;
    Some((hex(address)?, name))
}

fn hex(digits: &str) -> Option<u64> {
    u64::from_str_radix(digits, 16).ok()
}

/// One spelling for both manglings: `<a::B>::c` and `a::B::c`, without hashes.
fn normalized(name: &str) -> String {
    let name = name.split("::h").next().unwrap_or(name).trim_start_matches("_<").trim_start_matches('<');
    name.replace("Avx2::run", "Avx2>::run").replace("Avx512::run", "Avx512>::run")
}

fn is_allowed(call: &str) -> bool {
    ALLOWED.iter().any(|allowed| call.contains(allowed))
}

/// Makes the linker keep every kernel.
fn use_everything() {
    let x = [1.0f32; 40];
    RmsNorm::new(40).forward(&x, &mut [0.0f32; 40]).expect("valid");
    LayerNorm::new(40).forward(&x, &mut [0.0f32; 40]).expect("valid");
    let (x, mut y) = (Planes::channels_first(&x, 4, 5), [0.0f32; 40]);
    GroupNorm::new(2, 4).forward(x, PlanesMut::channels_first(&mut y, 4, 5)).expect("valid");
    BatchNorm::new(4).train(PlaneIo::new(x, PlanesMut::channels_first(&mut y, 4, 5)), None).expect("valid");
    let io = PlaneIo::in_place(PlanesMut::channels_last(&mut y, 4, 5));
    BatchNorm::new(4).evaluate(io, &[0.0f32; 4], &[1.0f32; 4]).expect("valid");
    let (mut dx, mut gradient) = ([0.0f32; 40], [0.0f32; 4]);
    let io = PlaneBackwardIo::new(x, x, PlanesMut::channels_first(&mut dx, 4, 5));
    GroupNorm::new(2, 4).backward(io.dweight(&mut gradient)).expect("valid");
    let io = PlaneBackwardIo::new(x, x, PlanesMut::channels_first(&mut dx, 4, 5));
    BatchNorm::new(4).train_backward(io.dbias(&mut gradient)).expect("valid");
    let values = [1.0f32; 40];
    for shard in [RmsNorm::new(40).shard(0..40), LayerNorm::new(40).shard(0..40)] {
        let shard = shard.expect("columns");
        shard.measure(&values).expect("rows").partial().expect("a round");
        shard.correlate(&values, &values, &[Stats::<f32>::default()]).expect("rows");
    }
    BatchNorm::new(4)
        .shard(0)
        .measure(Planes::channels_first(&values, 4, 5))
        .expect("planes")
        .partial()
        .expect("a round");
}

#[test]
#[cfg_attr(debug_assertions, ignore = "of the release build: ./test shipped")]
fn the_hot_loops_hold_no_calls() {
    use_everything();
    let program = std::env::current_exe().expect("the path of this test");
    let Some(program) = Program::read(&program) else {
        println!("skipped: there is no objdump (binutils) here");
        return;
    };
    let doors = program.calls_of_doors();
    for end in DOORS {
        let found = doors.keys().filter(|door| door.contains(end)).count();
        println!("{found} functions {end}");
        assert!(found >= 20, "{found} functions {end}: their names have changed, and nothing is checked");
    }
    let mut unexpected = BTreeMap::new();
    for (door, calls) in &doors {
        for call in calls.iter().filter(|call| !is_allowed(call)) {
            unexpected.entry(call).or_insert_with(Vec::new).push(door);
        }
    }
    for (call, doors) in &unexpected {
        println!("{} calls of {call}, the first in {}", doors.len(), doors[0]);
    }
    assert!(unexpected.is_empty(), "{} un-inlined functions in the hot loops", unexpected.len());
}

#[test]
fn a_call_would_be_seen() {
    let listing = "\
0000000000001000 <isonorm::isa::avx2::Avx2::run::enter>:
    1000:\tvaddps %ymm0,%ymm1,%ymm0
    1004:\tcall   2000 <half::leftover::convert>
    1009:\tjmp    1000 <isonorm::isa::avx2::Avx2::run::enter+0x4>
    100c:\tcall   3000 <core::panicking::panic_fmt>
    1010:\tjne    2000 <half::leftover::convert>
    1014:\tcall   *0x1234(%rip)        # 5000 <_DYNAMIC+0x260>
    1018:\tmov    0x1234(%rip),%rbp        # 5008 <_DYNAMIC+0x268>
    101c:\tvmovaps 0x1234(%rip),%ymm0        # 6000 <.LCPI0>
0000000000002000 <half::leftover::convert>:
    2000:\tcall   4000 <other>
";
    let relocations = "\
0000000000005000 R_X86_64_RELATIVE  *ABS*+0x0000000000002000
0000000000005008 R_X86_64_GLOB_DAT  memcpy@GLIBC_2.14
";
    let doors = Program::new(listing.to_owned(), relocations).calls_of_doors();
    let calls: Vec<&str> = doors.values().flatten().map(String::as_str).collect();
    let convert = "half::leftover::convert";
    assert_eq!(calls, [convert, "core::panicking::panic_fmt", convert, convert, "memcpy"]);
}
