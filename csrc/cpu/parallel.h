// Threads for one call: started when there is enough work, joined before the call returns. No pool and no second
// OpenMP runtime beside torch's.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <system_error>
#include <thread>
#include <vector>

namespace cofitune {

// How many threads are worth starting: each must have some hundred microseconds of work, as starting one costs twenty.
inline int threads_for(int64_t elements, int threads) {
  constexpr int64_t kElementsPerThread = 1 << 16;
  return static_cast<int>(std::clamp<int64_t>(elements / kElementsPerThread, 1, std::max(1, threads)));
}

// Calls work(index) once for each index in [0, count), on up to `threads` threads. `work` must not throw, and its
// results must not depend on which thread does what.
template <class Work>
void parallel_for(int64_t count, int threads, const Work& work) {
  std::atomic<int64_t> next{0};
  const auto drain = [&] {
    for (int64_t index; (index = next.fetch_add(1, std::memory_order_relaxed)) < count;) work(index);
  };
  const int64_t helpers = std::min<int64_t>(threads, count) - 1;
  std::vector<std::thread> pool;
  try {
    pool.reserve(std::max<int64_t>(helpers, 0));
    for (int64_t started = 0; started < helpers; ++started) pool.emplace_back(drain);
  } catch (const std::system_error&) {
    // The system grants no more threads: those at hand do the work.
  }
  drain();
  for (auto& thread : pool) thread.join();
}

}  // namespace cofitune
