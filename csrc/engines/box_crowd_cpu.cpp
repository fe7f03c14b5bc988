// SPDX-License-Identifier: MIT
#include "core/vec.h"
#include "engines/kernels.h"
#include "engines/staging.h"
#include "losses/box_crowd.h"

namespace fastloss::FASTLOSS_TARGET {
namespace {

// kLanes boxes of the crowd in the lanes of vectors, with their identities as exact numbers (the
// caller keeps both counts below 2^24). Lanes beyond the end repeat the last box.
template <class T>
struct Lanes {
  using V = Vec<T>;
  V coordinate[4];
  V own[4];  // the target each belongs to
  V target_index;
  V image;
  int64_t first;
  int64_t count;

  Lanes(const BoxCrowdArguments& arguments, int64_t begin) : first(begin) {
    const int64_t left = arguments.boxes_count - begin;
    count = left < V::kLanes ? left : V::kLanes;
    T box[4 * V::kLanes], target[4 * V::kLanes], index[V::kLanes], batch[V::kLanes];
    for (int64_t lane = 0; lane < V::kLanes; ++lane) {
      const int64_t i = begin + (lane < count ? lane : count - 1);
      const int64_t t = arguments.target_index[i];
      for (int64_t c = 0; c < 4; ++c) {
        box[4 * lane + c] = static_cast<const T*>(arguments.boxes)[4 * i + c];
        target[4 * lane + c] = static_cast<const T*>(arguments.targets)[4 * t + c];
      }
      index[lane] = T(t);
      batch[lane] = arguments.batch_index ? T(arguments.batch_index[i]) : T(0);
    }
    load_transposed(box, coordinate[0], coordinate[1], coordinate[2], coordinate[3]);
    load_transposed(target, own[0], own[1], own[2], own[3]);
    target_index = V::load(index);
    image = V::load(batch);
  }

