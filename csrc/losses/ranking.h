// SPDX-License-Identifier: MIT
// The losses of ranked lists: what a pair of items, the place of an item or a list's order costs.
//
// `parameter` holds the float arguments of the Python function in the order of its signature; k is
// NaN where the list is not cut.
#pragma once
#include "core/special.h"
#include "losses/list.h"

namespace fastloss::FASTLOSS_TARGET {

// How a formula looks at a list; a formula of each pattern has the functions the pattern needs.
enum class ListPattern {
  kPairs,     // pair(): what two items cost
  kPlaces,    // ahead(): how two items push each other down; cost(): what an item's place costs
  kDraws,     // items drawn one after the other, the most relevant first
  kSoftSort,  // DCG of the list as sorted by a doubly stochastic matrix
  kMetric,    // DCG of the list as sorted by the scores; no gradient
};

// What is known of an item in the place its score gives it.
template <class V>
struct RankedItem {
  V relevance;
  V gain;      // see ranking::gain(), over the best DCG of the list
  V discount;  // 1 / log2(1 + place)
};

// Above this relevance gains are scaled.
constexpr double kLargestUnscaledRelevance = 64;

namespace ranking {

// 2^relevance − 1 over 2^shift, which keeps large ones in range. A negative relevance gains
// nothing.
template <class V>
FASTLOSS_INLINE V gain(const V& relevance, const V& shift) {
  const V ln2(0.69314718055994531);
  return exp((max(relevance, V(0)) - shift) * ln2) - exp(-shift * ln2);
}

// −ln σ(x)
template <class X>
FASTLOSS_INLINE auto negative_log_sigmoid(const X& x) {
  return logistic(x).cost_if_positive;
}

// The difference of two scores, positive where the more relevant item is ahead.
template <class X, class V>
FASTLOSS_INLINE auto advantage(const X& difference, const RankedItem<V>& i,
                               const RankedItem<V>& j) {
  return select(i.relevance > j.relevance, difference, -difference);
}

// −w log2 σ(sigma (s_i − s_j)) over the pairs in which i is more relevant, with w by scheme. Wang
// et al. 2018, The LambdaLoss Framework for Ranking Metric Optimization.
template <class Scheme>
struct LambdaLoss {
  static constexpr ListPattern kPattern = ListPattern::kPairs;
  static constexpr int kParameters = 3;  // k, sigma, mu
  static constexpr bool kTruncated = true;
  static constexpr bool kRanked = true;  // looks at places and gains

  // `difference` is s_i − s_j, `spacing` that of discounts as far apart as the two places.
  template <class X, class V, class T>
  static FASTLOSS_INLINE auto pair(const X& difference, const RankedItem<V>& i,
                                   const RankedItem<V>& j, const V& spacing, const T* parameter) {
    const T inverse_ln2(1.4426950408889634), sigma = parameter[1];
    return Scheme::weight(i, j, spacing, parameter) * inverse_ln2 *
           negative_log_sigmoid(advantage(difference, i, j) * sigma);
  }
};

}  // namespace ranking

struct NDCGLoss2 : ranking::LambdaLoss<NDCGLoss2> {
  static constexpr const char* kName = "lambda_loss/ndcg_loss2";
  template <class V, class T>
  static FASTLOSS_INLINE V weight(const RankedItem<V>& i, const RankedItem<V>& j, const V& spacing,
                                  const T* /*parameter*/) {
    return spacing * abs(i.gain - j.gain);
  }
};

struct NDCGLoss2PlusPlus : ranking::LambdaLoss<NDCGLoss2PlusPlus> {
  static constexpr const char* kName = "lambda_loss/ndcg_loss2pp";
  template <class V, class T>
  static FASTLOSS_INLINE V weight(const RankedItem<V>& i, const RankedItem<V>& j, const V& spacing,
                                  const T* parameter) {
    return (spacing * parameter[2] + abs(i.discount - j.discount)) * abs(i.gain - j.gain);
  }
};

struct LambdaRankLoss : ranking::LambdaLoss<LambdaRankLoss> {
  static constexpr const char* kName = "lambda_loss/lambda_rank";
  template <class V, class T>
  static FASTLOSS_INLINE V weight(const RankedItem<V>& i, const RankedItem<V>& j,
                                  const V& /*spacing*/, const T* /*parameter*/) {
    return abs(i.discount - j.discount) * abs(i.gain - j.gain);
  }
};

// RankNet among the schemes: of the first k only, with a base of 2.
struct LambdaRankNetLoss : ranking::LambdaLoss<LambdaRankNetLoss> {
  static constexpr const char* kName = "lambda_loss/ranknet";
  template <class V, class T>
  static FASTLOSS_INLINE V weight(const RankedItem<V>& /*i*/, const RankedItem<V>& /*j*/,
                                  const V& /*spacing*/, const T* /*parameter*/) {
    return V(1);
  }
};

// −G_i/D_i log2 σ(sigma (s_i − s_j)) over every i and j, relevant or not: a pair is both.
struct NDCGLoss1 : ranking::LambdaLoss<NDCGLoss1> {
  static constexpr const char* kName = "lambda_loss/ndcg_loss1";
  static constexpr bool kEveryPair = true;
  template <class X, class V, class T>
  static FASTLOSS_INLINE auto pair(const X& difference, const RankedItem<V>& i,
                                   const RankedItem<V>& j, const V& /*spacing*/,
                                   const T* parameter) {
    const T inverse_ln2(1.4426950408889634), sigma = parameter[1];
    const auto of_difference = logistic(difference * sigma);
    return (i.gain * i.discount * inverse_ln2) * of_difference.cost_if_positive +
           (j.gain * j.discount * inverse_ln2) * of_difference.cost_if_negative;
  }
};

// −ln σ(s_i − s_j) over the pairs in which i is more relevant. Burges et al. 2005.
struct RankNetLoss {
  static constexpr const char* kName = "ranknet_loss";
  static constexpr ListPattern kPattern = ListPattern::kPairs;
  static constexpr int kParameters = 0;
  static constexpr bool kTruncated = false;
  static constexpr bool kRanked = false;
  template <class X, class V, class T>
  static FASTLOSS_INLINE auto pair(const X& difference, const RankedItem<V>& i,
                                   const RankedItem<V>& j, const V& /*spacing*/,
                                   const T* /*parameter*/) {
    return ranking::negative_log_sigmoid(ranking::advantage(difference, i, j));
  }
};

// 1 − NDCG with smooth places. Qin et al. 2010, A General Approximation Framework for Direct
// Optimization of Information Retrieval Measures.
struct ApproxNDCGLoss {
  static constexpr const char* kName = "approx_ndcg_loss";
  static constexpr ListPattern kPattern = ListPattern::kPlaces;
  static constexpr int kParameters = 1;  // alpha
  static constexpr bool kTruncated = false;

