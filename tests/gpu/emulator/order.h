// The order in which threads, lanes and blocks get their turns: MILLSTREAM_EMULATOR_ORDER.
//
// A program without races gives the same in every order, so a result that depends on it shows a
// barrier that is missing.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <utility>

namespace emulator {

class Order {
  public:
    // `forward` (also when nothing is set), `reverse`, or the seed of a random order.
    static Order from_environment() {
        Order order;
        const char* text = getenv("MILLSTREAM_EMULATOR_ORDER");
        if (!text || !*text || strcmp(text, "forward") == 0) return order;
        order.kind = strcmp(text, "reverse") == 0 ? REVERSE : RANDOM;
        order.state = strtoull(text, nullptr, 10) * 0x9e3779b97f4a7c15u + 1;
        return order;
    }

    template <typename T>
    void arrange(T* items, size_t count) {
        if (kind == FORWARD) return;
        for (size_t i = count; i > 1; i--) {
            // Reverse: swaps the ends inwards. Random: Fisher and Yates.
            size_t other = kind == RANDOM ? random() % i : count - i;
            if (kind == REVERSE && other >= i - 1) return;
            std::swap(items[i - 1], items[other]);
        }
    }

    // Whether those who were let go on go before the others that could. In a fixed order a warp
    // runs as far as it can, which takes warps apart; a random order also has the opposite.
    bool first() { return kind != RANDOM || random() % 2; }

  private:
    enum Kind { FORWARD, REVERSE, RANDOM } kind = FORWARD;
    uint64_t state = 1;

    uint64_t random() {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        return state;
    }
};

}  // namespace emulator
