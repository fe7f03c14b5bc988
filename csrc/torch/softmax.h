// SPDX-License-Identifier: MIT
// The engine `softmax` as operators: one number per row of logits.
#pragma once
#include <ATen/ops/ne.h>
#include <ATen/ops/where.h>

#include "torch/labels.h"
#include "torch/losses.h"

namespace fastloss {

struct SoftmaxEngine {
  static constexpr const char* kForward = "fastloss::softmax_forward";
  static constexpr const char* kReference = "fastloss::softmax_reference";
  static constexpr bool kSecondHasGradient = false;

  // The dtype of the arithmetic and of the loss.
  static at::ScalarType type_of(const LossInfo& info, const Tensor& input, const Tensor& target,
                                const Options& options) {
    // A weight that no mean divides by is one of the loss's own arguments.
    const bool is_argument = options.weight && info.has_row_weight && !info.weighted_mean;
    return is_argument && options.weight->scalar_type() == at::kDouble
               ? at::kDouble
               : accumulate_type(input, target);
  }

  // Where the classes are: the last dimension, or torch's.
  static int64_t class_dim(const LossInfo& info, int64_t dims) {
    return info.classes_last ? dims - 1 : std::min<int64_t>(dims - 1, 1);
  }

  static c10::SymDimVector row_shape(const LossInfo& info, const Tensor& input) {
    c10::SymDimVector shape(input.sym_sizes());
    shape.erase(shape.begin() + class_dim(info, input.dim()));
    return shape;
  }

  static const LossInfo& check(const Tensor& input, const Tensor& target, const Options& options) {
    const LossInfo& info = options.info(catalogue().softmax);
    const std::string& name = options.function;
    options.kind();
    const char *input_name = info.input_name, *target_name = info.target_name;
    check_floating(name, input_name, input);
    check_same_device(name, target_name, target, input_name, input);
    const bool positions = info.class_target == ClassTarget::kPosition;
    TORCH_CHECK_VALUE(input.dim() >= 1, name, ": ", input_name,
                      " must have a dimension of classes, got a 0-d tensor");
    const c10::SymInt classes = input.sym_size(class_dim(info, input.dim()));
    TORCH_CHECK_VALUE(classes >= (positions ? 2 : 1), name, ": ", input_name,
                      " must have at least ", positions ? "two bins" : "one class", ", got shape ",
                      input.sym_sizes());
    if (info.class_target == ClassTarget::kProbabilities) {
      check_floating(name, target_name, target);
      if (info.classes_last) {
        check_same_shape(name, target_name, target, input_name, input);
      } else {
        TORCH_CHECK_VALUE(target.sym_sizes() == input.sym_sizes(), name, ": ", target_name,
                          " must be probabilities of the shape of ", input_name, ", ",
                          input.sym_sizes(),
                          ", or integer class indices without the dimension of classes, got ",
                          target.sym_sizes());
      }
    } else {
      if (positions) {
        check_number_type(name, target_name, target);
      } else {
        check_integer(name, target_name, target);
      }
      const c10::SymDimVector rows = row_shape(info, input);
      TORCH_CHECK_VALUE(target.sym_sizes() == c10::SymIntArrayRef(rows), name, ": ", target_name,
                        " must have one ", positions ? "position" : "class index", " per row of ",
                        input_name, ", shape ", c10::SymIntArrayRef(rows), ", got ",
                        target.sym_sizes());
    }
    if (options.weight) {
      check_number_type(name, info.weight_name, *options.weight);
      check_same_device(name, info.weight_name, *options.weight, input_name, input);
      if (info.has_row_weight) {
        check_same_shape(name, info.weight_name, *options.weight, target_name, target);
      } else {
        TORCH_CHECK_VALUE(options.weight->dim() == 1 && options.weight->sym_size(0) == classes,
                          name, ": ", info.weight_name, " must have one number per class, shape (",
                          classes, "), got ", options.weight->sym_sizes());
      }
    }
    if (options.extra && info.is_masked) {
      check_mask(name, info.extra_name, *options.extra);
      check_same_device(name, info.extra_name, *options.extra, input_name, input);
      check_same_shape(name, info.extra_name, *options.extra, target_name, target);
    }
    check_number(name, "avg_factor", options.avg_factor, input_name, input);
    return info;
  }

  static Results allocate(const Tensor& input, const Tensor& target, const Options& options,
                          Needs needs) {
    const LossInfo& info = options.info(catalogue().softmax);
    const auto loss_options = input.options().dtype(type_of(info, input, target, options));
    return {options.kind() == Reduction::kNone
                ? at::empty_symint(row_shape(info, input), loss_options)
                : at::empty({}, loss_options),
            needs[0] ? empty_gradient(input, false) : no_gradient(input), no_gradient(target)};
  }

  static bool has_mask(const LossInfo& info, const Options& options) {
    return info.is_masked && options.extra;
  }

  // The labels, where a mask leaves no row out that could hold anything.
  static Tensor labels(const LossInfo& info, const Tensor& target, const Options& options) {
    if (!has_mask(info, options)) return target;
    return at::where(options.extra->ne(0), target.to(at::kLong), kMaskedLabel);
  }

