// Products of small matrices that lie in the cache: of fp32 numbers, or, where the processor has an instruction for it
// and the rows are bf16 anyway, of pairs of bf16 numbers, which is twice as fast, and more on tiles. Then two neighbours
// in the direction that is summed over are one element.

#pragma once

#include "tiles.h"

#include <algorithm>
#include <type_traits>

namespace {

// Where a matrix's first row is, and how many elements on the next one.
template <class T>
struct Rows {
    T* at;
    int64_t step;
    T* operator[](int64_t row) const { return at + row * step; }
};

template <class T>
struct ElementOf {
    typedef float type;
};
#if defined(__AVX512BF16__) && !defined(SLOW_BF16)  // defined if that is slower than fp32, see cpu_compiler.py
typedef uint32_t Pair;  // The first one in the low half.
template <>
struct ElementOf<bf16> {
    typedef Pair type;
};
inline Words lanes(const Pair* from) { return load<Words>(from); }
inline Floats multiply_add(Floats sum, Pair left, Words right) {
    return reinterpret_cast<Floats>(_mm512_dpbf16_ps(reinterpret_cast<__m512>(sum),
                                                     reinterpret_cast<__m512bh>(Words{} + left),
                                                     reinterpret_cast<__m512bh>(right)));
}
#endif
inline Floats lanes(const float* from) { return get(from); }
inline Floats multiply_add(Floats sum, float left, Floats right) { return sum + left * right; }

// A matrix that is read one element at a time, so that it may as well be transposed.
template <class E>
struct Elements {
    const E* at;
    int64_t row, column;
};

template <int ROWS, int VECTORS, class E>
inline void tile(int64_t depth, Elements<E> a, Rows<const E> b, Rows<float> c) {
    Floats sums[ROWS][VECTORS] = {};  // unrolled, so that they are registers and nothing else
    for (int64_t k = 0; k < depth; k++) {
        decltype(lanes(b.at)) right[VECTORS];
#pragma GCC unroll 2
        for (int v = 0; v < VECTORS; v++) right[v] = lanes(b[k] + v * LANES);
#pragma GCC unroll 6
        for (int r = 0; r < ROWS; r++)
#pragma GCC unroll 2
            for (int v = 0; v < VECTORS; v++)
                sums[r][v] = multiply_add(sums[r][v], a.at[r * a.row + k * a.column], right[v]);
    }
#pragma GCC unroll 6
    for (int r = 0; r < ROWS; r++)
#pragma GCC unroll 2
        for (int v = 0; v < VECTORS; v++) put(sums[r][v], c[r] + v * LANES);
}

template <int ROWS, class E>
inline void band(int64_t depth, int64_t n, Elements<E> a, Rows<const E> b, Rows<float> c) {
    for (; n >= 2 * LANES; n -= 2 * LANES, b.at += 2 * LANES, c.at += 2 * LANES) tile<ROWS, 2>(depth, a, b, c);
    if (n) tile<ROWS, 1>(depth, a, b, c);
}

template <class E>
constexpr int64_t PER = std::is_same<E, float>::value ? 1 : 2;  // numbers in an element

inline Words halves(const bf16* from) { return widened(from); }
inline Words halves(const float* from) {
    bf16 rounded[LANES];
    put(get(from), rounded);
    return widened(rounded);
}

// (rows, width) to pairs of neighbours in a column, the last one's of an odd number being zero: (rows / 2, width).
template <class N>
void pair_columns(const N* from, int64_t rows, int64_t width, uint32_t* to) {
    for (int64_t i = 0; i < rows; i += 2)
        for (int64_t j = 0; j < width; j += LANES) {
            Words first = halves(&from[i * width + j]);
            Words second = i + 1 < rows ? halves(&from[(i + 1) * width + j]) : Words{};
            Words both = first | second << 16;
            std::memcpy(&to[i / 2 * width + j], &both, sizeof both);
        }
}

// A matrix of at most so many numbers, rounded to elements as it is filled in.
template <class E>
struct Rounded {
    typedef typename std::conditional<PER<E> == 1, float, bf16>::type Number;
    std::vector<E> by_row, by_column;

    explicit Rounded(int64_t most) : by_row(most / PER<E>), by_column(PER<E> == 1 ? 0 : most / PER<E>) {}

    Number* operator[](int64_t at) { return reinterpret_cast<Number*>(by_row.data()) + at; }

    // Neighbours in a row: (rows, width / PER).
    const E* along(int64_t, int64_t) { return by_row.data(); }

    // Neighbours in a column: (rows / PER, width).
    const E* across(int64_t rows, int64_t width) {
        if constexpr (PER<E> == 1) {
            return by_row.data();
        } else {
            pair_columns((*this)[0], rows, width, by_column.data());
            return by_column.data();
        }
    }
};

// A matrix of at most so many numbers, in fp32 until it is asked for as elements.
template <class E>
struct Exact {
    std::vector<float> numbers;
    Rounded<E> rounded;

    explicit Exact(int64_t most) : numbers(most), rounded(PER<E> == 1 ? 0 : most) {}

    float* operator[](int64_t at) { return &numbers[at]; }

    const E* along(int64_t rows, int64_t width) {
        if constexpr (PER<E> == 1) {
            return numbers.data();
        } else {
            for (int64_t j = 0; j < rows * width; j += LANES) put(get(&numbers[j]), rounded[j]);
            return rounded.by_row.data();
        }
    }

