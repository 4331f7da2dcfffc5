// 8-bit moments: a small float with 3 mantissa bits, in units of a float32 scale shared by a block of up to 256
// neighbors in a row. cofitune_fast/ops/eight_bit.py is the reference.
//
//   first moment    sign, 4 exponent bits, 3 mantissa bits   values 2^-17 ... 1.875 times the scale, and 0
//   second moment         5 exponent bits, 3 mantissa bits   values 2^-33 ... 1.875 times the scale, and 0
//
// Below the smallest normal value (2^-14 and 2^-30) the codes 0...7 are evenly spaced. The scale is the block's largest
// magnitude divided by 1.875. Values are rounded stochastically, so that the mean is exact. A positive second moment
// never becomes 0, because the update divides by it.
#pragma once

#include "portable.h"

namespace cofitune {

constexpr int kScaleBlock = 256;  // elements under one scale; a row's last block may be shorter

template <int kExponentBits>
struct SmallFloat {
  static constexpr uint32_t kTop = (1u << kExponentBits) - 1;     // exponent field of the values in [1, 2)
  static constexpr uint32_t kMaxCode = (kTop << 3) | 7u;          // 1.875
  static constexpr uint32_t kRebias = (127u - kTop) << 3;         // from float32's exponent field to ours
  static constexpr uint32_t kSmallestBits = (128u - kTop) << 23;  // float32 bits of the smallest normal, 2^(1 - kTop)
  static constexpr uint32_t kPerUnitBits = (127u + kTop + 2u) << 23;  // 2^(kTop + 2): codes per unit below that
  static constexpr uint32_t kUnitBits = (127u - kTop - 2u) << 23;     // 2^-(kTop + 2)

  // Encodes x >= 0 in units of the scale, rounded by 16 random bits; values above 1.875, and NaN, give kMaxCode.
  static CF_HD uint32_t encode(float x, uint32_t random16) {
    const float smallest = bit_cast<float>(kSmallestBits);
    const uint32_t normal = ((bit_cast<uint32_t>(x) + (random16 << 4 | 8u)) >> 20) - kRebias;
    const float below = x < smallest ? x : smallest;
    const float noise = (static_cast<float>(random16) + 0.5f) * (1.0f / 65536.0f);
    const uint32_t even = static_cast<uint32_t>(static_cast<int32_t>(below * bit_cast<float>(kPerUnitBits) + noise));
    const uint32_t code = x < smallest ? even : normal;
    return code < kMaxCode ? code : kMaxCode;
  }

  static CF_HD float decode(uint32_t code) {
    const float even = static_cast<float>(static_cast<int32_t>(code)) * bit_cast<float>(kUnitBits);
    return code < 8u ? even : bit_cast<float>((code + kRebias) << 20);
  }
};

using FirstMoment = SmallFloat<4>;
using SecondMoment = SmallFloat<5>;

// Returns the scale of a block whose largest magnitude has the float32 bits `largest`. Bits are compared as integers,
// in which a NaN is largest and makes its block NaN. The scale is 0 if it would not be a normal number.
CF_HD float block_scale(uint32_t largest) {
  const float scale = bit_cast<float>(largest) * 0.53333333f;
  return scale < 1.17549435e-38f ? 0.0f : scale;
}

CF_HD float inverse_scale(float scale) { return scale == 0.0f ? 0.0f : 1.0f / scale; }

CF_HD uint8_t encode_first(float m, float inverse, uint32_t random16) {
  const uint32_t bits = bit_cast<uint32_t>(m);
  const uint32_t code = FirstMoment::encode(bit_cast<float>(bits & 0x7FFFFFFFu) * inverse, random16);
  return static_cast<uint8_t>((bits >> 31) << 7 | code);
}

CF_HD float decode_first(uint8_t stored, float scale) {
  const uint32_t sign = static_cast<uint32_t>(stored & 0x80u) << 24;
  const float magnitude = FirstMoment::decode(stored & 0x7Fu) * scale;
  return bit_cast<float>(bit_cast<uint32_t>(magnitude) ^ sign);
}

CF_HD uint8_t encode_second(float v, float inverse, uint32_t random16) {
  const float x = v * inverse;
  const uint32_t code = SecondMoment::encode(x, random16);
  return static_cast<uint8_t>(code == 0u && x > 0.0f ? 1u : code);
}

CF_HD float decode_second(uint8_t stored, float scale) { return SecondMoment::decode(stored) * scale; }

}  // namespace cofitune
