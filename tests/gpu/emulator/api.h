// What the files with the driver's functions share: handles, and what is checked in every call.
#pragma once

#include <map>
#include <memory>
#include <mutex>
#include <string>

#include "kernel.h"
#include "result.h"
#include "stream.h"

#define DRIVER extern "C" EMULATOR_API int

// The driver's handles. A null stream is the default one.
using CUstream = emulator::Stream*;
using CUevent = std::shared_ptr<emulator::Event>*;
using CUgraph = emulator::Graph*;
using CUgraphExec = emulator::Graph*;
using CUcontext = void*;
using CUdevice = int;
using CUdeviceptr = unsigned long long;

namespace emulator {

// A function of a module: a kernel, and how much dynamic shared memory it may be given.
struct Function {
    const Kernel* kernel;
    unsigned max_shared_bytes;
};

// Whatever its image is, its functions are the kernels that were compiled for the emulator. Each
// module has its own, as what is set for one does not hold for another's.
struct Module {
    std::mutex mutex;
    std::map<std::string, Function> functions;
};

// The failure that stays, or that cuInit was not called.
Result check_initialised();
// That, or that this thread has no context.
Result check_context();

inline Stream& stream_of(CUstream handle) {
    // 1 and 2 are the names of the default streams.
    return reinterpret_cast<uintptr_t>(handle) <= 2 ? default_stream() : *handle;
}
template <typename T>
T* pointer(CUdeviceptr address) {
    return reinterpret_cast<T*>(address);
}

// Prints why a call is refused, since its code does not say, and gives the code.
Result refuse(Result result, const char* format, ...) __attribute__((format(printf, 2, 3)));

}  // namespace emulator

using CUfunction = emulator::Function*;
using CUmodule = emulator::Module*;

#define RETURN_IF_ERROR(call)                \
    do {                                     \
        if (int error = (call)) return error; \
    } while (0)
