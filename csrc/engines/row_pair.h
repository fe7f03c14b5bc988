// SPDX-License-Identifier: MIT
// Engine `row_pair`: pairs of rows of features. A formula sees two features, or how far the
// directions of the rows are apart, 1 − cos.
#pragma once
#include "core/layout.h"
#include "core/types.h"

namespace fastloss {

constexpr int kRowPair = 2;  // of the input and of the target

// The layout's dimensions are those of the rows. Its operands are the two, their gradients and the
// unreduced loss.
constexpr int kRowPairGradients = kRowPair;
constexpr int kRowPairValues = 2 * kRowPair;
constexpr int kRowPairOperands = kRowPairValues + 1;

// A row is divided by its norm, or by this where the norm is smaller.
constexpr double kSmallestNorm = 1e-12;

struct RowPairArguments {
  int loss = 0;  // index in RowPairLosses
  double parameters[kMaxParameters] = {};
  Layout layout;
  int64_t features = 0;
  Input rows[kRowPair];
  int64_t feature_stride[kRowPair] = {};
  Output gradients[kRowPair];  // features one after the other; null: not wanted
  LossOutput loss_output;
  double loss_factor = 1.0;      // the total is multiplied with it
  double gradient_factor = 1.0;  // and every gradient with this one
  bool is_double = false;

  bool wants_gradient() const { return gradients[0] || gradients[1]; }
};

}  // namespace fastloss
