// SPDX-License-Identifier: MIT
// The engine `box_matrix` as operators: pairwise similarity.
#pragma once
#include <ATen/ExpandUtils.h>
#include <ATen/ops/zeros_like.h>

#include <algorithm>
#include <string>
#include <vector>

#include "engines/box_matrix.h"
#include "torch/autograd.h"
#include "torch/checks.h"
#include "torch/tensors.h"

namespace fastloss {

inline c10::SymDimVector matrix_shape(const Tensor& boxes1, const Tensor& boxes2) {
  c10::SymDimVector shape(boxes1.sym_sizes().begin(), boxes1.sym_sizes().end() - 1);
  shape.push_back(boxes2.sym_size(-2));
  return shape;
}

// The boxes as the engine wants them; the caller keeps them alive.
struct MatrixInputs {
  Tensor boxes1, boxes2;
  BoxMatrixArguments arguments;

  MatrixInputs(std::string_view kind, const Tensor& first, const Tensor& second,
               Parameters parameters) {
    const auto type = accumulate_type(first, second);
    boxes1 = first.to(type).contiguous();
    boxes2 = second.to(type).contiguous();
    arguments.similarity = check_loss(catalogue().box_matrix, kind, parameters);
    std::copy(parameters.begin(), parameters.end(), arguments.parameters);
    arguments.rows = first.size(-2);
    arguments.columns = second.size(-2);
    arguments.batch = first.numel() / std::max<int64_t>(1, 4 * arguments.rows);
    arguments.boxes1 = boxes1.const_data_ptr();
    arguments.boxes2 = boxes2.const_data_ptr();
    arguments.is_double = type == at::kDouble;
  }
};

inline Tensor box_matrix_meta(std::string_view /*kind*/, const Tensor& boxes1, const Tensor& boxes2,
                              Parameters /*unused*/) {
  return at::empty_symint(matrix_shape(boxes1, boxes2),
                          boxes1.options().dtype(accumulate_type(boxes1, boxes2)));
}

inline Tensor box_matrix_kernel(std::string_view kind, const Tensor& boxes1, const Tensor& boxes2,
                                Parameters parameters) {
  Tensor values = box_matrix_meta(kind, boxes1, boxes2, parameters);
  if (values.numel() == 0) return values;
  MatrixInputs inputs(kind, boxes1, boxes2, parameters);
  inputs.arguments.values = values.mutable_data_ptr();
  const Launch launch(boxes1);
  launch.backend().box_matrix(inputs.arguments, launch.execution());
  return values;
}

inline std::tuple<Tensor, Tensor> box_matrix_backward_meta(std::string_view /*kind*/,
                                                           const Tensor& /*upstream*/,
                                                           const Tensor& boxes1,
                                                           const Tensor& boxes2,
                                                           Parameters /*parameters*/, Needs needs) {
  return {needs[0] ? empty_gradient(boxes1, true) : no_gradient(boxes1),
          needs[1] ? empty_gradient(boxes2, true) : no_gradient(boxes2)};
}

inline std::tuple<Tensor, Tensor> box_matrix_backward_kernel(std::string_view kind,
                                                             const Tensor& upstream,
                                                             const Tensor& boxes1,
                                                             const Tensor& boxes2,
                                                             Parameters parameters, Needs needs) {
  if (upstream.numel() == 0) {
    return {needs[0] ? at::zeros_like(boxes1) : no_gradient(boxes1),
            needs[1] ? at::zeros_like(boxes2) : no_gradient(boxes2)};
  }
  MatrixInputs inputs(kind, boxes1, boxes2, parameters);
  const Tensor dense_upstream = upstream.to(inputs.boxes1.scalar_type()).contiguous();
  inputs.arguments.upstream = dense_upstream.const_data_ptr();
  const Tensor gradient1 = needs[0] ? at::empty_like(inputs.boxes1) : no_gradient(inputs.boxes1);
  const Tensor gradient2 = needs[1] ? at::empty_like(inputs.boxes2) : no_gradient(inputs.boxes2);
  if (needs[0]) inputs.arguments.gradient1 = gradient1.mutable_data_ptr();
  if (needs[1]) inputs.arguments.gradient2 = gradient2.mutable_data_ptr();
  const Launch launch(boxes1);
  launch.backend().box_matrix(inputs.arguments, launch.execution());
  return {narrowed(gradient1, boxes1.scalar_type()), narrowed(gradient2, boxes2.scalar_type())};
}

struct MatrixFunction : torch::autograd::Function<MatrixFunction> {
  static Tensor forward(AutogradContext* context, const Tensor& boxes1, const Tensor& boxes2,
                        std::string_view kind, Parameters parameters) {
    at::AutoDispatchBelowADInplaceOrView below_autograd;
    static const auto op = find_operator<MatrixSignature>("fastloss::box_matrix_forward");
    context->save_for_backward({boxes1, boxes2});
    context->saved_data["kind"] = std::string(kind);
    context->saved_data["parameters"] = parameters.vec();
    return op.call(kind, boxes1, boxes2, parameters);
  }

