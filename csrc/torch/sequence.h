// SPDX-License-Identifier: MIT
// The engine `sequence` as operators: conditional random fields.
#pragma once
#include <ATen/ops/count_nonzero.h>
#include <ATen/ops/empty_like.h>

#include <string>
#include <vector>

#include "engines/sequence.h"
#include "torch/autograd.h"
#include "torch/checks.h"
#include "torch/labels.h"
#include "torch/tensors.h"

namespace fastloss {

// What scores a chain, as the operators pass it on.
struct ChainScores {
  const Tensor &emissions, &transitions;
  const OptionalTensor &start, &end, &mask;

  bool has_double() const {
    const auto is_double = [](const Tensor& tensor) { return tensor.scalar_type() == at::kDouble; };
    return is_double(emissions) || is_double(transitions) || (start && is_double(*start)) ||
           (end && is_double(*end));
  }
  // The dtype of the arithmetic and of the results.
  at::ScalarType type() const { return has_double() ? at::kDouble : at::kFloat; }

  template <class Visit>
  void for_each(const Visit& visit) const {
    visit("emissions", emissions);
    visit("transitions", transitions);
    if (start) visit("start_transitions", *start);
    if (end) visit("end_transitions", *end);
  }
};

inline SequenceReduction sequence_reduction(std::string_view reduction) {
  const auto result = reduction == "mean"         ? SequenceReduction::kMean
                      : reduction == "sum"        ? SequenceReduction::kSum
                      : reduction == "token_mean" ? SequenceReduction::kTokenMean
                      : reduction == "none"       ? SequenceReduction::kNone
                                                  : std::optional<SequenceReduction>();
  TORCH_CHECK_VALUE(
      result, "crf_loss: reduction must be \"none\", \"mean\", \"sum\" or \"token_mean\", got \"",
      reduction, "\"");
  return *result;
}

inline void check_chains(const char* function, const ChainScores& scores) {
  scores.for_each([&](const char* name, const Tensor& tensor) {
    check_floating(function, name, tensor);
    check_same_device(function, name, tensor, "emissions", scores.emissions);
  });
  TORCH_CHECK_VALUE(scores.emissions.dim() == 3, function,
                    ": emissions must have shape (B, T, K), got ", scores.emissions.sym_sizes());
  const auto sequences = scores.emissions.sym_size(0), steps = scores.emissions.sym_size(1),
             tags = scores.emissions.sym_size(2);
  TORCH_CHECK_VALUE(steps > 0 && tags > 0, function,
                    ": emissions must have at least one step and one tag, got shape ",
                    scores.emissions.sym_sizes());
  const auto check_shape = [&](const char* name, const OptionalTensor& tensor,
                               std::initializer_list<c10::SymInt> shape, const char* text) {
    if (!tensor) return;
    TORCH_CHECK_VALUE(tensor->sym_sizes() == c10::SymIntArrayRef(shape), function, ": ", name,
                      " must have shape ", text, " = ", c10::SymIntArrayRef(shape),
                      " for emissions (B, T, K) = ", scores.emissions.sym_sizes(), ", got ",
                      tensor->sym_sizes());
  };
  check_shape("transitions", scores.transitions, {tags, tags}, "(K, K)");
  check_shape("start_transitions", scores.start, {tags}, "(K,)");
  check_shape("end_transitions", scores.end, {tags}, "(K,)");
  if (scores.mask) {
    const auto type = scores.mask->scalar_type();
    TORCH_CHECK_TYPE(type == at::kBool || at::isIntegralType(type, /*includeBool=*/false), function,
                     ": mask must be bool or an integer type, got ", type);
    check_same_device(function, "mask", *scores.mask, "emissions", scores.emissions);
    check_shape("mask", scores.mask, {sequences, steps}, "(B, T)");
  }
}

inline void check_tags(const ChainScores& scores, const Tensor& tags) {
  check_integer("crf_loss", "tags", tags);
  check_same_device("crf_loss", "tags", tags, "emissions", scores.emissions);
  TORCH_CHECK_VALUE(tags.sym_sizes() == scores.emissions.sym_sizes().slice(0, 2),
                    "crf_loss: tags must have shape (B, T) = ",
                    scores.emissions.sym_sizes().slice(0, 2), ", got ", tags.sym_sizes());
}

// The kernels' view of the scores; keeps alive what it points to.
struct DenseChains {
  Tensor transitions, start, end;
  Chains chains;

