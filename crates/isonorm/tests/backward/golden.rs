//! The stored bits of `spec/golden`: every backward call of RMSNorm and LayerNorm, on every level, in every form.

use isonorm::{BackwardIo, Io, Level, Partial, Rows, RowsMut};
use isonorm_testing::golden::{self, Case};

use crate::support::{Norm, Saved, Tensor, assert_same_bits, compute_type, one};

/// A golden case whose rows are differentiated one by one.
struct Golden {
    case: Case,
    norm: Norm,
    rows: usize,
    /// x, or the r that a residual add kept.
    x: Tensor,
    dy: Tensor,
    dresidual: Option<Tensor>,
}

fn row_wise(case: Case) -> Option<Golden> {
    case.out.get("dx")?;
    let (norm, rows) = Norm::of(&case)?;
    let input = |name| case.input(name).map(Tensor::new);
    let x = match input("residual") {
        None => Tensor::new(case.x()),
        Some(residual) => {
            let x = Tensor::new(case.x());
            let [mut r, mut y] = [(); 2].map(|()| Tensor::sentinel(case.normalized_type(), x.len()));
            let io = Io::add(x.slice(), residual.slice(), r.slice_mut(), y.slice_mut());
            norm.apply(one(Level::detect()), io).unwrap_or_else(|e| panic!("{}: {e}", case.name));
            r
        }
    };
    let (dy, dresidual) = (input("dy").expect("a backward case has dy"), input("dresidual"));
    Some(Golden { case, norm, rows, x, dy, dresidual })
}

/// What a call wrote besides dx.
struct Parameters {
    dweight: Option<Tensor>,
    dbias: Option<Tensor>,
}

impl Golden {
    fn parameters(&self) -> Parameters {
        let room = |name: &str| self.case.out.get(name).map(|out| Tensor::sentinel(out.dtype, self.norm.hidden));
        Parameters { dweight: room("dweight"), dbias: room("dbias") }
    }

    fn room(&self, name: &str, len: usize) -> Tensor {
        Tensor::sentinel(self.case.out[name].dtype, len)
    }

    fn check(&self, name: &str, form: &str, level: Level, found: &Tensor) {
        let label = format!("{} {name}, {form}, level {level}", self.case.name);
        assert_same_bits(&label, self.norm.hidden, &Tensor::new(&self.case.out[name]), found);
    }

    fn check_parameters(&self, form: &str, level: Level, found: &Parameters) {
        for (name, found) in [("dweight", &found.dweight), ("dbias", &found.dbias)] {
            if let Some(found) = found {
                self.check(name, form, level, found);
            }
        }
    }

    fn run(&self, form: &str, level: Level, io: BackwardIo<'_>) -> Parameters {
        let mut parameters = self.parameters();
        let mut io = io;
        if let Some(dweight) = &mut parameters.dweight {
            io = io.dweight(dweight.slice_mut());
        }
        if let Some(dbias) = &mut parameters.dbias {
            io = io.dbias(dbias.slice_mut());
        }
        let done = self.norm.backward(one(level), io);
        done.unwrap_or_else(|e| panic!("{}, {form}, level {level}: {e}", self.case.name));
        parameters
    }

    fn saved(&self, level: Level) -> Saved {
        let mut saved = Saved::new(self.x.dtype(), self.rows);
        let mut y = Tensor::sentinel(self.x.dtype(), self.x.len());
        let io = Io::new(self.x.slice(), y.slice_mut()).stats(saved.stats_mut());
        self.norm.apply(one(level), io).unwrap_or_else(|e| panic!("{}: {e}", self.case.name));
        saved
    }

    fn out_of_place(&self, level: Level) {
        let saved = self.saved(level);
        for is_saved in [false, true] {
            let mut dx = self.room("dx", self.x.len());
            let io = BackwardIo::new(self.x.slice(), self.dy.slice(), dx.slice_mut());
            let io = if is_saved { io.stats(saved.stats_ref()) } else { io };
            let form = if is_saved { "saved statistics" } else { "out of place" };
            self.check_parameters(form, level, &self.run(form, level, io));
            self.check("dx", form, level, &dx);
            // Without parameters, dx has the same bits.
            let mut dx = self.room("dx", self.x.len());
            let io = BackwardIo::new(self.x.slice(), self.dy.slice(), dx.slice_mut());
            self.norm.backward(one(level), io).expect("done before");
            self.check("dx", "dx alone", level, &dx);
        }
    }

    fn in_place(&self, level: Level) {
        if self.dy.dtype() != self.case.out["dx"].dtype {
            return;
        }
        let mut dx = self.dy.clone();
        let io = BackwardIo::in_place(self.x.slice(), dx.slice_mut());
        self.check_parameters("in place", level, &self.run("in place", level, io));
        self.check("dx", "in place", level, &dx);
    }

