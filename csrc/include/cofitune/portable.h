// What lets one header serve host and device compilers.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__CUDACC__)
#define CF_HD __host__ __device__ __forceinline__
#else
// Inlined without exception: the loops of csrc/cpu are compiled once per instruction set and take these along.
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
