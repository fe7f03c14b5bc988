// SPDX-License-Identifier: MIT
// The engine `ngrams` as an operator: BLEU of sentences.
#pragma once
#include <algorithm>

#include "torch/autograd.h"
#include "torch/checks.h"
#include "torch/tensors.h"

namespace fastloss {

inline void check_sentences(const Tensor& candidates, const Tensor& references) {
  constexpr const char* kName = "sentence_bleu";
  check_integer(kName, "candidates", candidates);
  check_integer(kName, "references", references);
  check_same_device(kName, "references", references, "candidates", candidates);
  TORCH_CHECK_VALUE(candidates.dim() == 2, kName, ": candidates must have shape (B, T), got ",
                    candidates.sym_sizes());
  TORCH_CHECK_VALUE((references.dim() == 2 || references.dim() == 3) &&
                        references.sym_size(0) == candidates.sym_size(0),
                    kName, ": references must have shape (B, T) or (B, R, T) with B = ",
                    candidates.sym_size(0), " as candidates have, got ", references.sym_sizes());
}

// Sets how the arguments smooth; the defaults are sacrebleu's.
inline void set_smoothing(NgramsArguments& arguments, std::string_view smoothing,
                          OptionalNumber value) {
  constexpr const char* kName = "sentence_bleu";
  const bool takes_value = smoothing == "floor" || smoothing == "add-k";
  TORCH_CHECK_VALUE(takes_value || smoothing == "none" || smoothing == "exp", kName,
                    ": smoothing must be \"none\", \"floor\", \"add-k\" or \"exp\", got \"",
                    smoothing, "\"");
  TORCH_CHECK_VALUE(takes_value || !value, kName,
                    ": smoothing_value needs smoothing=\"floor\" or \"add-k\", got smoothing=\"",
                    smoothing, "\"");
  if (smoothing == "floor") arguments.unmatched = value.value_or(0.1);
  if (smoothing == "add-k") arguments.added = value.value_or(1.0);
  if (smoothing == "exp") {
    arguments.unmatched = 1.0;
    arguments.fading = 0.5;
  }
}

inline Tensor sentence_bleu_meta(const Tensor& candidates, const Tensor& /*references*/,
                                 int64_t /*max_order*/, std::string_view /*smoothing*/,
                                 OptionalNumber /*smoothing_value*/, int64_t /*pad_index*/) {
  return at::empty_symint({candidates.sym_size(0)}, candidates.options().dtype(at::kFloat));
}

inline Tensor sentence_bleu_kernel(const Tensor& candidates, const Tensor& references,
                                   int64_t max_order, std::string_view smoothing,
                                   OptionalNumber smoothing_value, int64_t pad_index) {
  check_sentences(candidates, references);
  NgramsArguments arguments;
  set_smoothing(arguments, smoothing, smoothing_value);
  Tensor scores =
      sentence_bleu_meta(candidates, references, max_order, smoothing, smoothing_value, pad_index);
  if (candidates.numel() == 0 || references.numel() == 0) return scores.zero_();
  const Tensor several = references.dim() == 3 ? references : references.unsqueeze(1);
  arguments.sentences = candidates.size(0);
  arguments.length = candidates.size(1);
  arguments.references = several.size(1);
  arguments.reference_length = several.size(2);
  TORCH_CHECK_VALUE(std::max(arguments.length, arguments.reference_length) <= INT32_MAX,
                    "sentence_bleu: sentences must be shorter than 2**31 tokens, got ",
                    candidates.sizes(), " and ", references.sizes());
  arguments.candidates = input_of(candidates);
  std::copy_n(candidates.strides().begin(), 2, arguments.candidate_stride);
  arguments.reference_tokens = input_of(several);
  std::copy_n(several.strides().begin(), 3, arguments.reference_stride);
  arguments.pad_index = pad_index;
  arguments.max_order = max_order;
  arguments.scores = scores.mutable_data_ptr<float>();
  const Launch launch(candidates);
  launch.backend().ngrams(arguments, launch.execution());
  return scores;
}

// Counts have no gradient.
inline Tensor sentence_bleu_entry(const Tensor& candidates, const Tensor& references,
                                  int64_t max_order, std::string_view smoothing,
                                  OptionalNumber smoothing_value, int64_t pad_index) {
  check_sentences(candidates, references);
  NgramsArguments unused;
  set_smoothing(unused, smoothing, smoothing_value);
  static const auto op = find_operator<SentenceBleuSignature>("fastloss::sentence_bleu_forward");
  static const auto reference =
      find_operator<SentenceBleuSignature>("fastloss::sentence_bleu_reference");
  const auto& chosen = kernels_serve(candidates, references) ? op : reference;
  return chosen.call(candidates, references, max_order, smoothing, smoothing_value, pad_index);
}

}  // namespace fastloss
