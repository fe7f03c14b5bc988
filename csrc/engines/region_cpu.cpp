// SPDX-License-Identifier: MIT
#include <vector>

#include "engines/class_tile.h"
#include "engines/kernels.h"
#include "engines/labels.h"
#include "engines/region_formula.h"

namespace fastloss::FASTLOSS_TARGET {
namespace {

// The voxels of a tile: logits and targets of every class. What does not count is 0 in both.
template <class T>
class Voxels {
 public:
  using V = Vec<T>;
  static constexpr int64_t kMost = ClassTile<T>::kMostPixels;

  explicit Voxels(const RegionArguments& arguments)
      : logits(arguments.classes),
        arguments_(arguments),
        labels_(arguments.target,
                {arguments.ignore == Ignore::kLabel, arguments.ignore_index, false},
                arguments.classes),
        targets_(arguments.labels ? 1 : arguments.classes),
        number_(arguments.classes) {
    for (int64_t c = 0; c < arguments.classes; ++c) number_[c] = T(c);
  }

  // Reads voxels [begin, end) of a sample, where it can with exponentials in place of the logits if
  // those are preferred. False where a label is out of range.
  bool load(int64_t sample, int64_t begin, int64_t end, bool prefers_exponentials) {
    const int64_t count = end - begin, whole = ClassTile<T>::padded(count);
    const ClassAxis of_logits = axis(arguments_, kRegionInput, sample);
    next = ClassTile<T>::ahead(arguments_.input, arguments_.layout, of_logits, end);
    exponentials =
        prefers_exponentials &&
        logits.load_exponentials(arguments_.input, arguments_.layout, of_logits, begin, end, next);
    if (!exponentials) logits.load(arguments_.input, arguments_.layout, of_logits, begin, end);
    bool in_range = true;
    for (int64_t i = count; i < whole; ++i) label_[i] = T(-1), valid[i] = T(0);
    if (arguments_.labels) {
      in_range = load_labels(sample, begin, end);
    } else {
      std::fill_n(valid, count, T(1));
      targets_.load(arguments_.target, arguments_.layout, axis(arguments_, kRegionTarget, sample),
                    begin, end);
      if (arguments_.ignore != Ignore::kNone) ignore_dense(count);
    }
    if (arguments_.ignore != Ignore::kNone) clear_ignored(whole);
    return in_range;
  }

  template <bool kLabels>
  FASTLOSS_INLINE V target(int64_t c, int64_t i) const {
    if constexpr (kLabels) {
      return select(V::load(label_ + i) == V(number_[c]), V(1), V(0));
    } else {
      return V::load(targets_.row(c) + i);
    }
  }

  static ClassAxis axis(const RegionArguments& arguments, int operand, int64_t sample) {
    return {operand, arguments.class_stride[operand], sample * arguments.batch_stride[operand]};
  }

  ClassTile<T> logits;
  bool exponentials;           // of the logits, in their place
  ClassAhead next;             // the logits of the tile that comes after this one
  alignas(64) T valid[kMost];  // 1, or 0 where the voxel does not count or is padding

 private:
  bool load_labels(int64_t sample, int64_t begin, int64_t end) {
    bool in_range = true;
    const Layout& layout = arguments_.layout;
    const int64_t base = sample * arguments_.batch_stride[kRegionTarget];
    for_each_run(layout, begin, end, [&](int64_t position, const int64_t* offsets, int64_t length) {
      const int64_t stride = layout.dims > 0 ? layout.stride[kRegionTarget][0] : 1;
      in_range &= labels_.read(label_ + position, valid + position, base + offsets[kRegionTarget],
                               stride, length);
    });
    return in_range;
  }