  explicit DenseChains(const ChainScores& scores) {
    const auto dense = [&](const OptionalTensor& tensor) {
      return tensor ? tensor->detach().to(scores.type()).contiguous() : Tensor();
    };
    transitions = dense(scores.transitions);
    start = dense(scores.start);
    end = dense(scores.end);
    chains.sequences = scores.emissions.size(0);
    chains.steps = scores.emissions.size(1);
    chains.tags = scores.emissions.size(2);
    chains.emissions = input_of(scores.emissions);
    std::copy_n(scores.emissions.strides().begin(), 3, chains.emission_stride);
    if (scores.mask) {
      chains.mask = input_of(*scores.mask);
      std::copy_n(scores.mask->strides().begin(), 2, chains.mask_stride);
    }
    chains.transitions = transitions.const_data_ptr();
    if (start.defined()) chains.start = start.const_data_ptr();
    if (end.defined()) chains.end = end.const_data_ptr();
    chains.is_double = scores.type() == at::kDouble;
  }
};

inline Tensor scratch_like(const Tensor& tensor, int64_t bytes) {
  return at::empty({bytes}, tensor.options().dtype(at::kByte));
}

// Runs a CPU kernel that reads masks, and says which one is no prefix.
template <class Run>
void with_mask_errors(const char* function, const Run& run) {
  try {
    run();
  } catch (const MaskNotPrefix& bad) {
    TORCH_CHECK_VALUE(
        bad.step > 0, function,
        ": mask must count the first step of every sequence, got 0 there in sequence ",
        bad.sequence);
    TORCH_CHECK_VALUE(false, function,
                      ": mask must count the first steps of a sequence and no others, got a step ",
                      "that counts, ", bad.step, ", after one that does not in sequence ",
                      bad.sequence);
  }
}

// ---- the loss ----

inline std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> crf_meta(
    const Tensor& emissions, const Tensor& /*tags*/, const Tensor& transitions,
    const OptionalTensor& start, const OptionalTensor& end, const OptionalTensor& mask,
    std::string_view reduction, const OptionalTensor& /*upstream*/, ChainNeeds needs) {
  const ChainScores scores{emissions, transitions, start, end, mask};
  const auto options = emissions.options().dtype(scores.type());
  const bool unreduced = sequence_reduction(reduction) == SequenceReduction::kNone;
  const auto gradient = [&](const OptionalTensor& like, bool wanted) {
    return wanted ? at::empty_symint(like->sym_sizes(), like->options()) : no_gradient(emissions);
  };
  return {unreduced ? at::empty_symint({emissions.sym_size(0)}, options) : at::empty({}, options),
          needs[0] ? empty_gradient(emissions, false) : no_gradient(emissions),
          gradient(transitions, needs[1]), gradient(start, needs[2]), gradient(end, needs[3])};
}

// The mean is taken off float16 gradients until backward: a small factor would push them below
// float16's smallest numbers.
inline bool chain_defers_mean(const Tensor& emissions, std::string_view reduction) {
  return emissions.scalar_type() == at::kHalf && (reduction == "mean" || reduction == "token_mean");
}

inline std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> crf_kernel(
    const Tensor& emissions, const Tensor& tags, const Tensor& transitions,
    const OptionalTensor& start, const OptionalTensor& end, const OptionalTensor& mask,
    std::string_view reduction, const OptionalTensor& upstream, ChainNeeds needs) {
  const ChainScores scores{emissions, transitions, start, end, mask};
  check_chains("crf_loss", scores);
  check_tags(scores, tags);
  auto results =
      crf_meta(emissions, tags, transitions, start, end, mask, reduction, upstream, needs);
  auto& [loss, emission_gradient, transitions_gradient, start_gradient, end_gradient] = results;
  if (emissions.numel() == 0) {
    for (Tensor* tensor : {&loss, &transitions_gradient, &start_gradient, &end_gradient})
      tensor->zero_();
    return results;
  }
  const DenseChains dense(scores);
  CrfArguments arguments;
  arguments.chains = dense.chains;
  arguments.labels = input_of(tags);
  std::copy_n(tags.strides().begin(), 2, arguments.label_stride);
  const Tensor dense_upstream =
      upstream ? upstream->detach().to(scores.type()).contiguous() : Tensor();
  if (upstream) arguments.upstream = dense_upstream.const_data_ptr();
  arguments.reduction = sequence_reduction(reduction);
  arguments.defers_mean = chain_defers_mean(emissions, reduction);
  (arguments.reduction == SequenceReduction::kNone ? arguments.loss_output.values
                                                   : arguments.loss_output.total) =
      loss.mutable_data_ptr();
  if (needs[0]) {
    arguments.emission_gradient = output_of(emission_gradient);
    std::copy_n(emission_gradient.strides().begin(), 3, arguments.gradient_stride);
  }
  Tensor* const gradients[3] = {&transitions_gradient, &start_gradient, &end_gradient};
  void** const pointers[3] = {&arguments.transitions_gradient, &arguments.start_gradient,
                              &arguments.end_gradient};
  Tensor typed[3];
  for (int i = 0; i < 3; ++i) {
    if (!needs[static_cast<size_t>(i + 1)]) continue;
    typed[i] = gradients[i]->scalar_type() == scores.type()
                   ? *gradients[i]
                   : at::empty_like(*gradients[i], gradients[i]->options().dtype(scores.type()));
    *pointers[i] = typed[i].mutable_data_ptr();
  }
  const Launch launch(emissions);
  const Tensor scratch = scratch_like(emissions, launch.backend().crf_scratch(arguments));
  arguments.scratch = scratch.mutable_data_ptr();
  try {
    with_mask_errors("crf_loss", [&] { launch.backend().crf(arguments, launch.execution()); });
  } catch (const LabelOutOfRange&) {
    const Tensor counted = mask ? tags.mul(mask->ne(0)) : tags;
    report_label("crf_loss", "tags", counted, {}, arguments.chains.tags - 1);
  }
  for (int i = 0; i < 3; ++i) {
    if (typed[i].defined()) *gradients[i] = narrowed(typed[i], gradients[i]->scalar_type());
  }
  return results;
}

// The arguments of a loss that have no gradient, kept for backward together with the gradients.
struct CrfCall : torch::CustomClassHolder {
  Tensor tags;
  OptionalTensor mask;
  std::string reduction;
  Tensor gradients[4];  // handed over by the first backward

