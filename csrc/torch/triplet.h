// SPDX-License-Identifier: MIT
// The engine `triplet` as operators: anchors, each with a positive and a negative.
#pragma once
#include <string>
#include <vector>

#include "engines/triplet.h"
#include "torch/autograd.h"
#include "torch/checks.h"
#include "torch/tensors.h"

namespace fastloss {

using TripletNeeds = std::array<bool, kTripletMembers>;
constexpr const char* kTripletNames[kTripletMembers] = {"anchor", "positive", "negative"};

// The options, and the gradients that wait for backward.
struct TripletCall : torch::CustomClassHolder {
  std::string loss;
  std::vector<double> parameters;
  std::string reduction;
  // As with the other engines a float16 gradient is saved without the mean's factor.
  bool defers_mean = false;
  variable_list gradients;  // of the members; none once handed over

  TripletCall(std::string_view loss, Parameters parameters, std::string_view reduction)
      : loss(loss), parameters(parameters.vec()), reduction(reduction) {}

  template <class Operator, class... More>
  auto call(const Operator& op, const Tensor& anchor, const Tensor& positive,
            const Tensor& negative, More... more) const {
    return op.call(loss, anchor, positive, negative, parameters, reduction, more...);
  }
};

inline Reduction check_triplet(std::string_view loss, const Tensor& anchor, const Tensor& positive,
                               const Tensor& negative, Parameters parameters,
                               std::string_view reduction) {
  check_loss(catalogue().triplet, loss, parameters);
  const Tensor* const members[] = {&anchor, &positive, &negative};
  for (int k = 0; k < kTripletMembers; ++k) check_floating(loss, kTripletNames[k], *members[k]);
  TORCH_CHECK_VALUE(anchor.dim() >= 1, public_name(loss),
                    ": anchor must have shape (..., features), got ", anchor.sym_sizes());
  for (int k = kPositive; k < kTripletMembers; ++k) {
    check_same_device(loss, kTripletNames[k], *members[k], "anchor", anchor);
    check_same_shape(loss, kTripletNames[k], *members[k], "anchor", anchor);
  }
  return check_reduction(loss, reduction, false);
}

// What the mean divides by.
inline c10::SymInt triplets_in(const Tensor& anchor) {
  c10::SymInt count = 1;
  for (const auto& size : anchor.sym_sizes().slice(0, static_cast<size_t>(anchor.dim() - 1)))
    count = count * size;
  return count;
}

inline bool defers_mean(const Tensor& anchor, const Tensor& positive, const Tensor& negative,
                        Reduction kind) {
  return kind == Reduction::kMean &&
         (anchor.scalar_type() == at::kHalf || positive.scalar_type() == at::kHalf ||
          negative.scalar_type() == at::kHalf);
}

inline std::tuple<Tensor, Tensor, Tensor, Tensor> triplet_forward_meta(
    std::string_view loss, const Tensor& anchor, const Tensor& positive, const Tensor& negative,
    Parameters /*parameters*/, std::string_view reduction, TripletNeeds needs) {
  const bool is_double = accumulate_type(anchor, positive) == at::kDouble ||
                         accumulate_type(anchor, negative) == at::kDouble;
  const auto options = anchor.options().dtype(is_double ? at::kDouble : at::kFloat);
  const auto rows = anchor.sym_sizes().slice(0, static_cast<size_t>(anchor.dim() - 1));
  const bool unreduced = check_reduction(loss, reduction, false) == Reduction::kNone;
  const auto gradient = [&](int member, const Tensor& like) {
    return needs[static_cast<size_t>(member)] ? empty_gradient(like, true) : no_gradient(like);
  };
  return {unreduced ? at::empty_symint(rows, options) : at::empty({}, options),
          gradient(kAnchor, anchor), gradient(kPositive, positive), gradient(kNegative, negative)};
}

inline std::tuple<Tensor, Tensor, Tensor, Tensor> triplet_forward_kernel(
    std::string_view loss, const Tensor& anchor, const Tensor& positive, const Tensor& negative,
    Parameters parameters, std::string_view reduction, TripletNeeds needs) {
  const Reduction kind = check_triplet(loss, anchor, positive, negative, parameters, reduction);
  const auto result =
      triplet_forward_meta(loss, anchor, positive, negative, parameters, reduction, needs);
  const Tensor& values = std::get<0>(result);
  const int64_t rows = triplets_in(anchor).expect_int();
  if (rows == 0) {
    values.zero_();
    return result;
  }
  const Tensor gradients[] = {std::get<1>(result), std::get<2>(result), std::get<3>(result)};
  Tensor members[] = {anchor, positive, negative};
  TripletArguments arguments;
  arguments.loss = check_loss(catalogue().triplet, loss, parameters);
  std::copy(parameters.begin(), parameters.end(), arguments.parameters);
  arguments.swap = parameters[3] != 0.0;
  const auto layout = [&] {
    const Tensor* operands[kTripletOperands] = {};
    for (int k = 0; k < kTripletMembers; ++k) {
      operands[k] = &members[k];
      if (needs[static_cast<size_t>(k)]) operands[kTripletGradients + k] = &gradients[k];
    }
    if (kind == Reduction::kNone) operands[kTripletValues] = &values;
    return try_layout(arguments.layout,
                      anchor.sizes().slice(0, static_cast<size_t>(anchor.dim() - 1)), operands,
                      /*keep_order=*/false);
  };
  if (!layout()) {  // more dimensions than a layout holds
    for (Tensor& member : members) member = member.contiguous();
    TORCH_CHECK_VALUE(layout(), public_name(loss), ": anchor has too many dimensions, ",
                      anchor.dim());
  }
  arguments.features = anchor.size(-1);
  for (int k = 0; k < kTripletMembers; ++k) {
    arguments.members[k] = input_of(members[k]);
    arguments.feature_stride[k] = members[k].stride(-1);
    if (needs[static_cast<size_t>(k)]) arguments.gradients[k] = output_of(gradients[k]);
  }
  arguments.is_double = values.scalar_type() == at::kDouble;
  if (kind == Reduction::kMean) arguments.loss_factor = 1.0 / static_cast<double>(rows);
  if (!defers_mean(anchor, positive, negative, kind))
    arguments.gradient_factor = arguments.loss_factor;
  (kind == Reduction::kNone ? arguments.loss_output.values : arguments.loss_output.total) =
      values.mutable_data_ptr();
  const Launch launch(anchor);
  launch.backend().triplet(arguments, launch.execution());
  return result;
}

struct TripletFunction : torch::autograd::Function<TripletFunction> {
  static auto forward_operator() {
    static const auto op = find_operator<TripletForwardSignature>("fastloss::triplet_forward");
    return op;
  }

