// SPDX-License-Identifier: MIT
#include "engines/batch_hard.h"

#include "engines/access_cuda.h"
#include "engines/kernels.h"
#include "losses/triplet.h"

namespace fastloss::FASTLOSS_TARGET {
namespace {

// A block chooses for a tile of anchors and looks at as many other rows at a time, of which every
// thread takes a few of both; some features at a time lie in the block's memory.
constexpr int kSide = 16;
constexpr int kChoosingThreads = kSide * kSide;
constexpr int kEach = 4;
constexpr int kTile = kSide * kEach;
constexpr int kFeatures = 16;
constexpr int kChoosingBlocks = 2;  // a multiprocessor: with more the kernel would spill

constexpr int kThreads = 128;
constexpr int kFeaturesOfLane = 4;

// What a thread has found for an anchor: of equal distances the first row's.
template <class T>
struct Found {
  T distance = T(0);
  int row = -1;

  FASTLOSS_DEVICE_INLINE void update(T other, int other_row, T sign) {
    const bool farther = sign * other > sign * distance;
    if (row < 0 || farther || (other == distance && other_row < row)) {
      distance = other;
      row = other_row;
    }
  }
  // Over the threads that share an anchor: neighbours in a warp.
  FASTLOSS_DEVICE_INLINE void join(T sign) {
    for (int offset = kSide / 2; offset > 0; offset /= 2) {
      const T other = __shfl_xor_sync(kAllLanes, distance, offset);
      const int other_row = __shfl_xor_sync(kAllLanes, row, offset);
      if (other_row >= 0) update(other, other_row, sign);
    }
  }
};

// The rows of a tile, some features of them: [feature, row]. Zero beyond the last row and feature.
template <class T>
FASTLOSS_DEVICE_INLINE void load_tile(T (&tile)[kFeatures][kTile], const T* embeddings,
                                      int64_t first_row, int64_t first_feature, int64_t rows,
                                      int64_t features) {
  for (int i = static_cast<int>(threadIdx.x); i < kFeatures * kTile; i += kChoosingThreads) {
    const int feature = i % kFeatures, row = i / kFeatures;
    const bool inside = first_row + row < rows && first_feature + feature < features;
    tile[feature][row] =
        inside ? embeddings[(first_row + row) * features + first_feature + feature] : T(0);
  }
}

template <class T>
__global__ void __launch_bounds__(kChoosingThreads, kChoosingBlocks)
    choosing_kernel(const T* embeddings, const int64_t* labels, const int64_t rows,
                    const int64_t features, int32_t* chosen) {
  __shared__ T anchors[kFeatures][kTile], others[kFeatures][kTile];
  const int column = static_cast<int>(threadIdx.x) % kSide;
  const int line = static_cast<int>(threadIdx.x) / kSide;
  for (int64_t first = int64_t{blockIdx.x} * kTile; first < rows;
       first += int64_t{gridDim.x} * kTile) {
    Found<T> farthest[kEach], nearest[kEach];
    unsigned broken = 0;
    int64_t label[kEach];
    FASTLOSS_UNROLL
    for (int a = 0; a < kEach; ++a) {
      const int64_t anchor = first + line * kEach + a;
      label[a] = anchor < rows ? labels[anchor] : 0;
    }
    for (int64_t other = 0; other < rows; other += kTile) {
      T sum[kEach][kEach] = {};
      for (int64_t feature = 0; feature < features; feature += kFeatures) {
        load_tile(anchors, embeddings, first, feature, rows, features);
        load_tile(others, embeddings, other, feature, rows, features);
        __syncthreads();
        FASTLOSS_UNROLL
        for (int k = 0; k < kFeatures; ++k) {
          FASTLOSS_UNROLL
          for (int a = 0; a < kEach; ++a) {
            FASTLOSS_UNROLL
            for (int b = 0; b < kEach; ++b) {
              const T difference = anchors[k][line * kEach + a] - others[k][column + b * kSide];
              sum[a][b] += difference * difference;
            }
          }
        }
        __syncthreads();
      }
      FASTLOSS_UNROLL
      for (int b = 0; b < kEach; ++b) {
        const int64_t row = other + column + b * kSide;
        if (row >= rows) continue;
        const int64_t other_label = labels[row];
        FASTLOSS_UNROLL
        for (int a = 0; a < kEach; ++a) {
          if (sum[a][b] != sum[a][b]) broken |= 1u << a;
          if (other_label != label[a]) {
            nearest[a].update(sum[a][b], static_cast<int>(row), T(-1));
          } else if (row != first + line * kEach + a) {
            farthest[a].update(sum[a][b], static_cast<int>(row), T(1));
          }
        }
      }
    }
    for (int offset = kSide / 2; offset > 0; offset /= 2)
      broken |= __shfl_xor_sync(kAllLanes, broken, offset);
    FASTLOSS_UNROLL
    for (int a = 0; a < kEach; ++a) {
      farthest[a].join(T(1));
      nearest[a].join(T(-1));
      const int64_t anchor = first + line * kEach + a;
      if (column != 0 || anchor >= rows) continue;
      const bool counts = farthest[a].row >= 0 && nearest[a].row >= 0;
      const bool is_broken = (broken >> a & 1u) != 0;
      int32_t* const own = chosen + anchor * kBatchHardRoles;
      own[kFarthest] = !counts ? -1 : is_broken ? static_cast<int>(anchor) : farthest[a].row;
      own[kNearest] = !counts ? -1 : is_broken ? static_cast<int>(anchor) : nearest[a].row;
    }
  }
}

// The losses of the anchors with what was chosen for them; one warp per anchor.
template <class Formula, class T>
__global__ void __launch_bounds__(kThreads, kResidentBlocks)
    loss_kernel(const __grid_constant__ BatchHardArguments arguments, const Completion completion) {
  T parameter[kMaxParameters];
  for (int i = 0; i < Formula::kParameters; ++i) parameter[i] = T(arguments.parameters[i]);
  const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
  const int64_t warp = (int64_t{blockIdx.x} * kThreads + threadIdx.x) / kWarpSize;
  const int64_t warps = int64_t{gridDim.x} * (kThreads / kWarpSize);
  const auto* embeddings = static_cast<const T*>(arguments.embeddings);
  double totals[2] = {0.0, 0.0};  // the loss, the anchors that count
  for (int64_t i = warp; i < arguments.rows; i += warps) {
    const int32_t* const chosen = arguments.chosen + i * kBatchHardRoles;
    T sums[kBatchHardRoles] = {T(0), T(0)};
    const bool counts = chosen[kFarthest] >= 0, is_broken = chosen[kFarthest] == i;
    for (int64_t k = lane; counts && k < arguments.features; k += kWarpSize) {
      const T own = embeddings[i * arguments.features + k];
      for (int role = 0; role < kBatchHardRoles; ++role) {
        const T difference = own - embeddings[chosen[role] * arguments.features + k];
        sums[role] += difference * difference;
      }
    }
    for (int role = 0; role < kBatchHardRoles; ++role) sums[role] = warp_sum(sums[role]);
    if (lane != 0) continue;
    const T none(1);
    const auto loss =
        Formula::loss(EuclideanNorm::finish(seed<1>(sums[kFarthest]), none, none),
                      EuclideanNorm::finish(seed<2>(sums[kNearest]), none, none), parameter);
    const T broken = is_broken ? T(NAN) : T(0);
    const T value = counts ? detach(loss) + broken : T(0);
    T* const slopes = static_cast<T*>(arguments.slopes) + i * kBatchHardRoles;
    slopes[kFarthest] = counts ? T(2) * derivative<1>(loss) + broken : T(0);
    slopes[kNearest] = counts ? T(2) * derivative<2>(loss) + broken : T(0);
    totals[0] += double(value);
    totals[1] += counts ? 1.0 : 0.0;
    if (arguments.loss_output.values) static_cast<T*>(arguments.loss_output.values)[i] = value;
  }
  if (!arguments.loss_output.total) return;
  grid_sum<kThreads>(totals, completion, [&](const double (&total)[2]) {
    double factor = 1.0;
    if (arguments.mean) factor = total[1] > 0.0 ? 1.0 / total[1] : 0.0;
    *static_cast<T*>(arguments.loss_output.total) = T(total[0] * factor);
  });
}

template <class Formula, class T>
void run_typed(const BatchHardArguments& arguments, const Execution& execution) {
  launch(choosing_kernel<T>, grid_for(arguments.rows, kTile), kChoosingThreads, 0, execution.stream,
         static_cast<const T*>(arguments.embeddings), arguments.labels, arguments.rows,
         arguments.features, arguments.chosen);
  const unsigned grid = grid_for(arguments.rows, kThreads / kWarpSize);
  const Completion completion =
      arguments.loss_output.total ? completion_for(execution, grid) : Completion{};
  launch(loss_kernel<Formula, T>, grid, kThreads, 0, execution.stream, arguments, completion);
}

template <class Formula>
struct Kernel {
  static void run(const BatchHardArguments& arguments, const Execution& execution) {
    if (arguments.is_double) {
      run_typed<Formula, double>(arguments, execution);
    } else {
      run_typed<Formula, float>(arguments, execution);
    }
  }
};

// One warp per row. It looks through what all anchors chose for those that chose its row, in their
// order, so that the sum is the same every time.
template <class T>
__global__ void __launch_bounds__(kThreads, kResidentBlocks)
    gradient_kernel(const __grid_constant__ BatchHardArguments arguments) {
  const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
  const int64_t warp = (int64_t{blockIdx.x} * kThreads + threadIdx.x) / kWarpSize;
  const int64_t warps = int64_t{gridDim.x} * (kThreads / kWarpSize);
  const int64_t features = arguments.features, choices = arguments.rows * kBatchHardRoles;
  const auto* embeddings = static_cast<const T*>(arguments.embeddings);
  const auto* slopes = static_cast<const T*>(arguments.slopes);
  const auto* upstream = static_cast<const T*>(arguments.upstream);
  for (int64_t row = warp; row < arguments.rows; row += warps) {
    for (int64_t begin = 0; begin < features; begin += kWarpSize * kFeaturesOfLane) {
      T own[kFeaturesOfLane], gradient[kFeaturesOfLane];
      const auto number_of = [&](int64_t of_row, int k) {
        const int64_t feature = begin + k * kWarpSize + lane;
        return feature < features ? embeddings[of_row * features + feature] : T(0);
      };
      FASTLOSS_UNROLL
      for (int k = 0; k < kFeaturesOfLane; ++k) {
        own[k] = number_of(row, k);
        gradient[k] = T(0);
      }
      const auto add = [&](int64_t choice, int64_t other) {
        const T slope =
            slopes[choice] * upstream[arguments.upstream_of_rows ? choice / kBatchHardRoles : 0];
        if (slope == T(0)) return;  // also where a difference is infinite
        FASTLOSS_UNROLL
        for (int k = 0; k < kFeaturesOfLane; ++k)
          gradient[k] += slope * (own[k] - number_of(other, k));
      };
      for (int role = 0; role < kBatchHardRoles; ++role) {
        const int64_t choice = row * kBatchHardRoles + role;
        if (arguments.chosen[choice] >= 0) add(choice, arguments.chosen[choice]);
      }
      int64_t counted = 0;  // twice per anchor
      for (int64_t first = 0; first < choices; first += kWarpSize) {
        const int64_t choice = first + lane;
        const int32_t chosen = choice < choices ? arguments.chosen[choice] : -1;
        counted += __popc(__ballot_sync(kAllLanes, chosen >= 0));
        for (unsigned hits = __ballot_sync(kAllLanes, chosen == row); hits != 0; hits &= hits - 1) {
          const int64_t hit = first + __ffs(static_cast<int>(hits)) - 1;
          add(hit, hit / kBatchHardRoles);
        }
      }
      const T factor =
          arguments.mean && counted > 0 ? T(double(kBatchHardRoles) / double(counted)) : T(1);
      FASTLOSS_UNROLL
      for (int k = 0; k < kFeaturesOfLane; ++k) {
        const int64_t feature = begin + k * kWarpSize + lane;
        if (feature < features)
          static_cast<T*>(arguments.gradient)[row * features + feature] = factor * gradient[k];
      }
    }
  }
}

template <class T>
void run_gradient(const BatchHardArguments& arguments, const Execution& execution) {
  launch(gradient_kernel<T>, grid_for(arguments.rows, kThreads / kWarpSize), kThreads, 0,
         execution.stream, arguments);
}

}  // namespace

void batch_hard(const BatchHardArguments& arguments, const Execution& execution) {
  using Function = void (*)(const BatchHardArguments&, const Execution&);
  BatchHardLosses::Table<Function, Kernel>::kRun[arguments.loss](arguments, execution);
}

void batch_hard_gradient(const BatchHardArguments& arguments, const Execution& execution) {
  if (arguments.is_double) {
    run_gradient<double>(arguments, execution);
  } else {
    run_gradient<float>(arguments, execution);
  }
}

}  // namespace fastloss::FASTLOSS_TARGET
