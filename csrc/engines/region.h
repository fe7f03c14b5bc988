// SPDX-License-Identifier: MIT
// Engine `region`: sums over the voxels of a sample's class, a loss of the sums, and the gradient
// of that by voxel. Logits (B, C, *spatial) of any strides; targets as labels (B, *spatial) or as
// dense as the logits.
//
// Two passes over the logits: region_sums() reads them for the loss and leaves behind what the
// loss's slopes are, region_gradient() reads them again, when the upstream gradient is known.
// region_errors() is a pass for losses that rank voxels (engines/ranked_region.h).
#pragma once
#include <algorithm>

#include "core/layout.h"
#include "core/types.h"

namespace fastloss {

// Operands of the layout, in this order.
enum RegionOperand { kRegionInput, kRegionTarget, kRegionGradient, kRegionOperands };

enum class Activation { kSoftmax, kSigmoid, kNone };
enum class RegionReduction { kNone, kMean, kSum };

// Which voxels do not count.
enum class Ignore {
  kNone,
  kLabel,       // those with the label `ignore_index`
  kClass,       // dense targets: those of the class `ignore_index`
  kUnassigned,  // dense targets: those of no class
  kValue,       // dense targets: those whose target of class 0 is `ignore_index`
};

// Each sample's voxels are worked on in slices. Their number depends on sizes alone: so do sums.
struct RegionSlices {
  int64_t per_sample = 1;
  int64_t voxels = 0;  // of a slice, but for the last one
  // The numbers that are summed up: I, P and G of every class, the losses of voxels, and how many
  // count.
  int64_t row = 0;
};
enum RegionSum { kIntersection, kPrediction, kTarget, kClassSums };

struct RegionArguments {
  int loss = 0;  // index in RegionLosses
  double parameters[kMaxParameters] = {};
  int64_t batch = 0, classes = 0;  // B, C
  Layout layout;                   // the voxels of a sample
  int64_t batch_stride[kRegionOperands] = {}, class_stride[kRegionOperands] = {};
  Input input, target;
  bool labels = false;  // the targets are class indices; there is one per voxel, no class dimension
  Activation activation = Activation::kSoftmax;
  bool squared = false;            // P = Σ p², G = Σ g²
  bool include_background = true;  // class 0 is a region
  bool pools_batch = false;        // a region reaches over all samples
  Ignore ignore = Ignore::kNone;
  int64_t ignore_index = 0;
  const double* weight = nullptr;  // of the classes from `first_weighted` on; null: all 1
  int64_t first_weighted = 0;
  RegionReduction reduction = RegionReduction::kMean;
  bool is_double = false;  // arithmetic of voxels, and loss, in float64; sums always are

  // Accumulate type, contiguous. The slopes of the loss: [regions, C, 2] by I and by P, then [B],
  // the factor of each voxel's own loss. A region is a sample, or all of them.
  void* slopes = nullptr;

  RegionSlices slices;

  // region_sums only.
  double* scratch = nullptr;  // region_scratch() numbers
  LossOutput loss_output;     // values: [regions, classes that count], or [regions]

  // region_gradient only.
  Input upstream;   // accumulate type: one number, or as many as there are values
  Output gradient;  // region_errors: |p − g|, −1 where a voxel does not count
};

inline int64_t regions_of(const RegionArguments& arguments) {
  return arguments.pools_batch ? 1 : arguments.batch;
}
inline int64_t region_slopes(int64_t batch, int64_t classes, bool pools_batch) {
  return (pools_batch ? 1 : batch) * classes * 2 + batch;
}

// A block of threads takes few voxels: there are to be as many blocks as fill a GPU. A thread of a
// CPU takes enough of them to be worth its scratch memory.
inline RegionSlices region_slices(const RegionArguments& arguments, bool on_cpu) {
  constexpr int64_t kMost = 2048;
  const int64_t fewest = on_cpu ? 4096 : 512;
  const int64_t voxels = arguments.layout.numel;
  const int64_t wanted = (arguments.batch * voxels + kMost - 1) / kMost;
  const int64_t size = (wanted + fewest - 1) / fewest * fewest;
  return {(voxels + size - 1) / size, size, arguments.classes * kClassSums + 2};
}

// The sums of every slice, then those of every sample.
inline int64_t region_scratch(const RegionArguments& arguments) {
  return arguments.batch * (arguments.slices.per_sample + 1) * arguments.slices.row;
}

}  // namespace fastloss
