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

// The same, with a slope that does not come from the difference 1 − tanh²: far out it is as exact
// as the value, at the cost of an exponential.
template <class X>
FASTLOSS_INLINE X saturation(const X& x) {
  if constexpr (IsDual<X>) {
    return chain(x, one_minus_exp_of_minus(x.value), exp(-x.value));
  } else {
    return one_minus_exp_of_minus(x);
  }
}

// The square root, with a slope of 0 at 0 instead of infinity.
template <class X>
FASTLOSS_INLINE X root(const X& x) {
  if constexpr (IsDual<X>) {
    using V = value_type<X>;
    const V value = sqrt(x.value);
    const auto zero = value == V(0);
    return chain(x, value, select(zero, V(0), V(0.5) / select(zero, V(1), value)));
  } else {
    return sqrt(x);
  }
}

// (cos x, sin x) or both with the other sign: the direction of an axis, which a half turn does not
// change.
template <class X>
struct Direction {
  X cosine, sine;
};

// Reduced to ±π/2 by a π in three parts, which is exact up to 2¹³ half turns in float32 and 2²⁰ in
// float64; beyond, up to 2²² and 2⁵¹, it is as exact as an angle of that size can be, and then only
// finite. The polynomials are fits at Chebyshev's nodes of (sin(r)/r − 1) / r² and
// (cos(r) − 1 + r²/2) / r⁴ as functions of r², off by less than half an ulp of 1.
template <class X>
FASTLOSS_INLINE Direction<X> direction(const X& x) {
  if constexpr (IsDual<X>) {
    const auto of_value = direction(x.value);
    return {chain(x, of_value.cosine, -of_value.sine), chain(x, of_value.sine, of_value.cosine)};
  } else {
    using T = scalar_of<X>;
    constexpr bool kIsFloat = sizeof(T) == 4;
    constexpr int kTerms = kIsFloat ? 5 : 9;
    constexpr T kPi[3] = {kIsFloat ? T(0x1.92p+1) : T(0x1.921fb544p+1),
                          kIsFloat ? T(0x1.fb4p-11) : T(0x1.0b4611a6p-33),
                          kIsFloat ? T(0x1.4442d2p-23) : T(0x1.3198a2e037073p-68)};
    constexpr double kSine[2][9] = {
        {-0.166666667, 0.00833333277, -0.000198410865, 2.75364594e-6, -2.40800951e-8},
        {-0.16666666666666667, 0.0083333333333333333, -0.00019841269841269806,
         2.7557319223971254e-6, -2.5052108382389888e-8, 1.6059043479276752e-10,
         -7.6471391146466496e-13, 2.8104685816815677e-15, -8.0060487034696207e-18}};
    constexpr double kCosine[2][9] = {
        {0.0416666667, -0.00138888885, 2.48014559e-5, -2.75423724e-7, 2.0180809e-9},
        {0.041666666666666667, -0.0013888888888888889, 2.4801587301587286e-5,
         -2.7557319223979226e-7, 2.0876756986478472e-9, -1.1470745434934599e-11,
         4.779466124963715e-14, -1.5614706630642759e-16, 4.0126744864440346e-19}};
    constexpr T kRound = kIsFloat ? T(0x1.8p23) : T(0x1.8p52);  // adding it rounds to an integer
    const X half_turns = (x * T(0.31830988618379067) + kRound) - kRound;
    X r = ((x - half_turns * kPi[0]) - half_turns * kPi[1]) - half_turns * kPi[2];
    r = min(max(r, X(T(-1.6))), X(T(1.6)));
    const X r2 = r * r;
    X sine = X(T(kSine[!kIsFloat][kTerms - 1])), cosine = X(T(kCosine[!kIsFloat][kTerms - 1]));
    FASTLOSS_UNROLL
    for (int i = kTerms - 2; i >= 0; --i) {
      sine = sine * r2 + T(kSine[!kIsFloat][i]);
      cosine = cosine * r2 + T(kCosine[!kIsFloat][i]);
    }
    return {T(1) - T(0.5) * r2 + r2 * r2 * cosine, r + r * r2 * sine};
  }
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
