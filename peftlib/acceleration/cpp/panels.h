// Products of bf16 rows with matrices in panels of some columns, by AVX-512, in whichever arithmetic A that is fast:
//
// A::Block holds ROWS rows as the arithmetic reads them, to be multiplied with panels of PANEL columns, or half of
// that at the end of a matrix. Of a row's numbers, DEEP are multiplied with a panel's before the next ones are: as much
// of a block and of a panel stays in the first cache. PIECE: how many numbers of a matrix are multiplied with all rows
// before the others are.

#pragma once

#include <algorithm>

#include "vectors.h"

namespace {

// Of (depth, width), multiples of half of A::PANEL: panels of so many columns, the last one maybe of half, one behind
// the other. `factors`: for the columns' sums, where the arithmetic has some.
struct Matrix {
    const uint16_t* panels;
    const float* factors;
    int64_t depth, width;
};

constexpr int64_t ACROSS = 384;  // Columns for which a block is multiplied before its next DEEP numbers.
constexpr int64_t INNER = 8;     // Columns of the left matrix that inner products are computed of at a time.

// A block times some columns of a matrix, from a multiple of a panel's on: `take` gets it. `sums` is room for what is
// not complete.
template <class A, class Take>
void multiply(const typename A::Block& block, int64_t count, Matrix matrix, int64_t start, int64_t end, float* sums,
              Take take) {
    for (int64_t deep = 0; deep < matrix.depth; deep += A::DEEP)
        for (int64_t column = start; column < end; column += A::PANEL) {
            int64_t columns = std::min(end - column, A::PANEL), depth = std::min(matrix.depth - deep, A::DEEP);
            const uint16_t* panel = matrix.panels + column * matrix.depth + deep * columns;
            bool last = deep + A::DEEP >= matrix.depth;
            float* more = sums + column - start;
            auto added = [=](int64_t r, int64_t j, Floats sum) {
                float* at = more + r * ACROSS + j;
                if (deep) sum += get(at);
                last ? take(r, column + j, sum) : put(sum, at);
            };
            if (columns == A::PANEL)
                A::template add_products<2>(depth, block, deep, count, panel, columns * matrix.depth, added);
            else
                A::template add_products<1>(depth, block, deep, count, panel, columns * matrix.depth, added);
        }
}

// out = x matrix + dropout(low beside) + bias, or that added to what is in `out`; bias and low are none where there is
// none.
template <class A>
void product(const bf16* x, Matrix matrix, const bf16* low, Matrix beside, Dropout drop, const float* bias, bool added,
             bf16* out, int64_t rows, int threads) {
    int64_t blocks = (rows + A::ROWS - 1) / A::ROWS, panels = (matrix.width + A::PANEL - 1) / A::PANEL;
    int64_t pieces = pieces_of(panels, matrix.width * matrix.depth, blocks, threads, A::PIECE);
#pragma omp parallel num_threads(threads)
    {
        typename A::Block of_x(matrix.depth), of_low(low ? beside.depth : 0);
        std::vector<float> sums(A::ROWS * ACROSS), addends(low ? A::ROWS * ACROSS : 0);
#pragma omp for schedule(static)
        for (int64_t item = 0; item < blocks * pieces; item++) {
            int64_t piece = item / blocks, row = item % blocks * A::ROWS, count = std::min(rows - row, A::ROWS);
            of_x.fill(x + row * matrix.depth, matrix.depth, count);
            if (low) of_low.fill(low + row * beside.depth, beside.depth, count);
            int64_t last = std::min(first_of(piece + 1, panels, pieces) * A::PANEL, matrix.width);
            for (int64_t start = first_of(piece, panels, pieces) * A::PANEL; start < last; start += ACROSS) {
                int64_t end = std::min(start + ACROSS, last);
                if (low) {
                    multiply<A>(of_low, count, beside, start, end, sums.data(), [&](int64_t r, int64_t j, Floats sum) {
                        put(of_low.scaled(sum, r, beside.factors + j), &addends[r * ACROSS + j - start]);
                    });
                    for (int64_t r = 0; r < count && drop.threshold; r++) {
                        uint16_t random[ACROSS];
                        draw(drop.seed, (row + r) * matrix.width + start, end - start, random);
                        for (int64_t j = start; j < end; j += LANES) {
                            float* at = &addends[r * ACROSS + j - start];
                            put(get(at) * kept(random + j - start, drop), at);
                        }
                    }
                }
                multiply<A>(of_x, count, matrix, start, end, sums.data(), [&](int64_t r, int64_t j, Floats sum) {
                    bf16* to = out + (row + r) * matrix.width + j;
                    sum = of_x.scaled(sum, r, matrix.factors + j);
                    if (bias) sum += get(bias + j);
                    if (low) sum += get(&addends[r * ACROSS + j - start]);
                    if (added) sum += get(to);
                    put(sum, to);
                });
            }
        }
    }
}

// Sixteen numbers, or as many as there are and zeros.
inline __mmask16 first(int64_t count) { return count >= LANES ? 0xffff : count > 0 ? (1 << count) - 1 : 0; }
inline __m512 some(const float* from, int64_t count) { return _mm512_maskz_loadu_ps(first(count), from); }
inline __m512 some(const bf16* from, int64_t count) {
    __m512i wide = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(first(count), from));
    return _mm512_castsi512_ps(_mm512_slli_epi32(wide, 16));
}

}  // namespace

// What Python calls. panels, factors: of a matrix (depth, width), and of one beside it, (rank, width). added: to what
// is in `out`. An arithmetic that is not there exports no more than that.
#define EXPORT_PRODUCTS(A, NAME)                                                                                       \
    extern "C" int NAME##_is_there() { return true; }                                                                  \
    extern "C" void NAME##_product_bf16(const bf16* x, const uint16_t* panels, const float* factors, const bf16* low,  \
                                        const uint16_t* low_panels, const float* low_factors, const float* bias,       \
                                        int added, bf16* out, int64_t rows, int64_t depth, int64_t rank,               \
                                        int64_t width, Dropout drop, int threads) {                                    \
        product<A>(x, {panels, factors, depth, width}, low, {low_panels, low_factors, rank, width}, drop, bias, added, \
                   out, rows, threads);                                                                                \
    }                                                                                                                  \
    extern "C" void NAME##_inner_product_bf16(const bf16* left, int64_t width, int64_t count, const bf16* right,       \
                                              int64_t of_width, float* out, int64_t rows, int threads) {               \
        A::inner_product(left, width, count, right, of_width, out, rows, threads);                                     \
    }                                                                                                                  \
    EXPORT_FILL_PANELS(A, NAME, float, fp32)                                                                           \
    EXPORT_FILL_PANELS(A, NAME, bf16, bf16)

#define EXPORT_FILL_PANELS(A, NAME, T, OF)                                                                             \
    extern "C" void NAME##_fill_panels_##OF(const T* from, int64_t rows, int64_t columns, float factor, int64_t depth, \
                                            int64_t width, uint16_t* panels, float* factors, int threads) {            \
        A::fill_panels(from, rows, columns, factor, depth, width, panels, factors, threads);                           \
    }
