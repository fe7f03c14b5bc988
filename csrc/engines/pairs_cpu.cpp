// SPDX-License-Identifier: MIT
#include "engines/pairs.h"

#include "core/choose.h"
#include "engines/kernels.h"
#include "engines/list_cpu.h"
#include "engines/soft_sort_cpu.h"

namespace fastloss::FASTLOSS_TARGET {
namespace {

// ---- pairs ----

// Every pair of the first items of a list in vectors of second items: the loss and the number of
// pairs that count. The slope of a score is gathered in `list.slope`.
template <class Formula, class T, bool kGradient>
[[gnu::noinline]] ListSum sum_pairs(const List<T>& list, const Places<T>& places, int64_t items,
                                    const T* parameter) {
  using V = Vec<T>;
  constexpr unsigned kSeed = 1;
  const auto item_at = [&](int64_t i, auto load) {
    if constexpr (Formula::kRanked) {
      return RankedItem<V>{load(list.relevance + i), load(list.gain + i),
                           load(places.discount + i)};
    } else {
      return RankedItem<V>{load(list.relevance + i), V(0), V(0)};
    }
  };
  const auto broadcast = [](const T* number) { return V(*number); };
  const auto several = [](const T* numbers) { return V::load(numbers); };
  const V lane = lane_numbers<T>();
  ListSum sum;
  for (int64_t i = 0; i < items; ++i) {
    const V score(list.score[i]);
    const auto first = item_at(i, broadcast);
    V loss(0), pairs(0), slope(0);
    for (int64_t j = i + 1; j < items; j += V::kLanes) {
      const auto second = item_at(j, several);
      auto counted = lane < V(T(items - j));
      if constexpr (!takes_every_pair<Formula>) {
        counted = counted & (first.relevance != second.relevance);
      }
      V spacing(0);
      if constexpr (Formula::kRanked) spacing = V::load(places.spacing + (j - i));
      const auto difference = variable<kSeed, kGradient>(score - V::load(list.score + j));
      const auto cost = Formula::pair(difference, first, second, spacing, parameter);
      loss += select(counted, detach(cost), V(0));
      pairs += select(counted, V(1), V(0));
      if constexpr (kGradient) {
        const V pair_slope = select(counted, derivative<kSeed>(cost), V(0));
        slope += pair_slope;
        (V::load(list.slope + j) - pair_slope).store(list.slope + j);
      }
    }
    if constexpr (takes_every_pair<Formula>) {  // either way round, and each item with itself
      loss += select(lane < V(1),
                     V(T(0.5)) * detach(Formula::pair(V(0), first, first, V(0), parameter)), V(0));
      pairs = pairs + pairs + select(lane < V(1), V(1), V(0));
    }
    sum.loss += double(loss.sum());
    sum.counted += double(pairs.sum());
    if constexpr (kGradient) list.slope[i] += slope.sum();
  }
  return sum;
}

template <class Formula>
struct Pairs {
  template <class T, bool kGradient>
  static ListSum run(const PairsArguments& arguments, const Places<T>& places, List<T>& list,
                     const T* parameter) {
    if constexpr (Formula::kRanked) {
      list.order_by_score();
      list.find_gains(places, cut_of(arguments, list.size));
    }
    const int64_t items = Formula::kTruncated ? cut_of(arguments, list.size) : list.size;
    return sum_pairs<Formula, T, kGradient>(list, places, items, parameter);
  }
};

// ---- places ----

// The place of every item: 1, and what the others take from it.
template <class Formula, class T>
[[gnu::noinline]] void find_places(const List<T>& list, T* place, const T* parameter) {
  using V = Vec<T>;
  const V lane = lane_numbers<T>();
  for (int64_t i = 0; i < list.size; ++i) place[i] = T(1);
  for (int64_t i = 0; i < list.size; ++i) {
    const V score(list.score[i]);
    V taken(0);
    for (int64_t j = i + 1; j < list.size; j += V::kLanes) {
      const auto counted = lane < V(T(list.size - j));
      const auto ahead = Formula::ahead(score - V::load(list.score + j), parameter);
      taken += select(counted, ahead.of_first, V(0));
      (V::load(place + j) + select(counted, ahead.of_second, V(0))).store(place + j);
    }
    place[i] += taken.sum();
  }
}

// Gathers the slopes of scores from those of places.
template <class Formula, class T>
[[gnu::noinline]] void add_place_slopes(const List<T>& list, const T* place_slope,
                                        const T* parameter) {
  using V = Vec<T>;
  constexpr unsigned kSeed = 1;
  const V lane = lane_numbers<T>();
  for (int64_t i = 0; i < list.size; ++i) {
    const V score(list.score[i]), first_slope(place_slope[i]);
    V slope(0);
    for (int64_t j = i + 1; j < list.size; j += V::kLanes) {
      const auto difference = seed<kSeed>(score - V::load(list.score + j));
      const auto ahead = Formula::ahead(difference, parameter);
      const V pair_slope = select(lane < V(T(list.size - j)),
                                  first_slope * derivative<kSeed>(ahead.of_first) +
                                      V::load(place_slope + j) * derivative<kSeed>(ahead.of_second),
                                  V(0));
      slope += pair_slope;
      (V::load(list.slope + j) - pair_slope).store(list.slope + j);
    }
    list.slope[i] += slope.sum();
  }
}

template <class Formula>
struct Smooth {
  template <class T, bool kGradient>
  static ListSum run(const PairsArguments& /*arguments*/, const Places<T>& places, List<T>& list,
                     const T* parameter) {
    using V = Vec<T>;
    constexpr unsigned kSeed = 1;
    if (!list.find_gains(places, list.size)) return {};
    T* place = list.work;
    find_places<Formula>(list, place, parameter);
    double remaining = 1.0;
    const V lane = lane_numbers<T>();
    for (int64_t i = 0; i < list.size; i += V::kLanes) {
      const auto cost =
          Formula::cost(variable<kSeed, kGradient>(V::load(place + i)), V::load(list.gain + i));
      remaining += double(select(lane < V(T(list.size - i)), detach(cost), V(0)).sum());
      if constexpr (kGradient) derivative<kSeed>(cost).store(place + i);
    }
    if constexpr (kGradient) add_place_slopes<Formula>(list, place, parameter);
    return {remaining, 1.0};
  }
};

// ---- draws ----

// The model draws an item with the probability softmax(scores of what is left). Every exponential
// is taken relative to the largest score left, so that none overflows and no tail is lost.
template <class T>
struct Tails {
  const List<T>& list;
  T* largest;      // of the items from here on
  T* exponential;  // of the score over the largest
  T* decay;        // of the largest after this item over the largest from it on
  double* sum;     // of the exponentials from here on, over the largest