  void ignore_dense(int64_t count) {
    const int64_t index = arguments_.ignore_index;
    for (int64_t i = 0; i < count; ++i) {
      bool ignored = false;
      if (arguments_.ignore == Ignore::kValue) {
        ignored = targets_.row(0)[i] == T(index);
      } else if (arguments_.ignore == Ignore::kClass) {
        ignored = targets_.row(index)[i] > T(0.5);
      } else {
        T sum(0);
        for (int64_t c = 0; c < arguments_.classes; ++c) sum += targets_.row(c)[i];
        ignored = sum <= T(0);
      }
      valid[i] = ignored ? T(0) : T(1);
    }
  }

  // Ignored voxels may hold anything, NaN too.
  void clear_ignored(int64_t whole) {
    V all(1);
    for (int64_t i = 0; i < whole; i += V::kLanes) all = all * V::load(valid + i);
    if (all.sum() == T(V::kLanes)) return;
    const auto clear = [&](ClassTile<T>& tile, V nothing) {
      for (int64_t c = 0; c < arguments_.classes; ++c) {
        for (int64_t i = 0; i < whole; i += V::kLanes) {
          select(V::load(valid + i) != V(0), V::load(tile.row(c) + i), nothing)
              .store(tile.row(c) + i);
        }
      }
    };
    clear(logits, exponentials ? V(1) : V(0));
    if (!arguments_.labels) clear(targets_, V(0));
  }

  const RegionArguments& arguments_;
  const LabelReader<T> labels_;
  ClassTile<T> targets_;
  alignas(64) T label_[kMost];  // -1: of no class
  // The classes, as labels are: converted in each comparison they would wait for that.
  std::vector<T> number_;
};

// The passes over one tile after the other. The loss of voxels is compiled in; the formula of
// regions is not, it only sees sums.
template <class T, Activation kActivation, class Voxel, bool kLabels>
class Pass {
  using V = Vec<T>;
  static constexpr bool kSoftmax = kActivation == Activation::kSoftmax;
  static constexpr bool kHasVoxelLoss = Voxel::kKind != VoxelKind::kNone;
  static constexpr bool kCrossEntropy = Voxel::kKind == VoxelKind::kCrossEntropy;
  static constexpr bool kOfLogit = Voxel::kKind == VoxelKind::kLogit;

 public:
  Pass(const RegionArguments& arguments, const double* voxel_parameters)
      : arguments_(arguments),
        voxels_(arguments),
        exponentials_(kSoftmax && kOfLogit ? arguments.classes : 1),
        sums_(arguments.classes * kClassSums, V(0)),
        class_weight_(arguments.classes) {
    for (int64_t c = 0; c < arguments.classes; ++c)
      class_weight_[c] = T(class_weight_of(arguments, c));
    for (int k = 0; k < 2; ++k) voxel_parameter_[k] = kHasVoxelLoss ? T(voxel_parameters[k]) : T(0);
    share_ = T(1.0 / double(arguments.classes));
  }

  // The sums over the voxels [begin, end) of a sample, to `row`. False where a label is out of
  // range.
  bool sum(int64_t sample, int64_t begin, int64_t end, double* row) {
    std::fill_n(row, arguments_.slices.row, 0.0);
    bool in_range = true;
    for (int64_t first = begin; first < end; first += kSummedByLane)
      in_range = add(sample, first, std::min(end, first + kSummedByLane), row) && in_range;
    return in_range;
  }

  // False where a label is out of range.
  bool errors(int64_t sample, int64_t begin, int64_t end) {
    bool in_range = true;
    for (int64_t first = begin; first < end; first += voxels_.logits.pixels()) {
      const int64_t last = std::min(end, first + voxels_.logits.pixels());
      const int64_t whole = ClassTile<T>::padded(last - first);
      in_range = voxels_.load(sample, first, last, kSoftmax) && in_range;
      activate(whole);
      for (int64_t c = 0; c < arguments_.classes; ++c) {
        for (int64_t i = 0; i < whole; i += V::kLanes) {
          const V error = abs(probability(c, i) - target(c, i));
          select(V::load(voxels_.valid + i) == V(0), V(-1), error).store(numbers().row(c) + i);
        }
      }
      write(sample, first, last, false);
    }
    return in_range;
  }

