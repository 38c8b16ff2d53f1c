// The part of cuBLAS that the CUDA worker uses: products of matrices, sums in f32.
//
// Column-major, as cuBLAS has it: element (i, j) of a matrix is at i + j * ld. A product is an
// operation of its stream, like a launch.
#include <algorithm>
#include <cstring>
#include <vector>

#include "halves.h"
#include "kernel.h"
#include "stream.h"

using emulator::Operation;

extern "C" int emulator_enqueue(void* stream, Operation* operation);
extern "C" int emulator_check_range(const char* what, const void* start, size_t bytes);

namespace {

enum Status : int {
    SUCCESS = 0,
    NOT_INITIALIZED = 1,
    INVALID_VALUE = 7,
    EXECUTION_FAILED = 13,
    NOT_SUPPORTED = 15,
};
enum Type : int { F32 = 0, F16 = 2, BF16 = 14 };
constexpr int COMPUTE_32F = 68, COMPUTE_32F_PEDANTIC = 69, COMPUTE_32F_FAST_TF32 = 77;

struct Handle {
    void* stream;
};

struct Matrix {
    const void* data;
    int type, ld;
    bool transposed;
    long long stride;  // from one of a batch to the next
};

struct Product {
    int m, n, k;
    float alpha, beta;
    Matrix a, b, c;
    int num_batches;
};

float element(const void* data, int type, size_t at) {
    if (type == F32) return static_cast<const float*>(data)[at];
    uint16_t bits = static_cast<const uint16_t*>(data)[at];
    return type == BF16 ? emulator::bf16_value(bits) : emulator::f16_value(bits);
}

void set_element(void* data, int type, size_t at, float value) {
    if (type == F32) {
        static_cast<float*>(data)[at] = value;
    } else {
        uint16_t bits =
            type == BF16 ? emulator::bf16_bits(value) : emulator::f16_bits(value);
        static_cast<uint16_t*>(data)[at] = bits;
    }
}

// The matrix as f32, element (i, j) of op(matrix) at i + j * rows.
std::vector<float> unpacked(const Matrix& matrix, int batch, int rows, int columns) {
    std::vector<float> out(size_t(rows) * columns);
    size_t first = size_t(batch) * matrix.stride;
    size_t row_step = matrix.transposed ? matrix.ld : 1, step = matrix.transposed ? 1 : matrix.ld;
    for (int j = 0; j < columns; j++) {
        for (int i = 0; i < rows; i++) {
            out[i + size_t(j) * rows] =
                element(matrix.data, matrix.type, first + i * row_step + j * step);
        }
    }
    return out;
}

void run(const Product& product) {
    int m = product.m, n = product.n, k = product.k;
    for (int batch = 0; batch < product.num_batches; batch++) {
        std::vector<float> a = unpacked(product.a, batch, m, k);
        std::vector<float> b = unpacked(product.b, batch, k, n);
        std::vector<float> sums(m);
        for (int j = 0; j < n; j++) {
            std::fill(sums.begin(), sums.end(), 0.0f);
            for (int l = 0; l < k; l++) {
                float factor = b[l + size_t(j) * k];
                const float* column = &a[size_t(l) * m];
                for (int i = 0; i < m; i++) sums[i] += column[i] * factor;
            }
            size_t first = size_t(batch) * product.c.stride + size_t(j) * product.c.ld;
            for (int i = 0; i < m; i++) {
                float value = product.alpha * sums[i];
                // With beta 0 what was there is not read: it may be NaN.
                if (product.beta != 0) {
                    value += product.beta * element(product.c.data, product.c.type, first + i);
                }
                set_element(const_cast<void*>(product.c.data), product.c.type, first + i, value);
            }
        }
    }
}

bool is_supported(int type) { return type == F32 || type == F16 || type == BF16; }

// Whether all that is read or written lies in one allocation. `rows` by `columns` as it is stored.
bool is_on_device(const char* name, const Matrix& matrix, int rows, int columns, int num_batches) {
    if (rows == 0 || columns == 0) return true;
    size_t last = size_t(num_batches - 1) * matrix.stride + size_t(columns - 1) * matrix.ld + rows;
    size_t element_bytes = matrix.type == F32 ? 4 : 2;
    return emulator_check_range(name, matrix.data, last * element_bytes) == 0;
}

int enqueue(Handle* handle, const Product& product) {
    if (!handle) return NOT_INITIALIZED;
    const Matrix &a = product.a, &b = product.b, &c = product.c;
    if (!is_supported(a.type) || a.type != b.type || (c.type != a.type && c.type != F32)) {
        return NOT_SUPPORTED;
    }
    if (product.m < 0 || product.n < 0 || product.k < 0 || product.num_batches < 0 ||
        a.ld < std::max(1, a.transposed ? product.k : product.m) ||
        b.ld < std::max(1, b.transposed ? product.n : product.k) ||
        c.ld < std::max(1, product.m)) {
        return INVALID_VALUE;
    }
    if (product.m == 0 || product.n == 0 || product.num_batches == 0) return SUCCESS;
    int m = product.m, n = product.n, k = product.k;
    if (!is_on_device("matrix A of a product", a, a.transposed ? k : m, a.transposed ? m : k,
                      product.num_batches) ||
        !is_on_device("matrix B of a product", b, b.transposed ? n : k, b.transposed ? k : n,
                      product.num_batches) ||
        !is_on_device("matrix C of a product", c, m, n, product.num_batches)) {
        return INVALID_VALUE;
    }
    Operation operation = [product] { run(product); };
    return emulator_enqueue(handle->stream, &operation) ? EXECUTION_FAILED : SUCCESS;
}

}  // namespace

