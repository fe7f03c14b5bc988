// SPDX-License-Identifier: MIT
// A linear layer and the cross-entropy behind it as one operator: logits exist for some rows at a
// time, and turn into their own gradient while they are in a cache.
#pragma once
#include <ATen/ops/add.h>
#include <ATen/ops/addmm.h>
#include <ATen/ops/linear.h>
#include <ATen/ops/mm.h>
#include <ATen/ops/reshape.h>
#include <ATen/ops/sum.h>
#include <ATen/ops/zeros.h>

#include "torch/softmax.h"

namespace fastloss {

using LinearNeeds = std::array<bool, 3>;  // the gradients of input, linear_weight, linear_bias

// The cross-entropy's options, under the name of this function.
inline Options linear_options(std::string_view loss, Parameters parameters,
                              const OptionalTensor& weight, std::string_view reduction,
                              const OptionalTensor& avg_factor, OptionalNumber avg_number) {
  Options options(loss, parameters, std::nullopt, weight, reduction, avg_factor, avg_number);
  options.function = "linear_cross_entropy";
  return options;
}

// The shape of all logits, [N, C], without the logits.
inline Tensor logits_like(const Tensor& input, const Tensor& linear_weight) {
  return at::empty({1, 1}, input.options())
      .expand_symint({input.sym_size(0), linear_weight.sym_size(0)});
}

// Sums over rows are kept in float32, or float64.
inline at::TensorOptions sum_options(const Tensor& like) {
  return like.options().dtype(accumulate_type(like, like));
}

inline std::tuple<Tensor, Tensor, Tensor, Tensor> linear_cross_entropy_meta(
    std::string_view loss, const Tensor& input, const Tensor& linear_weight,
    const OptionalTensor& /*linear_bias*/, const Tensor& target, Parameters parameters,
    const OptionalTensor& weight, std::string_view reduction, const OptionalTensor& avg_factor,
    OptionalNumber avg_number, const OptionalTensor& /*upstream*/, LinearNeeds needs) {
  const Options options =
      linear_options(loss, parameters, weight, reduction, avg_factor, avg_number);
  const Tensor logits = logits_like(input, linear_weight);
  const auto summed = [&](bool needed, const Tensor& like, c10::SymIntArrayRef shape) {
    return needed ? at::empty_symint(shape, sum_options(like)) : no_gradient(like);
  };
  return {SoftmaxEngine::allocate(logits, target, options, {false, false}).loss,
          summed(needs[0], input, input.sym_sizes()),
          summed(needs[1], linear_weight, linear_weight.sym_sizes()),
          summed(needs[2], linear_weight, linear_weight.sym_sizes().slice(0, 1))};
}

// Rows of logits at a time. The weight is read and its gradient updated once for every chunk, so a
// chunk is as large as the memory it takes allows: a sixteenth of the weight, or 8 MiB.
inline int64_t rows_per_chunk(const Tensor& input, const Tensor& linear_weight) {
  const int64_t bytes =
      std::max<int64_t>(static_cast<int64_t>(linear_weight.nbytes()) / 16, int64_t{8} << 20);
  const int64_t row = linear_weight.size(0) * static_cast<int64_t>(input.element_size());
  return std::clamp<int64_t>(bytes / row / 16 * 16, 16, std::max<int64_t>(input.size(0), 1));
}

// With `upstream`, the gradients are those of the unreduced loss weighted by it.
inline std::tuple<Tensor, Tensor, Tensor, Tensor> linear_cross_entropy_kernel(
    std::string_view loss, const Tensor& input, const Tensor& linear_weight,
    const OptionalTensor& linear_bias, const Tensor& target, Parameters parameters,
    const OptionalTensor& weight, std::string_view reduction, const OptionalTensor& avg_factor,
    OptionalNumber avg_number, const OptionalTensor& upstream, LinearNeeds needs) {
  auto [values, input_gradient, weight_gradient, bias_gradient] =
      linear_cross_entropy_meta(loss, input, linear_weight, linear_bias, target, parameters, weight,
                                reduction, avg_factor, avg_number, upstream, needs);
  if (needs[1]) weight_gradient.zero_();
  if (needs[2]) bias_gradient.zero_();
  if (values.dim() == 0) values.zero_();
  const int64_t rows = input.size(0);
  if (rows == 0) return {values, input_gradient, weight_gradient, bias_gradient};

  const Options all = linear_options(loss, parameters, weight, reduction, avg_factor, avg_number);
  const Tensor logits_shape = logits_like(input, linear_weight);
  const LossInfo& info = SoftmaxEngine::check(logits_shape, target, all);
  const auto type = accumulate_type(input, target);
  if (info.class_target == ClassTarget::kIndex) {  // a bad label is reported before the work
    label_total(all.function, "target", target, SoftmaxEngine::ignored(info, all),
                linear_weight.size(0) - 1, std::nullopt, type);
  }
  // The mean over all rows, for the chunks to divide by.
  Options of_chunk = all;
  if (all.kind() == Reduction::kMean) {
    const Mean mean = SoftmaxEngine::mean(info, logits_shape, target, all);
    of_chunk.avg_factor.reset();
    of_chunk.avg_number.reset();
    if (mean.divisor.defined()) {
      of_chunk.avg_factor = mean.divisor.div(mean.factor);
    } else {
      of_chunk.avg_number = mean.factor == 0.0 ? 0.0 : 1.0 / mean.factor;
    }
  }
  const bool any = needs[0] || needs[1] || needs[2];
  const int64_t step = rows_per_chunk(input, linear_weight);
  Tensor logits = at::empty({std::min(step, rows), linear_weight.size(0)}, input.options());
  for (int64_t begin = 0; begin < rows; begin += step) {
    const int64_t count = std::min(step, rows - begin);
    const Tensor x = input.narrow(0, begin, count), t = target.narrow(0, begin, count);
    Tensor chunk = logits.narrow(0, 0, count);
    if (linear_bias) {
      at::addmm_out(chunk, *linear_bias, x, linear_weight.t());
    } else {
      at::mm_out(chunk, x, linear_weight.t());
    }
    const bool unreduced = values.dim() > 0;
    const Tensor of_rows = unreduced ? values.narrow(0, begin, count) : at::empty_like(values);
    // The gradient takes the place of the logits.
    SoftmaxEngine::run(info, chunk, t, of_chunk, {of_rows, chunk, Tensor()}, {any, false});
    if (!unreduced) values.add_(of_rows);
    if (!any) continue;
    if (upstream) chunk.mul_(upstream->narrow(0, begin, count).unsqueeze(1));
    if (needs[0]) {
      Tensor slice = input_gradient.narrow(0, begin, count);
      if (slice.scalar_type() == chunk.scalar_type()) {
        at::mm_out(slice, chunk, linear_weight);
      } else {
        slice.copy_(at::mm(chunk, linear_weight));
      }
    }
    if (needs[1]) {
      if (weight_gradient.scalar_type() == chunk.scalar_type()) {
        weight_gradient.addmm_(chunk.t(), x);
      } else {
        weight_gradient.add_(at::mm(chunk.t(), x));
      }
    }
    if (needs[2]) bias_gradient.add_(chunk.sum(0, /*keepdim=*/false, bias_gradient.scalar_type()));
  }
  return {values, input_gradient, weight_gradient, bias_gradient};
}

// The options, and the gradients that wait for backward.
struct LinearCrossEntropyCall : torch::CustomClassHolder {
  explicit LinearCrossEntropyCall(Options options) : options(std::move(options)) {}
  Options options;
  bool defers_mean = false;
  variable_list gradients;  // of input, linear_weight and linear_bias; none once handed over

