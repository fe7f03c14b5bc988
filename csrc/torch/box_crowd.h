// SPDX-License-Identifier: MIT
// The engine `box_crowd` as operators: boxes among boxes.
#pragma once
#include <ATen/ops/ge.h>
#include <ATen/ops/lt.h>
#include <ATen/ops/nonzero.h>

#include <string>
#include <vector>

#include "engines/box_crowd.h"
#include "torch/autograd.h"
#include "torch/checks.h"
#include "torch/tensors.h"

namespace fastloss {

inline std::tuple<Tensor, Tensor> box_crowd_meta(
    std::string_view loss, const Tensor& boxes, const Tensor& targets,
    const Tensor& /*target_index*/, const OptionalTensor& /*batch_index*/,
    const OptionalTensor& /*target_batch_index*/, Parameters /*parameters*/,
    std::string_view reduction, const OptionalTensor& /*upstream*/, bool needs_gradient) {
  const bool unreduced = check_reduction(loss, reduction, false) == Reduction::kNone;
  const auto options = boxes.options().dtype(accumulate_type(boxes, targets));
  Tensor values =
      unreduced ? at::empty_symint({boxes.sym_size(0)}, options) : at::empty({}, options);
  return {values, needs_gradient ? empty_gradient(boxes, true) : no_gradient(boxes)};
}

inline std::tuple<Tensor, Tensor> box_crowd_kernel(
    std::string_view loss, const Tensor& boxes, const Tensor& targets, const Tensor& target_index,
    const OptionalTensor& batch_index, const OptionalTensor& target_batch_index,
    Parameters parameters, std::string_view reduction, const OptionalTensor& upstream,
    bool needs_gradient) {
  auto [values, gradient] =
      box_crowd_meta(loss, boxes, targets, target_index, batch_index, target_batch_index,
                     parameters, reduction, upstream, needs_gradient);
  if (boxes.numel() == 0) return {values.zero_(), gradient};
  const auto type = values.scalar_type();
  const auto dense = [](const OptionalTensor& tensor, at::ScalarType as) {
    return tensor ? tensor->detach().to(as).contiguous() : Tensor();
  };
  const Tensor dense_boxes = dense(boxes, type), dense_targets = dense(targets, type),
               dense_upstream = dense(upstream, type), index = dense(target_index, at::kLong),
               batch = dense(batch_index, at::kLong),
               target_batch = dense(target_batch_index, at::kLong);
  if (boxes.is_cpu()) {
    const Tensor bad = index.lt(0).logical_or(index.ge(targets.size(0))).nonzero();
    if (bad.numel() > 0) {
      const int64_t position = bad[0][0].item<int64_t>();
      TORCH_CHECK_INDEX(false, public_name(loss), ": target_index must be in [0, ", targets.size(0),
                        "), got ", index[position].item<int64_t>(), " at position ", position);
    }
  }
  BoxCrowdArguments arguments;
  arguments.loss = check_loss(catalogue().box_crowd, loss, parameters);
  std::copy(parameters.begin(), parameters.end(), arguments.parameters);
  arguments.boxes_count = boxes.size(0);
  arguments.targets_count = targets.size(0);
  arguments.boxes = dense_boxes.const_data_ptr();
  arguments.targets = dense_targets.const_data_ptr();
  arguments.target_index = index.const_data_ptr<int64_t>();
  if (batch.defined()) {
    arguments.batch_index = batch.const_data_ptr<int64_t>();
    arguments.target_batch_index = target_batch.const_data_ptr<int64_t>();
  }
  if (dense_upstream.defined()) arguments.upstream = dense_upstream.const_data_ptr();
  const Tensor scratch = at::empty({boxes.size(0), kBoxCrowdScratch}, values.options());
  arguments.scratch = scratch.mutable_data_ptr();
  const Tensor typed_gradient = needs_gradient ? at::empty_like(dense_boxes) : Tensor();
  if (needs_gradient) arguments.gradient = typed_gradient.mutable_data_ptr();
  const Reduction kind = check_reduction(loss, reduction, false);
  arguments.reduction = kind == Reduction::kMean  ? CrowdReduction::kMean
                        : kind == Reduction::kSum ? CrowdReduction::kSum
                                                  : CrowdReduction::kNone;
  (kind == Reduction::kNone ? arguments.loss_output.values : arguments.loss_output.total) =
      values.mutable_data_ptr();
  arguments.is_double = type == at::kDouble;
  const Launch launch(boxes);
  launch.backend().box_crowd(arguments, launch.execution());
  return {values, needs_gradient ? narrowed(typed_gradient, boxes.scalar_type()) : gradient};
}

// The arguments of a crowd loss besides the boxes, kept for backward together with the gradient.
struct CrowdCall : torch::CustomClassHolder {
  std::string loss, reduction;
  Tensor targets, target_index;
  OptionalTensor batch_index, target_batch_index;
  std::vector<double> parameters;
  Tensor gradient;

