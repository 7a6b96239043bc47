//! A host that flushes subnormals, or rounds another way, changes no bit and finds its setting as it left it.
#![cfg(all(target_arch = "x86_64", not(miri)))]
#![allow(unsafe_code)] // sets and reads MXCSR

mod support;

use std::arch::asm;
use std::hint::black_box;

use isonorm::{
    BackwardIo, BatchNorm, Cpu, Error, Io, Level, Measuring, Partial, PlaneBackwardIo, PlaneIo, Planes, PlanesMut,
    Pool, RmsNorm, Running, Stats, rules,
};
use isonorm_testing::DType;
use isonorm_testing::oracle::{self, Eps};
use isonorm_testing::values::Kind;
use support::{BOTH, Expected, Norm, Saved, Tensor, Which, assert_same_bits, one};

const DEFAULT: u32 = 0x1F80;
const FLUSH_TO_ZERO: u32 = 1 << 15;
const DENORMALS_ARE_ZERO: u32 = 1 << 6;
const TOWARDS_ZERO: u32 = 0b11 << 13;
/// What a host may have set.
const HOSTS: [u32; 4] = [
    DEFAULT | FLUSH_TO_ZERO,
    DEFAULT | DENORMALS_ARE_ZERO,
    DEFAULT | FLUSH_TO_ZERO | DENORMALS_ARE_ZERO,
    DEFAULT | FLUSH_TO_ZERO | DENORMALS_ARE_ZERO | TOWARDS_ZERO,
];

fn read() -> u32 {
    let mut register = 0u32;
    // SAFETY: stores MXCSR into a local variable.
    unsafe { asm!("stmxcsr [{}]", in(reg) &raw mut register, options(nostack)) };
    register & !0x3F // without the sticky exception flags
}

fn write(register: u32) {
    // SAFETY: loads MXCSR with all exceptions masked and no reserved bit set.
    unsafe { asm!("ldmxcsr [{}]", in(reg) &raw const register, options(nostack)) };
}

/// What `call` returns under a host's setting, which it must leave as it was.
fn under<R>(host: u32, call: impl FnOnce() -> R) -> R {
    let before = read();
    write(host);
    let result = black_box(call());
    let after = read();
    write(before);
    assert_eq!(after, host, "the host's MXCSR was not restored");
    result
}

#[test]
fn the_settings_do_flush() {
    let tiny = black_box(f32::from_bits(1 << 20));
    assert_ne!(black_box(tiny * black_box(0.5)).to_bits(), 0);
    for host in HOSTS {
        assert_eq!(under(host, || black_box(tiny * black_box(0.5))).to_bits(), 0, "{host:x}");
    }
}

#[test]
fn what_is_refused_is_refused_under_any_setting() {
    let (x, mut y) = ([1.0f32; 4], [0.0f32; 4]);
    let (wide, mut wide_y) = ([1.0f64; 4], [0.0f64; 4]);
    for host in [DEFAULT].into_iter().chain(HOSTS) {
        let eps = under(host, || RmsNorm::new(4).eps(black_box(-1e-40)).forward(&x, &mut y));
        assert!(matches!(eps, Err(Error::Option { name: "eps", .. })), "-1e-40 under {host:x}: {eps:?}");
        let eps = under(host, || RmsNorm::new(4).eps(black_box(-1e-310)).forward(&wide, &mut wide_y));
        assert!(matches!(eps, Err(Error::Option { name: "eps", .. })), "-1e-310 under {host:x}: {eps:?}");
        let offset = under(host, || RmsNorm::new(4).weight_offset(black_box(1e-310)).forward(&wide, &mut wide_y));
        assert!(matches!(offset, Err(Error::OffsetWithoutWeight { .. })), "1e-310 under {host:x}: {offset:?}");
    }
    assert_eq!((y, wide_y), ([0.0; 4], [0.0; 4]), "nothing is written");
}

