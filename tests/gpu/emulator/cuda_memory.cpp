// The driver's functions of memory: allocation, copies, fills.
#include <cstring>
#include <vector>

#include "api.h"
#include "memory.h"

using namespace emulator;

namespace {

Result check_device_range(const char* call, CUdeviceptr start, size_t bytes) {
    if (is_allocated(Space::Device, pointer<void>(start), bytes)) return SUCCESS;
    return refuse(INVALID_VALUE, "%s: %zu bytes at %#llx are in no allocation of the device", call,
                  bytes, start);
}

// The calls that wait for what they do.
Result run_now(const char* call, CUdeviceptr start, size_t bytes, const Operation& operation) {
    RETURN_IF_ERROR(check_context());
    RETURN_IF_ERROR(check_not_captured());
    if (bytes == 0) return SUCCESS;
    RETURN_IF_ERROR(check_device_range(call, start, bytes));
    default_stream().wait();
    operation();
    return lasting_failure;
}

Result run_later(const char* call, CUdeviceptr start, size_t bytes, CUstream stream,
                 Operation operation) {
    RETURN_IF_ERROR(check_context());
    if (bytes == 0) return SUCCESS;
    RETURN_IF_ERROR(check_device_range(call, start, bytes));
    return stream_of(stream).enqueue(std::move(operation));
}

void fill(uint32_t* words, uint32_t value, size_t count) {
    for (size_t i = 0; i < count; i++) words[i] = value;
}

}  // namespace

// ---------------------------------------------------------------------------------------------
// Allocation

DRIVER cuMemGetInfo_v2(size_t* available, size_t* total) {
    RETURN_IF_ERROR(check_context());
    *available = free_memory();
    *total = total_memory();
    return SUCCESS;
}
DRIVER cuMemAlloc_v2(CUdeviceptr* start, size_t bytes) {
    RETURN_IF_ERROR(check_context());
    RETURN_IF_ERROR(check_not_captured());
    if (bytes == 0) return INVALID_VALUE;
    *start = reinterpret_cast<CUdeviceptr>(allocate(Space::Device, bytes));
    return *start ? SUCCESS : OUT_OF_MEMORY;
}
DRIVER cuMemFree_v2(CUdeviceptr start) {
    RETURN_IF_ERROR(check_context());
    RETURN_IF_ERROR(check_not_captured());
    if (!start) return SUCCESS;
    // As the real one: it waits for what may still use the memory.
    wait_for_all_streams();
    if (emulator::release(Space::Device, pointer<void>(start))) return SUCCESS;
    return refuse(INVALID_VALUE, "cuMemFree: no allocation starts at %#llx", start);
}
DRIVER cuMemAllocAsync(CUdeviceptr* start, size_t bytes, CUstream) {
    return cuMemAlloc_v2(start, bytes);
}
DRIVER cuMemFreeAsync(CUdeviceptr start, CUstream) { return cuMemFree_v2(start); }

DRIVER cuMemHostAlloc(void** start, size_t bytes, unsigned) {
    RETURN_IF_ERROR(check_context());
    RETURN_IF_ERROR(check_not_captured());
    if (bytes == 0) return INVALID_VALUE;
    *start = allocate(Space::Pinned, bytes);
    return *start ? SUCCESS : OUT_OF_MEMORY;
}
DRIVER cuMemAllocHost_v2(void** start, size_t bytes) { return cuMemHostAlloc(start, bytes, 0); }
DRIVER cuMemFreeHost(void* start) {
    RETURN_IF_ERROR(check_context());
    RETURN_IF_ERROR(check_not_captured());
    wait_for_all_streams();
    return emulator::release(Space::Pinned, start) ? SUCCESS : INVALID_VALUE;
}
DRIVER cuMemHostGetDevicePointer_v2(CUdeviceptr* device, void* host, unsigned) {
    RETURN_IF_ERROR(check_context());
    *device = reinterpret_cast<CUdeviceptr>(host);
    return is_allocated(Space::Pinned, host, 1) ? SUCCESS : INVALID_VALUE;
}