  // Sets the slopes, already times the upstream gradient, for what follows: by the sums of each
  // class, and the factor of the voxels' own losses.
  void set_slopes(const std::vector<T>& by_intersection, const std::vector<T>& by_prediction,
                  T voxel_factor) {
    const bool squared = arguments_.squared;
    slopes_.clear();
    for (int64_t c = 0; c < arguments_.classes; ++c) {
      slopes_.push_back({squared ? T(0) : by_prediction[c],
                         squared ? T(2) * by_prediction[c] : T(0), by_intersection[c]});
    }
    voxel_factor_ = voxel_factor;
  }

  void gradient(int64_t sample, int64_t begin, int64_t end, bool streaming) {
    for (int64_t first = begin; first < end; first += voxels_.logits.pixels()) {
      const int64_t last = std::min(end, first + voxels_.logits.pixels());
      const int64_t whole = ClassTile<T>::padded(last - first);
      voxels_.load(sample, first, last, kSoftmax && !kOfLogit);
      const ClassAxis axis = Voxels<T>::axis(arguments_, kRegionGradient, sample);
      T* const in_place =
          ClassTile<T>::in_place(arguments_.gradient, arguments_.layout, axis, first, last);
      const Destination destination = {in_place ? in_place : numbers().row(0),
                                       in_place ? axis.class_stride : numbers().pixels(),
                                       in_place && streaming};
      if (arguments_.squared) {
        differentiate<true>(whole, destination);
      } else {
        differentiate<false>(whole, destination);
      }
      if (!in_place) write(sample, first, last, streaming);
    }
  }

 private:
  // The most voxels that are added up in the arithmetic of voxels, lane by lane.
  static constexpr int64_t kSummedByLane = 512;

  // Adds the sums over the voxels [begin, end) to `row`. False where a label is out of range.
  bool add(int64_t sample, int64_t begin, int64_t end, double* row) {
    const int64_t classes = arguments_.classes;
    std::fill(sums_.begin(), sums_.end(), V(0));
    double of_voxels = 0.0, count = 0.0;
    bool in_range = true;
    for (int64_t first = begin; first < end; first += voxels_.logits.pixels()) {
      const int64_t last = std::min(end, first + voxels_.logits.pixels());
      const int64_t whole = ClassTile<T>::padded(last - first);
      in_range = voxels_.load(sample, first, last, sums_take_exponentials()) && in_range;
      of_voxels += activate(whole);
      for (int64_t c = 0; c < classes; ++c)
        sum_class(c, whole, sums_.data() + c * kClassSums, of_voxels);
      V valid(0);
      for (int64_t i = 0; i < whole; i += V::kLanes) valid += V::load(voxels_.valid + i);
      count += double(valid.sum());
    }
    for (int64_t k = 0; k < classes * kClassSums; ++k) row[k] += double(sums_[k].sum());
    row[classes * kClassSums] += of_voxels;
    row[classes * kClassSums + 1] += count;
    return in_range;
  }

  void write(int64_t sample, int64_t begin, int64_t end, bool streaming) {
    numbers().store(arguments_.gradient, arguments_.layout,
                    Voxels<T>::axis(arguments_, kRegionGradient, sample), begin, end, streaming);
  }

  // Where exponentials and, in the end, gradients are: in place of the logits unless those are
  // needed beside them.
  ClassTile<T>& numbers() { return kSoftmax && kOfLogit ? exponentials_ : voxels_.logits; }

  FASTLOSS_INLINE V target(int64_t c, int64_t i) const {
    return voxels_.template target<kLabels>(c, i);
  }