/// As crates with kernels of their own are told them.
#[test]
fn options_are_rounded_alike_under_any_setting() {
    for host in [DEFAULT].into_iter().chain(HOSTS) {
        for (x, value) in [(isonorm::DType::F32, 1e-40), (isonorm::DType::Bf16, 1.1), (isonorm::DType::F64, 1e-310)] {
            let (eps, rounded) =
                under(host, || (rules::eps(black_box(value), false, x), rules::rounded(black_box(-value), x)));
            let expected = if x == isonorm::DType::F64 { value } else { f64::from(black_box(value) as f32) };
            assert_eq!(eps.map(f64::to_bits), Ok(expected.to_bits()), "{value} for {x:?} under {host:x}");
            assert_eq!(rounded.to_bits(), (-expected).to_bits(), "{value} for {x:?} under {host:x}");
        }
    }
}

/// Norms whose sums, x_hat, y, parameters and eps reach into the subnormals.
fn cases() -> Vec<(Norm, Tensor, DType, Expected)> {
    let mut cases = Vec::new();
    for which in BOTH {
        for dtype in DType::ALL {
            let y_types: &[DType] =
                if dtype == DType::F64 { &[DType::F64] } else { &[DType::F32, DType::F16, DType::Bf16] };
            for (kind, eps) in
                [(Kind::Subnormal, 0.0), (Kind::Tiny, 1e-45), (Kind::Wide, 0.0), (Kind::Subnormal, 1e-40)]
            {
                for y_type in y_types {
                    let (n, rows) = (133, 3);
                    let x = Tensor::values(dtype, kind, 11, rows * n);
                    let weight = Some(Tensor::values(dtype, Kind::Subnormal, 12, n));
                    let bias = (eps == 0.0).then(|| Tensor::values(dtype, Kind::Subnormal, 13, n));
                    let llama = which == Which::Rms && eps != 0.0;
                    let eps = Eps { value: eps, outside: kind == Kind::Tiny };
                    let norm = Norm { weight, bias, llama, eps, ..Norm::new(which, n) };
                    let expected = norm.oracle(&x, *y_type);
                    cases.push((norm, x, *y_type, expected));
                }
            }
        }
    }
    cases
}

#[test]
fn a_host_that_flushes_changes_no_bit() {
    let is_subnormal = |v: f32| v != 0.0 && v.abs() < f32::MIN_POSITIVE;
    let mut subnormal = 0;
    for (norm, x, y_type, expected) in cases() {
        if let Tensor::F32(y) = &expected.y {
            subnormal += y.iter().filter(|v| is_subnormal(**v)).count();
        }
        for level in Level::available() {
            for host in HOSTS {
                let (mut y, mut saved) = (Tensor::sentinel(y_type, x.len()), Saved::new(x.dtype(), 3));
                let io = Io::new(x.slice(), y.slice_mut()).stats(saved.stats_mut());
                let label = format!("{norm}, {:?} to {y_type:?}, MXCSR {host:x}, level {level}", x.dtype());
                under(host, || norm.apply(one(level), io)).unwrap_or_else(|e| panic!("{label}: {e}"));
                assert_same_bits(&label, norm.hidden, &expected.y, &y);
                saved.assert_reports(&label, &expected);
            }
        }
    }
    assert!(subnormal > 100, "{subnormal} subnormal results of f32 leave nothing to flush");
}

#[test]
fn a_residual_add_of_subnormals_is_not_flushed() {
    let n = 129;
    let [x, residual] = [1, 2].map(|seed| Tensor::values(DType::F32, Kind::Subnormal, seed, n));
    let norm = Norm::new(Which::Rms, n);
    let add = || {
        let [mut r, mut y] = [0; 2].map(|_| Tensor::sentinel(DType::F32, n));
        norm.apply(Cpu::new(), Io::add(x.slice(), residual.slice(), r.slice_mut(), y.slice_mut())).expect("valid");
        (r, y)
    };
    let (r, y) = add();
    assert!((0..n).any(|at| r.bits(at) & 0x7f80_0000 == 0 && r.bits(at) & 0x7f_ffff != 0), "no subnormal sum");
    for host in HOSTS {
        let (r_host, y_host) = under(host, add);
        assert_same_bits(&format!("r, MXCSR {host:x}"), n, &r, &r_host);
        assert_same_bits(&format!("y, MXCSR {host:x}"), n, &y, &y_host);
    }
}

