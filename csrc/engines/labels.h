// SPDX-License-Identifier: MIT
// How CPU engines read class labels of any integer type: as numbers, a vector at a time, each with
// whether it counts and whether it is in range.
#pragma once
#include "core/access.h"
#include "core/layout.h"
#include "core/types.h"
#include "core/vec.h"

namespace fastloss::FASTLOSS_TARGET {

// The most classes whose labels are exact as numbers of type T.
template <class T>
constexpr int64_t kMostClasses = int64_t{1} << (Ieee<T>::kMantissaBits + 1);

// As numbers of type T. There are at most kMostClasses<T>: then labels in range are exact, and
// none out of range is rounded into it.
template <class T>
class LabelReader {
  using V = Vec<T>;

 public:
  LabelReader(const Input& labels, const IgnoredLabels& ignored, int64_t classes)
      : labels_(labels), ignored_(ignored), classes_(classes) {}

  // `count` labels from the element `offset` on. `number` becomes the class, or -1 where the label
  // is ignored, `counts` 1 or 0. Returns whether all others are in range.
  bool read(T* number, T* counts, int64_t offset, int64_t stride, int64_t count) const {
    switch (labels_.dtype) {
      case DType::kUInt8:
        return read_typed<uint8_t>(number, counts, offset, stride, count);
      case DType::kInt16:
        return read_typed<int16_t>(number, counts, offset, stride, count);
      case DType::kInt32:
        return read_typed<int32_t>(number, counts, offset, stride, count);
      default:
        return read_typed<int64_t>(number, counts, offset, stride, count);
    }
  }

 private:
  template <class Label>
  bool read_typed(T* number, T* counts, int64_t offset, int64_t stride, int64_t count) const {
    typedef Label Several __attribute__((vector_size(V::kLanes * sizeof(Label))));
    const Label* const labels = static_cast<const Label*>(labels_.data) + offset;
    const V classes = V(T(classes_)), none(-1), zero(0), one(1);
    const auto index = static_cast<Label>(ignored_.index);
    const bool has_index = ignored_.has_index && index == ignored_.index;  // else none has it
    auto wrong = zero < zero;
    for (int64_t i = 0; i < count; i += V::kLanes) {
      const int64_t here = count - i < V::kLanes ? count - i : V::kLanes;
      Several several = {};
      if (here == V::kLanes && stride == 1) {
        __builtin_memcpy(&several, labels + i, sizeof(several));
      } else {
        for (int64_t j = 0; j < here; ++j) several[j] = labels[(i + j) * stride];
      }
      const V value(__builtin_convertvector(several, typename V::Lanes));
      auto ignored = zero < zero;
      if (has_index)
        ignored = {__builtin_convertvector(several == index, typename Mask<T>::Native)};
      if (ignored_.negatives) ignored = ignored | (value < zero);
      wrong = wrong | !(ignored | ((value >= zero) & (value < classes)));
      const V label = select(ignored, none, value), does_count = select(ignored, zero, one);
      if (here == V::kLanes) {
        label.store(number + i);
        does_count.store(counts + i);
      } else {
        for (int64_t j = 0; j < here; ++j) {
          number[i + j] = label[int(j)];
          counts[i + j] = does_count[int(j)];
        }
      }
    }
    return !any(wrong);
  }

  Input labels_;
  IgnoredLabels ignored_;
  int64_t classes_;
};

// Set by any thread that meets a label out of range. Which one it was is looked for by who catches
// LabelOutOfRange.
class LabelFault {
 public:
  void note(bool all_in_range) {
    if (!all_in_range) __atomic_store_n(&found_, true, __ATOMIC_RELAXED);
  }
  void throw_if_any() const {
    if (found_) throw LabelOutOfRange{};
  }

 private:
  bool found_ = false;
};

}  // namespace fastloss::FASTLOSS_TARGET
