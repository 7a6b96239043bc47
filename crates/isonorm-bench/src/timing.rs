//! How it is measured: every contestant of a cell once per round, the order alternated, so that
//! what the machine does meanwhile falls on all of them alike.

use std::hint::{black_box, spin_loop};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use serde::Serialize;

use crate::memory::Outputs;

/// A sample repeats the call until it lasts about this long.
const SAMPLE: Duration = Duration::from_millis(1);

/// What a contestant is in the comparison.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Role {
    /// A copy of as many streams as the operation has.
    Copy,
    /// The inputs only read.
    Read,
    /// The operation, minimal, summed in any order.
    Loop,
    /// A loop of less arithmetic than the operation's, or of more than the yardstick's.
    OtherLoop,
    Isonorm,
    /// isonorm too, called from a thread of the pool whose threads it uses.
    IsonormInPool,
    Peer,
}

type Sample<'a> = Box<dyn FnMut(usize, &mut Outputs) -> Duration + 'a>;

/// One thing that is timed: `run(calls, outputs)` returns how long `calls` calls took.
pub(crate) struct Contestant<'a> {
    pub(crate) name: String,
    pub(crate) role: Role,
    pub(crate) run: Sample<'a>,
}

/// A contestant's microseconds per call: the median and the least of the rounds.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Timed {
    pub(crate) name: String,
    pub(crate) role: Role,
    pub(crate) median_us: f64,
    pub(crate) min_us: f64,
    pub(crate) calls_per_sample: usize,
}

/// Times all of them, `rounds` times.
pub(crate) fn measure(contestants: &mut [Contestant<'_>], outputs: &mut Outputs, rounds: usize) -> Vec<Timed> {
    let calls: Vec<usize> = contestants.iter_mut().map(|contestant| calibrate(contestant, outputs)).collect();
    let mut times = vec![Vec::with_capacity(rounds); contestants.len()];
    for round in 0..rounds {
        for turn in 0..contestants.len() {
            let i = position(round, turn, contestants.len());
            // Whatever the one before left in the caches, in its threads and on the way to memory.
            (contestants[i].run)(calls[i].div_ceil(8), outputs);
            let elapsed = (contestants[i].run)(calls[i], outputs);
            times[i].push(microseconds(elapsed) / calls[i] as f64);
        }
    }
    contestants
        .iter()
        .zip(times)
        .zip(calls)
        .map(|((contestant, times), calls_per_sample)| Timed {
            name: contestant.name.clone(),
            role: contestant.role,
            median_us: rounded(median(&times)),
            min_us: rounded(times.iter().copied().fold(f64::INFINITY, f64::min)),
            calls_per_sample,
        })
        .collect()
}

/// Forwards in even rounds, backwards in odd ones, a different first every two rounds.
fn position(round: usize, turn: usize, len: usize) -> usize {
    let turn = if round.is_multiple_of(2) { turn } else { len - 1 - turn };
    (turn + round / 2) % len
}

fn calibrate(contestant: &mut Contestant<'_>, outputs: &mut Outputs) -> usize {
    let once = (0..3).map(|_| (contestant.run)(1, outputs)).min().unwrap_or_default();
    let few = (SAMPLE.as_nanos() / 10 / once.as_nanos().max(20)).clamp(1, 5_000) as usize;
    let each = (contestant.run)(few, outputs).as_nanos().max(1) / few as u128;
    (SAMPLE.as_nanos() / each.max(10)).clamp(1, 100_000) as usize
}

/// The middle value; of an even number the mean of the middle two.
pub(crate) fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let half = sorted.len() / 2;
    match sorted.len() {
        0 => f64::NAN,
        n if n.is_multiple_of(2) => (sorted[half - 1] + sorted[half]) / 2.0,
        _ => sorted[half],
    }
}

/// To a tenth of a nanosecond.
fn rounded(us: f64) -> f64 {
    (us * 1e4).round() / 1e4
}

fn microseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1e6
}

/// How long `calls` calls take on this thread.
pub(crate) fn repeat(calls: usize, mut call: impl FnMut()) -> Duration {
    let start = Instant::now();
    for _ in 0..calls {
        black_box(&mut call)();
    }
    start.elapsed()
}

/// How long `calls` calls take when each thread does its part of every call: the threads are
/// there before the clock starts and spin between the calls, the cheapest hand-over there is.
pub(crate) fn repeat_on_threads<F: FnMut() + Send>(calls: usize, parts: Vec<F>) -> Duration {
    let mut parts = parts.into_iter();
    let Some(mut mine) = parts.next() else {
        return Duration::ZERO;
    };
    let helpers = parts.len();
    let (ready, begun, done) = (Counter::default(), Counter::default(), Counter::default());
    thread::scope(|scope| {
        for mut part in parts {
            let (ready, begun, done) = (&ready, &begun, &done);
            scope.spawn(move || {
                ready.add();
                for call in 1..=calls {
                    begun.wait_for(call);
                    black_box(&mut part)();
                    done.add();
                }
            });
        }
        ready.wait_for(helpers);
        let start = Instant::now();
        for call in 1..=calls {
            begun.add();
            black_box(&mut mine)();
            done.wait_for(call * helpers);
        }
        start.elapsed()
    })
}

/// A count that threads wait for, on cache lines of its own.
#[derive(Default)]
#[repr(align(128))]
struct Counter(AtomicUsize);

impl Counter {
    fn add(&self) {
        self.0.fetch_add(1, Ordering::Release);
    }

    /// Spins; on a machine with other work on all its cores, gives way to it after a while.
    fn wait_for(&self, count: usize) {
        let mut spins = 0u32;
        while self.0.load(Ordering::Acquire) < count {
            spin_loop();
            spins += 1;
            if spins.is_multiple_of(1 << 14) {
                thread::yield_now();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_round_visits_every_contestant_once() {
        for len in 1..9 {
            for round in 0..20 {
                let mut seen: Vec<usize> = (0..len).map(|turn| position(round, turn, len)).collect();
                seen.sort_unstable();
                assert_eq!(seen, (0..len).collect::<Vec<_>>(), "round {round} of {len}");
            }
        }
    }

    #[test]
    fn the_median_of_an_even_number_is_between_the_middle_two() {
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), 2.5);
        assert_eq!(median(&[9.0, 1.0, 2.0]), 2.0);
    }

    #[test]
    fn threads_do_every_call_once_each() {
        let count = AtomicUsize::new(0);
        let parts: Vec<_> = (0..2).map(|_| || _ = count.fetch_add(1, Ordering::Relaxed)).collect();
        repeat_on_threads(1000, parts);
        assert_eq!(count.into_inner(), 2000);
    }
}