/// Threads that flush, as an audio program's would.
struct FlushingThreads(u32);

impl Pool for FlushingThreads {
    fn threads(&self) -> usize {
        3
    }
    fn run(&self, threads: usize, work: &(dyn Fn() + Sync)) {
        std::thread::scope(|scope| {
            for _ in 0..threads {
                scope.spawn(|| under(self.0, work));
            }
        });
    }
}

#[test]
fn threads_that_flush_change_no_bit_and_keep_their_setting() {
    let (n, rows) = (1000, 300);
    let some = Tensor::values(DType::F32, Kind::Subnormal, 5, 7 * n);
    let x = some.gather((0..rows * n).map(|at| at % (7 * n)));
    let norm = Norm { weight: Some(Tensor::values(DType::F32, Kind::Subnormal, 6, n)), ..Norm::new(Which::Layer, n) };
    let expected = norm.oracle(&some, DType::F32).y.gather((0..rows * n).map(|at| at % (7 * n)));
    for host in HOSTS {
        let pool = FlushingThreads(host);
        let y = norm.forward(Cpu::new().pool(&pool), &x, DType::F32);
        assert_same_bits(&format!("threads of MXCSR {host:x}"), n, &expected, &y);
        let y = under(host, || norm.forward(Cpu::new().threads(4), &x, DType::F32));
        assert_same_bits(&format!("caller of MXCSR {host:x}"), n, &expected, &y);
    }
}

/// y, dx, dweight and dbias of channels that lie side by side, beyond the nearest cache: their sums are in a table.
fn of_channels_last(cpu: Cpu<'_>, x: &[f32], channels: usize, spatial: usize) -> [Vec<f32>; 4] {
    let planes = || Planes::channels_last(x, channels, spatial);
    let [mut y, mut dx] = [0; 2].map(|_| vec![7.0f32; x.len()]);
    let [mut dweight, mut dbias] = [0; 2].map(|_| vec![7.0f32; channels]);
    let norm = BatchNorm::new(channels).on(cpu);
    norm.train(PlaneIo::new(planes(), PlanesMut::channels_last(&mut y, channels, spatial)), None).expect("valid");
    let io = PlaneBackwardIo::new(planes(), planes(), PlanesMut::channels_last(&mut dx, channels, spatial));
    norm.train_backward(io.dweight(&mut dweight).dbias(&mut dbias)).expect("valid");
    [y, dx, dweight, dbias]
}

#[test]
fn channels_of_subnormals_are_not_flushed() {
    let (samples, channels, spatial) = (160, 70, 49); // enough for threads to share
    let x: Vec<f32> =
        (0..samples * channels * spatial).map(|i| f32::from_bits((i * 7919 % 0x400 + 1) as u32)).collect();
    let bits = |found: [Vec<f32>; 4]| found.map(|values| values.into_iter().map(f32::to_bits).collect::<Vec<_>>());
    let is_subnormal = |v: &f32| *v != 0.0 && v.abs() < f32::MIN_POSITIVE;
    let expected = of_channels_last(Cpu::new().threads(1), &x, channels, spatial);
    for (i, values) in expected.iter().enumerate().filter(|(i, _)| *i != 2) {
        assert!(values.iter().any(is_subnormal), "output {i} has nothing to flush");
    }
    let expected = bits(expected);
    for (host, level) in HOSTS.into_iter().flat_map(|host| Level::available().map(move |level| (host, level))) {
        let found = under(host, || of_channels_last(Cpu::new().threads(1).level(level), &x, channels, spatial));
        assert!(bits(found) == expected, "caller of MXCSR {host:x}, level {level}");
        let pool = FlushingThreads(host);
        let found = of_channels_last(Cpu::new().pool(&pool).level(level), &x, channels, spatial);
        assert!(bits(found) == expected, "threads of MXCSR {host:x}, level {level}");
    }
}

