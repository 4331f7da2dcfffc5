// Cuts matrices into chunks for threads and thread blocks. Chunks are whole rows where rows are short, and pieces of
// one row where they are long, so that no chunk starts inside one row and ends in another. All sizes have 64 bits.
#pragma once

#include "portable.h"

namespace cofitune {

struct Chunk {
  int64_t row, row_end;
  int64_t column, column_end;
};

// `target`: largest number of elements per chunk, a multiple of kScaleBlock.
CF_HD int64_t chunk_count(int64_t rows, int64_t columns, int64_t target) {
  if (rows <= 0 || columns <= 0) return 0;
  if (columns > target) return rows * ((columns + target - 1) / target);
  const int64_t rows_each = target / columns;
  return (rows + rows_each - 1) / rows_each;
}

CF_HD Chunk chunk_at(int64_t index, int64_t rows, int64_t columns, int64_t target) {
  if (columns > target) {
    const int64_t pieces = (columns + target - 1) / target, row = index / pieces;
    const int64_t column = index % pieces * target;
    return {row, row + 1, column, column + target < columns ? column + target : columns};
  }
  const int64_t rows_each = target / columns, row = index * rows_each;
  return {row, row + rows_each < rows ? row + rows_each : rows, 0, columns};
}

}  // namespace cofitune
