// Products of rows with frozen matrices on AMX's tiles. oneDNN's own take as long on one thread; of two it leaves one idle
// where sums are long and rows few, and in what order it sums depends on their number.

#include "tiles.h"

#include <algorithm>

#ifdef WITH_TILES
namespace {

constexpr int64_t PIECES = 4;  // Of a block of rows, for threads to share where blocks are few.
constexpr int64_t BLOCK = 2 * TILE;  // Rows and columns whose sums are computed at a time.

// Of (depth, width): two tiles for each 32 columns and 32 in depth, those of one depth after the other.
struct Frozen {
    const bf16* tiles;
    int64_t depth, width;

    Tiled operator()(int64_t column) const {
        int64_t tile = TILE * DEPTH * sizeof(bf16);
        return {tiles + column * depth, 4 * TILE, 2 * tile, tile};
    }
};

// What a block's sums become: + bias, if there is one; ADDED to what is in `out`.
template <bool ADDED>
void write(const float* sums, int64_t rows, const float* bias, bf16* out, int64_t width) {
    Floats low = bias ? get(bias) : Floats{}, high = bias ? get(bias + LANES) : Floats{};
    for (int64_t i = 0; i < rows; i++, sums += BLOCK, out += width) {
        Floats first = get(sums) + low, second = get(sums + LANES) + high;
        if (ADDED) first += get(out), second += get(out + LANES);
        put(first, out);
        put(second, out + LANES);
    }
}

// rows: of the block, up to BLOCK; columns [from, to).
template <bool ADDED>
void multiply_block(const bf16* x, int64_t rows, Frozen matrix, const float* bias, bf16* out, int64_t from, int64_t to) {
    int64_t step = matrix.depth * sizeof(bf16);
    Tiled a = {x, step, 4 * TILE, TILE * step};
    alignas(64) float sums[BLOCK * BLOCK];
    for (int64_t j = from; j < to; j += BLOCK) {
        if (rows > TILE)
            multiply_tiles<2, 2, true>(matrix.depth / DEPTH, a, matrix(j), sums, BLOCK);
        else
            multiply_tiles<1, 2, true>(matrix.depth / DEPTH, a, matrix(j), sums, BLOCK);
        write<ADDED>(sums, rows, bias ? bias + j : nullptr, out + j, matrix.width);
    }
}

// out = x matrix + bias, or that added to what is in `out`.
void product(const bf16* x, Frozen matrix, const float* bias, bool added, bf16* out, int64_t rows, int threads) {
    int64_t blocks = (rows + BLOCK - 1) / BLOCK, columns = matrix.width / BLOCK;
#pragma omp parallel num_threads(threads)
    {
        Tiles tiles;
        std::vector<bf16> filled;
#pragma omp for schedule(static)
        for (int64_t item = 0; item < blocks * PIECES; item++) {
            int64_t row = item / PIECES * BLOCK, piece = item % PIECES, count = std::min(rows - row, BLOCK);
            const bf16* from = x + row * matrix.depth;
            if (count % TILE) {  // tiles are of 16 rows
                filled.assign(BLOCK * matrix.depth, bf16{0});
                std::copy(from, from + count * matrix.depth, filled.begin());
                from = filled.data();
            }
            (added ? multiply_block<true> : multiply_block<false>)(
                from, count, matrix, bias, out + row * matrix.width, BLOCK * first_of(piece, columns, PIECES),
                BLOCK * first_of(piece + 1, columns, PIECES));
        }
    }
}

}  // namespace
#endif

// Whether this processor, as compiled for, and this system have tiles.
extern "C" int tiles_are_there() { return tiles_allowed(); }

// matrix: of (depth, width), multiples of 32, in tiles. added: to what is in `out`.
extern "C" void tiled_product_bf16(const bf16* x, const bf16* matrix, const float* bias, int added, bf16* out, int64_t rows,
                              int64_t depth, int64_t width, int threads) {
#ifdef WITH_TILES
    product(x, {matrix, depth, width}, bias, added, out, rows, threads);
#endif
}