  template <class Operator, class... More>
  auto call(const Operator& op, const Tensor& emissions, const Tensor& transitions,
            const OptionalTensor& start, const OptionalTensor& end, More... more) const {
    return op.call(emissions, tags, transitions, start, end, mask, reduction, more...);
  }

  // What the mean multiplies a deferred gradient with.
  Tensor times_mean(const Tensor& upstream, const Tensor& emissions) const {
    if (reduction == "token_mean" && mask) return upstream.div(at::count_nonzero(*mask));
    const auto count =
        reduction == "mean" ? emissions.sym_size(0) : emissions.sym_size(0) * emissions.sym_size(1);
    return upstream.div(c10::Scalar(count));
  }
};

struct CrfFunction : torch::autograd::Function<CrfFunction> {
  static auto forward_operator() {
    static const auto op = find_operator<CrfForwardSignature>("fastloss::crf_forward");
    return op;
  }

  static Tensor forward(AutogradContext* context, const Tensor& emissions,
                        const Tensor& transitions, const OptionalTensor& start,
                        const OptionalTensor& end, const c10::intrusive_ptr<CrfCall>& call) {
    at::AutoDispatchBelowADInplaceOrView below_autograd;
    // All sequences share the transitions: their gradient needs the upstream gradient of the
    // unreduced losses first.
    const bool reduces = call->reduction != "none";
    const ChainNeeds needs{reduces && emissions.requires_grad(),
                           reduces && transitions.requires_grad(), reduces && requires_grad(start),
                           reduces && requires_grad(end)};
    auto [loss, of_emissions, of_transitions, of_start, of_end] =
        call->call(forward_operator(), emissions, transitions, start, end, OptionalTensor(), needs);
    // Saved, not only kept with the call: torch then notices changes in place.
    context->save_for_backward({emissions, transitions, start.value_or(Tensor()),
                                end.value_or(Tensor()), call->tags, call->mask.value_or(Tensor())});
    if (reduces) {
      call->gradients[0] = of_emissions;
      call->gradients[1] = of_transitions;
      call->gradients[2] = of_start;
      call->gradients[3] = of_end;
    }
    context->saved_data["call"] = at::IValue::make_capsule(call);
    return loss;
  }

