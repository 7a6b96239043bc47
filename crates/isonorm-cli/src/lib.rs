//! The program `isonorm`: normalizes tensors in files, explains norms, verifies their bits.
//!
//! It translates files and options into calls of the library [`isonorm`], which has all rules of shapes
//! and options. Files are mapped and streamed (`stream.rs`), outputs appear whole or not at all (`output.rs`),
//! and everything that can be wrong is one line on standard error (`error.rs`).

pub mod args;
mod axes;
mod bench;
mod copy_speed;
pub mod error;
pub mod explain;
mod gather;
mod gradients;
mod interrupt;
mod output;
mod planes;
mod progress;
mod rows;
mod stats;
mod stream;
mod summary;
pub mod tensor;
mod verify;

use std::fmt::{self, Display, Write as _};
use std::io::{self, Write as _};
use std::process::ExitCode;

use clap::Parser;

use args::{Cli, Command};
use rows::Kind;

/// Runs the program on its command line.
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return misuse(&error),
    };
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    tensor::map::allocate_from_one_arena();
    interrupt::watch();
    match run(cli.command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => failure(&error),
    }
}

/// Says what went wrong, and gives the exit status.
fn failure(error: &anyhow::Error) -> ExitCode {
    if is_closed_pipe(error) {
        return ExitCode::from(2); // the reader has gone: nobody to tell
    }
    say(error); // its own text alone: an error of a file has its cause in it
    ExitCode::from(error.downcast_ref::<error::Error>().map_or(2, error::Error::status))
}

fn run(command: Command) -> anyhow::Result<()> {
    match command {
        Command::RmsNorm(args) => rows::run(Kind::Rms, &args)?,
        Command::LayerNorm(args) => rows::run(Kind::Layer, &args)?,
        Command::BatchNorm(args) => planes::batch(&args)?,
        Command::GroupNorm(args) => planes::group(&args)?,
        Command::InstanceNorm(args) => planes::instance(&args)?,
        Command::Backward(args) => gradients::run(&args)?,
        Command::Explain(args) => explain::run(args)?,
        Command::Verify(args) => verify::run(&args)?,
        Command::Bench(args) => bench::run(&args)?,
    }
    Ok(())
}

/// Help and version as they are; anything else in one line.
fn misuse(error: &clap::Error) -> ExitCode {
    if !error.use_stderr() {
        let mut out = io::stdout().lock();
        let written = write!(out, "{}", error.render()).and_then(|()| out.flush());
        return match written.map_err(error::Error::io("write", std::path::Path::new("standard output"))) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => failure(&error.into()),
        };
    }
    let text = error.to_string();
    let facts = text.split("\n\nUsage:").next().unwrap_or(&text);
    let facts = facts.split("\n\nFor more information").next().unwrap_or(facts);
    let facts: Vec<&str> = facts.split_whitespace().collect();
    let facts = facts.join(" ");
    say(format_args!("{}: see isonorm --help", facts.strip_prefix("error: ").unwrap_or(&facts)));
    ExitCode::from(2)
}

fn is_closed_pipe(error: &anyhow::Error) -> bool {
    error
        .chain()
        .any(|cause| cause.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe))
}

/// One line on standard error.
pub(crate) fn say(message: impl Display) {
    let line = OneLine(message).to_string();
    let _ = writeln!(io::stderr(), "isonorm: {line}");
}

/// A text in one line: whatever a file put into a name cannot break the line, move the cursor or turn its direction.
pub(crate) struct OneLine<T>(pub(crate) T);

impl<T: Display> Display for OneLine<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for c in self.0.to_string().chars() {
            match c {
                '\n' | '\r' | '\t' => f.write_char(' ')?,
                '\u{61C}' | '\u{200E}' | '\u{200F}' | '\u{2028}'..='\u{202E}' | '\u{2066}'..='\u{2069}' => {
                    c.escape_unicode().fmt(f)?
                }
                c if c.is_control() => c.escape_default().fmt(f)?,
                c => f.write_char(c)?,
            }
        }
        Ok(())
    }
}

/// A summary for people, on standard error.
pub(crate) fn tell(summary: impl Display) {
    let _ = writeln!(io::stderr(), "{summary}");
}

/// A summary for programs, on standard output.
pub(crate) fn print_json(value: &impl serde::Serialize) -> error::Result<()> {
    let text = serde_json::to_string(value).map_err(io::Error::from);
    let mut out = io::stdout().lock();
    text.and_then(|text| writeln!(out, "{text}").and_then(|()| out.flush()))
        .map_err(error::Error::io("write", std::path::Path::new("standard output")))
}
