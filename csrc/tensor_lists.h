// Converts lists of addresses and sizes from Python to the kernels' tensors. `table` in
// cofitune_fast/ops/_adamw_call.py makes the lists of masked_adamw_.
#pragma once

#include <cstdint>
#include <vector>

#include "cofitune/adamw_tensor.h"

namespace cofitune {

using Addresses = std::vector<std::uintptr_t>;
using Sizes = std::vector<int64_t>;

template <class T>
T* pointer(std::uintptr_t address) {
  return reinterpret_cast<T*>(address);
}

// Returns the address of a list's tensor; null for an empty list.
template <class T>
T* address(const Addresses& addresses, size_t index) {
  return addresses.empty() ? nullptr : pointer<T>(addresses.at(index));
}

// `shapes` has five numbers per tensor: rows, columns, the mask's layout, the pull's, whether the mask is in bytes.
inline std::vector<AdamwTensor> adamw_tensors(const Addresses& p, const Addresses& g, const Addresses& m,
                                              const Addresses& v, const Addresses& remainder, const Addresses& scales,
                                              const Addresses& mask, const Addresses& anchor, const Addresses& pull,
                                              const Sizes& shapes, const Sizes& offset) {
  std::vector<AdamwTensor> tensors;
  tensors.reserve(p.size());
  for (size_t i = 0; i < p.size(); ++i) {
    const auto shape = [&](size_t field) { return shapes.at(5 * i + field); };
    tensors.push_back({address<void>(p, i), address<void>(g, i), address<void>(m, i), address<void>(v, i),
                       address<uint16_t>(remainder, i), address<float>(scales, i), address<const void>(mask, i),
                       address<const void>(anchor, i), address<const float>(pull, i), shape(0), shape(1),
                       static_cast<uint64_t>(offset.at(i)), static_cast<Layout>(shape(2)),
                       static_cast<Layout>(shape(3)), shape(4) != 0});
  }
  return tensors;
}

}  // namespace cofitune
