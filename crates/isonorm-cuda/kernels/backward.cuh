// The backward pass over rows: dx, and the sums of weight's and bias's gradients. x and dy are read once and kept in
// registers; those of long rows are read again.
//
//     g   = dy * weight
//     c1  = mean(g)                    of a norm that takes a mean off
//     c2  = mean(g * x_hat) * q
//     dx  = (fma(-x_hat, c2, g - c1) * inv) * scale
//
// A team goes through the rows of a unit (`units.cuh`), and keeps what its columns of the current leaf sum to.
#pragma once

#include "units.cuh"

namespace isonorm {

struct Backward {
    Rows rows;
    Tensor x, dy, weight, dresidual, dx, dr; // dx goes to dr too, where that is wanted
    const void* known;                       // statistics that forward saved, or null
    void* stats;                             // where they go, or null
    Scratch scratch;
};

// A thread's part of a row: x, dy of type D, and what forward saved.
template <class S, class D> struct Operands {
    using C = typename S::C;
    i64 row;
    Piece<S> x;
    Piece<S, Held<D, C>> dy;
    Stats<C> stats;

    // A row, or its statistics alone where it is long.
    __device__ __forceinline__ void begin(const Team<S>& team, const Backward& args, i64 next) {
        row = row_of(args.rows, next);
        if (args.known) stats = static_cast<const Stats<C>*>(args.known)[row];
        if (!S::IS_LONG) read(team, args, 0);
    }

    // A piece: that of a long row is read.
    __device__ __forceinline__ void again(const Team<S>& team, const Backward& args, i64 piece) {
        if constexpr (S::IS_LONG) {
            read(team, args, piece);
        } else {
            x.hide();
            dy.hide();
        }
    }

    // g of V elements: dy times weight; recipe llama rounds it to x's type.
    template <class Norm, class P>
    __device__ __forceinline__ void gradients(const Backward& args, int k, int s, i64 at, int count,
                                              C (&g)[S::V]) const {
        load_weight<S, P>(args.rows, args.weight, at, count, g);
#pragma unroll
        for (int e = 0; e < S::V; ++e) {
            g[e] = mul(dy.get(k, s, e), g[e]); // by 1 where there is no weight
            if (Norm::IS_LLAMA) g[e] = rounded<typename S::T>(g[e]);
        }
    }

  private:
    __device__ __forceinline__ void read(const Team<S>& team, const Backward& args, i64 piece) {
        const Rows& rows = args.rows;
        read_piece<typename S::T>(team, piece, args.x, row_start(rows, args.x, row), rows.hidden, x);
        read_piece<D>(team, piece, args.dy, row_start(rows, args.dy, row), rows.hidden, dy);
    }
};

// c1 and c2.
template <class C> struct Means {
    C of_g, of_products;
};

template <class Norm, class P, class S, class D>
__device__ __forceinline__ Means<typename S::C> means(const Team<S>& team, Exchange<S>& exchange, const Backward& args,
                                                      Operands<S, D>& operands) {
    using C = typename S::C;
    constexpr int SUMS = Norm::CENTERED ? 2 : 1;
    C sums[SUMS];
    i64 start = 0;
    const auto next = [&](i64 piece) {
        operands.again(team, args, piece);
        start = team.at(piece);
    };
    reduce<S, SUMS>(team, exchange, args.rows.hidden, next, [&](int k, int s, int count, C(&lanes)[S::V][SUMS]) {
        C g[S::V];
        operands.template gradients<Norm, P>(args, k, s, start + team.offset(k, s), count, g);
        each_element<S::V>(count, [&](int e) {
            lanes[e][0] = fused(g[e], Norm::x_hat(operands.x.get(k, s, e), operands.stats), lanes[e][0]);
            if constexpr (Norm::CENTERED) lanes[e][1] = add(lanes[e][1], g[e]);
        });
    }, sums);
    const Eps<C> eps{C(args.rows.eps), args.rows.eps_outside != 0};
    const C n = C(measured<S>(args.rows));
    return {Norm::CENTERED ? divide(sums[SUMS - 1], n) : C(0), eps.times_q(divide(sums[0], n), operands.stats)};
}

// What a thread's columns of a leaf sum to: dy * x_hat, then dy, if SUMS are as many.
template <class S, int SUMS> struct Leaf {
    typename S::C sums[S::NODE][STEPS][SUMS > 0 ? SUMS : 1][S::V] = {};

    __device__ __forceinline__ void take(int k, int s, int e, typename S::C dy, typename S::C x_hat) {
        if constexpr (SUMS > 0) sums[k][s][0][e] = fused(dy, x_hat, sums[k][s][0][e]);
        if constexpr (SUMS > 1) sums[k][s][1][e] = add(sums[k][s][1][e], dy);
    }

    // It is the unit's leaf `index`: to the scratch memory, and from +0 on.
    __device__ __forceinline__ void finish(const Team<S>& team, i64 hidden, typename S::C* slots, unsigned index,
                                           bool is_last) {
        each_vector(team, 0, hidden, [&](int k, int s, i64 at, int count) {
#pragma unroll
            for (int j = 0; j < SUMS; ++j) {
                push_leaf<S>(slots + j * hidden + at, 2 * hidden, index, is_last, count, sums[k][s][j]);
#pragma unroll
                for (int e = 0; e < S::V; ++e) sums[k][s][j][e] = 0;
            }
        });
    }
};

// Asks for a row of dresidual, which is needed when its dx is there.
template <class O, class S, class D>
__device__ __forceinline__ void ask_for_residual(const Team<S>& team, const Backward& args, const Operands<S, D>& of) {
    if constexpr (!Same<O, Any>::VALUE) {
        if (args.dresidual.dtype == NONE) return;
        const O* from = static_cast<const O*>(args.dresidual.data) + row_start(args.rows, args.dresidual, of.row);
        each_vector(team, 0, args.rows.hidden, [&](int, int, i64 at, int count) {
            if (count > 0) prefetch(from + at);
        });
    }
}

// dx of a row, which the leaf takes.
template <class Norm, class O, class P, class S, class D, int SUMS>
__device__ __forceinline__ void write_dx(const Team<S>& team, const Backward& args, Operands<S, D>& operands,
                                         const Means<typename S::C>& means, Leaf<S, SUMS>& leaf) {
    using C = typename S::C;
    using X = typename S::T;
    const Rows& rows = args.rows;
    const Stats<C>& stats = operands.stats;
    const bool has_residual = args.dresidual.dtype != NONE, has_copy = args.dr.dtype != NONE;
    const auto start = [&](const Tensor& tensor) { return row_start(rows, tensor, operands.row); };
    const i64 dx_row = start(args.dx), dr_row = has_copy ? start(args.dr) : 0;
    const i64 dresidual_row = has_residual ? start(args.dresidual) : 0;
    team.each_piece(rows.hidden, [&](i64 piece) {
        operands.again(team, args, piece);
        Piece<S, Held<O, C>> other;
        if (has_residual) read_piece<O>(team, piece, args.dresidual, dresidual_row, rows.hidden, other);
        each_vector(team, piece, rows.hidden, [&](int k, int s, i64 at, int count) {
            C g[S::V];
            operands.template gradients<Norm, P>(args, k, s, at, count, g);
#pragma unroll
            for (int e = 0; e < S::V; ++e) {
                const C x_hat = Norm::x_hat(operands.x.get(k, s, e), stats);
                leaf.take(k, s, e, operands.dy.get(k, s, e), Norm::IS_LLAMA ? rounded<X>(x_hat) : x_hat);
                C d = Norm::CENTERED ? sub(g[e], means.of_g) : g[e];
                // pRMSNorm: what is not measured has no part in c2.
                if (S::IS_WHOLE || at + e < rows.measured) d = fused(-x_hat, means.of_products, d);
                g[e] = mul(mul(d, stats.inv), stats.scale);
            }
            // One type in all tensors: the store rounds.
            if (has_residual || !Same<O, X>::VALUE) round_to<X>(g);
            if (has_residual) {
#pragma unroll
                for (int e = 0; e < S::V; ++e) g[e] = add(g[e], other.get(k, s, e));
                if (!Same<O, X>::VALUE) round_to<X>(g);
            }
            store<O, S::V, S::IS_WHOLE>(args.dx, dx_row + at, count, g);
            if (has_copy) store<O, S::V, S::IS_WHOLE>(args.dr, dr_row + at, count, g);
        });
    });
}

// Norm's backward pass. S has x's storage type; P is that of the weight, D that of dy, O that of the rest. SUMS: of
// none, of weight's gradient, of weight's and bias's.
template <class Norm, class S, class P, class D, class O, int SUMS>
__device__ __forceinline__ void backward(const Backward& args) {
    using C = typename S::C;
    static_assert(SUMS == 0 || !S::IS_LONG, "the columns of long rows are no thread's own");
    // The next row is on its way while a row is worked on, if it finds room beside it.
    constexpr bool IS_AHEAD = SUMS > 0 && S::WARPS <= 8;
    __shared__ Shared<typename Exchange<S>::Buffers> buffers;
    Exchange<S> exchange(buffers);
    const Rows& rows = args.rows;
    const Team<S> team(rows.sharing);
    const i64 first_unit = team.place() * rows.sharing.rows_per_block, unit = first_unit + team.row;
    const i64 first = unit * args.scratch.rows;
    // The block's first team has as many rows as any.
    const i64 count = min_of(args.scratch.rows, rows.rows - first_unit * args.scratch.rows);
    const i64 own = min_of(args.scratch.rows, rows.rows - first);
    C* slots = static_cast<C*>(args.scratch.nodes) + unit * args.scratch.slots * 2 * rows.hidden;
    Leaf<S, SUMS> leaf;
    Operands<S, D> operands, next;
    if (IS_AHEAD) next.begin(team, args, first);
    for (i64 i = 0; i < count; ++i) {
        if constexpr (IS_AHEAD) {
            operands = next;
            if (i + 1 < count) {
                next.begin(team, args, first + i + 1);
                ask_for_residual<O>(team, args, next);
            }
        } else {
            operands.begin(team, args, first + i);
        }
        if (!args.known) {
            const auto again = [&](i64 piece) { operands.again(team, args, piece); };
            const auto element = [&](int k, int s, int e) { return operands.x.get(k, s, e); };
            operands.stats = measure<Norm, S>(team, exchange, rows, measured<S>(rows), again, element);
        }
        const Means<C> of_row = means<Norm, P>(team, exchange, args, operands);
        if (i >= own) continue;
        if (args.stats && team.is_first()) static_cast<Stats<C>*>(args.stats)[operands.row] = operands.stats;
        write_dx<Norm, O, P>(team, args, operands, of_row, leaf);
        if (SUMS > 0 && ((i + 1) % BATCH_LEAF == 0 || i + 1 == own)) {
            leaf.finish(team, rows.hidden, slots, unsigned(i / BATCH_LEAF), i + 1 == own);
        }
    }
    if constexpr (SUMS > 0 && S::WARPS == 1) sum_units_of_block<C>(args.scratch, rows, first_unit);
}

} // namespace isonorm
