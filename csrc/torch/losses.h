// SPDX-License-Identifier: MIT
// The engines `pointwise` and `box_pair` as operators. Both see a first and a second tensor (input
// and target, predicted and target boxes), parameters, one extra tensor and the options of the
// reduction.
#pragma once
#include <ATen/ops/count_nonzero.h>
#include <ATen/ops/ge.h>
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
  std::string loss;
  c10::SmallVector<double, kMaxParameters> parameters;
  OptionalTensor extra;  // pointwise: pos_weight; box_pair: the parameter that lives on the device
  OptionalTensor weight;
  std::string reduction;
  OptionalTensor avg_factor;
  OptionalNumber avg_number;

  Options(std::string_view loss, Parameters parameters, const OptionalTensor& extra,
          const OptionalTensor& weight, std::string_view reduction,
          const OptionalTensor& avg_factor, OptionalNumber avg_number)
      : loss(loss),
        parameters(parameters.begin(), parameters.end()),
        extra(extra),
        weight(weight),
        reduction(reduction),
        avg_factor(avg_factor),
        avg_number(avg_number) {}

  bool has_avg_factor() const { return avg_factor || avg_number; }
  Reduction kind() const { return check_reduction(loss, reduction, has_avg_factor()); }

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

// The mean divides by avg_factor, by Σ weight or by the number of elements that count. `rows` holds
// True for the rows of elements that count, where not all do.
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
    if (!weighted)
      return {numel == 0.0 ? 0.0 : static_cast<double>(rows->numel()) / numel,
              at::count_nonzero(*rows).to(type)};
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

struct PointwiseEngine {
  static constexpr const char* kForward = "fastloss::pointwise_forward";
  static constexpr const char* kReference = "fastloss::pointwise_reference";

  static bool has_class_targets(const LossInfo& info, const Tensor& input, const Tensor& target) {
    return info.class_targets && target.dim() + 1 == input.dim() &&
           !at::isFloatingType(target.scalar_type()) &&
           target.sym_sizes() == input.sym_sizes().slice(0, input.dim() - 1);
  }

  static const LossInfo& check(const Tensor& input, const Tensor& target, const Options& options) {
    const LossList& losses = catalogue().pointwise;
    const LossInfo& info = losses.begin[check_loss(losses, options.loss, options.parameters)];
    options.kind();
    check_floating(options.loss, info.input_name, input);
    check_same_device(options.loss, info.target_name, target, info.input_name, input);
    if (has_class_targets(info, input, target)) {
      check_integer(options.loss, info.target_name, target);
    } else {
      check_number_type(options.loss, info.target_name, target);
      TORCH_CHECK_VALUE(
          target.sym_sizes() == input.sym_sizes(), public_name(options.loss), ": ",
          info.target_name, " must have the shape of ", info.input_name, ", ", input.sym_sizes(),
          info.class_targets ? ", or be integers of that shape without the last dimension" : "",
          ", got ", target.sym_sizes());
    }
    for (const auto& [name, tensor] :
         {std::pair("weight", &options.weight), std::pair("pos_weight", &options.extra)}) {
      if (!*tensor) continue;
      check_number_type(options.loss, name, **tensor);
      check_same_device(options.loss, name, **tensor, info.input_name, input);
      check_broadcastable(options.loss, name, **tensor, info.input_name, input);
    }
    check_number(options.loss, "avg_factor", options.avg_factor, info.input_name, input);
    return info;
  }

  static Results allocate(const Tensor& input, const Tensor& target, const Options& options,
                          Needs needs) {
    const auto type = accumulate_type(input, target);
    const bool any = needs[0] || needs[1];
    return {options.kind() == Reduction::kNone ? at::empty_like(input, input.options().dtype(type))
                                               : at::empty({}, input.options().dtype(type)),
            any ? empty_gradient(input, false) : no_gradient(input),
            needs[1] ? empty_gradient(target, false) : no_gradient(target)};
  }

  static Mean mean(const LossInfo& info, const Tensor& input, const Tensor& target,
                   const Options& options) {
    const bool class_targets = has_class_targets(info, input, target);
    const bool all_rows_count = !class_targets || target.scalar_type() == at::kByte;
    return mean_of(info, options, input, accumulate_type(input, target),
                   all_rows_count ? std::nullopt : OptionalTensor(target.ge(0)));
  }

