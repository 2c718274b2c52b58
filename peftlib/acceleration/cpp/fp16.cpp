// Products of bf16 rows with matrices by AVX-512's instruction for fp16, which multiplies and adds 32 numbers where the
// one for fp32 does 16. For Xeons whose AMX a virtual machine hides: their bf16 instruction is at half of fp32's speed.
//
// fp16 has more digits than bf16 and less range. So each row, and each column of the matrix, is multiplied by a power
// of two such that no sum overflows; what is 2^21 times smaller than the row's largest number is lost. Few products are
// added up at a time, then these sums, then in fp32 those: a rounding is as large as what is added to.

#ifdef __AVX512FP16__
#include "panels.h"

namespace {

constexpr int64_t HALF = 32;    // Numbers in a register.
constexpr int64_t SUMMED = 32;  // Products that are added up one by one.
constexpr int LARGEST = 7;      // Rows' numbers are below 2 to the power of it, the matrix's at most 1.
constexpr int MOST = 60;        // For tiny rows and columns: no factor, nor two, leaves fp32's normal range.

struct Fp16 {
    // Sums in 24 of 32 registers; fp32 takes over after DEEP products.
    static constexpr int64_t ROWS = 12, PANEL = 2 * HALF, DEEP = 12 * SUMMED, PIECE = NEAR;

    // Rows, each number twice in a word: one instruction spreads 32 bits over a register, for 16 it takes two. DEEP
    // numbers of each row, then the next ones.
    class Block {
        std::vector<uint32_t> words;
        float factors[ROWS] = {};  // for the rows' sums

       public:
        explicit Block(int64_t depth) : words((depth + DEEP - 1) / DEEP * DEEP * ROWS) {}

        const uint32_t* at(int64_t deep) const { return &words[deep * ROWS]; }

        Floats scaled(Floats sum, int64_t row, const float* columns) const {
            return sum * (factors[row] * get(columns));
        }

        void fill(const bf16* from, int64_t depth, int64_t rows) {
            __m512i twice[2];  // Which of 32 numbers goes where: each one and its copy.
            for (uint32_t i = 0; i < 2; i++) {
                Words place = Words{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15} + i * uint32_t(LANES);
                twice[i] = reinterpret_cast<__m512i>(place | place << 16);
            }
            for (int64_t r = 0; r < rows; r++) {
                const bf16* row = from + r * depth;
                int exponent = largest(row, depth) >> 7, power = std::min(LARGEST + 126 - exponent, MOST);
                factors[r] = exponent == 255 ? NAN : std::ldexp(1.0f, -power);
                // From an exponent of 8 bits to one of 5, after which three more digits follow.
                __m512i lost = _mm512_set1_epi16((112 - power) << 7), least = _mm512_set1_epi16(1 << 7);
                for (int64_t deep = 0; deep < depth; deep += DEEP) {
                    uint32_t* to = &words[deep * ROWS + r * DEEP];
                    for (int64_t k = 0; k < std::min(DEEP, depth - deep); k += HALF) {
                        __m512i bits = load<__m512i>(row + deep + k), sign = _mm512_set1_epi16(int16_t(0x8000));
                        __m512i size = _mm512_subs_epu16(_mm512_andnot_si512(sign, bits), lost);
                        size = _mm512_maskz_slli_epi16(_mm512_cmpge_epu16_mask(size, least), size, 3);
                        __m512i number = _mm512_or_si512(size, _mm512_and_si512(bits, sign));
                        _mm512_storeu_si512(to + k, _mm512_permutexvar_epi16(twice[0], number));
                        _mm512_storeu_si512(to + k + LANES, _mm512_permutexvar_epi16(twice[1], number));
                    }
                }
            }
        }

       private:
        // A row's largest number, but for its sign, which are in the order of their bits.
        static int largest(const bf16* row, int64_t depth) {
            __m512i most{}, magnitude = _mm512_set1_epi16(0x7fff);
            for (int64_t k = 0; k < depth; k += HALF)
                most = _mm512_max_epu16(most, _mm512_and_si512(magnitude, load<__m512i>(row + k)));
            __m256i half = _mm256_max_epu16(_mm512_castsi512_si256(most), _mm512_extracti64x4_epi64(most, 1));
            __m128i quarter = _mm_max_epu16(_mm256_castsi256_si128(half), _mm256_extracti128_si256(half, 1));
            // There is an instruction for the least of eight.
            return 0xffff ^ _mm_extract_epi16(_mm_minpos_epu16(_mm_xor_si128(quarter, _mm_set1_epi16(-1))), 0);
        }
    };

