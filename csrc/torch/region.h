// SPDX-License-Identifier: MIT
// The engine `region` as operators: losses of the classes of samples, as segmentation has them.
#pragma once
#include <ATen/ops/empty_like.h>
#include <ATen/ops/zeros.h>

#include <string>
#include <vector>

#include "engines/region.h"
#include "torch/autograd.h"
#include "torch/checks.h"
#include "torch/labels.h"
#include "torch/tensors.h"

namespace fastloss {

// Everything but the logits, as the operators pass it on and backward needs it again.
struct RegionCall : torch::CustomClassHolder {
  std::string loss;
  Tensor target;
  std::vector<double> parameters;
  std::string activation;
  bool squared_pred, include_background, batch;
  OptionalTensor weight;
  std::optional<int64_t> ignore_index;
  std::string reduction;

  RegionCall(std::string_view loss, const Tensor& target, Parameters parameters,
             std::string_view activation, bool squared_pred, bool include_background, bool batch,
             const OptionalTensor& weight, std::optional<int64_t> ignore_index,
             std::string_view reduction)
      : loss(loss),
        target(target),
        parameters(parameters.vec()),
        activation(activation),
        squared_pred(squared_pred),
        include_background(include_background),
        batch(batch),
        weight(weight),
        ignore_index(ignore_index),
        reduction(reduction) {}

  template <class Operator>
  auto call(const Operator& op, const Tensor& input) const {
    return op.call(loss, input, target, parameters, activation, squared_pred, include_background,
                   batch, weight, ignore_index, reduction);
  }
  template <class Operator>
  auto call_backward(const Operator& op, const Tensor& upstream, const Tensor& slopes,
                     const Tensor& input) const {
    return op.call(upstream, slopes, loss, input, target, parameters, activation, squared_pred,
                   include_background, batch, weight, ignore_index, reduction);
  }

  const LossInfo& info() const {
    const LossList& losses = catalogue().region;
    return losses.begin[check_loss(losses, loss, parameters)];
  }
  bool has_labels(const Tensor& input) const { return target.dim() + 1 == input.dim(); }
  IgnoredLabels ignored_labels() const {
    return {ignore_index.has_value(), ignore_index.value_or(0)};
  }
  Reduction kind() const { return check_reduction(loss, reduction, false); }
};

inline void check_voxels(std::string_view loss, const Tensor& input, const Tensor& target,
                         bool takes_dense) {
  check_floating(loss, "input", input);
  check_same_device(loss, "target", target, "input", input);
  TORCH_CHECK_VALUE(input.dim() >= 2, public_name(loss),
                    ": input must have shape (B, C, *spatial), got ", input.sym_sizes());
  const bool labels = target.dim() + 1 == input.dim();
  c10::SymDimVector expected(input.sym_sizes().begin(), input.sym_sizes().end());
  if (labels || !takes_dense) expected.erase(expected.begin() + 1);
  TORCH_CHECK_VALUE(
      target.sym_sizes() == c10::SymIntArrayRef(expected), public_name(loss),
      ": target must have shape (B, *spatial) and be class indices",
      takes_dense ? ", or have the shape of input; input has shape " : "; input has shape ",
      input.sym_sizes(), ", got ", target.sym_sizes());
  if (labels) {
    check_integer(loss, "target", target);
  } else {
    check_number_type(loss, "target", target);
  }
}

inline const LossInfo& check_region(const RegionCall& call, const Tensor& input) {
  const LossInfo& info = call.info();
  const auto name = public_name(call.loss);
  const Reduction kind = call.kind();
  check_voxels(call.loss, input, call.target, /*takes_dense=*/true);
  TORCH_CHECK_VALUE(
      call.activation == "softmax" || call.activation == "sigmoid" || call.activation == "none",
      name, ": activation must be \"softmax\", \"sigmoid\" or None, got \"", call.activation, "\"");
  const auto slash = call.loss.find('/');
  if (info.has_voxel_loss && slash != std::string::npos) {
    TORCH_CHECK_VALUE(call.loss.substr(slash + 1) == call.activation, name,
                      ": no kernel takes activation \"", call.activation, "\" for ", call.loss);
  }
  TORCH_CHECK_VALUE(!info.has_voxel_loss || kind != Reduction::kNone, name,
                    ": reduction must be \"mean\" or \"sum\", got \"none\": regions and voxels "
                    "have no common shape");
  const int64_t skipped = call.include_background ? 0 : 1;
  TORCH_CHECK_VALUE(input.sym_size(1) > skipped, name, ": input must have at least ", 1 + skipped,
                    skipped ? " classes without the background, got shape " : " class, got shape ",
                    input.sym_sizes());
  if (call.weight) {
    const auto classes = input.sym_size(1) - (info.weighs_background ? 0 : skipped);
    check_number_type(call.loss, "weight", *call.weight);
    check_same_device(call.loss, "weight", *call.weight, "input", input);
    TORCH_CHECK_VALUE(call.weight->dim() == 1 && call.weight->sym_size(0) == classes, name,
                      ": weight must have one number per class",
                      classes != input.sym_size(1) ? " but the background" : "", ", shape (",
                      classes, "), got ", call.weight->sym_sizes());
  }
  return info;
}

// The loss, and its slopes by the sums of every region.
inline std::tuple<Tensor, Tensor> allocate_region(const RegionCall& call, const Tensor& input) {
  const LossInfo& info = call.info();
  const auto options = input.options().dtype(accumulate_type(input, call.target));
  const auto batch = input.sym_size(0), classes = input.sym_size(1);
  c10::SymDimVector shape;
  if (call.kind() == Reduction::kNone) {
    if (!call.batch) shape.push_back(batch);
    if (!info.pools_classes) shape.push_back(classes - (call.include_background ? 0 : 1));
  }
  const c10::SymInt slopes = (call.batch ? c10::SymInt(1) : batch) * classes * 2 + batch;
  return {at::empty_symint(shape, options), at::empty_symint({slopes}, options)};
}

// The arguments of both passes; keeps alive what they point to.
struct RegionInputs {
  Tensor input, target, weight;
  RegionArguments arguments;