  static void run(const LossInfo& info, const Tensor& input, const Tensor& target,
                  const Options& options, const Results& results, Needs needs) {
    const bool class_targets = has_class_targets(info, input, target);
    const auto type = results.loss.scalar_type();
    const Mean mean = PointwiseEngine::mean(info, input, target, options);

    PointwiseArguments arguments;
    arguments.loss = check_loss(catalogue().pointwise, options.loss, options.parameters);
    std::copy(options.parameters.begin(), options.parameters.end(), arguments.parameters);
    arguments.target_kind = class_targets ? TargetKind::kClassIndex : TargetKind::kDense;
    arguments.classes = class_targets ? input.size(-1) : 0;
    arguments.is_double = type == at::kDouble;
    arguments.loss_scale = mean.scale();
    if (!defers_mean(options, input, target)) arguments.gradient_scale = mean.scale();

    Tensor x = input;
    Tensor t = class_targets ? target.unsqueeze(-1).expand(input.sizes()) : target;
    Tensor weight = options.weight ? options.weight->expand(input.sizes()) : Tensor();
    Tensor pos_weight = options.extra ? options.extra->expand(input.sizes()) : Tensor();
    const bool any = needs[0] || needs[1], unreduced = options.kind() == Reduction::kNone;
    const auto layout = [&] {
      return try_layout(
          arguments.layout, input.sizes(),
          {&x, &t, weight.defined() ? &weight : nullptr,
           pos_weight.defined() ? &pos_weight : nullptr, any ? &results.first_gradient : nullptr,
           needs[1] ? &results.second_gradient : nullptr, unreduced ? &results.loss : nullptr},
          /*keep_order=*/class_targets);
    };
    if (!layout()) {  // more dimensions than a layout holds
      for (Tensor* tensor : {&x, &t, &weight, &pos_weight}) {
        if (tensor->defined()) *tensor = tensor->contiguous();
      }
      TORCH_CHECK_VALUE(layout(), public_name(options.loss), ": input has too many dimensions, ",
                        input.dim());
    }
    arguments.input = input_of(x);
    arguments.target = input_of(t);
    if (weight.defined()) arguments.weight = input_of(weight);
    if (pos_weight.defined()) arguments.pos_weight = input_of(pos_weight);
    if (any) arguments.input_gradient = output_of(results.first_gradient);
    if (needs[1]) arguments.target_gradient = output_of(results.second_gradient);
    (unreduced ? arguments.loss_output.values : arguments.loss_output.total) =
        results.loss.mutable_data_ptr();

    const Launch launch(input);
    try {
      launch.backend().pointwise(arguments, launch.execution());
    } catch (const LabelOutOfRange& bad) {
      TORCH_CHECK_INDEX(false, public_name(options.loss), ": ", info.target_name,
                        " must be a class index in [0, ", bad.largest, "] (", bad.largest,
                        ": background; negative: ignored), got ", bad.label, " at row ",
                        bad.position);
    }
  }

  // The upstream gradient of the unreduced loss has the shape of the gradient.
  static Tensor upstream_of(const Tensor& upstream) { return upstream; }
};

struct BoxPairEngine {
  static constexpr const char* kForward = "fastloss::box_pair_forward";
  static constexpr const char* kReference = "fastloss::box_pair_reference";

  static const LossInfo& check(const Tensor& boxes1, const Tensor& boxes2, const Options& options) {
    const LossList& losses = catalogue().box_pair;
    const LossInfo& info = losses.begin[check_loss(losses, options.loss, options.parameters)];
    options.kind();
    check_boxes(options.loss, "boxes1", boxes1);
    check_boxes(options.loss, "boxes2", boxes2);
    check_same_shape(options.loss, "boxes2", boxes2, "boxes1", boxes1);
    check_same_device(options.loss, "boxes2", boxes2, "boxes1", boxes1);
    if (options.weight) {
      check_number_type(options.loss, "weight", *options.weight);
      check_same_device(options.loss, "weight", *options.weight, "boxes1", boxes1);
      TORCH_CHECK_VALUE(
          options.weight->sym_sizes() == boxes1.sym_sizes().slice(0, boxes1.dim() - 1),
          public_name(options.loss), ": weight must have one number per box, shape ",
          boxes1.sym_sizes().slice(0, boxes1.dim() - 1), ", got ", options.weight->sym_sizes());
    }
    check_number(options.loss, "iou_mean", options.extra, "boxes1", boxes1);
    check_number(options.loss, "avg_factor", options.avg_factor, "boxes1", boxes1);
    return info;
  }

  static Results allocate(const Tensor& boxes1, const Tensor& boxes2, const Options& options,
                          Needs needs) {
    const auto type = accumulate_type(boxes1, boxes2);
    const auto leading = boxes1.sym_sizes().slice(0, boxes1.dim() - 1);
    const bool any = needs[0] || needs[1];
    return {at::empty_symint(options.kind() == Reduction::kNone ? leading : c10::SymIntArrayRef(),
                             boxes1.options().dtype(type)),
            any ? empty_gradient(boxes1, true) : no_gradient(boxes1),
            needs[1] ? empty_gradient(boxes2, true) : no_gradient(boxes2)};
  }

