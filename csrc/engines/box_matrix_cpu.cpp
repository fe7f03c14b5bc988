// SPDX-License-Identifier: MIT
#include "core/vec.h"
#include "engines/kernels.h"
#include "engines/staging.h"
#include "losses/box_pair.h"

namespace fastloss::FASTLOSS_TARGET {
namespace {

// The same box in every lane.
template <class T>
FASTLOSS_INLINE void broadcast_box(const T* box, Vec<T> (&coordinates)[4]) {
  for (int c = 0; c < 4; ++c) coordinates[c] = Vec<T>(box[c]);
}

// kLanes boxes, or the `count` that are left, the rest being points at the origin.
template <class T>
FASTLOSS_INLINE void load_boxes(const T* boxes, int64_t count, Vec<T> (&coordinates)[4]) {
  constexpr int64_t kLanes = Vec<T>::kLanes;
  if (count >= kLanes) {
    load_transposed(boxes, coordinates[0], coordinates[1], coordinates[2], coordinates[3]);
    return;
  }
  T padded[4 * kLanes] = {};
  for (int64_t i = 0; i < 4 * count; ++i) padded[i] = boxes[i];
  load_transposed(padded, coordinates[0], coordinates[1], coordinates[2], coordinates[3]);
}

template <bool kWanted, class T>
FASTLOSS_INLINE auto make_box(const Vec<T> (&c)[4]) {
  return Box{variable<1, kWanted>(c[0]), variable<2, kWanted>(c[1]), variable<4, kWanted>(c[2]),
             variable<8, kWanted>(c[3])};
}

template <class Similarity, class T>
struct Forward {
  static void run(const BoxMatrixArguments& arguments, const T* parameter,
                  const Execution& execution) {
    using V = Vec<T>;
    const auto* boxes1 = static_cast<const T*>(arguments.boxes1);
    const auto* boxes2 = static_cast<const T*>(arguments.boxes2);
    auto* values = static_cast<T*>(arguments.values);
    const int64_t columns = arguments.columns;
    // One row of the matrix is one box of the first set against all of the second.
    const int64_t smallest_chunk = 1 + 2048 / (columns + 1);
    sum_over_chunks(execution, arguments.batch * arguments.rows, smallest_chunk,
                    [&](int64_t begin, int64_t end) {
                      for (int64_t row = begin; row < end; ++row) {
                        V a[4], b[4];
                        broadcast_box(boxes1 + 4 * row, a);
                        const T* row_boxes = boxes2 + 4 * columns * (row / arguments.rows);
                        for (int64_t j = 0; j < columns; j += V::kLanes) {
                          load_boxes(row_boxes + 4 * j, columns - j, b);
                          const V similarity = Similarity::similarity(
                              make_box<false>(a), make_box<false>(b), parameter);
                          T* out = values + row * columns + j;
                          if (columns - j >= V::kLanes) {
                            similarity.store(out);
                          } else {
                            for (int64_t lane = 0; lane < columns - j; ++lane)
                              out[lane] = similarity[int(lane)];
                          }
                        }
                      }
                      return 0.0;
                    });
  }
};

// The gradient of the first set: a row of the matrix is summed over its columns.
template <class Similarity, class T>
struct RowGradient {
  static void run(const BoxMatrixArguments& arguments, const T* parameter,
                  const Execution& execution) {
    using V = Vec<T>;
    const auto* boxes1 = static_cast<const T*>(arguments.boxes1);
    const auto* boxes2 = static_cast<const T*>(arguments.boxes2);
    const auto* upstream = static_cast<const T*>(arguments.upstream);
    auto* gradient = static_cast<T*>(arguments.gradient1);
    const int64_t columns = arguments.columns;
    const int64_t smallest_chunk = 1 + 1024 / (columns + 1);
    sum_over_chunks(execution, arguments.batch * arguments.rows, smallest_chunk,
                    [&](int64_t begin, int64_t end) {
                      for (int64_t row = begin; row < end; ++row) {
                        V a[4], b[4], sum[4] = {V(0), V(0), V(0), V(0)};
                        broadcast_box(boxes1 + 4 * row, a);
                        const T* row_boxes = boxes2 + 4 * columns * (row / arguments.rows);
                        for (int64_t j = 0; j < columns; j += V::kLanes) {
                          load_boxes(row_boxes + 4 * j, columns - j, b);
                          const V u = load_some(upstream + row * columns + j, columns - j);
                          const auto similarity = Similarity::similarity(
                              make_box<true>(a), make_box<false>(b), parameter);
                          sum[0] = sum[0] + u * derivative<1>(similarity);
                          sum[1] = sum[1] + u * derivative<2>(similarity);
                          sum[2] = sum[2] + u * derivative<4>(similarity);
                          sum[3] = sum[3] + u * derivative<8>(similarity);
                        }
                        for (int c = 0; c < 4; ++c) gradient[4 * row + c] = sum[c].sum();
                      }
                      return 0.0;
                    });
  }
};

// The gradient of the second set: kLanes columns at a time are summed over the rows.
template <class Similarity, class T>
struct ColumnGradient {
  static void run(const BoxMatrixArguments& arguments, const T* parameter,
                  const Execution& execution) {
    using V = Vec<T>;
    const auto* boxes1 = static_cast<const T*>(arguments.boxes1);
    const auto* boxes2 = static_cast<const T*>(arguments.boxes2);
    const auto* upstream = static_cast<const T*>(arguments.upstream);
    auto* gradient = static_cast<T*>(arguments.gradient2);
    const int64_t columns = arguments.columns, rows = arguments.rows;
    const int64_t groups = (columns + V::kLanes - 1) / V::kLanes;
    const int64_t smallest_chunk = 1 + 1024 / (rows * V::kLanes + 1);
    sum_over_chunks(
        execution, arguments.batch * groups, smallest_chunk, [&](int64_t begin, int64_t end) {
          for (int64_t group = begin; group < end; ++group) {
            const int64_t batch = group / groups, j = group % groups * V::kLanes;
            const int64_t count = columns - j < V::kLanes ? columns - j : V::kLanes;
            V a[4], b[4], sum[4] = {V(0), V(0), V(0), V(0)};
            load_boxes(boxes2 + 4 * (batch * columns + j), count, b);
            for (int64_t i = 0; i < rows; ++i) {
              const int64_t row = batch * rows + i;
              broadcast_box(boxes1 + 4 * row, a);
              const V u = load_some(upstream + row * columns + j, count);
              const auto similarity =
                  Similarity::similarity(make_box<false>(a), make_box<true>(b), parameter);
              sum[0] = sum[0] + u * derivative<1>(similarity);
              sum[1] = sum[1] + u * derivative<2>(similarity);
              sum[2] = sum[2] + u * derivative<4>(similarity);
              sum[3] = sum[3] + u * derivative<8>(similarity);
            }
            for (int c = 0; c < 4; ++c) {
              for (int64_t lane = 0; lane < count; ++lane) {
                gradient[4 * (batch * columns + j + lane) + c] = sum[c][int(lane)];
              }
            }
          }
          return 0.0;
        });
  }
};

template <class Similarity, class T>
void run_typed(const BoxMatrixArguments& arguments, const Execution& execution) {
  T parameter[kMaxParameters];
  for (int i = 0; i < Similarity::kParameters; ++i) parameter[i] = T(arguments.parameters[i]);
  if (arguments.values) Forward<Similarity, T>::run(arguments, parameter, execution);
  if (arguments.gradient1) RowGradient<Similarity, T>::run(arguments, parameter, execution);
  if (arguments.gradient2) ColumnGradient<Similarity, T>::run(arguments, parameter, execution);
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
