// How the loops of masked_adamw_ read and write each storage format: weights, moments, and what rounds them.
#pragma once

#include <cstdint>

#include "cofitune/bf16.h"
#include "cofitune/eight_bit.h"
#include "cofitune/random.h"
#include "isa.h"

namespace cofitune::adamw {

// A stored value is widened to a 32-bit word, the old or the new word is selected, and the result is narrowed last.
// Selecting 16-bit lanes by a 32-bit comparison would keep compilers from vectorizing.
struct Float32 {
  using Value = float;
  static constexpr bool kRandom = false;
  static CF_BODY uint32_t widen(float stored) { return bit_cast<uint32_t>(stored); }
  static CF_BODY float narrow(uint32_t word) { return bit_cast<float>(word); }
  static CF_BODY uint32_t round(float value, uint32_t) { return bit_cast<uint32_t>(value); }
};

struct Bfloat16 {
  using Value = uint16_t;
  static constexpr bool kRandom = true;
  static CF_BODY uint32_t widen(uint16_t stored) { return static_cast<uint32_t>(stored) << 16; }
  static CF_BODY uint16_t narrow(uint32_t word) { return static_cast<uint16_t>(word >> 16); }
  static CF_BODY uint32_t round(float value, uint32_t random16) { return stochastic_bits(value, random16); }
};

template <class Format>
struct PlainWeight {
  using Gradient = Format;
  using Value = typename Format::Value;
  static constexpr bool kRandom = Format::kRandom;
  static constexpr bool kSplit = false;
  static CF_BODY uint32_t load(const Value* p, const uint16_t*, int32_t i) { return Format::widen(p[i]); }
  static CF_BODY void store(Value* p, uint16_t*, int32_t i, uint32_t word) { p[i] = Format::narrow(word); }
  static CF_BODY float value(uint32_t word) { return bit_cast<float>(word); }
  static CF_BODY uint32_t round(float value, uint32_t random) { return Format::round(value, random_of_weight(random)); }
};

// The word holds the upper half and the remainder, so that an unchanged weight keeps both bit for bit.
struct SplitWeight {
  using Gradient = Bfloat16;
  using Value = uint16_t;
  static constexpr bool kRandom = false;
  static constexpr bool kSplit = true;
  static CF_BODY uint32_t load(const Value* p, const uint16_t* remainder, int32_t i) {
    return static_cast<uint32_t>(p[i]) << 16 | remainder[i];
  }
  static CF_BODY void store(Value* p, uint16_t* remainder, int32_t i, uint32_t word) {
    p[i] = static_cast<uint16_t>(word >> 16);
    remainder[i] = static_cast<uint16_t>(word);
  }
  static CF_BODY float value(uint32_t word) {
    return join(static_cast<uint16_t>(word >> 16), static_cast<uint16_t>(word));
  }
  static CF_BODY uint32_t round(float value, uint32_t) {
    const SplitFloat halves = split(value);
    return static_cast<uint32_t>(halves.high) << 16 | halves.low;
  }
};

// kScaled: codes are in units of a scale per block, which is known only after all new moments of the block.
template <class MomentFormat>
struct PlainMoments {
  using Format = MomentFormat;
  using Value = typename Format::Value;
  static constexpr bool kRandom = Format::kRandom;
  static constexpr bool kScaled = false;
  static CF_BODY float first(Value stored, float) { return bit_cast<float>(Format::widen(stored)); }
  static CF_BODY float second(Value stored, float) { return bit_cast<float>(Format::widen(stored)); }
};

struct EightBitMoments {
  using Value = uint8_t;
  static constexpr bool kRandom = true;
  static constexpr bool kScaled = true;
  static CF_BODY float first(uint8_t stored, float scale) { return decode_first(stored, scale); }
  static CF_BODY float second(uint8_t stored, float scale) { return decode_second(stored, scale); }
};

}  // namespace cofitune::adamw