  static Mean mean(const LossInfo& info, const Tensor& boxes1, const Tensor& boxes2,
                   const Options& options) {
    const Tensor one_coordinate = boxes1.select(-1, 0);
    return mean_of(info, options, one_coordinate, accumulate_type(boxes1, boxes2), std::nullopt);
  }

  static void run(const LossInfo& info, const Tensor& boxes1, const Tensor& boxes2,
                  const Options& options, const Results& results, Needs needs) {
    const auto type = results.loss.scalar_type();
    const bool any = needs[0] || needs[1];
    const Mean mean = BoxPairEngine::mean(info, boxes1, boxes2, options);

    BoxPairArguments arguments;
    arguments.loss = check_loss(catalogue().box_pair, options.loss, options.parameters);
    std::copy(options.parameters.begin(), options.parameters.end(), arguments.parameters);
    arguments.is_double = type == at::kDouble;
    arguments.loss_scale = mean.scale();
    if (!defers_mean(options, boxes1, boxes2)) arguments.gradient_scale = mean.scale();
    Tensor device_parameter;
    if (options.extra) {
      // Read on the device; a 0-d tensor on the CPU, or of another dtype, is brought there.
      device_parameter = options.extra->to(boxes1.device(), type);
      arguments.device_parameter_index = info.device_parameter_index;
      arguments.device_parameter = input_of(device_parameter);
    }

    Tensor first = boxes1, second = boxes2, weight = options.weight ? *options.weight : Tensor();
    const auto layout = [&] {
      const Tensor a = first.select(-1, 0), b = second.select(-1, 0);
      const Tensor gradient_a = any ? results.first_gradient.select(-1, 0) : Tensor();
      const Tensor gradient_b = needs[1] ? results.second_gradient.select(-1, 0) : Tensor();
      return try_layout(arguments.layout, a.sizes(),
                        {&a, &b, weight.defined() ? &weight : nullptr, any ? &gradient_a : nullptr,
                         needs[1] ? &gradient_b : nullptr},
                        /*keep_order=*/true);
    };
    if (!layout()) {  // more dimensions than a layout holds
      for (Tensor* tensor : {&first, &second, &weight}) {
        if (tensor->defined()) *tensor = tensor->contiguous();
      }
      TORCH_CHECK_VALUE(layout(), public_name(options.loss), ": boxes1 has too many dimensions, ",
                        boxes1.dim());
    }
    arguments.coordinate_stride[0] = first.stride(-1);
    arguments.coordinate_stride[1] = second.stride(-1);
    arguments.boxes1 = input_of(first);
    arguments.boxes2 = input_of(second);
    if (weight.defined()) arguments.weight = input_of(weight);
    if (any) arguments.gradient1 = output_of(results.first_gradient);
    if (needs[1]) arguments.gradient2 = output_of(results.second_gradient);
    const bool unreduced = options.kind() == Reduction::kNone;
    (unreduced ? arguments.loss_output.values : arguments.loss_output.total) =
        results.loss.mutable_data_ptr();
    const Launch launch(boxes1);
    launch.backend().box_pair(arguments, launch.execution());
  }

  // The upstream gradient of the unreduced loss is one number for the four coordinates of a box.
  static Tensor upstream_of(const Tensor& upstream) {
    return upstream.dim() == 0 ? upstream : upstream.unsqueeze(-1);
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
inline bool needs_reference(const Tensor& first, const Tensor& second, const Options& options) {
  if (!kernels_serve(first, second)) return true;
  return c10::GradMode::is_enabled() &&
         (requires_grad(options.extra) || requires_grad(options.weight) ||
          requires_grad(options.avg_factor));
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
    upstream = Engine::upstream_of(upstream);
    variable_list result(3);
    for (int i = 0; i < 2; ++i) {
      if (needs[i]) result[i] = scaled(std::move(gradients[i]), upstream);
    }
    return result;
  }
};

// One type each: its name is what `grad_fn` shows.
struct PointwiseLoss : LossFunction<PointwiseEngine, PointwiseLoss> {};
struct BoxPairLoss : LossFunction<BoxPairEngine, BoxPairLoss> {};

template <class Function>
Tensor loss_entry(std::string_view loss, const Tensor& first, const Tensor& second,
                  Parameters parameters, const OptionalTensor& extra, const OptionalTensor& weight,
                  std::string_view reduction, const OptionalTensor& avg_factor,
                  OptionalNumber avg_number) {
  const Options options(loss, parameters, extra, weight, reduction, avg_factor, avg_number);
  using Engine = typename Function::Engine;
  Engine::check(first, second, options);
  if (needs_reference(first, second, options)) {
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
