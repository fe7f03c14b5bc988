// SPDX-License-Identifier: MIT
// How CPU engines see tensors of any dtype and stride: as short runs of float or double in the L1
// cache.
#pragma once
#include <cstddef>
#include <memory>
#include <new>

#include "core/access.h"
#include "core/half.h"
#include "core/layout.h"
#include "core/types.h"
#include "core/vec.h"

namespace fastloss::FASTLOSS_TARGET {

template <class Source, class T>
FASTLOSS_INLINE void load_strided(T* out, int64_t out_stride, const Source* in, int64_t stride,
                                  int64_t count) {
  if constexpr (requires(Source s) { s.bits; }) {
    if (stride == 1 && out_stride == 1) {
      convert(in, out, count);
    } else {
      for (int64_t i = 0; i < count; ++i) out[i * out_stride] = T(to_float(in[i * stride]));
    }
  } else if (stride == 1 && out_stride == 1) {  // said apart so that the compiler vectorises it
    for (int64_t i = 0; i < count; ++i) out[i] = T(in[i]);
  } else {
    for (int64_t i = 0; i < count; ++i) out[i * out_stride] = T(in[i * stride]);
  }
}

template <class T>
inline void load_strided(T* out, int64_t out_stride, const Input& in, int64_t offset,
                         int64_t stride, int64_t count) {
  const auto from = [&](auto* typed) {
    load_strided(out, out_stride, typed + offset, stride, count);
  };
  switch (in.dtype) {
    case DType::kFloat16:
      return from(static_cast<const Half*>(in.data));
    case DType::kBFloat16:
      return from(static_cast<const BFloat16*>(in.data));
    case DType::kFloat32:
      return from(static_cast<const float*>(in.data));
    case DType::kFloat64:
      return from(static_cast<const double*>(in.data));
    case DType::kBool:
    case DType::kUInt8:
      return from(static_cast<const uint8_t*>(in.data));
    case DType::kInt8:
      return from(static_cast<const int8_t*>(in.data));
    case DType::kInt16:
      return from(static_cast<const int16_t*>(in.data));
    case DType::kInt32:
      return from(static_cast<const int32_t*>(in.data));
    case DType::kInt64:
      return from(static_cast<const int64_t*>(in.data));
  }
}

template <class T, class Destination>
FASTLOSS_INLINE void store_strided(Destination* out, int64_t stride, const T* in, int64_t in_stride,
                                   int64_t count) {
  if constexpr (requires(Destination d) { d.bits; }) {
    if (stride == 1 && in_stride == 1) {
      convert(in, out, count);
    } else {
      for (int64_t i = 0; i < count; ++i)
        out[i * stride] = from_float<Destination>(float(in[i * in_stride]));
    }
  } else {
    for (int64_t i = 0; i < count; ++i) out[i * stride] = Destination(in[i * in_stride]);
  }
}

template <class T>
inline void store_strided(const Output& out, int64_t offset, int64_t stride, const T* in,
                          int64_t in_stride, int64_t count) {
  const auto to = [&](auto* typed) { store_strided(typed + offset, stride, in, in_stride, count); };
  switch (out.dtype) {
    case DType::kFloat16:
      return to(static_cast<Half*>(out.data));
    case DType::kBFloat16:
      return to(static_cast<BFloat16*>(out.data));
    case DType::kFloat64:
      return to(static_cast<double*>(out.data));
    default:
      return to(static_cast<float*>(out.data));
  }
}

template <class T>
FASTLOSS_INLINE void copy(T* out, const T* in, int64_t count) {
  for (int64_t i = 0; i < count; ++i) out[i] = in[i];
}

// Ones where there is nothing to copy. (Asked once, not of every number: vectorised, a load from
// null under a mask takes a hundred times as long.)
template <class T>
FASTLOSS_INLINE void copy_or_ones(T* out, const T* in, int64_t count) {
  if (in) return copy(out, in, count);
  for (int64_t i = 0; i < count; ++i) out[i] = T(1);
}

// Copies past the caches. The caller ends with streaming_fence().
template <class T>
inline void stream(T* out, const T* in, int64_t count) {
  using V = Vec<T>;
  const auto misplaced =
      static_cast<int64_t>(reinterpret_cast<uintptr_t>(out) % FASTLOSS_VECTOR_BYTES / sizeof(T));
  const int64_t head = misplaced == 0 ? 0 : V::kLanes - misplaced;
  int64_t i = head < count ? head : count;
  copy(out, in, i);
  for (; i + V::kLanes <= count; i += V::kLanes) V::load(in + i).store_streaming(out + i);
  copy(out + i, in + i, count - i);
}

// Calls visit(position, offsets, length) for each stretch of [begin, end) in which only dimension 0
// moves: `position` counts from begin, offsets[k] is the element of operand k the stretch starts
// at.
template <class Visit>
FASTLOSS_INLINE void for_each_run(const Layout& layout, int64_t begin, int64_t end,
                                  const Visit& visit) {
  int64_t index[kMaxDims] = {};
  int64_t offsets[kMaxOperands] = {};
  int64_t rest = begin;
  for (int d = 0; d < layout.dims; ++d) {
    index[d] = rest % layout.size[d];
    rest /= layout.size[d];
    for (int k = 0; k < layout.operands; ++k) offsets[k] += index[d] * layout.stride[k][d];
  }
  const int64_t inner = layout.dims > 0 ? layout.size[0] : 1;
  for (int64_t position = 0; position < end - begin;) {
    const int64_t room = inner - index[0], left = end - begin - position;
    const int64_t length = room < left ? room : left;
    visit(position, static_cast<const int64_t*>(offsets), length);
    position += length;
    if (position == end - begin) return;
    // Carry into the outer dimensions.
    for (int k = 0; k < layout.operands; ++k) offsets[k] -= index[0] * layout.stride[k][0];
    index[0] = 0;
    for (int d = 1; d < layout.dims; ++d) {
      ++index[d];
      for (int k = 0; k < layout.operands; ++k) offsets[k] += layout.stride[k][d];
      if (index[d] < layout.size[d]) break;
      for (int k = 0; k < layout.operands; ++k) offsets[k] -= index[d] * layout.stride[k][d];
      index[d] = 0;
    }
  }
}

// Aligned memory for one task.
template <class T>
class Scratch {
 public:
  explicit Scratch(int64_t count)
      : memory_(static_cast<T*>(
            ::operator new(static_cast<std::size_t>(count) * sizeof(T), kAlignment))) {}
  T* get() const { return memory_.get(); }

