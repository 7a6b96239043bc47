// y and dx of channels whose values are known, element by element in the order of memory.
#pragma once

#include "values.cuh"

namespace isonorm {

// Lines of `length` elements, each `repeat` of which belong to a channel: the samples where channels come first, and
// where they come last the positions of all samples, `per_sample` of each.
struct Lines {
    i64 lines;
    i64 length;
    i64 repeat;
    i64 per_sample;

    __device__ i64 start(const Planes& tensor, i64 line) const {
        return line / per_sample * tensor.sample + line % per_sample * tensor.position;
    }
};

struct Apply {
    Lines lines;
    Planes x, y;
    const void* values;
    i64 channels;
    int rounded; // the type to which y is rounded before it is rounded to its own, or NONE
};

struct PlaneGradients {
    Lines lines;
    Planes x, dy, dx;
    const void* values;
    i64 channels;
};

// Lines that a thread does with the same values: what they need is read once, and all of x before anything is written.
constexpr int TOGETHER = 4;

// Calls `visit(span, first, count)` for the thread's vectors of lines first .. first + count.
template <int V, class Visit> __device__ __forceinline__ void each_stretch(const Lines& lines, const Visit& visit) {
    const i64 vectors = (lines.length + V - 1) / V;
    const i64 units = vectors * ((lines.lines + TOGETHER - 1) / TOGETHER);
    for (i64 unit = i64(blockIdx.x) * blockDim.x + threadIdx.x; unit < units; unit += i64(gridDim.x) * blockDim.x) {
        const i64 first = unit / vectors * TOGETHER, at = unit % vectors * V;
        const i64 rest = lines.length - at, left = lines.lines - first;
        visit(Span<V>(at, rest < V ? int(rest) : V, lines.repeat), first, left < TOGETHER ? int(left) : TOGETHER);
    }
}

template <class C> __device__ C rounded_to(int dtype, C v) {
    if (dtype == F16) return rounded<f16>(v);
    if (dtype == BF16) return rounded<bf16>(v);
    return v;
}
__device__ inline double rounded_to(int, double v) { return v; } // f64 goes with f64

// y. X is x's storage type, Y is y's.
template <class C, class X, class Y> __device__ __forceinline__ void apply(const Apply& args) {
    constexpr int V = 16 / int(sizeof(Held<X, C>));
    const Values<C> all{static_cast<C*>(const_cast<void*>(args.values)), args.channels};
    each_stretch<V>(args.lines, [&](const Span<V>& span, i64 first, int count) {
        const SpanValues<C, value::OF_Y, V> values(all, span);
        Packed<Held<X, C>, V> x[TOGETHER];
#pragma unroll
        for (int i = 0; i < TOGETHER; ++i) {
            if (i < count) x[i] = read<X, C>(args.x, args.lines.start(args.x, first + i), span);
        }
#pragma unroll
        for (int i = 0; i < TOGETHER; ++i) {
            if (i >= count) break;
            C y[V];
#pragma unroll
            for (int e = 0; e < V; ++e) {
                const C v = fused(values.x_hat(x[i].get(e), e), values.v[value::WEIGHT][e], values.v[value::BIAS][e]);
                y[e] = rounded_to(args.rounded, v);
            }
            write<Y>(args.y, args.lines.start(args.y, first + i), span, y);
        }
    });
}

// dx of BatchNorm in training. X is x's storage type, D is dy's, O dx's.
template <class X, class D, class O> __device__ __forceinline__ void gradients(const PlaneGradients& args) {
    using C = Compute<X>;
    constexpr int V = 16 / int(sizeof(X));
    const Values<C> all{static_cast<C*>(const_cast<void*>(args.values)), args.channels};
    each_stretch<V>(args.lines, [&](const Span<V>& span, i64 first, int count) {
        const SpanValues<C, value::OF_DX, V> values(all, span);
        Packed<X, V> x[TOGETHER];
        Packed<Held<D, C>, V> dy[TOGETHER];
#pragma unroll
        for (int i = 0; i < TOGETHER; ++i) {
            if (i >= count) break;
            x[i] = read<X, C>(args.x, args.lines.start(args.x, first + i), span);
            dy[i] = read<D, C>(args.dy, args.lines.start(args.dy, first + i), span);
        }
#pragma unroll
        for (int i = 0; i < TOGETHER; ++i) {
            if (i >= count) break;
            C dx[V];
#pragma unroll
            for (int e = 0; e < V; ++e) {
                const C x_hat = values.x_hat(x[i].get(e), e);
                const C d = fused(-x_hat, values.v[value::K2][e], sub(dy[i].get(e), values.v[value::K1][e]));
                dx[e] = rounded<X>(mul(mul(d, values.v[value::FACTOR][e]), values.v[value::SCALE][e]));
            }
            write<O>(args.dx, args.lines.start(args.dx, first + i), span, dx);
        }
    });
}

} // namespace isonorm