  template <class X>
  struct Ahead {
    X of_first, of_second;
  };
  // How much of a place the second item takes from the first, and the first from the second.
  template <class X, class T>
  static FASTLOSS_INLINE auto ahead(const X& difference, const T* parameter) {
    const auto order = logistic(difference * parameter[0]);
    return Ahead<X>{order.complement, order.probability};
  }
  // What remains of 1 is NDCG.
  template <class X, class V>
  static FASTLOSS_INLINE auto cost(const X& place, const V& gain) {
    using T = scalar_of<V>;
    return -(gain * T(0.69314718055994531)) / log(place + T(1));
  }
};

// 1 − NDCG of the list as sorted by NeuralSort, made doubly stochastic. Pobrotyn and Białobrzeski
// 2021, NeuralNDCG, arXiv 2102.07831.
struct NeuralNDCGLoss {
  static constexpr const char* kName = "neural_ndcg_loss";
  static constexpr ListPattern kPattern = ListPattern::kSoftSort;
  static constexpr int kParameters = 1;  // temperature
  static constexpr bool kTruncated = false;
  // Sinkhorn scaling ends after so many rounds, or when no sum differs from 1 by more than this.
  static constexpr int kRounds = 50;
  static constexpr double kTolerance = 1e-6;
};

// −Σ softmax(relevance) ln softmax(scores): the first draw of a Plackett–Luce model. Cao et al.
// 2007, Learning to Rank: From Pairwise Approach to Listwise Approach.
struct ListNetLoss {
  static constexpr const char* kName = "list_net_loss";
  static constexpr ListPattern kPattern = ListPattern::kDraws;
  static constexpr int kParameters = 0;
  static constexpr bool kTruncated = false;
  static constexpr bool kDrawsAll = false;
};

// −ln of the probability that a Plackett–Luce model draws the items in the order of relevance. Xia
// et al. 2008, Listwise Approach to Learning to Rank: Theory and Algorithm.
struct ListMLELoss {
  static constexpr const char* kName = "list_mle_loss";
  static constexpr ListPattern kPattern = ListPattern::kDraws;
  static constexpr int kParameters = 0;
  static constexpr bool kTruncated = false;
  static constexpr bool kDrawsAll = true;
};

struct NDCGMetric {
  static constexpr const char* kName = "ndcg";
  static constexpr ListPattern kPattern = ListPattern::kMetric;
  static constexpr int kParameters = 1;  // k
  static constexpr bool kTruncated = true;
  static constexpr double kOfNothing = 1.0;
};

template <class Formula>
constexpr bool takes_every_pair = [] {
  if constexpr (requires { Formula::kEveryPair; }) return Formula::kEveryPair;
  return false;
}();

using ListLosses =
    List<NDCGLoss1, NDCGLoss2, NDCGLoss2PlusPlus, LambdaRankLoss, LambdaRankNetLoss, RankNetLoss,
         ApproxNDCGLoss, NeuralNDCGLoss, ListNetLoss, ListMLELoss, NDCGMetric>;

}  // namespace fastloss::FASTLOSS_TARGET
