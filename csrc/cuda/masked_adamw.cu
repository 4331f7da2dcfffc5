// masked_adamw_: one launch for a list of up to 300 tensors.
#include <algorithm>
#include <iterator>

#include "kernels.h"
#include "masked_adamw.cuh"
#include "place.h"

namespace cofitune::cuda {
namespace {

using Kernel = void (*)(AdamwLaunch);

template <Storage kStorage, MaskMode kMode>
Kernel kernel_of(Pull pull) {
  switch (pull) {
    case Pull::kNone: return masked_adamw_kernel<kStorage, kMode, Pull::kNone>;
    case Pull::kL2: return masked_adamw_kernel<kStorage, kMode, Pull::kL2>;
    default: return masked_adamw_kernel<kStorage, kMode, Pull::kL1>;
  }
}

template <Storage kStorage>
Kernel kernel_of(MaskMode mode, Pull pull) {
  return mode == MaskMode::kUpdate ? kernel_of<kStorage, MaskMode::kUpdate>(pull)
                                   : kernel_of<kStorage, MaskMode::kGradient>(pull);
}

Kernel kernel_of(Storage storage, MaskMode mode, Pull pull) {
  switch (storage) {
    case Storage::kFp32: return kernel_of<Storage::kFp32>(mode, pull);
    case Storage::kBf16Split: return kernel_of<Storage::kBf16Split>(mode, pull);
    case Storage::kBf16Sr: return kernel_of<Storage::kBf16Sr>(mode, pull);
    case Storage::kBf16: return kernel_of<Storage::kBf16>(mode, pull);
    default: return kernel_of<Storage::kInt8>(mode, pull);
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
  for (const bool anchored : {false, true}) {  // a pull changes the formula, and so the kernel
    std::vector<AdamwTensor> part;
    std::copy_if(tensors.begin(), tensors.end(), std::back_inserter(part),
                 [&](const AdamwTensor& t) { return (t.anchor != nullptr) == anchored; });
    const Kernel kernel = kernel_of(options.storage, options.mode, anchored ? options.pull : Pull::kNone);
    launch_in_tables(
        part, launch.table, [](const AdamwTensor& t) { return chunk_count(t.rows, t.columns, kChunk); },
        [&](int64_t blocks) { start("masked_adamw_", kernel, blocks, kThreads, place, launch); });
  }
}

}  // namespace cofitune::cuda
