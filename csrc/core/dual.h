// SPDX-License-Identifier: MIT
// Forward-mode differentiation at compile time: a formula evaluated on duals gives its value and
// its exact gradient.
//
// `Active` is the set of seeds (input coordinates, one bit each) a number depends on. Only those
// derivatives are stored and computed: a box's width carries two numbers, not four, and a constant
// carries none (it is a plain V). Conventions at the kinks are torch's: max and min give each
// argument half at a tie, abs has slope 0 at 0, and a clamp passes the gradient at its bound.
#pragma once
#include <type_traits>

#include "core/macros.h"
#include "core/math.h"

namespace fastloss::FASTLOSS_TARGET {

FASTLOSS_INLINE constexpr int count_seeds(unsigned seeds) { return __builtin_popcount(seeds); }

template <class V, unsigned Active>
struct Dual {
  static_assert(Active != 0, "a number without seeds is a plain V");
  V value;
  V derivative[count_seeds(Active)];  // in the order of the bits of Active

  template <unsigned Bit>
  FASTLOSS_INLINE const V& at() const {
    static_assert((Active & Bit) != 0 && (Bit & (Bit - 1)) == 0);
    return derivative[count_seeds(Active & (Bit - 1))];
  }
  template <unsigned Bit>
  FASTLOSS_INLINE V& at() {
    static_assert((Active & Bit) != 0 && (Bit & (Bit - 1)) == 0);
    return derivative[count_seeds(Active & (Bit - 1))];
  }
};

// An independent variable: its derivative with respect to itself is 1.
template <unsigned Bit, class V>
FASTLOSS_INLINE Dual<V, Bit> seed(V value) {
  return {value, {V(1)}};
}

// The type of an input: a seed where its gradient is wanted, a constant where it is not.
template <unsigned Bit, bool Wanted, class V>
FASTLOSS_INLINE auto variable(V value) {
  if constexpr (Wanted) {
    return seed<Bit>(value);
  } else {
    return value;
  }
}

template <class X>
struct DualTraits {
  static constexpr unsigned kActive = 0;
  using Value = X;
};
template <class V, unsigned Active>
struct DualTraits<Dual<V, Active>> {
  static constexpr unsigned kActive = Active;
  using Value = V;
};
template <class X>
constexpr unsigned active_seeds = DualTraits<std::remove_cvref_t<X>>::kActive;
template <class X>
using value_type = typename DualTraits<std::remove_cvref_t<X>>::Value;
template <class X>
concept IsDual = active_seeds<X> != 0;
template <class A, class B>
concept AnyDual = IsDual<A> || IsDual<B>;

// The value without its derivatives: a term that the gradient must not see.
template <class X>
FASTLOSS_INLINE value_type<X> detach(const X& x) {
  if constexpr (IsDual<X>) {
    return x.value;
  } else {
    return x;
  }
}

// The derivative with respect to one seed, zero where the number does not depend on it.
template <unsigned Bit, class X>
FASTLOSS_INLINE value_type<X> derivative(const X& x) {
  if constexpr ((active_seeds<X> & Bit) != 0) {
    return x.template at<Bit>();
  } else {
    return value_type<X>(0);
  }
}

template <unsigned Bit>
struct SeedBit {
  static constexpr unsigned kBit = Bit;
};

template <unsigned Seeds, class Visit>
FASTLOSS_INLINE void for_each_seed(const Visit& visit) {
  if constexpr (Seeds != 0) {
    visit(SeedBit<(Seeds & (~Seeds + 1))>{});
    for_each_seed<(Seeds & (Seeds - 1))>(visit);
  }
}

// The chain rule for one argument: d f(x) = slope · dx.
template <class V, unsigned A>
FASTLOSS_INLINE Dual<V, A> chain(const Dual<V, A>& x, V value, V slope) {
  Dual<V, A> result;
  result.value = value;
  for (int i = 0; i < count_seeds(A); ++i) result.derivative[i] = slope * x.derivative[i];
  return result;
}

// The chain rule for two arguments, either of which may be a constant: d f(a, b) = slope_a · da +
// slope_b · db.
template <class A, class B, class V>
FASTLOSS_INLINE auto chain(const A& a, const B& b, V value, V slope_a, V slope_b) {
  constexpr unsigned kSeeds = active_seeds<A> | active_seeds<B>;
  Dual<V, kSeeds> result;
  result.value = value;
  for_each_seed<kSeeds>([&](auto seed) {
    constexpr unsigned kBit = decltype(seed)::kBit;
    constexpr bool kInA = (active_seeds<A> & kBit) != 0, kInB = (active_seeds<B> & kBit) != 0;
    V& out = result.template at<kBit>();
    if constexpr (kInA && kInB) {
      out = slope_a * derivative<kBit>(a) + slope_b * derivative<kBit>(b);
    } else if constexpr (kInA) {
      out = slope_a * derivative<kBit>(a);
    } else {
      out = slope_b * derivative<kBit>(b);
    }
  });
  return result;
}

// Sums, differences and blends need no product, only a rule for how two derivatives meet.
template <class A, class B, class V, class Meet>
FASTLOSS_INLINE auto merge(const A& a, const B& b, V value, const Meet& meet) {
  constexpr unsigned kSeeds = active_seeds<A> | active_seeds<B>;
  Dual<V, kSeeds> result;
  result.value = value;
  for_each_seed<kSeeds>([&](auto seed) {
    constexpr unsigned kBit = decltype(seed)::kBit;
    result.template at<kBit>() = meet(derivative<kBit>(a), derivative<kBit>(b));
  });
  return result;
}

// The value type two operands share: a dual's, even where the other is a scalar constant.
template <class A, class B>
using common_value = value_type<std::conditional_t<IsDual<A>, A, B>>;

template <class A, class B>
  requires AnyDual<A, B>
FASTLOSS_INLINE auto operator+(const A& a, const B& b) {
  using V = common_value<A, B>;
  constexpr unsigned kSeeds = active_seeds<A> | active_seeds<B>;
  Dual<V, kSeeds> result;
  result.value = V(detach(a)) + V(detach(b));
  for_each_seed<kSeeds>([&](auto seed) {
    constexpr unsigned kBit = decltype(seed)::kBit;
    constexpr bool kInA = (active_seeds<A> & kBit) != 0, kInB = (active_seeds<B> & kBit) != 0;
    V& out = result.template at<kBit>();
    if constexpr (kInA && kInB) {
      out = derivative<kBit>(a) + derivative<kBit>(b);
    } else if constexpr (kInA) {
      out = derivative<kBit>(a);
    } else {
      out = derivative<kBit>(b);
    }
  });
  return result;
}

template <class V, unsigned A>
FASTLOSS_INLINE Dual<V, A> operator-(const Dual<V, A>& x) {
  Dual<V, A> result;
  result.value = -x.value;
  for (int i = 0; i < count_seeds(A); ++i) result.derivative[i] = -x.derivative[i];
  return result;
}

template <class A, class B>
  requires AnyDual<A, B>
FASTLOSS_INLINE auto operator-(const A& a, const B& b) {
  return a + (-b);
}

template <class A, class B>
  requires AnyDual<A, B>
FASTLOSS_INLINE auto operator*(const A& a, const B& b) {
  using V = common_value<A, B>;
  const V x = detach(a), y = detach(b);
  return chain(a, b, x * y, y, x);
}

template <class A, class B>
  requires AnyDual<A, B>
FASTLOSS_INLINE auto operator/(const A& a, const B& b) {
  using V = common_value<A, B>;
  const V inverse = V(1) / V(detach(b));
  const V quotient = V(detach(a)) * inverse;
  return chain(a, b, quotient, inverse, -quotient * inverse);
}

template <class A, class B>
  requires AnyDual<A, B>
FASTLOSS_INLINE auto operator<(const A& a, const B& b) {
  return common_value<A, B>(detach(a)) < common_value<A, B>(detach(b));
}
template <class A, class B>
  requires AnyDual<A, B>
FASTLOSS_INLINE auto operator>(const A& a, const B& b) {
  return common_value<A, B>(detach(a)) > common_value<A, B>(detach(b));
}
template <class A, class B>
  requires AnyDual<A, B>
FASTLOSS_INLINE auto operator<=(const A& a, const B& b) {
  return common_value<A, B>(detach(a)) <= common_value<A, B>(detach(b));
}
template <class A, class B>
  requires AnyDual<A, B>
FASTLOSS_INLINE auto operator>=(const A& a, const B& b) {
  return common_value<A, B>(detach(a)) >= common_value<A, B>(detach(b));
}
template <class A, class B>
  requires AnyDual<A, B>
FASTLOSS_INLINE auto operator==(const A& a, const B& b) {
  return common_value<A, B>(detach(a)) == common_value<A, B>(detach(b));
}

template <class M, class A, class B>
  requires AnyDual<A, B>
FASTLOSS_INLINE auto select(const M& mask, const A& a, const B& b) {
  using V = common_value<A, B>;
  return merge(a, b, select(mask, V(detach(a)), V(detach(b))),
               [&](const V& da, const V& db) { return select(mask, da, db); });
}

template <class A, class B>
  requires AnyDual<A, B>
FASTLOSS_INLINE auto max(const A& a, const B& b) {
  using V = common_value<A, B>;
  const V x = detach(a), y = detach(b);
  const auto first = x > y, tie = x == y;
  return merge(a, b, max(x, y), [&](const V& da, const V& db) {
    return select(first, da, select(tie, V(0.5) * (da + db), db));
  });
}

template <class A, class B>
  requires AnyDual<A, B>
FASTLOSS_INLINE auto min(const A& a, const B& b) {
  using V = common_value<A, B>;
  const V x = detach(a), y = detach(b);
  const auto first = x < y, tie = x == y;
  return merge(a, b, min(x, y), [&](const V& da, const V& db) {
    return select(first, da, select(tie, V(0.5) * (da + db), db));
  });
}

template <class V, unsigned A>
FASTLOSS_INLINE Dual<V, A> abs(const Dual<V, A>& x) {
  const V zero(0), one(1);
  return chain(x, abs(x.value), select(x.value > zero, one, select(x.value < zero, -one, zero)));
}

template <class V, unsigned A>
FASTLOSS_INLINE Dual<V, A> sqrt(const Dual<V, A>& x) {
  const V root = sqrt(x.value);
  return chain(x, root, V(0.5) / root);
}

template <class V, unsigned A>
FASTLOSS_INLINE Dual<V, A> exp(const Dual<V, A>& x) {
  const V e = exp(x.value);
  return chain(x, e, e);
}

template <class V, unsigned A>
FASTLOSS_INLINE Dual<V, A> log(const Dual<V, A>& x) {
  return chain(x, log(x.value), V(1) / x.value);
}

template <class V, unsigned A>
FASTLOSS_INLINE Dual<V, A> log1p(const Dual<V, A>& x) {
  return chain(x, log1p(x.value), V(1) / (V(1) + x.value));
}

template <class V, unsigned A>
FASTLOSS_INLINE Dual<V, A> atan(const Dual<V, A>& x) {
  return chain(x, atan(x.value), V(1) / (V(1) + x.value * x.value));
}

template <class V, unsigned A>
FASTLOSS_INLINE Dual<V, A> tanh(const Dual<V, A>& x) {
  const V t = tanh(x.value);
  return chain(x, t, V(1) - t * t);
}

}  // namespace fastloss::FASTLOSS_TARGET
