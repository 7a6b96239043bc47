// kernels/convert.cuh on a CPU: the same functions, conversions by integers.
#pragma once

namespace isonorm {

inline float widen_f16(unsigned short bits) {
    const unsigned sign = unsigned(bits & 0x8000) << 16, exponent = bits >> 10 & 0x1F, fraction = bits & 0x3FF;
    if (exponent == 0) { // fraction * 2^-24, exactly
        const float magnitude = float(fraction) * 0x1p-24f;
        return __uint_as_float(sign | __float_as_uint(magnitude));
    }
    const unsigned wide = exponent == 31 ? 0xFF : exponent + 127 - 15;
    return __uint_as_float(sign | wide << 23 | fraction << 13);
}

inline unsigned short narrow_f16(float value) {
    const unsigned bits = __float_as_uint(value), sign = bits >> 16 & 0x8000, magnitude = bits & 0x7FFFFFFF;
    if (magnitude > 0x7F800000) return 0x7FFF;
    if (magnitude >= 0x477FF000) return sign | 0x7C00; // 65520 and above
    if (magnitude < 0x38800000) { // below 2^-14: whole multiples of 2^-24
        const float whole = __uint_as_float(magnitude) * 0x1p24f;
        const float to_even = (whole + 0x1p23f) - 0x1p23f;
        return sign | (unsigned short)(to_even);
    }
    const unsigned to_even = magnitude + 0xFFF + (magnitude >> 13 & 1);
    return sign | (unsigned short)((to_even - ((127 - 15) << 23)) >> 13);
}

inline unsigned short narrow_bf16(float value) {
    const unsigned bits = __float_as_uint(value);
    if ((bits & 0x7FFFFFFF) > 0x7F800000) return 0x7FFF;
    return (unsigned short)((bits + 0x7FFF + (bits >> 16 & 1)) >> 16);
}

inline unsigned narrow_pair_f16(float low, float high) { return narrow_f16(low) | unsigned(narrow_f16(high)) << 16; }
inline unsigned narrow_pair_bf16(float low, float high) { return narrow_bf16(low) | unsigned(narrow_bf16(high)) << 16; }

inline void store_16(void* to, unsigned a, unsigned b, unsigned c, unsigned d) {
    *static_cast<uint4*>(to) = uint4{a, b, c, d};
}

inline void prefetch(const void*) {}

// Blocks of a cluster run side by side, each with shared memory of its own.
template <class T> struct Shared {
    T blocks[emulation::MOST_BLOCKS];
};
template <class T> inline T& own(Shared<T>& shared) { return shared.blocks[emulation::rank()]; }
template <class T, class C> inline void put(T& shared, int to, C& at, C value) {
    const std::ptrdiff_t place = reinterpret_cast<char*>(&at) - reinterpret_cast<char*>(&shared);
    std::memcpy(reinterpret_cast<char*>(&shared + (to - int(emulation::rank()))) + place, &value, sizeof value);
}
inline void cluster_barrier() { emulation::at_cluster(); }

inline void hide(unsigned&) {}

} // namespace isonorm
