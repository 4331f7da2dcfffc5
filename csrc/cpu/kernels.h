// Interface of the CPU kernels: raw pointers and 64-bit sizes. Python has checked the arguments.
#pragma once

#include <cstdint>
#include <vector>

#include "cofitune/adamw_tensor.h"

namespace cofitune {

struct AdamwOptions {
  AdamwCoefficients coefficients;
  const float* clip;  // factor and skip flag; null: 1 and 0
  MaskMode mode;
  Pull pull;  // applies to tensors with an anchor
  Storage storage;
  bool zero_grad;
  uint64_t seed;
  uint64_t step;
  int threads;
};

void masked_adamw(const std::vector<AdamwTensor>& tensors, const AdamwOptions& options);

// A gradient as a matrix; without a weight it may be given as one long row.
struct GradTensor {
  const void* grad;
  const void* weight;  // null: no row dots
  float* row_dots;     // [rows]: the sum over a row of weight * grad
  int64_t rows, columns;
  bool bf16;
};

struct GradNorm {
  float norm;
  float factor;  // min(1, max_norm / (norm + 1e-6)); 0 where the norm is not finite
  float skip;    // 1 where the norm is not finite
};

// max_norm: infinity turns clipping off.
GradNorm grad_norm(const std::vector<GradTensor>& tensors, float max_norm, int threads);

struct ImportanceInput {
  float* scores;
  const void* y;
  const void* grad_y;
  const uint8_t* attention_mask;  // null: all tokens count
  int64_t batch, tokens, width, unit_size, passes;
  bool bf16;
};

void unit_importance(const ImportanceInput& input, int threads);

// Two rows of logits per token, before the soft cap (0: no cap). Both are overwritten, with need_gradients by the
// gradients of the row's divergence.
struct KlInput {
  float* z_p;
  float* z_q;
  float* kl;  // [rows]
  int64_t rows, vocabulary;
  float softcap;
  bool need_gradients;
};

void kl_rows(const KlInput& input, int threads);

struct Logits {
  void* values;  // [rows, vocabulary]
  int64_t rows, vocabulary;
  bool bf16;
};

// log_sums, scales: [rows].
void log_sum_exp(const Logits& logits, float* log_sums, int threads);
void scaled_softmax(const Logits& logits, const float* log_sums, const float* scales, int threads);

}  // namespace cofitune
