// masked_adamw_: one launch for a list of up to 300 tensors.
#include <algorithm>
#include <iterator>

#include "kernels.h"
#include "masked_adamw.cuh"
#include "place.h"

namespace cofitune::cuda {
namespace {

using Kernel = void (*)(AdamwLaunch);

template <Storage kStorage>
Kernel kernel_of(MaskMode mode, bool anchored) {
  if (mode == MaskMode::kUpdate) {
    return anchored ? masked_adamw_kernel<kStorage, MaskMode::kUpdate, true>
                    : masked_adamw_kernel<kStorage, MaskMode::kUpdate, false>;
  }
  return anchored ? masked_adamw_kernel<kStorage, MaskMode::kGradient, true>
                  : masked_adamw_kernel<kStorage, MaskMode::kGradient, false>;
}

Kernel kernel_of(Storage storage, MaskMode mode, bool anchored) {
  switch (storage) {
    case Storage::kFp32: return kernel_of<Storage::kFp32>(mode, anchored);
    case Storage::kBf16Split: return kernel_of<Storage::kBf16Split>(mode, anchored);
    case Storage::kBf16Sr: return kernel_of<Storage::kBf16Sr>(mode, anchored);
    case Storage::kBf16: return kernel_of<Storage::kBf16>(mode, anchored);
    default: return kernel_of<Storage::kInt8>(mode, anchored);
  }
}

}  // namespace

void masked_adamw(const std::vector<AdamwTensor>& tensors, const AdamwOptions& options, Place place) {
  const OnDevice guard(place.device);
  AdamwLaunch launch;
  launch.scalars = options.scalars;
  launch.clip = options.clip;
  launch.seed = options.seed;
  launch.zero_grad = options.zero_grad;
  for (const bool anchored : {false, true}) {  // with and without a pull the formula differs, and so does the kernel
    std::vector<AdamwTensor> part;
    std::copy_if(tensors.begin(), tensors.end(), std::back_inserter(part),
                 [&](const AdamwTensor& t) { return (t.anchor != nullptr) == anchored; });
    const Kernel kernel = kernel_of(options.storage, options.mode, anchored);
    launch_in_tables(
        part, launch.table, [](const AdamwTensor& t) { return chunk_count(t.rows, t.columns, kChunk); },
        [&](int64_t blocks) { start("masked_adamw_", kernel, blocks, kThreads, place, launch); });
  }
}

}  // namespace cofitune::cuda
