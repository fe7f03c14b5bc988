// SPDX-License-Identifier: MIT
#include "engines/triplet.h"

#include "core/choose.h"
#include "core/vec.h"
#include "engines/kernels.h"
#include "engines/row_cpu.h"
#include "losses/triplet.h"

namespace fastloss::FASTLOSS_TARGET {
namespace {

// The distances of a triplet, by the bit of their seeds.
enum Distance { kToPositive, kToNegative, kBetween, kDistances };

template <class T>
using Triplet = RowGroup<T, kTripletMembers>;

// The loss of one triplet; its gradients where there is room for them.
template <class Formula, class T, bool kSwap, bool kGradient>
[[gnu::noinline]] T run_triplet(const Triplet<T>& triplet, int64_t features, const T* parameter,
                                T factor, bool streaming) {
  using V = Vec<T>;
  using Norm = typename Formula::Norm;
  constexpr int kCount = kSwap ? 3 : 2;
  const T p = parameter[1];
  const V eps(parameter[2]);
  const auto differences = [&](const auto& load, V(&difference)[3]) {
    const V anchor = load(triplet.row[kAnchor]), positive = load(triplet.row[kPositive]),
            negative = load(triplet.row[kNegative]);
    difference[kToPositive] = anchor - positive + eps;
    difference[kToNegative] = anchor - negative + eps;
    difference[kBetween] = positive - negative + eps;
  };

  T scale[3] = {T(1), T(1), T(1)};
  if constexpr (Norm::kScaled) {
    V largest[3] = {V(0), V(0), V(0)};
    for_each_vector<T>(features, [&](const auto& load, const auto&, const auto& inside) {
      V difference[3];
      differences(load, difference);
      for (int k = 0; k < kCount; ++k) largest[k] = max(largest[k], inside(abs(difference[k])));
    });
    for (int k = 0; k < kCount; ++k) {
      scale[k] = largest[k][0];
      for (int lane = 1; lane < V::kLanes; ++lane) scale[k] = max(scale[k], largest[k][lane]);
    }
  }

  V sums[3] = {V(0), V(0), V(0)};
  for_each_vector<T>(features, [&](const auto& load, const auto&, const auto& inside) {
    V difference[3];
    differences(load, difference);
    for (int k = 0; k < kCount; ++k) sums[k] += inside(Norm::term(difference[k], V(scale[k]), p));
  });

  const auto to_positive =
      Norm::finish(variable<1, kGradient>(sums[kToPositive].sum()), scale[kToPositive], p);
  const auto to_negative =
      Norm::finish(variable<2, kGradient>(sums[kToNegative].sum()), scale[kToNegative], p);
  const auto loss = [&] {
    if constexpr (kSwap) {
      const auto between =
          Norm::finish(variable<4, kGradient>(sums[kBetween].sum()), scale[kBetween], p);
      return Formula::loss(to_positive, to_negative, between, parameter);
    } else {
      return Formula::loss(to_positive, to_negative, lanes::kInfinity<T>, parameter);
    }
  }();

  if constexpr (kGradient) {
    const T by_sum[3] = {factor * derivative<1>(loss), factor * derivative<2>(loss),
                         factor * derivative<4>(loss)};
    const bool is_flat = by_sum[0] == T(0) && by_sum[1] == T(0) && by_sum[2] == T(0);
    for_each_vector<T>(features, [&](const auto& load, const auto& store, const auto&) {
      V slope[3] = {V(0), V(0), V(0)};
      if (!is_flat) {  // else also where a difference is infinite
        V difference[3];
        differences(load, difference);
        for (int k = 0; k < kCount; ++k) {
          slope[k] =
              V(by_sum[k]) * derivative<1>(Norm::term(seed<1>(difference[k]), V(scale[k]), p));
        }
      }
      if (triplet.gradient[kAnchor])
        store(triplet.gradient[kAnchor], slope[kToPositive] + slope[kToNegative], streaming);
      if (triplet.gradient[kPositive])
        store(triplet.gradient[kPositive], slope[kBetween] - slope[kToPositive], streaming);
      if (triplet.gradient[kNegative])
        store(triplet.gradient[kNegative], -slope[kToNegative] - slope[kBetween], streaming);
    });
  }
  return detach(loss);
}

template <class Formula, class T, bool kSwap, bool kGradient>
void run_typed(const TripletArguments& arguments, const Execution& execution) {
  T parameter[kMaxParameters];
  for (int i = 0; i < Formula::kParameters; ++i) parameter[i] = T(arguments.parameters[i]);
  run_row_groups<T, kGradient>(
      arguments, arguments.members, execution, [&](const Triplet<T>& triplet, bool streaming) {
        return run_triplet<Formula, T, kSwap, kGradient>(triplet, arguments.features, parameter,
                                                         T(arguments.gradient_factor), streaming);
      });
}

template <class Formula>
struct Kernel {
  static void run(const TripletArguments& arguments, const Execution& execution) {
    with_number_type(arguments.is_double, [&](auto number) {
      with_flag(arguments.swap, [&](auto swap) {
        with_flag(arguments.wants_gradient(), [&](auto gradient) {
          run_typed<Formula, decltype(number), decltype(swap)::value, decltype(gradient)::value>(
              arguments, execution);
        });
      });
    });
  }
};

}  // namespace

void triplet(const TripletArguments& arguments, const Execution& execution) {
  using Function = void (*)(const TripletArguments&, const Execution&);
  TripletLosses::Table<Function, Kernel>::kRun[arguments.loss](arguments, execution);
}

}  // namespace fastloss::FASTLOSS_TARGET
