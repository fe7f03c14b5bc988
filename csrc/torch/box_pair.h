// SPDX-License-Identifier: MIT
// The engine `box_pair` as operators: one number per pair of boxes.
#pragma once
#include "torch/losses.h"

namespace fastloss {

struct BoxPairEngine {
  static constexpr const char* kForward = "fastloss::box_pair_forward";
  static constexpr const char* kReference = "fastloss::box_pair_reference";
  static constexpr bool kSecondHasGradient = true;

  static const LossInfo& check(const Tensor& boxes1, const Tensor& boxes2, const Options& options) {
    const LossInfo& info = options.info(catalogue().box_pair);
    options.kind();
    check_boxes(options.loss, info.input_name, boxes1, info.coordinates);
    check_boxes(options.loss, info.target_name, boxes2, info.coordinates);
    check_same_shape(options.loss, info.target_name, boxes2, info.input_name, boxes1);
    check_same_device(options.loss, info.target_name, boxes2, info.input_name, boxes1);
    if (options.weight) check_numbers(options.loss, info, "weight", *options.weight, boxes1);
    if (info.has_pair_extra) {
      TORCH_CHECK_VALUE(options.extra, public_name(options.loss), ": ", info.extra_name,
                        " is missing");
      check_numbers(options.loss, info, info.extra_name, *options.extra, boxes1);
    } else {
      check_number(options.loss, info.extra_name, options.extra, info.input_name, boxes1);
    }
    check_number(options.loss, "avg_factor", options.avg_factor, info.input_name, boxes1);
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
    if (options.extra && !info.has_pair_extra) {
      // Read on the device; a 0-d tensor on the CPU, or of another dtype, is brought there.
      device_parameter = options.extra->to(boxes1.device(), type);
      arguments.device_parameter_index = info.device_parameter_index;
      arguments.device_parameter = input_of(device_parameter);
    }

    Tensor first = boxes1, second = boxes2, weight = options.weight ? *options.weight : Tensor(),
           extra = info.has_pair_extra ? *options.extra : Tensor();
    const auto layout = [&] {
      const Tensor a = first.select(-1, 0), b = second.select(-1, 0);
      const Tensor gradient_a = any ? results.first_gradient.select(-1, 0) : Tensor();
      const Tensor gradient_b = needs[1] ? results.second_gradient.select(-1, 0) : Tensor();
      return try_layout(
          arguments.layout, a.sizes(),
          {&a, &b, weight.defined() ? &weight : nullptr, extra.defined() ? &extra : nullptr,
           any ? &gradient_a : nullptr, needs[1] ? &gradient_b : nullptr},
          /*keep_order=*/true);
    };
    if (!layout()) {  // more dimensions than a layout holds
      for (Tensor* tensor : {&first, &second, &weight, &extra}) {
        if (tensor->defined()) *tensor = tensor->contiguous();
      }
      TORCH_CHECK_VALUE(layout(), public_name(options.loss), ": ", info.input_name,
                        " has too many dimensions, ", boxes1.dim());
    }
    arguments.coordinate_stride[0] = first.stride(-1);
    arguments.coordinate_stride[1] = second.stride(-1);
    arguments.boxes1 = input_of(first);
    arguments.boxes2 = input_of(second);
    if (weight.defined()) arguments.weight = input_of(weight);
    if (extra.defined()) arguments.extra = input_of(extra);
    if (any) arguments.gradient1 = output_of(results.first_gradient);
    if (needs[1]) arguments.gradient2 = output_of(results.second_gradient);
    const bool unreduced = options.kind() == Reduction::kNone;
    (unreduced ? arguments.loss_output.values : arguments.loss_output.total) =
        results.loss.mutable_data_ptr();
    const Launch launch(boxes1);
    launch.backend().box_pair(arguments, launch.execution());
  }

  // The upstream gradient of the unreduced loss is one number for the coordinates of a box.
  static Tensor upstream_of(const Options& /*options*/, const Tensor& upstream) {
    return upstream.dim() == 0 ? upstream : upstream.unsqueeze(-1);
  }

 private:
  // A tensor with a number for each pair.
  static void check_numbers(std::string_view loss, const LossInfo& info, const char* argument,
                            const Tensor& tensor, const Tensor& boxes1) {
    check_number_type(loss, argument, tensor);
    check_same_device(loss, argument, tensor, info.input_name, boxes1);
    const auto leading = boxes1.sym_sizes().slice(0, static_cast<size_t>(boxes1.dim() - 1));
    TORCH_CHECK_VALUE(tensor.sym_sizes() == leading, public_name(loss), ": ", argument,
                      " must have one number per box, shape ", leading, ", got ",
                      tensor.sym_sizes());
  }
};

// A type of its own: its name is what `grad_fn` shows.
struct BoxPairLoss : LossFunction<BoxPairEngine, BoxPairLoss> {};

}  // namespace fastloss
