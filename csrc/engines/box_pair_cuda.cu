// SPDX-License-Identifier: MIT
#include "engines/access_cuda.h"
#include "engines/kernels.h"
#include "losses/box_pair.h"

namespace fastloss::FASTLOSS_TARGET {
namespace {

constexpr int kThreads =
    128;  // a few thousand boxes are usual: small blocks spread them over more multiprocessors

enum class Gradients { kNone, kFirst, kBoth };

// Whether the coordinates of each box are one aligned pack: no five are.
struct Packed {
  bool boxes1, boxes2, gradient1, gradient2;
};

// One thread per pair.
template <class Formula, class T, Gradients kGradients>
__global__ void __launch_bounds__(kThreads, kResidentBlocks)
    box_pair_kernel(const __grid_constant__ BoxPairArguments arguments, const Packed packed,
                    const Completion completion) {
  constexpr bool kFirst = kGradients != Gradients::kNone, kSecond = kGradients == Gradients::kBoth;
  constexpr int kCoordinates = coordinates_of<Formula>;
  T parameter[kMaxParameters];
  for (int i = 0; i < Formula::kParameters; ++i) parameter[i] = T(arguments.parameters[i]);
  if constexpr (requires { Formula::kDeviceParameter; }) {
    if (arguments.device_parameter.data) {
      parameter[Formula::kDeviceParameter] = T(load_number(arguments.device_parameter));
    }
  }
  const T gradient_scale = T(resolve(arguments.gradient_scale));
  const Layout& layout = arguments.layout;

  T sum(0);
  const int64_t step = int64_t{gridDim.x} * kThreads;
  for (int64_t position = int64_t{blockIdx.x} * kThreads + threadIdx.x; position < layout.numel;
       position += step) {
    int64_t offsets[kBoxPairOperands];
    locate(layout, position, offsets);
    T a[kCoordinates], b[kCoordinates], weight[1] = {T(1)}, extra[1] = {T(1)};
    load(a, arguments.boxes1,
         {offsets[kBoxPairBoxes1], arguments.coordinate_stride[0], packed.boxes1});
    load(b, arguments.boxes2,
         {offsets[kBoxPairBoxes2], arguments.coordinate_stride[1], packed.boxes2});
    if (arguments.weight.data) load(weight, arguments.weight, {offsets[kBoxPairWeight], 0, false});
    if constexpr (requires { Formula::kPairExtra; })
      load(extra, arguments.extra, {offsets[kBoxPairExtra], 0, false});

    const auto result = loss_of_pair<Formula>(
        operand<1, kFirst>(a), operand<(1u << kCoordinates), kSecond>(b), extra[0], parameter);
    const T value = detach(result) * weight[0], scale = gradient_scale * weight[0];
    sum += value;
    if constexpr (kFirst) {
      T gradient[kCoordinates];
      gradient_of<1>(result, scale, gradient);
      store(arguments.gradient1, gradient, {offsets[kBoxPairGradient1], 1, packed.gradient1});
    }
    if constexpr (kSecond) {
      T gradient[kCoordinates];
      gradient_of<(1u << kCoordinates)>(result, scale, gradient);
      store(arguments.gradient2, gradient, {offsets[kBoxPairGradient2], 1, packed.gradient2});
    }
    if (arguments.loss_output.values)
      static_cast<T*>(arguments.loss_output.values)[position] = value;
  }

  if (arguments.loss_output.total) {
    grid_sum<kThreads>(sum, completion, [&](double total) {
      *static_cast<T*>(arguments.loss_output.total) = T(total * resolve(arguments.loss_scale));
    });
  }
}

template <int kCoordinates>
bool is_packed_box(const Layout& layout, int operand, const void* data, DType dtype,
                   int64_t coordinate_stride) {
  if constexpr (makes_packs<kCoordinates>) {
    if (coordinate_stride != 1 || !is_pack_aligned(data, dtype, kCoordinates)) return false;
    for (int d = 0; d < layout.dims; ++d) {
      if (layout.stride[operand][d] % kCoordinates != 0) return false;
    }
    return true;
  } else {
    return false;
  }
}

template <class Formula, class T, Gradients kGradients>
void run_typed(const BoxPairArguments& arguments, const Execution& execution) {
  const auto packed = [&](int operand, const auto& boxes, int64_t coordinate_stride) {
    return is_packed_box<coordinates_of<Formula>>(arguments.layout, operand, boxes.data,
                                                  boxes.dtype, coordinate_stride);
  };
  const unsigned grid = grid_for(arguments.layout.numel, kThreads);
  launch(box_pair_kernel<Formula, T, kGradients>, grid, kThreads, 0, execution.stream, arguments,
         Packed{packed(kBoxPairBoxes1, arguments.boxes1, arguments.coordinate_stride[0]),
                packed(kBoxPairBoxes2, arguments.boxes2, arguments.coordinate_stride[1]),
                packed(kBoxPairGradient1, arguments.gradient1, 1),
                packed(kBoxPairGradient2, arguments.gradient2, 1)},
         arguments.loss_output.total ? completion_for(execution, grid) : Completion{});
}

template <class Formula, class T>
void run_gradients(const BoxPairArguments& arguments, const Execution& execution) {
  if (arguments.gradient2) {
    run_typed<Formula, T, Gradients::kBoth>(arguments, execution);
  } else if (arguments.gradient1) {
    run_typed<Formula, T, Gradients::kFirst>(arguments, execution);
  } else {
    run_typed<Formula, T, Gradients::kNone>(arguments, execution);
  }
}

template <class Formula>
struct Kernel {
  static void run(const BoxPairArguments& arguments, const Execution& execution) {
    if (arguments.is_double) {
      run_gradients<Formula, double>(arguments, execution);
    } else {
      run_gradients<Formula, float>(arguments, execution);
    }
  }
};

}  // namespace

void box_pair(const BoxPairArguments& arguments, const Execution& execution) {
  using Function = void (*)(const BoxPairArguments&, const Execution&);
  BoxPairLosses::Table<Function, Kernel>::kRun[arguments.loss](arguments, execution);
}

}  // namespace fastloss::FASTLOSS_TARGET
