// Reading, rounding and multiplying of elements in the reductions, in float32 for both storage formats. Sums have a
// fixed order, so that neither the number of threads nor the instruction set changes a bit.
#pragma once

#include <cstdint>

#include "cofitune/bf16.h"
#include "isa.h"

namespace cofitune {

struct Float32 {
  using Value = float;
  static constexpr int kPerValue = 1;
  static CF_BODY float read(Value value) { return value; }
  static CF_BODY Value round(float value) { return value; }
  template <class Real>
  static CF_BODY Real product(Value a, Value b) {
    return static_cast<Real>(a) * static_cast<Real>(b);
  }
};

struct Bfloat16 {
  using Value = uint16_t;
  static constexpr int kPerValue = 1;
  static CF_BODY float read(Value value) { return bf16_to_float(value); }
  static CF_BODY Value round(float value) { return nearest_bf16(value); }
  template <class Real>
  static CF_BODY Real product(Value a, Value b) {  // exact
    return Float32::product<Real>(bf16_to_float(a), bf16_to_float(b));
  }
};

// Two neighbors in one word, for sums over both products. So no element has to move between lanes.
struct Bfloat16Pair {
  using Value __attribute__((may_alias, aligned(2))) = uint32_t;
  static constexpr int kPerValue = 2;
  template <class Real>
  static CF_BODY Real product(uint32_t a, uint32_t b) {
    return Float32::product<Real>(bit_cast<float>(a << 16), bit_cast<float>(b << 16)) +
           Float32::product<Real>(bit_cast<float>(a & 0xFFFF0000u), bit_cast<float>(b & 0xFFFF0000u));
  }
};

// Sums a[k][i] * b[k][i] over k < kTerms pairwise, so that no term is rounded in more than log2(kTerms) additions.
template <class Format, class Real, int kTerms>
CF_BODY Real pairwise_products(const typename Format::Value* const* a, const typename Format::Value* const* b,
                               int64_t i) {
  if constexpr (kTerms == 1) {
    return Format::template product<Real>(a[0][i], b[0][i]);
  } else {
    constexpr int kHalf = kTerms / 2;
    return pairwise_products<Format, Real, kHalf>(a, b, i) +
           pairwise_products<Format, Real, kHalf>(a + kHalf, b + kHalf, i);
  }
}

// Number of partial sums kept side by side, so that a loop over them fills vectors of any width.
constexpr int64_t kLanes = 64;

CF_BODY double sum_lanes(double* lanes) {
  for (int64_t half = kLanes / 2; half > 0; half /= 2) {
    for (int64_t lane = 0; lane < half; ++lane) lanes[lane] += lanes[lane + half];
  }
  return lanes[0];
}

}  // namespace cofitune
