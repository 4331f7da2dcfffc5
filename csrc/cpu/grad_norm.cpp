// The sum of squares behind grad_norm: pieces and lanes are fixed, so that neither the number of threads nor the
// instruction set changes a bit of the result.
#include <algorithm>

#include "isa.h"
#include "kernels.h"
#include "parallel.h"
#include "storage.h"

namespace cofitune {
namespace {

constexpr int64_t kPiece = 1 << 15;
constexpr int kLanes = 32;

struct Run {
  const void* data;
  int64_t size;
  double* sum;
};

// Squares in double: those of float32 overflow from 1.8e19 on.
template <class Storage>
CF_BODY void square_and_add(const Run& run) {
  const auto* __restrict data = static_cast<const typename Storage::Value*>(run.data);
  double lanes[kLanes] = {};
  int64_t i = 0;
  for (; i + kLanes <= run.size; i += kLanes) {
    for (int lane = 0; lane < kLanes; ++lane) {
      const double value = Storage::load(data[i + lane]);
      lanes[lane] += value * value;
    }
  }
  for (int lane = 0; i < run.size; ++i, ++lane) {
    const double value = Storage::load(data[i]);
    lanes[lane] += value * value;
  }
  double sum = 0;
  for (int lane = 0; lane < kLanes; ++lane) sum += lanes[lane];
  *run.sum = sum;
}

using SumFunction = void (*)(const Run&);
CF_FOR_EACH_ISA(sum_for, SumFunction, const Run&, square_and_add)

struct Piece {
  const GradTensor* tensor;
  int64_t begin;
};

}  // namespace

double sum_of_squares(const std::vector<GradTensor>& tensors, int threads) {
  std::vector<Piece> pieces;
  int64_t elements = 0;
  for (const GradTensor& tensor : tensors) {
    elements += tensor.size;
    for (int64_t begin = 0; begin < tensor.size; begin += kPiece) pieces.push_back({&tensor, begin});
  }
  const SumFunction of_float = sum_for<Float32>(current_isa()), of_bf16 = sum_for<Bfloat16>(current_isa());
  std::vector<double> sums(pieces.size());
  parallel_for(static_cast<int64_t>(pieces.size()), threads_for(elements, threads), [&](int64_t index) {
    const GradTensor& t = *pieces[index].tensor;
    const int64_t begin = pieces[index].begin;
    const char* data = static_cast<const char*>(t.data) + begin * (t.bf16 ? 2 : 4);
    (t.bf16 ? of_bf16 : of_float)(Run{data, std::min(kPiece, t.size - begin), &sums[index]});
  });
  double total = 0;
  for (const double sum : sums) total += sum;
  return total;
}

}  // namespace cofitune