// ---------------------------------------------------------------------------------------------
// Copies

DRIVER cuMemcpyHtoD_v2(CUdeviceptr to, const void* from, size_t bytes) {
    return run_now("cuMemcpyHtoD", to, bytes, [=] { memcpy(pointer<void>(to), from, bytes); });
}
DRIVER cuMemcpyDtoH_v2(void* to, CUdeviceptr from, size_t bytes) {
    return run_now("cuMemcpyDtoH", from, bytes, [=] { memcpy(to, pointer<void>(from), bytes); });
}
DRIVER cuMemcpyDtoD_v2(CUdeviceptr to, CUdeviceptr from, size_t bytes) {
    if (bytes) RETURN_IF_ERROR(check_device_range("cuMemcpyDtoD", from, bytes));
    return run_now("cuMemcpyDtoD", to, bytes,
                   [=] { memmove(pointer<void>(to), pointer<void>(from), bytes); });
}

// Pinned memory is read when the copy runs. Other memory is taken now, as the driver does, but for
// a graph, which reads it at each launch.
DRIVER cuMemcpyHtoDAsync_v2(CUdeviceptr to, const void* from, size_t bytes, CUstream stream) {
    bool taken_now = asynchronous() && !stream_of(stream).capture &&
                     !is_allocated(Space::Pinned, from, bytes);
    if (!taken_now) {
        return run_later("cuMemcpyHtoDAsync", to, bytes, stream,
                         [=] { memcpy(pointer<void>(to), from, bytes); });
    }
    auto* first = static_cast<const unsigned char*>(from);
    std::vector<unsigned char> staged(first, first + bytes);
    return run_later("cuMemcpyHtoDAsync", to, bytes, stream,
                     [=] { memcpy(pointer<void>(to), staged.data(), bytes); });
}
// A copy to memory that is not pinned is complete when the call returns.
DRIVER cuMemcpyDtoHAsync_v2(void* to, CUdeviceptr from, size_t bytes, CUstream stream) {
    RETURN_IF_ERROR(run_later("cuMemcpyDtoHAsync", from, bytes, stream,
                              [=] { memcpy(to, pointer<void>(from), bytes); }));
    Stream& queue = stream_of(stream);
    if (!queue.capture && !is_allocated(Space::Pinned, to, bytes)) queue.wait();
    return lasting_failure;
}
DRIVER cuMemcpyDtoDAsync_v2(CUdeviceptr to, CUdeviceptr from, size_t bytes, CUstream stream) {
    if (bytes) RETURN_IF_ERROR(check_device_range("cuMemcpyDtoDAsync", from, bytes));
    return run_later("cuMemcpyDtoDAsync", to, bytes, stream,
                     [=] { memmove(pointer<void>(to), pointer<void>(from), bytes); });
}

// ---------------------------------------------------------------------------------------------
// Fills

DRIVER cuMemsetD8_v2(CUdeviceptr to, unsigned char value, size_t count) {
    return run_now("cuMemsetD8", to, count, [=] { memset(pointer<void>(to), value, count); });
}
DRIVER cuMemsetD8Async(CUdeviceptr to, unsigned char value, size_t count, CUstream stream) {
    return run_later("cuMemsetD8Async", to, count, stream,
                     [=] { memset(pointer<void>(to), value, count); });
}
DRIVER cuMemsetD32_v2(CUdeviceptr to, unsigned value, size_t count) {
    if (to % 4 != 0) return INVALID_VALUE;
    return run_now("cuMemsetD32", to, 4 * count,
                   [=] { fill(pointer<uint32_t>(to), value, count); });
}
DRIVER cuMemsetD32Async(CUdeviceptr to, unsigned value, size_t count, CUstream stream) {
    if (to % 4 != 0) return INVALID_VALUE;
    return run_later("cuMemsetD32Async", to, 4 * count, stream,
                     [=] { fill(pointer<uint32_t>(to), value, count); });
}
