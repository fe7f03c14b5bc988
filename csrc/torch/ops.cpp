// SPDX-License-Identifier: MIT
// The engines as torch operators: schemas, autograd, and the kernels for CPU, CUDA and meta tensors.
//
// A call runs   op → (autograd Function) → op_forward → engine,   and back through the one backward below. The Function
// calls operators, never kernels, so that fake tensors and tracing see every step. `op_reference` is the plain PyTorch
// twin, registered from Python: it serves double backward, torch.func transforms and devices without kernels.
#include <ATen/TensorSubclassLikeUtils.h>
#include <ATen/ops/eq.h>
#include <ATen/ops/ge.h>
#include <ATen/ops/lt.h>
#include <ATen/ops/mul.h>
#include <ATen/ops/where.h>
#include <ATen/ops/zeros.h>
#include <ATen/ops/zeros_like.h>
#include <torch/csrc/autograd/autograd.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include <string>
#include <tuple>
#include <vector>

#include "torch/checks.h"
#include "torch/operators.h"
#include "torch/tensors.h"

namespace fastloss {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;
// ---------------------------------------------------------------------------------------------- losses of two tensors
// `pointwise` and `box_pair` have the same shape: a first and a second tensor (input and target, prediction and target
// boxes), parameters, one extra tensor, and the options of the reduction.

// Everything but the two tensors, as the operators pass it on and backward needs it again.
struct Options {
  std::string loss;
  c10::SmallVector<double, kMaxParameters> parameters;
  OptionalTensor extra;  // pointwise: pos_weight; box_pair: the parameter that lives on the device
  OptionalTensor weight;
  std::string reduction;
  OptionalTensor avg_factor;
  OptionalNumber avg_number;

  Options(std::string_view loss, Parameters parameters, const OptionalTensor& extra, const OptionalTensor& weight,
          std::string_view reduction, const OptionalTensor& avg_factor, OptionalNumber avg_number)
      : loss(loss),
        parameters(parameters.begin(), parameters.end()),
        extra(extra),
        weight(weight),
        reduction(reduction),
        avg_factor(avg_factor),
        avg_number(avg_number) {}

  bool has_avg_factor() const { return avg_factor || avg_number; }
  Reduction kind() const { return check_reduction(loss, reduction, has_avg_factor()); }

  template <class Operator, class... More>
  auto call(const Operator& op, const Tensor& first, const Tensor& second, More... more) const {
    return op.call(loss, first, second, parameters, extra, weight, reduction, avg_factor, avg_number, more...);
  }
};

// What the mean multiplies with: factor / divisor. The divisor is a tensor where only the device knows it.
struct Mean {
  double factor = 1.0;
  Tensor divisor;

  Scale scale() const { return {factor, divisor.defined() ? input_of(divisor) : Input{}}; }

  Tensor times(const Tensor& number) const {
    const Tensor scaled = number.mul(factor);
    if (!divisor.defined()) return scaled;
    return at::where(divisor.eq(0), at::zeros_like(scaled), scaled.div(divisor));
  }
};

Mean divide_by(double number) { return {number == 0.0 ? 0.0 : 1.0 / number, {}}; }

// The mean divides by avg_factor, by Σ weight or by the number of elements that count. `rows` holds True for the rows of
// elements that count, where not all do.
Mean mean_of(const LossInfo& info, const Options& options, const Tensor& values, at::ScalarType type,
             const OptionalTensor& rows) {
  if (options.kind() != Reduction::kMean) return {};
  if (options.avg_number) return divide_by(*options.avg_number);
  if (options.avg_factor) {
    const Tensor& number = *options.avg_factor;
    if (number.is_cpu() && !values.is_cpu() && !values.is_meta()) return divide_by(number.item<double>());
    return {1.0, number.detach().to(type)};
  }
  const double numel = static_cast<double>(values.numel());
  const bool weighted = options.weight && info.weighted_mean;
  if (rows) {
    if (!weighted) return {numel == 0.0 ? 0.0 : static_cast<double>(rows->numel()) / numel, rows->sum().to(type)};
    const Tensor row_weight = options.weight->detach().to(type).expand(values.sizes()).sum(-1);
    return {1.0, at::where(*rows, row_weight, at::zeros_like(row_weight)).sum()};
  }
  if (!weighted) return divide_by(numel);
  const double repeats = static_cast<double>(options.weight->numel()) / (numel == 0.0 ? 1.0 : numel);
  return {repeats, options.weight->detach().to(type).sum()};
}

// A mean over many elements would push float16 gradients below their smallest number, before a gradient scaler can lift
// them. They are saved as for a sum, and the backward, which has to scale them anyway, applies the mean.
bool defers_mean(const Options& options, const Tensor& first, const Tensor& second) {
  return options.reduction == "mean" && (first.scalar_type() == at::kHalf || second.scalar_type() == at::kHalf);
}

// The tensors one forward call returns, allocated alike for real and for meta tensors.
struct Results {
  Tensor loss, first_gradient, second_gradient;
  std::tuple<Tensor, Tensor, Tensor> as_tuple() const { return {loss, first_gradient, second_gradient}; }
};

struct PointwiseEngine {
  static constexpr const char* kForward = "fastloss::pointwise_forward";
  static constexpr const char* kReference = "fastloss::pointwise_reference";

