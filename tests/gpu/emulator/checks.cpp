// What the compiler's checks of undefined behaviour call in kernels. The layouts are its own.
#include <sys/types.h>

#include "kernel.h"

namespace {
struct CheckedPlace {
    const char* file;
    uint32_t line, column;
};
struct CheckedType {
    uint16_t kind, info;
    char name[1];
};
struct TypeMismatch {
    CheckedPlace place;
    const CheckedType* type;
    unsigned char log_alignment, kind;
};
emulator::Site site(const void* check) {
    const auto& place = *static_cast<const CheckedPlace*>(check);
    return {place.file, int(place.line)};
}
}  // namespace

#define EMULATOR_CHECK extern "C" [[noreturn]] EMULATOR_API void

EMULATOR_CHECK __ubsan_handle_type_mismatch_v1_abort(const TypeMismatch* check,
                                                     uintptr_t address) {
    emulator::fail(site(check), "access of type %s at %#zx, which is %s", check->type->name,
                   size_t(address), address ? "not aligned for it" : "null");
}
EMULATOR_CHECK __ubsan_handle_out_of_bounds_abort(const void* check, uintptr_t index) {
    emulator::fail(site(check), "index %zd is outside the array", ssize_t(index));
}
EMULATOR_CHECK __ubsan_handle_add_overflow_abort(const void* check, uintptr_t, uintptr_t) {
    emulator::fail(site(check), "an integer sum overflows");
}
EMULATOR_CHECK __ubsan_handle_sub_overflow_abort(const void* check, uintptr_t, uintptr_t) {
    emulator::fail(site(check), "an integer difference overflows");
}
EMULATOR_CHECK __ubsan_handle_mul_overflow_abort(const void* check, uintptr_t, uintptr_t) {
    emulator::fail(site(check), "an integer product overflows");
}
EMULATOR_CHECK __ubsan_handle_negate_overflow_abort(const void* check, uintptr_t) {
    emulator::fail(site(check), "an integer negation overflows");
}
EMULATOR_CHECK __ubsan_handle_divrem_overflow_abort(const void* check, uintptr_t, uintptr_t) {
    emulator::fail(site(check), "an integer division by zero, or one that overflows");
}
EMULATOR_CHECK __ubsan_handle_shift_out_of_bounds_abort(const void* check, uintptr_t,
                                                        uintptr_t shift) {
    emulator::fail(site(check), "a shift by %zd", ssize_t(shift));
}
