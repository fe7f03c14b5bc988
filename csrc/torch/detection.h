// SPDX-License-Identifier: MIT
// The engine `detection` as operators: the assignment of targets to anchors, and the losses of a
// dense detector.
#pragma once
#include <ATen/ops/cat.h>
#include <ATen/ops/stack.h>
#include <ATen/ops/zeros.h>

#include <tuple>

#include "torch/autograd.h"
#include "torch/checks.h"
#include "torch/labels.h"
#include "torch/tensors.h"

namespace fastloss {

// What a detector predicts at its anchors, and what there is to find, as the operators pass it on.
struct Detections {
  const Tensor &logits, &distances, &anchors, &strides, &labels, &boxes;

  // float64 where a prediction or a box has it; positions of anchors do not ask for it.
  at::ScalarType type() const {
    return boxes.scalar_type() == at::kDouble ? at::kDouble : accumulate_type(logits, distances);
  }

  void check(const char* function) const {
    check_floating(function, "logits", logits);
    TORCH_CHECK_VALUE(logits.dim() == 3 && logits.sym_size(1) > 0, function,
                      ": logits must have shape (B, C, A) with at least one class, got ",
                      logits.sym_sizes());
    const auto batch = logits.sym_size(0), count = logits.sym_size(2);
    check_floating(function, "distances", distances);
    check_same_device(function, "distances", distances, "logits", logits);
    TORCH_CHECK_VALUE(
        distances.dim() == 3 && distances.sym_size(0) == batch && distances.sym_size(2) == count &&
            distances.sym_size(1) % kSides == 0 && distances.sym_size(1) >= 2 * kSides,
        function, ": distances must have shape (B, 4 * bins, A) with B = ", batch, ", A = ", count,
        " as logits have, and at least 2 bins, got ", distances.sym_sizes());
    check_shape(function, "anchors", anchors, "(A, 2)", {count, 2});
    check_shape(function, "strides", strides, "(A,)", {count});
    check_integer(function, "target_labels", labels);
    check_same_device(function, "target_labels", labels, "logits", logits);
    TORCH_CHECK_VALUE(labels.dim() == 2 && labels.sym_size(0) == batch, function,
                      ": target_labels must have shape (B, G) with B = ", batch,
                      " as logits have, got ", labels.sym_sizes());
    check_shape(function, "target_boxes", boxes, "(B, G, 4)", {batch, labels.sym_size(1), 4});
  }

  void check_shape(const char* function, const char* name, const Tensor& tensor, const char* text,
                   std::initializer_list<c10::SymInt> shape) const {
    check_number_type(function, name, tensor);
    check_same_device(function, name, tensor, "logits", logits);
    TORCH_CHECK_VALUE(tensor.sym_sizes() == c10::SymIntArrayRef(shape), function, ": ", name,
                      " must have shape ", text, " = ", c10::SymIntArrayRef(shape), ", got ",
                      tensor.sym_sizes());
  }

  void check_assignment(const OptionalTensor& candidate_boxes) const {
    constexpr const char* kName = "task_aligned_assignment";
    check(kName);
    if (!candidate_boxes) return;
    check_shape(kName, "candidate_boxes", *candidate_boxes, "(B, G, 4)",
                {logits.sym_size(0), labels.sym_size(1), 4});
  }

  bool kernels_serve() const {
    for (const Tensor* tensor : {&distances, &anchors, &strides, &labels, &boxes}) {
      if (!fastloss::kernels_serve(logits, *tensor)) return false;
    }
    return true;
  }
};

// The kernels' view of them; keeps alive what it points to.
struct DenseDetections {
  Tensor points, labels, boxes;

