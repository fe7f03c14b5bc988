// SPDX-License-Identifier: MIT
// How CPU engines walk along a row of features in vectors.
#pragma once
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

}  // namespace fastloss::FASTLOSS_TARGET
