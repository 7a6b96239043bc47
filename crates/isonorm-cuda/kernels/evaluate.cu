// See forward.cu.
#include "running.cuh"

extern "C" __global__ void __launch_bounds__(THREADS) KERNEL(const __grid_constant__ isonorm::Evaluate args) {
    using namespace isonorm;
    evaluate<INSTANCE>(args);
}
