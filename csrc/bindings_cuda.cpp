// Passes raw device addresses, sizes, flags, a device and a stream from Python to the CUDA kernels. It does not use
// torch's C++ interface, so one build works with every torch version. The checks are in cofitune_fast/ops.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "cuda/kernels.h"
#include "tensor_lists.h"

namespace py = pybind11;
using namespace cofitune;

namespace {

void masked_adamw(const Addresses& p, const Addresses& g, const Addresses& m, const Addresses& v,
                  const Addresses& remainder, const Addresses& scales, const Addresses& mask, const Addresses& anchor,
                  const Addresses& pull, const Sizes& shapes, const Sizes& offset, std::uintptr_t scalars,
                  std::uintptr_t clip, bool mask_gradient, int pull_kind, int storage, bool zero_grad, int64_t seed,
                  int device, std::uintptr_t stream) {
  cuda::masked_adamw(adamw_tensors(p, g, m, v, remainder, scales, mask, anchor, pull, shapes, offset),
                     {pointer<const int64_t>(scalars), pointer<const float>(clip),
                      mask_gradient ? MaskMode::kGradient : MaskMode::kUpdate, static_cast<Pull>(pull_kind),
                      static_cast<Storage>(storage), zero_grad, static_cast<uint64_t>(seed)},
                     {device, pointer<void>(stream)});
}

// `shapes` has rows and columns for each tensor; `weights` and `row_dots` are empty where no row dots are asked for.
std::vector<cuda::GradTensor> grad_tensors(const Addresses& grads, const Addresses& weights, const Addresses& row_dots,
                                           const Sizes& shapes, const std::vector<bool>& bf16) {
  std::vector<cuda::GradTensor> tensors;
  tensors.reserve(grads.size());
  for (size_t i = 0; i < grads.size(); ++i) {
    tensors.push_back({address<const void>(grads, i), address<const void>(weights, i), address<float>(row_dots, i),
                       shapes.at(2 * i), shapes.at(2 * i + 1), bf16.at(i)});
  }
  return tensors;
}

int64_t grad_norm_partials(const Addresses& grads, const Addresses& weights, const Addresses& row_dots,
                           const Sizes& shapes, const std::vector<bool>& bf16) {
  return cuda::grad_norm_partials(grad_tensors(grads, weights, row_dots, shapes, bf16));
}

void grad_norm(const Addresses& grads, const Addresses& weights, const Addresses& row_dots, const Sizes& shapes,
               const std::vector<bool>& bf16, std::uintptr_t partials, float max_norm, std::uintptr_t norm,
               std::uintptr_t clip, int device, std::uintptr_t stream) {
  cuda::grad_norm(grad_tensors(grads, weights, row_dots, shapes, bf16), pointer<double>(partials), max_norm,
                  {pointer<float>(norm), pointer<float>(clip)}, {device, pointer<void>(stream)});
}

}  // namespace

PYBIND11_MODULE(_native_cuda, module) {
  module.doc() = "CUDA kernels of cofitune_fast; called by cofitune_fast.ops only.";
  module.attr("INTERFACE") = 2;  // cofitune_fast/ops/cuda.py expects this number: raise both when a signature changes
  module.def("masked_adamw", &masked_adamw, py::call_guard<py::gil_scoped_release>());
  module.def("grad_norm_partials", &grad_norm_partials);
  module.def("grad_norm", &grad_norm, py::call_guard<py::gil_scoped_release>());
  module.def("device_error", &cuda::device_error);
}