  static bool has_class_targets(const LossInfo& info, const Tensor& input, const Tensor& target) {
    return info.class_targets && target.dim() + 1 == input.dim() && !at::isFloatingType(target.scalar_type()) &&
           target.sym_sizes() == input.sym_sizes().slice(0, input.dim() - 1);
  }

  static const LossInfo& check(const Tensor& input, const Tensor& target, const Options& options) {
    const LossList& losses = catalogue().pointwise;
    const LossInfo& info = losses.begin[check_loss(losses, options.loss, options.parameters)];
    options.kind();
    check_floating(options.loss, "input", input);
    check_same_device(options.loss, "target", target, "input", input);
    if (has_class_targets(info, input, target)) {
      check_integer(options.loss, "target", target);
    } else {
      check_number_type(options.loss, "target", target);
      check_same_shape(options.loss, "target", target, "input", input);
    }
    for (const auto& [name, tensor] : {std::pair("weight", &options.weight), std::pair("pos_weight", &options.extra)}) {
      if (!*tensor) continue;
      check_number_type(options.loss, name, **tensor);
      check_same_device(options.loss, name, **tensor, "input", input);
      check_broadcastable(options.loss, name, **tensor, "input", input);
    }
    check_number(options.loss, "avg_factor", options.avg_factor, "input", input);
    return info;
  }

  static Results allocate(const Tensor& input, const Tensor& target, const Options& options, Needs needs) {
    const auto type = accumulate_type(input, target);
    const bool any = needs[0] || needs[1];
    return {options.kind() == Reduction::kNone ? at::empty_like(input, input.options().dtype(type))
                                               : at::empty({}, input.options().dtype(type)),
            any ? empty_gradient(input, false) : no_gradient(input),
            needs[1] ? empty_gradient(target, false) : no_gradient(target)};
  }

  static Mean mean(const LossInfo& info, const Tensor& input, const Tensor& target, const Options& options) {
    const bool class_targets = has_class_targets(info, input, target);
    const bool all_rows_count = !class_targets || target.scalar_type() == at::kByte;
    return mean_of(info, options, input, accumulate_type(input, target),
                   all_rows_count ? std::nullopt : OptionalTensor(target.ge(0)));
  }

  static void run(const LossInfo& info, const Tensor& input, const Tensor& target, const Options& options,
                  const Results& results, Needs needs) {
    const bool class_targets = has_class_targets(info, input, target);
    const auto type = results.loss.scalar_type();
    const Mean mean = PointwiseEngine::mean(info, input, target, options);

    PointwiseArguments arguments;
    arguments.loss = check_loss(catalogue().pointwise, options.loss, options.parameters);
    std::copy(options.parameters.begin(), options.parameters.end(), arguments.parameters);
    arguments.target_kind = class_targets ? TargetKind::kClassIndex : TargetKind::kDense;
    arguments.classes = class_targets ? input.size(-1) : 0;
    arguments.is_double = type == at::kDouble;
    arguments.loss_scale = mean.scale();
    if (!defers_mean(options, input, target)) arguments.gradient_scale = mean.scale();

    Tensor x = input;
    Tensor t = class_targets ? target.unsqueeze(-1).expand(input.sizes()) : target;
    Tensor weight = options.weight ? options.weight->expand(input.sizes()) : Tensor();
    Tensor pos_weight = options.extra ? options.extra->expand(input.sizes()) : Tensor();
    const bool any = needs[0] || needs[1], unreduced = options.kind() == Reduction::kNone;
    const auto layout = [&] {
      return try_layout(arguments.layout, input.sizes(),
                        {&x, &t, weight.defined() ? &weight : nullptr, pos_weight.defined() ? &pos_weight : nullptr,
                         any ? &results.first_gradient : nullptr, needs[1] ? &results.second_gradient : nullptr,
                         unreduced ? &results.loss : nullptr},
                        /*keep_order=*/class_targets);
    };
    if (!layout()) {  // more dimensions than a layout holds
      for (Tensor* tensor : {&x, &t, &weight, &pos_weight}) {
        if (tensor->defined()) *tensor = tensor->contiguous();
      }
      TORCH_CHECK_VALUE(layout(), public_name(options.loss), ": input has too many dimensions, ", input.dim());
    }
    arguments.input = input_of(x);
    arguments.target = input_of(t);
    if (weight.defined()) arguments.weight = input_of(weight);
    if (pos_weight.defined()) arguments.pos_weight = input_of(pos_weight);
    if (any) arguments.input_gradient = output_of(results.first_gradient);
    if (needs[1]) arguments.target_gradient = output_of(results.second_gradient);
    (unreduced ? arguments.loss_output.values : arguments.loss_output.total) = results.loss.mutable_data_ptr();

    const Launch launch(input);
    try {
      launch.backend().pointwise(arguments, launch.execution());
    } catch (const LabelOutOfRange& bad) {
      TORCH_CHECK_INDEX(false, public_name(options.loss), ": target must be a class index in [0, ", bad.largest,
                        "] (", bad.largest, ": background; negative: ignored), got ", bad.label, " at row ",
                        bad.position);
    }
  }

