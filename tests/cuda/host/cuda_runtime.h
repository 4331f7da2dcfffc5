// Enough of CUDA to run csrc/cuda on the host: each thread of a block is a coroutine, blocks run one after another, and
// what the threads of a warp or a block exchange makes them wait for each other. It shows what the kernels compute, not
// how the device's compiler rounds, nor races between warps.
#pragma once

#include <setjmp.h>
#include <ucontext.h>

#include <array>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <memory>
#include <tuple>

#define __global__ static
#define __device__
#define __shared__ static
#define __grid_constant__
#define __launch_bounds__(...)

using cudaStream_t = void*;
enum cudaError_t { cudaSuccess, cudaErrorInsufficientDriver, cudaErrorNoDevice };
enum cudaDeviceAttr { cudaDevAttrComputeCapabilityMajor };
constexpr int CUDART_VERSION = 0;

struct dim3 {
  unsigned x = 1;
  dim3() = default;
  explicit dim3(unsigned value) : x(value) {}
};
struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  cudaStream_t stream = nullptr;
};

inline cudaError_t cudaGetDevice(int* device) { return *device = 0, cudaSuccess; }
inline cudaError_t cudaSetDevice(int) { return cudaSuccess; }
inline cudaError_t cudaGetLastError() { return cudaSuccess; }
inline cudaError_t cudaDriverGetVersion(int* version) { return *version = 1, cudaSuccess; }
inline cudaError_t cudaGetDeviceCount(int* count) { return *count = 1, cudaSuccess; }
inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr, int) { return *value = 8, cudaSuccess; }
inline const char* cudaGetErrorString(cudaError_t) { return "an emulated error"; }

inline dim3 threadIdx, blockIdx;

namespace emulation {

constexpr size_t kStackBytes = 1 << 16;
constexpr unsigned kWarp = 32, kMostThreads = 1024;

struct Thread {
  jmp_buf position;
  std::unique_ptr<char[]> stack;  // once it has been started; it then serves all blocks
  bool done;
  uint64_t given;  // to the others of its warp
};

inline Thread threads[kMostThreads];
inline jmp_buf scheduler;
inline ucontext_t start;
inline std::function<void()> body;
inline unsigned block_size, arrived;  // the latter at __syncthreads, since the block began
inline unsigned long launches;        // since the library was loaded

inline Thread& current() { return threads[threadIdx.x]; }

inline void yield() {
  if (!_setjmp(current().position)) _longjmp(scheduler, 1);
}

inline void thread_main() {
  for (;;) {
    body();
    current().done = true;
    yield();
  }
}

// Lets the current thread go on until it yields.
inline void resume() {
  if (_setjmp(scheduler)) return;
  if (current().stack) _longjmp(current().position, 1);
  current().stack.reset(new char[kStackBytes]);
  getcontext(&start);
  start.uc_stack = {current().stack.get(), 0, kStackBytes};
  makecontext(&start, thread_main, 0);
  setcontext(&start);
}

inline void run_block(unsigned size) {
  block_size = size;
  arrived = 0;
  for (unsigned thread = 0; thread < size; ++thread) threads[thread].done = false;
  for (bool running = true; running;) {
    running = false;
    for (threadIdx.x = 0; threadIdx.x < size; ++threadIdx.x) {
      if (current().done) continue;
      resume();
      running = true;
    }
  }
}

// What the lanes of the warp gave, once all have; they call it in step, as their masks are full.
template <class T>
std::array<T, kWarp> exchange(T value) {
  memcpy(&current().given, &value, sizeof(T));
  yield();
  std::array<T, kWarp> values;
  const Thread* const warp = &threads[threadIdx.x / kWarp * kWarp];
  for (unsigned lane = 0; lane < kWarp; ++lane) memcpy(&values[lane], &warp[lane].given, sizeof(T));
  yield();
  return values;
}

}  // namespace emulation

inline void __syncthreads() {
  const unsigned target = (emulation::arrived / emulation::block_size + 1) * emulation::block_size;
  ++emulation::arrived;
  while (emulation::arrived < target) emulation::yield();
}

inline int __any_sync(unsigned, int predicate) {
  for (const int value : emulation::exchange(predicate)) {
    if (value) return 1;
  }
  return 0;
}

inline unsigned __reduce_max_sync(unsigned, unsigned value) {
  unsigned largest = 0;
  for (const unsigned other : emulation::exchange(value)) largest = other > largest ? other : largest;
  return largest;
}

template <class T>
T __shfl_down_sync(unsigned, T value, unsigned lanes) {
  const auto values = emulation::exchange(value);
  const unsigned lane = threadIdx.x % emulation::kWarp + lanes;
  return lane < emulation::kWarp ? values[lane] : value;
}

template <class... Parameters, class... Arguments>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Parameters...),
                               const Arguments&... arguments) {
  std::tuple<std::decay_t<Parameters>...> parameters{arguments...};
  emulation::body = [&] { std::apply(kernel, parameters); };
  ++emulation::launches;
  for (blockIdx.x = 0; blockIdx.x < config->gridDim.x; ++blockIdx.x) emulation::run_block(config->blockDim.x);
  return cudaSuccess;
}
