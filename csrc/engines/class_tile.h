// SPDX-License-Identifier: MIT
// How CPU engines see tensors whose class dimension is strided, as (B, C, H, W), or whose rows are
// narrow: as tiles of all classes of a few hundred consecutive pixels, [class][pixel], in the L1
// cache. The lanes of a vector are pixels.
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
#include <type_traits>

#include "core/vec.h"
#include "engines/staging.h"

namespace fastloss::FASTLOSS_TARGET {

// Where an operand of a layout over pixels has its classes.
struct ClassAxis {
  int operand;
  int64_t class_stride;
  int64_t base = 0;  // the element that the layout's offsets count from
};

// Memory that a later tile is loaded from. A tile's rows are too short for the processor to see
// them coming: asked for while the tile before is worked on, a vector at a time, they take a third
// off the time of a softmax. (Asked for all at once they are not: requests queue.)
struct ClassAhead {
  const char* first;
  int64_t class_bytes, pixel_bytes;
  // Inlined by force: GCC takes a function that only prefetches for one without effect.
  FASTLOSS_INLINE void ask(int64_t c, int64_t pixel) const {
    __builtin_prefetch(first + (c * class_bytes + pixel * pixel_bytes), 0, /*locality: L2*/ 2);
  }
};

template <class T>
class ClassTile {
 public:
  explicit ClassTile(int64_t classes)
      : classes_(classes), pixels_(pixels_for(classes)), memory_(classes * pixels_) {}

  static constexpr int64_t kMostPixels = 512;

  // The most pixels this tile holds: a multiple of a cache line.
  int64_t pixels() const { return pixels_; }
  T* row(int64_t c) { return memory_.get() + c * pixels_; }
  const T* row(int64_t c) const { return memory_.get() + c * pixels_; }

  // Pixels [begin, end) of the layout's walk. What is left of the last vector becomes 0.
  void load(const Input& input, const Layout& layout, const ClassAxis& axis, int64_t begin,
            int64_t end) {
    AsTheyAre as_they_are;
    load_mapped(input, layout, axis, begin, end, as_they_are);
  }

  // The same with exp(x) in place of x, which a softmax then need not make relative to the largest
  // of its classes. What is left of the last vector becomes 1. False, and of no use, where an |x|
  // is larger than kExpModerate, or there is a single class, whose share is exactly 1. Asks for the
  // tile `next`.
  bool load_exponentials(const Input& input, const Layout& layout, const ClassAxis& axis,
                         int64_t begin, int64_t end, const ClassAhead& next) {
    if (classes_ == 1) return false;
    Exponentials exponentials{next};
    load_mapped(input, layout, axis, begin, end, exponentials);
    return exponentials.largest.largest() <= Coefficients<T>::kExpModerate;
  }

  // The classes of the pixels from `begin` on, to be asked for ahead. (Pixels behind the end of
  // their plane are guessed wrong, which costs a little time only.)
  static ClassAhead ahead(const Input& input, const Layout& layout, const ClassAxis& axis,
                          int64_t begin) {
    const int64_t size = item_size(input.dtype);
    const int64_t first = element_at(layout, axis, begin);
    return {static_cast<const char*>(input.data) + first * size, axis.class_stride * size,
            (layout.dims > 0 ? layout.stride[axis.operand][0] : 1) * size};
  }

  // The inverse. With `streaming`, rows that need no conversion go past the caches: the caller
  // ends with streaming_fence().
  void store(const Output& output, const Layout& layout, const ClassAxis& axis, int64_t begin,
             int64_t end, bool streaming) const {
    for_each_run(layout, begin, end, [&](int64_t position, const int64_t* offsets, int64_t length) {
      const int64_t first = axis.base + offsets[axis.operand];
      const int64_t stride = layout.dims > 0 ? layout.stride[axis.operand][0] : 1;
      const bool plain = output.dtype == dtype_of<T>;
      int64_t done = 0;
      if (plain && axis.class_stride == 1) {
        T* const to = static_cast<T*>(output.data) + first;
        done = for_each_square(length, [&](int64_t pixel, int64_t c) {
          const Square<T> square = load_square(row(c) + position + pixel, pixels_);
          store_square(to + pixel * stride + c, stride, transposed(square));
        });
      }
      for (int64_t c = 0; c < classes_; ++c) {
        const T* from = row(c) + position + done;
        const int64_t to = first + c * axis.class_stride + done * stride;
        if (plain && stride == 1) {
          copy_out(static_cast<T*>(output.data) + to, from, length - done, streaming);
        } else {
          store_strided(output, to, stride, from, 1, length - done);
        }
      }
    });
  }

  // Where in `output` pixels [begin, end) of class 0 are as in a row of the tile, so that the other
  // classes are, and fit for store_streaming(); null where they are not.
  static T* in_place(const Output& output, const Layout& layout, const ClassAxis& axis,
                     int64_t begin, int64_t end) {
    constexpr int64_t kLanes = Vec<T>::kLanes;
    if (output.dtype != dtype_of<T> || layout.dims == 0) return nullptr;
    const int64_t inner = layout.size[0];
    if (layout.stride[axis.operand][0] != 1 || begin / inner != (end - 1) / inner) return nullptr;
    T* const place = static_cast<T*>(output.data) + element_at(layout, axis, begin);
    const bool aligned = reinterpret_cast<uintptr_t>(place) % FASTLOSS_VECTOR_BYTES == 0;
    return aligned && (end - begin) % kLanes == 0 && axis.class_stride % kLanes == 0 ? place
                                                                                     : nullptr;
  }

