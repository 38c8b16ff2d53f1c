// The driver's functions of devices, contexts, modules and launches.
#include <algorithm>
#include <cstdarg>
#include <cstdio>
#include <cstring>
#include <map>
#include <mutex>
#include <vector>

#include "api.h"
#include "grid.h"
#include "memory.h"
#include "shared.h"

using namespace emulator;

namespace {

constexpr unsigned DEFAULT_SHARED_BYTES = 48 << 10;
constexpr unsigned MAX_BLOCK = 1024;
constexpr int NUM_MULTIPROCESSORS = 2;
constexpr int THREADS_PER_MULTIPROCESSOR = 2048;

std::atomic<bool> initialised;
char primary_context;  // its address is the handle
thread_local CUcontext current_context;

}  // namespace

namespace emulator {

Result check_initialised() { return initialised ? int(lasting_failure) : NOT_INITIALIZED; }

Result check_context() {
    RETURN_IF_ERROR(check_initialised());
    return current_context ? SUCCESS : INVALID_CONTEXT;
}

Result refuse(Result result, const char* format, ...) {
    va_list values;
    va_start(values, format);
    char text[500];
    vsnprintf(text, sizeof text, format, values);
    va_end(values);
    fprintf(stderr, "emulator: %s\n", text);
    return result;
}

}  // namespace emulator

// ---------------------------------------------------------------------------------------------
// Devices and contexts

DRIVER cuInit(unsigned) {
    load_kernels();
    initialised = true;
    return SUCCESS;
}
DRIVER cuDriverGetVersion(int* version) {
    *version = 13000;
    return SUCCESS;
}
DRIVER cuDeviceGetCount(int* count) {
    *count = 1;
    return check_initialised();
}
DRIVER cuDeviceGet(CUdevice* device, int ordinal) {
    *device = 0;
    RETURN_IF_ERROR(check_initialised());
    return ordinal == 0 ? SUCCESS : INVALID_DEVICE;
}
DRIVER cuDeviceGetName(char* name, int length, CUdevice) {
    snprintf(name, length, "emulator");
    return check_initialised();
}
DRIVER cuDeviceGetUuid_v2(unsigned char* uuid, CUdevice) {
    memcpy(uuid, "emulator of CUDA", 16);
    return check_initialised();
}
DRIVER cuDeviceGetPCIBusId(char* text, int length, CUdevice) {
    snprintf(text, length, "0000:00:00.0");
    return check_initialised();
}
DRIVER cuDeviceTotalMem_v2(size_t* bytes, CUdevice) {
    *bytes = total_memory();
    return check_initialised();
}

// The numbers are those of CUdevice_attribute; the values an H100's, but for the multiprocessors.
DRIVER cuDeviceGetAttribute(int* value, int attribute, CUdevice) {
    static const std::map<int, int> VALUES = {
        {1, MAX_BLOCK},                    // threads of a block
        {2, MAX_BLOCK}, {3, MAX_BLOCK}, {4, 64},
        {5, 0x7fffffff}, {6, 65535}, {7, 65535},  // grid
        {8, DEFAULT_SHARED_BYTES},         // shared memory of a block
        {10, 32},                          // warp size
        {12, 65536},                       // registers of a block
        {13, 1980000},                     // clock, kHz
        {16, NUM_MULTIPROCESSORS},
        {19, 1},                           // can map host memory
        {31, 1},                           // concurrent kernels
        {36, 2619000}, {37, 5120},         // memory clock, kHz; bus width, bits
        {38, 50 << 20},                    // L2, bytes
        {39, THREADS_PER_MULTIPROCESSOR},
        {40, 3},                           // copy engines
        {41, 1},                           // unified addressing
        {75, 9}, {76, 0},                  // compute capability
        {81, 228 << 10},                   // shared memory of a multiprocessor
        {82, 65536},                       // registers of a multiprocessor
        {97, MAX_SHARED_BYTES},            // shared memory of a block that asks for it
        {106, 32},                         // blocks on a multiprocessor
        {111, 1 << 10},                    // shared memory that a block costs beside its own
    };
    auto found = VALUES.find(attribute);
    *value = found == VALUES.end() ? 0 : found->second;
    return check_initialised();
}

