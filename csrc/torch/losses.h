// SPDX-License-Identifier: MIT
// What the engines of two tensors (input and target, predicted and target boxes) share as
// operators: parameters, one extra tensor, the options of the reduction, autograd. An engine's own
// part, the checks, the shapes and the call of the kernel, is a struct in the header of its name.
#pragma once
#include <ATen/ops/mul.h>
#include <ATen/ops/where.h>
#include <ATen/ops/zeros_like.h>

#include <string>

#include "torch/autograd.h"
#include "torch/checks.h"
#include "torch/tensors.h"

namespace fastloss {

// Everything but the two tensors, as the operators pass it on and backward needs it again.
struct Options {
  std::string loss;      // the formula
  std::string function;  // what messages call it
  c10::SmallVector<double, kMaxParameters> parameters;
  OptionalTensor extra;  // pointwise: pos_weight, quantiles; box_pair: what lives on the device
  OptionalTensor weight;
  std::string reduction;
  OptionalTensor avg_factor;
  OptionalNumber avg_number;

  Options(std::string_view loss, Parameters parameters, const OptionalTensor& extra,
          const OptionalTensor& weight, std::string_view reduction,
          const OptionalTensor& avg_factor, OptionalNumber avg_number)
      : loss(loss),
        function(public_name(loss)),
        parameters(parameters.begin(), parameters.end()),
        extra(extra),
        weight(weight),
        reduction(reduction),
        avg_factor(avg_factor),
        avg_number(avg_number) {}

  const LossInfo& info(const LossList& losses) const {
    return losses.begin[check_loss(losses, loss, parameters)];
  }
  bool has_avg_factor() const { return avg_factor || avg_number; }
  Reduction kind() const { return check_reduction(function, reduction, has_avg_factor()); }

  template <class Operator, class... More>
  auto call(const Operator& op, const Tensor& first, const Tensor& second, More... more) const {
    return op.call(loss, first, second, parameters, extra, weight, reduction, avg_factor,
                   avg_number, more...);
  }
};

// What the mean multiplies with: factor / divisor. The divisor is a tensor where only the device
// knows it.
struct Mean {
  double factor = 1.0;
  Tensor divisor;

  Scale scale() const { return {factor, divisor.defined() ? input_of(divisor) : Input{}}; }

  Tensor times(const Tensor& number) const {
    const Tensor scaled = number.mul(factor);
    if (!divisor.defined()) return scaled;
    return at::where(divisor.eq(0), at::zeros_like(scaled), scaled.div(divisor));
  }
};

inline Mean divide_by(double number) { return {number == 0.0 ? 0.0 : 1.0 / number, {}}; }

// The mean divides by avg_factor, by Σ weight or by the number of elements. `rows`, only for
// weighted means, holds True for the rows of elements that count, where not all do.
inline Mean mean_of(const LossInfo& info, const Options& options, const Tensor& values,
                    at::ScalarType type, const OptionalTensor& rows) {
  if (options.kind() != Reduction::kMean) return {};
  if (options.avg_number) return divide_by(*options.avg_number);
  if (options.avg_factor) {
    const Tensor& number = *options.avg_factor;
    if (number.is_cpu() && !values.is_cpu() && !values.is_meta())
      return divide_by(number.item<double>());
    return {1.0, number.detach().to(type)};
  }
  const double numel = static_cast<double>(values.numel());
  const bool weighted = options.weight && info.weighted_mean;
  if (rows) {
    const Tensor row_weight = options.weight->detach().to(type).expand(values.sizes()).sum(-1);
    return {1.0, at::where(*rows, row_weight, at::zeros_like(row_weight)).sum()};
  }
  if (!weighted) return divide_by(numel);
  const double repeats =
      static_cast<double>(options.weight->numel()) / (numel == 0.0 ? 1.0 : numel);
  return {repeats, options.weight->detach().to(type).sum()};
}

// A mean over many elements would push float16 gradients below their smallest number, before a
// gradient scaler can lift them. They are saved as for a sum, and the backward, which has to scale
// them anyway, applies the mean.
inline bool defers_mean(const Options& options, const Tensor& first, const Tensor& second) {
  return options.reduction == "mean" &&
         (first.scalar_type() == at::kHalf || second.scalar_type() == at::kHalf);
}

// The tensors one forward call returns, allocated alike for real and for meta tensors.
struct Results {
  Tensor loss, first_gradient, second_gradient;
  std::tuple<Tensor, Tensor, Tensor> as_tuple() const {
    return {loss, first_gradient, second_gradient};
  }
};

template <class Engine>
std::tuple<Tensor, Tensor, Tensor> forward_meta(
    std::string_view loss, const Tensor& first, const Tensor& second, Parameters parameters,
    const OptionalTensor& extra, const OptionalTensor& weight, std::string_view reduction,
    const OptionalTensor& avg_factor, OptionalNumber avg_number, Needs needs) {
  const Options options(loss, parameters, extra, weight, reduction, avg_factor, avg_number);
  return Engine::allocate(first, second, options, needs).as_tuple();
}

template <class Engine>
std::tuple<Tensor, Tensor, Tensor> forward_kernel(
    std::string_view loss, const Tensor& first, const Tensor& second, Parameters parameters,
    const OptionalTensor& extra, const OptionalTensor& weight, std::string_view reduction,
    const OptionalTensor& avg_factor, OptionalNumber avg_number, Needs needs) {
  const Options options(loss, parameters, extra, weight, reduction, avg_factor, avg_number);
  const LossInfo& info = Engine::check(first, second, options);
  Results results = Engine::allocate(first, second, options, needs);
  if (first.numel() == 0) {
    results.loss.zero_();
  } else {
    Engine::run(info, first, second, options, results, needs);
  }
  return results.as_tuple();
}

// Where the kernels cannot serve, the twin in plain PyTorch does.
template <class Engine>
bool needs_reference(const Tensor& first, const Tensor& second, const Options& options) {
  if (!kernels_serve(first, second)) return true;
  return c10::GradMode::is_enabled() &&
         ((!Engine::kSecondHasGradient && second.requires_grad()) || requires_grad(options.extra) ||
          requires_grad(options.weight) || requires_grad(options.avg_factor));
}

// The gradients that the forward pass computed wait here for backward.
struct SavedGradients : torch::CustomClassHolder {
  SavedGradients(Options options, bool defers_mean, Tensor first, Tensor second)
      : options(std::move(options)),
        defers_mean(defers_mean),
        first(std::move(first)),
        second(std::move(second)) {}
  Options options;
  bool defers_mean;
  Tensor first, second;
};

template <class EngineOfLoss, class Derived>
struct LossFunction : torch::autograd::Function<Derived> {
  using Engine = EngineOfLoss;

