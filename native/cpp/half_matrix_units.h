// Products of pairs by AMX-BF16: 16 x 16 sums at a time, each over 16 pairs.
//
// Two by two tiles of the result share what is loaded: of the eight tile registers 0 to 3 hold sums, 4 and 5 rows of
// the left factor, 6 and 7 pairs of the right one. Every product is one of whole tiles, so rows, columns and pairs are
// rounded up; callers keep zeros there, and room in the result.
#pragma once

#include "half_rows.h"
#if defined(REGARD_EMULATE_AMX)
#include "amx_emulated.h"
#endif

namespace regard::REGARD_ISA {

// The units are this thread's for as long as the object lives.
class MatrixUnits {
public:
    MatrixUnits() { _tile_loadconfig(&SHAPES); }
    ~MatrixUnits() { _tile_release(); }
    MatrixUnits(const MatrixUnits&) = delete;
    MatrixUnits& operator=(const MatrixUnits&) = delete;

    // c (+)= a b: rows of `groups` GROUPs of columns, summed over `pairs`; steps count elements.
    template <bool ADD>
    static void multiply(int64_t rows, int64_t groups, Halves a, const uint32_t* b, int64_t b_step, float* c,
                         int64_t c_step, int64_t pairs) {
        for (int64_t r = 0; r < rows; r += 2 * GROUP)
            for (int64_t g = 0; g < groups; g += 2) {
                Halves left = {a.data + r * a.step, a.step};
                const uint32_t* right = b + g * GROUP;
                float* to = c + r * c_step + g * GROUP;
                bool tall = rows - r > GROUP, broad = groups - g > 1;
                if (tall && broad) block<ADD, true, true>(left, right, b_step, to, c_step, pairs);
                if (tall && !broad) block<ADD, true, false>(left, right, b_step, to, c_step, pairs);
                if (!tall && broad) block<ADD, false, true>(left, right, b_step, to, c_step, pairs);
                if (!tall && !broad) block<ADD, false, false>(left, right, b_step, to, c_step, pairs);
            }
    }

private:
    // What LDTILECFG reads: all eight tiles have 16 rows of 64 bytes.
    struct Shapes {
        uint8_t palette, start, reserved[14];
        uint16_t row_bytes[16];
        uint8_t rows[16];
    };
    alignas(64) static constexpr Shapes SHAPES = {
        1, 0, {}, {64, 64, 64, 64, 64, 64, 64, 64}, {16, 16, 16, 16, 16, 16, 16, 16}};

    template <bool ADD, bool TALL, bool BROAD>
    static void block(Halves a, const uint32_t* b, int64_t b_step, float* c, int64_t c_step, int64_t pairs) {
        // the compilers' tile loads do not say that they read memory: what was stored before must be there
        __asm__ volatile("" ::: "memory");
        begin<ADD, TALL, BROAD>(c, c_step);
        for (int64_t p = 0; p < pairs; p += GROUP) {
            const uint32_t* right = b + p * b_step;
            _tile_loadd(4, a.data + 2 * p, a.step * 2);
            _tile_loadd(6, right, b_step * 4);
            _tile_dpbf16ps(0, 4, 6);
            if constexpr (BROAD) {
                _tile_loadd(7, right + GROUP, b_step * 4);
                _tile_dpbf16ps(1, 4, 7);
            }
            if constexpr (TALL) {
                _tile_loadd(5, a.data + GROUP * a.step + 2 * p, a.step * 2);
                _tile_dpbf16ps(2, 5, 6);
            }
            if constexpr (TALL && BROAD) _tile_dpbf16ps(3, 5, 7);
        }
        float* low = c + GROUP * c_step;
        _tile_stored(0, c, c_step * 4);
        if constexpr (BROAD) _tile_stored(1, c + GROUP, c_step * 4);
        if constexpr (TALL) _tile_stored(2, low, c_step * 4);
        if constexpr (TALL && BROAD) _tile_stored(3, low + GROUP, c_step * 4);
    }

    // The sums so far, or zeros.
    template <bool ADD, bool TALL, bool BROAD>
    static void begin(const float* c, int64_t c_step) {
        if constexpr (ADD) {
            const float* low = c + GROUP * c_step;
            _tile_loadd(0, c, c_step * 4);
            if constexpr (BROAD) _tile_loadd(1, c + GROUP, c_step * 4);
            if constexpr (TALL) _tile_loadd(2, low, c_step * 4);
            if constexpr (TALL && BROAD) _tile_loadd(3, low + GROUP, c_step * 4);
        } else {
            _tile_zero(0);
            if constexpr (BROAD) _tile_zero(1);
            if constexpr (TALL) _tile_zero(2);
            if constexpr (TALL && BROAD) _tile_zero(3);
        }
    }
};

}  // namespace regard::REGARD_ISA
