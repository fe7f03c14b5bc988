// SPDX-License-Identifier: MIT
// A backend is one compilation of every engine: an instruction set of the CPU, or CUDA. All offer
// the same functions.
#pragma once
#include "engines/batch_hard.h"
#include "engines/box_crowd.h"
#include "engines/box_matrix.h"
#include "engines/box_pair.h"
#include "engines/contrastive.h"
#include "engines/detection.h"
#include "engines/edges.h"
#include "engines/label_total.h"
#include "engines/matching.h"
#include "engines/ngrams.h"
#include "engines/pairs.h"
#include "engines/pointwise.h"
#include "engines/ranked_region.h"
#include "engines/region.h"
#include "engines/row_pair.h"
#include "engines/scale.h"
#include "engines/sequence.h"
#include "engines/softmax.h"
#include "engines/triplet.h"

namespace fastloss {

struct Backend {
  const char* name;
  bool needs_workspace;  // partial sums wait in Execution::workspace
  void (*pointwise)(const PointwiseArguments&, const Execution&);
  void (*box_pair)(const BoxPairArguments&, const Execution&);
  void (*box_matrix)(const BoxMatrixArguments&, const Execution&);
  void (*box_crowd)(const BoxCrowdArguments&, const Execution&);
  void (*softmax)(const SoftmaxArguments&, const Execution&);
  void (*label_total)(const LabelTotalArguments&, const Execution&);
  void (*region_sums)(const RegionArguments&, const Execution&);
  void (*region_gradient)(const RegionArguments&, const Execution&);
  void (*region_errors)(const RegionArguments&, const Execution&);
  void (*ranked_region)(const RankedRegionArguments&, const Execution&);
  int64_t (*pairs_scratch)(const PairsArguments&);
  void (*pairs)(const PairsArguments&, const Execution&);
  void (*triplet)(const TripletArguments&, const Execution&);
  void (*batch_hard)(const BatchHardArguments&, const Execution&);
  void (*batch_hard_gradient)(const BatchHardArguments&, const Execution&);
  void (*row_pair)(const RowPairArguments&, const Execution&);
  void (*edge_ends)(const EdgeEndsArguments&, const Execution&);
  void (*edge_order)(const EdgeOrderArguments&, const Execution&);  // null on CUDA: torch sorts
  void (*edges)(const EdgesArguments&, const Execution&);
  void (*contrastive_states)(const ContrastiveArguments&, const Execution&);
  void (*contrastive_gradient)(const ContrastiveArguments&, const Execution&);
  void (*detection_assignment)(const AssignmentArguments&, const Execution&);
  void (*detection_loss)(const DetectionLossArguments&, const Execution&);
  void (*crf)(const CrfArguments&, const Execution&);
  int64_t (*crf_scratch)(const CrfArguments&);
  void (*decode)(const DecodeArguments&, const Execution&);
  int64_t (*decode_scratch)(const DecodeArguments&);
  void (*matching)(const MatchingArguments&, const Execution&);
  void (*ngrams)(const NgramsArguments&, const Execution&);
  void (*scale)(const ScaleArguments&, const Execution&);
};

// What a formula is to its callers; the same in every backend.
struct LossInfo {
  const char* name;
  int parameters;
  int device_parameter_index = -1;  // the parameter that may come from the device, or -1
  bool weighted_mean =
      true;  // a weighted mean divides by Σ weight (else by the number of elements)
  // Engine softmax: which parameters are these, or -1. That of the class weight holds NaN where the
  // weight is a tensor.
  int ignore_index = -1, smoothing = -1, softcap = -1, class_weight = -1;
  ClassTarget class_target = ClassTarget::kIndex;
  bool classes_last = false;    // the classes are the last dimension, not torch's second one
  bool is_masked = false;       // `extra` tells which rows count
  bool has_row_weight = false;  // `weight` has a number per row, not per class
  // Of pointwise losses:
  Targets targets = Targets::kNumbers;
  bool has_range = false;  // whether an input outside [lowest, highest] is an error
  double lowest = 0, highest = 0;
  // What the loss calls its arguments (of the engines pointwise, softmax and box_pair).
  const char *input_name = "input", *target_name = "target", *extra_name = "pos_weight",
             *weight_name = "weight";
  // Of losses of a pair of boxes, or of points:
  int coordinates = 4;          // of either
  bool has_pair_extra = false;  // `extra` is a number per pair
  double of_nothing = 0.0;      // what there is without any element: 0, but for a metric
  // Of region losses:
  bool pools_classes = false;      // one loss for all classes together
  bool has_voxel_loss = false;     // adds a loss of voxels
  bool weighs_background = false;  // that has a class weight for the background, always
};
struct LossList {
  const LossInfo* begin;
  int size;
  int find(const char* name) const;  // the index, or -1
};
struct Catalogue {
  LossList pointwise, box_pair, box_matrix, box_crowd, softmax, region, ranked_region, pairs,
      triplet, batch_hard, row_pair, edges;
};
const Catalogue& catalogue();

// The fastest CPU backend this processor runs, or the one the environment variable FASTLOSS_CPU_ISA
// names (std::runtime_error where that is unknown, not built or not supported here).
const Backend& cpu_backend();

// The CUDA backend, or null in a build without CUDA.
const Backend* cuda_backend();

}  // namespace fastloss
