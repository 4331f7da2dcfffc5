// Exponential of arguments at most 0, as a softmax needs it.
#pragma once

#include <cstdint>

#include "cofitune/portable.h"
#include "isa.h"

namespace cofitune {

// Computes e^x for x <= 0 with a relative error of at most 9e-8 (1 ulp), and an absolute one of 1.2e-38 below -87.3.
// With n = round(x / log 2) and r = x - n log 2 it is 2^n e^r; a polynomial with an error of at most 4e-9 gives e^r.
CF_BODY float exp_of_negative(float x) {
  constexpr float kRound = 12582912.0f;      // 1.5 * 2^23: adding it rounds a number to an integer in the low bits
  constexpr float kLog2High = 0.693359375f;  // has few bits, so that n * kLog2High is exact
  constexpr float kLog2Low = -2.12194440e-4f;
  x = x < -88.0f ? -88.0f : x;  // below, the result is 0; a NaN stays
  const float shifted = x * 1.44269504f + kRound, n = shifted - kRound;
  const float r = (x - n * kLog2High) - n * kLog2Low;
  float y = 0.00138145327f;
  y = y * r + 0.00836874507f;
  y = y * r + 0.0416683909f;
  y = y * r + 0.166665204f;
  y = y * r + 0.499999934f;
  y = y * (r * r) + r + 1.0f;
  return y * bit_cast<float>((bit_cast<uint32_t>(shifted) << 23) + 0x3F800000u);
}

}  // namespace cofitune
