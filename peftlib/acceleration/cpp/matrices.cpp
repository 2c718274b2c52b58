// Products of rows with matrices on AMX's tiles, and of a low rank beside them. oneDNN's own leave one of two threads
// idle as long as rows are few, in backward and where sums are long; and the order in which it sums depends on the number
// of threads.

#include <algorithm>

#include "tiles.h"

#ifdef WITH_TILES
namespace {

constexpr int64_t BLOCK = 2 * TILE;   // Rows and columns whose sums are computed at a time.
constexpr int64_t AHEAD = 48 << 10;   // Bytes of a block of rows, at most, for the next one to be fetched meanwhile.
constexpr int64_t LINE = 64;          // Bytes that are fetched at a time.

// Of (depth, width): two tiles for each 32 columns and 32 in depth, those of one depth after the other.
struct Matrix {
    const bf16* tiles;
    int64_t depth, width;

    Tiled operator()(int64_t column) const {
        int64_t tile = TILE * DEPTH * sizeof(bf16);
        return {tiles + column * depth, 4 * TILE, 2 * tile, tile};
    }
};

// Rows and the matrix that they are multiplied with.
struct Product {
    const bf16* rows;
    Matrix matrix;
    std::vector<bf16> filled;

    // Of the block from a row on, up to whole tiles.
    Tiled block(int64_t row, int64_t count) {
        const bf16* from = rows + row * matrix.depth;
        if (count % TILE) {
            filled.assign(BLOCK * matrix.depth, bf16{0});
            std::copy(from, from + count * matrix.depth, filled.begin());
            from = filled.data();
        }
        int64_t step = matrix.depth * sizeof(bf16);
        return {from, step, 4 * TILE, TILE * step};
    }
};

// The sums of a block on their way to `out`: + bias, if there is one, + dropout(more), if there is more, and what is in
// `out`, if they are added to it. They are written a few rows at a time while the next block is computed.
class Written {
    struct Block {
        alignas(64) float sums[BLOCK * BLOCK], more[BLOCK * BLOCK];
        int64_t rows, row, column;
    };
    Block blocks[2];
    int current = 0;
    int64_t next = 0;
    const float* bias;
    bf16* out;
    int64_t width;
    bool added, with_more;
    Dropout drop;

   public:
    Written(const float* bias, bf16* out, int64_t width, bool added, bool with_more, Dropout drop)
        : bias(bias), out(out), width(width), added(added), with_more(with_more), drop(drop) {
        blocks[0].rows = 0;
    }

    // The next block, to be filled while the last one is written.
    Block& free() { return blocks[1 - current]; }

    // That is filled.
    void start() {
        finish();
        current = 1 - current;
        next = 0;
    }

    void some() {
        const Block& block = blocks[current];
        for (int64_t end = std::min(next + 4, block.rows); next < end; next++) {
            int64_t place = (block.row + next) * width + block.column;
            const float* from = &block.sums[next * BLOCK];
            Floats low = get(from), high = get(from + LANES);
            if (bias) low += get(bias + block.column), high += get(bias + block.column + LANES);
            if (with_more) {
                uint16_t random[BLOCK];
                draw(drop.seed, place, BLOCK, random);
                low += get(&block.more[next * BLOCK]) * kept(random, drop);
                high += get(&block.more[next * BLOCK + LANES]) * kept(random + LANES, drop);
            }
            if (added) low += get(out + place), high += get(out + place + LANES);
            auto both = _mm512_cvtne2ps_pbh(reinterpret_cast<__m512>(high), reinterpret_cast<__m512>(low));
            std::memcpy(out + place, &both, sizeof both);
        }
    }

