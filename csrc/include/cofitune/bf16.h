// bfloat16 by integer shifts, without bf16 instructions, so that it also runs on AVX2 and older GPUs.
#pragma once

#include "portable.h"

namespace cofitune {

CF_HD float bf16_to_float(uint16_t value) { return bit_cast<float>(static_cast<uint32_t>(value) << 16); }

// Rounds to the nearest bfloat16, ties to even; a NaN becomes a quiet NaN.
CF_HD uint16_t nearest_bf16(float value) {
  const uint32_t bits = bit_cast<uint32_t>(value);
  const bool nan = (bits & 0x7FFFFFFFu) > 0x7F800000u;
  const uint32_t rounded = (bits + 0x7FFFu + ((bits >> 16) & 1u)) >> 16;
  return static_cast<uint16_t>(nan ? 0x7FC0u : rounded);
}

// Stochastic rounding: adds 16 random bits, so that truncating the lower half rounds up with a probability equal to the
// truncated part, without bias. Infinities stay. `value` must be the result of arithmetic, because then a NaN is quiet
// and stays a NaN. Returns the 32 bits whose upper half is the bfloat16.
CF_HD uint32_t stochastic_bits(float value, uint32_t random16) {
  const uint32_t bits = bit_cast<uint32_t>(value);
  return bits + ((bits << 1) < 0xFF000000u ? random16 : 0u);
}

// A float32 in two halves: the nearest bfloat16 (ties away from zero), with which the model computes, and a signed
// 16-bit remainder. Joining them restores every bit. A NaN becomes a quiet NaN without remainder.
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