  // The upstream gradient of the unreduced loss has the shape of the gradient.
  static Tensor upstream_of(const Tensor& upstream) { return upstream; }
};

struct BoxPairEngine {
  static constexpr const char* kForward = "fastloss::box_pair_forward";
  static constexpr const char* kReference = "fastloss::box_pair_reference";

  static const LossInfo& check(const Tensor& boxes1, const Tensor& boxes2, const Options& options) {
    const LossList& losses = catalogue().box_pair;
    const LossInfo& info = losses.begin[check_loss(losses, options.loss, options.parameters)];
    options.kind();
    check_boxes(options.loss, "boxes1", boxes1);
    check_boxes(options.loss, "boxes2", boxes2);
    check_same_shape(options.loss, "boxes2", boxes2, "boxes1", boxes1);
    check_same_device(options.loss, "boxes2", boxes2, "boxes1", boxes1);
    if (options.weight) {
      check_number_type(options.loss, "weight", *options.weight);
      check_same_device(options.loss, "weight", *options.weight, "boxes1", boxes1);
      TORCH_CHECK_VALUE(options.weight->sym_sizes() == boxes1.sym_sizes().slice(0, boxes1.dim() - 1),
                        public_name(options.loss), ": weight must have one number per box, shape ",
                        boxes1.sym_sizes().slice(0, boxes1.dim() - 1), ", got ", options.weight->sym_sizes());
    }
    check_number(options.loss, "iou_mean", options.extra, "boxes1", boxes1);
    check_number(options.loss, "avg_factor", options.avg_factor, "boxes1", boxes1);
    return info;
  }

  static Results allocate(const Tensor& boxes1, const Tensor& boxes2, const Options& options, Needs needs) {
    const auto type = accumulate_type(boxes1, boxes2);
    const auto leading = boxes1.sym_sizes().slice(0, boxes1.dim() - 1);
    const bool any = needs[0] || needs[1];
    return {at::empty_symint(options.kind() == Reduction::kNone ? leading : c10::SymIntArrayRef(),
                             boxes1.options().dtype(type)),
            any ? empty_gradient(boxes1, true) : no_gradient(boxes1),
            needs[1] ? empty_gradient(boxes2, true) : no_gradient(boxes2)};
  }

  static Mean mean(const LossInfo& info, const Tensor& boxes1, const Tensor& boxes2, const Options& options) {
    const Tensor one_coordinate = boxes1.select(-1, 0);
    return mean_of(info, options, one_coordinate, accumulate_type(boxes1, boxes2), std::nullopt);
  }

  static void run(const LossInfo& info, const Tensor& boxes1, const Tensor& boxes2, const Options& options,
                  const Results& results, Needs needs) {
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
    if (options.extra) {
      // Read on the device; a 0-d tensor on the CPU, or of another dtype, is brought there.
      device_parameter = options.extra->to(boxes1.device(), type);
      arguments.device_parameter_index = info.device_parameter_index;
      arguments.device_parameter = input_of(device_parameter);
    }

    Tensor first = boxes1, second = boxes2, weight = options.weight ? *options.weight : Tensor();
    const auto layout = [&] {
      const Tensor a = first.select(-1, 0), b = second.select(-1, 0);
      const Tensor gradient_a = any ? results.first_gradient.select(-1, 0) : Tensor();
      const Tensor gradient_b = needs[1] ? results.second_gradient.select(-1, 0) : Tensor();
      return try_layout(arguments.layout, a.sizes(),
                        {&a, &b, weight.defined() ? &weight : nullptr, any ? &gradient_a : nullptr,
                         needs[1] ? &gradient_b : nullptr},
                        /*keep_order=*/true);
    };
    if (!layout()) {  // more dimensions than a layout holds
      for (Tensor* tensor : {&first, &second, &weight}) {
        if (tensor->defined()) *tensor = tensor->contiguous();
      }
      TORCH_CHECK_VALUE(layout(), public_name(options.loss), ": boxes1 has too many dimensions, ", boxes1.dim());
    }
    arguments.coordinate_stride[0] = first.stride(-1);
    arguments.coordinate_stride[1] = second.stride(-1);
    arguments.boxes1 = input_of(first);
    arguments.boxes2 = input_of(second);
    if (weight.defined()) arguments.weight = input_of(weight);
    if (any) arguments.gradient1 = output_of(results.first_gradient);
    if (needs[1]) arguments.gradient2 = output_of(results.second_gradient);
    const bool unreduced = options.kind() == Reduction::kNone;
    (unreduced ? arguments.loss_output.values : arguments.loss_output.total) = results.loss.mutable_data_ptr();
    const Launch launch(boxes1);
    launch.backend().box_pair(arguments, launch.execution());
  }