  static Tensor forward(AutogradContext* context, const Tensor& anchor, const Tensor& positive,
                        const Tensor& negative, const c10::intrusive_ptr<TripletCall>& call) {
    at::AutoDispatchBelowADInplaceOrView below_autograd;
    const TripletNeeds needs{anchor.requires_grad(), positive.requires_grad(),
                             negative.requires_grad()};
    auto [loss, of_anchor, of_positive, of_negative] =
        call->call(forward_operator(), anchor, positive, negative, needs);
    call->defers_mean = defers_mean(anchor, positive, negative,
                                    check_reduction(call->loss, call->reduction, false));
    call->gradients = {of_anchor, of_positive, of_negative};
    context->save_for_backward({anchor, positive, negative});
    context->saved_data["call"] = at::IValue::make_capsule(call);
    return loss;
  }

  static variable_list backward(AutogradContext* context, const variable_list& upstreams) {
    auto& call = static_cast<TripletCall&>(*context->saved_data["call"].toCapsule());
    const variable_list members = context->get_saved_variables();
    const TripletNeeds needs{context->needs_input_grad(0), context->needs_input_grad(1),
                             context->needs_input_grad(2)};
    if (c10::GradMode::is_enabled()) {
      static const auto reference = find_operator<TripletSignature>("fastloss::triplet_reference");
      const Tensor loss = call.call(reference, members[0], members[1], members[2]);
      variable_list result =
          differentiable_gradients(loss, members, {needs[0], needs[1], needs[2]}, upstreams[0]);
      result.emplace_back();  // the call
      return result;
    }
    at::AutoDispatchBelowADInplaceOrView below_autograd;
    // Handed over, not copied. Should the graph be walked again, the gradients are computed anew.
    variable_list gradients = std::move(call.gradients);
    call.gradients.clear();
    if (gradients.empty()) {
      gradients.resize(kTripletMembers);
      std::tie(std::ignore, gradients[0], gradients[1], gradients[2]) =
          call.call(forward_operator(), members[0], members[1], members[2], needs);
    }
    Tensor upstream = upstreams[0];
    if (call.reduction == "none") upstream = upstream.unsqueeze(-1);  // a number for all features
    if (call.defers_mean) {
      const c10::SymInt rows = triplets_in(members[0]);
      upstream = rows == 0 ? upstream : upstream.div(at::Scalar(rows));
    }
    variable_list result(kTripletMembers + 1);
    for (size_t k = 0; k < kTripletMembers; ++k) {
      if (needs[k]) result[k] = scaled(std::move(gradients[k]), upstream);
    }
    return result;
  }
};

inline Tensor triplet_entry(std::string_view loss, const Tensor& anchor, const Tensor& positive,
                            const Tensor& negative, Parameters parameters,
                            std::string_view reduction) {
  check_triplet(loss, anchor, positive, negative, parameters, reduction);
  const auto call = c10::make_intrusive<TripletCall>(loss, parameters, reduction);
  if (!kernels_serve(anchor, positive) || !kernels_serve(anchor, negative)) {
    static const auto reference = find_operator<TripletSignature>("fastloss::triplet_reference");
    return call->call(reference, anchor, positive, negative);
  }
  if (c10::GradMode::is_enabled() &&
      (anchor.requires_grad() || positive.requires_grad() || negative.requires_grad()))
    return TripletFunction::apply(anchor, positive, negative, call);
  at::AutoDispatchBelowADInplaceOrView below_autograd;
  return std::get<0>(call->call(TripletFunction::forward_operator(), anchor, positive, negative,
                                TripletNeeds{false, false, false}));
}

}  // namespace fastloss
