// Softmax of rows of logits in two passes over memory. The first computes a row's log-sum-exp. The second overwrites
// the logits by the probabilities times a factor of the row. In between, the caller may still read single logits.
#include <algorithm>
#include <cmath>
#include <limits>

#include "exponential.h"
#include "isa.h"
#include "kernels.h"
#include "parallel.h"
#include "storage.h"

namespace cofitune {
namespace {

constexpr int64_t kBlock = 16 * kLanes;  // each lane adds 16 terms in float32 before it adds them to a double

struct SumRow {
  const void* logits;
  int64_t size;
  float log_sum;  // result
};

template <class Format>
CF_BODY void sum_row(SumRow& row) {
  const auto* __restrict logits = static_cast<const typename Format::Value*>(row.logits);
  float maxima[kLanes];
  for (float& maximum : maxima) maximum = -std::numeric_limits<float>::infinity();
  for (int64_t i = 0; i < row.size; i += kLanes) {
    const int64_t lanes = std::min(kLanes, row.size - i);
    for (int64_t lane = 0; lane < lanes; ++lane) {
      const float value = Format::read(logits[i + lane]);
      maxima[lane] = value > maxima[lane] ? value : maxima[lane];
    }
  }
  float largest = maxima[0];
  for (const float maximum : maxima) largest = maximum > largest ? maximum : largest;
  if (std::isinf(largest)) {  // inf - inf would be NaN; the sum is NaN only if a logit is, which no maximum shows
    row.log_sum = largest;
    for (int64_t i = 0; i < row.size; ++i) {
      const float value = Format::read(logits[i]);
      if (value != value) row.log_sum = value;
    }
    return;
  }

  double all[kLanes] = {};
  for (int64_t block = 0; block < row.size; block += kBlock) {
    float sums[kLanes] = {};
    const int64_t end = std::min(block + kBlock, row.size);
    for (int64_t i = block; i < end; i += kLanes) {
      const int64_t lanes = std::min(kLanes, end - i);
      for (int64_t lane = 0; lane < lanes; ++lane) {
        sums[lane] += exp_of_negative(Format::read(logits[i + lane]) - largest);
      }
    }
    for (int64_t lane = 0; lane < kLanes; ++lane) all[lane] += sums[lane];
  }
  row.log_sum = static_cast<float>(largest + std::log(sum_lanes(all)));
}

struct ScaledRow {
  void* logits;
  int64_t size;
  float log_sum, scale;
};

template <class Format>
CF_BODY void scale_row(ScaledRow& row) {
  auto* __restrict logits = static_cast<typename Format::Value*>(row.logits);
  const float log_sum = row.log_sum, scale = row.scale;
  for (int64_t i = 0; i < row.size; ++i) {
    logits[i] = Format::round(exp_of_negative(Format::read(logits[i]) - log_sum) * scale);
  }
}

using SumFunction = void (*)(SumRow&);
using ScaleFunction = void (*)(ScaledRow&);
CF_FOR_EACH_ISA(sum_for, SumFunction, SumRow&, sum_row)
CF_FOR_EACH_ISA(scale_for, ScaleFunction, ScaledRow&, scale_row)

int64_t row_bytes(const Logits& logits) { return logits.vocabulary * (logits.bf16 ? 2 : 4); }

}  // namespace

void log_sum_exp(const Logits& logits, float* log_sums, int threads) {
  const SumFunction work = logits.bf16 ? sum_for<Bfloat16>(current_isa()) : sum_for<Float32>(current_isa());
  parallel_for(logits.rows, threads_for(logits.rows * logits.vocabulary, threads), [&](int64_t index) {
    SumRow row{static_cast<const char*>(logits.values) + index * row_bytes(logits), logits.vocabulary, 0};
    work(row);
    log_sums[index] = row.log_sum;
  });
}

void scaled_softmax(const Logits& logits, const float* log_sums, const float* scales, int threads) {
  const ScaleFunction work = logits.bf16 ? scale_for<Bfloat16>(current_isa()) : scale_for<Float32>(current_isa());
  parallel_for(logits.rows, threads_for(logits.rows * logits.vocabulary, threads), [&](int64_t index) {
    ScaledRow row{static_cast<char*>(logits.values) + index * row_bytes(logits), logits.vocabulary, log_sums[index],
                  scales[index]};
    work(row);
  });
}

}  // namespace cofitune
