// The gradients of channels' parameters, in the order of channels.cuh, and what BatchNorm's dx needs of them.
//
//     dbias   = channel_sum(dy)
//     dweight = channel_dot(dy, x_hat)
#pragma once

#include "channels.cuh"
#include "layer_norm.cuh"
#include "values.cuh"

namespace isonorm {

struct Correlate {
    Channels channels;
    Planes x, dy;
    i64 groups;        // of a sample, each with statistics of its own; 0: the channels have them
    const void* stats;
    Tensor weight, dweight, dbias;
    void* values; // of dx; or null
};

// What follows from a channel's sums.
template <class C> __device__ void settle(const Correlate& args, i64 channel, C dbias, C dweight) {
    const Channels& channels = args.channels;
    if (args.dbias.dtype != NONE) write_any(args.dbias.data, args.dbias.dtype, channel, dbias);
    if (args.dweight.dtype != NONE) write_any(args.dweight.data, args.dweight.dtype, channel, dweight);
    if (!args.values) return;
    const Stats<C> stats = static_cast<const Stats<C>*>(args.stats)[channel];
    const C n = C(channels.count());
    const C k2 = channels.template rounded_eps<C>().times_q(divide(dweight, n), stats);
    const C factor = mul(weight_of(args.weight, C(channels.weight_offset), channel), stats.inv);
    Values<C>{static_cast<C*>(args.values), channels.channels}.put(channel, stats, divide(dbias, n), k2, factor);
}

// The set of statistics of a sample's channel.
__device__ __forceinline__ i64 set_of(const Correlate& args, i64 sample, i64 channel) {
    if (args.groups == 0) return channel;
    return sample * args.groups + channel / (args.channels.channels / args.groups);
}

// S has x's storage type, D is dy's.
template <class S, class D, bool IS_SHARED> __device__ __forceinline__ void correlate(const Correlate& args) {
    using C = typename S::C;
    __shared__ Shared<typename Exchange<S>::Buffers> buffers;
    __shared__ Shared<ChannelMemory<C>> memory;
    Exchange<S> exchange(buffers);
    Channel<S, IS_SHARED> channel(args.channels, exchange, own(memory));
    channel.each([&] {
        PlanePiece<S, typename S::T> x;
        PlanePiece<S, D> dy;
        Stats<C> stats;
        const auto load = [&](i64 sample, i64 piece) {
            stats = static_cast<const Stats<C>*>(args.stats)[set_of(args, sample, channel.number)];
            channel.read(x, sample, piece, args.x);
            channel.read(dy, sample, piece, args.dy);
        };
        C sums[2]; // dbias, dweight
        channel.sums(load, [&](int k, int s, int count, C(&lanes)[S::V][2]) {
            each_element<S::V>(count, [&](int e) {
                const C d = dy.get(k, s, e);
                lanes[e][0] = add(lanes[e][0], d);
                lanes[e][1] = fused(d, LayerNorm::x_hat(x.get(k, s, e), stats), lanes[e][1]);
            });
        }, sums);
        if (channel.is_first()) settle(args, channel.number, sums[0], sums[1]);
    });
}

} // namespace isonorm
