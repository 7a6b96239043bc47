// See forward.cu.
#include "side_by_side.cuh"

extern "C" __global__ void __launch_bounds__(THREADS, 1) KERNEL(const __grid_constant__ isonorm::Correlate args) {
    using namespace isonorm;
    correlate_side_by_side<INSTANCE>(args);
}
