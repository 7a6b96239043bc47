//! Where a norm runs: its level, its threads, and whose threads they are.

#[cfg(feature = "threads")]
use std::hint::spin_loop;
#[cfg(feature = "threads")]
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;

use crate::error::Error;
use crate::level::Level;

/// Threads that a norm may use: a program's own pool instead of rayon's.
pub trait Pool: Sync {
    /// The most threads that `run` can use.
    fn threads(&self) -> usize;
    /// Calls `work` once on each of up to `threads` threads, the caller's among them if it likes, and
    /// returns when every call has returned. The calls share the work among themselves, so fewer calls
    /// (at least one) are right too, only slower.
    fn run(&self, threads: usize, work: &(dyn Fn() + Sync));
}

/// Where a norm runs. The default is the level that `ISONORM_LEVEL` names or the CPU's best, and all cores.
#[derive(Clone, Copy, Default)]
pub struct Cpu<'a> {
    level: Option<Level>,
    threads: Option<usize>,
    pool: Option<&'a dyn Pool>,
}

impl<'a> Cpu<'a> {
    /// The default.
    #[inline]
    pub const fn new() -> Self {
        Cpu { level: None, threads: None, pool: None }
    }
    /// At most this many threads, at least 1.
    #[inline]
    pub const fn threads(mut self, threads: usize) -> Self {
        self.threads = Some(threads);
        self
    }
    /// This instruction set.
    #[inline]
    pub const fn level(mut self, level: Level) -> Self {
        self.level = Some(level);
        self
    }
    /// A pool of the caller's.
    #[inline]
    pub const fn pool(mut self, pool: &'a dyn Pool) -> Self {
        self.pool = Some(pool);
        self
    }

    /// The level, of a `Cpu` that makes sense.
    #[inline]
    pub(crate) fn chosen_level(&self) -> Result<Level, Error> {
        if self.threads == Some(0) {
            return Err(Error::NoThreads);
        }
        match self.level {
            Some(level) => level.checked(),
            None => Level::from_environment(),
        }
    }
}

impl std::fmt::Debug for Cpu<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Cpu { level, threads, pool } = self;
        write!(f, "Cpu {{ level: {level:?}, threads: {threads:?}, pool: {} }}", pool.is_some())
    }
}

/// Work that can be cut in two.
pub(crate) trait Job: Send + Sized {
    /// Whether results of pieces are merged, which costs a thread more where another one has computed them: few large
    /// pieces, of 2^k units and smaller towards the end, instead of many (LayerNorm 2048 x 4096 f32 with the gradients
    /// of weight and bias took 2.6 ms in 64 pieces on two threads).
    const MERGES: bool = false;
    /// Units of work left: rows, or channels.
    fn units(&self) -> usize;
    /// The first `units` units, and the rest.
    fn split(self, units: usize) -> (Self, Self);
    /// Does all of it.
    fn run(&mut self);
}

/// Bytes of a call below which waking a thread costs more than it brings: 32 rows of 4096 f32 took 12 us on
/// one thread and 22 us on two of which one had slept (Zen 5, November 2026); called from a thread of the pool, whose
/// other thread is awake, 12.4 and 13.3 us (Intel Xeon); forward and backward together 68 and 90 us. Threads that spin
/// between calls would do better.
const ALONE: usize = 2 << 20;
/// Bytes that are worth a thread more, from there on.
const WORTH_A_THREAD: usize = 128 << 10;
/// Bytes of the pieces that threads take in turn, so that a late thread leaves its share to the others.
const PIECE: usize = 256 << 10;
/// Pieces for a thread at most: at the end of each it waits for what it wrote past the caches.
const PIECES: usize = 32;

/// Whether a call of `bytes` bytes stays on its thread.
pub(crate) fn is_alone(bytes: usize) -> bool {
    bytes < ALONE
}

