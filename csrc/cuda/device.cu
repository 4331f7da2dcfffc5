// Checks whether there is a CUDA device that the kernels can run on.
#include "kernels.h"
#include "place.h"

namespace cofitune::cuda {
namespace {

constexpr int kOldestCapability = 8;

std::string version(int number) { return std::to_string(number / 1000) + "." + std::to_string(number % 1000 / 10); }

}  // namespace

std::string device_error() {
  int driver = 0, devices = 0;
  if (cudaDriverGetVersion(&driver) != cudaSuccess || driver == 0)
    return "there is no NVIDIA driver and so no CUDA device";
  const cudaError_t status = cudaGetDeviceCount(&devices);
  cudaGetLastError();  // clear the error, so that the next launch does not report it
  if (status == cudaErrorInsufficientDriver) {
    return "the NVIDIA driver is too old (it serves CUDA " + version(driver) + ", this build needs " +
           version(CUDART_VERSION) + "); update the driver";
  }
  if (status == cudaErrorNoDevice || (status == cudaSuccess && devices == 0)) return "no CUDA device is visible";
  if (status != cudaSuccess) return std::string("CUDA does not start: ") + cudaGetErrorString(status);
  for (int device = 0; device < devices; ++device) {
    int capability = 0;
    if (cudaDeviceGetAttribute(&capability, cudaDevAttrComputeCapabilityMajor, device) == cudaSuccess &&
        capability >= kOldestCapability) {
      return "";
    }
  }
  return "no visible CUDA device has compute capability 8.0 or later";
}

}  // namespace cofitune::cuda
