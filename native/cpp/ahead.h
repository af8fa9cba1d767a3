// Fetching what the next row, or column, of tiles reads while the products of this one keep the arithmetic busy.
//
// The hardware foresees rows that follow each other; it does not foresee the next tile of a strided or random pattern.
#pragma once

#include "tile.h"

namespace regard::REGARD_ISA {

class Ahead {
public:
    // One more tile of rows to fetch.
    void add(const Matrix& from, const Places& places, int64_t width) {
        if (count_ == MOST || from.column != 1) return;
        int64_t bytes = bytes_of(from.dtype);
        spans_[count_++] = {from.data, from.row * bytes, width * bytes, places};
        left_ += places.count;
    }

    // Spreads the fetching over this many steps.
    void begin(int64_t steps) { pace_ = left_ / most(1, steps) + 1; }

    // Fetches a few rows; called between products.
    void step() {
        for (int64_t left = pace_; left > 0 && span_ < count_;) {
            const Span& span = spans_[span_];
            int64_t stop = least(row_ + left, span.places.count);
            left -= stop - row_;
            for (; row_ < stop; row_++) {
                const char* start = span.data + span.places[row_] * span.step;
                for (int64_t x = 0; x < span.width; x += LINE) __builtin_prefetch(start + x, 0, 2);
            }
            if (row_ == span.places.count) row_ = 0, span_++;
        }
    }

private:
    static constexpr int64_t LINE = 64, MOST = 48;
    struct Span {
        const char* data;
        int64_t step, width;  // in bytes
        Places places;
    };
    Span spans_[MOST];
    int64_t count_ = 0, left_ = 0, pace_ = 0, span_ = 0, row_ = 0;
};

// Calls `each` for the tiles of a sorted list that are not in the list before.
template <class Each>
static inline void newcomers(const int64_t* before, const int64_t* before_end, const int64_t* now, const int64_t* end, Each each) {
    for (; now < end; now++) {
        while (before < before_end && *before < *now) before++;
        if (before == before_end || *before != *now) each(*now);
    }
}

}  // namespace regard::REGARD_ISA
