#include "isa.h"

#include <atomic>

namespace cofitune {
namespace {

constexpr const char* kNames[] = {"baseline", "avx2", "avx512"};

Isa best_isa() {
#if defined(CF_X86)
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
      __builtin_cpu_supports("avx512vl")) {
    return Isa::kAvx512;
  }
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return Isa::kAvx2;
#endif
  return Isa::kBaseline;
}

std::atomic<Isa>& chosen() {
  static std::atomic<Isa> isa{best_isa()};
  return isa;
}

}  // namespace

Isa current_isa() { return chosen(); }

bool set_isa(const std::string& name) {
  for (int level = 0; level <= static_cast<int>(best_isa()); ++level) {
    if (name == kNames[level]) {
      chosen() = static_cast<Isa>(level);
      return true;
    }
  }
  return false;
}

std::string isa_name() { return kNames[static_cast<int>(current_isa())]; }

}  // namespace cofitune
