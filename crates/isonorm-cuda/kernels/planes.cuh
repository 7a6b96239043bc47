// Tensors of samples x channels x positions, in any layout: rows of channels, and a thread's vectors of them.
#pragma once

#include "rows.cuh"

namespace isonorm {

// Element (n, c, p) lies n * sample + c * channel + p * position elements after `data`.
struct Planes {
    void* data;
    i64 sample;
    i64 channel;
    i64 position;
    int dtype;

    // Whether channels of `spatial` positions lie one after the other.
    __device__ bool is_row(i64 spatial) const { return channel == spatial && (position == 1 || spatial == 1); }
};

// `count` of V elements of a row of channels, `spatial` elements of each. The host has seen that channels and positions
// have 31 bits.
template <int V> struct Span {
    i64 at;
    int spatial;
    int channel;  // of the first element
    int position; // of the first element
    int count;

    __device__ Span(i64 at, int count, i64 spatial)
        : at(at), spatial(int(spatial)), channel(int(at / spatial)), position(int(at - channel * spatial)),
          count(count) {}
    // Where the whole row has 31 bits, too.
    __device__ Span(int at, int count, int spatial)
        : at(at), spatial(spatial), channel(at / spatial), position(at - channel * spatial), count(count) {}

    __device__ bool is_of_one_channel() const { return position + count <= spatial; }

    // Calls `visit(e, channel, position)` for each element.
    template <class Visit> __device__ __forceinline__ void each(const Visit& visit) const {
        int c = channel, p = position;
#pragma unroll
        for (int e = 0; e < V; ++e) {
            if (e < count) visit(e, c, p);
            const bool is_last = ++p == spatial;
            c += is_last;
            p = is_last ? 0 : p;
        }
    }
};

// An element as it is kept.
template <class E, class C> __device__ __forceinline__ Held<E, C> element(const Planes& from, i64 at) {
    if constexpr (Same<E, Any>::VALUE) {
        return read_any<C>(from.data, from.dtype, at);
    } else {
        return static_cast<const E*>(from.data)[at];
    }
}

// The elements of a span, of a row of channels that begins `start` elements after the tensor's first one. IS_WHOLE: it
// is known that channels lie one after the other, all elements exist and are aligned.
template <class E, class C, bool IS_WHOLE = false, int V>
__device__ __forceinline__ Packed<Held<E, C>, V> read(const Planes& from, i64 start, const Span<V>& span) {
    if constexpr (!Same<E, Any>::VALUE) {
        const E* at = static_cast<const E*>(from.data) + start + span.at;
        if (IS_WHOLE || from.is_row(span.spatial)) return read<E, V, IS_WHOLE>(at, span.count);
    }
    Packed<Held<E, C>, V> packed{};
    span.each([&](int e, int channel, int position) {
        packed.put(e, element<E, C>(from, start + channel * from.channel + position * from.position));
    });
    return packed;
}

// `count` of V elements of one plane, the first of them `start` elements after the tensor's first one.
template <class E, class C, int V>
__device__ __forceinline__ Packed<Held<E, C>, V> read_plane(const Planes& from, i64 start, int count) {
    if constexpr (!Same<E, Any>::VALUE) {
        if (from.position == 1) return read<E, V>(static_cast<const E*>(from.data) + start, count);
    }
    Packed<Held<E, C>, V> packed{};
    each_element<V>(count, [&](int e) { packed.put(e, element<E, C>(from, start + e * from.position)); });
    return packed;
}

// The other way, each value rounded once.
template <class E, bool IS_WHOLE = false, int V, class C>
__device__ __forceinline__ void write(const Planes& to, i64 start, const Span<V>& span, const C (&v)[V]) {
    if constexpr (!Same<E, Any>::VALUE) {
        E* at = static_cast<E*>(to.data) + start + span.at;
        if (IS_WHOLE || to.is_row(span.spatial)) return write<E, V, IS_WHOLE>(at, span.count, v);
    }
    span.each([&](int e, int channel, int position) {
        const i64 at = start + channel * to.channel + position * to.position;
        if constexpr (Same<E, Any>::VALUE) {
            write_any(to.data, to.dtype, at, v[e]);
        } else {
            static_cast<E*>(to.data)[at] = Narrow<E>::of(v[e]);
        }
    });
}

// A thread's piece of a plane, or of a row of channels, in storage type E.
template <class S, class E> struct PlanePiece : Piece<S, Held<E, typename S::C>> {
    using C = typename S::C;

    // Of the plane that begins `start` elements after the tensor's first one.
    __device__ __forceinline__ void read(const Team<S>& team, i64 piece, i64 len, const Planes& from, i64 start) {
        each_vector(team, piece, len, [&](int k, int s, i64 at, int count) {
            this->vectors[k][s] = read_plane<E, C, S::V>(from, start + at * from.position, count);
        });
    }

    // Of the row of channels that begins there, and has 31 bits.
    __device__ __forceinline__ void read(const Team<S>& team, i64 piece, i64 len, const Planes& from, i64 start,
                                         int spatial) {
        each_vector(team, piece, len, [&](int k, int s, i64 at, int count) {
            this->vectors[k][s] = isonorm::read<E, C, S::IS_WHOLE>(from, start, Span<S::V>(int(at), count, spatial));
        });
    }

    // Of a row of channels, before it is used again: that of a long row is read.
    __device__ __forceinline__ void again(const Team<S>& team, i64 piece, i64 len, const Planes& from, i64 start,
                                          int spatial) {
        if constexpr (S::IS_LONG) {
            read(team, piece, len, from, start, spatial);
        } else {
            this->hide();
        }
    }
};

// The parameter of a span's channels, of which the row's first has number `first`; `missing` where there is none.
template <int V, class C>
__device__ __forceinline__ void load_param(const Tensor& param, i64 first, const Span<V>& span, C missing, C (&v)[V]) {
    const bool is_given = param.dtype != NONE && span.count > 0;
    const C common = is_given ? read_any<C>(param.data, param.dtype, first + span.channel) : missing;
#pragma unroll
    for (int e = 0; e < V; ++e) v[e] = common;
    if (is_given && !span.is_of_one_channel()) {
        span.each([&](int e, int channel, int) { v[e] = read_any<C>(param.data, param.dtype, first + channel); });
    }
}

// The weight of a span's channels, with its offset; 1 where there is none.
template <int V, class C>
__device__ __forceinline__ void load_weight(const Tensor& weight, C offset, i64 first, const Span<V>& span, C (&w)[V]) {
    load_param(weight, first, span, C(1), w);
    if (weight.dtype != NONE && offset != C(0)) {
#pragma unroll
        for (int e = 0; e < V; ++e) w[e] = add(w[e], offset);
    }
}

} // namespace isonorm
