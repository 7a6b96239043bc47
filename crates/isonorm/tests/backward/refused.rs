//! Backward calls that are refused: which error, what it says, and that nothing was written.

use isonorm::{BackwardIo, DType, Error, LayerNorm, Partial, RmsNorm, Stats};

const X: [f32; 12] = [1.0; 12];

/// Calls with dx, dweight and dbias of 12, 4 and 4 elements, and holds the result to `error` and its text.
#[track_caller]
fn refused(error: Error, text: &str, call: impl FnOnce(&mut [f32], &mut [f32], &mut [f32]) -> Result<(), Error>) {
    let (mut dx, mut dweight, mut dbias) = ([9.0f32; 12], [9.0f32; 4], [9.0f32; 4]);
    assert_eq!(call(&mut dx, &mut dweight, &mut dbias), Err(error.clone()));
    assert_eq!(error.to_string(), text);
    assert!(dx.iter().chain(&dweight).chain(&dbias).all(|x| *x == 9.0), "written: {text}");
}

#[test]
fn gradients_of_another_length_are_refused() {
    let error = |name| Error::ParameterLen { name, per: "normalized element", expected: 4, found: 3 };
    let text = "dweight has 3 elements, expected 4: one for each normalized element";
    refused(error("dweight"), text, |dx, dweight, _| {
        RmsNorm::new(4).backward(BackwardIo::new(&X, &X, dx).dweight(&mut dweight[..3]))
    });
    let text = "dbias has 3 elements, expected 4: one for each normalized element";
    refused(error("dbias"), text, |dx, _, dbias| {
        LayerNorm::new(4).backward(BackwardIo::new(&X, &X, dx).dbias(&mut dbias[..3]))
    });
}

#[test]
fn tensors_of_another_shape_are_refused() {
    let error = |name| Error::Shape { name, like: "x", expected: vec![3, 4], found: vec![2, 4] };
    let text = "dy has shape [2, 4], expected [3, 4] as x has";
    refused(error("dy"), text, |dx, _, _| RmsNorm::new(4).backward(BackwardIo::new(&X, &X[..8], dx)));
    let text = "dx has shape [2, 4], expected [3, 4] as x has";
    refused(error("dx"), text, |dx, _, _| RmsNorm::new(4).backward(BackwardIo::new(&X, &X, &mut dx[..8])));
    let text = "dy has shape [2, 4], expected [3, 4] as x has";
    refused(error("dy"), text, |dx, _, _| RmsNorm::new(4).backward(BackwardIo::in_place(&X, &mut dx[..8])));
    let text = "dresidual has shape [2, 4], expected [3, 4] as x has";
    refused(error("dresidual"), text, |dx, _, _| {
        RmsNorm::new(4).backward(BackwardIo::new(&X, &X, dx).dresidual(&X[..8]))
    });
    let text = "dr has shape [2, 4], expected [3, 4] as x has";
    refused(error("dr"), text, |dx, _, _| {
        let mut dr = [0.0f32; 8];
        RmsNorm::new(4).backward(BackwardIo::new(&X, &X, dx).dr(&mut dr))
    });
    let stats = [Stats::<f32>::default(); 2];
    let error = Error::Shape { name: "stats", like: "x", expected: vec![3, 1], found: vec![2, 1] };
    refused(error.clone(), &error.to_string(), |dx, _, _| {
        RmsNorm::new(4).backward(BackwardIo::new(&X, &X, dx).stats(&stats))
    });
}

#[test]
fn types_that_do_not_go_together_are_refused() {
    let wide = [1.0f64; 12];
    let error = |name| Error::Type { name, found: DType::F64, like: "x", expected: DType::F32 };
    let text = "dy is f64, which does not go with x of f32: f64 goes with f64 alone, and an f64 dy needs x in f64";
    refused(error("dy"), text, |dx, _, _| RmsNorm::new(4).backward(BackwardIo::new(&X, &wide, dx)));
    let text = "dresidual is f64, which does not go with x of f32: f64 goes with f64 alone, and an f64 dresidual \
                needs x in f64";
    refused(error("dresidual"), text, |dx, _, _| {
        RmsNorm::new(4).backward(BackwardIo::new(&X, &X, dx).dresidual(&wide))
    });
    let text = "dweight is f64, which does not go with x of f32: f64 goes with f64 alone, and an f64 dweight needs x \
                in f64";
    refused(error("dweight"), text, |dx, _, _| {
        let mut dweight = [0.0f64; 4];
        RmsNorm::new(4).backward(BackwardIo::new(&X, &X, dx).dweight(&mut dweight))
    });
    let stats = [Stats::<f64>::default(); 3];
    let error = Error::TypeIsNot { name: "stats", found: DType::F64, expected: DType::F32 };
    refused(error, "stats is f64, expected f32", |dx, _, _| {
        RmsNorm::new(4).backward(BackwardIo::new(&X, &X, dx).stats(&stats))
    });
}

#[test]
fn masks_that_do_not_fit_are_refused() {
    let error = Error::ParameterLen { name: "mask", per: "row", expected: 3, found: 2 };
    refused(error, "mask has 2 elements, expected 3: one for each row", |dx, dweight, _| {
        RmsNorm::new(4).backward(BackwardIo::new(&X, &X, dx).dweight(dweight).mask(&[true, false]))
    });
    let error = Error::Span { index: 1, found: 1..4, after: 1, rows: 3 };
    let text = "span 1 is rows 1..4, expected a range within rows 1..3: spans rise and do not overlap";
    refused(error, text, |dx, dweight, _| {
        RmsNorm::new(4).backward(BackwardIo::new(&X, &X, dx).dweight(dweight).mask(&[0..1, 1..4]))
    });
}

#[test]
fn partial_sums_that_do_not_fit_are_refused() {
    let mut partial = Partial::rows(DType::F32, 3, 0);
    let before = partial.to_bytes();
    let error = Error::PartialKind {
        expected: "dots and sums of 4 columns in batch order and f32".into(),
        found: "dots and sums of 3 columns in batch order and f32".into(),
    };
    refused(error.clone(), &error.to_string(), |dx, _, _| {
        RmsNorm::new(4).backward(BackwardIo::new(&X, &X, dx).partial(&mut partial))
    });
    assert_eq!(partial.to_bytes(), before);
    let mut partial = Partial::rows(DType::F32, 4, 5);
    refused(
        Error::PartialStart { start: 5 },
        "the partial sum starts at 5, expected 0: merge it into the one that ends at 5",
        |dx, dweight, _| RmsNorm::new(4).backward(BackwardIo::new(&X, &X, dx).partial(&mut partial).dweight(dweight)),
    );
    let mut partial = Partial::rows(DType::F32, 4, usize::MAX - 2);
    let error = Error::PartialEnd { end: usize::MAX - 2, rows: 3 };
    refused(error.clone(), &error.to_string(), |dx, _, _| {
        RmsNorm::new(4).backward(BackwardIo::new(&X, &X, dx).partial(&mut partial))
    });
}
