// The delta rule, one head at a time, in chunks of tokens: the state (width x value_width) stays in the cache.
//
// With the rows K, V, Q of a chunk and the state S before it, what each key should have found and did not is
//
//     F = K S - V + tril(K K^T, -1) D,    D = -beta F    (row by row, for row i needs those before it)
//     O = scale (Q S + tril(Q K^T) D),    S += K^T D
//
// which is the recurrence, exactly.
#pragma once

#include "chunk.h"

namespace regard::REGARD_ISA {

template <class T>
struct DeltaRoom {
    T *state, *query, *key, *key_turned, *links, *pairs, *found, *write, *out, *beta;

    static int64_t bytes(const DeltaRule& call) {
        DeltaRoom room;
        return room.place(nullptr, call);
    }

    int64_t place(char* start, const DeltaRule& call) {
        int64_t width = whole<T>(call.width), value_width = whole<T>(call.value_width);
        Taker<T> take = {start, 0};
        state = take(call.width * value_width);
        query = take(CHUNK * width);
        key = take(CHUNK * width);
        key_turned = take(call.width * CHUNK);
        links = take(CHUNK * CHUNK);
        pairs = take(CHUNK * CHUNK);
        found = take(CHUNK * value_width);
        write = take(CHUNK * value_width);
        out = take(CHUNK * value_width);
        beta = take(CHUNK);
        return take.offset;
    }
};

// One head of one sequence.
template <class T>
struct DeltaHead {
    const DeltaRule& call;
    int64_t b, h, number, step;  // from row to row of values and of the state
    DeltaHead(const DeltaRule& call, int64_t number)
        : call(call),
          b(number / call.heads),
          h(number % call.heads),
          number(number),
          step(whole<T>(call.value_width)) {}

    int64_t chunks() const { return (call.n + CHUNK - 1) / CHUNK; }

    Chunk chunk(int64_t index) const {
        int64_t first = index * CHUNK, count = least(CHUNK, call.n - first);
        return {first, count, ones(count)};
    }

