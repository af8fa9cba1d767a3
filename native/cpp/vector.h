// Vectors of the instruction set this file is compiled for, in the compilers' own vector extensions.
//
// Every instruction set compiles its own copy, in a namespace of its own (REGARD_ISA). Nothing of the standard library
// is used here: its inline functions would be shared by all copies, and a portable machine might get the AVX-512 one.
#pragma once

#include <stdint.h>
#include <string.h>
#if defined(__AVX512F__) || defined(__AVX2__)
#include <immintrin.h>
#endif

namespace regard::REGARD_ISA {

#if defined(__AVX512F__)
constexpr int VECTOR_BYTES = 64;
constexpr int VECTORS = 4;  // of a row of results that a product keeps in registers
#elif defined(__AVX2__)
constexpr int VECTOR_BYTES = 32;
constexpr int VECTORS = 2;
#elif defined(__aarch64__)
constexpr int VECTOR_BYTES = 16;
constexpr int VECTORS = 4;
#else
constexpr int VECTOR_BYTES = 16;
constexpr int VECTORS = 2;
#endif

template <class T>
struct Types;

template <>
struct Types<float> {
    typedef float Vector __attribute__((vector_size(VECTOR_BYTES)));
    typedef float Unaligned __attribute__((vector_size(VECTOR_BYTES), aligned(4), may_alias));
    typedef int32_t Integer;
    typedef int32_t Integers __attribute__((vector_size(VECTOR_BYTES)));
    typedef uint32_t Bits __attribute__((vector_size(VECTOR_BYTES)));
};

template <>
struct Types<double> {
    typedef double Vector __attribute__((vector_size(VECTOR_BYTES)));
    typedef double Unaligned __attribute__((vector_size(VECTOR_BYTES), aligned(8), may_alias));
    typedef int64_t Integer;
    typedef int64_t Integers __attribute__((vector_size(VECTOR_BYTES)));
};

template <class T>
using Vector = typename Types<T>::Vector;
template <class T>
using Integers = typename Types<T>::Integers;

// How many numbers a vector holds.
template <class T>
constexpr int LANES = VECTOR_BYTES / int(sizeof(T));

template <class T>
constexpr T INFINITE = T(__builtin_inff());

template <class T>
static inline Vector<T> load(const T* from) {
    return *reinterpret_cast<const typename Types<T>::Unaligned*>(from);
}

template <class T>
static inline void store(T* to, Vector<T> value) {
    *reinterpret_cast<typename Types<T>::Unaligned*>(to) = value;
}

template <class T>
static inline Vector<T> splat(T value) {
    Vector<T> all;
    for (int i = 0; i < LANES<T>; i++) all[i] = value;
    return all;
}

template <class V>
static inline V larger(V a, V b) {
    return a > b ? a : b;
}

static inline int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
static inline int64_t most(int64_t a, int64_t b) { return a > b ? a : b; }

constexpr double LOG2_E = 1.4426950408889634074;

// 2^x, 0 for what is below 2^-126 and for -infinity; exact for whole x, NaN for NaN. The polynomials are minimax ones.
#if defined(__AVX512F__)
static inline Vector<float> power_of_two(Vector<float> x) {  // under Flushing
    Vector<float> rest = (Vector<float>)_mm512_reduce_ps((__m512)x, _MM_FROUND_TO_NEG_INF);  // x - floor(x), 0 for -infinity
    Vector<float> p = splat(1.8671300495043397e-3f);
    p = p * rest + 9.017030708491802e-3f;
    p = p * rest + 5.579991266131401e-2f;
    p = p * rest + 2.4016444385051727e-1f;
    p = p * rest + 6.931512951850891e-1f;
    p = p * rest + 1.0f;
    return (Vector<float>)_mm512_scalef_ps((__m512)p, (__m512)x);  // p * 2^floor(x)
}
#else
static inline Vector<float> power_of_two(Vector<float> x) {
    const float magic = 12582912.0f;  // 1.5 * 2^23: adding it rounds to the nearest integer
    Vector<float> shifted = x + magic, rest = x - (shifted - magic);
    Vector<float> p = splat(1.3276471520004649e-3f);
    p = p * rest + 9.675541330692287e-3f;
    p = p * rest + 5.550713274960068e-2f;
    p = p * rest + 2.4022119723933638e-1f;
    p = p * rest + 6.931469670638662e-1f;
    p = p * rest + 1.0f;
    Types<float>::Bits exponent = ((Types<float>::Bits)shifted << 23) + 0x3f800000;  // wraps where x is below -126
    return x < -126.0f ? Vector<float>{} : p * (Vector<float>)exponent;
}
#endif

static inline Vector<double> power_of_two(Vector<double> x) {
    Vector<double> found;
    for (int i = 0; i < LANES<double>; i++) found[i] = x[i] < -1022.0 ? 0.0 : __builtin_exp2(x[i]);
    return found;
}

// While it lives, numbers below 2^-126 count as 0: the processor handles them a hundred times more slowly than others.
class [[maybe_unused]] Flushing {
#if defined(__AVX512F__) || defined(__AVX2__)
public:
    Flushing() : before_(_mm_getcsr()) { _mm_setcsr(before_ | 0x8040); }
    ~Flushing() { _mm_setcsr(before_); }

private:
    unsigned before_;
#endif
};

// e^x with the error of power_of_two.
template <class T>
static inline Vector<T> exponential(Vector<T> x) {
    return power_of_two(x * T(LOG2_E));
}

static inline float logarithm(float x) { return __builtin_logf(x); }
static inline double logarithm(double x) { return __builtin_log(x); }

// Lanes whose bit is set, as a mask of all ones.
template <class T>
static inline Integers<T> lanes_of(uint64_t bits) {
    Integers<T> lane;
    for (int i = 0; i < LANES<T>; i++) lane[i] = typename Types<T>::Integer(1) << i;
    Integers<T> all;
    for (int i = 0; i < LANES<T>; i++) all[i] = typename Types<T>::Integer(bits);
    return (all & lane) != 0;
}

// The vector where the bits are set, `other` elsewhere.
template <class T>
static inline Vector<T> choose(uint64_t bits, Vector<T> value, Vector<T> other) {
#if defined(__AVX512F__)
    if constexpr (sizeof(T) == 4)
        return (Vector<T>)_mm512_mask_mov_ps((__m512)other, __mmask16(bits), (__m512)value);
    else
        return (Vector<T>)_mm512_mask_mov_pd((__m512d)other, __mmask8(bits), (__m512d)value);
#else
    return lanes_of<T>(bits) ? value : other;
#endif
}

// Whether any lane of a comparison holds.
template <class T>
static inline bool any(Integers<T> lanes) {
    typename Types<T>::Integer found = 0;
    for (int i = 0; i < LANES<T>; i++) found |= lanes[i];
    return found;
}

template <class T>
static inline T sum(Vector<T> x) {
    T total = 0;
    for (int i = 0; i < LANES<T>; i++) total += x[i];
    return total;
}

}  // namespace regard::REGARD_ISA
