// The shared memory of the running block. It starts as all ones in every block: NaNs, and indices
// that are out of range, so that what was not written shows.
#pragma once

#include "grid.h"

namespace emulator {

constexpr unsigned MAX_SHARED_BYTES = 227 << 10;

void prepare_shared_memory(const Launch& launch);
void poison_shared_memory();
bool dynamic_shared_end_intact();
bool is_shared(const unsigned char* address);

}  // namespace emulator