  // Exponentials of kLanes voxels, relative to the largest; calls visit(c, shifted, exponential).
  // Returns their sum.
  template <class Visit>
  FASTLOSS_INLINE V exponentiate(int64_t i, const Visit& visit) {
    // Locals: for all the compiler knows, the store below changes members.
    const int64_t classes = arguments_.classes, pitch = voxels_.logits.pixels();
    const ClassAhead next = voxels_.next;
    const T* const logits = voxels_.logits.row(0) + i;
    T* const out = numbers().row(0) + i;
    if (voxels_.exponentials) {
      V sum(0);
#pragma GCC unroll 4
      for (int64_t c = 0; c < classes; ++c) {
        const V e = V::load(logits + c * pitch);
        sum += e;
        visit(c, V(0), e);
      }
      return sum;
    }
    V largest = V::load(logits);
    // (Where this loses a NaN, the difference below finds it again.)
    for (int64_t c = 1; c < classes; ++c) largest = larger(V::load(logits + c * pitch), largest);
    V sum(0);
    for (int64_t c = 0; c < classes; ++c) {
      next.ask(c, i);
      const V shifted = V::load(logits + c * pitch) - largest;
      const V e = exp_nonpositive(shifted);
      e.store(out + c * pitch);
      sum += e;
      visit(c, shifted, e);
    }
    return sum;
  }

  // The cross-entropy of a class that is not alone needs the logits.
  bool sums_take_exponentials() const {
    return kSoftmax &&
           (!kHasVoxelLoss || (kCrossEntropy && kLabels && voxel_parameter_[0] == T(0)));
  }

  // Softmax: exponentials, and what they are to be divided by; returns the sum of the
  // cross-entropy.
  double activate(int64_t whole) {
    double loss = 0.0;
    if constexpr (kSoftmax) {
      V losses(0);
      for (int64_t i = 0; i < whole; i += V::kLanes) {
        V dot(0), mass(0);
        const V valid = V::load(voxels_.valid + i);
        if constexpr (kCrossEntropy && kLabels) {
          if (voxels_.exponentials) {
            losses += valid * cross_entropy_of_exponentials(i, valid);
            continue;
          }
        }
        const V sum = exponentiate(i, [&](int64_t c, V shifted, V /*e*/) {
          if constexpr (kCrossEntropy) {
            const V m = Voxel::mass(target(c, i), class_weight_[c], share_, voxel_parameter_);
            dot += select(m == V(0), V(0), m * shifted);
            mass += m;
          }
        });
        (valid / sum).store(inverse_ + i);
        if constexpr (kCrossEntropy) losses += valid * (mass * log(sum) - dot);
      }
      loss = double(losses.sum());
    }
    return loss;
  }

  // Of voxels with one class each. By what all other classes have, so that small losses keep their
  // digits.
  FASTLOSS_INLINE V cross_entropy_of_exponentials(int64_t i, V valid) {
    V picked(0), rest(0), weight(0);
    const T* const class_weight = class_weight_.data();
    exponentiate(i, [&](int64_t c, V /*shifted*/, V e) {
      const auto is_class = target(c, i) != V(0);
      picked = select(is_class, e, picked);
      weight = select(is_class, V(class_weight[c]), weight);
      rest += select(is_class, V(0), e);
    });
    (valid / (picked + rest)).store(inverse_ + i);
    return weight * log1p(rest / select(valid == V(0), V(1), picked));
  }

  FASTLOSS_INLINE V probability(int64_t c, int64_t i) {
    if constexpr (kSoftmax) {
      return V::load(numbers().row(c) + i) * V::load(inverse_ + i);
    } else {
      voxels_.next.ask(c, i);
      const V x = V::load(voxels_.logits.row(c) + i);
      if constexpr (kActivation == Activation::kSigmoid) {
        return sigmoid(x) * V::load(voxels_.valid + i);
      } else {
        return x;
      }
    }
  }

  bool has_voxel_loss(int64_t c) const {
    return c > 0 || arguments_.include_background || !Voxel::kSkipsBackground;
  }

