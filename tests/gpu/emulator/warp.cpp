// What the lanes of a warp compute together on tensor cores, and how they load for it.
#include <cstring>

#include "halves.h"
#include "kernel.h"

namespace emulator {

namespace {

// The two halves of a register: `low` first.
template <float (*value)(uint16_t)>
void unpack(uint32_t packed, float& low, float& high) {
    low = value(uint16_t(packed));
    high = value(uint16_t(packed >> 16));
}

// d[16][8] += a[16][16] * b[16][8], the elements lying in the lanes as device.cuh says. The
// products are exact in f32; their sum is in f32, in the order of k.
template <float (*value)(uint16_t)>
void combine_mma(void* const* lanes, unsigned) {
    float a[16][16], b[16][8], d[16][8];
    for (int lane = 0; lane < 32; lane++) {
        auto& mine = *static_cast<MmaOperands*>(lanes[lane]);
        int group = lane / 4, k = 2 * (lane % 4);
        unpack<value>(mine.a[0], a[group][k], a[group][k + 1]);
        unpack<value>(mine.a[1], a[group + 8][k], a[group + 8][k + 1]);
        unpack<value>(mine.a[2], a[group][k + 8], a[group][k + 9]);
        unpack<value>(mine.a[3], a[group + 8][k + 8], a[group + 8][k + 9]);
        unpack<value>(mine.b[0], b[k][group], b[k + 1][group]);
        unpack<value>(mine.b[1], b[k + 8][group], b[k + 9][group]);
        for (int i = 0; i < 2; i++) {
            d[group][k + i] = mine.d[i];
            d[group + 8][k + i] = mine.d[2 + i];
        }
    }
    for (int row = 0; row < 16; row++) {
        for (int k = 0; k < 16; k++) {
            for (int column = 0; column < 8; column++) {
                d[row][column] += a[row][k] * b[k][column];
            }
        }
    }
    for (int lane = 0; lane < 32; lane++) {
        auto& mine = *static_cast<MmaOperands*>(lanes[lane]);
        for (int i = 0; i < 4; i++) mine.d[i] = d[lane / 4 + i / 2 * 8][2 * (lane % 4) + i % 2];
    }
}

template <bool transposed>
void combine_load_matrices(void* const* lanes, unsigned) {
    for (int i = 0; i < 4; i++) {
        uint16_t matrix[8][8];
        for (int row = 0; row < 8; row++) {
            memcpy(matrix[row], static_cast<MatrixOperands*>(lanes[8 * i + row])->row, 16);
        }
        for (int lane = 0; lane < 32; lane++) {
            int r = lane / 4, c = 2 * (lane % 4);
            uint32_t low = transposed ? matrix[c][r] : matrix[r][c];
            uint32_t high = transposed ? matrix[c + 1][r] : matrix[r][c + 1];
            static_cast<MatrixOperands*>(lanes[lane])->to[i] = low | high << 16;
        }
    }
}

}  // namespace

const WarpOperation MMA_BF16 = {"mma<bf16>", combine_mma<bf16_value>, true};
const WarpOperation MMA_F16 = {"mma<f16>", combine_mma<f16_value>, true};
const WarpOperation LOAD_MATRICES = {"load_matrices", combine_load_matrices<false>, true};
const WarpOperation LOAD_TRANSPOSED = {"load_matrices_transposed", combine_load_matrices<true>,
                                       true};

}  // namespace emulator
