// SPDX-License-Identifier: MIT
// Engine `batch_hard`: every row among the others as an anchor, with its farthest row of the same
// label and its nearest row of another one. All distances are looked at, none is kept.
#pragma once
#include "core/types.h"

namespace fastloss {

enum BatchHardRole { kFarthest, kNearest, kBatchHardRoles };

struct BatchHardArguments {
  int loss = 0;  // index in BatchHardLosses
  double parameters[kMaxParameters] = {};
  int64_t rows = 0, features = 0;    // rows: below 2^24, so that float32 tells them apart
  const void* embeddings = nullptr;  // [rows, features], of the accumulate type
  const int64_t* labels = nullptr;   // [rows]
  bool mean = false;                 // over the anchors that have both
  bool is_double = false;

  // Which rows were chosen, [rows, 2]: -1 for an anchor that does not count, itself for one with a
  // NaN among its distances.
  int32_t* chosen = nullptr;
  // [rows, 2]: an anchor's loss grows by (slope · (anchor − chosen)) per feature of the anchor.
  void* slopes = nullptr;
  LossOutput loss_output;  // values: [rows]

  // Of the gradient, for which what was chosen and the slopes are read:
  const void* upstream = nullptr;  // of the accumulate type
  bool upstream_of_rows = false;   // one number per row
  void* gradient = nullptr;        // as `embeddings`
};

}  // namespace fastloss
