// The CPU kernels' faces: raw pointers and 64-bit sizes. Checks are made in Python before.
#pragma once

#include <cstdint>
#include <vector>

#include "cofitune/adamw_tensor.h"

namespace cofitune {

struct AdamwOptions {
  AdamwCoefficients coefficients;
  const float* clip;  // factor and skip flag; null: 1 and 0
  MaskMode mode;
  Storage storage;
  bool zero_grad;
  uint64_t seed;
  uint64_t step;
  int threads;
};

void masked_adamw(const std::vector<AdamwTensor>& tensors, const AdamwOptions& options);

struct GradTensor {
  const void* data;
  int64_t size;
  bool bf16;
};

double sum_of_squares(const std::vector<GradTensor>& tensors, int threads);

struct ImportanceInput {
  float* scores;
  const void* y;
  const void* grad_y;
  const uint8_t* attention_mask;  // null: all tokens count
  int64_t batch, tokens, width, unit_size, passes;
  bool bf16;
};

void unit_importance(const ImportanceInput& input, int threads);

}  // namespace cofitune
