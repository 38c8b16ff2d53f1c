// CUDA's vector types, aligned as CUDA aligns them.
#pragma once

#define EMULATOR_VECTORS(T, name, size)                              \
    struct name##1 {                                                 \
        T x;                                                         \
    };                                                               \
    struct alignas(2 * size) name##2 {                               \
        T x, y;                                                      \
    };                                                               \
    struct name##3 {                                                 \
        T x, y, z;                                                   \
    };                                                               \
    struct alignas(4 * size > 16 ? 16 : 4 * size) name##4 {          \
        T x, y, z, w;                                                \
    };                                                               \
    inline name##1 make_##name##1(T x) { return {x}; }               \
    inline name##2 make_##name##2(T x, T y) { return {x, y}; }       \
    inline name##3 make_##name##3(T x, T y, T z) { return {x, y, z}; } \
    inline name##4 make_##name##4(T x, T y, T z, T w) { return {x, y, z, w}; }
EMULATOR_VECTORS(signed char, char, 1)
EMULATOR_VECTORS(unsigned char, uchar, 1)
EMULATOR_VECTORS(short, short, 2)
EMULATOR_VECTORS(unsigned short, ushort, 2)
EMULATOR_VECTORS(int, int, 4)
EMULATOR_VECTORS(unsigned, uint, 4)
EMULATOR_VECTORS(long long, longlong, 8)
EMULATOR_VECTORS(unsigned long long, ulonglong, 8)
EMULATOR_VECTORS(float, float, 4)
EMULATOR_VECTORS(double, double, 8)
#undef EMULATOR_VECTORS

struct dim3 {
    unsigned x = 1, y = 1, z = 1;
};