  static IgnoredLabels ignored(const LossInfo& info, const Options& options) {
    if (has_mask(info, options)) return {true, kMaskedLabel, false};
    if (info.ignore_index < 0) return {};
    return {true, static_cast<int64_t>(options.parameters[static_cast<size_t>(info.ignore_index)]),
            false};
  }

  static Mean mean(const LossInfo& info, const Tensor& input, const Tensor& target,
                   const Options& options) {
    const auto type = type_of(info, input, target, options);
    const int64_t dim = class_dim(info, input.dim());
    const bool class_weighted = options.weight && info.weighted_mean && !info.has_row_weight;
    const bool every_row_counts_one =
        info.ignore_index < 0 && !class_weighted && !has_mask(info, options);
    if (options.kind() != Reduction::kMean || options.has_avg_factor() || every_row_counts_one) {
      Options of_rows = options;
      if (!info.has_row_weight) of_rows.weight.reset();
      return mean_of(info, of_rows, input.select(dim, 0), type, std::nullopt);
    }
    return {1.0, label_total(options.function, info.target_name, labels(info, target, options),
                             ignored(info, options), input.sym_size(dim) - 1,
                             class_weighted ? options.weight : std::nullopt, type)};
  }

  static void run(const LossInfo& info, const Tensor& input, const Tensor& target,
                  const Options& options, const Results& results, Needs needs) {
    const auto type = results.loss.scalar_type();
    const Mean mean = SoftmaxEngine::mean(info, input, target, options);
    const int64_t dim = class_dim(info, input.dim());
    const auto option = [&](int index) {
      return index < 0 ? 0.0 : options.parameters[static_cast<size_t>(index)];
    };

    SoftmaxArguments arguments;
    arguments.loss = check_loss(catalogue().softmax, options.loss, options.parameters);
    std::copy(options.parameters.begin(), options.parameters.end(), arguments.parameters);
    arguments.classes = input.size(dim);
    arguments.ignored = ignored(info, options);
    arguments.smoothing = option(info.smoothing);
    arguments.softcap = option(info.softcap);
    arguments.is_double = type == at::kDouble;
    arguments.loss_scale = mean.scale();
    if (!defers_mean(options, input, target)) arguments.gradient_scale = mean.scale();

    Tensor x = input, t = labels(info, target, options), row_weight, class_weight;
    if (options.weight && info.has_row_weight) {
      row_weight = *options.weight;
    } else if (options.weight) {
      class_weight = options.weight->detach().to(type).contiguous();
      arguments.class_weight = input_of(class_weight);
      if (info.class_weight >= 0) arguments.parameters[info.class_weight] = 1.0;
    }
    const bool probabilities = info.class_target == ClassTarget::kProbabilities;
    const bool unreduced = options.kind() == Reduction::kNone;
    const auto layout = [&] {
      const Tensor rows = x.select(dim, 0), target_rows = probabilities ? t.select(dim, 0) : t;
      const Tensor gradient_rows = needs[0] ? results.first_gradient.select(dim, 0) : Tensor();
      return try_layout(arguments.rows, rows.sizes(),
                        {&rows, &target_rows, row_weight.defined() ? &row_weight : nullptr,
                         needs[0] ? &gradient_rows : nullptr, unreduced ? &results.loss : nullptr},
                        /*keep_order=*/true);
    };
    if (!layout()) {  // more dimensions than a layout holds
      for (Tensor* tensor : {&x, &t, &row_weight}) {
        if (tensor->defined()) *tensor = tensor->contiguous();
      }
      TORCH_CHECK_VALUE(layout(), options.function, ": ", info.input_name,
                        " has too many dimensions, ", input.dim());
    }
    arguments.input = input_of(x);
    arguments.class_stride[kSoftmaxInput] = x.stride(dim);
    arguments.target = input_of(t);
    if (probabilities) arguments.class_stride[kSoftmaxTarget] = t.stride(dim);
    if (row_weight.defined()) arguments.row_weight = input_of(row_weight);
    if (needs[0]) {
      arguments.gradient = output_of(results.first_gradient);
      arguments.class_stride[kSoftmaxGradient] = results.first_gradient.stride(dim);
    }
    (unreduced ? arguments.loss_output.values : arguments.loss_output.total) =
        results.loss.mutable_data_ptr();

    const Launch launch(input);
    with_label_errors(options.function, info.target_name, t, arguments.ignored,
                      arguments.classes - 1,
                      [&] { launch.backend().softmax(arguments, launch.execution()); });
  }

  // The upstream gradient of the unreduced loss is one number for the classes of a row.
  static Tensor upstream_of(const Options& options, const Tensor& upstream) {
    if (upstream.dim() == 0) return upstream;
    return upstream.unsqueeze(class_dim(options.info(catalogue().softmax), upstream.dim() + 1));
  }
};

// A type of its own: its name is what `grad_fn` shows.
struct SoftmaxLoss : LossFunction<SoftmaxEngine, SoftmaxLoss> {};

}  // namespace fastloss
