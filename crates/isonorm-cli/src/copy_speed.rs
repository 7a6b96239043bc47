//! This machine's copy speed: the limit of anything that reads and writes memory once.

use std::sync::Barrier;
use std::time::{Duration, Instant};

use crate::summary::cores;

/// Long enough to be steady, short enough not to be noticed.
const BUDGET: Duration = Duration::from_millis(20);

/// Bytes read plus written in a second by `copy_from_slice` of `bytes` bytes, shared by `threads` threads, but no
/// more than there are cores: others would wait for one. Nothing where the memory for it cannot be had.
pub(crate) fn measure(bytes: usize, threads: usize) -> Option<f64> {
    let threads = threads.clamp(1, cores());
    let part = (bytes / threads).max(1);
    let pairs: Vec<(Vec<u8>, Vec<u8>)> =
        (0..threads).map(|_| Some((filled(part)?, filled(part)?))).collect::<Option<_>>()?;
    let barrier = Barrier::new(threads);
    let times: Vec<f64> = std::thread::scope(|scope| {
        let barrier = &barrier;
        let copy = |(from, mut to): (Vec<u8>, Vec<u8>)| scope.spawn(move || seconds_per_copy(&from, &mut to, barrier));
        let copiers: Vec<_> = pairs.into_iter().map(copy).collect();
        copiers.into_iter().filter_map(|copier| copier.join().ok()).collect()
    });
    let slowest = times.into_iter().fold(f64::MIN_POSITIVE, f64::max);
    Some(2.0 * (part * threads) as f64 / slowest)
}

fn filled(len: usize) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    bytes.try_reserve_exact(len).ok()?;
    bytes.resize(len, 1);
    Some(bytes)
}

/// The best of the copies that fit the budget, after one that warms up.
fn seconds_per_copy(from: &[u8], to: &mut [u8], barrier: &Barrier) -> f64 {
    let repeats = repeats(from, to);
    barrier.wait();
    let (start, mut best) = (Instant::now(), f64::INFINITY);
    while best.is_infinite() || start.elapsed() < BUDGET {
        let once = Instant::now();
        for _ in 0..repeats {
            to.copy_from_slice(std::hint::black_box(from));
            std::hint::black_box(&mut *to);
        }
        best = best.min(once.elapsed().as_secs_f64() / f64::from(repeats));
    }
    best
}

/// So many copies that a clock reading does not count.
fn repeats(from: &[u8], to: &mut [u8]) -> u32 {
    let once = Instant::now();
    to.copy_from_slice(std::hint::black_box(from));
    std::hint::black_box(&mut *to);
    let seconds = once.elapsed().as_secs_f64().max(1e-8);
    (20e-6 / seconds).clamp(1.0, 1000.0) as u32
}
