// See forward.cu.
#include "backward.cuh"
#include "layer_norm.cuh"
#include "rms_norm.cuh"

extern "C" __global__ void __launch_bounds__(THREADS, 1) KERNEL(const __grid_constant__ isonorm::Backward args) {
    using namespace isonorm;
    backward<INSTANCE>(args);
}
