// The forward kernel of one norm. The host gives (-D) its name, its threads at most, and as INSTANCE what `forward` is
// instantiated with: norm, shape, storage types.
#include "forward.cuh"
#include "layer_norm.cuh"
#include "rms_norm.cuh"

extern "C" __global__ void __launch_bounds__(THREADS, 1) KERNEL(const __grid_constant__ isonorm::Forward args) {
    using namespace isonorm;
    forward<INSTANCE>(args);
}
