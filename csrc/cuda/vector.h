// Neighboring elements, moved by one memory access if complete and aligned, else one by one.
#pragma once

#include "cofitune/portable.h"

namespace cofitune::cuda {

constexpr int kAccessBytes = 16;  // width of a thread's widest access

// Stored as 32-bit words, because reading a small value from a word costs a shift, and from an array several moves.
template <class T, int kCount>
struct alignas(sizeof(T) * kCount < kAccessBytes ? sizeof(T) * kCount : kAccessBytes) Vector {
  static constexpr int kPerWord = 4 / sizeof(T), kBits = 8 * sizeof(T);
  uint32_t words[kCount / kPerWord];

  CF_HD uint32_t bits(int i) const { return words[i / kPerWord] >> (i % kPerWord * kBits) & (~0u >> (32 - kBits)); }
  // Call it in the order of i, because the first value of a word clears the others.
  CF_HD void set_bits(int i, uint32_t value) {
    const uint32_t place = value << (i % kPerWord * kBits);
    words[i / kPerWord] = i % kPerWord == 0 ? place : words[i / kPerWord] + place;
  }
  CF_HD void copy(const Vector& from, int i) {
    const uint32_t here = ~0u >> (32 - kBits) << (i % kPerWord * kBits);
    words[i / kPerWord] = (words[i / kPerWord] & ~here) | (from.words[i / kPerWord] & here);
  }
};

// Converts a float32 or bfloat16 element to float32.
template <class T, int kCount>
CF_HD float widened(const Vector<T, kCount>& from, int i) {
  return bit_cast<float>(from.bits(i) << (32 - 8 * sizeof(T)));
}

CF_HD bool is_aligned(const void* pointer) { return reinterpret_cast<uintptr_t>(pointer) % kAccessBytes == 0; }

// Tells the compiler that a pointer kept in shared memory points to global memory.
template <class T>
CF_HD T* global(T* pointer) {
#if defined(__CUDA_ARCH__)
  __builtin_assume(__isGlobal(pointer));
#endif
  return pointer;
}

// Makes the compiler reload values from memory.
CF_HD void forget_loads() {
#if defined(__CUDA_ARCH__)
  asm volatile("" ::: "memory");
#endif
}

CF_HD uint32_t bits_of(float value) { return bit_cast<uint32_t>(value); }
CF_HD uint32_t bits_of(uint16_t value) { return value; }
CF_HD uint32_t bits_of(uint8_t value) { return value; }

// kWhole: all kCount values exist and `from` is aligned. Otherwise only the first `count` exist; the others become 0.
template <bool kWhole, class T, int kCount>
CF_HD void load(Vector<T, kCount>& to, const T* from, int count) {
  if constexpr (kWhole) {
    to = *global(reinterpret_cast<const Vector<T, kCount>*>(from));
  } else {
#pragma unroll
    for (int i = 0; i < kCount; ++i) to.set_bits(i, i < count ? bits_of(global(from)[i]) : 0u);
  }
}

template <bool kWhole, class T, int kCount>
CF_HD void store(T* to, const Vector<T, kCount>& from, int count) {
  if constexpr (kWhole) {
    *global(reinterpret_cast<Vector<T, kCount>*>(to)) = from;
  } else {
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      if constexpr (sizeof(T) == 4) {
        if (i < count) global(to)[i] = bit_cast<T>(from.bits(i));
      } else {
        if (i < count) global(to)[i] = static_cast<T>(from.bits(i));
      }
    }
  }
}

}  // namespace cofitune::cuda
