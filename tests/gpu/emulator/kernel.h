// What a compiled kernel file and the emulator's runtime know of each other.
//
// A kernel file becomes a shared object of its own, so that helpers of equal names in two files do
// not meet, and so that the object's zeroed data is just the static shared memory of its kernels.
// It registers its kernels when it is loaded; the runtime is in libcuda.so.
#pragma once

#include <cstddef>
#include <cstdint>
#include <type_traits>
#include <utility>

#include "vectors.h"

#define EMULATOR_API __attribute__((visibility("default")))

namespace emulator {

// A place in a kernel's source. As a default argument, `here()` is the place of the call.
struct Site {
    const char* file;
    int line;
};
constexpr Site here(const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
    return {file, line};
}

// ---------------------------------------------------------------------------------------------
// Kernels

struct Parameter {
    size_t size, alignment;
    bool is_pointer;
};

struct Kernel {
    const char* name;
    unsigned max_threads;
    void (*run)(void* const* arguments);  // one thread of it
    const Parameter* parameters;
    size_t num_parameters;
};

EMULATOR_API void register_kernel(const Kernel* kernel);

// Calls `kernel` with arguments that lie in memory, as cuLaunchKernel gets them.
template <auto kernel>
struct Typed;
template <typename... Arguments, void (*kernel)(Arguments...)>
struct Typed<kernel> {
    // One more than there are, since an array cannot be empty.
    static constexpr Parameter PARAMETERS[] = {
        {sizeof(Arguments), alignof(Arguments), std::is_pointer<Arguments>::value}...,
        {0, 1, false}};
    static constexpr size_t NUM_PARAMETERS = sizeof...(Arguments);

    static void run(void* const* arguments) {
        call(arguments, std::index_sequence_for<Arguments...>());
    }

  private:
    template <size_t... I>
    static void call([[maybe_unused]] void* const* arguments, std::index_sequence<I...>) {
        kernel(*static_cast<const Arguments*>(arguments[I])...);
    }
};

// ---------------------------------------------------------------------------------------------
// The running thread. One kernel runs at a time, one thread of it at a time, so these are plain
// variables, set whenever another thread's turn comes.

extern EMULATOR_API uint3 thread_index, block_index;
extern EMULATOR_API dim3 block_size, grid_size;

// Ends the kernel: the launch fails with this message.
[[noreturn]] EMULATOR_API void fail(Site site, const char* format, ...)
    __attribute__((format(printf, 2, 3)));

EMULATOR_API unsigned char* dynamic_shared_memory();

// ---------------------------------------------------------------------------------------------
// Where threads wait for each other

// What a barrier gives to everyone: over the predicates of all threads.
struct Votes {
    int count;
    bool all, any;
};
EMULATOR_API Votes block_barrier(int predicate, const char* operation, Site site);

// What the lanes of a warp do together. Each lane in `mask` comes with its operands; the last one
// runs `combine` once for all, with the operands of each lane, null for lanes not in `mask`.
// Lanes that the block does not have are left out of `mask`, unless `whole_warp`.
struct WarpOperation {
    const char* name;
    void (*combine)(void* const* lanes, unsigned mask);
    bool whole_warp;
};
EMULATOR_API void warp_operation(const WarpOperation& operation, unsigned mask, void* operands,
                                 Site site);

EMULATOR_API extern const WarpOperation MMA_BF16, MMA_F16, LOAD_MATRICES, LOAD_TRANSPOSED;
struct MmaOperands {
    float* d;
    const uint32_t *a, *b;
};
struct MatrixOperands {
    uint32_t* to;
    const void* row;
};

EMULATOR_API unsigned lane();
EMULATOR_API unsigned lanes_not_returned();
EMULATOR_API void let_others_run();

// ---------------------------------------------------------------------------------------------
// Copies into shared memory

EMULATOR_API void copy_async(void* to, const void* from, bool valid, Site site);
EMULATOR_API void copies_commit();
EMULATOR_API void copies_wait(unsigned pending);

// Some instructions work on one kind of memory only, and give nonsense for another.
enum class Memory { Shared, Global };
EMULATOR_API void check_memory(const void* address, Memory kind, const char* what, Site site);

inline void check_alignment(const void* address, const char* what, Site site) {
    if (reinterpret_cast<uintptr_t>(address) % 16 != 0) {
        fail(site, "%s at %p, which is not a multiple of 16 bytes", what, address);
    }
}

}  // namespace emulator