    // What a block's numbers and a panel's make, (12, 32 * VECTORS), of at most DEEP products: `take` gets it, sixteen
    // numbers at a time with their row and column. `ahead` of the panel is what will be read next.
    template <int VECTORS, class Take>
    static void add_products(int64_t depth, const Block& block, int64_t deep, int64_t count, const uint16_t* panel,
                             int64_t ahead, Take take) {
        constexpr int64_t COLUMNS = VECTORS * HALF;
        const uint32_t* rows = block.at(deep);
        alignas(64) uint16_t partial[ROWS][COLUMNS];
        for (int64_t start = 0; start < depth; start += SUMMED) {
            __m512h sums[ROWS][VECTORS] = {};  // unrolled, so that they are registers and nothing else
            for (int64_t k = start; k < start + SUMMED; k++) {
                __m512h right[VECTORS];
#pragma GCC unroll 2
                for (int v = 0; v < VECTORS; v++) {
                    right[v] = load<__m512h>(panel + k * COLUMNS + v * HALF);
                    __builtin_prefetch(panel + ahead + k * COLUMNS + v * HALF, 0, 2);
                }
#pragma GCC unroll 12
                for (int r = 0; r < ROWS; r++) {
                    __m512h number = _mm512_castsi512_ph(_mm512_set1_epi32(rows[r * DEEP + k]));
#pragma GCC unroll 2
                    for (int v = 0; v < VECTORS; v++) sums[r][v] = _mm512_fmadd_ph(number, right[v], sums[r][v]);
                }
            }
#pragma GCC unroll 12
            for (int r = 0; r < ROWS; r++)
#pragma GCC unroll 2
                for (int v = 0; v < VECTORS; v++) {
                    uint16_t* at = &partial[r][v * HALF];
                    if (start) sums[r][v] = _mm512_add_ph(sums[r][v], _mm512_load_ph(at));
                    _mm512_store_ph(at, sums[r][v]);
                }
        }
        for (int64_t r = 0; r < count; r++)
            for (int64_t j = 0; j < COLUMNS; j += LANES)
                take(r, j, reinterpret_cast<Floats>(_mm512_cvtph_ps(load<__m256i>(&partial[r][j]))));
    }

    // A matrix (rows, columns) times a factor: as panels of (depth, width), multiples of 32, with zeros behind it.
    template <class T>
    static void fill_panels(const T* from, int64_t rows, int64_t columns, float factor, int64_t depth, int64_t width,
                            uint16_t* panels, float* factors, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
        for (int64_t j = 0; j < width; j += LANES) {
            int64_t step = std::min(width - j / PANEL * PANEL, PANEL);
            uint16_t* to = panels + j / PANEL * PANEL * depth + j % PANEL;
            __m512 most{}, scale = _mm512_set1_ps(factor), one = _mm512_set1_ps(1.0f);
            auto row = [&](int64_t k) { return _mm512_mul_ps(some(from + k * columns + j, columns - j), scale); };
            for (int64_t k = 0; k < rows; k++) most = _mm512_max_ps(most, _mm512_abs_ps(row(k)));
            __m512 power = _mm512_add_ps(_mm512_getexp_ps(most), one);
            power = _mm512_min_ps(_mm512_max_ps(power, _mm512_set1_ps(-MOST)), _mm512_set1_ps(126));
            _mm512_storeu_ps(factors + j, _mm512_scalef_ps(one, power));
            for (int64_t k = 0; k < depth; k++, to += step) {
                __m512 number = k < rows ? _mm512_scalef_ps(row(k), _mm512_sub_ps(_mm512_setzero_ps(), power)) : __m512{};
                __m256i narrow = _mm512_cvtps_ph(number, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
                std::memcpy(to, &narrow, sizeof narrow);
            }
        }
    }

    // to (8, 16 * VECTORS) in steps of so many, of which there are `count` rows, = left' right, in fp32; left is
    // (rows, 8).
    template <int VECTORS>
    static void inner_band(const float* left, const bf16* right, int64_t step, int64_t rows, float* to, int64_t count) {
        Floats sums[INNER][VECTORS] = {};
        for (int64_t t = 0; t < rows; t++) {
            Floats numbers[VECTORS];
#pragma GCC unroll 3
            for (int v = 0; v < VECTORS; v++) numbers[v] = get(right + t * step + v * LANES);
#pragma GCC unroll 8
            for (int i = 0; i < INNER; i++)
#pragma GCC unroll 3
                for (int v = 0; v < VECTORS; v++) sums[i][v] += left[t * INNER + i] * numbers[v];
        }
#pragma GCC unroll 8
        for (int i = 0; i < INNER; i++)
#pragma GCC unroll 3
            for (int v = 0; v < VECTORS; v++)
                if (i < count) put(sums[i][v], to + i * step + v * LANES);
    }

    // out (count, of_width) = left' right, of left's first columns, of (rows, width), and (rows, of_width).
    static void inner_product(const bf16* left, int64_t width, int64_t count, const bf16* right, int64_t of_width,
                              float* out, int64_t rows, int threads) {
        constexpr int64_t STRIP = 3 * LANES;
        int64_t bands = (count + INNER - 1) / INNER, strips = (of_width + STRIP - 1) / STRIP;
        std::vector<float> wide(bands * rows * INNER);
        for (int64_t band = 0; band < bands; band++)
            for (int64_t t = 0; t < rows; t++)
                for (int64_t i = 0; i < std::min(INNER, count - band * INNER); i++) {
                    uint32_t bits = uint32_t(left[t * width + band * INNER + i].bits) << 16;
                    std::memcpy(&wide[(band * rows + t) * INNER + i], &bits, sizeof bits);
                }
#pragma omp parallel for num_threads(threads) schedule(static)
        for (int64_t strip = 0; strip < strips; strip++)
            for (int64_t band = 0; band < bands; band++) {
                int64_t column = strip * STRIP, vectors = std::min(of_width - column, STRIP) / LANES;
                auto multiply = vectors == 3 ? inner_band<3> : vectors == 2 ? inner_band<2> : inner_band<1>;
                multiply(&wide[band * rows * INNER], right + column, of_width, rows,
                         out + band * INNER * of_width + column, count - band * INNER);
            }
    }
};

}  // namespace

EXPORT_PRODUCTS(Fp16, fp16)
#else
extern "C" int fp16_is_there() { return false; }
#endif
