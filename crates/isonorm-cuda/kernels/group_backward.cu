// See forward.cu.
#include "groups.cuh"

extern "C" __global__ void __launch_bounds__(THREADS, 1) KERNEL(const __grid_constant__ isonorm::GroupBackward args) {
    using namespace isonorm;
    backward_groups<INSTANCE>(args);
}
