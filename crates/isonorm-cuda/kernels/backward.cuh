// The backward pass over rows: dx. x and dy are read once and kept in registers; those of long rows are read again.
//
//     g   = dy * weight
//     c1  = mean(g)                    of a norm that takes a mean off
//     c2  = mean(g * x_hat) * q
//     dx  = (fma(-x_hat, c2, g - c1) * inv) * scale
#pragma once

#include "rows.cuh"

namespace isonorm {

struct Backward {
    Rows rows;
    Tensor x, dy, weight, dresidual, dx, dr; // dx goes to dr too, where that is wanted
    const void* known;                       // statistics that forward saved, or null
    void* stats;                             // where they go, or null
};

// A vector of dy in the type in which it is kept.
template <class D, class C> struct HeldAs {
    using type = D;
};
template <class C> struct HeldAs<Any, C> {
    using type = C;
};

// A piece of dy.
template <class S, class D> struct Upstream {
    using Held = typename HeldAs<D, typename S::C>::type;
    Packed<Held, S::V> vectors[S::NODE][STEPS];

    __device__ __forceinline__ typename S::C get(int k, int s, int e) const { return vectors[k][s].get(e); }

    __device__ __forceinline__ void read(const Team<S>& team, i64 piece, const Tensor& dy, i64 row, i64 len) {
        each_vector(team, piece, len, [&](int k, int s, i64 at, int count) {
            if constexpr (Same<D, Any>::VALUE) {
                typename S::C v[S::V];
                load<Any, S::V, S::IS_WHOLE>(dy, row + at, count, v);
                vectors[k][s] = Packed<Held, S::V>{};
                vectors[k][s].narrow(v);
            } else {
                vectors[k][s] = isonorm::read<D, S::V, S::IS_WHOLE>(static_cast<const D*>(dy.data) + row + at, count);
            }
        });
    }

    // As `Piece` does.
    __device__ __forceinline__ void again(const Team<S>& team, i64 piece, const Tensor& dy, i64 row, i64 len) {
        if constexpr (S::IS_LONG) {
            read(team, piece, dy, row, len);
        } else {
            each_vector(team, piece, len, [&](int k, int s, i64, int) { vectors[k][s].hide(); });
        }
    }
};

// g of V elements: dy times weight; recipe llama rounds it to x's type.
template <class Norm, class S, class P, class D>
__device__ __forceinline__ void gradients(const Rows& rows, const Tensor& weight, const Upstream<S, D>& dy, int k, int s,
                                          i64 at, int count, typename S::C (&g)[S::V]) {
    load_weight<S, P>(rows, weight, at, count, g);
#pragma unroll
    for (int e = 0; e < S::V; ++e) {
        g[e] = mul(dy.get(k, s, e), g[e]); // by 1 where there is no weight
        if (Norm::IS_LLAMA) g[e] = rounded<typename S::T>(g[e]);
    }
}

// Norm's backward pass. S has x's storage type; P is that of the weight, D that of dy, O that of the rest.
template <class Norm, class S, class P, class D, class O> __device__ __forceinline__ void backward(const Backward& args) {
    using C = typename S::C;
    using X = typename S::T;
    __shared__ typename Exchange<S>::Buffers buffers;
    Exchange<S> exchange(buffers);
    const Rows& rows = args.rows;
    const i64 hidden = rows.hidden;
    const Team<S> team(rows.warps, rows.pieces);
    const Eps<C> eps{C(rows.eps), rows.eps_outside != 0};
    const C n = C(rows.measured);
    for (i64 first = i64(blockIdx.x) * rows.rows_per_block; first < rows.rows;
         first += i64(gridDim.x) * rows.rows_per_block) {
        const i64 row = row_of(rows, first + team.row);
        const X* x_row = static_cast<const X*>(args.x.data) + row_start(rows, args.x, row);
        const i64 dy_row = row_start(rows, args.dy, row);
        Piece<S> x;
        Upstream<S, D> dy;
        if (!S::IS_LONG) {
            x.read(team, 0, x_row, hidden);
            dy.read(team, 0, args.dy, dy_row, hidden);
        }
        const auto again = [&](i64 piece) {
            x.again(team, piece, x_row, hidden);
            dy.again(team, piece, args.dy, dy_row, hidden);
        };
        const auto element = [&](int k, int s, int e) { return x.get(k, s, e); };
        Stats<C> stats;
        if (args.known) {
            stats = static_cast<const Stats<C>*>(args.known)[row];
        } else {
            stats = measure<Norm, S>(team, exchange, rows, measured<S>(rows), again, element);
        }
        C sums[2];
        i64 start = 0;
        const auto next = [&](i64 piece) {
            again(piece);
            start = team.at(piece);
        };
        reduce<S, 2>(team, exchange, hidden, next, [&](int k, int s, int count, C(&lanes)[S::V][2]) {
            C g[S::V];
            gradients<Norm, S, P>(rows, args.weight, dy, k, s, start + team.offset(k, s), count, g);
            each_element<S::V>(count, [&](int e) {
                if (Norm::CENTERED) lanes[e][0] = add(lanes[e][0], g[e]);
                lanes[e][1] = fused(g[e], Norm::x_hat(x.get(k, s, e), stats), lanes[e][1]);
            });
        }, sums);
        const C c1 = divide(sums[0], n), c2 = eps.times_q(divide(sums[1], n), stats);
        if (row != first + team.row) continue;
        if (args.stats && team.is_first()) static_cast<Stats<C>*>(args.stats)[row] = stats;
        const i64 dx_row = row_start(rows, args.dx, row);
        const i64 dr_row = row_start(rows, args.dr, row), dresidual_row = row_start(rows, args.dresidual, row);
        team.each_piece(hidden, [&](i64 piece) {
            again(piece);
            each_vector(team, piece, hidden, [&](int k, int s, i64 at, int count) {
                C g[S::V];
                gradients<Norm, S, P>(rows, args.weight, dy, k, s, at, count, g);
#pragma unroll
                for (int e = 0; e < S::V; ++e) {
                    C d = Norm::CENTERED ? sub(g[e], c1) : g[e];
                    // pRMSNorm: what is not measured has no part in c2.
                    if (at + e < measured<S>(rows)) d = fused(-Norm::x_hat(x.get(k, s, e), stats), c2, d);
                    g[e] = rounded<X>(mul(mul(d, stats.inv), stats.scale));
                }
                if (args.dresidual.dtype != NONE) {
                    C other[S::V];
                    load<O, S::V, S::IS_WHOLE>(args.dresidual, dresidual_row + at, count, other);
#pragma unroll
                    for (int e = 0; e < S::V; ++e) g[e] = rounded<X>(add(g[e], other[e]));
                }
                store<O, S::V, S::IS_WHOLE>(args.dx, dx_row + at, count, g);
                if (args.dr.dtype != NONE) store<O, S::V, S::IS_WHOLE>(args.dr, dr_row + at, count, g);
            });
        });
    }
}

} // namespace isonorm
