// SPDX-License-Identifier: MIT
// What the CPU's and CUDA's region engines make of the sums of a region.
#pragma once
#include "engines/region.h"
#include "losses/region.h"

namespace fastloss::FASTLOSS_TARGET {

template <class Formula>
struct VoxelLossOf {
  using type = NoVoxelLoss;
};
template <class Formula>
  requires requires { typename Formula::Voxel; }
struct VoxelLossOf<Formula> {
  using type = typename Formula::Voxel;
};
template <class Formula>
using voxel_loss_of = typename VoxelLossOf<Formula>::type;

// Whether the formula sees all classes of a region together.
template <class Formula>
constexpr bool pools_classes = requires { Formula::class_weight(0.0); };

// The activations that a formula's loss of voxels is compiled for; all where it has none.
template <class Voxel>
constexpr bool fits_activation(Activation activation) {
  return Voxel::kKind != VoxelKind::kCrossEntropy || activation == Activation::kSoftmax;
}

template <class Formula>
FASTLOSS_INLINE double region_factor(const double* parameters) {
  if constexpr (voxel_loss_of<Formula>::kKind == VoxelKind::kNone) {
    return 1.0;
  } else {
    return parameters[Formula::kFactorParameters];
  }
}

// How many losses of regions there are.
template <class Formula>
FASTLOSS_INLINE int64_t counted_classes(const RegionArguments& arguments) {
  if (pools_classes<Formula>) return 1;
  return arguments.classes - (arguments.include_background ? 0 : 1);
}

// What each region's loss is multiplied with, besides a weight of its class.
template <class Formula>
FASTLOSS_INLINE double region_scale(const RegionArguments& arguments) {
  const double factor = region_factor<Formula>(arguments.parameters);
  if (arguments.reduction != RegionReduction::kMean) return factor;
  const int64_t regions = arguments.pools_batch ? 1 : arguments.batch;
  return factor / double(regions * counted_classes<Formula>(arguments));
}

FASTLOSS_INLINE double class_weight_of(const RegionArguments& arguments, int64_t c) {
  if (arguments.weight == nullptr || c < arguments.first_weighted) return 1.0;
  return arguments.weight[c - arguments.first_weighted];
}

// What the voxels' losses of a sample are multiplied with. `valid` counts voxels, in the sample and
// in all; `label_weight` is Σ weight over the labels of all.
template <class Formula>
FASTLOSS_INLINE double voxel_scale(const RegionArguments& arguments, double valid,
                                   double valid_in_all, double label_weight) {
  using Voxel = voxel_loss_of<Formula>;
  if constexpr (Voxel::kKind == VoxelKind::kNone) {
    return 0.0;
  } else {
    const double factor = arguments.parameters[Formula::kFactorParameters + 1];
    double divisor = 1.0;
    if (arguments.reduction == RegionReduction::kMean) {
      if constexpr (Voxel::kKind == VoxelKind::kCrossEntropy) {
        divisor = arguments.labels ? label_weight : valid_in_all;
      } else {
        const bool skips = Voxel::kSkipsBackground && !arguments.include_background;
        divisor = valid_in_all * double(arguments.classes - (skips ? 1 : 0));
      }
    } else if (Voxel::kAveragesSpace) {
      divisor = valid;
    }
    return divisor == 0.0 ? 0.0 : factor / divisor;
  }
}

struct RegionValue {
  double loss, by_intersection, by_prediction;
};

template <class Formula>
FASTLOSS_INLINE RegionValue evaluate_region(double intersection, double prediction, double target,
                                            const double* parameters) {
  constexpr unsigned kI = 1, kP = 2;
  const auto result =
      Formula::loss(seed<kI>(intersection), seed<kP>(prediction), target, parameters);
  return {detach(result), derivative<kI>(result), derivative<kP>(result)};
}

// A slope as the gradient's pass takes it: it meets probabilities that may be as small as the slope
// is large, and infinity times 0 would be NaN.
template <class T>
FASTLOSS_INLINE T as_slope(double slope) {
  constexpr double kLargest = sizeof(T) == 4 ? 1e30 : 1e300;
  return T(slope > kLargest ? kLargest : slope < -kLargest ? -kLargest : slope);
}

}  // namespace fastloss::FASTLOSS_TARGET
