// SPDX-License-Identifier: MIT
// Rows divided by their norms, and the gradient of a cosine.
#pragma once
#include "core/math.h"
#include "engines/row_pair.h"

namespace fastloss::FASTLOSS_TARGET {

// What makes a unit vector of a row with this sum of squares.
template <class T>
struct UnitRow {
  T inverse;     // what the row is multiplied with: 1 / norm
  T missing;     // how far its squared norm is below 1 then: a row shorter than kSmallestNorm
  bool is_unit;  // else the factor is a constant

  // Of the gradient of 1 − cos = `distance`, the part along the row.
  FASTLOSS_INLINE T along(T distance) const { return is_unit ? distance : T(1); }
};

template <class T>
FASTLOSS_INLINE UnitRow<T> unit_row(T sum_of_squares) {
  const T norm = sqrt(sum_of_squares), smallest = T(kSmallestNorm);
  if (norm < smallest)
    return {T(1) / smallest, T(1) - sum_of_squares / (smallest * smallest), false};
  return {T(1) / norm, T(0), true};
}

}  // namespace fastloss::FASTLOSS_TARGET
