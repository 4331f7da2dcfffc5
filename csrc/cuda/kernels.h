// Interface of the CUDA kernels: raw device pointers, 64-bit sizes, a device and a stream. They allocate nothing and do
// not wait for the device. Python has checked the arguments; CUDA errors become std::runtime_error.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "cofitune/adamw_tensor.h"

namespace cofitune::cuda {

struct Place {
  int device;
  void* stream;  // cudaStream_t
};

struct AdamwOptions {
  const int64_t* scalars;  // on the device: the eight float32 of AdamwCoefficients, then the step
  const float* clip;       // on the device: factor and skip flag; null: 1 and 0
  MaskMode mode;
  Pull pull;  // applies to tensors with an anchor
  Storage storage;
  bool zero_grad;
  uint64_t seed;
};

void masked_adamw(const std::vector<AdamwTensor>& tensors, const AdamwOptions& options, Place place);

// A gradient as a matrix; without a weight its rows do not matter.
struct GradTensor {
  const void* grad;
  const void* weight;  // null: no row dots
  float* row_dots;     // [rows]: the sum over a row of weight * grad
  int64_t rows, columns;
  bool bf16;
};

// Device addresses of the result.
struct GradNorm {
  float* norm;
  float* clip;  // factor and skip flag
};

// Number of elements that `partials` must hold.
int64_t grad_norm_partials(const std::vector<GradTensor>& tensors);

// `partials`: on the device, overwritten. `max_norm`: infinity turns clipping off.
void grad_norm(const std::vector<GradTensor>& tensors, double* partials, float max_norm, GradNorm result, Place place);

// Reason why no kernel can run on any device, as the end of a sentence; empty if one can.
std::string device_error();

}  // namespace cofitune::cuda
