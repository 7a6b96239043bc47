// The forward pass over rows: each row is read once, kept in registers, and written once. Long rows are read again.
//
//     r      = x + residual                where there is one
//     stats  = measure(row)                the norm's sums; a second time, scaled, under the range rule
//     y      = fma(x_hat, weight, bias)
#pragma once

#include "rows.cuh"

namespace isonorm {

struct Forward {
    Rows rows;
    Tensor x, residual, r, weight, bias, y;
    void* stats; // of each row mean, delta, var, inv, scale; or null
};

// r = x + residual: of the thread's piece, rounded to r's type and kept. Written too, by the row's own team: r may be
// the residual.
template <class S, class Z>
__device__ __forceinline__ void add_residual(const Team<S>& team, i64 piece, const Forward& args, i64 row, bool is_own,
                                             Piece<S>& r) {
    using C = typename S::C;
    const i64 x_row = row_start(args.rows, args.x, row), residual_row = row_start(args.rows, args.residual, row);
    typename S::T* kept = static_cast<typename S::T*>(args.r.data) + row_start(args.rows, args.r, row);
    const i64 hidden = args.rows.hidden;
    Piece<S, Held<Z, C>> summand, other; // all on their way before r is written
    read_piece<Z>(team, piece, args.x, x_row, hidden, summand);
    read_piece<Z>(team, piece, args.residual, residual_row, hidden, other);
    each_vector(team, piece, hidden, [&](int k, int s, i64 at, int count) {
        C x[S::V];
#pragma unroll
        for (int e = 0; e < S::V; ++e) x[e] = add(summand.get(k, s, e), other.get(k, s, e));
#pragma unroll
        for (int w = 0; w < Packed<typename S::T, S::V>::WORDS; ++w) r.vectors[k][s].words[w] = 0;
        r.vectors[k][s].narrow(x);
        if (is_own) write<typename S::T, S::V, S::IS_WHOLE>(kept + at, count, x);
    });
}

// y of the thread's piece of a row.
template <class Norm, class S, class P, class Y>
__device__ __forceinline__ void write_y(const Team<S>& team, i64 piece, const Forward& args, i64 y_row,
                                        const Piece<S>& x, const Stats<typename S::C>& stats) {
    using C = typename S::C;
    each_vector(team, piece, args.rows.hidden, [&](int k, int s, i64 at, int count) {
        C w[S::V], b[S::V];
        load_weight<S, P>(args.rows, args.weight, at, count, w);
        load_bias<S, P>(args.bias, at, count, b);
#pragma unroll
        for (int e = 0; e < S::V; ++e) {
            C x_hat = Norm::x_hat(x.get(k, s, e), stats);
            if (Norm::IS_LLAMA) x_hat = rounded<typename S::T>(x_hat);
            w[e] = fused(x_hat, w[e], b[e]);
        }
        store<Y, S::V, S::IS_WHOLE>(args.y, y_row + at, count, w);
    });
}

// Norm's forward pass. S has the storage type of what is normalized; P is that of weight and bias; Y that of y, or void
// where statistics are all that is wanted; Z that of x and the residual, or void.
template <class Norm, class S, class P, class Y, class Z> __device__ __forceinline__ void forward(const Forward& args) {
    using C = typename S::C;
    using X = typename S::T;
    constexpr bool IS_SUM = !Same<Z, void>::VALUE;
    __shared__ Shared<typename Exchange<S>::Buffers> buffers;
    Exchange<S> exchange(buffers);
    const Rows& rows = args.rows;
    const i64 hidden = rows.hidden;
    const Sharing& sharing = rows.sharing;
    const Team<S> team(sharing);
    for (i64 first = team.place() * sharing.rows_per_block; first < rows.rows;
         first += team.places() * sharing.rows_per_block) {
        const i64 row = row_of(rows, first + team.row);
        const bool is_own = row == first + team.row;
        const Tensor& input = IS_SUM ? args.r : args.x;
        const X* from = static_cast<const X*>(input.data) + row_start(rows, input, row);
        Piece<S> x;
        if constexpr (IS_SUM) {
            team.each_piece(hidden, [&](i64 piece) { add_residual<S, Z>(team, piece, args, row, is_own, x); });
        } else if (!S::IS_LONG) {
            x.read(team, 0, from, hidden);
        }
        const auto again = [&](i64 piece) {
            if constexpr (S::IS_LONG) {
                x.read(team, piece, from, hidden);
            } else {
                x.hide();
            }
        };
        const auto element = [&](int k, int s, int e) { return x.get(k, s, e); };
        const Stats<C> stats = measure<Norm, S>(team, exchange, rows, measured<S>(rows), again, element);
        if (!is_own) continue;
        if (args.stats && team.is_first()) static_cast<Stats<C>*>(args.stats)[row] = stats;
        if constexpr (!Same<Y, void>::VALUE) {
            const i64 y_row = row_start(rows, args.y, row);
            team.each_piece(hidden, [&](i64 piece) {
                again(piece);
                write_y<Norm, S, P, Y>(team, piece, args, y_row, x, stats);
            });
        }
    }
}

} // namespace isonorm
