// Macros and functions that let host and device compilers share headers.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__CUDACC__)
#define CF_HD __host__ __device__ __forceinline__
#else
// Always inlined, because the loops of csrc/cpu are compiled once per instruction set, these functions included.
#define CF_HD inline __attribute__((always_inline))
#endif

namespace cofitune {

template <class To, class From>
CF_HD To bit_cast(From from) {
  static_assert(sizeof(To) == sizeof(From), "bit_cast keeps the size");
  To to;
  memcpy(&to, &from, sizeof(to));
  return to;
}

}  // namespace cofitune
