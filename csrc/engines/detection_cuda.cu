// SPDX-License-Identifier: MIT
#include "core/choose.h"
#include "engines/access_cuda.h"
#include "engines/kernels.h"
#include "losses/detection.h"

namespace fastloss::FASTLOSS_TARGET {
namespace {

constexpr int kThreads = 128;
// Doubles take the registers of two blocks.
template <class T>
constexpr int kLossBlocks = sizeof(T) == 4 ? kResidentBlocks : kResidentBlocks / 2;

// The few numbers of an image, and its predictions one by one.
template <class T>
struct Image {
  const DetectionArguments& arguments;
  int64_t image;

  FASTLOSS_DEVICE_INLINE T point(int coordinate, int64_t anchor) const {
    return static_cast<const T*>(arguments.points)[coordinate * arguments.anchors + anchor];
  }
  FASTLOSS_DEVICE_INLINE int64_t label(int64_t target) const {
    const int64_t label = arguments.labels[image * arguments.targets + target];
    FASTLOSS_DEVICE_ASSERT(label < arguments.classes, "fastloss: class label out of range");
    return label;
  }
  FASTLOSS_DEVICE_INLINE Box<T, T, T, T> box(int64_t target) const {
    return box(arguments.boxes, target);
  }
  FASTLOSS_DEVICE_INLINE Box<T, T, T, T> box(const void* boxes, int64_t target) const {
    const T* const c = static_cast<const T*>(boxes) + (image * arguments.targets + target) * kSides;
    return {c[0], c[1], c[2], c[3]};
  }
  FASTLOSS_DEVICE_INLINE T logit(int64_t label, int64_t anchor) const {
    return number(arguments.logits, arguments.logit_stride, label, anchor);
  }
  FASTLOSS_DEVICE_INLINE T distance(int side, int64_t bin, int64_t anchor) const {
    return number(arguments.distances, arguments.distance_stride, side * arguments.bins + bin,
                  anchor);
  }

 private:
  FASTLOSS_DEVICE_INLINE T number(const Input& input, const int64_t (&stride)[3], int64_t row,
                                  int64_t anchor) const {
    T number[1];
    load(number, input, Span{image * stride[0] + row * stride[1] + anchor * stride[2], 1, false});
    return number[0];
  }
};

// ---- the assignment ----

template <class T>
struct Assignment {
  const AssignmentArguments& arguments;
  Image<T> image;

  FASTLOSS_DEVICE_INLINE Assignment(const AssignmentArguments& arguments, int64_t image)
      : arguments(arguments), image{arguments, image} {}

  FASTLOSS_DEVICE_INLINE bool reaches(int64_t target, int64_t anchor) const {
    const T stride = image.point(2, anchor);
    return contains(image.box(arguments.reaches, target), image.point(0, anchor) * stride,
                    image.point(1, anchor) * stride);
  }
  FASTLOSS_DEVICE_INLINE T* predicted(int side, int64_t anchor) const {
    return static_cast<T*>(arguments.predicted) +
           (image.image * kSides + side) * arguments.anchors + anchor;
  }
  FASTLOSS_DEVICE_INLINE Alignment<T> alignment(int64_t target, int64_t label,
                                                int64_t anchor) const {
    const Box box{*predicted(0, anchor), *predicted(1, anchor), *predicted(2, anchor),
                  *predicted(3, anchor)};
    return Alignment<T>::of(image.logit(label, anchor), box, image.box(target), T(arguments.alpha),
                            T(arguments.beta));
  }
  FASTLOSS_DEVICE_INLINE int32_t* chosen(int64_t target) const {
    return arguments.chosen + (image.image * arguments.targets + target) * arguments.topk;
  }
  FASTLOSS_DEVICE_INLINE int64_t& index(int64_t anchor) const {
    return arguments.indices[image.image * arguments.anchors + anchor];
  }
  FASTLOSS_DEVICE_INLINE T& score(int64_t anchor) const {
    return static_cast<T*>(arguments.scores)[image.image * arguments.anchors + anchor];
  }
};

// An anchor by how well it suits; NaN is more than any number.
template <class T>
struct Candidate {
  T metric;
  int64_t anchor;  // -1: none

