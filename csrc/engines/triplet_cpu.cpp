// SPDX-License-Identifier: MIT
#include "engines/triplet.h"

#include "core/choose.h"
#include "core/vec.h"
#include "engines/arena.h"
#include "engines/kernels.h"
#include "engines/row_cpu.h"
#include "losses/triplet.h"

namespace fastloss::FASTLOSS_TARGET {
namespace {

constexpr int64_t kSmallestChunk =
    4096;  // features: below, a second thread costs more than it saves

// The distances of a triplet, by the bit of their seeds.
enum Distance { kToPositive, kToNegative, kBetween, kDistances };

// The members of one triplet and their gradients, consecutive numbers each; null where not wanted.
template <class T>
struct Triplet {
  const T* member[kTripletMembers];
  T* gradient[kTripletMembers];
};

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
    const V anchor = load(triplet.member[kAnchor]), positive = load(triplet.member[kPositive]),
            negative = load(triplet.member[kNegative]);
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
  const Layout& layout = arguments.layout;
  const int64_t features = arguments.features;
  const bool streaming = kGradient && outlives_caches(layout.numel * features * int64_t{sizeof(T)});
  const int64_t smallest_chunk = 1 + kSmallestChunk / (features + 1);
  const double sum = sum_over_chunks(
      execution, layout.numel, smallest_chunk, [&](int64_t chunk_begin, int64_t chunk_end) {
        // For what cannot be read or written where it lies.
        Arena arena(2 * kTripletMembers * Arena::size_of<T>(features));
        T* stage[2 * kTripletMembers];
        for (T*& row : stage) row = arena.take<T>(features);
        double chunk_sum = 0.0;
        for_each_run(
            layout, chunk_begin, chunk_end,
            [&](int64_t /*position*/, const int64_t* offsets, int64_t length) {
              for (int64_t row = 0; row < length; ++row) {
                const auto offset_of = [&](int operand) {
                  return offsets[operand] + row * layout.stride[operand][0];
                };
                Triplet<T> triplet;
                for (int k = 0; k < kTripletMembers; ++k) {
                  triplet.member[k] = readable_row(arguments.members[k], offset_of(k),
                                                   arguments.feature_stride[k], features, stage[k]);
                  triplet.gradient[k] =
                      writable_row(arguments.gradients[k], offset_of(kTripletGradients + k),
                                   stage[kTripletMembers + k]);
                }
                const T loss = run_triplet<Formula, T, kSwap, kGradient>(
                    triplet, features, parameter, T(arguments.gradient_factor), streaming);
                chunk_sum += double(loss);
                if (arguments.loss_output.values)
                  static_cast<T*>(arguments.loss_output.values)[offset_of(kTripletValues)] = loss;
                for (int k = 0; k < kTripletMembers; ++k) {
                  if (triplet.gradient[k] == stage[kTripletMembers + k]) {
                    store_strided(arguments.gradients[k], offset_of(kTripletGradients + k), 1,
                                  triplet.gradient[k], 1, features);
                  }
                }
              }
            });
        if (streaming) streaming_fence();
        return chunk_sum;
      });
  store_total<T>(arguments.loss_output, Scale{arguments.loss_factor, {}}, sum);
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
