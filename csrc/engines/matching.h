// SPDX-License-Identifier: MIT
// Engine `matching`: what it costs to match every prediction with every target.
#pragma once
#include "core/types.h"

namespace fastloss {

// Every array is contiguous, the floating ones of the accumulate type (float, or double where
// is_double): they are few beside the matrix, so the caller converts them.
struct MatchingArguments {
  bool is_focal = false;  // else the class costs what the softmax says
  double class_cost = 1, bbox_cost = 1, giou_cost = 1;
  double alpha = 0.25, gamma = 2;                         // of the focal cost
  int64_t batch = 0, rows = 0, columns = 0, classes = 0;  // B, N, M, C
  const void* logits = nullptr;                           // [B, N, C]
  const void* boxes = nullptr;                            // [B, N, 4] cxcywh
  const int64_t* labels = nullptr;                        // [B, M], in [0, C)
  const void* targets = nullptr;                          // [B, M, 4] cxcywh
  void* values = nullptr;                                 // [B, N, M]
  bool is_double = false;
};

}  // namespace fastloss
