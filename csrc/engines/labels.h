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

// As numbers of type T, exact for labels in range of at most kMostClasses<T>.
template <class T>
class LabelReader {
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
    const Label* const labels = static_cast<const Label*>(labels_.data) + offset;
    // Said apart so that the compiler vectorises it.
    return stride == 1 ? read_run(number, counts, labels, 1, count)
                       : read_run(number, counts, labels, stride, count);
  }

  // In vectors: no branches, and locals.
  template <class Label>
  FASTLOSS_INLINE bool read_run(T* number, T* counts, const Label* labels, int64_t stride,
                                int64_t count) const {
    const auto index = static_cast<Label>(ignored_.index);
    const bool has_index = ignored_.has_index && index == ignored_.index;  // else none has it
    const bool negatives = ignored_.negatives;
    const int64_t classes = classes_;
    int wrong = 0;
    for (int64_t i = 0; i < count; ++i) {
      const Label label = labels[i * stride];
      const bool ignored = (has_index & (label == index)) | (negatives & (label < 0));
      const bool exists = (label >= 0) & (int64_t{label} < classes);
      wrong |= !(ignored | exists);
      number[i] = ignored ? T(-1) : T(label);
      counts[i] = ignored ? T(0) : T(1);
    }
    return wrong == 0;
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
