//! The backward kernels, run on the CPU: the stored bits of `spec/golden`, and the core's for any size, layout and
//! shape.

mod support;

use std::sync::OnceLock;

use isonorm::{BackwardIo, Io, Level};
use isonorm_cuda::kernels::{Affine, Backward, Gradients, Kernel, Norm, Parameters, Scratch, Shape, Storage, Units};
use isonorm_testing::DType;
use isonorm_testing::golden::{self, Array};
use isonorm_testing::values::Kind;
use support::core::{BOTH, Norm as Spec, Saved, Tensor, Which, assert_same_bits, compute_type, one};
use support::emulation::Emulation;
use support::memory::{Layout, Memory, argument, dtype};
use support::{address, norm_of, rows_of, takes};

fn emulation(x: DType) -> &'static Emulation {
    static LIBRARIES: [OnceLock<Emulation>; 4] = [const { OnceLock::new() }; 4];
    let at = DType::ALL.iter().position(|dtype| *dtype == x).expect("one of all types");
    LIBRARIES[at].get_or_init(|| {
        let (own, any) = (Storage::Of(dtype(x)), Storage::Any);
        let whole = 16 / (x.digits() / 2);
        let shape = |groups, warps| Shape { node: 1, groups, warps, blocks: 1, is_long: false, is_whole: false };
        let long = Shape { is_long: true, ..shape(whole, 8) };
        let shapes = [
            (shape(whole / 2, 1), Gradients::Both),
            (shape(whole, 1), Gradients::Weight),
            (shape(whole, 8), Gradients::Both),
            (shape(whole, 16), Gradients::Weight),
            (long, Gradients::None),
            (Shape { is_whole: true, ..shape(whole / 2, 1) }, Gradients::Weight),
            (Shape { is_whole: true, ..shape(whole, 2) }, Gradients::Both),
            (Shape { is_whole: true, ..shape(whole, 16) }, Gradients::None),
            (Shape { is_whole: true, ..long }, Gradients::None),
            (Shape { blocks: 4, ..shape(whole, 2) }, Gradients::Both),
            (Shape { is_whole: true, blocks: 2, ..shape(whole, 2) }, Gradients::Weight),
        ];
        let mut kernels = vec![Kernel::Finish { compute: dtype(compute_type(x)) }];
        let x = dtype(x);
        for norm in [Norm::Rms, Norm::Layer, Norm::Llama] {
            for (shape, gradients) in shapes {
                if norm != Norm::Llama || !shape.is_whole {
                    let affine = if shape.is_whole && shape.warps > 1 { Affine::Weight } else { Affine::Open };
                    kernels.push(Kernel::Backward {
                        norm,
                        x,
                        shape,
                        params: own,
                        affine,
                        dy: own,
                        others: own,
                        gradients,
                    });
                }
            }
            for (shape, gradients) in [(shape(whole, 16), Gradients::Both), (long, Gradients::None)] {
                let affine = Affine::Open;
                kernels.push(Kernel::Backward { norm, x, shape, params: any, affine, dy: any, others: any, gradients });
            }
            kernels.extend([own, any].map(|dy| Kernel::Parameters { norm, x, dy }));
        }
        Emulation::new(kernels)
    })
}

/// One backward call. What is written has these types.
struct Call<'a> {
    norm: &'a Spec,
    x: &'a Tensor,
    dy: &'a Tensor,
    dresidual: Option<&'a Tensor>,
    dx: DType,
    dr: Option<DType>,
    dweight: Option<DType>,
    dbias: Option<DType>,
    layout: Layout,
}

/// How the rows are cut into units.
#[derive(Clone, Copy, Debug)]
enum Cut {
    /// As for a GPU.
    Usual,
    /// Units of as many leaves.
    Leaves(usize),
}

/// dx, dr, dweight, dbias.
type Outputs = [Option<Tensor>; 4];
const NAMES: [&str; 4] = ["dx", "dr", "dweight", "dbias"];

