// SPDX-License-Identifier: MIT
// The losses of regions: formulas over three sums of a sample's class, the intersection
// I = Σ p g, the prediction P = Σ p and the target G = Σ g.
//
// A formula with `class_weight` sees the sums of all classes together, so weighted. One with a
// `Voxel` adds a loss of single voxels: λ · region + μ · voxel.
#pragma once
#include "losses/pointwise.h"

namespace fastloss::FASTLOSS_TARGET {

// 1 − numerator / denominator, and 0 where there is nothing: neither predicted nor to be found.
template <class N, class D, class P, class G>
FASTLOSS_INLINE auto one_minus_ratio(const N& numerator, const D& denominator, const P& prediction,
                                     const G& target) {
  using V = value_type<N>;
  const bool nothing = detach(prediction) + detach(target) == V(0) || detach(denominator) == V(0);
  const auto divisor = select(nothing, V(1), denominator);
  auto loss = V(1) - numerator / divisor;
  // With the difference taken first, equal sums cost exactly 0. (The slopes are exact as they are.)
  loss.value = (detach(divisor) - detach(numerator)) / detach(divisor);
  return select(nothing, V(0), loss);
}

// Milletari et al. 2016, V-Net, arXiv 1606.04797.
struct DiceLoss {
  static constexpr const char* kName = "dice_loss";
  static constexpr int kParameters = 3;  // smooth_nr, smooth_dr, jaccard (0 or 1)
  template <class I, class P, class G, class T>
  static FASTLOSS_INLINE auto loss(const I& intersection, const P& prediction, const G& target,
                                   const T* parameter) {
    const auto both = prediction + target;
    // Of Jaccard's index it is twice the union.
    const auto denominator = both + parameter[2] * (both - T(2) * intersection) + parameter[1];
    return one_minus_ratio(T(2) * intersection + parameter[0], denominator, prediction, target);
  }
};

// Salehi et al. 2017, arXiv 1706.05721.
struct TverskyLoss {
  static constexpr const char* kName = "tversky_loss";
  static constexpr int kParameters = 4;  // alpha, beta, smooth_nr, smooth_dr
  template <class I, class P, class G, class T>
  static FASTLOSS_INLINE auto loss(const I& intersection, const P& prediction, const G& target,
                                   const T* parameter) {
    const auto false_positives = prediction - intersection;
    const auto false_negatives = target - intersection;
    const auto denominator = intersection + parameter[0] * false_positives +
                             parameter[1] * false_negatives + parameter[3];
    return one_minus_ratio(intersection + parameter[2], denominator, prediction, target);
  }
};

// Abraham and Khan 2018, arXiv 1810.07842.
struct FocalTverskyLoss {
  static constexpr const char* kName = "focal_tversky_loss";
  static constexpr int kParameters = 5;  // alpha, beta, gamma, smooth_nr, smooth_dr
  template <class I, class P, class G, class T>
  static FASTLOSS_INLINE auto loss(const I& intersection, const P& prediction, const G& target,
                                   const T* parameter) {
    const T of_tversky[] = {parameter[0], parameter[1], parameter[3], parameter[4]};
    const auto miss = TverskyLoss::loss(intersection, prediction, target, of_tversky);
    // A difference of 1 and almost 1: below this it is rounding, with a slope that is too.
    const bool nothing_missed = detach(miss) < T(0x1p-52);
    return select(nothing_missed, T(0), power(select(nothing_missed, T(1), miss), parameter[2]));
  }
};

// Sudre et al. 2017, arXiv 1707.03237.
struct GeneralizedDice {
  static constexpr int kParameters = 2;  // smooth_nr, smooth_dr
  template <class I, class P, class G, class T>
  static FASTLOSS_INLINE auto loss(const I& intersection, const P& prediction, const G& target,
                                   const T* parameter) {
    const T of_dice[] = {parameter[0], parameter[1], T(0)};
    return DiceLoss::loss(intersection, prediction, target, of_dice);
  }
};
// The weight of a class by its target volume; 0 for one that is absent: it then gets the largest
// weight of the others.
struct GeneralizedDiceSquare : GeneralizedDice {
  static constexpr const char* kName = "generalized_dice_loss/square";
  static FASTLOSS_INLINE double class_weight(double target) {
    return target == 0.0 ? 0.0 : 1.0 / (target * target);
  }
};
struct GeneralizedDiceSimple : GeneralizedDice {
  static constexpr const char* kName = "generalized_dice_loss/simple";
  static FASTLOSS_INLINE double class_weight(double target) {
    return target == 0.0 ? 0.0 : 1.0 / target;
  }
};
struct GeneralizedDiceUniform : GeneralizedDice {
  static constexpr const char* kName = "generalized_dice_loss/uniform";
  static FASTLOSS_INLINE double class_weight(double /*target*/) { return 1.0; }
};

// ---- losses of voxels, beside that of regions ----

// What a loss of voxels is a function of.
enum class VoxelKind {
  kNone,
  // −Σ mass_c ln p_c over the classes of a voxel, p its softmax. One loss per voxel; a mean over
  // labels divides by the sum of their weights.
  kCrossEntropy,
  // loss_c(x_c, g_c), by the logit of one class.
  kLogit,
};

struct NoVoxelLoss {
  static constexpr VoxelKind kKind = VoxelKind::kNone;
  static constexpr bool kSkipsBackground = false;
  static constexpr bool kAveragesSpace = false;
};

// torch's, with class weights and label smoothing. `share` is 1 / classes.
struct VoxelCrossEntropy {
  static constexpr VoxelKind kKind = VoxelKind::kCrossEntropy;
  static constexpr bool kSkipsBackground = false;
  static constexpr bool kAveragesSpace = false;
  template <class Y, class T>
  static FASTLOSS_INLINE Y mass(const Y& t, T weight, T share, const T* parameter) {
    const T smoothing = parameter[0];
    return (weight * (T(1) - smoothing)) * t + weight * smoothing * share;
  }
};

// torch's, where the weight of a class is that of its positive part.
struct VoxelBinaryCrossEntropy {
  static constexpr VoxelKind kKind = VoxelKind::kLogit;
  static constexpr bool kSkipsBackground = false;
  static constexpr bool kAveragesSpace = false;
  template <class X, class Y, class T>
  static FASTLOSS_INLINE auto loss(const X& x, const Y& t, T weight, const T* parameter) {
    return BinaryCrossEntropyWithLogits::loss(x, t, Y(weight), parameter);
  }
};

struct VoxelFocalLoss {
  static constexpr VoxelKind kKind = VoxelKind::kLogit;
  static constexpr bool kSkipsBackground = true;
  // A sum is one over samples and classes, so that it stays comparable with that of the regions.
  static constexpr bool kAveragesSpace = true;
  template <class X, class Y, class T>
  static FASTLOSS_INLINE auto loss(const X& x, const Y& t, T weight, const T* parameter) {
    return weight * SigmoidFocalLoss::loss(x, t, Y(T(1)), parameter);
  }
};

// A Dice loss and a loss of voxels. The parameters: those of the voxels' loss from kVoxel on,
// λ and μ from kFactors on, then those of the Dice loss.
template <class OfVoxel, int kVoxel, int kFactors, int kRest>
struct DiceAnd {
  using Voxel = OfVoxel;
  static constexpr int kParameters = kRest + DiceLoss::kParameters;
  static constexpr int kVoxelParameters = kVoxel, kFactorParameters = kFactors;
  template <class I, class P, class G, class T>
  static FASTLOSS_INLINE auto loss(const I& intersection, const P& prediction, const G& target,
                                   const T* parameter) {
    return DiceLoss::loss(intersection, prediction, target, parameter + kRest);
  }
};

// lambda_dice, lambda_ce, label_smoothing, smooth_nr, smooth_dr, jaccard
struct DiceSoftmaxCrossEntropy : DiceAnd<VoxelCrossEntropy, 2, 0, 3> {
  static constexpr const char* kName = "dice_cross_entropy_loss/softmax";
};
struct DiceBinaryCrossEntropy : DiceAnd<VoxelBinaryCrossEntropy, 2, 0, 3> {
  static constexpr const char* kName = "dice_cross_entropy_loss/sigmoid";
};
// alpha, gamma (the order of sigmoid_focal_loss), lambda_dice, lambda_focal, smooth_nr, …
struct DiceFocalLoss : DiceAnd<VoxelFocalLoss, 0, 2, 4> {
  static constexpr const char* kName = "dice_focal_loss";
};

using RegionLosses =
    List<DiceLoss, TverskyLoss, FocalTverskyLoss, GeneralizedDiceSquare, GeneralizedDiceSimple,
         GeneralizedDiceUniform, DiceSoftmaxCrossEntropy, DiceBinaryCrossEntropy, DiceFocalLoss>;

// ---- losses of ranked voxels ----

// The Lovász extension of the Jaccard loss, 1 − (G − missed) / (G + wrong): by how much it grows
// when one voxel more is missed, or wrong, of a region that has G. Berman et al. 2017,
// arXiv 1705.08790.
struct LovaszSoftmaxLoss {
  static constexpr const char* kName = "lovasz_softmax_loss";
  static constexpr int kParameters = 0;
  // The differences are taken by hand: they would be the rounding of numbers near 1.
  static FASTLOSS_INLINE double growth_if_missed(double target, double wrong) {
    return 1.0 / (target + wrong);
  }
  static FASTLOSS_INLINE double growth_if_wrong(double target, double missed, double wrong) {
    const double both = target + wrong;
    return both == 0.0 ? 1.0 : (target - missed) / (both * (both + 1.0));
  }
};

using RankedRegionLosses = List<LovaszSoftmaxLoss>;

}  // namespace fastloss::FASTLOSS_TARGET
