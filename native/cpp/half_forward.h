// Forward of bfloat16 inputs, in products of pairs: forward.h otherwise.
//
// Everything runs with 64 queries along the lanes: S^T = K Q^T, and O^T += V^T P, whose right factor is rows of S^T in
// pairs. Only what enters a product is bfloat16: scores are scaled, weighed and summed in float32. The sum of the
// weights is that of the unrounded ones: lse is made of it too, and out would be no nearer to float32 with the other.
#pragma once

#include "forward.h"
#include "half_rows.h"

namespace regard::REGARD_ISA {

struct HalfForwardRoom {
    float *scores, *factor, *largest, *total, *out, *out_rows;
    uint32_t *weights, *query, *value_pairs, *streams;
    uint16_t *rows, *key, *value;
    int64_t query_step, out_step;

    static int64_t bytes(const Attention& call, int64_t heads) {
        HalfForwardRoom room;
        return room.place(nullptr, call, heads);
    }

    int64_t place(char* start, const Attention& call, int64_t heads) {
        int64_t offset = 0, width = whole(call.width, INNER), value_width = whole(call.value_width, INNER);
        auto take = [&](auto*& room, int64_t count) {
            room = reinterpret_cast<decltype(+room)>(start + offset);
            offset += whole(count * int64_t(sizeof *room), 64);
        };
        query_step = width / 2 * TILE;
        out_step = value_width * TILE;
        take(scores, TILE * TILE);
        take(factor, call.dropout ? TILE * TILE : 0);
        take(largest, heads * TILE);
        take(total, heads * TILE);
        take(streams, heads * TILE);
        take(out, heads * out_step);
        take(out_rows, out_step);
        take(weights, PAIRS * TILE);
        take(query, heads * query_step);
        take(value_pairs, PAIRS * value_width);
        take(rows, TILE * most(width, value_width));
        take(key, TILE * width);
        take(value, out_step);
        return offset;
    }
};

// Scores of a tile: scaled, with terms and attn_mask.
template <class Products>
static inline void half_scores(const Attention& call, const Spot& spot, const Allowed& allowed, Halves key,
                               const uint32_t* query, float* scores) {
    bool changed = call.terms || call.attn_mask.data;
    int64_t count = spot.key.count, step = allowed.all ? TILE : INNER, pairs = (call.width + 1) / 2;
    for (int64_t k = 0; k < count; k += step) {
        int64_t few = least(step, count - k);
        Range lanes = seen(allowed.fast_from, allowed.fast_to, k, k + few, GROUP);
        if (lanes.empty()) continue;
        Products::template multiply<false>(few, (lanes.to - lanes.from) / GROUP, {key.data + k * key.step, key.step},
                                           query + lanes.from, TILE, scores + k * TILE + lanes.from, TILE, pairs);
        for (int64_t i = k; i < k + few; i++) {
            float *row = scores + i * TILE, *no_slope = nullptr;
            for (int64_t f = lanes.from; f < lanes.to; f += LANES<float>)
                store(row + f, load(row + f) * float(call.scale));
            if (changed) change_row<float, QUERIES>(call, spot, i, int(lanes.from), int(lanes.to), row, no_slope);
        }
    }
    if (count % 2)  // the last key's pair is no key
        for (int f = 0; f < TILE; f += LANES<float>) store(scores + count * TILE + f, splat(-INFINITE<float>));
}

// Weights relative to e^shift, rounded, in pairs of keys; pairs outside the ranges are 0. Adds up the sums. `factor` is
// what dropout multiplies with, or absent.
static inline void half_weigh(const Allowed& allowed, const float* scores, const float* factor, const float* shift,
                              float* total, uint32_t* weights) {
    static_assert(ROWS % 2 == 0, "a pair of keys has one range");
    constexpr int W = LANES<float>;
    for (int f = 0; f < TILE; f += W) {
        Vector<float> sums = load(total + f), base = load(shift + f);
        for (int64_t k = 0; k < whole(allowed.rows, INNER); k += 2) {
            uint32_t* to = weights + k / 2 * TILE + f;
            if (k >= allowed.rows || f >= allowed.fast_to[k / ROWS] || f + W <= allowed.fast_from[k / ROWS]) {
                store(to, Integers<float>{});
                continue;
            }
            int64_t at = k * TILE + f;
            // the difference first: where scores are huge, as under masks of -1e30, their products differ by more
            Vector<float> first = power_of_two((load(scores + at) - base) * float(LOG2_E));
            Vector<float> second = power_of_two((load(scores + at + TILE) - base) * float(LOG2_E));
            sums += first + second;
            if (factor) first *= load(factor + at), second *= load(factor + at + TILE);
            store(to, pair(first, second));
        }
        store(total + f, sums);
    }
}

// rescale for sums that are turned round.
static inline void half_rescale(const float* top, float* largest, float* total, float* out, int64_t width,
                                float* shift) {
    constexpr int W = LANES<float>;
    for (int f = 0; f < TILE; f += W) {
        Vector<float> before = load(largest + f), now = load(top + f);
        now = now > before + float(SLACK) ? now : before;
        store(largest + f, now);
        store(shift + f, now == -INFINITE<float> ? Vector<float>{} : now);
        Vector<float> kept = power_of_two((before - load(shift + f)) * float(LOG2_E));
        store(total + f, load(total + f) * kept);
        bool moved = false;
        for (int i = 0; i < W; i++) moved |= now[i] != before[i];
        for (int64_t x = 0; moved && x < width; x++) store(out + x * TILE + f, load(out + x * TILE + f) * kept);
    }
}

// One tile of keys for one head.
template <class Products>
static inline void half_forward_tile(const Attention& call, const Spot& spot, const Allowed& allowed, Halves key,
                                     Halves value, HalfForwardRoom& room, int64_t head) {
    float *largest = room.largest + head * TILE, *total = room.total + head * TILE;
    float* out = room.out + head * room.out_step;
    half_scores<Products>(call, spot, allowed, key, room.query + head * room.query_step, room.scores);

    alignas(64) float top[TILE], shift[TILE];
    hide_and_compare(allowed, room.scores, top);
    half_rescale(top, largest, total, out, call.value_width, shift);
    if (call.dropout)
        for (int64_t k = 0; k < whole(spot.key.count, 2); k++)
            keep_row<float, QUERIES>(call, spot, room.streams + head * TILE, k, room.factor + k * TILE);
    half_weigh(allowed, room.scores, call.dropout ? room.factor : nullptr, shift, total, room.weights);

    int64_t step = allowed.all ? TILE : INNER;
    for (int64_t q = 0; q < spot.query.count; q += step) {
        int64_t few = least(step, spot.query.count - q);
        Range keys = seen(allowed.slow_from, allowed.slow_to, q, q + few, INNER);
        if (keys.empty()) continue;
        const uint32_t* weights = room.weights + keys.from / 2 * TILE + q;
        Products::template multiply<true>(call.value_width, whole(few, GROUP) / GROUP,
                                          {value.data + keys.from, value.step}, weights, TILE, out + q, TILE,
                                          (keys.to - keys.from) / 2);
    }
}

// The queries of one head, and what out and lse hold already where they are to be joined with it.
static inline void half_begin(const Attention& call, const Spot& spot, bool join, HalfForwardRoom& room, int64_t head) {
    Halves query = halves_of(matrix(call.query, spot.b, spot.h), spot.query, call.width, room.rows);
    turn_pairs(query, spot.query.count, call.width, room.query + head * room.query_step);
    if (call.dropout) streams(call, spot, room.streams + head * TILE);
    const float* lse = static_cast<const float*>(call.lse) + (spot.b * call.heads + spot.h) * call.n;
    float* out = room.out + head * room.out_step;
    memset(out, 0, room.out_step * sizeof(float));
    for (int64_t q = 0; q < TILE; q++) {
        bool there = join && q < spot.query.count && lse[spot.query[q]] > -INFINITE<float>;
        room.largest[head * TILE + q] = there ? lse[spot.query[q]] : -INFINITE<float>;
        room.total[head * TILE + q] = there ? 1 : 0;
        if (!there) continue;
        read_row(matrix(call.out, spot.b, spot.h), spot.query[q], call.value_width, room.out_rows);
        for (int64_t x = 0; x < call.value_width; x++) out[x * TILE + q] = room.out_rows[x];
    }
}

// Writes out and lse of one head.
static inline void half_end(const Attention& call, const Spot& spot, HalfForwardRoom& room, int64_t head) {
    const float *total = room.total + head * TILE, *largest = room.largest + head * TILE;
    float* out = room.out + head * room.out_step;
    int64_t step = whole(call.value_width, GROUP);
    alignas(64) float share[TILE];
    for (int q = 0; q < TILE; q++) share[q] = total[q] == 0 ? 0.0f : 1 / total[q];
    for (int64_t x = 0; x < call.value_width; x++)
        for (int f = 0; f < TILE; f += LANES<float>)
            store(out + x * TILE + f, load(out + x * TILE + f) * load(share + f));
    turn_words(out, TILE * 4, step, TILE, room.out_rows, step * 4);
    Matrix to = matrix(call.out, spot.b, spot.h);
    float* lse = static_cast<float*>(call.lse) + (spot.b * call.heads + spot.h) * call.n;
    for (int64_t q = 0; q < spot.query.count; q++) {
        write_row(to, spot.query[q], call.value_width, room.out_rows + q * step);
        lse[spot.query[q]] = total[q] == 0 ? -INFINITE<float> : largest[q] + logarithm(total[q]);
    }
}

// forward_row for bfloat16.
template <class Products>
static void half_forward_row(const Attention& call, const Part& part, bool join, int64_t b, int64_t first,
                             int64_t heads, int64_t plane, int64_t row, char* memory) {
    Flushing flushing;
    Products units;  // this worker's until the end
    HalfForwardRoom room;
    room.place(memory, call, heads);
    int64_t g = first / (call.heads / call.groups);
    Spot spot = {b, first, places(part.query_rows, part.natural, row), {}};
    for (int64_t head = 0; head < heads; head++) {
        spot.h = first + head;
        half_begin(call, spot, join, room, head);
    }

    each_in_row(call, part, plane, row, spot, [&](const Allowed& allowed) {
        Halves value = halves_of(matrix(call.value, b, g), spot.key, call.value_width, room.rows);
        pair_rows(value, spot.key.count, call.value_width, room.value_pairs);
        value = turn_halves(room.value_pairs, call.value_width, room.value);
        Halves key = halves_of(matrix(call.key, b, g), spot.key, call.width, room.key);
        for (int64_t head = 0; head < heads; head++) {
            spot.h = first + head;
            half_forward_tile<Products>(call, spot, allowed, key, value, room, head);
        }
    });

    for (int64_t head = 0; head < heads; head++) {
        spot.h = first + head;
        half_end(call, spot, room, head);
    }
}

}  // namespace regard::REGARD_ISA
