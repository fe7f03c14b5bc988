// SPDX-License-Identifier: MIT
// The pointwise losses: pure formulas over an input x and a target t.
//
// `parameter` holds the float arguments of the Python function in the order of its signature;
// `pos_weight` is the one more operand that some losses have, 1 where the caller gave none.
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

// The same of a probability x, with torch's limits: a logarithm is at least −100, and the slope's
// denominator at least 1e-12, so that a prediction that is wrong and certain still has a slope.
// (The derivative of the clamped logarithm would be 0 there.)
struct BinaryCrossEntropy {
  static constexpr const char* kName = "binary_cross_entropy";
  static constexpr int kParameters = 0;
  static constexpr bool kWeightedMean = false;  // torch divides by the number of elements
  static constexpr double kRange[2] = {0, 1};
  template <class X, class Y, class P, class T>
  static FASTLOSS_INLINE auto loss(const X& x, const Y& t, const P& /*pos_weight*/,
                                   const T* /*parameter*/) {
    using V = P;
    const V probability = detach(x), label = detach(t);
    const V of_positive = max(log(probability), V(-100));
    const V of_negative = max(log1p(-probability), V(-100));
    const V value = (label - T(1)) * of_negative - label * of_positive;
    if constexpr (AnyDual<X, Y>) {
      const V variance = (T(1) - probability) * probability;
      return chain(x, t, value, (probability - label) / max(variance, V(1e-12)),
                   of_negative - of_positive);
    } else {
      return value;
    }
  }
};

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
  static constexpr Targets kTargets = Targets::kNumbersOrLabels;
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

// What remains of x where it is above 0.
template <class X, class T>
FASTLOSS_INLINE auto above(const X& x, T zero) {
  return select(x <= zero, zero, x);  // NaN stays NaN
}

// max(0, margin − t x), or its square.
struct HingeLoss {
  static constexpr const char* kName = "hinge_loss";
  static constexpr int kParameters = 2;  // margin, squared
  template <class X, class Y, class P, class T>
  static FASTLOSS_INLINE auto loss(const X& x, const Y& t, const P& /*pos_weight*/,
                                   const T* parameter) {
    const T margin = parameter[0];
    const bool squared = parameter[1] != T(0);
    auto cost = above(margin - t * x, T(0));
    if (squared) cost = square(cost);
    return cost;
  }
};

// |t − σ(x)|^β times the cross-entropy. Li et al. 2020, arXiv 2006.04388.
struct QualityFocalLoss {
  static constexpr const char* kName = "quality_focal_loss";
  static constexpr int kParameters = 1;  // beta
  template <class X, class Y, class P, class T>
  static FASTLOSS_INLINE auto loss(const X& x, const Y& t, const P& pos_weight,
                                   const T* parameter) {
    const T beta = parameter[0];
    const auto of_x = logistic(x);
    // t − σ(x), which keeps its digits for t = 1 too.
    const auto miss = t * of_x.complement - (T(1) - t) * of_x.probability;
    return binary_cross_entropy(of_x, t, pos_weight, T(1)) * power(abs(miss), beta);
  }
};

// Positives (t > 0) weighted with t, negatives with α |σ(x) − t|^γ. Zhang et al. 2020,
// arXiv 2008.13367.
struct VarifocalLoss {
  static constexpr const char* kName = "varifocal_loss";
  static constexpr int kParameters = 2;  // alpha, gamma
  template <class X, class Y, class P, class T>
  static FASTLOSS_INLINE auto loss(const X& x, const Y& t, const P& pos_weight,
                                   const T* parameter) {
    const T alpha = parameter[0], gamma = parameter[1];
    const auto of_x = logistic(x);
    const auto of_negative = alpha * power(abs(of_x.probability - t), gamma);
    return select(t > T(0), t, of_negative) * binary_cross_entropy(of_x, t, pos_weight, T(1));
  }
};

