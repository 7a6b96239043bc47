//! The stored bits of `spec/golden`: every forward call of RMSNorm and LayerNorm, on every level, in every form.

mod support;

use isonorm::{Io, Level, Rows, RowsMut};
use isonorm_testing::DType;
use isonorm_testing::golden::{self, Case};
use support::{Norm, Saved, Tensor, assert_same_bits, one};

/// A golden case whose rows are normalized one by one.
struct Golden {
    case: Case,
    norm: Norm,
    rows: usize,
    x: Tensor,
    residual: Option<Tensor>,
}

fn row_wise(case: Case) -> Option<Golden> {
    case.out.get("y")?;
    let (norm, rows) = Norm::of(&case)?;
    let (x, residual) = (Tensor::new(case.x()), case.input("residual").map(Tensor::new));
    Some(Golden { case, norm, rows, x, residual })
}

impl Golden {
    fn expected(&self, output: &str) -> Tensor {
        Tensor::new(&self.case.out[output])
    }

    fn check(&self, output: &str, form: &str, level: Level, found: &Tensor) {
        let label = format!("{} {output}, {form}, level {level}", self.case.name);
        let n = if matches!(output, "y" | "r") { self.norm.hidden } else { 1 };
        assert_same_bits(&label, n, &self.expected(output), found);
    }

    fn check_stats(&self, form: &str, level: Level, saved: &Saved) {
        for (name, found) in ["mean", "var", "rstd"].into_iter().zip(saved.reported()) {
            if self.case.out.contains_key(name) {
                self.check(name, form, level, &found);
            }
        }
    }

    fn apply(&self, form: &str, level: Level, io: Io<'_>) {
        let io = self.norm.apply(one(level), io);
        io.unwrap_or_else(|e| panic!("{}, {form}, level {level}: {e}", self.case.name));
    }

    fn out_of_place(&self, level: Level) {
        let mut y = Tensor::sentinel(self.case.y_type, self.x.len());
        let mut saved = Saved::new(self.x.dtype(), self.rows);
        self.apply("out of place", level, Io::new(self.x.slice(), y.slice_mut()).stats(saved.stats_mut()));
        self.check("y", "out of place", level, &y);
        self.check_stats("out of place", level, &saved);
    }

    fn in_place(&self, level: Level) {
        if self.case.y_type != self.x.dtype() {
            return;
        }
        let mut y = self.x.clone();
        let mut saved = Saved::new(self.x.dtype(), self.rows);
        self.apply("in place", level, Io::in_place(y.slice_mut()).stats(saved.stats_mut()));
        self.check("y", "in place", level, &y);
        self.check_stats("in place", level, &saved);
    }

    /// x with gaps of 3 elements, y last row first with gaps of 1; statistics keep the logical order.
    fn strided(&self, level: Level) {
        let (rows, hidden) = (self.rows, self.norm.hidden);
        let (x_stride, y_stride) = (hidden + 3, hidden + 1);
        let places = (0..rows * x_stride).map(|at| (at / x_stride) * hidden + (at % x_stride).min(hidden - 1));
        let x = self.x.gather(places);
        let mut y = Tensor::sentinel(self.case.y_type, rows * y_stride);
        let mut saved = Saved::new(self.x.dtype(), rows);
        let (shape, forwards, backwards) = ([rows], [x_stride as isize], [-(y_stride as isize)]);
        let from = Rows::strided(x.slice(), 0, &shape, &forwards);
        let to = RowsMut::strided(y.slice_mut(), (rows - 1) * y_stride, &shape, &backwards);
        self.apply("strided", level, Io::new(from, to).stats(saved.stats_mut()));
        let places = (0..rows * hidden).map(|at| (rows - 1 - at / hidden) * y_stride + at % hidden);
        self.check("y", "strided", level, &y.gather(places));
        self.check_stats("strided", level, &saved);
    }

    fn add(&self, level: Level, residual: &Tensor) {
        let r_type = self.case.normalized_type();
        let (mut r, mut y) = (Tensor::sentinel(r_type, self.x.len()), Tensor::sentinel(self.case.y_type, self.x.len()));
        let mut saved = Saved::new(r_type, self.rows);
        let io = Io::add(self.x.slice(), residual.slice(), r.slice_mut(), y.slice_mut());
        self.apply("add", level, io.stats(saved.stats_mut()));
        self.check("r", "add", level, &r);
        self.check("y", "add", level, &y);
        self.check_stats("add", level, &saved);
    }

    fn add_in_place(&self, level: Level, residual: &Tensor) {
        if self.case.y_type != self.x.dtype() || residual.dtype() != self.case.normalized_type() {
            return;
        }
        let (mut r, mut y) = (residual.clone(), self.x.clone());
        let mut saved = Saved::new(residual.dtype(), self.rows);
        let io = Io::add_in_place(y.slice_mut(), r.slice_mut()).stats(saved.stats_mut());
        self.apply("add in place", level, io);
        self.check("r", "add in place", level, &r);
        self.check("y", "add in place", level, &y);
        self.check_stats("add in place", level, &saved);
    }

    fn every_form(&self) {
        for level in Level::available() {
            match &self.residual {
                Some(residual) => {
                    self.add(level, residual);
                    self.add_in_place(level, residual);
                }
                None => {
                    self.out_of_place(level);
                    self.in_place(level);
                    self.strided(level);
                }
            }
        }
    }
}

#[test]
fn every_case_of_forward_json_has_the_stored_bits() {
    let cases: Vec<Golden> = golden::forward().into_iter().filter_map(row_wise).collect();
    cases.iter().for_each(Golden::every_form);
    // The file may grow, not shrink; and it must hold what this test is for.
    assert!(cases.len() >= 1000, "{} row-wise cases", cases.len());
    assert!(cases.iter().filter(|golden| golden.residual.is_some()).count() >= 50, "residual adds");
    for dtype in DType::ALL {
        assert!(cases.iter().any(|golden| golden.x.dtype() == dtype), "no case of {dtype:?}");
    }
}

#[test]
fn every_case_of_norms_json_has_the_stored_bits() {
    let cases: Vec<Golden> = golden::shared().into_iter().filter_map(row_wise).collect();
    cases.iter().for_each(Golden::every_form);
    assert!(cases.len() >= 200, "{} row-wise cases", cases.len());
}
