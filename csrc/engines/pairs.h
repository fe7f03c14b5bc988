// SPDX-License-Identifier: MIT
// Engine `pairs`: lists of scored items. A formula looks at the pairs of a list, at the places of
// its items or at the list in order. Nothing of the size of all pairs is ever in memory.
#pragma once
#include "core/types.h"

namespace fastloss {

// [lists, length] with any strides.
struct ListInput {
  Input input;
  int64_t list_stride = 0;
  int64_t item_stride = 0;
};

struct PairsArguments {
  int loss = 0;  // index in ListLosses
  double parameters[kMaxParameters] = {};
  int64_t lists = 0, length = 0;  // both above 0
  ListInput scores, relevance;
  ListInput counts;          // an item counts where this is not 0; null: all do
  void* gradient = nullptr;  // [lists, length] contiguous, of the accumulate type; null: not wanted
  LossOutput loss_output;    // values: contiguous [lists]
  bool mean = false;         // total and gradient are divided by what counts, pairs or lists
  void* scratch = nullptr;   // as many bytes as the backend's pairs_scratch asks for
  bool is_double = false;
};

}  // namespace fastloss