  template <class Operator, class... More>
  auto call(const Operator& op, const Tensor& input, const Tensor& linear_weight,
            const OptionalTensor& linear_bias, const Tensor& target, More... more) const {
    return op.call(options.loss, input, linear_weight, linear_bias, target, options.parameters,
                   options.weight, options.reduction, options.avg_factor, options.avg_number,
                   more...);
  }
};

struct LinearCrossEntropyFunction : torch::autograd::Function<LinearCrossEntropyFunction> {
  static auto forward_operator() {
    static const auto op =
        find_operator<LinearCrossEntropyForwardSignature>("fastloss::linear_cross_entropy_forward");
    return op;
  }

  static Tensor forward(AutogradContext* context, const Tensor& input, const Tensor& linear_weight,
                        const OptionalTensor& linear_bias, const Tensor& target,
                        const c10::intrusive_ptr<LinearCrossEntropyCall>& call) {
    at::AutoDispatchBelowADInplaceOrView below_autograd;
    // The gradient of the unreduced loss needs the upstream gradient first: a weight's is a sum
    // over all rows.
    const bool now = call->options.reduction != "none";
    const LinearNeeds needs{now && input.requires_grad(), now && linear_weight.requires_grad(),
                            now && requires_grad(linear_bias)};
    auto [loss, input_gradient, weight_gradient, bias_gradient] = call->call(
        forward_operator(), input, linear_weight, linear_bias, target, OptionalTensor(), needs);
    call->defers_mean = defers_mean(call->options, input, target);
    if (now) call->gradients = {input_gradient, weight_gradient, bias_gradient};
    context->save_for_backward({input, linear_weight, linear_bias.value_or(Tensor()), target,
                                call->options.weight.value_or(Tensor()),
                                call->options.avg_factor.value_or(Tensor())});
    context->saved_data["call"] = at::IValue::make_capsule(call);
    return loss;
  }

