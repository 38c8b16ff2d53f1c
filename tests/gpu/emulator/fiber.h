// A stack and the registers to go on with: what one CUDA thread is here.
//
// On x86-64 a switch saves the registers that a called function must keep, and nothing else; the
// ucontext of other processors does a system call for each.
#pragma once

#include <cstddef>

#if defined(__x86_64__) && !defined(EMULATOR_UCONTEXT)
#define EMULATOR_OWN_SWITCH
#else
#include <ucontext.h>
#endif

namespace emulator {

struct Fiber {
#ifdef EMULATOR_OWN_SWITCH
    void* stack_pointer;
#else
    ucontext_t context;
#endif
};

// Goes on with `to` until something switches back to `from`.
void switch_fiber(Fiber& from, Fiber& to);
// `entry` starts on this stack at the first switch. It must never return.
void prepare_fiber(Fiber& fiber, unsigned char* stack, size_t bytes, void (*entry)());

}  // namespace emulator
