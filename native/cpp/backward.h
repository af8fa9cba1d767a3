// Backward: one column of tiles at a time, the weights made again from lse.
//
//     P = exp(S - lse)    dV = P^T dO    dP = dO V^T    dS = P (dP - mean)    dK = scale dS^T Q    dQ = scale dS K
//
// where mean is each row's sum of P dP, which is dO . out, less the gradient of lse. Keys run along the lanes. The
// gradients of a tile's keys and values stay with the worker; those of the queries are added to in memory, where no
// other worker writes: a slice of the columns has gradients of its own, and the slices are added up in order.
#pragma once

#include "forward.h"

namespace regard::REGARD_ISA {

template <class T>
struct BackwardRoom {
    T *weights, *slopes, *chain, *factor, *key_turned, *value_turned, *key, *query, *grad_out, *rows;
    T *grad_key, *grad_value, *grad_query;

    static int64_t bytes(const Attention& call) {
        BackwardRoom room;
        return room.place(nullptr, call);
    }

    int64_t place(char* start, const Attention& call) {
        int64_t offset = 0, width = padded<T>(call.width), value_width = padded<T>(call.value_width);
        auto take = [&](int64_t count) {
            T* found = reinterpret_cast<T*>(start + offset);
            offset += (count * int64_t(sizeof(T)) + 63) / 64 * 64;
            return found;
        };
        weights = take(TILE * TILE);
        slopes = take(TILE * TILE);
        chain = take(TILE * TILE);
        factor = take(TILE * TILE);
        key_turned = take(call.width * TILE);
        value_turned = take(call.value_width * TILE);
        key = take(TILE * width);
        query = take(TILE * width);
        grad_out = take(TILE * value_width);
        rows = take(TILE * most(width, value_width));
        grad_key = take(TILE * width);
        grad_value = take(TILE * value_width);
        grad_query = take(TILE * width);
        return offset;
    }
};

// Adds a gradient of the scores to those of the biases and of attn_mask. `chain` holds the slope of the caps, 1 without.
template <class T>
static inline void spread_row(const AttentionGradients& grad, const Spot& spot, int64_t slot, int64_t s, int from, int to,
                              const T* slope, const T* chain) {
    const Attention& call = grad.call;
    int last = int(least(to, spot.key.count));
    if (grad.attn_mask) {
        const int64_t* step = grad.attn_mask_strides;
        int64_t row = call.attn_mask_row ? call.attn_mask_row[spot.b] : 0;
        T* sums = static_cast<T*>(grad.attn_mask) + slot * grad.attn_mask_slot + row * step[0] + spot.h * step[1] +
                  spot.query[s] * step[2];
        if (step[3])
            for (int f = from; f < last; f++) sums[spot.key[f] * step[3]] += slope[f];
        else
            for (int f = from; f < last; f++) sums[0] += slope[f];
    }
    bool capped = false;  // terms after the last cap get the slope itself, those before it what passes through the cap
    for (int64_t t = call.terms - 1; t >= 0; t--) {
        const Difference& bias = call.term[t].bias;
        if (call.term[t].cap) {
            capped = true;
            continue;
        }
        if (!bias.gradient) continue;
        T* sums = static_cast<T*>(bias.gradient) + ((slot * call.batch + spot.b) * call.heads + spot.h) * bias.length +
                  bias.shift - code(bias.query_code, spot.query, s);
        for (int f = from; f < last; f++)
            sums[code(bias.key_code, spot.key, f)] += capped ? slope[f] * chain[f] : slope[f];
    }
}

// Weights and the gradient of the scores for row `s` of a tile, lanes `from` to `to`: from the products of queries and
// keys, and of the gradients of the output and values.
template <class T>
static inline void slope_row(const AttentionGradients& grad, const Spot& spot, int64_t slot, const Allowed& allowed,
                             int64_t s, int from, int to, T lse, T mean, const uint32_t* streams, BackwardRoom<T>& room) {
    constexpr int W = LANES<T>;
    const Attention& call = grad.call;
    T *weights = room.weights + s * TILE, *slopes = room.slopes + s * TILE, *chain = room.chain + s * TILE;
    bool changed = call.terms || call.attn_mask.data;
    if (changed) change_row<T, KEYS>(call, spot, s, from, to, weights, chain);
    if (call.dropout) keep_row<T, KEYS>(call, spot, streams, s, room.factor);
    for (int f = from; f < to; f += W) {
        Vector<T> score = (load(weights + f) - lse) * T(LOG2_E);
        if (!allowed.all) score = choose<T>(allowed.slow[s] >> f, score, splat(-INFINITE<T>));
        Vector<T> weight = power_of_two(score), inner = load(slopes + f), kept = weight;
        if (call.dropout) {
            inner *= load(room.factor + f);
            kept *= load(room.factor + f);
        }
        store(weights + f, kept);
        // a weight of 0 has no gradient, whatever its value holds
        Vector<T> slope = weight == T(0) ? Vector<T>{} : weight * (inner - mean);
        store(slopes + f, changed ? slope : slope * T(call.scale));
    }
    if (!changed) return;
    spread_row(grad, spot, slot, s, from, to, slopes, chain);
    for (int f = from; f < to; f += W) store(slopes + f, load(slopes + f) * load(chain + f) * T(call.scale));
}

// Writes, or adds to, rows of a gradient.
template <class T>
static inline void put_rows(const Matrix& to, const Places& places, int64_t width, const T* from, int64_t step, bool add) {
    for (int64_t i = 0; i < places.count; i++, from += step) {
        T* row = reinterpret_cast<T*>(to.data) + places[i] * to.row;
        int64_t x = 0;
        if (to.column == 1)
            for (; x + LANES<T> <= width; x += LANES<T>) store(row + x, add ? load(row + x) + load(from + x) : load(from + x));
        for (; x < width; x++) row[x * to.column] = add ? row[x * to.column] + from[x] : from[x];
    }
}

// The gradient of the queries of one head, where a slice has its own.
template <class T>
static inline Matrix query_sums(const AttentionGradients& grad, int64_t slot, int64_t b, int64_t h) {
    Matrix found = matrix(grad.query, b, h);
    found.data += slot * grad.query_slot * int64_t(sizeof(T));
    return found;
}

// What the next column of tiles reads and this one does not.
template <class T>
static inline void look_ahead(const AttentionGradients& grad, const Part& part, int64_t slot, int64_t b, int64_t h, int64_t plane,
                              int64_t column, Ahead& ahead) {
    const Attention& call = grad.call;
    const int64_t* tile = part.column_pointer + plane * part.columns + column;
    if (column + 1 == part.columns) return;
    int64_t g = h / (call.heads / call.groups);
    Places key = places(part.key_rows, part.natural, column + 1);
    ahead.add(matrix(call.key, b, g), key, call.width);
    ahead.add(matrix(call.value, b, g), key, call.value_width);
    ahead.add(matrix(grad.key, b, g), key, call.width);
    ahead.add(matrix(grad.value, b, g), key, call.value_width);
    newcomers(part.row + tile[0], part.row + tile[1], part.row + tile[1], part.row + tile[2], [&](int64_t next) {
        Places query = places(part.query_rows, part.natural, next - plane * part.rows);
        ahead.add(matrix(call.query, b, h), query, call.width);
        ahead.add(matrix(grad.grad_out, b, h), query, call.value_width);
        ahead.add(query_sums<T>(grad, slot, b, h), query, call.width);
    });
    ahead.begin((tile[1] - tile[0]) * 2 * (TILE / ROWS));
}

// One tile of queries of one head, for the keys of a column.
template <class T>
struct BackwardTile {
    static constexpr int W = LANES<T>;
    const AttentionGradients& grad;
    const Spot& spot;
    int64_t slot;
    const Allowed& allowed;
    Rows<T> key;
    BackwardRoom<T>& room;
    Ahead& ahead;