// Cross-entropy whose negatives have their probability lowered by `clip`, times
// (1 − p_t)^(γ₊ t + γ₋ (1 − t)). Ridnik et al. 2021, arXiv 2009.14119.
struct AsymmetricLoss {
  static constexpr const char* kName = "asymmetric_loss";
  static constexpr int kParameters = 4;  // gamma_neg, gamma_pos, clip, detach_focusing
  template <class X, class Y, class P, class T>
  static FASTLOSS_INLINE auto loss(const X& x, const Y& t, const P& pos_weight,
                                   const T* parameter) {
    const T gamma_neg = parameter[0], gamma_pos = parameter[1], clip = parameter[2];
    const bool detach_focusing = parameter[3] != T(0);
    auto of_x = logistic(x);
    auto lowered = of_x.probability;
    if (clip > T(0)) {
      lowered = above(of_x.probability - clip, T(0));
      // −ln(1 − lowered), each half of the way to 1 by the form that keeps its digits there.
      of_x.cost_if_negative =
          select(lowered < T(0.5), -log1p(-lowered), -log(of_x.complement + clip));
    }
    const auto miss = t * of_x.complement + (T(1) - t) * lowered;  // 1 − p_t
    const auto exponent = gamma_neg + (gamma_pos - gamma_neg) * t;
    const auto focus = exp(exponent * log(clamp_min(miss, smallest_normal<T>)));
    const auto cross_entropy = binary_cross_entropy(of_x, t, pos_weight, T(1));
    auto result = cross_entropy * focus;
    if (detach_focusing) result = cross_entropy * detach(focus);
    return result;
  }
};

// ln cosh(x − t).
struct LogCoshLoss {
  static constexpr const char* kName = "log_cosh_loss";
  static constexpr int kParameters = 0;
  template <class X, class Y, class P, class T>
  static FASTLOSS_INLINE auto loss(const X& x, const Y& t, const P& /*pos_weight*/,
                                   const T* /*parameter*/) {
    return log_cosh(x - t);
  }
};

// q (t − x) below the target, (1 − q) (x − t) above. Koenker and Bassett 1978.
struct QuantileLoss {
  static constexpr const char* kName = "quantile_loss";
  static constexpr int kParameters = 1;  // the quantile; NaN: each element has its own
  static constexpr const char* kExtraName = "quantiles";
  template <class X, class Y, class P, class T>
  static FASTLOSS_INLINE auto loss(const X& x, const Y& t, const P& quantiles, const T* parameter) {
    const P quantile = parameter[0] == parameter[0] ? P(parameter[0]) : quantiles;
    const auto below = t - x;
    return max(quantile * below, (quantile - T(1)) * below);
  }
};

// ---- ranking ----

// Herbrich et al. 2000: max(0, margin − y (x1 − x2)), y being the operand beside the two inputs.
struct MarginRankingLoss {
  static constexpr const char* kName = "margin_ranking_loss";
  static constexpr Targets kTargets = Targets::kSecondInput;
  static constexpr const char *kInputName = "input1", *kTargetName = "input2",
                              *kExtraName = "target";
  static constexpr int kParameters = 1;  // margin
  template <class X, class Y, class P, class T>
  static FASTLOSS_INLINE auto loss(const X& first, const Y& second, const P& target,
                                   const T* parameter) {
    return clamp_min(parameter[0] - target * (first - second), T(0));
  }
};

// ---- generation: what a discriminator (or critic) says of real and of fake samples ----
//
// The two inputs of a discriminator's loss have a slope each; a generator's loss sees the fake ones
// alone.

struct OfRealAndFake {
  static constexpr Targets kTargets = Targets::kSecondInput;
  static constexpr const char *kInputName = "real", *kTargetName = "fake";
};

struct OfFake {
  static constexpr Targets kTargets = Targets::kNone;
  static constexpr const char* kInputName = "fake";
};

// Mao et al. 2017, arXiv 1611.04076.
struct LSGANDiscriminatorLoss : OfRealAndFake {
  static constexpr const char* kName = "lsgan_discriminator_loss";
  static constexpr int kParameters = 2;  // a, b
  template <class X, class Y, class P, class T>
  static FASTLOSS_INLINE auto loss(const X& real, const Y& fake, const P& /*pos_weight*/,
                                   const T* parameter) {
    return T(0.5) * (square(real - parameter[1]) + square(fake - parameter[0]));
  }
};

