// The kernel of masked_adamw_: a block works on one chunk of one tensor, a thread on one span of neighbors at a time.
// The launch is in masked_adamw.cu, so that tests can compile the kernel for the host too.
#pragma once

#include <new>

#include "factors.h"
#include "span.cuh"
#include "tensor_table.h"

namespace cofitune::cuda {

constexpr int kThreads = 256;
constexpr int64_t kChunk = 8192;  // elements; a small region of a few million gives some hundred blocks
static_assert(kChunk % kScaleBlock == 0);

struct AdamwLaunch {
  TensorTable<AdamwTensor, 300> table;
  const int64_t* scalars;
  const float* clip;
  uint64_t seed;
  bool zero_grad;
};
static_assert(sizeof(AdamwLaunch) <= kParameterBytes, "the list of tensors does not fit into a kernel's parameters");

// State shared by the threads of a block, and their work on one chunk.
template <Storage kStorage, MaskMode kMode, Pull kPull>
class AdamwChunk {
  using Part = Span<kStorage>;
  using Values = typename Part::Values;
  using Weight = typename Format<kStorage>::Weight;
  using Moment = typename Format<kStorage>::Moment;
  static constexpr int kWidth = Part::kWidth;
  static constexpr bool kAnchored = kPull != Pull::kNone;
  static constexpr bool kRemainder = kStorage == Storage::kBf16Split;
  static constexpr bool kScaled = kStorage == Storage::kInt8;

 public:
  __device__ AdamwChunk(const AdamwLaunch& launch, const AdamwTensor& t, const Chunk& chunk)
      : mask_(t.mask, t.mask_is_bytes, t.mask_layout, chunk, t.columns),
        pull_(t.pull, false, t.pull_layout, chunk, t.columns),
        pitch_(static_cast<int>(t.columns)),
        rows_(static_cast<int>(chunk.row_end - chunk.row)),
        columns_(static_cast<int>(chunk.column_end - chunk.column)),
        spans_of_row_((columns_ + kWidth - 1) / kWidth),
        clip_(launch.clip ? launch.clip[0] : 1.0f),
        skip_(launch.clip && launch.clip[1] != 0.0f),
        zero_grad_(launch.zero_grad) {
    const int64_t first = chunk.row * t.columns + chunk.column;
    p_ = static_cast<Weight*>(t.p) + first;
    g_ = static_cast<Weight*>(t.g) + first;
    m_ = static_cast<Moment*>(t.m) + first;
    v_ = static_cast<Moment*>(t.v) + first;
    if (kRemainder) remainder_ = t.remainder + first;
    if (kAnchored) anchor_ = static_cast<const Weight*>(t.anchor) + first;
    if (kScaled) {
      const int64_t blocks_of_row = (t.columns + kScaleBlock - 1) / kScaleBlock;
      scales_ = t.scales + 2 * (chunk.row * blocks_of_row + chunk.column / kScaleBlock);
      blocks_of_row_ = static_cast<int>(blocks_of_row);
      spans_of_row_ = (spans_of_row_ + kWarp - 1) / kWarp * kWarp;  // a warp never works on two rows
    }
    aligned_ = is_aligned(t.p) && is_aligned(t.g) && is_aligned(t.m) && is_aligned(t.v) && is_aligned(t.remainder) &&
               is_aligned(t.anchor) && (!mask_.by_column() || is_aligned(t.mask)) &&
               (!pull_.by_column() || is_aligned(t.pull)) && (t.rows == 1 || t.columns % kWidth == 0);
    const float* const c = reinterpret_cast<const float*>(launch.scalars);
    c_ = {c[0], c[1], c[2], c[3], c[4], c[5], c[6], c[7]};
    if (Part::kRandom) counters_ = Counters(launch.seed, launch.scalars[4], t.offset + first);
  }

