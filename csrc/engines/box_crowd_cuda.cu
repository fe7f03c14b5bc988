// SPDX-License-Identifier: MIT
#include "engines/access_cuda.h"
#include "engines/kernels.h"
#include "losses/box_crowd.h"

namespace fastloss::FASTLOSS_TARGET {
namespace {

constexpr int kThreads = 128;
// Behind the partial sums, where the last block of the first launch leaves a number for the second.
constexpr int64_t kCrowdFactor = kWorkspace - 1;
static_assert(kMaxTotals > 3, "three totals leave the end of the workspace free");

// The scratch of the engine: what each box contributes, before the divisors are known.
template <class T>
struct Scratch {
  T* near;            // [P] attraction + repulsion from the target
  T* crowd;           // [P] Σ over the other boxes
  T* near_gradient;   // [P, 4]
  T* crowd_gradient;  // [P, 4]
  Scratch(void* memory, int64_t boxes)
      : near(static_cast<T*>(memory)),
        crowd(near + boxes),
        near_gradient(crowd + boxes),
        crowd_gradient(near_gradient + 4 * boxes) {}
};

template <class T>
struct Crowd {
  const T* boxes;
  const T* targets;
  const int64_t* target_index;
  const int64_t* batch_index;
  const int64_t* target_batch_index;

  explicit Crowd(const BoxCrowdArguments& arguments)
      : boxes(static_cast<const T*>(arguments.boxes)),
        targets(static_cast<const T*>(arguments.targets)),
        target_index(arguments.target_index),
        batch_index(arguments.batch_index),
        target_batch_index(arguments.target_batch_index) {}

