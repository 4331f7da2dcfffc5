// unit_importance_: a task is one sample and a tile of columns; the samples' results are then added in order.
#include <algorithm>
#include <cmath>

#include "isa.h"
#include "kernels.h"
#include "parallel.h"
#include "storage.h"

namespace cofitune {
namespace {

constexpr int64_t kTile = 512;  // columns whose sums are gathered at a time: 4 KB of doubles stay in the first cache

// sums[d] += y[d] * grad_y[d] of one token
struct Run {
  const void* y;
  const void* grad_y;
  double* sums;
  int64_t size;
};

template <class Storage>
CF_BODY void add_products(const Run& run) {
  using Value = typename Storage::Value;
  const Value* __restrict y = static_cast<const Value*>(run.y);
  const Value* __restrict grad_y = static_cast<const Value*>(run.grad_y);
  double* __restrict sums = run.sums;
  for (int64_t d = 0; d < run.size; ++d) {
    sums[d] += static_cast<double>(Storage::load(y[d])) * static_cast<double>(Storage::load(grad_y[d]));
  }
}

using AddFunction = void (*)(const Run&);
CF_FOR_EACH_ISA(add_for, AddFunction, const Run&, add_products)

}  // namespace

void unit_importance(const ImportanceInput& in, int threads) {
  const int64_t units = in.width / in.unit_size, samples = in.batch / in.passes, bytes = in.bf16 ? 2 : 4;
  const int64_t units_per_tile = std::max<int64_t>(1, kTile / in.unit_size);
  const int64_t tiles = (units + units_per_tile - 1) / units_per_tile;
  const AddFunction add = in.bf16 ? add_for<Bfloat16>(current_isa()) : add_for<Float32>(current_isa());
  std::vector<double> gate_gradients(static_cast<size_t>(samples * units));

  parallel_for(samples * tiles, threads_for(in.batch * in.tokens * in.width, threads), [&](int64_t task) {
    const int64_t sample = task / tiles, first_unit = task % tiles * units_per_tile;
    const int64_t last_unit = std::min(units, first_unit + units_per_tile);
    const int64_t first = first_unit * in.unit_size, width = (last_unit - first_unit) * in.unit_size;
    std::vector<double> buffer(static_cast<size_t>(width));
    double* sums = buffer.data();
    const int64_t rows = in.passes * in.tokens;
    for (int64_t row = sample * rows; row < (sample + 1) * rows; ++row) {
      if (in.attention_mask && !in.attention_mask[row]) continue;
      const int64_t at = (row * in.width + first) * bytes;
      add(Run{static_cast<const char*>(in.y) + at, static_cast<const char*>(in.grad_y) + at, sums, width});
    }
    for (int64_t unit = first_unit; unit < last_unit; ++unit) {
      double sum = 0;
      for (int64_t column = 0; column < in.unit_size; ++column) sum += *sums++;
      gate_gradients[static_cast<size_t>(sample * units + unit)] = std::fabs(sum);
    }
  });

  for (int64_t unit = 0; unit < units; ++unit) {
    double sum = 0;
    for (int64_t sample = 0; sample < samples; ++sample) sum += gate_gradients[static_cast<size_t>(sample * units + unit)];
    in.scores[unit] += static_cast<float>(sum);
  }
}

}  // namespace cofitune
