// SPDX-License-Identifier: MIT
#include "engines/row_pair.h"

#include "core/choose.h"
#include "core/vec.h"
#include "engines/kernels.h"
#include "engines/row_cpu.h"
#include "engines/unit_row.h"
#include "losses/graph.h"

namespace fastloss::FASTLOSS_TARGET {
namespace {

template <class T>
using RowPair = RowGroup<T, kRowPair>;

// The loss of two rows; their gradients where there is room for them. Here it is a sum over the
// features.
template <class Formula, class T, bool kGradient>
  requires is_of_terms<Formula>
[[gnu::noinline]] T run_pair(const RowPair<T>& pair, int64_t features, const T* /*parameter*/,
                             T factor, bool streaming) {
  using V = Vec<T>;
  V sum(0);
  for_each_vector<T>(features, [&](const auto& load, const auto& store, const auto& inside) {
    const auto term = Formula::term(variable<1, kGradient>(load(pair.row[0])),
                                    variable<2, kGradient>(load(pair.row[1])));
    sum += inside(detach(term));
    if constexpr (kGradient) {
      if (pair.gradient[0]) store(pair.gradient[0], V(factor) * derivative<1>(term), streaming);
      if (pair.gradient[1]) store(pair.gradient[1], V(factor) * derivative<2>(term), streaming);
    }
  });
  return sum.sum();
}

// And here one of 1 − cos: half the squared distance of the rows divided by their norms, which is
// not a difference of nearly equal numbers.
template <class Formula, class T, bool kGradient>
[[gnu::noinline]] T run_pair(const RowPair<T>& pair, int64_t features, const T* parameter, T factor,
                             bool streaming) {
  using V = Vec<T>;
  V squares[kRowPair] = {V(0), V(0)};
  for_each_vector<T>(features, [&](const auto& load, const auto&, const auto&) {
    for (int k = 0; k < kRowPair; ++k) squares[k] += square(load(pair.row[k]));
  });
  const UnitRow<T> unit[kRowPair] = {unit_row(squares[0].sum()), unit_row(squares[1].sum())};
  const V inverse[kRowPair] = {V(unit[0].inverse), V(unit[1].inverse)};
  V apart(0);
  for_each_vector<T>(features, [&](const auto& load, const auto&, const auto&) {
    apart += square(load(pair.row[0]) * inverse[0] - load(pair.row[1]) * inverse[1]);
  });
  const T distance = T(0.5) * (apart.sum() + unit[0].missing + unit[1].missing);
  const auto loss = Formula::loss(variable<1, kGradient>(distance), parameter);

  if constexpr (kGradient) {
    const T slope = factor * derivative<1>(loss);
    const V along[kRowPair] = {V(unit[0].along(distance)), V(unit[1].along(distance))};
    const V slopes[kRowPair] = {V(slope * unit[0].inverse), V(slope * unit[1].inverse)};
    for_each_vector<T>(features, [&](const auto& load, const auto& store, const auto&) {
      const V of[kRowPair] = {load(pair.row[0]) * inverse[0], load(pair.row[1]) * inverse[1]};
      for (int k = 0; k < kRowPair; ++k) {
        if (pair.gradient[k]) {
          store(pair.gradient[k], slopes[k] * ((of[k] - of[1 - k]) - along[k] * of[k]), streaming);
        }
      }
    });
  }
  return detach(loss);
}

template <class Formula, class T, bool kGradient>
void run_typed(const RowPairArguments& arguments, const Execution& execution) {
  T parameter[kMaxParameters];
  for (int i = 0; i < Formula::kParameters; ++i) parameter[i] = T(arguments.parameters[i]);
  run_row_groups<T, kGradient>(
      arguments, arguments.rows, execution, [&](const RowPair<T>& pair, bool streaming) {
        return run_pair<Formula, T, kGradient>(pair, arguments.features, parameter,
                                               T(arguments.gradient_factor), streaming);
      });
}

template <class Formula>
struct Kernel {
  static void run(const RowPairArguments& arguments, const Execution& execution) {
    with_number_type(arguments.is_double, [&](auto number) {
      with_flag(arguments.wants_gradient(), [&](auto gradient) {
        run_typed<Formula, decltype(number), decltype(gradient)::value>(arguments, execution);
      });
    });
  }
};

}  // namespace

void row_pair(const RowPairArguments& arguments, const Execution& execution) {
  using Function = void (*)(const RowPairArguments&, const Execution&);
  RowPairLosses::Table<Function, Kernel>::kRun[arguments.loss](arguments, execution);
}

}  // namespace fastloss::FASTLOSS_TARGET
