// AdamW of one element in float32 registers; the only place in C++ with the formula. cofitune_fast/ops/masked_adamw.py
// explains it, and _adamw_call.py beside it computes the coefficients in double precision.
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
  float lr;
};

// Where the mask acts: on the step (decay and pull included), or on the gradient before it enters the moments.
enum class MaskMode : uint8_t { kUpdate, kGradient };

// How a weight is pulled toward its anchor: by a share of the distance (kL2), or by a constant distance (kL1).
enum class Pull : uint8_t { kNone, kL2, kL1 };

// Returns that share, at most 1 so that it never overshoots, or that distance.
template <Pull kPull>
CF_HD float pull_factor(float strength, const AdamwCoefficients& c) {
  const float factor = c.lr * strength;
  return kPull == Pull::kL2 && factor > 1.0f ? 1.0f : factor;
}

// g is the clipped gradient; with a pull, p moves toward `anchor` by the factor `pull`.
template <MaskMode kMode, Pull kPull>
CF_HD void adamw_element(float& p, float g, float& m, float& v, float mask, float anchor, float pull,
                         const AdamwCoefficients& c) {
  if (kMode == MaskMode::kGradient) g = g * mask;
  m = m + c.one_minus_beta1 * (g - m);
  v = c.beta2 * v + c.one_minus_beta2 * g * g;
  float change = c.decay * p + c.step_size * m / (sqrtf(v) * c.denominator_scale + c.eps);
  if (kPull == Pull::kL2) change = change + pull * (p - anchor);
  p = kMode == MaskMode::kUpdate ? p - mask * change : p - change;
  if (kPull == Pull::kL1) {  // after the step: a weight within the threshold of the anchor is set to it
    const float threshold = kMode == MaskMode::kUpdate ? mask * pull : pull;
    const float away = p - anchor;
    const float nearer = away < 0.0f ? p + threshold : p - threshold;
    p = fabsf(away) <= threshold ? anchor : nearer;
  }
}

}  // namespace cofitune
