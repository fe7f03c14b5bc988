// SPDX-License-Identifier: MIT
#include "core/access.h"
#include "engines/kernels.h"
#include "losses/region.h"

namespace fastloss::FASTLOSS_TARGET {
namespace {

// The loss of a class in a region, and how many voxels it has there.
struct Ranked {
  double loss, count;
};

template <class Formula, class T, class Label>
Ranked rank(const RankedRegionArguments& arguments, const Label* labels, int64_t segment) {
  const int64_t voxels = arguments.voxels, c = segment % arguments.classes;
  labels += segment / arguments.classes * voxels;
  const T* errors = static_cast<const T*>(arguments.errors) + segment * voxels;
  const int64_t* order = arguments.order + segment * voxels;
  T* steps = arguments.steps ? static_cast<T*>(arguments.steps) + segment * voxels : nullptr;
  double target = 0.0;
  if (c != arguments.ignored_class) {
    for (int64_t i = 0; i < voxels; ++i) target += static_cast<int64_t>(labels[i]) == c ? 1.0 : 0.0;
  }
  double loss = 0.0, missed = 0.0, wrong = 0.0;
  for (int64_t i = 0; i < voxels; ++i) {
    const T error = errors[i];
    T step = T(kNoStep);
    if (!(error < T(0))) {
      if (static_cast<int64_t>(labels[order[i]]) == c) {
        const double growth = Formula::growth_if_missed(target, wrong);
        missed += 1.0;
        loss += growth * double(error);
        step = T(-growth);
      } else {
        const double growth = Formula::growth_if_wrong(target, missed, wrong);
        wrong += 1.0;
        loss += growth * double(error);
        step = T(growth);
      }
    }
    if (steps) steps[order[i]] = step;
  }
  return {loss, target};
}

template <class Formula, class T>
void run_typed(const RankedRegionArguments& arguments, const Execution& execution) {
  struct Context {
    const RankedRegionArguments& arguments;
  } context{arguments};
  const auto task = [](void* pointer, int64_t segment) {
    const auto& arguments = static_cast<Context*>(pointer)->arguments;
    const auto with = [&](const auto* labels) {
      const Ranked ranked = rank<Formula, T>(arguments, labels, segment);
      arguments.scratch[2 * segment] = ranked.loss;
      arguments.scratch[2 * segment + 1] = ranked.count;
    };
    switch (arguments.labels.dtype) {
      case DType::kUInt8:
        return with(static_cast<const uint8_t*>(arguments.labels.data));
      case DType::kInt16:
        return with(static_cast<const int16_t*>(arguments.labels.data));
      case DType::kInt32:
        return with(static_cast<const int32_t*>(arguments.labels.data));
      default:
        return with(static_cast<const int64_t*>(arguments.labels.data));
    }
  };
  execution.parallel.run(arguments.regions * arguments.classes, task, &context);

  double total = 0.0;
  for (int64_t r = 0; r < arguments.regions; ++r) {
    const double* ranked = arguments.scratch + r * arguments.classes * 2;
    double counted = 0.0;
    for (int64_t c = 0; c < arguments.classes; ++c)
      counted += arguments.present && ranked[2 * c + 1] == 0.0 ? 0.0 : 1.0;
    const double scale =
        arguments.mean ? counted == 0.0 ? 0.0 : 1.0 / (counted * double(arguments.regions)) : 1.0;
    for (int64_t c = 0; c < arguments.classes; ++c) {
      const double factor = arguments.present && ranked[2 * c + 1] == 0.0 ? 0.0 : scale;
      const int64_t segment = r * arguments.classes + c;
      total += factor * ranked[2 * c];
      static_cast<T*>(arguments.slopes)[2 * segment] = T(factor);
      static_cast<T*>(arguments.slopes)[2 * segment + 1] = T(0);
      if (arguments.loss_output.values)
        static_cast<T*>(arguments.loss_output.values)[segment] = T(factor * ranked[2 * c]);
    }
  }
  if (arguments.loss_output.total) *static_cast<T*>(arguments.loss_output.total) = T(total);
}

template <class Formula>
struct Kernel {
  static void run(const RankedRegionArguments& arguments, const Execution& execution) {
    if (arguments.is_double) {
      run_typed<Formula, double>(arguments, execution);
    } else {
      run_typed<Formula, float>(arguments, execution);
    }
  }
};

}  // namespace

void ranked_region(const RankedRegionArguments& arguments, const Execution& execution) {
  using Function = void (*)(const RankedRegionArguments&, const Execution&);
  RankedRegionLosses::Table<Function, Kernel>::kRun[arguments.loss](arguments, execution);
}

}  // namespace fastloss::FASTLOSS_TARGET
