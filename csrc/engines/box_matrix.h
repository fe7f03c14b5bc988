// SPDX-License-Identifier: MIT
// Engine `box_matrix`: the similarity of every box of one set with every box of another.
#pragma once
#include "core/types.h"

namespace fastloss {

// Every array is contiguous and of the accumulate type (float, or double where is_double): the
// boxes are few beside the matrix, so the caller converts them.
struct BoxMatrixArguments {
  int similarity = 0;  // index in BoxSimilarities
  double parameters[kMaxParameters] = {};
  int64_t batch = 0, rows = 0, columns = 0;  // B, N, M
  const void* boxes1 = nullptr;              // [B, N, 4] xyxy
  const void* boxes2 = nullptr;              // [B, M, 4] xyxy
  void* values = nullptr;                    // [B, N, M]; null in the backward
  const void* upstream = nullptr;            // [B, N, M]; null in the forward
  void* gradient1 = nullptr;                 // [B, N, 4]; null: not wanted
  void* gradient2 = nullptr;                 // [B, M, 4]; null: not wanted
  bool is_double = false;
};

}  // namespace fastloss