 private:
  static constexpr std::align_val_t kAlignment{64};
  struct Free {
    void operator()(T* memory) const { ::operator delete(memory, kAlignment); }
  };
  std::unique_ptr<T, Free> memory_;
};

// A vector of as many numbers as there are, and padding. Nothing is read beyond them.
template <class T>
FASTLOSS_INLINE Vec<T> load_some(const T* values, int64_t count, T padding = T(0)) {
  constexpr int64_t kLanes = Vec<T>::kLanes;
  if (count >= kLanes) return Vec<T>::load(values);
  T padded[kLanes];
  for (int64_t i = 0; i < kLanes; ++i) padded[i] = i < count ? values[i] : padding;
  return Vec<T>::load(padded);
}

// A gradient that no cache will hold until it is used is written past the caches: its lines need
// not be read first.
constexpr bool outlives_caches(int64_t bytes) { return bytes >= int64_t{4} << 20; }

// Splits [0, count) into chunks whose number and borders depend on count alone, so that sums are
// the same whatever the threads do, runs chunk(begin, end) on each and returns the sum of what they
// return, in order.
constexpr int64_t kMaxChunks = 1024;
template <class Chunk>
inline double sum_over_chunks(const Execution& execution, int64_t count, int64_t smallest_chunk,
                              const Chunk& chunk) {
  int64_t size = (count + kMaxChunks - 1) / kMaxChunks;
  size = (size + smallest_chunk - 1) / smallest_chunk * smallest_chunk;
  const int64_t chunks = (count + size - 1) / size;
  struct Context {
    const Chunk& chunk;
    int64_t count, size;
    double partial[kMaxChunks];
  } context{chunk, count, size, {}};
  const auto task = [](void* pointer, int64_t i) {
    auto& self = *static_cast<Context*>(pointer);
    const int64_t begin = i * self.size, end = begin + self.size;
    self.partial[i] = self.chunk(begin, end < self.count ? end : self.count);
  };
  if (chunks == 1) {
    task(&context, 0);
  } else {
    execution.parallel.run(chunks, task, &context);
  }
  double sum = 0.0;
  for (int64_t i = 0; i < chunks; ++i) sum += context.partial[i];
  return sum;
}

template <class T>
inline void store_total(const LossOutput& output, const Scale& scale, double sum) {
  if (output.total) *static_cast<T*>(output.total) = T(sum * resolve(scale));
}

}  // namespace fastloss::FASTLOSS_TARGET
