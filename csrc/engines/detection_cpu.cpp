// SPDX-License-Identifier: MIT
#include <algorithm>
#include <iterator>
#include <vector>

#include "core/choose.h"
#include "core/vec.h"
#include "engines/kernels.h"
#include "engines/labels.h"
#include "engines/staging.h"
#include "losses/detection.h"

namespace fastloss::FASTLOSS_TARGET {
namespace {

// The few numbers of an image that all its anchors meet.
template <class T>
class Image {
 public:
  using V = Vec<T>;
  static constexpr int64_t kLanes = V::kLanes;

  Image(const DetectionArguments& arguments, int64_t image)
      : arguments_(arguments),
        labels(arguments.labels + image * arguments.targets),
        points_(static_cast<const T*>(arguments.points)),
        boxes_(static_cast<const T*>(arguments.boxes) + image * arguments.targets * 4),
        logits_(image * arguments.logit_stride[0]),
        distances_(image * arguments.distance_stride[0]) {}

  FASTLOSS_INLINE T x(int64_t anchor) const { return points_[anchor]; }
  FASTLOSS_INLINE T y(int64_t anchor) const { return points_[arguments_.anchors + anchor]; }
  FASTLOSS_INLINE T stride(int64_t anchor) const {
    return points_[2 * arguments_.anchors + anchor];
  }
  // Of the anchors from one on, points at the origin behind the last.
  FASTLOSS_INLINE V points(int coordinate, int64_t anchor) const {
    return load_some(points_ + coordinate * arguments_.anchors + anchor,
                     arguments_.anchors - anchor);
  }
  FASTLOSS_INLINE Box<T, T, T, T> box(int64_t target) const {
    const T* c = boxes_ + 4 * target;
    return {c[0], c[1], c[2], c[3]};
  }
  bool has(int64_t target) const { return labels[target] >= 0; }

  // Logits of a class at consecutive anchors, as many as there are.
  FASTLOSS_INLINE void load_logits(T* out, int64_t label, int64_t anchor, int64_t count) const {
    load_strided(out, 1, arguments_.logits,
                 logits_ + label * arguments_.logit_stride[1] + anchor * arguments_.logit_stride[2],
                 arguments_.logit_stride[2], count);
  }
  // All logits of distances at an anchor, kLanes apart.
  FASTLOSS_INLINE void load_distances(T* out, int64_t anchor) const {
    load_strided(out, kLanes, arguments_.distances,
                 distances_ + anchor * arguments_.distance_stride[2], arguments_.distance_stride[1],
                 kSides * arguments_.bins);
  }
  // The same at consecutive anchors.
  void load_distances(T* out, int64_t anchor, int64_t count) const {
    for (int64_t row = 0; row < kSides * arguments_.bins; ++row) {
      load_strided(
          out + row * kLanes, 1, arguments_.distances,
          distances_ + row * arguments_.distance_stride[1] + anchor * arguments_.distance_stride[2],
          arguments_.distance_stride[2], count);
    }
  }

 private:
  const DetectionArguments& arguments_;

 public:
  const int64_t* labels;

 private:
  const T *points_, *boxes_;
  int64_t logits_, distances_;
};

// ---- the assignment ----

template <class T>
class Assignment {
  using V = Vec<T>;
  static constexpr int64_t kLanes = V::kLanes;

 public:
  Assignment(const AssignmentArguments& arguments, int64_t image)
      : arguments_(arguments),
        image_(arguments, image),
        predicted_(static_cast<T*>(arguments.predicted) + image * kSides * arguments.anchors),
        indices_(arguments.indices + image * arguments.anchors),
        scores_(static_cast<T*>(arguments.scores) + image * arguments.anchors),
        reaches_(static_cast<const T*>(arguments.reaches) + image * arguments.targets * kSides) {}

  // The predicted boxes of those anchors among [begin, end) that a box reaches.
  void decode(int64_t begin, int64_t end) {
    const Scratch<T> logits(kSides * arguments_.bins * kLanes);
    std::fill_n(logits.get(), kSides * arguments_.bins * kLanes, T(0));
    for (int64_t a = begin; a < end; a += kLanes) {
      const V x = image_.points(0, a), y = image_.points(1, a), stride = image_.points(2, a);
      if (!is_reached(x * stride, y * stride)) continue;
      const int64_t count = std::min(kLanes, arguments_.anchors - a);
      image_.load_distances(logits.get(), a, count);
      V means[kSides];
      for (int side = 0; side < kSides; ++side) {
        const T* const row = logits.get() + side * arguments_.bins * kLanes;
        means[side] = distribution<V>(arguments_.bins, [&](int64_t j) {
                        return V::load(row + j * kLanes);
                      }).mean;
      }
      const auto box = box_around<false>(x, y, means);
      const V coordinates[kSides] = {box.x1, box.y1, box.x2, box.y2};
      for (int side = 0; side < kSides; ++side) {
        const V pixels = coordinates[side] * stride;
        T* const out = predicted_ + side * arguments_.anchors + a;
        for (int64_t lane = 0; lane < count; ++lane) out[lane] = pixels[int(lane)];
      }
    }
  }

