// grad_norm: threads take chunks of the gradients in turn; the sums of the chunks are then added in a fixed order, so
// that the result does not depend on the threads.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "cofitune/chunks.h"
#include "isa.h"
#include "kernels.h"
#include "parallel.h"
#include "storage.h"

namespace cofitune {
namespace {

constexpr int64_t kChunk = 1 << 15;

// Consecutive elements of one row.
struct Run {
  const void* grad;
  const void* weight;  // null: no row dot is requested
  int64_t size;
  double squares, dot;  // results
};

template <class FormatType, class RealType, bool kWithDot>
struct Kind {
  using Format = FormatType;
  using Value = typename Format::Value;
  using Real = RealType;  // eight products are added in this type before they are added to a double
  static constexpr bool with_dot = kWithDot;
};

struct Lanes {
  double squares[kLanes] = {};
  double dots[kLanes] = {};
};

// Adds kTerms products, kLanes apart, into each of the first `lanes` lanes, from element `begin` on.
template <class K, int kTerms>
CF_BODY void add(const typename K::Value* const* g, const typename K::Value* const* w, int64_t begin, int64_t lanes,
                 Lanes& sums) {
  for (int64_t lane = 0; lane < lanes; ++lane) {
    const int64_t i = begin + lane;
    sums.squares[lane] += pairwise_products<typename K::Format, typename K::Real, kTerms>(g, g, i);
    if (K::with_dot) sums.dots[lane] += pairwise_products<typename K::Format, typename K::Real, kTerms>(w, g, i);
  }
}

template <class K>
CF_BODY void reduce(Run& run) {
  using Value = typename K::Value;
  constexpr int kTerms = 8, kPerValue = K::Format::kPerValue;
  const Value *g[kTerms] = {}, *w[kTerms] = {};
  for (int k = 0; k < kTerms; ++k) {
    g[k] = static_cast<const Value*>(run.grad) + k * kLanes;
    if (K::with_dot) w[k] = static_cast<const Value*>(run.weight) + k * kLanes;
  }
  const int64_t size = run.size / kPerValue, rest = run.size % kPerValue;
  Lanes sums;
  int64_t i = 0;
  for (; i + kTerms * kLanes <= size; i += kTerms * kLanes) add<K, kTerms>(g, w, i, kLanes, sums);
  for (; i + kLanes <= size; i += kLanes) add<K, 1>(g, w, i, kLanes, sums);
  add<K, 1>(g, w, i, size - i, sums);
  if (rest > 0) {
    constexpr size_t kBytes = sizeof(Value) / kPerValue;
    Value last_g{}, last_w{};
    std::memcpy(&last_g, g[0] + size, kBytes);
    if (K::with_dot) std::memcpy(&last_w, w[0] + size, kBytes);
    const Value *only_g = &last_g, *only_w = &last_w;
    add<K, 1>(&only_g, &only_w, 0, 1, sums);
  }
  run.squares = sum_lanes(sums.squares);
  run.dot = sum_lanes(sums.dots);
}

using ReduceFunction = void (*)(Run&);
CF_FOR_EACH_ISA(reduce_for, ReduceFunction, Run&, reduce)

template <class Format>
void reduce_run(Run& run, Isa isa) {
  (run.weight ? reduce_for<Kind<Format, float, true>> : reduce_for<Kind<Format, float, false>>)(isa)(run);
  // A float32 square overflows from 1.8e19 on and underflows below 1e-19; such runs are summed in double.
  constexpr double kTooSmall = 1e-24;
  if (run.squares >= kTooSmall && std::isfinite(run.squares) && std::isfinite(run.dot)) return;
  (run.weight ? reduce_for<Kind<Format, double, true>> : reduce_for<Kind<Format, double, false>>)(isa)(run);
}

struct Piece {
  const GradTensor* tensor;
  Chunk chunk;
};

// Tensors with a weight are cut at rows, so that one chunk has the whole dot of a row; the others are one long row.
std::vector<Piece> cut(const std::vector<GradTensor>& tensors) {
  std::vector<Piece> pieces;
  for (const GradTensor& t : tensors) {
    const int64_t target = t.weight ? std::max(kChunk, t.columns) : kChunk;
    const int64_t count = chunk_count(t.rows, t.columns, target);
    for (int64_t index = 0; index < count; ++index) {
      pieces.push_back({&t, chunk_at(index, t.rows, t.columns, target)});
    }
  }
  return pieces;
}

}  // namespace

GradNorm grad_norm(const std::vector<GradTensor>& tensors, float max_norm, int threads) {
  int64_t elements = 0;
  for (const GradTensor& t : tensors) elements += t.rows * t.columns;
  const int busy = threads_for(elements / 8, threads);  // 8: an element costs little more than its read
  const Isa isa = current_isa();
  const std::vector<Piece> pieces = cut(tensors);
  std::vector<double> sums(pieces.size());
  parallel_for(static_cast<int64_t>(pieces.size()), busy, [&](int64_t index) {
    const GradTensor& t = *pieces[static_cast<size_t>(index)].tensor;
    const Chunk chunk = pieces[static_cast<size_t>(index)].chunk;
    const auto at = [&](const void* data, int64_t element) {
      return data ? static_cast<const char*>(data) + element * (t.bf16 ? 2 : 4) : nullptr;
    };
    double sum = 0;
    for (int64_t row = chunk.row; row < chunk.row_end; ++row) {
      const int64_t begin = row * t.columns + chunk.column;
      Run run{at(t.grad, begin), at(t.weight, begin), chunk.column_end - chunk.column, 0, 0};
      (t.bf16 ? reduce_run<Bfloat16Pair> : reduce_run<Float32>)(run, isa);
      sum += run.squares;
      if (t.weight) t.row_dots[row] = static_cast<float>(run.dot);
    }
    sums[static_cast<size_t>(index)] = sum;
  });

  double total = 0;
  for (const double sum : sums) total += sum;
  const float norm = static_cast<float>(std::sqrt(total));
  if (!std::isfinite(norm)) return {norm, 0.0f, 1.0f};
  return {norm, std::min(1.0f, max_norm / (norm + 1e-6f)), 0.0f};
}

}  // namespace cofitune
