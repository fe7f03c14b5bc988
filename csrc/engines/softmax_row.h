// SPDX-License-Identifier: MIT
// What the CPU and the CUDA side of the engine `softmax` compute alike: the formula on what a row
// came down to, for numbers and for vectors of rows.
#pragma once
#include "losses/softmax.h"

namespace fastloss::FASTLOSS_TARGET {

template <class Formula>
constexpr ClassTarget class_target = SoftmaxLosses::info<Formula>().class_target;
template <class Formula>
constexpr bool has_probabilities = class_target<Formula> == ClassTarget::kProbabilities;
template <class Formula>
constexpr bool blends_classes = requires { Formula::kBlendsClasses; };
template <class Formula>
constexpr Moment moment_of = [] {
  if constexpr (requires { Formula::kMoment; }) return Formula::kMoment;
  return Moment::kNone;
}();
template <class Formula>
constexpr bool has_moment = moment_of<Formula> != Moment::kNone;
// Whether there is a number per class besides the logits.
template <class Formula>
constexpr bool has_shares = blends_classes<Formula> || moment_of<Formula> == Moment::kTargets;
template <class Formula>
constexpr bool reads_row = !std::is_same_v<typename Formula::Statistic, NoStatistic>;

// A row's sums over its logits, all relative to the shift.
template <class V>
struct RowSums {
  V sum;        // of the statistic's terms
  V slope_sum;  // of its slopes, where the shift is the picked logit
  V picked;     // less the shift
  V blend, mass;
  V moment;  // Σ kept · v
  V shift;
  V weight;
};

// What a moment takes the mean of, of a class whose logit is `relative` to the shift. A logit of
// −inf, as that of a forbidden action, has a probability of 0 and must not make 0 · inf of it.
template <class Formula, class V>
FASTLOSS_INLINE V moment_term(const V& relative, const V& share) {
  if constexpr (moment_of<Formula> == Moment::kTargets) return share;
  const V lowest(scalar_of<V>(-1e30));
  return select(relative < lowest, lowest, relative);
}

// A sum of kept · v once the shift has risen, of which the sum of `kept` was `sum`.
template <class Formula, class V>
FASTLOSS_INLINE V raised_moment(V moment, V sum, V rise, V rescale) {
  if constexpr (moment_of<Formula> == Moment::kLogits) moment -= rise * sum;
  return rescale * moment;
}

// The loss of a row, and what each kind of slope is multiplied with to give the gradient.
template <class V>
struct RowResult {
  V loss, to_statistic, to_picked, to_blend, to_moment;
};

// What the slope of a class is multiplied with.
template <class Formula, class V>
FASTLOSS_INLINE V slope_factor(V to_statistic, V to_moment, V relative, V share) {
  if constexpr (!has_moment<Formula>) return to_statistic;
  return to_statistic + to_moment * moment_term<Formula>(relative, share);
}

template <class Formula, bool kGradient, class V, class T>
FASTLOSS_INLINE RowResult<V> evaluate_row(const RowSums<V>& row, V inverse_classes,
                                          const T* parameter) {
  using Statistic = typename Formula::Statistic;
  constexpr unsigned kStatisticSeed = 1, kPickedSeed = 2, kBlendSeed = 4, kMomentSeed = 8;
  const auto statistic = variable < kStatisticSeed,
             kGradient && reads_row < Formula >> (Statistic::value(row.sum));
  const auto picked = variable < kPickedSeed,
             kGradient && !has_probabilities < Formula >> (row.picked);
  const auto blend = variable < kBlendSeed, kGradient && blends_classes < Formula >> (row.blend);
  const V mean = has_moment<Formula> ? select(row.sum == V(0), V(0), row.moment / row.sum) : V(0);
  const auto moment = variable < kMomentSeed, kGradient && has_moment < Formula >> (mean);
  const RowOfLogits<std::remove_const_t<decltype(statistic)>, std::remove_const_t<decltype(picked)>,
                    std::remove_const_t<decltype(blend)>, std::remove_const_t<decltype(moment)>, V>
      logits{statistic, picked, blend, moment, row.shift, row.weight, row.mass, inverse_classes};
  const auto loss = Formula::loss(logits, parameter);
  RowResult<V> result{detach(loss), derivative<kStatisticSeed>(loss), derivative<kPickedSeed>(loss),
                      derivative<kBlendSeed>(loss), derivative<kMomentSeed>(loss)};
  if constexpr (has_moment<Formula>) {
    const V of_itself = V(moment_of<Formula> == Moment::kLogits ? 1 : 0);
    result.to_statistic += (of_itself - mean) * result.to_moment;
    result.to_moment = select(row.sum == V(0), V(0), result.to_moment / row.sum);
  }
  if constexpr (Statistic::kShiftIsPicked)
    result.to_picked = result.to_picked - result.to_statistic * row.slope_sum;
  if constexpr (Statistic::kSlopesOverSum)
    result.to_statistic = select(row.sum == V(0), V(0), result.to_statistic / row.sum);
  return result;
}

// Two neighbouring classes, and the share of the upper one.
template <class V>
struct Neighbours {
  V lower, upper_share;
};
template <class V>
FASTLOSS_INLINE Neighbours<V> around(V position, int64_t classes) {
  const V last(scalar_of<V>(classes - 1) - scalar_of<V>(0.01));
  const V clamped = select(position < V(0), V(0), select(position > last, last, position));
  const V lower = select(is_nan(clamped), V(0), trunc(clamped));
  return {lower, clamped - lower};
}

template <class T>
FASTLOSS_INLINE T interpolate(T lower, T upper, T upper_share) {
  return lower + upper_share * (upper - lower);
}

// A target probability as the share of its class in the loss.
template <class V>
FASTLOSS_INLINE V smoothed(V probability, V smoothing, V inverse_classes) {
  return probability * (V(1) - smoothing) + smoothing * inverse_classes;
}

// Logits that cannot leave (-cap, cap). Gemma Team 2024, Gemma 2, arXiv 2408.00118.
template <class V>
FASTLOSS_INLINE V softcapped(V logit, V cap) {
  return cap * tanh(logit / cap);
}
template <class V>
FASTLOSS_INLINE V softcap_slope(V capped, V cap) {
  return V(1) - square(capped / cap);
}

}  // namespace fastloss::FASTLOSS_TARGET
