// SPDX-License-Identifier: MIT
// What it costs to match a prediction with a target, as DETR and those after it have it: formulas
// over a logit and over two boxes (center x, center y, width, height).
#pragma once
#include "core/special.h"
#include "losses/box_pair.h"

namespace fastloss::FASTLOSS_TARGET {

// −p, with what the row's softmax has in common known. Carion et al. 2020, End-to-End Object
// Detection with Transformers, arXiv 2005.12872.
template <class V>
FASTLOSS_INLINE V softmax_cost(const V& logit, const V& largest, const V& inverse_sum) {
  return -(exp(logit - largest) * inverse_sum);
}

// The focal loss of a positive minus that of a negative. Zhu et al. 2021, Deformable DETR, arXiv
// 2010.04159.
template <class V, class T>
FASTLOSS_INLINE V focal_cost(const V& logit, T alpha, T gamma) {
  constexpr T kEps = T(1e-8);  // inside the logarithms, as its authors have it
  const Logistic<V> of = logistic(logit);
  const V positive = V(-alpha) * power(of.complement, gamma) * log(of.probability + V(kEps));
  const V negative = V(alpha - T(1)) * power(of.probability, gamma) * log(of.complement + V(kEps));
  return positive - negative;
}

// A box as it is predicted, with its corners.
template <class V>
struct CenteredBox {
  V center_x, center_y, width, height;
  Box<V, V, V, V> corners;

  FASTLOSS_INLINE CenteredBox(const V& x, const V& y, const V& w, const V& h)
      : center_x(x),
        center_y(y),
        width(w),
        height(h),
        corners{x - V(0.5) * w, y - V(0.5) * h, x + V(0.5) * w, y + V(0.5) * h} {}
};

// The weighted distance of the coordinates less the weighted GIoU.
template <class V, class T>
FASTLOSS_INLINE V box_cost(const CenteredBox<V>& a, const CenteredBox<V>& b, T bbox_cost,
                           T giou_cost) {
  const V distance = abs(a.center_x - b.center_x) + abs(a.center_y - b.center_y) +
                     abs(a.width - b.width) + abs(a.height - b.height);
  // Without an eps: boxes in units of the image are small beside any. Two points have no overlap.
  const auto both = overlap(a.corners, b.corners);
  const V around = enclosing(a.corners, b.corners).area();
  const V giou = both.iou(T(0)) - (around - both.union_area) / nonzero(around, T(1));
  return V(bbox_cost) * distance - V(giou_cost) * giou;
}

}  // namespace fastloss::FASTLOSS_TARGET
