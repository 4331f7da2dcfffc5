// How the reductions read an element: as float32, whichever of the two formats it is stored in.
#pragma once

#include <cstdint>

#include "cofitune/bf16.h"
#include "isa.h"

namespace cofitune {

struct Float32 {
  using Value = float;
  static CF_BODY float load(float value) { return value; }
};

struct Bfloat16 {
  using Value = uint16_t;
  static CF_BODY float load(uint16_t value) { return bf16_to_float(value); }
};

}  // namespace cofitune
