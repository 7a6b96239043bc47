// Running statistics: how a batch moves them, and what evaluation makes of them. As running.rs.
#pragma once

#include "channels.cuh"
#include "values.cuh"

namespace isonorm {

// One mean and one variance for each channel, or none.
struct Running {
    Tensor mean, var;
    double momentum; // rounded to the compute type
    int biased;
};

template <class C>
__device__ void move_one(const Tensor& running, i64 channel, C momentum, C to) {
    const C kept = mul(sub(C(1), momentum), read_any<C>(running.data, running.dtype, channel));
    write_any(running.data, running.dtype, channel, fused(momentum, to, kept));
}

// Towards the statistics of `count` values, as they are reported.
template <class C> __device__ void move(const Running& running, i64 channel, const Stats<C>& stats, i64 count) {
    if (running.mean.dtype == NONE) return;
    const C mean = divide(add(stats.mean, stats.delta), stats.scale);
    const C var = divide(divide(stats.var, stats.scale), stats.scale);
    const C unbiased = mul(var, divide(C(count), C(count - 1)));
    move_one(running.mean, channel, C(running.momentum), mean);
    move_one(running.var, channel, C(running.momentum), running.biased ? var : unbiased);
}

struct Instances {
    i64 samples;
    i64 channels;
    i64 spatial;
    const void* stats; // of each sample those of its channels
    Running running;
};

// The means over the samples of what InstanceNorm reports, in batch order; a channel a thread.
template <class C> __device__ __forceinline__ void instances(const Instances& args) {
    const i64 channel = i64(blockIdx.x) * blockDim.x + threadIdx.x;
    if (channel >= args.channels) return;
    Nodes<C, 2> leaves;
    C sums[2]; // of means and variances
    for (i64 leaf = 0; leaf < args.samples; leaf += BATCH_LEAF) {
        sums[0] = sums[1] = C(0);
        for (i64 n = leaf; n < leaf + BATCH_LEAF && n < args.samples; ++n) {
            const Stats<C> stats = static_cast<const Stats<C>*>(args.stats)[n * args.channels + channel];
            sums[0] = add(sums[0], divide(add(stats.mean, stats.delta), stats.scale));
            sums[1] = add(sums[1], divide(divide(stats.var, stats.scale), stats.scale));
        }
        leaves.push(sums);
    }
    leaves.finish(sums);
    const C samples = C(args.samples);
    const Stats<C> average{divide(sums[0], samples), C(0), divide(sums[1], samples), C(0), C(1)};
    move(args.running, channel, average, args.spatial);
}

struct Evaluate {
    i64 channels;
    int eps_outside;
    int is_backward;
    double eps;
    double weight_offset;
    Tensor mean, var, weight, bias;
    void* stats;  // of each channel, or null
    void* values; // forward's, or those of dx as a y of dy; or null
};

// From running statistics to what the elements of a channel need; a channel a thread.
template <class C> __device__ __forceinline__ void evaluate(const Evaluate& args) {
    const i64 channel = i64(blockIdx.x) * blockDim.x + threadIdx.x;
    if (channel >= args.channels) return;
    const Eps<C> eps{C(args.eps), args.eps_outside != 0};
    const C mean = read_any<C>(args.mean.data, args.mean.dtype, channel);
    const C var = read_any<C>(args.var.data, args.var.dtype, channel);
    const Stats<C> stats{mean, C(0), var, eps.inverse_root(var), C(1)};
    if (args.stats) static_cast<Stats<C>*>(args.stats)[channel] = stats;
    if (!args.values) return;
    const Values<C> values{static_cast<C*>(args.values), args.channels};
    const C weight = weight_of(args.weight, C(args.weight_offset), channel);
    if (args.is_backward) {
        values.put(channel, Stats<C>{C(0), C(0), var, mul(weight, stats.inv), C(1)}, C(1), -C(0));
    } else {
        values.put(channel, stats, weight, param_of(args.bias, -C(0), channel));
    }
}

} // namespace isonorm
