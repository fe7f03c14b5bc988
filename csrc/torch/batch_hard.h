// SPDX-License-Identifier: MIT
// The engine `batch_hard` as operators: the rows of a batch as triplets among themselves.
#pragma once
#include <ATen/ops/empty.h>

#include <string>
#include <vector>

#include "engines/batch_hard.h"
#include "torch/autograd.h"
#include "torch/checks.h"
#include "torch/tensors.h"

namespace fastloss {

// Everything but the embeddings, kept for backward.
struct BatchHardCall : torch::CustomClassHolder {
  std::string loss;
  Tensor labels;
  std::vector<double> parameters;
  std::string reduction;

  BatchHardCall(std::string_view loss, const Tensor& labels, Parameters parameters,
                std::string_view reduction)
      : loss(loss), labels(labels), parameters(parameters.vec()), reduction(reduction) {}

  template <class Operator>
  auto call(const Operator& op, const Tensor& embeddings) const {
    return op.call(loss, embeddings, labels, parameters, reduction);
  }
};

inline Reduction check_batch_hard(std::string_view loss, const Tensor& embeddings,
                                  const Tensor& labels, Parameters parameters,
                                  std::string_view reduction) {
  check_loss(catalogue().batch_hard, loss, parameters);
  check_floating(loss, "embeddings", embeddings);
  TORCH_CHECK_VALUE(embeddings.dim() == 2, public_name(loss),
                    ": embeddings must have shape (rows, features), got ", embeddings.sym_sizes());
  // The kernels tell rows apart by float32 numbers.
  TORCH_CHECK_VALUE(embeddings.sym_size(0) < (1 << 24), public_name(loss),
                    ": embeddings must hold fewer than 2^24 rows, got ", embeddings.sym_sizes());
  check_integer(loss, "labels", labels);
  check_same_device(loss, "labels", labels, "embeddings", embeddings);
  TORCH_CHECK_VALUE(labels.dim() == 1 && labels.sym_size(0) == embeddings.sym_size(0),
                    public_name(loss),
                    ": labels must have one number per row of embeddings, shape (",
                    embeddings.sym_size(0), "), got ", labels.sym_sizes());
  return check_reduction(loss, reduction, false);
}

// The loss, which rows were chosen for each, and the slopes of its loss.
inline std::tuple<Tensor, Tensor, Tensor> batch_hard_forward_meta(std::string_view loss,
                                                                  const Tensor& embeddings,
                                                                  const Tensor& /*labels*/,
                                                                  Parameters /*parameters*/,
                                                                  std::string_view reduction) {
  const auto options = embeddings.options().dtype(accumulate_type(embeddings, embeddings));
  const c10::SymInt rows = embeddings.sym_size(0);
  const bool unreduced = check_reduction(loss, reduction, false) == Reduction::kNone;
  return {unreduced ? at::empty_symint({rows}, options) : at::empty({}, options),
          at::empty_symint({rows, kBatchHardRoles}, options.dtype(at::kInt)),
          at::empty_symint({rows, kBatchHardRoles}, options)};
}

// What both passes say of the rows; keeps alive what they point to.
struct BatchHardInputs {
  Tensor rows;
  BatchHardArguments arguments;