impl Call<'_> {
    fn is_for(&self, kernel: &Kernel) -> bool {
        let Kernel::Backward { norm, x, shape, params, affine, dy, others, .. } = *kernel else { return false };
        let written = [Some(self.dx), self.dr, self.dresidual.map(Tensor::dtype)];
        norm == norm_of(self.norm)
            && (affine == Affine::Open || affine == Affine::of(self.norm.weight.is_some(), false, self.norm.offset))
            && takes(params, self.norm.weight.as_ref().map(Tensor::dtype))
            && takes(dy, Some(self.dy.dtype()))
            && written.into_iter().all(|dtype| takes(others, dtype))
            && shape.launch(self.norm.hidden, x).is_some()
    }

    /// In every kernel that can do it, each with all of these units. But for the first of them, statistics are given to
    /// the kernel of dx, as forward would have saved them.
    fn each(&self, cuts: &[Cut], check: impl Fn(&str, Outputs)) {
        let emulation = emulation(self.x.dtype());
        let mut count = 0;
        for kernel in emulation.kernels().iter().filter(|kernel| self.is_for(kernel)) {
            let mut saved = Saved::new(compute_type(self.x.dtype()), self.x.len() / self.norm.hidden);
            for (i, cut) in cuts.iter().enumerate() {
                if let Some(outputs) = self.run(emulation, kernel, *cut, &mut saved, i > 0) {
                    check(&format!("{}, {cut:?}", kernel.name()), outputs);
                    count += 1;
                }
            }
        }
        assert!(count > 0, "no kernel does {}", self.norm);
    }

    /// `None` where the kernel is for other tensors.
    fn run(
        &self,
        emulation: &Emulation,
        kernel: &Kernel,
        cut: Cut,
        saved: &mut Saved,
        is_known: bool,
    ) -> Option<Outputs> {
        let (hidden, layout) = (self.norm.hidden, self.layout);
        let count = self.x.len() / hidden;
        let Kernel::Backward { x: x_type, shape, gradients, .. } = *kernel else { panic!("it is not of dx") };
        let launch = shape.launch(hidden, x_type).expect("the kernel was chosen for this");
        let mut weight = self.norm.weight.as_ref().map(|weight| Memory::new(weight, hidden, layout));
        let [mut x, mut dy] = [self.x, self.dy].map(|tensor| Memory::new(tensor, hidden, layout));
        let mut dresidual = self.dresidual.map(|dresidual| Memory::new(dresidual, hidden, layout));
        let mut dx = Some(Memory::empty(self.dx, count, hidden, layout));
        let mut dr = self.dr.map(|dtype| Memory::empty(dtype, count, hidden, layout));
        let mut args = Backward {
            rows: rows_of(self.norm, self.x.dtype(), count, &launch),
            x: x.argument(),
            dy: dy.argument(),
            weight: argument(&mut weight),
            dresidual: argument(&mut dresidual),
            dx: argument(&mut dx),
            dr: argument(&mut dr),
            known: if is_known { address(saved) } else { std::ptr::null_mut() },
            stats: if is_known { std::ptr::null_mut() } else { address(saved) },
            scratch: Scratch::NONE,
        };
        let Backward { x, dy, weight, dresidual, dx: to, dr: copy, .. } = args;
        let is_whole = shape.with(hidden, x_type, &[x, dy, weight, dresidual, to, copy]).is_whole;
        if shape.is_whole && (self.norm.partial.is_some() || !is_whole) {
            return None;
        }
        let side_by_side = if gradients == Gradients::None { 1 } else { Units::of(count, &launch).side_by_side };
        let units = match cut {
            Cut::Leaves(leaves) => Units::new(count, leaves, side_by_side),
            Cut::Usual if gradients == Gradients::None => Units::of_columns(count),
            Cut::Usual => Units::of(count, &launch),
        };
        let mut nodes = vec![f64::NAN; units.values(hidden)];
        let scratch = units.scratch(nodes.as_mut_ptr().cast());
        let done = if gradients == Gradients::None {
            count
        } else {
            args.scratch = scratch;
            units.count
        };
        emulation.run_in_clusters(kernel, &args, launch.blocks(done), launch.threads, launch.cluster);
        if gradients == Gradients::None {
            self.sum_columns(
                emulation,
                kernel,
                &Parameters { rows: args.rows, x, dy, stats: address(saved), scratch },
                units,
            );
        }
        let dbias = self.dbias.filter(|_| gradients != Gradients::Weight);
        let [dweight, dbias] = self.finish(emulation, units, &nodes, [self.dweight, dbias]);
        Some([dx.map(|dx| dx.rows()), dr.map(|dr| dr.rows()), dweight, dbias])
    }

    /// The sums of units, after a kernel that did not take them along.
    fn sum_columns(&self, emulation: &Emulation, kernel: &Kernel, args: &Parameters, units: Units) {
        let Kernel::Backward { norm, x, dy, .. } = *kernel else { panic!("it is not of dx") };
        let (blocks, threads) = units.launch(self.norm.hidden, x);
        emulation.run(&Kernel::Parameters { norm, x, dy }, args, blocks, threads);
    }

    fn finish(
        &self,
        emulation: &Emulation,
        units: Units,
        nodes: &[f64],
        types: [Option<DType>; 2],
    ) -> [Option<Tensor>; 2] {
        let (hidden, layout) = (self.norm.hidden, self.layout);
        let mut written = types.map(|dtype| dtype.map(|dtype| Memory::empty(dtype, 1, hidden, layout)));
        let [dweight, dbias] = written.each_mut().map(argument);
        let (blocks, threads) = Units::finish(hidden);
        let kernel = Kernel::Finish { compute: dtype(compute_type(self.x.dtype())) };
        emulation.run(&kernel, &units.sums(nodes.as_ptr().cast(), hidden, dweight, dbias), blocks, threads);
        written.map(|memory| memory.map(|memory| memory.rows()))
    }
}

