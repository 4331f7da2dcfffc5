// Fast versions of bf16.h and eight_bit.h that give the same bits, for values without special cases, which are nearly
// all. At 14 and 10 bytes per element the full versions would take longer than the memory accesses.
#pragma once

#include <cmath>

#include "cofitune/bf16.h"
#include "cofitune/eight_bit.h"

namespace cofitune::cuda {

CF_HD bool is_finite(float value) { return fabsf(value) < INFINITY; }

// stochastic_bits of a finite value: the upper half of the result is the bfloat16.
CF_HD uint32_t plain_stochastic_bits(float value, uint32_t random16) { return bit_cast<uint32_t>(value) + random16; }

// True if a moment in units of its scale lies above the evenly spaced codes; false for NaN.
template <class Moment>
CF_HD bool is_normal(float x) {
  return x >= bit_cast<float>(Moment::kSmallestBits);
}

template <class Moment>
CF_HD uint32_t plain_encode(float x, uint32_t random16) {
  constexpr uint32_t kHalfStepLessBias = 8u - (Moment::kRebias << 20);
  const uint32_t code = (bit_cast<uint32_t>(x) + (random16 << 4) + kHalfStepLessBias) >> 20;
  return code < Moment::kMaxCode ? code : Moment::kMaxCode;
}

// Decodes any code in units of the scale. Codes below 8 become denormal numbers, which GPUs multiply at full speed.
template <class Moment>
CF_HD float plain_decode(uint32_t code) {
  return bit_cast<float>(code << 20) * bit_cast<float>((254u - Moment::kTop) << 23);
}

}  // namespace cofitune::cuda
