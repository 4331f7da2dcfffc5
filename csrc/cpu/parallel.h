// Threads for one call: started if there is enough work, and joined before the call returns. This avoids a thread pool
// and a second OpenMP runtime beside torch's.
#pragma once

#include <algorithm>
#include <cstdint>
#include <mutex>
#include <system_error>
#include <thread>
#include <vector>

namespace cofitune {

// Returns how many threads are worth starting: each needs about 100 us of work, because starting one costs 20 us.
inline int threads_for(int64_t elements, int threads) {
  constexpr int64_t kElementsPerThread = 1 << 16;
  return static_cast<int>(std::clamp<int64_t>(elements / kElementsPerThread, 1, std::max(1, threads)));
}

// A thread's part of the indices. The thread takes them in order, so that the CPU's prefetchers see long streams.
// Threads that have finished their own part take indices from the end of others.
class alignas(64) Share {
 public:
  static constexpr int64_t kNone = -1;

  void assign(int64_t begin, int64_t end) {
    begin_ = begin;
    end_ = end;
  }
  int64_t take_first() {
    const std::scoped_lock lock(mutex_);
    return begin_ < end_ ? begin_++ : kNone;
  }
  int64_t take_last() {
    const std::scoped_lock lock(mutex_);
    return begin_ < end_ ? --end_ : kNone;
  }

 private:
  std::mutex mutex_;
  int64_t begin_ = 0, end_ = 0;
};

// Returns false if the system allows no more threads.
template <class Work>
bool start_thread(std::vector<std::thread>& threads, const Work& work) {
  try {
    threads.emplace_back(work);
    return true;
  } catch (const std::system_error&) {
    return false;
  }
}

// Calls work(index) once for each index in [0, count), on up to `threads` threads. `work` must not throw, and its
// results must not depend on which thread does what.
template <class Work>
void parallel_for(int64_t count, int threads, const Work& work) {
  const int64_t parts = std::clamp<int64_t>(count, 1, std::max(1, threads));
  std::vector<Share> shares(static_cast<size_t>(parts));
  for (int64_t part = 0; part < parts; ++part) {
    const int64_t each = count / parts, longer = count % parts;  // the first shares are longer by one
    const int64_t begin = part * each + std::min(part, longer);
    shares[static_cast<size_t>(part)].assign(begin, begin + each + (part < longer ? 1 : 0));
  }
  const auto drain = [&](int64_t own) {
    for (int64_t index; (index = shares[static_cast<size_t>(own)].take_first()) != Share::kNone;) work(index);
    for (int64_t step = 1; step < parts; ++step) {
      Share& other = shares[static_cast<size_t>((own + step) % parts)];
      for (int64_t index; (index = other.take_last()) != Share::kNone;) work(index);
    }
  };
  std::vector<std::thread> helpers;
  helpers.reserve(static_cast<size_t>(parts));
  for (int64_t part = 1; part < parts; ++part) {
    if (!start_thread(helpers, [&drain, part] { drain(part); })) break;  // the running threads take over its part
  }
  drain(0);
  for (std::thread& helper : helpers) helper.join();
}

}  // namespace cofitune
