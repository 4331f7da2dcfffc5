// One tensor of masked_adamw_ for kernels on host and device: a matrix whose columns are the tensor's last dimension.
// Python has checked the arguments.
#pragma once

#include "adamw_element.h"

namespace cofitune {

// Storage formats of p, g, m and v; cofitune_fast/ops/_storage.py has the same list in the same order.
enum class Storage : uint8_t { kFp32, kBf16Split, kBf16Sr, kBf16, kInt8 };

// Layout of factors over a matrix: none, one for all, one per row, one per column, one per element.
enum class Layout : uint8_t { kNone, kOne, kRow, kColumn, kElement };

struct AdamwTensor {
  void* p;
  void* g;
  void* m;
  void* v;
  uint16_t* remainder;  // kBf16Split: the lower halves of p
  float* scales;        // kInt8: [rows, blocks of a row, 2], scales of m and v
  const void* mask;     // float, or uint8_t in units of 1/255
  const void* anchor;   // stored as p is; null: no pull
  const float* pull;    // strengths of the pull toward the anchor
  int64_t rows;
  int64_t columns;
  uint64_t offset;  // random counter of the first element
  Layout mask_layout;
  Layout pull_layout;
  bool mask_is_bytes;
};

// Returns the index of an element's factor.
CF_HD int64_t factor_index(Layout layout, int64_t row, int64_t column, int64_t columns) {
  switch (layout) {
    case Layout::kRow: return row;
    case Layout::kColumn: return column;
    case Layout::kElement: return row * columns + column;
    default: return 0;
  }
}

CF_HD float byte_factor(uint8_t value) { return static_cast<float>(value) * (1.0f / 255.0f); }

}  // namespace cofitune