DRIVER cuDevicePrimaryCtxRetain(CUcontext* context, CUdevice) {
    *context = &primary_context;
    return check_initialised();
}
DRIVER cuDevicePrimaryCtxRelease_v2(CUdevice) { return check_initialised(); }
DRIVER cuCtxSetCurrent(CUcontext context) {
    current_context = context;
    return check_initialised();
}
DRIVER cuCtxGetCurrent(CUcontext* context) {
    *context = current_context;
    return check_initialised();
}
DRIVER cuCtxGetDevice(CUdevice* device) {
    *device = 0;
    return check_context();
}
DRIVER cuCtxSynchronize() {
    RETURN_IF_ERROR(check_context());
    RETURN_IF_ERROR(check_not_captured());
    wait_for_all_streams();
    return lasting_failure;
}
DRIVER cuCtxGetStreamPriorityRange(int* least, int* greatest) {
    *least = 0;
    *greatest = -5;
    return check_context();
}

// ---------------------------------------------------------------------------------------------
// Modules

DRIVER cuModuleLoadData(CUmodule* module, const void* image) {
    RETURN_IF_ERROR(check_context());
    RETURN_IF_ERROR(check_not_captured());
    if (!image) return INVALID_VALUE;
    *module = new Module;
    return SUCCESS;
}
DRIVER cuModuleLoadDataEx(CUmodule* module, const void* image, unsigned, int*, void**) {
    return cuModuleLoadData(module, image);
}
DRIVER cuModuleUnload(CUmodule module) {
    RETURN_IF_ERROR(check_context());
    wait_for_all_streams();
    delete module;
    return SUCCESS;
}

DRIVER cuModuleGetFunction(CUfunction* function, CUmodule module, const char* name) {
    RETURN_IF_ERROR(check_context());
    const Kernel* kernel = find_kernel(name);
    if (!kernel) return refuse(NOT_FOUND, "no kernel `%s` is registered", name);
    std::lock_guard<std::mutex> lock(module->mutex);
    auto [entry, is_new] =
        module->functions.try_emplace(name, Function{kernel, DEFAULT_SHARED_BYTES});
    *function = &entry->second;
    // The driver loads a function when it is first asked for, which a capture does not allow.
    return is_new ? check_not_captured() : SUCCESS;
}

// The place of a parameter among all of them, as the driver packs them; an error behind the last.
DRIVER cuFuncGetParamInfo(CUfunction function, size_t index, size_t* offset, size_t* size) {
    RETURN_IF_ERROR(check_context());
    const Kernel& kernel = *function->kernel;
    if (index >= kernel.num_parameters) return INVALID_VALUE;
    size_t at = 0;
    for (size_t i = 0; i <= index; i++) {
        const Parameter& parameter = kernel.parameters[i];
        at = (at + parameter.alignment - 1) / parameter.alignment * parameter.alignment;
        *offset = at;
        at += parameter.size;
    }
    if (size) *size = kernel.parameters[index].size;
    return SUCCESS;
}

// Attributes of a function: 0 its largest block, 8 its largest dynamic shared memory.
DRIVER cuFuncGetAttribute(int* value, int attribute, CUfunction function) {
    *value = attribute == 0 ? function->kernel->max_threads
             : attribute == 8 ? function->max_shared_bytes : 0;
    return check_context();
}
DRIVER cuFuncSetAttribute(CUfunction function, int attribute, int value) {
    RETURN_IF_ERROR(check_context());
    if (attribute != 8) return SUCCESS;
    if (value < 0 || unsigned(value) > MAX_SHARED_BYTES) {
        return refuse(INVALID_VALUE, "kernel %s: %d bytes of dynamic shared memory, at most %u",
                      function->kernel->name, value, MAX_SHARED_BYTES);
    }
    function->max_shared_bytes = std::max(unsigned(value), DEFAULT_SHARED_BYTES);
    return SUCCESS;
}
DRIVER cuFuncSetCacheConfig(CUfunction, int) { return check_context(); }