#[test]
fn golden_bits() {
    for case in golden::backward().into_iter().chain(golden::shared()) {
        if !case.out.contains_key("dx") {
            continue;
        }
        let Some((norm, _)) = Spec::of(&case) else { continue };
        let input = |name| case.input(name).map(Tensor::new);
        let mut x = Tensor::new(case.x());
        if let Some(residual) = input("residual") {
            let [mut r, mut y] = [(); 2].map(|()| Tensor::sentinel(case.normalized_type(), x.len()));
            let io = Io::add(x.slice(), residual.slice(), r.slice_mut(), y.slice_mut());
            norm.apply(one(Level::detect()), io).expect("the core takes a golden case");
            x = r;
        }
        let (dy, dresidual) = (input("dy").expect("a backward case has dy"), input("dresidual"));
        let [dx, dr, dweight, dbias] = NAMES.map(|name| case.out.get(name).map(|out| out.dtype));
        let layout = Layout { stride: norm.hidden, offset: 0 };
        let dx = dx.expect("a backward case has dx");
        let (norm, x, dy, dresidual) = (&norm, &x, &dy, dresidual.as_ref());
        let call = Call { norm, x, dy, dresidual, dx, dr, dweight, dbias, layout };
        call.each(&[Cut::Usual], |kernel, found| {
            for (name, found) in NAMES.into_iter().zip(found) {
                if let (Some(expected), Some(found)) = (case.out.get(name), found) {
                    let label = format!("{} {name}, {kernel}", case.name);
                    assert_same_bits(&label, norm.hidden, &Tensor::new(expected), &found);
                }
            }
        });
    }
}

/// As the core has it, in every kernel.
fn check(call: &Call<'_>) {
    let room = |dtype: Option<DType>, n| dtype.map(|dtype| Tensor::sentinel(dtype, n));
    let hidden = call.norm.hidden;
    let mut dx = Tensor::sentinel(call.dx, call.x.len());
    let (mut dweight, mut dbias) = (room(call.dweight, hidden), room(call.dbias, hidden));
    let mut io = BackwardIo::new(call.x.slice(), call.dy.slice(), dx.slice_mut());
    if let Some(dresidual) = call.dresidual {
        io = io.dresidual(dresidual.slice());
    }
    if let Some(dweight) = &mut dweight {
        io = io.dweight(dweight.slice_mut());
    }
    if let Some(dbias) = &mut dbias {
        io = io.dbias(dbias.slice_mut());
    }
    call.norm.backward(one(Level::detect()), io).expect("the core takes the call");
    call.each(&[Cut::Usual, Cut::Leaves(2), Cut::Leaves(4)], |kernel, found| {
        let expected = [Some(&dx), None, dweight.as_ref(), dbias.as_ref()];
        for ((name, expected), found) in NAMES.into_iter().zip(expected).zip(found) {
            if let (Some(expected), Some(found)) = (expected, found) {
                let label = format!("{} {name}, {:?}, {kernel}", call.norm, call.layout);
                assert_same_bits(&label, hidden, expected, &found);
            }
        }
    });
}

