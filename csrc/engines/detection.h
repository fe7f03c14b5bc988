// SPDX-License-Identifier: MIT
// Engine `detection`: what a dense, anchor-free detector predicts at every anchor, against the few
// boxes there are. Nothing here is as large as classes times anchors but the predictions.
#pragma once
#include "core/types.h"

namespace fastloss {

// The sides of a box, in the order of its coordinates.
constexpr int kSides = 4;

// Of an image: logits of classes, and of distributions of the distance to each side, at anchors;
// the few boxes that are there. Small arrays are contiguous and of the accumulate type.
struct DetectionArguments {
  int64_t batch = 0, classes = 0, bins = 0, anchors = 0, targets = 0;  // B, C, R, A, G
  Input logits, distances;                                             // [B, C, A], [B, 4 R, A]
  int64_t logit_stride[3] = {}, distance_stride[3] = {};
  const void* points = nullptr;     // [3, A]: x and y in cells, pixels per cell
  const int64_t* labels = nullptr;  // [B, G]; negative: no box
  const void* boxes = nullptr;      // [B, G, 4] xyxy, pixels
  bool is_double = false;
};

// The target of every anchor: those that suit a box best are its own.
struct AssignmentArguments : DetectionArguments {
  // Anchors per box, before each anchor has one box only, and after: 0 for any number.
  int64_t topk = 0, topk2 = 0;
  double alpha = 0.0, beta = 0.0;
  const void* reaches =
      nullptr;                 // [B, G, 4]: the boxes in which each box looks for anchors, pixels
  void* predicted = nullptr;   // scratch [B, 4, A]: the predicted boxes, pixels
  int32_t* chosen = nullptr;   // scratch of CUDA's [B, G, topk]: anchors, -1 where there are fewer
  int64_t* indices = nullptr;  // [B, A]: of the box, or -1
  void* scores = nullptr;      // [B, A]: how well it suits, 0 without one
};

// What a sum over the anchors that have a target is made of.
enum DetectionSum { kBoxSum, kPickedSum, kDistanceSum, kScoreSum, kDetectionSums };

// The losses of anchors with a target, each times its score: the box's, the logit of its class
// (which a cross-entropy of all logits against 0 lacks), the distances'.
struct DetectionLossArguments : DetectionArguments {
  const int64_t* indices = nullptr;  // [B, A]
  const void* scores = nullptr;      // [B, A]
  const void* weight = nullptr;      // [C], or null: 1
  void* sums = nullptr;              // [kDetectionSums]; null: gradients are wanted
  // For the gradients, which are written at anchors with a target only: of the logit of its class,
  // and of its distances.
  const void* factors = nullptr;             // [kDetectionSums - 1]
  Output logit_gradient, distance_gradient;  // null: not wanted
  int64_t logit_gradient_stride[3] = {}, distance_gradient_stride[3] = {};
};

}  // namespace fastloss
