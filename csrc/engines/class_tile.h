// SPDX-License-Identifier: MIT
// How CPU engines see tensors whose class dimension is strided, as (B, C, H, W): as tiles of all
// classes of a few hundred consecutive pixels, [class][pixel], in the L1 cache. The lanes of a
// vector are pixels.
//
// Class planes are often a power of two apart, so that all classes of a pixel fall into one set of
// the cache and push each other out. A tile is therefore filled row by row, each a stretch of one
// plane, and only then read across the classes.
//
//   ClassTile<T> tile(classes);             // one per task: it owns memory
//   for (int64_t begin = ...; begin < end; begin += tile.pixels()) {
//     const int64_t stop = std::min(end, begin + tile.pixels());
//     tile.load(input, layout, {operand, class_stride}, begin, stop);
//     for (int64_t i = 0; i < stop - begin; i += Vec<T>::kLanes)
//       for (int64_t c = 0; c < classes; ++c) ... Vec<T>::load(tile.row(c) + i) ...
//     tile.store(output, layout, {operand, class_stride}, begin, stop, streaming);
//   }
//   if (streaming) streaming_fence();
//
// `layout` walks every dimension but that of the classes.
#pragma once
#include <algorithm>
#include <cstddef>
#include <memory>
#include <new>

#include "core/vec.h"
#include "engines/staging.h"

namespace fastloss::FASTLOSS_TARGET {

// Where an operand of a layout over pixels has its classes.
struct ClassAxis {
  int operand;
  int64_t class_stride;
  int64_t base = 0;  // the element that the layout's offsets count from
};

template <class T>
class ClassTile {
 public:
  explicit ClassTile(int64_t classes)
      : classes_(classes), pixels_(pixels_for(classes)), memory_(allocate(classes * pixels_)) {}

  static constexpr int64_t kMostPixels = 512;

  // The most pixels this tile holds: a multiple of a cache line.
  int64_t pixels() const { return pixels_; }
  T* row(int64_t c) { return memory_.get() + c * pixels_; }
  const T* row(int64_t c) const { return memory_.get() + c * pixels_; }

  // Pixels [begin, end) of the layout's walk. What is left of the last vector becomes 0.
  void load(const Input& input, const Layout& layout, const ClassAxis& axis, int64_t begin,
            int64_t end) {
    for_each_run(layout, begin, end, [&](int64_t position, const int64_t* offsets, int64_t length) {
      const int64_t first = axis.base + offsets[axis.operand];
      const int64_t stride = layout.dims > 0 ? layout.stride[axis.operand][0] : 1;
      for (int64_t c = 0; c < classes_; ++c) {
        T* to = row(c) + position;
        const int64_t from = first + c * axis.class_stride;
        if (input.dtype == dtype_of<T> && stride == 1) {
          std::copy_n(static_cast<const T*>(input.data) + from, length, to);
        } else {
          load_strided(to, 1, input, from, stride, length);
        }
      }
    });
    const int64_t count = end - begin, whole = padded(count);
    if (whole == count) return;
    for (int64_t c = 0; c < classes_; ++c) std::fill(row(c) + count, row(c) + whole, T(0));
  }

  // The inverse. With `streaming`, rows that need no conversion go past the caches: the caller
  // ends with streaming_fence().
  void store(const Output& output, const Layout& layout, const ClassAxis& axis, int64_t begin,
             int64_t end, bool streaming) const {
    for_each_run(layout, begin, end, [&](int64_t position, const int64_t* offsets, int64_t length) {
      const int64_t first = axis.base + offsets[axis.operand];
      const int64_t stride = layout.dims > 0 ? layout.stride[axis.operand][0] : 1;
      for (int64_t c = 0; c < classes_; ++c) {
        const T* from = row(c) + position;
        const int64_t to = first + c * axis.class_stride;
        if (output.dtype == dtype_of<T> && stride == 1) {
          copy_out(static_cast<T*>(output.data) + to, from, length, streaming);
        } else {
          store_strided(output, to, stride, from, 1, length);
        }
      }
    });
  }

  // A number of pixels, rounded up to whole vectors.
  static constexpr int64_t padded(int64_t count) {
    return (count + Vec<T>::kLanes - 1) / Vec<T>::kLanes * Vec<T>::kLanes;
  }

 private:
  static constexpr std::size_t kAlignment = 64;

  // Half of the L1 cache, but never so few pixels that a row is a line or two: the processor
  // prefetches along rows. Tens of thousands of classes get a line each.
  static int64_t pixels_for(int64_t classes) {
    constexpr int64_t kHalfOfL1 = 16 << 10, kHalfOfL2 = 512 << 10, kLine = kAlignment / sizeof(T),
                      kShortest = 64;
    const int64_t in_l1 = kHalfOfL1 / int64_t{sizeof(T)} / classes;
    if (in_l1 >= kShortest) return std::min(in_l1 / kLine * kLine, kMostPixels);
    return classes * kShortest * int64_t{sizeof(T)} <= kHalfOfL2 ? kShortest : kLine;
  }

  struct Free {
    void operator()(T* memory) const { ::operator delete(memory, std::align_val_t{kAlignment}); }
  };
  static T* allocate(int64_t numbers) {
    return static_cast<T*>(::operator new(static_cast<std::size_t>(numbers) * sizeof(T),
                                          std::align_val_t{kAlignment}));
  }

  static void copy_out(T* to, const T* from, int64_t count, bool streaming) {
    constexpr int64_t kLanes = Vec<T>::kLanes;
    int64_t i = 0;
    if (streaming) {
      for (; i + kLanes <= count; i += kLanes) Vec<T>::load(from + i).store_streaming(to + i);
    }
    std::copy_n(from + i, count - i, to + i);
  }

  int64_t classes_;
  int64_t pixels_;
  std::unique_ptr<T[], Free> memory_;
};

}  // namespace fastloss::FASTLOSS_TARGET
