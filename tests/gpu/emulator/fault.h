// Turns a fault inside a kernel into a line that says which kernel, block and thread it was.
#pragma once

#include <signal.h>

#include <cstddef>
#include <string>

namespace emulator {

constexpr size_t GUARD_BYTES = 4096;

// `count` areas of `bytes` bytes, one after the other, with GUARD_BYTES before each that fault. A
// fault there is reported as one outside of `what`.
unsigned char* guarded_slots(size_t count, size_t bytes, const char* what);

// "kernel k, block (0, 0, 0), thread (1, 0, 0)", while a kernel runs.
std::string describe_place();

// While it lives, the calling thread runs a kernel: a fault is reported and ends the process. Every
// MILLSTREAM_EMULATOR_PATIENCE_S seconds, 60 by default, a line says where a long one is.
class FaultReports {
  public:
    FaultReports();
    ~FaultReports();
    FaultReports(const FaultReports&) = delete;

  private:
    stack_t previous_stack;
};

}  // namespace emulator
