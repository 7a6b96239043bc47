// A thread's part of a row in registers, and where it comes from.
#pragma once

#include "memory.cuh"
#include "order.cuh"
#include "stats.cuh"

namespace isonorm {

// What all calls over rows have in common. `outer` strides count for every `inner` rows.
struct Rows {
    i64 rows;
    i64 inner;
    i64 hidden;
    i64 measured; // pRMSNorm's k, else hidden
    Sharing sharing;
    int eps_outside;
    double eps;           // rounded to the compute type
    double weight_offset; // rounded to the compute type
};

// Element 0 of a row.
__device__ __forceinline__ i64 row_start(const Rows& rows, const Tensor& tensor, i64 row) {
    if (rows.inner == 1) return row * tensor.outer;
    return row / rows.inner * tensor.outer + row % rows.inner * tensor.inner;
}

// The row itself, or the last one where there is none: whoever has no row goes along with another, and writes nothing.
__device__ __forceinline__ i64 row_of(const Rows& rows, i64 row) { return min_of(row, rows.rows - 1); }

// Elements of a row that enter its statistics.
template <class S> __device__ __forceinline__ i64 measured(const Rows& rows) {
    return S::IS_WHOLE ? rows.hidden : rows.measured;
}

// What is known of a call's parameters when its kernel is compiled: nothing; that there is a weight, without an offset,
// and no bias; that there are such a weight and a bias.
enum class Affine { OPEN, WEIGHT, BOTH };

// The storage type of weight and bias, and what is known of them.
template <class E, Affine AFFINE_> struct Params {
    using T = E;
    static constexpr Affine AFFINE = AFFINE_;
};

// The weight of V elements, with its offset: 1 where there is none.
template <class S, class P>
__device__ __forceinline__ void load_weight(const Rows& rows, const Tensor& weight, i64 at, int count,
                                            typename S::C (&w)[S::V]) {
    using C = typename S::C;
    if (P::AFFINE == Affine::OPEN && weight.dtype == NONE) {
#pragma unroll
        for (int e = 0; e < S::V; ++e) w[e] = C(1);
        return;
    }
    load<typename P::T, S::V, S::IS_WHOLE>(weight, at, count, w);
    const C offset = C(rows.weight_offset);
    if (P::AFFINE == Affine::OPEN && offset != C(0)) {
#pragma unroll
        for (int e = 0; e < S::V; ++e) w[e] = add(w[e], offset);
    }
}

// The bias of V elements: -0, as if it were not added, where there is none.
template <class S, class P>
__device__ __forceinline__ void load_bias(const Tensor& bias, i64 at, int count, typename S::C (&b)[S::V]) {
    if (P::AFFINE == Affine::BOTH || (P::AFFINE == Affine::OPEN && bias.dtype != NONE)) {
        load<typename P::T, S::V, S::IS_WHOLE>(bias, at, count, b);
    } else {
#pragma unroll
        for (int e = 0; e < S::V; ++e) b[e] = -typename S::C(0);
    }
}

// Calls `visit(k, s, at, count)` for each vector of the thread's piece.
template <class S, class Visit>
__device__ __forceinline__ void each_vector(const Team<S>& team, i64 piece, i64 len, const Visit& visit) {
    const i64 at = team.at(piece);
    const int rest = team.rest(piece, len);
#pragma unroll
    for (int k = 0; k < S::NODE; ++k) {
#pragma unroll
        for (int s = 0; s < STEPS; ++s) {
            visit(k, s, at + team.offset(k, s), team.count(rest, k, s));
        }
    }
}

// A thread's piece of a row, in storage type E.
template <class S, class E = typename S::T> struct Piece {
    Packed<E, S::V> vectors[S::NODE][STEPS];

    __device__ __forceinline__ typename S::C get(int k, int s, int e) const { return vectors[k][s].get(e); }

    __device__ __forceinline__ void read(const Team<S>& team, i64 piece, const E* row, i64 len) {
        each_vector(team, piece, len, [&](int k, int s, i64 at, int count) {
            vectors[k][s] = isonorm::read<E, S::V, S::IS_WHOLE>(row + at, count);
        });
    }

    // Elements are widened again after this, instead of kept wide: registers are scarcer than instructions.
    __device__ __forceinline__ void hide() {
#pragma unroll
        for (int k = 0; k < S::NODE; ++k) {
#pragma unroll
            for (int s = 0; s < STEPS; ++s) {
#pragma unroll
                for (int w = 0; w < Packed<E, S::V>::WORDS; ++w) isonorm::hide(vectors[k][s].words[w]);
            }
        }
    }
};

// A piece of a row of any storage type, whose element 0 is element `start` of the tensor.
template <class E, class S>
__device__ __forceinline__ void read_piece(const Team<S>& team, i64 piece, const Tensor& from, i64 start, i64 len,
                                           Piece<S, Held<E, typename S::C>>& to) {
    using C = typename S::C;
    if constexpr (Same<E, Any>::VALUE) {
        each_vector(team, piece, len, [&](int k, int s, i64 at, int count) {
            C v[S::V];
            load<Any, S::V>(from, start + at, count, v);
            to.vectors[k][s] = Packed<C, S::V>{};
            to.vectors[k][s].narrow(v);
        });
    } else {
        to.read(team, piece, static_cast<const E*>(from.data) + start, len);
    }
}

// The statistics of a row, under the range rule. `x(k, s, e)` is an element of the piece that `load` brought, as far as
// `len`. Every row is scaled, most by 1, which changes no bit: one copy of the sums does both computations.
template <class Norm, class S, class Load, class X>
__device__ __forceinline__ Stats<typename S::C> measure(const Team<S>& team, Exchange<S>& exchange,
                                                        const Rows& rows, i64 len, const Load& load, const X& x) {
    using C = typename S::C;
    const Eps<C> eps{C(rows.eps), rows.eps_outside != 0};
    const C count = C(rows.measured);
    Stats<C> stats{};
    stats.scale = C(1);
#pragma unroll 1
    for (bool is_second = false;; is_second = true) {
        const auto scaled = [&](int k, int s, int e) { return mul(x(k, s, e), stats.scale); };
        const bool in_range = Norm::template sums<S>(team, exchange, len, count, load, scaled, stats);
        stats.inv = eps.scaled(stats.scale).inverse_root(stats.var);
        const bool again = !is_second && (!in_range || eps.is_small(stats.var));
        // Rows of a warp stay together; the threads of a row agree, whatever NaN they hold.
        if (!__any_sync(ALL, again)) return stats;
        C max = C(0);
        team.each_piece(len, [&](i64 piece) {
            load(piece);
            each_vector(team, piece, len, [&](int k, int s, i64, int within) {
#pragma unroll
                for (int e = 0; e < S::V; ++e) {
                    const C value = x(k, s, e);
                    if (e < within) max = Larger::of(max, value < C(0) ? -value : value);
                }
            });
        });
        const C scale = eps.scale(largest(team, exchange, max));
        stats.scale = again ? scale : C(1);
    }
}

} // namespace isonorm
