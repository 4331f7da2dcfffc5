// The kernels of grad_norm: sums of squares of chunks, with row dots of weight and gradient if requested, and the norm,
// clip factor and skip flag from their sum. The order of every sum depends on shapes alone. The launch is in
// grad_norm.cu, so that tests can compile the kernels for the host too.
#pragma once

#include <cuda_runtime.h>

#include <cmath>

#include "kernels.h"
#include "tensor_table.h"
#include "vector.h"

namespace cofitune::cuda {

constexpr int kNormThreads = 256, kNormWarps = kNormThreads / 32;
constexpr int kFinishThreads = 1024;
constexpr int64_t kNormChunk = 32768;  // elements
constexpr int kNormLoads = 4;          // loads in flight per thread: 64 bytes, so 64 KB per SM at 1024 threads

struct GradNormLaunch {
  TensorTable<GradTensor, 600> table;
  double* partials;  // [blocks]
};
static_assert(sizeof(GradNormLaunch) <= kParameterBytes, "the list of tensors does not fit into a kernel's parameters");

// With row dots a chunk has one row per warp of a block; without, rows do not matter.
CF_HD int64_t norm_chunks(const GradTensor& t) {
  return t.weight ? chunk_count(t.rows, t.columns, kNormWarps * t.columns)
                  : chunk_count(1, t.rows * t.columns, kNormChunk);
}

CF_HD Chunk norm_chunk(const GradTensor& t, int64_t index) {
  return t.weight ? chunk_at(index, t.rows, t.columns, kNormWarps * t.columns)
                  : chunk_at(index, 1, t.rows * t.columns, kNormChunk);
}

struct Sums {
  double squares, dot;
};

// Squares of neighbors are added in float32. They are added again in double where one may overflow or underflow (from
// 1.8e19 and below 1.1e-19) or is NaN, so that no finite gradient has an infinite norm.
template <class T, int kWidth>
__device__ double squares_of(const Vector<T, kWidth>& g) {
  float sum = 0.0f;
#pragma unroll
  for (int i = 0; i < kWidth; ++i) sum = fmaf(widened(g, i), widened(g, i), sum);
  if (sum > 1e-24f && sum < 1e36f) return sum;
  double exact = 0.0;
#pragma unroll
  for (int i = 0; i < kWidth; ++i) exact += static_cast<double>(widened(g, i)) * static_cast<double>(widened(g, i));
  return exact;
}

template <class T, int kWidth>
__device__ double product_of(const Vector<T, kWidth>& weight, const Vector<T, kWidth>& g) {
  float sum = 0.0f;
#pragma unroll
  for (int i = 0; i < kWidth; ++i) sum = fmaf(widened(weight, i), widened(g, i), sum);
  return sum;
}

// Sums over `size` neighbors by a team of threads, of which this is one; kDots: `weight` is not null.
template <bool kDots, class T>
__device__ Sums sums_of(const T* g, const T* weight, int64_t size, int thread, int team) {
  constexpr int kWidth = kAccessBytes / sizeof(T), kLoads = kDots ? kNormLoads / 2 : kNormLoads;
  const bool aligned = is_aligned(g) && is_aligned(weight);
  Sums sums{0.0, 0.0};
  for (int64_t first = static_cast<int64_t>(thread) * kWidth; first < size; first += kLoads * team * kWidth) {
    Vector<T, kWidth> grads[kLoads], weights[kLoads];
#pragma unroll
    for (int k = 0; k < kLoads; ++k) {
      const int64_t at = first + k * team * kWidth, left = size - at;
      const int count = left >= kWidth ? kWidth : left < 0 ? 0 : static_cast<int>(left);
      const bool whole = aligned && count == kWidth;
      whole ? load<true>(grads[k], g + at, count) : load<false>(grads[k], g + at, count);
      if constexpr (kDots)
        whole ? load<true>(weights[k], weight + at, count) : load<false>(weights[k], weight + at, count);
    }
#pragma unroll
    for (int k = 0; k < kLoads; ++k) {
      sums.squares += squares_of(grads[k]);
      if constexpr (kDots) sums.dot += product_of(weights[k], grads[k]);
    }
  }
  return sums;
}

// Sums the values of a warp; the result is in its first lane.
__device__ double warp_sum(double value) {
  for (int lanes = 16; lanes > 0; lanes /= 2) value += __shfl_down_sync(~0u, value, lanes);
  return value;
}

// Sums the values of a block; the result is in its first thread.
template <int kThreads>
__device__ double block_sum(double value, double* of_warps) {
  value = warp_sum(value);
  if (threadIdx.x % 32 == 0) of_warps[threadIdx.x / 32] = value;
  __syncthreads();
  if (threadIdx.x < 32) value = warp_sum(threadIdx.x < kThreads / 32 ? of_warps[threadIdx.x] : 0.0);
  return value;
}

template <class T>
__device__ double sum_of_chunk(const GradTensor& t, const Chunk& chunk) {
  const T* const g = static_cast<const T*>(t.grad);
  if (!t.weight) {
    return sums_of<false, T>(g + chunk.column, nullptr, chunk.column_end - chunk.column, threadIdx.x, kNormThreads)
        .squares;
  }
  const int lane = threadIdx.x % 32;
  const int64_t row = chunk.row + threadIdx.x / 32, first = row * t.columns;
  if (row >= chunk.row_end) return 0.0;
  const Sums sums = sums_of<true>(g + first, static_cast<const T*>(t.weight) + first, t.columns, lane, 32);
  const double dot = warp_sum(sums.dot);
  if (lane == 0) t.row_dots[row] = static_cast<float>(dot);
  return sums.squares;
}

__global__ void __launch_bounds__(kNormThreads, 4) grad_norm_kernel(const __grid_constant__ GradNormLaunch launch) {
  __shared__ double of_warps[kNormWarps];
  const int index = tensor_of_block(launch.table.first_block, launch.table.count, blockIdx.x);
  const GradTensor& t = launch.table.tensors[index];
  const Chunk chunk = norm_chunk(t, blockIdx.x - launch.table.first_block[index]);
  const double sum = t.bf16 ? sum_of_chunk<uint16_t>(t, chunk) : sum_of_chunk<float>(t, chunk);
  const double total = block_sum<kNormThreads>(sum, of_warps);
  if (threadIdx.x == 0) launch.partials[blockIdx.x] = total;
}

// Runs in one block. It rounds where `finish` in cofitune_fast/ops/grad_norm.py does.
__global__ void __launch_bounds__(kFinishThreads)
    grad_norm_finish(const double* partials, int64_t count, float max_norm, GradNorm result) {
  __shared__ double of_warps[kFinishThreads / 32];
  double sum = 0.0;
  for (int64_t i = threadIdx.x; i < count; i += kFinishThreads) sum += partials[i];
  const double total = block_sum<kFinishThreads>(sum, of_warps);
  if (threadIdx.x != 0) return;
  const float norm = static_cast<float>(sqrt(total));
  const bool finite = fabsf(norm) < INFINITY;
  const float factor = max_norm / (norm + 1e-6f);
  *result.norm = norm;
  result.clip[0] = !finite ? 0.0f : factor < 1.0f ? factor : 1.0f;
  result.clip[1] = finite ? 0.0f : 1.0f;
}

}  // namespace cofitune::cuda