    Rows<T> rows(const Tensor& t, const Chunk& chunk, int64_t width, T* room) const {
        return chunk_rows(matrix(t, b, h), chunk, width, room);
    }
};

// Copies matrices of `rows` rows between a row in memory, without gaps, and one in the room, in whole vectors.
template <class T>
static inline void widen_rows(const void* from, int64_t place, int64_t rows, int64_t width, T* to) {
    const T* row = static_cast<const T*>(from) + place * rows * width;
    int64_t step = whole<T>(width);
    for (int64_t r = 0; r < rows; r++) {
        memcpy(to + r * step, row + r * width, width * sizeof(T));
        for (int64_t x = width; x < step; x++) to[r * step + x] = 0;
    }
}

template <class T>
static inline void narrow_rows(const T* from, int64_t place, int64_t rows, int64_t width, void* to) {
    T* row = static_cast<T*>(to) + place * rows * width;
    for (int64_t r = 0; r < rows; r++) memcpy(row + r * width, from + r * whole<T>(width), width * sizeof(T));
}

// Products of the rows of two chunks with each other, left[r] . right[c] for c up to r; 0 for later ones, and for c = r
// too where `strict`.
template <class T>
static inline void lower_pairs(int64_t count, Rows<T> left, const T* right_turned, int64_t width, bool strict,
                               T* pairs) {
    constexpr int W = LANES<T>;
    for (int64_t r = 0; r < count; r += ROWS) {
        int few = int(least(ROWS, count - r));
        strip<T, BY_ROW, false>(few, (int(r) + few + W - 1) / W, {left.data + r * left.step, left.step}, right_turned,
                                CHUNK, pairs + r * CHUNK, CHUNK, width);
    }
    for (int64_t r = 0; r < count; r++) {
        int64_t seen = strict ? r : r + 1;
        for (int64_t c = seen / W * W; c < CHUNK; c += W) {
            Vector<T> kept = {};
            if (c < seen) kept = choose<T>(ones(seen) >> c, load(pairs + r * CHUNK + c), kept);
            store(pairs + r * CHUNK + c, kept);
        }
    }
}

// rows[r] += sum_{c < r} links[r][c] write[c], with write[r] = -beta[r] rows[r], row after row.
template <class T>
static inline void solve_down(int64_t count, const T* links, const T* beta, int64_t step, T* rows, T* write) {
    constexpr int W = LANES<T>;
    for (int64_t first = 0; first < count; first += ROWS) {
        int few = int(least(ROWS, count - first));
        strip<T, BY_ROW, true>(few, int(step / W), {links + first * CHUNK, CHUNK}, write, step, rows + first * step,
                               step, first);
        for (int64_t r = first; r < first + few; r++)
            for (int64_t x = 0; x < step; x += W) {
                Vector<T> own = load(rows + r * step + x);
                for (int64_t c = first; c < r; c++) own += load(write + c * step + x) * links[r * CHUNK + c];
                store(rows + r * step + x, own);
                store(write + r * step + x, own * -beta[r]);
            }
    }
}

// Takes the keys and values of a chunk in: -> room.key, turned too, room.links, and what F and D are, in room.found and
// room.write.
template <class T>
static inline Rows<T> find_errors(const DeltaHead<T>& head, const Chunk& chunk, DeltaRoom<T>& room) {
    constexpr int W = LANES<T>;
    const DeltaRule& call = head.call;
    Rows<T> key = head.rows(call.key, chunk, call.width, room.key);
    Rows<T> value = head.rows(call.value, chunk, call.value_width, room.out);
    Matrix beta = matrix(call.beta, head.b, head.h);
    for (int64_t t = 0; t < chunk.count; t++) {
        room.beta[t] = read<T>(beta, (chunk.first + t) * beta.row);
        for (int64_t x = 0; x < head.step; x += W)
            store(room.found + t * head.step + x, -load(value.data + t * value.step + x));
    }
    turn(key, chunk.count, call.width, T(1), room.key_turned);
    lower_pairs(chunk.count, key, room.key_turned, call.width, true, room.links);
    product<T, BY_ROW, true>(chunk.count, int(head.step / W), {key.data, key.step}, room.state, head.step, room.found,
                             head.step, call.width);
    solve_down(chunk.count, room.links, room.beta, head.step, room.found, room.write);
    return key;
}

template <class T>
static inline void add_writes(const DeltaHead<T>& head, int64_t count, Rows<T> key, DeltaRoom<T>& room) {
    product<T, BY_INNER, true>(head.call.width, int(head.step / LANES<T>), {key.data, key.step}, room.write, head.step,
                               room.state, head.step, count);
}

template <class T>
static void delta_forward(const DeltaRule& call, int64_t number, char* memory) {
    constexpr int W = LANES<T>;
    DeltaHead<T> head(call, number);
    DeltaRoom<T> room;
    room.place(memory, call);
    widen_rows(call.before, number, call.width, call.value_width, room.state);
    Matrix to = matrix(call.out, head.b, head.h);
    for (int64_t index = 0; index < head.chunks(); index++) {
        Chunk chunk = head.chunk(index);
        Rows<T> key = find_errors(head, chunk, room);
        Rows<T> query = head.rows(call.query, chunk, call.width, room.query);
        lower_pairs(chunk.count, query, room.key_turned, call.width, false, room.pairs);
        product<T, BY_ROW, false>(chunk.count, int(head.step / W), {query.data, query.step}, room.state, head.step,
                                  room.out, head.step, call.width);
        for (int64_t q = 0; q < chunk.count; q += ROWS) {
            int few = int(least(ROWS, chunk.count - q));
            strip<T, BY_ROW, true>(few, int(head.step / W), {room.pairs + q * CHUNK, CHUNK}, room.write, head.step,
                                   room.out + q * head.step, head.step, q + few);
        }
        for (int64_t t = 0; t < chunk.count; t++) {
            T* row = room.out + t * head.step;
            for (int64_t x = 0; x < head.step; x += W) store(row + x, load(row + x) * T(call.scale));
            write_row(to, chunk.first + t, call.value_width, row);
        }
        add_writes(head, chunk.count, key, room);
    }
    narrow_rows(room.state, number, call.width, call.value_width, call.after);
}

}  // namespace regard::REGARD_ISA
