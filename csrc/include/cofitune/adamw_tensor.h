// One tensor of masked_adamw_ as the kernels see it, on the host as on the device: a matrix of rows, its last dimension
// being the columns. Checks are made in Python before.
#pragma once

#include "adamw_element.h"

namespace cofitune {

// How p, g, m and v lie in memory; cofitune_fast/ops/_storage.py lists the same, in the same order.
enum class Storage : uint8_t { kFp32, kBf16Split, kBf16Sr, kBf16, kInt8 };

// How factors lie over a matrix: none, one for all, one per row, one per column, one per element.
enum class Layout : uint8_t { kNone, kOne, kRow, kColumn, kElement };

struct AdamwTensor {
  void* p;
  void* g;
  void* m;
  void* v;
  uint16_t* remainder;  // kBf16Split: the lower halves of p
  float* scales;        // kInt8: [rows, blocks of a row, 2], of m and of v
  const void* mask;     // float, or uint8_t in units of 1/255
  const void* anchor;   // as p; null: none
  const float* pull;    // strengths of the pull toward the anchor
  int64_t rows;
  int64_t columns;
  uint64_t offset;  // random counter of the first element
  Layout mask_layout;
  Layout pull_layout;
  bool mask_is_bytes;
};

// Where the factor of an element stands.
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
