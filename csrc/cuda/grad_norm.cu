// grad_norm: one launch for the chunks of up to 600 tensors, and one for norm, factor and flag from their sums.
#include "grad_norm.cuh"
#include "place.h"

namespace cofitune::cuda {

int64_t grad_norm_partials(const std::vector<GradTensor>& tensors) {
  int64_t count = 0;
  for (const GradTensor& tensor : tensors) count += norm_chunks(tensor);
  return count;
}

void grad_norm(const std::vector<GradTensor>& tensors, double* partials, float max_norm, GradNorm result, Place place) {
  const OnDevice guard(place.device);
  GradNormLaunch launch;
  launch.partials = partials;
  launch_in_tables(
      tensors, launch.table, [](const GradTensor& t) { return norm_chunks(t); },
      [&](int64_t blocks) {
        start("grad_norm", grad_norm_kernel, blocks, kNormThreads, place, launch);
        launch.partials += blocks;
      });
  const int64_t count = launch.partials - partials;
  start("grad_norm", grad_norm_finish, 1, kFinishThreads, place, partials, count, max_norm, result);
}

}  // namespace cofitune::cuda