  FASTLOSS_DEVICE_INLINE int64_t image_of_box(int64_t i) const {
    return batch_index ? batch_index[i] : 0;
  }
  FASTLOSS_DEVICE_INLINE int64_t image_of_target(int64_t i) const {
    return target_batch_index ? target_batch_index[i] : 0;
  }
};

template <bool kWanted, class T>
FASTLOSS_DEVICE_INLINE auto box_at(const T* boxes, int64_t index) {
  const T* c = boxes + 4 * index;
  return Box{variable<1, kWanted>(c[0]), variable<2, kWanted>(c[1]), variable<4, kWanted>(c[2]),
             variable<8, kWanted>(c[3])};
}

// The foreign target of the same image that the box overlaps most, the first of equals; -1 where it
// overlaps none. All lanes of the warp search and all get the answer.
template <class Formula, class T, class B>
FASTLOSS_DEVICE_INLINE int find_rival(const Crowd<T>& crowd, int targets_count, const B& box,
                                      int64_t own, int64_t image) {
  T strongest(0);
  int rival = INT32_MAX;
  for (int j = static_cast<int>(threadIdx.x) % kWarpSize; j < targets_count; j += kWarpSize) {
    if (j == own || crowd.image_of_target(j) != image) continue;
    const T competition = Formula::competition(box, box_at<false>(crowd.targets, j));
    if (competition > strongest) {
      strongest = competition;
      rival = j;
    }
  }
  for (int offset = kWarpSize / 2; offset > 0; offset /= 2) {
    const T other_strongest = __shfl_xor_sync(kAllLanes, strongest, offset);
    const int other_rival = __shfl_xor_sync(kAllLanes, rival, offset);
    if (other_strongest > strongest || (other_strongest == strongest && other_rival < rival)) {
      strongest = other_strongest;
      rival = other_rival;
    }
  }
  return rival == INT32_MAX ? -1 : rival;
}

// One warp per box. Fills the scratch and finishes the total; leaves the factor of the crowd for
// the second launch.
template <class Formula, class T, bool kGradient>
__global__ void __launch_bounds__(kThreads, kResidentBlocks)
    contribution_kernel(const __grid_constant__ BoxCrowdArguments arguments, const Crowd<T> crowd,
                        const Scratch<T> scratch, double* workspace, const Completion completion) {
  T parameter[kMaxParameters];
  for (int i = 0; i < Formula::kParameters; ++i) parameter[i] = T(arguments.parameters[i]);
  const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
  const int64_t warp = (int64_t{blockIdx.x} * kThreads + threadIdx.x) / kWarpSize;
  const int64_t warps = int64_t{gridDim.x} * (kThreads / kWarpSize);
  const auto* upstream = static_cast<const T*>(arguments.upstream);

  double totals[3] = {
      0.0, 0.0, 0.0};  // near, crowd, overlapping pairs; in double, which counts pairs exactly
  for (int64_t i = warp; i < arguments.boxes_count; i += warps) {
    const auto box = box_at<kGradient>(crowd.boxes, i);
    const auto plain_box = box_at<false>(crowd.boxes, i);
    const int64_t own = crowd.target_index[i], image = crowd.image_of_box(i);
    FASTLOSS_DEVICE_ASSERT(own >= 0 && own < arguments.targets_count,
                           "fastloss: a target_index is out of range");

    const int rival = find_rival<Formula>(crowd, static_cast<int>(arguments.targets_count),
                                          plain_box, own, image);
    // Without a rival the point at the origin stands in, which nothing overlaps.
    const Box<T, T, T, T> nobody{T(0), T(0), T(0), T(0)};
    const auto near =
        Formula::attraction(box, box_at<false>(crowd.targets, own)) +
        Formula::target_factor(parameter) *
            Formula::target_repulsion(box, rival < 0 ? nobody : box_at<false>(crowd.targets, rival),
                                      parameter);

    T sums[6] = {T(0), T(0), T(0),
                 T(0), T(0), T(0)};  // the crowd's repulsion, overlapping boxes, the gradient
    const T own_upstream = upstream ? upstream[i] : T(1);
    for (int64_t j = lane; j < arguments.boxes_count; j += kWarpSize) {
      if (crowd.target_index[j] == own || crowd.image_of_box(j) != image) continue;
      const auto other = box_at<false>(crowd.boxes, j);
      if (!(overlap(plain_box, other).intersection > T(0))) continue;  // most boxes are far apart
      const auto repulsion = Formula::box_repulsion(box, other, parameter);
      sums[0] += detach(repulsion);
      sums[1] += T(1);
      // A pair counts half in the loss of each of its two boxes.
      const T factor = upstream ? T(0.5) * (own_upstream + upstream[j]) : T(1);
      sums[2] += factor * derivative<1>(repulsion);
      sums[3] += factor * derivative<2>(repulsion);
      sums[4] += factor * derivative<4>(repulsion);
      sums[5] += factor * derivative<8>(repulsion);
    }
    for (int k = 0; k < (kGradient ? 6 : 2); ++k) sums[k] = warp_sum(sums[k]);

    if (lane != 0) continue;
    totals[0] += detach(near);
    totals[1] += 0.5 * double(sums[0]);
    totals[2] += 0.5 * double(sums[1]);
    scratch.near[i] = detach(near);
    scratch.crowd[i] = sums[0];
    if constexpr (kGradient) {
      scratch.near_gradient[4 * i] = own_upstream * derivative<1>(near);
      scratch.near_gradient[4 * i + 1] = own_upstream * derivative<2>(near);
      scratch.near_gradient[4 * i + 2] = own_upstream * derivative<4>(near);
      scratch.near_gradient[4 * i + 3] = own_upstream * derivative<8>(near);
      for (int c = 0; c < 4; ++c) scratch.crowd_gradient[4 * i + c] = sums[2 + c];
    }
  }

  grid_sum<kThreads>(totals, completion, [&](const double (&total)[3]) {
    const bool mean = arguments.reduction == CrowdReduction::kMean;
    const double near_factor =
        mean && arguments.boxes_count > 0 ? 1.0 / double(arguments.boxes_count) : 1.0;
    const double crowd_factor = double(Formula::box_factor(parameter)) *
                                (mean ? 1.0 / (total[2] > 1.0 ? total[2] : 1.0) : 1.0);
    if (arguments.loss_output.total) {
      *static_cast<T*>(arguments.loss_output.total) =
          T(total[0] * near_factor + total[1] * crowd_factor);
    }
    workspace[kCrowdFactor] = crowd_factor;
  });
}

// Joins both halves now that their divisors are known. One thread per coordinate.
template <class T>
__global__ void __launch_bounds__(kThreads)
    joining_kernel(const __grid_constant__ BoxCrowdArguments arguments, const Scratch<T> scratch,
                   const double* workspace) {
  const bool mean = arguments.reduction == CrowdReduction::kMean;
  const T near_factor = mean ? T(1.0 / double(arguments.boxes_count)) : T(1);
  const double crowd_factor = workspace[kCrowdFactor];
  const int64_t step = int64_t{gridDim.x} * kThreads;
  for (int64_t k = int64_t{blockIdx.x} * kThreads + threadIdx.x; k < 4 * arguments.boxes_count;
       k += step) {
    if (arguments.gradient) {
      static_cast<T*>(arguments.gradient)[k] =
          near_factor * scratch.near_gradient[k] + T(crowd_factor) * scratch.crowd_gradient[k];
    }
    if (arguments.loss_output.values && k < arguments.boxes_count) {
      static_cast<T*>(arguments.loss_output.values)[k] =
          scratch.near[k] + T(0.5 * crowd_factor) * scratch.crowd[k];
    }
  }
}

template <class Formula, class T>
void run_typed(const BoxCrowdArguments& arguments, const Execution& execution) {
  const Crowd<T> crowd(arguments);
  const Scratch<T> scratch(arguments.scratch, arguments.boxes_count);
  const unsigned grid = grid_for(arguments.boxes_count, kThreads / kWarpSize);
  const Completion completion = completion_for(execution, grid);
  if (arguments.gradient) {
    launch(contribution_kernel<Formula, T, true>, grid, kThreads, 0, execution.stream, arguments,
           crowd, scratch, execution.workspace, completion);
  } else {
    launch(contribution_kernel<Formula, T, false>, grid, kThreads, 0, execution.stream, arguments,
           crowd, scratch, execution.workspace, completion);
  }
  if (arguments.gradient || arguments.loss_output.values) {
    launch(joining_kernel<T>, grid_for(4 * arguments.boxes_count, kThreads), kThreads, 0,
           execution.stream, arguments, scratch, execution.workspace);
  }
}

template <class Formula>
struct Kernel {
  static void run(const BoxCrowdArguments& arguments, const Execution& execution) {
    if (arguments.is_double) {
      run_typed<Formula, double>(arguments, execution);
    } else {
      run_typed<Formula, float>(arguments, execution);
    }
  }
};

}  // namespace

void box_crowd(const BoxCrowdArguments& arguments, const Execution& execution) {
  using Function = void (*)(const BoxCrowdArguments&, const Execution&);
  BoxCrowdLosses::Table<Function, Kernel>::kRun[arguments.loss](arguments, execution);
}

}  // namespace fastloss::FASTLOSS_TARGET
