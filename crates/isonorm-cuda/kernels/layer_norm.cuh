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
        using C = typename S::C;
        C sum[1];
        reduce<S, 1>(team, exchange, len, load, [&](int k, int s, int within, C(&sums)[S::V][1]) {
            each_element<S::V>(within, [&](int e) { sums[e][0] = add(sums[e][0], x(k, s, e)); });
        }, sum);
        stats.mean = divide(sum[0], count);
        C of_deviations[2];
        reduce<S, 2>(team, exchange, len, load, [&](int k, int s, int within, C(&sums)[S::V][2]) {
            each_element<S::V>(within, [&](int e) {
                const C d = sub(x(k, s, e), stats.mean);
                sums[e][0] = add(sums[e][0], d);
                sums[e][1] = fused(d, d, sums[e][1]);
            });
        }, of_deviations);
        const C s1 = of_deviations[0], s2 = of_deviations[1];
        stats.delta = divide(s1, count);
        const C var = divide(fused(-s1, stats.delta, s2), count);
        stats.var = var <= C(0) ? C(0) : var;
        return Range<C>::finite(sum[0]) && Range<C>::finite(s2);
    }

    template <class C> __device__ static __forceinline__ C x_hat(C x, const Stats<C>& stats) {
        return mul(sub(sub(mul(x, stats.scale), stats.mean), stats.delta), stats.inv);
    }
};

} // namespace isonorm
