#include "fault.h"

#include <pthread.h>
#include <sys/mman.h>

#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <thread>
#include <vector>

#include "memory.h"

namespace emulator {

namespace {

constexpr int SIGNALS[] = {SIGSEGV, SIGBUS, SIGFPE, SIGILL};
constexpr size_t HANDLER_STACK_BYTES = 64 << 10;

struct sigaction previous_actions[32];
std::atomic<bool> runs_kernel;
std::atomic<pthread_t> kernel_thread;
std::atomic<unsigned> num_launches;

struct Guarded {
    const unsigned char *begin, *end;
    const char* what;
};
std::vector<Guarded> guarded;

std::string describe(const void* address) {
    for (const Guarded& area : guarded) {
        if (address < area.begin || address >= area.end) continue;
        return std::string("outside of ") + area.what;
    }
    return describe_address(address);
}

void on_fault(int signal, siginfo_t* info, void* context) {
    if (runs_kernel && pthread_equal(kernel_thread, pthread_self())) {
        runs_kernel = false;
        std::string place = describe_place(), address = describe(info->si_addr);
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

// A kernel that does not end would leave no trace; its own thread can say where it is.
void on_patience_lost(int) {
    if (!runs_kernel || !pthread_equal(kernel_thread, pthread_self())) return;
    fprintf(stderr, "emulator: %s: still running\n", describe_place().c_str());
}

void watch() {
    const char* text = getenv("MILLSTREAM_EMULATOR_PATIENCE_S");
    auto patience = std::chrono::seconds(text ? atoi(text) : 60);
    for (unsigned last = 0;; last = num_launches) {
        std::this_thread::sleep_for(patience);
        if (runs_kernel && last == num_launches) pthread_kill(kernel_thread, SIGPROF);
    }
}

void install() {
    struct sigaction report = {};
    report.sa_handler = on_patience_lost;
    report.sa_flags = SA_ONSTACK | SA_RESTART;
    sigaction(SIGPROF, &report, nullptr);
    std::thread(watch).detach();
    for (int signal : SIGNALS) {
        struct sigaction action = {};
        action.sa_sigaction = on_fault;
        action.sa_flags = SA_SIGINFO | SA_ONSTACK;
        sigaction(signal, &action, &previous_actions[signal]);
    }
}

}  // namespace

unsigned char* guarded_slots(size_t count, size_t bytes, const char* what) {
    size_t stride = bytes + GUARD_BYTES;
    void* area = mmap(nullptr, count * stride, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (area == MAP_FAILED) {
        perror("emulator: mmap");
        abort();
    }
    auto* first = static_cast<unsigned char*>(area);
    for (size_t i = 0; i < count; i++) mprotect(first + i * stride, GUARD_BYTES, PROT_NONE);
    guarded.push_back({first, first + count * stride, what});
    return first;
}

FaultReports::FaultReports() {
    static const bool installed = (install(), true);
    (void)installed;
    static unsigned char* const stack =
        guarded_slots(1, HANDLER_STACK_BYTES, "the stack for faults") + GUARD_BYTES;
    stack_t ours = {};
    ours.ss_sp = stack;
    ours.ss_size = HANDLER_STACK_BYTES;
    sigaltstack(&ours, &previous_stack);
    kernel_thread = pthread_self();
    num_launches++;
    runs_kernel = true;
}

FaultReports::~FaultReports() {
    runs_kernel = false;
    sigaltstack(&previous_stack, nullptr);
}

}  // namespace emulator
