// A list of tensors as one kernel parameter, and the assignment of a launch's blocks to chunks of tensors. It contains
// no CUDA, so that the arithmetic is tested on the host, at sizes that do not fit into memory.
#pragma once

#include <cstddef>
#include <stdexcept>
#include <vector>

#include "cofitune/chunks.h"

namespace cofitune::cuda {

constexpr size_t kParameterBytes = 32764;    // limit per kernel, from CUDA 12.1 and compute capability 7.0 on
constexpr int64_t kBlockLimit = 2147483647;  // limit of a launch in x

// Passed by value: nothing is allocated or copied, and a CUDA graph keeps it.
template <class Tensor, int kCapacity>
struct TensorTable {
  Tensor tensors[kCapacity];
  uint32_t first_block[kCapacity];
  int32_t count;
};

// Returns the last tensor whose first block is not after `block`; each tensor in a table has at least one block.
CF_HD int tensor_of_block(const uint32_t* first_block, int count, uint32_t block) {
  int low = 0;
  for (int high = count; high - low > 1;) {
    const int middle = (low + high) / 2;
    (first_block[middle] <= block ? low : high) = middle;
  }
  return low;
}

// Fills `table` as often as needed and calls launch(number of blocks) each time. `chunks` gives a tensor's number of
// chunks; tensors without any are left out.
template <class Tensor, int kCapacity, class Chunks, class Launch>
void launch_in_tables(const std::vector<Tensor>& tensors, TensorTable<Tensor, kCapacity>& table, const Chunks& chunks,
                      const Launch& launch, int64_t block_limit = kBlockLimit) {
  int64_t blocks = 0;
  const auto flush = [&] {
    if (table.count > 0) launch(blocks);
    table.count = 0;
    blocks = 0;
  };
  table.count = 0;
  for (const Tensor& tensor : tensors) {
    const int64_t count = chunks(tensor);
    if (count == 0) continue;
    if (count > block_limit) throw std::length_error("a tensor has more chunks than a launch may have blocks");
    if (table.count == kCapacity || blocks + count > block_limit) flush();
    table.tensors[table.count] = tensor;
    table.first_block[table.count++] = static_cast<uint32_t>(blocks);
    blocks += count;
  }
  flush();
}

}  // namespace cofitune::cuda