  FASTLOSS_DEVICE_INLINE bool is_before(const Candidate& other) const {
    if (other.anchor < 0 || anchor < 0) return anchor >= 0;
    if (is_nan(metric) != is_nan(other.metric)) return is_nan(metric);
    if (metric != other.metric && !is_nan(metric)) return metric > other.metric;
    return anchor < other.anchor;
  }
};

// The first of the block's candidates, in every thread.
template <class T>
FASTLOSS_DEVICE_INLINE Candidate<T> block_first(const Candidate<T>& own) {
  __shared__ T metrics[kThreads];
  __shared__ int64_t anchors[kThreads];
  const unsigned thread = threadIdx.x;
  __syncthreads();  // the result of the call before may still be read
  metrics[thread] = own.metric;
  anchors[thread] = own.anchor;
  for (unsigned half = kThreads / 2; half > 0; half /= 2) {
    __syncthreads();
    if (thread >= half) continue;
    const Candidate<T> other{metrics[thread + half], anchors[thread + half]};
    if (other.is_before({metrics[thread], anchors[thread]})) {
      metrics[thread] = other.metric;
      anchors[thread] = other.anchor;
    }
  }
  __syncthreads();
  return {metrics[0], anchors[0]};
}

// Calls found(rank, candidate) for the first `count` candidates, one after the other, none being
// left: each is the first behind the one before. metric(anchor) is computed anew for each, which
// takes no memory.
template <class T, class Metric, class Found>
FASTLOSS_DEVICE_INLINE void for_each_best(int64_t anchors, int64_t count, const Metric& metric,
                                          const Found& found) {
  Candidate<T> last{T(0), -1};
  for (int64_t rank = 0; rank < count; ++rank) {
    Candidate<T> best{T(0), -1};
    for (int64_t a = threadIdx.x; a < anchors; a += kThreads) {
      const Candidate<T> candidate{metric(a), a};
      if (candidate.metric == T(0) || (last.anchor >= 0 && !last.is_before(candidate))) continue;
      if (candidate.is_before(best)) best = candidate;
    }
    best = block_first(best);
    found(rank, best);
    if (best.anchor < 0) return;
    last = best;
  }
}

// Calls visit(assignment, anchor) for the anchors of this thread.
template <class T, class Visit>
FASTLOSS_DEVICE_INLINE void for_each_anchor(const AssignmentArguments& arguments,
                                            const Visit& visit) {
  const int64_t items = arguments.batch * arguments.anchors;
  for (int64_t item = int64_t{blockIdx.x} * kThreads + threadIdx.x; item < items;
       item += int64_t{gridDim.x} * kThreads) {
    const int64_t image = item / arguments.anchors, a = item - image * arguments.anchors;
    visit(Assignment<T>(arguments, image), a);
  }
}

// Calls visit(assignment, target, label) for the boxes of this block.
template <class T, class Visit>
FASTLOSS_DEVICE_INLINE void for_each_box(const AssignmentArguments& arguments, const Visit& visit) {
  const int64_t items = arguments.batch * arguments.targets;
  for (int64_t item = blockIdx.x; item < items; item += gridDim.x) {
    const int64_t image = item / arguments.targets, g = item - image * arguments.targets;
    const Assignment<T> assignment(arguments, image);
    const int64_t label = assignment.image.label(g);
    if (label >= 0) visit(assignment, g, label);
  }
}

// The predicted boxes of the anchors that a box reaches.
template <class T>
__global__ void __launch_bounds__(kThreads, kResidentBlocks)
    decode_kernel(const __grid_constant__ AssignmentArguments arguments) {
  for_each_anchor<T>(arguments, [&](const Assignment<T>& assignment, int64_t a) {
    bool is_reached = false;
    for (int64_t g = 0; g < arguments.targets && !is_reached; ++g)
      is_reached = assignment.image.label(g) >= 0 && assignment.reaches(g, a);
    if (!is_reached) return;
    T means[kSides];
    FASTLOSS_UNROLL
    for (int side = 0; side < kSides; ++side) {
      means[side] = distribution<T>(arguments.bins, [&](int64_t j) {
                      return assignment.image.distance(side, j, a);
                    }).mean;
    }
    const auto box =
        box_around<false>(assignment.image.point(0, a), assignment.image.point(1, a), means);
    const T stride = assignment.image.point(2, a);
    *assignment.predicted(0, a) = box.x1 * stride;
    *assignment.predicted(1, a) = box.y1 * stride;
    *assignment.predicted(2, a) = box.x2 * stride;
    *assignment.predicted(3, a) = box.y2 * stride;
  });
}

// One block per box: the anchors that suit it best.
template <class T>
__global__ void __launch_bounds__(kThreads, kResidentBlocks)
    choose_kernel(const __grid_constant__ AssignmentArguments arguments) {
  for_each_box<T>(arguments, [&](const Assignment<T>& assignment, int64_t g, int64_t label) {
    int32_t* const chosen = assignment.chosen(g);
    for (int64_t k = threadIdx.x; k < arguments.topk; k += kThreads) chosen[k] = -1;
    __syncthreads();
    for_each_best<T>(
        arguments.anchors, arguments.topk,
        [&](int64_t a) {
          return assignment.reaches(g, a) ? assignment.alignment(g, label, a).metric : T(0);
        },
        [&](int64_t rank, const Candidate<T>& best) {
          if (threadIdx.x == 0) chosen[rank] = static_cast<int32_t>(best.anchor);
        });
  });
}

// One thread per anchor: of several boxes that chose it, the one that it overlaps most.
template <class T>
__global__ void __launch_bounds__(kThreads, kResidentBlocks)
    settle_kernel(const __grid_constant__ AssignmentArguments arguments) {
  for_each_anchor<T>(arguments, [&](const Assignment<T>& assignment, int64_t a) {
    int64_t first = -1;
    bool several = false;
    for (int64_t g = 0; g < arguments.targets && !several; ++g) {
      if (assignment.image.label(g) < 0 || !assignment.reaches(g, a)) continue;
      const int32_t* const chosen = assignment.chosen(g);
      for (int64_t k = 0; k < arguments.topk && chosen[k] >= 0; ++k) {
        if (chosen[k] != a) continue;
        several = first >= 0;
        if (first < 0) first = g;
      }
    }
    if (several) {
      Candidate<T> closest{T(0), -1};  // of boxes, not of anchors
      for (int64_t g = 0; g < arguments.targets; ++g) {
        const int64_t label = assignment.image.label(g);
        if (label < 0 || !assignment.reaches(g, a)) continue;
        const Candidate<T> candidate{assignment.alignment(g, label, a).overlap, g};
        if (candidate.is_before(closest)) closest = candidate;
      }
      first = closest.anchor;
    }
    assignment.index(a) = first;
    assignment.score(a) = T(0);
  });
}

// One block per box: the scores of its anchors.
template <class T>
__global__ void __launch_bounds__(kThreads, kResidentBlocks)
    share_kernel(const __grid_constant__ AssignmentArguments arguments) {
  for_each_box<T>(arguments, [&](const Assignment<T>& assignment, int64_t g, int64_t label) {
    const auto alignment = [&](int64_t a) { return assignment.alignment(g, label, a); };
    Candidate<T> last{T(0), -1};  // that keeps the box
    if (arguments.topk2 > 0) {
      for_each_best<T>(
          arguments.anchors, arguments.topk2,
          [&](int64_t a) { return assignment.index(a) == g ? alignment(a).metric : T(0); },
          [&](int64_t /*rank*/, const Candidate<T>& best) {
            if (best.anchor >= 0) last = best;
          });
    }
    T metric(0), overlap(0);
    for (int64_t a = threadIdx.x; a < arguments.anchors; a += kThreads) {
      if (assignment.index(a) != g) continue;
      const Alignment<T> suits = alignment(a);
      if (last.anchor >= 0 && last.is_before({suits.metric, a})) {
        assignment.index(a) = -1;
        continue;
      }
      metric = max(metric, suits.metric);
      overlap = max(overlap, suits.overlap);
    }
    const T highest = block_first(Candidate<T>{metric, threadIdx.x}).metric,
            closest = block_first(Candidate<T>{overlap, threadIdx.x}).metric;
    for (int64_t a = threadIdx.x; a < arguments.anchors; a += kThreads) {
      if (assignment.index(a) == g)
        assignment.score(a) = alignment(a).metric * closest / (highest + T(1e-9));
    }
  });
}

template <class T>
void assign_typed(const AssignmentArguments& arguments, const Execution& execution) {
  const unsigned of_anchors = grid_for(arguments.batch * arguments.anchors, kThreads);
  const unsigned of_boxes = grid_for(arguments.batch * arguments.targets, 1);
  launch(decode_kernel<T>, of_anchors, kThreads, 0, execution.stream, arguments);
  launch(choose_kernel<T>, of_boxes, kThreads, 0, execution.stream, arguments);
  launch(settle_kernel<T>, of_anchors, kThreads, 0, execution.stream, arguments);
  launch(share_kernel<T>, of_boxes, kThreads, 0, execution.stream, arguments);
}

// ---- the losses ----

// An anchor with a target.
template <class T>
struct Foreground {
  int64_t anchor, label;
  T score, weight, logit;
  AnchorLoss<T> loss;
};

// Calls visit(image, foreground) for the anchors of this thread that have a target.
template <bool kGradient, class T, class Visit>
FASTLOSS_DEVICE_INLINE void for_each_foreground(const DetectionLossArguments& arguments,
                                                const Visit& visit) {
  const int64_t items = arguments.batch * arguments.anchors;
  for (int64_t item = int64_t{blockIdx.x} * kThreads + threadIdx.x; item < items;
       item += int64_t{gridDim.x} * kThreads) {
    const int64_t target = arguments.indices[item];
    FASTLOSS_DEVICE_ASSERT(target < arguments.targets, "fastloss: target index out of range");
    if (target < 0) continue;
    const int64_t number = item / arguments.anchors, a = item - number * arguments.anchors;
    const Image<T> image{arguments, number};
    const int64_t label = image.label(target);
    if (label < 0) continue;
    const auto box = image.box(target);
    const T stride = image.point(2, a);
    const Box in_cells{box.x1 / stride, box.y1 / stride, box.x2 / stride, box.y2 / stride};
    visit(image,
          Foreground<T>{a, label, static_cast<const T*>(arguments.scores)[item],
                        arguments.weight ? static_cast<const T*>(arguments.weight)[label] : T(1),
                        image.logit(label, a),
                        AnchorLoss<T>::template of<kGradient>(
                            image.point(0, a), image.point(1, a), in_cells, arguments.bins,
                            [&](int side, int64_t j) { return image.distance(side, j, a); })});
  }
}

template <class T>
__global__ void __launch_bounds__(kThreads, kLossBlocks<T>)
    sum_kernel(const __grid_constant__ DetectionLossArguments arguments,
               const Completion completion) {
  T sums[kDetectionSums] = {T(0), T(0), T(0), T(0)};
  for_each_foreground<false, T>(arguments, [&](const Image<T>&, const Foreground<T>& foreground) {
    const T score = foreground.score;
    sums[kBoxSum] += score * foreground.loss.box;
    sums[kPickedSum] += score * foreground.weight * foreground.logit;
    sums[kDistanceSum] += score * foreground.loss.distances;
    sums[kScoreSum] += score;
  });
  grid_sum<kThreads>(sums, completion, [&](const double (&totals)[kDetectionSums]) {
    for (int k = 0; k < kDetectionSums; ++k) static_cast<T*>(arguments.sums)[k] = T(totals[k]);
  });
}

template <class T>
__global__ void __launch_bounds__(kThreads, kLossBlocks<T>)
    gradient_kernel(const __grid_constant__ DetectionLossArguments arguments) {
  const T* const factors = static_cast<const T*>(arguments.factors);
  for_each_foreground<true, T>(arguments, [&](const Image<T>& image, const Foreground<T>& at) {
    const auto write = [&](const Output& output, const int64_t (&stride)[3], int64_t row,
                           T number) {
      const T numbers[1] = {number};
      store(output, numbers,
            Span{image.image * stride[0] + row * stride[1] + at.anchor * stride[2], 1, false});
    };
    if (arguments.logit_gradient.data != nullptr) {
      write(arguments.logit_gradient, arguments.logit_gradient_stride, at.label,
            at.weight * factors[kPickedSum] * (sigmoid(at.logit) - at.score));
    }
    if (arguments.distance_gradient.data == nullptr) return;
    const T box_weight = at.score * factors[kBoxSum], weight = at.score * factors[kDistanceSum];
    FASTLOSS_UNROLL
    for (int side = 0; side < kSides; ++side) {
      for (int64_t j = 0; j < arguments.bins; ++j) {
        write(arguments.distance_gradient, arguments.distance_gradient_stride,
              side * arguments.bins + j,
              at.loss.gradient(side, j, image.distance(side, j, at.anchor), box_weight, weight));
      }
    }
  });
}

template <class T>
void loss_typed(const DetectionLossArguments& arguments, const Execution& execution) {
  const unsigned grid = grid_for(arguments.batch * arguments.anchors, kThreads);
  if (arguments.sums != nullptr) {
    launch(sum_kernel<T>, grid, kThreads, 0, execution.stream, arguments,
           completion_for(execution, grid));
  } else {
    launch(gradient_kernel<T>, grid, kThreads, 0, execution.stream, arguments);
  }
}

}  // namespace

void detection_assignment(const AssignmentArguments& arguments, const Execution& execution) {
  with_number_type(arguments.is_double,
                   [&](auto number) { assign_typed<decltype(number)>(arguments, execution); });
}

void detection_loss(const DetectionLossArguments& arguments, const Execution& execution) {
  with_number_type(arguments.is_double,
                   [&](auto number) { loss_typed<decltype(number)>(arguments, execution); });
}

}  // namespace fastloss::FASTLOSS_TARGET
