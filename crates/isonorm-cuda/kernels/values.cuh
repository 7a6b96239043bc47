// What the elements of a channel need, of all channels: each kind of value side by side, so that vectors of channels
// are read as vectors.
//
//     x_hat = ((x * scale - mean) - delta) * inv
//     y     = fma(x_hat, weight, bias)
//     dx    = (fma(-x_hat, k2, dy - k1) * factor) * scale
#pragma once

#include "planes.cuh"

namespace isonorm {

// The kinds; those of y are `OF_Y`, those of dx `OF_DX`.
namespace value {
enum : int { MEAN, DELTA, INV, SCALE, WEIGHT, BIAS, OF_Y, K1 = WEIGHT, K2, FACTOR, OF_DX };
}

template <class C> struct Values {
    C* data;
    i64 channels;

    __device__ C& at(int kind, i64 channel) const { return data[kind * channels + channel]; }

    __device__ void put(i64 channel, const Stats<C>& stats) const {
        at(value::MEAN, channel) = stats.mean;
        at(value::DELTA, channel) = stats.delta;
        at(value::INV, channel) = stats.inv;
        at(value::SCALE, channel) = stats.scale;
    }
    // Those of y.
    __device__ void put(i64 channel, const Stats<C>& stats, C weight, C bias) const {
        put(channel, stats);
        at(value::WEIGHT, channel) = weight;
        at(value::BIAS, channel) = bias;
    }
    // Those of dx.
    __device__ void put(i64 channel, const Stats<C>& stats, C k1, C k2, C factor) const {
        put(channel, stats);
        at(value::K1, channel) = k1;
        at(value::K2, channel) = k2;
        at(value::FACTOR, channel) = factor;
    }

    // One kind of a span's channels.
    template <int V> __device__ __forceinline__ void load(int kind, const Span<V>& span, C (&v)[V]) const {
        if (span.spatial == 1) {
            const Packed<C, V> packed = read<C, V>(&at(kind, span.channel), span.count);
#pragma unroll
            for (int e = 0; e < V; ++e) v[e] = packed.get(e);
            return;
        }
        const C first = at(kind, span.channel);
#pragma unroll
        for (int e = 0; e < V; ++e) v[e] = first;
        if (!span.is_of_one_channel()) span.each([&](int e, int channel, int) { v[e] = at(kind, channel); });
    }
};

// The values of a span's channels: those of y or of dx.
template <class C, int KINDS, int V> struct SpanValues {
    C v[KINDS][V];

    __device__ __forceinline__ SpanValues(const Values<C>& values, const Span<V>& span) {
#pragma unroll
        for (int kind = 0; kind < KINDS; ++kind) values.load(kind, span, v[kind]);
    }
    __device__ __forceinline__ C x_hat(C x, int e) const {
        return mul(sub(sub(mul(x, v[value::SCALE][e]), v[value::MEAN][e]), v[value::DELTA][e]), v[value::INV][e]);
    }
};

// One channel's parameter, `missing` where there is none; and its weight, with the offset.
template <class C> __device__ C param_of(const Tensor& param, C missing, i64 channel) {
    return param.dtype == NONE ? missing : read_any<C>(param.data, param.dtype, channel);
}
template <class C> __device__ C weight_of(const Tensor& weight, C offset, i64 channel) {
    const C w = param_of(weight, C(1), channel);
    return weight.dtype == NONE || offset == C(0) ? w : add(w, offset);
}

} // namespace isonorm