  // The upstream gradient of the unreduced loss is one number for the four coordinates of a box.
  static Tensor upstream_of(const Tensor& upstream) { return upstream.dim() == 0 ? upstream : upstream.unsqueeze(-1); }
};

template <class Engine>
std::tuple<Tensor, Tensor, Tensor> forward_meta(std::string_view loss, const Tensor& first, const Tensor& second,
                                                Parameters parameters, const OptionalTensor& extra,
                                                const OptionalTensor& weight, std::string_view reduction,
                                                const OptionalTensor& avg_factor, OptionalNumber avg_number,
                                                Needs needs) {
  const Options options(loss, parameters, extra, weight, reduction, avg_factor, avg_number);
  return Engine::allocate(first, second, options, needs).as_tuple();
}

template <class Engine>
std::tuple<Tensor, Tensor, Tensor> forward_kernel(std::string_view loss, const Tensor& first, const Tensor& second,
                                                  Parameters parameters, const OptionalTensor& extra,
                                                  const OptionalTensor& weight, std::string_view reduction,
                                                  const OptionalTensor& avg_factor, OptionalNumber avg_number,
                                                  Needs needs) {
  const Options options(loss, parameters, extra, weight, reduction, avg_factor, avg_number);
  const LossInfo& info = Engine::check(first, second, options);
  Results results = Engine::allocate(first, second, options, needs);
  if (first.numel() == 0) {
    results.loss.zero_();
  } else {
    Engine::run(info, first, second, options, results, needs);
  }
  return results.as_tuple();
}

bool is_functorch_wrapped(const Tensor& tensor) {
  constexpr c10::DispatchKeySet kWrapped{c10::DispatchKey::FuncTorchBatched, c10::DispatchKey::FuncTorchGradWrapper};
  return tensor.key_set().has_any(kWrapped);
}

bool has_kernels(const Tensor& tensor) {
  if (tensor.is_cpu() || tensor.is_meta()) return true;
  if (!tensor.is_cuda()) return false;
  if (cuda_backend() != nullptr) return true;
  TORCH_WARN_ONCE(
      "fastloss was built without CUDA kernels: losses on CUDA tensors run as plain PyTorch. Install it where nvcc is "
      "found, or set FASTLOSS_CUDA=1 to see why it is not.");
  return false;
}

bool requires_grad(const OptionalTensor& tensor) { return tensor && tensor->requires_grad(); }

// Where the kernels cannot serve, the twin in plain PyTorch does.
bool needs_reference(const Tensor& first, const Tensor& second, const Options& options) {
  if (!has_kernels(first) || is_functorch_wrapped(first) || is_functorch_wrapped(second)) return true;
  return c10::GradMode::is_enabled() &&
         (requires_grad(options.extra) || requires_grad(options.weight) || requires_grad(options.avg_factor));
}

Tensor scaled(Tensor gradient, const Tensor& upstream) {
  if (at::isTensorSubclassLike(gradient) || at::isTensorSubclassLike(upstream)) {
    return gradient.mul(upstream).to(gradient.scalar_type());  // traced: a plain product, for the compiler to fuse
  }
  static const auto op = find_operator<ScaleSignature>("fastloss::scale_");
  op.call(gradient, upstream);
  return gradient;
}

// The gradients that the forward pass computed wait here for backward.
struct SavedGradients : torch::CustomClassHolder {
  SavedGradients(Options options, bool defers_mean, Tensor first, Tensor second)
      : options(std::move(options)), defers_mean(defers_mean), first(std::move(first)), second(std::move(second)) {}
  Options options;
  bool defers_mean;
  Tensor first, second;
};

template <class Engine>
struct LossFunction : torch::autograd::Function<LossFunction<Engine>> {
  static auto forward_operator() {
    static const auto op = find_operator<LossForwardSignature>(Engine::kForward);
    return op;
  }

  static Tensor forward(AutogradContext* context, const Tensor& first, const Tensor& second, const Options& options) {
    at::AutoDispatchBelowADInplaceOrView below_autograd;
    const Needs needs{first.requires_grad(), second.requires_grad()};
    auto [loss, first_gradient, second_gradient] = options.call(forward_operator(), first, second, needs);
    context->save_for_backward({first, second});
    context->saved_data["gradients"] = at::IValue::make_capsule(
        c10::make_intrusive<SavedGradients>(options, defers_mean(options, first, second), std::move(first_gradient),
                                            std::move(second_gradient)));
    return loss;
  }

  static variable_list backward(AutogradContext* context, const variable_list& upstreams) {
    auto& saved = static_cast<SavedGradients&>(*context->saved_data["gradients"].toCapsule());
    const Needs needs{context->needs_input_grad(0), context->needs_input_grad(1)};
    if (c10::GradMode::is_enabled()) return differentiable_backward(context, saved.options, upstreams[0], needs);

    at::AutoDispatchBelowADInplaceOrView below_autograd;
    // Handed over, not copied. Should the graph be walked again, the gradients are computed anew.
    Tensor gradients[2] = {std::move(saved.first), std::move(saved.second)};
    saved.first = saved.second = Tensor();
    if (!gradients[0].defined()) {
      const variable_list inputs = context->get_saved_variables();
      std::tie(std::ignore, gradients[0], gradients[1]) =
          saved.options.call(forward_operator(), inputs[0], inputs[1], needs);
    }
    Tensor upstream = upstreams[0];
    if (saved.defers_mean) {
      const variable_list inputs = context->get_saved_variables();
      const LossInfo& info = Engine::check(inputs[0], inputs[1], saved.options);
      upstream = Engine::mean(info, inputs[0], inputs[1], saved.options).times(upstream);
    }
    upstream = Engine::upstream_of(upstream);
    variable_list result(3);
    for (int i = 0; i < 2; ++i) {
      if (needs[i]) result[i] = scaled(std::move(gradients[i]), upstream);
    }
    return result;
  }