    const Attention& call = grad.call;
    int64_t width = padded<T>(call.width), value_width = padded<T>(call.value_width);
    Rows<T> query = rows_of<T, OFTEN>(matrix(call.query, spot.b, spot.h), spot.query, call.width, room.query);
    Rows<T> out = rows_of<T, OFTEN>(matrix(grad.grad_out, spot.b, spot.h), spot.query, call.value_width, room.grad_out);

    void run() {
        weigh();
        add_to_keys();
        add_to_queries();
    }

    // Weights and the gradients of the scores; both are 0 outside the ranges.
    void weigh() {
        int64_t head = (spot.b * call.heads + spot.h) * call.n;
        const T *lse = static_cast<const T*>(call.lse) + head, *mean = static_cast<const T*>(grad.mean) + head;
        uint32_t stream[TILE];
        if (call.dropout) streams(call, spot, stream);
        for (int64_t q = 0, g = 0; q < spot.query.count; q += ROWS, g++) {
            int from = allowed.fast_from[g] / W * W, to = (allowed.fast_to[g] + W - 1) / W * W;
            int few = int(least(ROWS, spot.query.count - q));
            for (int i = 0; i < few; i++)
                for (int f = 0; f < TILE; f += W)
                    if (f < from || f >= to) {
                        store(room.weights + (q + i) * TILE + f, Vector<T>{});
                        store(room.slopes + (q + i) * TILE + f, Vector<T>{});
                    }
            if (from == to) continue;
            strip<T, BY_ROW, false>(few, (to - from) / W, {query.data + q * query.step, query.step}, room.key_turned + from,
                                    TILE, room.weights + q * TILE + from, TILE, call.width);
            strip<T, BY_ROW, false>(few, (to - from) / W, {out.data + q * out.step, out.step}, room.value_turned + from,
                                    TILE, room.slopes + q * TILE + from, TILE, call.value_width);
            ahead.step();
            for (int i = 0; i < few; i++) {
                T own = lse[spot.query[q + i]];
                slope_row(grad, spot, slot, allowed, q + i, from, to, own == -INFINITE<T> ? INFINITE<T> : own,
                          mean[spot.query[q + i]], stream, room);
            }
        }
    }

