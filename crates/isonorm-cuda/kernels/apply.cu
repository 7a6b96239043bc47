// See forward.cu.
#include "lines.cuh"

extern "C" __global__ void __launch_bounds__(THREADS, 1) KERNEL(const __grid_constant__ isonorm::Apply args) {
    using namespace isonorm;
    apply<INSTANCE>(args);
}
