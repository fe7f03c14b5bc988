// SPDX-License-Identifier: MIT
// Engine `box_crowd`: each box against its own target, against the targets of others and against
// the boxes of others.
#pragma once
#include "core/types.h"

namespace fastloss {

enum class CrowdReduction { kNone, kSum, kMean };

// Every floating-point array is contiguous and of the accumulate type (float, or double where
// is_double).
struct BoxCrowdArguments {
  int loss = 0;  // index in BoxCrowdLosses
  double parameters[kMaxParameters] = {};
  int64_t boxes_count = 0, targets_count = 0;   // P, G
  const void* boxes = nullptr;                  // [P, 4] xyxy
  const void* targets = nullptr;                // [G, 4] xyxy
  const int64_t* target_index = nullptr;        // [P] in [0, G)
  const int64_t* batch_index = nullptr;         // [P], or null: all boxes are of one image
  const int64_t* target_batch_index = nullptr;  // [G], null together with batch_index
  const void* upstream = nullptr;  // [P]: weights of the gradient of `values`; null: all 1
  void* gradient = nullptr;        // [P, 4]; null: not wanted
  LossOutput loss_output;          // values: contiguous [P]
  CrowdReduction reduction = CrowdReduction::kMean;
  // [P, kBoxCrowdScratch] numbers, laid out as the backend likes: the mean over overlapping pairs
  // divides by a count that is known only when every pair has been seen, so both halves of the
  // gradient wait here until then.
  void* scratch = nullptr;
  bool is_double = false;
};
constexpr int64_t kBoxCrowdScratch = 11;

}  // namespace fastloss
