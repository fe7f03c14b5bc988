// SPDX-License-Identifier: MIT
// The formulas of dense detectors: a box as four distributions of a distance, how well an anchor
// suits a box, and what its prediction costs.
#pragma once
#include "losses/box_pair.h"

namespace fastloss::FASTLOSS_TARGET {

template <class T, class B1, class B2>
FASTLOSS_INLINE auto complete_box_iou(const B1& b1, const B2& b2) {
  const T parameters[] = {T(1e-7), T(0)};  // eps, aspect_threshold
  return CompleteBoxIoU::similarity(b1, b2, parameters);
}

// A softmax over the bins 0, 1, 2, ..., whose mean is the distance to a side, in cells. Li et al.
// 2020, arXiv 2006.04388.
template <class V>
struct Distribution {
  V largest, inverse_sum, log_sum, mean;

  FASTLOSS_INLINE V probability(V logit) const {
    return exp_nonpositive(logit - largest) * inverse_sum;
  }
};

template <class V, class Logit>
FASTLOSS_INLINE Distribution<V> distribution(int64_t bins, const Logit& logit) {
  using T = scalar_of<V>;
  V largest = logit(0);
  for (int64_t j = 1; j < bins; ++j) largest = max(largest, logit(j));
  V sum(0), moment(0);
  for (int64_t j = 0; j < bins; ++j) {
    const V e = exp_nonpositive(logit(j) - largest);
    sum += e;
    moment += T(j) * e;
  }
  const V inverse = V(1) / sum;
  return {largest, inverse, log(sum), moment * inverse};
}

// The box at these distances around a point.
template <bool kWanted, class V>
FASTLOSS_INLINE auto box_around(V x, V y, const V (&distances)[4]) {
  return Box{variable<1, kWanted>(x - distances[0]), variable<2, kWanted>(y - distances[1]),
             variable<4, kWanted>(x + distances[2]), variable<8, kWanted>(y + distances[3])};
}

template <class V, class T>
FASTLOSS_INLINE auto scaled_box(const V (&coordinates)[4], T factor) {
  return Box{coordinates[0] * factor, coordinates[1] * factor, coordinates[2] * factor,
             coordinates[3] * factor};
}

// Whether a point is inside a box, and not on its border.
template <class Box, class V>
FASTLOSS_INLINE auto contains(const Box& box, V x, V y) {
  const V margin(1e-9);
  return (x - box.x1 > margin) & (y - box.y1 > margin) & (box.x2 - x > margin) &
         (box.y2 - y > margin);
}

// How well a prediction suits a box: σ(logit)^α · overlap^β. Feng et al. 2021, arXiv 2108.07755.
template <class V>
struct Alignment {
  V metric, overlap;

  template <class Predicted, class Target, class T>
  static FASTLOSS_INLINE Alignment of(V logit, const Predicted& predicted, const Target& target,
                                      T alpha, T beta) {
    const V overlap = max(complete_box_iou<T>(target, predicted), V(0));
    const V metric = power(sigmoid(logit), alpha) * power(overlap, beta);
    return {select(overlap == V(0), V(0), metric), overlap};
  }
};

// The loss of a predicted box against its target, and of the distributions behind it, with
// everything that their gradient by a logit needs.
template <class V>
struct AnchorLoss {
  Distribution<V> sides[4];
  V wanted[4];       // the distances of the target, in cells
  V box, distances;  // 1 − CIoU; the distribution focal loss
  V slopes[4];       // of the former, by the distances

  // logit(side, bin); x and y in cells, and the target's box. Without kGradient, slopes are 0.
  template <bool kGradient, class Target, class Logit>
  static FASTLOSS_INLINE AnchorLoss of(V x, V y, const Target& target, int64_t bins,
                                       const Logit& logit) {
    using T = scalar_of<V>;
    AnchorLoss result;
    V means[4];
    FASTLOSS_UNROLL
    for (int side = 0; side < 4; ++side) {
      result.sides[side] = distribution<V>(bins, [&](int64_t j) { return logit(side, j); });
      means[side] = result.sides[side].mean;
    }
    const auto loss = T(1) - complete_box_iou<T>(box_around<kGradient>(x, y, means), target);
    result.box = detach(loss);
    // A longer distance moves a lower side down.
    result.slopes[0] = -derivative<1>(loss);
    result.slopes[1] = -derivative<2>(loss);
    result.slopes[2] = derivative<4>(loss);
    result.slopes[3] = derivative<8>(loss);

    const V sides[4] = {x - target.x1, y - target.y1, target.x2 - x, target.y2 - y};
    V sum(0);
    FASTLOSS_UNROLL
    for (int side = 0; side < 4; ++side) {
      const Distribution<V>& of_side = result.sides[side];
      result.wanted[side] = min(max(sides[side], V(0)), V(T(bins - 1) - T(0.01)));
      V expected(0);
      for (int64_t j = 0; j < bins; ++j) {
        const V share = result.share(side, j);
        expected += select(share == V(0), V(0), share * (logit(side, j) - of_side.largest));
      }
      sum += of_side.log_sum - expected;
    }
    result.distances = V(T(0.25)) * sum;
    return result;
  }

  // What a bin should have: the two next to the distance share it, each the more the nearer it is.
  FASTLOSS_INLINE V share(int side, int64_t bin) const {
    using T = scalar_of<V>;
    return max(V(1) - abs(wanted[side] - V(T(bin))), V(0));
  }

  // By the logit of a bin, of both losses weighted.
  FASTLOSS_INLINE V gradient(int side, int64_t bin, V logit, V box_weight,
                             V distance_weight) const {
    using T = scalar_of<V>;
    const V p = sides[side].probability(logit);
    return box_weight * slopes[side] * p * (V(T(bin)) - sides[side].mean) +
           distance_weight * V(T(0.25)) * (p - share(side, bin));
  }
};

}  // namespace fastloss::FASTLOSS_TARGET
