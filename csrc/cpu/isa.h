// One binary for all x86-64 machines: a loop body is compiled for several instruction sets, and the best one that the
// CPU has is used. Fused multiply-add is off (setup.py), so that all of them give the same bits.
#pragma once

#include <cstdint>
#include <string>

#define CF_BODY inline __attribute__((always_inline))

#if defined(__x86_64__) && defined(__GNUC__)
#define CF_X86 1
#define CF_AVX2 __attribute__((target("avx2,fma")))
#if defined(__clang__)
#define CF_AVX512 __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl")))
#else
#define CF_AVX512 __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,prefer-vector-width=512")))
#endif
#endif

namespace cofitune {

enum class Isa : uint8_t { kBaseline, kAvx2, kAvx512 };

// Defines `NAME(isa)`, which returns BODY<...> compiled for an instruction set, as a pointer of type FUNCTION.
#if defined(CF_X86)
#define CF_FOR_EACH_ISA(NAME, FUNCTION, ARGUMENT, BODY)                          \
  template <class Kind> void NAME##_baseline(ARGUMENT a) { BODY<Kind>(a); }      \
  template <class Kind> CF_AVX2 void NAME##_avx2(ARGUMENT a) { BODY<Kind>(a); }  \
  template <class Kind> CF_AVX512 void NAME##_avx512(ARGUMENT a) { BODY<Kind>(a); } \
  template <class Kind> FUNCTION NAME(Isa isa) {                                 \
    if (isa == Isa::kAvx512) return NAME##_avx512<Kind>;                         \
    if (isa == Isa::kAvx2) return NAME##_avx2<Kind>;                             \
    return NAME##_baseline<Kind>;                                                \
  }
#else
#define CF_FOR_EACH_ISA(NAME, FUNCTION, ARGUMENT, BODY)                     \
  template <class Kind> void NAME##_baseline(ARGUMENT a) { BODY<Kind>(a); } \
  template <class Kind> FUNCTION NAME(Isa) { return NAME##_baseline<Kind>; }
#endif

Isa current_isa();                      // the best one of this CPU, unless set below
bool set_isa(const std::string& name);  // for tests: "avx512", "avx2" or "baseline"; false if this CPU lacks it
std::string isa_name();

}  // namespace cofitune
