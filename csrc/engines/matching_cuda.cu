// SPDX-License-Identifier: MIT
// A block takes a few rows: its warps sum up the rows' softmaxes, then its threads take a column
// each and go down the rows, the target's box in registers.
#include "engines/access_cuda.h"
#include "engines/kernels.h"
#include "losses/matching.h"

namespace fastloss::FASTLOSS_TARGET {
namespace {

constexpr int kThreads = 128;
constexpr int kWarps = kThreads / kWarpSize;
constexpr int kRows = 8;

template <class T>
FASTLOSS_DEVICE_INLINE CenteredBox<T> box_at(const void* boxes, int64_t index) {
  const T* box = static_cast<const T*>(boxes) + 4 * index;
  return {box[0], box[1], box[2], box[3]};
}

template <bool kFocal, class T>
__global__ void __launch_bounds__(kThreads, kResidentBlocks)
    matching_kernel(const __grid_constant__ MatchingArguments arguments, const int64_t groups) {
  __shared__ T largest[kRows], inverse_sum[kRows];
  const int64_t rows = arguments.rows, columns = arguments.columns, classes = arguments.classes;
  const auto* logits = static_cast<const T*>(arguments.logits);
  const int lane = static_cast<int>(threadIdx.x) % kWarpSize,
            warp = static_cast<int>(threadIdx.x) / kWarpSize;
  for (int64_t item = blockIdx.x; item < arguments.batch * groups; item += gridDim.x) {
    const int64_t batch = item / groups, begin = (item - batch * groups) * kRows;
    const int count = static_cast<int>(begin + kRows < rows ? kRows : rows - begin);
    const int64_t first = batch * rows + begin;
    if constexpr (!kFocal) {
      for (int r = warp; r < count; r += kWarps) {
        const T* row = logits + (first + r) * classes;
        T highest = T(-INFINITY), sum = T(0);
        for (int64_t c = lane; c < classes; c += kWarpSize) highest = max(highest, row[c]);
        highest = largest_of_lanes(highest);
        for (int64_t c = lane; c < classes; c += kWarpSize) sum += exp(row[c] - highest);
        sum = sum_of_lanes(sum);
        if (lane == 0) {
          largest[r] = highest;
          inverse_sum[r] = T(1) / sum;
        }
      }
      __syncthreads();
    }
    for (int64_t column = threadIdx.x; column < columns; column += kThreads) {
      const int64_t label = arguments.labels[batch * columns + column];
      FASTLOSS_DEVICE_ASSERT(label >= 0 && label < classes, "fastloss: a label is no class");
      const CenteredBox<T> target = box_at<T>(arguments.targets, batch * columns + column);
      for (int r = 0; r < count; ++r) {
        const T logit = logits[(first + r) * classes + label];
        T cost;
        if constexpr (kFocal) {
          cost = focal_cost(logit, T(arguments.alpha), T(arguments.gamma));
        } else {
          cost = softmax_cost(logit, largest[r], inverse_sum[r]);
        }
        static_cast<T*>(arguments.values)[(first + r) * columns + column] =
            T(arguments.class_cost) * cost + box_cost(box_at<T>(arguments.boxes, first + r), target,
                                                      T(arguments.bbox_cost),
                                                      T(arguments.giou_cost));
      }
    }
    __syncthreads();  // the next rows overwrite the softmaxes
  }
}

}  // namespace

void matching(const MatchingArguments& arguments, const Execution& execution) {
  const auto kernel =
      arguments.is_double
          ? (arguments.is_focal ? matching_kernel<true, double> : matching_kernel<false, double>)
          : (arguments.is_focal ? matching_kernel<true, float> : matching_kernel<false, float>);
  const int64_t groups = (arguments.rows + kRows - 1) / kRows;
  launch(kernel, grid_for(arguments.batch * groups, 1), kThreads, 0, execution.stream, arguments,
         groups);
}

}  // namespace fastloss::FASTLOSS_TARGET
