// SPDX-License-Identifier: MIT
// The engine `pointwise` as operators: one number per element.
#pragma once
#include <ATen/ops/ge.h>

#include "torch/labels.h"
#include "torch/losses.h"

namespace fastloss {

struct PointwiseEngine {
  static constexpr const char* kForward = "fastloss::pointwise_forward";
  static constexpr const char* kReference = "fastloss::pointwise_reference";
  // Whether the kernel computes the gradient of the second tensor too.
  static constexpr bool kSecondHasGradient = true;

  static bool has_class_targets(const LossInfo& info, const Tensor& input, const Tensor& target) {
    return info.targets == Targets::kNumbersOrLabels && target.dim() + 1 == input.dim() &&
           !at::isFloatingType(target.scalar_type()) &&
           target.sym_sizes() == input.sym_sizes().slice(0, input.dim() - 1);
  }

  static const LossInfo& check(const Tensor& input, const Tensor& target, const Options& options) {
    const LossInfo& info = options.info(catalogue().pointwise);
    options.kind();
    check_floating(options.loss, info.input_name, input);
    check_same_device(options.loss, info.target_name, target, info.input_name, input);
    if (has_class_targets(info, input, target)) {
      check_integer(options.loss, info.target_name, target);
    } else {
      (info.targets == Targets::kSecondInput ? check_floating : check_number_type)(
          options.loss, info.target_name, target);
      TORCH_CHECK_VALUE(target.sym_sizes() == input.sym_sizes(), public_name(options.loss), ": ",
                        info.target_name, " must have the shape of ", info.input_name, ", ",
                        input.sym_sizes(),
                        info.targets == Targets::kNumbersOrLabels
                            ? ", or be integers of that shape without the last dimension"
                            : "",
                        ", got ", target.sym_sizes());
    }
    for (const auto& [name, tensor] :
         {std::pair("weight", &options.weight), std::pair(info.extra_name, &options.extra)}) {
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
    const auto type = accumulate_type(input, target);
    const bool all_count = !has_class_targets(info, input, target) ||
                           target.scalar_type() == at::kByte;  // no label is negative
    const bool counts = options.kind() == Reduction::kMean && !options.has_avg_factor();
    if (all_count || !counts) return mean_of(info, options, input, type, std::nullopt);
    if (options.weight && info.weighted_mean)
      return mean_of(info, options, input, type, target.ge(0));
    const c10::SymInt classes = input.sym_size(-1);
    const IgnoredLabels negatives{.negatives = true};
    return {1.0 / static_cast<double>(input.size(-1)),
            label_total(options.loss, info.target_name, target, negatives, classes, std::nullopt,
                        type)};
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
    if (info.targets == Targets::kNone) t = Tensor();
    Tensor weight = options.weight ? options.weight->expand(input.sizes()) : Tensor();
    Tensor pos_weight = options.extra ? options.extra->expand(input.sizes()) : Tensor();
    const bool any = needs[0] || needs[1], unreduced = options.kind() == Reduction::kNone;
    const auto layout = [&] {
      return try_layout(
          arguments.layout, input.sizes(),
          {&x, t.defined() ? &t : nullptr, weight.defined() ? &weight : nullptr,
           pos_weight.defined() ? &pos_weight : nullptr, /*reference=*/nullptr, /*mask=*/nullptr,
           any ? &results.first_gradient : nullptr, needs[1] ? &results.second_gradient : nullptr,
           unreduced ? &results.loss : nullptr},
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
    if (t.defined()) arguments.target = input_of(t);
    if (weight.defined()) arguments.weight = input_of(weight);
    if (pos_weight.defined()) arguments.pos_weight = input_of(pos_weight);
    if (any) arguments.input_gradient = output_of(results.first_gradient);
    if (needs[1]) arguments.target_gradient = output_of(results.second_gradient);
    (unreduced ? arguments.loss_output.values : arguments.loss_output.total) =
        results.loss.mutable_data_ptr();

    const Launch launch(input);
    try {
      with_label_errors(options.loss, info.target_name, target, {false, 0, /*negatives=*/true},
                        arguments.classes,
                        [&] { launch.backend().pointwise(arguments, launch.execution()); });
    } catch (const InputOutOfRange&) {
      const Tensor bad = input.lt(info.lowest).logical_or(input.gt(info.highest));
      const int64_t position = bad.flatten().nonzero()[0].item<int64_t>();
      TORCH_CHECK_VALUE(false, public_name(options.loss), ": ", info.input_name, " must be in [",
                        info.lowest, ", ", info.highest, "], got ",
                        input.flatten()[position].item<double>(), " at position ", position);
    }
  }

  // The upstream gradient of the unreduced loss has the shape of the gradient.
  static Tensor upstream_of(const Options& /*options*/, const Tensor& upstream) { return upstream; }
};

// A type of its own: its name is what `grad_fn` shows.
struct PointwiseLoss : LossFunction<PointwiseEngine, PointwiseLoss> {};

}  // namespace fastloss
