// SPDX-License-Identifier: MIT
// Scalar mathematics under the names that core/vec.h gives to vectors and core/dual.h to duals, so
// that a formula written once compiles for any of them. One lane on CUDA; the C library on the
// host.
#pragma once
#include <math.h>

#include <type_traits>

#include "core/macros.h"

namespace fastloss::FASTLOSS_TARGET {

// The scalar behind a number type: float for float and for Vec<float>.
template <class V>
struct ScalarOf {
  using type = V;
};
template <class V>
using scalar_of = typename ScalarOf<V>::type;

// What comparing two numbers gives: bool for scalars, Mask<T> for Vec<T>.
template <class V>
struct MaskOf {
  using type = bool;
};
template <class V>
using mask_of = typename MaskOf<V>::type;

// The smallest positive number with a full mantissa.
template <class T>
constexpr T smallest_normal = T(0x1p-126);
template <>
constexpr double smallest_normal<double> = 0x1p-1022;

// Overloads, not templates: float and double must never mix silently, and nothing else is a scalar
// here.
FASTLOSS_INLINE float select(bool mask, float a, float b) { return mask ? a : b; }
FASTLOSS_INLINE double select(bool mask, double a, double b) { return mask ? a : b; }
FASTLOSS_INLINE bool any(bool mask) { return mask; }

FASTLOSS_INLINE bool is_nan(float x) { return x != x; }
FASTLOSS_INLINE bool is_nan(double x) { return x != x; }

// NaN where either argument is NaN, as torch.minimum and torch.maximum (C's fmin and fmax would
// drop it).
FASTLOSS_INLINE float min(float a, float b) { return is_nan(a) || a < b ? a : b; }
FASTLOSS_INLINE double min(double a, double b) { return is_nan(a) || a < b ? a : b; }
FASTLOSS_INLINE float max(float a, float b) { return is_nan(a) || a > b ? a : b; }
FASTLOSS_INLINE double max(double a, double b) { return is_nan(a) || a > b ? a : b; }

FASTLOSS_INLINE float abs(float x) { return ::fabsf(x); }
FASTLOSS_INLINE double abs(double x) { return ::fabs(x); }
FASTLOSS_INLINE float trunc(float x) { return ::truncf(x); }
FASTLOSS_INLINE double trunc(double x) { return ::trunc(x); }
FASTLOSS_INLINE float sqrt(float x) { return ::sqrtf(x); }
FASTLOSS_INLINE double sqrt(double x) { return ::sqrt(x); }
FASTLOSS_INLINE float exp(float x) { return ::expf(x); }
FASTLOSS_INLINE double exp(double x) { return ::exp(x); }
// exp where x is known not to be above 0, which core/vec.h exploits.
FASTLOSS_INLINE float exp_nonpositive(float x) { return ::expf(x); }
FASTLOSS_INLINE double exp_nonpositive(double x) { return ::exp(x); }
FASTLOSS_INLINE float log(float x) { return ::logf(x); }
FASTLOSS_INLINE double log(double x) { return ::log(x); }
FASTLOSS_INLINE float log1p(float x) { return ::log1pf(x); }
FASTLOSS_INLINE double log1p(double x) { return ::log1p(x); }
// log1p where x is known to be in [0, 1], which core/vec.h exploits.
FASTLOSS_INLINE float log1p_unit(float x) { return ::log1pf(x); }
FASTLOSS_INLINE double log1p_unit(double x) { return ::log1p(x); }
FASTLOSS_INLINE float atan(float x) { return ::atanf(x); }
FASTLOSS_INLINE double atan(double x) { return ::atan(x); }
FASTLOSS_INLINE float tanh(float x) { return ::tanhf(x); }
FASTLOSS_INLINE double tanh(double x) { return ::tanh(x); }

// The helpers below are written once for every number type: scalars, Vec and Dual.

template <class X>
FASTLOSS_INLINE auto square(const X& x) {
  return x * x;
}

// x, at least `bound` (a scalar). Unlike max, x keeps its whole gradient at the bound; NaN stays
// NaN.
template <class X, class T>
FASTLOSS_INLINE auto clamp_min(const X& x, T bound) {
  return select(x < bound, bound, x);
}

// A denominator that is exactly 0 becomes `replacement` (a scalar), without a gradient.
template <class X, class T>
FASTLOSS_INLINE auto nonzero(const X& denominator, T replacement) {
  return select(denominator == T(0), replacement, denominator);
}

}  // namespace fastloss::FASTLOSS_TARGET
