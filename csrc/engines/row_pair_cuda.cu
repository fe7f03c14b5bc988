// SPDX-License-Identifier: MIT
#include "engines/row_pair.h"

#include "core/choose.h"
#include "engines/access_cuda.h"
#include "engines/kernels.h"
#include "engines/unit_row.h"
#include "losses/graph.h"

namespace fastloss::FASTLOSS_TARGET {
namespace {

constexpr int kThreads = 128;

// The loss of two rows, in every lane; their gradients where they are wanted. Here it is a sum over
// the features.
template <class Formula, class T, bool kGradient, int kWidth, class ForEachPack>
FASTLOSS_DEVICE_INLINE T run_terms(const RowPairArguments& arguments,
                                   const int64_t (&offsets)[kRowPairOperands],
                                   const ForEachPack& for_each_pack) {
  const T factor = T(arguments.gradient_factor);
  T sum(0);
  for_each_pack([&](int64_t feature, const T(&numbers)[kRowPair][kWidth]) {
    T gradients[kRowPair][kWidth];
    for (int i = 0; i < kWidth; ++i) {
      const auto term = Formula::term(variable<1, kGradient>(numbers[0][i]),
                                      variable<2, kGradient>(numbers[1][i]));
      sum += detach(term);
      if constexpr (kGradient) {
        gradients[0][i] = factor * derivative<1>(term);
        gradients[1][i] = factor * derivative<2>(term);
      }
    }
    if constexpr (kGradient) {
      for (int k = 0; k < kRowPair; ++k) {
        if (arguments.gradients[k].data == nullptr) continue;
        store(arguments.gradients[k], gradients[k],
              Span{offsets[kRowPairGradients + k] + feature, 1, true});
      }
    }
  });
  return sum_of_lanes(sum);
}

// And here one of 1 − cos: half the squared distance of the rows divided by their norms, which is
// not a difference of nearly equal numbers.
template <class Formula, class T, bool kGradient, int kWidth, class ForEachPack>
FASTLOSS_DEVICE_INLINE T run_directions(const RowPairArguments& arguments,
                                        const int64_t (&offsets)[kRowPairOperands],
                                        const ForEachPack& for_each_pack) {
  T parameter[kMaxParameters];
  for (int i = 0; i < Formula::kParameters; ++i) parameter[i] = T(arguments.parameters[i]);
  T squares[kRowPair] = {T(0), T(0)};
  for_each_pack([&](int64_t, const T(&numbers)[kRowPair][kWidth]) {
    for (int k = 0; k < kRowPair; ++k) {
      for (int i = 0; i < kWidth; ++i) squares[k] += square(numbers[k][i]);
    }
  });
  const UnitRow<T> first = unit_row(sum_of_lanes(squares[0])),
                   second = unit_row(sum_of_lanes(squares[1]));
  T apart(0);
  for_each_pack([&](int64_t, const T(&numbers)[kRowPair][kWidth]) {
    for (int i = 0; i < kWidth; ++i)
      apart += square(numbers[0][i] * first.inverse - numbers[1][i] * second.inverse);
  });
  const T distance = T(0.5) * (sum_of_lanes(apart) + first.missing + second.missing);
  const auto loss = Formula::loss(variable<1, kGradient>(distance), parameter);
  if constexpr (kGradient) {
    const T slope = T(arguments.gradient_factor) * derivative<1>(loss);
    for_each_pack([&](int64_t feature, const T(&numbers)[kRowPair][kWidth]) {
      const auto write = [&](int k, const UnitRow<T>& own, const UnitRow<T>& other) {
        if (arguments.gradients[k].data == nullptr) return;
        T gradient[kWidth];
        for (int i = 0; i < kWidth; ++i) {
          const T of_own = numbers[k][i] * own.inverse,
                  of_other = numbers[1 - k][i] * other.inverse;
          gradient[i] = slope * own.inverse * ((of_own - of_other) - own.along(distance) * of_own);
        }
        store(arguments.gradients[k], gradient,
              Span{offsets[kRowPairGradients + k] + feature, 1, true});
      };
      write(0, first, second);
      write(1, second, first);
    });
  }
  return detach(loss);
}

// One warp per pair of rows. They are read anew for each pass, from the cache; kWidth features a
// lane at a time: one pack of each row, or single features of any stride.
template <class Formula, class T, bool kGradient, int kWidth>
__global__ void __launch_bounds__(kThreads, kResidentBlocks)
    row_pair_kernel(const __grid_constant__ RowPairArguments arguments,
                    const Completion completion) {
  const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
  const int64_t warp = (int64_t{blockIdx.x} * kThreads + threadIdx.x) / kWarpSize;
  const int64_t warps = int64_t{gridDim.x} * (kThreads / kWarpSize);

  T total(0);
  for (int64_t row = warp; row < arguments.layout.numel; row += warps) {
    int64_t offsets[kRowPairOperands];
    locate(arguments.layout, row, offsets);
    // Calls visit(feature, numbers of both rows) for the packs of this lane.
    const auto for_each_pack = [&](const auto& visit) {
      for (int64_t i = int64_t{lane} * kWidth; i < arguments.features; i += kWarpSize * kWidth) {
        T numbers[kRowPair][kWidth];
        for (int k = 0; k < kRowPair; ++k) {
          const int64_t stride = arguments.feature_stride[k];
          load(numbers[k], arguments.rows[k], Span{offsets[k] + i * stride, stride, stride == 1});
        }
        visit(i, numbers);
      }
    };

    const T loss = [&] {
      if constexpr (is_of_terms<Formula>) {
        return run_terms<Formula, T, kGradient, kWidth>(arguments, offsets, for_each_pack);
      } else {
        return run_directions<Formula, T, kGradient, kWidth>(arguments, offsets, for_each_pack);
      }
    }();
    if (lane == 0) {
      total += loss;
      if (arguments.loss_output.values)
        static_cast<T*>(arguments.loss_output.values)[offsets[kRowPairValues]] = loss;
    }
  }
  if (arguments.loss_output.total) {
    grid_sum<kThreads>(total, completion, [&](double sum) {
      *static_cast<T*>(arguments.loss_output.total) = T(sum * arguments.loss_factor);
    });
  }
}

template <class Formula, class T, bool kGradient, int kWidth>
void run_width(const RowPairArguments& arguments, const Execution& execution) {
  const unsigned grid = grid_for(arguments.layout.numel, kThreads / kWarpSize);
  const Completion completion =
      arguments.loss_output.total ? completion_for(execution, grid) : Completion{};
  launch(row_pair_kernel<Formula, T, kGradient, kWidth>, grid, kThreads, 0, execution.stream,
         arguments, completion);
}

template <class Formula, class T, bool kGradient>
void run_typed(const RowPairArguments& arguments, const Execution& execution) {
  if (kWide<T> > 1 && are_row_groups_packed(arguments, arguments.rows, kWide<T>)) {
    run_width<Formula, T, kGradient, kWide<T>>(arguments, execution);
  } else {
    run_width<Formula, T, kGradient, 1>(arguments, execution);
  }
}

template <class Formula>
struct Kernel {
  static void run(const RowPairArguments& arguments, const Execution& execution) {
    with_number_type(arguments.is_double, [&](auto number) {
      with_flag(arguments.wants_gradient(), [&](auto gradient) {
        run_typed<Formula, decltype(number), decltype(gradient)::value>(arguments, execution);
      });
    });
  }
};

}  // namespace

void row_pair(const RowPairArguments& arguments, const Execution& execution) {
  using Function = void (*)(const RowPairArguments&, const Execution&);
  RowPairLosses::Table<Function, Kernel>::kRun[arguments.loss](arguments, execution);
}

}  // namespace fastloss::FASTLOSS_TARGET
