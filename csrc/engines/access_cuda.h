// SPDX-License-Identifier: MIT
// How CUDA engines see tensors of any dtype and stride: a few consecutive elements a thread as
// float or double in registers. The dtype is the same for all threads, so a switch over it costs no
// divergence.
#pragma once
#include "core/access.h"
#include "core/cuda.h"
#include "core/half.h"
#include "core/layout.h"
#include "core/types.h"

namespace fastloss::FASTLOSS_TARGET {

// Blocks per multiprocessor that kernels are compiled for. Said to the compiler, which otherwise
// spills a register or two for the sake of one block more.
constexpr int kResidentBlocks = 4;

// How many consecutive elements a thread takes at a time where the layout permits: 16 bytes of
// float32. Doubles go one by one, which wastes nothing: a warp's 32 are whole cache lines.
template <class T>
constexpr int kWide = sizeof(T) == 4 ? 4 : 1;

// Whether so many elements can be aligned together.
template <int kWidth>
constexpr bool makes_packs = kWidth > 1 && (kWidth & (kWidth - 1)) == 0;

constexpr std::size_t pack_alignment(std::size_t item, int width) {
  return item * static_cast<std::size_t>(width) < 16 ? item * static_cast<std::size_t>(width) : 16;
}

// Consecutive elements that are read and written at once (in pieces of 16 bytes where they are
// more).
template <class Item, int kWidth>
struct alignas(pack_alignment(sizeof(Item), kWidth)) Pack {
  Item item[kWidth];
};

// --- on the host: may a kernel use packs? ---

constexpr bool is_floating(DType dtype) {
  return dtype == DType::kFloat16 || dtype == DType::kBFloat16 || dtype == DType::kFloat32 ||
         dtype == DType::kFloat64;
}

inline bool is_pack_aligned(const void* data, DType dtype, int width) {
  const std::size_t alignment = pack_alignment(static_cast<std::size_t>(item_size(dtype)), width);
  return reinterpret_cast<std::uintptr_t>(data) % alignment == 0;
}

// Whether a kernel may take `width` consecutive positions at a time: dimension 0 divides into
// packs, and each pack is aligned in the operand's memory or, in an expanded operand, all the same
// element.
inline bool is_packed(const Layout& layout, int operand, const void* data, DType dtype, int width) {
  if (layout.dims == 0 || layout.size[0] % width != 0) return false;
  if (data == nullptr) return true;
  if (!is_floating(dtype)) return false;  // rare: not worth a case in every pack
  if (layout.stride[operand][0] == 0) return true;
  if (layout.stride[operand][0] != 1 || !is_pack_aligned(data, dtype, width)) return false;
  for (int d = 1; d < layout.dims; ++d) {
    if (layout.stride[operand][d] % width != 0) return false;
  }
  return true;
}

// The same of rows of features, which are no dimension of the layout.
inline bool are_rows_packed(const Layout& layout, int operand, const void* data, DType dtype,
                            int64_t feature_stride, int64_t features, int width) {
  if (data == nullptr) return true;
  if (features % width != 0 || feature_stride != 1 || !is_pack_aligned(data, dtype, width))
    return false;
  for (int d = 0; d < layout.dims; ++d) {
    if (layout.stride[operand][d] % width != 0) return false;
  }
  return true;
}

// Whether every row of all groups of rows divides into aligned packs, and every gradient. `rows`
// are those of the arguments; the operands of their layout are the rows, then the gradients.
template <class Arguments, int kRows>
bool are_row_groups_packed(const Arguments& arguments, const Input (&rows)[kRows], int width) {
  const auto packed = [&](int operand, const auto& tensor, int64_t stride) {
    return are_rows_packed(arguments.layout, operand, tensor.data, tensor.dtype, stride,
                           arguments.features, width);
  };
  for (int k = 0; k < kRows; ++k) {
    if (!packed(k, rows[k], arguments.feature_stride[k]) ||
        !packed(kRows + k, arguments.gradients[k], 1))
      return false;
  }
  return true;
}

// --- on the device ---

// The element of each operand at a position in walking order.
template <int kOperands>
FASTLOSS_DEVICE_INLINE void locate(const Layout& layout, int64_t position,
                                   int64_t (&offsets)[kOperands]) {
  for (int k = 0; k < kOperands; ++k) offsets[k] = 0;
  int64_t rest = position;
  for (int d = 0; d < layout.dims; ++d) {
    int64_t index = rest;
    if (d + 1 < layout.dims) {
      const int64_t size = layout.size[d];
      // A division of 64 bits costs several of 32.
      rest = layout.numel <= INT32_MAX
                 ? static_cast<int64_t>(static_cast<uint32_t>(rest) / static_cast<uint32_t>(size))
                 : rest / size;
      index -= rest * size;
    }
    for (int k = 0; k < kOperands; ++k) offsets[k] += index * layout.stride[k][d];
  }
}

template <class T, class Item>
FASTLOSS_DEVICE_INLINE T to_number(Item item) {
  if constexpr (requires { item.bits; }) {
    return T(to_float(item));
  } else {
    return T(item);
  }
}

template <class Item, class T>
FASTLOSS_DEVICE_INLINE Item to_item(T number) {
  if constexpr (requires(Item item) { item.bits; }) {
    return from_float<Item>(float(number));
  } else {
    return Item(number);
  }
}

// The kWidth elements of an operand a thread works on: an aligned pack, or elements `stride` apart.
struct Span {
  int64_t offset;
  int64_t stride;
  bool is_pack;
};

template <int kWidth, class T, class Item>
FASTLOSS_DEVICE_INLINE void load_items(T (&out)[kWidth], const Item* in, const Span& span) {
  if constexpr (makes_packs<kWidth>) {
    if (span.is_pack) {
      const auto pack = *reinterpret_cast<const Pack<Item, kWidth>*>(in + span.offset);
      for (int i = 0; i < kWidth; ++i) out[i] = to_number<T>(pack.item[i]);
      return;
    }
  }
  for (int i = 0; i < kWidth; ++i) out[i] = to_number<T>(in[span.offset + i * span.stride]);
}

template <int kWidth, class T, class Item>
FASTLOSS_DEVICE_INLINE void store_items(Item* out, const T (&in)[kWidth], const Span& span) {
  if constexpr (makes_packs<kWidth>) {
    if (span.is_pack) {
      Pack<Item, kWidth> pack;
      for (int i = 0; i < kWidth; ++i) pack.item[i] = to_item<Item>(in[i]);
      *reinterpret_cast<Pack<Item, kWidth>*>(out + span.offset) = pack;
      return;
    }
  }
  for (int i = 0; i < kWidth; ++i) out[span.offset + i * span.stride] = to_item<Item>(in[i]);
}

// Several elements are of a floating-point type; one may be an integer too.
template <int kWidth, class T>
FASTLOSS_DEVICE_INLINE void load(T (&out)[kWidth], const Input& in, const Span& span) {
  switch (in.dtype) {
    case DType::kFloat16:
      return load_items(out, static_cast<const Half*>(in.data), span);
    case DType::kBFloat16:
      return load_items(out, static_cast<const BFloat16*>(in.data), span);
    case DType::kFloat64:
      return load_items(out, static_cast<const double*>(in.data), span);
    case DType::kFloat32:
      return load_items(out, static_cast<const float*>(in.data), span);
    default:
      if constexpr (kWidth == 1) out[0] = T(load_integer(in, span.offset));
  }
}

template <int kWidth, class T>
FASTLOSS_DEVICE_INLINE void store(const Output& out, const T (&in)[kWidth], const Span& span) {
  switch (out.dtype) {
    case DType::kFloat16:
      return store_items(static_cast<Half*>(out.data), in, span);
    case DType::kBFloat16:
      return store_items(static_cast<BFloat16*>(out.data), in, span);
    case DType::kFloat64:
      return store_items(static_cast<double*>(out.data), in, span);
    default:
      return store_items(static_cast<float*>(out.data), in, span);
  }
}

}  // namespace fastloss::FASTLOSS_TARGET
