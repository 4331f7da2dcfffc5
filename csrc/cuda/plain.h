// The same bits as in bf16.h and eight_bit.h by fewer instructions, for values that need no thought of special cases.
// Such are nearly all; at 14 and 10 bytes an element a GPU's memory otherwise waits for its arithmetic.
#pragma once

#include <cmath>

#include "cofitune/bf16.h"
#include "cofitune/eight_bit.h"

namespace cofitune::cuda {

CF_HD bool is_finite(float value) { return fabsf(value) < INFINITY; }

// The 32 bits whose upper half is the bfloat16: stochastic_bits of a finite value.
CF_HD uint32_t plain_stochastic_bits(float value, uint32_t random16) { return bit_cast<uint32_t>(value) + random16; }

// Whether a moment in units of its scale is not below the evenly spaced codes; false for NaN.
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

// Any code, in units of the scale: codes below 8 become denormal numbers, which GPUs multiply at full speed.
template <class Moment>
CF_HD float plain_decode(uint32_t code) {
  return bit_cast<float>(code << 20) * bit_cast<float>((254u - Moment::kTop) << 23);
}

}  // namespace cofitune::cuda
