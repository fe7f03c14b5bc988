// SPDX-License-Identifier: MIT
#include <cmath>

#include "core/vec.h"
#include "engines/kernels.h"
#include "engines/staging.h"
#include "losses/matching.h"

namespace fastloss::FASTLOSS_TARGET {
namespace {

// kLanes boxes, or the `count` that are left, the rest being points at the origin.
template <class T>
FASTLOSS_INLINE CenteredBox<Vec<T>> load_boxes(const T* boxes, int64_t count) {
  using V = Vec<T>;
  T padded[4 * V::kLanes] = {};
  const T* source = boxes;
  if (count < V::kLanes) {
    for (int64_t i = 0; i < 4 * count; ++i) padded[i] = boxes[i];
    source = padded;
  }
  V x, y, w, h;
  load_transposed(source, x, y, w, h);
  return {x, y, w, h};
}

// What a row of logits has in common: its largest, and 1 / Σ e^(x − largest).
template <class T>
struct RowSoftmax {
  Vec<T> largest, inverse_sum;

  RowSoftmax(const T* logits, int64_t classes) : largest(-T(INFINITY)), inverse_sum(T(0)) {
    using V = Vec<T>;
    V highest(-T(INFINITY)), sum(T(0));
    for (int64_t c = 0; c < classes; c += V::kLanes)
      highest = max(highest, load_some(logits + c, classes - c, -T(INFINITY)));
    largest = V(highest.largest());
    for (int64_t c = 0; c < classes; c += V::kLanes)
      sum += exp(load_some(logits + c, classes - c, -T(INFINITY)) - largest);
    inverse_sum = V(T(1) / sum.sum());
  }
};

template <bool kFocal, class T>
void run_typed(const MatchingArguments& arguments, const Execution& execution) {
  using V = Vec<T>;
  const auto* logits = static_cast<const T*>(arguments.logits);
  const auto* boxes = static_cast<const T*>(arguments.boxes);
  const auto* targets = static_cast<const T*>(arguments.targets);
  auto* values = static_cast<T*>(arguments.values);
  const int64_t columns = arguments.columns, classes = arguments.classes;
  const V class_cost = V(T(arguments.class_cost));
  const T bbox_cost = T(arguments.bbox_cost), giou_cost = T(arguments.giou_cost),
          alpha = T(arguments.alpha), gamma = T(arguments.gamma);

  const auto run_row = [&](int64_t row) {
    const int64_t first = row / arguments.rows * columns;
    const T* row_logits = logits + row * classes;
    const T* box = boxes + 4 * row;
    const CenteredBox<V> prediction{V(box[0]), V(box[1]), V(box[2]), V(box[3])};
    T* out = values + row * columns;
    // The logits of the targets' classes wait where the costs are to stand.
    for (int64_t j = 0; j < columns; ++j) out[j] = row_logits[arguments.labels[first + j]];
    const RowSoftmax<T> softmax(row_logits, kFocal ? 0 : classes);
    for (int64_t j = 0; j < columns; j += V::kLanes) {
      const int64_t left = columns - j;
      const V logit = load_some(out + j, left);
      V cost;
      if constexpr (kFocal) {
        cost = focal_cost(logit, alpha, gamma);
      } else {
        cost = softmax_cost(logit, softmax.largest, softmax.inverse_sum);
      }
      cost = class_cost * cost + box_cost(prediction, load_boxes(targets + 4 * (first + j), left),
                                          bbox_cost, giou_cost);
      if (left >= V::kLanes) {
        cost.store(out + j);
      } else {
        for (int64_t lane = 0; lane < left; ++lane) out[j + lane] = cost[int(lane)];
      }
    }
  };
  const int64_t smallest_chunk = 1 + 2048 / (columns + classes + 1);
  sum_over_chunks(execution, arguments.batch * arguments.rows, smallest_chunk,
                  [&](int64_t begin, int64_t end) {
                    for (int64_t row = begin; row < end; ++row) run_row(row);
                    return 0.0;
                  });
}

}  // namespace

void matching(const MatchingArguments& arguments, const Execution& execution) {
  const auto run = arguments.is_double
                       ? (arguments.is_focal ? run_typed<true, double> : run_typed<false, double>)
                       : (arguments.is_focal ? run_typed<true, float> : run_typed<false, float>);
  run(arguments, execution);
}

}  // namespace fastloss::FASTLOSS_TARGET