  DenseDetections(const Detections& from, at::ScalarType type, DetectionArguments& arguments) {
    points =
        at::cat({from.anchors.detach().to(type).t(), from.strides.detach().to(type).unsqueeze(0)});
    labels = from.labels.to(at::kLong).contiguous();
    boxes = from.boxes.detach().to(type).contiguous();
    arguments.batch = from.logits.size(0);
    arguments.classes = from.logits.size(1);
    arguments.anchors = from.logits.size(2);
    arguments.bins = from.distances.size(1) / kSides;
    arguments.targets = labels.size(1);
    arguments.logits = input_of(from.logits);
    arguments.distances = input_of(from.distances);
    std::copy_n(from.logits.strides().begin(), 3, arguments.logit_stride);
    std::copy_n(from.distances.strides().begin(), 3, arguments.distance_stride);
    arguments.points = points.const_data_ptr();
    arguments.labels = labels.const_data_ptr<int64_t>();
    arguments.boxes = boxes.const_data_ptr();
    arguments.is_double = type == at::kDouble;
  }
};

// ---- the assignment ----

constexpr const char* kAssignment = "task_aligned_assignment";

inline std::tuple<Tensor, Tensor> assignment_meta(const Tensor& logits, const Tensor& distances,
                                                  const Tensor& anchors, const Tensor& strides,
                                                  const Tensor& labels, const Tensor& boxes,
                                                  int64_t /*topk*/, OptionalInteger /*topk2*/,
                                                  double /*alpha*/, double /*beta*/,
                                                  const OptionalTensor& /*candidate_boxes*/) {
  const auto type = Detections{logits, distances, anchors, strides, labels, boxes}.type();
  const c10::SymInt shape[] = {logits.sym_size(0), logits.sym_size(2)};
  return {at::empty_symint(shape, logits.options().dtype(at::kLong)),
          at::empty_symint(shape, logits.options().dtype(type))};
}

inline std::tuple<Tensor, Tensor> assignment_kernel(const Tensor& logits, const Tensor& distances,
                                                    const Tensor& anchors, const Tensor& strides,
                                                    const Tensor& labels, const Tensor& boxes,
                                                    int64_t topk, OptionalInteger topk2,
                                                    double alpha, double beta,
                                                    const OptionalTensor& candidate_boxes) {
  const Detections detections{logits, distances, anchors, strides, labels, boxes};
  detections.check_assignment(candidate_boxes);
  auto [indices, scores] = assignment_meta(logits, distances, anchors, strides, labels, boxes, topk,
                                           topk2, alpha, beta, candidate_boxes);
  if (indices.numel() == 0 || labels.numel() == 0) return {indices.fill_(-1), scores.zero_()};
  AssignmentArguments arguments;
  const DenseDetections dense(detections, scores.scalar_type(), arguments);
  arguments.topk = std::min(topk, arguments.anchors);
  arguments.topk2 = std::min(topk2.value_or(0), arguments.anchors);
  arguments.alpha = alpha;
  arguments.beta = beta;
  const Tensor reaches =
      candidate_boxes ? candidate_boxes->detach().to(detections.type()).contiguous() : dense.boxes;
  arguments.reaches = reaches.const_data_ptr();
  const Tensor predicted =
      at::empty({arguments.batch, kSides, arguments.anchors}, scores.options());
  const Tensor chosen = at::empty({arguments.batch, arguments.targets, arguments.topk},
                                  indices.options().dtype(at::kInt));
  arguments.predicted = predicted.mutable_data_ptr();
  arguments.chosen = chosen.mutable_data_ptr<int32_t>();
  arguments.indices = indices.mutable_data_ptr<int64_t>();
  arguments.scores = scores.mutable_data_ptr();
  const Launch launch(logits);
  with_label_errors(kAssignment, "target_labels", labels, {.negatives = true},
                    arguments.classes - 1,
                    [&] { launch.backend().detection_assignment(arguments, launch.execution()); });
  return {indices, scores};
}

// Nothing flows back through the choice of the best.
inline std::tuple<Tensor, Tensor> assignment_entry(const Tensor& logits, const Tensor& distances,
                                                   const Tensor& anchors, const Tensor& strides,
                                                   const Tensor& labels, const Tensor& boxes,
                                                   int64_t topk, OptionalInteger topk2,
                                                   double alpha, double beta,
                                                   const OptionalTensor& candidate_boxes) {
  const Detections detections{logits, distances, anchors, strides, labels, boxes};
  detections.check_assignment(candidate_boxes);
  static const auto op =
      find_operator<AssignmentSignature>("fastloss::task_aligned_assignment_forward");
  static const auto reference =
      find_operator<AssignmentSignature>("fastloss::task_aligned_assignment_reference");
  const bool serves =
      detections.kernels_serve() && (!candidate_boxes || kernels_serve(logits, *candidate_boxes));
  const auto& chosen = serves ? op : reference;
  const OptionalTensor candidates =
      candidate_boxes ? OptionalTensor(candidate_boxes->detach()) : std::nullopt;
  return chosen.call(logits.detach(), distances.detach(), anchors.detach(), strides.detach(),
                     labels, boxes.detach(), topk, topk2, alpha, beta, candidates);
}

// ---- the losses ----

constexpr const char* kDetectionLoss = "task_aligned_detection_loss";

// Everything but the logits and the distances.
struct DetectionCall : torch::CustomClassHolder {
  Tensor anchors, strides, labels, boxes, indices, scores;
  OptionalTensor weight;

