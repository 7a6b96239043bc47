// The storage types f32, f64, f16 and bf16, the two compute types, and their arithmetic: every rounding is written.
#pragma once

#include "convert.cuh"

namespace isonorm {

using i64 = long long;

struct f16 {
    unsigned short bits;
};
struct bf16 {
    unsigned short bits;
};

// A storage type that is known at run time: slower, for the rare mixtures of types.
struct Any {};

template <class A, class B> struct Same {
    static constexpr bool VALUE = false;
};
template <class A> struct Same<A, A> {
    static constexpr bool VALUE = true;
};

__device__ __forceinline__ i64 min_of(i64 a, i64 b) { return a < b ? a : b; }

// The type in which elements of storage type E are kept in registers.
template <class E, class C> struct HeldAs {
    using type = E;
};
template <class C> struct HeldAs<Any, C> {
    using type = C;
};
template <class E, class C> using Held = typename HeldAs<E, C>::type;

// Numbers of the storage types, as the host gives them. `NONE`: there is no such tensor.
enum DType : int { NONE = 0, F32 = 1, F64 = 2, F16 = 3, BF16 = 4 };

template <class T> struct ComputeOf {
    using type = float;
};
template <> struct ComputeOf<double> {
    using type = double;
};
// f64 for an x of f64, else f32.
template <class T> using Compute = typename ComputeOf<T>::type;

__device__ __forceinline__ float add(float a, float b) { return __fadd_rn(a, b); }
__device__ __forceinline__ float sub(float a, float b) { return __fadd_rn(a, -b); }
__device__ __forceinline__ float mul(float a, float b) { return __fmul_rn(a, b); }
__device__ __forceinline__ float fused(float a, float b, float c) { return __fmaf_rn(a, b, c); }
__device__ __forceinline__ float divide(float a, float b) { return __fdiv_rn(a, b); }
__device__ __forceinline__ float root(float a) { return __fsqrt_rn(a); }

__device__ __forceinline__ double add(double a, double b) { return __dadd_rn(a, b); }
__device__ __forceinline__ double sub(double a, double b) { return __dadd_rn(a, -b); }
__device__ __forceinline__ double mul(double a, double b) { return __dmul_rn(a, b); }
__device__ __forceinline__ double fused(double a, double b, double c) { return __fma_rn(a, b, c); }
__device__ __forceinline__ double divide(double a, double b) { return __ddiv_rn(a, b); }
__device__ __forceinline__ double root(double a) { return __dsqrt_rn(a); }

__device__ __forceinline__ float widen(float x) { return x; }
__device__ __forceinline__ double widen(double x) { return x; }
__device__ __forceinline__ float widen(f16 x) { return widen_f16(x.bits); }
__device__ __forceinline__ float widen(bf16 x) { return __uint_as_float(unsigned(x.bits) << 16); }

template <class T> struct Narrow;
template <> struct Narrow<float> {
    __device__ static float of(float v) { return v; }
    __device__ static float of(double v) { return __double2float_rn(v); }
};
template <> struct Narrow<double> {
    __device__ static double of(double v) { return v; }
};
template <> struct Narrow<f16> {
    __device__ static f16 of(float v) { return f16{narrow_f16(v)}; }
};
template <> struct Narrow<bf16> {
    __device__ static bf16 of(float v) { return bf16{narrow_bf16(v)}; }
};

// One rounding to storage type T, and back.
template <class T, class C> __device__ __forceinline__ C rounded(C v) { return widen(Narrow<T>::of(v)); }

// V consecutive values of storage type E, in as many registers as they need.
template <class E, int V> struct Packed {
    static constexpr int BYTES = V * int(sizeof(E));
    static constexpr int WORDS = BYTES / 4;
    static_assert(BYTES % 4 == 0, "whole registers");
    unsigned words[WORDS];

    __device__ __forceinline__ Compute<E> get(int e) const {
        if constexpr (sizeof(E) == 8) {
            return __hiloint2double(int(words[2 * e + 1]), int(words[2 * e]));
        } else if constexpr (sizeof(E) == 4) {
            return __uint_as_float(words[e]);
        } else {
            return widen(E{(unsigned short)(words[e / 2] >> (16 * (e % 2)))});
        }
    }

    // The raw element e of an all-zero vector.
    __device__ __forceinline__ void put(int e, E x) {
        if constexpr (sizeof(E) == 8) {
            words[2 * e] = unsigned(__double2loint(x));
            words[2 * e + 1] = unsigned(__double2hiint(x));
        } else if constexpr (sizeof(E) == 4) {
            words[e] = __float_as_uint(x);
        } else {
            words[e / 2] |= unsigned(x.bits) << (16 * (e % 2));
        }
    }

    // Each value rounded once.
    template <class C> __device__ __forceinline__ void narrow(const C (&v)[V]) {
        if constexpr (sizeof(E) == 2) {
#pragma unroll
            for (int w = 0; w < WORDS; ++w) words[w] = pair(E{}, v[2 * w], v[2 * w + 1]);
        } else {
#pragma unroll
            for (int e = 0; e < V; ++e) put(e, Narrow<E>::of(v[e]));
        }
    }

  private:
    __device__ static unsigned pair(f16, float low, float high) { return narrow_pair_f16(low, high); }
    __device__ static unsigned pair(bf16, float low, float high) { return narrow_pair_bf16(low, high); }
};

// Each of V values rounded once to storage type T.
template <class T, class C, int V> __device__ __forceinline__ void round_to(C (&v)[V]) {
    Packed<T, V> packed{};
    packed.narrow(v);
#pragma unroll
    for (int e = 0; e < V; ++e) v[e] = packed.get(e);
}

} // namespace isonorm