  // With create_graph=True the gradient is itself a function: the twin's.
  static variable_list differentiable_backward(AutogradContext* context, const Options& options, const Tensor& upstream,
                                               Needs needs) {
    static const auto reference = find_operator<LossSignature>(Engine::kReference);
    const variable_list inputs = context->get_saved_variables();
    const Tensor loss = options.call(reference, inputs[0], inputs[1]);
    variable_list wanted;
    for (int i = 0; i < 2; ++i) {
      if (needs[i]) wanted.push_back(inputs[i]);
    }
    const variable_list found = torch::autograd::grad({loss}, wanted, {upstream}, /*retain_graph=*/true,
                                                      /*create_graph=*/true, /*allow_unused=*/true);
    variable_list result(3);
    for (int i = 0, next = 0; i < 2; ++i) {
      if (needs[i]) result[i] = found[next++];
    }
    return result;
  }
};

template <class Engine>
Tensor loss_entry(std::string_view loss, const Tensor& first, const Tensor& second, Parameters parameters,
                  const OptionalTensor& extra, const OptionalTensor& weight, std::string_view reduction,
                  const OptionalTensor& avg_factor, OptionalNumber avg_number) {
  const Options options(loss, parameters, extra, weight, reduction, avg_factor, avg_number);
  Engine::check(first, second, options);
  if (needs_reference(first, second, options)) {
    static const auto reference = find_operator<LossSignature>(Engine::kReference);
    return options.call(reference, first, second);
  }
  if (c10::GradMode::is_enabled() && (first.requires_grad() || second.requires_grad())) {
    return LossFunction<Engine>::apply(first, second, options);
  }
  at::AutoDispatchBelowADInplaceOrView below_autograd;
  return std::get<0>(options.call(LossFunction<Engine>::forward_operator(), first, second, Needs{false, false}));
}

// ------------------------------------------------------------------------------------------------- pairwise similarity

c10::SymDimVector matrix_shape(const Tensor& boxes1, const Tensor& boxes2) {
  c10::SymDimVector shape(boxes1.sym_sizes().begin(), boxes1.sym_sizes().end() - 1);
  shape.push_back(boxes2.sym_size(-2));
  return shape;
}

// The boxes as the engine wants them; the caller keeps them alive.
struct MatrixInputs {
  Tensor boxes1, boxes2;
  BoxMatrixArguments arguments;

