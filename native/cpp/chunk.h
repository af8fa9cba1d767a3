// Chunks of tokens: what attention by features and the delta rule have in common.
#pragma once

#include "linear_calls.h"
#include "product.h"
#include "tile.h"

namespace regard::REGARD_ISA {

constexpr int64_t CHUNK = TILE;  // tokens at a time

// A width in whole vectors.
template <class T>
constexpr int64_t whole(int64_t width) { return (width + LANES<T> - 1) / LANES<T> * LANES<T>; }

// Tokens that stand together.
struct Chunk {
    int64_t first, count;
    uint64_t kept;  // bit t: token t takes part
    bool all() const { return kept == ones(count); }
};

// The rows of a chunk in whole vectors, where they lie if that will do, else copied to `room`; those of tokens that
// take no part are 0, whatever they hold.
template <class T>
static inline Rows<T> chunk_rows(const Matrix& from, const Chunk& chunk, int64_t width, T* room) {
    int64_t step = whole<T>(width);
    if (chunk.all() && width == step && from.dtype == OWN<T> && from.column == 1)
        return {reinterpret_cast<const T*>(from.data) + chunk.first * from.row, from.row};
    for (int64_t t = 0; t < chunk.count; t++) {
        bool kept = chunk.kept >> t & 1;
        if (kept) read_row(from, chunk.first + t, width, room + t * step);
        for (int64_t x = kept ? width : 0; x < step; x++) room[t * step + x] = 0;
    }
    return {room, step};
}

// Rows of CHUNK numbers turned back: a row for each token, in `square` where there is room for it, else in `rows`.
template <class T>
static inline Rows<T> turn_back(const T* from, int64_t count, int64_t width, T* square, T* rows) {
    int64_t step = whole<T>(width);
    for (int64_t x = 0; x < width; x += CHUNK) {
        int64_t few = least(CHUNK, width - x);
        turn<T>({from + x * CHUNK, CHUNK}, few, count, T(1), square);
        if (width <= CHUNK) return {square, CHUNK};
        for (int64_t t = 0; t < count; t++) memcpy(rows + t * step + x, square + t * CHUNK, few * sizeof(T));
    }
    return {rows, step};
}

// Hands out the arrays of a worker's memory one after the other; without memory it only counts.
template <class T>
struct Taker {
    char* start;
    int64_t offset;
    T* operator()(int64_t count) {
        T* found = reinterpret_cast<T*>(start + offset);
        offset += (count * int64_t(sizeof(T)) + 63) / 64 * 64;
        return found;
    }
};

}  // namespace regard::REGARD_ISA