  static variable_list backward(AutogradContext* context, const variable_list& upstreams) {
    auto& call = static_cast<LinearCrossEntropyCall&>(*context->saved_data["call"].toCapsule());
    const variable_list saved = context->get_saved_variables();
    const Tensor &input = saved[0], &linear_weight = saved[1], &target = saved[3];
    const OptionalTensor bias = saved[2].defined() ? OptionalTensor(saved[2]) : std::nullopt;
    const LinearNeeds needs{context->needs_input_grad(0), context->needs_input_grad(1),
                            bias && context->needs_input_grad(2)};
    if (c10::GradMode::is_enabled()) {
      static const auto reference =
          find_operator<LinearCrossEntropySignature>("fastloss::linear_cross_entropy_reference");
      const Tensor loss = call.call(reference, input, linear_weight, bias, target);
      variable_list result = differentiable_gradients(loss, {input, linear_weight, saved[2]},
                                                      {needs[0], needs[1], needs[2]}, upstreams[0]);
      result.resize(5);
      return result;
    }
    at::AutoDispatchBelowADInplaceOrView below_autograd;
    const bool unreduced = call.options.reduction == "none";
    variable_list gradients = std::move(call.gradients);
    call.gradients.clear();
    if (gradients.empty()) {
      gradients.resize(3);
      std::tie(std::ignore, gradients[0], gradients[1], gradients[2]) =
          call.call(forward_operator(), input, linear_weight, bias, target,
                    unreduced ? OptionalTensor(upstreams[0]) : std::nullopt, needs);
    }
    Tensor upstream = upstreams[0];
    if (call.defers_mean) {
      const Tensor logits = logits_like(input, linear_weight);
      const LossInfo& info = SoftmaxEngine::check(logits, target, call.options);
      upstream = SoftmaxEngine::mean(info, logits, target, call.options).times(upstream);
    }
    variable_list result(5);
    const at::ScalarType types[3] = {input.scalar_type(), linear_weight.scalar_type(),
                                     bias ? bias->scalar_type() : at::kFloat};
    for (size_t i = 0; i < 3; ++i) {
      if (!needs[i]) continue;
      const Tensor gradient = unreduced ? gradients[i] : scaled(std::move(gradients[i]), upstream);
      result[i] = narrowed(gradient, types[i]);
    }
    return result;
  }
};

inline Tensor linear_cross_entropy_entry(std::string_view loss, const Tensor& input,
                                         const Tensor& linear_weight,
                                         const OptionalTensor& linear_bias, const Tensor& target,
                                         Parameters parameters, const OptionalTensor& weight,
                                         std::string_view reduction,
                                         const OptionalTensor& avg_factor,
                                         OptionalNumber avg_number) {
  constexpr std::string_view kName = "linear_cross_entropy";
  check_floating(kName, "input", input);
  TORCH_CHECK_VALUE(linear_weight.dim() == 2, kName,
                    ": linear_weight must have shape (classes, features), got ",
                    linear_weight.sym_sizes());
  const c10::SymInt classes = linear_weight.sym_size(0), features = linear_weight.sym_size(1);
  TORCH_CHECK_VALUE(input.dim() >= 1 && input.sym_size(-1) == features, kName,
                    ": input must have the ", features,
                    " features of linear_weight in its last dimension, got ", input.sym_sizes());
  TORCH_CHECK_VALUE(features >= 1, kName, ": linear_weight must have a feature at least, got ",
                    linear_weight.sym_sizes());
  for (const auto& [name, tensor] : {std::pair("linear_weight", OptionalTensor(linear_weight)),
                                     std::pair("linear_bias", linear_bias)}) {
    if (!tensor) continue;
    check_same_device(kName, name, *tensor, "input", input);
    TORCH_CHECK_TYPE(tensor->scalar_type() == input.scalar_type(), kName, ": ", name,
                     " must have the dtype of input, ", input.scalar_type(), ", got ",
                     tensor->scalar_type());
  }
  if (linear_bias) {
    TORCH_CHECK_VALUE(
        linear_bias->dim() == 1 && linear_bias->sym_size(0) == linear_weight.sym_size(0), kName,
        ": linear_bias must have one number per class, shape (", linear_weight.sym_size(0),
        "), got ", linear_bias->sym_sizes());
  }
  const auto leading = input.sym_sizes().slice(0, static_cast<size_t>(input.dim() - 1));
  c10::SymDimVector expected(leading.begin(), leading.end());
  const bool probabilities = at::isFloatingType(target.scalar_type());
  if (probabilities) expected.push_back(classes);
  TORCH_CHECK_VALUE(target.sym_sizes() == c10::SymIntArrayRef(expected), kName,
                    ": target must have one class index per row of input, shape ", leading,
                    ", or one probability per class, got ", target.sym_sizes());
  const Tensor rows = input.reshape_symint({-1, features});
  const Tensor targets =
      probabilities ? target.reshape_symint({-1, classes}) : target.reshape({-1});
  Options options = linear_options(loss, parameters, weight, reduction, avg_factor, avg_number);
  SoftmaxEngine::check(logits_like(rows, linear_weight), targets, options);
  const bool unreduced = options.kind() == Reduction::kNone;
  const bool tracks = c10::GradMode::is_enabled();
  const bool reference =
      needs_reference<SoftmaxEngine>(rows, targets, options) ||
      is_functorch_wrapped(linear_weight) || has_tangent(linear_weight) ||
      (linear_bias && (is_functorch_wrapped(*linear_bias) || has_tangent(*linear_bias)));
  auto call = c10::make_intrusive<LinearCrossEntropyCall>(std::move(options));
  const Tensor result = [&] {
    if (reference) {
      static const auto op =
          find_operator<LinearCrossEntropySignature>("fastloss::linear_cross_entropy_reference");
      return call->call(op, rows, linear_weight, linear_bias, targets);
    }
    if (tracks &&
        (input.requires_grad() || linear_weight.requires_grad() || requires_grad(linear_bias))) {
      return LinearCrossEntropyFunction::apply(rows, linear_weight, linear_bias, targets, call);
    }
    at::AutoDispatchBelowADInplaceOrView below_autograd;
    return std::get<0>(call->call(LinearCrossEntropyFunction::forward_operator(), rows,
                                  linear_weight, linear_bias, targets, OptionalTensor(),
                                  LinearNeeds{false, false, false}));
  }();
  return unreduced ? result.reshape_symint(leading) : result;
}

}  // namespace fastloss