    /// x with gaps of 3 elements, dy of 2, dx of 1 and in reverse.
    fn strided(&self, level: Level) {
        let (rows, hidden) = (self.rows, self.norm.hidden);
        let spread = |tensor: &Tensor, stride: usize| {
            tensor.gather((0..rows * stride).map(|at| (at / stride) * hidden + (at % stride).min(hidden - 1)))
        };
        let (x, dy) = (spread(&self.x, hidden + 3), spread(&self.dy, hidden + 2));
        let mut dx = self.room("dx", rows * (hidden + 1));
        let shape = [rows];
        let strides = [hidden as isize + 3, hidden as isize + 2, -(hidden as isize + 1)].map(|stride| [stride]);
        let io = BackwardIo::new(
            Rows::strided(x.slice(), 0, &shape, &strides[0]),
            Rows::strided(dy.slice(), 0, &shape, &strides[1]),
            RowsMut::strided(dx.slice_mut(), (rows - 1) * (hidden + 1), &shape, &strides[2]),
        );
        self.check_parameters("strided", level, &self.run("strided", level, io));
        let places = (0..rows * hidden).map(|at| (rows - 1 - at / hidden) * (hidden + 1) + at % hidden);
        self.check("dx", "strided", level, &dx.gather(places));
    }

    /// Row by row into a partial sum, from a row within a leaf on, so that some are kept raw.
    fn pieces(&self, level: Level) {
        let hidden = self.norm.hidden;
        let mut parts = Vec::new();
        for (start, end) in [(0, self.rows / 2), (self.rows / 2, self.rows)] {
            let mut dx = self.room("dx", (end - start) * hidden);
            let part = |tensor: &Tensor| tensor.gather(start * hidden..end * hidden);
            let (x, dy) = (part(&self.x), part(&self.dy));
            let mut partial = Partial::rows(
                match compute_type(self.x.dtype()) {
                    isonorm_testing::DType::F64 => isonorm::DType::F64,
                    _ => isonorm::DType::F32,
                },
                hidden,
                start,
            );
            let io = BackwardIo::new(x.slice(), dy.slice(), dx.slice_mut()).partial(&mut partial);
            self.norm.backward(one(level), io).unwrap_or_else(|e| panic!("{}: {e}", self.case.name));
            if self.dresidual.is_none() {
                let expected = Tensor::new(&self.case.out["dx"]).gather(start * hidden..end * hidden);
                assert_same_bits(&format!("{} dx, pieces, level {level}", self.case.name), hidden, &expected, &dx);
            }
            parts.push(partial);
        }
        let whole = Partial::join(parts).unwrap_or_else(|e| panic!("{}: {e}", self.case.name));
        let mut found = self.parameters();
        if let Some(dweight) = &mut found.dweight {
            whole.dweight(dweight.slice_mut()).expect("the sums begin at 0");
        }
        if let Some(dbias) = &mut found.dbias {
            whole.dbias(dbias.slice_mut()).expect("the sums begin at 0");
        }
        self.check_parameters("pieces", level, &found);
    }

    fn residual(&self, level: Level) {
        let [mut dx, mut dr] = ["dx", "dr"].map(|name| self.room(name, self.x.len()));
        let mut io = BackwardIo::new(self.x.slice(), self.dy.slice(), dx.slice_mut()).dr(dr.slice_mut());
        if let Some(dresidual) = &self.dresidual {
            io = io.dresidual(dresidual.slice());
        }
        self.check_parameters("residual", level, &self.run("residual", level, io));
        self.check("dx", "residual", level, &dx);
        self.check("dr", "residual", level, &dr);
        let Some(dresidual) = &self.dresidual else { return };
        if dresidual.dtype() == self.case.out["dr"].dtype {
            let (mut dx, mut dr) = (self.room("dx", self.x.len()), dresidual.clone());
            let io = BackwardIo::new(self.x.slice(), self.dy.slice(), dx.slice_mut());
            let io = io.dresidual_in_place(dr.slice_mut());
            self.check_parameters("residual in place", level, &self.run("residual in place", level, io));
            self.check("dx", "residual in place", level, &dx);
            self.check("dr", "residual in place", level, &dr);
        }
    }

    fn every_form(&self) {
        for level in Level::available() {
            if self.case.out.contains_key("dr") {
                self.residual(level);
            } else {
                self.out_of_place(level);
                self.in_place(level);
                self.strided(level);
            }
            self.pieces(level);
        }
    }
}

fn check(cases: Vec<Case>, least: usize) {
    let cases: Vec<Golden> = cases.into_iter().filter_map(row_wise).collect();
    cases.iter().for_each(Golden::every_form);
    assert!(cases.len() >= least, "{} row-wise cases", cases.len());
}

#[test]
fn every_case_of_backward_json_has_the_stored_bits() {
    check(golden::backward(), 500);
}

#[test]
fn every_case_of_norms_json_has_the_stored_bits() {
    check(golden::shared(), 50);
}
