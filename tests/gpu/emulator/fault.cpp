#include "fault.h"

#include <pthread.h>
#include <sys/mman.h>
#include <unistd.h>

#include <atomic>
#include <cstdint>
#include <cstdio>
#include <cstdlib>

#include "kernel.h"
#include "memory.h"

namespace emulator {

namespace {

constexpr int SIGNALS[] = {SIGSEGV, SIGBUS, SIGFPE, SIGILL};
constexpr size_t HANDLER_STACK_BYTES = 64 << 10;

struct sigaction previous_actions[32];
std::atomic<bool> runs_kernel;
std::atomic<pthread_t> kernel_thread;

void on_fault(int signal, siginfo_t* info, void* context) {
    if (runs_kernel && pthread_equal(kernel_thread, pthread_self())) {
        runs_kernel = false;
        std::string place = describe_place(), address = describe_address(info->si_addr);
        fprintf(stderr, "emulator: %s: %s, %s\n", place.c_str(),
                signal == SIGSEGV || signal == SIGBUS ? "touched memory it must not" : "trap",
                address.c_str());
        ::signal(SIGABRT, SIG_DFL);
        abort();
    }
    // Not ours: what was there before gets it, or the default when we return to the instruction.
    const auto& previous = previous_actions[signal];
    if (previous.sa_flags & SA_SIGINFO) {
        previous.sa_sigaction(signal, info, context);
    } else if (previous.sa_handler == SIG_DFL || previous.sa_handler == SIG_IGN) {
        ::signal(signal, SIG_DFL);
    } else {
        previous.sa_handler(signal);
    }
}

void install() {
    for (int signal : SIGNALS) {
        struct sigaction action = {};
        action.sa_sigaction = on_fault;
        action.sa_flags = SA_SIGINFO | SA_ONSTACK;
        sigaction(signal, &action, &previous_actions[signal]);
    }
}

}  // namespace

unsigned char* guarded_slots(size_t count, size_t bytes) {
    size_t stride = bytes + GUARD_BYTES;
    void* area = mmap(nullptr, count * stride, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (area == MAP_FAILED) {
        perror("emulator: mmap");
        abort();
    }
    auto* first = static_cast<unsigned char*>(area);
    for (size_t i = 0; i < count; i++) mprotect(first + i * stride, GUARD_BYTES, PROT_NONE);
    return first;
}

FaultReports::FaultReports() {
    static const bool installed = (install(), true);
    (void)installed;
    static unsigned char* const stack = guarded_slots(1, HANDLER_STACK_BYTES) + GUARD_BYTES;
    stack_t ours = {};
    ours.ss_sp = stack;
    ours.ss_size = HANDLER_STACK_BYTES;
    sigaltstack(&ours, &previous_stack);
    kernel_thread = pthread_self();
    runs_kernel = true;
}

FaultReports::~FaultReports() {
    runs_kernel = false;
    sigaltstack(&previous_stack, nullptr);
}

}  // namespace emulator

// ---------------------------------------------------------------------------------------------
// What the compiler's checks of undefined behaviour call in kernels; the layouts are the compiler's.

namespace {
struct CheckedPlace {
    const char* file;
    uint32_t line, column;
};
struct CheckedType {
    uint16_t kind, info;
    char name[1];
};
struct TypeMismatch {
    CheckedPlace place;
    const CheckedType* type;
    unsigned char log_alignment, kind;
};
emulator::Site site(const void* check) {
    const auto& place = *static_cast<const CheckedPlace*>(check);
    return {place.file, int(place.line)};
}
}  // namespace

#define EMULATOR_CHECK extern "C" [[noreturn]] EMULATOR_API void

EMULATOR_CHECK __ubsan_handle_type_mismatch_v1_abort(const TypeMismatch* check, uintptr_t address) {
    emulator::fail(site(check), "access of type %s at %#zx, which is %s", check->type->name,
                   size_t(address), address ? "not aligned for it" : "null");
}
EMULATOR_CHECK __ubsan_handle_out_of_bounds_abort(const void* check, uintptr_t index) {
    emulator::fail(site(check), "index %zd is outside the array", ssize_t(index));
}
EMULATOR_CHECK __ubsan_handle_add_overflow_abort(const void* check, uintptr_t, uintptr_t) {
    emulator::fail(site(check), "an integer sum overflows");
}
EMULATOR_CHECK __ubsan_handle_sub_overflow_abort(const void* check, uintptr_t, uintptr_t) {
    emulator::fail(site(check), "an integer difference overflows");
}
EMULATOR_CHECK __ubsan_handle_mul_overflow_abort(const void* check, uintptr_t, uintptr_t) {
    emulator::fail(site(check), "an integer product overflows");
}
EMULATOR_CHECK __ubsan_handle_negate_overflow_abort(const void* check, uintptr_t) {
    emulator::fail(site(check), "an integer negation overflows");
}
EMULATOR_CHECK __ubsan_handle_divrem_overflow_abort(const void* check, uintptr_t, uintptr_t) {
    emulator::fail(site(check), "an integer division by zero, or one that overflows");
}
EMULATOR_CHECK __ubsan_handle_shift_out_of_bounds_abort(const void* check, uintptr_t,
                                                        uintptr_t shift) {
    emulator::fail(site(check), "a shift by %zd", ssize_t(shift));
}
