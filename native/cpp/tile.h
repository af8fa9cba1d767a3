// Tiles of queries or keys: which rows, and how their numbers come into place.
#pragma once

#include "calls.h"
#include "vector.h"

namespace regard::REGARD_ISA {

constexpr int TILE = 64;

// Up to 64 rows that stand together in the order of a part.
struct Places {
    int64_t count;        // of rows that exist
    int64_t first;        // the first one
    const int64_t* rows;  // all of them; absent where they are first, first + 1, ...
    int64_t operator[](int64_t i) const { return rows ? rows[i] : first + i; }

    // A few of them.
    Places some(int64_t from, int64_t few) const { return {few, (*this)[from], rows ? rows + from : nullptr}; }

    // The distance from each to the next where that is always the same, else 0.
    int64_t step() const {
        if (!rows) return 1;
        int64_t found = count > 1 ? rows[1] - rows[0] : 1;
        for (int64_t i = 2; i < count; i++)
            if (rows[i] - rows[i - 1] != found) return 0;
        return found;
    }
};

static inline Places places(const int64_t* rows, bool natural, int64_t tile) {
    const int64_t* mine = rows + tile * TILE;
    int64_t count = TILE;
    while (count && mine[count - 1] < 0) count--;  // padding stands at the end
    return {count, count ? mine[0] : 0, natural ? nullptr : mine};
}

// One matrix of a tensor: the rows of one head of one sequence.
struct Matrix {
    char* data;
    int64_t row, column;
    Dtype dtype;
};

static inline int64_t bytes_of(Dtype dtype) { return dtype == FLOAT64 ? 8 : dtype == FLOAT32 ? 4 : 2; }

static inline Matrix matrix(const Tensor& t, int64_t b, int64_t h) {
    return {static_cast<char*>(t.data) + (b * t.batch + h * t.head) * bytes_of(t.dtype), t.row, t.column, t.dtype};
}

// A width in whole vectors.
template <class T>
constexpr int64_t padded(int64_t width) { return (width + LANES<T> - 1) / LANES<T> * LANES<T>; }

template <class T>
constexpr Dtype OWN = sizeof(T) == 8 ? FLOAT64 : FLOAT32;

// --- half precision --------------------------------------------------------------------------------------------------

static inline float from_bits(uint32_t bits) {
    float value;
    memcpy(&value, &bits, 4);
    return value;
}

static inline uint32_t to_bits(float value) {
    uint32_t bits;
    memcpy(&bits, &value, 4);
    return bits;
}

static inline float widen_bfloat16(uint16_t half) { return from_bits(uint32_t(half) << 16); }

static inline uint16_t narrow_bfloat16(float value) {  // to nearest, ties to even
    uint32_t bits = to_bits(value);
    if ((bits & 0x7fffffff) > 0x7f800000) return uint16_t(bits >> 16 | 0x40);
    return uint16_t((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

static inline float widen_float16(uint16_t half) {
#if defined(__F16C__)
    return _cvtsh_ss(half);
#else
    // The exponent is too small by 112, which a product mends, also of subnormal numbers; infinity and NaN by hand.
    uint32_t magnitude = uint32_t(half & 0x7fff) << 13;
    uint32_t bits = to_bits(from_bits(magnitude) * from_bits(0x77800000));
    if (magnitude >= 0x0f800000) bits = magnitude | 0x7f800000;
    return from_bits(bits | uint32_t(half & 0x8000) << 16);
#endif
}

static inline uint16_t narrow_float16(float value) {
#if defined(__F16C__)
    return _cvtss_sh(value, 0);
#else
    uint32_t bits = to_bits(value), sign = bits >> 16 & 0x8000, magnitude = bits & 0x7fffffff;
    if (magnitude > 0x7f800000) return uint16_t(sign | 0x7e00);
    if (magnitude >= 0x477ff000) return uint16_t(sign | 0x7c00);  // rounds to more than 65504
    if (magnitude < 0x38800000)                                   // subnormal: let the addition round
        return uint16_t(sign | (to_bits(from_bits(magnitude) + 0.5f) - 0x3f000000));
    magnitude += 0xfff + (magnitude >> 13 & 1);
    return uint16_t(sign | (magnitude - 0x38000000) >> 13);
#endif
}

// --- reading and writing rows ----------------------------------------------------------------------------------------

template <class T>
static inline T read(const Matrix& from, int64_t at) {
    switch (from.dtype) {
        case FLOAT32: return T(reinterpret_cast<const float*>(from.data)[at]);
        case FLOAT64: return T(reinterpret_cast<const double*>(from.data)[at]);
        case BFLOAT16: return T(widen_bfloat16(reinterpret_cast<const uint16_t*>(from.data)[at]));
        default: return T(widen_float16(reinterpret_cast<const uint16_t*>(from.data)[at]));
    }
}

template <class T>
static inline void read_row(const Matrix& from, int64_t row, int64_t width, T* to) {
    int64_t start = row * from.row, x = 0;
    if (from.column == 1 && from.dtype == OWN<T>) {
        const T* own = reinterpret_cast<const T*>(from.data) + start;
        for (; x + LANES<T> <= width; x += LANES<T>) store(to + x, load(own + x));  // a call of memcpy takes longer
        for (; x < width; x++) to[x] = own[x];
        return;
    }
    if (from.column == 1 && from.dtype == BFLOAT16) {
        const uint16_t* half = reinterpret_cast<const uint16_t*>(from.data) + start;
        for (; x < width; x++) to[x] = T(widen_bfloat16(half[x]));
        return;
    }
    if (from.column == 1 && from.dtype == FLOAT16) {
        const uint16_t* half = reinterpret_cast<const uint16_t*>(from.data) + start;
#if defined(__AVX512F__)
        if constexpr (sizeof(T) == 4)
            for (; x + 16 <= width; x += 16)
                _mm512_storeu_ps(to + x, _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)(half + x))));
#endif
        for (; x < width; x++) to[x] = T(widen_float16(half[x]));
        return;
    }
    for (; x < width; x++) to[x] = read<T>(from, start + x * from.column);
}

template <class T>
static inline void write_row(const Matrix& to, int64_t row, int64_t width, const T* from) {
    int64_t start = row * to.row;
    if (to.dtype == OWN<T> && to.column == 1) {
        memcpy(to.data + start * int64_t(sizeof(T)), from, width * sizeof(T));
    } else if (to.dtype == OWN<T>) {
        for (int64_t x = 0; x < width; x++) reinterpret_cast<T*>(to.data)[start + x * to.column] = from[x];
    } else {
        uint16_t* half = reinterpret_cast<uint16_t*>(to.data);
        for (int64_t x = 0; x < width; x++)
            half[start + x * to.column] =
                to.dtype == BFLOAT16 ? narrow_bfloat16(float(from[x])) : narrow_float16(float(from[x]));
    }
}

// Rows of numbers one can compute with.
template <class T>
struct Rows {
    const T* data;
    int64_t step;
};

// How often a tile's rows are read, number by number or turned: ONCE; or as vectors for every strip of a product: OFTEN.
// Rows at a large distance share a few sets of the cache, so that OFTEN they are better copied.
enum Reads { ONCE, OFTEN };

// The rows of a tile, where they lie if that will do, else copied to `room`; OFTEN padded to whole vectors.
template <class T, Reads READS>
static inline Rows<T> rows_of(const Matrix& from, const Places& places, int64_t width, T* room) {
    int64_t wide = READS == OFTEN ? padded<T>(width) : width;
    if (from.dtype == OWN<T> && from.column == 1 && width == wide) {
        int64_t step = READS == OFTEN ? !places.rows : places.step();
        if (step) return {reinterpret_cast<const T*>(from.data) + places.first * from.row, step * from.row};
    }
    for (int64_t i = 0; i < places.count; i++) {
        read_row(from, places[i], width, room + i * wide);
        for (int64_t x = width; x < wide; x++) room[i * wide + x] = 0;
    }
    return {room, wide};
}

// --- turning tiles round ---------------------------------------------------------------------------------------------

// A square of 16 x 16 numbers turned round, from rows `step` apart to rows TILE apart, each times `scale`.
#if defined(__AVX512F__)
static inline void turn_square(const float* from, int64_t step, float* to, float scale) {
    __m512 row[16], other[16];
    const __m512 factor = _mm512_set1_ps(scale);
    for (int i = 0; i < 16; i++) row[i] = _mm512_mul_ps(_mm512_loadu_ps(from + i * step), factor);
    for (int i = 0; i < 16; i += 2) {
        other[i] = _mm512_unpacklo_ps(row[i], row[i + 1]);
        other[i + 1] = _mm512_unpackhi_ps(row[i], row[i + 1]);
    }
    for (int i = 0; i < 16; i += 4) {
        __m512d a = (__m512d)other[i], b = (__m512d)other[i + 1], c = (__m512d)other[i + 2], d = (__m512d)other[i + 3];
        row[i] = (__m512)_mm512_unpacklo_pd(a, c);
        row[i + 1] = (__m512)_mm512_unpackhi_pd(a, c);
        row[i + 2] = (__m512)_mm512_unpacklo_pd(b, d);
        row[i + 3] = (__m512)_mm512_unpackhi_pd(b, d);
    }
    for (int i = 0; i < 4; i++) {  // row[4 a + i] holds columns i, i + 4, i + 8, i + 12 of rows 4 a ... 4 a + 3
        __m512 low = _mm512_shuffle_f32x4(row[i], row[i + 4], 0x88), high = _mm512_shuffle_f32x4(row[i], row[i + 4], 0xdd);
        __m512 more = _mm512_shuffle_f32x4(row[i + 8], row[i + 12], 0x88), most = _mm512_shuffle_f32x4(row[i + 8], row[i + 12], 0xdd);
        _mm512_storeu_ps(to + i * TILE, _mm512_shuffle_f32x4(low, more, 0x88));
        _mm512_storeu_ps(to + (i + 4) * TILE, _mm512_shuffle_f32x4(high, most, 0x88));
        _mm512_storeu_ps(to + (i + 8) * TILE, _mm512_shuffle_f32x4(low, more, 0xdd));
        _mm512_storeu_ps(to + (i + 12) * TILE, _mm512_shuffle_f32x4(high, most, 0xdd));
    }
}
#endif

// `count` rows of `width` numbers as `width` rows of TILE, each number times `scale`; absent rows become zeros.
template <class T>
static inline void turn(Rows<T> from, int64_t count, int64_t width, T scale, T* to) {
    int64_t done = 0;  // rows and columns in whole squares
#if defined(__AVX512F__)
    if constexpr (sizeof(T) == 4) {
        done = width / 16 * 16;
        for (int64_t i = 0; i + 16 <= count; i += 16)
            for (int64_t x = 0; x < done; x += 16) turn_square(from.data + i * from.step + x, from.step, to + x * TILE + i, scale);
    }
#endif
    int64_t whole = done ? count / 16 * 16 : 0;
    for (int64_t x = 0; x < width; x++) {
        for (int64_t i = x < done ? whole : 0; i < count; i++) to[x * TILE + i] = from.data[i * from.step + x] * scale;
        for (int64_t i = count; i < TILE; i++) to[x * TILE + i] = 0;
    }
}

// --- who takes part --------------------------------------------------------------------------------------------------

// Which pairs of a tile take part, by the slow and by the fast side of its scores, and what that leaves to compute.
struct Allowed {
    bool all;              // every pair of the rows that exist
    uint64_t slow[TILE];   // bit f of word s
    int64_t rows, width;   // of the slow and the fast side, that exist
    // For each group of rows of the slow side, the first and the last + 1 of the fast side that any of them sees ...
    int fast_from[TILE], fast_to[TILE];
    // ... and the other way round.
    int slow_from[TILE], slow_to[TILE];
};

static inline uint64_t ones(int64_t count) { return count >= 64 ? ~uint64_t(0) : (uint64_t(1) << count) - 1; }

static inline void ranges(const uint64_t* words, int64_t rows, uint64_t exist, int group, int* from, int* to) {
    for (int64_t r = 0, g = 0; r < rows; r += group, g++) {
        uint64_t any = 0;
        for (int64_t i = r; i < least(r + group, rows); i++) any |= words[i];
        any &= exist;
        from[g] = any ? __builtin_ctzll(any) : 0;
        to[g] = any ? 64 - __builtin_clzll(any) : 0;
    }
}

// `slow` and `fast`: the mask's words from either side, absent where the pattern allows all; `slow_keeps` and
// `fast_keeps` have a bit for each row that takes part. Returns whether any pair does.
static inline bool allow(Allowed& found, const uint64_t* slow, const uint64_t* fast, int64_t rows, int64_t width,
                         uint64_t slow_keeps, uint64_t fast_keeps, int group) {
    found.rows = rows;
    found.width = width;
    slow_keeps &= ones(rows);
    fast_keeps &= ones(width);
    found.all = !slow && slow_keeps == ones(rows) && fast_keeps == ones(width);
    if (found.all) {
        for (int g = 0; g * group < TILE; g++) {
            found.fast_from[g] = 0, found.fast_to[g] = g * group < rows ? int(width) : 0;
            found.slow_from[g] = 0, found.slow_to[g] = g * group < width ? int(rows) : 0;
        }
        return rows && width;
    }
    uint64_t turned[TILE], any = 0;
    for (int64_t i = 0; i < rows; i++) {
        found.slow[i] = (slow ? slow[i] : ~uint64_t(0)) & fast_keeps & (slow_keeps >> i & 1 ? ~uint64_t(0) : 0);
        any |= found.slow[i];
    }
    for (int64_t i = 0; i < width; i++)
        turned[i] = (fast ? fast[i] : ~uint64_t(0)) & slow_keeps & (fast_keeps >> i & 1 ? ~uint64_t(0) : 0);
    ranges(found.slow, rows, fast_keeps, group, found.fast_from, found.fast_to);
    ranges(turned, width, slow_keeps, group, found.slow_from, found.slow_to);
    return any;
}

}  // namespace regard::REGARD_ISA
