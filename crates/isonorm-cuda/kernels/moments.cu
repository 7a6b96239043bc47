// See forward.cu.
#include "moments.cuh"

extern "C" __global__ void __launch_bounds__(THREADS, 1) KERNEL(const __grid_constant__ isonorm::Moments args) {
    using namespace isonorm;
    moments<INSTANCE>(args);
}
