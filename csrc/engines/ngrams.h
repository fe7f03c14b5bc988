// SPDX-License-Identifier: MIT
// Engine `ngrams`: sentences of tokens and the references of each; how many n-grams they share.
#pragma once
#include "core/types.h"

namespace fastloss {

struct NgramsArguments {
  int64_t sentences = 0;                        // B, above 0
  int64_t length = 0, reference_length = 0;     // T, Tr: of the rows, padding included
  int64_t references = 0;                       // R
  Input candidates;                             // [B, T], integers
  int64_t candidate_stride[2] = {};             //
  Input reference_tokens;                       // [B, R, Tr], integers
  int64_t reference_stride[3] = {};             //
  int64_t pad_index = -1;                       // ends a sentence
  int64_t max_order = 4;                        // at least 1
  double added = 0, unmatched = 0, fading = 1;  // the smoothing, as SentenceBleu takes it
  float* scores = nullptr;                      // [B]
};

}  // namespace fastloss
