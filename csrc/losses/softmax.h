// SPDX-License-Identifier: MIT
// The losses of a row of logits: pure formulas over what a row comes down to.
//
// A row's logits x_c become three numbers: its `statistic` (most often ln Σ exp x_c), the `picked`
// logit of the label (or a blend of two neighbours), and the `blend` Σ q_c x_c, with q the class
// weights or the target probabilities. A formula is a function of these three; its derivatives with
// respect to them are all a gradient needs:
//
//   dloss/dx_c = dloss/dstatistic · slope_c + dloss/dpicked · [c = label] + dloss/dblend · q_c
//
// Some need a fourth, the `moment` Σ p_c v_c: the mean under the softmax probabilities p of the
// logits (for an entropy), or of the targets. Its derivative is p_c (v_c − moment), and p_c more
// where v are the logits themselves.
//
// All are relative to the row's `shift`, so that logits of any size lose no digit.
// `parameter` holds the float arguments of the Python function in the order of its signature.
#pragma once
#include "core/special.h"
#include "losses/list.h"

namespace fastloss::FASTLOSS_TARGET {

// ---- statistics: how the logits of a row become one number ----
//
// The engine keeps one number of each logit, `kept(x - shift)`. `term(kept)` adds up to the sum
// that `value` makes the statistic of, `slope(kept)` is proportional to its derivative with respect
// to that logit: over the sum where kSlopesOverSum. The shift is the row's largest logit, or the
// picked one where kShiftIsPicked. A statistic that kExcludesPicked sees -inf in the label's place.

// For losses that need no statistic at all: the row is not read.
struct NoStatistic {
  static constexpr bool kShiftIsPicked = false, kExcludesPicked = false, kSlopesOverSum = false;
  template <class V, class T>
  static FASTLOSS_INLINE V kept(const V&, const T*) {
    return V(0);
  }
  template <class V, class T>
  static FASTLOSS_INLINE V term(const V&, const T*) {
    return V(0);
  }
  template <class V, class T>
  static FASTLOSS_INLINE V slope(const V&, const T*) {
    return V(0);
  }
  template <class V>
  static FASTLOSS_INLINE V value(const V&) {
    return V(0);
  }
  // What a sum is multiplied with when the shift rises by `rise`.
  template <class V, class T>
  static FASTLOSS_INLINE V rescale(const V&, const T*) {
    return V(1);
  }
};

// ln Σ exp x_c. Its slopes are the softmax probabilities.
struct LogSumExp {
  static constexpr bool kShiftIsPicked = false, kExcludesPicked = false, kSlopesOverSum = true;
  template <class V, class T>
  static FASTLOSS_INLINE V kept(const V& x, const T* /*parameter*/) {
    return exp_nonpositive(x);
  }
  template <class V, class T>
  static FASTLOSS_INLINE V term(const V& kept, const T* /*parameter*/) {
    return kept;
  }
  template <class V, class T>
  static FASTLOSS_INLINE V slope(const V& kept, const T* /*parameter*/) {
    return kept;
  }
  template <class V>
  static FASTLOSS_INLINE V value(const V& sum) {
    return log(sum);
  }
  template <class V, class T>
  static FASTLOSS_INLINE V rescale(const V& rise, const T* /*parameter*/) {
    return exp_nonpositive(-rise);
  }
};

// The same of logits times a parameter above 0.
struct ScaledLogSumExp : LogSumExp {
  template <class V, class T>
  static FASTLOSS_INLINE V kept(const V& x, const T* parameter) {
    return exp_nonpositive(V(parameter[0]) * x);
  }
  template <class V, class T>
  static FASTLOSS_INLINE V slope(const V& kept, const T* parameter) {
    return V(parameter[0]) * kept;
  }
  template <class V, class T>
  static FASTLOSS_INLINE V rescale(const V& rise, const T* parameter) {
    return exp_nonpositive(-(V(parameter[0]) * rise));
  }
};

// The largest logit besides the label's. Equal ones share the slope, as in torch.amax.
struct RunnerUp {
  static constexpr bool kShiftIsPicked = false, kExcludesPicked = true, kSlopesOverSum = true;
  template <class V, class T>
  static FASTLOSS_INLINE V kept(const V& x, const T* /*parameter*/) {
    return select(x >= V(0), V(1), select(is_nan(x), x, V(0)));
  }
  template <class V, class T>
  static FASTLOSS_INLINE V term(const V& kept, const T* /*parameter*/) {
    return kept;
  }
  template <class V, class T>
  static FASTLOSS_INLINE V slope(const V& kept, const T* /*parameter*/) {
    return kept;
  }
  template <class V>
  static FASTLOSS_INLINE V value(const V& sum) {
    // The shift itself. A single class has no other.
    return select(sum == V(0), V(-__builtin_inff()), V(0) * sum);
  }
  template <class V, class T>
  static FASTLOSS_INLINE V rescale(const V& /*rise*/, const T* /*parameter*/) {
    return V(0);
  }
};

// Σ max(0, margin + x_c - x_label)^p over the other classes, for p = 1 or 2.
struct HingeSum {
  static constexpr bool kShiftIsPicked = true, kExcludesPicked = true, kSlopesOverSum = false;
  template <class V, class T>
  static FASTLOSS_INLINE V kept(const V& x, const T* parameter) {
    return max(V(parameter[1]) + x, V(0));
  }
  template <class V, class T>
  static FASTLOSS_INLINE V term(const V& kept, const T* parameter) {
    return parameter[0] == T(1) ? kept : kept * kept;
  }
  template <class V, class T>
  static FASTLOSS_INLINE V slope(const V& kept, const T* parameter) {
    if (parameter[0] != T(1)) return V(2) * kept;
    return select(kept > V(0), V(1), V(0) * kept);  // NaN stays NaN
  }
  template <class V>
  static FASTLOSS_INLINE V value(const V& sum) {
    return sum;
  }
  template <class V, class T>
  static FASTLOSS_INLINE V rescale(const V& /*rise*/, const T* /*parameter*/) {
    return V(1);
  }
};

// What a moment is the mean of.
enum class Moment { kNone, kLogits, kTargets };

// ---- the formulas ----

// What a formula sees of a row: seeds or numbers.
template <class Statistic, class Picked, class Blend, class Mean, class V>
struct RowOfLogits {
  Statistic statistic;
  Picked picked;
  Blend blend;
  Mean moment;
  V shift;            // what they are relative to
  V weight;           // the label's class weight, or the row's own; 1 where there are none
  V mass;             // Σ q_c
  V inverse_classes;  // 1 / C
};

// z · (ln Σ exp x)²: keeps the normaliser of a softmax near 1. Chowdhery et al. 2022, PaLM, arXiv
// 2204.02311.
template <class X, class Row, class T>
FASTLOSS_INLINE X with_z_loss(const X& loss, const Row& row, T z) {
  // Asked, not multiplied by zero: the square may overflow.
  if (z == T(0)) return loss;
  using V = value_type<decltype(row.statistic)>;
  return loss + V(z) * square(row.statistic + row.shift);
}

// −w_y ln p_y.
struct CrossEntropy {
  static constexpr const char* kName = "cross_entropy";
  static constexpr int kParameters = 4;  // ignore_index, label_smoothing, z_loss, logit_softcap
  static constexpr int kIgnoreIndex = 0, kSoftcap = 3;
  using Statistic = LogSumExp;
  template <class Row, class T>
  static FASTLOSS_INLINE auto loss(const Row& row, const T* parameter) {
    return with_z_loss(row.weight * (row.statistic - row.picked), row, parameter[2]);
  }
};

// The label's share 1 − ε, the rest spread over all classes. Szegedy et al. 2016, Rethinking the
// Inception Architecture, arXiv 1512.00567.
struct SmoothedCrossEntropy {
  static constexpr const char* kName = "cross_entropy/label_smoothing";
  static constexpr int kParameters = 4;
  static constexpr int kIgnoreIndex = 0, kSoftcap = 3;
  static constexpr bool kBlendsClasses = true;
  using Statistic = LogSumExp;
  template <class Row, class T>
  static FASTLOSS_INLINE auto loss(const Row& row, const T* parameter) {
    const T smoothing = parameter[1];
    const auto of_label = ((T(1) - smoothing) * row.weight) * (row.statistic - row.picked);
    const auto of_all = (smoothing * row.inverse_classes) * (row.mass * row.statistic - row.blend);
    return with_z_loss(of_label + of_all, row, parameter[2]);
  }
};

// −Σ q_c ln p_c, where q holds the target probabilities, smoothed and weighted.
struct ProbabilityCrossEntropy {
  static constexpr const char* kName = "cross_entropy/probabilities";
  static constexpr int kParameters = 4;
  static constexpr int kSmoothing = 1, kSoftcap = 3;
  static constexpr ClassTarget kTarget = ClassTarget::kProbabilities;
  static constexpr bool kBlendsClasses = true;
  static constexpr bool kWeightedMean = false;  // torch divides by the number of rows
  using Statistic = LogSumExp;
  template <class Row, class T>
  static FASTLOSS_INLINE auto loss(const Row& row, const T* parameter) {
    return with_z_loss(row.mass * row.statistic - row.blend, row, parameter[2]);
  }
};

// ln Σ exp x_c of the classes that one of several processes has: what the normaliser of all classes
// is made of (fastloss/_distributed.py). The label only says which rows count.
struct ShardOfCrossEntropy {
  static constexpr const char* kName = "cross_entropy/shard";
  static constexpr int kParameters = 2;  // ignore_index, logit_softcap
  static constexpr int kIgnoreIndex = 0, kSoftcap = 1;
  using Statistic = LogSumExp;
  template <class Row, class T>
  static FASTLOSS_INLINE auto loss(const Row& row, const T* /*parameter*/) {
    return row.statistic + row.shift;
  }
};

// −w_y x_y, for x of log-probabilities.
struct NLLLoss {
  static constexpr const char* kName = "nll_loss";
  static constexpr int kParameters = 1;  // ignore_index
  static constexpr int kIgnoreIndex = 0;
  using Statistic = NoStatistic;
  template <class Row, class T>
  static FASTLOSS_INLINE auto loss(const Row& row, const T* /*parameter*/) {
    return -(row.weight * (row.picked + row.shift));
  }
};

// −α_y (1 − p_y)^γ ln p_y. Lin et al. 2017, arXiv 1708.02002.
struct SoftmaxFocalLoss {
  static constexpr const char* kName = "softmax_focal_loss";
  static constexpr int kParameters = 3;  // gamma, alpha, ignore_index
  static constexpr int kIgnoreIndex = 2;
  static constexpr int kClassWeight = 1;  // alpha may be a number per class
  static constexpr const char* kWeightName = "alpha";
  static constexpr bool kWeightedMean = false;  // alpha balances, it does not average
  using Statistic = LogSumExp;
  template <class Row, class T>
  static FASTLOSS_INLINE auto loss(const Row& row, const T* parameter) {
    const auto cross_entropy = row.statistic - row.picked;
    using V = value_type<decltype(cross_entropy)>;
    return (row.weight * V(parameter[1])) *
           (power(one_minus_exp_of_minus(cross_entropy), parameter[0]) * cross_entropy);
  }
};

// −ln p_y + ε (1 − p_y). Leng et al. 2022, PolyLoss, arXiv 2204.12511.
struct PolyCrossEntropy {
  static constexpr const char* kName = "poly_cross_entropy";
  static constexpr int kParameters = 2;  // epsilon, ignore_index
  static constexpr int kIgnoreIndex = 1;
  using Statistic = LogSumExp;
  template <class Row, class T>
  static FASTLOSS_INLINE auto loss(const Row& row, const T* parameter) {
    const auto cross_entropy = row.statistic - row.picked;
    using V = value_type<decltype(cross_entropy)>;
    return row.weight * (cross_entropy + V(parameter[0]) * one_minus_exp_of_minus(cross_entropy));
  }
};

// −(i + 1 − y) ln p_i − (y − i) ln p_{i+1}, with i = ⌊y⌋. Li et al. 2020, Generalized Focal Loss,
// arXiv 2006.04388.
struct DistributionFocalLoss {
  static constexpr const char* kName = "distribution_focal_loss";
  static constexpr int kParameters = 0;
  static constexpr ClassTarget kTarget = ClassTarget::kPosition;
  static constexpr bool kClassesLast = true, kRowWeight = true;
  using Statistic = LogSumExp;
  template <class Row, class T>
  static FASTLOSS_INLINE auto loss(const Row& row, const T* /*parameter*/) {
    return row.weight * (row.statistic - row.picked);
  }
};

// w_y / C · Σ max(0, margin + x_c − x_y)^p over the other classes. Weston and Watkins 1999.
struct MultiMarginLoss {
  static constexpr const char* kName = "multi_margin_loss";
  static constexpr int kParameters = 2;         // p, margin
  static constexpr bool kWeightedMean = false;  // torch divides by the number of rows
  using Statistic = HingeSum;
  template <class Row, class T>
  static FASTLOSS_INLINE auto loss(const Row& row, const T* /*parameter*/) {
    return (row.weight * row.inverse_classes) * row.statistic;
  }
};

// max(0, margin + max x_c − x_y) over the other classes c. Crammer and Singer 2001.
struct CrammerSingerLoss {
  static constexpr const char* kName = "crammer_singer_loss";
  static constexpr int kParameters = 1;  // margin
  using Statistic = RunnerUp;
  template <class Row, class T>
  static FASTLOSS_INLINE auto loss(const Row& row, const T* parameter) {
    using V = value_type<decltype(row.statistic)>;
    const auto violation = V(parameter[0]) + row.statistic - row.picked;
    return row.weight * select(violation <= V(0), V(0), violation);
  }
};

// Σ q_k r_k with q ∝ p_k^α: the risk r to be expected of candidates of these log-probabilities.
// Shen et al. 2016, arXiv 1512.02433.
struct MinimumRiskLoss {
  static constexpr const char* kName = "minimum_risk_loss";
  static constexpr int kParameters = 1;  // alpha
  static constexpr const char *kInputName = "log_probs", *kTargetName = "risks";
  static constexpr ClassTarget kTarget = ClassTarget::kProbabilities;
  static constexpr bool kClassesLast = true;
  static constexpr Moment kMoment = Moment::kTargets;
  using Statistic = ScaledLogSumExp;
  template <class Row, class T>
  static FASTLOSS_INLINE auto loss(const Row& row, const T* /*parameter*/) {
    return row.moment;
  }
};

// −A ln p_a − β H: what the action a of a policy turned out to be worth (the advantage A, the row's
// weight), and the policy's entropy H = ln Σ exp x_c − Σ p_c x_c. Williams 1992.
struct PolicyGradientLoss {
  static constexpr const char* kName = "policy_gradient_loss";
  static constexpr int kParameters = 1;  // entropy_coefficient
  static constexpr const char *kInputName = "logits", *kTargetName = "actions",
                              *kWeightName = "advantages", *kExtraName = "mask";
  static constexpr bool kClassesLast = true, kRowWeight = true, kMasked = true;
  static constexpr bool kWeightedMean = false;
  static constexpr Moment kMoment = Moment::kLogits;
  using Statistic = LogSumExp;
  template <class Row, class T>
  static FASTLOSS_INLINE auto loss(const Row& row, const T* parameter) {
    using V = value_type<decltype(row.statistic)>;
    return row.weight * (row.statistic - row.picked) -
           V(parameter[0]) * (row.statistic - row.moment);
  }
};

// ln p_i.
struct SelectiveLogSoftmax {
  static constexpr const char* kName = "selective_log_softmax";
  static constexpr int kParameters = 0;
  static constexpr const char *kInputName = "logits", *kTargetName = "index";
  static constexpr bool kClassesLast = true;
  using Statistic = LogSumExp;
  template <class Row, class T>
  static FASTLOSS_INLINE auto loss(const Row& row, const T* /*parameter*/) {
    return row.picked - row.statistic;
  }
};

using SoftmaxLosses =
    List<CrossEntropy, SmoothedCrossEntropy, ProbabilityCrossEntropy, ShardOfCrossEntropy, NLLLoss,
         SoftmaxFocalLoss, PolyCrossEntropy, DistributionFocalLoss, MultiMarginLoss,
         CrammerSingerLoss, MinimumRiskLoss, PolicyGradientLoss, SelectiveLogSoftmax>;

}  // namespace fastloss::FASTLOSS_TARGET
