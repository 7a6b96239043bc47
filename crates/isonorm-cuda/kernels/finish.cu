// See forward.cu.
#include "units.cuh"

extern "C" __global__ void __launch_bounds__(THREADS, 1) KERNEL(const __grid_constant__ isonorm::Finish args) {
    using namespace isonorm;
    finish<INSTANCE>(args);
}
