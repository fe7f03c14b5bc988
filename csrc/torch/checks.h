// SPDX-License-Identifier: MIT
// What is asked of the arguments of every loss. A message names the function, the argument, what
// was expected and what came. The entry of a call runs these checks, before it chooses between
// kernel and twin; the forward operators of losses.h, which can be called by themselves, run them
// too.
#pragma once
#include <c10/util/Exception.h>

#include <string>
#include <string_view>

#include "engines/backend.h"
#include "torch/operators.h"

namespace fastloss {

enum class Reduction { kNone, kMean, kSum };

// A loss is named as its formula is, a function with an option: "box_iou_loss/log". A function that
// makes its loss from another one's formula puts its own name in front: "rmse_loss:mse_loss".

// The function's name, for messages.
inline std::string_view public_name(std::string_view loss) {
  return loss.substr(0, loss.find_first_of(":/"));
}

inline std::string formula_name(std::string_view loss) {
  return std::string(loss.substr(loss.find(':') + 1));  // npos + 1 is 0
}

inline Reduction check_reduction(std::string_view loss, std::string_view reduction,
                                 bool has_avg_factor) {
  const auto result = reduction == "mean"   ? Reduction::kMean
                      : reduction == "sum"  ? Reduction::kSum
                      : reduction == "none" ? Reduction::kNone
                                            : std::optional<Reduction>();
  TORCH_CHECK_VALUE(result, public_name(loss),
                    ": reduction must be \"none\", \"mean\" or \"sum\", got \"", reduction, "\"");
  TORCH_CHECK_VALUE(!has_avg_factor || *result == Reduction::kMean, public_name(loss),
                    ": avg_factor needs reduction=\"mean\", got reduction=\"", reduction, "\"");
  return *result;
}

inline void check_floating(std::string_view loss, const char* argument, const Tensor& tensor) {
  const auto type = tensor.scalar_type();
  TORCH_CHECK_TYPE(
      type == at::kFloat || type == at::kDouble || type == at::kHalf || type == at::kBFloat16,
      public_name(loss), ": ", argument, " must be float16, bfloat16, float32 or float64, got ",
      type);
}

inline void check_number_type(std::string_view loss, const char* argument, const Tensor& tensor) {
  const auto type = tensor.scalar_type();
  const bool integer = type == at::kByte || type == at::kChar || type == at::kShort ||
                       type == at::kInt || type == at::kLong || type == at::kBool;
  if (!integer) check_floating(loss, argument, tensor);
}

inline void check_integer(std::string_view loss, const char* argument, const Tensor& tensor) {
  const auto type = tensor.scalar_type();
  TORCH_CHECK_TYPE(type == at::kByte || type == at::kShort || type == at::kInt || type == at::kLong,
                   public_name(loss), ": ", argument, " must be uint8, int16, int32 or int64, got ",
                   type);
}

// True, or another number than 0, where an element counts.
inline void check_mask(std::string_view loss, const char* argument, const Tensor& tensor) {
  TORCH_CHECK_TYPE(at::isIntegralType(tensor.scalar_type(), /*includeBool=*/true),
                   public_name(loss), ": ", argument, " must be bool or integers, got ",
                   tensor.scalar_type());
}

inline void check_same_device(std::string_view loss, const char* argument, const Tensor& tensor,
                              const char* other, const Tensor& other_tensor) {
  TORCH_CHECK_VALUE(tensor.device() == other_tensor.device(), public_name(loss), ": ", argument,
                    " must be on ", other, "'s device ", other_tensor.device(), ", got ",
                    tensor.device());
}

inline void check_same_shape(std::string_view loss, const char* argument, const Tensor& tensor,
                             const char* other, const Tensor& other_tensor) {
  TORCH_CHECK_VALUE(tensor.sym_sizes() == other_tensor.sym_sizes(), public_name(loss), ": ",
                    argument, " must have the shape of ", other, ", ", other_tensor.sym_sizes(),
                    ", got ", tensor.sym_sizes());
}

inline void check_boxes(std::string_view loss, const char* argument, const Tensor& boxes,
                        int coordinates = 4) {
  check_floating(loss, argument, boxes);
  TORCH_CHECK_VALUE(boxes.dim() >= 1 && boxes.sym_size(-1) == coordinates, public_name(loss), ": ",
                    argument, " must have shape (..., ", coordinates, "), got ", boxes.sym_sizes());
}

// A tensor that stands for one number of the reduction.
inline void check_number(std::string_view loss, const char* argument, const OptionalTensor& tensor,
                         const char* other, const Tensor& other_tensor) {
  if (!tensor) return;
  check_number_type(loss, argument, *tensor);
  TORCH_CHECK_VALUE(tensor->dim() == 0, public_name(loss), ": ", argument,
                    " must be a number or a 0-d tensor, got shape ", tensor->sym_sizes());
  // A number on the CPU can be read at no cost whatever the device of the rest.
  if (!tensor->is_cpu()) check_same_device(loss, argument, *tensor, other, other_tensor);
}

inline void check_broadcastable(std::string_view loss, const char* argument, const Tensor& tensor,
                                const char* other, const Tensor& other_tensor) {
  const auto sizes = tensor.sym_sizes(), full = other_tensor.sym_sizes();
  bool fits = sizes.size() <= full.size();
  for (size_t i = 0; fits && i < sizes.size(); ++i) {
    const auto& size = sizes[sizes.size() - 1 - i];
    fits = size == full[full.size() - 1 - i] || size == 1;
  }
  TORCH_CHECK_VALUE(fits, public_name(loss), ": ", argument,
                    " must be broadcastable to the shape of ", other, ", ", full, ", got ", sizes);
}

inline int check_loss(const LossList& losses, std::string_view loss,
                      at::ArrayRef<double> parameters) {
  const int index = losses.find(formula_name(loss).c_str());
  TORCH_CHECK_VALUE(index >= 0, "fastloss: no kernel is named \"", loss, "\"");
  TORCH_CHECK_VALUE(static_cast<int>(parameters.size()) == losses.begin[index].parameters,
                    public_name(loss), ": expected ", losses.begin[index].parameters,
                    " parameters, got ", parameters.size());
  return index;
}

}  // namespace fastloss