  // False where a label is out of range.
  bool assign() {
    std::fill_n(indices_, arguments_.anchors, int64_t{-1});
    std::fill_n(scores_, arguments_.anchors, T(0));
    for (int64_t g = 0; g < arguments_.targets; ++g) {
      if (image_.labels[g] >= arguments_.classes) return false;
      if (image_.has(g)) choose(g);
    }
    for (const int64_t a : contested_) indices_[a] = closest(a);
    share();
    return true;
  }

 private:
  struct Candidate {
    T metric;
    int64_t anchor;
  };

  bool is_reached(V x, V y) const {
    for (int64_t g = 0; g < arguments_.targets; ++g) {
      if (image_.has(g) && any(contains(in_all_lanes(reach(g)), x, y))) return true;
    }
    return false;
  }

  FASTLOSS_INLINE Box<T, T, T, T> reach(int64_t target) const {
    const T* const c = reaches_ + kSides * target;
    return {c[0], c[1], c[2], c[3]};
  }
  static FASTLOSS_INLINE Box<V, V, V, V> in_all_lanes(const Box<T, T, T, T>& box) {
    return {V(box.x1), V(box.y1), V(box.x2), V(box.y2)};
  }

  // The anchors that suit a box best, to chosen_.
  void choose(int64_t g) {
    const Box<V, V, V, V> target = in_all_lanes(image_.box(g)), within = in_all_lanes(reach(g));
    best_.clear();
    for (int64_t a = 0; a < arguments_.anchors; a += kLanes) {
      const V stride = image_.points(2, a);
      const auto inside =
          contains(within, image_.points(0, a) * stride, image_.points(1, a) * stride);
      if (!any(inside)) continue;
      const int64_t count = std::min(kLanes, arguments_.anchors - a);
      T logits[kLanes] = {};
      image_.load_logits(logits, image_.labels[g], a, count);
      const auto suits = Alignment<V>::of(V::load(logits), predicted(a, count), target,
                                          T(arguments_.alpha), T(arguments_.beta));
      const V metric = select(inside, suits.metric, V(0));
      for (int64_t lane = 0; lane < count; ++lane) {
        if (metric[int(lane)] != T(0)) consider(metric[int(lane)], a + lane);
      }
    }
    for (const Candidate& candidate : best_) {
      int64_t& owner = indices_[candidate.anchor];
      if (owner < 0) {
        owner = g;
        taken_.push_back(candidate.anchor);
      } else {
        contested_.push_back(candidate.anchor);
      }
    }
  }

  // Boxes behind the last anchor are points.
  FASTLOSS_INLINE Box<V, V, V, V> predicted(int64_t a, int64_t count) const {
    const auto side = [&](int k) {
      return load_some(predicted_ + k * arguments_.anchors + a, count);
    };
    return {side(0), side(1), side(2), side(3)};
  }

  // Keeps the largest, NaN being larger than any number; of equal ones the first.
  static bool is_better(T a, T b) { return is_nan(a) ? !is_nan(b) : a > b; }
  void consider(T metric, int64_t anchor) {
    const auto most = static_cast<size_t>(arguments_.topk);
    if (best_.size() == most && !is_better(metric, best_.back().metric)) return;
    if (best_.size() == most) best_.pop_back();
    auto place = best_.end();
    while (place != best_.begin() && is_better(metric, std::prev(place)->metric)) --place;
    best_.insert(place, {metric, anchor});
  }

  Alignment<T> alignment(int64_t g, int64_t a) const {
    T logit;
    image_.load_logits(&logit, image_.labels[g], a, 1);
    const T* const c = predicted_ + a;
    const int64_t next = arguments_.anchors;
    return Alignment<T>::of(logit, Box{c[0], c[next], c[2 * next], c[3 * next]}, image_.box(g),
                            T(arguments_.alpha), T(arguments_.beta));
  }

  // The box that the prediction at an anchor overlaps most, of those that reach it.
  int64_t closest(int64_t a) const {
    const T x = image_.x(a) * image_.stride(a), y = image_.y(a) * image_.stride(a);
    int64_t found = -1;
    T most(0);
    for (int64_t g = 0; g < arguments_.targets; ++g) {
      if (!image_.has(g) || !contains(reach(g), x, y)) continue;
      const T overlap = alignment(g, a).overlap;
      if (found < 0 || is_better(overlap, most)) found = g, most = overlap;
    }
    return found;
  }

