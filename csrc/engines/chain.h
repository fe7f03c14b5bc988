// SPDX-License-Identifier: MIT
// Sums over all paths of a chain, as the engine `sequence` computes them on the CPU and on CUDA.
//
// Forward and backward run on probabilities, not on their logarithms: a step is then a product of a
// vector and a matrix, K² fused multiply-adds in place of K² exponentials. Three things keep that
// as exact as logarithms:
//
// - The largest score of a step, and the largest transition, are taken out before the exponential,
//   and each step is scaled by a power of two, which rounds nothing. So a chain may be as long as
//   it likes.
// - A probability below kFloor (relative to its step) is lifted to kFloor. Lifted numbers bound the
//   true ones from above, and so do all that are computed from them. The probability of passing
//   through any of them is summed up in the backward pass: where it is negligible, nothing that
//   counts was lost.
// - Where it is not (scores that forbid for a while what they demand later), the sequence is
//   computed once more with logarithms in float64.
#pragma once
#include <cstdint>

#include "core/macros.h"

namespace fastloss::FASTLOSS_TARGET {

template <class T>
constexpr T kFloor = T(0x1p-90);
template <>
constexpr double kFloor<double> = 0x1p-960;
template <class T>
constexpr T kNegligible = T(1e-7);
template <>
constexpr double kNegligible<double> = 1e-15;
constexpr double kLn2 = 0.69314718055994530942;

// The power of two of a positive number is added to `exponent`; returns one over it.
FASTLOSS_INLINE float take_exponent(float x, int64_t& exponent) {
  const uint32_t biased = __builtin_bit_cast(uint32_t, x) >> 23;
  exponent += int64_t{biased} - 127;
  return __builtin_bit_cast(float, (254 - biased) << 23);
}
FASTLOSS_INLINE double take_exponent(double x, int64_t& exponent) {
  const uint64_t biased = __builtin_bit_cast(uint64_t, x) >> 52;
  exponent += static_cast<int64_t>(biased) - 1023;
  return __builtin_bit_cast(double, (2046 - biased) << 52);
}

}  // namespace fastloss::FASTLOSS_TARGET
