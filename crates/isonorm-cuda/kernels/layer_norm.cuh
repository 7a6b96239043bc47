// LayerNorm: each row with its mean taken off, divided by its standard deviation. As layer_norm.rs.
#pragma once

#include "rows.cuh"

namespace isonorm {

struct LayerNorm {
    static constexpr bool CENTERED = true;
    static constexpr bool IS_LLAMA = false;

    // mean, delta and var; whether the sums stayed in range.
    template <class S, class Load, class X>
    __device__ static __forceinline__ bool sums(const Team<S>& team, Exchange<S>& exchange, i64 len,
                                                typename S::C count, const Load& load, const X& x,
                                                Stats<typename S::C>& stats) {
        const auto sum = [&](const auto& step, auto& totals) { reduce<S>(team, exchange, len, load, step, totals); };
        return moments<S>(sum, count, x, stats);
    }

    // The same of any elements: `sum(step, totals)` sums over them.
    template <class S, class Sum, class X>
    __device__ static __forceinline__ bool moments(const Sum& sum, typename S::C count, const X& x,
                                                   Stats<typename S::C>& stats) {
        using C = typename S::C;
        C total[1];
        sum([&](int k, int s, int within, C(&sums)[S::V][1]) {
            each_element<S::V>(within, [&](int e) { sums[e][0] = add(sums[e][0], x(k, s, e)); });
        }, total);
        stats.mean = divide(total[0], count);
        C of_deviations[2];
        sum([&](int k, int s, int within, C(&sums)[S::V][2]) {
            each_element<S::V>(within, [&](int e) {
                const C d = sub(x(k, s, e), stats.mean);
                sums[e][0] = add(sums[e][0], d);
                sums[e][1] = fused(d, d, sums[e][1]);
            });
        }, of_deviations);
        spread(of_deviations[0], of_deviations[1], count, stats);
        return Range<C>::finite(total[0]) && Range<C>::finite(of_deviations[1]);
    }

    // delta and var from the sums of the deviations and of their squares.
    template <class C> __device__ static __forceinline__ void spread(C s1, C s2, C count, Stats<C>& stats) {
        stats.delta = divide(s1, count);
        const C var = divide(fused(-s1, stats.delta, s2), count);
        stats.var = var <= C(0) ? C(0) : var;
    }

    template <class C> __device__ static __forceinline__ C x_hat(C x, const Stats<C>& stats) {
        return mul(sub(sub(mul(x, stats.scale), stats.mean), stats.delta), stats.inv);
    }
};

} // namespace isonorm
