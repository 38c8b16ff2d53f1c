// The driver's functions as the self-test calls them, in C++ that throws when one gives an error.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <stdexcept>
#include <string>
#include <vector>

using Handle = void*;
extern "C" {
int cuInit(unsigned);
int cuDevicePrimaryCtxRetain(Handle*, int);
int cuCtxSetCurrent(Handle);
int cuCtxSynchronize();
int cuModuleLoadData(Handle*, const void*);
int cuModuleGetFunction(Handle*, Handle, const char*);
int cuFuncSetAttribute(Handle, int, int);
int cuFuncGetParamInfo(Handle, size_t, size_t*, size_t*);
int cuLaunchKernel(Handle, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned,
                   Handle, void**, void**);
int cuMemAlloc_v2(uint64_t*, size_t);
int cuMemFree_v2(uint64_t);
int cuMemGetInfo_v2(size_t*, size_t*);
int cuMemHostAlloc(void**, size_t, unsigned);
int cuMemFreeHost(void*);
int cuMemcpyHtoD_v2(uint64_t, const void*, size_t);
int cuMemcpyDtoH_v2(void*, uint64_t, size_t);
int cuMemcpyHtoDAsync_v2(uint64_t, const void*, size_t, Handle);
int cuMemcpyDtoHAsync_v2(void*, uint64_t, size_t, Handle);
int cuMemsetD8Async(uint64_t, unsigned char, size_t, Handle);
int cuMemsetD32Async(uint64_t, unsigned, size_t, Handle);
int cuStreamCreate(Handle*, unsigned);
int cuStreamDestroy_v2(Handle);
int cuStreamSynchronize(Handle);
int cuStreamWaitEvent(Handle, Handle, unsigned);
int cuEventCreate(Handle*, unsigned);
int cuEventRecord(Handle, Handle);
int cuEventQuery(Handle);
int cuEventSynchronize(Handle);
int cuEventElapsedTime_v2(float*, Handle, Handle);
int cuStreamBeginCapture_v2(Handle, int);
int cuStreamEndCapture(Handle, Handle*);
int cuStreamIsCapturing(Handle, int*);
int cuGraphInstantiateWithFlags(Handle*, Handle, unsigned long long);
int cuGraphLaunch(Handle, Handle);
int cuGraphDestroy(Handle);
int cuGraphExecDestroy(Handle);
int cublasCreate_v2(Handle*);
int cublasSetStream_v2(Handle, Handle);
int cublasGemmEx(Handle, int, int, int, int, int, const void*, const void*, int, int, const void*,
                 int, int, const void*, void*, int, int, int, int);
int cublasGemmStridedBatchedEx(Handle, int, int, int, int, int, const void*, const void*, int, int,
                               long long, const void*, int, int, long long, const void*, void*, int,
                               int, long long, int, int, int);
}

#define CHECK(call) check((call), 0, #call, __LINE__)
#define CHECK_GIVES(result, call) check((call), (result), #call, __LINE__)
#define EXPECT(condition) expect(condition, #condition, __LINE__)

inline void expect(bool condition, const char* text, int line) {
    if (!condition) throw std::runtime_error("line " + std::to_string(line) + ": " + text);
}

inline void check(int result, int expected, const char* call, int line) {
    if (result == expected) return;
    throw std::runtime_error("line " + std::to_string(line) + ": " + call + " gives " +
                             std::to_string(result));
}

inline void open_device() {
    Handle context;
    CHECK(cuInit(0));
    CHECK(cuDevicePrimaryCtxRetain(&context, 0));
    CHECK(cuCtxSetCurrent(context));
}

// An array on the device.
template <typename T>
struct Buffer {
    uint64_t address = 0;
    size_t count;

    explicit Buffer(size_t size) : count(size) {
        CHECK(cuMemAlloc_v2(&address, count * sizeof(T)));
    }
    explicit Buffer(const std::vector<T>& values) : Buffer(values.size()) {
        CHECK(cuMemcpyHtoD_v2(address, values.data(), count * sizeof(T)));
    }
    ~Buffer() { cuMemFree_v2(address); }
    Buffer(const Buffer&) = delete;
    std::vector<T> values() const {
        std::vector<T> out(count);
        CHECK(cuCtxSynchronize());
        CHECK(cuMemcpyDtoH_v2(out.data(), address, count * sizeof(T)));
        return out;
    }
};

struct Shape {
    unsigned grid_x = 1, grid_y = 1, block_x = 32, block_y = 1, shared = 0;
    Handle stream = nullptr;
};

inline Handle function(const char* name) {
    static Handle module;
    if (!module) CHECK(cuModuleLoadData(&module, "any"));
    Handle found;
    CHECK(cuModuleGetFunction(&found, module, name));
    return found;
}

// The result of the launch; a buffer is given by its address.
template <typename... Arguments>
int try_launch(const char* name, Shape shape, Arguments... arguments) {
    // One more, since an array cannot be empty.
    void* pointers[] = {static_cast<void*>(&arguments)..., nullptr};
    return cuLaunchKernel(function(name), shape.grid_x, shape.grid_y, 1, shape.block_x,
                          shape.block_y, 1, shape.shared, shape.stream, pointers, nullptr);
}
template <typename... Arguments>
void launch(const char* name, Shape shape, Arguments... arguments) {
    int result = try_launch(name, shape, arguments...);
    if (result) throw std::runtime_error(std::string(name) + " gives " + std::to_string(result));
}
