// SPDX-License-Identifier: MIT
#include "engines/contrastive.h"

#include "core/access.h"
#include "core/choose.h"
#include "engines/access_cuda.h"
#include "engines/kernels.h"

namespace fastloss::FASTLOSS_TARGET {
namespace {

constexpr int kThreads = 128;
constexpr int kWarps = kThreads / kWarpSize;
constexpr int kEach = 4;  // similarities a thread has in its registers

// The largest of some similarities, and the sum of e^(similarity − largest).
template <class T>
struct Found {
  T largest = T(kFarBelow);
  T sum = T(0);

  FASTLOSS_DEVICE_INLINE void merge(T other_largest, T other_sum) {
    const T both = max(largest, other_largest);
    sum = sum * exp_nonpositive(largest - both) + other_sum * exp_nonpositive(other_largest - both);
    largest = both;
  }
  FASTLOSS_DEVICE_INLINE void add(const T (&similarities)[kEach]) {
    T both = largest;
    FASTLOSS_UNROLL
    for (int k = 0; k < kEach; ++k) both = max(both, similarities[k]);
    sum *= exp_nonpositive(largest - both);
    FASTLOSS_UNROLL
    for (int k = 0; k < kEach; ++k) sum += exp_nonpositive(similarities[k] - both);
    largest = both;
  }
  // Over the lanes of a warp, in all of them.
  FASTLOSS_DEVICE_INLINE void join_lanes() {
    for (int offset = kWarpSize / 2; offset > 0; offset /= 2) {
      const T other_largest = __shfl_xor_sync(kAllLanes, largest, offset);
      merge(other_largest, __shfl_xor_sync(kAllLanes, sum, offset));
    }
  }
  FASTLOSS_DEVICE_INLINE void add_to(const NegativesState& state, int64_t i) {
    T* const known_largest = static_cast<T*>(state.largest) + i;
    T* const known_sum = static_cast<T*>(state.sums) + i;
    Found known{*known_largest, *known_sum};
    known.merge(largest, sum);
    *known_largest = known.largest;
    *known_sum = known.sum;
  }
};

template <class T>
FASTLOSS_DEVICE_INLINE T similarity(const ContrastiveArguments& arguments, T scale, int64_t row,
                                    int64_t column) {
  return static_cast<const T*>(arguments.tile)[row * arguments.columns + column] * scale;
}

// Far below all others where there is none, or the column is the row itself or its positive.
template <class T>
FASTLOSS_DEVICE_INLINE T with_negative(const ContrastiveArguments& arguments, T scale, int64_t row,
                                       int64_t column) {
  const bool counts = row < arguments.rows && column < arguments.columns &&
                      column - row != arguments.itself && column - row != arguments.positive;
  return counts ? similarity(arguments, scale, row, column) : T(kFarBelow);
}

// One warp per row.
template <class T>
__global__ void __launch_bounds__(kThreads, kResidentBlocks)
    row_states_kernel(const __grid_constant__ ContrastiveArguments arguments) {
  const T scale = T(resolve(arguments.scale));
  const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
  const int64_t warp = (int64_t{blockIdx.x} * kThreads + threadIdx.x) / kWarpSize;
  for (int64_t row = warp; row < arguments.rows; row += int64_t{gridDim.x} * kWarps) {
    Found<T> found;
    for (int64_t begin = lane; begin < arguments.columns; begin += kWarpSize * kEach) {
      T similarities[kEach];
      FASTLOSS_UNROLL
      for (int k = 0; k < kEach; ++k)
        similarities[k] = with_negative(arguments, scale, row, begin + k * kWarpSize);
      found.add(similarities);
    }
    found.join_lanes();
    if (lane != 0) continue;
    found.add_to(arguments.row_state, row);
    const int64_t positive = row + arguments.positive;
    if (positive >= 0 && positive < arguments.columns) {
      static_cast<T*>(arguments.positives)[row] = similarity(arguments, scale, row, positive);
    }
  }
}

// A block per warp's width of columns; its warps take turns in the rows.
template <class T>
__global__ void __launch_bounds__(kThreads, kResidentBlocks)
    column_states_kernel(const __grid_constant__ ContrastiveArguments arguments) {
  __shared__ T largest[kWarps][kWarpSize], sums[kWarps][kWarpSize];
  const T scale = T(resolve(arguments.scale));
  const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
  const int warp = static_cast<int>(threadIdx.x) / kWarpSize;
  for (int64_t first = arguments.first_counted_column + int64_t{blockIdx.x} * kWarpSize;
       first < arguments.columns; first += int64_t{gridDim.x} * kWarpSize) {
    const int64_t column = first + lane;
    Found<T> found;
    for (int64_t begin = warp; begin < arguments.rows; begin += kWarps * kEach) {
      T similarities[kEach];
      FASTLOSS_UNROLL
      for (int k = 0; k < kEach; ++k)
        similarities[k] = with_negative(arguments, scale, begin + k * kWarps, column);
      found.add(similarities);
    }
    largest[warp][lane] = found.largest;
    sums[warp][lane] = found.sum;
    __syncthreads();
    if (warp == 0 && column < arguments.columns) {
      for (int other = 1; other < kWarps; ++other)
        found.merge(largest[other][lane], sums[other][lane]);
      found.add_to(arguments.column_state, column);
    }
    __syncthreads();
  }
}

// A block takes a row, some columns at a time.
template <class T, bool kTwoSided>
__global__ void __launch_bounds__(kThreads, kResidentBlocks)
    gradient_kernel(const __grid_constant__ ContrastiveArguments arguments) {
  const T scale = T(resolve(arguments.scale));
  const T factor = T(arguments.factor) * scale;
  const auto number = [](const void* numbers, int64_t i) {
    return static_cast<const T*>(numbers)[i];
  };
  const auto weight = [&](const SoftmaxTotals& totals, int64_t i) {
    return totals.weights == nullptr ? factor : factor * number(totals.weights, i);
  };
  const int64_t pieces = (arguments.columns + kThreads * kEach - 1) / (kThreads * kEach);
  for (int64_t piece = blockIdx.x; piece < arguments.rows * pieces; piece += gridDim.x) {
    const int64_t row = piece / pieces;
    const int64_t begin = piece % pieces * (kThreads * kEach) + threadIdx.x;
    const T log_sum = number(arguments.of_rows.log_sums, row);
    const T row_weight = weight(arguments.of_rows, row);
    T* const tile = static_cast<T*>(arguments.tile) + row * arguments.columns;
    FASTLOSS_UNROLL
    for (int k = 0; k < kEach; ++k) {
      const int64_t column = begin + k * kThreads;
      if (column >= arguments.columns) continue;
      const T s = tile[column] * scale;
      const bool is_positive = column - row == arguments.positive;
      // The probability less 1 is the negatives' share, without the difference.
      T gradient = row_weight * (is_positive ? -number(arguments.of_rows.negatives, row)
                                             : exp_nonpositive(s - log_sum));
      if constexpr (kTwoSided) {
        const SoftmaxTotals& totals = arguments.of_columns;
        gradient += weight(totals, column) *
                    (is_positive ? -number(totals.negatives, column)
                                 : exp_nonpositive(s - number(totals.log_sums, column)));
      }
      tile[column] = column - row == arguments.itself ? T(0) : gradient;
    }
  }
}

template <class T>
void find_states(const ContrastiveArguments& arguments, const Execution& execution) {
  launch(row_states_kernel<T>, grid_for(arguments.rows, kWarps), kThreads, 0, execution.stream,
         arguments);
  if (arguments.column_state.sums == nullptr) return;
  const int64_t counted = arguments.columns - arguments.first_counted_column;
  if (counted == 0) return;
  launch(column_states_kernel<T>, grid_for(counted, kWarpSize), kThreads, 0, execution.stream,
         arguments);
}

}  // namespace

void contrastive_states(const ContrastiveArguments& arguments, const Execution& execution) {
  with_number_type(arguments.is_double,
                   [&](auto number) { find_states<decltype(number)>(arguments, execution); });
}

void contrastive_gradient(const ContrastiveArguments& arguments, const Execution& execution) {
  const int64_t pieces = (arguments.columns + kThreads * kEach - 1) / (kThreads * kEach);
  with_number_type(arguments.is_double, [&](auto number) {
    with_flag(arguments.of_columns.log_sums != nullptr, [&](auto two_sided) {
      launch(gradient_kernel<decltype(number), decltype(two_sided)::value>,
             grid_for(arguments.rows * pieces, 1), kThreads, 0, execution.stream, arguments);
    });
  });
}

}  // namespace fastloss::FASTLOSS_TARGET
