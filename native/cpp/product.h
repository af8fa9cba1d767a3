// Products of small matrices: a few rows of the result stay in registers while the inner dimension runs.
//
//     c[r][x] (+)= sum_k a(r, k) b[k][x]
//
// The left factor is read number by number, so it may lie either way round; rows of the right one are read as vectors.
#pragma once

#include "vector.h"

namespace regard::REGARD_ISA {

constexpr int ROWS = 6;  // rows of results in registers: ROWS * VECTORS sums, VECTORS of b and one of a fit everywhere

// How the left factor lies: a[r * step + k], or a[k * step + r].
enum Lie { BY_ROW, BY_INNER };

template <class T>
struct Left {
    const T* data;
    int64_t step;
};

template <class T, Lie LIE, bool ADD, int R, int V>
static void block(Left<T> a, const T* b, int64_t b_step, T* c, int64_t c_step, int64_t inner) {
    Vector<T> sums[R][V];
    for (int r = 0; r < R; r++)
        for (int v = 0; v < V; v++) sums[r][v] = ADD ? load(c + r * c_step + v * LANES<T>) : Vector<T>{};
    for (int64_t k = 0; k < inner; k++) {
        Vector<T> right[V];
        for (int v = 0; v < V; v++) right[v] = load(b + k * b_step + v * LANES<T>);
        for (int r = 0; r < R; r++) {
            T left = LIE == BY_ROW ? a.data[r * a.step + k] : a.data[k * a.step + r];
            for (int v = 0; v < V; v++) sums[r][v] += left * right[v];
        }
    }
    for (int r = 0; r < R; r++)
        for (int v = 0; v < V; v++) store(c + r * c_step + v * LANES<T>, sums[r][v]);
}

template <class T, Lie LIE, bool ADD, int R>
static inline void few_rows(int vectors, Left<T> a, const T* b, int64_t b_step, T* c, int64_t c_step, int64_t inner) {
    static_assert(VECTORS == 2 || VECTORS == 4);
    if constexpr (VECTORS == 4) {
        if (vectors == 4) return block<T, LIE, ADD, R, 4>(a, b, b_step, c, c_step, inner);
        if (vectors == 3) return block<T, LIE, ADD, R, 3>(a, b, b_step, c, c_step, inner);
    }
    if (vectors == 2) return block<T, LIE, ADD, R, 2>(a, b, b_step, c, c_step, inner);
    return block<T, LIE, ADD, R, 1>(a, b, b_step, c, c_step, inner);
}

// A product with at most ROWS rows and any number of vectors.
template <class T, Lie LIE, bool ADD>
static inline void strip(int rows, int vectors, Left<T> a, const T* b, int64_t b_step, T* c, int64_t c_step,
                         int64_t inner) {
    for (int v = 0; v < vectors; v += VECTORS) {
        int few = vectors - v < VECTORS ? vectors - v : VECTORS;
        const T* right = b + v * LANES<T>;
        T* to = c + v * LANES<T>;
        switch (rows) {
            case 6: few_rows<T, LIE, ADD, 6>(few, a, right, b_step, to, c_step, inner); break;
            case 5: few_rows<T, LIE, ADD, 5>(few, a, right, b_step, to, c_step, inner); break;
            case 4: few_rows<T, LIE, ADD, 4>(few, a, right, b_step, to, c_step, inner); break;
            case 3: few_rows<T, LIE, ADD, 3>(few, a, right, b_step, to, c_step, inner); break;
            case 2: few_rows<T, LIE, ADD, 2>(few, a, right, b_step, to, c_step, inner); break;
            case 1: few_rows<T, LIE, ADD, 1>(few, a, right, b_step, to, c_step, inner); break;
        }
    }
}

// A whole product.
template <class T, Lie LIE, bool ADD>
static inline void product(int64_t rows, int vectors, Left<T> a, const T* b, int64_t b_step, T* c, int64_t c_step,
                           int64_t inner) {
    for (int64_t r = 0; r < rows; r += ROWS) {
        Left<T> from = {a.data + (LIE == BY_ROW ? r * a.step : r), a.step};
        strip<T, LIE, ADD>(int(least(ROWS, rows - r)), vectors, from, b, b_step, c + r * c_step, c_step, inner);
    }
}

}  // namespace regard::REGARD_ISA
