// SPDX-License-Identifier: MIT
// What the autograd Functions of all engines share: when the twin serves instead, and how a saved
// gradient becomes a gradient.
#pragma once
#include <ATen/TensorSubclassLikeUtils.h>
#include <torch/csrc/autograd/autograd.h>
#include <torch/csrc/autograd/custom_function.h>

#include <utility>

#include "torch/tensors.h"

namespace fastloss {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

inline bool is_functorch_wrapped(const Tensor& tensor) {
  constexpr c10::DispatchKeySet kWrapped{c10::DispatchKey::FuncTorchBatched,
                                         c10::DispatchKey::FuncTorchGradWrapper};
  return tensor.key_set().has_any(kWrapped);
}

inline bool has_kernels(const Tensor& tensor) {
  if (tensor.is_cpu() || tensor.is_meta()) return true;
  if (!tensor.is_cuda()) return false;
  if (cuda_backend() != nullptr) return true;
  TORCH_WARN_ONCE(
      "fastloss was built without CUDA kernels: losses on CUDA tensors run as plain PyTorch. "
      "Install it where nvcc is "
      "found, or set FASTLOSS_CUDA=1 to see why it is not.");
  return false;
}

inline bool requires_grad(const OptionalTensor& tensor) {
  return tensor && tensor->requires_grad();
}

// A dual tensor of torch's forward mode: its tangent must not be lost.
inline bool has_tangent(const Tensor& tensor) { return tensor._fw_grad(/*level=*/0).defined(); }

// Whether the kernels can serve calls with these tensors at all.
inline bool kernels_serve(const Tensor& first, const Tensor& second) {
  return has_kernels(first) && !is_functorch_wrapped(first) && !is_functorch_wrapped(second) &&
         !has_tangent(first) && !has_tangent(second);
}

// Whether every element is the number 1, as far as the host can tell without waiting for a device
// and without looking at more than one: a 0-d upstream gradient, or the expanded one of a sum.
inline bool is_known_one(const Tensor& upstream) {
  if (!upstream.is_cpu() || upstream.numel() == 0) return false;
  for (int64_t d = 0; d < upstream.dim(); ++d) {
    if (upstream.size(d) != 1 && upstream.stride(d) != 0) return false;
  }
  if (upstream.scalar_type() == at::kDouble) return *upstream.const_data_ptr<double>() == 1.0;
  return upstream.scalar_type() == at::kFloat && *upstream.const_data_ptr<float>() == 1.0f;
}

// The saved gradient times the upstream gradient, in place where nobody else can see it.
inline Tensor scaled(Tensor gradient, const Tensor& upstream) {
  if (at::isTensorSubclassLike(gradient) || at::isTensorSubclassLike(upstream)) {
    return gradient.mul(upstream).to(
        gradient.scalar_type());  // traced: a plain product, for the compiler to fuse
  }
  if (is_known_one(upstream)) return gradient;
  static const auto op = find_operator<ScaleSignature>("fastloss::scale_");
  op.call(gradient, upstream);
  return gradient;
}

// With create_graph=True a gradient is itself a function of the inputs: that of the twin's `loss`.
// As many gradients as inputs, undefined where not needed.
inline variable_list differentiable_gradients(const Tensor& loss, const variable_list& inputs,
                                              const std::vector<bool>& needs,
                                              const Tensor& upstream) {
  variable_list wanted;
  for (size_t i = 0; i < inputs.size(); ++i) {
    if (needs[i]) wanted.push_back(inputs[i]);
  }
  const variable_list found =
      torch::autograd::grad({loss}, wanted, {upstream}, /*retain_graph=*/true,
                            /*create_graph=*/true, /*allow_unused=*/true);
  variable_list result(inputs.size());
  for (size_t i = 0, next = 0; i < inputs.size(); ++i) {
    if (needs[i]) result[i] = found[next++];
  }
  return result;
}

// The autograd Function of a loss of one input whose gradient backward computes, from what forward
// found. The rest of the arguments is a `Call`, which is saved for backward too. `Derived` is a
// type of its own, whose name is what `grad_fn` shows, and has
//   run(call, input): the loss, and the tensors to save besides the input;
//   reference(call, input): the loss by the twin;
//   gradient(call, upstream, saved): of the input, which is the first one saved.
template <class Derived, class Call>
struct GradientInBackward : torch::autograd::Function<Derived> {
  static Tensor forward(AutogradContext* context, const Tensor& input,
                        const c10::intrusive_ptr<Call>& call) {
    at::AutoDispatchBelowADInplaceOrView below_autograd;
    auto [loss, saved] = Derived::run(*call, input);
    // Saved, not only kept with the call: torch then notices changes in place.
    saved.insert(saved.begin(), input);
    context->save_for_backward(std::move(saved));
    context->saved_data["call"] = at::IValue::make_capsule(call);
    return loss;
  }

