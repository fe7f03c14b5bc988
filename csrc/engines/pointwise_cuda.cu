// SPDX-License-Identifier: MIT
#include "engines/access_cuda.h"
#include "engines/kernels.h"
#include "losses/pointwise.h"

namespace fastloss::FASTLOSS_TARGET {
namespace {

constexpr int kThreads = 256;

enum class Gradients { kNone, kInput, kInputAndTarget };

// The 0/1 targets of the elements from `position` on, from the class index of their row. False: the
// row does not count.
template <class T, int kWidth>
FASTLOSS_DEVICE_INLINE bool expand_label(T (&targets)[kWidth], const PointwiseArguments& arguments,
                                         int64_t position, int64_t label) {
  FASTLOSS_DEVICE_ASSERT(label <= arguments.classes,
                         "fastloss: a label is larger than the number of classes");
  const int64_t first =
      arguments.layout.numel <= INT32_MAX
          ? static_cast<uint32_t>(position) % static_cast<uint32_t>(arguments.classes)
          : position % arguments.classes;
  for (int i = 0; i < kWidth; ++i) targets[i] = first + i == label ? T(1) : T(0);
  return label >= 0;
}

// Not 0 where the elements count. Of a mask, single elements are read.
template <class T, int kWidth>
FASTLOSS_DEVICE_INLINE void load_mask(T (&counts)[kWidth], const Input& mask, const Span& span) {
  for (int i = 0; i < kWidth; ++i)
    counts[i] = load_integer(mask, span.offset + i * span.stride) != 0 ? T(1) : T(0);
}

// kWidth elements a thread at a time: one pack of each operand, or single elements of any layout.
template <class Formula, class T, Gradients kGradients, int kWidth>
__global__ void __launch_bounds__(kThreads, kResidentBlocks)
    pointwise_kernel(const __grid_constant__ PointwiseArguments arguments,
                     const Completion completion) {
  constexpr unsigned kInputSeed = 1, kTargetSeed = 2;
  T parameter[kMaxParameters];
  for (int i = 0; i < Formula::kParameters; ++i) parameter[i] = T(arguments.parameters[i]);
  const T gradient_scale = T(resolve(arguments.gradient_scale));
  const Layout& layout = arguments.layout;

  T sum(0);
  const int64_t step = int64_t{gridDim.x} * kThreads * kWidth;
  for (int64_t position = (int64_t{blockIdx.x} * kThreads + threadIdx.x) * kWidth;
       position < layout.numel; position += step) {
    int64_t offsets[kPointwiseOperands];
    locate(layout, position, offsets);
    const auto span_of = [&](int operand) {
      const int64_t stride = layout.stride[operand][0];
      return Span{offsets[operand], stride, stride == 1};
    };

    T x[kWidth], t[kWidth] = {}, weight[kWidth], pos_weight[kWidth];
    T reference[kWidth] = {}, mask[kWidth];  // of policies
    bool row_counts = true;
    for (int i = 0; i < kWidth; ++i) weight[i] = pos_weight[i] = mask[i] = T(1);
    load(x, arguments.input, span_of(kPointwiseInput));
    if constexpr (has_range<Formula>) {
      for (int i = 0; i < kWidth; ++i) {
        FASTLOSS_DEVICE_ASSERT(!(x[i] < T(Formula::kRange[0]) || x[i] > T(Formula::kRange[1])),
                               "fastloss: an input is out of the range of its loss");
      }
    }
    if constexpr (targets_of<Formula> != Targets::kNone) {
      if (arguments.target_kind == TargetKind::kClassIndex) {
        row_counts = expand_label(t, arguments, position,
                                  load_integer(arguments.target, offsets[kPointwiseTarget]));
      } else {
        load(t, arguments.target, span_of(kPointwiseTarget));
      }
    }
    if (arguments.weight.data) load(weight, arguments.weight, span_of(kPointwiseWeight));
    if (arguments.pos_weight.data)
      load(pos_weight, arguments.pos_weight, span_of(kPointwisePosWeight));
    if constexpr (is_of_policy<Formula>) {
      if (arguments.reference.data)
        load(reference, arguments.reference, span_of(kPointwiseReference));
      if (arguments.mask.data) load_mask(mask, arguments.mask, span_of(kPointwiseMask));
    }

    T values[kWidth], input_gradient[kWidth], target_gradient[kWidth];
    for (int i = 0; i < kWidth; ++i) {
      constexpr bool kTargetVaries =
          kGradients == Gradients::kInputAndTarget && targets_of<Formula> != Targets::kNone;
      const auto input = variable<kInputSeed, kGradients != Gradients::kNone>(x[i]);
      const auto target = variable<kTargetSeed, kTargetVaries>(t[i]);
      const auto result = [&] {
        if constexpr (is_of_policy<Formula>) {
          return Formula::loss(input, target, pos_weight[i], reference[i], parameter);
        } else {
          return Formula::loss(input, target, pos_weight[i], parameter);
        }
      }();
      const bool counts = row_counts && mask[i] != T(0);
      // Selected, not multiplied: what does not count may hold anything, NaN too.
      values[i] = counts ? detach(result) * weight[i] : T(0);
      input_gradient[i] =
          counts ? derivative<kInputSeed>(result) * (gradient_scale * weight[i]) : T(0);
      target_gradient[i] =
          counts ? derivative<kTargetSeed>(result) * (gradient_scale * weight[i]) : T(0);
      sum += values[i];
    }
    if constexpr (kGradients != Gradients::kNone) {
      store(arguments.input_gradient, input_gradient, span_of(kPointwiseInputGradient));
    }
    if constexpr (kGradients == Gradients::kInputAndTarget) {
      store(arguments.target_gradient, target_gradient, span_of(kPointwiseTargetGradient));
    }
    if (arguments.loss_output.values) {
      store_items(static_cast<T*>(arguments.loss_output.values), values, span_of(kPointwiseValues));
    }
  }

  if (arguments.loss_output.total) {
    grid_sum<kThreads>(sum, completion, [&](double total) {
      *static_cast<T*>(arguments.loss_output.total) = T(total * resolve(arguments.loss_scale));
    });
  }
}

template <class Formula, class T, Gradients kGradients, int kWidth>
void run_width(const PointwiseArguments& arguments, const Execution& execution) {
  const unsigned grid = grid_for(arguments.layout.numel / kWidth, kThreads);
  const Completion completion =
      arguments.loss_output.total ? completion_for(execution, grid) : Completion{};
  launch(pointwise_kernel<Formula, T, kGradients, kWidth>, grid, kThreads, 0, execution.stream,
         arguments, completion);
}

template <class T>
bool all_packed(const PointwiseArguments& arguments) {
  const Layout& layout = arguments.layout;
  const auto packed = [&](int operand, const auto& tensor) {
    return is_packed(layout, operand, tensor.data, tensor.dtype, kWide<T>);
  };
  // A pack then lies in one row, which has one label.
  const bool packed_target = arguments.target_kind == TargetKind::kClassIndex
                                 ? arguments.classes % kWide<T> == 0
                                 : packed(kPointwiseTarget, arguments.target);
  return packed_target && packed(kPointwiseInput, arguments.input) &&
         packed(kPointwiseWeight, arguments.weight) &&
         packed(kPointwisePosWeight, arguments.pos_weight) &&
         packed(kPointwiseReference, arguments.reference) &&
         (arguments.mask.data == nullptr || arguments.layout.stride[kPointwiseMask][0] == 1) &&
         packed(kPointwiseInputGradient, arguments.input_gradient) &&
         packed(kPointwiseTargetGradient, arguments.target_gradient) &&
         packed(kPointwiseValues, Output{arguments.loss_output.values, dtype_of<T>});
}

template <class Formula, class T, Gradients kGradients>
void run_typed(const PointwiseArguments& arguments, const Execution& execution) {
  if (kWide<T> > 1 && all_packed<T>(arguments)) {
    run_width<Formula, T, kGradients, kWide<T>>(arguments, execution);
  } else {
    run_width<Formula, T, kGradients, 1>(arguments, execution);
  }
}

template <class Formula, class T>
void run_gradients(const PointwiseArguments& arguments, const Execution& execution) {
  // (Of a policy's log-probabilities alone there is a gradient: for a second one GRPO would spill.)
  if constexpr (!is_of_policy<Formula>) {
    if (arguments.target_gradient)
      return run_typed<Formula, T, Gradients::kInputAndTarget>(arguments, execution);
  }
  if (arguments.input_gradient) {
    run_typed<Formula, T, Gradients::kInput>(arguments, execution);
  } else {
    run_typed<Formula, T, Gradients::kNone>(arguments, execution);
  }
}

template <class Formula>
struct Kernel {
  static void run(const PointwiseArguments& arguments, const Execution& execution) {
    if (arguments.is_double) {
      run_gradients<Formula, double>(arguments, execution);
    } else {
      run_gradients<Formula, float>(arguments, execution);
    }
  }
};

}  // namespace

void pointwise(const PointwiseArguments& arguments, const Execution& execution) {
  using Function = void (*)(const PointwiseArguments&, const Execution&);
  PointwiseLosses::Table<Function, Kernel>::kRun[arguments.loss](arguments, execution);
}

}  // namespace fastloss::FASTLOSS_TARGET
