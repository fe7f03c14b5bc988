// SPDX-License-Identifier: MIT
// The losses of a policy as operators: those formulas of the engine `pointwise` that see the
// log-probabilities of tokens (..., T) in sequences, with a mask and a number per token or
// sequence.
#pragma once
#include <ATen/ops/full.h>
#include <ATen/ops/ne.h>

#include <string>
#include <vector>

#include "torch/losses.h"

namespace fastloss {

// All arguments but the log-probabilities, and the gradient that waits for backward.
struct PolicyCall : torch::CustomClassHolder {
  Options options;  // extra: the advantages; weight: the mask
  Tensor old_log_probs;
  OptionalTensor ref_log_probs;
  std::string normalizer;  // what the mean divides by
  // As with the other engines a float16 gradient is saved without the mean's factor.
  bool defers_mean = false;
  Tensor gradient;  // none once handed over

  PolicyCall(std::string_view loss, const Tensor& old_log_probs, const Tensor& advantages,
             const OptionalTensor& ref_log_probs, const OptionalTensor& mask, Parameters parameters,
             std::string_view normalizer, std::string_view reduction,
             const OptionalTensor& avg_factor, OptionalNumber avg_number)
      : options(loss, parameters, advantages, mask, reduction, avg_factor, avg_number),
        old_log_probs(old_log_probs),
        ref_log_probs(ref_log_probs),
        normalizer(normalizer) {}

  const LossInfo& info() const { return options.info(catalogue().pointwise); }
  const Tensor& advantages() const { return *options.extra; }
  const OptionalTensor& mask() const { return options.weight; }

  template <class Operator, class... More>
  auto call(const Operator& op, const Tensor& log_probs, More... more) const {
    return op.call(options.loss, log_probs, old_log_probs, advantages(), ref_log_probs, mask(),
                   options.parameters, normalizer, options.reduction, options.avg_factor,
                   options.avg_number, more...);
  }

  // visit(name, tensor) for the tensors of numbers beside the log-probabilities.
  template <class Visit>
  void for_each_other(const Visit& visit) const {
    visit(info().target_name, old_log_probs);
    visit(info().extra_name, advantages());
    if (ref_log_probs) visit("ref_log_probs", *ref_log_probs);
  }

  void check(const Tensor& log_probs) const {
    const std::string& loss = options.function;
    const char* input_name = info().input_name;
    check_floating(loss, input_name, log_probs);
    TORCH_CHECK_VALUE(log_probs.dim() >= 1, loss, ": ", input_name,
                      " must have a dimension of tokens, got a 0-d tensor");
    const c10::SymIntArrayRef sequences =
        log_probs.sym_sizes().slice(0, static_cast<size_t>(log_probs.dim() - 1));
    for_each_other([&](const char* name, const Tensor& tensor) {
      const bool per_sequence = tensor.is_same(advantages()) || info().targets == Targets::kNumbers;
      check_same_device(loss, name, tensor, input_name, log_probs);
      if (!per_sequence) {
        check_floating(loss, name, tensor);
        return check_same_shape(loss, name, tensor, input_name, log_probs);
      }
      check_number_type(loss, name, tensor);
      TORCH_CHECK_VALUE(
          tensor.sym_sizes() == log_probs.sym_sizes() || tensor.sym_sizes() == sequences, loss,
          ": ", name, " must have one number per token or per sequence, shape ",
          log_probs.sym_sizes(), " or ", sequences, ", got ", tensor.sym_sizes());
    });
    if (mask()) {
      check_mask(loss, "mask", *mask());
      check_same_device(loss, "mask", *mask(), input_name, log_probs);
      check_same_shape(loss, "mask", *mask(), input_name, log_probs);
    }
    check_number(loss, "avg_factor", options.avg_factor, input_name, log_probs);
    TORCH_CHECK_VALUE(normalizer == "grpo" || normalizer == "bnpo" || normalizer == "dr_grpo" ||
                          normalizer == "dapo",
                      loss, ": normalizer must be \"grpo\", \"bnpo\", \"dr_grpo\" or \"dapo\", ",
                      "got \"", normalizer, "\"");
    options.kind();
  }

  at::ScalarType accumulate_type(const Tensor& log_probs) const {
    bool is_double = log_probs.scalar_type() == at::kDouble;
    for_each_other([&](const char*, const Tensor& tensor) {
      is_double = is_double || tensor.scalar_type() == at::kDouble;
    });
    return is_double ? at::kDouble : at::kFloat;
  }

  bool averages_sequences() const {
    return options.kind() == Reduction::kMean && normalizer == "grpo";
  }