  DetectionCall(const Tensor& anchors, const Tensor& strides, const Tensor& labels,
                const Tensor& boxes, const Tensor& indices, const Tensor& scores,
                const OptionalTensor& weight)
      : anchors(anchors),
        strides(strides),
        labels(labels),
        boxes(boxes),
        indices(indices),
        scores(scores),
        weight(weight) {}

  template <class Operator>
  auto call(const Operator& op, const Tensor& logits, const Tensor& distances) const {
    return op.call(logits, distances, anchors, strides, labels, boxes, indices, scores, weight);
  }

  Detections detections(const Tensor& logits, const Tensor& distances) const {
    return {logits, distances, anchors, strides, labels, boxes};
  }

  at::ScalarType type(const Tensor& logits, const Tensor& distances) const {
    return scores.scalar_type() == at::kDouble ? at::kDouble : detections(logits, distances).type();
  }

  variable_list tensors() const {
    return {anchors, strides, labels, boxes, indices, scores, weight.value_or(Tensor())};
  }

  void check(const Tensor& logits, const Tensor& distances) const {
    const Detections all = detections(logits, distances);
    all.check(kDetectionLoss);
    const auto batch = logits.sym_size(0), count = logits.sym_size(2);
    check_integer(kDetectionLoss, "target_indices", indices);
    all.check_shape(kDetectionLoss, "target_indices", indices, "(B, A)", {batch, count});
    check_floating(kDetectionLoss, "target_scores", scores);
    all.check_shape(kDetectionLoss, "target_scores", scores, "(B, A)", {batch, count});
    if (weight) all.check_shape(kDetectionLoss, "weight", *weight, "(C,)", {logits.sym_size(1)});
  }
};

// The arguments of both passes; keeps alive what they point to.
struct DetectionInputs {
  DetectionLossArguments arguments;
  DenseDetections dense;
  Tensor indices, scores, weight;

