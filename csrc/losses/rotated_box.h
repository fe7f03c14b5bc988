// SPDX-License-Identifier: MIT
// The losses of rotated boxes: their Gaussians compared, in closed form.
//
// A box is a centre, two sides and the angle of the first side; its Gaussian has the centre as its
// mean and, along each side, a deviation that is proportional to it. Everything is written by the
// deviations and the angle between the axes of two boxes, as sums of squares: a covariance matrix,
// its determinant and its inverse would be differences of nearly equal numbers.
#pragma once
#include "core/special.h"
#include "losses/list.h"

namespace fastloss::FASTLOSS_TARGET {

template <class X, class Y, class Width, class Height, class Angle>
struct RotatedBox {
  X x;
  Y y;
  Width width;
  Height height;
  Angle angle;
};

// The deviations are along the axis, the direction of the width, and across it.
template <class Along, class Across, class Axis>
struct Ellipse {
  Along along;
  Across across;
  Axis axis;
};
template <class Along, class Across, class Axis>
Ellipse(Along, Across, Axis) -> Ellipse<Along, Across, Axis>;

// A vector in the coordinates of an ellipse.
template <class Along, class Across>
struct Offset {
  Along along;
  Across across;
};
template <class E, class DX, class DY>
FASTLOSS_INLINE auto offset_in(const E& ellipse, const DX& dx, const DY& dy) {
  const auto along = ellipse.axis.cosine * dx + ellipse.axis.sine * dy;
  const auto across = ellipse.axis.cosine * dy - ellipse.axis.sine * dx;
  return Offset<decltype(along), decltype(across)>{along, across};
}

// cos² and sin² of the angle between two axes.
template <class Cosine2, class Sine2>
struct Turn {
  Cosine2 cosine2;
  Sine2 sine2;
};
template <class E1, class E2>
FASTLOSS_INLINE auto turn_between(const E1& e1, const E2& e2) {
  const auto cosine2 = square(e1.axis.cosine * e2.axis.cosine + e1.axis.sine * e2.axis.sine);
  const auto sine2 = square(e1.axis.sine * e2.axis.cosine - e1.axis.cosine * e2.axis.sine);
  return Turn<decltype(cosine2), decltype(sine2)>{cosine2, sine2};
}

// The determinant of the sum of two covariances, as 4·product + excess: `product` is the root of
// the product of their determinants, and the excess is 0 where they are the same.
template <class Product, class Excess>
struct SumOfCovariances {
  Product product;
  Excess excess;
};
template <class E1, class E2>
FASTLOSS_INLINE auto sum_of_covariances(const E1& e1, const E2& e2) {
  const auto turn = turn_between(e1, e2);
  const auto area1 = e1.along * e1.across;
  const auto area2 = e2.along * e2.across;
  const auto product = area1 * area2;
  const auto excess = square(area1 - area2) +
                      turn.cosine2 * square(e1.along * e2.across - e2.along * e1.across) +
                      turn.sine2 * square(e1.along * e2.along - e1.across * e2.across);
  return SumOfCovariances<decltype(product), decltype(excess)>{product, excess};
}

// The Hellinger distance of the Gaussians, √(1 − e^(−D)) with D Bhattacharyya's distance: 1 −
// ProbIoU. Llerena et al. 2021, arXiv 2106.06072.
struct ProbabilisticIoULoss : OfBoxes {
  static constexpr const char* kName = "probabilistic_iou_loss";
  static constexpr int kParameters = 2;  // eps, floor
  static constexpr int kCoordinates = 5;
  template <class B1, class B2, class T>
  static FASTLOSS_INLINE auto loss(const B1& b1, const B2& b2, const T* parameter) {
    const T eps = parameter[0], floor = parameter[1];
    const auto e1 = ellipse(b1, floor);
    const auto e2 = ellipse(b2, floor);
    const auto sum = sum_of_covariances(e1, e2);
    const auto dx = b2.x - b1.x;
    const auto dy = b2.y - b1.y;
    const auto offset1 = offset_in(e1, dx, dy);
    const auto offset2 = offset_in(e2, dx, dy);
    // The adjugate of a covariance swaps its two variances.
    const auto apart = square(e1.along * offset1.across) + square(e1.across * offset1.along) +
                       square(e2.along * offset2.across) + square(e2.across * offset2.along);
    const auto of_centers = T(0.25) * apart / (T(4) * sum.product + sum.excess + eps);
    const auto of_shapes = T(0.5) * log1p((sum.excess - eps) / (T(4) * sum.product + eps) + eps);
    const auto distance = clamp_min(of_centers + of_shapes, eps);
    constexpr T kFarthest = T(100);
    const auto held = select(distance > kFarthest, kFarthest, distance);
    return sqrt(saturation(held) + eps);
  }

 private:
  // The variance of a uniform distribution over a side, and the floor.
  template <class B, class T>
  static FASTLOSS_INLINE auto ellipse(const B& box, T floor) {
    constexpr T kTwelfth = T(1.0 / 12);
    return Ellipse{root(square(box.width) * kTwelfth + floor),
                   root(square(box.height) * kTwelfth + floor), direction(box.angle)};
  }
};

}  // namespace fastloss::FASTLOSS_TARGET
