// SPDX-License-Identifier: MIT
// A list as a block of CUDA threads sees it: the items that count, in order, in the block's memory.
//
// Who is ahead of an item is counted, not sorted: every thread looks at all items anyway.
#pragma once
#include "engines/access_cuda.h"
#include "engines/pairs.h"
#include "losses/ranking.h"

namespace fastloss::FASTLOSS_TARGET {
namespace {

constexpr int kListThreads = 256;
// Blocks per multiprocessor that the kernels are compiled for: with more they would spill.
constexpr int kResidentLists = 2;

// The sum over the block, in every thread.
FASTLOSS_DEVICE_INLINE double block_total(double value) {
  __shared__ double total;
  value = block_sum<kListThreads>(value);
  if (threadIdx.x == 0) total = value;
  __syncthreads();
  const double result = total;
  __syncthreads();  // the next call overwrites it
  return result;
}

// Calls visit(i) for every i below `count`, shared out over the block's threads, and waits for all.
template <class Visit>
FASTLOSS_DEVICE_INLINE void for_each_item(int count, const Visit& visit) {
  for (int i = static_cast<int>(threadIdx.x); i < count; i += kListThreads) visit(i);
  __syncthreads();
}

template <class T>
struct BlockList {
  int size = 0;  // of the items that count
  T* score;
  T* relevance;
  T* gain;
  T* discount;  // of the places: 1 / log2(1 + place)
  T* spacing;   // by how much the discounts of the places d and d + 1 differ
  int* index;   // where an item stands in the row

  static constexpr int64_t bytes(int64_t length) {
    return (length * int64_t{5 * sizeof(T) + sizeof(int)} + 15) / 16 * 16;
  }

  FASTLOSS_DEVICE_INLINE BlockList(void* memory, int64_t length)
      : score(static_cast<T*>(memory)),
        relevance(score + length),
        gain(relevance + length),
        discount(gain + length),
        spacing(discount + length),
        index(reinterpret_cast<int*>(spacing + length)) {}

  // The items that count, the highest score (or relevance) first, equal ones in their order. False:
  // one of them is NaN, and nothing is there but the size and the index.
  FASTLOSS_DEVICE_INLINE bool load_ordered(const PairsArguments& arguments, int64_t list,
                                           bool by_relevance) {
    const int length = static_cast<int>(arguments.length);
    // As they stand in the row, until they are in order. What does not count has no relevance: NaN.
    T *row_score = discount, *row_relevance = spacing;
    double counted = 0.0, broken = 0.0;
    for_each_item(length, [&](int i) {
      const auto offset_in = [&](const ListInput& input) {
        return list * input.list_stride + i * input.item_stride;
      };
      const auto number = [&](const ListInput& input) {
        T value[1];
        load(value, input.input, Span{offset_in(input), 1, false});
        return value[0];
      };
      const bool counts = arguments.counts.input.data == nullptr ||
                          load_integer(arguments.counts.input, offset_in(arguments.counts)) != 0;
      index[i] = counts ? 1 : 0;
      row_score[i] = counts ? number(arguments.scores) : T(0);
      row_relevance[i] = counts ? number(arguments.relevance) : T(NAN);
      if (counts) {
        counted += 1.0;
        if (is_nan(row_score[i]) || is_nan(row_relevance[i])) broken += 1.0;
      } else if (arguments.gradient) {
        static_cast<T*>(arguments.gradient)[list * length + i] = T(0);
      }
    });
    size = static_cast<int>(block_total(counted));
    if (block_total(broken) > 0.0) {
      for_each_item(length, [&](int i) {
        if (index[i] != 0 && arguments.gradient)
          static_cast<T*>(arguments.gradient)[list * length + i] = T(NAN);
      });
      return false;
    }
    const T* key = by_relevance ? row_relevance : row_score;
    for_each_item(length, [&](int i) {
      if (is_nan(row_relevance[i])) return;
      const T own = key[i];
      int place = 0;
      for (int j = 0; j < length; ++j) {
        const bool is_ahead = key[j] > own || (key[j] == own && j < i);
        place += is_ahead && !is_nan(row_relevance[j]) ? 1 : 0;
      }
      score[place] = row_score[i];
      relevance[place] = row_relevance[i];
      index[place] = i;
    });
    for_each_item(size, [&](int i) {
      const double here = 1.0 / log2(double(i + 2));
      discount[i] = T(here);
      spacing[i] = i > 0 ? T(1.0 / log2(double(i + 1)) - here) : T(0);
    });
    return true;
  }

  // Every item's gain over the best DCG of the first k. False: nothing is relevant.
  FASTLOSS_DEVICE_INLINE bool find_gains(int k) {
    T largest(0);
    for (int i = 0; i < size; ++i) largest = max(largest, relevance[i]);
    const double above = double(largest) - kLargestUnscaledRelevance;
    const double shift = above > 0.0 ? above : 0.0;
    double best = 0.0;
    for_each_item(size, [&](int i) {
      const T own = relevance[i];
      int place = 0;
      for (int j = 0; j < size; ++j)
        place += relevance[j] > own || (relevance[j] == own && j < i) ? 1 : 0;
      if (place < k) best += ranking::gain(double(own), shift) / log2(double(place + 2));
    });
    best = block_total(best);
    const double inverse = best == 0.0 ? 0.0 : 1.0 / best;
    for_each_item(
        size, [&](int i) { gain[i] = T(ranking::gain(double(relevance[i]), shift) * inverse); });
    return best != 0.0;
  }
};

// What a list adds to the sums: in every thread its own share.
struct ListSum {
  double loss = 0.0;
  double counted = 0.0;
};

// Where the slope of an item's score goes.
template <class T>
struct SlopeOutput {
  T* row;
  const int* index;
  FASTLOSS_DEVICE_INLINE void store(int item, T slope) const { row[index[item]] = slope; }
};

}  // namespace
}  // namespace fastloss::FASTLOSS_TARGET
