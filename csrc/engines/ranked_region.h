// SPDX-License-Identifier: MIT
// Engine `ranked_region`: the errors of a region's voxels, sorted, each weighted by how much a set
// function grows when its voxel joins those before it. The errors are region_errors()', the sort is
// torch's; the gradient is region_gradient()'s, with the weights in place of the targets.
#pragma once
#include "core/types.h"

namespace fastloss {

// A region is a sample, or all of them; it has `voxels` voxels, and one ranking for each class.
struct RankedRegionArguments {
  int loss = 0;  // index in RankedRegionLosses
  int64_t regions = 0, classes = 0, voxels = 0;
  const void* errors = nullptr;    // [regions, classes, voxels], largest first; −1: does not count
  const int64_t* order = nullptr;  // [regions, classes, voxels], the voxel of each error
  Input labels;                    // [regions, voxels], contiguous
  int64_t ignored_class = -1;      // whose voxels do not count
  bool present = true;             // classes without a voxel do not count
  bool mean = true;                // over the classes that count, then over the regions
  bool is_double = false;

  // Of each voxel and class, in the voxels' own order: the slope of the class's loss by its
  // probability; kNoStep where it does not count. Null: not wanted.
  void* steps = nullptr;
  // [regions, classes, 2]: what the class's loss is multiplied with, and 0.
  void* slopes = nullptr;
  double* scratch = nullptr;  // [regions, classes, 2]
  LossOutput loss_output;     // values: [regions, classes]
};
// A step is in [-1, 1].
constexpr int64_t kNoStep = 2;

}  // namespace fastloss
