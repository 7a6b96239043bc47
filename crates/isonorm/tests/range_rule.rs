//! Where the range rule begins and ends, by the scale that each norm reports. At the limits themselves y often has
//! the same bits either way, but the backward pass needs the scale of the computation that stood.

use isonorm::{BatchNorm, GroupNorm, InstanceNorm, Io, LayerNorm, PlaneIo, PlanesMut, RmsNorm, Stats};

/// eps and whether it is outside the root.
#[derive(Clone, Copy, Debug)]
struct Eps(f64, bool);

/// Scales of the only set of `x`: RMSNorm, LayerNorm, then the channel-wise norms in either layout.
macro_rules! scales {
    ($f:ty, $x:expr, $eps:expr) => {{
        let (x, Eps(eps, outside)): (Vec<$f>, Eps) = ($x, $eps);
        let n = x.len();
        let mut stats = [Stats::<$f>::default(); 7];
        let [rms, layer, rest @ ..] = &mut stats;
        macro_rules! norm {
            ($norm:expr) => {
                if outside { $norm.eps(eps).eps_outside() } else { $norm.eps(eps) }
            };
        }
        norm!(RmsNorm::new(n)).apply(Io::in_place(&mut x.clone()).stats(std::slice::from_mut(rms))).expect("valid");
        norm!(LayerNorm::new(n)).apply(Io::in_place(&mut x.clone()).stats(std::slice::from_mut(layer))).expect("valid");
        let [group, instance, train_first, train_last, train_rows] = rest;
        let mut y = x.clone();
        let io = PlaneIo::in_place(PlanesMut::channels_first(&mut y, 2, n / 2)).stats(std::slice::from_mut(group));
        norm!(GroupNorm::new(1, 2)).apply(io).expect("valid");
        let mut y = x.clone();
        let io = PlaneIo::in_place(PlanesMut::channels_last(&mut y, 1, n)).stats(std::slice::from_mut(instance));
        norm!(InstanceNorm::new(1)).apply(io).expect("valid");
        let mut y = x.clone();
        let io = PlaneIo::in_place(PlanesMut::channels_first(&mut y, 1, n)).stats(std::slice::from_mut(train_first));
        norm!(BatchNorm::new(1)).train(io, None).expect("valid");
        // Beside a channel of ones and twos, which the rule leaves alone.
        for (spatial, stats) in [(n, train_last), (1, train_rows)] {
            let mut y: Vec<$f> = x.iter().enumerate().flat_map(|(i, x)| [*x, 1.0 + (i % 2) as $f]).collect();
            let mut two = [Stats::<$f>::default(); 2];
            let io = PlaneIo::in_place(PlanesMut::channels_last(&mut y, 2, spatial)).stats(&mut two);
            norm!(BatchNorm::new(2)).train(io, None).expect("valid");
            assert_eq!(two[1].scale, 1.0, "the channel beside");
            *stats = two[0];
        }
        stats.map(|stats| stats.scale)
    }};
}

/// Mean 0, and variance and mean square `c * c`.
macro_rules! pairs {
    ($c:expr) => {
        [$c, -$c, $c, -$c].to_vec()
    };
}

fn two(e: i32) -> f64 {
    2f64.powi(e)
}

#[test]
fn a_variance_at_the_limit_is_not_below_it_and_the_scale_has_a_most() {
    for eps in [Eps(0.0, false), Eps(0.0, true)] {
        assert_eq!(scales!(f32, pairs!(two(-50) as f32), eps), [1.0; 7], "{eps:?}");
        assert_eq!(scales!(f32, pairs!(two(-50) as f32 * 0.75), eps), [two(51) as f32; 7], "{eps:?}");
        assert_eq!(scales!(f64, pairs!(two(-450)), eps), [1.0; 7], "{eps:?}");
        assert_eq!(scales!(f64, pairs!(two(-450) * 0.75), eps), [two(451); 7], "{eps:?}");
        assert_eq!(scales!(f32, pairs!(f32::from_bits(1)), eps), [two(126) as f32; 7], "{eps:?}");
        assert_eq!(scales!(f64, pairs!(f64::from_bits(1)), eps), [two(1022); 7], "{eps:?}");
    }
}

#[test]
fn an_eps_at_the_limit_is_not_below_it() {
    for (e, outside, scale) in [(-76, false, 38), (-26, true, 26)] {
        assert_eq!(scales!(f32, pairs!(two(-60) as f32), Eps(two(e), outside)), [1.0; 7], "2^{e}");
        let below = two(e) * 0.75; // still above 2^-39 after its root
        assert_eq!(scales!(f32, pairs!(two(-60) as f32), Eps(below, outside)), [two(scale + 1) as f32; 7], "2^{e}");
    }
    for (e, outside, scale) in [(-840, false, 420), (-416, true, 416)] {
        assert_eq!(scales!(f64, pairs!(two(-500)), Eps(two(e), outside)), [1.0; 7], "2^{e}");
        assert_eq!(scales!(f64, pairs!(two(-500)), Eps(two(e) * 0.75, outside)), [two(scale + 1); 7], "2^{e}");
    }
}

#[test]
fn sums_that_overflow_are_scaled_down_and_no_further_than_the_least_scale() {
    for eps in [Eps(1e-5, false), Eps(1e-5, true)] {
        assert_eq!(scales!(f32, pairs!(two(100) as f32), eps), [two(-100) as f32; 7], "{eps:?}");
        assert_eq!(scales!(f32, pairs!(f32::MAX), eps), [two(-126) as f32; 7], "{eps:?}");
        assert_eq!(scales!(f64, pairs!(two(800)), eps), [two(-800); 7], "{eps:?}");
        assert_eq!(scales!(f64, pairs!(f64::MAX), eps), [two(-1022); 7], "{eps:?}");
    }
}

#[test]
fn rows_with_an_infinity_or_nan_keep_their_first_computation() {
    let big = two(100) as f32;
    for odd in [f32::INFINITY, f32::NEG_INFINITY, f32::NAN] {
        for at in 0..4 {
            let mut x = pairs!(big);
            x[at] = odd;
            assert_eq!(scales!(f32, x, Eps(1e-5, false)), [1.0; 7], "{odd} at {at} beside 2^100");
            let mut x = pairs!(two(-60) as f32);
            x[at] = odd;
            assert_eq!(scales!(f32, x, Eps(0.0, false)), [1.0; 7], "{odd} at {at} beside 2^-60");
        }
    }
}

#[test]
fn zeros_without_eps_keep_their_first_computation() {
    for zero in [0.0, -0.0] {
        assert_eq!(scales!(f32, vec![zero; 4], Eps(0.0, false)), [1.0; 7]);
    }
}

/// RMSNorm looks at the measured part of a row alone.
#[test]
fn what_lies_beyond_a_partial_row_does_not_count() {
    let small = two(-60) as f32;
    for beyond in [1.0, f32::MAX, f32::INFINITY, f32::NAN] {
        let (mut x, mut stats) = ([small, -small, beyond, beyond], [Stats::<f32>::default()]);
        RmsNorm::new(4).partial(2).eps(0.0).apply(Io::in_place(&mut x).stats(&mut stats)).expect("valid");
        assert_eq!(stats[0].scale, two(60) as f32, "{beyond} beyond");
    }
}
