// Products of bf16 rows with matrices by AVX-512's instruction for bf16, which multiplies pairs of numbers and adds both
// products to a sum in fp32. Nothing else is rounded than the result.

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

    // What a block's numbers and a panel's make, (10, 16 * VECTORS), of at most DEEP products: `take` gets it, sixteen
    // numbers at a time with their row and column.
    template <int VECTORS, class Take>
    static void add_products(int64_t depth, const Block& block, int64_t deep, int64_t count, const uint16_t* panel,
                             int64_t, Take take) {
        const uint32_t* rows = block.at(deep);
        Floats sums[ROWS][VECTORS] = {};  // unrolled, so that they are registers and nothing else
        for (int64_t k = 0; k < depth / 2; k++) {
            Words right[VECTORS];
#pragma GCC unroll 2
            for (int v = 0; v < VECTORS; v++) right[v] = load<Words>(panel + (k * VECTORS + v) * 2 * LANES);
#pragma GCC unroll 10
            for (int r = 0; r < ROWS; r++)
#pragma GCC unroll 2
                for (int v = 0; v < VECTORS; v++)
                    sums[r][v] = add_pairs(sums[r][v], rows[r * DEEP / 2 + k], right[v]);
        }
#pragma GCC unroll 10
        for (int r = 0; r < ROWS; r++)
            if (r < count)
#pragma GCC unroll 2
                for (int v = 0; v < VECTORS; v++) take(r, v * LANES, sums[r][v]);
    }

    // A matrix (rows, columns) times a factor: as panels of (depth / 2, columns, 2) of depth and width, multiples of 32,
    // with zeros behind it.
    template <class T>
    static void fill_panels(const T* from, int64_t rows, int64_t columns, float factor, int64_t depth, int64_t width,
                            uint16_t* panels, float*, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
        for (int64_t j = 0; j < width; j += LANES) {
            uint16_t* to = panels + j / PANEL * PANEL * depth + j % PANEL * 2;
            __mmask16 there = columns - j >= LANES ? 0xffff : columns > j ? (1 << (columns - j)) - 1 : 0;
            auto row = [&](int64_t k) {
                bf16 rounded[LANES] = {};
                if (k < rows) put(reinterpret_cast<Floats>(some(from + k * columns + j, there)) * factor, rounded);
                return widened(rounded);
            };
            for (int64_t k = 0; k < depth; k += 2, to += 2 * PANEL) {
                Words both = row(k) | row(k + 1) << 16;
                std::memcpy(to, &both, sizeof both);
            }
        }
    }

   private:
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
