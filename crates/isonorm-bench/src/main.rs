//! Times isonorm against the limits of this machine, against free-order loops and against native
//! peers, in one run whose rounds are interleaved.
//!
//! `cargo run --release -p isonorm-bench --features peers`

mod cells;
mod limits;
mod loops;
mod machine;
mod memory;
mod ours;
#[cfg(feature = "peers")]
mod peers;
mod plot;
mod reference;
mod report;
mod timing;

use std::error::Error;
use std::fs;
use std::path::{Path, PathBuf};

use clap::Parser;
use rayon::ThreadPool;

use crate::cells::{CELLS, Cell};
use crate::machine::Machine;
use crate::memory::{Inputs, Outputs, Results};
use crate::report::{Report, Row};
use crate::timing::{Contestant, Role};

/// Peers allocate their results. The system allocator returns memory of that size with every
/// drop, and its new pages cost candle and burn 4 to 8 times their own time; this one keeps it.
#[cfg(feature = "peers")]
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Times isonorm against this machine's limits, free-order loops and native peers
#[derive(Parser)]
#[command(version)]
struct Args {
    /// Five rounds, to see that everything works; the numbers are rough
    #[arg(long)]
    quick: bool,
    /// Rounds; every contestant is timed once in each
    #[arg(long, default_value_t = 31, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// Only cells whose name contains this text, in any case ("rmsnorm f32")
    #[arg(long, value_name = "FILTER", default_value = "")]
    cells: String,
    /// Thread counts
    #[arg(long, value_delimiter = ',', default_value = "1,2")]
    threads: Vec<std::num::NonZeroUsize>,
    /// Where the numbers go [default, for all cells at full length: results/ of this crate]
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Where the plot goes [default, for all cells at full length: results/ of this crate]
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
}

fn main() -> Result<(), Box<dyn Error>> {
    let args = Args::parse();
    let cells: Vec<Cell> =
        CELLS.into_iter().filter(|cell| cell.name().to_lowercase().contains(&args.cells.to_lowercase())).collect();
    if cells.is_empty() {
        let names = CELLS.map(|cell| cell.name()).join("\n  ");
        return Err(format!("no cell's name contains `{}`; there are\n  {names}", args.cells).into());
    }
    let rounds = if args.quick { 5 } else { args.rounds as usize };
    let pools = args
        .threads
        .iter()
        .map(|threads| rayon::ThreadPoolBuilder::new().num_threads(threads.get()).build())
        .collect::<Result<Vec<_>, _>>()?;
    let mut rows = Vec::new();
    for cell in &cells {
        rows.extend(measure(cell, &pools, rounds)?);
    }
    let report = Report::new(Machine::inspect(ours::level()), rounds, rows);
    println!("\n{}", report.table());
    let complete = !args.quick && cells.len() == CELLS.len();
    let results = Path::new(env!("CARGO_MANIFEST_DIR")).join("results");
    let default = |name: &str| complete.then(|| results.join(name));
    if let Some(path) = args.json.or_else(|| default("bench.json")) {
        write(&path, &serde_json::to_string_pretty(&report)?)?;
    }
    if let Some(path) = args.svg.or_else(|| default("bench.svg")) {
        write(&path, &plot::draw(&report)?)?;
    }
    Ok(())
}

/// One cell: first that everyone computes the same, then how long each takes.
fn measure(cell: &Cell, pools: &[ThreadPool], rounds: usize) -> Result<Vec<Row>, Box<dyn Error>> {
    let inputs = Inputs::new(cell);
    let mut outputs = Outputs::new(cell, &inputs);
    let threads: Vec<usize> = pools.iter().map(ThreadPool::current_num_threads).collect();
    let digest = check(cell, &inputs, &mut outputs, pools).map_err(|what| format!("{}: {what}", cell.name()))?;
    eprintln!("{}: bits {}", cell.name(), &digest[..16]);
    let mut rows = Vec::new();
    for (pool, threads) in pools.iter().zip(threads) {
        if !cell.wants_threads(threads) {
            continue;
        }
        let mut contestants = contestants(cell, &inputs, pool);
        let timed = timing::measure(&mut contestants, &mut outputs, rounds);
        let row = Row::new(cell, threads, digest.clone(), timed);
        eprintln!("{}", row.line());
        rows.push(row);
    }
    Ok(rows)
}

/// isonorm's digest, the same on every level and thread count; every other result close to it.
fn check(cell: &Cell, inputs: &Inputs, outputs: &mut Outputs, pools: &[ThreadPool]) -> Result<String, String> {
    let expected = reference::reference(cell, inputs);
    let threads: Vec<usize> = pools.iter().map(ThreadPool::current_num_threads).collect();
    let digest = ours::digest(cell, inputs, outputs, &threads)?;
    let close = |name: &str, found: &Results| {
        reference::compare(cell.dtype, found, &expected).map_err(|what| format!("{name}: {what}"))
    };
    close("isonorm", &outputs.results())?;
    for threads in &threads {
        for mut contestant in limits::contestants(cell, inputs, *threads) {
            outputs.scrub();
            (contestant.run)(1, outputs);
            if contestant.role == Role::Copy && !limits::moved(cell, inputs, outputs) {
                return Err(format!("{}: no copy", contestant.name));
            }
        }
    }
    for mut contestant in loops::contestants(cell, inputs) {
        outputs.scrub();
        (contestant.run)(1, outputs);
        close(&contestant.name, &outputs.results())?;
    }
    #[cfg(feature = "peers")]
    for pool in pools {
        for (entry, mut peer) in peers::ready(cell, inputs, pool) {
            outputs.scrub();
            let found = pool.install(|| peer.result(outputs));
            close(entry.name, &found)?;
        }
    }
    Ok(digest)
}

/// Everyone who takes part in `cell` with the threads of `pool`.
fn contestants<'a>(cell: &Cell, inputs: &'a Inputs, pool: &'a ThreadPool) -> Vec<Contestant<'a>> {
    let threads = pool.current_num_threads();
    let mut contestants = limits::contestants(cell, inputs, threads);
    contestants.extend(loops::contestants(cell, inputs));
    contestants.extend(ours::contestants(cell, inputs, pool));
    #[cfg(feature = "peers")]
    contestants
        .extend(peers::ready(cell, inputs, pool).into_iter().map(|(entry, peer)| peers::contestant(entry, peer, pool)));
    contestants
}

fn write(path: &Path, text: &str) -> Result<(), Box<dyn Error>> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder)?;
    }
    fs::write(path, text).map_err(|error| format!("{}: {error}", path.display()))?;
    eprintln!("wrote {}", path.display());
    Ok(())
}
