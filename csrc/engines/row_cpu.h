// SPDX-License-Identifier: MIT
// How CPU engines walk along rows of features in vectors, and through groups of rows.
#pragma once
#include <utility>

#include "engines/arena.h"
#include "engines/staging.h"

namespace fastloss::FASTLOSS_TARGET {

// Calls visit(load, store, inside) for every vector of a row, the last of which may be incomplete:
// load(numbers) and store(numbers, vector) reach no farther than the row, and `inside(vector)` is 0
// beyond it.
template <class T, class Visit>
FASTLOSS_INLINE void for_each_vector(int64_t features, const Visit& visit) {
  using V = Vec<T>;
  const int64_t whole = features / V::kLanes * V::kLanes, rest = features - whole;
  for (int64_t i = 0; i < whole; i += V::kLanes) {
    visit([&](const T* row) { return V::load(row + i); },
          [&](T* row, V value, bool streaming) {
            if (streaming) {
              value.store_streaming(row + i);
            } else {
              value.store(row + i);
            }
          },
          [](V value) { return value; });
  }
  if (rest == 0) return;
  const auto is_inside = lane_numbers<T>() < V(T(rest));
  visit([&](const T* row) { return load_some(row + whole, rest); },
        [&](T* row, V value, bool /*streaming*/) {
          T numbers[V::kLanes];
          value.store(numbers);
          copy(row + whole, numbers, rest);
        },
        [&](V value) { return select(is_inside, value, V(0)); });
}

// Where to read the row of an operand as consecutive numbers: where it lies, or `stage`.
template <class T>
const T* readable_row(const Input& in, int64_t offset, int64_t stride, int64_t features, T* stage) {
  if (in.dtype == dtype_of<T> && stride == 1) return static_cast<const T*>(in.data) + offset;
  load_strided(stage, 1, in, offset, stride, features);
  return stage;
}

// Where to write a row that ends up in `out`: there, in `stage`, from which it has to be stored, or
// null where there is no operand.
template <class T>
T* writable_row(const Output& out, int64_t offset, T* stage) {
  if (!out) return nullptr;
  return out.dtype == dtype_of<T> ? static_cast<T*>(out.data) + offset : stage;
}

// The rows of a group (a pair, a triplet) and their gradients, consecutive numbers each; null where
// not wanted.
template <class T, int kRows>
struct RowGroup {
  const T* row[kRows];
  T* gradient[kRows];
};

// Adds up loss_of(group, streaming) over all groups; it fills in the gradients. `rows` are those of
// the arguments. The operands of their layout are the rows, the gradients, then the values.
template <class T, bool kGradient, class Arguments, int kRows, class LossOf>
void run_row_groups(const Arguments& arguments, const Input (&rows)[kRows],
                    const Execution& execution, const LossOf& loss_of) {
  // Features: below, a second thread costs more than it saves.
  constexpr int64_t kSmallestChunk = 4096;
  const Layout& layout = arguments.layout;
  const int64_t features = arguments.features;
  const bool streaming = kGradient && outlives_caches(layout.numel * features * int64_t{sizeof(T)});
  const int64_t smallest_chunk = 1 + kSmallestChunk / (features + 1);
  const double sum = sum_over_chunks(
      execution, layout.numel, smallest_chunk, [&](int64_t chunk_begin, int64_t chunk_end) {
        // For what cannot be read or written where it lies.
        Arena arena(2 * kRows * Arena::size_of<T>(features));
        T* stage[2 * kRows];
        for (T*& row : stage) row = arena.take<T>(features);
        double chunk_sum = 0.0;
        for_each_run(
            layout, chunk_begin, chunk_end,
            [&](int64_t /*position*/, const int64_t* offsets, int64_t length) {
              for (int64_t i = 0; i < length; ++i) {
                const auto offset_of = [&](int operand) {
                  return offsets[operand] + i * layout.stride[operand][0];
                };
                RowGroup<T, kRows> group;
                for (int k = 0; k < kRows; ++k) {
                  group.row[k] = readable_row(rows[k], offset_of(k), arguments.feature_stride[k],
                                              features, stage[k]);
                  group.gradient[k] =
                      writable_row(arguments.gradients[k], offset_of(kRows + k), stage[kRows + k]);
                }
                const T loss = loss_of(std::as_const(group), streaming);
                chunk_sum += double(loss);
                if (arguments.loss_output.values)
                  static_cast<T*>(arguments.loss_output.values)[offset_of(2 * kRows)] = loss;
                for (int k = 0; k < kRows; ++k) {
                  if (group.gradient[k] == stage[kRows + k]) {
                    store_strided(arguments.gradients[k], offset_of(kRows + k), 1,
                                  group.gradient[k], 1, features);
                  }
                }
              }
            });
        if (streaming) streaming_fence();
        return chunk_sum;
      });
  store_total<T>(arguments.loss_output, Scale{arguments.loss_factor, {}}, sum);
}

}  // namespace fastloss::FASTLOSS_TARGET
