// What memory gives at best to a pass that works in place on several streams, as an optimizer's does: every byte is
// read, marked streams are written back unchanged, nothing is computed. bandwidth.py compiles this for the machine it
// runs on.
#include <algorithm>
#include <cstdint>
#include <thread>
#include <vector>

namespace {

using Line = uint64_t __attribute__((vector_size(64), aligned(1), may_alias));
constexpr int64_t kBlock = 256;  // elements of one stream before the next stream has its turn

volatile uint64_t zero = 0;  // the compiler must not know it, or it would leave the writes out
volatile uint64_t sink;      // nor that nobody asks for what was read

struct Stream {
  char* data;
  int64_t width;  // bytes per element
  bool written;
};

template <bool kWritten>
void pass(char* data, int64_t bytes, int64_t ahead, Line key, Line& seen) {
  for (int64_t at = 0; at < bytes; at += sizeof(Line)) {
    if (ahead != 0) __builtin_prefetch(data + at + ahead, kWritten);
    Line& line = *reinterpret_cast<Line*>(data + at);
    if constexpr (kWritten)
      line ^= key;
    else
      seen |= line;
  }
}

// Elements [begin, end) of all streams; both are multiples of kBlock, or the end of the tensor (its last elements,
// fewer than a line of any stream, are left out).
void walk(const std::vector<Stream>& streams, int64_t begin, int64_t end, int64_t ahead, Line key, Line& seen) {
  for (int64_t first = begin; first < end; first += kBlock) {
    for (const Stream& stream : streams) {
      const int64_t bytes =
          std::min(kBlock, end - first) * stream.width / int64_t{sizeof(Line)} * int64_t{sizeof(Line)};
      (stream.written ? pass<true> : pass<false>)(stream.data + first * stream.width, bytes, ahead, key, seen);
    }
  }
}

}  // namespace

// `tensors` groups of `streams` arrays, stream by stream in `data`; arrays of one group have elements[group] elements
// of widths[stream] bytes. Each thread walks a contiguous share; `ahead` is the prefetch distance in bytes, 0 for none.
extern "C" void touch(int64_t tensors, int64_t streams, void* const* data, const int64_t* elements,
                      const int64_t* widths, const uint8_t* written, int64_t ahead, int64_t threads) {
  int64_t total = 0;
  for (int64_t t = 0; t < tensors; ++t) total += elements[t];
  const auto share = [&](int64_t thread) {
    const Line key = Line{} ^ zero;
    Line seen{};
    const int64_t from = total * thread / threads / kBlock * kBlock;
    const int64_t to = thread + 1 == threads ? total : total * (thread + 1) / threads / kBlock * kBlock;
    for (int64_t t = 0, start = 0; t < tensors; start += elements[t++]) {
      const int64_t begin = std::clamp<int64_t>((from - start + kBlock - 1) / kBlock * kBlock, 0, elements[t]);
      const int64_t end = std::clamp<int64_t>((to - start + kBlock - 1) / kBlock * kBlock, 0, elements[t]);
      std::vector<Stream> group;
      for (int64_t s = 0; s < streams; ++s)
        group.push_back({static_cast<char*>(data[s * tensors + t]), widths[s], written[s] != 0});
      walk(group, begin, end, ahead, key, seen);
    }
    sink = seen[0] | seen[1] | seen[2] | seen[3] | seen[4] | seen[5] | seen[6] | seen[7];
  };
  std::vector<std::thread> pool;
  for (int64_t thread = 1; thread < threads; ++thread) pool.emplace_back(share, thread);
  share(0);
  for (std::thread& thread : pool) thread.join();
}
