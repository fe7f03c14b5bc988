// SPDX-License-Identifier: MIT
#include "engines/access_cuda.h"
#include "engines/kernels.h"

namespace fastloss::FASTLOSS_TARGET {
namespace {

constexpr int kThreads = 256;

template <class T>
__global__ void __launch_bounds__(kThreads)
    label_total_kernel(const __grid_constant__ LabelTotalArguments arguments,
                       const Completion completion) {
  const auto* weights = static_cast<const T*>(arguments.class_weight.data);
  double sum = 0.0;
  const int64_t step = int64_t{gridDim.x} * kThreads;
  for (int64_t position = int64_t{blockIdx.x} * kThreads + threadIdx.x;
       position < arguments.layout.numel; position += step) {
    int64_t offsets[1];
    locate(arguments.layout, position, offsets);
    const int64_t label = load_integer(arguments.labels, offsets[0]);
    if (is_ignored(arguments.ignored, label)) continue;
    FASTLOSS_DEVICE_ASSERT(label >= 0 && label <= arguments.largest,
                           "fastloss: a label is out of range");
    sum += weights == nullptr ? 1.0 : double(weights[label]);
  }
  grid_sum<kThreads>(sum, completion,
                     [&](double total) { *static_cast<T*>(arguments.total) = T(total); });
}

template <class T>
void run_typed(const LabelTotalArguments& arguments, const Execution& execution) {
  const unsigned grid = grid_for(arguments.layout.numel, kThreads);
  launch(label_total_kernel<T>, grid, kThreads, 0, execution.stream, arguments,
         completion_for(execution, grid));
}

}  // namespace

void label_total(const LabelTotalArguments& arguments, const Execution& execution) {
  if (arguments.is_double) {
    run_typed<double>(arguments, execution);
  } else {
    run_typed<float>(arguments, execution);
  }
}

}  // namespace fastloss::FASTLOSS_TARGET
