// See forward.cu.
#include "side_by_side.cuh"

extern "C" __global__ void __launch_bounds__(THREADS, 2) KERNEL(const __grid_constant__ isonorm::Moments args) {
    using namespace isonorm;
    moments_side_by_side<INSTANCE>(args);
}
