// SPDX-License-Identifier: MIT
// The losses of triplets: norms as sums over features, and what the distances to a positive and to
// a negative cost.
#pragma once
#include "core/special.h"
#include "losses/list.h"

namespace fastloss::FASTLOSS_TARGET {

// A norm is finish(Σ term(difference)). `scale` is the largest magnitude of the differences where
// kScaled says that the norm wants to know; held constant, since no norm depends on it.

// p = 1
struct ManhattanNorm {
  static constexpr bool kScaled = false;
  template <class X, class V, class T>
  static FASTLOSS_INLINE auto term(const X& difference, const V& /*scale*/, T /*p*/) {
    return abs(difference);
  }
  template <class X, class T>
  static FASTLOSS_INLINE X finish(const X& sum, T /*scale*/, T /*p*/) {
    return sum;
  }
};

// p = 2
struct EuclideanNorm {
  static constexpr bool kScaled = false;
  template <class X, class V, class T>
  static FASTLOSS_INLINE auto term(const X& difference, const V& /*scale*/, T /*p*/) {
    return square(difference);
  }
  // With a slope of 0 at 0, as torch has it.
  template <class X, class T>
  static FASTLOSS_INLINE X finish(const X& sum, T /*scale*/, T /*p*/) {
    return select(sum == T(0), T(0), sqrt(nonzero(sum, T(1))));
  }
};

// Any p. Relative to the largest difference, of which the power could overflow.
struct PowerNorm {
  static constexpr bool kScaled = true;
  template <class X, class V, class T>
  static FASTLOSS_INLINE auto term(const X& difference, const V& scale, T p) {
    const auto magnitude = abs(difference) * (V(1) / nonzero(scale, T(1)));
    return select(magnitude == T(0), T(0), power(magnitude, p));
  }
  template <class X, class T>
  static FASTLOSS_INLINE X finish(const X& sum, T scale, T p) {
    return select(sum == T(0), T(0), power(nonzero(sum, T(1)), T(1) / p) * scale);
  }
};

// p = inf. Equal largest differences share the slope.
struct MaximumNorm {
  static constexpr bool kScaled = true;
  template <class X, class V, class T>
  static FASTLOSS_INLINE auto term(const X& difference, const V& scale, T /*p*/) {
    const auto magnitude = abs(difference) * (V(1) / nonzero(scale, T(1)));
    return select(abs(detach(difference)) == scale, magnitude, V(0));
  }
  // The sum counts the largest: what it is divided by is itself.
  template <class X, class T>
  static FASTLOSS_INLINE X finish(const X& sum, T scale, T /*p*/) {
    return sum * (scale / nonzero(detach(sum), T(1)));
  }
};

// max(0, d_p − d_n + margin). Schroff et al. 2015, FaceNet, arXiv 1503.03832.
template <class X, class Y, class T>
FASTLOSS_INLINE auto triplet_hinge(const X& to_positive, const Y& to_negative, T margin) {
  return clamp_min(to_positive - to_negative + margin, T(0));
}

// torch's: of the distances from the negative to the anchor and to the positive, the smaller one
// counts where they are to be swapped.
template <class NormOfDifference>
struct TripletMargin {
  using Norm = NormOfDifference;
  static constexpr int kParameters = 4;  // margin, p, eps, swap
  template <class X, class Y, class Z, class T>
  static FASTLOSS_INLINE auto loss(const X& to_positive, const Y& to_negative, const Z& swapped,
                                   const T* parameter) {
    return triplet_hinge(to_positive, min(to_negative, swapped), parameter[0]);
  }
};

struct ManhattanTripletLoss : TripletMargin<ManhattanNorm> {
  static constexpr const char* kName = "triplet_margin_loss/1";
};
struct EuclideanTripletLoss : TripletMargin<EuclideanNorm> {
  static constexpr const char* kName = "triplet_margin_loss/2";
};
struct PowerTripletLoss : TripletMargin<PowerNorm> {
  static constexpr const char* kName = "triplet_margin_loss/p";
};
struct MaximumTripletLoss : TripletMargin<MaximumNorm> {
  static constexpr const char* kName = "triplet_margin_loss/inf";
};

using TripletLosses =
    List<ManhattanTripletLoss, EuclideanTripletLoss, PowerTripletLoss, MaximumTripletLoss>;

// The loss of an anchor with its farthest positive and its nearest negative. Hermans et al. 2017,
// In Defense of the Triplet Loss, arXiv 1703.07737.
struct BatchHardHingeLoss {
  static constexpr const char* kName = "batch_hard_triplet_loss/hinge";
  static constexpr int kParameters = 1;  // margin
  template <class X, class Y, class T>
  static FASTLOSS_INLINE auto loss(const X& to_positive, const Y& to_negative, const T* parameter) {
    return triplet_hinge(to_positive, to_negative, parameter[0]);
  }
};

// ln(1 + e^(d_p − d_n)): the soft margin.
struct BatchHardSoftLoss {
  static constexpr const char* kName = "batch_hard_triplet_loss/soft";
  static constexpr int kParameters = 1;  // margin, which it has none of
  template <class X, class Y, class T>
  static FASTLOSS_INLINE auto loss(const X& to_positive, const Y& to_negative,
                                   const T* /*parameter*/) {
    return logistic(to_positive - to_negative).cost_if_negative;
  }
};

using BatchHardLosses = List<BatchHardHingeLoss, BatchHardSoftLoss>;

}  // namespace fastloss::FASTLOSS_TARGET
