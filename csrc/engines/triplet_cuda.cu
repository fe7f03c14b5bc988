// SPDX-License-Identifier: MIT
#include "engines/triplet.h"

#include "core/choose.h"
#include "engines/access_cuda.h"
#include "engines/kernels.h"
#include "losses/triplet.h"

namespace fastloss::FASTLOSS_TARGET {
namespace {

constexpr int kThreads = 128;

// The distances of a triplet, by the bit of their seeds.
enum Distance { kToPositive, kToNegative, kBetween, kDistances };

// One warp per triplet. The rows are read anew for the gradient, from the cache; kWidth features a
// lane at a time: one pack of each member, or single features of any stride.
template <class Formula, class T, bool kSwap, bool kGradient, int kWidth>
__global__ void __launch_bounds__(kThreads, kResidentBlocks)
    triplet_kernel(const __grid_constant__ TripletArguments arguments,
                   const Completion completion) {
  using Norm = typename Formula::Norm;
  constexpr int kCount = kSwap ? 3 : 2;
  T parameter[kMaxParameters];
  for (int i = 0; i < Formula::kParameters; ++i) parameter[i] = T(arguments.parameters[i]);
  const T p = parameter[1], eps = parameter[2];
  const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
  const int64_t warp = (int64_t{blockIdx.x} * kThreads + threadIdx.x) / kWarpSize;
  const int64_t warps = int64_t{gridDim.x} * (kThreads / kWarpSize);

  T total(0);
  for (int64_t row = warp; row < arguments.layout.numel; row += warps) {
    int64_t offsets[kTripletOperands];
    locate(arguments.layout, row, offsets);
    // Calls visit(feature, differences) for the packs of this lane.
    const auto for_each_pack = [&](const auto& visit) {
      for (int64_t i = int64_t{lane} * kWidth; i < arguments.features; i += kWarpSize * kWidth) {
        const auto read = [&](int member, T(&features)[kWidth]) {
          const int64_t stride = arguments.feature_stride[member];
          load(features, arguments.members[member],
               Span{offsets[member] + i * stride, stride, stride == 1});
        };
        T anchor[kWidth], positive[kWidth], negative[kWidth], differences[3][kWidth];
        read(kAnchor, anchor);
        read(kPositive, positive);
        read(kNegative, negative);
        for (int k = 0; k < kWidth; ++k) {
          differences[kToPositive][k] = anchor[k] - positive[k] + eps;
          differences[kToNegative][k] = anchor[k] - negative[k] + eps;
          differences[kBetween][k] = positive[k] - negative[k] + eps;
        }
        visit(i, differences);
      }
    };

    T scale[3] = {T(1), T(1), T(1)};
    if constexpr (Norm::kScaled) {
      T largest[3] = {T(0), T(0), T(0)};
      for_each_pack([&](int64_t, const T(&differences)[3][kWidth]) {
        for (int d = 0; d < kCount; ++d) {
          for (int k = 0; k < kWidth; ++k) largest[d] = max(largest[d], abs(differences[d][k]));
        }
      });
      for (int d = 0; d < kCount; ++d) scale[d] = largest_of_lanes(largest[d]);
    }
    T sums[3] = {T(0), T(0), T(0)};
    for_each_pack([&](int64_t, const T(&differences)[3][kWidth]) {
      for (int d = 0; d < kCount; ++d) {
        for (int k = 0; k < kWidth; ++k) sums[d] += Norm::term(differences[d][k], scale[d], p);
      }
    });
    for (int d = 0; d < kCount; ++d) sums[d] = sum_of_lanes(sums[d]);

    const auto to_positive =
        Norm::finish(variable<1, kGradient>(sums[kToPositive]), scale[kToPositive], p);
    const auto to_negative =
        Norm::finish(variable<2, kGradient>(sums[kToNegative]), scale[kToNegative], p);
    const auto loss = [&] {
      if constexpr (kSwap) {
        return Formula::loss(
            to_positive, to_negative,
            Norm::finish(variable<4, kGradient>(sums[kBetween]), scale[kBetween], p), parameter);
      } else {
        return Formula::loss(to_positive, to_negative, T(INFINITY), parameter);
      }
    }();
    if (lane == 0) {
      total += detach(loss);
      if (arguments.loss_output.values)
        static_cast<T*>(arguments.loss_output.values)[offsets[kTripletValues]] = detach(loss);
    }
    if constexpr (kGradient) {
      const T factor = T(arguments.gradient_factor);
      const T by_sum[3] = {factor * derivative<1>(loss), factor * derivative<2>(loss),
                           factor * derivative<4>(loss)};
      const bool is_flat = by_sum[0] == T(0) && by_sum[1] == T(0) && by_sum[2] == T(0);
      for_each_pack([&](int64_t i, const T(&differences)[3][kWidth]) {
        T slope[3][kWidth];
        for (int d = 0; d < 3; ++d) {
          for (int k = 0; k < kWidth; ++k) {
            slope[d][k] = T(0);
            if (d < kCount && !is_flat) {  // else also where a difference is infinite
              slope[d][k] =
                  by_sum[d] * derivative<1>(Norm::term(seed<1>(differences[d][k]), scale[d], p));
            }
          }
        }
        const auto write = [&](int member, int sign_of_first, int first, int sign_of_second,
                               int second) {
          if (arguments.gradients[member].data == nullptr) return;
          T gradient[kWidth];
          for (int k = 0; k < kWidth; ++k)
            gradient[k] = T(sign_of_first) * slope[first][k] + T(sign_of_second) * slope[second][k];
          store(arguments.gradients[member], gradient,
                Span{offsets[kTripletGradients + member] + i, 1, true});
        };
        write(kAnchor, 1, kToPositive, 1, kToNegative);
        write(kPositive, 1, kBetween, -1, kToPositive);
        write(kNegative, -1, kToNegative, -1, kBetween);
      });
    }
  }
  if (arguments.loss_output.total) {
    grid_sum<kThreads>(total, completion, [&](double sum) {
      *static_cast<T*>(arguments.loss_output.total) = T(sum * arguments.loss_factor);
    });
  }
}

template <class Formula, class T, bool kSwap, bool kGradient, int kWidth>
void run_width(const TripletArguments& arguments, const Execution& execution) {
  const unsigned grid = grid_for(arguments.layout.numel, kThreads / kWarpSize);
  const Completion completion =
      arguments.loss_output.total ? completion_for(execution, grid) : Completion{};
  launch(triplet_kernel<Formula, T, kSwap, kGradient, kWidth>, grid, kThreads, 0, execution.stream,
         arguments, completion);
}

template <class Formula, class T, bool kSwap, bool kGradient>
void run_typed(const TripletArguments& arguments, const Execution& execution) {
  if (kWide<T> > 1 && are_row_groups_packed(arguments, arguments.members, kWide<T>)) {
    run_width<Formula, T, kSwap, kGradient, kWide<T>>(arguments, execution);
  } else {
    run_width<Formula, T, kSwap, kGradient, 1>(arguments, execution);
  }
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