  // 1 / the number of a sequence's tokens [..., 1], for a mean over its own.
  Tensor sequence_weight(const Tensor& log_probs, at::ScalarType type) const {
    if (!averages_sequences()) return {};
    const auto of_type = log_probs.options().dtype(type);
    if (!mask()) return at::full({1}, 1.0 / static_cast<double>(log_probs.size(-1)), of_type);
    return mask()->ne(0).sum(-1, /*keepdim=*/true).clamp_min(1).to(type).reciprocal();
  }

  Mean mean(const Tensor& log_probs, at::ScalarType type) const {
    const bool counts_tokens = normalizer == "bnpo" || normalizer == "dapo";
    if (options.kind() == Reduction::kMean && !options.has_avg_factor()) {
      if (averages_sequences()) {
        const int64_t tokens = log_probs.size(-1);
        return divide_by(tokens == 0 ? 0.0 : static_cast<double>(log_probs.numel() / tokens));
      }
      if (counts_tokens && mask()) return {1.0, mask()->ne(0).sum().to(type)};
    }
    Options of_all = options;
    of_all.weight.reset();
    return mean_of(info(), of_all, log_probs, type, std::nullopt);
  }
};

inline std::tuple<Tensor, Tensor> policy_results(const PolicyCall& call, const Tensor& log_probs,
                                                 bool needs_gradient) {
  const auto options = log_probs.options().dtype(call.accumulate_type(log_probs));
  return {call.options.kind() == Reduction::kNone ? at::empty_like(log_probs, options)
                                                  : at::empty({}, options),
          needs_gradient ? empty_gradient(log_probs, false) : no_gradient(log_probs)};
}

inline std::tuple<Tensor, Tensor> policy_forward_meta(
    std::string_view loss, const Tensor& log_probs, const Tensor& old_log_probs,
    const Tensor& advantages, const OptionalTensor& ref_log_probs, const OptionalTensor& mask,
    Parameters parameters, std::string_view normalizer, std::string_view reduction,
    const OptionalTensor& avg_factor, OptionalNumber avg_number, bool needs_gradient) {
  const PolicyCall call(loss, old_log_probs, advantages, ref_log_probs, mask, parameters,
                        normalizer, reduction, avg_factor, avg_number);
  return policy_results(call, log_probs, needs_gradient);
}

inline std::tuple<Tensor, Tensor> policy_forward_kernel(
    std::string_view loss, const Tensor& log_probs, const Tensor& old_log_probs,
    const Tensor& advantages, const OptionalTensor& ref_log_probs, const OptionalTensor& mask,
    Parameters parameters, std::string_view normalizer, std::string_view reduction,
    const OptionalTensor& avg_factor, OptionalNumber avg_number, bool needs_gradient) {
  const PolicyCall call(loss, old_log_probs, advantages, ref_log_probs, mask, parameters,
                        normalizer, reduction, avg_factor, avg_number);
  call.check(log_probs);
  const auto result = policy_results(call, log_probs, needs_gradient);
  const Tensor &values = std::get<0>(result), &gradient = std::get<1>(result);
  if (log_probs.numel() == 0) {
    values.zero_();
    return result;
  }
  const auto type = values.scalar_type();
  const Mean mean = call.mean(log_probs, type);
  const auto per_token = [&](const Tensor& tensor) {
    const bool per_sequence = tensor.dim() + 1 == log_probs.dim();
    return (per_sequence ? tensor.unsqueeze(-1) : tensor).expand(log_probs.sizes());
  };
  const Tensor weight = call.sequence_weight(log_probs, type);
  Tensor operands[] = {log_probs,
                       per_token(old_log_probs),
                       per_token(advantages),
                       ref_log_probs ? *ref_log_probs : Tensor(),
                       mask ? *mask : Tensor(),
                       weight.defined() ? weight.expand(log_probs.sizes()) : Tensor()};

  PointwiseArguments arguments;
  arguments.loss = check_loss(catalogue().pointwise, loss, parameters);
  std::copy(parameters.begin(), parameters.end(), arguments.parameters);
  arguments.is_double = type == at::kDouble;
  arguments.loss_scale = mean.scale();
  if (!defers_mean(call.options, log_probs, log_probs)) arguments.gradient_scale = mean.scale();
  const bool unreduced = call.options.kind() == Reduction::kNone;
  constexpr int kPlaces[] = {kPointwiseInput,     kPointwiseTarget, kPointwisePosWeight,
                             kPointwiseReference, kPointwiseMask,   kPointwiseWeight};
  const auto layout = [&] {
    const Tensor* in_order[kPointwiseOperands] = {};
    for (size_t k = 0; k < std::size(kPlaces); ++k) {
      if (operands[k].defined()) in_order[kPlaces[k]] = &operands[k];
    }
    if (needs_gradient) in_order[kPointwiseInputGradient] = &gradient;
    if (unreduced) in_order[kPointwiseValues] = &values;
    return try_layout(arguments.layout, log_probs.sizes(), in_order, /*keep_order=*/false);
  };
  if (!layout()) {  // more dimensions than a layout holds
    for (Tensor& operand : operands) {
      if (operand.defined()) operand = operand.contiguous();
    }
    TORCH_CHECK_VALUE(layout(), call.options.function, ": log_probs has too many dimensions, ",
                      log_probs.dim());
  }
  Input* const inputs[] = {&arguments.input,     &arguments.target, &arguments.pos_weight,
                           &arguments.reference, &arguments.mask,   &arguments.weight};
  for (size_t k = 0; k < std::size(kPlaces); ++k) {
    if (operands[k].defined()) *inputs[k] = input_of(operands[k]);
  }
  if (needs_gradient) arguments.input_gradient = output_of(gradient);
  (unreduced ? arguments.loss_output.values : arguments.loss_output.total) =
      values.mutable_data_ptr();
  const Launch launch(log_probs);
  launch.backend().pointwise(arguments, launch.execution());
  return result;
}

struct PolicyLoss : torch::autograd::Function<PolicyLoss> {
  static auto forward_operator() {
    static const auto op = find_operator<PolicyForwardSignature>("fastloss::policy_forward");
    return op;
  }

