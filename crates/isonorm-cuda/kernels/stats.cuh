// From sums to statistics: eps, the inverse root and the range rule, once for every norm. As stats.rs.
#pragma once

#include "element.cuh"

namespace isonorm {

// The statistics of a row, exactly as its computation used them: those of x * scale.
template <class C> struct Stats {
    C mean, delta, var, inv, scale;
};

template <class C> struct Range;
template <> struct Range<float> {
    static constexpr float VAR = 0x1p-100f, EPS_INSIDE = 0x1p-76f, EPS_OUTSIDE = 0x1p-26f;

    // 2^-e for a value in [2^e, 2^(e+1)), within the normal powers whose reciprocal is normal too.
    __device__ static float scale(float value) {
        const int exponent = int(__float_as_uint(value) >> 23 & 0xFF) - 127;
        const int clamped = exponent < -126 ? -126 : (exponent > 126 ? 126 : exponent);
        return __uint_as_float(unsigned(127 - clamped) << 23);
    }
    __device__ static bool finite(float v) { return (__float_as_uint(v) >> 23 & 0xFF) != 0xFF; }
};
template <> struct Range<double> {
    static constexpr double VAR = 0x1p-900, EPS_INSIDE = 0x1p-840, EPS_OUTSIDE = 0x1p-416;

    __device__ static double scale(double value) {
        const int exponent = (__double2hiint(value) >> 20 & 0x7FF) - 1023;
        const int clamped = exponent < -1022 ? -1022 : (exponent > 1022 ? 1022 : exponent);
        return __hiloint2double((1023 - clamped) << 20, 0);
    }
    __device__ static bool finite(double v) { return (__double2hiint(v) >> 20 & 0x7FF) != 0x7FF; }
};

template <class C> struct Eps {
    C value;
    bool outside;

    __device__ C inverse_root(C ms) const {
        return divide(C(1), outside ? add(root(ms), value) : root(add(ms, value)));
    }
    // eps for x * scale.
    __device__ Eps scaled(C scale) const {
        return Eps{outside ? mul(value, scale) : mul(mul(value, scale), scale), outside};
    }
    // A mean of gradients times q: (root + eps) / root with eps outside, 0 where root is 0.
    __device__ C times_q(C mean, const Stats<C>& stats) const {
        if (!outside) return mean;
        const C r = root(stats.var);
        return mul(mean, r == C(0) ? C(0) : divide(add(r, scaled(stats.scale).value), r));
    }
    // Whether `ms` is so small that a second computation keeps more of it.
    __device__ bool is_small(C ms) const {
        return ms < Range<C>::VAR && value < (outside ? Range<C>::EPS_OUTSIDE : Range<C>::EPS_INSIDE);
    }
    // The power of two that brings a row whose largest magnitude is `max` into range.
    __device__ C scale(C max) const {
        if (!Range<C>::finite(max)) return C(1);
        const C least = outside ? value : root(value);
        const C larger = max > least ? max : least;
        return larger == C(0) ? C(1) : Range<C>::scale(larger);
    }
};

} // namespace isonorm
