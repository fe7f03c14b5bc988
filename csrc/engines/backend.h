// SPDX-License-Identifier: MIT
// A backend is one compilation of every engine: an instruction set of the CPU, or CUDA. All offer
// the same functions.
#pragma once
#include "engines/box_crowd.h"
#include "engines/box_matrix.h"
#include "engines/box_pair.h"
#include "engines/label_total.h"
#include "engines/pointwise.h"
#include "engines/scale.h"
#include "engines/sequence.h"
#include "engines/softmax.h"

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
  void (*crf)(const CrfArguments&, const Execution&);
  int64_t (*crf_scratch)(const CrfArguments&);
  void (*decode)(const DecodeArguments&, const Execution&);
  int64_t (*decode_scratch)(const DecodeArguments&);
  void (*scale)(const ScaleArguments&, const Execution&);
};

// What a formula is to its callers; the same in every backend.
struct LossInfo {
  const char* name;
  int parameters;
  int device_parameter_index;  // the parameter that may come from the device, or -1
  bool weighted_mean;  // a weighted mean divides by Σ weight (else by the number of elements)
  bool class_targets;  // integer targets may be class indices
  const char *input_name, *target_name;  // what a pointwise loss calls its arguments
  // Engine softmax: which parameters are these, or -1. That of the class weight holds NaN where the
  // weight is a tensor.
  int ignore_index, smoothing, softcap, class_weight;
  ClassTarget class_target;
};
struct LossList {
  const LossInfo* begin;
  int size;
  int find(const char* name) const;  // the index, or -1
};
struct Catalogue {
  LossList pointwise, box_pair, box_matrix, box_crowd, softmax;
};
const Catalogue& catalogue();

// The fastest CPU backend this processor runs, or the one the environment variable FASTLOSS_CPU_ISA
// names (std::runtime_error where that is unknown, not built or not supported here).
const Backend& cpu_backend();

// The CUDA backend, or null in a build without CUDA.
const Backend* cuda_backend();

}  // namespace fastloss
