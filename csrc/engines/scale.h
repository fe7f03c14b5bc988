// SPDX-License-Identifier: MIT
// Engine `scale`: the backward of every loss. The saved gradient is multiplied by the upstream
// gradient in place; an upstream of exactly 1 touches nothing.
#pragma once
#include "core/layout.h"
#include "core/types.h"

namespace fastloss {

enum ScaleOperand { kScaleGradient, kScaleUpstream, kScaleOperands };

struct ScaleArguments {
  Layout layout;    // operand 1 has stride 0 in every dimension where one number scales all
  Output gradient;  // float16, bfloat16, float32 or float64
  Input upstream;   // float32 or float64
};

}  // namespace fastloss