    const E* across(int64_t rows, int64_t width) {
        if constexpr (PER<E> == 1) {
            return numbers.data();
        } else {
            pair_columns(numbers.data(), rows, width, rounded.by_column.data());
            return rounded.by_column.data();
        }
    }
};

// (count, width) to (width, padded), zero behind count.
template <class E>
void transpose(const E* from, int64_t count, int64_t width, int64_t padded, E* to) {
    for (int64_t i = 0; i < padded; i += LANES)
        for (int64_t j = 0; j < width; j += LANES) {
            Words rows[LANES] = {};
            int64_t columns = std::min(width - j, LANES);  // or the half of it
            for (int64_t k = 0; k < LANES && i + k < count; k++) {
                const E* row = from + (i + k) * width + j;
                if (columns == LANES) rows[k] = load<Words>(row);
                if (columns < LANES) std::memcpy(&rows[k], row, sizeof(Words) / 2);
            }
            transpose(rows);
            for (int64_t k = 0; k < columns; k++)
                std::memcpy(to + (j + k) * padded + i, &rows[k], sizeof rows[k]);
        }
}

#ifdef WITH_TILES
// The first of sixteen, zeros behind them.
inline Words first_of_row(const Pair* row, int64_t columns) {
    __mmask16 there = columns >= LANES ? 0xffff : (1 << columns) - 1;
    return reinterpret_cast<Words>(_mm512_maskz_loadu_epi32(there, row));
}

// A tile of (rows, columns), or as much as there is of it and zeros.
template <bool TRANSPOSED>
inline void copy_tile(Elements<Pair> from, int64_t rows, int64_t columns, Pair* to) {
    Words tile[LANES];
    int64_t lines = TRANSPOSED ? columns : rows, length = TRANSPOSED ? rows : columns;
    int64_t step = TRANSPOSED ? from.column : from.row;
#pragma GCC unroll 16
    for (int64_t k = 0; k < LANES; k++) tile[k] = first_of_row(from.at + k * step, k < lines ? length : 0);
    if (TRANSPOSED) transpose(tile);
#pragma GCC unroll 16
    for (int64_t k = 0; k < LANES; k++) std::memcpy(to + k * LANES, &tile[k], sizeof tile[k]);
}

// `multiply` on tiles: `a` is copied into some, unless it lies in them, and `b` filled up to whole ones where it must.
inline void multiply_on_tiles(int64_t m, int64_t depth, int64_t n, Elements<Pair> a, Rows<const Pair> b,
                              Rows<float> c) {
    constexpr int64_t SIZE = TILE * TILE;
    thread_local std::vector<Pair> left, right;
    int64_t steps = (depth + TILE - 1) / TILE;
    bool as_it_lies = a.column == 1 && depth % TILE == 0;
    left.resize(2 * SIZE * steps);
    if (depth % TILE) {
        right.resize(steps * TILE * n);
        for (int64_t k = 0; k < steps * TILE; k++)
            for (int64_t j = 0; j < n; j += LANES) {
                Words row = first_of_row(b[k] + j, k < depth ? LANES : 0);
                std::memcpy(&right[k * n + j], &row, sizeof row);
            }
        b = {right.data(), n};
    }
    auto copy = a.column == 1 ? copy_tile<false> : copy_tile<true>;
    for (int64_t i = 0; i < m; i += 2 * TILE) {
        bool down = m - i > TILE;
        for (int64_t k = 0; k < steps && !as_it_lies; k++)
            for (int64_t d = 0; d < (down ? 2 : 1); d++)
                copy({a.at + (i + d * TILE) * a.row + k * TILE * a.column, a.row, a.column}, m - i - d * TILE,
                     depth - k * TILE, &left[(2 * k + d) * SIZE]);
        Tiled tiles = {left.data(), 4 * TILE, 8 * SIZE, 4 * SIZE};
        if (as_it_lies) tiles = {a.at + i * a.row, 4 * a.row, 4 * TILE, 4 * TILE * a.row};
        for (int64_t j = 0; j < n; j += 2 * TILE) {
            bool across = n - j > TILE;
            auto product = down ? (across ? multiply_tiles<2, 2> : multiply_tiles<2, 1>)
                                : (across ? multiply_tiles<1, 2> : multiply_tiles<1, 1>);
            product(steps, tiles, {b.at + j, 4 * b.step, 4 * TILE * b.step, 4 * TILE}, c[i] + j, c.step);
        }
    }
}
#endif

// c = a b, of shapes (m, depth) and (depth, n); n is a multiple of LANES. As many sums at a time as registers hold. The
// last rows of a and c are followed by room for whole tiles of LANES rows; what is there afterwards means nothing.
template <class E>
void multiply(int64_t m, int64_t depth, int64_t n, Elements<E> a, Rows<const E> b, Rows<float> c) {
#ifdef WITH_TILES
    if constexpr (PER<E> == 2)
        if (m * depth * n > TILE * TILE * TILE && tiles_allowed())  // smaller ones take as long to copy
            return multiply_on_tiles(m, depth, n, a, b, c);
#endif
    while (m > 0) {
        int rows = m >= 6 ? 6 : m >= 4 ? 4 : m >= 2 ? 2 : 1;
        (rows == 6 ? band<6, E> : rows == 4 ? band<4, E> : rows == 2 ? band<2, E> : band<1, E>)(depth, n, a, b, c);
        m -= rows;
        a.at += rows * a.row;
        c.at += rows * c.step;
    }
}

}  // namespace
