// AdamW of one element, in float32 registers: the one place in C++ where the formula stands.
// cofitune_fast/ops/masked_adamw.py explains it and computes the coefficients in double precision.
#pragma once

#include <cmath>

#include "portable.h"

namespace cofitune {

struct AdamwCoefficients {
  float one_minus_beta1;
  float beta2;
  float one_minus_beta2;
  float step_size;
  float denominator_scale;
  float eps;
  float decay;
};

// Where the mask acts: on the step, decay included, or on the gradient before the moments see it.
enum class MaskMode { kUpdate, kGradient };

template <MaskMode kMode>
CF_HD void adamw_element(float& p, float g, float& m, float& v, float mask, const AdamwCoefficients& c) {
  if (kMode == MaskMode::kGradient) g = g * mask;
  m = m + c.one_minus_beta1 * (g - m);
  v = c.beta2 * v + c.one_minus_beta2 * g * g;
  const float change = c.decay * p + c.step_size * m / (sqrtf(v) * c.denominator_scale + c.eps);
  p = kMode == MaskMode::kUpdate ? p - mask * change : p - change;
}

}  // namespace cofitune
