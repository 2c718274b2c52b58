// As many numbers at a time as a register holds, and dropout. What all kernels share:
//
// Large tensors are contiguous rows of tokens in fp32 or bf16; vectors, sums and, but for fp16.cpp, all arithmetic are
// fp32. Widths are multiples of MOST_LANES. No result depends on the number of threads: what is summed over rows is
// summed in `parts` of them.
// For g++, whose vector extensions they are written in; `cpu_compiler.py` builds them, `cpu_calls.py` calls them.

#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>
#ifdef __AVX2__
#include <immintrin.h>
#endif

// g++ keeps no vector in registers that is wider than those: with AVX2, kernels of sixteen lanes took 3 to 18 times as
// long as these of eight.
#if defined(__AVX512F__)
#define LANE_NUMBERS 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15
#define LOWER_HALVES 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23  // of two vectors, in turn
constexpr int64_t LANES = 16;
#elif defined(__AVX__)
#define LANE_NUMBERS 0, 1, 2, 3, 4, 5, 6, 7
#define LOWER_HALVES 0, 8, 1, 9, 2, 10, 3, 11
constexpr int64_t LANES = 8;
#else
#define LANE_NUMBERS 0, 1, 2, 3
#define LOWER_HALVES 0, 4, 1, 5
constexpr int64_t LANES = 4;
#endif

// Widths are multiples of it, and queries padded to it, on every processor, so that dropout draws the same on all.
constexpr int64_t MOST_LANES = 16;

namespace {

typedef float Floats __attribute__((vector_size(4 * LANES)));
typedef int32_t Ints __attribute__((vector_size(4 * LANES)));
typedef uint32_t Words __attribute__((vector_size(4 * LANES)));
typedef uint16_t Halves __attribute__((vector_size(2 * LANES)));

struct bf16 {
    uint16_t bits;
};

struct Dropout {
    uint32_t threshold;  // Of 16 random bits: a smaller number drops its element. 0 is no dropout.
    float factor;        // For what is kept.
    uint64_t seed;
};

template <class V>
inline V load(const void* from) {
    V result;
    std::memcpy(&result, from, sizeof result);
    return result;
}

// Sixteen-bit numbers in lanes of 32; g++ itself takes two steps for it.
inline Words widened(const void* from) {
#ifdef __AVX512F__
    return reinterpret_cast<Words>(_mm512_cvtepu16_epi32(load<__m256i>(from)));
#elif defined(__AVX2__)
    return reinterpret_cast<Words>(_mm256_cvtepu16_epi32(load<__m128i>(from)));
#else
    return __builtin_convertvector(load<Halves>(from), Words);
#endif
}

inline Floats all(float x) { return Floats{} + x; }

inline Floats get(const float* from) { return load<Floats>(from); }

inline Floats get(const bf16* from) {
    return reinterpret_cast<Floats>(widened(from) << 16);
}

inline void put(Floats x, float* to) { std::memcpy(to, &x, sizeof x); }

// To the nearest bf16, ties to even; what is not a number stays none.
inline void put(Floats x, bf16* to) {
#ifdef __AVX512BF16__
    auto halves = _mm512_cvtneps_pbh(reinterpret_cast<__m512>(x));
#else
    Words bits = reinterpret_cast<Words>(x);
    Words rounded = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
    Halves halves = __builtin_convertvector(x == x ? rounded : Words{} + 0x7fc0, Halves);
#endif
    std::memcpy(to, &halves, sizeof halves);
}

inline void add(Floats x, float* to) { put(get(to) + x, to); }

inline float sum(Floats x) {
    const Ints lanes = {LANE_NUMBERS}, last = Ints{} + static_cast<int>(LANES - 1);
    for (int step = LANES / 2; step > 0; step /= 2) x += __builtin_shuffle(x, (lanes + step) & last);
    return x[0];
}

// As many rows as lanes, transposed by perfect shuffles, of which sixteen take four.
inline void transpose(Words (&rows)[LANES]) {
    const Ints low = {LOWER_HALVES}, high = low + static_cast<int>(LANES / 2);
    Words mixed[LANES];
    for (int64_t round = 1; round < LANES; round *= 2) {
        for (int64_t k = 0; k < LANES / 2; k++) {
            mixed[2 * k] = __builtin_shuffle(rows[k], rows[k + LANES / 2], low);
            mixed[2 * k + 1] = __builtin_shuffle(rows[k], rows[k + LANES / 2], high);
        }
        for (int64_t k = 0; k < LANES; k++) rows[k] = mixed[k];
    }
}

// 16 random bits for each of n elements, from the one numbered `first` on; both multiples of 4. The generator is
// SplitMix64 (Steele, Lea, Flood 2014), whose words are a function of their number.
inline void draw(uint64_t seed, uint64_t first, int64_t n, uint16_t* out) {
    constexpr uint64_t golden = 0x9e3779b97f4a7c15u;
    uint64_t* words = reinterpret_cast<uint64_t*>(out);
    uint64_t start = seed + first / 4 * golden;
#pragma omp simd
    for (int64_t i = 0; i < n / 4; i++) {
        uint64_t z = start + static_cast<uint64_t>(i) * golden;
        z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
        z = (z ^ z >> 27) * 0x94d049bb133111ebu;
        words[i] = z ^ z >> 31;
    }
}

// What dropout multiplies elements by.
inline Floats kept(const uint16_t* random, Dropout drop) {
    return widened(random) >= drop.threshold ? all(drop.factor) : Floats{};
}

// The first of n rows that is of this part.
inline int64_t first_of(int64_t part, int64_t n, int64_t parts) { return n * part / parts; }

// Numbers of 16 bits that stay in a core's second cache, of 2 MB, beside what else is read and written.
constexpr int64_t NEAR = 640 << 10;

// In how many pieces, of about so many numbers, a matrix is multiplied with so many blocks of rows, so that threads
// share the work evenly. `most`: pieces that there can be, side by side.
inline int64_t pieces_of(int64_t most, int64_t numbers, int64_t blocks, int threads, int64_t piece) {
    int64_t pieces = numbers / piece + (numbers % piece > 0);
    auto uneven = [&](int64_t items) { return (items + threads - 1) / threads * threads * 15 > items * 16; };
    while (pieces < most && uneven(blocks * pieces)) pieces++;
    return pieces < most ? pieces : most;
}

}  // namespace