  RegionInputs(const RegionCall& call, const Tensor& logits, const Tensor* gradient)
      : input(logits), target(call.target) {
    const bool labels = call.has_labels(input);
    const auto layout = [&] {
      const int64_t* strides[kRegionOperands] = {
          input.strides().data() + 2, target.strides().data() + (labels ? 1 : 2),
          gradient != nullptr ? gradient->strides().data() + 2 : nullptr};
      return make_layout(arguments.layout, static_cast<int>(input.dim() - 2),
                         input.sizes().data() + 2, kRegionOperands, strides, /*keep_order=*/false);
    };
    if (!layout()) {  // more dimensions than a layout holds
      input = input.contiguous();
      target = target.contiguous();
      TORCH_CHECK_VALUE(layout(), public_name(call.loss), ": input has too many dimensions, ",
                        input.dim());
    }
    const auto set_operand = [&](RegionOperand operand, const Tensor& tensor, bool has_classes) {
      arguments.batch_stride[operand] = tensor.stride(0);
      arguments.class_stride[operand] = has_classes ? tensor.stride(1) : 0;
    };
    set_operand(kRegionInput, input, true);
    set_operand(kRegionTarget, target, !labels);
    if (gradient != nullptr) set_operand(kRegionGradient, *gradient, true);
    arguments.loss = catalogue().region.find(call.loss.c_str());
    std::copy(call.parameters.begin(), call.parameters.end(), arguments.parameters);
    arguments.batch = input.size(0);
    arguments.classes = input.size(1);
    arguments.input = input_of(input);
    arguments.target = input_of(target);
    arguments.labels = labels;
    arguments.activation = call.activation == "softmax"   ? Activation::kSoftmax
                           : call.activation == "sigmoid" ? Activation::kSigmoid
                                                          : Activation::kNone;
    arguments.squared = call.squared_pred;
    arguments.include_background = call.include_background;
    arguments.pools_batch = call.batch;
    if (call.ignore_index) {
      const int64_t index = *call.ignore_index;
      arguments.ignore_index = index;
      arguments.ignore = labels                                    ? Ignore::kLabel
                         : arguments.classes == 1                  ? Ignore::kValue
                         : index >= 0 && index < arguments.classes ? Ignore::kClass
                                                                   : Ignore::kUnassigned;
    }
    if (call.weight) {
      weight = call.weight->detach().to(at::kDouble).contiguous();
      arguments.weight = weight.const_data_ptr<double>();
      arguments.first_weighted = arguments.classes - weight.size(0);
    }
    const Reduction kind = call.kind();
    arguments.reduction = kind == Reduction::kMean  ? RegionReduction::kMean
                          : kind == Reduction::kSum ? RegionReduction::kSum
                                                    : RegionReduction::kNone;
    arguments.is_double = accumulate_type(input, target) == at::kDouble;
    arguments.slices = region_slices(arguments, input.is_cpu());
  }
};

inline std::tuple<Tensor, Tensor> region_forward_meta(
    std::string_view loss, const Tensor& input, const Tensor& target, Parameters parameters,
    std::string_view activation, bool squared_pred, bool include_background, bool batch,
    const OptionalTensor& weight, std::optional<int64_t> ignore_index, std::string_view reduction) {
  const RegionCall call(loss, target, parameters, activation, squared_pred, include_background,
                        batch, weight, ignore_index, reduction);
  check_region(call, input);
  return allocate_region(call, input);
}

inline std::tuple<Tensor, Tensor> region_forward_kernel(
    std::string_view loss, const Tensor& input, const Tensor& target, Parameters parameters,
    std::string_view activation, bool squared_pred, bool include_background, bool batch,
    const OptionalTensor& weight, std::optional<int64_t> ignore_index, std::string_view reduction) {
  const RegionCall call(loss, target, parameters, activation, squared_pred, include_background,
                        batch, weight, ignore_index, reduction);
  check_region(call, input);
  auto [result, slopes] = allocate_region(call, input);
  if (input.numel() == 0) return {result.zero_(), slopes.zero_()};
  RegionInputs inputs(call, input, nullptr);
  RegionArguments& arguments = inputs.arguments;
  const Tensor scratch = at::empty({region_scratch(arguments)}, input.options().dtype(at::kDouble));
  arguments.scratch = scratch.mutable_data_ptr<double>();
  arguments.slopes = slopes.mutable_data_ptr();
  (call.kind() == Reduction::kNone ? arguments.loss_output.values : arguments.loss_output.total) =
      result.mutable_data_ptr();
  const Launch launch(input);
  with_label_errors(loss, "target", target, call.ignored_labels(), input.size(1) - 1,
                    [&] { launch.backend().region_sums(arguments, launch.execution()); });
  return {result, slopes};
}

inline Tensor region_backward_meta(const Tensor& /*upstream*/, const Tensor& /*slopes*/,
                                   std::string_view /*loss*/, const Tensor& input,
                                   const Tensor& /*target*/, Parameters /*parameters*/,
                                   std::string_view /*activation*/, bool /*squared_pred*/,
                                   bool /*include_background*/, bool /*batch*/,
                                   const OptionalTensor& /*weight*/,
                                   std::optional<int64_t> /*ignore_index*/,
                                   std::string_view /*reduction*/) {
  return empty_gradient(input, false);
}

inline Tensor region_backward_kernel(
    const Tensor& upstream, const Tensor& slopes, std::string_view loss, const Tensor& input,
    const Tensor& target, Parameters parameters, std::string_view activation, bool squared_pred,
    bool include_background, bool batch, const OptionalTensor& weight,
    std::optional<int64_t> ignore_index, std::string_view reduction) {
  Tensor gradient = empty_gradient(input, false);
  if (input.numel() == 0) return gradient;
  const RegionCall call(loss, target, parameters, activation, squared_pred, include_background,
                        batch, weight, ignore_index, reduction);
  RegionInputs inputs(call, input, &gradient);
  const Tensor dense_upstream = upstream.to(slopes.scalar_type()).contiguous();
  inputs.arguments.upstream = input_of(dense_upstream);
  inputs.arguments.slopes = slopes.data_ptr();
  inputs.arguments.gradient = output_of(gradient);
  const Launch launch(input);
  launch.backend().region_gradient(inputs.arguments, launch.execution());
  return gradient;
}

struct RegionFunction : GradientInBackward<RegionFunction, RegionCall> {
  static auto forward_operator() {
    static const auto op = find_operator<RegionForwardSignature>("fastloss::region_forward");
    return op;
  }
  static std::pair<Tensor, variable_list> run(const RegionCall& call, const Tensor& input) {
    auto [loss, slopes] = call.call(forward_operator(), input);
    return {loss, {slopes, call.target, call.weight.value_or(Tensor())}};
  }
  static Tensor reference(const RegionCall& call, const Tensor& input) {
    static const auto op = find_operator<RegionSignature>("fastloss::region_reference");
    return call.call(op, input);
  }
  static Tensor gradient(const RegionCall& call, const Tensor& upstream,
                         const variable_list& saved) {
    static const auto op = find_operator<RegionBackwardSignature>("fastloss::region_backward");
    return call.call_backward(op, upstream, saved[1], saved[0]);
  }
};

inline Tensor region_entry(std::string_view loss, const Tensor& input, const Tensor& target,
                           Parameters parameters, std::string_view activation, bool squared_pred,
                           bool include_background, bool batch, const OptionalTensor& weight,
                           std::optional<int64_t> ignore_index, std::string_view reduction) {
  const auto call =
      c10::make_intrusive<RegionCall>(loss, target, parameters, activation, squared_pred,
                                      include_background, batch, weight, ignore_index, reduction);
  check_region(*call, input);
  if (!kernels_serve(input, target) ||
      (c10::GradMode::is_enabled() && (target.requires_grad() || requires_grad(weight)))) {
    return RegionFunction::reference(*call, input);
  }
  if (c10::GradMode::is_enabled() && input.requires_grad())
    return RegionFunction::apply(input, call);
  at::AutoDispatchBelowADInplaceOrView below_autograd;
  return std::get<0>(call->call(RegionFunction::forward_operator(), input));
}

}  // namespace fastloss
