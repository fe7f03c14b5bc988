// SPDX-License-Identifier: MIT
#include "engines/access_cuda.h"
#include "engines/kernels.h"

namespace fastloss::FASTLOSS_TARGET {
namespace {

constexpr int kThreads = 256;

template <class T, int kWidth>
__global__ void __launch_bounds__(kThreads)
    scale_kernel(const __grid_constant__ ScaleArguments arguments, const bool one_number) {
  // Asked on the device, so that nobody has to wait for the answer.
  if (one_number && load_number(arguments.upstream) == 1.0) return;
  const Layout& layout = arguments.layout;
  const Input source{arguments.gradient.data, arguments.gradient.dtype};
  const int64_t step = int64_t{gridDim.x} * kThreads * kWidth;
  for (int64_t position = (int64_t{blockIdx.x} * kThreads + threadIdx.x) * kWidth;
       position < layout.numel; position += step) {
    int64_t offsets[kScaleOperands];
    locate(layout, position, offsets);
    const auto span_of = [&](int operand) {
      const int64_t stride = layout.stride[operand][0];
      return Span{offsets[operand], stride, stride == 1};
    };
    T gradient[kWidth], upstream[kWidth];
    load(gradient, source, span_of(kScaleGradient));
    load(upstream, arguments.upstream, span_of(kScaleUpstream));
    for (int i = 0; i < kWidth; ++i) gradient[i] *= upstream[i];
    store(arguments.gradient, gradient, span_of(kScaleGradient));
  }
}

template <class T, int kWidth>
void run_width(const ScaleArguments& arguments, const Execution& execution) {
  bool one_number = true;
  for (int d = 0; d < arguments.layout.dims; ++d) {
    one_number = one_number && arguments.layout.stride[kScaleUpstream][d] == 0;
  }
  const unsigned grid = grid_for(arguments.layout.numel / kWidth, kThreads);
  launch(scale_kernel<T, kWidth>, grid, kThreads, 0, execution.stream, arguments, one_number);
}

template <class T>
void run_typed(const ScaleArguments& arguments, const Execution& execution) {
  const Layout& layout = arguments.layout;
  const bool packed = is_packed(layout, kScaleGradient, arguments.gradient.data,
                                arguments.gradient.dtype, kWide<T>) &&
                      is_packed(layout, kScaleUpstream, arguments.upstream.data,
                                arguments.upstream.dtype, kWide<T>);
  if (kWide<T> > 1 && packed) {
    run_width<T, kWide<T>>(arguments, execution);
  } else {
    run_width<T, 1>(arguments, execution);
  }
}

}  // namespace

void scale(const ScaleArguments& arguments, const Execution& execution) {
  if (arguments.gradient.dtype == DType::kFloat64) {
    run_typed<double>(arguments, execution);
  } else {
    run_typed<float>(arguments, execution);
  }
}

}  // namespace fastloss::FASTLOSS_TARGET
