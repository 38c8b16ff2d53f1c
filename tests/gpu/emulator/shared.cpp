// Dynamic shared memory ends at a page that nobody may touch; it begins at a multiple of 128 bytes,
// so up to 127 bytes lie between, and these are checked after the block. Static shared memory is
// the zeroed data of the kernel's file, all of it: which kernel has which part is not known.
#include "shared.h"

#include <link.h>

#include <cstring>

#include "fault.h"

namespace emulator {

namespace {

constexpr unsigned char POISON = 0xff;
constexpr unsigned ALIGNMENT = 128;
constexpr size_t AREA_BYTES = 256 << 10;

unsigned char* area_end;
unsigned char *dynamic_begin, *dynamic_end;
unsigned char *static_begin, *static_end;

int find_zeroed_data(dl_phdr_info* object, size_t, void* code) {
    auto address = reinterpret_cast<uintptr_t>(code);
    unsigned char *begin = nullptr, *end = nullptr;
    bool here = false;
    for (int i = 0; i < object->dlpi_phnum; i++) {
        const auto& segment = object->dlpi_phdr[i];
        if (segment.p_type != PT_LOAD) continue;
        uintptr_t start = object->dlpi_addr + segment.p_vaddr;
        here |= address >= start && address < start + segment.p_memsz;
        // What is not in the file is zeroed when it is loaded.
        if (segment.p_memsz > segment.p_filesz) {
            begin = reinterpret_cast<unsigned char*>(start + segment.p_filesz);
            end = reinterpret_cast<unsigned char*>(start + segment.p_memsz);
        }
    }
    if (!here) return 0;
    static_begin = begin;
    static_end = end;
    return 1;
}

unsigned char* end_of_area() {
    // The guard of a second area is the page behind the first one.
    auto* areas = guarded_slots(2, AREA_BYTES, "dynamic shared memory");
    return areas + GUARD_BYTES + AREA_BYTES;
}

}  // namespace

void prepare_shared_memory(const Launch& launch) {
    if (!area_end) area_end = end_of_area();
    unsigned rounded = (launch.shared_bytes + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
    dynamic_begin = area_end - rounded;
    dynamic_end = dynamic_begin + launch.shared_bytes;
    static_begin = static_end = nullptr;
    dl_iterate_phdr(find_zeroed_data, reinterpret_cast<void*>(launch.kernel->run));
}

void poison_shared_memory() {
    memset(dynamic_begin - ALIGNMENT, POISON, area_end - dynamic_begin + ALIGNMENT);
    memset(static_begin, POISON, static_end - static_begin);
}

bool dynamic_shared_end_intact() {
    for (unsigned char* at = dynamic_end; at < area_end; at++) {
        if (*at != POISON) return false;
    }
    for (unsigned char* at = dynamic_begin - ALIGNMENT; at < dynamic_begin; at++) {
        if (*at != POISON) return false;
    }
    return true;
}

bool is_shared(const unsigned char* address) {
    return (address >= dynamic_begin && address < dynamic_end) ||
           (address >= static_begin && address < static_end);
}

unsigned char* dynamic_shared_memory() { return dynamic_begin; }

}  // namespace emulator
