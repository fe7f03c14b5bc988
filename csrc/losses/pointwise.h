// SPDX-License-Identifier: MIT
// The pointwise losses: pure formulas over an input x and a target t.
//
// `parameter` holds the float arguments of the Python function in the order of its signature;
// `pos_weight` is 1 where the caller gave none.
#pragma once
#include "core/special.h"
#include "losses/list.h"

namespace fastloss::FASTLOSS_TARGET {

struct MSELoss {
  static constexpr const char* kName = "mse_loss";
  static constexpr int kParameters = 0;
  template <class X, class Y, class P, class T>
  static FASTLOSS_INLINE auto loss(const X& x, const Y& t, const P& /*pos_weight*/,
                                   const T* /*parameter*/) {
    return square(x - t);
  }
};

struct L1Loss {
  static constexpr const char* kName = "l1_loss";
  static constexpr int kParameters = 0;
  template <class X, class Y, class P, class T>
  static FASTLOSS_INLINE auto loss(const X& x, const Y& t, const P& /*pos_weight*/,
                                   const T* /*parameter*/) {
    return abs(x - t);
  }
};

// Quadratic below beta, linear above. Girshick 2015, Fast R-CNN, arXiv 1504.08083.
struct SmoothL1Loss {
  static constexpr const char* kName = "smooth_l1_loss";
  static constexpr int kParameters = 1;  // beta
  template <class X, class Y, class P, class T>
  static FASTLOSS_INLINE auto loss(const X& x, const Y& t, const P& /*pos_weight*/,
                                   const T* parameter) {
    const T beta = parameter[0];
    const auto distance = abs(x - t);
    // beta = 0 is the L1 loss: no distance is below it, and the quotient must not divide by it.
    const T half_inverse = beta > T(0) ? T(0.5) / beta : T(0);
    // Asked this way round NaN is quadratic, and its slope NaN, as torch has it.
    return select(distance >= beta, distance - T(0.5) * beta, half_inverse * square(distance));
  }
};

// Quadratic below delta, delta-fold linear above. Huber 1964.
struct HuberLoss {
  static constexpr const char* kName = "huber_loss";
  static constexpr int kParameters = 1;  // delta
  template <class X, class Y, class P, class T>
  static FASTLOSS_INLINE auto loss(const X& x, const Y& t, const P& /*pos_weight*/,
                                   const T* parameter) {
    const T delta = parameter[0];
    const auto distance = abs(x - t);
    // Asked this way round NaN is quadratic, and its slope NaN, as torch has it.
    return select(distance > delta, delta * (distance - T(0.5) * delta), T(0.5) * square(distance));
  }
};

// −pos_weight·t·ln σ(x) − (1 − t)·ln σ(−x). Both terms are positive: nothing cancels, at any logit.
template <class X, class Y, class P, class T>
FASTLOSS_INLINE auto binary_cross_entropy(const Logistic<X>& of_x, const Y& t, const P& pos_weight,
                                          T one) {
  return (one - t) * of_x.cost_if_negative + pos_weight * t * of_x.cost_if_positive;
}

struct BinaryCrossEntropyWithLogits {
  static constexpr const char* kName = "binary_cross_entropy_with_logits";
  static constexpr int kParameters = 0;
  static constexpr bool kWeightedMean = false;  // torch divides by the number of elements
  template <class X, class Y, class P, class T>
  static FASTLOSS_INLINE auto loss(const X& x, const Y& t, const P& pos_weight,
                                   const T* /*parameter*/) {
    return binary_cross_entropy(logistic(x), t, pos_weight, T(1));
  }
};

// −α_t (1 − p_t)^γ ln p_t. Lin et al. 2017, arXiv 1708.02002.
struct SigmoidFocalLoss {
  static constexpr const char* kName = "sigmoid_focal_loss";
  static constexpr int kParameters = 2;  // alpha (negative: no alpha), gamma
  static constexpr bool kClassTargets = true;
  static constexpr const char *kInputName = "inputs", *kTargetName = "targets";  // as torchvision
  template <class X, class Y, class P, class T>
  static FASTLOSS_INLINE auto loss(const X& x, const Y& t, const P& pos_weight,
                                   const T* parameter) {
    const T alpha = parameter[0], gamma = parameter[1];
    const auto of_x = logistic(x);
    const auto cross_entropy = binary_cross_entropy(of_x, t, pos_weight, T(1));
    const auto miss =
        of_x.probability * (T(1) - t) + of_x.complement * t;  // 1 − p_t, without cancellation
    auto result = cross_entropy * power(miss, gamma);
    if (alpha >= T(0)) result = (T(1) - alpha + (T(2) * alpha - T(1)) * t) * result;
    return result;
  }
};

using PointwiseLosses =
    List<MSELoss, L1Loss, SmoothL1Loss, HuberLoss, BinaryCrossEntropyWithLogits, SigmoidFocalLoss>;

}  // namespace fastloss::FASTLOSS_TARGET
