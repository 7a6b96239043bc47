// See forward.cu.
#include "lines.cuh"

extern "C" __global__ void __launch_bounds__(THREADS, 1) KERNEL(const __grid_constant__ isonorm::PlaneGradients args) {
    using namespace isonorm;
    gradients<INSTANCE>(args);
}