  // The score of every anchor with a target: its metric, relative to the best one of the target,
  // which has the best overlap.
  void share() {
    struct Best {
      T metric = T(0), overlap = T(0);
      std::vector<Candidate> anchors;
    };
    std::vector<Best> of_target(static_cast<size_t>(arguments_.targets));
    for (const int64_t a : taken_) {
      const int64_t g = indices_[a];
      const Alignment<T> suits = alignment(g, a);
      of_target[g].anchors.push_back({suits.metric, a});
    }
    for (int64_t g = 0; g < arguments_.targets; ++g) {
      Best& best = of_target[g];
      if (arguments_.topk2 > 0 && std::ssize(best.anchors) > arguments_.topk2) {
        std::sort(best.anchors.begin(), best.anchors.end(),
                  [](const Candidate& a, const Candidate& b) {
                    if (is_better(a.metric, b.metric)) return true;
                    return !is_better(b.metric, a.metric) && a.anchor < b.anchor;
                  });
        for (size_t i = static_cast<size_t>(arguments_.topk2); i < best.anchors.size(); ++i)
          indices_[best.anchors[i].anchor] = -1;
        best.anchors.resize(static_cast<size_t>(arguments_.topk2));
      }
      for (const Candidate& candidate : best.anchors) {
        best.metric = max(best.metric, candidate.metric);
        best.overlap = max(best.overlap, alignment(g, candidate.anchor).overlap);
      }
      for (const Candidate& candidate : best.anchors)
        scores_[candidate.anchor] = candidate.metric * best.overlap / (best.metric + T(1e-9));
    }
  }

  const AssignmentArguments& arguments_;
  const Image<T> image_;
  T* const predicted_;
  int64_t* const indices_;
  T* const scores_;
  const T* const reaches_;
  std::vector<Candidate> best_;             // of one target, the best first
  std::vector<int64_t> taken_, contested_;  // anchors that a target chose; that several did
};

template <class T>
void assign_typed(const AssignmentArguments& arguments, const Execution& execution) {
  constexpr int64_t kBlock = 1024;
  const int64_t blocks = (arguments.anchors + kBlock - 1) / kBlock;
  sum_over_chunks(execution, arguments.batch * blocks, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t first = i % blocks * kBlock;
      Assignment<T>(arguments, i / blocks)
          .decode(first, std::min(first + kBlock, arguments.anchors));
    }
    return 0.0;
  });
  LabelFault fault;
  sum_over_chunks(execution, arguments.batch, 1, [&](int64_t begin, int64_t end) {
    for (int64_t image = begin; image < end; ++image)
      fault.note(Assignment<T>(arguments, image).assign());
    return 0.0;
  });
  fault.throw_if_any();
}

// ---- the losses ----

// The anchors of an image that have a target, kLanes at a time.
template <class T>
class Foreground {
  using V = Vec<T>;
  static constexpr int64_t kLanes = V::kLanes;

 public:
  Foreground(const DetectionLossArguments& arguments, int64_t image)
      : arguments_(arguments),
        image_(arguments, image),
        number_(image),
        rows_(kSides * arguments.bins),
        logits_(rows_ * kLanes) {
    std::fill_n(logits_.get(), rows_ * kLanes, T(0));
  }

  // Calls visit(loss) for groups of anchors. False where an index or a label is out of range.
  template <bool kGradient, class Visit>
  bool for_each_group(const Visit& visit) {
    const int64_t* const indices = arguments_.indices + number_ * arguments_.anchors;
    count_ = 0;
    for (int64_t a = 0; a < arguments_.anchors; ++a) {
      const int64_t g = indices[a];
      if (g < 0) continue;
      if (g >= arguments_.targets || image_.labels[g] >= arguments_.classes) return false;
      if (!image_.has(g)) continue;
      add(a, g);
      if (count_ == kLanes) flush<kGradient>(visit);
    }
    if (count_ > 0) flush<kGradient>(visit);
    return true;
  }

  // What is summed up, to `sums`.
  bool sum(double* sums) {
    V of_lanes[kDetectionSums] = {V(0), V(0), V(0), V(0)};
    const bool in_range = for_each_group<false>([&](const AnchorLoss<V>& loss) {
      const V score = V::load(score_);
      of_lanes[kBoxSum] += score * loss.box;
      of_lanes[kPickedSum] += score * V::load(weight_) * V::load(picked_);
      of_lanes[kDistanceSum] += score * loss.distances;
      of_lanes[kScoreSum] += score;
    });
    for (int k = 0; k < kDetectionSums; ++k) sums[k] = double(of_lanes[k].sum());
    return in_range;
  }

