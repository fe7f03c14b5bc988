// SPDX-License-Identifier: MIT
// From what is known at run time to what a kernel is compiled for.
#pragma once
#include <type_traits>

#include "core/macros.h"

namespace fastloss::FASTLOSS_TARGET {

// Calls run(T()) with the type of the arithmetic.
template <class Run>
void with_number_type(bool is_double, const Run& run) {
  if (is_double) {
    run(double());
  } else {
    run(float());
  }
}

// Calls run with std::true_type or std::false_type.
template <class Run>
void with_flag(bool flag, const Run& run) {
  if (flag) {
    run(std::true_type());
  } else {
    run(std::false_type());
  }
}

}  // namespace fastloss::FASTLOSS_TARGET