#define CUBLAS extern "C" EMULATOR_API int

CUBLAS cublasCreate_v2(Handle** handle) {
    *handle = new Handle{nullptr};
    return SUCCESS;
}
CUBLAS cublasDestroy_v2(Handle* handle) {
    delete handle;
    return SUCCESS;
}
CUBLAS cublasSetStream_v2(Handle* handle, void* stream) {
    handle->stream = stream;
    return SUCCESS;
}
CUBLAS cublasGetStream_v2(Handle* handle, void** stream) {
    *stream = handle->stream;
    return SUCCESS;
}
CUBLAS cublasSetWorkspace_v2(Handle*, void*, size_t) { return SUCCESS; }
CUBLAS cublasSetMathMode(Handle*, int) { return SUCCESS; }
CUBLAS cublasGetMathMode(Handle*, int* mode) {
    *mode = 0;
    return SUCCESS;
}
// 0: alpha and beta are on the host.
CUBLAS cublasSetPointerMode_v2(Handle*, int mode) { return mode == 0 ? SUCCESS : NOT_SUPPORTED; }
CUBLAS cublasGetVersion_v2(Handle*, int* version) {
    *version = 130000;
    return SUCCESS;
}

CUBLAS cublasGemmStridedBatchedEx(Handle* handle, int transpose_a, int transpose_b, int m, int n,
                                  int k, const void* alpha, const void* a, int a_type, int lda,
                                  long long a_stride, const void* b, int b_type, int ldb,
                                  long long b_stride, const void* beta, void* c, int c_type,
                                  int ldc, long long c_stride, int num_batches, int compute_type,
                                  int) {
    if (compute_type != COMPUTE_32F && compute_type != COMPUTE_32F_PEDANTIC &&
        compute_type != COMPUTE_32F_FAST_TF32) {
        return NOT_SUPPORTED;
    }
    Product product = {m, n, k, *static_cast<const float*>(alpha), *static_cast<const float*>(beta),
                       {a, a_type, lda, transpose_a != 0, a_stride},
                       {b, b_type, ldb, transpose_b != 0, b_stride},
                       {c, c_type, ldc, false, c_stride}, num_batches};
    return enqueue(handle, product);
}
CUBLAS cublasGemmEx(Handle* handle, int transpose_a, int transpose_b, int m, int n, int k,
                    const void* alpha, const void* a, int a_type, int lda, const void* b,
                    int b_type, int ldb, const void* beta, void* c, int c_type, int ldc,
                    int compute_type, int algorithm) {
    return cublasGemmStridedBatchedEx(handle, transpose_a, transpose_b, m, n, k, alpha, a, a_type,
                                      lda, 0, b, b_type, ldb, 0, beta, c, c_type, ldc, 0, 1,
                                      compute_type, algorithm);
}

extern "C" EMULATOR_API const char* cublasGetStatusName(int status) {
    switch (status) {
        case SUCCESS: return "CUBLAS_STATUS_SUCCESS";
        case NOT_INITIALIZED: return "CUBLAS_STATUS_NOT_INITIALIZED";
        case INVALID_VALUE: return "CUBLAS_STATUS_INVALID_VALUE";
        case EXECUTION_FAILED: return "CUBLAS_STATUS_EXECUTION_FAILED";
        case NOT_SUPPORTED: return "CUBLAS_STATUS_NOT_SUPPORTED";
        default: return "CUBLAS_STATUS_UNKNOWN";
    }
}
extern "C" EMULATOR_API const char* cublasGetStatusString(int status) {
    return cublasGetStatusName(status);
}