  // Loops over the spans of one thread. A division per span would take a tenth of the step's time.
  __device__ void run(unsigned thread) const {
    const unsigned spans = static_cast<unsigned>(spans_of_row_);
    const int more_rows = static_cast<int>(kThreads / spans), more_spans = static_cast<int>(kThreads % spans);
    int row = static_cast<int>(thread / spans), span = static_cast<int>(thread % spans);
    while (row < rows_) {
      step(row, span * kWidth);
      row += more_rows;
      span += more_spans;
      if (span >= spans_of_row_) {
        span -= spans_of_row_;
        ++row;
      }
    }
  }

 private:
  __device__ void step(int row, int column) const {
    Part s;
    s.row = row;
    s.column = column;
    s.index = row * pitch_ + column;
    s.count = columns_ - column;
    s.moves = 0;
    const bool whole = aligned_ && s.count >= kWidth;
    if (s.count > 0 && !skip_) whole ? load_mask<true>(s) : load_mask<false>(s);
    bool live = s.moves != 0;
    if (kScaled) live = __any_sync(~0u, live);  // all lanes take part in finding the scale of the warp's block
    if (live) {
      whole ? load<true>(s) : load<false>(s);
      update(s);
      if (s.moves != Part::kAll) whole ? restore<true>(s) : restore<false>(s);
      if (s.moves != 0) whole ? store<true>(s) : store<false>(s);
    }
    if (zero_grad_ && s.count > 0) whole ? clear<true>(s) : clear<false>(s);
  }

  template <bool kWhole>
  __device__ void load_mask(Part& s) const {
    mask_.template load<kWhole>(s.mask, s.row, s.column, s.count);
    s.moves = kWhole || s.count >= kWidth ? Part::kAll : (1u << s.count) - 1;
    if (kMode == MaskMode::kGradient) return;
    if (!mask_.by_column()) {
      if (s.mask[0] == 0.0f) s.moves = 0;
      return;
    }
#pragma unroll
    for (int i = 0; i < kWidth; ++i) {
      if (s.mask[i] == 0.0f) s.moves &= ~(1u << i);
    }
  }

  template <bool kWhole>
  __device__ void load(Part& s) const {
    cuda::load<kWhole>(s.p, p_ + s.index, s.count);
    cuda::load<kWhole>(s.g, g_ + s.index, s.count);
    cuda::load<kWhole>(s.m, m_ + s.index, s.count);
    cuda::load<kWhole>(s.v, v_ + s.index, s.count);
    if constexpr (kRemainder) cuda::load<kWhole>(s.remainder, remainder_ + s.index, s.count);
    if constexpr (kAnchored) {
      cuda::load<kWhole>(s.anchor, anchor_ + s.index, s.count);
      if (s.count > 0) pull_.template load<kWhole>(s.pull, s.row, s.column, s.count);
    }
    if constexpr (kScaled) {
      s.scale_m = scales_of(s)[0];
      s.scale_v = scales_of(s)[1];
    }
  }

  template <bool kWhole>
  __device__ void store(const Part& s) const {
    cuda::store<kWhole>(p_ + s.index, s.p, s.count);
    cuda::store<kWhole>(m_ + s.index, s.m, s.count);
    cuda::store<kWhole>(v_ + s.index, s.v, s.count);
    if constexpr (kRemainder) cuda::store<kWhole>(remainder_ + s.index, s.remainder, s.count);
  }

  template <bool kWhole>
  __device__ void clear(const Part& s) const {
    cuda::store<kWhole>(g_ + s.index, typename Part::Weights{}, s.count);
  }

  __device__ void update(Part& s) const {
    Values p, m, v;
    s.widen(p, m, v);
#pragma unroll
    for (int i = 0; i < kWidth; ++i) {
      const float anchor = kAnchored ? widened(s.anchor, i) : 0.0f;
      const float pull = kAnchored ? pull_factor<kPull>(s.pull[i], c_) : 0.0f;
      adamw_element<kMode, kPull>(p[i], widened(s.g, i) * clip_, m[i], v[i], s.mask[i], anchor, pull, c_);
    }
    if constexpr (kScaled) rescale(s, m, v);
    s.is_plain(p, m, v, counters_) ? s.template narrow<true>(p, m, v, counters_)
                                   : s.template narrow<false>(p, m, v, counters_);
  }

