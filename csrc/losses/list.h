// SPDX-License-Identifier: MIT
// The formulas of one engine: a list of types, from which every backend builds its tables in the
// same order.
#pragma once
#include "core/macros.h"
#include "engines/backend.h"

namespace fastloss::FASTLOSS_TARGET {

template <class... Formulas>
struct List {
  static constexpr int kSize = sizeof...(Formulas);

  template <class Formula>
  static constexpr LossInfo info() {
    int device_parameter = -1;
    if constexpr (requires { Formula::kDeviceParameter; })
      device_parameter = Formula::kDeviceParameter;
    bool weighted_mean = true;
    if constexpr (requires { Formula::kWeightedMean; }) weighted_mean = Formula::kWeightedMean;
    bool class_targets = false;
    if constexpr (requires { Formula::kClassTargets; }) class_targets = Formula::kClassTargets;
    // The parameters with a meaning to the engine `softmax`.
    int ignore_index = -1, smoothing = -1, softcap = -1, class_weight = -1;
    if constexpr (requires { Formula::kIgnoreIndex; }) ignore_index = Formula::kIgnoreIndex;
    if constexpr (requires { Formula::kSmoothing; }) smoothing = Formula::kSmoothing;
    if constexpr (requires { Formula::kSoftcap; }) softcap = Formula::kSoftcap;
    if constexpr (requires { Formula::kClassWeight; }) class_weight = Formula::kClassWeight;
    ClassTarget class_target = ClassTarget::kIndex;
    if constexpr (requires { Formula::kTarget; }) class_target = Formula::kTarget;
    const char *input = "input", *target = "target";
    if constexpr (requires { Formula::kInputName; }) input = Formula::kInputName;
    if constexpr (requires { Formula::kTargetName; }) target = Formula::kTargetName;
    bool has_voxel_loss = false, weighs_background = false;
    if constexpr (requires { typename Formula::Voxel; }) {
      has_voxel_loss = true;
      weighs_background = !Formula::Voxel::kSkipsBackground;
    }
    static_assert(Formula::kParameters <= kMaxParameters);
    return {Formula::kName,
            Formula::kParameters,
            device_parameter,
            weighted_mean,
            class_targets,
            input,
            target,
            ignore_index,
            smoothing,
            softcap,
            class_weight,
            class_target,
            requires { Formula::class_weight(0.0); },
            has_voxel_loss,
            weighs_background};
  }
  static constexpr LossInfo kInfo[kSize] = {info<Formulas>()...};

  // A kernel table: Kernel<Formula>::run for every formula.
  template <class Function, template <class> class Kernel>
  struct Table {
    static constexpr Function kRun[kSize] = {&Kernel<Formulas>::run...};
  };
};

}  // namespace fastloss::FASTLOSS_TARGET
