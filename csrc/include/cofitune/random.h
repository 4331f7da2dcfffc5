// Counter-based random numbers: a function of (seed, step, 64-bit counter) alone, so that every backend, thread count
// and resumed run draws the same bits. cofitune_fast/ops/rounding.py is the reference.
//
//   key   = mix(mix(mix(seed) ^ step) ^ counter[63:32])        mix: SplitMix64 (Steele, Lea, Flood 2014)
//   x     = counter[31:0] ^ key[31:0]
//   x     = (x ^ x >> 16) * 0x21f0aaad
//   x     = ((x ^ x >> 15) + key[63:32]) * 0x735a2d97          multipliers: Wellons' search of 32-bit mixers
//   x     = x ^ x >> 15
//
// Rounding takes 16 of these 32 bits for each value: x[31:16] for the weight, x[15:0] for the first moment and x[23:8]
// for the second. The last shares half of its bits with either of the others; each alone is uniform.
//
// Elements need only 32-bit operations, because AVX2 has no 64-bit product. A run of elements shares one key.
#pragma once

#include "portable.h"

namespace cofitune {

struct RandomKey {
  uint32_t key;
  uint32_t tweak;
};

CF_HD uint64_t splitmix64(uint64_t value) {
  value += 0x9E3779B97F4A7C15ull;
  value = (value ^ (value >> 30)) * 0xBF58476D1CE4E5B9ull;
  value = (value ^ (value >> 27)) * 0x94D049BB133111EBull;
  return value ^ (value >> 31);
}

CF_HD RandomKey random_key(uint64_t seed, uint64_t step, uint32_t counter_high) {
  const uint64_t mixed = splitmix64(splitmix64(splitmix64(seed) ^ step) ^ counter_high);
  return {static_cast<uint32_t>(mixed), static_cast<uint32_t>(mixed >> 32)};
}

CF_HD uint32_t random32(RandomKey key, uint32_t counter_low) {
  uint32_t x = counter_low ^ key.key;
  x = (x ^ (x >> 16)) * 0x21F0AAADu;
  x = ((x ^ (x >> 15)) + key.tweak) * 0x735A2D97u;
  return x ^ (x >> 15);
}

CF_HD uint32_t random_of_weight(uint32_t random) { return random >> 16; }
CF_HD uint32_t random_of_first(uint32_t random) { return random & 0xFFFFu; }
CF_HD uint32_t random_of_second(uint32_t random) { return random >> 8 & 0xFFFFu; }

}  // namespace cofitune
