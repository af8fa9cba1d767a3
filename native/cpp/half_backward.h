// Backward of bfloat16 inputs, in products of pairs: backward.h otherwise.
//
// Keys run along the lanes. S = Q K^T and dP = dO V^T take queries and their gradients as they lie. The gradients of
// keys and values are made turned round, dV^T += dO^T P and dK^T += Q^T dS, so that rows of P and of dS in pairs are
// right factors; dQ = dS K takes rows of dS as its left one. P and dS are rounded, every sum is float32.
#pragma once

#include "backward.h"
#include "half_rows.h"

namespace regard::REGARD_ISA {

struct HalfBackwardRoom {
    BackwardRoom<float> tile;  // weights, slopes, chain and factor only
    uint32_t *weights, *slopes, *key_turned, *value_turned, *key_pairs, *row_pairs;
    uint16_t *slope_rows, *rows, *query, *grad_out, *query_turned, *out_turned;
    float *grad_key, *grad_value, *grad_rows;

    static int64_t bytes(const Attention& call) {
        HalfBackwardRoom room;
        return most(room.place(nullptr, call), BackwardRoom<float>::bytes(call));  // backward_start has the latter
    }

    int64_t place(char* start, const Attention& call) {
        int64_t offset = 0, width = whole(call.width, INNER), value_width = whole(call.value_width, INNER);
        int64_t wide = most(width, value_width);
        auto take = [&](auto*& room, int64_t count) {
            room = reinterpret_cast<decltype(+room)>(start + offset);
            offset += whole(count * int64_t(sizeof *room), 64);
        };
        take(tile.weights, TILE * TILE);
        take(tile.slopes, TILE * TILE);
        take(tile.chain, TILE * TILE);
        take(tile.factor, TILE * TILE);
        take(weights, PAIRS * TILE);
        take(slopes, PAIRS * TILE);
        take(slope_rows, TILE * TILE);
        take(key_turned, width / 2 * TILE);
        take(value_turned, value_width / 2 * TILE);
        take(key_pairs, PAIRS * width);
        take(row_pairs, PAIRS * wide);
        take(rows, TILE * wide);
        take(query, TILE * width);
        take(grad_out, TILE * value_width);
        take(query_turned, TILE * width);
        take(out_turned, TILE * value_width);
        take(grad_key, TILE * width);
        take(grad_value, TILE * value_width);
        take(grad_rows, TILE * wide);
        return offset;
    }
};

// Rows of weights and slopes `q` and q + 1, rounded: in pairs, and those of the slopes as rows too. What is outside the
// lanes, or no query, is 0; what is no key is hidden by the mask of its tile, so it is 0 already.
static inline void round_rows(const Spot& spot, int64_t q, Range lanes, HalfBackwardRoom& room) {
    auto read = [&](const float* from, int64_t row, int f) {
        bool there = row < spot.query.count && f >= lanes.from && f < lanes.to;
        return there ? load(from + row * TILE + f) : Vector<float>{};
    };
    const float *weight = room.tile.weights, *slope = room.tile.slopes;
    uint32_t *weights = room.weights + q / 2 * TILE, *slopes = room.slopes + q / 2 * TILE;
    for (int f = 0; f < TILE; f += LANES<float>) {
        store(weights + f, pair(read(weight, q, f), read(weight, q + 1, f)));
        store(slopes + f, pair(read(slope, q, f), read(slope, q + 1, f)));
    }
    uint16_t *first = room.slope_rows + q * TILE, *second = first + TILE;
    for (int f = 0; f < TILE; f++) first[f] = uint16_t(slopes[f]), second[f] = uint16_t(slopes[f] >> 16);
}

// Weights of a tile and the gradient of its scores.
template <class Products>
static inline void half_slopes(const AttentionGradients& grad, const Spot& spot, int64_t slot, const Allowed& allowed,
                               Halves query, Halves out, HalfBackwardRoom& room) {
    const Attention& call = grad.call;
    const float* lse = static_cast<const float*>(call.lse) + (spot.b * call.heads + spot.h) * call.n;
    const float* mean = static_cast<const float*>(grad.mean) + (spot.b * call.heads + spot.h) * call.n;
    uint32_t stream[TILE];
    if (call.dropout) streams(call, spot, stream);
    for (int64_t q = 0; q < spot.query.count; q += INNER) {
        int64_t few = least(INNER, spot.query.count - q);
        Range lanes = seen(allowed.fast_from, allowed.fast_to, q, q + few, GROUP);
        if (!lanes.empty()) {
            int64_t groups = (lanes.to - lanes.from) / GROUP, at = q * TILE + lanes.from;
            Halves queries = {query.data + q * query.step, query.step}, outs = {out.data + q * out.step, out.step};
            const uint32_t *keys = room.key_turned + lanes.from, *values = room.value_turned + lanes.from;
            Products::template multiply<false>(few, groups, queries, keys, TILE, room.tile.weights + at, TILE,
                                               (call.width + 1) / 2);
            Products::template multiply<false>(few, groups, outs, values, TILE, room.tile.slopes + at, TILE,
                                               (call.value_width + 1) / 2);
        }
        for (int64_t i = q; !lanes.empty() && i < q + few; i++) {
            float *scores = room.tile.weights + i * TILE, own = lse[spot.query[i]];
            for (int64_t f = lanes.from; f < lanes.to; f += LANES<float>)
                store(scores + f, load(scores + f) * float(call.scale));
            slope_row(grad, spot, slot, allowed, i, int(lanes.from), int(lanes.to),
                      own == -INFINITE<float> ? INFINITE<float> : own, mean[spot.query[i]], stream, room.tile);
        }
        for (int64_t i = q; i < q + INNER; i += 2) round_rows(spot, i, lanes, room);
    }
}

// Adds dS K to the gradients of the queries.
template <class Products>
static inline void half_query_gradients(const AttentionGradients& grad, const Spot& spot, int64_t slot,
                                        const Allowed& allowed, HalfBackwardRoom& room) {
    const Attention& call = grad.call;
    int64_t step = allowed.all ? TILE : INNER, width = whole(call.width, GROUP);
    Matrix to = matrix(grad.query, spot.b, spot.h);
    float* sums = reinterpret_cast<float*>(to.data) + slot * grad.query_slot;
    bool direct = to.column == 1 && width == call.width && !spot.query.rows;
    for (int64_t q = 0; q < spot.query.count; q += step) {
        int64_t few = least(step, spot.query.count - q);
        Range keys = seen(allowed.fast_from, allowed.fast_to, q, q + few, INNER);
        if (keys.empty()) continue;
        Halves slopes = {room.slope_rows + q * TILE + keys.from, TILE};
        const uint32_t* key = room.key_pairs + keys.from / 2 * width;
        int64_t pairs = (keys.to - keys.from) / 2;
        if (direct && few % GROUP == 0) {
            float* own = sums + spot.query[q] * to.row;
            Products::template multiply<true>(few, width / GROUP, slopes, key, width, own, to.row, pairs);
            continue;
        }
        Products::template multiply<false>(few, width / GROUP, slopes, key, width, room.grad_rows, width, pairs);
        for (int64_t i = 0; i < few; i++)
            for (int64_t x = 0; x < call.width; x++)
                sums[spot.query[q + i] * to.row + x * to.column] += room.grad_rows[i * width + x];
    }
}

// One tile of queries of one head, for the keys of a column.
template <class Products>
static inline void half_backward_tile(const AttentionGradients& grad, const Spot& spot, int64_t slot,
                                      const Allowed& allowed, HalfBackwardRoom& room) {
    const Attention& call = grad.call;
    int64_t count = spot.query.count;
    Halves query = halves_of(matrix(call.query, spot.b, spot.h), spot.query, call.width, room.query);
    Halves out = halves_of(matrix(grad.grad_out, spot.b, spot.h), spot.query, call.value_width, room.grad_out);
    half_slopes<Products>(grad, spot, slot, allowed, query, out, room);

    pair_rows(query, count, call.width, room.row_pairs);
    query = turn_halves(room.row_pairs, call.width, room.query_turned);
    pair_rows(out, count, call.value_width, room.row_pairs);
    out = turn_halves(room.row_pairs, call.value_width, room.out_turned);
    int64_t step = allowed.all ? TILE : INNER;
    for (int64_t k = 0; k < spot.key.count; k += step) {
        int64_t few = least(step, spot.key.count - k), groups = whole(few, GROUP) / GROUP;
        Range queries = seen(allowed.slow_from, allowed.slow_to, k, k + few, INNER);
        if (queries.empty()) continue;
        int64_t at = queries.from / 2 * TILE + k, pairs = (queries.to - queries.from) / 2;
        Halves outs = {out.data + queries.from, out.step}, own = {query.data + queries.from, query.step};
        Products::template multiply<true>(call.value_width, groups, outs, room.weights + at, TILE, room.grad_value + k,
                                          TILE, pairs);
        Products::template multiply<true>(call.width, groups, own, room.slopes + at, TILE, room.grad_key + k, TILE,
                                          pairs);
    }
    half_query_gradients<Products>(grad, spot, slot, allowed, room);
}

// The keys and values of a column, in all orders that its tiles want.
static inline void half_column(const Attention& call, const Spot& spot, int64_t g, HalfBackwardRoom& room) {
    Halves value = halves_of(matrix(call.value, spot.b, g), spot.key, call.value_width, room.rows);
    turn_pairs(value, spot.key.count, call.value_width, room.value_turned);
    Halves key = halves_of(matrix(call.key, spot.b, g), spot.key, call.width, room.rows);
    turn_pairs(key, spot.key.count, call.width, room.key_turned);
    pair_rows(key, spot.key.count, call.width, room.key_pairs);
}

// Writes, or adds, the gradient of a column from its sums turned round.
static inline void half_put(const Matrix& to, const Places& places, int64_t width, const float* turned, bool add,
                            HalfBackwardRoom& room) {
    int64_t step = whole(width, GROUP);
    turn_words(turned, TILE * 4, step, TILE, room.grad_rows, step * 4);
    put_rows(to, places, width, room.grad_rows, step, add);
}

// backward_column for bfloat16.
template <class Products>
static void half_backward_column(const AttentionGradients& grad, const Part& part, int64_t slot, int64_t b, int64_t g,
                                 int64_t column, char* memory) {
    Flushing flushing;
    Products units;  // this worker's until the end
    const Attention& call = grad.call;
    HalfBackwardRoom room;
    room.place(memory, call);
    Spot spot = {b, 0, {}, places(part.key_rows, part.natural, column)};
    memset(room.grad_key, 0, whole(call.width, GROUP) * TILE * sizeof(float));
    memset(room.grad_value, 0, whole(call.value_width, GROUP) * TILE * sizeof(float));
    bool ready = false;
    each_in_column(call, part, g, column, spot, [](int64_t) {}, [&](const Allowed& allowed) {
        if (!ready) half_column(call, spot, g, room);
        ready = true;
        half_backward_tile<Products>(grad, spot, slot, allowed, room);
    });
    if (!ready && grad.accumulate) return;
    half_put(matrix(grad.key, b, g), spot.key, call.width, room.grad_key, grad.accumulate, room);
    half_put(matrix(grad.value, b, g), spot.key, call.value_width, room.grad_value, grad.accumulate, room);
}

}  // namespace regard::REGARD_ISA