  void differentiate() {
    const T* const factors = static_cast<const T*>(arguments_.factors);
    for_each_group<true>([&](const AnchorLoss<V>& loss) {
      const V score = V::load(score_);
      if (arguments_.logit_gradient) {
        const V slope =
            V::load(weight_) * factors[kPickedSum] * (sigmoid(V::load(picked_)) - score);
        write(arguments_.logit_gradient, arguments_.logit_gradient_stride, slope,
              [&](int64_t lane) { return label_[lane]; });
      }
      if (!arguments_.distance_gradient) return;
      const V box_weight = score * factors[kBoxSum], weight = score * factors[kDistanceSum];
      for (int side = 0; side < kSides; ++side) {
        for (int64_t j = 0; j < arguments_.bins; ++j) {
          const int64_t row = side * arguments_.bins + j;
          write(arguments_.distance_gradient, arguments_.distance_gradient_stride,
                loss.gradient(side, j, V::load(logits_.get() + row * kLanes), box_weight, weight),
                [&](int64_t) { return row; });
        }
      }
    });
  }

 private:
  void add(int64_t anchor, int64_t target) {
    const int64_t lane = count_++;
    const int64_t label = image_.labels[target];
    const T stride = image_.stride(anchor);
    anchor_[lane] = anchor;
    label_[lane] = label;
    x_[lane] = image_.x(anchor);
    y_[lane] = image_.y(anchor);
    const auto box = image_.box(target);
    const T coordinates[kSides] = {box.x1, box.y1, box.x2, box.y2};
    for (int k = 0; k < kSides; ++k) target_[k][lane] = coordinates[k] / stride;
    score_[lane] = static_cast<const T*>(arguments_.scores)[number_ * arguments_.anchors + anchor];
    weight_[lane] = arguments_.weight ? static_cast<const T*>(arguments_.weight)[label] : T(1);
    image_.load_logits(picked_ + lane, label, anchor, 1);
    image_.load_distances(logits_.get() + lane, anchor);
  }

  // The lanes that are left keep what is there, and count for nothing.
  template <bool kGradient, class Visit>
  void flush(const Visit& visit) {
    std::fill(score_ + count_, score_ + kLanes, T(0));
    const auto side = [&](int k) { return V::load(target_[k]); };
    visit(AnchorLoss<V>::template of<kGradient>(
        V::load(x_), V::load(y_), Box{side(0), side(1), side(2), side(3)}, arguments_.bins,
        [&](int of_side, int64_t j) {
          return V::load(logits_.get() + (of_side * arguments_.bins + j) * kLanes);
        }));
    count_ = 0;
  }

  template <class Row>
  FASTLOSS_INLINE void write(const Output& output, const int64_t (&stride)[3], V values,
                             const Row& row) const {
    T numbers[kLanes];
    values.store(numbers);
    for (int64_t lane = 0; lane < count_; ++lane) {
      store_strided(output, number_ * stride[0] + row(lane) * stride[1] + anchor_[lane] * stride[2],
                    1, numbers + lane, 1, 1);
    }
  }

  const DetectionLossArguments& arguments_;
  const Image<T> image_;
  const int64_t number_, rows_;
  const Scratch<T> logits_;  // [rows, kLanes]
  int64_t count_ = 0;
  int64_t anchor_[kLanes] = {}, label_[kLanes] = {};
  alignas(64) T x_[kLanes] = {}, y_[kLanes] = {}, target_[kSides][kLanes] = {};
  alignas(64) T score_[kLanes] = {}, weight_[kLanes] = {}, picked_[kLanes] = {};
};

template <class T>
void loss_typed(const DetectionLossArguments& arguments, const Execution& execution) {
  std::vector<double> sums(static_cast<size_t>(arguments.batch * kDetectionSums));
  LabelFault fault;
  sum_over_chunks(execution, arguments.batch, 1, [&](int64_t begin, int64_t end) {
    for (int64_t image = begin; image < end; ++image) {
      Foreground<T> foreground(arguments, image);
      if (arguments.sums) {
        fault.note(foreground.sum(sums.data() + image * kDetectionSums));
      } else {
        foreground.differentiate();
      }
    }
    return 0.0;
  });
  fault.throw_if_any();
  if (!arguments.sums) return;
  for (int k = 0; k < kDetectionSums; ++k) {
    double total = 0.0;
    for (int64_t image = 0; image < arguments.batch; ++image)
      total += sums[static_cast<size_t>(image * kDetectionSums + k)];
    static_cast<T*>(arguments.sums)[k] = T(total);
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
