// Rows of bfloat16 numbers, in the orders in which products of pairs read them.
//
//     c[r][x] (+)= sum_p  a[r][2 p] b[p][x][0] + a[r][2 p + 1] b[p][x][1]
//
// The left factor is rows as they lie. The right one is rows of pairs: two numbers that follow each other along the
// inner dimension share a word, the first in its low half. The units that multiply take numbers below 2^-126 for 0.
#pragma once

#include "product.h"
#include "tile.h"

namespace regard::REGARD_ISA {

constexpr int64_t GROUP = 16;         // rows, columns and pairs of the smallest product
constexpr int64_t INNER = 2 * GROUP;  // numbers that such a product sums over
constexpr int64_t PAIRS = TILE / 2;   // of the rows of a tile

static inline int64_t whole(int64_t count, int64_t unit) { return (count + unit - 1) / unit * unit; }

struct Halves {
    const uint16_t* data;
    int64_t step;
};

// The rows of a tile, where they lie if no product reads beyond them, else copied to `room`: TILE rows of a width in
// whole products, zeros where there is nothing.
static inline Halves halves_of(const Matrix& from, const Places& places, int64_t width, uint16_t* room) {
    const uint16_t* data = reinterpret_cast<const uint16_t*>(from.data);
    if (from.column == 1 && !places.rows && width % INNER == 0 && places.count % GROUP == 0)
        return {data + places.first * from.row, from.row};
    int64_t step = whole(width, INNER);
    for (int64_t i = 0; i < places.count; i++) {
        const uint16_t* row = data + places[i] * from.row;
        if (from.column == 1)
            memcpy(room + i * step, row, width * 2);
        else
            for (int64_t x = 0; x < width; x++) room[i * step + x] = row[x * from.column];
        for (int64_t x = width; x < step; x++) room[i * step + x] = 0;
    }
    memset(room + places.count * step, 0, (TILE - places.count) * step * 2);
    return {room, step};
}

// --- turning rows round ----------------------------------------------------------------------------------------------

// A square of 16 x 16 words turned round; steps count bytes.
static inline void turn_words(const char* from, int64_t from_step, char* to, int64_t to_step) {
#if defined(__AVX512F__)
    __m512i row[16], other[16];
    for (int i = 0; i < 16; i++) row[i] = _mm512_loadu_si512(from + i * from_step);
    for (int i = 0; i < 16; i += 2) {
        other[i] = _mm512_unpacklo_epi32(row[i], row[i + 1]);
        other[i + 1] = _mm512_unpackhi_epi32(row[i], row[i + 1]);
    }
    for (int i = 0; i < 16; i += 4) {
        row[i] = _mm512_unpacklo_epi64(other[i], other[i + 2]);
        row[i + 1] = _mm512_unpackhi_epi64(other[i], other[i + 2]);
        row[i + 2] = _mm512_unpacklo_epi64(other[i + 1], other[i + 3]);
        row[i + 3] = _mm512_unpackhi_epi64(other[i + 1], other[i + 3]);
    }
    for (int i = 0; i < 4; i++) {  // row[4 a + i] holds columns i, i + 4, i + 8, i + 12 of rows 4 a ... 4 a + 3
        __m512i even = _mm512_shuffle_i32x4(row[i], row[i + 4], 0x88);
        __m512i odd = _mm512_shuffle_i32x4(row[i], row[i + 4], 0xdd);
        __m512i more = _mm512_shuffle_i32x4(row[i + 8], row[i + 12], 0x88);
        __m512i last = _mm512_shuffle_i32x4(row[i + 8], row[i + 12], 0xdd);
        _mm512_storeu_si512(to + i * to_step, _mm512_shuffle_i32x4(even, more, 0x88));
        _mm512_storeu_si512(to + (i + 4) * to_step, _mm512_shuffle_i32x4(odd, last, 0x88));
        _mm512_storeu_si512(to + (i + 8) * to_step, _mm512_shuffle_i32x4(even, more, 0xdd));
        _mm512_storeu_si512(to + (i + 12) * to_step, _mm512_shuffle_i32x4(odd, last, 0xdd));
    }
#else
    for (int i = 0; i < 16; i++)
        for (int x = 0; x < 16; x++) memcpy(to + x * to_step + i * 4, from + i * from_step + x * 4, 4);
#endif
}

// `rows` rows of `width` words turned round, both in whole squares.
static inline void turn_words(const void* from, int64_t from_step, int64_t rows, int64_t width, void* to,
                              int64_t to_step) {
    for (int64_t i = 0; i < rows; i += GROUP)
        for (int64_t x = 0; x < width; x += GROUP)
            turn_words(static_cast<const char*>(from) + i * from_step + x * 4, from_step,
                       static_cast<char*>(to) + x * to_step + i * 4, to_step);
}

// Pairs along each of `count` rows, turned round: right factor of a product that sums over the width.
static inline void turn_pairs(Halves from, int64_t count, int64_t width, uint32_t* to) {
    int64_t rows = whole(count, GROUP), pairs = whole(width, INNER) / 2;
    turn_words(from.data, from.step * 2, rows, pairs, to, TILE * 4);
    for (int64_t p = 0; p < pairs; p++) memset(to + p * TILE + rows, 0, (TILE - rows) * 4);
}

// Pairs of rows that follow each other: right factor of a product that sums over the rows.
static inline void pair_rows(Halves from, int64_t count, int64_t width, uint32_t* to) {
    int64_t step = whole(width, GROUP), pairs = whole(count, GROUP) / 2;
    for (int64_t p = 0; p < pairs; p++) {
        const uint16_t *first = from.data + 2 * p * from.step, *second = first + from.step;
        for (int64_t x = 0; x < step; x++) to[p * step + x] = first[x] | uint32_t(second[x]) << 16;
    }
    memset(to + pairs * step, 0, (PAIRS - pairs) * step * 4);
}

// `count` rows turned round, from rows in pairs: left factor of a product that sums over the rows.
static inline Halves turn_halves(const uint32_t* pairs, int64_t width, uint16_t* to) {
    int64_t step = whole(width, GROUP);
    turn_words(pairs, step * 4, PAIRS, step, to, TILE * 2);
    return {to, TILE};
}

// --- rounding --------------------------------------------------------------------------------------------------------

// Two rows of numbers as one of pairs.
static inline Integers<float> pair(Vector<float> first, Vector<float> second) {
#if defined(__AVX512BF16__)
    const __m512i order = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22, 6,
                                           21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
    __m512i halves = (__m512i)_mm512_cvtne2ps_pbh((__m512)second, (__m512)first);
    return (Integers<float>)_mm512_permutexvar_epi16(order, halves);
#else
    Integers<float> found;
    for (int i = 0; i < LANES<float>; i++)
        found[i] = int32_t(narrow_bfloat16(first[i]) | uint32_t(narrow_bfloat16(second[i])) << 16);
    return found;
#endif
}

static inline void store(uint32_t* to, Integers<float> words) { memcpy(to, &words, sizeof words); }

// --- ranges ----------------------------------------------------------------------------------------------------------

struct Range {
    int64_t from, to;
    bool empty() const { return from >= to; }
};

// What rows `first` to `last` see of the other side, in whole units; `from` and `to` say it for each ROWS rows.
static inline Range seen(const int* from, const int* to, int64_t first, int64_t last, int64_t unit) {
    Range found = {TILE, 0};
    for (int64_t g = first / ROWS; g * ROWS < last; g++) {
        if (from[g] >= to[g]) continue;
        found = {least(found.from, from[g]), most(found.to, to[g])};
    }
    return {found.from / unit * unit, whole(found.to, unit)};
}

}  // namespace regard::REGARD_ISA
