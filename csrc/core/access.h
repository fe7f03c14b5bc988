// SPDX-License-Identifier: MIT
// Reading single numbers of any dtype, on the host and on the device.
#pragma once
#include "core/macros.h"
#include "core/types.h"

namespace fastloss::FASTLOSS_TARGET {

template <class T>
constexpr DType dtype_of = sizeof(T) == 8 ? DType::kFloat64 : DType::kFloat32;

FASTLOSS_INLINE int64_t load_integer(const Input& in, int64_t offset) {
  switch (in.dtype) {
    case DType::kBool:
    case DType::kUInt8:
      return static_cast<const uint8_t*>(in.data)[offset];
    case DType::kInt8:
      return static_cast<const int8_t*>(in.data)[offset];
    case DType::kInt16:
      return static_cast<const int16_t*>(in.data)[offset];
    case DType::kInt32:
      return static_cast<const int32_t*>(in.data)[offset];
    default:
      return static_cast<const int64_t*>(in.data)[offset];
  }
}

FASTLOSS_INLINE bool is_ignored(const IgnoredLabels& ignored, int64_t label) {
  return (ignored.has_index && label == ignored.index) || (ignored.negatives && label < 0);
}

// A number behind a pointer: float32 or float64.
FASTLOSS_INLINE double load_number(const Input& in) {
  return in.dtype == DType::kFloat64 ? *static_cast<const double*>(in.data)
                                     : *static_cast<const float*>(in.data);
}

FASTLOSS_INLINE double resolve(const Scale& scale) {
  if (scale.divisor.data == nullptr) return scale.factor;
  const double divisor = load_number(scale.divisor);
  return divisor == 0.0 ? 0.0 : scale.factor / divisor;
}

}  // namespace fastloss::FASTLOSS_TARGET
