//! Any number of threads, any pool, and results written past the caches.

use std::sync::atomic::{AtomicUsize, Ordering};

use isonorm::{Cpu, Io, Level, Pool};
use isonorm_testing::DType;
use isonorm_testing::values::Kind;

use crate::support::{Norm, Saved, Tensor, Which, assert_same_bits, one, scalar};

/// 520 rows of 1000: enough for eight threads.
fn work(which: Which, dtype: DType) -> (Norm, Tensor) {
    let hidden = 1000;
    let row = Tensor::values(dtype, Kind::Normal, 1, 71 * hidden);
    let x = row.gather((0..520 * hidden).map(|at| at % (71 * hidden)));
    (Norm { weight: Some(Tensor::values(dtype, Kind::Normal, 2, hidden)), ..Norm::new(which, hidden) }, x)
}

/// Threads of the standard library; counts the calls of `work`.
struct OwnThreads {
    threads: usize,
    calls: AtomicUsize,
}

impl OwnThreads {
    fn new(threads: usize) -> Self {
        OwnThreads { threads, calls: AtomicUsize::new(0) }
    }
}

impl Pool for OwnThreads {
    fn threads(&self) -> usize {
        self.threads
    }
    fn run(&self, threads: usize, work: &(dyn Fn() + Sync)) {
        assert!(threads <= self.threads, "{threads} threads of {}", self.threads);
        std::thread::scope(|scope| {
            for _ in 0..threads {
                self.calls.fetch_add(1, Ordering::Relaxed);
                scope.spawn(work);
            }
        });
    }
}

/// Says that it has threads and makes this many calls on the caller's.
struct Calls(usize);

impl Pool for Calls {
    fn threads(&self) -> usize {
        8
    }
    fn run(&self, _: usize, work: &(dyn Fn() + Sync)) {
        (0..self.0).for_each(|_| work());
    }
}

#[test]
fn one_to_eight_threads_give_the_same_bits() {
    for (which, dtype) in [(Which::Rms, DType::F32), (Which::Layer, DType::Bf16), (Which::Layer, DType::F64)] {
        let (norm, x) = work(which, dtype);
        let expected = norm.forward(scalar(), &x, dtype);
        let mut one_thread = Saved::new(dtype, 520);
        let mut y = Tensor::sentinel(dtype, x.len());
        let io = Io::new(x.slice(), y.slice_mut()).stats(one_thread.stats_mut());
        norm.apply(scalar(), io).expect("valid");
        for level in Level::available() {
            for threads in 1..=8 {
                let label = format!("{norm}, {dtype:?}, {threads} threads, level {level}");
                let (mut y, mut saved) = (Tensor::sentinel(dtype, x.len()), Saved::new(dtype, 520));
                let io = Io::new(x.slice(), y.slice_mut()).stats(saved.stats_mut());
                norm.apply(Cpu::new().threads(threads).level(level), io).expect("valid");
                assert_same_bits(&label, norm.hidden, &expected, &y);
                assert_eq!(saved, one_thread, "{label}");
            }
        }
    }
}

#[test]
fn in_place_and_residual_adds_are_split_the_same_way() {
    let (norm, x) = work(Which::Rms, DType::F32);
    let residual = x.gather((0..x.len()).rev());
    let expected = norm.forward(scalar(), &x, DType::F32);
    let (mut kept, mut out) = (residual.clone(), x.clone());
    norm.apply(scalar(), Io::add_in_place(out.slice_mut(), kept.slice_mut())).expect("valid");
    for threads in 1..=8 {
        let cpu = Cpu::new().threads(threads);
        let mut y = x.clone();
        norm.apply(cpu, Io::in_place(y.slice_mut())).expect("valid");
        assert_same_bits(&format!("in place, {threads} threads"), norm.hidden, &expected, &y);
        let (mut r, mut y) = (residual.clone(), x.clone());
        norm.apply(cpu, Io::add_in_place(y.slice_mut(), r.slice_mut())).expect("valid");
        assert_same_bits(&format!("r, {threads} threads"), norm.hidden, &kept, &r);
        assert_same_bits(&format!("add in place, {threads} threads"), norm.hidden, &out, &y);
    }
}

#[test]
fn a_callers_pool_gives_the_same_bits_however_often_it_calls() {
    let (norm, x) = work(Which::Layer, DType::F32);
    let expected = norm.forward(scalar(), &x, DType::F32);
    for threads in 1..=8 {
        let pool = OwnThreads::new(threads);
        let y = norm.forward(Cpu::new().pool(&pool), &x, DType::F32);
        assert_same_bits(&format!("a pool of {threads}"), norm.hidden, &expected, &y);
        let calls = pool.calls.into_inner();
        assert!(if threads == 1 { calls <= 1 } else { (2..=threads).contains(&calls) }, "{calls} calls of {threads}");
    }
    for calls in [0, 1, 2, 30] {
        let pool = Calls(calls);
        let y = norm.forward(Cpu::new().pool(&pool), &x, DType::F32);
        assert_same_bits(&format!("a pool that calls {calls} times"), norm.hidden, &expected, &y);
    }
}

#[test]
fn a_pool_is_asked_for_no_more_threads_than_the_call_allows() {
    let (norm, x) = work(Which::Rms, DType::F32);
    let pool = OwnThreads::new(8);
    norm.forward(Cpu::new().pool(&pool).threads(3), &x, DType::F32);
    assert!((2..=3).contains(&pool.calls.into_inner()));
}

