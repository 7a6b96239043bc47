//! Rows whose columns lie on several ranks, against the same norm over whole rows.

use std::ops::Range;

use isonorm::{BackwardIo, Cpu, Io, Level, Rows, RowsMut};
use isonorm_testing::DType;
use isonorm_testing::golden::Array;
use isonorm_testing::oracle::Eps;
use isonorm_testing::values::{Kind, SplitMix64, values};

use super::{assert_same_stats, cuts, exchange, measure};
use crate::support::{BOTH, Norm, Saved, Tensor, Which, assert_same_bits, one};

const TYPES: [DType; 4] = [DType::F32, DType::F64, DType::F16, DType::Bf16];

/// A call over whole rows.
#[derive(Debug)]
struct Whole {
    norm: Norm,
    rows: usize,
    x: Tensor,
    dy: Tensor,
    y_type: DType,
}

/// Of one call: y, dx, dweight, dbias.
struct Found {
    y: Tensor,
    dx: Tensor,
    dweight: Tensor,
    dbias: Tensor,
}

impl Whole {
    /// Options and values at random; each row is of another kind.
    fn random(which: Which, dtype: DType, hidden: usize, rows: usize, source: &mut SplitMix64) -> Self {
        let mut flip = |of: usize| source.below(of) == 0;
        let mut norm = Norm::new(which, hidden);
        norm.eps = Eps { value: if flip(2) { 0.0 } else { 1e-5 }, outside: flip(3) };
        let parameter = if flip(3) && dtype != DType::F64 { DType::F32 } else { dtype };
        let (weight, bias) = (!flip(4), flip(3));
        norm.llama = which == Which::Rms && flip(3);
        let (offset, partial, other) = (flip(4), which == Which::Rms && flip(3), flip(4) && dtype != DType::F64);
        let mut tensor = |dtype| Tensor::values(dtype, Kind::Normal, source.word(), hidden);
        norm.weight = weight.then(|| tensor(parameter));
        norm.bias = bias.then(|| tensor(parameter));
        norm.offset = if weight && offset { 1.0 } else { 0.0 };
        norm.partial = (partial && hidden > 0).then(|| 1 + source.below(hidden));
        let row = |source: &mut SplitMix64| {
            let kind = Kind::ALL[source.below(Kind::ALL.len())];
            values(dtype, kind, source.word(), hidden)
        };
        let x: Vec<f64> = (0..rows).flat_map(|_| row(source)).collect();
        let other = if other { DType::F32 } else { dtype };
        let dy = Tensor::values(other, Kind::Normal, source.word(), rows * hidden);
        Whole { norm, rows, x: Tensor::new(&Array::from_values(dtype, &x)), dy, y_type: other }
    }

    fn parameter_type(&self) -> DType {
        self.norm.weight.as_ref().map_or(self.x.dtype(), Tensor::dtype)
    }

    fn expected(&self, cpu: Cpu<'_>) -> (Found, Saved) {
        let Whole { norm, rows, x, dy, y_type } = self;
        let mut stats = Saved::new(x.dtype(), *rows);
        let [mut y, mut dx] = [*y_type, x.dtype()].map(|dtype| Tensor::sentinel(dtype, x.len()));
        let [mut dweight, mut dbias] = [(); 2].map(|()| Tensor::sentinel(self.parameter_type(), norm.hidden));
        norm.apply(cpu, Io::new(x.slice(), y.slice_mut()).stats(stats.stats_mut())).expect("valid");
        let io = BackwardIo::new(x.slice(), dy.slice(), dx.slice_mut());
        norm.backward(cpu, io.dweight(dweight.slice_mut()).dbias(dbias.slice_mut())).expect("valid");
        (Found { y, dx, dweight, dbias }, stats)
    }

    /// Columns of rows.
    fn part(&self, tensor: &Tensor, columns: &Range<usize>) -> Tensor {
        let rows = tensor.len() / self.norm.hidden;
        tensor.gather((0..rows).flat_map(|r| columns.clone().map(move |c| r * self.norm.hidden + c)))
    }