  DetectionInputs(const DetectionCall& call, const Tensor& logits, const Tensor& distances)
      : dense(call.detections(logits, distances), call.type(logits, distances), arguments) {
    const auto type = call.type(logits, distances);
    indices = call.indices.to(at::kLong).contiguous();
    scores = call.scores.detach().to(type).contiguous();
    arguments.indices = indices.const_data_ptr<int64_t>();
    arguments.scores = scores.const_data_ptr();
    if (call.weight) {
      weight = call.weight->detach().to(type).contiguous();
      arguments.weight = weight.const_data_ptr();
    }
  }
};

// The cross-entropy of all logits against 0, which the engine `pointwise` has: its sum, and where
// `gradient` is defined the gradient, times its factor: 1 / divisor.
inline Tensor negative_cross_entropy(const Tensor& logits, const Tensor& weight,
                                     const Tensor& gradient, const Tensor& divisor,
                                     at::ScalarType type) {
  const Tensor nothing = at::zeros({}, logits.options().dtype(type)).expand(logits.sizes());
  const Tensor weights = weight.defined() ? weight.view({-1, 1}).expand(logits.sizes()) : Tensor();
  const Tensor total = at::empty({}, logits.options().dtype(type));
  PointwiseArguments arguments;
  arguments.loss = catalogue().pointwise.find("binary_cross_entropy_with_logits");
  arguments.is_double = type == at::kDouble;
  TORCH_INTERNAL_ASSERT(
      try_layout(arguments.layout, logits.sizes(),
                 {&logits, &nothing, weights.defined() ? &weights : nullptr, nullptr, nullptr,
                  nullptr, gradient.defined() ? &gradient : nullptr, nullptr, nullptr},
                 /*keep_order=*/false));
  arguments.input = input_of(logits);
  arguments.target = input_of(nothing);
  if (weights.defined()) arguments.weight = input_of(weights);
  if (gradient.defined()) {
    arguments.input_gradient = output_of(gradient);
    arguments.gradient_scale = {1.0, input_of(divisor)};
  }
  arguments.loss_output.total = total.mutable_data_ptr();
  const Launch launch(logits);
  launch.backend().pointwise(arguments, launch.execution());
  return total;
}

inline std::tuple<Tensor, Tensor> detection_forward_meta(
    const Tensor& logits, const Tensor& distances, const Tensor& anchors, const Tensor& strides,
    const Tensor& labels, const Tensor& boxes, const Tensor& indices, const Tensor& scores,
    const OptionalTensor& weight) {
  const DetectionCall call(anchors, strides, labels, boxes, indices, scores, weight);
  const auto options = logits.options().dtype(call.type(logits, distances));
  return {at::empty({3}, options), at::empty({}, options)};
}

inline std::tuple<Tensor, Tensor> detection_forward_kernel(
    const Tensor& logits, const Tensor& distances, const Tensor& anchors, const Tensor& strides,
    const Tensor& labels, const Tensor& boxes, const Tensor& indices, const Tensor& scores,
    const OptionalTensor& weight) {
  const DetectionCall call(anchors, strides, labels, boxes, indices, scores, weight);
  call.check(logits, distances);
  const auto type = call.type(logits, distances);
  const auto options = logits.options().dtype(type);
  if (logits.numel() == 0) return {at::zeros({3}, options), at::ones({}, options)};
  DetectionInputs inputs(call, logits, distances);
  const Tensor sums = at::empty({kDetectionSums}, options);
  inputs.arguments.sums = sums.mutable_data_ptr();
  {
    const Launch launch(logits);
    try {
      launch.backend().detection_loss(inputs.arguments, launch.execution());
    } catch (const LabelOutOfRange&) {
      const int64_t targets = labels.size(1);
      if (indices.ge(targets).any().item<bool>())
        report_label(kDetectionLoss, "target_indices", indices, {.negatives = true}, targets - 1);
      report_label(kDetectionLoss, "target_labels", labels, {.negatives = true},
                   logits.size(1) - 1);
    }
  }
  const Tensor of_classes =
      negative_cross_entropy(logits, inputs.weight, Tensor(), Tensor(), type).sub(sums[kPickedSum]);
  const Tensor total = sums[kScoreSum].clamp_min(1);
  return {at::stack({sums[kBoxSum], of_classes, sums[kDistanceSum]}).div_(total), total};
}

inline std::tuple<Tensor, Tensor> detection_backward_meta(
    const Tensor& /*upstream*/, const Tensor& /*total*/, const Tensor& logits,
    const Tensor& distances, const Tensor& /*anchors*/, const Tensor& /*strides*/,
    const Tensor& /*labels*/, const Tensor& /*boxes*/, const Tensor& /*indices*/,
    const Tensor& /*scores*/, const OptionalTensor& /*weight*/, Needs needs) {
  return {needs[0] ? empty_gradient(logits, false) : no_gradient(logits),
          needs[1] ? empty_gradient(distances, false) : no_gradient(distances)};
}

inline std::tuple<Tensor, Tensor> detection_backward_kernel(
    const Tensor& upstream, const Tensor& total, const Tensor& logits, const Tensor& distances,
    const Tensor& anchors, const Tensor& strides, const Tensor& labels, const Tensor& boxes,
    const Tensor& indices, const Tensor& scores, const OptionalTensor& weight, Needs needs) {
  auto gradients = detection_backward_meta(upstream, total, logits, distances, anchors, strides,
                                           labels, boxes, indices, scores, weight, needs);
  auto& [of_logits, of_distances] = gradients;
  if (logits.numel() == 0) return gradients;
  const DetectionCall call(anchors, strides, labels, boxes, indices, scores, weight);
  const auto type = call.type(logits, distances);
  DetectionInputs inputs(call, logits, distances);
  const Tensor factors = upstream.to(type).div(total);
  inputs.arguments.factors = factors.const_data_ptr();
  if (needs[0]) {
    negative_cross_entropy(logits, inputs.weight, of_logits, factors[kPickedSum].reciprocal(),
                           type);
    inputs.arguments.logit_gradient = output_of(of_logits);
    std::copy_n(of_logits.strides().begin(), 3, inputs.arguments.logit_gradient_stride);
  }
  if (needs[1]) {
    of_distances.zero_();
    inputs.arguments.distance_gradient = output_of(of_distances);
    std::copy_n(of_distances.strides().begin(), 3, inputs.arguments.distance_gradient_stride);
  }
  const Launch launch(logits);
  launch.backend().detection_loss(inputs.arguments, launch.execution());
  return gradients;
}

struct DetectionFunction : torch::autograd::Function<DetectionFunction> {
  static auto forward_operator() {
    static const auto op =
        find_operator<DetectionForwardSignature>("fastloss::task_aligned_detection_loss_forward");
    return op;
  }
  static Tensor reference(const DetectionCall& call, const Tensor& logits,
                          const Tensor& distances) {
    static const auto op =
        find_operator<DetectionSignature>("fastloss::task_aligned_detection_loss_reference");
    return call.call(op, logits, distances);
  }

