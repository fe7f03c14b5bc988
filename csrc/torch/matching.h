// SPDX-License-Identifier: MIT
// The engine `matching` as an operator: the costs that a matcher weighs.
#pragma once
#include <ATen/ops/aminmax.h>
#include <ATen/ops/empty.h>

#include <cmath>

#include "engines/matching.h"
#include "torch/autograd.h"
#include "torch/checks.h"
#include "torch/tensors.h"

namespace fastloss {

inline void check_matching(const Tensor& logits, const Tensor& boxes, const Tensor& labels,
                           const Tensor& targets, std::string_view kind) {
  constexpr const char* kName = "detr_matching_cost";
  check_floating(kName, "logits", logits);
  check_boxes(kName, "boxes", boxes);
  check_integer(kName, "target_labels", labels);
  check_boxes(kName, "target_boxes", targets);
  check_same_device(kName, "boxes", boxes, "logits", logits);
  check_same_device(kName, "target_labels", labels, "logits", logits);
  check_same_device(kName, "target_boxes", targets, "logits", logits);
  TORCH_CHECK_VALUE(logits.dim() >= 2, kName, ": logits must have shape (..., N, C), got ",
                    logits.sym_sizes());
  const auto but_last = [](const Tensor& tensor) {
    return tensor.sym_sizes().slice(0, tensor.dim() - 1);
  };
  TORCH_CHECK_VALUE(but_last(boxes) == but_last(logits), kName,
                    ": boxes must have shape (..., N, 4) for logits (..., N, C) of ",
                    logits.sym_sizes(), ", got ", boxes.sym_sizes());
  TORCH_CHECK_VALUE(labels.dim() == logits.dim() - 1 &&
                        but_last(labels) == boxes.sym_sizes().slice(0, boxes.dim() - 2),
                    kName, ": target_labels must have shape (..., M) for logits (..., N, C) of ",
                    logits.sym_sizes(), ", got ", labels.sym_sizes());
  TORCH_CHECK_VALUE(but_last(targets) == labels.sym_sizes(), kName,
                    ": target_boxes must have shape (..., M, 4) for target_labels (..., M) of ",
                    labels.sym_sizes(), ", got ", targets.sym_sizes());
  TORCH_CHECK_VALUE(kind == "softmax" || kind == "focal", kName,
                    ": kind must be \"softmax\" or \"focal\", got \"", kind, "\"");
}

inline Tensor matching_meta(const Tensor& logits, const Tensor& boxes, const Tensor& labels,
                            const Tensor& targets, double /*class_cost*/, double /*bbox_cost*/,
                            double /*giou_cost*/, double /*alpha*/, double /*gamma*/,
                            std::string_view /*kind*/) {
  c10::SymDimVector shape(logits.sym_sizes().begin(), logits.sym_sizes().end() - 1);
  shape.push_back(labels.sym_size(-1));
  const auto type =
      at::promote_types(accumulate_type(logits, boxes), accumulate_type(targets, targets));
  return at::empty_symint(shape, logits.options().dtype(type));
}

inline Tensor matching_kernel(const Tensor& logits, const Tensor& boxes, const Tensor& labels,
                              const Tensor& targets, double class_cost, double bbox_cost,
                              double giou_cost, double alpha, double gamma, std::string_view kind) {
  check_matching(logits, boxes, labels, targets, kind);
  Tensor values = matching_meta(logits, boxes, labels, targets, class_cost, bbox_cost, giou_cost,
                                alpha, gamma, kind);
  if (values.numel() == 0) return values;
  const auto type = values.scalar_type();
  const Tensor dense_labels = labels.to(at::kLong).contiguous(),
               dense_logits = logits.to(type).contiguous(),
               dense_boxes = boxes.to(type).contiguous(),
               dense_targets = targets.to(type).contiguous();
  const int64_t classes = logits.size(-1);
  if (labels.is_cpu()) {
    const auto [least, largest] = at::aminmax(dense_labels);
    const int64_t low = least.item<int64_t>(), high = largest.item<int64_t>();
    TORCH_CHECK_INDEX(low >= 0 && high < classes, "detr_matching_cost: target_labels must be in ",
                      "[0, ", classes, "), got ", low < 0 ? low : high);
  }
  MatchingArguments arguments;
  arguments.is_focal = kind == "focal";
  arguments.class_cost = class_cost;
  arguments.bbox_cost = bbox_cost;
  arguments.giou_cost = giou_cost;
  arguments.alpha = alpha;
  arguments.gamma = gamma;
  arguments.rows = logits.size(-2);
  arguments.columns = labels.size(-1);
  arguments.batch = values.numel() / (arguments.rows * arguments.columns);
  arguments.classes = classes;
  arguments.logits = dense_logits.const_data_ptr();
  arguments.boxes = dense_boxes.const_data_ptr();
  arguments.labels = dense_labels.const_data_ptr<int64_t>();
  arguments.targets = dense_targets.const_data_ptr();
  arguments.values = values.mutable_data_ptr();
  arguments.is_double = type == at::kDouble;
  const Launch launch(logits);
  launch.backend().matching(arguments, launch.execution());
  return values;
}

// Nothing flows back through the choice of a match.
inline Tensor matching_entry(const Tensor& logits, const Tensor& boxes, const Tensor& labels,
                             const Tensor& targets, double class_cost, double bbox_cost,
                             double giou_cost, double alpha, double gamma, std::string_view kind) {
  check_matching(logits, boxes, labels, targets, kind);
  static const auto op = find_operator<MatchingSignature>("fastloss::detr_matching_cost_forward");
  static const auto reference =
      find_operator<MatchingSignature>("fastloss::detr_matching_cost_reference");
  const auto& chosen =
      kernels_serve(logits, boxes) && kernels_serve(labels, targets) ? op : reference;
  return chosen.call(logits.detach(), boxes.detach(), labels, targets.detach(), class_cost,
                     bbox_cost, giou_cost, alpha, gamma, kind);
}

}  // namespace fastloss