    /// The ranks' norms, cut at `cuts`.
    fn ranks(&self, cuts: &[usize]) -> Vec<Rank> {
        let columns = cuts.windows(2).map(|cut| cut[0]..cut[1]);
        let rank = |columns: Range<usize>| {
            let mut norm = self.norm.clone();
            norm.weight = norm.weight.map(|weight| self.part(&weight, &columns));
            norm.bias = norm.bias.map(|bias| self.part(&bias, &columns));
            Rank { norm, x: self.part(&self.x, &columns), dy: self.part(&self.dy, &columns), columns }
        };
        columns.map(rank).collect()
    }

    /// What the ranks compute together is what one process does; how many rounds they measured in.
    fn check(&self, cpu: Cpu<'_>, cuts: &[usize], source: &mut SplitMix64) -> usize {
        let label = format!("{} x {} {:?} cut at {cuts:?}", self.rows, self.norm, self.x.dtype());
        let (expected, stats) = self.expected(cpu);
        let ranks = self.ranks(cuts);
        let (shape, stride) = ([self.rows], [0]);
        // A rank without columns has no element to count rows by.
        fn rows<'t>(tensor: &'t Tensor, shape: &'t [usize], stride: &'t [isize]) -> Rows<'t> {
            if tensor.len() == 0 { Rows::strided(tensor.slice(), 0, shape, stride) } else { tensor.slice().into() }
        }
        let shards: Vec<_> =
            ranks.iter().map(|rank| rank.norm.shard(cpu, rank.columns.clone()).expect("columns")).collect();
        let each = || shards.iter().zip(&ranks).map(|(shard, rank)| (shard, rank, rows(&rank.x, &shape, &stride)));
        let measuring = each().map(|(shard, _, x)| shard.measure(x).expect("rows")).collect();
        let (measured, rounds) = measure(measuring, source);
        for measured in &measured {
            assert_same_stats(&label, &stats, measured.stats());
            assert_eq!(measured.count(), self.norm.partial.unwrap_or(self.norm.hidden));
        }
        let measured = &measured[0];
        let correlate = |(shard, rank, x): (&isonorm::Shard<'_>, &Rank, _)| {
            shard.correlate(x, rows(&rank.dy, &shape, &stride), measured).expect("rows")
        };
        let merged = exchange(each().map(correlate), source);
        for (shard, rank, x) in each() {
            let label = format!("{label}, columns {:?}", rank.columns);
            let n = rank.columns.len();
            let [mut y, mut dx] = [self.y_type, x_type(self)].map(|dtype| Tensor::sentinel(dtype, rank.x.len()));
            let [mut dweight, mut dbias] = [(); 2].map(|()| Tensor::sentinel(self.parameter_type(), n));
            shard.forward(x, measured, y.slice_mut()).expect("rows");
            let io = BackwardIo::new(x, rows(&rank.dy, &shape, &stride), dx.slice_mut());
            let io = io.dweight(dweight.slice_mut()).dbias(dbias.slice_mut());
            shard.backward(io, measured, &merged).expect("rows");
            let part = |of: &Tensor| self.part(of, &rank.columns);
            assert_same_bits(&format!("{label}, y"), n, &part(&expected.y), &y);
            assert_same_bits(&format!("{label}, dx"), n, &part(&expected.dx), &dx);
            assert_same_bits(&format!("{label}, dweight"), n, &part(&expected.dweight), &dweight);
            assert_same_bits(&format!("{label}, dbias"), n, &part(&expected.dbias), &dbias);
        }
        rounds
    }
}

fn x_type(whole: &Whole) -> DType {
    whole.x.dtype()
}

struct Rank {
    norm: Norm,
    columns: Range<usize>,
    x: Tensor,
    dy: Tensor,
}

