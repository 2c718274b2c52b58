// Products of bf16 rows with matrices by AVX-512's instruction for bf16, which adds the products of two pairs of
// numbers to a sum in fp32, and takes numbers below fp32's normal range as zeros.

#if defined(__AVX512BF16__) && !defined(SLOW_BF16)  // defined if that is slower than fp32, see cpu_compiler.py
#include "panels.h"

namespace {

struct Bf16 {
    // Sums in 20 of 32 registers. Matrices come from the third cache fast enough, so that pieces of them would be more
    // work for nothing.
    static constexpr int64_t ROWS = 10, PANEL = 2 * LANES, DEEP = 1536, PIECE = INT64_MAX / 2;

    // Rows as they are: two neighbours are a word, which one instruction spreads over a register. DEEP numbers of each
    // row, then the next ones, so that rows of whatever length lie side by side in the cache.
    class Block {
        std::vector<uint32_t> words;

       public:
        explicit Block(int64_t depth) : words((depth + DEEP - 1) / DEEP * DEEP * ROWS / 2) {}

        const uint32_t* at(int64_t deep) const { return &words[deep * ROWS / 2]; }

        Floats scaled(Floats sum, int64_t, const float*) const { return sum; }

        void fill(const bf16* from, int64_t depth, int64_t rows) {
            for (int64_t deep = 0; deep < depth; deep += DEEP)
                for (int64_t r = 0; r < rows; r++)
                    std::memcpy(&words[(deep * ROWS + r * DEEP) / 2], from + r * depth + deep,
                                std::min(DEEP, depth - deep) * sizeof *from);
        }
    };

    // What a block's numbers and a panel's make, (count, 16 * VECTORS), of at most DEEP products: `take` gets it,
    // sixteen numbers at a time with their row and column.
    template <int VECTORS, class Take>
    static void add_products(int64_t depth, const Block& block, int64_t deep, int64_t count, const uint16_t* panel,
                             int64_t, Take take) {
        auto add = count > 6 ? add_rows<ROWS, VECTORS, Take> : count > 3 ? add_rows<6, VECTORS, Take>
                 : count > 1 ? add_rows<3, VECTORS, Take> : add_rows<1, VECTORS, Take>;
        add(depth, block.at(deep), count, panel, take);
    }

    // A matrix (rows, columns) times a factor: as panels of (depth / 2, columns, 2) of depth and width, multiples of
    // 16, with zeros behind it.
    template <class T>
    static void fill_panels(const T* from, int64_t rows, int64_t columns, float factor, int64_t depth, int64_t width,
                            uint16_t* panels, float*, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
        for (int64_t j = 0; j < width; j += LANES) {
            int64_t step = std::min(width - j / PANEL * PANEL, PANEL);
            uint16_t* to = panels + j / PANEL * PANEL * depth + j % PANEL * 2;
            auto row = [&](int64_t k) {
                bf16 rounded[LANES] = {};
                if (k < rows)
                    put(reinterpret_cast<Floats>(some(from + k * columns + j, columns - j)) * factor, rounded);
                return widened(rounded);
            };
            for (int64_t k = 0; k < depth; k += 2, to += 2 * step) {
                Words both = row(k) | row(k + 1) << 16;
                std::memcpy(to, &both, sizeof both);
            }
        }
    }

    // out (count, of_width) = left' right, of left's first columns, of (rows, width), and (rows, of_width).
    static void inner_product(const bf16* left, int64_t width, int64_t count, const bf16* right, int64_t of_width,
                              float* out, int64_t rows, int threads) {
        int64_t bands = (count + INNER - 1) / INNER, steps = (rows + 1) / 2;
        std::vector<uint32_t> pairs(bands * steps * INNER);  // neighbours in a column of left
        for (int64_t t = 0; t < rows; t += 2)
            for (int64_t band = 0; band < bands; band++) {
                const bf16* upper = left + t * width + band * INNER;
                const bf16* lower = t + 1 < rows ? upper + width : nullptr;
                uint32_t* to = &pairs[(band * steps + t / 2) * INNER];
                for (int64_t i = 0; i < INNER; i++) to[i] = upper[i].bits | (lower ? lower[i].bits << 16 : 0);
            }
#pragma omp parallel for num_threads(threads) schedule(static)
        for (int64_t column = 0; column < of_width; column += 2 * LANES)
            for (int64_t i = 0; i < count; i += INNER)
                inner_band(pairs.data() + i * steps, right + column, of_width, of_width - column, rows,
                           out + i * of_width + column, std::min(INNER, count - i));
    }

