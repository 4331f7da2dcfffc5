// masked_adamw_: threads take chunks of the list of tensors in turn. A chunk is cut into runs of consecutive elements
// that share one factor or have one factor each, and a run into blocks of kScaleBlock elements.
#include <algorithm>
#include <cstring>
#include <type_traits>

#include "adamw_storage.h"
#include "cofitune/chunks.h"
#include "cofitune/eight_bit.h"
#include "cofitune/random.h"
#include "isa.h"
#include "kernels.h"
#include "parallel.h"

namespace cofitune {
namespace {

using namespace adamw;

constexpr int64_t kChunk = 1 << 17;  // elements; a thread reads the memory of consecutive chunks in sequence
constexpr int64_t kRun = 1 << 11;    // elements; so few that gradients are still in the L1 cache when zeroed
constexpr int32_t kStride = 64;      // elements between prefetches
constexpr int32_t kAhead = 2048;     // bytes ahead that are prefetched
static_assert(kChunk % kScaleBlock == 0 && kRun % kScaleBlock == 0, "blocks under one scale are never cut");

// With a pull, factors are always per element.
template <class WeightType, class MomentsType, MaskMode kMaskMode, bool kPerElement, Pull kPull = Pull::kNone>
struct Kind {
  using Weight = WeightType;
  using Moments = MomentsType;
  static constexpr MaskMode mode = kMaskMode;
  static constexpr Pull pull = kPull;
  static constexpr bool anchored = kPull != Pull::kNone;
  static constexpr bool per_element = kPerElement || anchored;
  // True if single elements may have a factor of 0 and must keep their bytes. A run whose one factor is 0 is skipped.
  static constexpr bool may_keep = per_element && kMaskMode == MaskMode::kUpdate;
};

// Consecutive elements. `masks` and `pulls` point to a factor per element; where null, `mask` and `pull` hold for all.
struct Run {
  void* p;
  void* g;
  void* m;
  void* v;
  uint16_t* remainder;
  float* scales;
  const void* masks;
  const void* anchor;
  const float* pulls;
  bool mask_is_bytes;
  float mask;
  float pull;
  float clip;
  uint64_t counter;
  int32_t size;
  const AdamwOptions* options;
};

// Random numbers and factors prepared for a block, and its new moments before they are encoded.
struct alignas(64) Buffers {
  uint32_t random[kScaleBlock];
  float masks[kScaleBlock];
  float pulls[kScaleBlock];
  float m[kScaleBlock];
  float v[kScaleBlock];
};

// Selects by bit masks, because compilers turn a conditional expression into a branch and then do not vectorize.
CF_BODY uint32_t choose(uint32_t all_or_no_bits, uint32_t if_all, uint32_t if_no) {
  return (if_all & all_or_no_bits) | (if_no & ~all_or_no_bits);
}

CF_BODY uint32_t magnitude_bits(float value) { return bit_cast<uint32_t>(value) & 0x7FFFFFFFU; }

template <class K>
CF_BODY uint32_t live_bits(float mask) {
  return K::may_keep ? 0U - static_cast<uint32_t>(mask != 0.0F) : ~0U;
}

// The key changes where the lower half of the counter overflows, which may be inside a block.
CF_BODY void draw(uint32_t* __restrict random, const Run& run, int32_t begin, int32_t size) {
  for (int32_t i = 0; i < size;) {
    const uint64_t counter = run.counter + static_cast<uint64_t>(begin + i);
    const RandomKey key = random_key(run.options->seed, run.options->step, static_cast<uint32_t>(counter >> 32));
    const auto low = static_cast<uint32_t>(counter);
    const auto count = static_cast<int32_t>(std::min<uint64_t>(size - i, (1ULL << 32) - low));
    uint32_t* here = random + i;
    for (int32_t k = 0; k < count; ++k) here[k] = random32(key, low + static_cast<uint32_t>(k));
    i += count;
  }
}

CF_BODY void expand_masks(float* __restrict masks, const Run& run, int32_t begin, int32_t size) {
  if (run.masks == nullptr) {
    for (int32_t i = 0; i < size; ++i) masks[i] = run.mask;
  } else if (run.mask_is_bytes) {
    const auto* bytes = static_cast<const uint8_t*>(run.masks) + begin;
    for (int32_t i = 0; i < size; ++i) masks[i] = byte_factor(bytes[i]);
  } else {
    const auto* floats = static_cast<const float*>(run.masks) + begin;
    for (int32_t i = 0; i < size; ++i) masks[i] = floats[i];
  }
}

template <class K>
CF_BODY void expand_pulls(float* __restrict pulls, const Run& run, int32_t begin, int32_t size) {
  const AdamwCoefficients c = run.options->coefficients;
  for (int32_t i = 0; i < size; ++i) {
    pulls[i] = pull_factor<K::pull>(run.pulls != nullptr ? run.pulls[begin + i] : run.pull, c);
  }
}

// Prefetches one stride of each stream, kAhead bytes ahead. Without it the CPU's own prefetchers reach about 90 % of
// the bandwidth on the four streams (benchmarks/compare_masked_adamw.py).
template <class Weight, class Moment>
CF_BODY void prefetch(const Weight* p, const Weight* g, const Moment* m, const Moment* v) {
  constexpr int32_t kLine = 64;
  const auto fetch = [](const void* stream, int32_t offset) {
    __builtin_prefetch(static_cast<const char*>(stream) + kAhead + offset);
  };
  for (int32_t offset = 0; offset < static_cast<int32_t>(kStride * sizeof(Weight)); offset += kLine) {
    fetch(p, offset);
    fetch(g, offset);
  }
  for (int32_t offset = 0; offset < static_cast<int32_t>(kStride * sizeof(Moment)); offset += kLine) {
    fetch(m, offset);
    fetch(v, offset);
  }
}

// Updates one stride of a block; moments that still need a scale are left in the buffers.
template <class K, class WeightValue, class GradientValue, class MomentValue>
CF_BODY void update_elements(WeightValue* __restrict p, const GradientValue* __restrict g, MomentValue* __restrict m,
                             MomentValue* __restrict v, uint16_t* __restrict remainder,
                             const GradientValue* __restrict anchor, Buffers& __restrict buffers, int32_t begin,
                             float m_scale, float v_scale, const Run& run, int32_t size) {
  using Weight = typename K::Weight;
  using Gradient = typename Weight::Gradient;
  using Moments = typename K::Moments;
  const AdamwCoefficients c = run.options->coefficients;
  const float* masks = buffers.masks + begin;
  const float* pulls = buffers.pulls + begin;
  const uint32_t* randoms = buffers.random + begin;
  float* m_exact = buffers.m + begin;
  float* v_exact = buffers.v + begin;
  const float clip = run.clip;
  const float mask_of_all = run.mask;
  for (int32_t i = 0; i < size; ++i) {
    const float mask = K::per_element ? masks[i] : mask_of_all;
    const uint32_t live = live_bits<K>(mask);
    const uint32_t random = randoms[i];
    const uint32_t p_old = Weight::load(p, remainder, i);
    float p_new = Weight::value(p_old);
    float m_new = Moments::first(m[i], m_scale);
    float v_new = Moments::second(v[i], v_scale);
    adamw_element<K::mode, K::pull>(p_new, bit_cast<float>(Gradient::widen(g[i])) * clip, m_new, v_new, mask,
                                    K::anchored ? bit_cast<float>(Gradient::widen(anchor[i])) : 0.0F,
                                    K::anchored ? pulls[i] : 0.0F, c);
    Weight::store(p, remainder, i, choose(live, Weight::round(p_new, random), p_old));
    if constexpr (Moments::kScaled) {
      m_exact[i] = m_new;
      v_exact[i] = v_new;
    } else {
      using Moment = typename Moments::Format;
      m[i] = Moment::narrow(choose(live, Moment::round(m_new, random_of_first(random)), Moment::widen(m[i])));
      v[i] = Moment::narrow(choose(live, Moment::round(v_new, random_of_second(random)), Moment::widen(v[i])));
    }
  }
}

// Computes the block's scales from its live elements (those that change) and encodes their moments.
template <class K>
CF_BODY void encode_moments(uint8_t* __restrict m, uint8_t* __restrict v, float* __restrict scales,
                            const Buffers& __restrict buffers, int32_t size) {
  int32_t m_largest = 0;
  int32_t v_largest = 0;
  uint32_t any_live = 0;
  for (int32_t i = 0; i < size; ++i) {
    const uint32_t live = live_bits<K>(buffers.masks[i]);
    m_largest = std::max(m_largest, static_cast<int32_t>(magnitude_bits(buffers.m[i]) & live));
    v_largest = std::max(v_largest, static_cast<int32_t>(magnitude_bits(buffers.v[i]) & live));
    any_live |= live;
  }
  if (any_live == 0) return;
  scales[0] = block_scale(static_cast<uint32_t>(m_largest));
  scales[1] = block_scale(static_cast<uint32_t>(v_largest));
  const float m_inverse = inverse_scale(scales[0]);
  const float v_inverse = inverse_scale(scales[1]);
  for (int32_t i = 0; i < size; ++i) {
    const uint32_t live = live_bits<K>(buffers.masks[i]);
    const uint32_t random = buffers.random[i];
    const uint32_t m_new = encode_first(buffers.m[i], m_inverse, random_of_first(random));
    const uint32_t v_new = encode_second(buffers.v[i], v_inverse, random_of_second(random));
    m[i] = static_cast<uint8_t>(choose(live, m_new, m[i]));
    v[i] = static_cast<uint8_t>(choose(live, v_new, v[i]));
  }
}

template <class K>
CF_BODY void update_block(const Run& run, int32_t begin, int32_t size) {
  using Weight = typename K::Weight;
  using Moments = typename K::Moments;
  auto* p = static_cast<typename Weight::Value*>(run.p) + begin;
  const auto* g = static_cast<const typename Weight::Gradient::Value*>(run.g) + begin;
  const auto* anchor = K::anchored ? static_cast<const typename Weight::Gradient::Value*>(run.anchor) + begin : nullptr;
  auto* m = static_cast<typename Moments::Value*>(run.m) + begin;
  auto* v = static_cast<typename Moments::Value*>(run.v) + begin;
  uint16_t* remainder = Weight::kSplit ? run.remainder + begin : nullptr;
  float* scales = Moments::kScaled ? run.scales + static_cast<int64_t>(begin / kScaleBlock) * 2 : nullptr;

  Buffers buffers;
  if (Weight::kRandom || Moments::kRandom) draw(buffers.random, run, begin, size);
  if (K::per_element) expand_masks(buffers.masks, run, begin, size);
  if (K::anchored) expand_pulls<K>(buffers.pulls, run, begin, size);
  const float m_scale = Moments::kScaled ? scales[0] : 1.0F;
  const float v_scale = Moments::kScaled ? scales[1] : 1.0F;
  for (int32_t i = 0; i < size; i += kStride) {
    prefetch(p + i, g + i, m + i, v + i);
    update_elements<K>(p + i, g + i, m + i, v + i, Weight::kSplit ? remainder + i : nullptr,
                       K::anchored ? anchor + i : nullptr, buffers, i, m_scale, v_scale, run,
                       std::min(size - i, kStride));
  }
  if constexpr (Moments::kScaled) encode_moments<K>(m, v, scales, buffers, size);
}

template <class K>
CF_BODY void update(const Run& run) {
  for (int32_t begin = 0; begin < run.size; begin += kScaleBlock) {
    update_block<K>(run, begin, std::min(run.size - begin, kScaleBlock));
  }
}

using UpdateFunction = void (*)(const Run&);
CF_FOR_EACH_ISA(update_for, UpdateFunction, const Run&, update)

// Loops for one storage, mode and pull: for runs with one mask factor, with one per element, and with an anchor.
struct Updates {
  UpdateFunction with_one_factor, with_factors, with_anchor;
  int64_t weight_bytes, moment_bytes;
};

template <class Weight, class Moments, MaskMode kMode>
Updates updates_of_mode(Pull pull, Isa isa) {
  return {update_for<Kind<Weight, Moments, kMode, false>>(isa), update_for<Kind<Weight, Moments, kMode, true>>(isa),
          pull == Pull::kL1 ? update_for<Kind<Weight, Moments, kMode, true, Pull::kL1>>(isa)
                            : update_for<Kind<Weight, Moments, kMode, true, Pull::kL2>>(isa),
          sizeof(typename Weight::Value), sizeof(typename Moments::Value)};
}

template <class Weight, class Moments>
Updates updates_of(MaskMode mode, Pull pull, Isa isa) {
  return mode == MaskMode::kUpdate ? updates_of_mode<Weight, Moments, MaskMode::kUpdate>(pull, isa)
                                   : updates_of_mode<Weight, Moments, MaskMode::kGradient>(pull, isa);
}

Updates choose_updates(Storage storage, MaskMode mode, Pull pull, Isa isa) {
  switch (storage) {
    case Storage::kBf16Split: return updates_of<SplitWeight, PlainMoments<Float32>>(mode, pull, isa);
    case Storage::kBf16Sr: return updates_of<PlainWeight<Bfloat16>, PlainMoments<Float32>>(mode, pull, isa);
    case Storage::kBf16: return updates_of<PlainWeight<Bfloat16>, PlainMoments<Bfloat16>>(mode, pull, isa);
    case Storage::kInt8: return updates_of<PlainWeight<Bfloat16>, EightBitMoments>(mode, pull, isa);
    default: return updates_of<PlainWeight<Float32>, PlainMoments<Float32>>(mode, pull, isa);
  }
}

// Moves a pointer by bytes, also one to void or const; null stays null.
template <class T>
T* advance(T* base, int64_t bytes) {
  using Byte = std::conditional_t<std::is_const_v<T>, const char, char>;
  return base != nullptr ? reinterpret_cast<T*>(reinterpret_cast<Byte*>(base) + bytes) : nullptr;
}

bool is_per_element(Layout layout) { return layout == Layout::kColumn || layout == Layout::kElement; }
bool ends_with_row(Layout layout) { return layout == Layout::kRow || layout == Layout::kColumn; }

// Returns the mask factor of a run; 1 where there is none or one per element.
float mask_of_run(const AdamwTensor& t, int64_t row, int64_t column) {
  if (t.mask_layout == Layout::kNone || is_per_element(t.mask_layout)) return 1.0F;
  const int64_t index = factor_index(t.mask_layout, row, column, t.columns);
  return t.mask_is_bytes ? byte_factor(static_cast<const uint8_t*>(t.mask)[index])
                         : static_cast<const float*>(t.mask)[index];
}

Run run_at(const AdamwTensor& t, const AdamwOptions& options, const Updates& updates, int64_t row, int64_t column,
           int64_t size, float mask) {
  const int64_t begin = row * t.columns + column;
  const int64_t blocks = (t.columns + kScaleBlock - 1) / kScaleBlock;
  const int64_t mask_index = factor_index(t.mask_layout, row, column, t.columns);
  const int64_t pull_index = factor_index(t.pull_layout, row, column, t.columns);
  const bool pulls = is_per_element(t.pull_layout);
  Run run;
  run.p = advance(t.p, begin * updates.weight_bytes);
  run.g = advance(t.g, begin * updates.weight_bytes);
  run.m = advance(t.m, begin * updates.moment_bytes);
  run.v = advance(t.v, begin * updates.moment_bytes);
  run.remainder = advance(t.remainder, begin * static_cast<int64_t>(sizeof(uint16_t)));
  run.scales = advance(t.scales, 2 * (row * blocks + column / kScaleBlock) * static_cast<int64_t>(sizeof(float)));
  run.masks = is_per_element(t.mask_layout) ? advance(t.mask, mask_index * (t.mask_is_bytes ? 1 : 4)) : nullptr;
  run.anchor = advance(t.anchor, begin * updates.weight_bytes);
  run.pulls = pulls ? t.pull + pull_index : nullptr;
  run.mask_is_bytes = t.mask_is_bytes;
  run.mask = mask;
  run.pull = t.pull != nullptr && !pulls ? t.pull[pull_index] : 0.0F;
  run.clip = options.clip != nullptr ? options.clip[0] : 1.0F;
  run.counter = t.offset + static_cast<uint64_t>(begin);
  run.size = static_cast<int32_t>(size);
  run.options = &options;
  return run;
}

UpdateFunction update_of(const Run& run, const Updates& updates) {
  if (run.anchor != nullptr) return updates.with_anchor;
  return run.masks != nullptr ? updates.with_factors : updates.with_one_factor;
}

void update_chunk(const AdamwTensor& t, const Chunk& chunk, const AdamwOptions& options, const Updates& updates) {
  const bool skip_all = options.clip != nullptr && options.clip[1] != 0.0F;
  const bool row_by_row = ends_with_row(t.mask_layout) || ends_with_row(t.pull_layout) ||
                          (options.storage == Storage::kInt8 && t.columns % kScaleBlock != 0);
  const int64_t rows_at_once = row_by_row ? 1 : chunk.row_end - chunk.row;
  const int64_t end = chunk.column + rows_at_once * (chunk.column_end - chunk.column);
  for (int64_t row = chunk.row; row < chunk.row_end; row += rows_at_once) {
    const float mask = mask_of_run(t, row, chunk.column);
    const bool skip = skip_all || (options.mode == MaskMode::kUpdate && mask == 0.0F);
    for (int64_t column = chunk.column; column < end && (!skip || options.zero_grad); column += kRun) {
      const Run run = run_at(t, options, updates, row, column, std::min(kRun, end - column), mask);
      if (!skip) update_of(run, updates)(run);
      if (options.zero_grad) std::memset(run.g, 0, static_cast<size_t>(run.size * updates.weight_bytes));
    }
  }
}

}  // namespace

void masked_adamw(const std::vector<AdamwTensor>& tensors, const AdamwOptions& options) {
  const Updates updates = choose_updates(options.storage, options.mode, options.pull, current_isa());
  std::vector<int64_t> first_chunks;  // number of each tensor's first chunk
  first_chunks.reserve(tensors.size());
  int64_t chunks = 0;
  int64_t elements = 0;
  for (const AdamwTensor& t : tensors) {
    first_chunks.push_back(chunks);
    chunks += chunk_count(t.rows, t.columns, kChunk);
    elements += t.rows * t.columns;
  }
  parallel_for(chunks, threads_for(elements, options.threads), [&](int64_t chunk) {
    const auto after = std::upper_bound(first_chunks.begin(), first_chunks.end(), chunk);
    const AdamwTensor& t = tensors[static_cast<size_t>(after - first_chunks.begin() - 1)];
    update_chunk(t, chunk_at(chunk - *(after - 1), t.rows, t.columns, kChunk), options, updates);
  });
}

}  // namespace cofitune
