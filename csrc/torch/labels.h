// SPDX-License-Identifier: MIT
// The engine `label_total` as an operator, and what all engines say of a label out of range.
#pragma once
#include <string>

#include "torch/checks.h"
#include "torch/tensors.h"

namespace fastloss {

// What takes the place of labels that a mask leaves out; no message speaks of it.
constexpr int64_t kMaskedLabel = INT64_MIN;

// Says of which loss and argument a label is not in [0, largest], and where. Only called when one
// is.
[[noreturn]] inline void report_label(std::string_view loss, std::string_view argument,
                                      const Tensor& labels, const IgnoredLabels& ignored,
                                      int64_t largest) {
  const Tensor all = labels.to(at::kLong);
  Tensor bad = all.lt(0).logical_or(all.gt(largest));
  if (ignored.has_index) bad = bad.logical_and(all.ne(ignored.index));
  if (ignored.negatives) bad = bad.logical_and(all.ge(0));
  const Tensor position = bad.nonzero()[0].contiguous();  // a row of what may lie by columns
  Tensor label = all;
  for (int64_t d = 0; d < all.dim(); ++d) label = label[position[d].item<int64_t>()];
  std::string besides;
  if (ignored.negatives) besides = c10::str(" (", largest, ": background; negative: ignored)");
  if (ignored.has_index && ignored.index != kMaskedLabel)
    besides = c10::str(" or ignore_index ", ignored.index);
  TORCH_CHECK_INDEX(
      false, public_name(loss), ": ", argument, " must be a class index in [0, ", largest, "]",
      besides, ", got ", label.item<int64_t>(), " at position ",
      at::IntArrayRef(position.const_data_ptr<int64_t>(), static_cast<size_t>(all.dim())));
}

// Runs a CPU kernel that reads labels.
template <class Run>
void with_label_errors(std::string_view loss, std::string_view argument, const Tensor& labels,
                       const IgnoredLabels& ignored, int64_t largest, const Run& run) {
  try {
    run();
  } catch (const LabelOutOfRange&) {
    report_label(loss, argument, labels, ignored, largest);
  }
}

inline Tensor label_total_meta(std::string_view /*loss*/, std::string_view /*argument*/,
                               const Tensor& labels, OptionalInteger /*ignore_index*/,
                               bool /*negatives_ignored*/, c10::SymInt /*largest*/,
                               const OptionalTensor& /*class_weight*/, at::ScalarType type) {
  return at::empty({}, labels.options().dtype(type));
}

inline Tensor label_total_kernel(std::string_view loss, std::string_view argument,
                                 const Tensor& labels, OptionalInteger ignore_index,
                                 bool negatives_ignored, c10::SymInt largest,
                                 const OptionalTensor& class_weight, at::ScalarType type) {
  Tensor total = at::empty({}, labels.options().dtype(type));
  if (labels.numel() == 0) return total.zero_();
  LabelTotalArguments arguments;
  Tensor rows = labels;
  const auto layout = [&] {
    return try_layout(arguments.layout, rows.sizes(), {&rows}, /*keep_order=*/true);
  };
  if (!layout()) {  // more dimensions than a layout holds
    rows = rows.contiguous();
    layout();
  }
  arguments.labels = input_of(rows);
  arguments.ignored = {ignore_index.has_value(), ignore_index.value_or(0), negatives_ignored};
  arguments.largest = largest.expect_int();
  const Tensor weight = class_weight ? class_weight->to(type).contiguous() : Tensor();
  if (weight.defined()) arguments.class_weight = input_of(weight);
  arguments.total = total.mutable_data_ptr();
  arguments.is_double = type == at::kDouble;
  const Launch launch(labels);
  with_label_errors(loss, argument, labels, arguments.ignored, arguments.largest,
                    [&] { launch.backend().label_total(arguments, launch.execution()); });
  return total;
}

// Σ over the rows that count of their class weight, or their number: what a mean divides by. Labels
// that count are in [0, largest].
inline Tensor label_total(std::string_view loss, std::string_view argument, const Tensor& labels,
                          const IgnoredLabels& ignored, c10::SymInt largest,
                          const OptionalTensor& class_weight, at::ScalarType type) {
  static const auto op = find_operator<LabelTotalSignature>("fastloss::label_total");
  return op.call(loss, argument, labels,
                 ignored.has_index ? OptionalInteger(ignored.index) : std::nullopt,
                 ignored.negatives, std::move(largest), class_weight, type);
}

}  // namespace fastloss