#[test]
fn columns_cut_anywhere_have_the_bits_of_whole_rows() {
    let source = &mut SplitMix64::new(1);
    let mut rounds = [0; 8];
    for (which, dtype) in BOTH.into_iter().flat_map(|which| TYPES.map(|dtype| (which, dtype))) {
        for ranks in [1, 2, 3, 4, 5, 6, 8, 16] {
            for evenly in [true, false] {
                let hidden = [1, 31, 128, 300, 640, 1000, 2048, 2100][source.below(8)];
                let rows = 1 + source.below(40);
                let whole = Whole::random(which, dtype, hidden, rows, source);
                let level = Level::available().nth(source.below(Level::available().count())).expect("a level");
                let cuts = cuts(hidden, ranks, evenly, source);
                rounds[whole.check(one(level), &cuts, source)] += 1;
            }
        }
    }
    // RMSNorm 1, LayerNorm 2; where the largest were wanted, one more; where some were scaled, the first again.
    assert!(rounds[1] > 0 && rounds[2] > 0 && rounds[3] > 0 && rounds[5] > 0, "{rounds:?}");
}

#[test]
fn every_cut_of_a_short_row_has_its_bits() {
    let source = &mut SplitMix64::new(2);
    for which in BOTH {
        let whole = Whole::random(which, DType::F32, 300, 3, source);
        for cut in 0..=300 {
            whole.check(one(Level::detect()), &[0, cut, 300], source);
        }
    }
}

#[test]
fn every_kind_of_row_has_its_bits() {
    let source = &mut SplitMix64::new(3);
    for (which, dtype) in BOTH.into_iter().flat_map(|which| TYPES.map(|dtype| (which, dtype))) {
        for kind in Kind::ALL {
            let mut whole = Whole::random(which, dtype, 517, 5, source);
            whole.x = Tensor::values(dtype, kind, source.word(), 5 * 517);
            whole.check(one(Level::detect()), &[0, 130, 256, 400, 517], source);
        }
    }
}

#[test]
fn threads_change_no_bit() {
    let source = &mut SplitMix64::new(4);
    for which in BOTH {
        let whole = Whole::random(which, DType::F32, 3000, 700, source);
        whole.check(Cpu::new().threads(3), &[0, 1000, 1100, 3000], source);
    }
}

/// Rows of two leading dimensions, the second of which comes first in memory.
#[test]
fn strided_rows_are_taken_in_logical_order_and_y_may_be_x() {
    let source = &mut SplitMix64::new(5);
    for which in BOTH {
        let whole = Whole::random(which, DType::Bf16, 200, 12, source);
        let cpu = one(Level::detect());
        let (expected, stats) = whole.expected(cpu);
        let ranks = whole.ranks(&[0, 70, 200]);
        let (shape, place) = ([3, 4], |r: usize| r % 4 * 3 + r / 4);
        let strided = |tensor: &Tensor, n: usize| {
            tensor.gather((0..12).flat_map(|at| (0..n).map(move |c| (at % 3 * 4 + at / 3) * n + c)))
        };
        let xs: Vec<Tensor> = ranks.iter().map(|rank| strided(&rank.x, rank.columns.len())).collect();
        let shards: Vec<_> =
            ranks.iter().map(|rank| rank.norm.shard(cpu, rank.columns.clone()).expect("columns")).collect();
        let strides: Vec<[isize; 2]> =
            ranks.iter().map(|rank| [rank.columns.len() as isize, 3 * rank.columns.len() as isize]).collect();
        let begin = |r: usize| shards[r].measure(Rows::strided(xs[r].slice(), 0, &shape, &strides[r])).expect("rows");
        let (measured, _) = measure(vec![begin(0), begin(1)], source);
        assert_same_stats(&"strided", &stats, measured[0].stats());
        for r in 0..2 {
            let (mut y, n) = (xs[r].clone(), ranks[r].columns.len());
            let rows = RowsMut::strided(y.slice_mut(), 0, &shape, &strides[r]);
            shards[r].forward_in_place(rows, &measured[1]).expect("rows");
            let y = y.gather((0..12).flat_map(|at| (0..n).map(move |c| place(at) * n + c)));
            let mut whole = whole.part(&expected.y, &ranks[r].columns);
            if whole.dtype() != DType::Bf16 {
                whole = Tensor::new(&Array::from_values(DType::Bf16, &whole.array().widened::<f64>()));
            }
            assert_same_bits(&"strided, in place", n, &whole, &y);
        }
    }
}
