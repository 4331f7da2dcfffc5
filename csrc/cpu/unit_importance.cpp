// unit_importance_: a task is a block of rows of one sample and a tile of columns. The sums of the blocks are then
// added in a fixed order.
#include <algorithm>
#include <cmath>

#include "isa.h"
#include "kernels.h"
#include "parallel.h"
#include "storage.h"

namespace cofitune {
namespace {

constexpr int64_t kBlock = 256;  // rows
constexpr int64_t kTile = 1024;  // smallest number of columns, unless there are fewer; their sums stay in the L1 cache
constexpr int kGroup = 8;        // rows whose products are added in float32 before they are added to a double

// sums[d] += the sum of y[d] * grad_y[d] over the rows of a group
struct Run {
  const void* y[kGroup];
  const void* grad_y[kGroup];
  double* sums;
  int64_t size;
};

template <class Format>
CF_BODY void add_group(const Run& run) {
  using Value = typename Format::Value;
  const Value *y[kGroup], *grad_y[kGroup];
  for (int k = 0; k < kGroup; ++k) {
    y[k] = static_cast<const Value*>(run.y[k]);
    grad_y[k] = static_cast<const Value*>(run.grad_y[k]);
  }
  double* __restrict sums = run.sums;
  for (int64_t d = 0; d < run.size; ++d) sums[d] += pairwise_products<Format, float, kGroup>(y, grad_y, d);
}

using AddFunction = void (*)(const Run&);
CF_FOR_EACH_ISA(add_for, AddFunction, const Run&, add_group)

// Adds the products of rows [begin, end) to sums[d], for the `width` columns from `first` on.
void add_block(const ImportanceInput& in, AddFunction add, int64_t begin, int64_t end, int64_t first, int64_t width,
               double* sums) {
  static const float kZeros[kTile] = {};  // stands for the missing rows of the last group, in either format
  Run run{{}, {}, sums, width};
  int filled = 0;
  for (int64_t row = begin; row < end; ++row) {
    if (in.attention_mask && in.attention_mask[row] == 0) continue;
    const int64_t at = (row * in.width + first) * (in.bf16 ? 2 : 4);
    run.y[filled] = static_cast<const char*>(in.y) + at;
    run.grad_y[filled] = static_cast<const char*>(in.grad_y) + at;
    if (++filled == kGroup) {
      add(run);
      filled = 0;
    }
  }
  if (filled == 0) return;
  for (; filled < kGroup; ++filled) run.y[filled] = run.grad_y[filled] = kZeros;
  add(run);
}

// Number of blocks or tiles of `size`.
int64_t count_of(int64_t total, int64_t size) { return (total + size - 1) / size; }

}  // namespace

void unit_importance(const ImportanceInput& in, int threads) {
  const int64_t samples = in.batch / in.passes, rows = in.passes * in.tokens, units = in.width / in.unit_size;
  const int64_t blocks = count_of(rows, kBlock), tiles = count_of(in.width, kTile);
  const AddFunction add = in.bf16 ? add_for<Bfloat16>(current_isa()) : add_for<Float32>(current_isa());
  std::vector<double> sums(static_cast<size_t>(samples * blocks * in.width));
  const auto sums_of = [&](int64_t sample, int64_t block) {
    return sums.data() + (sample * blocks + block) * in.width;
  };

  parallel_for(samples * blocks * tiles, threads_for(in.batch * in.tokens * in.width, threads), [&](int64_t task) {
    const int64_t sample = task / tiles / blocks, block = task / tiles % blocks, first = task % tiles * kTile;
    const int64_t begin = block * kBlock, end = std::min(begin + kBlock, rows);
    add_block(in, add, sample * rows + begin, sample * rows + end, first, std::min(kTile, in.width - first),
              sums_of(sample, block) + first);
  });

  const int64_t at_once = std::max<int64_t>(1, kTile / in.unit_size);
  parallel_for(count_of(units, at_once), threads_for(samples * blocks * in.width, threads), [&](int64_t task) {
    for (int64_t unit = task * at_once; unit < std::min(units, (task + 1) * at_once); ++unit) {
      double score = 0;
      for (int64_t sample = 0; sample < samples; ++sample) {
        double gate_gradient = 0;
        for (int64_t block = 0; block < blocks; ++block) {
          const double* columns = sums_of(sample, block) + unit * in.unit_size;
          for (int64_t i = 0; i < in.unit_size; ++i) gate_gradient += columns[i];
        }
        score += std::fabs(gate_gradient);
      }
      in.scores[unit] += static_cast<float>(score);
    }
  });
}

}  // namespace cofitune
