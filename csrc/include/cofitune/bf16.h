// bfloat16 by integer shifts: no bf16 instruction is needed, so AVX2 and older GPUs are served alike.
#pragma once

#include "portable.h"

namespace cofitune {

CF_HD float bf16_to_float(uint16_t value) { return bit_cast<float>(static_cast<uint32_t>(value) << 16); }

// The nearest bfloat16, the even one of two; a NaN becomes a quiet one.
CF_HD uint16_t nearest_bf16(float value) {
  const uint32_t bits = bit_cast<uint32_t>(value);
  const bool nan = (bits & 0x7FFFFFFFu) > 0x7F800000u;
  const uint32_t rounded = (bits + 0x7FFFu + ((bits >> 16) & 1u)) >> 16;
  return static_cast<uint16_t>(nan ? 0x7FC0u : rounded);
}

// Stochastic rounding: adds 16 random bits, so that cutting the lower half off rounds up with the probability of the
// part cut off and is unbiased. Infinities stay. `value` must come out of arithmetic: a NaN is quiet then, and stays
// one. Returns the 32 bits whose upper half is the bfloat16.
CF_HD uint32_t stochastic_bits(float value, uint32_t random16) {
  const uint32_t bits = bit_cast<uint32_t>(value);
  return bits + ((bits << 1) < 0xFF000000u ? random16 : 0u);
}

// A float32 as two halves: the nearest bfloat16 (halves away from zero, in magnitude), which the model computes with,
// and a signed 16-bit remainder. Joining them restores every bit; a NaN becomes a quiet one without remainder.
struct SplitFloat {
  uint16_t high;
  uint16_t low;  // int16_t in two's complement
};

CF_HD SplitFloat split(float value) {
  const uint32_t bits = bit_cast<uint32_t>(value);
  const bool nan = (bits & 0x7FFFFFFFu) > 0x7F800000u;
  const uint32_t high = nan ? (bits >> 16) | 0x0040u : (bits + 0x8000u) >> 16;
  return {static_cast<uint16_t>(high), static_cast<uint16_t>(nan ? 0u : bits & 0xFFFFu)};
}

CF_HD float join(uint16_t high, uint16_t low) {
  const uint32_t borrow = (static_cast<uint32_t>(low) & 0x8000u) << 1;  // the sign extension of low, kept unsigned
  return bit_cast<float>((static_cast<uint32_t>(high) << 16) + low - borrow);
}

}  // namespace cofitune