  void sum_class(int64_t c, int64_t whole, V* sums, double& of_voxels) {
    V intersection(0), prediction(0), targets(0), losses(0);
    const bool squared = arguments_.squared;
    for (int64_t i = 0; i < whole; i += V::kLanes) {
      const V p = probability(c, i), t = target(c, i);
      intersection += p * t;
      prediction += squared ? p * p : p;
      targets += squared && !kLabels ? t * t : t;
    }
    if constexpr (kOfLogit) {
      if (has_voxel_loss(c)) {
        for (int64_t i = 0; i < whole; i += V::kLanes) {
          const V x = V::load(voxels_.logits.row(c) + i);
          losses += V::load(voxels_.valid + i) *
                    Voxel::loss(x, target(c, i), class_weight_[c], voxel_parameter_);
        }
      }
    }
    sums[kIntersection] += intersection;
    sums[kPrediction] += prediction;
    sums[kTarget] += targets;
    if constexpr (kOfLogit) of_voxels += double(losses.sum());
  }

  // The slope of the loss by the probability p of a class: flat + steep · p + by_target · target.
  // It is flat or steep as predictions are squared or not.
  struct Slope {
    T flat, steep, by_target;
  };

  // Where the gradients of a tile go, class by class.
  struct Destination {
    T* first;
    int64_t pitch;
    bool streaming;
  };

  template <bool kSquared>
  void differentiate(int64_t whole, const Destination& to) {
    if constexpr (kSoftmax) weigh<kSquared>(whole);
    for (int64_t c = 0; c < arguments_.classes; ++c) {
      if (to.streaming) {
        gradient_of_class<kSquared, true>(c, whole, to.first + c * to.pitch);
      } else {
        gradient_of_class<kSquared, false>(c, whole, to.first + c * to.pitch);
      }
    }
  }

  // Softmax: exponentials, their divisors, and Σ p q, which every class's gradient is less by.
  template <bool kSquared>
  void weigh(int64_t whole) {
    const Slope* const slopes = slopes_.data();
    for (int64_t i = 0; i < whole; i += V::kLanes) {
      V flat(0), steep(0), mass(0);
      const V valid = V::load(voxels_.valid + i);
      const V sum = exponentiate(i, [&](int64_t c, V /*shifted*/, V e) {
        const V t = target(c, i);
        const V by_target = V(slopes[c].by_target) * t;
        if constexpr (kSquared) {
          flat += e * by_target;
          steep += e * e * V(slopes[c].steep);
        } else {
          flat += e * (V(slopes[c].flat) + by_target);
        }
        if constexpr (kCrossEntropy)
          mass += Voxel::mass(t, class_weight_[c], share_, voxel_parameter_);
      });
      const V inverse = valid / sum;
      inverse.store(inverse_ + i);
      V all = inverse * flat;
      if constexpr (kSquared) all += inverse * (inverse * steep);
      all.store(together_ + i);
      if constexpr (kCrossEntropy) mass.store(mass_ + i);
    }
  }

  template <bool kSquared, bool kStreaming>
  void gradient_of_class(int64_t c, int64_t whole, T* out) {
    const V flat(slopes_[c].flat), steep(slopes_[c].steep), by_target(slopes_[c].by_target);
    for (int64_t i = 0; i < whole; i += V::kLanes) {
      const V valid = V::load(voxels_.valid + i);
      const V p = probability(c, i), t = target(c, i);
      const V q = (kSquared ? steep * p : flat) + by_target * t;
      V gradient;
      if constexpr (kSoftmax) {
        gradient = p * (q - V::load(together_ + i));
      } else if constexpr (kActivation == Activation::kSigmoid) {
        gradient = q * p * sigmoid(-V::load(voxels_.logits.row(c) + i));
      } else {
        gradient = valid * q;
      }
      if constexpr (kCrossEntropy) {
        const V mass = Voxel::mass(t, class_weight_[c], share_, voxel_parameter_);
        gradient += V(voxel_factor_) * (p * V::load(mass_ + i) - valid * mass);
      } else if constexpr (kOfLogit) {
        if (has_voxel_loss(c)) {
          const auto x = seed<1>(V::load(voxels_.logits.row(c) + i));
          const V slope_of_loss =
              derivative<1>(Voxel::loss(x, t, class_weight_[c], voxel_parameter_));
          gradient += valid * (V(voxel_factor_) * slope_of_loss);
        }
      }
      if constexpr (kStreaming) {
        gradient.store_streaming(out + i);
      } else {
        gradient.store(out + i);
      }
    }
  }

