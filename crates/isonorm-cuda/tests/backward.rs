//! The backward kernels, run on the CPU: the stored bits of `spec/golden`, and the core's for any size, layout and shape.

mod support;

use std::sync::OnceLock;

use isonorm::{BackwardIo, Io, Level};
use isonorm_cuda::kernels::{Backward, Finish, Kernel, Norm, Parameters, Rows, Shape, Storage, Units};
use isonorm_testing::DType;
use isonorm_testing::golden;
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
        let shape = |groups, warps, is_long, is_whole| Shape { node: 1, groups, warps, is_long, is_whole };
        let mut kernels = vec![Kernel::Finish { compute: dtype(compute_type(x)) }];
        let x = dtype(x);
        for norm in [Norm::Rms, Norm::Layer, Norm::Llama] {
            for shape in
                [shape(whole / 2, 1, false, false), shape(whole, 16, false, false), shape(whole, 8, true, false)]
            {
                kernels.push(Kernel::Backward { norm, x, shape, params: own, dy: own, others: own });
            }
            let shape = shape(whole, 16, false, false);
            kernels.push(Kernel::Backward { norm, x, shape, params: any, dy: any, others: any });
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
    /// Whether statistics are given to the kernel of dx, as forward would have saved them.
    is_known: bool,
}

/// dx, dr, dweight, dbias.
type Outputs = [Option<Tensor>; 4];
const NAMES: [&str; 4] = ["dx", "dr", "dweight", "dbias"];

impl Call<'_> {
    fn is_for(&self, kernel: &Kernel) -> bool {
        let Kernel::Backward { norm, x, shape, params, dy, others } = *kernel else { return false };
        let written = [Some(self.dx), self.dr, self.dresidual.map(Tensor::dtype)];
        norm == norm_of(self.norm)
            && takes(params, self.norm.weight.as_ref().map(Tensor::dtype))
            && takes(dy, Some(self.dy.dtype()))
            && written.into_iter().all(|dtype| takes(others, dtype))
            && shape.launch(self.norm.hidden, x).is_some()
    }

    /// In every kernel that can do it; the parameters' units are of as many rows as the batch has or of one leaf.
    fn each(&self, check: impl Fn(&str, Outputs)) {
        let emulation = emulation(self.x.dtype());
        let mut count = 0;
        for kernel in emulation.kernels().iter().filter(|kernel| self.is_for(kernel)) {
            check(&kernel.name(), self.run(emulation, kernel));
            count += 1;
        }
        assert!(count > 0, "no kernel does {}", self.norm);
    }

    fn run(&self, emulation: &Emulation, kernel: &Kernel) -> Outputs {
        let (hidden, layout) = (self.norm.hidden, self.layout);
        let count = self.x.len() / hidden;
        let Kernel::Backward { x: x_type, shape, .. } = *kernel else { panic!("{} is not of dx", kernel.name()) };
        let launch = shape.launch(hidden, x_type).expect("the kernel was chosen for this");
        let mut weight = self.norm.weight.as_ref().map(|weight| Memory::new(weight, hidden, layout));
        let [mut x, mut dy] = [self.x, self.dy].map(|tensor| Memory::new(tensor, hidden, layout));
        let mut dresidual = self.dresidual.map(|dresidual| Memory::new(dresidual, hidden, layout));
        let mut dx = Some(Memory::empty(self.dx, count, hidden, layout));
        let mut dr = self.dr.map(|dtype| Memory::empty(dtype, count, hidden, layout));
        let mut saved = Saved::new(compute_type(self.x.dtype()), count);
        let rows = rows_of(self.norm, self.x.dtype(), count, &launch);
        let mut args = Backward {
            rows,
            x: x.argument(),
            dy: dy.argument(),
            weight: argument(&mut weight),
            dresidual: argument(&mut dresidual),
            dx: argument(&mut dx),
            dr: argument(&mut dr),
            known: std::ptr::null(),
            stats: address(&mut saved),
        };
        emulation.run(kernel, &args, launch.blocks(count), launch.threads);
        if self.is_known {
            args.known = address(&mut saved);
            args.stats = std::ptr::null_mut();
            emulation.run(kernel, &args, launch.blocks(count), launch.threads);
        }
        let [dweight, dbias] = self.parameters(emulation, rows, &mut saved, [&mut x, &mut dy]);
        [dx.map(|dx| dx.rows()), dr.map(|dr| dr.rows()), dweight, dbias]
    }

    fn parameters(
        &self,
        emulation: &Emulation,
        rows: Rows,
        saved: &mut Saved,
        [x, dy]: [&mut Memory; 2],
    ) -> [Option<Tensor>; 2] {
        let (hidden, layout) = (self.norm.hidden, self.layout);
        let (count, x_type) = (self.x.len() / hidden, dtype(self.x.dtype()));
        let own = Storage::Of(x_type);
        let dy_type = if takes(own, Some(self.dy.dtype())) { own } else { Storage::Any };
        let mut written =
            [self.dweight, self.dbias].map(|dtype| dtype.map(|dtype| Memory::empty(dtype, 1, hidden, layout)));
        for unit in [Units::of(count).rows, Units::of(count).rows * 4, count.next_power_of_two().max(16)] {
            let units = Units { rows: unit, count: count.div_ceil(unit) };
            let mut nodes = vec![f64::NAN; units.count * 2 * hidden];
            let args = Parameters {
                rows,
                x: x.argument(),
                dy: dy.argument(),
                stats: address(saved),
                nodes: nodes.as_mut_ptr().cast(),
                unit: unit as i64,
            };
            let (blocks, threads) = units.launch(hidden, x_type);
            let kernel = Kernel::Parameters { norm: norm_of(self.norm), x: x_type, dy: dy_type };
            emulation.run(&kernel, &args, blocks, threads);
            let [dweight, dbias] = written.each_mut().map(argument);
            let (units, width) = (units.count as i64, hidden as i64);
            let args = Finish { nodes: nodes.as_ptr().cast(), units, hidden: width, dweight, dbias };
            let (blocks, threads) = Units::finish(hidden);
            let kernel = Kernel::Finish { compute: dtype(compute_type(self.x.dtype())) };
            emulation.run(&kernel, &args, blocks, threads);
        }
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
        let call = Call { norm, x, dy, dresidual, dx, dr, dweight, dbias, layout, is_known: false };
        call.each(|kernel, found| {
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
    call.each(|kernel, found| {
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
            let is_known = i % 2 == 0;
            let call = Call { norm, x, dy, dresidual, dx, dr: None, dweight, dbias, layout, is_known };
            check(&call);
        }
    }
}
