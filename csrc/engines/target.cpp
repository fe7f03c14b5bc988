// SPDX-License-Identifier: MIT
// The engines of one target as a Backend. Compiled once per target, like the engines themselves.
#include "engines/kernels.h"

#define FASTLOSS_QUOTE_EXPANDED(text) #text
#define FASTLOSS_QUOTE(text) FASTLOSS_QUOTE_EXPANDED(text)

namespace fastloss::FASTLOSS_TARGET {

extern const Backend kBackend;
#if defined(FASTLOSS_TARGET_IS_CUDA)
constexpr bool kNeedsWorkspace = true;
constexpr decltype(Backend::edge_order) kEdgeOrder = nullptr;
#else
constexpr bool kNeedsWorkspace = false;
constexpr decltype(Backend::edge_order) kEdgeOrder = edge_order;
#endif
const Backend kBackend{FASTLOSS_QUOTE(FASTLOSS_TARGET),
                       kNeedsWorkspace,
                       pointwise,
                       box_pair,
                       box_matrix,
                       box_crowd,
                       softmax,
                       label_total,
                       region_sums,
                       region_gradient,
                       region_errors,
                       ranked_region,
                       pairs_scratch,
                       pairs,
                       triplet,
                       batch_hard,
                       batch_hard_gradient,
                       row_pair,
                       edge_ends,
                       kEdgeOrder,
                       edges,
                       contrastive_states,
                       contrastive_gradient,
                       detection_assignment,
                       detection_loss,
                       crf,
                       crf_scratch,
                       decode,
                       decode_scratch,
                       matching,
                       ngrams,
                       scale};

}  // namespace fastloss::FASTLOSS_TARGET