  BatchHardInputs(const Tensor& embeddings, const Tensor& chosen, const Tensor& slopes,
                  Reduction kind)
      : rows(embeddings.detach().to(slopes.scalar_type()).contiguous()) {
    arguments.rows = rows.size(0);
    arguments.features = rows.size(1);
    arguments.embeddings = rows.const_data_ptr();
    arguments.chosen = static_cast<int32_t*>(chosen.data_ptr());
    arguments.slopes = slopes.data_ptr();
    arguments.mean = kind == Reduction::kMean;
    arguments.is_double = slopes.scalar_type() == at::kDouble;
  }
};

inline std::tuple<Tensor, Tensor, Tensor> batch_hard_forward_kernel(std::string_view loss,
                                                                    const Tensor& embeddings,
                                                                    const Tensor& labels,
                                                                    Parameters parameters,
                                                                    std::string_view reduction) {
  const Reduction kind = check_batch_hard(loss, embeddings, labels, parameters, reduction);
  const auto result = batch_hard_forward_meta(loss, embeddings, labels, parameters, reduction);
  const auto& [values, chosen, slopes] = result;
  if (embeddings.size(0) == 0) {
    values.zero_();
    return result;
  }
  BatchHardInputs inputs(embeddings, chosen, slopes, kind);
  BatchHardArguments& arguments = inputs.arguments;
  const Tensor dense_labels = labels.to(at::kLong).contiguous();
  arguments.loss = check_loss(catalogue().batch_hard, loss, parameters);
  std::copy(parameters.begin(), parameters.end(), arguments.parameters);
  arguments.labels = dense_labels.const_data_ptr<int64_t>();
  (kind == Reduction::kNone ? arguments.loss_output.values : arguments.loss_output.total) =
      values.mutable_data_ptr();
  const Launch launch(embeddings);
  launch.backend().batch_hard(arguments, launch.execution());
  return result;
}

inline Tensor batch_hard_backward_meta(const Tensor& /*upstream*/, const Tensor& /*chosen*/,
                                       const Tensor& /*slopes*/, const Tensor& embeddings,
                                       std::string_view /*reduction*/) {
  return empty_gradient(embeddings, true);
}

inline Tensor batch_hard_backward_kernel(const Tensor& upstream, const Tensor& chosen,
                                         const Tensor& slopes, const Tensor& embeddings,
                                         std::string_view reduction) {
  if (embeddings.numel() == 0) return empty_gradient(embeddings, true);
  const Reduction kind = check_reduction("batch_hard_triplet_loss", reduction, false);
  BatchHardInputs inputs(embeddings, chosen, slopes, kind);
  const Tensor gradient = empty_gradient(inputs.rows, true);
  const Tensor dense_upstream = upstream.to(slopes.scalar_type()).contiguous();
  inputs.arguments.upstream = dense_upstream.const_data_ptr();
  inputs.arguments.upstream_of_rows = kind == Reduction::kNone;
  inputs.arguments.gradient = gradient.mutable_data_ptr();
  const Launch launch(embeddings);
  launch.backend().batch_hard_gradient(inputs.arguments, launch.execution());
  return narrowed(gradient, embeddings.scalar_type());
}

struct BatchHardFunction : GradientInBackward<BatchHardFunction, BatchHardCall> {
  static auto forward_operator() {
    static const auto op = find_operator<BatchHardForwardSignature>("fastloss::batch_hard_forward");
    return op;
  }
  static std::pair<Tensor, variable_list> run(const BatchHardCall& call, const Tensor& embeddings) {
    auto [loss, chosen, slopes] = call.call(forward_operator(), embeddings);
    return {loss, {chosen, slopes, call.labels}};
  }
  static Tensor reference(const BatchHardCall& call, const Tensor& embeddings) {
    static const auto op = find_operator<BatchHardSignature>("fastloss::batch_hard_reference");
    return call.call(op, embeddings);
  }
  static Tensor gradient(const BatchHardCall& call, const Tensor& upstream,
                         const variable_list& saved) {
    static const auto op =
        find_operator<BatchHardBackwardSignature>("fastloss::batch_hard_backward");
    return op.call(upstream, saved[1], saved[2], saved[0], call.reduction);
  }
};

inline Tensor batch_hard_entry(std::string_view loss, const Tensor& embeddings,
                               const Tensor& labels, Parameters parameters,
                               std::string_view reduction) {
  check_batch_hard(loss, embeddings, labels, parameters, reduction);
  const auto call = c10::make_intrusive<BatchHardCall>(loss, labels, parameters, reduction);
  if (!kernels_serve(embeddings, labels)) return BatchHardFunction::reference(*call, embeddings);
  if (c10::GradMode::is_enabled() && embeddings.requires_grad())
    return BatchHardFunction::apply(embeddings, call);
  at::AutoDispatchBelowADInplaceOrView below_autograd;
  return std::get<0>(call->call(BatchHardFunction::forward_operator(), embeddings));
}

}  // namespace fastloss