  static variable_list backward(AutogradContext* context, const variable_list& upstreams) {
    auto& call = static_cast<CrfCall&>(*context->saved_data["call"].toCapsule());
    const variable_list saved = context->get_saved_variables();
    const Tensor &emissions = saved[0], &transitions = saved[1];
    const auto optional = [](const Tensor& tensor) {
      return tensor.defined() ? OptionalTensor(tensor) : std::nullopt;
    };
    const OptionalTensor start = optional(saved[2]), end = optional(saved[3]);
    const ChainNeeds needs{emissions.requires_grad(), transitions.requires_grad(),
                           requires_grad(start), requires_grad(end)};
    Tensor upstream = upstreams[0];
    if (c10::GradMode::is_enabled()) {
      static const auto reference = find_operator<CrfSignature>("fastloss::crf_reference");
      const Tensor loss = call.call(reference, emissions, transitions, start, end);
      variable_list result =
          differentiable_gradients(loss, {saved[0], saved[1], saved[2], saved[3]},
                                   std::vector<bool>(needs.begin(), needs.end()), upstream);
      result.emplace_back();  // the call
      return result;
    }
    at::AutoDispatchBelowADInplaceOrView below_autograd;
    const bool unreduced = call.reduction == "none";
    Tensor gradients[4];
    const bool kept = call.gradients[0].defined();
    for (int i = 0; i < 4; ++i) gradients[i] = std::exchange(call.gradients[i], Tensor());
    if (!kept) {
      std::tie(std::ignore, gradients[0], gradients[1], gradients[2], gradients[3]) =
          call.call(forward_operator(), emissions, transitions, start, end,
                    unreduced ? OptionalTensor(upstream) : OptionalTensor(), needs);
    }
    if (chain_defers_mean(emissions, call.reduction))
      upstream = call.times_mean(upstream, emissions);
    variable_list result(5);
    for (size_t i = 0; i < 4; ++i) {
      if (!needs[i]) continue;
      result[i] = unreduced ? gradients[i] : scaled(std::move(gradients[i]), upstream);
    }
    return result;
  }
};

inline bool chain_kernels_serve(const ChainScores& scores) {
  bool serve = true;
  scores.for_each([&](const char*, const Tensor& tensor) {
    serve = serve && kernels_serve(scores.emissions, tensor);
  });
  return serve;
}

inline bool chain_requires_grad(const ChainScores& scores) {
  bool any = false;
  scores.for_each([&](const char*, const Tensor& tensor) { any = any || tensor.requires_grad(); });
  return any && c10::GradMode::is_enabled();
}

inline Tensor crf_entry(const Tensor& emissions, const Tensor& tags, const Tensor& transitions,
                        const OptionalTensor& start, const OptionalTensor& end,
                        const OptionalTensor& mask, std::string_view reduction) {
  const ChainScores scores{emissions, transitions, start, end, mask};
  sequence_reduction(reduction);
  check_chains("crf_loss", scores);
  check_tags(scores, tags);
  if (!chain_kernels_serve(scores)) {
    static const auto reference = find_operator<CrfSignature>("fastloss::crf_reference");
    return reference.call(emissions, tags, transitions, start, end, mask, reduction);
  }
  if (chain_requires_grad(scores)) {
    auto call = c10::make_intrusive<CrfCall>();
    call->tags = tags;
    call->mask = mask;
    call->reduction = reduction;
    return CrfFunction::apply(emissions, transitions, start, end, call);
  }
  at::AutoDispatchBelowADInplaceOrView below_autograd;
  return std::get<0>(CrfFunction::forward_operator().call(
      emissions, tags, transitions, start, end, mask, reduction, OptionalTensor(), ChainNeeds{}));
}

// ---- the probabilities of the tags ----

inline Tensor crf_marginals_meta(const Tensor& emissions, const Tensor& transitions,
                                 const OptionalTensor& start, const OptionalTensor& end,
                                 const OptionalTensor& mask) {
  const ChainScores scores{emissions, transitions, start, end, mask};
  return at::empty_symint(emissions.sym_sizes(), emissions.options().dtype(scores.type()));
}

inline Tensor crf_marginals_kernel(const Tensor& emissions, const Tensor& transitions,
                                   const OptionalTensor& start, const OptionalTensor& end,
                                   const OptionalTensor& mask) {
  const ChainScores scores{emissions, transitions, start, end, mask};
  check_chains("crf_marginals", scores);
  Tensor marginals = crf_marginals_meta(emissions, transitions, start, end, mask);
  if (emissions.numel() == 0) return marginals;
  const DenseChains dense(scores);
  CrfArguments arguments;
  arguments.chains = dense.chains;
  arguments.reduction = SequenceReduction::kSum;
  arguments.emission_gradient = output_of(marginals);
  std::copy_n(marginals.strides().begin(), 3, arguments.gradient_stride);
  const Launch launch(emissions);
  const Tensor scratch = scratch_like(emissions, launch.backend().crf_scratch(arguments));
  arguments.scratch = scratch.mutable_data_ptr();
  with_mask_errors("crf_marginals", [&] { launch.backend().crf(arguments, launch.execution()); });
  return marginals;
}

// Their gradient is a second derivative of the loss: the twin computes it.
struct MarginalsFunction : torch::autograd::Function<MarginalsFunction> {
  static auto forward_operator() {
    static const auto op = find_operator<MarginalsSignature>("fastloss::crf_marginals_forward");
    return op;
  }

