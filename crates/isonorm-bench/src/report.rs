//! The numbers of a run: ratios, the table, and the shape of the JSON file.

use std::fmt::Write as _;

use serde::Serialize;

use crate::cells::{Cell, Goal};
use crate::machine::Machine;
use crate::timing::{Role, Timed};

/// A whole run.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    pub(crate) machine: Machine,
    pub(crate) method: Method,
    pub(crate) peers: Vec<PeerNote>,
    pub(crate) rows: Vec<Row>,
}

/// How the numbers came about.
#[derive(Debug, Serialize)]
pub(crate) struct Method {
    pub(crate) rounds: usize,
    pub(crate) times: &'static str,
    pub(crate) buffers: &'static str,
    pub(crate) limit: &'static str,
}

/// A peer and its fastest path.
#[derive(Debug, Serialize)]
pub(crate) struct PeerNote {
    pub(crate) name: &'static str,
    pub(crate) version: &'static str,
    pub(crate) path: &'static str,
    pub(crate) training_path: Option<&'static str>,
}

/// One cell with one number of threads.
#[derive(Debug, Serialize)]
pub(crate) struct Row {
    pub(crate) name: String,
    pub(crate) cell: Cell,
    pub(crate) threads: usize,
    pub(crate) traffic_bytes: usize,
    /// BLAKE3 of isonorm's results, the same on every level and thread count.
    pub(crate) digest: String,
    pub(crate) goal_reached: bool,
    pub(crate) by_median: Ratios,
    pub(crate) by_min: Ratios,
    pub(crate) contestants: Vec<Timed>,
}

/// isonorm against the others. Absent where there is nothing to compare with.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Ratios {
    pub(crate) isonorm_us: f64,
    pub(crate) limit_us: f64,
    pub(crate) limit: String,
    /// The limit's time over isonorm's.
    pub(crate) share_of_limit: f64,
    pub(crate) loop_us: Option<f64>,
    /// isonorm's time over the loop's.
    pub(crate) times_loop: Option<f64>,
    pub(crate) best_peer: Option<String>,
    pub(crate) best_peer_us: Option<f64>,
    /// The best peer's time over isonorm's.
    pub(crate) ahead_of_peers: Option<f64>,
}

impl Ratios {
    fn new(contestants: &[Timed], time: fn(&Timed) -> f64) -> Ratios {
        let fastest = |role: Role| {
            contestants.iter().filter(|contestant| contestant.role == role).min_by(|a, b| time(a).total_cmp(&time(b)))
        };
        let isonorm_us = contestants.iter().find(|c| c.role == Role::Isonorm).map_or(f64::NAN, time);
        let limit = fastest(Role::Copy);
        let limit_us = limit.map_or(f64::NAN, time);
        let loop_us = fastest(Role::Loop).map(time);
        let best_peer = fastest(Role::Peer);
        Ratios {
            isonorm_us,
            limit_us,
            limit: limit.map_or_else(String::new, |limit| limit.name.clone()),
            share_of_limit: rounded(limit_us / isonorm_us),
            loop_us,
            times_loop: loop_us.map(|loop_us| rounded(isonorm_us / loop_us)),
            best_peer: best_peer.map(|peer| peer.name.clone()),
            best_peer_us: best_peer.map(time),
            ahead_of_peers: best_peer.map(|peer| rounded(time(peer) / isonorm_us)),
        }
    }

    fn reaches(&self, goal: Goal) -> bool {
        match goal {
            Goal::ShareOfLimit(share) => self.share_of_limit >= share,
            Goal::TimesLoop(times) => self.times_loop.is_some_and(|found| found <= times),
            Goal::AheadOfPeers => self.ahead_of_peers.is_some_and(|found| found > 1.0),
        }
    }
}

impl Row {
    pub(crate) fn new(cell: &Cell, threads: usize, digest: String, contestants: Vec<Timed>) -> Row {
        let by_median = Ratios::new(&contestants, |timed| timed.median_us);
        Row {
            name: cell.name(),
            cell: *cell,
            threads,
            traffic_bytes: cell.traffic(),
            digest,
            goal_reached: by_median.reaches(cell.goal),
            by_min: Ratios::new(&contestants, |timed| timed.min_us),
            by_median,
            contestants,
        }
    }

    /// Every contestant's median and minimum, in one line each.
    pub(crate) fn line(&self) -> String {
        let mut text = format!("  {} thread{}", self.threads, if self.threads > 1 { "s" } else { "" });
        for Timed { name, median_us, min_us, .. } in &self.contestants {
            let gigabytes = self.traffic_bytes as f64 / median_us / 1e3;
            write!(text, "\n    {name:<40} {median_us:>10.3} us  (min {min_us:>10.3})  {gigabytes:>6.1} GB/s")
                .expect("a string takes all");
        }
        text
    }