#[test]
fn a_partial_sum_of_subnormals_is_not_flushed() {
    let rows: Vec<f32> = (1..60).map(|i| f32::from_bits(i * 0x1_0000 + 1)).collect();
    let sums = || {
        let mut parts = [0, 7, 20, 40].map(|start| Partial::rows(isonorm::DType::F32, 1, start));
        for (part, cut) in parts.iter_mut().zip([0, 7, 20, 40, 59].windows(2)) {
            part.push(&rows[cut[0]..cut[1]], &rows[cut[0]..cut[1]]).expect("rows");
        }
        let mut dbias = [0.0f32];
        Partial::join(parts).and_then(|whole| whole.dbias(&mut dbias)).expect("whole");
        dbias[0].to_bits()
    };
    let expected = oracle::batch_sum(&rows).to_bits();
    for host in HOSTS {
        assert_eq!(under(host, sums), expected, "MXCSR {host:x}");
    }
}

#[test]
fn running_statistics_of_subnormal_instances_are_not_flushed() {
    let stats: Vec<_> = (1..60)
        .map(|i| Stats {
            mean: f32::from_bits(i * 0x101),
            var: f32::from_bits(i * 0x203),
            scale: 1.0,
            ..Stats::default()
        })
        .collect();
    let moved = || {
        let (mut mean, mut var) = ([f32::from_bits(0x4001)], [f32::from_bits(0x5003)]);
        Running::new(&mut mean, &mut var).instances(0.25, &stats, 4).expect("valid");
        [mean[0].to_bits(), var[0].to_bits()]
    };
    let expected = moved();
    assert!(expected.iter().all(|bits| *bits > 0 && *bits < f32::MIN_POSITIVE.to_bits()), "{expected:x?}");
    for host in HOSTS {
        assert_eq!(under(host, moved), expected, "MXCSR {host:x}");
    }
}

/// y and dx of two ranks, which have columns 0..50 and the rest.
fn of_two_ranks(norm: &Norm, x: &Tensor, y_type: DType) -> Vec<Tensor> {
    let n = norm.hidden;
    let columns = [0..50, 50..n];
    let ranks = columns.clone().map(|columns| {
        let part = |of: &Tensor| of.gather((0..of.len() / n).flat_map(|r| columns.clone().map(move |c| r * n + c)));
        let (weight, bias) = (norm.weight.as_ref().map(part), norm.bias.as_ref().map(part));
        (Norm { weight, bias, ..norm.clone() }, part(x))
    });
    let shard = |r: usize| ranks[r].0.shard(one(Level::detect()), columns[r].clone()).expect("columns");
    let shards = [shard(0), shard(1)];
    let mut all = [0, 1].map(|r| shards[r].measure(ranks[r].1.slice()).expect("rows"));
    while let [Some(left), Some(right)] = all.each_ref().map(Measuring::partial) {
        let merged = Partial::join([left, right]).expect("neighbours");
        all.iter_mut().for_each(|one| one.take(merged.clone()).expect("both ranks"));
    }
    let [measured, _] = all.map(|one| one.finish().expect("no round is left"));
    let correlate = |r: usize| {
        let x = ranks[r].1.slice();
        shards[r].correlate(x, x, &measured).expect("rows")
    };
    let merged = Partial::join([0, 1].map(correlate)).expect("neighbours");
    let mut found = Vec::new();
    for (shard, (_, x)) in shards.iter().zip(&ranks) {
        let [mut y, mut dx] = [y_type, x.dtype()].map(|dtype| Tensor::sentinel(dtype, x.len()));
        shard.forward(x.slice(), &measured, y.slice_mut()).expect("rows");
        let io = BackwardIo::new(x.slice(), x.slice(), dx.slice_mut());
        shard.backward(io, &measured, &merged).expect("rows");
        found.extend([y, dx]);
    }
    found
}

#[test]
fn ranks_that_flush_change_no_bit() {
    for (norm, x, y_type, _) in cases() {
        let expected = of_two_ranks(&norm, &x, y_type);
        for host in HOSTS {
            let found = under(host, || of_two_ranks(&norm, &x, y_type));
            for (expected, found) in expected.iter().zip(&found) {
                assert_same_bits(&format!("{norm}, {:?}, MXCSR {host:x}", x.dtype()), norm.hidden, expected, found);
            }
        }
    }
}