  static Tensor forward(AutogradContext* context, const Tensor& emissions,
                        const Tensor& transitions, const OptionalTensor& start,
                        const OptionalTensor& end, const OptionalTensor& mask) {
    at::AutoDispatchBelowADInplaceOrView below_autograd;
    context->save_for_backward({emissions, transitions, start.value_or(Tensor()),
                                end.value_or(Tensor()), mask.value_or(Tensor())});
    return forward_operator().call(emissions, transitions, start, end, mask);
  }

  static variable_list backward(AutogradContext* context, const variable_list& upstreams) {
    const variable_list saved = context->get_saved_variables();
    variable_list scores(saved.begin(), saved.begin() + 4);
    std::vector<bool> needs;
    for (const Tensor& score : scores) needs.push_back(score.defined() && score.requires_grad());
    const bool again = c10::GradMode::is_enabled();
    if (!again) {
      for (size_t i = 0; i < scores.size(); ++i) {
        if (needs[i]) scores[i] = scores[i].detach().requires_grad_();
      }
    }
    const at::AutoGradMode with_graph(true);
    const auto optional = [](const Tensor& tensor) {
      return tensor.defined() ? OptionalTensor(tensor) : std::nullopt;
    };
    static const auto reference =
        find_operator<MarginalsSignature>("fastloss::crf_marginals_reference");
    const Tensor marginals = reference.call(scores[0], scores[1], optional(scores[2]),
                                            optional(scores[3]), optional(saved[4]));
    variable_list result = differentiable_gradients(marginals, scores, needs, upstreams[0]);
    if (!again) {
      for (Tensor& gradient : result) {
        if (gradient.defined()) gradient = gradient.detach();
      }
    }
    result.emplace_back();  // the mask
    return result;
  }
};

inline Tensor crf_marginals_entry(const Tensor& emissions, const Tensor& transitions,
                                  const OptionalTensor& start, const OptionalTensor& end,
                                  const OptionalTensor& mask) {
  const ChainScores scores{emissions, transitions, start, end, mask};
  check_chains("crf_marginals", scores);
  if (!chain_kernels_serve(scores)) {
    static const auto reference =
        find_operator<MarginalsSignature>("fastloss::crf_marginals_reference");
    return reference.call(emissions, transitions, start, end, mask);
  }
  if (chain_requires_grad(scores))
    return MarginalsFunction::apply(emissions, transitions, start, end, mask);
  at::AutoDispatchBelowADInplaceOrView below_autograd;
  return MarginalsFunction::forward_operator().call(emissions, transitions, start, end, mask);
}

// ---- the best tags ----

inline std::tuple<Tensor, Tensor> crf_decode_meta(const Tensor& emissions,
                                                  const Tensor& transitions,
                                                  const OptionalTensor& start,
                                                  const OptionalTensor& end,
                                                  const OptionalTensor& mask) {
  const ChainScores scores{emissions, transitions, start, end, mask};
  const auto options = emissions.options();
  return {at::empty_symint(emissions.sym_sizes().slice(0, 2), options.dtype(at::kLong)),
          at::empty_symint({emissions.sym_size(0)}, options.dtype(scores.type()))};
}

inline std::tuple<Tensor, Tensor> crf_decode_kernel(const Tensor& emissions,
                                                    const Tensor& transitions,
                                                    const OptionalTensor& start,
                                                    const OptionalTensor& end,
                                                    const OptionalTensor& mask) {
  const ChainScores scores{emissions, transitions, start, end, mask};
  check_chains("crf_decode", scores);
  auto results = crf_decode_meta(emissions, transitions, start, end, mask);
  if (emissions.numel() == 0) return results;
  const DenseChains dense(scores);
  DecodeArguments arguments;
  arguments.chains = dense.chains;
  arguments.tags = std::get<0>(results).mutable_data_ptr<int64_t>();
  arguments.scores = std::get<1>(results).mutable_data_ptr();
  const Launch launch(emissions);
  const Tensor scratch = scratch_like(emissions, launch.backend().decode_scratch(arguments));
  arguments.scratch = scratch.mutable_data_ptr();
  with_mask_errors("crf_decode", [&] { launch.backend().decode(arguments, launch.execution()); });
  return results;
}

// Nothing flows back through the choice of the best.
inline std::tuple<Tensor, Tensor> crf_decode_entry(const Tensor& emissions,
                                                   const Tensor& transitions,
                                                   const OptionalTensor& start,
                                                   const OptionalTensor& end,
                                                   const OptionalTensor& mask) {
  const ChainScores scores{emissions, transitions, start, end, mask};
  check_chains("crf_decode", scores);
  static const auto op = find_operator<DecodeSignature>("fastloss::crf_decode_forward");
  static const auto reference = find_operator<DecodeSignature>("fastloss::crf_decode_reference");
  const auto& chosen = chain_kernels_serve(scores) ? op : reference;
  const auto detached = [](const OptionalTensor& tensor) {
    return tensor ? OptionalTensor(tensor->detach()) : std::nullopt;
  };
  return chosen.call(emissions.detach(), transitions.detach(), detached(start), detached(end),
                     mask);
}

}  // namespace fastloss