    fn table_line(&self) -> String {
        let Ratios { isonorm_us, limit_us, limit, share_of_limit, loop_us, times_loop, .. } = &self.by_median;
        let (found, goal) = match self.cell.goal {
            Goal::ShareOfLimit(share) => (format!("{share_of_limit:.2}"), format!(">= {share:.2}")),
            Goal::TimesLoop(times) => (format!("{:.2} x", times_loop.unwrap_or(f64::NAN)), format!("<= {times:.2} x")),
            Goal::AheadOfPeers => (format!("{share_of_limit:.2}"), "ahead".to_string()),
        };
        let peer = match (&self.by_median.best_peer, self.by_median.best_peer_us) {
            (Some(name), Some(us)) => format!("{} {name}", time(us)),
            _ => "-".to_string(),
        };
        format!(
            "| {} | {} | {} {} | {} | {} | {} | {} | {} | {} | {} |",
            self.name,
            self.threads,
            time(*limit_us),
            limit,
            loop_us.map_or("-".to_string(), time),
            time(*isonorm_us),
            found,
            goal,
            if self.goal_reached { "yes" } else { "NO" },
            peer,
            self.by_median.ahead_of_peers.map_or("-".to_string(), |ahead| format!("{ahead:.2} x")),
        )
    }
}

impl Report {
    pub(crate) fn new(machine: Machine, rounds: usize, rows: Vec<Row>) -> Report {
        Report {
            machine,
            method: Method {
                rounds,
                times: "microseconds per call; every round times every contestant once, the order \
                        alternating; samples of about 1 ms, or one call, after one eighth of that \
                        to warm up",
                buffers: "the same 64-byte aligned inputs for all who take slices; candle and burn \
                          copy them into tensors of their own beforehand",
                limit: "the fastest copy of as many streams; backward, the fastest exclusive or of x \
                        and dy into dx; both, the fastest pair; threads spin at a barrier",
            },
            peers: peer_notes(),
            rows,
        }
    }

    /// The table, in Markdown, with the machine under it.
    pub(crate) fn table(&self) -> String {
        let mut lines = vec![
            "| work | threads | limit, us | free-order loop, us | isonorm, us | of the limit, or \
             of the loop | to reach | reached | best native peer, us | ahead |"
                .to_string(),
            "|---|---|---|---|---|---|---|---|---|---|".to_string(),
        ];
        lines.extend(self.rows.iter().map(Row::table_line));
        let Machine { cpu, cores, caches, level, rustc, date, .. } = &self.machine;
        lines.push(format!(
            "\nMedians of {} rounds. {cpu}, {cores} cores, {}, level {level}; {rustc}; {date}.",
            self.method.rounds,
            caches.join(", "),
        ));
        let versions: Vec<&str> = self.peers.iter().map(|peer| peer.version).collect();
        if !versions.is_empty() {
            lines.push(format!("Peers: {}.", versions.join(", ")));
        }
        lines.join("\n")
    }
}

#[cfg(feature = "peers")]
fn peer_notes() -> Vec<PeerNote> {
    crate::peers::PEERS
        .iter()
        .map(|peer| PeerNote {
            name: peer.name,
            version: peer.version,
            path: peer.path,
            training_path: peer.training.as_ref().map(|training| training.path),
        })
        .collect()
}

#[cfg(not(feature = "peers"))]
fn peer_notes() -> Vec<PeerNote> {
    Vec::new()
}

/// Three digits that mean something.
fn time(us: f64) -> String {
    match us {
        us if us < 10.0 => format!("{us:.3}"),
        us if us < 1000.0 => format!("{us:.1}"),
        us => format!("{us:.0}"),
    }
}

fn rounded(ratio: f64) -> f64 {
    (ratio * 1e4).round() / 1e4
}

#[cfg(test)]
mod tests {
    use super::*;

    fn timed(name: &str, role: Role, us: f64) -> Timed {
        Timed { name: name.to_string(), role, median_us: us, min_us: us, calls_per_sample: 1 }
    }

    #[test]
    fn the_limit_is_the_fastest_copy_and_other_loops_are_no_yardstick() {
        let contestants = [
            timed("slow copy", Role::Copy, 9.0),
            timed("fast copy", Role::Copy, 6.0),
            timed("read", Role::Read, 1.0),
            timed("loop", Role::Loop, 7.0),
            timed("other loop", Role::OtherLoop, 2.0),
            timed("isonorm", Role::Isonorm, 8.0),
            timed("isonorm in a pool", Role::IsonormInPool, 5.0),
            timed("peer", Role::Peer, 12.0),
        ];
        let ratios = Ratios::new(&contestants, |timed| timed.median_us);
        assert_eq!((ratios.limit.as_str(), ratios.share_of_limit), ("fast copy", 0.75));
        assert_eq!((ratios.times_loop, ratios.ahead_of_peers), (Some(1.1429), Some(1.5)));
        assert!(ratios.reaches(Goal::ShareOfLimit(0.75)));
        assert!(!ratios.reaches(Goal::ShareOfLimit(0.76)));
        assert!(ratios.reaches(Goal::TimesLoop(1.15)));
        assert!(!ratios.reaches(Goal::TimesLoop(1.10)));
        assert!(ratios.reaches(Goal::AheadOfPeers));
        let faster_peer = contestants.map(|c| if c.role == Role::Peer { timed("peer", Role::Peer, 7.9) } else { c });
        assert!(!Ratios::new(&faster_peer, |timed| timed.median_us).reaches(Goal::AheadOfPeers));
    }
}
