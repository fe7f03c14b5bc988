// SPDX-License-Identifier: MIT
// Functions of a logit and powers, for numbers and for duals: shared by formulas, stable where the
// textbook form is not.
#pragma once
#include "core/dual.h"

namespace fastloss::FASTLOSS_TARGET {

// Everything a loss on logits needs, from one exponential and one logarithm: σ(x), σ(−x) = 1 − σ(x)
// without cancellation, −ln σ(x) and −ln σ(−x) without overflow.
template <class X>
struct Logistic {
  X probability;
  X complement;
  X cost_if_positive;  // −ln σ(x)
  X cost_if_negative;  // −ln σ(−x)
};

template <class X>
FASTLOSS_INLINE Logistic<X> logistic(const X& x) {
  if constexpr (IsDual<X>) {
    const auto of_value = logistic(x.value);
    const auto slope = of_value.probability * of_value.complement;
    return {chain(x, of_value.probability, slope), chain(x, of_value.complement, -slope),
            chain(x, of_value.cost_if_positive, -of_value.complement),
            chain(x, of_value.cost_if_negative, of_value.probability)};
  } else {
    const X decay = exp(-abs(x));  // never overflows
    const X larger = X(1) / (X(1) + decay);
    const X smaller = decay * larger;
    const auto positive = x >= X(0);
    const X tail = log1p_unit(decay);
    return {select(positive, larger, smaller), select(positive, smaller, larger),
            max(-x, X(0)) + tail, max(x, X(0)) + tail};
  }
}

template <class X>
FASTLOSS_INLINE X sigmoid(const X& x) {
  return logistic(x).probability;
}

// 1 − exp(−x) for x ≥ 0 without cancellation: 1 − p where x = −ln p.
template <class X>
FASTLOSS_INLINE X one_minus_exp_of_minus(const X& x) {
  using V = value_type<X>;
  const X t = tanh(V(0.5) * x);
  return (V(2) * t) / (V(1) + t);
}

// eˣ − 1 − x, how far the exponential is above its tangent at 0. Near 0 by its series: there it is
// a difference of nearly equal numbers.
template <class X>
FASTLOSS_INLINE X exp_minus_tangent(const X& x) {
  if constexpr (IsDual<X>) {
    const auto value = exp_minus_tangent(x.value);
    return chain(x, value, x.value + value);
  } else {
    using T = scalar_of<X>;
    constexpr int kTerms = sizeof(T) == 4 ? 11 : 18;
    X series(1);
    for (int n = kTerms; n > 2; --n) series = X(1) + x * series * X(T(1) / T(n));
    return select(abs(x) < T(0.75), T(0.5) * x * x * series, exp(x) - T(1) - x);
  }
}

// ln cosh x. |x| − ln(1 + tanh|x|) is the same, but near 0 it is a difference of nearly equal
// numbers.
template <class X>
FASTLOSS_INLINE X log_cosh(const X& x) {
  if constexpr (IsDual<X>) {
    return chain(x, log_cosh(x.value), tanh(x.value));
  } else {
    using T = scalar_of<X>;
    const X slope = tanh(x), magnitude = abs(x);
    return select(magnitude < T(0.625), T(-0.5) * log1p(-(slope * slope)),
                  magnitude - log1p_unit(abs(slope)));
  }
}

// base^exponent for base ≥ 0 and one exponent for all elements. The base is clamped to the smallest
// normal number where it would need a logarithm, so that an exponent below 1 has a finite slope at
// 0.
template <class X, class T>
FASTLOSS_INLINE X power(const X& base, T exponent) {
  if constexpr (IsDual<X>) {
    using V = value_type<X>;
    const V b = base.value;
    if (exponent == T(2)) return chain(base, b * b, V(2) * b);
    if (exponent == T(1)) return base;
    if (exponent == T(0)) return chain(base, V(1), V(0));
    const V lower = power(b, exponent - T(1));
    return chain(base, lower * b, V(exponent) * lower);
  } else {
    if (exponent == T(1)) return base;
    if (exponent == T(2)) return base * base;
    if (exponent == T(3)) return base * base * base;
    if (exponent == T(4)) return (base * base) * (base * base);
    if (exponent == T(0)) return X(1);
    return exp(X(exponent) * log(max(base, X(smallest_normal<T>))));
  }
}

}  // namespace fastloss::FASTLOSS_TARGET