    void finish() {
        while (next < blocks[current].rows) some();
    }
};

// The sums of a's rows, of the columns from j on, and of low's with `beside`, if there are some: added, or apart, since
// dropout comes first.
template <int DOWN>
void multiply_block(Tiled a, Matrix matrix, const Tiled* low, Matrix beside, int64_t j, bool apart, Written& written) {
    auto meanwhile = [&] { written.some(); };
    auto& block = written.free();
    clear_sums<DOWN, 2>();
    add_product<DOWN, 2>(matrix.depth / DEPTH, a, matrix(j), meanwhile);
    if (low && !apart) add_product<DOWN, 2>(beside.depth / DEPTH, *low, beside(j), meanwhile);
    store_sums<DOWN, 2>(block.sums, BLOCK);
    if (low && apart) multiply_tiles<DOWN, 2>(beside.depth / DEPTH, *low, beside(j), block.more, BLOCK);
}

// out = x matrix + dropout(low beside) + bias, or that added to what is in `out`; bias and low are none where there is
// none.
void product(const bf16* x, Matrix matrix, const bf16* low, Matrix beside, Dropout drop, const float* bias, bool added,
             bf16* out, int64_t rows, int threads) {
    int64_t blocks = (rows + BLOCK - 1) / BLOCK, columns = matrix.width / BLOCK, step = matrix.depth * sizeof(bf16);
    int64_t pieces = pieces_of(columns, matrix.width * matrix.depth, blocks, threads, NEAR);
    bool apart = low && drop.threshold;
#pragma omp parallel num_threads(threads)
    {
        Tiles tiles;
        Product of_x{x, matrix, {}}, of_low{low, beside, {}};
        Written written(bias, out, matrix.width, added, apart, drop);
#pragma omp for schedule(static)
        for (int64_t item = 0; item < blocks * pieces; item++) {
            int64_t piece = item / blocks, row = item % blocks * BLOCK, count = std::min(rows - row, BLOCK);
            int64_t start = first_of(piece, columns, pieces), end = first_of(piece + 1, columns, pieces);
            const char* ahead = reinterpret_cast<const char*>(x + (row + BLOCK) * matrix.depth);
            int64_t after = BLOCK * step > AHEAD ? 0 : std::clamp<int64_t>(rows - row - BLOCK, 0, BLOCK);
            Tiled a = of_x.block(row, count), b{};
            if (low) b = of_low.block(row, count);
            for (int64_t column = start; column < end; column++) {
                int64_t done = column - start, lines = after * step / LINE;
                for (int64_t i = first_of(done, lines, end - start); i < first_of(done + 1, lines, end - start); i++)
                    __builtin_prefetch(ahead + LINE * i, 0, 2);
                (count > TILE ? multiply_block<2> : multiply_block<1>)(a, matrix, low ? &b : nullptr, beside,
                                                                     column * BLOCK, apart, written);
                auto& block = written.free();
                block.rows = count, block.row = row, block.column = column * BLOCK;
                written.start();
            }
        }
        written.finish();
    }
}

// 32 rows, or as many as there are, of 32 columns, as pairs of rows.
void pair_rows(const bf16* from, int64_t rows, int64_t step, uint32_t* first, uint32_t* second) {
    for (int64_t i = 0; i < BLOCK; i += 2, first += TILE, second += TILE)
        for (int64_t half = 0; half < 2; half++) {
            const bf16* at = from + i * step + half * LANES;
            Words low = i < rows ? widened(at) : Words{}, high = i + 1 < rows ? widened(at + step) : Words{};
            Words both = low | high << 16;
            std::memcpy(half ? second : first, &both, sizeof both);
        }
}

// A tile of 16 rows of 16 pairs, in place.
void transpose_tile(uint32_t* tile) {
    Words rows[LANES];
    std::memcpy(rows, tile, sizeof rows);
    transpose(rows);
    std::memcpy(tile, rows, sizeof rows);
}

// out (width, of_width) = left' right, of (rows, width) and (rows, of_width); widths are multiples of 32.
void inner_product(const bf16* left, int64_t width, const bf16* right, int64_t of_width, float* out, int64_t rows,
                   int threads) {
    constexpr int64_t SIZE = TILE * TILE;
    int64_t blocks = (rows + BLOCK - 1) / BLOCK, lefts = width / BLOCK;
    std::vector<uint32_t> turned(blocks * lefts * 2 * SIZE);  // left', two tiles for each block of rows and columns
#pragma omp parallel num_threads(threads)
    {
        Tiles tiles;
        alignas(64) uint32_t pairs[2][2 * SIZE];
#pragma omp for schedule(static)
        for (int64_t item = 0; item < blocks * lefts; item++) {
            int64_t row = item % blocks * BLOCK, column = item / blocks * BLOCK;
            uint32_t* to = &turned[item * 2 * SIZE];
            pair_rows(left + row * width + column, rows - row, width, to, to + SIZE);
            transpose_tile(to);
            transpose_tile(to + SIZE);
        }
#pragma omp for schedule(static)
        for (int64_t item = 0; item < lefts * (of_width / BLOCK); item++) {
            int64_t j = item / lefts * BLOCK, i = item % lefts;
            clear_sums<2, 2>();
            for (int64_t block = 0; block < blocks; block++) {
                const bf16* from = right + block * BLOCK * of_width + j;
                for (int64_t row = BLOCK; row < 2 * BLOCK && (block + 2) * BLOCK <= rows; row++)
                    __builtin_prefetch(from + row * of_width);
                pair_rows(from, rows - block * BLOCK, of_width, pairs[block % 2], pairs[block % 2] + SIZE);
                add_product<2, 2>(1, {&turned[(i * blocks + block) * 2 * SIZE], 4 * TILE, 0, 4 * SIZE},
                                  {pairs[block % 2], 4 * TILE, 0, 4 * SIZE}, [] {});
            }
            store_sums<2, 2>(out + i * BLOCK * of_width + j, of_width);
        }
    }
}

// What is at `from`, (rows, columns) in steps of so many numbers, times a factor: in tiles of (depth, width), multiples
// of 32, with zeros behind it.
void fill_tiles(const float* from, int64_t row_step, int64_t column_step, int64_t rows, int64_t columns, float factor,
                int64_t depth, int64_t width, uint16_t* tiles) {
    for (int64_t j = 0; j < width; j += TILE)
        for (int64_t i = 0; i < depth; i += DEPTH) {
            float numbers[DEPTH][TILE] = {};
            for (int64_t k = 0; k < DEPTH && i + k < rows; k++)
                for (int64_t n = 0; n < TILE && j + n < columns; n++)
                    numbers[k][n] = from[(i + k) * row_step + (j + n) * column_step] * factor;
            uint16_t* tile = tiles + (j / BLOCK * BLOCK * depth) + (i / DEPTH * 2 + j / TILE % 2) * TILE * DEPTH;
            for (int64_t k = 0; k < DEPTH; k += 2) {
                bf16 first[TILE], second[TILE];
                put(get(numbers[k]), first);
                put(get(numbers[k + 1]), second);
                Words pairs = widened(first) | widened(second) << 16;
                std::memcpy(tile + k * TILE, &pairs, sizeof pairs);
            }
        }
}

}  // namespace
#endif

