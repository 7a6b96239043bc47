// Reading and writing stretches of a row: 16 bytes at once where they are aligned so, else element by element.
#pragma once

#include "element.cuh"

namespace isonorm {

// A tensor of rows, whose elements lie side by side, or a parameter. Row (o, i) begins o * outer + i * inner elements
// after `data`.
struct Tensor {
    void* data;
    i64 outer;
    i64 inner;
    int dtype;
};

// Accesses of 16, 8 and 4 bytes, to and from registers.
template <int BYTES> struct Access;
template <> struct Access<16> {
    static __device__ void load(const void* from, unsigned* words) {
        const uint4 all = *static_cast<const uint4*>(from);
        words[0] = all.x, words[1] = all.y, words[2] = all.z, words[3] = all.w;
    }
    static __device__ void store(void* to, const unsigned* words) {
        store_16(to, words[0], words[1], words[2], words[3]);
    }
};
template <> struct Access<8> {
    static __device__ void load(const void* from, unsigned* words) {
        const uint2 all = *static_cast<const uint2*>(from);
        words[0] = all.x, words[1] = all.y;
    }
    static __device__ void store(void* to, const unsigned* words) {
        *static_cast<uint2*>(to) = uint2{words[0], words[1]};
    }
};
template <> struct Access<4> {
    static __device__ void load(const void* from, unsigned* words) { words[0] = *static_cast<const unsigned*>(from); }
    static __device__ void store(void* to, const unsigned* words) { *static_cast<unsigned*>(to) = words[0]; }
};

// Whether V elements of E at `at` can be had in the largest accesses.
template <class E, int V> __device__ __forceinline__ bool is_aligned(const E* at) {
    constexpr int BYTES = V * int(sizeof(E));
    constexpr unsigned long long ACCESS = BYTES < 16 ? BYTES : 16;
    return reinterpret_cast<unsigned long long>(at) % ACCESS == 0;
}

// The first `count` of V elements; the others are +0. IS_WHOLE: it is known that all exist and are aligned.
template <class E, int V, bool IS_WHOLE = false>
__device__ __forceinline__ Packed<E, V> read(const E* from, int count) {
    Packed<E, V> packed;
    if (IS_WHOLE || (count == V && is_aligned<E, V>(from))) {
        constexpr int ACCESS = Packed<E, V>::BYTES < 16 ? Packed<E, V>::BYTES : 16;
#pragma unroll
        for (int i = 0; i < Packed<E, V>::BYTES; i += ACCESS) {
            Access<ACCESS>::load(reinterpret_cast<const char*>(from) + i, packed.words + i / 4);
        }
    } else {
#pragma unroll
        for (int w = 0; w < Packed<E, V>::WORDS; ++w) packed.words[w] = 0;
#pragma unroll
        for (int e = 0; e < V; ++e) {
            if (e < count) packed.put(e, from[e]);
        }
    }
    return packed;
}

// The first `count` of V elements.
template <class E, int V, bool IS_WHOLE = false, class C>
__device__ __forceinline__ void write(E* to, int count, const C (&v)[V]) {
    if (IS_WHOLE || (count == V && is_aligned<E, V>(to))) {
        Packed<E, V> packed;
        packed.narrow(v);
        constexpr int ACCESS = Packed<E, V>::BYTES < 16 ? Packed<E, V>::BYTES : 16;
#pragma unroll
        for (int i = 0; i < Packed<E, V>::BYTES; i += ACCESS) {
            Access<ACCESS>::store(reinterpret_cast<char*>(to) + i, packed.words + i / 4);
        }
    } else {
#pragma unroll
        for (int e = 0; e < V; ++e) {
            if (e < count) to[e] = Narrow<E>::of(v[e]);
        }
    }
}

// One element of a type known at run time. f64 goes with f64 alone, but for parameters, which the host has checked.
template <class C> __device__ __forceinline__ C read_any(const void* data, int dtype, i64 at) {
    switch (dtype) {
    case F32: return C(static_cast<const float*>(data)[at]);
    case F64: return C(static_cast<const double*>(data)[at]);
    case F16: return C(widen(static_cast<const f16*>(data)[at]));
    default: return C(widen(static_cast<const bf16*>(data)[at]));
    }
}

__device__ __forceinline__ void write_any(void* data, int dtype, i64 at, float v) {
    switch (dtype) {
    case F32: static_cast<float*>(data)[at] = v; break;
    case F16: static_cast<f16*>(data)[at] = Narrow<f16>::of(v); break;
    case BF16: static_cast<bf16*>(data)[at] = Narrow<bf16>::of(v); break;
    }
}

// From f64 to f16 or bf16 by way of an f32 rounded to odd, which keeps whether the value lies above, below or on a
// halfway point: one rounding.
__device__ __forceinline__ float to_odd(double v) {
    const float toward_zero = __double2float_rz(v);
    const bool is_exact = double(toward_zero) == v || v != v;
    return is_exact ? toward_zero : __uint_as_float(__float_as_uint(toward_zero) | 1);
}

__device__ __forceinline__ void write_any(void* data, int dtype, i64 at, double v) {
    switch (dtype) {
    case F64: static_cast<double*>(data)[at] = v; break;
    case F32: static_cast<float*>(data)[at] = __double2float_rn(v); break;
    default: write_any(data, dtype, at, to_odd(v)); break;
    }
}

// Values of a tensor of storage type E, from element `at` on, widened to C; those from `count` on are +0.
template <class E, int V, bool IS_WHOLE = false, class C>
__device__ __forceinline__ void load(const Tensor& tensor, i64 at, int count, C (&v)[V]) {
    if constexpr (Same<E, Any>::VALUE) {
        for (int e = 0; e < V; ++e) v[e] = e < count ? read_any<C>(tensor.data, tensor.dtype, at + e) : C(0);
    } else {
        const Packed<E, V> packed = read<E, V, IS_WHOLE>(static_cast<const E*>(tensor.data) + at, count);
#pragma unroll
        for (int e = 0; e < V; ++e) v[e] = C(packed.get(e));
    }
}

// The other way, each value rounded once.
template <class E, int V, bool IS_WHOLE = false, class C>
__device__ __forceinline__ void store(const Tensor& tensor, i64 at, int count, const C (&v)[V]) {
    if constexpr (Same<E, Any>::VALUE) {
        for (int e = 0; e < V; ++e) {
            if (e < count) write_any(tensor.data, tensor.dtype, at + e, v[e]);
        }
    } else {
        write<E, V, IS_WHOLE>(static_cast<E*>(tensor.data) + at, count, v);
    }
}

} // namespace isonorm