#[test]
fn any_size_and_layout() {
    let sizes =
        [(1, 40), (7, 33), (32, 600), (100, 17), (128, 1), (257, 50), (512, 31), (1031, 18), (4096, 3), (9000, 2)];
    for (i, (hidden, count)) in sizes.into_iter().enumerate() {
        for (j, which) in BOTH.into_iter().enumerate() {
            let dtype = DType::ALL[(i + j) % 4];
            let kind = Kind::ALL[(i + 3 * j) % Kind::ALL.len()];
            let x = &Tensor::values(dtype, kind, i as u64, count * hidden);
            let dy = &Tensor::values(dtype, Kind::Normal, 77, count * hidden);
            let other = Tensor::values(dtype, Kind::Normal, 78, count * hidden);
            let weight = (i % 3 != 2).then(|| Tensor::values(dtype, Kind::Normal, 79, hidden));
            let eps = isonorm_testing::oracle::Eps { value: 1e-3, outside: i % 2 == 1 };
            let partial = (which == Which::Rms && i % 3 == 1).then_some(hidden.div_ceil(2));
            let llama = which == Which::Rms && i % 2 == 0;
            let norm = &Spec { weight, eps, partial, llama, ..Spec::new(which, hidden) };
            let layout = if i % 2 == 0 {
                Layout { stride: hidden + 3, offset: 1 }
            } else {
                Layout { stride: hidden.next_multiple_of(8), offset: 8 }
            };
            let dresidual = (i % 4 == 0).then_some(&other);
            let dweight = (norm.weight.is_some() || i % 2 == 0).then_some(dtype);
            let (dx, dbias) = (dtype, Some(DType::F32).filter(|_| dtype != DType::F64));
            let call = Call { norm, x, dy, dresidual, dx, dr: None, dweight, dbias, layout };
            check(&call);
        }
    }
}

/// Rows of whole threads, aligned.
#[test]
fn whole_rows() {
    let sizes = [(128, 70), (256, 35), (512, 50), (1024, 33), (2048, 20), (4096, 3)];
    for (i, (hidden, count)) in sizes.into_iter().enumerate() {
        for (j, which) in BOTH.into_iter().enumerate() {
            let dtype = DType::ALL[(i + j) % 4];
            let x = &Tensor::values(dtype, Kind::ALL[(i + j) % 3], i as u64, count * hidden);
            let [dy, other] = &[77, 78].map(|seed| Tensor::values(dtype, Kind::Normal, seed, count * hidden));
            let weight = (i % 3 != 2).then(|| Tensor::values(dtype, Kind::Normal, 79, hidden));
            let norm = &Spec { weight, ..Spec::new(which, hidden) };
            let layout = Layout { stride: hidden + 16, offset: 0 };
            let dresidual = (i % 4 == 1).then_some(other);
            let (dx, dr, own) = (dtype, Some(dtype), Some(dtype));
            check(&Call { norm, x, dy, dresidual, dx, dr, dweight: own, dbias: own, layout });
        }
    }
}

/// Sums that are -0: all products underflow to it. So a leaf, warp, piece, block or unit that a row or batch does not
/// have may not count as +0. Where dy is -0, dx shows the sign of the products' mean.
#[test]
fn sums_of_negative_zeros() {
    for (hidden, count) in [(96, 3), (352, 35), (416, 50), (1536, 19), (2560, 3), (9728, 1)] {
        for (dtype, least) in [(DType::F32, f64::from(f32::from_bits(1))), (DType::F64, f64::from_bits(1))] {
            let at_outlier = |i: usize| i % hidden == 40;
            let values = |of: &dyn Fn(usize) -> f64| (0..count * hidden).map(of).collect::<Vec<_>>();
            let x = values(&|i| if at_outlier(i) { 1000.0 } else { 0.25 + (i % 7) as f64 / 16.0 });
            let dy = values(&|i| if at_outlier(i) { -0.0 } else { -least });
            let [x, dy] = &[x, dy].map(|values| Tensor::new(&Array::from_values(dtype, &values)));
            let norm = &Spec::new(Which::Rms, hidden);
            for stride in [hidden, hidden + 1] {
                let layout = Layout { stride, offset: 0 };
                let (dx, own) = (dtype, Some(dtype));
                check(&Call { norm, x, dy, dresidual: None, dx, dr: None, dweight: own, dbias: own, layout });
            }
        }
    }
}