  static auto forward_operator() {
    static const auto op = find_operator<LossForwardSignature>(Engine::kForward);
    return op;
  }

  static Tensor forward(AutogradContext* context, const Tensor& first, const Tensor& second,
                        const Options& options) {
    at::AutoDispatchBelowADInplaceOrView below_autograd;
    const Needs needs{first.requires_grad(), second.requires_grad()};
    auto [loss, first_gradient, second_gradient] =
        options.call(forward_operator(), first, second, needs);
    // Saved, not only kept with the options: torch then notices changes in place.
    context->save_for_backward({first, second, options.extra.value_or(Tensor()),
                                options.weight.value_or(Tensor()),
                                options.avg_factor.value_or(Tensor())});
    context->saved_data["gradients"] = at::IValue::make_capsule(
        c10::make_intrusive<SavedGradients>(options, defers_mean(options, first, second),
                                            std::move(first_gradient), std::move(second_gradient)));
    return loss;
  }

  static variable_list backward(AutogradContext* context, const variable_list& upstreams) {
    auto& saved = static_cast<SavedGradients&>(*context->saved_data["gradients"].toCapsule());
    const Needs needs{context->needs_input_grad(0), context->needs_input_grad(1)};
    if (c10::GradMode::is_enabled()) {
      static const auto reference = find_operator<LossSignature>(Engine::kReference);
      const variable_list inputs = context->get_saved_variables();
      const Tensor loss = saved.options.call(reference, inputs[0], inputs[1]);
      variable_list result = differentiable_gradients(loss, {inputs[0], inputs[1]},
                                                      {needs[0], needs[1]}, upstreams[0]);
      result.emplace_back();  // the options
      return result;
    }

    at::AutoDispatchBelowADInplaceOrView below_autograd;
    // Handed over, not copied. Should the graph be walked again, the gradients are computed anew.
    Tensor gradients[2] = {std::move(saved.first), std::move(saved.second)};
    saved.first = saved.second = Tensor();
    if (!gradients[0].defined()) {
      const variable_list inputs = context->get_saved_variables();
      std::tie(std::ignore, gradients[0], gradients[1]) =
          saved.options.call(forward_operator(), inputs[0], inputs[1], needs);
    }
    Tensor upstream = upstreams[0];
    if (saved.defers_mean) {
      const variable_list inputs = context->get_saved_variables();
      const LossInfo& info = Engine::check(inputs[0], inputs[1], saved.options);
      upstream = Engine::mean(info, inputs[0], inputs[1], saved.options).times(upstream);
    }
    upstream = Engine::upstream_of(saved.options, upstream);
    variable_list result(3);
    for (int i = 0; i < 2; ++i) {
      if (needs[i]) result[i] = scaled(std::move(gradients[i]), upstream);
    }
    return result;
  }
};

template <class Function>
Tensor loss_entry(std::string_view loss, const Tensor& first, const Tensor& second,
                  Parameters parameters, const OptionalTensor& extra, const OptionalTensor& weight,
                  std::string_view reduction, const OptionalTensor& avg_factor,
                  OptionalNumber avg_number) {
  const Options options(loss, parameters, extra, weight, reduction, avg_factor, avg_number);
  using Engine = typename Function::Engine;
  Engine::check(first, second, options);
  if (needs_reference<Engine>(first, second, options)) {
    static const auto reference = find_operator<LossSignature>(Engine::kReference);
    return options.call(reference, first, second);
  }
  if (c10::GradMode::is_enabled() && (first.requires_grad() || second.requires_grad())) {
    return Function::apply(first, second, options);
  }
  at::AutoDispatchBelowADInplaceOrView below_autograd;
  return std::get<0>(
      options.call(Function::forward_operator(), first, second, Needs{false, false}));
}

}  // namespace fastloss
