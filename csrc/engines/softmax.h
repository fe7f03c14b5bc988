// SPDX-License-Identifier: MIT
// Engine `softmax`: one number per row of logits, with the gradient of every logit. The classes of
// a row lie together or any stride apart, as in (B, C, H, W).
#pragma once
#include "core/layout.h"
#include "core/types.h"

namespace fastloss {

// Operands of the layout of rows, in this order. Absent ones have stride 0.
enum SoftmaxOperand {
  kSoftmaxInput,
  kSoftmaxTarget,
  kSoftmaxRowWeight,
  kSoftmaxGradient,
  kSoftmaxValues,  // the unreduced loss
  kSoftmaxOperands,
};

// What a row's target is.
enum class ClassTarget {
  kIndex,          // the class, an integer
  kPosition,       // a number between two classes, clamped to [0, classes - 1.01]
  kProbabilities,  // a number per class
};

struct SoftmaxArguments {
  int loss = 0;  // index in SoftmaxLosses
  double parameters[kMaxParameters] = {};
  Layout rows;  // the tensors without their dimension of classes
  int64_t classes = 0;
  int64_t class_stride[kSoftmaxOperands] = {};  // of the input, probabilities and the gradient
  Input input, target;
  Input row_weight;    // one number per row
  Input class_weight;  // one number per class, contiguous, in the dtype of the arithmetic
  IgnoredLabels ignored;
  double smoothing = 0.0;  // of target probabilities: t (1 - smoothing) + smoothing / classes
  double softcap = 0.0;    // logits are softcap · tanh(x / softcap); 0: as they are
  Output gradient;         // null: not wanted. It may lie over the input.
  LossOutput loss_output;
  Scale loss_scale;        // the total is multiplied with it
  Scale gradient_scale;    // and every gradient with this one
  bool is_double = false;  // arithmetic and loss in float64
};

}  // namespace fastloss
