// What of csrc/cuda is plain arithmetic, for tests through ctypes.
#include "cofitune/eight_bit.h"
#include "cuda/plain.h"
#include "cuda/tensor_table.h"

using namespace cofitune;
using namespace cofitune::cuda;

namespace {

struct Matrix {
  int64_t rows, columns;
};

// Whether the fewer instructions give the code of eight_bit.h, wherever they are said to.
template <class Moment>
bool same_code(float x, uint32_t random16) {
  return !is_normal<Moment>(x) || plain_encode<Moment>(x, random16) == Moment::encode(x, random16);
}

template <class Moment>
int first_wrong_decode() {
  for (uint32_t code = 0; code <= Moment::kMaxCode; ++code) {
    if (plain_decode<Moment>(code) != Moment::decode(code)) return static_cast<int>(code);
  }
  return -1;
}

}  // namespace

extern "C" {

int wrong_decode() {
  const int first = first_wrong_decode<FirstMoment>();
  return first >= 0 ? first : first_wrong_decode<SecondMoment>();
}

// The number of wrong ones among `count` values and random numbers.
int64_t wrong_encodes(const float* x, const uint32_t* random16, int64_t count) {
  int64_t wrong = 0;
  for (int64_t i = 0; i < count; ++i) {
    wrong += !same_code<FirstMoment>(x[i], random16[i]) || !same_code<SecondMoment>(x[i], random16[i]);
  }
  return wrong;
}

// The same for rounding to bfloat16.
int64_t wrong_roundings(const float* x, const uint32_t* random16, int64_t count) {
  int64_t wrong = 0;
  for (int64_t i = 0; i < count; ++i) {
    wrong += is_finite(x[i]) && plain_stochastic_bits(x[i], random16[i]) != stochastic_bits(x[i], random16[i]);
  }
  return wrong;
}

// Launches of a list of matrices, in tables of four: for each launch the number of blocks, the number of tensors, and
// four times the tensor's rows and first block. Returns how many launches there were, -1 if it was refused.
int64_t launches(const int64_t* rows, const int64_t* columns, int64_t count, int64_t target, int64_t block_limit,
                 int64_t* result) {
  std::vector<Matrix> matrices;
  for (int64_t i = 0; i < count; ++i) matrices.push_back({rows[i], columns[i]});
  TensorTable<Matrix, 4> table;
  int64_t launches = 0;
  try {
    launch_in_tables(
        matrices, table, [&](const Matrix& m) { return chunk_count(m.rows, m.columns, target); },
        [&](int64_t blocks) {
          ++launches;
          *result++ = blocks;
          *result++ = table.count;
          for (int i = 0; i < 4; ++i) {
            *result++ = i < table.count ? table.tensors[i].rows : 0;
            *result++ = i < table.count ? table.first_block[i] : 0;
          }
        },
        block_limit);
  } catch (const std::length_error&) {
    return -1;
  }
  return launches;
}

int tensor_of(const uint32_t* first_block, int count, uint32_t block) {
  return tensor_of_block(first_block, count, block);
}
}
