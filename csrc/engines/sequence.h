// SPDX-License-Identifier: MIT
// Engine `sequence`: chains of steps, each of which has one of K tags. A tag has a score at every
// step, and so has every pair of neighbouring tags: the linear-chain conditional random field.
#pragma once
#include "core/types.h"

namespace fastloss {

enum class SequenceReduction { kNone, kSum, kMean, kTokenMean };

// A batch of chains.
struct Chains {
  int64_t sequences = 0, steps = 0, tags = 0;  // B, T, K: none is 0
  Input emissions;                             // [B, T, K], strided
  int64_t emission_stride[3] = {};
  Input mask;  // [B, T], strided, not 0 in the steps that count: the first ones of each sequence
  int64_t mask_stride[2] = {};  // without a mask every step counts
  // Contiguous and of the accumulate type (float, or double where is_double).
  const void* transitions = nullptr;  // [K, K] from, to
  const void* start = nullptr;        // [K]; null: all 0
  const void* end = nullptr;          // [K]; null: all 0
  bool is_double = false;
};

// The negative log-likelihood of given tags, and its gradients; or, where no tags are given, the
// probability of every tag at every step in place of the gradient of the emissions.
struct CrfArguments {
  Chains chains;
  Input labels;  // [B, T], strided; what stands where the mask is 0 is not looked at
  int64_t label_stride[2] = {};
  const void* upstream = nullptr;  // [B], accumulate type: factors of the gradients; null: all 1
  LossOutput loss_output;          // values: contiguous [B]
  Output emission_gradient;        // [B, T, K], strided; absent: not wanted
  int64_t gradient_stride[3] = {};
  // Contiguous, of the accumulate type, shaped as the scores; null: not wanted.
  void* transitions_gradient = nullptr;
  void* start_gradient = nullptr;
  void* end_gradient = nullptr;
  SequenceReduction reduction = SequenceReduction::kMean;
  bool defers_mean = false;  // the gradients are those of the sum
  void* scratch = nullptr;   // as many bytes as the backend's crf_scratch tells
};

// The best tags of every sequence.
struct DecodeArguments {
  Chains chains;
  int64_t* tags = nullptr;  // [B, T], -1 where the mask is 0
  void* scores = nullptr;   // [B], accumulate type
  void* scratch = nullptr;  // as many bytes as the backend's decode_scratch tells
};

// A mask that does not count the first steps of a sequence and no others, thrown by CPU kernels
// (CUDA kernels trap).
struct MaskNotPrefix {
  int64_t sequence, step;
};

}  // namespace fastloss
