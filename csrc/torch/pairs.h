// SPDX-License-Identifier: MIT
// The engine `pairs` as operators: lists of scored items.
#pragma once
#include "torch/losses.h"

namespace fastloss {

struct PairsEngine {
  static constexpr const char* kForward = "fastloss::pairs_forward";
  static constexpr const char* kReference = "fastloss::pairs_reference";
  static constexpr bool kSecondHasGradient = false;
  static constexpr bool kSavesWideGradients = true;

  static const LossInfo& check(const Tensor& scores, const Tensor& relevance,
                               const Options& options) {
    const LossList& losses = catalogue().pairs;
    const LossInfo& info = losses.begin[check_loss(losses, options.loss, options.parameters)];
    TORCH_CHECK_VALUE(!options.weight && !options.has_avg_factor(), public_name(options.loss),
                      ": there is neither weight nor avg_factor");
    options.kind();
    check_floating(options.loss, "scores", scores);
    TORCH_CHECK_VALUE(scores.dim() == 2, public_name(options.loss),
                      ": scores must have shape (lists, items), got ", scores.sym_sizes());
    // Places and items are counted in float32 vectors.
    TORCH_CHECK_VALUE(scores.sym_size(1) < (1 << 24), public_name(options.loss),
                      ": scores must hold fewer than 2^24 items a list, got ", scores.sym_sizes());
    check_number_type(options.loss, "relevance", relevance);
    check_same_device(options.loss, "relevance", relevance, "scores", scores);
    check_same_shape(options.loss, "relevance", relevance, "scores", scores);
    if (options.extra) {
      check_mask(options.loss, "mask", *options.extra);
      check_same_device(options.loss, "mask", *options.extra, "scores", scores);
      check_same_shape(options.loss, "mask", *options.extra, "scores", scores);
    }
    return info;
  }

  static Results allocate(const Tensor& scores, const Tensor& relevance, const Options& options,
                          Needs needs) {
    const auto wide = scores.options().dtype(accumulate_type(scores, relevance));
    const c10::SymInt lists = scores.sym_size(0);
    return {
        options.kind() == Reduction::kNone ? at::empty_symint({lists}, wide) : at::empty({}, wide),
        needs[0] ? at::empty_symint(scores.sym_sizes(), wide) : at::empty({0}, wide),
        no_gradient(relevance)};
  }

  static void run(const LossInfo& /*info*/, const Tensor& scores, const Tensor& relevance,
                  const Options& options, const Results& results, Needs needs) {
    PairsArguments arguments;
    arguments.loss = check_loss(catalogue().pairs, options.loss, options.parameters);
    std::copy(options.parameters.begin(), options.parameters.end(), arguments.parameters);
    arguments.lists = scores.size(0);
    arguments.length = scores.size(1);
    arguments.scores = list_input(scores);
    arguments.relevance = list_input(relevance);
    if (options.extra) arguments.counts = list_input(*options.extra);
    arguments.is_double = results.loss.scalar_type() == at::kDouble;
    arguments.mean = options.kind() == Reduction::kMean;
    if (needs[0]) arguments.gradient = results.first_gradient.mutable_data_ptr();
    (options.kind() == Reduction::kNone ? arguments.loss_output.values
                                        : arguments.loss_output.total) =
        results.loss.mutable_data_ptr();
    const Launch launch(scores);
    const Tensor scratch = at::empty({launch.backend().pairs_scratch(arguments)},
                                     results.loss.options().dtype(at::kByte));
    arguments.scratch = scratch.mutable_data_ptr();
    launch.backend().pairs(arguments, launch.execution());
  }

  // The engine divides by what counts itself; no gradient waits for it.
  static Mean mean(const LossInfo& /*info*/, const Tensor& /*scores*/, const Tensor& /*relevance*/,
                   const Options& /*options*/) {
    return {};
  }

  // The upstream gradient of the unreduced loss is one number for the items of a list.
  static Tensor upstream_of(const Options& /*options*/, const Tensor& upstream) {
    return upstream.dim() == 0 ? upstream : upstream.unsqueeze(-1);
  }

 private:
  static ListInput list_input(const Tensor& tensor) {
    return {input_of(tensor), tensor.stride(0), tensor.stride(1)};
  }
};

// A type of its own: its name is what `grad_fn` shows.
struct PairsLoss : LossFunction<PairsEngine, PairsLoss> {};

}  // namespace fastloss
