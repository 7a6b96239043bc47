// What the language has no built-in for. This is the one file that the emulation on a CPU replaces.
//
// Conversions are single instructions of sm_80 and later. They round to nearest even, keep subnormals and turn NaN into
// a quiet NaN.
#pragma once

namespace isonorm {

__device__ __forceinline__ float widen_f16(unsigned short bits) {
    float value;
    asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(bits));
    return value;
}

__device__ __forceinline__ unsigned short narrow_f16(float value) {
    unsigned short bits;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(value));
    return bits;
}

__device__ __forceinline__ unsigned short narrow_bf16(float value) {
    unsigned short bits;
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(bits) : "f"(value));
    return bits;
}

// Two at once: `low` goes to the lower half.
__device__ __forceinline__ unsigned narrow_pair_f16(float low, float high) {
    unsigned bits;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(bits) : "f"(high), "f"(low));
    return bits;
}

__device__ __forceinline__ unsigned narrow_pair_bf16(float low, float high) {
    unsigned bits;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(bits) : "f"(high), "f"(low));
    return bits;
}

// 16 bytes at once; a plain assignment is sometimes cut into four.
__device__ __forceinline__ void store_16(void* to, unsigned a, unsigned b, unsigned c, unsigned d) {
    asm volatile("st.global.v4.b32 [%0], {%1, %2, %3, %4};"
                 :
                 : "l"(__cvta_generic_to_global(to)), "r"(a), "r"(b), "r"(c), "r"(d)
                 : "memory");
}

// Brings what is there to the second cache.
__device__ __forceinline__ void prefetch(const void* at) {
    asm volatile("prefetch.global.L2 [%0];" : : "l"(__cvta_generic_to_global(at)));
}

// Shared memory of a block, and the block's own in the program of several: see the emulation.
template <class T> using Shared = T;
template <class T> __device__ __forceinline__ T& own(T& shared) { return shared; }

// Writes `value` to block `to` of the cluster, where `at` is in its own `shared`; for sm_90 and later.
template <class T> __device__ __forceinline__ void put(T& shared, int to, float& at, float value) {
    unsigned there;
    asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(there) : "r"(unsigned(__cvta_generic_to_shared(&at))), "r"(to));
    asm volatile("st.shared::cluster.f32 [%0], %1;" : : "r"(there), "f"(value) : "memory");
}
template <class T> __device__ __forceinline__ void put(T& shared, int to, double& at, double value) {
    unsigned there;
    asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(there) : "r"(unsigned(__cvta_generic_to_shared(&at))), "r"(to));
    asm volatile("st.shared::cluster.f64 [%0], %1;" : : "r"(there), "d"(value) : "memory");
}

// Waits for all threads of the cluster, and sees what they wrote.
__device__ __forceinline__ void cluster_barrier() {
    asm volatile("barrier.cluster.arrive.aligned;\n\tbarrier.cluster.wait.aligned;" : : : "memory");
}

// Hides from the compiler what a register holds: it cannot keep what it once computed from it, and computes it again.
__device__ __forceinline__ void hide(unsigned& word) { asm volatile("" : "+r"(word)); }

} // namespace isonorm
