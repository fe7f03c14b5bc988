// SPDX-License-Identifier: MIT
// Engine `pointwise`: one number per element, from an input, a target and parameters.
#pragma once
#include "core/layout.h"
#include "core/types.h"

namespace fastloss {

// Operands of the layout, in this order. Absent ones have stride 0.
enum PointwiseOperand {
  kPointwiseInput,
  kPointwiseTarget,
  kPointwiseWeight,
  kPointwisePosWeight,
  kPointwiseReference,
  kPointwiseMask,
  kPointwiseInputGradient,
  kPointwiseTargetGradient,
  kPointwiseValues,  // the unreduced loss
  kPointwiseOperands,
};

// What a formula takes for a target.
enum class Targets {
  kNumbers,          // one per element
  kNumbersOrLabels,  // or class indices
  kSecondInput,      // one per element; a prediction like the input, so never an integer
  kNone,             // the formula sees the input alone
};

enum class TargetKind {
  kDense,       // one number per element
  kClassIndex,  // one label per row of `classes` elements: 1 at the label, 0 elsewhere. `classes`
                // itself: a row of 0. A negative label: the row does not count. The class dimension
                // is the layout's dimension 0.
};

struct PointwiseArguments {
  int loss = 0;  // index in PointwiseLosses
  double parameters[kMaxParameters] = {};
  Layout layout;
  Input input, target, weight, pos_weight;  // target: null for Targets::kNone
  // Of the losses of policies: one more tensor of numbers, or null; and which elements count (those
  // where it is not 0), or null.
  Input reference, mask;
  TargetKind target_kind = TargetKind::kDense;
  int64_t classes = 0;
  Output input_gradient,
      target_gradient;  // null: not wanted. The second only together with the first.
  LossOutput loss_output;
  Scale loss_scale;        // the total is multiplied with it
  Scale gradient_scale;    // and every gradient with this one
  bool is_double = false;  // arithmetic and loss in float64
};

}  // namespace fastloss