  static Tensor forward(AutogradContext* context, const Tensor& log_probs,
                        const c10::intrusive_ptr<PolicyCall>& call) {
    at::AutoDispatchBelowADInplaceOrView below_autograd;
    auto [loss, gradient] = call->call(forward_operator(), log_probs, true);
    call->defers_mean = defers_mean(call->options, log_probs, log_probs);
    call->gradient = std::move(gradient);
    // Saved, not only kept with the call: torch then notices changes in place.
    variable_list saved = {log_probs, call->mask().value_or(Tensor()),
                           call->options.avg_factor.value_or(Tensor())};
    call->for_each_other([&](const char*, const Tensor& tensor) { saved.push_back(tensor); });
    context->save_for_backward(std::move(saved));
    context->saved_data["call"] = at::IValue::make_capsule(call);
    return loss;
  }

  static variable_list backward(AutogradContext* context, const variable_list& upstreams) {
    auto& call = static_cast<PolicyCall&>(*context->saved_data["call"].toCapsule());
    const Tensor log_probs = context->get_saved_variables()[0];
    if (c10::GradMode::is_enabled()) {
      static const auto reference = find_operator<PolicySignature>("fastloss::policy_reference");
      variable_list result = differentiable_gradients(call.call(reference, log_probs), {log_probs},
                                                      {true}, upstreams[0]);
      result.emplace_back();  // the call
      return result;
    }
    at::AutoDispatchBelowADInplaceOrView below_autograd;
    // Handed over, not copied. Should the graph be walked again, it is computed anew.
    Tensor gradient = std::move(call.gradient);
    call.gradient = Tensor();
    if (!gradient.defined()) {
      std::tie(std::ignore, gradient) = call.call(forward_operator(), log_probs, true);
    }
    Tensor upstream = upstreams[0];
    if (call.defers_mean)
      upstream = call.mean(log_probs, call.accumulate_type(log_probs)).times(upstream);
    return {scaled(std::move(gradient), upstream), Tensor()};
  }
};

inline Tensor policy_entry(std::string_view loss, const Tensor& log_probs,
                           const Tensor& old_log_probs, const Tensor& advantages,
                           const OptionalTensor& ref_log_probs, const OptionalTensor& mask,
                           Parameters parameters, std::string_view normalizer,
                           std::string_view reduction, const OptionalTensor& avg_factor,
                           OptionalNumber avg_number) {
  const auto call =
      c10::make_intrusive<PolicyCall>(loss, old_log_probs, advantages, ref_log_probs, mask,
                                      parameters, normalizer, reduction, avg_factor, avg_number);
  call->check(log_probs);
  bool serves = !(c10::GradMode::is_enabled() && requires_grad(avg_factor));
  call->for_each_other([&](const char*, const Tensor& tensor) {
    serves = serves && kernels_serve(log_probs, tensor) &&
             !(c10::GradMode::is_enabled() && tensor.requires_grad());
  });
  if (mask) serves = serves && kernels_serve(log_probs, *mask);
  if (!serves) {
    static const auto reference = find_operator<PolicySignature>("fastloss::policy_reference");
    return call->call(reference, log_probs);
  }
  if (c10::GradMode::is_enabled() && log_probs.requires_grad())
    return PolicyLoss::apply(log_probs, call);
  at::AutoDispatchBelowADInplaceOrView below_autograd;
  return std::get<0>(call->call(PolicyLoss::forward_operator(), log_probs, false));
}

}  // namespace fastloss
