// Products of bf16 matrices on AMX, Intel's matrix instructions (Sapphire Rapids and later; Intel's Architecture
// Instruction Set Extensions Programming Reference, chapter 3): eight registers, called tiles, of 16 rows of 64 bytes
// each, and one instruction that multiplies two of them, 16 times as many numbers as one of AVX-512's.
//
// Of a product a b, a tile of `a` is 16 rows of 32 numbers, one of `b` 16 pairs of rows with 16 columns: a pair is two
// neighbours in the direction that is summed over.

#pragma once

#include "vectors.h"

#if defined(__AMX_BF16__) && defined(__AVX512BF16__)
#define WITH_TILES
#include <sys/syscall.h>
#include <unistd.h>

namespace {

constexpr int64_t TILE = 16, DEPTH = 32;  // Rows or columns of a tile, and numbers that it sums over.

// Linux lets a process use tiles once it has asked for it (arch_prctl's ARCH_REQ_XCOMP_PERM for the state XTILEDATA).
inline bool tiles_allowed() {
    static const bool granted = syscall(SYS_arch_prctl, 0x1023, 18) == 0;
    return granted;
}

// While one lives, this thread's tiles are as products here use them; then they are again as another library left them.
class Tiles {
    struct Shapes {
        uint8_t palette, start, reserved[14];
        uint16_t bytes_of_a_row[16];
        uint8_t rows[16];
    };
    Shapes before;

   public:
    Tiles() {
        if (!tiles_allowed()) return;
        Shapes shapes = {1, 0, {}, {}, {}};
        for (int i = 0; i < 8; i++) shapes.bytes_of_a_row[i] = 4 * TILE, shapes.rows[i] = TILE;
        asm volatile("sttilecfg %0" : "=m"(before)::"memory");
        asm volatile("ldtilecfg %0" ::"m"(shapes) : "memory");
    }
    ~Tiles() {
        if (tiles_allowed()) asm volatile("ldtilecfg %0" ::"m"(before) : "memory");
    }
    Tiles(const Tiles&) = delete;
};

// Tiles in memory: where the first is, bytes from one row to the next, from a tile to the one that follows in the
// direction that is summed over, and to the one beside it in the other direction.
struct Tiled {
    const void* at;
    int64_t row, next, beside;
    const char* operator()(int64_t k, int64_t other) const {
        return static_cast<const char*>(at) + k * next + other * beside;
    }
};

// Sums of DOWN x ACROSS tiles, in registers: nothing, + a b, and their way to memory, where `step` numbers make a row.
template <int DOWN, int ACROSS>
inline void clear_sums() {
    _tile_zero(0);
    if (ACROSS > 1) _tile_zero(1);
    if (DOWN > 1) _tile_zero(2);
    if (DOWN > 1 && ACROSS > 1) _tile_zero(3);
}

// `meanwhile` is called at each step of the depth: what it does on vectors costs little while tiles are multiplied.
template <int DOWN, int ACROSS, class Meanwhile>
inline void add_product(int64_t depth, Tiled a, Tiled b, Meanwhile meanwhile) {
    asm volatile("" ::: "memory");  // g++'s loads of tiles do not say that they read memory
    for (int64_t k = 0; k < depth; k++) {
        _tile_loadd(4, a(k, 0), a.row);
        _tile_loadd(6, b(k, 0), b.row);
        if (ACROSS > 1) _tile_loadd(7, b(k, 1), b.row);
        if (DOWN > 1) _tile_loadd(5, a(k, 1), a.row);
        _tile_dpbf16ps(0, 4, 6);
        if (ACROSS > 1) _tile_dpbf16ps(1, 4, 7);
        if (DOWN > 1) _tile_dpbf16ps(2, 5, 6);
        if (DOWN > 1 && ACROSS > 1) _tile_dpbf16ps(3, 5, 7);
        meanwhile();
    }
}

template <int DOWN, int ACROSS>
inline void store_sums(float* c, int64_t step) {
    _tile_stored(0, c, 4 * step);
    if (ACROSS > 1) _tile_stored(1, c + TILE, 4 * step);
    if (DOWN > 1) _tile_stored(2, c + TILE * step, 4 * step);
    if (DOWN > 1 && ACROSS > 1) _tile_stored(3, c + TILE * step + TILE, 4 * step);
}

template <int DOWN, int ACROSS>
inline void multiply_tiles(int64_t depth, Tiled a, Tiled b, float* c, int64_t step) {
    clear_sums<DOWN, ACROSS>();
    add_product<DOWN, ACROSS>(depth, a, b, [] {});
    store_sums<DOWN, ACROSS>(c, step);
}

}  // namespace
#else
namespace {
inline bool tiles_allowed() { return false; }
struct Tiles {};
}  // namespace
#endif