struct LSGANGeneratorLoss : OfFake {
  static constexpr const char* kName = "lsgan_generator_loss";
  static constexpr int kParameters = 1;  // c
  template <class X, class Y, class P, class T>
  static FASTLOSS_INLINE auto loss(const X& fake, const Y& /*none*/, const P& /*pos_weight*/,
                                   const T* parameter) {
    return T(0.5) * square(fake - parameter[0]);
  }
};

// Arjovsky et al. 2017, arXiv 1701.07875.
struct WassersteinDiscriminatorLoss : OfRealAndFake {
  static constexpr const char* kName = "wasserstein_discriminator_loss";
  static constexpr int kParameters = 0;
  template <class X, class Y, class P, class T>
  static FASTLOSS_INLINE auto loss(const X& real, const Y& fake, const P& /*pos_weight*/,
                                   const T* /*parameter*/) {
    return fake - real;
  }
};

struct WassersteinGeneratorLoss : OfFake {
  static constexpr const char* kName = "wasserstein_generator_loss";
  static constexpr int kParameters = 0;
  template <class X, class Y, class P, class T>
  static FASTLOSS_INLINE auto loss(const X& fake, const Y& /*none*/, const P& /*pos_weight*/,
                                   const T* /*parameter*/) {
    return -fake;
  }
};

// Goodfellow et al. 2014, arXiv 1406.2661.
struct NonSaturatingDiscriminatorLoss : OfRealAndFake {
  static constexpr const char* kName = "non_saturating_discriminator_loss";
  static constexpr int kParameters = 1;  // label_smoothing
  template <class X, class Y, class P, class T>
  static FASTLOSS_INLINE auto loss(const X& real, const Y& fake, const P& pos_weight,
                                   const T* parameter) {
    const T smoothing = parameter[0];
    return binary_cross_entropy(logistic(real), T(1) - smoothing, pos_weight, T(1)) +
           logistic(fake).cost_if_negative;
  }
};

struct NonSaturatingGeneratorLoss : OfFake {
  static constexpr const char* kName = "non_saturating_generator_loss";
  static constexpr int kParameters = 0;
  template <class X, class Y, class P, class T>
  static FASTLOSS_INLINE auto loss(const X& fake, const Y& /*none*/, const P& /*pos_weight*/,
                                   const T* /*parameter*/) {
    return logistic(fake).cost_if_positive;
  }
};

// Lim and Ye 2017, arXiv 1705.02894. (Its generator's loss is the Wasserstein generator's.)
struct HingeDiscriminatorLoss : OfRealAndFake {
  static constexpr const char* kName = "hinge_discriminator_loss";
  static constexpr int kParameters = 0;
  template <class X, class Y, class P, class T>
  static FASTLOSS_INLINE auto loss(const X& real, const Y& fake, const P& /*pos_weight*/,
                                   const T* /*parameter*/) {
    return above(T(1) - real, T(0)) + above(T(1) + fake, T(0));
  }
};

// ---- policies: the log-probability x of each token, and how good it turned out to be ----
//
// These see a mask, and one tensor more, `reference`: 0 where the caller gave none. The operand
// that others call `pos_weight` is the advantage (or the reward).

struct OfPolicy {
  static constexpr bool kOfPolicy = true;
  static constexpr const char *kInputName = "log_probs", *kTargetName = "old_log_probs",
                              *kExtraName = "advantages";
};

// −(reward − baseline) x. Rennie et al. 2017, arXiv 1612.00563.
struct SelfCriticalLoss : OfPolicy {
  static constexpr const char* kName = "self_critical_loss";
  static constexpr int kParameters = 0;
  static constexpr const char *kTargetName = "baseline", *kExtraName = "rewards";
  template <class X, class Y, class P, class T>
  static FASTLOSS_INLINE auto loss(const X& x, const Y& baseline, const P& reward,
                                   const P& /*reference*/, const T* /*parameter*/) {
    return (baseline - reward) * x;
  }
};

