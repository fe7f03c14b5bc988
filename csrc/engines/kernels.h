// SPDX-License-Identifier: MIT
// The engines of one target, as its sources define them; backend.cpp gathers them.
#pragma once
#include "core/macros.h"
#include "engines/backend.h"

namespace fastloss::FASTLOSS_TARGET {

void pointwise(const PointwiseArguments& arguments, const Execution& execution);
void box_pair(const BoxPairArguments& arguments, const Execution& execution);
void box_matrix(const BoxMatrixArguments& arguments, const Execution& execution);
void box_crowd(const BoxCrowdArguments& arguments, const Execution& execution);
void softmax(const SoftmaxArguments& arguments, const Execution& execution);
void label_total(const LabelTotalArguments& arguments, const Execution& execution);
void region_sums(const RegionArguments& arguments, const Execution& execution);
void region_gradient(const RegionArguments& arguments, const Execution& execution);
void region_errors(const RegionArguments& arguments, const Execution& execution);
void ranked_region(const RankedRegionArguments& arguments, const Execution& execution);
int64_t pairs_scratch(const PairsArguments& arguments);
void pairs(const PairsArguments& arguments, const Execution& execution);
void triplet(const TripletArguments& arguments, const Execution& execution);
void batch_hard(const BatchHardArguments& arguments, const Execution& execution);
void batch_hard_gradient(const BatchHardArguments& arguments, const Execution& execution);
void row_pair(const RowPairArguments& arguments, const Execution& execution);
void edge_ends(const EdgeEndsArguments& arguments, const Execution& execution);
void edge_order(const EdgeOrderArguments& arguments, const Execution& execution);  // the CPU's
void edges(const EdgesArguments& arguments, const Execution& execution);
void contrastive_states(const ContrastiveArguments& arguments, const Execution& execution);
void contrastive_gradient(const ContrastiveArguments& arguments, const Execution& execution);
void detection_assignment(const AssignmentArguments& arguments, const Execution& execution);
void detection_loss(const DetectionLossArguments& arguments, const Execution& execution);
void crf(const CrfArguments& arguments, const Execution& execution);
int64_t crf_scratch(const CrfArguments& arguments);
void decode(const DecodeArguments& arguments, const Execution& execution);
int64_t decode_scratch(const DecodeArguments& arguments);
void matching(const MatchingArguments& arguments, const Execution& execution);
void ngrams(const NgramsArguments& arguments, const Execution& execution);
void scale(const ScaleArguments& arguments, const Execution& execution);

}  // namespace fastloss::FASTLOSS_TARGET