  static variable_list backward(AutogradContext* context, const variable_list& upstreams) {
    const variable_list inputs = context->get_saved_variables();
    const std::string& kind = context->saved_data["kind"].toStringRef();
    const std::vector<double> parameters = context->saved_data["parameters"].toDoubleVector();
    const Needs needs{context->needs_input_grad(0), context->needs_input_grad(1)};
    if (c10::GradMode::is_enabled()) {
      static const auto reference =
          find_operator<MatrixSignature>("fastloss::box_matrix_reference");
      const Tensor values = reference.call(kind, inputs[0], inputs[1], parameters);
      variable_list result =
          differentiable_gradients(values, inputs, {needs[0], needs[1]}, upstreams[0]);
      result.resize(4);  // kind and parameters
      return result;
    }
    static const auto op = find_operator<MatrixBackwardSignature>("fastloss::box_matrix_backward");
    at::AutoDispatchBelowADInplaceOrView below_autograd;
    auto [gradient1, gradient2] =
        op.call(kind, upstreams[0], inputs[0], inputs[1], parameters, needs);
    return {needs[0] ? gradient1 : Tensor(), needs[1] ? gradient2 : Tensor(), Tensor(), Tensor()};
  }
};

inline Tensor box_matrix_entry(std::string_view kind, const Tensor& boxes1, const Tensor& boxes2,
                               Parameters parameters) {
  constexpr std::string_view kName = "pairwise_box_iou";
  TORCH_CHECK_VALUE(catalogue().box_matrix.find(std::string(kind).c_str()) >= 0, kName,
                    ": kind must be iou, giou, diou, ciou, eiou, siou or nwd, got \"", kind, "\"");
  for (const auto& [name, boxes] : {std::pair("boxes1", &boxes1), std::pair("boxes2", &boxes2)}) {
    check_boxes(kName, name, *boxes);
    TORCH_CHECK_VALUE(boxes->dim() >= 2, kName, ": ", name, " must have shape (..., N, 4), got ",
                      boxes->sym_sizes());
  }
  check_same_device(kName, "boxes2", boxes2, "boxes1", boxes1);
  if (!kernels_serve(boxes1, boxes2)) {
    static const auto reference = find_operator<MatrixSignature>("fastloss::box_matrix_reference");
    return reference.call(kind, boxes1, boxes2, parameters);
  }
  // Batch dimensions broadcast; autograd sums the gradient of what was expanded.
  const auto batch1 = boxes1.sym_sizes().slice(0, boxes1.dim() - 2),
             batch2 = boxes2.sym_sizes().slice(0, boxes2.dim() - 2);
  bool fits = true;
  for (size_t i = 1; i <= std::min(batch1.size(), batch2.size()); ++i) {
    const auto &a = batch1[batch1.size() - i], &b = batch2[batch2.size() - i];
    fits = fits && (a == b || a == 1 || b == 1);
  }
  TORCH_CHECK_VALUE(fits, kName, ": batch dimensions must broadcast, got boxes1 ",
                    boxes1.sym_sizes(), " and boxes2 ", boxes2.sym_sizes());
  auto shape1 = at::infer_size_symdimvector(batch1, batch2), shape2 = shape1;
  shape1.append({boxes1.sym_size(-2), c10::SymInt(4)});
  shape2.append({boxes2.sym_size(-2), c10::SymInt(4)});
  const Tensor first = boxes1.expand_symint(shape1), second = boxes2.expand_symint(shape2);
  if (c10::GradMode::is_enabled() && (first.requires_grad() || second.requires_grad())) {
    return MatrixFunction::apply(first, second, kind, parameters);
  }
  static const auto op = find_operator<MatrixSignature>("fastloss::box_matrix_forward");
  at::AutoDispatchBelowADInplaceOrView below_autograd;
  return op.call(kind, first, second, parameters);
}

}  // namespace fastloss
