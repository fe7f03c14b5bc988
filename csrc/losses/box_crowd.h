// SPDX-License-Identifier: MIT
// Losses of a box among the boxes and targets around it.
#pragma once
#include "losses/box_pair.h"

namespace fastloss::FASTLOSS_TARGET {

// Attraction to the own target, repulsion from the foreign target it overlaps most, and from boxes
// of other targets. Wang et al. 2018, Repulsion Loss, arXiv 1711.07752.
struct RepulsionLoss {
  static constexpr const char* kName = "repulsion_loss";
  static constexpr int kParameters = 4;  // sigma_gt, sigma_box, alpha, beta

  template <class B1, class B2>
  static FASTLOSS_INLINE auto attraction(const B1& box, const B2& target) {
    return smooth_l1(box.x1 - target.x1) + smooth_l1(box.y1 - target.y1) +
           smooth_l1(box.x2 - target.x2) + smooth_l1(box.y2 - target.y2);
  }

  // How strongly a foreign target competes: the one with the largest IoU repels.
  template <class B1, class B2>
  static FASTLOSS_INLINE auto competition(const B1& box, const B2& target) {
    return overlap(box, target).iou(epsilon<B1>());
  }

  // From the foreign target, by intersection over the target's area: growing the box does not
  // escape it.
  template <class B1, class B2, class T>
  static FASTLOSS_INLINE auto target_repulsion(const B1& box, const B2& target,
                                               const T* parameter) {
    return smooth_ln(overlap(box, target).intersection / (target.area() + epsilon<B1>()),
                     parameter[0]);
  }

  template <class B1, class B2, class T>
  static FASTLOSS_INLINE auto box_repulsion(const B1& box, const B2& other, const T* parameter) {
    return smooth_ln(overlap(box, other).iou(epsilon<B1>()), parameter[1]);
  }

  template <class T>
  static FASTLOSS_INLINE T target_factor(const T* parameter) {
    return parameter[2];
  }
  template <class T>
  static FASTLOSS_INLINE T box_factor(const T* parameter) {
    return parameter[3];
  }

 private:
  template <class B>
  static FASTLOSS_INLINE auto epsilon() {
    return value_type<decltype(B::x1)>(1e-7);
  }

  template <class X>
  static FASTLOSS_INLINE auto smooth_l1(const X& difference) {
    using V = value_type<X>;
    const auto distance = abs(difference);
    // Asked this way round NaN is quadratic, and its slope NaN.
    return select(distance >= V(1), distance - V(0.5), V(0.5) * square(distance));
  }

  // −ln(1 − x) up to sigma, from there on straight along the tangent: no pole at 1.
  template <class X, class T>
  static FASTLOSS_INLINE auto smooth_ln(const X& x, T sigma) {
    using V = value_type<X>;
    const V bend(sigma), room = V(1) - bend;
    const auto inside = detach(x) <= bend;
    return select(inside, -log1p(-select(inside, x, V(0))), (x - bend) / room - log1p(-bend));
  }
};

using BoxCrowdLosses = List<RepulsionLoss>;

}  // namespace fastloss::FASTLOSS_TARGET