// Whether this processor, as compiled for, and this system have tiles.
extern "C" int tiles_are_there() { return tiles_allowed(); }

// matrix: of (depth, width), and beside, of (rank, width): multiples of 32, in tiles. added: to what is in `out`.
extern "C" void tiled_product_bf16(const bf16* x, const bf16* matrix, const bf16* low, const bf16* beside,
                                   const float* bias, int added, bf16* out, int64_t rows, int64_t depth, int64_t rank,
                                   int64_t width, Dropout drop, int threads) {
#ifdef WITH_TILES
    product(x, {matrix, depth, width}, low, {beside, rank, width}, drop, bias, added, out, rows, threads);
#endif
}

extern "C" void inner_product_bf16(const bf16* left, int64_t width, const bf16* right, int64_t of_width, float* out,
                                   int64_t rows, int threads) {
#ifdef WITH_TILES
    inner_product(left, width, right, of_width, out, rows, threads);
#endif
}

extern "C" void fill_tiles_bf16(const float* from, int64_t row_step, int64_t column_step, int64_t rows, int64_t columns,
                                float factor, int64_t depth, int64_t width, uint16_t* tiles, int) {
#ifdef WITH_TILES
    fill_tiles(from, row_step, column_step, rows, columns, factor, depth, width, tiles);
#endif
}