DRIVER cuOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, CUfunction, int block_threads,
                                                   size_t shared_bytes) {
    RETURN_IF_ERROR(check_context());
    if (block_threads <= 0) return INVALID_VALUE;
    int by_shared = int((228 << 10) / (shared_bytes + (1 << 10)));
    *blocks = std::min({32, THREADS_PER_MULTIPROCESSOR / block_threads, by_shared});
    return SUCCESS;
}
DRIVER cuOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int* blocks, CUfunction function,
                                                            int block_threads, size_t shared_bytes,
                                                            unsigned) {
    return cuOccupancyMaxActiveBlocksPerMultiprocessor(blocks, function, block_threads,
                                                       shared_bytes);
}

// ---------------------------------------------------------------------------------------------
// Launches

namespace {

Result check_launch(const Function& function, const Launch& launch) {
    const char* name = function.kernel->name;
    dim3 grid = launch.grid, block = launch.block;
    size_t threads = size_t(block.x) * block.y * block.z;
    if (threads == 0 || block.z > 64 || threads > function.kernel->max_threads) {
        return refuse(INVALID_VALUE, "kernel %s: a block of %ux%ux%u threads, at most %u", name,
                      block.x, block.y, block.z, function.kernel->max_threads);
    }
    if (grid.x == 0 || grid.y == 0 || grid.z == 0 || grid.x > 0x7fffffff || grid.y > 65535 ||
        grid.z > 65535) {
        return refuse(INVALID_VALUE, "kernel %s: a grid of %ux%ux%u blocks", name, grid.x, grid.y,
                      grid.z);
    }
    if (launch.shared_bytes > function.max_shared_bytes) {
        return refuse(INVALID_VALUE, "kernel %s: %u bytes of dynamic shared memory, allowed are %u",
                      name, launch.shared_bytes, function.max_shared_bytes);
    }
    return SUCCESS;
}

// A pointer that is neither null nor the device's faults on a GPU, which does not see the host.
bool arguments_are_valid(const Kernel& kernel, void* const* arguments) {
    for (size_t i = 0; i < kernel.num_parameters; i++) {
        if (!kernel.parameters[i].is_pointer) continue;
        const void* pointer = *static_cast<void* const*>(arguments[i]);
        if (!pointer || is_allocated(Space::Device, pointer, 0) ||
            is_allocated(Space::Pinned, pointer, 0)) {
            continue;
        }
        fprintf(stderr, "emulator: kernel %s: argument %zu, %p, is not device memory\n",
                kernel.name, i, pointer);
        return false;
    }
    return true;
}

// The static shared memory of kernels, and the state of run_grid, exist once.
void run_kernel(const Launch& launch, void* const* arguments) {
    static std::mutex execution;
    std::lock_guard<std::mutex> lock(execution);
    if (!arguments_are_valid(*launch.kernel, arguments) || !run_grid(launch, arguments)) {
        lasting_failure = LAUNCH_FAILED;
    }
}

}  // namespace

DRIVER cuLaunchKernel(CUfunction function, unsigned grid_x, unsigned grid_y, unsigned grid_z,
                      unsigned block_x, unsigned block_y, unsigned block_z, unsigned shared_bytes,
                      CUstream stream, void** arguments, void** extra) {
    RETURN_IF_ERROR(check_context());
    if (extra) return NOT_SUPPORTED;
    const Kernel& kernel = *function->kernel;
    Launch launch = {&kernel, {grid_x, grid_y, grid_z}, {block_x, block_y, block_z}, shared_bytes};
    RETURN_IF_ERROR(check_launch(*function, launch));

    // The arguments are taken now, each in whole words so that it is aligned.
    std::vector<uint64_t> words;
    std::vector<size_t> starts;
    for (size_t i = 0; i < kernel.num_parameters; i++) {
        size_t bytes = kernel.parameters[i].size;
        if (!arguments[i]) {
            return refuse(INVALID_VALUE, "kernel %s has %zu parameters, given are %zu arguments",
                          kernel.name, kernel.num_parameters, i);
        }
        starts.push_back(words.size());
        words.resize(words.size() + (bytes + 7) / 8);
        memcpy(&words[starts.back()], arguments[i], bytes);
    }
    return stream_of(stream).enqueue([launch, words, starts] {
        std::vector<void*> at;
        for (size_t start : starts) at.push_back(const_cast<uint64_t*>(words.data()) + start);
        run_kernel(launch, at.data());
    });
}