// A difference of log-probabilities where e^it is finite, and so are its products: 20 at most, from
// where on it has no slope.
template <class X>
FASTLOSS_INLINE X bounded_log_ratio(const X& difference) {
  using V = value_type<X>;
  const V highest(20);
  return select(difference > highest, highest, difference);
}

// −min(r A, clip(r, 1 − low, 1 + high) A), r being the ratio of the new probability to the old one.
template <class X, class Y, class P, class T>
FASTLOSS_INLINE auto clipped_surrogate(const X& x, const Y& old, const P& advantage, T low,
                                       T high) {
  const auto ratio = exp(bounded_log_ratio(x - old));
  const auto gain = ratio * advantage;
  // What it is where it is not the gain itself has no slope.
  const P clipped = min(max(detach(ratio), P(T(1) - low)), P(T(1) + high)) * advantage;
  return -select(gain > clipped, clipped, gain);
}

// Schulman et al. 2017, arXiv 1707.06347.
struct PPOLoss : OfPolicy {
  static constexpr const char* kName = "ppo_loss";
  static constexpr Targets kTargets = Targets::kSecondInput;
  static constexpr int kParameters = 1;  // clip
  template <class X, class Y, class P, class T>
  static FASTLOSS_INLINE auto loss(const X& x, const Y& old, const P& advantage,
                                   const P& /*reference*/, const T* parameter) {
    return clipped_surrogate(x, old, advantage, parameter[0], parameter[0]);
  }
};

// The same, and beta (e^d − d − 1) with d = reference − x, an estimate of how far the policy has
// moved from a reference. Shao et al. 2024, DeepSeekMath, arXiv 2402.03300.
struct GRPOLoss : OfPolicy {
  static constexpr const char* kName = "grpo_loss";
  static constexpr Targets kTargets = Targets::kSecondInput;
  static constexpr int kParameters = 3;  // beta, clip_low, clip_high
  template <class X, class Y, class P, class T>
  static FASTLOSS_INLINE auto loss(const X& x, const Y& old, const P& advantage, const P& reference,
                                   const T* parameter) {
    const T beta = parameter[0];
    auto result = clipped_surrogate(x, old, advantage, parameter[1], parameter[2]);
    if (beta == T(0)) return result;
    const auto log_ratio = bounded_log_ratio(reference - x);
    return result + beta * (exp(log_ratio) - (log_ratio + T(1)));
  }
};

// ---- graphs ----

// Veličković et al. 2019, Deep Graph Infomax, arXiv 1809.10341: with the discriminator's logits of
// true and of corrupted nodes.
struct DeepGraphInfomaxLoss {
  static constexpr const char* kName = "deep_graph_infomax_loss";
  static constexpr Targets kTargets = Targets::kSecondInput;
  static constexpr const char *kInputName = "pos_logits", *kTargetName = "neg_logits";
  static constexpr int kParameters = 0;
  template <class X, class Y, class P, class T>
  static FASTLOSS_INLINE auto loss(const X& positive, const Y& negative, const P& /*pos_weight*/,
                                   const T* /*parameter*/) {
    return logistic(positive).cost_if_positive + logistic(negative).cost_if_negative;
  }
};

using PointwiseLosses =
    List<MSELoss, L1Loss, SmoothL1Loss, HuberLoss, LogCoshLoss, QuantileLoss, BinaryCrossEntropy,
         BinaryCrossEntropyWithLogits, HingeLoss, SigmoidFocalLoss, QualityFocalLoss, VarifocalLoss,
         AsymmetricLoss, MarginRankingLoss, LSGANDiscriminatorLoss, LSGANGeneratorLoss,
         WassersteinDiscriminatorLoss, WassersteinGeneratorLoss, NonSaturatingDiscriminatorLoss,
         NonSaturatingGeneratorLoss, HingeDiscriminatorLoss, SelfCriticalLoss, PPOLoss, GRPOLoss,
         DeepGraphInfomaxLoss>;

}  // namespace fastloss::FASTLOSS_TARGET