  const RegionArguments& arguments_;
  Voxels<T> voxels_;
  ClassTile<T> exponentials_;
  alignas(64) T inverse_[Voxels<T>::kMost];
  alignas(64) T together_[Voxels<T>::kMost];
  alignas(64) T mass_[Voxels<T>::kMost];
  std::vector<V> sums_;
  std::vector<T> class_weight_;
  std::vector<Slope> slopes_;
  T voxel_parameter_[2], share_, voxel_factor_ = T(0);
};

template <class Task>
void run_tasks(const Execution& execution, int64_t count, const Task& task) {
  const auto call = [](void* pointer, int64_t i) { (*static_cast<const Task*>(pointer))(i); };
  void* pointer = const_cast<Task*>(&task);
  if (count == 1) {
    call(pointer, 0);
  } else {
    execution.parallel.run(count, call, pointer);
  }
}

// The loss of all regions from the sums of every sample, and its slopes.
template <class Formula, class T>
void finish(const RegionArguments& arguments) {
  const int64_t batch = arguments.batch, classes = arguments.classes;
  const auto [slices, voxels, row] = arguments.slices;
  double* sums = arguments.scratch + batch * slices * row;  // [B, row]
  double valid_in_all = 0.0, label_weight = 0.0;
  for (int64_t b = 0; b < batch; ++b) {
    std::fill_n(sums + b * row, row, 0.0);
    for (int64_t s = 0; s < slices; ++s) {
      const double* const of_slice = arguments.scratch + (b * slices + s) * row;
      for (int64_t k = 0; k < row; ++k) sums[b * row + k] += of_slice[k];
    }
    valid_in_all += sums[b * row + row - 1];
    for (int64_t c = 0; c < classes; ++c)
      label_weight += class_weight_of(arguments, c) * sums[b * row + c * kClassSums + kTarget];
  }
  double total = 0.0;
  auto* slopes = static_cast<T*>(arguments.slopes);
  const int64_t regions = regions_of(arguments);
  for (int64_t b = 0; b < batch; ++b) {
    const double* of_sample = sums + b * row;
    const double scale =
        voxel_scale<Formula>(arguments, of_sample[row - 1], valid_in_all, label_weight);
    slopes[regions * classes * 2 + b] = as_slope<T>(scale);
    if (voxel_loss_of<Formula>::kKind != VoxelKind::kNone) total += scale * of_sample[row - 2];
  }
  if (arguments.pools_batch) {
    for (int64_t b = 1; b < batch; ++b) {
      for (int64_t k = 0; k < row; ++k) sums[k] += sums[b * row + k];
    }
  }

  const double scale = region_scale<Formula>(arguments);
  const int64_t first = arguments.include_background ? 0 : 1;
  auto* values = static_cast<T*>(arguments.loss_output.values);
  const auto set_slopes = [&](int64_t region, int64_t c, double by_intersection,
                              double by_prediction) {
    slopes[(region * classes + c) * 2] = as_slope<T>(by_intersection);
    slopes[(region * classes + c) * 2 + 1] = as_slope<T>(by_prediction);
  };
  for (int64_t r = 0; r < regions; ++r) {
    const double* of_region = sums + r * row;
    if (first > 0) set_slopes(r, 0, 0.0, 0.0);
    if constexpr (pools_classes<Formula>) {
      const auto target = [&](int64_t c) { return of_region[c * kClassSums + kTarget]; };
      double largest = 0.0;
      for (int64_t c = first; c < classes; ++c)
        largest = std::max(largest, Formula::class_weight(target(c)));
      const auto weight = [&](int64_t c) {
        const double own = Formula::class_weight(target(c));
        return own == 0.0 ? largest : own;
      };
      double pooled[kClassSums] = {};
      for (int64_t c = first; c < classes; ++c) {
        for (int k = 0; k < kClassSums; ++k) pooled[k] += weight(c) * of_region[c * kClassSums + k];
      }
      const RegionValue value = evaluate_region<Formula>(pooled[kIntersection], pooled[kPrediction],
                                                         pooled[kTarget], arguments.parameters);
      total += scale * value.loss;
      if (values) *values++ = T(value.loss);
      for (int64_t c = first; c < classes; ++c) {
        set_slopes(r, c, scale * weight(c) * value.by_intersection,
                   scale * weight(c) * value.by_prediction);
      }
    } else {
      for (int64_t c = first; c < classes; ++c) {
        const double* of_class = of_region + c * kClassSums;
        const RegionValue value =
            evaluate_region<Formula>(of_class[kIntersection], of_class[kPrediction],
                                     of_class[kTarget], arguments.parameters);
        const double factor = scale * class_weight_of(arguments, c);
        total += factor * value.loss;
        if (values) *values++ = T(factor * value.loss);
        set_slopes(r, c, factor * value.by_intersection, factor * value.by_prediction);
      }
    }
  }
  if (arguments.loss_output.total) *static_cast<T*>(arguments.loss_output.total) = T(total);
}

template <class Formula>
const double* voxel_parameters(const RegionArguments& arguments) {
  if constexpr (voxel_loss_of<Formula>::kKind == VoxelKind::kNone) {
    return nullptr;
  } else {
    return arguments.parameters + Formula::kVoxelParameters;
  }
}

// Calls run(pass) for every slice, with a pass of its own kind.
template <class T, Activation kActivation, class Voxel, bool kLabels, class Run>
void for_each_slice(const RegionArguments& arguments, const double* parameters,
                    const Execution& execution, const Run& run) {
  const int64_t voxels = arguments.layout.numel;
  const RegionSlices& slices = arguments.slices;
  run_tasks(execution, arguments.batch * slices.per_sample, [&](int64_t task) {
    const int64_t sample = task / slices.per_sample;
    const int64_t begin = task % slices.per_sample * slices.voxels;
    Pass<T, kActivation, Voxel, kLabels> pass(arguments, parameters);
    run(pass, task * slices.row, sample, begin, std::min(voxels, begin + slices.voxels));
  });
}

template <class T, Activation kActivation, class Voxel, bool kLabels>
struct Kernels {
  static void sum(const RegionArguments& arguments, const double* parameters,
                  const Execution& execution) {
    LabelFault fault;
    for_each_slice<T, kActivation, Voxel, kLabels>(
        arguments, parameters, execution,
        [&](auto& pass, int64_t row, int64_t sample, int64_t begin, int64_t end) {
          fault.note(pass.sum(sample, begin, end, arguments.scratch + row));
        });
    fault.throw_if_any();
  }

