// SPDX-License-Identifier: MIT
// The losses of graphs: of two rows of features of a node, and of edges.
#pragma once
#include "core/special.h"
#include "losses/list.h"

namespace fastloss::FASTLOSS_TARGET {

// A loss of two rows has one of
//   term(x, y): of a feature; the loss is their sum;
//   loss(distance): of 1 − cos.

// Kipf and Welling 2016, arXiv 1611.07308: KL(N(µ, σ²) ‖ N(0, 1)) = ½ (µ² + σ² − 1 − ln σ²). The
// logarithm of σ is held at 10 or below, as PyTorch Geometric does.
struct VariationalGraphKLLoss {
  static constexpr const char* kName = "variational_graph_kl_loss";
  static constexpr const char *kInputName = "mu", *kTargetName = "logstd";
  static constexpr int kParameters = 0;
  template <class X, class Y>
  static FASTLOSS_INLINE auto term(const X& mu, const Y& logstd) {
    using T = scalar_of<value_type<X>>;
    const auto held = select(logstd > T(10), T(10), logstd);
    return T(0.5) * (square(mu) + exp_minus_tangent(T(2) * held));
  }
};

// (1 − cos)^α. Hou et al. 2022, GraphMAE, arXiv 2205.10803.
struct ScaledCosineError {
  static constexpr const char* kName = "scaled_cosine_error";
  static constexpr const char *kInputName = "x", *kTargetName = "y";
  static constexpr int kParameters = 1;  // alpha
  template <class X, class T>
  static FASTLOSS_INLINE auto loss(const X& distance, const T* parameter) {
    return power(distance, parameter[0]);
  }
};

// 2 − 2 cos. Grill et al. 2020, BYOL, arXiv 2006.07733; Thakoor et al. 2021, BGRL, arXiv
// 2102.06514.
struct BootstrapLatentLoss {
  static constexpr const char* kName = "bootstrap_latent_loss";
  static constexpr const char *kInputName = "predictions", *kTargetName = "targets";
  static constexpr int kParameters = 0;
  template <class X, class T>
  static FASTLOSS_INLINE auto loss(const X& distance, const T* /*parameter*/) {
    return distance + distance;
  }
};

using RowPairLosses = List<VariationalGraphKLLoss, ScaledCosineError, BootstrapLatentLoss>;

template <class Formula>
constexpr bool is_of_terms = requires(float x) { Formula::term(x, x); };

// −ln σ(z_i · z_j) of an edge, −ln σ(−z_i · z_j) of a pair of nodes without one: the inner-product
// decoder. Kipf and Welling 2016, arXiv 1611.07308.
struct GraphReconstructionLoss {
  static constexpr const char* kName = "graph_reconstruction_loss";
  static constexpr int kParameters = 0;
  // `sign` is −1 for an edge, 1 where there is none.
  template <class X, class V>
  static FASTLOSS_INLINE auto loss(const X& logit, const V& sign) {
    return logistic(sign * logit).cost_if_negative;
  }
};

using EdgeLosses = List<GraphReconstructionLoss>;

}  // namespace fastloss::FASTLOSS_TARGET
