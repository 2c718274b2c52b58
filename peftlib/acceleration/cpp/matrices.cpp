// Products of rows with frozen matrices on AMX's tiles. In backward, and where sums are long, oneDNN's own leave one of two
// threads idle as long as rows are few, and the order in which it sums depends on the number of threads.

#include "tiles.h"

#include <algorithm>

#ifdef WITH_TILES
namespace {

constexpr int64_t BLOCK = 2 * TILE;   // Rows and columns whose sums are computed at a time.
constexpr int64_t NEAR = 1280 << 10;  // Bytes of a matrix that stay in a core's second cache, of 2 MB.
constexpr int64_t AHEAD = 48 << 10;   // Bytes of a block of rows, at most, for the next one to be fetched meanwhile.
constexpr int64_t LINE = 64;          // Bytes that are fetched at a time.

// Of (depth, width): two tiles for each 32 columns and 32 in depth, those of one depth after the other.
struct Frozen {
    const bf16* tiles;
    int64_t depth, width;

    Tiled operator()(int64_t column) const {
        int64_t tile = TILE * DEPTH * sizeof(bf16);
        return {tiles + column * depth, 4 * TILE, 2 * tile, tile};
    }
};

// The sums of a block on their way to `out`: + bias, if there is one, and what is in `out`, if they are added to it. They
// are written a few rows at a time while the next block is computed.
class Written {
    alignas(64) float sums[2][BLOCK * BLOCK];
    int current = 0;
    int64_t next = 0, rows = 0, width = 0;
    const float* bias = nullptr;
    bf16* out = nullptr;
    bool added = false;

   public:
    // For the next block's sums, while those of the last one are written.
    float* free() { return sums[1 - current]; }

    void start(int64_t block_rows, const float* block_bias, bf16* to, int64_t step, bool add) {
        finish();
        current = 1 - current;
        next = 0, rows = block_rows, bias = block_bias, out = to, width = step, added = add;
    }

    void some() {
        for (int64_t end = std::min(next + 4, rows); next < end; next++) {
            const float* from = &sums[current][next * BLOCK];
            bf16* to = out + next * width;
            Floats low = get(from), high = get(from + LANES);
            if (bias) low += get(bias), high += get(bias + LANES);
            if (added) low += get(to), high += get(to + LANES);
            auto both = _mm512_cvtne2ps_pbh(reinterpret_cast<__m512>(high), reinterpret_cast<__m512>(low));
            std::memcpy(to, &both, sizeof both);
        }
    }

    void finish() {
        while (next < rows) some();
    }
};

// In how many pieces, side by side, a matrix is multiplied: each stays near, and threads share the work evenly.
int64_t pieces_of(Frozen matrix, int64_t blocks, int threads) {
    int64_t columns = matrix.width / BLOCK, size = matrix.width * matrix.depth * sizeof(bf16);
    int64_t pieces = (size + NEAR - 1) / NEAR;
    while (pieces < columns && (blocks * pieces + threads - 1) / threads * threads * 15 > blocks * pieces * 16) pieces++;
    return std::min(pieces, columns);
}

// out = x matrix + bias, or that added to what is in `out`.
void product(const bf16* x, Frozen matrix, const float* bias, bool added, bf16* out, int64_t rows, int threads) {
    int64_t blocks = (rows + BLOCK - 1) / BLOCK, columns = matrix.width / BLOCK, step = matrix.depth * sizeof(bf16);
    int64_t pieces = pieces_of(matrix, blocks, threads);
#pragma omp parallel num_threads(threads)
    {
        Tiles tiles;
        Written written;
        std::vector<bf16> filled;
        auto meanwhile = [&] { written.some(); };
#pragma omp for schedule(static)
        for (int64_t item = 0; item < blocks * pieces; item++) {
            int64_t piece = item / blocks, row = item % blocks * BLOCK, count = std::min(rows - row, BLOCK);
            int64_t start = first_of(piece, columns, pieces), end = first_of(piece + 1, columns, pieces);
            const bf16* from = x + row * matrix.depth;
            const char* ahead = reinterpret_cast<const char*>(from + BLOCK * matrix.depth);
            int64_t after = BLOCK * step > AHEAD ? 0 : std::clamp<int64_t>(rows - row - BLOCK, 0, BLOCK);
            if (count % TILE) {  // tiles are of 16 rows
                filled.assign(BLOCK * matrix.depth, bf16{0});
                std::copy(from, from + count * matrix.depth, filled.begin());
                from = filled.data();
            }
            Tiled a = {from, step, 4 * TILE, TILE * step};
            for (int64_t column = start; column < end; column++) {
                int64_t j = column * BLOCK, done = column - start, lines = after * step / LINE;
                for (int64_t i = first_of(done, lines, end - start); i < first_of(done + 1, lines, end - start); i++)
                    __builtin_prefetch(ahead + LINE * i, 0, 2);
                if (count > TILE)
                    multiply_tiles<2, 2>(matrix.depth / DEPTH, a, matrix(j), written.free(), BLOCK, meanwhile);
                else
                    multiply_tiles<1, 2>(matrix.depth / DEPTH, a, matrix(j), written.free(), BLOCK, meanwhile);
                written.start(count, bias ? bias + j : nullptr, out + row * matrix.width + j, matrix.width, added);
            }
        }
        written.finish();
    }
}

}  // namespace
#endif

// Whether this processor, as compiled for, and this system have tiles.
extern "C" int tiles_are_there() { return tiles_allowed(); }

// matrix: of (depth, width), multiples of 32, in tiles. added: to what is in `out`.
extern "C" void tiled_product_bf16(const bf16* x, const bf16* matrix, const float* bias, int added, bf16* out,
                                   int64_t rows, int64_t depth, int64_t width, int threads) {
#ifdef WITH_TILES
    product(x, {matrix, depth, width}, bias, added, out, rows, threads);
#endif
}
