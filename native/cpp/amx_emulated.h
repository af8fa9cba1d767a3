// The tile intrinsics of AMX-BF16 in plain C++, so that the code that uses them runs, and is tested, on any machine.
//
// They have the names and the arguments of the compilers' own. A product before the configuration, or after the
// release, stops the program as the processor would.
#pragma once

#include "tile.h"

#undef _tile_loadconfig
#undef _tile_release
#undef _tile_zero
#undef _tile_loadd
#undef _tile_stored
#undef _tile_dpbf16ps
#define _tile_loadconfig(shapes) regard::REGARD_ISA::emulated::configure(shapes)
#define _tile_release() regard::REGARD_ISA::emulated::release()
#define _tile_zero(tile) regard::REGARD_ISA::emulated::zero(tile)
#define _tile_loadd(tile, from, step) regard::REGARD_ISA::emulated::load_tile(tile, from, step)
#define _tile_stored(tile, to, step) regard::REGARD_ISA::emulated::store_tile(tile, to, step)
#define _tile_dpbf16ps(sums, left, right) regard::REGARD_ISA::emulated::multiply(sums, left, right)

namespace regard::REGARD_ISA::emulated {

struct Register {
    uint32_t words[16][16];
};

struct Registers {
    bool ready;
    Register tile[8];
};

static thread_local Registers registers;

static inline Register& tile(int number) {
    if (!registers.ready) __builtin_trap();
    return registers.tile[number];
}

// Only the one configuration that is used: palette 1, eight tiles of 16 rows of 64 bytes.
static inline void configure(const void* shapes) {
    uint8_t byte[64];
    memcpy(byte, shapes, 64);
    bool known = byte[0] == 1;
    for (int i = 0; i < 8; i++) known &= byte[16 + 2 * i] == 64 && byte[17 + 2 * i] == 0 && byte[48 + i] == 16;
    if (!known) __builtin_trap();
    memset(&registers, 0, sizeof registers);
    registers.ready = true;
}

static inline void release() { registers.ready = false; }

static inline void zero(int number) { memset(&tile(number), 0, sizeof(Register)); }

static inline void load_tile(int number, const void* from, int64_t step) {
    for (int r = 0; r < 16; r++) memcpy(tile(number).words[r], static_cast<const char*>(from) + r * step, 64);
}

static inline void store_tile(int number, void* to, int64_t step) {
    for (int r = 0; r < 16; r++) memcpy(static_cast<char*>(to) + r * step, tile(number).words[r], 64);
}

static inline void multiply(int sums, int left, int right) {
    Register &c = tile(sums), &a = tile(left), &b = tile(right);
    for (int r = 0; r < 16; r++)
        for (int p = 0; p < 16; p++) {
            float even = from_bits(a.words[r][p] << 16), odd = from_bits(a.words[r][p] & 0xffff0000);
            for (int x = 0; x < 16; x++) {
                float sum = from_bits(c.words[r][x]) + even * from_bits(b.words[p][x] << 16);
                c.words[r][x] = to_bits(sum + odd * from_bits(b.words[p][x] & 0xffff0000));
            }
        }
}

}  // namespace regard::REGARD_ISA::emulated