   private:
    // Of so many rows at a time, of which there are `count`.
    template <int AT_ONCE, int VECTORS, class Take>
    static void add_rows(int64_t depth, const uint32_t* rows, int64_t count, const uint16_t* panel, Take take) {
        Floats sums[AT_ONCE][VECTORS] = {};  // unrolled, so that they are registers and nothing else
        for (int64_t k = 0; k < depth / 2; k++) {
            Words right[VECTORS];
#pragma GCC unroll 2
            for (int v = 0; v < VECTORS; v++) right[v] = load<Words>(panel + (k * VECTORS + v) * 2 * LANES);
#pragma GCC unroll 10
            for (int r = 0; r < AT_ONCE; r++)
#pragma GCC unroll 2
                for (int v = 0; v < VECTORS; v++)
                    sums[r][v] = add_pairs(sums[r][v], rows[r * DEEP / 2 + k], right[v]);
        }
#pragma GCC unroll 10
        for (int r = 0; r < AT_ONCE; r++)
            if (r < count)
#pragma GCC unroll 2
                for (int v = 0; v < VECTORS; v++) take(r, v * LANES, sums[r][v]);
    }

    // to (8, 32) or what there is of it, in steps of so many, = left' right; left is (rows / 2, 8) pairs.
    static void inner_band(const uint32_t* left, const bf16* right, int64_t step, int64_t columns, int64_t rows,
                           float* to, int64_t count) {
        const Words order = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
        __mmask32 there = columns > LANES ? 0xffffffff : 0xffff;
        __m512i places[2];  // Where of two rows, one behind the other, pairs of neighbours in a column are.
        for (uint32_t v = 0; v < 2; v++) {
            Words first = order + v * uint32_t(LANES);
            places[v] = reinterpret_cast<__m512i>(first | (first + 2 * uint32_t(LANES)) << 16);
        }
        Floats sums[INNER][2] = {};
        for (int64_t t = 0; t < rows; t += 2, left += INNER) {
            __m512i upper = _mm512_maskz_loadu_epi16(there, right + t * step);
            __m512i lower = _mm512_maskz_loadu_epi16(t + 1 < rows ? there : 0, right + (t + 1) * step);
            Words pairs[2];
#pragma GCC unroll 2
            for (int v = 0; v < 2; v++)
                pairs[v] = reinterpret_cast<Words>(_mm512_permutex2var_epi16(upper, places[v], lower));
#pragma GCC unroll 8
            for (int i = 0; i < INNER; i++)
#pragma GCC unroll 2
                for (int v = 0; v < 2; v++) sums[i][v] = add_pairs(sums[i][v], left[i], pairs[v]);
        }
#pragma GCC unroll 8
        for (int i = 0; i < INNER; i++) {
            if (i >= count) continue;
            put(sums[i][0], to + i * step);
            if (columns > LANES) put(sums[i][1], to + i * step + LANES);
        }
    }

    static Floats add_pairs(Floats sum, uint32_t left, Words right) {
        return reinterpret_cast<Floats>(_mm512_dpbf16_ps(reinterpret_cast<__m512>(sum),
                                                         reinterpret_cast<__m512bh>(Words{} + left),
                                                         reinterpret_cast<__m512bh>(right)));
    }
};

}  // namespace

EXPORT_PRODUCTS(Bf16, bf16)
#else
extern "C" int bf16_is_there() { return false; }
#endif