  // Computes the scales of the warp's block from its elements that change.
  __device__ void rescale(Part& s, Values& m, Values& v) const {
    if (s.moves != Part::kAll) {
#pragma unroll
      for (int i = 0; i < kWidth; ++i) {
        if (!(s.moves >> i & 1u)) m[i] = v[i] = 0.0f;
      }
    }
    uint32_t largest_m = 0, largest_v = 0;
#pragma unroll
    for (int i = 0; i < kWidth; ++i) {
      const uint32_t m_bits = bit_cast<uint32_t>(m[i]) & 0x7FFFFFFFu, v_bits = bit_cast<uint32_t>(v[i]);
      largest_m = m_bits > largest_m ? m_bits : largest_m;
      largest_v = v_bits > largest_v ? v_bits : largest_v;
    }
    s.scale_m = block_scale(__reduce_max_sync(~0u, largest_m));
    s.scale_v = block_scale(__reduce_max_sync(~0u, largest_v));
    s.inverse_m = inverse_scale(s.scale_m);
    s.inverse_v = inverse_scale(s.scale_v);
    if (s.column % kScaleBlock == 0) {
      float* const scales = scales_of(s);
      scales[0] = s.scale_m;
      scales[1] = s.scale_v;
    }
  }

  // Reloads the bytes of elements that do not change, from the cache. Keeping them would cost registers in every case.
  template <bool kWhole>
  __device__ void restore(Part& s) const {
    forget_loads();
    Part old = s;
    load<kWhole>(old);
#pragma unroll
    for (int i = 0; i < kWidth; ++i) {
      if (s.moves >> i & 1u) continue;
      s.p.copy(old.p, i);
      s.m.copy(old.m, i);
      s.v.copy(old.v, i);
      if constexpr (kRemainder) s.remainder.copy(old.remainder, i);
    }
  }

  __device__ float* scales_of(const Part& s) const {
    return global(scales_ + 2 * (s.row * blocks_of_row_ + s.column / kScaleBlock));
  }

  Weight *p_, *g_;
  Moment *m_, *v_;
  uint16_t* remainder_;
  const Weight* anchor_;
  float* scales_;
  Factors mask_, pull_;
  AdamwCoefficients c_;
  Counters counters_;
  int pitch_;  // distance between rows; unused where a chunk is part of one row
  int rows_, columns_, spans_of_row_, blocks_of_row_;
  float clip_;
  bool skip_, zero_grad_, aligned_;
};

// The kernel is limited by memory. To use the full bandwidth, a multiprocessor needs bandwidth x latency of loads in
// flight: 4.8 TB/s / 132 x 0.7 us = 25 KB on an H200, 18 KB on an H100. A thread requests all of its span, 48 to 80
// bytes, before it uses any of it. With the number of blocks below that is at least 32 KB (int8 with a pull). Only int8
// needs about as much time to compute: some 98 instructions per element, while an H200 issues 60 to 70 in the time that
// its 10 bytes take.
template <Storage kStorage, Pull kPull>
constexpr int kBlocksAtATime = (Format<kStorage>::kWidth == 4 ? 4 : 3) - (kPull != Pull::kNone);

template <Storage kStorage, MaskMode kMode, Pull kPull>
__global__ void __launch_bounds__(kThreads, kBlocksAtATime<kStorage, kPull>)
    masked_adamw_kernel(const __grid_constant__ AdamwLaunch launch) {
  using Work = AdamwChunk<kStorage, kMode, kPull>;
  alignas(Work) __shared__ unsigned char memory[sizeof(Work)];  // a copy per thread would take 40 registers
  if (threadIdx.x == 0) {
    const int index = tensor_of_block(launch.table.first_block, launch.table.count, blockIdx.x);
    const AdamwTensor& t = launch.table.tensors[index];
    const Chunk chunk = chunk_at(blockIdx.x - launch.table.first_block[index], t.rows, t.columns, kChunk);
    new (memory) Work(launch, t, chunk);
  }
  __syncthreads();
  reinterpret_cast<const Work*>(memory)->run(threadIdx.x);
}

}  // namespace cofitune::cuda