    void add_to_keys() {
        for (int64_t k = 0, g = 0; k < spot.key.count; k += ROWS, g++) {
            int64_t from = allowed.slow_from[g], inner = allowed.slow_to[g] - from;
            int few = int(least(ROWS, spot.key.count - k));
            if (inner <= 0) continue;
            strip<T, BY_INNER, true>(few, int(value_width / W), {room.weights + from * TILE + k, TILE},
                                     out.data + from * out.step, out.step, room.grad_value + k * value_width, value_width,
                                     inner);
            strip<T, BY_INNER, true>(few, int(width / W), {room.slopes + from * TILE + k, TILE},
                                     query.data + from * query.step, query.step, room.grad_key + k * width, width, inner);
            ahead.step();
        }
    }

    void add_to_queries() {
        Matrix to = query_sums<T>(grad, slot, spot.b, spot.h);
        bool in_place = to.column == 1 && width == call.width && !spot.query.rows;
        for (int64_t q = 0, g = 0; q < spot.query.count; q += ROWS, g++) {
            int64_t from = allowed.fast_from[g], inner = allowed.fast_to[g] - from;
            int few = int(least(ROWS, spot.query.count - q));
            if (inner <= 0) continue;
            Left<T> slopes = {room.slopes + q * TILE + from, TILE};
            const T* right = key.data + from * key.step;
            if (in_place) {
                T* sums = reinterpret_cast<T*>(to.data) + spot.query[q] * to.row;
                strip<T, BY_ROW, true>(few, int(width / W), slopes, right, key.step, sums, to.row, inner);
            } else {
                strip<T, BY_ROW, false>(few, int(width / W), slopes, right, key.step, room.grad_query, width, inner);
                put_rows(to, spot.query.some(q, few), call.width, room.grad_query, width, true);
            }
        }
    }
};

// One column of tiles of a part, for all query heads of a key head that the part concerns.
template <class T>
static void backward_column(const AttentionGradients& grad, const Part& part, int64_t slot, int64_t b, int64_t g,
                            int64_t column, char* memory) {
    Flushing flushing;
    const Attention& call = grad.call;
    BackwardRoom<T> room;
    room.place(memory, call);
    int64_t width = padded<T>(call.width), value_width = padded<T>(call.value_width);
    Spot spot = {b, 0, {}, places(part.key_rows, part.natural, column)};
    memset(room.grad_key, 0, TILE * width * sizeof(T));
    memset(room.grad_value, 0, TILE * value_width * sizeof(T));
    bool ready = false;
    Rows<T> key = {};
    Ahead ahead;
    auto look = [&](int64_t plane) {
        ahead = {};
        look_ahead<T>(grad, part, slot, b, spot.h, plane, column, ahead);
    };
    each_in_column(call, part, g, column, spot, look, [&](const Allowed& allowed) {
        if (!ready) {
            ready = true;
            Rows<T> value = rows_of<T, ONCE>(matrix(call.value, b, g), spot.key, call.value_width, room.rows);
            turn(value, spot.key.count, call.value_width, T(1), room.value_turned);
            key = rows_of<T, OFTEN>(matrix(call.key, b, g), spot.key, call.width, room.key);
            turn(key, spot.key.count, call.width, T(call.scale), room.key_turned);
        }
        BackwardTile<T>{grad, spot, slot, allowed, key, room, ahead}.run();
    });
    if (!ready && grad.accumulate) return;
    put_rows(matrix(grad.key, b, g), spot.key, call.width, room.grad_key, width, grad.accumulate);
    put_rows(matrix(grad.value, b, g), spot.key, call.value_width, room.grad_value, value_width, grad.accumulate);
}

// Before the columns, for one head of one sequence: the mean of each row, and zeros for the gradients of its queries.
template <class T>
static void backward_start(const AttentionGradients& grad, int64_t b, int64_t h, char* memory) {
    const Attention& call = grad.call;
    int64_t place = (b * call.heads + h) * call.n, width = padded<T>(call.value_width);
    const T* grad_lse = grad.grad_lse ? static_cast<const T*>(grad.grad_lse) + place : nullptr;
    T *mean = static_cast<T*>(grad.mean) + place, *room = reinterpret_cast<T*>(memory);
    Matrix out = matrix(call.out, b, h), slope = matrix(grad.grad_out, b, h);
    for (int64_t q = 0; q < call.n; q++) {
        Places one = {1, q, nullptr};
        Rows<T> a = rows_of<T, OFTEN>(out, one, call.value_width, room);
        Rows<T> c = rows_of<T, OFTEN>(slope, one, call.value_width, room + width);
        Vector<T> sums = {};
        for (int64_t x = 0; x < width; x += LANES<T>) sums += load(a.data + x) * load(c.data + x);
        mean[q] = sum<T>(sums) - (grad_lse ? grad_lse[q] : T(0));
    }
    for (int64_t slot = 0; slot < grad.slots; slot++) {
        Matrix to = query_sums<T>(grad, slot, b, h);
        for (int64_t q = 0; q < call.n; q++)
            for (int64_t x = 0; x < call.width; x++) reinterpret_cast<T*>(to.data)[q * to.row + x * to.column] = 0;
    }
}

// After them: the gradients that the slices found for the queries of one head of one sequence, added up in order.
template <class T>
static void backward_sum(const AttentionGradients& grad, int64_t b, int64_t h) {
    const Attention& call = grad.call;
    Matrix to = matrix(grad.query, b, h);
    T* sums = reinterpret_cast<T*>(to.data);
    for (int64_t slot = 1; slot < grad.slots; slot++)
        for (int64_t q = 0; q < call.n; q++)
            for (int64_t x = 0; x < call.width; x++)
                sums[q * to.row + x * to.column] += sums[slot * grad.query_slot + q * to.row + x * to.column];
}

}  // namespace regard::REGARD_ISA