  explicit Tails(const List<T>& list)
      : list(list),
        largest(list.work),
        exponential(list.gain),
        decay(list.relevance),
        sum(list.wide) {
    using V = Vec<T>;
    const int64_t last = list.size - 1;
    largest[last] = list.score[last];
    for (int64_t i = last; i-- > 0;) largest[i] = max(list.score[i], largest[i + 1]);
    for (int64_t i = list.size; i < list.size + V::kLanes; ++i) largest[i] = largest[last];
    for (int64_t i = 0; i < list.size; i += V::kLanes) {
      const V top = V::load(largest + i);
      exp(V::load(list.score + i) - top).store(exponential + i);
      exp(V::load(largest + i + 1) - top).store(decay + i);
    }
    sum[last] = double(exponential[last]);
    for (int64_t i = last; i-- > 0;)
      sum[i] = double(exponential[i]) + double(decay[i]) * sum[i + 1];
  }

  double loss() const {
    using V = Vec<double>;
    const V lane = lane_numbers<double>();
    V total(0);
    for (int64_t i = 0; i < list.size; i += V::kLanes) {
      double advantage[V::kLanes] = {};
      for (int64_t k = 0; k < V::kLanes && i + k < list.size; ++k) {
        advantage[k] = double(largest[i + k]) - double(list.score[i + k]);
      }
      const V cost = log(V::load(sum + i)) + V::load(advantage);
      total += select(lane < V(double(list.size - i)), cost, V(0));
    }
    return total.sum();
  }

  // An item's slope is the probability with which it was drawn in each of the draws up to its own,
  // less its own draw.
  void find_slopes() const {
    double drawn = 0.0;
    for (int64_t i = 0; i < list.size; ++i) {
      drawn = (i > 0 ? drawn * double(decay[i - 1]) : 0.0) + 1.0 / sum[i];
      list.slope[i] = T(double(exponential[i]) * drawn - 1.0);
    }
  }
};

// Softmax of `numbers` over the list: exponentials over the largest, their sum, the largest.
template <class T>
struct Softmax {
  T largest;
  double sum = 0.0;

  Softmax(const T* numbers, int64_t size, T* exponentials) : largest(numbers[0]) {
    using V = Vec<T>;
    const V lane = lane_numbers<T>();
    for (int64_t i = 1; i < size; ++i) largest = max(largest, numbers[i]);
    for (int64_t i = 0; i < size; i += V::kLanes) {
      const V exponential = exp(V::load(numbers + i) - V(largest));
      exponential.store(exponentials + i);
      sum += double(select(lane < V(T(size - i)), exponential, V(0)).sum());
    }
  }
};

template <class Formula>
struct Draws {
  template <class T, bool kGradient>
  static ListSum run(const PairsArguments& /*arguments*/, const Places<T>& /*places*/,
                     List<T>& list, const T* /*parameter*/) {
    if (list.size == 0) return {};
    if constexpr (Formula::kDrawsAll) {
      list.order_by_relevance();
      const Tails<T> tails(list);
      if constexpr (kGradient) tails.find_slopes();
      return {tails.loss(), 1.0};
    } else {
      T* wanted = list.work;
      const Softmax<T> target(list.relevance, list.size, wanted);
      const Softmax<T> found(list.score, list.size, list.gain);
      const double log_sum = logarithm(found.sum);
      double loss = 0.0;
      for (int64_t i = 0; i < list.size; ++i) {
        const double share = double(wanted[i]) / target.sum;
        loss += share * (log_sum + (double(found.largest) - double(list.score[i])));
        if constexpr (kGradient) list.slope[i] = T(double(list.gain[i]) / found.sum - share);
      }
      return {loss, 1.0};
    }
  }

