// SPDX-License-Identifier: MIT
#include "core/access.h"
#include "core/cuda.h"
#include "engines/kernels.h"
#include "losses/region.h"

namespace fastloss::FASTLOSS_TARGET {
namespace {

constexpr int kThreads = 512;
constexpr int kWarps = kThreads / kWarpSize;
// Voxels of a thread at a time: a warp's are kItems rows of consecutive ones.
constexpr int kItems = 4;

// What the losses of the classes are multiplied with, by the threads of one block. `ranked` holds a
// loss and a number of voxels for each, written by other blocks.
template <class T>
FASTLOSS_DEVICE_INLINE void finish(const RankedRegionArguments& arguments, const double* ranked) {
  const int64_t classes = arguments.classes;
  auto* slopes = static_cast<T*>(arguments.slopes);
  auto* values = static_cast<T*>(arguments.loss_output.values);
  double total = 0.0;
  for (int64_t r = threadIdx.x; r < arguments.regions; r += kThreads) {
    const auto counts = [&](int64_t c) {
      return !arguments.present || __ldcg(ranked + 2 * (r * classes + c) + 1) > 0.0;
    };
    double counted = 0.0;
    for (int64_t c = 0; c < classes; ++c) counted += counts(c) ? 1.0 : 0.0;
    const double scale = !arguments.mean  ? 1.0
                         : counted == 0.0 ? 0.0
                                          : 1.0 / (counted * double(arguments.regions));
    for (int64_t c = 0; c < classes; ++c) {
      const int64_t segment = r * classes + c;
      const double factor = counts(c) ? scale : 0.0, loss = factor * __ldcg(ranked + 2 * segment);
      total += loss;
      slopes[2 * segment] = T(factor);
      slopes[2 * segment + 1] = T(0);
      if (values) values[segment] = T(loss);
    }
  }
  total = block_sum<kThreads>(total);
  if (threadIdx.x == 0 && arguments.loss_output.total)
    *static_cast<T*>(arguments.loss_output.total) = T(total);
}

// A block per class of a region. It walks along the ranking and counts how many voxels of the class
// it has met.
template <class Formula, class T>
__global__ void __launch_bounds__(kThreads, 1)
    rank_kernel(const __grid_constant__ RankedRegionArguments arguments,
                const Completion completion) {
  const int thread = static_cast<int>(threadIdx.x), lane = thread % kWarpSize,
            warp = thread / kWarpSize;
  const int64_t voxels = arguments.voxels, segment = blockIdx.x, c = segment % arguments.classes,
                labels = segment / arguments.classes * voxels;
  const T* errors = static_cast<const T*>(arguments.errors) + segment * voxels;
  const int64_t* order = arguments.order + segment * voxels;
  T* steps = arguments.steps ? static_cast<T*>(arguments.steps) + segment * voxels : nullptr;

  __shared__ double target_of_block;
  double count = 0.0;
  if (c != arguments.ignored_class) {
    for (int64_t i = thread; i < voxels; i += kThreads)
      count += load_integer(arguments.labels, labels + i) == c ? 1.0 : 0.0;
  }
  count = block_sum<kThreads>(count);
  if (thread == 0) target_of_block = count;
  __syncthreads();
  const double target = target_of_block;

  double loss = 0.0;
  int64_t met = 0;  // voxels of the class in the rounds before
  __shared__ int met_by_warp[kWarps];
  for (int64_t at = 0; at < voxels; at += kThreads * kItems) {
    const int64_t first = at + warp * kWarpSize * kItems + lane;
    T error[kItems];
    int64_t voxel[kItems];
    unsigned hits[kItems];
    int met_here = 0;
    for (int k = 0; k < kItems; ++k) {
      const int64_t i = first + k * kWarpSize;
      const bool exists = i < voxels;
      error[k] = exists ? errors[i] : T(-1);
      voxel[k] = exists ? order[i] : 0;
      const bool hit = !(error[k] < T(0)) && load_integer(arguments.labels, labels + voxel[k]) == c;
      hits[k] = __ballot_sync(kAllLanes, hit);
      met_here += __popc(hits[k]);
    }
    if (lane == 0) met_by_warp[warp] = met_here;
    __syncthreads();
    int64_t before = met;
    for (int other = 0; other < kWarps; ++other) {
      before += other < warp ? met_by_warp[other] : 0;
      met += met_by_warp[other];
    }
    __syncthreads();  // before the next round's counts take the place
    for (int k = 0; k < kItems; ++k) {
      const int64_t i = first + k * kWarpSize;
      const int64_t missed = before + __popc(hits[k] & ((1u << lane) - 1u));
      before += __popc(hits[k]);
      if (i >= voxels) continue;
      T step = T(kNoStep);
      // What does not count comes last, so that all voxels before this one do.
      if (!(error[k] < T(0))) {
        const bool hit = (hits[k] >> lane & 1u) != 0;
        const double wrong = double(i - missed);
        const double growth = hit ? Formula::growth_if_missed(target, wrong)
                                  : Formula::growth_if_wrong(target, double(missed), wrong);
        loss += growth * double(error[k]);
        step = T(hit ? -growth : growth);
      }
      if (steps) steps[voxel[k]] = step;
    }
  }
  loss = block_sum<kThreads>(loss);
  if (thread == 0) {
    arguments.scratch[2 * segment] = loss;
    arguments.scratch[2 * segment + 1] = target;
  }
  if (!is_last_block(completion)) return;
  finish<T>(arguments, arguments.scratch);
  if (thread == 0) reset_counter(completion);
}

template <class Formula>
struct Kernel {
  static void run(const RankedRegionArguments& arguments, const Execution& execution) {
    const auto grid = static_cast<unsigned>(arguments.regions * arguments.classes);
    const Completion completion = completion_for(execution, grid);
    if (arguments.is_double) {
      launch(rank_kernel<Formula, double>, grid, kThreads, 0, execution.stream, arguments,
             completion);
    } else {
      launch(rank_kernel<Formula, float>, grid, kThreads, 0, execution.stream, arguments,
             completion);
    }
  }
};

}  // namespace

void ranked_region(const RankedRegionArguments& arguments, const Execution& execution) {
  using Function = void (*)(const RankedRegionArguments&, const Execution&);
  RankedRegionLosses::Table<Function, Kernel>::kRun[arguments.loss](arguments, execution);
}

}  // namespace fastloss::FASTLOSS_TARGET