  static variable_list backward(AutogradContext* context, const variable_list& upstreams) {
    const variable_list saved = context->get_saved_variables();
    const auto& call = static_cast<Call&>(*context->saved_data["call"].toCapsule());
    if (c10::GradMode::is_enabled()) {
      const Tensor loss = Derived::reference(call, saved[0]);
      variable_list result = differentiable_gradients(loss, {saved[0]}, {true}, upstreams[0]);
      result.emplace_back();  // the call
      return result;
    }
    at::AutoDispatchBelowADInplaceOrView below_autograd;
    return {Derived::gradient(call, upstreams[0], saved), Tensor()};
  }
};

inline OptionalTensor optional(const Tensor& tensor) {
  return tensor.defined() ? OptionalTensor(tensor) : std::nullopt;
}

// The autograd Function of a loss of one input whose unreduced numbers share parts of the input:
// their gradient needs the upstream gradient first. A reduced loss has its gradient from the
// forward pass. A `Call` is the rest of the arguments, with
//   reduction, and gradient: of the input, waiting for backward;
//   saved(): the tensors among the arguments.
// `Derived` is a type of its own, whose name is what `grad_fn` shows, and has
//   run(call, input, upstream, needs_gradient): the loss, and the gradient, weighted by `upstream`
//     where that is defined;
//   reference(call, input): the loss by the twin.
template <class Derived, class Call>
struct GradientOfSharedParts : torch::autograd::Function<Derived> {
  static Tensor forward(AutogradContext* context, const Tensor& input,
                        const c10::intrusive_ptr<Call>& call) {
    at::AutoDispatchBelowADInplaceOrView below_autograd;
    const bool reduced = call->reduction != "none";
    auto [loss, gradient] = Derived::run(*call, input, Tensor(), reduced);
    // Saved, not only kept with the call: torch then notices changes in place.
    variable_list saved = call->saved();
    saved.insert(saved.begin(), input);
    context->save_for_backward(std::move(saved));
    call->gradient = reduced ? gradient : Tensor();
    context->saved_data["call"] = at::IValue::make_capsule(call);
    return loss;
  }

  static variable_list backward(AutogradContext* context, const variable_list& upstreams) {
    auto& call = static_cast<Call&>(*context->saved_data["call"].toCapsule());
    const Tensor& upstream = upstreams[0];
    const Tensor input = context->get_saved_variables()[0];
    if (c10::GradMode::is_enabled()) {
      variable_list result =
          differentiable_gradients(Derived::reference(call, input), {input}, {true}, upstream);
      result.emplace_back();  // the call
      return result;
    }
    at::AutoDispatchBelowADInplaceOrView below_autograd;
    const bool unreduced = call.reduction == "none";
    // Handed over, not copied. Should the graph be walked again, it is computed anew.
    Tensor gradient = std::move(call.gradient);
    call.gradient = Tensor();
    if (!gradient.defined()) {
      std::tie(std::ignore, gradient) =
          Derived::run(call, input, unreduced ? upstream : Tensor(), true);
    }
    if (!unreduced) gradient = scaled(std::move(gradient), upstream);
    return {narrowed(gradient, input.scalar_type()), Tensor()};
  }
};

}  // namespace fastloss
