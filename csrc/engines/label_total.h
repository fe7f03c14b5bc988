// SPDX-License-Identifier: MIT
// Engine `label_total`: what a mean over labelled rows divides by, from the labels alone: how many
// count, or the sum of their classes' weights. It runs before the loss, whose gradients are then
// written with their final scale.
#pragma once
#include "core/layout.h"
#include "core/types.h"

namespace fastloss {

struct LabelTotalArguments {
  Layout layout;  // of the labels, its only operand
  Input labels;
  IgnoredLabels ignored;
  int64_t largest = 0;    // labels that count are in [0, largest]
  Input class_weight;     // largest + 1 numbers in the dtype of the total; null: every row counts 1
  void* total = nullptr;  // 0-d
  bool is_double = false;
};

}  // namespace fastloss
