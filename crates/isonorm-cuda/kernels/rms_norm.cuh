// RMSNorm: each row divided by its root mean square. As rms_norm.rs.
#pragma once

#include "rows.cuh"

namespace isonorm {

struct RmsNorm {
    static constexpr bool CENTERED = false;
    static constexpr bool IS_LLAMA = false;

    // ms; whether the sum stayed in range.
    template <class S, class Load, class X>
    __device__ static __forceinline__ bool sums(const Team<S>& team, Exchange<S>& exchange, i64 len,
                                                typename S::C count, const Load& load, const X& x,
                                                Stats<typename S::C>& stats) {
        using C = typename S::C;
        C ss[1];
        reduce<S, 1>(team, exchange, len, load, [&](int k, int s, int within, C(&sums)[S::V][1]) {
            each_element<S::V>(within, [&](int e) {
                const C value = x(k, s, e);
                sums[e][0] = fused(value, value, sums[e][0]);
            });
        }, ss);
        stats.var = divide(ss[0], count);
        return Range<C>::finite(ss[0]) || ss[0] != ss[0];
    }

    template <class C> __device__ static __forceinline__ C x_hat(C x, const Stats<C>& stats) {
        return mul(mul(x, stats.scale), stats.inv);
    }
};

// Recipe llama: what weight multiplies is rounded to x's type first, as is g.
struct LlamaNorm : RmsNorm {
    static constexpr bool IS_LLAMA = true;
};

} // namespace isonorm
