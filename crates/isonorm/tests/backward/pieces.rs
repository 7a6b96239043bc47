//! Batches in pieces: micro-batches, ranks and padding give the bits of the whole batch without padding.

use std::ops::Range;

use isonorm::{BackwardIo, Cpu, Level, Mask, Partial};
use isonorm_testing::DType;
use isonorm_testing::oracle::Eps;
use isonorm_testing::values::{Kind, SplitMix64};

use crate::support::{BOTH, Norm, Tensor, Which, assert_same_bits, one};

const TYPES: [DType; 4] = [DType::F32, DType::F64, DType::F16, DType::Bf16];

/// A batch and its gradients.
struct Batch {
    norm: Norm,
    rows: usize,
    x: Tensor,
    dy: Tensor,
    dx: Tensor,
    gradients: [Tensor; 2],
}

impl Batch {
    fn random(which: Which, dtype: DType, rows: usize, hidden: usize, source: &mut SplitMix64) -> Self {
        let mut norm = Norm::new(which, hidden);
        norm.eps = Eps { value: [0.0, 1e-5][source.below(2)], outside: source.below(3) == 0 };
        norm.llama = which == Which::Rms && source.below(3) == 0;
        norm.partial = (which == Which::Rms && source.below(4) == 0).then(|| 1 + source.below(hidden));
        norm.weight = (source.below(4) > 0).then(|| Tensor::values(dtype, Kind::Normal, source.word(), hidden));
        let kind = [Kind::Normal, Kind::Offset, Kind::Wide, Kind::Tiny][source.below(4)];
        let [x, dy] = [kind, Kind::Normal].map(|kind| Tensor::values(dtype, kind, source.word(), rows * hidden));
        let mut batch =
            Batch { norm, rows, dx: Tensor::sentinel(dtype, x.len()), x, dy, gradients: gradients(hidden, dtype) };
        let io = BackwardIo::new(batch.x.slice(), batch.dy.slice(), batch.dx.slice_mut());
        let [dweight, dbias] = batch.gradients.each_mut().map(Tensor::slice_mut);
        batch.norm.backward(one(Level::detect()), io.dweight(dweight).dbias(dbias)).expect("valid");
        batch
    }

    fn label(&self) -> String {
        format!("{} rows of {} {:?}", self.rows, self.norm, self.x.dtype())
    }

    fn partial(&self, start: usize) -> Partial {
        let dtype = if self.x.dtype() == DType::F64 { isonorm::DType::F64 } else { isonorm::DType::F32 };
        Partial::rows(dtype, self.norm.hidden, start)
    }

    /// The gradients so far are written with the last piece, or by the partial sum.
    fn check(&self, what: &str, found: &[Tensor; 2]) {
        for (name, expected, found) in
            [("dweight", &self.gradients[0], &found[0]), ("dbias", &self.gradients[1], &found[1])]
        {
            assert_same_bits(&format!("{} {name}, {what}", self.label()), self.norm.hidden, expected, found);
        }
    }

    fn finished(&self, partial: &Partial) -> [Tensor; 2] {
        let mut found = gradients(self.norm.hidden, self.x.dtype());
        let [dweight, dbias] = found.each_mut().map(Tensor::slice_mut);
        partial.dweight(dweight).and_then(|()| partial.dbias(dbias)).expect("all rows");
        found
    }

    /// Rows `rows` go into `partial`.
    fn piece(&self, cpu: Cpu<'_>, rows: &Range<usize>, partial: &mut Partial) {
        let hidden = self.norm.hidden;
        let part = |of: &Tensor| of.gather(rows.start * hidden..rows.end * hidden);
        let (x, dy, mut dx) = (part(&self.x), part(&self.dy), Tensor::sentinel(self.x.dtype(), rows.len() * hidden));
        let io = BackwardIo::new(x.slice(), dy.slice(), dx.slice_mut()).partial(partial);
        self.norm.backward(cpu, io).expect("valid");
        assert_same_bits(&format!("{} dx, rows {rows:?}", self.label()), hidden, &part(&self.dx), &dx);
    }

