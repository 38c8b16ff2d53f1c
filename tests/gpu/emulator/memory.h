// The device's memory, and the host memory that is pinned.
//
// Every allocation has pages of its own and ends, up to a rounding to 16 bytes, at a page that
// faults, so an access behind it is seen; what is freed faults for ever. It starts as all ones.
#pragma once

#include <cstddef>
#include <string>

namespace emulator {

enum class Space { Device, Pinned };

size_t total_memory();
size_t free_memory();

// Null when there is not enough.
void* allocate(Space space, size_t bytes);
// False when no allocation starts there.
bool release(Space space, void* start);
// Whether these bytes lie in one allocation. An end may be touched by no bytes.
bool is_allocated(Space space, const void* start, size_t bytes);
std::string describe_address(const void* address);

}  // namespace emulator