/// Runs `job`, of `bytes` bytes, over the threads of `cpu`.
pub(crate) fn run<J: Job>(cpu: &Cpu<'_>, mut job: J, bytes: usize) {
    let units = job.units();
    let useful = if is_alone(bytes) { 1 } else { (bytes / WORTH_A_THREAD).min(units) };
    let threads = if useful > 1 { pool_threads(cpu).min(useful) } else { 1 };
    if threads <= 1 {
        return job.run();
    }
    let pieces = (bytes / PIECE).min(PIECES * threads).clamp(2 * threads, units.max(2 * threads));
    let piece = units.div_ceil(pieces).max(1);
    let rest = Mutex::new(Some(job));
    let caller = thread::current().id();
    let work = || {
        // One pass after the other leaves a thread the same half, which its own cache still has.
        let from_end = !J::MERGES && thread::current().id() != caller;
        while let Some(mut piece) = next(&rest, piece, threads, from_end) {
            piece.run();
        }
    };
    match cpu.pool {
        Some(pool) => pool.run(threads, &work),
        None => own_pool(threads, &work),
    }
    work(); // whatever a pool that made no call has left
}

fn next<J: Job>(rest: &Mutex<Option<J>>, piece: usize, threads: usize, from_end: bool) -> Option<J> {
    let mut rest = rest.lock().unwrap_or_else(PoisonError::into_inner);
    let job = rest.take()?;
    let share = job.units() / (2 * threads);
    let piece = if J::MERGES && share > piece { 1 << share.ilog2() } else { piece };
    if job.units() <= piece {
        return Some(job);
    }
    let at = if from_end { job.units() - piece } else { piece };
    let (first, last) = job.split(at);
    let (piece, others) = if from_end { (last, first) } else { (first, last) };
    *rest = Some(others);
    Some(piece)
}

fn pool_threads(cpu: &Cpu<'_>) -> usize {
    let most = match cpu.pool {
        Some(pool) => pool.threads(),
        None => own_threads(),
    };
    cpu.threads.map_or(most, |threads| if cpu.pool.is_some() { threads.min(most) } else { threads })
}

#[cfg(feature = "threads")]
fn own_threads() -> usize {
    rayon::current_num_threads()
}

#[cfg(feature = "threads")]
fn own_pool(threads: usize, work: &(dyn Fn() + Sync)) {
    let running = AtomicUsize::new(threads - 1);
    rayon::in_place_scope(|scope| {
        for _ in 1..threads {
            scope.spawn(|_| {
                work();
                running.fetch_sub(1, Ordering::Release);
            });
        }
        work();
        // A thread of the pool has other work to look for; any other would go to sleep now, and be woken late.
        if rayon::current_thread_index().is_none() {
            spin_until_done(&running);
        }
    });
}

/// Turns of a thread that waits for the last pieces of the others: some 50 microseconds, then it sleeps.
#[cfg(feature = "threads")]
const SPINS: usize = 1500;
/// Turns from a thread's end of work to rayon's knowing of it.
#[cfg(feature = "threads")]
const GRACE: usize = 10;

#[cfg(feature = "threads")]
fn spin_until_done(running: &AtomicUsize) {
    let is_done = (0..SPINS).any(|_| {
        spin_loop();
        running.load(Ordering::Acquire) == 0
    });
    if is_done {
        (0..GRACE).for_each(|_| spin_loop());
    }
}

#[cfg(not(feature = "threads"))]
fn own_threads() -> usize {
    1
}

#[cfg(not(feature = "threads"))]
fn own_pool(_: usize, work: &(dyn Fn() + Sync)) {
    work();
}

/// Bytes from which a result is written past the caches: beyond a last-level cache's share.
const BEYOND_THE_CACHES: usize = 16 << 20;

/// Whether an output of `bytes` bytes is worth streaming.
pub(crate) fn is_beyond_the_caches(bytes: usize) -> bool {
    bytes >= BEYOND_THE_CACHES
}
