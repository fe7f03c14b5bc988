// SPDX-License-Identifier: MIT
// The engine `row_pair` as operators: how far the directions of two rows are apart.
#pragma once
#include "engines/row_pair.h"
#include "torch/losses.h"

namespace fastloss {

struct RowPairEngine {
  static constexpr const char* kForward = "fastloss::row_pair_forward";
  static constexpr const char* kReference = "fastloss::row_pair_reference";
  static constexpr bool kSecondHasGradient = true;

  static const LossInfo& check(const Tensor& first, const Tensor& second, const Options& options) {
    const LossInfo& info = options.info(catalogue().row_pair);
    TORCH_CHECK_VALUE(!options.extra && !options.weight && !options.has_avg_factor(),
                      public_name(options.loss), ": there is neither weight nor avg_factor");
    options.kind();
    check_floating(options.loss, info.input_name, first);
    check_floating(options.loss, info.target_name, second);
    TORCH_CHECK_VALUE(first.dim() >= 1, public_name(options.loss), ": ", info.input_name,
                      " must have shape (..., features), got ", first.sym_sizes());
    check_same_device(options.loss, info.target_name, second, info.input_name, first);
    check_same_shape(options.loss, info.target_name, second, info.input_name, first);
    return info;
  }

  static Results allocate(const Tensor& first, const Tensor& second, const Options& options,
                          Needs needs) {
    const auto wide = first.options().dtype(accumulate_type(first, second));
    return {options.kind() == Reduction::kNone ? at::empty_symint(rows_of(first), wide)
                                               : at::empty({}, wide),
            needs[0] ? empty_gradient(first, true) : no_gradient(first),
            needs[1] ? empty_gradient(second, true) : no_gradient(second)};
  }

  static Mean mean(const LossInfo& /*info*/, const Tensor& first, const Tensor& /*second*/,
                   const Options& options) {
    if (options.kind() != Reduction::kMean) return {};
    return divide_by(static_cast<double>(c10::multiply_integers(rows_of(first)).expect_int()));
  }

  static void run(const LossInfo& info, const Tensor& first, const Tensor& second,
                  const Options& options, const Results& results, Needs needs) {
    RowPairArguments arguments;
    arguments.loss = check_loss(catalogue().row_pair, options.loss, options.parameters);
    std::copy(options.parameters.begin(), options.parameters.end(), arguments.parameters);
    const Tensor gradients[] = {results.first_gradient, results.second_gradient};
    Tensor rows[] = {first, second};
    const auto layout = [&] {
      const Tensor* operands[kRowPairOperands] = {};
      for (int k = 0; k < kRowPair; ++k) {
        operands[k] = &rows[k];
        if (needs[static_cast<size_t>(k)]) operands[kRowPairGradients + k] = &gradients[k];
      }
      if (options.kind() == Reduction::kNone) operands[kRowPairValues] = &results.loss;
      return try_layout(arguments.layout,
                        first.sizes().slice(0, static_cast<size_t>(first.dim() - 1)), operands,
                        /*keep_order=*/false);
    };
    if (!layout()) {  // more dimensions than a layout holds
      for (Tensor& tensor : rows) tensor = tensor.contiguous();
      TORCH_CHECK_VALUE(layout(), public_name(options.loss), ": ", info.input_name,
                        " has too many dimensions, ", first.dim());
    }
    arguments.features = first.size(-1);
    for (int k = 0; k < kRowPair; ++k) {
      arguments.rows[k] = input_of(rows[k]);
      arguments.feature_stride[k] = rows[k].stride(-1);
      if (needs[static_cast<size_t>(k)]) arguments.gradients[k] = output_of(gradients[k]);
    }
    arguments.is_double = results.loss.scalar_type() == at::kDouble;
    arguments.loss_factor = mean(info, first, second, options).factor;
    if (!defers_mean(options, first, second)) arguments.gradient_factor = arguments.loss_factor;
    (options.kind() == Reduction::kNone ? arguments.loss_output.values
                                        : arguments.loss_output.total) =
        results.loss.mutable_data_ptr();
    const Launch launch(first);
    launch.backend().row_pair(arguments, launch.execution());
  }

  // The upstream gradient of the unreduced loss is one number for the features of a row.
  static Tensor upstream_of(const Options& /*options*/, const Tensor& upstream) {
    return upstream.dim() == 0 ? upstream : upstream.unsqueeze(-1);
  }

 private:
  static c10::SymIntArrayRef rows_of(const Tensor& tensor) {
    return tensor.sym_sizes().slice(0, static_cast<size_t>(tensor.dim() - 1));
  }
};

// A type of its own: its name is what `grad_fn` shows.
struct RowPairLoss : LossFunction<RowPairEngine, RowPairLoss> {};

}  // namespace fastloss