  variable_list saved() const {
    return {targets, target_index, batch_index.value_or(Tensor()),
            target_batch_index.value_or(Tensor())};
  }

  template <class Operator, class... More>
  auto call(const Operator& op, const Tensor& boxes, More... more) const {
    return op.call(loss, boxes, targets, target_index, batch_index, target_batch_index, parameters,
                   reduction, more...);
  }
};

// The unreduced losses of two boxes share their pair.
struct CrowdFunction : GradientOfSharedParts<CrowdFunction, CrowdCall> {
  static auto forward_operator() {
    static const auto op = find_operator<CrowdForwardSignature>("fastloss::box_crowd_forward");
    return op;
  }
  static std::tuple<Tensor, Tensor> run(const CrowdCall& call, const Tensor& boxes,
                                        const Tensor& upstream, bool needs_gradient) {
    return call.call(forward_operator(), boxes, optional(upstream), needs_gradient);
  }
  static Tensor reference(const CrowdCall& call, const Tensor& boxes) {
    static const auto op = find_operator<CrowdSignature>("fastloss::box_crowd_reference");
    return call.call(op, boxes);
  }
};

inline Tensor box_crowd_entry(std::string_view loss, const Tensor& boxes, const Tensor& targets,
                              const Tensor& target_index, const OptionalTensor& batch_index,
                              const OptionalTensor& target_batch_index, Parameters parameters,
                              std::string_view reduction) {
  check_loss(catalogue().box_crowd, loss, parameters);
  check_reduction(loss, reduction, false);
  for (const auto& [name, tensor] :
       {std::pair("boxes", &boxes), std::pair("target_boxes", &targets)}) {
    check_boxes(loss, name, *tensor);
    TORCH_CHECK_VALUE(tensor->dim() == 2, public_name(loss), ": ", name,
                      " must have shape (N, 4), got ", tensor->sym_sizes());
    // Box and target numbers are compared as float32 numbers in the kernels.
    TORCH_CHECK_VALUE(tensor->sym_size(0) < (1 << 24), public_name(loss), ": ", name,
                      " must hold fewer than 2^24 boxes");
  }
  TORCH_CHECK_VALUE(batch_index.has_value() == target_batch_index.has_value(), public_name(loss),
                    ": batch_index and target_batch_index must be given together");
  const auto check_index = [&](const char* name, const Tensor& index, const char* other,
                               const Tensor& rows) {
    check_integer(loss, name, index);
    check_same_device(loss, name, index, "boxes", boxes);
    TORCH_CHECK_VALUE(index.dim() == 1 && index.sym_size(0) == rows.sym_size(0), public_name(loss),
                      ": ", name, " must have one number per row of ", other, ", shape (",
                      rows.sym_size(0), "), got ", index.sym_sizes());
  };
  check_same_device(loss, "target_boxes", targets, "boxes", boxes);
  check_index("target_index", target_index, "boxes", boxes);
  if (batch_index) {
    check_index("batch_index", *batch_index, "boxes", boxes);
    check_index("target_batch_index", *target_batch_index, "target_boxes", targets);
  }
  if (!kernels_serve(boxes, targets) || (c10::GradMode::is_enabled() && targets.requires_grad())) {
    static const auto reference = find_operator<CrowdSignature>("fastloss::box_crowd_reference");
    return reference.call(loss, boxes, targets, target_index, batch_index, target_batch_index,
                          parameters, reduction);
  }
  if (c10::GradMode::is_enabled() && boxes.requires_grad()) {
    auto call = c10::make_intrusive<CrowdCall>();
    call->loss = loss;
    call->reduction = reduction;
    call->targets = targets;
    call->target_index = target_index;
    call->batch_index = batch_index;
    call->target_batch_index = target_batch_index;
    call->parameters = parameters.vec();
    return CrowdFunction::apply(boxes, call);
  }
  at::AutoDispatchBelowADInplaceOrView below_autograd;
  return std::get<0>(CrowdFunction::forward_operator().call(
      loss, boxes, targets, target_index, batch_index, target_batch_index, parameters, reduction,
      OptionalTensor(), false));
}

}  // namespace fastloss
