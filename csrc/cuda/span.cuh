// The span of a tensor that a thread of masked_adamw_ holds at a time, with its conversion to float32 and its rounding.
#pragma once

#include <cuda_runtime.h>

#include "cofitune/adamw_tensor.h"
#include "cofitune/random.h"
#include "plain.h"
#include "vector.h"

namespace cofitune::cuda {

constexpr int kWarp = 32;

// A span is kWidth neighbors in a row. It is 16 bytes of the widest stream, so that neighboring threads access adjacent
// memory in every stream and no store fills only half of a 32-byte sector. In int8 the spans of a warp are one block
// under one scale.
template <Storage kStorage>
struct Format {
  using Weight = uint16_t;
  using Moment = float;
  static constexpr int kWidth = 4;
};
template <>
struct Format<Storage::kFp32> {
  using Weight = float;
  using Moment = float;
  static constexpr int kWidth = 4;
};
template <>
struct Format<Storage::kBf16> {
  using Weight = uint16_t;
  using Moment = uint16_t;
  static constexpr int kWidth = 8;
};
template <>
struct Format<Storage::kInt8> {
  using Weight = uint16_t;
  using Moment = uint8_t;
  static constexpr int kWidth = 8;
};
static_assert(Format<Storage::kInt8>::kWidth * kWarp == kScaleBlock, "a warp works on one block of scales");

// Random numbers of a chunk; the lower words of its 64-bit counters may overflow once.
struct Counters {
  RandomKey key, next_key;
  uint32_t first;  // lower word of the first element's counter

  Counters() = default;
  CF_HD Counters(uint64_t seed, uint64_t step, uint64_t counter)
      : key(random_key(seed, step, static_cast<uint32_t>(counter >> 32))),
        next_key(random_key(seed, step, static_cast<uint32_t>(counter >> 32) + 1)),
        first(static_cast<uint32_t>(counter)) {}

  CF_HD RandomKey key_of(uint32_t counter) const { return counter < first ? next_key : key; }
};

template <Storage kStorage>
struct Span {
  static constexpr int kWidth = Format<kStorage>::kWidth;
  static constexpr uint32_t kAll = (1u << kWidth) - 1;
  static constexpr bool kRandom = kStorage != Storage::kFp32 && kStorage != Storage::kBf16Split;
  using Weights = Vector<typename Format<kStorage>::Weight, kWidth>;
  using Moments = Vector<typename Format<kStorage>::Moment, kWidth>;
  using Values = float[kWidth];

  int row, column, index;  // of the first element, inside the chunk
  int count;               // number of elements inside the row; none if not positive
  uint32_t moves;          // a bit for each element that changes
  Values mask, pull;
  Weights p, g, anchor;
  Moments m, v;
  Vector<uint16_t, kWidth> remainder;
  float scale_m, scale_v;      // kInt8: scales of the codes in m and v
  float inverse_m, inverse_v;  // reciprocals of the new scales

  CF_HD void widen(Values& p_values, Values& m_values, Values& v_values) const {
#pragma unroll
    for (int i = 0; i < kWidth; ++i) {
      if constexpr (kStorage == Storage::kBf16Split) {
        p_values[i] = join(static_cast<uint16_t>(p.bits(i)), static_cast<uint16_t>(remainder.bits(i)));
      } else {
        p_values[i] = widened(p, i);
      }
      if constexpr (kStorage == Storage::kInt8) {
        const float magnitude = plain_decode<FirstMoment>(m.bits(i) & 0x7Fu) * scale_m;
        m_values[i] = bit_cast<float>(bit_cast<uint32_t>(magnitude) ^ (m.bits(i) & 0x80u) << 24);
        v_values[i] = plain_decode<SecondMoment>(v.bits(i)) * scale_v;
      } else {
        m_values[i] = widened(m, i);
        v_values[i] = widened(v, i);
      }
    }
  }

  // True if narrowing meets no special case.
  CF_HD bool is_plain(const Values& p_values, const Values& m_values, const Values& v_values,
                      const Counters& counters) const {
    if (!kRandom) return true;
    bool plain = counters.first + static_cast<uint32_t>(index) <= ~0u - kWidth;  // all under one key
#pragma unroll
    for (int i = 0; i < kWidth; ++i) {
      plain = plain & is_finite(p_values[i]);
      if (kStorage == Storage::kBf16) plain = plain & is_finite(m_values[i]) & is_finite(v_values[i]);
      if (kStorage == Storage::kInt8) {
        plain = plain & is_normal<FirstMoment>(fabsf(m_values[i]) * inverse_m) &
                is_normal<SecondMoment>(v_values[i] * inverse_v);
      }
    }
    return plain;
  }

  // The only rounding of a step. kPlain: is_plain() is true.
  template <bool kPlain>
  CF_HD void narrow(const Values& p_values, const Values& m_values, const Values& v_values, const Counters& counters) {
    const uint32_t first_counter = counters.first + static_cast<uint32_t>(index);
    const RandomKey first_key = counters.key_of(first_counter);
#pragma unroll
    for (int i = 0; i < kWidth; ++i) {
      const float new_p = p_values[i], new_m = m_values[i], new_v = v_values[i];
      uint32_t random = 0;
      if constexpr (kRandom) {
        const uint32_t counter = first_counter + static_cast<uint32_t>(i);
        random = random32(kPlain ? first_key : counters.key_of(counter), counter);
      }
      const auto rounded = [](float value, uint32_t random16) {
        return (kPlain ? plain_stochastic_bits(value, random16) : stochastic_bits(value, random16)) >> 16;
      };

      if constexpr (kStorage == Storage::kFp32) {
        p.set_bits(i, bit_cast<uint32_t>(new_p));
      } else if constexpr (kStorage == Storage::kBf16Split) {
        const SplitFloat halves = split(new_p);
        p.set_bits(i, halves.high);
        remainder.set_bits(i, halves.low);
      } else {
        p.set_bits(i, rounded(new_p, random_of_weight(random)));
      }

      if constexpr (kStorage == Storage::kBf16) {
        m.set_bits(i, rounded(new_m, random_of_first(random)));
        v.set_bits(i, rounded(new_v, random_of_second(random)));
      } else if constexpr (kStorage == Storage::kInt8 && kPlain) {
        const uint32_t sign = bit_cast<uint32_t>(new_m) >> 24 & 0x80u;
        m.set_bits(i, sign | plain_encode<FirstMoment>(fabsf(new_m) * inverse_m, random_of_first(random)));
        v.set_bits(i, plain_encode<SecondMoment>(new_v * inverse_v, random_of_second(random)));
      } else if constexpr (kStorage == Storage::kInt8) {
        m.set_bits(i, encode_first(new_m, inverse_m, random_of_first(random)));
        v.set_bits(i, encode_second(new_v, inverse_v, random_of_second(random)));
      } else {
        m.set_bits(i, bit_cast<uint32_t>(new_m));
        v.set_bits(i, bit_cast<uint32_t>(new_v));
      }
    }
  }
};

}  // namespace cofitune::cuda