#[test]
fn a_small_input_stays_on_the_callers_thread() {
    let pool = OwnThreads::new(8);
    let x = Tensor::values(DType::F32, Kind::Normal, 1, 4096);
    Norm::new(Which::Rms, 4096).forward(Cpu::new().pool(&pool), &x, DType::F32);
    Norm::new(Which::Rms, 64).forward(Cpu::new().pool(&pool), &x, DType::F32);
    assert_eq!(pool.calls.into_inner(), 0, "calls for 16 KiB");
}

#[test]
fn one_huge_row_has_the_same_bits_on_any_number_of_threads() {
    let n = 1_500_007;
    let some = Tensor::values(DType::F32, Kind::Normal, 3, 5003);
    let x = some.gather((0..n).map(|at| at % 5003));
    for which in [Which::Rms, Which::Layer] {
        let norm = Norm::new(which, n);
        let expected = norm.oracle(&x, DType::F32).y;
        for threads in [1, 2, 3, 8] {
            let y = norm.forward(Cpu::new().threads(threads), &x, DType::F32);
            assert_same_bits(&format!("{norm}, {threads} threads"), n, &expected, &y);
        }
    }
}

/// At least 16 MiB of y, in rows of odd length so that every alignment occurs, against the same rows in small calls.
fn check_streamed(which: Which, x_type: DType, y_type: DType, level: Level, threads: usize, y_at: usize) {
    let (hidden, distinct) = (1001, 61);
    let some = Tensor::values(x_type, Kind::Normal, 7, distinct * hidden);
    let rows = (17 << 20) / (hidden * y_type.digits() / 2) + 1;
    let x = some.gather((0..rows * hidden).map(|at| at % (distinct * hidden)));
    let norm = Norm { weight: Some(Tensor::values(x_type, Kind::Normal, 2, hidden)), ..Norm::new(which, hidden) };
    let expected = norm.forward(scalar(), &some, y_type);
    let mut y = Tensor::sentinel(y_type, y_at + rows * hidden);
    let cpu = Cpu::new().threads(threads).level(level);
    norm.apply(cpu, Io::new(x.slice(), y.part_mut(y_at, rows * hidden))).expect("valid");
    for r in 0..rows {
        let row = y.gather(y_at + r * hidden..y_at + (r + 1) * hidden);
        let at = r % distinct * hidden;
        let label = format!(
            "{norm}, {x_type:?} to {y_type:?}, row {r} of {rows}, y at {y_at}, level {level}, {threads} threads"
        );
        assert_same_bits(&label, hidden, &expected.gather(at..at + hidden), &row);
    }
}

#[test]
fn results_larger_than_the_caches_have_the_same_bits() {
    for level in Level::available() {
        check_streamed(Which::Rms, DType::F32, DType::F32, level, 1, 0);
        check_streamed(Which::Layer, DType::F32, DType::F32, level, 2, 1);
        check_streamed(Which::Layer, DType::F64, DType::F64, level, 1, 1);
    }
    let best = Level::detect();
    check_streamed(Which::Rms, DType::Bf16, DType::Bf16, best, 2, 1);
    check_streamed(Which::Layer, DType::F16, DType::F16, best, 1, 3);
    check_streamed(Which::Rms, DType::F32, DType::Bf16, best, 2, 0);
    check_streamed(Which::Rms, DType::Bf16, DType::F32, best, 1, 5);
}

/// At least 16 MiB of r and y, in rows of odd length, against the same rows in a small call.
fn check_large_add(dtype: DType, kind: Kind, level: Level, threads: usize) {
    let (hidden, distinct) = (1001, 61);
    let rows = (17 << 20) / (hidden * dtype.digits() / 2) + 1;
    let [x, residual] = [1, 2].map(|seed| Tensor::values(dtype, kind, seed, distinct * hidden));
    let norm = Norm::new(Which::Rms, hidden);
    let add = |cpu, x: &Tensor, residual: &Tensor| {
        let [mut r, mut y] = [0; 2].map(|_| Tensor::sentinel(dtype, x.len()));
        norm.apply(cpu, Io::add(x.slice(), residual.slice(), r.slice_mut(), y.slice_mut())).expect("valid");
        (r, y)
    };
    let (r_small, y_small) = add(one(Level::Scalar), &x, &residual);
    let places = || (0..rows * hidden).map(|at| at % (distinct * hidden));
    let (x, residual) = (x.gather(places()), residual.gather(places()));
    let (r, y) = add(Cpu::new().level(level).threads(threads), &x, &residual);
    let label = format!("{dtype:?}, {kind:?}, level {level}, {threads} threads");
    assert_same_bits(&format!("r, {label}"), hidden, &r_small.gather(places()), &r);
    assert_same_bits(&format!("y, {label}"), hidden, &y_small.gather(places()), &y);
}

/// Rows of hostile values come under the range rule here and there, between rows that do not.
#[test]
fn a_large_residual_add_has_the_same_bits() {
    for dtype in [DType::F32, DType::Bf16] {
        for kind in [Kind::Normal, Kind::Hostile] {
            check_large_add(dtype, kind, Level::detect(), 1);
            check_large_add(dtype, kind, Level::detect(), 2);
        }
    }
    #[cfg(target_arch = "x86_64")]
    if Level::Avx2.is_available() {
        check_large_add(DType::Bf16, Kind::Normal, Level::Avx2, 1);
    }
}
