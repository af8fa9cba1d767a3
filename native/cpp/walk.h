// The tiles of a row, or of a column, of a part, whatever computes them.
#pragma once

#include "product.h"
#include "scores.h"

namespace regard::REGARD_ISA {

// Calls `visit(allowed)` for the tiles of a row that have an allowed pair; `spot.key` stands at each.
template <class Visit>
static inline void each_in_row(const Attention& call, const Part& part, int64_t plane, int64_t row, Spot& spot, Visit visit) {
    int64_t place = plane * part.rows + row;
    for (int64_t t = part.row_pointer[place]; t < part.row_pointer[place + 1]; t++) {
        spot.key = places(part.key_rows, part.natural, part.column[t]);
        int64_t mask = part.mask[t];
        Allowed allowed;
        if (allow(allowed, mask < 0 ? nullptr : part.mask_by_key + mask * TILE,
                  mask < 0 ? nullptr : part.mask_by_query + mask * TILE, spot.key.count, spot.query.count,
                  kept_keys(call, spot.b, spot.key), ~uint64_t(0), ROWS))
            visit(allowed);
    }
}

// Calls `begin(plane)` for each query head of key head `g` that the part concerns, then `visit(allowed)` for those tiles
// of a column that have an allowed pair; `spot.h` and `spot.query` stand at each.
template <class Begin, class Visit>
static inline void each_in_column(const Attention& call, const Part& part, int64_t g, int64_t column, Spot& spot, Begin begin,
                                  Visit visit) {
    uint64_t kept = kept_keys(call, spot.b, spot.key);
    for (int64_t index = 0; index < part.heads; index++) {
        spot.h = part.head[index];
        if (spot.h / (call.heads / call.groups) != g) continue;
        int64_t plane = (part.planes_batch > 1 ? spot.b : 0) * (part.by_head ? part.heads : 1) + (part.by_head ? index : 0);
        int64_t place = plane * part.columns + column;
        begin(plane);
        for (int64_t t = part.column_pointer[place]; t < part.column_pointer[place + 1]; t++) {
            int64_t mask = part.mask[part.by_column[t]];
            spot.query = places(part.query_rows, part.natural, part.row[t] - plane * part.rows);
            Allowed allowed;
            if (allow(allowed, mask < 0 ? nullptr : part.mask_by_query + mask * TILE,
                      mask < 0 ? nullptr : part.mask_by_key + mask * TILE, spot.query.count, spot.key.count, ~uint64_t(0),
                      kept, ROWS))
                visit(allowed);
        }
    }
}

}  // namespace regard::REGARD_ISA
