// See forward.cu.
#include "groups.cuh"

extern "C" __global__ void __launch_bounds__(THREADS, 1) KERNEL(const __grid_constant__ isonorm::GroupForward args) {
    using namespace isonorm;
    forward_groups<INSTANCE>(args);
}
