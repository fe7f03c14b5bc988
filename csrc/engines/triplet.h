// SPDX-License-Identifier: MIT
// Engine `triplet`: rows of features. A formula sees distances between an anchor, its positive and
// its negative.
#pragma once
#include "core/layout.h"
#include "core/types.h"

namespace fastloss {

enum TripletMember { kAnchor, kPositive, kNegative, kTripletMembers };

// The layout's dimensions are those of the rows. Its operands are the members, their gradients and
// the unreduced loss.
constexpr int kTripletGradients = kTripletMembers;
constexpr int kTripletValues = 2 * kTripletMembers;
constexpr int kTripletOperands = kTripletValues + 1;

struct TripletArguments {
  int loss = 0;  // index in TripletLosses
  double parameters[kMaxParameters] = {};
  Layout layout;
  int64_t features = 0;
  Input members[kTripletMembers];
  int64_t feature_stride[kTripletMembers] = {};
  Output gradients[kTripletMembers];  // features one after the other; null: not wanted
  LossOutput loss_output;
  double loss_factor = 1.0;      // the total is multiplied with it
  double gradient_factor = 1.0;  // and every gradient with this one
  bool swap = false;
  bool is_double = false;

  bool wants_gradient() const {
    for (const Output& gradient : gradients) {
      if (gradient) return true;
    }
    return false;
  }
};

}  // namespace fastloss
