// SPDX-License-Identifier: MIT
#include "engines/row_pair.h"

#include "core/choose.h"
#include "core/vec.h"
#include "engines/arena.h"
#include "engines/kernels.h"
#include "engines/row_cpu.h"
#include "engines/unit_row.h"
#include "losses/graph.h"

namespace fastloss::FASTLOSS_TARGET {
namespace {

constexpr int64_t kSmallestChunk =
    4096;  // features: below, a second thread costs more than it saves

// Two rows and their gradients, consecutive numbers each; null where not wanted.
template <class T>
struct RowPair {
  const T* row[kRowPair];
  T* gradient[kRowPair];
};

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
  const Layout& layout = arguments.layout;
  const int64_t features = arguments.features;
  const bool streaming = kGradient && outlives_caches(layout.numel * features * int64_t{sizeof(T)});
  const int64_t smallest_chunk = 1 + kSmallestChunk / (features + 1);
  const double sum = sum_over_chunks(
      execution, layout.numel, smallest_chunk, [&](int64_t chunk_begin, int64_t chunk_end) {
        // For what cannot be read or written where it lies.
        Arena arena(2 * kRowPair * Arena::size_of<T>(features));
        T* stage[2 * kRowPair];
        for (T*& row : stage) row = arena.take<T>(features);
        double chunk_sum = 0.0;
        for_each_run(
            layout, chunk_begin, chunk_end,
            [&](int64_t /*position*/, const int64_t* offsets, int64_t length) {
              for (int64_t row = 0; row < length; ++row) {
                const auto offset_of = [&](int operand) {
                  return offsets[operand] + row * layout.stride[operand][0];
                };
                RowPair<T> pair;
                for (int k = 0; k < kRowPair; ++k) {
                  pair.row[k] = readable_row(arguments.rows[k], offset_of(k),
                                             arguments.feature_stride[k], features, stage[k]);
                  pair.gradient[k] =
                      writable_row(arguments.gradients[k], offset_of(kRowPairGradients + k),
                                   stage[kRowPair + k]);
                }
                const T loss = run_pair<Formula, T, kGradient>(
                    pair, features, parameter, T(arguments.gradient_factor), streaming);
                chunk_sum += double(loss);
                if (arguments.loss_output.values)
                  static_cast<T*>(arguments.loss_output.values)[offset_of(kRowPairValues)] = loss;
                for (int k = 0; k < kRowPair; ++k) {
                  if (pair.gradient[k] == stage[kRowPair + k]) {
                    store_strided(arguments.gradients[k], offset_of(kRowPairGradients + k), 1,
                                  pair.gradient[k], 1, features);
                  }
                }
              }
            });
        if (streaming) streaming_fence();
        return chunk_sum;
      });
  store_total<T>(arguments.loss_output, Scale{arguments.loss_factor, {}}, sum);
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
