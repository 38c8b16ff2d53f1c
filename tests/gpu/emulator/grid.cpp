// Threads as fibers. Blocks run one after the other; in a block a thread runs until it waits for
// others, at a barrier of the block or in an operation of its warp, and the next one that can run
// goes on. When none can and not all have returned, the block is stuck, and the launch fails.
#include "grid.h"

#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#include "fault.h"
#include "fiber.h"
#include "order.h"
#include "shared.h"

namespace emulator {

uint3 thread_index, block_index;
dim3 block_size, grid_size;

namespace {

constexpr unsigned MAX_THREADS = 1024;
constexpr unsigned WARP = 32;

enum class State { Runnable, AtBarrier, InWarpOperation, Returned };

struct Copy {
    void* to;
    const void* from;
    bool valid;
};

struct Thread {
    Fiber fiber;
    unsigned number;
    uint3 index;
    State state;
    // What it waits for, and where: a barrier's name is all there is to know about it.
    const char* operation_name;
    Site site;
    WarpOperation operation;
    unsigned mask;
    void* operands;
    // Its copies under way, in the order of their groups; group_ends[i] is the end of the i-th.
    std::vector<Copy> copies;
    std::vector<size_t> group_ends;
};

struct Barrier {
    unsigned arrived;
    Votes votes;   // of those who have arrived
    Votes result;  // of the last time that all had; read before anyone can complete the next one
};

// The threads that can go on, in the order in which they will.
class Queue {
  public:
    void clear() { begin = end = 0; }
    bool empty() const { return begin == end; }
    Thread* pop() { return slots[begin++ % SIZE]; }
    void push_back(Thread* thread) { slots[end++ % SIZE] = thread; }
    void push_front(Thread* thread) { slots[--begin % SIZE] = thread; }

