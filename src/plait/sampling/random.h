// Random numbers that are counted, not drawn one after the other: random.py has the same in NumPy.
#pragma once

#include <cstdint>

namespace {

constexpr uint64_t STEP = 0x9E3779B97F4A7C15ull;

uint64_t mix(uint64_t x) {
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9ull;
    x = (x ^ (x >> 27)) * 0x94D049BB133111EBull;
    return x ^ (x >> 31);
}

// Number `counter` of the stream `key`; also the key of a stream below it.
uint64_t draw(uint64_t key, uint64_t counter) { return mix(key + (counter + 1) * STEP); }

// Uniform in [0, n), to one part in 2^64 / n.
int64_t below(uint64_t word, int64_t n) { return int64_t((unsigned __int128)word * uint64_t(n) >> 64); }

double unit(uint64_t word) { return double(word >> 11) * 0x1p-53; }

}  // namespace