 private:
  static double logarithm(double x) { return log(Vec<double>(x))[0]; }
};

// ---- the metric ----

template <class Formula>
struct Metric {
  template <class T, bool kGradient>
  static ListSum run(const PairsArguments& arguments, const Places<T>& places, List<T>& list,
                     const T* /*parameter*/) {
    list.order_by_score();
    const int64_t items = cut_of(arguments, list.size);
    if (!list.find_gains(places, items)) return {Formula::kOfNothing, 1.0};
    double found = 0.0;
    for (int64_t i = 0; i < items; ++i) found += double(list.gain[i]) * places.wide_discount[i];
    return {found, 1.0};
  }
};

// ---- lists ----

template <class Formula>
constexpr auto pattern_of() {
  if constexpr (Formula::kPattern == ListPattern::kPairs) {
    return Pairs<Formula>{};
  } else if constexpr (Formula::kPattern == ListPattern::kPlaces) {
    return Smooth<Formula>{};
  } else if constexpr (Formula::kPattern == ListPattern::kDraws) {
    return Draws<Formula>{};
  } else if constexpr (Formula::kPattern == ListPattern::kSoftSort) {
    return SoftSort<Formula>{};
  } else {
    return Metric<Formula>{};
  }
}

template <class Formula, class T, bool kGradient>
void run_lists(const PairsArguments& arguments, const Execution& execution) {
  T parameter[kMaxParameters];
  for (int i = 0; i < Formula::kParameters; ++i) parameter[i] = T(arguments.parameters[i]);
  using Pattern = decltype(pattern_of<Formula>());
  const Places<T> places(arguments.length);
  auto* gradient = static_cast<T*>(arguments.gradient);
  auto* sums = static_cast<ListSum*>(arguments.scratch);  // [lists]
  sum_over_chunks(execution, arguments.lists, 1, [&](int64_t begin, int64_t end) {
    List<T> list(arguments.length);
    for (int64_t b = begin; b < end; ++b) {
      ListSum sum;
      if (list.load(arguments, b)) {
        sum = Pattern::template run<T, kGradient>(arguments, places, list, parameter);
      } else {  // NaN in, NaN out
        sum.loss = double(lanes::kNaN<T>);
        for (int64_t i = 0; i < list.size; ++i) list.slope[i] = lanes::kNaN<T>;
      }
      if constexpr (kGradient) list.store_slopes(gradient + b * arguments.length);
      sums[b] = sum;
    }
    return 0.0;
  });

  double loss = 0.0, counted = 0.0;
  for (int64_t b = 0; b < arguments.lists; ++b) {
    loss += sums[b].loss;
    counted += sums[b].counted;
    if (arguments.loss_output.values)
      static_cast<T*>(arguments.loss_output.values)[b] = T(sums[b].loss);
  }
  double factor = 1.0;
  if (arguments.mean) factor = counted > 0.0 ? 1.0 / counted : 0.0;
  store_total<T>(arguments.loss_output, Scale{factor, {}}, loss);
  if constexpr (kGradient) {
    if (factor == 1.0) return;
    sum_over_chunks(execution, arguments.lists * arguments.length, 16384,
                    [&](int64_t begin, int64_t end) {
                      for (int64_t i = begin; i < end; ++i) gradient[i] *= T(factor);
                      return 0.0;
                    });
  }
}

template <class Formula>
struct Kernel {
  static void run(const PairsArguments& arguments, const Execution& execution) {
    with_number_type(arguments.is_double, [&](auto number) {
      using T = decltype(number);
      if constexpr (Formula::kPattern == ListPattern::kMetric) {
        run_lists<Formula, T, false>(arguments, execution);
      } else {
        with_flag(arguments.gradient != nullptr, [&](auto gradient) {
          run_lists<Formula, T, decltype(gradient)::value>(arguments, execution);
        });
      }
    });
  }
};

}  // namespace

int64_t pairs_scratch(const PairsArguments& arguments) {
  return arguments.lists * int64_t{sizeof(ListSum)};
}

void pairs(const PairsArguments& arguments, const Execution& execution) {
  using Function = void (*)(const PairsArguments&, const Execution&);
  ListLosses::Table<Function, Kernel>::kRun[arguments.loss](arguments, execution);
}

}  // namespace fastloss::FASTLOSS_TARGET
