// Device and stream of a launch, and its CUDA errors.
#pragma once

#include <cuda_runtime.h>

#include <stdexcept>
#include <string>

#include "kernels.h"

namespace cofitune::cuda {

inline void check(cudaError_t status, const std::string& what) {
  if (status != cudaSuccess) throw std::runtime_error(what + ": " + cudaGetErrorString(status) + ".");
}

// Makes a device current, and restores the former one at the end.
class OnDevice {
 public:
  explicit OnDevice(int device) {
    check(cudaGetDevice(&former_), "no CUDA device can be used");
    check(cudaSetDevice(device), "CUDA device " + std::to_string(device) + " cannot be used");
  }
  ~OnDevice() { cudaSetDevice(former_); }
  OnDevice(const OnDevice&) = delete;
  OnDevice& operator=(const OnDevice&) = delete;

 private:
  int former_ = 0;
};

template <class... Parameters, class... Arguments>
void start(const std::string& op, void (*kernel)(Parameters...), int64_t blocks, int threads, Place place,
           const Arguments&... arguments) {
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(blocks));
  config.blockDim = dim3(static_cast<unsigned>(threads));
  config.stream = static_cast<cudaStream_t>(place.stream);
  check(cudaLaunchKernelEx(&config, kernel, arguments...), op + ": its CUDA kernel did not start");
}

}  // namespace cofitune::cuda
