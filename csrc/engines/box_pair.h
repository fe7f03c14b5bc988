// SPDX-License-Identifier: MIT
// Engine `box_pair`: one number per pair of boxes, or of points, from their coordinates and
// parameters. Boxes have four coordinates, xyxy, rotated ones five, xywhr, and points two.
#pragma once
#include "core/layout.h"
#include "core/types.h"

namespace fastloss {

// Operands of the layout (over boxes; the coordinates have a stride of their own), in this order.
enum BoxPairOperand {
  kBoxPairBoxes1,
  kBoxPairBoxes2,
  kBoxPairWeight,
  kBoxPairExtra,
  kBoxPairGradient1,
  kBoxPairGradient2,
  kBoxPairOperands,
};

struct BoxPairArguments {
  int loss = 0;  // index in BoxPairLosses
  double parameters[kMaxParameters] = {};
  int device_parameter_index =
      -1;                  // the parameter that is read from `device_parameter` instead, or -1
  Input device_parameter;  // 0-d, float32 or float64
  Layout layout;           // over pairs, in the order of the unreduced loss
  int64_t coordinate_stride[2] = {1, 1};  // of boxes1, boxes2
  Input boxes1, boxes2;                   // [..., coordinates]
  Input weight;                           // [...]
  Input extra;                            // [...], for the formulas that have it
  Output gradient1, gradient2;  // [..., coordinates] with coordinate stride 1; null: not wanted.
                                // The second only with the first.
  LossOutput loss_output;       // values: contiguous
  Scale loss_scale, gradient_scale;
  bool is_double = false;
};

}  // namespace fastloss