  static Tensor forward(AutogradContext* context, const Tensor& logits, const Tensor& distances,
                        const c10::intrusive_ptr<DetectionCall>& call) {
    at::AutoDispatchBelowADInplaceOrView below_autograd;
    const auto [loss, total] = call->call(forward_operator(), logits, distances);
    // Saved, not only kept with the call: torch then notices changes in place.
    variable_list saved = call->tensors();
    saved.insert(saved.begin(), {logits, distances, total});
    context->save_for_backward(std::move(saved));
    context->saved_data["call"] = at::IValue::make_capsule(call);
    return loss;
  }

  static variable_list backward(AutogradContext* context, const variable_list& upstreams) {
    const variable_list saved = context->get_saved_variables();
    const auto& call = static_cast<DetectionCall&>(*context->saved_data["call"].toCapsule());
    const Needs needs{context->needs_input_grad(0), context->needs_input_grad(1)};
    if (c10::GradMode::is_enabled()) {
      variable_list result =
          differentiable_gradients(reference(call, saved[0], saved[1]), {saved[0], saved[1]},
                                   {needs[0], needs[1]}, upstreams[0]);
      result.emplace_back();  // the call
      return result;
    }
    at::AutoDispatchBelowADInplaceOrView below_autograd;
    static const auto op =
        find_operator<DetectionBackwardSignature>("fastloss::task_aligned_detection_loss_backward");
    const auto [of_logits, of_distances] =
        op.call(upstreams[0], saved[2], saved[0], saved[1], call.anchors, call.strides, call.labels,
                call.boxes, call.indices, call.scores, call.weight, needs);
    return {needs[0] ? of_logits : Tensor(), needs[1] ? of_distances : Tensor(), Tensor()};
  }
};

inline Tensor detection_entry(const Tensor& logits, const Tensor& distances, const Tensor& anchors,
                              const Tensor& strides, const Tensor& labels, const Tensor& boxes,
                              const Tensor& indices, const Tensor& scores,
                              const OptionalTensor& weight) {
  const auto call =
      c10::make_intrusive<DetectionCall>(anchors, strides, labels, boxes, indices, scores, weight);
  call->check(logits, distances);
  const bool others_require_grad = scores.requires_grad() || boxes.requires_grad() ||
                                   anchors.requires_grad() || strides.requires_grad() ||
                                   requires_grad(weight);
  if (!call->detections(logits, distances).kernels_serve() ||
      !kernels_serve(scores, weight.value_or(scores)) ||
      (c10::GradMode::is_enabled() && others_require_grad)) {
    return DetectionFunction::reference(*call, logits, distances);
  }
  if (c10::GradMode::is_enabled() && (logits.requires_grad() || distances.requires_grad()))
    return DetectionFunction::apply(logits, distances, call);
  at::AutoDispatchBelowADInplaceOrView below_autograd;
  return std::get<0>(call->call(DetectionFunction::forward_operator(), logits, distances));
}

}  // namespace fastloss
