//! `isonorm verify`: the golden cases on every level of this machine, bit for bit.
//!
//! The cases are part of the program, so an installed copy needs no other file.

mod case;
mod check;
mod gradients;
mod norms;
mod own;
mod shared;

use std::collections::BTreeMap;
use std::fmt;
use std::io::{self, Write};
use std::path::Path;

use isonorm::Level;
use serde::Serialize;

use crate::args::Verify;
use crate::error::{Error, Result};
use case::Case;

/// One line of the table: a norm and a type of x.
type Group = (String, String);

/// What came of the cases of one group on one level.
#[derive(Debug, Default, Clone, Serialize)]
struct Tally {
    cases: usize,
    failed: usize,
}

/// A case that differs, in words.
#[derive(Debug, Serialize)]
struct Difference {
    level: String,
    case: String,
    what: String,
}

/// Runs all cases on all levels, prints the table, and fails on any differing bit.
pub(crate) fn run(args: &Verify) -> Result<()> {
    let cases = cases()?;
    let levels: Vec<Level> = match args.level {
        Some(level) => vec![level],
        None => Level::available().collect(),
    };
    let (mut table, mut differences) = (BTreeMap::<Group, Vec<Tally>>::new(), Vec::new());
    for (column, level) in levels.iter().enumerate() {
        for case in &cases {
            let group = (case.group(), case.x.slice().dtype().to_string());
            let tallies = table.entry(group).or_insert_with(|| vec![Tally::default(); levels.len()]);
            tallies[column].cases += 1;
            if let Some(what) = difference(case, *level)? {
                tallies[column].failed += 1;
                differences.push(Difference { level: level.to_string(), case: case.name.clone(), what });
            }
        }
    }
    let report = Report { levels: levels.iter().map(Level::to_string).collect(), table, differences };
    report.print(args.json)?;
    match report.differences.len() {
        0 => Ok(()),
        failed => Err(Error::Verify { failed, cases: cases.len() * levels.len() }),
    }
}

/// The first difference between the library's result on a level and the golden one, in words.
fn difference(case: &Case, level: Level) -> Result<Option<String>> {
    match &case.dy {
        Some(dy) => gradients::difference(case, dy, level),
        None => check::difference(case, level),
    }
}

/// Every case that the project has.
fn cases() -> Result<Vec<Case>> {
    let broken = |error: serde_json::Error| Error::Header {
        path: Path::new("the program's own golden data").to_owned(),
        format: "golden",
        reason: error.to_string(),
        writer: "a fresh installation of isonorm",
    };
    let mut cases = own::cases().map_err(broken)?;
    cases.extend(shared::cases().map_err(broken)?);
    Ok(cases)
}

struct Report {
    levels: Vec<String>,
    table: BTreeMap<Group, Vec<Tally>>,
    differences: Vec<Difference>,
}

/// Differences printed in words; the table has the count of all.
const SHOWN: usize = 10;

impl Report {
    fn print(&self, json: bool) -> Result<()> {
        let failed = self.differences.len();
        if json {
            let line = |((norm, dtype), tallies): (&Group, &Vec<Tally>)| serde_json::json!({ "norm": norm, "dtype": dtype, "levels": self.levels.iter().zip(tallies).collect::<Vec<_>>() });
            let table: Vec<_> = self.table.iter().map(line).collect();
            return crate::print_json(&serde_json::json!({
                "equal": failed == 0, "table": table, "differences": self.differences,
            }));
        }
        let mut out = io::stdout().lock();
        let printed = write!(out, "{self}").and_then(|()| out.flush());
        printed.map_err(Error::io("write", Path::new("standard output")))
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:<26}{:<6}{:>7}", "norm", "x", "cases")?;
        self.levels.iter().try_for_each(|level| write!(f, "{level:>14}"))?;
        writeln!(f)?;
        for ((norm, dtype), tallies) in &self.table {
            write!(f, "{norm:<26}{dtype:<6}{:>7}", tallies[0].cases)?;
            for tally in tallies {
                let cell = if tally.failed == 0 { "same bits".to_owned() } else { format!("{} DIFFER", tally.failed) };
                write!(f, "{cell:>14}")?;
            }
            writeln!(f)?;
        }
        for Difference { level, case, what } in self.differences.iter().take(SHOWN) {
            writeln!(f, "{level}: {case}: {what}")?;
        }
        if self.differences.len() > SHOWN {
            writeln!(f, "and {} more", self.differences.len() - SHOWN)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_golden_data_is_read_whole() {
        let cases = cases().expect("the data is valid");
        assert!(cases.len() > 2500, "{} cases", cases.len());
        for norm in ["rms_norm", "layer_norm", "batch_norm_train", "batch_norm_eval", "group_norm"] {
            for pass in ["", " backward"] {
                assert!(cases.iter().any(|case| case.group() == format!("{norm}{pass}")), "{norm}{pass}");
            }
        }
    }

    #[test]
    fn a_changed_bit_is_found() {
        for norm in ["rms_norm", "rms_norm backward", "group_norm backward", "batch_norm_eval backward"] {
            let mut cases = cases().expect("the data is valid");
            cases.retain(|case| case.group() == norm);
            let mut case = cases.swap_remove(0);
            assert_eq!(difference(&case, Level::Scalar).expect("it runs"), None);
            for i in 0..case.expected.len() {
                case.expected[i].1.bytes_mut()[0] ^= 1;
                let what = difference(&case, Level::Scalar).expect("it runs").expect("a difference");
                assert!(what.contains(&case.expected[i].0), "{norm}: {what}");
                case.expected[i].1.bytes_mut()[0] ^= 1;
            }
        }
    }
}
