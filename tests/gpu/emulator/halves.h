// bf16 and f16 as their bits. Rounding is to nearest, ties to even, as the GPU's; every NaN becomes
// the one that it gives.
#pragma once

#include <cstdint>

#include "intrinsics.h"

namespace emulator {

inline uint16_t bf16_bits(float x) {
    uint32_t bits = __float_as_uint(x);
    if ((bits & 0x7fffffffu) > 0x7f800000u) return 0x7fff;
    return uint16_t((bits + 0x7fffu + (bits >> 16 & 1)) >> 16);
}

inline uint16_t f16_bits(float x) {
    uint32_t bits = __float_as_uint(x), sign = bits >> 16 & 0x8000u, size = bits & 0x7fffffffu;
    if (size > 0x7f800000u) return 0x7fff;
    // 65520 and above round to infinity.
    if (size >= 0x477ff000u) return uint16_t(sign | 0x7c00u);
    if (size < 0x38800000u) {
        // Below 2^-14 the result counts units of 2^-24. Adding 0.5, whose last place is that unit,
        // makes the processor round.
        float counted = __uint_as_float(size) + 0.5f;
        return uint16_t(sign | (__float_as_uint(counted) - 0x3f000000u));
    }
    uint32_t rounded = size + 0xfffu + (size >> 13 & 1);
    return uint16_t(sign | ((rounded - (112u << 23)) >> 13));
}

inline float bf16_value(uint16_t half) { return __uint_as_float(uint32_t(half) << 16); }

inline float f16_value(uint16_t half) {
    uint32_t sign = uint32_t(half & 0x8000u) << 16, size = half & 0x7fffu;
    if (size >= 0x7c00u) return __uint_as_float(sign | 0x7f800000u | (size & 0x3ffu) << 13);
    // The exponent is 112 too small; multiplying normalises what was subnormal as well.
    float value = __uint_as_float(size << 13) * 0x1p112f;
    return __uint_as_float(sign | __float_as_uint(value));
}

}  // namespace emulator
