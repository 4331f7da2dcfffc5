// The rows of linear_kl in three passes, over which a row of both logits stays in the CPU cache. The first pass applies
// the soft cap and finds the maxima m, the second sums, the third writes the gradients. With
// d = (z_p - m_p) - (z_q - m_q), E_p the mean under p, and S = sum e^(z - m):
//   KL = E_p[d] + log(S_q / S_p),  dKL/dz_p = p (d - E_p[d]),  dKL/dz_q = q - p
#include <algorithm>
#include <cmath>
#include <limits>

#include "cofitune/portable.h"
#include "exponential.h"
#include "isa.h"
#include "kernels.h"
#include "parallel.h"
#include "storage.h"

namespace cofitune {
namespace {

constexpr int64_t kBlock = 16 * kLanes;  // each lane adds 16 terms in float32 before it adds them to a double

// Computes tanh x with a relative error of at most 2e-7.
CF_BODY float tanh_of(float x) {
  const uint32_t sign = bit_cast<uint32_t>(x) & 0x80000000u;
  const float a = bit_cast<float>(bit_cast<uint32_t>(x) ^ sign), square = x * x;
  const float e = exp_of_negative(-2.0f * a), large = (1.0f - e) / (1.0f + e);
  float small = -0.00570498772f;
  small = small * square + 0.0206390874f;
  small = small * square - 0.0537397149f;
  small = small * square + 0.133314422f;
  small = small * square - 0.333332819f;
  small = small * (square * a) + a;
  return bit_cast<float>(bit_cast<uint32_t>(a < 0.625f ? small : large) | sign);
}

struct Row {
  float* z_p;
  float* z_q;
  int64_t size;
  float softcap;
  float kl;  // result
};

template <bool kCapped, bool kGradients>
struct Kind {
  static constexpr bool capped = kCapped, gradients = kGradients;
};

// Applies the soft cap to the logits and returns the largest one.
template <class K>
CF_BODY float cap(float* z, int64_t size, float softcap) {
  float maxima[kLanes];
  for (float& maximum : maxima) maximum = -std::numeric_limits<float>::infinity();
  for (int64_t i = 0; i < size; i += kLanes) {
    const int64_t lanes = std::min(kLanes, size - i);
    for (int64_t lane = 0; lane < lanes; ++lane) {
      const float value = K::capped ? softcap * tanh_of(z[i + lane] / softcap) : z[i + lane];
      if (K::capped) z[i + lane] = value;
      maxima[lane] = value > maxima[lane] ? value : maxima[lane];
    }
  }
  float result = maxima[0];
  for (const float maximum : maxima) result = maximum > result ? maximum : result;
  return result;
}

struct Sums {
  float p[kLanes] = {};  // sums of e_p = e^(z_p - m_p)
  float q[kLanes] = {};
  float moment[kLanes] = {};  // sums of e_p d
};

CF_BODY void add(const float* z_p, const float* z_q, float m_p, float m_q, int64_t lanes, Sums& sums) {
  for (int64_t lane = 0; lane < lanes; ++lane) {
    const float x_p = z_p[lane] - m_p, x_q = z_q[lane] - m_q;
    const float e_p = exp_of_negative(x_p);
    sums.p[lane] += e_p;
    sums.q[lane] += exp_of_negative(x_q);
    sums.moment[lane] += e_p * (x_p - x_q);
  }
}

template <class K>
CF_BODY void work_on(Row& row) {
  float* __restrict z_p = row.z_p;
  float* __restrict z_q = row.z_q;
  const int64_t size = row.size;
  const float softcap = row.softcap;
  const float m_p = cap<K>(z_p, size, softcap), m_q = cap<K>(z_q, size, softcap);

  double all_p[kLanes] = {}, all_q[kLanes] = {}, all_moments[kLanes] = {};
  for (int64_t block = 0; block < size; block += kBlock) {
    Sums sums;
    const int64_t end = std::min(block + kBlock, size);
    for (int64_t i = block; i < end; i += kLanes) {
      add(z_p + i, z_q + i, m_p, m_q, std::min(kLanes, end - i), sums);
    }
    for (int64_t lane = 0; lane < kLanes; ++lane) {
      all_p[lane] += sums.p[lane];
      all_q[lane] += sums.q[lane];
      all_moments[lane] += sums.moment[lane];
    }
  }
  const double sum_p = sum_lanes(all_p), sum_q = sum_lanes(all_q), mean = sum_lanes(all_moments) / sum_p;
  row.kl = static_cast<float>(mean + std::log(sum_q / sum_p));

  if (!K::gradients) return;
  const float per_p = static_cast<float>(1 / sum_p), per_q = static_cast<float>(1 / sum_q);
  const float mean_d = static_cast<float>(mean);
  for (int64_t i = 0; i < size; ++i) {
    const float x_p = z_p[i] - m_p, x_q = z_q[i] - m_q;
    const float p = exp_of_negative(x_p) * per_p, q = exp_of_negative(x_q) * per_q;
    float grad_p = p * ((x_p - x_q) - mean_d), grad_q = q - p;
    if (K::capped) {
      const float t_p = z_p[i] / softcap, t_q = z_q[i] / softcap;
      grad_p *= 1.0f - t_p * t_p;
      grad_q *= 1.0f - t_q * t_q;
    }
    z_p[i] = grad_p;
    z_q[i] = grad_q;
  }
}

using RowFunction = void (*)(Row&);
CF_FOR_EACH_ISA(row_for, RowFunction, Row&, work_on)

RowFunction choose(bool capped, bool gradients, Isa isa) {
  if (capped) return gradients ? row_for<Kind<true, true>>(isa) : row_for<Kind<true, false>>(isa);
  return gradients ? row_for<Kind<false, true>>(isa) : row_for<Kind<false, false>>(isa);
}

}  // namespace

void kl_rows(const KlInput& in, int threads) {
  const RowFunction work = choose(in.softcap > 0, in.need_gradients, current_isa());
  parallel_for(in.rows, threads_for(in.rows * in.vocabulary, threads), [&](int64_t index) {
    const int64_t begin = index * in.vocabulary;
    Row row{in.z_p + begin, in.z_q + begin, in.vocabulary, in.softcap, 0};
    work(row);
    in.kl[index] = row.kl;
  });
}

}  // namespace cofitune