DRIVER cuLaunchHostFunc(CUstream stream, void (*function)(void*), void* data) {
    RETURN_IF_ERROR(check_context());
    return stream_of(stream).enqueue([function, data] { function(data); });
}

// For libcublas.so, whose products are operations like others, on memory like other.
DRIVER emulator_check_range(const char* what, const void* start, size_t bytes) {
    if (is_allocated(Space::Device, start, bytes)) return SUCCESS;
    return refuse(INVALID_VALUE, "%s: %zu bytes at %p are in no allocation of the device", what,
                  bytes, start);
}
DRIVER emulator_enqueue(CUstream stream, Operation* operation) {
    RETURN_IF_ERROR(check_context());
    return stream_of(stream).enqueue(std::move(*operation));
}

// ---------------------------------------------------------------------------------------------
// Errors

namespace {

struct ErrorText {
    int code;
    const char *name, *text;
};
constexpr ErrorText ERRORS[] = {
    {SUCCESS, "CUDA_SUCCESS", "no error"},
    {INVALID_VALUE, "CUDA_ERROR_INVALID_VALUE", "invalid argument"},
    {OUT_OF_MEMORY, "CUDA_ERROR_OUT_OF_MEMORY", "out of memory"},
    {NOT_INITIALIZED, "CUDA_ERROR_NOT_INITIALIZED", "initialization error"},
    {INVALID_DEVICE, "CUDA_ERROR_INVALID_DEVICE", "invalid device ordinal"},
    {INVALID_CONTEXT, "CUDA_ERROR_INVALID_CONTEXT", "invalid device context"},
    {INVALID_HANDLE, "CUDA_ERROR_INVALID_HANDLE", "invalid resource handle"},
    {ILLEGAL_STATE, "CUDA_ERROR_ILLEGAL_STATE", "the operation cannot be performed now"},
    {NOT_FOUND, "CUDA_ERROR_NOT_FOUND", "named symbol not found"},
    {NOT_READY, "CUDA_ERROR_NOT_READY", "device not ready"},
    {LAUNCH_FAILED, "CUDA_ERROR_LAUNCH_FAILED", "unspecified launch failure"},
    {NOT_SUPPORTED, "CUDA_ERROR_NOT_SUPPORTED", "operation not supported"},
    {STREAM_CAPTURE_UNSUPPORTED, "CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED",
     "operation not permitted when stream is capturing"},
    {STREAM_CAPTURE_INVALIDATED, "CUDA_ERROR_STREAM_CAPTURE_INVALIDATED",
     "operation failed due to a previous error during capture"},
    {STREAM_CAPTURE_MERGE, "CUDA_ERROR_STREAM_CAPTURE_MERGE",
     "operation would result in a merge of separate capture sequences"},
    {STREAM_CAPTURE_UNMATCHED, "CUDA_ERROR_STREAM_CAPTURE_UNMATCHED",
     "capture was not ended in the same stream as it began"},
    {STREAM_CAPTURE_ISOLATION, "CUDA_ERROR_STREAM_CAPTURE_ISOLATION",
     "dependency created on uncaptured work in another stream"},
    {CAPTURED_EVENT, "CUDA_ERROR_CAPTURED_EVENT",
     "operation not permitted on an event last recorded in a capturing stream"},
    {STREAM_CAPTURE_WRONG_THREAD, "CUDA_ERROR_STREAM_CAPTURE_WRONG_THREAD",
     "attempt to terminate a thread-local capture sequence from another thread"},
};

const ErrorText* find_error(int code) {
    for (const ErrorText& error : ERRORS) {
        if (error.code == code) return &error;
    }
    return nullptr;
}

}  // namespace

DRIVER cuGetErrorName(int code, const char** name) {
    const ErrorText* error = find_error(code);
    *name = error ? error->name : nullptr;
    return error ? SUCCESS : INVALID_VALUE;
}
DRIVER cuGetErrorString(int code, const char** text) {
    const ErrorText* error = find_error(code);
    *text = error ? error->text : nullptr;
    return error ? SUCCESS : INVALID_VALUE;
}
