#include "memory.h"

#include <sys/mman.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>

namespace emulator {

namespace {

constexpr size_t PAGE = 4096;
constexpr size_t RESERVED = size_t(1) << 40;
constexpr unsigned char POISON = 0xff;
// Beyond this an allocation is not filled: it would become resident although nobody may need it.
constexpr size_t MAX_POISONED = 64 << 20;

struct Allocation {
    Space space;
    size_t bytes;
    bool live;
    uintptr_t first_page, last_page;  // the latter is the one behind, which faults
};

std::mutex mutex;
// Never destroyed: a stream's thread may still run when the process ends.
auto& allocations = *new std::map<uintptr_t, Allocation>;
uintptr_t next_page, reserved_end;
size_t used;

// Address space that was never used before: what is freed is never given again.
uintptr_t take_pages(size_t bytes) {
    if (next_page + bytes > reserved_end) {
        size_t reserve = bytes > RESERVED ? bytes : RESERVED;
        void* area = mmap(nullptr, reserve, PROT_NONE,
                          MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (area == MAP_FAILED) return 0;
        next_page = reinterpret_cast<uintptr_t>(area);
        reserved_end = next_page + reserve;
    }
    uintptr_t pages = next_page;
    next_page += bytes;
    return pages;
}

size_t round_up(size_t bytes, size_t unit) { return (bytes + unit - 1) / unit * unit; }

bool intact(uintptr_t begin, uintptr_t end) {
    for (uintptr_t at = begin; at < end; at++) {
        if (*reinterpret_cast<unsigned char*>(at) != POISON) return false;
    }
    return true;
}

const std::pair<const uintptr_t, Allocation>* find(uintptr_t address) {
    auto next = allocations.upper_bound(address);
    return next == allocations.begin() ? nullptr : &*std::prev(next);
}

}  // namespace

size_t total_memory() {
    static const size_t total = [] {
        const char* text = getenv("MILLSTREAM_EMULATOR_MEMORY");
        return text ? size_t(strtoull(text, nullptr, 10)) : size_t(2) << 30;
    }();
    return total;
}

size_t free_memory() {
    std::lock_guard<std::mutex> lock(mutex);
    return total_memory() > used ? total_memory() - used : 0;
}

void* allocate(Space space, size_t bytes) {
    std::lock_guard<std::mutex> lock(mutex);
    if (space == Space::Device && (bytes > total_memory() || used > total_memory() - bytes)) {
        return nullptr;
    }
    size_t pages = round_up(bytes, PAGE);
    uintptr_t first = take_pages(pages + PAGE);
    if (!first || mprotect(reinterpret_cast<void*>(first), pages, PROT_READ | PROT_WRITE) != 0) {
        return nullptr;
    }
    uintptr_t start = first + pages - round_up(bytes, 16);
    if (bytes <= MAX_POISONED) memset(reinterpret_cast<void*>(first), POISON, pages);
    allocations[start] = {space, bytes, true, first, first + pages};
    if (space == Space::Device) used += bytes;
    return reinterpret_cast<void*>(start);
}

bool release(Space space, void* start) {
    std::lock_guard<std::mutex> lock(mutex);
    auto found = allocations.find(reinterpret_cast<uintptr_t>(start));
    if (found == allocations.end() || !found->second.live || found->second.space != space) {
        return false;
    }
    uintptr_t begin = found->first;
    Allocation& allocation = found->second;
    bool poisoned = allocation.bytes <= MAX_POISONED;
    if (poisoned && (!intact(allocation.first_page, begin) ||
                     !intact(begin + allocation.bytes, allocation.last_page))) {
        fprintf(stderr, "emulator: something wrote beside an allocation of %zu bytes\n",
                allocation.bytes);
        abort();
    }
    size_t pages = allocation.last_page - allocation.first_page;
    mmap(reinterpret_cast<void*>(allocation.first_page), pages, PROT_NONE,
         MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0);
    allocation.live = false;
    if (space == Space::Device) used -= allocation.bytes;
    return true;
}

bool is_allocated(Space space, const void* start, size_t bytes) {
    std::lock_guard<std::mutex> lock(mutex);
    auto address = reinterpret_cast<uintptr_t>(start);
    const auto* found = find(address);
    if (!found || !found->second.live || found->second.space != space) return false;
    size_t offset = address - found->first;
    return offset <= found->second.bytes && bytes <= found->second.bytes - offset;
}

// Called for a fault: it must not wait for a lock that the faulting thread cannot hold anyway.
std::string describe_address(const void* pointer) {
    auto address = reinterpret_cast<uintptr_t>(pointer);
    char text[200];
    const auto* before = find(address);
    auto next = allocations.upper_bound(address);
    if (before && address < before->second.last_page + PAGE) {
        const Allocation& allocation = before->second;
        snprintf(text, sizeof text, "address %p is at byte %zu of %s of %zu bytes", pointer,
                 size_t(address - before->first),
                 allocation.live ? "an allocation" : "a freed allocation", allocation.bytes);
    } else if (next != allocations.end() && address + PAGE >= next->second.first_page) {
        snprintf(text, sizeof text, "address %p is %zu bytes before an allocation of %zu bytes",
                 pointer, size_t(next->first - address), next->second.bytes);
    } else {
        snprintf(text, sizeof text, "address %p is in no allocation", pointer);
    }
    return text;
}

}  // namespace emulator
