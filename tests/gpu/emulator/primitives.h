// The emulated halves of what kernels/src/cuda/device.cuh writes in PTX: conversions, tensor cores,
// copies into shared memory. device.cuh includes it after the elements and `Vec`.
#pragma once

#include "halves.h"

inline float to_float(float x) { return x; }
inline float to_float(bf16 x) { return emulator::bf16_value(x.bits); }
inline float to_float(f16 x) { return emulator::f16_value(x.bits); }

template <typename T>
inline T from_float(float x);
template <>
inline float from_float<float>(float x) {
    return x;
}
template <>
inline bf16 from_float<bf16>(float x) {
    return {emulator::bf16_bits(x)};
}
template <>
inline f16 from_float<f16>(float x) {
    return {emulator::f16_bits(x)};
}

template <typename T>
inline uint32_t pack(float low, float high) {
    return from_float<T>(low).bits | uint32_t(from_float<T>(high).bits) << 16;
}

// ---------------------------------------------------------------------------------------------
// Memory

template <typename T>
inline Vec<T> load(const T* from, EMULATOR_SITE) {
    emulator::check_alignment(from, "load", site);
    return *reinterpret_cast<const Vec<T>*>(from);
}
template <typename T>
inline Vec<T> load_once(const T* from, EMULATOR_SITE) {
    emulator::check_alignment(from, "load_once", site);
    emulator::check_memory(from, emulator::Memory::Global, "load_once", site);
    return *reinterpret_cast<const Vec<T>*>(from);
}
template <typename T>
inline void store(T* to, const Vec<T>& values, EMULATOR_SITE) {
    emulator::check_alignment(to, "store", site);
    *reinterpret_cast<Vec<T>*>(to) = values;
}

inline void copy_async(void* to, const void* from, bool valid = true, EMULATOR_SITE) {
    emulator::copy_async(to, from, valid, site);
}
inline void copies_commit() { emulator::copies_commit(); }
template <int pending>
inline void copies_wait() {
    emulator::copies_wait(pending);
}

// ---------------------------------------------------------------------------------------------
// Tensor cores

template <typename T>
inline void mma(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], EMULATOR_SITE) {
    static_assert(std::is_same<T, bf16>::value || std::is_same<T, f16>::value, "halves only");
    emulator::MmaOperands operands = {d, a, b};
    bool is_bf16 = std::is_same<T, bf16>::value;
    emulator::warp_operation(is_bf16 ? emulator::MMA_BF16 : emulator::MMA_F16, 0xffffffffu,
                             &operands, site);
}
inline void load_matrices(uint32_t (&to)[4], const void* row, EMULATOR_SITE) {
    emulator::check_alignment(row, "load_matrices", site);
    emulator::check_memory(row, emulator::Memory::Shared, "load_matrices", site);
    emulator::MatrixOperands operands = {to, row};
    emulator::warp_operation(emulator::LOAD_MATRICES, 0xffffffffu, &operands, site);
}
inline void load_matrices_transposed(uint32_t (&to)[4], const void* row, EMULATOR_SITE) {
    emulator::check_alignment(row, "load_matrices_transposed", site);
    emulator::check_memory(row, emulator::Memory::Shared, "load_matrices_transposed", site);
    emulator::MatrixOperands operands = {to, row};
    emulator::warp_operation(emulator::LOAD_TRANSPOSED, 0xffffffffu, &operands, site);
}

inline float fast_exp2(float x) {
    float result = exp2f(x);
    return result < 0x1p-126f ? 0.0f : result;  // as the GPU: no subnormals
}
