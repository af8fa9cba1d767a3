// Forward: one row of tiles at a time, by online softmax.
//
// Scores are made turned round, S^T = K (scale Q)^T: 64 queries run along the lanes, so the largest score and the sum
// of each query need no step across lanes, keys are read number by number where they lie, and S^T is at once the left
// factor of the product with the values.
#pragma once

#include "ahead.h"
#include "walk.h"

namespace regard::REGARD_ISA {

// What a worker needs for one row of tiles of `heads` query heads that share a key head.
template <class T>
struct ForwardRoom {
    T *scores, *factor, *rows, *key, *value, *query, *out, *largest, *total;
    uint32_t* streams;
    int64_t query_step, out_step;

    static int64_t bytes(const Attention& call, int64_t heads) {
        ForwardRoom room;
        return room.place(nullptr, call, heads);
    }

    int64_t place(char* start, const Attention& call, int64_t heads) {
        int64_t offset = 0;
        auto take = [&](int64_t count) {
            T* found = reinterpret_cast<T*>(start + offset);
            offset += (count * int64_t(sizeof(T)) + 63) / 64 * 64;
            return found;
        };
        query_step = call.width * TILE;
        out_step = TILE * padded<T>(call.value_width);
        scores = take(TILE * TILE);
        factor = take(TILE);
        rows = take(TILE * call.width);
        key = take(TILE * call.width);
        value = take(out_step);
        query = take(heads * query_step);
        out = take(heads * out_step);
        largest = take(heads * TILE);
        total = take(heads * TILE);
        streams = reinterpret_cast<uint32_t*>(take(heads * TILE));
        return offset;
    }
};

// How far a score may rise above what its row is relative to before the sums are scaled anew: e^5 costs no precision,
// and most tiles find no larger score than that.
constexpr int SLACK = 5;

// Calls `each(k)` for the rows of scores that have something to compute in lanes `from` to `to`, `none(k)` for others.
template <class Each, class None>
static inline void rows_with(const Allowed& allowed, int from, int to, Each each, None none) {
    if (allowed.all) {
        for (int64_t k = 0; k < allowed.rows; k++) each(k);
        return;
    }
    for (int64_t start = 0, g = 0; start < allowed.rows; start += ROWS, g++) {
        int64_t stop = least(start + ROWS, allowed.rows);
        if (from >= allowed.fast_to[g] || to <= allowed.fast_from[g])
            for (int64_t k = start; k < stop; k++) none(k);
        else
            for (int64_t k = start; k < stop; k++) each(k);
    }
}

// The largest score of each query in a tile; hidden pairs become -infinity.
template <class T>
static inline void hide_and_compare(const Allowed& allowed, T* scores, T* found) {
    constexpr int W = LANES<T>;
    for (int f = 0; f < TILE; f += W) {
        Vector<T> top = splat(-INFINITE<T>);
        auto nothing = [](int64_t) {};
        if (allowed.all)
            rows_with(allowed, f, f + W, [&](int64_t k) { top = larger(load(scores + k * TILE + f), top); }, nothing);
        else
            rows_with(allowed, f, f + W, [&](int64_t k) {
                T* at = scores + k * TILE + f;
                Vector<T> s = choose<T>(allowed.slow[k] >> f, load(at), splat(-INFINITE<T>));
                store(at, s);
                top = larger(s, top);
            }, nothing);
        store(found + f, top);
    }
}

// Scores become weights relative to e^shift; pairs outside the ranges become 0. Adds up the sums.
template <class T>
static inline void weigh(const Allowed& allowed, T* scores, const T* shift, T* total) {
    constexpr int W = LANES<T>;
    for (int f = 0; f < TILE; f += W) {
        Vector<T> sums = load(total + f), base = load(shift + f);
        rows_with(allowed, f, f + W, [&](int64_t k) {
            T* at = scores + k * TILE + f;
            // the difference first: products of huge scores, as masks of -1e30 make them, are off by more than it
            Vector<T> weight = power_of_two((load(at) - base) * T(LOG2_E));
            sums += weight;
            store(at, weight);
        }, [&](int64_t k) { store(scores + k * TILE + f, Vector<T>{}); });
        store(total + f, sums);
    }
}

// Where a larger score than any before has come up, everything summed so far is scaled to it: -> what weights are
// relative to now. `fresh`: there is nothing yet.
template <class T>
static inline void rescale(bool fresh, const T* top, T* largest, T* total, T* out, int64_t out_row, T* shift) {
    constexpr int W = LANES<T>;
    alignas(64) T kept[TILE];
    Integers<T> moved = {};
    for (int f = 0; f < TILE; f += W) {
        Vector<T> before = load(largest + f), now = load(top + f);
        now = now > before + T(SLACK) ? now : before;
        store(largest + f, now);
        store(shift + f, now == -INFINITE<T> ? Vector<T>{} : now);
        Vector<T> share = power_of_two((before - load(shift + f)) * T(LOG2_E));
        store(kept + f, share);
        store(total + f, load(total + f) * share);
        moved |= now != before;
    }
    if (fresh || !any<T>(moved)) return;
    for (int64_t q = 0; q < TILE; q++)
        for (int64_t x = 0; x < out_row; x += W) store(out + q * out_row + x, load(out + q * out_row + x) * kept[q]);
}

// One tile of keys for one head.
template <class T>
static inline void forward_tile(const Attention& call, const Spot& spot, const Allowed& allowed, bool fresh, Rows<T> key,
                                Rows<T> value, ForwardRoom<T>& room, int64_t head, Ahead& ahead) {
    constexpr int W = LANES<T>;
    T *scores = room.scores, *out = room.out + head * room.out_step;
    T *largest = room.largest + head * TILE, *total = room.total + head * TILE;
    const T* query = room.query + head * room.query_step;
    bool changed = call.terms || call.attn_mask.data;
    for (int64_t k = 0, g = 0; k < spot.key.count; k += ROWS, g++) {
        int from = allowed.fast_from[g] / W, to = (allowed.fast_to[g] + W - 1) / W;
        int few = int(least(ROWS, spot.key.count - k));
        if (from == to) continue;
        T* at = scores + k * TILE + from * W;
        strip<T, BY_ROW, false>(few, to - from, {key.data + k * key.step, key.step}, query + from * W, TILE, at, TILE,
                                call.width);
        ahead.step();
        if (changed)
            for (int i = 0; i < few; i++)
                change_row<T, QUERIES>(call, spot, k + i, from * W, to * W, scores + (k + i) * TILE, static_cast<T*>(nullptr));
    }

    alignas(64) T top[TILE], shift[TILE];
    int64_t out_row = padded<T>(call.value_width);
    hide_and_compare(allowed, scores, top);
    rescale(fresh, top, largest, total, out, out_row, shift);
    weigh(allowed, scores, shift, total);
    if (call.dropout)
        for (int64_t k = 0; k < spot.key.count; k++) {
            keep_row<T, QUERIES>(call, spot, room.streams + head * TILE, k, room.factor);
            for (int f = 0; f < TILE; f += W) store(scores + k * TILE + f, load(scores + k * TILE + f) * load(room.factor + f));
        }

    for (int64_t q = 0, g = 0; q < spot.query.count; q += ROWS, g++) {
        int64_t from = allowed.slow_from[g], inner = allowed.slow_to[g] - from;
        if (inner <= 0) continue;
        strip<T, BY_INNER, true>(int(least(ROWS, spot.query.count - q)), int(out_row / W), {scores + from * TILE + q, TILE},
                                 value.data + from * value.step, value.step, out + q * out_row, out_row, inner);
        ahead.step();
    }
}

// What the next row of tiles of the same plane reads and this one does not.
template <class T>
static inline void look_ahead(const Attention& call, const Part& part, int64_t b, int64_t first, int64_t heads,
                              int64_t plane, int64_t row, Ahead& ahead) {
    if (row + 1 == part.rows) return;
    int64_t g = first / (call.heads / call.groups);
    const int64_t *tile = part.row_pointer + plane * part.rows + row, *column = part.column;
    Places query = places(part.query_rows, part.natural, row + 1);
    for (int64_t h = first; h < first + heads; h++) {
        ahead.add(matrix(call.query, b, h), query, call.width);
        ahead.add(matrix(call.out, b, h), query, call.value_width);
    }
    newcomers(column + tile[0], column + tile[1], column + tile[1], column + tile[2], [&](int64_t next) {
        Places key = places(part.key_rows, part.natural, next);
        ahead.add(matrix(call.key, b, g), key, call.width);
        ahead.add(matrix(call.value, b, g), key, call.value_width);
    });
    ahead.begin((tile[1] - tile[0]) * heads * 2 * (TILE / ROWS));
}

// Before the tiles of one head: its queries, scaled and turned, and with `join` what out and lse hold already.
template <class T>
static inline void open_rows(const Attention& call, const Spot& spot, bool join, ForwardRoom<T>& room, int64_t head) {
    Rows<T> query = rows_of<T, ONCE>(matrix(call.query, spot.b, spot.h), spot.query, call.width, room.rows);
    turn(query, spot.query.count, call.width, T(call.scale), room.query + head * room.query_step);
    if (call.dropout) streams(call, spot, room.streams + head * TILE);
    T *out = room.out + head * room.out_step, *lse = static_cast<T*>(call.lse) + (spot.b * call.heads + spot.h) * call.n;
    memset(out, 0, room.out_step * sizeof(T));
    for (int64_t q = 0; q < TILE; q++) {
        bool there = join && q < spot.query.count && lse[spot.query[q]] > -INFINITE<T>;
        room.largest[head * TILE + q] = there ? lse[spot.query[q]] : -INFINITE<T>;
        room.total[head * TILE + q] = there ? 1 : 0;
        if (there)
            read_row(matrix(call.out, spot.b, spot.h), spot.query[q], call.value_width, out + q * padded<T>(call.value_width));
    }
}

// After them: out and lse.
template <class T>
static inline void close_rows(const Attention& call, const Spot& spot, ForwardRoom<T>& room, int64_t head) {
    T* lse = static_cast<T*>(call.lse) + (spot.b * call.heads + spot.h) * call.n;
    int64_t out_row = padded<T>(call.value_width);
    Matrix to = matrix(call.out, spot.b, spot.h);
    bool direct = to.dtype == OWN<T> && to.column == 1 && out_row == call.value_width;
    for (int64_t q = 0; q < spot.query.count; q++) {
        T total = room.total[head * TILE + q], share = total == 0 ? T(0) : 1 / total;
        T* out = room.out + head * room.out_step + q * out_row;
        T* row = direct ? reinterpret_cast<T*>(to.data) + spot.query[q] * to.row : out;
        for (int64_t x = 0; x < out_row; x += LANES<T>) store(row + x, load(out + x) * share);
        if (!direct) write_row(to, spot.query[q], call.value_width, out);
        lse[spot.query[q]] = total == 0 ? -INFINITE<T> : room.largest[head * TILE + q] + logarithm(total);
    }
}

// One row of tiles of a part for `heads` query heads from `first` on, which share a key head and a plane. `join`: what
// out and lse hold already is attention over other keys.
template <class T>
static void forward_row(const Attention& call, const Part& part, bool join, int64_t b, int64_t first, int64_t heads,
                        int64_t plane, int64_t row, char* memory) {
    Flushing flushing;
    ForwardRoom<T> room;
    room.place(memory, call, heads);
    int64_t g = first / (call.heads / call.groups);
    Spot spot = {b, first, places(part.query_rows, part.natural, row), {}};
    auto each_head = [&](auto function) {
        for (int64_t head = 0; head < heads; head++) {
            spot.h = first + head;
            function(head);
        }
    };
    each_head([&](int64_t head) { open_rows(call, spot, join, room, head); });
    Ahead ahead;
    look_ahead<T>(call, part, b, first, heads, plane, row, ahead);
    bool fresh = !join;
    each_in_row(call, part, plane, row, spot, [&](const Allowed& allowed) {
        Rows<T> key = rows_of<T, ONCE>(matrix(call.key, b, g), spot.key, call.width, room.key);
        Rows<T> value = rows_of<T, OFTEN>(matrix(call.value, b, g), spot.key, call.value_width, room.value);
        each_head([&](int64_t head) { forward_tile(call, spot, allowed, fresh, key, value, room, head, ahead); });
        fresh = false;
    });
    each_head([&](int64_t head) { close_rows(call, spot, room, head); });
}

}  // namespace regard::REGARD_ISA