  // A number per lane, for the lanes that exist.
  void store(V value, T* out, int64_t stride) const {
    for (int64_t lane = 0; lane < count; ++lane) out[(first + lane) * stride] = value[int(lane)];
  }
};

template <bool kWanted, class V>
FASTLOSS_INLINE auto make_box(const V (&c)[4]) {
  return Box{variable<1, kWanted>(c[0]), variable<2, kWanted>(c[1]), variable<4, kWanted>(c[2]),
             variable<8, kWanted>(c[3])};
}

// The scratch of the engine: what each box contributes, before the divisors are known.
template <class T>
struct Scratch {
  T* near;            // [P] attraction + repulsion from the target
  T* crowd;           // [P] Σ over the other boxes
  T* overlapping;     // [P] how many of them it overlaps
  T* near_gradient;   // [P, 4]
  T* crowd_gradient;  // [P, 4]
  Scratch(void* memory, int64_t boxes)
      : near(static_cast<T*>(memory)),
        crowd(near + boxes),
        overlapping(crowd + boxes),
        near_gradient(overlapping + boxes),
        crowd_gradient(near_gradient + 4 * boxes) {}
};

template <class Formula, class T, bool kGradient>
void visit(const BoxCrowdArguments& arguments, const T* parameter, const Scratch<T>& scratch,
           int64_t begin) {
  using V = Vec<T>;
  const Lanes<T> lanes(arguments, begin);
  const auto* targets = static_cast<const T*>(arguments.targets);
  const auto* boxes = static_cast<const T*>(arguments.boxes);
  const auto* upstream = static_cast<const T*>(arguments.upstream);
  const auto box = make_box<kGradient>(lanes.coordinate);
  const auto plain_box = make_box<false>(lanes.coordinate);

  V strongest(0), rival[4] = {V(0), V(0), V(0), V(0)};
  for (int64_t j = 0; j < arguments.targets_count; ++j) {
    const V other[4] = {V(targets[4 * j]), V(targets[4 * j + 1]), V(targets[4 * j + 2]),
                        V(targets[4 * j + 3])};
    const V image(arguments.target_batch_index ? T(arguments.target_batch_index[j]) : T(0));
    const auto foreign = (lanes.target_index != V(T(j))) & (lanes.image == image);
    const V competition = Formula::competition(plain_box, make_box<false>(other));
    const auto better = foreign & (competition > strongest);
    strongest = select(better, competition, strongest);
    for (int c = 0; c < 4; ++c) rival[c] = select(better, other[c], rival[c]);
  }
  // Without a rival the point at the origin stands in, which nothing overlaps.
  const auto near = Formula::attraction(box, make_box<false>(lanes.own)) +
                    Formula::target_factor(parameter) *
                        Formula::target_repulsion(box, make_box<false>(rival), parameter);
  lanes.store(detach(near), scratch.near, 1);

  V crowd(0), overlapping(0), gradient[4] = {V(0), V(0), V(0), V(0)};
  V own_upstream(1);
  if (upstream) {
    T padded[V::kLanes] = {};
    for (int64_t lane = 0; lane < lanes.count; ++lane) padded[lane] = upstream[begin + lane];
    own_upstream = V::load(padded);
  }
  for (int64_t j = 0; j < arguments.boxes_count; ++j) {
    const V other[4] = {V(boxes[4 * j]), V(boxes[4 * j + 1]), V(boxes[4 * j + 2]),
                        V(boxes[4 * j + 3])};
    const V target(T(arguments.target_index[j]));
    const V image(arguments.batch_index ? T(arguments.batch_index[j]) : T(0));
    const auto other_box = make_box<false>(other);
    const auto meets = (lanes.target_index != target) & (lanes.image == image) &
                       (overlap(plain_box, other_box).intersection > V(0));
    if (!any(meets)) continue;  // most boxes are far apart
    const auto repulsion = Formula::box_repulsion(box, other_box, parameter);
    crowd = crowd + select(meets, detach(repulsion), V(0));
    overlapping = overlapping + select(meets, V(1), V(0));
    if constexpr (kGradient) {
      // A pair counts half in the loss of each of its two boxes.
      const V factor = upstream ? V(T(0.5)) * (own_upstream + V(upstream[j])) : V(1);
      gradient[0] = gradient[0] + select(meets, factor * derivative<1>(repulsion), V(0));
      gradient[1] = gradient[1] + select(meets, factor * derivative<2>(repulsion), V(0));
      gradient[2] = gradient[2] + select(meets, factor * derivative<4>(repulsion), V(0));
      gradient[3] = gradient[3] + select(meets, factor * derivative<8>(repulsion), V(0));
    }
  }
  lanes.store(crowd, scratch.crowd, 1);
  lanes.store(overlapping, scratch.overlapping, 1);
  if constexpr (kGradient) {
    lanes.store(own_upstream * derivative<1>(near), scratch.near_gradient, 4);
    lanes.store(own_upstream * derivative<2>(near), scratch.near_gradient + 1, 4);
    lanes.store(own_upstream * derivative<4>(near), scratch.near_gradient + 2, 4);
    lanes.store(own_upstream * derivative<8>(near), scratch.near_gradient + 3, 4);
    for (int c = 0; c < 4; ++c) lanes.store(gradient[c], scratch.crowd_gradient + c, 4);
  }
}

template <class Formula, class T>
void run_typed(const BoxCrowdArguments& arguments, const Execution& execution) {
  T parameter[kMaxParameters];
  for (int i = 0; i < Formula::kParameters; ++i) parameter[i] = T(arguments.parameters[i]);
  const int64_t count = arguments.boxes_count;
  const Scratch<T> scratch(arguments.scratch, count);
  constexpr int64_t kLanes = Vec<T>::kLanes;
  sum_over_chunks(execution, (count + kLanes - 1) / kLanes, 1, [&](int64_t begin, int64_t end) {
    for (int64_t group = begin; group < end; ++group) {
      if (arguments.gradient) {
        visit<Formula, T, true>(arguments, parameter, scratch, group * kLanes);
      } else {
        visit<Formula, T, false>(arguments, parameter, scratch, group * kLanes);
      }
    }
    return 0.0;
  });

  double near = 0.0, crowd = 0.0, overlapping = 0.0;
  for (int64_t i = 0; i < count; ++i) {
    near += double(scratch.near[i]);
    crowd += 0.5 * double(scratch.crowd[i]);
    overlapping += 0.5 * double(scratch.overlapping[i]);
  }
  const bool mean = arguments.reduction == CrowdReduction::kMean;
  const double near_factor = mean ? 1.0 / double(count) : 1.0;
  const double crowd_factor = double(Formula::box_factor(parameter)) *
                              (mean ? 1.0 / (overlapping > 1.0 ? overlapping : 1.0) : 1.0);
  if (arguments.loss_output.total) {
    *static_cast<T*>(arguments.loss_output.total) = T(near * near_factor + crowd * crowd_factor);
  }
  if (arguments.loss_output.values) {
    auto* values = static_cast<T*>(arguments.loss_output.values);
    for (int64_t i = 0; i < count; ++i)
      values[i] = scratch.near[i] + T(0.5 * crowd_factor) * scratch.crowd[i];
  }
  if (arguments.gradient) {
    auto* gradient = static_cast<T*>(arguments.gradient);
    for (int64_t i = 0; i < 4 * count; ++i) {
      gradient[i] =
          T(near_factor) * scratch.near_gradient[i] + T(crowd_factor) * scratch.crowd_gradient[i];
    }
  }
}

template <class Formula>
struct Kernel {
  static void run(const BoxCrowdArguments& arguments, const Execution& execution) {
    if (arguments.is_double) {
      run_typed<Formula, double>(arguments, execution);
    } else {
      run_typed<Formula, float>(arguments, execution);
    }
  }
};

}  // namespace

void box_crowd(const BoxCrowdArguments& arguments, const Execution& execution) {
  using Function = void (*)(const BoxCrowdArguments&, const Execution&);
  BoxCrowdLosses::Table<Function, Kernel>::kRun[arguments.loss](arguments, execution);
}

}  // namespace fastloss::FASTLOSS_TARGET
