// masked_adamw_: the whole list of tensors is cut into row-aligned pieces that the threads take in turn.
#include <algorithm>
#include <cstring>

#include "cofitune/bf16.h"
#include "cofitune/random.h"
#include "isa.h"
#include "kernels.h"
#include "parallel.h"

namespace cofitune {
namespace {

constexpr int64_t kPiece = 1 << 15;  // elements; some 0.8 MB of traffic

// Storage formats: values are worked on as 32 bits and narrowed last.
struct Float32 {
  using Value = float;
  static CF_BODY uint32_t widen(float value) { return bit_cast<uint32_t>(value); }
  static CF_BODY float narrow(uint32_t bits) { return bit_cast<float>(bits); }
  static CF_BODY uint32_t round(float value, RandomKey, uint32_t) { return bit_cast<uint32_t>(value); }
};

struct Bfloat16 {
  using Value = uint16_t;
  static CF_BODY uint32_t widen(uint16_t value) { return static_cast<uint32_t>(value) << 16; }
  static CF_BODY uint16_t narrow(uint32_t bits) { return static_cast<uint16_t>(bits >> 16); }
  static CF_BODY uint32_t round(float value, RandomKey key, uint32_t counter) {
    return stochastic_bits(value, random16(key, counter));
  }
};

template <class StorageType, bool kMaskPerElement, MaskMode kMaskMode, bool kZeroGrad>
struct Kind {
  using Storage = StorageType;
  static constexpr bool mask_per_element = kMaskPerElement;
  static constexpr MaskMode mode = kMaskMode;
  static constexpr bool zero_grad = kZeroGrad;
};

// Consecutive elements under one random key, with one mask factor or one factor each.
struct Run {
  void* p;
  void* g;
  float* m;
  float* v;
  const float* masks;
  float mask;
  float clip;
  RandomKey key;
  uint32_t counter;
  int32_t size;  // at most kPiece
  AdamwCoefficients coefficients;
};

// Whether some elements of a run may have to keep their bytes; a run with one factor of 0 is not even begun.
template <class K>
constexpr bool may_keep = K::mask_per_element && K::mode == MaskMode::kUpdate;

// By bits: of a conditional expression compilers make a branch, and then no vector loop.
CF_BODY uint32_t choose(uint32_t all_or_no_bits, uint32_t if_all, uint32_t if_no) {
  return (if_all & all_or_no_bits) | (if_no & ~all_or_no_bits);
}

template <class K>
CF_BODY void update(const Run& run) {
  using Storage = typename K::Storage;
  using Value = typename Storage::Value;
  Value* __restrict p = static_cast<Value*>(run.p);
  Value* __restrict g = static_cast<Value*>(run.g);
  float* __restrict m = run.m;
  float* __restrict v = run.v;
  const float* __restrict masks = run.masks;
  const AdamwCoefficients c = run.coefficients;
  const RandomKey key = run.key;
  const uint32_t counter = run.counter;
  const float clip = run.clip, mask_of_all = run.mask;
  const int32_t size = run.size;  // 32 bits, so that counting random numbers takes no 64-bit lanes
  for (int32_t i = 0; i < size; ++i) {
    const float mask = K::mask_per_element ? masks[i] : mask_of_all;
    const uint32_t p_old = Storage::widen(p[i]);
    const float m_old = m[i], v_old = v[i];
    float p_new = bit_cast<float>(p_old), m_new = m_old, v_new = v_old;
    adamw_element<K::mode>(p_new, bit_cast<float>(Storage::widen(g[i])) * clip, m_new, v_new, mask, c);
    const uint32_t rounded = Storage::round(p_new, key, counter + static_cast<uint32_t>(i));
    const uint32_t live = may_keep<K> ? 0u - static_cast<uint32_t>(mask != 0.0f) : ~0u;
    p[i] = Storage::narrow(choose(live, rounded, p_old));
    m[i] = bit_cast<float>(choose(live, bit_cast<uint32_t>(m_new), bit_cast<uint32_t>(m_old)));
    v[i] = bit_cast<float>(choose(live, bit_cast<uint32_t>(v_new), bit_cast<uint32_t>(v_old)));
    if (K::zero_grad) g[i] = Value(0);
  }
}

using UpdateFunction = void (*)(const Run&);
CF_FOR_EACH_ISA(update_for, UpdateFunction, const Run&, update)

template <class Storage, bool kMaskPerElement>
UpdateFunction choose_update(MaskMode mode, bool zero_grad, Isa isa) {
  if (mode == MaskMode::kUpdate) {
    return zero_grad ? update_for<Kind<Storage, kMaskPerElement, MaskMode::kUpdate, true>>(isa)
                     : update_for<Kind<Storage, kMaskPerElement, MaskMode::kUpdate, false>>(isa);
  }
  return zero_grad ? update_for<Kind<Storage, kMaskPerElement, MaskMode::kGradient, true>>(isa)
                   : update_for<Kind<Storage, kMaskPerElement, MaskMode::kGradient, false>>(isa);
}

struct Piece {
  const AdamwTensor* tensor;
  int64_t begin, end;
};

std::vector<Piece> cut(const std::vector<AdamwTensor>& tensors) {
  std::vector<Piece> pieces;
  for (const AdamwTensor& tensor : tensors) {
    const int64_t rows = std::max<int64_t>(1, kPiece / std::max<int64_t>(1, tensor.columns));
    const int64_t length = tensor.columns <= kPiece ? rows * tensor.columns : kPiece;
    for (int64_t begin = 0; begin < tensor.size; begin += length) {
      pieces.push_back({&tensor, begin, std::min(begin + length, tensor.size)});
    }
  }
  return pieces;
}

char* at(void* base, int64_t index, int64_t bytes) { return static_cast<char*>(base) + index * bytes; }

}  // namespace

void masked_adamw(const std::vector<AdamwTensor>& tensors, const AdamwOptions& options) {
  const int64_t bytes = options.bf16 ? 2 : 4;
  const bool skip = options.clip && options.clip[1] != 0.0f;
  const Isa isa = current_isa();
  const MaskMode mode = options.mode;
  const UpdateFunction with_one_factor = options.bf16 ? choose_update<Bfloat16, false>(mode, options.zero_grad, isa)
                                                      : choose_update<Float32, false>(mode, options.zero_grad, isa);
  const UpdateFunction with_factors = options.bf16 ? choose_update<Bfloat16, true>(mode, options.zero_grad, isa)
                                                   : choose_update<Float32, true>(mode, options.zero_grad, isa);
  const std::vector<Piece> pieces = cut(tensors);

  int64_t elements = 0;
  for (const AdamwTensor& tensor : tensors) elements += tensor.size;
  const int threads = threads_for(elements, options.threads);
  parallel_for(static_cast<int64_t>(pieces.size()), threads, [&](int64_t index) {
    const AdamwTensor& t = *pieces[index].tensor;
    const int64_t end = pieces[index].end;
    const bool by_rows = t.mask && (t.mask_row_stride != 0 || t.mask_column_stride != 0);
    for (int64_t begin = pieces[index].begin, next; begin < end; begin = next) {
      const int64_t row = t.columns > 0 ? begin / t.columns : 0;
      next = by_rows ? std::min(end, (row + 1) * t.columns) : end;
      const uint64_t counter = t.offset + static_cast<uint64_t>(begin);
      const uint64_t until_carry = (1ull << 32) - (counter & 0xFFFFFFFFull);  // there the key changes
      next = begin + static_cast<int64_t>(std::min<uint64_t>(until_carry, static_cast<uint64_t>(next - begin)));

      const float* factors = t.mask ? t.mask + row * t.mask_row_stride : nullptr;
      const bool per_element = factors && t.mask_column_stride != 0;
      const float factor = factors && !per_element ? factors[0] : 1.0f;
      void* g = at(t.g, begin, bytes);
      if (skip || (mode == MaskMode::kUpdate && factor == 0.0f)) {
        if (options.zero_grad) std::memset(g, 0, static_cast<size_t>((next - begin) * bytes));
        continue;
      }
      const Run run{at(t.p, begin, bytes),
                    g,
                    t.m + begin,
                    t.v + begin,
                    per_element ? factors + (begin - row * t.columns) : nullptr,
                    factor,
                    options.clip ? options.clip[0] : 1.0f,
                    random_key(options.seed, options.step, static_cast<uint32_t>(counter >> 32)),
                    static_cast<uint32_t>(counter),
                    static_cast<int32_t>(next - begin),
                    options.coefficients};
      (per_element ? with_factors : with_one_factor)(run);
    }
  });
}

}  // namespace cofitune
