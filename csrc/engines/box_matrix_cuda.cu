// SPDX-License-Identifier: MIT
#include "engines/access_cuda.h"
#include "engines/kernels.h"
#include "losses/box_pair.h"

namespace fastloss::FASTLOSS_TARGET {
namespace {

constexpr int kThreads = 128;
// A thread of the forward keeps its column's box and what the formula makes of it alone for this
// many rows.
constexpr int kRowsPerThread = 8;
// A block of the column gradient: neighbouring columns, so that the upstream gradient is read in
// whole lines, times threads that share a column's rows.
constexpr int kColumns = kWarpSize;
constexpr int kSharers = kThreads / kColumns;

// Boxes [N, 4] of type T. Memory of a sliced tensor may be contiguous and still not aligned for one
// access a box.
template <class T>
struct Boxes {
  const T* data;
  bool is_packed;

  explicit Boxes(const void* memory)
      : data(static_cast<const T*>(memory)), is_packed(is_pack_aligned(memory, dtype_of<T>, 4)) {}

  template <bool kWanted>
  FASTLOSS_DEVICE_INLINE auto at(int64_t index) const {
    T c[4];
    load_items(c, data, {4 * index, 1, is_packed});
    return Box{variable<1, kWanted>(c[0]), variable<2, kWanted>(c[1]), variable<4, kWanted>(c[2]),
               variable<8, kWanted>(c[3])};
  }
};

template <class Similarity, class T>
FASTLOSS_DEVICE_INLINE void read_parameters(T (&parameter)[kMaxParameters],
                                            const BoxMatrixArguments& arguments) {
  for (int i = 0; i < Similarity::kParameters; ++i) parameter[i] = T(arguments.parameters[i]);
}

int64_t row_groups(const BoxMatrixArguments& arguments) {
  return (arguments.rows + kRowsPerThread - 1) / kRowsPerThread;
}
int64_t column_groups(const BoxMatrixArguments& arguments) {
  return (arguments.columns + kColumns - 1) / kColumns;
}

template <class Similarity, class T>
__global__ void __launch_bounds__(kThreads, kResidentBlocks)
    forward_kernel(const __grid_constant__ BoxMatrixArguments arguments, const Boxes<T> boxes1,
                   const Boxes<T> boxes2, const int64_t groups) {
  T parameter[kMaxParameters];
  read_parameters<Similarity>(parameter, arguments);
  const int64_t rows = arguments.rows, columns = arguments.columns;
  const int64_t items = arguments.batch * groups * columns, step = int64_t{gridDim.x} * kThreads;
  for (int64_t item = int64_t{blockIdx.x} * kThreads + threadIdx.x; item < items; item += step) {
    const int64_t group = item / columns, column = item - group * columns;
    const int64_t batch = group / groups, begin = (group - batch * groups) * kRowsPerThread;
    const int64_t end = begin + kRowsPerThread < rows ? begin + kRowsPerThread : rows;
    const auto b2 = boxes2.template at<false>(batch * columns + column);
    for (int64_t row = batch * rows + begin; row < batch * rows + end; ++row) {
      static_cast<T*>(arguments.values)[row * columns + column] =
          Similarity::similarity(boxes1.template at<false>(row), b2, parameter);
    }
  }
}

template <class T, class X>
FASTLOSS_DEVICE_INLINE void add_gradient(T (&sums)[4], T upstream, const X& similarity) {
  sums[0] += upstream * derivative<1>(similarity);
  sums[1] += upstream * derivative<2>(similarity);
  sums[2] += upstream * derivative<4>(similarity);
  sums[3] += upstream * derivative<8>(similarity);
}

// The gradient of the first set: one block sums a row of the matrix over its columns.
template <class Similarity, class T>
__global__ void __launch_bounds__(kThreads, kResidentBlocks)
    row_gradient_kernel(const __grid_constant__ BoxMatrixArguments arguments, const Boxes<T> boxes1,
                        const Boxes<T> boxes2) {
  T parameter[kMaxParameters];
  read_parameters<Similarity>(parameter, arguments);
  const int64_t columns = arguments.columns;
  for (int64_t row = blockIdx.x; row < arguments.batch * arguments.rows; row += gridDim.x) {
    const auto b1 = boxes1.template at<true>(row);
    const int64_t first = row / arguments.rows * columns;
    T sums[4] = {T(0), T(0), T(0), T(0)};
    for (int64_t column = threadIdx.x; column < columns; column += kThreads) {
      add_gradient(
          sums, static_cast<const T*>(arguments.upstream)[row * columns + column],
          Similarity::similarity(b1, boxes2.template at<false>(first + column), parameter));
    }
    block_sum<kThreads>(sums);
    if (threadIdx.x == 0) {
      for (int c = 0; c < 4; ++c) static_cast<T*>(arguments.gradient1)[4 * row + c] = sums[c];
    }
  }
}

// The gradient of the second set: one block sums kColumns columns over the rows.
template <class Similarity, class T>
__global__ void __launch_bounds__(kThreads, kResidentBlocks)
    column_gradient_kernel(const __grid_constant__ BoxMatrixArguments arguments,
                           const Boxes<T> boxes1, const Boxes<T> boxes2, const int64_t groups) {
  __shared__ T shares[4][kSharers][kColumns];
  T parameter[kMaxParameters];
  read_parameters<Similarity>(parameter, arguments);
  const int64_t rows = arguments.rows, columns = arguments.columns;
  const int lane = static_cast<int>(threadIdx.x) % kColumns,
            share = static_cast<int>(threadIdx.x) / kColumns;
  for (int64_t item = blockIdx.x; item < arguments.batch * groups; item += gridDim.x) {
    const int64_t batch = item / groups, column = (item - batch * groups) * kColumns + lane;
    T sums[4] = {T(0), T(0), T(0), T(0)};
    if (column < columns) {
      const auto b2 = boxes2.template at<true>(batch * columns + column);
      for (int64_t row = batch * rows + share; row < (batch + 1) * rows; row += kSharers) {
        add_gradient(sums, static_cast<const T*>(arguments.upstream)[row * columns + column],
                     Similarity::similarity(boxes1.template at<false>(row), b2, parameter));
      }
    }
    for (int c = 0; c < 4; ++c) shares[c][share][lane] = sums[c];
    __syncthreads();
    if (share == 0 && column < columns) {
      for (int c = 0; c < 4; ++c) {
        T sum = shares[c][0][lane];
        for (int other = 1; other < kSharers; ++other) sum += shares[c][other][lane];
        static_cast<T*>(arguments.gradient2)[4 * (batch * columns + column) + c] = sum;
      }
    }
    __syncthreads();  // the next columns overwrite the shares
  }
}

template <class Similarity, class T>
void run_typed(const BoxMatrixArguments& arguments, const Execution& execution) {
  const Boxes<T> boxes1(arguments.boxes1), boxes2(arguments.boxes2);
  if (arguments.values) {
    const int64_t groups = row_groups(arguments);
    launch(forward_kernel<Similarity, T>,
           grid_for(arguments.batch * groups * arguments.columns, kThreads), kThreads, 0,
           execution.stream, arguments, boxes1, boxes2, groups);
  }
  if (arguments.gradient1) {
    launch(row_gradient_kernel<Similarity, T>, grid_for(arguments.batch * arguments.rows, 1),
           kThreads, 0, execution.stream, arguments, boxes1, boxes2);
  }
  if (arguments.gradient2) {
    const int64_t groups = column_groups(arguments);
    launch(column_gradient_kernel<Similarity, T>, grid_for(arguments.batch * groups, 1), kThreads,
           0, execution.stream, arguments, boxes1, boxes2, groups);
  }
}

template <class Similarity>
struct Kernel {
  static void run(const BoxMatrixArguments& arguments, const Execution& execution) {
    if (arguments.is_double) {
      run_typed<Similarity, double>(arguments, execution);
    } else {
      run_typed<Similarity, float>(arguments, execution);
    }
  }
};

}  // namespace

void box_matrix(const BoxMatrixArguments& arguments, const Execution& execution) {
  using Function = void (*)(const BoxMatrixArguments&, const Execution&);
  BoxSimilarities::Table<Function, Kernel>::kRun[arguments.similarity](arguments, execution);
}

}  // namespace fastloss::FASTLOSS_TARGET