  // A number of pixels, rounded up to whole vectors.
  static constexpr int64_t padded(int64_t count) {
    return (count + Vec<T>::kLanes - 1) / Vec<T>::kLanes * Vec<T>::kLanes;
  }

 private:
  using V = Vec<T>;

  // Of class 0.
  static int64_t element_at(const Layout& layout, const ClassAxis& axis, int64_t pixel) {
    int64_t element = axis.base;
    for (int d = 0; d < layout.dims; ++d) {
      element += pixel % layout.size[d] * layout.stride[axis.operand][d];
      pixel /= layout.size[d];
    }
    return element;
  }

  struct AsTheyAre {
    FASTLOSS_INLINE V operator()(V x) const { return x; }
    FASTLOSS_INLINE void ask(int64_t /*c*/, int64_t /*pixel*/) const {}
  };
  struct Exponentials {
    ClassAhead next;
    V largest = V(0);
    FASTLOSS_INLINE V operator()(V x) {
      largest = larger(abs(x), largest);  // NaN may get lost: its exponential is NaN too
      return exp_moderate(x);
    }
    FASTLOSS_INLINE void ask(int64_t c, int64_t pixel) const { next.ask(c, pixel); }
  };

  // map(x) of every vector of pixels of a class.
  template <class Map>
  void load_mapped(const Input& input, const Layout& layout, const ClassAxis& axis, int64_t begin,
                   int64_t end, Map& map) {
    for_each_run(layout, begin, end, [&](int64_t position, const int64_t* offsets, int64_t length) {
      const int64_t first = axis.base + offsets[axis.operand];
      const int64_t stride = layout.dims > 0 ? layout.stride[axis.operand][0] : 1;
      const bool plain = input.dtype == dtype_of<T>;
      int64_t done = 0;
      if (plain && axis.class_stride == 1) {
        const T* const from = static_cast<const T*>(input.data) + first;
        done = for_each_square(length, [&](int64_t pixel, int64_t c) {
          Map local = map;  // kept in memory, each step would wait for the one before
          for (int lane = 0; lane < V::kLanes; ++lane) local.ask(c, position + pixel + lane);
          const Square<T> square = transposed(load_square(from + pixel * stride + c, stride));
          store_square(row(c) + position + pixel, pixels_, mapped(square, local));
          map = local;
        });
      }
      for (int64_t c = 0; c < classes_ && done < length; ++c) {
        T* const to = row(c) + position + done;
        const int64_t from = first + c * axis.class_stride + done * stride;
        if (plain && stride == 1) {
          map_row(to, static_cast<const T*>(input.data) + from, length - done, c, position + done,
                  map);
        } else {
          load_strided(to, 1, input, from, stride, length - done);
          if constexpr (!std::is_same_v<Map, AsTheyAre>)
            map_row(to, to, length - done, c, position + done, map);
        }
      }
    });
    const int64_t count = end - begin, whole = padded(count);
    if (whole == count) return;
    const T padding = Map(map)(V(0))[0];
    for (int64_t c = 0; c < classes_; ++c) std::fill(row(c) + count, row(c) + whole, padding);
  }

  template <class Map>
  static FASTLOSS_INLINE void map_row(T* to, const T* from, int64_t count, int64_t c,
                                      int64_t position, Map& map) {
    Map local = map;
    int64_t i = 0;
    for (; i + V::kLanes <= count; i += V::kLanes) {
      local.ask(c, position + i);
      local(V::load(from + i)).store(to + i);
    }
    if (i < count) {
      const V mapped = local(load_some(from + i, count - i));
      for (int lane = 0; i + lane < count; ++lane) to[i + lane] = mapped[lane];
    }
    map = local;
  }

  // Most of the L1 cache, but never so few pixels that a row is a line or two: the processor
  // prefetches along rows. Tens of thousands of classes get a line each.
  static int64_t pixels_for(int64_t classes) {
    constexpr int64_t kMostOfL1 = 20 << 10, kHalfOfL2 = 512 << 10, kLine = 64 / int64_t{sizeof(T)},
                      kShortest = 64;
    const int64_t in_l1 = kMostOfL1 / int64_t{sizeof(T)} / classes;
    if (in_l1 >= kShortest) return std::min(in_l1 / kLine * kLine, kMostPixels);
    return classes * kShortest * int64_t{sizeof(T)} <= kHalfOfL2 ? kShortest : kLine;
  }

  // Calls move(pixel, c) for the squares of kLanes pixels by kLanes classes that cover all classes
  // of the first pixels. Returns how many those are. The last square of a row of them may lie over
  // part of the one before: moved twice, nothing changes.
  template <class Move>
  int64_t for_each_square(int64_t pixels, const Move& move) const {
    constexpr int64_t kLanes = Vec<T>::kLanes;
    if (classes_ < kLanes) return 0;
    const int64_t whole = pixels / kLanes * kLanes;
    for (int64_t pixel = 0; pixel < whole; pixel += kLanes) {
      for (int64_t c = 0; c < classes_; c += kLanes) move(pixel, std::min(c, classes_ - kLanes));
    }
    return whole;
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
  Scratch<T> memory_;
};

}  // namespace fastloss::FASTLOSS_TARGET
