// CUDA's functions of one thread: bits, conversions, arithmetic, atomics.
#pragma once

#include <math.h>

#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>

// ---------------------------------------------------------------------------------------------
// Bits

namespace emulator {
template <typename To, typename From>
inline To same_bits(From from) {
    static_assert(sizeof(To) == sizeof(From), "the same size");
    To to;
    memcpy(&to, &from, sizeof(To));
    return to;
}
}  // namespace emulator

inline unsigned __float_as_uint(float x) { return emulator::same_bits<unsigned>(x); }
inline int __float_as_int(float x) { return emulator::same_bits<int>(x); }
inline float __uint_as_float(unsigned x) { return emulator::same_bits<float>(x); }
inline float __int_as_float(int x) { return emulator::same_bits<float>(x); }
inline long long __double_as_longlong(double x) { return emulator::same_bits<long long>(x); }
inline double __longlong_as_double(long long x) { return emulator::same_bits<double>(x); }

inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __popcll(unsigned long long x) { return __builtin_popcountll(x); }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline int __ffsll(long long x) { return __builtin_ffsll(x); }
inline int __clz(int x) { return x == 0 ? 32 : __builtin_clz(unsigned(x)); }
inline int __clzll(long long x) {
    return x == 0 ? 64 : __builtin_clzll(static_cast<unsigned long long>(x));
}
inline unsigned __brev(unsigned x) {
    unsigned out = 0;
    for (int i = 0; i < 32; i++) out |= (x >> i & 1) << (31 - i);
    return out;
}
inline unsigned long long __brevll(unsigned long long x) {
    return static_cast<unsigned long long>(__brev(unsigned(x))) << 32 | __brev(unsigned(x >> 32));
}
inline unsigned __byte_perm(unsigned a, unsigned b, unsigned selector) {
    uint64_t bytes = uint64_t(b) << 32 | a;
    unsigned out = 0;
    for (int i = 0; i < 4; i++) {
        unsigned choice = selector >> (4 * i) & 15;
        unsigned byte = unsigned(bytes >> (8 * (choice & 7))) & 0xff;
        // Bit 3 of a choice asks for the byte's sign instead.
        if (choice & 8) byte = byte & 0x80 ? 0xff : 0;
        out |= byte << (8 * i);
    }
    return out;
}
inline unsigned __funnelshift_l(unsigned low, unsigned high, unsigned shift) {
    return unsigned((uint64_t(high) << 32 | low) << (shift & 31) >> 32);
}
inline unsigned __funnelshift_r(unsigned low, unsigned high, unsigned shift) {
    return unsigned((uint64_t(high) << 32 | low) >> (shift & 31));
}

// ---------------------------------------------------------------------------------------------
// Arithmetic

inline int __mulhi(int a, int b) { return int(int64_t(a) * b >> 32); }
inline unsigned __umulhi(unsigned a, unsigned b) { return unsigned(uint64_t(a) * b >> 32); }
inline unsigned long long __umul64hi(unsigned long long a, unsigned long long b) {
    return static_cast<unsigned long long>(static_cast<unsigned __int128>(a) * b >> 64);
}
inline int __dp4a(int a, int b, int sum) {
    for (int i = 0; i < 4; i++) sum += int8_t(a >> (8 * i)) * int8_t(b >> (8 * i));
    return sum;
}

inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fsub_rn(float a, float b) { return a - b; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline float __fmaf_rn(float a, float b, float c) { return fmaf(a, b, c); }
inline float __fsqrt_rn(float x) { return sqrtf(x); }
inline float __frcp_rn(float x) { return 1.0f / x; }
inline float __frsqrt_rn(float x) { return float(1.0 / sqrt(double(x))); }
inline double __dadd_rn(double a, double b) { return a + b; }
inline double __dsub_rn(double a, double b) { return a - b; }
inline double __dmul_rn(double a, double b) { return a * b; }
inline double __ddiv_rn(double a, double b) { return a / b; }
inline double __fma_rn(double a, double b, double c) { return fma(a, b, c); }
inline double __dsqrt_rn(double x) { return sqrt(x); }

inline float __saturatef(float x) { return x > 0 ? (x < 1 ? x : 1.0f) : 0.0f; }
inline float __fdividef(float a, float b) { return a / b; }
inline float __expf(float x) { return expf(x); }
inline float __exp10f(float x) { return powf(10.0f, x); }
inline float __logf(float x) { return logf(x); }
inline float __log2f(float x) { return log2f(x); }
inline float __log10f(float x) { return log10f(x); }
inline float __powf(float x, float y) { return powf(x, y); }
inline float __sinf(float x) { return sinf(x); }
inline float __cosf(float x) { return cosf(x); }
inline float __tanf(float x) { return tanf(x); }
inline void __sincosf(float x, float* sine, float* cosine) {
    *sine = sinf(x);
    *cosine = cosf(x);
}
inline float rsqrtf(float x) { return float(1.0 / sqrt(double(x))); }
inline double rsqrt(double x) { return 1.0 / sqrt(x); }
inline float normcdff(float x) { return 0.5f * erfcf(-x * 0.70710678118654752f); }

namespace emulator {
// As the GPU converts: out of range gives the nearest end, a NaN gives 0.
template <typename Int, typename Float>
inline Int clamped(Float whole) {
    using Limits = std::numeric_limits<Int>;
    if (whole != whole) return 0;
    if (whole <= Float(Limits::min())) return Limits::min();
    // The largest Int may round up as a Float; from there on everything is out of range.
    if (whole >= Float(Limits::max())) return Limits::max();
    return Int(whole);
}
}  // namespace emulator

#define EMULATOR_ROUNDINGS(name, Int, Float, suffix)                                          \
    inline Int name##_rn(Float x) { return emulator::clamped<Int>(rint##suffix(x)); }        \
    inline Int name##_rz(Float x) { return emulator::clamped<Int>(trunc##suffix(x)); }       \
    inline Int name##_rd(Float x) { return emulator::clamped<Int>(floor##suffix(x)); }       \
    inline Int name##_ru(Float x) { return emulator::clamped<Int>(ceil##suffix(x)); }
EMULATOR_ROUNDINGS(__float2int, int, float, f)
EMULATOR_ROUNDINGS(__float2uint, unsigned, float, f)
EMULATOR_ROUNDINGS(__float2ll, long long, float, f)
EMULATOR_ROUNDINGS(__float2ull, unsigned long long, float, f)
EMULATOR_ROUNDINGS(__double2int, int, double, )
EMULATOR_ROUNDINGS(__double2uint, unsigned, double, )
EMULATOR_ROUNDINGS(__double2ll, long long, double, )
EMULATOR_ROUNDINGS(__double2ull, unsigned long long, double, )
#undef EMULATOR_ROUNDINGS
inline float __int2float_rn(int x) { return float(x); }
inline float __uint2float_rn(unsigned x) { return float(x); }
inline float __ll2float_rn(long long x) { return float(x); }
inline float __ull2float_rn(unsigned long long x) { return float(x); }
inline double __int2double_rn(int x) { return double(x); }
inline double __uint2double_rn(unsigned x) { return double(x); }
inline double __ll2double_rn(long long x) { return double(x); }
inline double __ull2double_rn(unsigned long long x) { return double(x); }
inline float __double2float_rn(double x) { return float(x); }

// A NaN loses against a number, as in fminf and fmaxf.
template <typename A, typename B>
inline typename std::common_type<A, B>::type min(A a, B b) {
    using T = typename std::common_type<A, B>::type;
    T x = T(a), y = T(b);
    return x != x ? y : (y < x ? y : x);
}
template <typename A, typename B>
inline typename std::common_type<A, B>::type max(A a, B b) {
    using T = typename std::common_type<A, B>::type;
    T x = T(a), y = T(b);
    return x != x ? y : (x < y ? y : x);
}

// ---------------------------------------------------------------------------------------------
// Memory

template <typename T>
inline T __ldg(const T* from) {
    return *from;
}
template <typename T>
inline T __ldcg(const T* from) {
    return *from;
}
template <typename T>
inline T __ldcs(const T* from) {
    return *from;
}
template <typename T>
inline void __stcg(T* to, T value) {
    *to = value;
}
template <typename T>
inline void __stcs(T* to, T value) {
    *to = value;
}

// One thread runs at a time, so an atomic operation is the plain one. It gives the old value.
#define EMULATOR_ATOMIC(name, T, result)  \
    inline T name(T* at, T value) {       \
        T old = *at;                      \
        *at = result;                     \
        return old;                       \
    }
#define EMULATOR_ATOMICS(T)                                          \
    EMULATOR_ATOMIC(atomicMin, T, value < old ? value : old)         \
    EMULATOR_ATOMIC(atomicMax, T, old < value ? value : old)         \
    EMULATOR_ATOMIC(atomicAnd, T, old & value)                       \
    EMULATOR_ATOMIC(atomicOr, T, old | value)                        \
    EMULATOR_ATOMIC(atomicXor, T, old ^ value)                       \
    EMULATOR_ATOMIC(atomicExch, T, value)                            \
    inline T atomicCAS(T* at, T expected, T value) {                 \
        T old = *at;                                                 \
        if (old == expected) *at = value;                            \
        return old;                                                  \
    }
EMULATOR_ATOMICS(int)
EMULATOR_ATOMICS(unsigned)
EMULATOR_ATOMICS(unsigned long long)
EMULATOR_ATOMIC(atomicExch, float, value)
EMULATOR_ATOMIC(atomicAdd, int, int(unsigned(old) + unsigned(value)))
EMULATOR_ATOMIC(atomicSub, int, int(unsigned(old) - unsigned(value)))
EMULATOR_ATOMIC(atomicAdd, unsigned, old + value)
EMULATOR_ATOMIC(atomicSub, unsigned, old - value)
EMULATOR_ATOMIC(atomicAdd, unsigned long long, old + value)
EMULATOR_ATOMIC(atomicAdd, float, old + value)
EMULATOR_ATOMIC(atomicAdd, double, old + value)
EMULATOR_ATOMIC(atomicInc, unsigned, old >= value ? 0 : old + 1)
EMULATOR_ATOMIC(atomicDec, unsigned, old == 0 || old > value ? value : old - 1)
#undef EMULATOR_ATOMICS
#undef EMULATOR_ATOMIC
