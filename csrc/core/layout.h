// SPDX-License-Identifier: MIT
// How several tensors of one shape are walked together, whatever their strides: chunk views,
// channels_last, expanded.
#pragma once
#include <cstdint>

namespace fastloss {

constexpr int kMaxDims = 8;
constexpr int kMaxOperands = 9;

// Dimension 0 is the fastest. Strides are in elements; an absent or expanded operand has stride 0.
struct Layout {
  int dims = 0;
  int operands = 0;
  int64_t numel = 1;
  int64_t size[kMaxDims] = {};
  int64_t stride[kMaxOperands][kMaxDims] = {};

  // Whether an operand's elements lie `step` apart all along the walk, however many dimensions the
  // others need.
  bool is_even(int operand, int64_t step) const {
    int64_t expected = step;
    for (int d = 0; d < dims; ++d) {
      if (stride[operand][d] != expected) return false;
      expected *= size[d];
    }
    return true;
  }
};

// Builds a layout: drops dimensions of size 1, orders the rest from the smallest stride of operand
// 0 to the largest (unless `keep_order`: then the last dimension stays the fastest) and merges
// neighbours that every operand allows to merge. `strides[k]` is null for an absent operand. False
// where more than kMaxDims dimensions remain.
inline bool make_layout(Layout& layout, int rank, const int64_t* sizes, int operands,
                        const int64_t* const* strides, bool keep_order) {
  layout = Layout{};
  layout.operands = operands;
  for (int d = 0; d < rank; ++d) layout.numel *= sizes[d];
  if (layout.numel == 0) return true;

  constexpr int kMaxRank = 64;  // torch's own limit
  int order[kMaxRank];
  int kept = 0;
  for (int d = rank - 1; d >= 0; --d) {
    if (sizes[d] != 1) order[kept++] = d;
  }
  if (!keep_order) {  // insertion sort: stable, and kept is a handful
    for (int i = 1; i < kept; ++i) {
      const int d = order[i];
      int j = i;
      for (; j > 0 && strides[0][order[j - 1]] > strides[0][d] && strides[0][d] != 0; --j)
        order[j] = order[j - 1];
      order[j] = d;
    }
  }
  for (int i = 0; i < kept; ++i) {
    const int d = order[i];
    const int last = layout.dims - 1;
    bool merges = last >= 0;
    for (int k = 0; k < operands && merges; ++k) {
      const int64_t stride = strides[k] ? strides[k][d] : 0;
      merges = stride == layout.stride[k][last] * layout.size[last];
    }
    if (merges) {
      layout.size[last] *= sizes[d];
      continue;
    }
    if (layout.dims == kMaxDims) return false;
    layout.size[layout.dims] = sizes[d];
    for (int k = 0; k < operands; ++k)
      layout.stride[k][layout.dims] = strides[k] ? strides[k][d] : 0;
    ++layout.dims;
  }
  return true;
}

}  // namespace fastloss
