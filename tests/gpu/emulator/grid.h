// Runs the grid of a kernel on the processor, in the calling thread.
#pragma once

#include "kernel.h"

namespace emulator {

struct Launch {
    const Kernel* kernel;
    dim3 grid, block;
    unsigned shared_bytes;  // dynamic
};

// False when the kernel failed; one line about it is then on stderr. One call at a time.
bool run_grid(const Launch& launch, void* const* arguments);

const Kernel* find_kernel(const char* name);
// Loads the kernel files that lie beside this library; once.
void load_kernels();

}  // namespace emulator
