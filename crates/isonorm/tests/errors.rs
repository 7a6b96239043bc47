//! Calls that are refused: which error, what it says, and that nothing was written.
//! Those of the channel-wise norms are in `channels.rs`.

mod support;

use half::{bf16, f16};
use isonorm::{Cpu, DType, Error, Io, LayerNorm, Level, RmsNorm, Rows, RowsMut, SliceMut, Stats};
use support::{Saved, Tensor};

/// An output that must keep its sentinels.
fn sentinel(n: usize) -> Tensor {
    Tensor::sentinel(isonorm_testing::DType::F32, n)
}

fn f64s(n: usize) -> Tensor {
    Tensor::sentinel(isonorm_testing::DType::F64, n)
}

/// Calls with `y`, of 12 elements, and holds the result to `error` and its text.
#[track_caller]
fn refused(error: Error, text: &str, call: impl FnOnce(SliceMut<'_>) -> Result<(), Error>) {
    let mut y = sentinel(12);
    assert_eq!(call(y.slice_mut()), Err(error.clone()));
    assert_eq!(error.to_string(), text);
    assert_eq!(y.array(), sentinel(12).array(), "y was written: {text}");
}

const X: [f32; 12] = [1.0; 12];

#[test]
fn a_weight_or_bias_of_another_length_is_refused() {
    let five = [1.0f32; 5];
    let error = |name| Error::ParameterLen { name, per: "normalized element", expected: 4, found: 5 };
    let text = "weight has 5 elements, expected 4: one for each normalized element";
    refused(error("weight"), text, |y| RmsNorm::new(4).weight(&five).forward(&X, y));
    refused(error("weight"), text, |y| LayerNorm::new(4).weight(&five).forward(&X, y));
    let text = "bias has 5 elements, expected 4: one for each normalized element";
    refused(error("bias"), text, |y| RmsNorm::new(4).bias(&five).forward(&X, y));
    refused(error("bias"), text, |y| LayerNorm::new(4).bias(&five).forward(&X, y));
}

#[test]
fn a_part_of_a_row_is_refused() {
    let error = |name, found, size| Error::NotWhole { name, what: "rows", found, size };
    let text = "x has 12 elements, which is not a whole number of rows of 5 elements";
    refused(error("x", 12, 5), text, |y| RmsNorm::new(5).forward(&X, y));
    let text = "y has 12 elements, which is not a whole number of rows of 5 elements";
    refused(error("y", 12, 5), text, |y| RmsNorm::new(5).forward(&X[..10], y));
    let text = "x has 12 elements, which is not a whole number of rows of 0 elements";
    refused(error("x", 12, 0), text, |y| LayerNorm::new(0).forward(&X, y));
    let text = "x has 12 elements, which is not a whole number of rows of 18446744073709551615 elements";
    refused(error("x", 12, usize::MAX), text, |y| LayerNorm::new(usize::MAX).forward(&X, y));
}

#[test]
fn tensors_of_different_shapes_are_refused() {
    let error = |name, like, expected: &[usize], found: &[usize]| Error::Shape {
        name,
        like,
        expected: expected.to_vec(),
        found: found.to_vec(),
    };
    let text = "y has shape [3, 4], expected [2, 4] as x has";
    refused(error("y", "x", &[2, 4], &[3, 4]), text, |y| RmsNorm::new(4).forward(&X[..8], y));
    let text = "y has shape [3, 4], expected [0, 4] as x has";
    refused(error("y", "x", &[0, 4], &[3, 4]), text, |y| RmsNorm::new(4).forward(&X[..0], y));
    let text = "y has shape [3, 4], expected [1, 2, 4] as x has";
    refused(error("y", "x", &[1, 2, 4], &[3, 4]), text, |y| {
        RmsNorm::new(4).forward(Rows::strided(&X, 0, &[1, 2], &[0, 4]), y)
    });
    let text = "residual has shape [2, 4], expected [3, 4] as x has";
    refused(error("residual", "x", &[3, 4], &[2, 4]), text, |y| {
        let mut r = X;
        RmsNorm::new(4).apply(Io::add(&X, &X[..8], &mut r, y))
    });
    let text = "r has shape [2, 4], expected [3, 4] as x has";
    refused(error("r", "x", &[3, 4], &[2, 4]), text, |y| {
        let mut r = [0.0f32; 8];
        RmsNorm::new(4).apply(Io::add(&X, &X, &mut r, y))
    });
    let text = "stats has shape [2, 1], expected [3, 1] as x has";
    refused(error("stats", "x", &[3, 1], &[2, 1]), text, |y| {
        RmsNorm::new(4).apply(Io::new(&X, y).stats(&mut [Stats::<f32>::default(); 2]))
    });
}

#[test]
fn views_that_leave_their_slice_are_refused() {
    let error = |name, reaches| Error::OutOfBounds { name, reaches, len: 12 };
    let text = "x reaches element 12 of a slice of 12: check its shape, strides and offset";
    refused(error("x", 12), text, |y| RmsNorm::new(4).forward(Rows::strided(&X, 1, &[3], &[4]), y));
    let text = "x reaches element -1 of a slice of 12: check its shape, strides and offset";
    refused(error("x", -1), text, |y| RmsNorm::new(4).forward(Rows::strided(&X, 7, &[3], &[-4]), y));
    let text = "y reaches element 20 of a slice of 12: check its shape, strides and offset";
    refused(error("y", 20), text, |y| RmsNorm::new(3).forward(&X[..9], RowsMut::strided(y, 0, &[3], &[9])));
    let text = "x reaches element 18446744073709551618 of a slice of 12: check its shape, strides and offset";
    refused(error("x", 18446744073709551618), text, |y| {
        RmsNorm::new(4).forward(Rows::strided(&X, usize::MAX, &[3], &[0]), y)
    });
}

#[test]
fn outputs_whose_rows_share_elements_are_refused() {
    let error = |name, shape: &[usize], strides: &[isize]| Error::Overlap {
        name,
        shape: shape.to_vec(),
        strides: strides.to_vec(),
    };
    let text = "y has rows that overlap (shape [3], strides [0]): an output needs rows of its own";
    refused(error("y", &[3], &[0]), text, |y| RmsNorm::new(4).forward(&X, RowsMut::strided(y, 0, &[3], &[0])));
    let text = "y has rows that overlap (shape [3], strides [-3]): an output needs rows of its own";
    refused(error("y", &[3], &[-3]), text, |y| RmsNorm::new(4).forward(&X, RowsMut::strided(y, 6, &[3], &[-3])));
    let text = "x has rows that overlap (shape [2, 2], strides [4, 4]): an output needs rows of its own";
    refused(error("x", &[2, 2], &[4, 4]), text, |x| {
        LayerNorm::new(4).apply(Io::in_place(RowsMut::strided(x, 0, &[2, 2], &[4, 4])))
    });
    let text = "r has rows that overlap (shape [3], strides [2]): an output needs rows of its own";
    refused(error("r", &[3], &[2]), text, |y| {
        let mut r = X;
        RmsNorm::new(4).apply(Io::add(&X, &X, RowsMut::strided(&mut r, 0, &[3], &[2]), y))
    });
    let text = "residual has rows that overlap (shape [3], strides [2]): an output needs rows of its own";
    refused(error("residual", &[3], &[2]), text, |x| {
        let mut r = X;
        RmsNorm::new(4).apply(Io::add_in_place(x, RowsMut::strided(&mut r, 0, &[3], &[2])))
    });
}

#[test]
fn too_many_or_unequal_dimensions_are_refused() {
    let error = |name, dims, strides| Error::Dims { name, dims, strides, most: 8 };
    let text = "x has 9 leading dimensions and 9 strides, expected as many of each, at most 8";
    refused(error("x", 9, 9), text, |y| RmsNorm::new(4).forward(Rows::strided(&X, 0, &[1; 9], &[0; 9]), y));
    let text = "y has 2 leading dimensions and 1 strides, expected as many of each, at most 8";
    refused(error("y", 2, 1), text, |y| RmsNorm::new(4).forward(&X, RowsMut::strided(y, 0, &[3, 1], &[4])));
}

#[test]
fn f64_with_other_types_is_refused() {
    let error = |name, found, expected| Error::Type { name, found, like: "x", expected };
    let of_sum = |name, found, expected| Error::Type { name, found, like: "x + residual", expected };
    let (wide, wide_x) = ([1.0f64; 4], [1.0f64; 12]);
    let text =
        "weight is f64, which does not go with x of f32: f64 goes with f64 alone, and an f64 weight needs x in f64";
    refused(error("weight", DType::F64, DType::F32), text, |y| RmsNorm::new(4).weight(&wide).forward(&X, y));
    let (_, bias) =
        (text, "bias is f64, which does not go with x of f32: f64 goes with f64 alone, and an f64 bias needs x in f64");
    refused(error("bias", DType::F64, DType::F32), bias, |y| LayerNorm::new(4).bias(&wide).forward(&X, y));
    let mut y = f64s(12);
    let result = RmsNorm::new(4).forward(&X, y.slice_mut());
    assert_eq!(result, Err(error("y", DType::F64, DType::F32)));
    assert_eq!(y.array(), f64s(12).array(), "y was written");
    let mut y = sentinel(12);
    assert_eq!(RmsNorm::new(4).forward(&wide_x, y.slice_mut()), Err(error("y", DType::F32, DType::F64)));
    let (mut r, mut y) = (f64s(12), sentinel(12));
    let add = RmsNorm::new(4).apply(Io::add(&X, &X, r.slice_mut(), y.slice_mut()));
    assert_eq!(add, Err(of_sum("x", DType::F32, DType::F64)));
    let mut r = sentinel(12);
    let add = RmsNorm::new(4).apply(Io::add(&X, &wide_x, r.slice_mut(), y.slice_mut()));
    assert_eq!(add, Err(of_sum("residual", DType::F64, DType::F32)));
    let add = RmsNorm::new(4).apply(Io::add(&wide_x, &X, r.slice_mut(), y.slice_mut()));
    assert_eq!(add, Err(of_sum("x", DType::F64, DType::F32)));
    let add = RmsNorm::new(4).apply(Io::add_in_place(y.slice_mut(), f64s(12).slice_mut()));
    assert_eq!(add, Err(of_sum("x", DType::F32, DType::F64)), "x is what becomes y");
    let (half_x, mut sum) = ([bf16::ONE; 12], [f16::ONE; 12]);
    let add = RmsNorm::new(4).weight(&wide).apply(Io::add(&half_x, &[f16::ONE; 12], &mut sum, y.slice_mut()));
    let text = "weight is f64, which does not go with x + residual of f16: f64 goes with f64 alone, and an f64 weight \
                needs x + residual in f64";
    assert_eq!(add.map_err(|error| error.to_string()), Err(text.to_owned()));
    let result = RmsNorm::new(4).forward(&wide_x, y.slice_mut()).map_err(|error| error.to_string());
    let text = "y is f32, which does not go with x of f64: f64 goes with f64 alone, and an f64 x needs y in f64";
    assert_eq!(result, Err(text.to_owned()));
    assert_eq!((r.array(), y.array()), (sentinel(12).array(), sentinel(12).array()), "an output was written");
}

#[test]
fn statistics_of_the_wrong_type_are_refused() {
    let error = |found, expected| Error::TypeIsNot { name: "stats", found, expected };
    refused(error(DType::F64, DType::F32), "stats is f64, expected f32", |y| {
        RmsNorm::new(4).apply(Io::new(&X, y).stats(&mut [Stats::<f64>::default(); 3]))
    });
    let mut y = f64s(4);
    let mut stats = [Stats::<f32>::default(); 1];
    let io = Io::new(&[1.0f64; 4], y.slice_mut()).stats(&mut stats);
    assert_eq!(RmsNorm::new(4).apply(io), Err(error(DType::F32, DType::F64)));
    assert_eq!(y.array(), f64s(4).array(), "y was written");
}

#[test]
fn an_eps_that_is_no_number_of_at_least_0_is_refused() {
    for (eps, shown) in [(-1e-6, "-0.000001"), (f64::INFINITY, "inf"), (-1.0, "-1")] {
        let error = Error::Option { name: "eps", found: eps, expected: "a finite number of at least 0" };
        let text = format!("eps is {shown}, expected a finite number of at least 0");
        refused(error.clone(), &text, |y| RmsNorm::new(4).eps(eps).forward(&X, y));
        refused(error, &text, |y| LayerNorm::new(4).eps(eps).eps_outside().forward(&X, y));
    }
    let mut y = sentinel(12);
    let result = RmsNorm::new(4).eps(f64::NAN).forward(&X, y.slice_mut());
    assert!(matches!(result, Err(Error::Option { name: "eps", found, .. }) if found.is_nan()), "{result:?}");
    // Too large for f32, not for f64.
    assert!(RmsNorm::new(4).eps(1e39).forward(&X, y.slice_mut()).is_err());
    assert_eq!(y.array(), sentinel(12).array(), "y was written");
    assert_eq!(RmsNorm::new(4).eps(1e39).forward(&[1.0f64; 12], f64s(12).slice_mut()), Ok(()));
    assert_eq!(RmsNorm::new(4).eps(-0.0).forward(&X, y.slice_mut()), Ok(()));
}

#[test]
fn options_are_checked_where_there_is_no_row_too() {
    assert!(RmsNorm::new(4).eps(-1.0).forward(&X[..0], &mut [0.0f32; 0]).is_err());
    assert_eq!(RmsNorm::new(4).on(Cpu::new().threads(0)).forward(&X[..0], &mut [0.0f32; 0]), Err(Error::NoThreads));
}

#[test]
fn a_partial_outside_the_row_is_refused() {
    for found in [0, 5, usize::MAX] {
        let text = format!("partial is {found}, expected 1 to 4, the normalized elements");
        refused(Error::Partial { found, hidden: 4 }, &text, |y| RmsNorm::new(4).partial(found).forward(&X, y));
    }
}

#[test]
fn an_offset_without_a_weight_or_beyond_the_finite_is_refused() {
    let text = "weight_offset is 1, but there is no weight to add it to: give a weight, or leave the offset out";
    refused(Error::OffsetWithoutWeight { offset: 1.0 }, text, |y| RmsNorm::new(4).weight_offset(1.0).forward(&X, y));
    refused(Error::OffsetWithoutWeight { offset: 1.0 }, text, |y| LayerNorm::new(4).weight_offset(1.0).forward(&X, y));
    let error = Error::Option { name: "weight_offset", found: f64::INFINITY, expected: "a finite number" };
    refused(error, "weight_offset is inf, expected a finite number", |y| {
        RmsNorm::new(4).weight(&[1.0f32; 4]).weight_offset(f64::INFINITY).forward(&X, y)
    });
}

/// `spec`: an offset counts as given where it is not 0 after its rounding to the compute type.
#[test]
fn an_offset_that_rounds_to_0_is_no_offset() {
    let mut y = [0.0f32; 12];
    assert_eq!(RmsNorm::new(4).weight_offset(1e-60).forward(&X, &mut y), Ok(()));
    assert!(RmsNorm::new(4).weight_offset(1e-60).forward(&[1.0f64; 4], &mut [0.0f64; 4]).is_err());
}

#[test]
fn no_threads_are_refused() {
    let none = Cpu::new().threads(0);
    let text = "threads is 0, expected at least 1";
    refused(Error::NoThreads, text, |y| RmsNorm::new(4).on(none).forward(&X, y));
    refused(Error::NoThreads, text, |y| LayerNorm::new(4).on(none).forward(&X, y));
}

#[test]
fn a_level_that_the_cpu_lacks_is_refused() {
    let best = Level::detect();
    for level in [Level::Scalar, Level::Avx2, Level::Avx512, Level::Neon] {
        let on = Cpu::new().level(level);
        if level.is_available() {
            assert_eq!(RmsNorm::new(4).on(on).forward(&X, sentinel(12).slice_mut()), Ok(()));
            continue;
        }
        let text = format!("level {level} is not available on this CPU; the best here is {best}");
        refused(Error::LevelUnavailable { level, best }, &text, |y| RmsNorm::new(4).on(on).forward(&X, y));
    }
    assert!(!(Level::Avx2.is_available() && Level::Neon.is_available()));
}

#[test]
fn a_name_that_is_no_level_is_refused() {
    for name in ["", "AVX2", "sse2", "avx2 "] {
        let error = name.parse::<Level>().expect_err("no level");
        assert_eq!(error, Error::LevelUnknown { found: name.to_owned() });
        let text = format!("`{name}` is no level, expected scalar, avx2, avx512 or neon");
        assert!(error.to_string().starts_with(&text), "{error}");
    }
    for level in [Level::Scalar, Level::Avx2, Level::Avx512, Level::Neon] {
        assert_eq!(level.to_string().parse(), Ok(level));
    }
}

/// What a call on the default level returns; run by the next test, under another environment.
#[test]
#[ignore = "a child process of the next test"]
fn child() {
    println!("<{:?}>", RmsNorm::new(4).forward(&X, &mut [0.0f32; 12]));
}

#[test]
fn isonorm_level_is_obeyed_or_refused() {
    let run = |level: &str| {
        let program = std::env::current_exe().expect("the path of this test");
        let mut child = std::process::Command::new(program);
        child.args(["--exact", "child", "--ignored", "--nocapture"]).env("ISONORM_LEVEL", level);
        String::from_utf8(child.output().expect("the child runs").stdout).expect("text")
    };
    for level in [Level::Scalar, Level::Avx2, Level::Avx512, Level::Neon] {
        let found = run(&level.to_string());
        let expected = match level.is_available() {
            true => "<Ok(())>".to_owned(),
            false => format!("<Err(LevelUnavailable {{ level: {level:?}, best: {:?} }})>", Level::detect()),
        };
        assert!(found.contains(&expected), "ISONORM_LEVEL={level}: {found}");
    }
    let found = run("sse9");
    assert!(found.contains("<Err(LevelUnknown { found: \"sse9\" })>"), "{found}");
}

#[test]
fn nothing_of_a_refused_residual_add_is_written() {
    let (mut r, mut y, mut saved) = (sentinel(12), sentinel(12), Saved::new(isonorm_testing::DType::F32, 3));
    let before = saved.clone();
    let norm = RmsNorm::new(4).on(Cpu::new().threads(0));
    let io = Io::add(&X, &X, r.slice_mut(), y.slice_mut()).stats(saved.stats_mut());
    assert_eq!(norm.apply(io), Err(Error::NoThreads));
    let io = Io::add_in_place(y.slice_mut(), r.slice_mut()).stats(saved.stats_mut());
    assert!(RmsNorm::new(4).eps(-1.0).apply(io).is_err());
    assert_eq!((r.array(), y.array(), saved), (sentinel(12).array(), sentinel(12).array(), before));
}