  static void gradient(const RegionArguments& arguments, const double* parameters,
                       const Execution& execution, bool pools_classes) {
    const int64_t classes = arguments.classes, regions = regions_of(arguments);
    const auto* slopes = static_cast<const T*>(arguments.slopes);
    const auto* upstream = static_cast<const T*>(arguments.upstream.data);
    const int64_t first = arguments.include_background ? 0 : 1;
    const bool streaming =
        outlives_caches(arguments.batch * classes * arguments.layout.numel * int64_t{sizeof(T)});
    for_each_slice<T, kActivation, Voxel, kLabels>(
        arguments, parameters, execution,
        [&](auto& pass, int64_t /*row*/, int64_t sample, int64_t begin, int64_t end) {
          const int64_t region = arguments.pools_batch ? 0 : sample;
          std::vector<T> by_intersection(classes), by_prediction(classes);
          for (int64_t c = 0; c < classes; ++c) {
            T factor = upstream[0];
            if (arguments.reduction == RegionReduction::kNone) {
              factor = pools_classes ? upstream[region]
                       : c < first   ? T(0)
                                     : upstream[region * (classes - first) + c - first];
            }
            by_intersection[c] = factor * slopes[(region * classes + c) * 2];
            by_prediction[c] = factor * slopes[(region * classes + c) * 2 + 1];
          }
          pass.set_slopes(by_intersection, by_prediction,
                          upstream[0] * slopes[regions * classes * 2 + sample]);
          pass.gradient(sample, begin, end, streaming);
          if (streaming) streaming_fence();
        });
  }
};

// Calls run(Kernels) with the kernels compiled for an activation, a loss of voxels and a kind of
// targets.
template <class T, class Voxel, class Run>
void choose(const RegionArguments& arguments, const Run& run) {
  const auto with = [&]<Activation kActivation>() {
    if constexpr (fits_activation<Voxel>(kActivation)) {
      if (arguments.labels) {
        run(Kernels<T, kActivation, Voxel, true>{});
      } else {
        run(Kernels<T, kActivation, Voxel, false>{});
      }
    }
  };
  switch (arguments.activation) {
    case Activation::kSoftmax:
      return with.template operator()<Activation::kSoftmax>();
    case Activation::kSigmoid:
      return with.template operator()<Activation::kSigmoid>();
    case Activation::kNone:
      return with.template operator()<Activation::kNone>();
  }
}

template <class Formula, class T>
void sums_typed(const RegionArguments& arguments, const Execution& execution) {
  choose<T, voxel_loss_of<Formula>>(arguments, [&](auto kernels) {
    kernels.sum(arguments, voxel_parameters<Formula>(arguments), execution);
  });
  finish<Formula, T>(arguments);
}

template <class Formula>
struct SumsKernel {
  static void run(const RegionArguments& arguments, const Execution& execution) {
    if (arguments.is_double) {
      sums_typed<Formula, double>(arguments, execution);
    } else {
      sums_typed<Formula, float>(arguments, execution);
    }
  }
};

template <class T>
void errors_typed(const RegionArguments& arguments, const Execution& execution) {
  LabelFault fault;
  for_each_slice<T, Activation::kSoftmax, NoVoxelLoss, true>(
      arguments, nullptr, execution,
      [&](auto& pass, int64_t /*row*/, int64_t sample, int64_t begin, int64_t end) {
        fault.note(pass.errors(sample, begin, end));
      });
  fault.throw_if_any();
}

template <class Formula>
struct GradientKernel {
  static void run(const RegionArguments& arguments, const Execution& execution) {
    const auto with = [&]<class T>(T) {
      choose<T, voxel_loss_of<Formula>>(arguments, [&](auto kernels) {
        kernels.gradient(arguments, voxel_parameters<Formula>(arguments), execution,
                         pools_classes<Formula>);
      });
    };
    if (arguments.is_double) {
      with(0.0);
    } else {
      with(0.0f);
    }
  }
};

using Function = void (*)(const RegionArguments&, const Execution&);

}  // namespace

void region_sums(const RegionArguments& arguments, const Execution& execution) {
  RegionLosses::Table<Function, SumsKernel>::kRun[arguments.loss](arguments, execution);
}

void region_errors(const RegionArguments& arguments, const Execution& execution) {
  if (arguments.is_double) {
    errors_typed<double>(arguments, execution);
  } else {
    errors_typed<float>(arguments, execution);
  }
}

void region_gradient(const RegionArguments& arguments, const Execution& execution) {
  RegionLosses::Table<Function, GradientKernel>::kRun[arguments.loss](arguments, execution);
}

}  // namespace fastloss::FASTLOSS_TARGET