  MatrixInputs(std::string_view kind, const Tensor& first, const Tensor& second, Parameters parameters) {
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

Tensor box_matrix_meta(std::string_view /*kind*/, const Tensor& boxes1, const Tensor& boxes2, Parameters /*unused*/) {
  return at::empty_symint(matrix_shape(boxes1, boxes2), boxes1.options().dtype(accumulate_type(boxes1, boxes2)));
}

Tensor box_matrix_kernel(std::string_view kind, const Tensor& boxes1, const Tensor& boxes2, Parameters parameters) {
  Tensor values = box_matrix_meta(kind, boxes1, boxes2, parameters);
  if (values.numel() == 0) return values;
  MatrixInputs inputs(kind, boxes1, boxes2, parameters);
  inputs.arguments.values = values.mutable_data_ptr();
  const Launch launch(boxes1);
  launch.backend().box_matrix(inputs.arguments, launch.execution());
  return values;
}

std::tuple<Tensor, Tensor> box_matrix_backward_meta(std::string_view /*kind*/, const Tensor& /*upstream*/,
                                                    const Tensor& boxes1, const Tensor& boxes2,
                                                    Parameters /*parameters*/, Needs needs) {
  return {needs[0] ? empty_gradient(boxes1, true) : no_gradient(boxes1),
          needs[1] ? empty_gradient(boxes2, true) : no_gradient(boxes2)};
}

std::tuple<Tensor, Tensor> box_matrix_backward_kernel(std::string_view kind, const Tensor& upstream,
                                                      const Tensor& boxes1, const Tensor& boxes2,
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
  return {gradient1.to(boxes1.scalar_type()), gradient2.to(boxes2.scalar_type())};
}

struct MatrixFunction : torch::autograd::Function<MatrixFunction> {
  static Tensor forward(AutogradContext* context, const Tensor& boxes1, const Tensor& boxes2, std::string_view kind,
                        Parameters parameters) {
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
    variable_list result(4);
    if (c10::GradMode::is_enabled()) {
      static const auto reference = find_operator<MatrixSignature>("fastloss::box_matrix_reference");
      const Tensor values = reference.call(kind, inputs[0], inputs[1], parameters);
      variable_list wanted;
      for (int i = 0; i < 2; ++i) {
        if (needs[i]) wanted.push_back(inputs[i]);
      }
      const variable_list found = torch::autograd::grad({values}, wanted, {upstreams[0]}, /*retain_graph=*/true,
                                                        /*create_graph=*/true, /*allow_unused=*/true);
      for (int i = 0, next = 0; i < 2; ++i) {
        if (needs[i]) result[i] = found[next++];
      }
      return result;
    }
    static const auto op = find_operator<MatrixBackwardSignature>("fastloss::box_matrix_backward");
    at::AutoDispatchBelowADInplaceOrView below_autograd;
    auto [gradient1, gradient2] = op.call(kind, upstreams[0], inputs[0], inputs[1], parameters, needs);
    if (needs[0]) result[0] = gradient1;
    if (needs[1]) result[1] = gradient2;
    return result;
  }
};

Tensor box_matrix_entry(std::string_view kind, const Tensor& boxes1, const Tensor& boxes2, Parameters parameters) {
  constexpr std::string_view kName = "pairwise_box_iou";
  TORCH_CHECK_VALUE(catalogue().box_matrix.find(std::string(kind).c_str()) >= 0, kName,
                    ": kind must be iou, giou, diou, ciou, eiou, siou or nwd, got \"", kind, "\"");
  for (const auto& [name, boxes] : {std::pair("boxes1", &boxes1), std::pair("boxes2", &boxes2)}) {
    check_boxes(kName, name, *boxes);
    TORCH_CHECK_VALUE(boxes->dim() >= 2, kName, ": ", name, " must have shape (..., N, 4), got ", boxes->sym_sizes());
  }
  check_same_device(kName, "boxes2", boxes2, "boxes1", boxes1);
  if (!has_kernels(boxes1) || is_functorch_wrapped(boxes1) || is_functorch_wrapped(boxes2)) {
    static const auto reference = find_operator<MatrixSignature>("fastloss::box_matrix_reference");
    return reference.call(kind, boxes1, boxes2, parameters);
  }
  // Batch dimensions broadcast; autograd sums the gradient of what was expanded.
  const auto batch1 = boxes1.sym_sizes().slice(0, boxes1.dim() - 2), batch2 = boxes2.sym_sizes().slice(0, boxes2.dim() - 2);
  bool fits = true;
  for (size_t i = 1; i <= std::min(batch1.size(), batch2.size()); ++i) {
    const auto &a = batch1[batch1.size() - i], &b = batch2[batch2.size() - i];
    fits = fits && (a == b || a == 1 || b == 1);
  }
  TORCH_CHECK_VALUE(fits, kName, ": batch dimensions must broadcast, got boxes1 ", boxes1.sym_sizes(), " and boxes2 ",
                    boxes2.sym_sizes());
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

// ---------------------------------------------------------------------------------------------------- boxes in a crowd

std::tuple<Tensor, Tensor> box_crowd_meta(std::string_view loss, const Tensor& boxes, const Tensor& targets,
                                          const Tensor& /*target_index*/, const OptionalTensor& /*batch_index*/,
                                          const OptionalTensor& /*target_batch_index*/, Parameters /*parameters*/,
                                          std::string_view reduction, const OptionalTensor& /*upstream*/,
                                          bool needs_gradient) {
  const bool unreduced = check_reduction(loss, reduction, false) == Reduction::kNone;
  const auto options = boxes.options().dtype(accumulate_type(boxes, targets));
  Tensor values = unreduced ? at::empty_symint({boxes.sym_size(0)}, options) : at::empty({}, options);
  return {values, needs_gradient ? empty_gradient(boxes, true) : no_gradient(boxes)};
}

std::tuple<Tensor, Tensor> box_crowd_kernel(std::string_view loss, const Tensor& boxes, const Tensor& targets,
                                            const Tensor& target_index, const OptionalTensor& batch_index,
                                            const OptionalTensor& target_batch_index, Parameters parameters,
                                            std::string_view reduction, const OptionalTensor& upstream,
                                            bool needs_gradient) {
  auto [values, gradient] = box_crowd_meta(loss, boxes, targets, target_index, batch_index, target_batch_index,
                                           parameters, reduction, upstream, needs_gradient);
  if (boxes.numel() == 0) return {values.zero_(), gradient};
  const auto type = values.scalar_type();
  const auto dense = [](const OptionalTensor& tensor, at::ScalarType as) {
    return tensor ? tensor->detach().to(as).contiguous() : Tensor();
  };
  const Tensor dense_boxes = dense(boxes, type), dense_targets = dense(targets, type),
               dense_upstream = dense(upstream, type), index = dense(target_index, at::kLong),
               batch = dense(batch_index, at::kLong), target_batch = dense(target_batch_index, at::kLong);
  if (boxes.is_cpu()) {
    const Tensor bad = index.lt(0).logical_or(index.ge(targets.size(0))).nonzero();
    if (bad.numel() > 0) {
      const int64_t position = bad[0][0].item<int64_t>();
      TORCH_CHECK_INDEX(false, public_name(loss), ": target_index must be in [0, ", targets.size(0), "), got ",
                        index[position].item<int64_t>(), " at position ", position);
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
  (kind == Reduction::kNone ? arguments.loss_output.values : arguments.loss_output.total) = values.mutable_data_ptr();
  arguments.is_double = type == at::kDouble;
  const Launch launch(boxes);
  launch.backend().box_crowd(arguments, launch.execution());
  return {values, needs_gradient ? typed_gradient.to(boxes.scalar_type()) : gradient};
}

// The arguments of a crowd loss besides the boxes, kept for backward together with the gradient.
struct CrowdCall : torch::CustomClassHolder {
  std::string loss, reduction;
  Tensor targets, target_index;
  OptionalTensor batch_index, target_batch_index;
  std::vector<double> parameters;
  Tensor gradient;

  template <class Operator, class... More>
  auto call(const Operator& op, const Tensor& boxes, More... more) const {
    return op.call(loss, boxes, targets, target_index, batch_index, target_batch_index, parameters, reduction, more...);
  }
};

struct CrowdFunction : torch::autograd::Function<CrowdFunction> {
  static auto forward_operator() {
    static const auto op = find_operator<CrowdForwardSignature>("fastloss::box_crowd_forward");
    return op;
  }

  static Tensor forward(AutogradContext* context, const Tensor& boxes, const c10::intrusive_ptr<CrowdCall>& call) {
    at::AutoDispatchBelowADInplaceOrView below_autograd;
    // The unreduced losses of two boxes share their pair: their gradient needs the upstream gradient first.
    auto [loss, gradient] =
        call->call(forward_operator(), boxes, OptionalTensor(), call->reduction != "none");
    context->save_for_backward({boxes});
    call->gradient = call->reduction != "none" ? gradient : Tensor();
    context->saved_data["call"] = at::IValue::make_capsule(call);
    return loss;
  }

  static variable_list backward(AutogradContext* context, const variable_list& upstreams) {
    auto& call = static_cast<CrowdCall&>(*context->saved_data["call"].toCapsule());
    const Tensor& upstream = upstreams[0];
    if (c10::GradMode::is_enabled()) {
      static const auto reference = find_operator<CrowdSignature>("fastloss::box_crowd_reference");
      const Tensor boxes = context->get_saved_variables()[0];
      const Tensor loss = call.call(reference, boxes);
      return {torch::autograd::grad({loss}, {boxes}, {upstream}, /*retain_graph=*/true, /*create_graph=*/true)[0],
              Tensor()};
    }
    at::AutoDispatchBelowADInplaceOrView below_autograd;
    const bool unreduced = call.reduction == "none";
    Tensor gradient = std::move(call.gradient);
    call.gradient = Tensor();
    if (!gradient.defined()) {
      const Tensor boxes = context->get_saved_variables()[0];
      gradient = std::get<1>(
          call.call(forward_operator(), boxes, unreduced ? OptionalTensor(upstream) : OptionalTensor(), true));
    }
    return {unreduced ? gradient : scaled(std::move(gradient), upstream), Tensor()};
  }
};

Tensor box_crowd_entry(std::string_view loss, const Tensor& boxes, const Tensor& targets, const Tensor& target_index,
                       const OptionalTensor& batch_index, const OptionalTensor& target_batch_index,
                       Parameters parameters, std::string_view reduction) {
  check_loss(catalogue().box_crowd, loss, parameters);
  check_reduction(loss, reduction, false);
  for (const auto& [name, tensor] : {std::pair("boxes", &boxes), std::pair("target_boxes", &targets)}) {
    check_boxes(loss, name, *tensor);
    TORCH_CHECK_VALUE(tensor->dim() == 2, public_name(loss), ": ", name, " must have shape (N, 4), got ",
                      tensor->sym_sizes());
    // Box and target numbers are compared as float32 numbers in the kernels.
    TORCH_CHECK_VALUE(tensor->sym_size(0) < (1 << 24), public_name(loss), ": ", name, " must hold fewer than 2^24 boxes");
  }
  TORCH_CHECK_VALUE(batch_index.has_value() == target_batch_index.has_value(), public_name(loss),
                    ": batch_index and target_batch_index must be given together");
  const auto check_index = [&](const char* name, const Tensor& index, const char* other, const Tensor& rows) {
    check_integer(loss, name, index);
    check_same_device(loss, name, index, "boxes", boxes);
    TORCH_CHECK_VALUE(index.dim() == 1 && index.sym_size(0) == rows.sym_size(0), public_name(loss), ": ", name,
                      " must have one number per row of ", other, ", shape (", rows.sym_size(0), "), got ",
                      index.sym_sizes());
  };
  check_same_device(loss, "target_boxes", targets, "boxes", boxes);
  check_index("target_index", target_index, "boxes", boxes);
  if (batch_index) {
    check_index("batch_index", *batch_index, "boxes", boxes);
    check_index("target_batch_index", *target_batch_index, "target_boxes", targets);
  }
  if (!has_kernels(boxes) || is_functorch_wrapped(boxes) || is_functorch_wrapped(targets) ||
      (c10::GradMode::is_enabled() && targets.requires_grad())) {
    static const auto reference = find_operator<CrowdSignature>("fastloss::box_crowd_reference");
    return reference.call(loss, boxes, targets, target_index, batch_index, target_batch_index, parameters, reduction);
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
  return std::get<0>(CrowdFunction::forward_operator().call(loss, boxes, targets, target_index, batch_index,
                                                            target_batch_index, parameters, reduction,
                                                            OptionalTensor(), false));
}

// ------------------------------------------------------------------------------------------------- the shared backward

void scale_kernel(Tensor& gradient, const Tensor& upstream) {
  if (gradient.numel() == 0) return;
  Tensor factor = upstream;
  if (factor.scalar_type() != at::kDouble) factor = factor.to(at::kFloat);
  ScaleArguments arguments;
  factor = factor.expand(gradient.sizes());
  if (!try_layout(arguments.layout, gradient.sizes(), {&gradient, &factor}, /*keep_order=*/false)) {
    gradient.mul_(upstream);  // more dimensions than a layout holds
    return;
  }
  arguments.gradient = output_of(gradient);
  arguments.upstream = input_of(factor);
  const Launch launch(gradient);
  launch.backend().scale(arguments, launch.execution());
}

void scale_meta(Tensor& /*gradient*/, const Tensor& /*upstream*/) {}

// -------------------------------------------------------------------------------------------------------- registration

// CPU always, CUDA where the build has it, and meta tensors.
template <class Kernel, class Meta>
void register_kernels(const char* name, Kernel kernel, Meta meta) {
  static std::vector<torch::Library> libraries;  // a registration lasts as long as its library object
  const auto add = [&](c10::DispatchKey key, auto function) {
    libraries.emplace_back(torch::Library::IMPL, "fastloss", key, __FILE__, __LINE__);
    libraries.back().impl(name, torch::dispatch(key, function));
  };
  add(c10::DispatchKey::CPU, kernel);
  if (cuda_backend() != nullptr) add(c10::DispatchKey::CUDA, kernel);
  add(c10::DispatchKey::Meta, meta);
}

}  // namespace

TORCH_LIBRARY(fastloss, library) {
  const std::string two_tensors =
      "float[] parameters, Tensor? extra, Tensor? weight, str reduction, Tensor? avg_factor, float? avg_number";
  const std::string pointwise = "str loss, Tensor input, Tensor target, " + two_tensors;
  const std::string box_pair = "str loss, Tensor boxes1, Tensor boxes2, " + two_tensors;
  const std::string matrix = "str kind, Tensor boxes1, Tensor boxes2, float[] parameters";
  const std::string crowd =
      "str loss, Tensor boxes, Tensor target_boxes, Tensor target_index, Tensor? batch_index, "
      "Tensor? target_batch_index, float[] parameters, str reduction";

  const auto define = [&](const std::string& schema) { library.def(schema.c_str()); };
  define("pointwise(" + pointwise + ") -> Tensor");
  define("pointwise_reference(" + pointwise + ") -> Tensor");
  define("pointwise_forward(" + pointwise + ", bool[2] needs) -> (Tensor, Tensor, Tensor)");
  define("box_pair(" + box_pair + ") -> Tensor");
  define("box_pair_reference(" + box_pair + ") -> Tensor");
  define("box_pair_forward(" + box_pair + ", bool[2] needs) -> (Tensor, Tensor, Tensor)");
  define("box_matrix(" + matrix + ") -> Tensor");
  define("box_matrix_reference(" + matrix + ") -> Tensor");
  define("box_matrix_forward(" + matrix + ") -> Tensor");
  define("box_matrix_backward(str kind, Tensor upstream, Tensor boxes1, Tensor boxes2, float[] parameters, "
              "bool[2] needs) -> (Tensor, Tensor)");
  define("box_crowd(" + crowd + ") -> Tensor");
  define("box_crowd_reference(" + crowd + ") -> Tensor");
  define("box_crowd_forward(" + crowd + ", Tensor? upstream, bool needs_gradient) -> (Tensor, Tensor)");
  define("scale_(Tensor(a!) gradient, Tensor upstream) -> ()");

  // The entries only check and choose, so tracing may look through them.
  library.impl("pointwise", c10::DispatchKey::CompositeImplicitAutograd, TORCH_FN(loss_entry<PointwiseEngine>));
  library.impl("box_pair", c10::DispatchKey::CompositeImplicitAutograd, TORCH_FN(loss_entry<BoxPairEngine>));
  library.impl("box_matrix", c10::DispatchKey::CompositeImplicitAutograd, TORCH_FN(box_matrix_entry));
  library.impl("box_crowd", c10::DispatchKey::CompositeImplicitAutograd, TORCH_FN(box_crowd_entry));

  register_kernels("pointwise_forward", TORCH_FN(forward_kernel<PointwiseEngine>),
                   TORCH_FN(forward_meta<PointwiseEngine>));
  register_kernels("box_pair_forward", TORCH_FN(forward_kernel<BoxPairEngine>), TORCH_FN(forward_meta<BoxPairEngine>));
  register_kernels("box_matrix_forward", TORCH_FN(box_matrix_kernel), TORCH_FN(box_matrix_meta));
  register_kernels("box_matrix_backward", TORCH_FN(box_matrix_backward_kernel), TORCH_FN(box_matrix_backward_meta));
  register_kernels("box_crowd_forward", TORCH_FN(box_crowd_kernel), TORCH_FN(box_crowd_meta));
  register_kernels("scale_", TORCH_FN(scale_kernel), TORCH_FN(scale_meta));
}

}  // namespace fastloss
