// Products of pairs by AVX512-BF16: one pair of the left factor meets a vector of pairs of the right one.
#pragma once

#include "half_rows.h"

namespace regard::REGARD_ISA {

class [[maybe_unused]] DotProducts {
public:
    // c (+)= a b: rows of `groups` GROUPs of columns, summed over `pairs`; steps count elements.
    template <bool ADD>
    static void multiply(int64_t rows, int64_t groups, Halves a, const uint32_t* b, int64_t b_step, float* c,
                         int64_t c_step, int64_t pairs) {
        for (int64_t v = 0; v < groups; v += 4)
            for (int64_t r = 0; r < rows; r += ROWS) {
                Halves left = {a.data + r * a.step, a.step};
                float* to = c + r * c_step + v * GROUP;
                int64_t few = least(ROWS, rows - r), vectors = least(4, groups - v);
                few_rows<ADD>(few, vectors, left, b + v * GROUP, b_step, to, c_step, pairs);
            }
    }

private:
    static constexpr int64_t ROWS = 6;  // 6 x 4 sums, 4 vectors of b and one of a: nearly all of the 32 registers

    template <bool ADD, int R, int V>
    static void block(Halves a, const uint32_t* b, int64_t b_step, float* c, int64_t c_step, int64_t pairs) {
        __m512 sums[R][V];
        for (int r = 0; r < R; r++)
            for (int v = 0; v < V; v++) sums[r][v] = ADD ? _mm512_loadu_ps(c + r * c_step + v * GROUP) : __m512{};
        for (int64_t p = 0; p < pairs; p++) {
            __m512bh right[V];
            for (int v = 0; v < V; v++) right[v] = (__m512bh)_mm512_loadu_si512(b + p * b_step + v * GROUP);
            for (int r = 0; r < R; r++) {
                int32_t left;
                memcpy(&left, a.data + r * a.step + 2 * p, 4);
                for (int v = 0; v < V; v++)
                    sums[r][v] = _mm512_dpbf16_ps(sums[r][v], (__m512bh)_mm512_set1_epi32(left), right[v]);
            }
        }
        for (int r = 0; r < R; r++)
            for (int v = 0; v < V; v++) _mm512_storeu_ps(c + r * c_step + v * GROUP, sums[r][v]);
    }

    template <bool ADD, int R>
    static void few_vectors(int64_t vectors, Halves a, const uint32_t* b, int64_t b_step, float* c, int64_t c_step,
                            int64_t pairs) {
        switch (vectors) {
            case 4: return block<ADD, R, 4>(a, b, b_step, c, c_step, pairs);
            case 3: return block<ADD, R, 3>(a, b, b_step, c, c_step, pairs);
            case 2: return block<ADD, R, 2>(a, b, b_step, c, c_step, pairs);
            default: return block<ADD, R, 1>(a, b, b_step, c, c_step, pairs);
        }
    }

    template <bool ADD>
    static void few_rows(int64_t rows, int64_t vectors, Halves a, const uint32_t* b, int64_t b_step, float* c,
                         int64_t c_step, int64_t pairs) {
        switch (rows) {
            case 6: return few_vectors<ADD, 6>(vectors, a, b, b_step, c, c_step, pairs);
            case 5: return few_vectors<ADD, 5>(vectors, a, b, b_step, c, c_step, pairs);
            case 4: return few_vectors<ADD, 4>(vectors, a, b, b_step, c, c_step, pairs);
            case 3: return few_vectors<ADD, 3>(vectors, a, b, b_step, c, c_step, pairs);
            case 2: return few_vectors<ADD, 2>(vectors, a, b, b_step, c, c_step, pairs);
            default: return few_vectors<ADD, 1>(vectors, a, b, b_step, c, c_step, pairs);
        }
    }
};

}  // namespace regard::REGARD_ISA
