// Mask factors or pull strengths of a chunk, by row and column inside the chunk.
#pragma once

#include "cofitune/adamw_tensor.h"
#include "cofitune/chunks.h"
#include "vector.h"

namespace cofitune::cuda {

class Factors {
 public:
  CF_HD Factors(const void* data, bool bytes, Layout layout, const Chunk& chunk, int64_t columns)
      : first_(nullptr),
        row_stride_(static_cast<int>(factor_index(layout, 1, 0, columns))),
        column_stride_(static_cast<int>(factor_index(layout, 0, 1, columns))),
        bytes_(bytes) {
    const int64_t index = factor_index(layout, chunk.row, chunk.column, columns);
    if (layout != Layout::kNone) first_ = static_cast<const char*>(data) + index * (bytes ? 1 : 4);
  }

  CF_HD bool by_column() const { return column_stride_ != 0; }

  // Returns the factor of a row; valid only if factors do not depend on the column.
  CF_HD float of_row(int row) const {
    if (!first_) return 1.0f;
    const int at = row * row_stride_;
    return bytes_ ? byte_factor(global(static_cast<const uint8_t*>(first_))[at])
                  : global(static_cast<const float*>(first_))[at];
  }

  template <bool kWhole, int kWidth>
  CF_HD void load(float (&to)[kWidth], int row, int column, int count) const {
    if (!by_column()) {
      const float factor = of_row(row);
#pragma unroll
      for (int i = 0; i < kWidth; ++i) to[i] = factor;
      return;
    }
    const int at = row * row_stride_ + column;
    if (bytes_) {
      Vector<uint8_t, kWidth> codes;
      cuda::load<kWhole>(codes, static_cast<const uint8_t*>(first_) + at, count);
#pragma unroll
      for (int i = 0; i < kWidth; ++i) to[i] = byte_factor(static_cast<uint8_t>(codes.bits(i)));
    } else {
      Vector<float, kWidth> factors;
      cuda::load<kWhole>(factors, static_cast<const float*>(first_) + at, count);
#pragma unroll
      for (int i = 0; i < kWidth; ++i) to[i] = bit_cast<float>(factors.bits(i));
    }
  }

 private:
  const void* first_;  // null: all factors are 1
  int row_stride_, column_stride_;
  bool bytes_;
};

}  // namespace cofitune::cuda