    /// As `piece`, of rows that lie between padding.
    fn padded(&self, cpu: Cpu<'_>, rows: &Range<usize>, partial: &mut Partial, source: &mut SplitMix64) {
        let (hidden, dtype) = (self.norm.hidden, self.x.dtype());
        let mut mask = Vec::new();
        for _ in rows.clone() {
            mask.extend((0..source.below(3) * source.below(2)).map(|_| false).chain([true]));
        }
        mask.extend((0..source.below(3)).map(|_| false));
        let mut next = rows.clone();
        let places: Vec<Option<usize>> = mask.iter().map(|row| if *row { next.next() } else { None }).collect();
        let fill = |of: &Tensor, padding: &Tensor| {
            let mut array = Tensor::sentinel(dtype, mask.len() * hidden).array();
            for (r, c) in (0..mask.len()).flat_map(|r| (0..hidden).map(move |c| (r, c))) {
                array.bits[r * hidden + c] = places[r].map_or(padding.bits(c), |row| of.bits(row * hidden + c));
            }
            Tensor::new(&array)
        };
        let hostile = Tensor::values(dtype, Kind::Hostile, source.word(), hidden);
        let zero = Tensor::new(&isonorm_testing::golden::Array { dtype, bits: vec![0; hidden] });
        let (x, dy) = (fill(&self.x, &hostile), fill(&self.dy, &hostile));
        let mut dx = Tensor::sentinel(dtype, x.len());
        let spans: Vec<Range<usize>> = (0..mask.len()).filter(|r| mask[*r]).map(|r| r..r + 1).collect();
        let io = BackwardIo::new(x.slice(), dy.slice(), dx.slice_mut()).partial(partial);
        let io = if source.below(2) == 0 { io.mask(Mask::Rows(&mask)) } else { io.mask(Mask::Spans(&spans)) };
        self.norm.backward(cpu, io).expect("valid");
        assert_same_bits(&format!("{} dx, padded", self.label()), hidden, &fill(&self.dx, &zero), &dx);
    }
}

fn gradients(hidden: usize, dtype: DType) -> [Tensor; 2] {
    [(); 2].map(|()| Tensor::sentinel(dtype, hidden))
}

/// `rows` rows in up to `most` pieces, some of them empty.
fn pieces(rows: usize, most: usize, source: &mut SplitMix64) -> Vec<Range<usize>> {
    let mut cuts: Vec<usize> = (0..source.below(most)).map(|_| source.below(rows + 1)).chain([0, rows]).collect();
    cuts.sort_unstable();
    cuts.windows(2).map(|cut| cut[0]..cut[1]).collect()
}

fn batches(seed: u64, mut check: impl FnMut(&Batch, Cpu<'_>, &mut SplitMix64)) {
    let source = &mut SplitMix64::new(seed);
    for (which, dtype) in BOTH.into_iter().flat_map(|which| TYPES.map(|dtype| (which, dtype))) {
        for level in Level::available() {
            for (rows, hidden) in [(1, 40), (17, 33), (70, 600), (300, 5)] {
                let batch = Batch::random(which, dtype, rows, hidden, source);
                check(&batch, one(level), source);
            }
        }
    }
}

#[test]
fn micro_batches_of_any_sizes_go_on_with_one_sum() {
    batches(1, |batch, cpu, source| {
        let mut partial = batch.partial(0);
        for rows in pieces(batch.rows, 9, source) {
            batch.piece(cpu, &rows, &mut partial);
        }
        batch.check("micro-batches", &batch.finished(&partial));
    });
}

#[test]
fn ranks_with_any_number_of_rows_join_their_sums() {
    batches(2, |batch, cpu, source| {
        let mut parts = Vec::new();
        for rows in pieces(batch.rows, 7, source) {
            let mut partial = batch.partial(rows.start);
            // Of two micro-batches.
            let middle = rows.start + source.below(rows.len() + 1);
            batch.piece(cpu, &(rows.start..middle), &mut partial);
            batch.piece(cpu, &(middle..rows.end), &mut partial);
            parts
                .insert(source.below(parts.len() + 1), Partial::from_bytes(&partial.to_bytes()).expect("just written"));
        }
        batch.check("ranks", &batch.finished(&Partial::join(parts).expect("neighbours")));
    });
}

#[test]
fn padding_changes_no_bit() {
    batches(3, |batch, cpu, source| {
        let mut parts = Vec::new();
        for rows in pieces(batch.rows, 5, source) {
            let mut partial = batch.partial(rows.start);
            batch.padded(cpu, &rows, &mut partial, source);
            parts.push(partial);
        }
        batch.check("padded", &batch.finished(&Partial::join(parts).expect("neighbours")));
    });
}

#[test]
fn threads_cut_a_batch_that_begins_within_a_leaf() {
    let source = &mut SplitMix64::new(4);
    for which in BOTH {
        let batch = Batch::random(which, DType::F32, 1000, 1000, source);
        let mut first = batch.partial(0);
        batch.piece(one(Level::detect()), &(0..5), &mut first);
        let mut second = batch.partial(5);
        batch.piece(Cpu::new().threads(3), &(5..800), &mut second);
        batch.padded(Cpu::new().threads(3), &(800..1000), &mut second, source);
        first.merge(second).expect("neighbours");
        batch.check("threads", &batch.finished(&first));
    }
}
