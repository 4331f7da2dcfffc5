// Passes raw addresses, sizes and flags from Python to the kernels. It does not use torch's C++ interface, so one build
// works with every torch version. The checks are in cofitune_fast/ops.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstdint>
#include <stdexcept>
#include <vector>

#include "cofitune/chunks.h"
#include "cpu/isa.h"
#include "cpu/kernels.h"
#include "tensor_lists.h"

namespace py = pybind11;
using cofitune::address;
using cofitune::Addresses;
using cofitune::pointer;
using cofitune::Sizes;

namespace {

void masked_adamw(const Addresses& p, const Addresses& g, const Addresses& m, const Addresses& v,
                  const Addresses& remainder, const Addresses& scales, const Addresses& mask, const Addresses& anchor,
                  const Addresses& pull, const Sizes& shapes, const Sizes& offset,
                  const std::vector<double>& coefficients, std::uintptr_t clip, bool mask_gradient, int pull_kind,
                  int storage, bool zero_grad, int64_t seed, int64_t step, int threads) {
  const auto tensors = cofitune::adamw_tensors(p, g, m, v, remainder, scales, mask, anchor, pull, shapes, offset);
  const auto c = [&](size_t i) { return static_cast<float>(coefficients.at(i)); };
  cofitune::masked_adamw(tensors, {{c(0), c(1), c(2), c(3), c(4), c(5), c(6), c(7)},
                                   pointer<const float>(clip),
                                   mask_gradient ? cofitune::MaskMode::kGradient : cofitune::MaskMode::kUpdate,
                                   static_cast<cofitune::Pull>(pull_kind),
                                   static_cast<cofitune::Storage>(storage),
                                   zero_grad,
                                   static_cast<uint64_t>(seed),
                                   static_cast<uint64_t>(step),
                                   threads});
}

// Row and column ranges, four numbers per chunk; lets tests check the arithmetic at sizes that do not fit into memory.
Sizes chunk(int64_t index, int64_t rows, int64_t columns, int64_t target) {
  const cofitune::Chunk c = cofitune::chunk_at(index, rows, columns, target);
  return {c.row, c.row_end, c.column, c.column_end};
}

// `shapes` has rows and columns for each tensor; `weights` and `row_dots` are empty where no row dots are asked for.
void grad_norm(const Addresses& grads, const Addresses& weights, const Addresses& row_dots, const Sizes& shapes,
               const std::vector<bool>& bf16, float max_norm, std::uintptr_t norm, std::uintptr_t clip, int threads) {
  std::vector<cofitune::GradTensor> tensors;
  tensors.reserve(grads.size());
  for (size_t i = 0; i < grads.size(); ++i) {
    tensors.push_back({address<const void>(grads, i), address<const void>(weights, i), address<float>(row_dots, i),
                       shapes.at(2 * i), shapes.at(2 * i + 1), bf16.at(i)});
  }
  const cofitune::GradNorm result = cofitune::grad_norm(tensors, max_norm, threads);
  *pointer<float>(norm) = result.norm;
  pointer<float>(clip)[0] = result.factor;
  pointer<float>(clip)[1] = result.skip;
}

void unit_importance(std::uintptr_t scores, std::uintptr_t y, std::uintptr_t grad_y, std::uintptr_t attention_mask,
                     int64_t batch, int64_t tokens, int64_t width, int64_t unit_size, int64_t passes, bool bf16,
                     int threads) {
  cofitune::unit_importance({pointer<float>(scores), pointer<const void>(y), pointer<const void>(grad_y),
                             pointer<const uint8_t>(attention_mask), batch, tokens, width, unit_size, passes, bf16},
                            threads);
}

void kl_rows(std::uintptr_t z_p, std::uintptr_t z_q, std::uintptr_t kl, int64_t rows, int64_t vocabulary, float softcap,
             bool need_gradients, int threads) {
  const cofitune::KlInput input{pointer<float>(z_p), pointer<float>(z_q), pointer<float>(kl), rows, vocabulary, softcap,
                                need_gradients};
  cofitune::kl_rows(input, threads);
}

void log_sum_exp(std::uintptr_t logits, std::uintptr_t log_sums, int64_t rows, int64_t vocabulary, bool bf16,
                 int threads) {
  cofitune::log_sum_exp({pointer<void>(logits), rows, vocabulary, bf16}, pointer<float>(log_sums), threads);
}

void scaled_softmax(std::uintptr_t logits, std::uintptr_t log_sums, std::uintptr_t scales, int64_t rows,
                    int64_t vocabulary, bool bf16, int threads) {
  cofitune::scaled_softmax({pointer<void>(logits), rows, vocabulary, bf16}, pointer<const float>(log_sums),
                           pointer<const float>(scales), threads);
}

void use_isa(const std::string& name) {
  if (!cofitune::set_isa(name)) throw std::invalid_argument("this CPU does not have the instruction set " + name);
}

}  // namespace

PYBIND11_MODULE(_native, module) {
  module.doc() = "CPU kernels of cofitune_fast; called by cofitune_fast.ops only.";
  module.attr("INTERFACE") = 5;  // cofitune_fast/ops/native.py expects this number: raise both when a signature changes
  module.def("masked_adamw", &masked_adamw, py::call_guard<py::gil_scoped_release>());
  module.def("grad_norm", &grad_norm, py::call_guard<py::gil_scoped_release>());
  module.def("unit_importance", &unit_importance, py::call_guard<py::gil_scoped_release>());
  module.def("kl_rows", &kl_rows, py::call_guard<py::gil_scoped_release>());
  module.def("log_sum_exp", &log_sum_exp, py::call_guard<py::gil_scoped_release>());
  module.def("scaled_softmax", &scaled_softmax, py::call_guard<py::gil_scoped_release>());
  module.def("chunk_count", &cofitune::chunk_count);
  module.def("chunk", &chunk);
  module.def("isa", &cofitune::isa_name);
  module.def("use_isa", &use_isa);
}
