// SPDX-License-Identifier: MIT
// The formulas of one engine: a list of types, from which every backend builds its tables in the
// same order.
#pragma once
#include "core/macros.h"
#include "engines/backend.h"

namespace fastloss::FASTLOSS_TARGET {

// What a formula says of itself beside its name, where it differs from most.
template <class Formula>
constexpr Targets targets_of = [] {
  if constexpr (requires { Formula::kTargets; }) return Formula::kTargets;
  return Targets::kNumbers;
}();

// Whether a formula sees one tensor more, and a mask.
template <class Formula>
constexpr bool is_of_policy = requires { Formula::kOfPolicy; };

template <class Formula>
constexpr bool has_range = requires { Formula::kRange; };

// What a loss of pairs of boxes calls its arguments.
struct OfBoxes {
  static constexpr const char *kInputName = "boxes1", *kTargetName = "boxes2",
                              *kExtraName = "iou_mean";
};

template <class... Formulas>
struct List {
  static constexpr int kSize = sizeof...(Formulas);

  template <class Formula>
  static constexpr LossInfo info() {
    static_assert(Formula::kParameters <= kMaxParameters);
    LossInfo info{.name = Formula::kName, .parameters = Formula::kParameters};
    if constexpr (requires { Formula::kDeviceParameter; })
      info.device_parameter_index = Formula::kDeviceParameter;
    if constexpr (requires { Formula::kWeightedMean; }) info.weighted_mean = Formula::kWeightedMean;
    info.targets = targets_of<Formula>;
    info.has_range = has_range<Formula>;
    if constexpr (has_range<Formula>)
      info.lowest = Formula::kRange[0], info.highest = Formula::kRange[1];
    if constexpr (requires { Formula::kInputName; }) info.input_name = Formula::kInputName;
    if constexpr (requires { Formula::kTargetName; }) info.target_name = Formula::kTargetName;
    if constexpr (requires { Formula::kExtraName; }) info.extra_name = Formula::kExtraName;
    if constexpr (requires { Formula::kWeightName; }) info.weight_name = Formula::kWeightName;
    if constexpr (requires { Formula::kOfNothing; }) info.of_nothing = Formula::kOfNothing;
    // The parameters with a meaning to the engine `softmax`.
    if constexpr (requires { Formula::kIgnoreIndex; }) info.ignore_index = Formula::kIgnoreIndex;
    if constexpr (requires { Formula::kSmoothing; }) info.smoothing = Formula::kSmoothing;
    if constexpr (requires { Formula::kSoftcap; }) info.softcap = Formula::kSoftcap;
    if constexpr (requires { Formula::kClassWeight; }) info.class_weight = Formula::kClassWeight;
    if constexpr (requires { Formula::kTarget; }) info.class_target = Formula::kTarget;
    info.classes_last = requires { Formula::kClassesLast; };
    info.is_masked = requires { Formula::kMasked; };
    info.has_row_weight = requires { Formula::kRowWeight; };
    if constexpr (requires { Formula::kCoordinates; }) info.coordinates = Formula::kCoordinates;
    info.has_pair_extra = requires { Formula::kPairExtra; };
    info.pools_classes = requires { Formula::class_weight(0.0); };
    if constexpr (requires { typename Formula::Voxel; }) {
      info.has_voxel_loss = true;
      info.weighs_background = !Formula::Voxel::kSkipsBackground;
    }
    return info;
  }
  static constexpr LossInfo kInfo[kSize] = {info<Formulas>()...};

  // A kernel table: Kernel<Formula>::run for every formula.
  template <class Function, template <class> class Kernel>
  struct Table {
    static constexpr Function kRun[kSize] = {&Kernel<Formulas>::run...};
  };
};

}  // namespace fastloss::FASTLOSS_TARGET