  private:
    static constexpr unsigned SIZE = 2 * MAX_THREADS;
    Thread* slots[SIZE];
    unsigned begin = 0, end = 0;  // count on without end; SIZE divides their range
};

Thread threads[MAX_THREADS];
unsigned num_threads;
unsigned waiting_lanes[MAX_THREADS / WARP];  // a bit for each lane that is in a warp operation
Queue runnable;
Barrier barrier;
Thread* current;
Fiber scheduler;
Order order;
const Launch* launch;
void* const* arguments;
bool failed;
unsigned char* stacks;

constexpr size_t STACK_BYTES = 128 << 10;

// Gives the processor to the next thread, or to the scheduler when there is none.
void wait_for_turn() {
    Thread* self = current;
    if (runnable.empty()) {
        current = nullptr;
        switch_fiber(self->fiber, scheduler);
        return;
    }
    current = runnable.pop();
    thread_index = current->index;
    if (current != self) switch_fiber(self->fiber, current->fiber);
}

// Lets `count` threads go on, in the chosen order.
void release(Thread** list, unsigned count) {
    order.arrange(list, count);
    bool first = order.first();
    for (unsigned i = 0; i < count; i++) {
        Thread* thread = first ? list[count - 1 - i] : list[i];
        thread->state = State::Runnable;
        if (first) {
            runnable.push_front(thread);
        } else {
            runnable.push_back(thread);
        }
    }
}

void complete(const Copy& copy) {
    if (copy.valid) {
        memcpy(copy.to, copy.from, 16);
    } else {
        memset(copy.to, 0, 16);
    }
}

void run_thread() {
    launch->kernel->run(arguments);
    for (const Copy& copy : current->copies) complete(copy);
    current->state = State::Returned;
    wait_for_turn();
    abort();  // nobody switches to a thread that has returned
}

std::string describe(unsigned first, unsigned last) {
    const Thread& thread = threads[first];
    char text[400];
    int length = first == last ? snprintf(text, sizeof text, "thread %u ", first)
                               : snprintf(text, sizeof text, "threads %u to %u ", first, last);
    char* rest = text + length;
    size_t space = sizeof text - length;
    if (thread.state == State::Returned) {
        snprintf(rest, space, "returned");
    } else if (thread.state == State::InWarpOperation) {
        snprintf(rest, space, "in %s with mask %08x at %s:%d", thread.operation_name, thread.mask,
                 thread.site.file, thread.site.line);
    } else {
        snprintf(rest, space, "at %s at %s:%d", thread.operation_name, thread.site.file,
                 thread.site.line);
    }
    return text;
}

bool waits_alike(const Thread& a, const Thread& b) {
    if (a.state != b.state) return false;
    if (a.state == State::Returned) return true;
    return a.site.line == b.site.line && strcmp(a.site.file, b.site.file) == 0 &&
           strcmp(a.operation_name, b.operation_name) == 0 &&
           (a.state != State::InWarpOperation || a.mask == b.mask);
}

// Says of every thread of the block where it is, neighbours together.
std::string describe_threads() {
    std::string text;
    int shown = 0;
    for (unsigned first = 0, last; first < num_threads; first = last + 1) {
        last = first;
        while (last + 1 < num_threads && waits_alike(threads[first], threads[last + 1])) last++;
        if (++shown > 12) return text + "; ...";
        text += (first ? "; " : "") + describe(first, last);
    }
    return text;
}

void report_failure(const char* message) {
    failed = true;
    std::string where = describe_place();
    fprintf(stderr, "emulator: %s: %s\n", where.c_str(), message);
}

void start_block(std::vector<Thread*>& list) {
    runnable.clear();
    barrier = {};
    barrier.votes.all = true;
    memset(waiting_lanes, 0, sizeof waiting_lanes);
    poison_shared_memory();
    for (unsigned i = 0; i < num_threads; i++) {
        Thread& thread = threads[i];
        thread.copies.clear();
        thread.group_ends.clear();
        thread.number = i;
        thread.index = {i % block_size.x, i / block_size.x % block_size.y,
                        i / (block_size.x * block_size.y)};
        // At equal distances the ends of all stacks would share a few lines of the caches.
        size_t bytes = STACK_BYTES - i % 61 * 64;
        prepare_fiber(thread.fiber, stacks + i * (STACK_BYTES + GUARD_BYTES) + GUARD_BYTES, bytes,
                      run_thread);
        list[i] = &thread;
    }
    release(list.data(), num_threads);
}

void run_block(std::vector<Thread*>& list) {
    start_block(list);
    current = runnable.pop();
    thread_index = current->index;
    switch_fiber(scheduler, current->fiber);
    // Here when a thread failed, or when none can go on.
    if (failed) return;
    for (unsigned i = 0; i < num_threads; i++) {
        if (threads[i].state == State::Returned) continue;
        current = nullptr;
        std::string text = "stuck, not all threads come to where others wait: ";
        return report_failure((text + describe_threads()).c_str());
    }
    current = nullptr;
    if (!dynamic_shared_end_intact()) {
        report_failure("wrote behind the end of its dynamic shared memory");
    }
}

}  // namespace

std::string describe_place() {
    char text[300];
    int length = snprintf(text, sizeof text, "kernel %s, block (%u, %u, %u)", launch->kernel->name,
                          block_index.x, block_index.y, block_index.z);
    if (current) {
        snprintf(text + length, sizeof text - length, ", thread (%u, %u, %u)", current->index.x,
                 current->index.y, current->index.z);
    }
    return text;
}

bool run_grid(const Launch& started, void* const* with_arguments) {
    static unsigned char* const all_stacks = 
        guarded_slots(MAX_THREADS, STACK_BYTES, "the stack of a thread");
    stacks = all_stacks;
    launch = &started;
    arguments = with_arguments;
    grid_size = started.grid;
    block_size = started.block;
    num_threads = block_size.x * block_size.y * block_size.z;
    failed = false;
    order = Order::from_environment();
    prepare_shared_memory(started);
    FaultReports reports;

    size_t num_blocks = size_t(grid_size.x) * grid_size.y * grid_size.z;
    std::vector<size_t> blocks(num_blocks);
    for (size_t i = 0; i < num_blocks; i++) blocks[i] = i;
    order.arrange(blocks.data(), num_blocks);
    std::vector<Thread*> list(num_threads);
    for (size_t block : blocks) {
        size_t row = block / grid_size.x;
        block_index = {unsigned(block % grid_size.x), unsigned(row % grid_size.y),
                       unsigned(row / grid_size.y)};
        run_block(list);
        if (failed) break;
    }
    return !failed;
}

void fail(Site site, const char* format, ...) {
    char text[1000];
    va_list values;
    va_start(values, format);
    int length = vsnprintf(text, sizeof text, format, values);
    va_end(values);
    if (length < int(sizeof text)) {
        snprintf(text + length, sizeof text - length, " at %s:%d", site.file, site.line);
    }
    report_failure(text);
    switch_fiber(current->fiber, scheduler);
    abort();  // nobody goes on with a kernel that failed
}

Votes block_barrier(int predicate, const char* operation, Site site) {
    current->state = State::AtBarrier;
    current->operation_name = operation;
    current->site = site;
    barrier.votes.count += predicate != 0;
    barrier.votes.all &= predicate != 0;
    barrier.votes.any |= predicate != 0;
    if (++barrier.arrived == num_threads) {
        Thread* list[MAX_THREADS];
        for (unsigned i = 0; i < num_threads; i++) {
            list[i] = &threads[i];
            if (!waits_alike(threads[i], *current)) {
                fail(site, "threads are at different barriers: %s; the last one",
                     describe_threads().c_str());
            }
        }
        barrier.result = barrier.votes;
        barrier.votes = {0, true, false};
        barrier.arrived = 0;
        release(list, num_threads);
    }
    wait_for_turn();
    return barrier.result;
}

void warp_operation(const WarpOperation& operation, unsigned mask, void* operands, Site site) {
    unsigned warp = current->number / WARP, bit = 1u << lane();
    unsigned present = num_threads - warp * WARP;
    unsigned lanes = present >= WARP ? ~0u : (1u << present) - 1;
    if (operation.whole_warp && lanes != ~0u) {
        fail(site, "%s in a warp of %u threads", operation.name, present);
    }
    mask &= lanes;
    if (!(mask & bit)) fail(site, "%s with mask %08x, without this lane", operation.name, mask);
    current->state = State::InWarpOperation;
    current->operation_name = operation.name;
    current->operation = operation;
    current->site = site;
    current->mask = mask;
    current->operands = operands;
    waiting_lanes[warp] |= bit;

    bool complete = (waiting_lanes[warp] & mask) == mask;
    Thread* list[WARP];
    void* all_operands[WARP] = {};
    unsigned count = 0;
    for (unsigned i = 0; complete && i < WARP; i++) {
        if (!(mask >> i & 1)) continue;
        Thread& thread = threads[warp * WARP + i];
        complete = thread.mask == mask && thread.operation.combine == operation.combine;
        all_operands[i] = thread.operands;
        list[count++] = &thread;
    }
    if (complete) {
        operation.combine(all_operands, mask);
        waiting_lanes[warp] &= ~mask;
        release(list, count);
    }
    wait_for_turn();
}

void check_memory(const void* address, Memory kind, const char* what, Site site) {
    auto* at = static_cast<const unsigned char*>(address);
    bool on_stack = at >= stacks && at < stacks + MAX_THREADS * (STACK_BYTES + GUARD_BYTES);
    bool right = kind == Memory::Shared ? is_shared(at) : !is_shared(at) && !on_stack;
    if (right) return;
    fail(site, "%s at %p, which is not %s memory", what, address,
         kind == Memory::Shared ? "shared" : "global");
}

unsigned lane() { return current->number % WARP; }

unsigned lanes_not_returned() {
    unsigned first = current->number / WARP * WARP, lanes = 0;
    for (unsigned i = 0; i < WARP && first + i < num_threads; i++) {
        lanes |= unsigned(threads[first + i].state != State::Returned) << i;
    }
    return lanes;
}

void let_others_run() {
    runnable.push_back(current);
    wait_for_turn();
}

// The target is poisoned until the copy is complete: a thread that reads it too early, or that
// still reads what was there before, gets NaNs. The source is read as late as a GPU may read it.
void copy_async(void* to, const void* from, bool valid, Site site) {
    check_alignment(to, "copy_async to", site);
    check_alignment(from, "copy_async from", site);
    check_memory(to, Memory::Shared, "copy_async to", site);
    check_memory(from, Memory::Global, "copy_async from", site);
    memset(to, 0xff, 16);
    current->copies.push_back({to, from, valid});
}

void copies_commit() { current->group_ends.push_back(current->copies.size()); }

void copies_wait(unsigned pending) {
    auto& ends = current->group_ends;
    if (ends.size() <= pending) return;
    size_t groups = ends.size() - pending, done = ends[groups - 1];
    for (size_t i = 0; i < done; i++) complete(current->copies[i]);
    current->copies.erase(current->copies.begin(), current->copies.begin() + done);
    ends.erase(ends.begin(), ends.begin() + groups);
    for (size_t& end : ends) end -= done;
}

}  // namespace emulator
