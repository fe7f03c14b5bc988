// SPDX-License-Identifier: MIT
// The engine `ranked_region` as operators: losses of a region's voxels in the order of their
// errors.
#pragma once
#include <ATen/ops/empty_strided.h>
#include <ATen/ops/sort.h>

#include "engines/ranked_region.h"
#include "torch/region.h"

namespace fastloss {

// Everything but the logits, kept for backward's twin.
struct RankedRegionCall : torch::CustomClassHolder {
  std::string loss;
  Tensor target;
  bool present, per_image;
  std::optional<int64_t> ignore_index;
  std::string reduction;

  RankedRegionCall(std::string_view loss, const Tensor& target, bool present, bool per_image,
                   std::optional<int64_t> ignore_index, std::string_view reduction)
      : loss(loss),
        target(target),
        present(present),
        per_image(per_image),
        ignore_index(ignore_index),
        reduction(reduction) {}

  template <class Operator, class... More>
  auto call(const Operator& op, const Tensor& input, More... more) const {
    return op.call(loss, input, target, present, per_image, ignore_index, reduction, more...);
  }
  void check(const Tensor& input) const {
    check_loss(catalogue().ranked_region, loss, {});
    check_reduction(loss, reduction, false);
    check_voxels(loss, input, target, /*takes_dense=*/false);
    TORCH_CHECK_VALUE(input.sym_size(1) > 0, public_name(loss),
                      ": input must have at least 1 class, got shape ", input.sym_sizes());
  }
  // The passes of the engine `region`, over the same logits: its losses have the same access.
  RegionCall as_region(const Tensor& targets) const {
    static constexpr double kUnused[] = {0.0, 0.0, 0.0};
    return RegionCall("dice_loss", targets, kUnused, "softmax", /*squared_pred=*/false,
                      /*include_background=*/true, /*batch=*/!per_image, std::nullopt, ignore_index,
                      reduction);
  }
};

// The loss, the step of every voxel and class, and what the losses of classes are multiplied with.
inline std::tuple<Tensor, Tensor, Tensor> allocate_ranked(const RankedRegionCall& call,
                                                          const Tensor& input,
                                                          bool needs_gradient) {
  const auto options = input.options().dtype(accumulate_type(input, input));
  const auto batch = input.sym_size(0), classes = input.sym_size(1);
  c10::SymDimVector shape;
  if (check_reduction(call.loss, call.reduction, false) == Reduction::kNone) {
    if (call.per_image) shape.push_back(batch);
    shape.push_back(classes);
  }
  // Each class of a region has its voxels side by side, whatever the logits' strides.
  const auto steps = [&] {
    c10::SymDimVector sizes(input.sym_sizes().begin(), input.sym_sizes().end());
    if (call.per_image) return at::empty_symint(sizes, options);
    std::swap(sizes[0], sizes[1]);
    return at::empty_symint(sizes, options).transpose(0, 1);
  };
  const c10::SymInt slopes = (call.per_image ? batch : c10::SymInt(1)) * classes * 2 + batch;
  return {at::empty_symint(shape, options), needs_gradient ? steps() : no_gradient(input),
          at::empty_symint({slopes}, options)};
}

inline std::tuple<Tensor, Tensor, Tensor> ranked_region_forward_meta(
    std::string_view loss, const Tensor& input, const Tensor& target, bool present, bool per_image,
    std::optional<int64_t> ignore_index, std::string_view reduction, bool needs_gradient) {
  const RankedRegionCall call(loss, target, present, per_image, ignore_index, reduction);
  call.check(input);
  return allocate_ranked(call, input, needs_gradient);
}

inline std::tuple<Tensor, Tensor, Tensor> ranked_region_forward_kernel(
    std::string_view loss, const Tensor& input, const Tensor& target, bool present, bool per_image,
    std::optional<int64_t> ignore_index, std::string_view reduction, bool needs_gradient) {
  const RankedRegionCall call(loss, target, present, per_image, ignore_index, reduction);
  call.check(input);
  auto [result, steps, slopes] = allocate_ranked(call, input, needs_gradient);
  slopes.zero_();
  if (input.numel() == 0) return {result.zero_(), steps, slopes};
  // In the memory of the steps, which are computed when the errors are sorted.
  const Tensor errors =
      needs_gradient ? steps : std::get<1>(allocate_ranked(call, input, /*needs_gradient=*/true));
  RankedRegionArguments arguments;
  arguments.loss = catalogue().ranked_region.find(call.loss.c_str());
  arguments.classes = input.size(1);
  arguments.regions = per_image ? input.size(0) : 1;
  arguments.voxels = input.numel() / arguments.classes / arguments.regions;
  const Launch launch(input);
  const RegionCall region = call.as_region(target);
  RegionInputs inputs(region, input, &errors);
  inputs.arguments.gradient = output_of(errors);
  with_label_errors(loss, "target", target, region.ignored_labels(), input.size(1) - 1,
                    [&] { launch.backend().region_errors(inputs.arguments, launch.execution()); });
  const Tensor ranks = per_image ? errors : errors.transpose(0, 1);
  const auto [sorted, order] =
      at::sort(ranks.view({arguments.regions, arguments.classes, arguments.voxels}),
               /*stable=*/true, /*dim=*/-1, /*descending=*/true);
  const Tensor labels = target.contiguous();
  const Tensor scratch =
      at::empty({arguments.regions * arguments.classes * 2}, input.options().dtype(at::kDouble));
  arguments.errors = sorted.const_data_ptr();
  arguments.order = order.const_data_ptr<int64_t>();
  arguments.labels = input_of(labels);
  arguments.ignored_class = ignore_index.value_or(-1);
  arguments.present = present;
  arguments.mean = reduction == "mean";
  arguments.is_double = result.scalar_type() == at::kDouble;
  if (needs_gradient) arguments.steps = steps.mutable_data_ptr();
  arguments.slopes = slopes.mutable_data_ptr();
  arguments.scratch = scratch.mutable_data_ptr<double>();
  (reduction == "none" ? arguments.loss_output.values : arguments.loss_output.total) =
      result.mutable_data_ptr();
  launch.backend().ranked_region(arguments, launch.execution());
  return {result, steps, slopes};
}

inline Tensor ranked_region_backward_meta(const Tensor& /*upstream*/, const Tensor& /*steps*/,
                                          const Tensor& /*slopes*/, const Tensor& input,
                                          bool /*per_image*/, bool /*ignores*/,
                                          std::string_view /*reduction*/) {
  return empty_gradient(input, false);
}

inline Tensor ranked_region_backward_kernel(const Tensor& upstream, const Tensor& steps,
                                            const Tensor& slopes, const Tensor& input,
                                            bool per_image, bool ignores,
                                            std::string_view reduction) {
  Tensor gradient = empty_gradient(input, false);
  if (input.numel() == 0) return gradient;
  const RankedRegionCall call("lovasz_softmax_loss", steps, true, per_image, std::nullopt,
                              reduction);
  const RegionCall region = call.as_region(steps);
  RegionInputs inputs(region, input, &gradient);
  if (ignores) {
    inputs.arguments.ignore = Ignore::kValue;
    inputs.arguments.ignore_index = kNoStep;
  }
  const Tensor dense_upstream = upstream.to(slopes.scalar_type()).contiguous();
  inputs.arguments.upstream = input_of(dense_upstream);
  inputs.arguments.slopes = slopes.data_ptr();
  inputs.arguments.gradient = output_of(gradient);
  const Launch launch(input);
  launch.backend().region_gradient(inputs.arguments, launch.execution());
  return gradient;
}

struct RankedRegionFunction : GradientInBackward<RankedRegionFunction, RankedRegionCall> {
  static auto forward_operator() {
    static const auto op =
        find_operator<RankedRegionForwardSignature>("fastloss::ranked_region_forward");
    return op;
  }
  static std::pair<Tensor, variable_list> run(const RankedRegionCall& call, const Tensor& input) {
    auto [loss, steps, slopes] = call.call(forward_operator(), input, true);
    return {loss, {steps, slopes, call.target}};
  }
  static Tensor reference(const RankedRegionCall& call, const Tensor& input) {
    static const auto op =
        find_operator<RankedRegionSignature>("fastloss::ranked_region_reference");
    return call.call(op, input);
  }
  static Tensor gradient(const RankedRegionCall& call, const Tensor& upstream,
                         const variable_list& saved) {
    static const auto op =
        find_operator<RankedRegionBackwardSignature>("fastloss::ranked_region_backward");
    return op.call(upstream, saved[1], saved[2], saved[0], call.per_image,
                   call.ignore_index.has_value(), call.reduction);
  }
};

inline Tensor ranked_region_entry(std::string_view loss, const Tensor& input, const Tensor& target,
                                  bool present, bool per_image, std::optional<int64_t> ignore_index,
                                  std::string_view reduction) {
  const auto call = c10::make_intrusive<RankedRegionCall>(loss, target, present, per_image,
                                                          ignore_index, reduction);
  call->check(input);
  if (!kernels_serve(input, target)) return RankedRegionFunction::reference(*call, input);
  if (c10::GradMode::is_enabled() && input.requires_grad())
    return RankedRegionFunction::apply(input, call);
  at::AutoDispatchBelowADInplaceOrView below_autograd;
  return std::get<0>(call->call(RankedRegionFunction::forward_operator(), input, false));
}

}  // namespace fastloss
