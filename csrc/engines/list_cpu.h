// SPDX-License-Identifier: MIT
// A list as CPU kernels see it: the items that count, in a row or in order, with room for a vector
// more at the end of every array.
#pragma once
#include <algorithm>

#include "core/vec.h"
#include "engines/arena.h"
#include "engines/pairs.h"
#include "engines/staging.h"
#include "losses/ranking.h"

namespace fastloss::FASTLOSS_TARGET {
namespace {

// What a list adds to the sums.
struct ListSum {
  double loss = 0.0;
  double counted = 0.0;
};

// What depends on places alone.
template <class T>
struct Places {
  T* discount;            // 1 / log2(1 + place), of the first place first
  T* spacing;             // by how much the discounts of the places d and d + 1 differ
  double* wide_discount;  // as `discount`

  explicit Places(int64_t length)
      : arena_(2 * Arena::size_of<T>(length + kRoom) + Arena::size_of<double>(length)) {
    discount = arena_.take<T>(length + kRoom);
    spacing = arena_.take<T>(length + kRoom);
    wide_discount = arena_.take<double>(length);
    for (int64_t i = 0; i < length + kRoom; ++i) discount[i] = spacing[i] = T(0);
    for (int64_t i = 0; i < length; ++i) {
      wide_discount[i] = 1.0 / __builtin_log2(double(i + 2));
      discount[i] = T(wide_discount[i]);
      if (i > 0) spacing[i] = T(wide_discount[i - 1] - wide_discount[i]);
    }
  }

 private:
  static constexpr int64_t kRoom = Vec<T>::kLanes + 1;
  Arena arena_;
};

// How many items a list of this size is cut to.
inline int64_t cut_of(const PairsArguments& arguments, int64_t size) {
  const double k = arguments.parameters[0];
  return k < double(size) ? static_cast<int64_t>(k) : size;  // NaN: to none
}

// A number and where it comes from, for sorting in a total order: the largest number first, equal
// ones in their order.
template <class T>
struct Entry {
  T number;
  int32_t index;
  friend bool operator<(const Entry& a, const Entry& b) {
    return a.number > b.number || (a.number == b.number && a.index < b.index);
  }
};

// Up to so many items counting who is ahead of each, a vector at a time, beats sorting.
constexpr int64_t kMostCounted = 1024;

template <class T>
struct List {
  int64_t size = 0;  // of the items that count
  T* score;
  T* relevance;
  T* gain;
  T* slope;      // of the loss by the score
  T* work;       // for the pattern's own use, as is
  double* wide;  // this one

  explicit List(int64_t length)
      : arena_(6 * Arena::size_of<T>(length + kRoom) + Arena::size_of<double>(length + kRoom) +
               3 * Arena::size_of<int32_t>(length) +
               Arena::size_of<Entry<T>>(length > kMostCounted ? length : 0)),
        length_(length) {
    // Vectors may go beyond the items that count; what they find there is never used.
    for (T** array : {&score, &relevance, &gain, &slope, &work, &spare_}) {
      *array = arena_.take<T>(length + kRoom);
      for (int64_t i = 0; i < length + kRoom; ++i) (*array)[i] = T(0);
    }
    wide = arena_.take<double>(length + kRoom);
    for (int64_t i = 0; i < length + kRoom; ++i) wide[i] = 1.0;
    index_ = arena_.take<int32_t>(length);
    spare_index_ = arena_.take<int32_t>(length);
    rank_ = arena_.take<int32_t>(length);
    entries_ = arena_.take<Entry<T>>(length > kMostCounted ? length : 0);
  }

  // The items of a list that count, in the order of the row. False: one of them is NaN.
  bool load(const PairsArguments& arguments, int64_t list) {
    const auto read = [&](const ListInput& from, T* to) {
      load_strided(to, 1, from.input, list * from.list_stride, from.item_stride, length_);
    };
    read(arguments.scores, score);
    read(arguments.relevance, relevance);
    if (arguments.counts.input) read(arguments.counts, work);
    size = 0;
    bool is_number = true;
    for (int64_t i = 0; i < length_; ++i) {
      if (arguments.counts.input && work[i] == T(0)) continue;
      score[size] = score[i];
      relevance[size] = relevance[i];
      index_[size] = static_cast<int32_t>(i);
      slope[size++] = T(0);
      is_number &= !is_nan(score[i]) & !is_nan(relevance[i]);
    }
    return is_number;
  }

  void order_by_score() { order_by(score); }
  void order_by_relevance() { order_by(relevance); }

  // Every item's gain over the best DCG of the first k. False: nothing is relevant.
  bool find_gains(const Places<T>& places, int64_t k) {
    using V = Vec<double>;
    T largest(0);
    for (int64_t i = 0; i < size; ++i) largest = max(largest, relevance[i]);
    const double above = double(largest) - kLargestUnscaledRelevance;
    const V shift(above > 0.0 ? above : 0.0);
    for (int64_t i = 0; i < size; i += V::kLanes) {
      double numbers[V::kLanes];
      for (int64_t lane = 0; lane < V::kLanes; ++lane) numbers[lane] = double(relevance[i + lane]);
      ranking::gain(V::load(numbers), shift).store(wide + i);
    }
    rank(relevance);
    double best = 0.0;
    for (int64_t i = 0; i < size; ++i) {
      if (rank_[i] < k) best += wide[i] * places.wide_discount[rank_[i]];
    }
    const double inverse = best == 0.0 ? 0.0 : 1.0 / best;
    for (int64_t i = 0; i < size; ++i) gain[i] = T(wide[i] * inverse);
    return best != 0.0;
  }

  // The slopes to where the items stand in the row, 0 to what does not count.
  void store_slopes(T* row) const {
    for (int64_t i = 0; size < length_ && i < length_; ++i) row[i] = T(0);
    for (int64_t i = 0; i < size; ++i) row[index_[i]] = slope[i];
  }

 private:
  static constexpr int64_t kRoom = Vec<T>::kLanes + 1;

  // The place of each item in the order of `numbers`, the largest first, equal ones in their order.
  void rank(T* numbers) {
    if (size > kMostCounted) {
      for (int64_t i = 0; i < size; ++i) entries_[i] = {numbers[i], static_cast<int32_t>(i)};
      std::sort(entries_, entries_ + size);
      for (int64_t i = 0; i < size; ++i) rank_[entries_[i].index] = static_cast<int32_t>(i);
      return;
    }
    using V = Vec<T>;
    const V lane = lane_numbers<T>();
    for (int64_t i = size; i < size + V::kLanes; ++i) numbers[i] = -lanes::kInfinity<T>;
    for (int64_t i = 0; i < size; ++i) {
      const V number(numbers[i]);
      const int64_t own = i / V::kLanes * V::kLanes;  // the vector that the item is in
      V ahead(0);
      for (int64_t j = 0; j < own; j += V::kLanes)
        ahead += select(V::load(numbers + j) >= number, V(1), V(0));
      const V near = V::load(numbers + own);
      const auto is_ahead = (near > number) | ((near == number) & (lane < V(T(i - own))));
      ahead += select(is_ahead, V(1), V(0));
      for (int64_t j = own + V::kLanes; j < size; j += V::kLanes)
        ahead += select(V::load(numbers + j) > number, V(1), V(0));
      rank_[i] = static_cast<int32_t>(ahead.sum());
    }
  }

  void order_by(T* numbers) {
    rank(numbers);
    const auto rearrange = [&](auto*& array, auto*& spare) {
      for (int64_t i = 0; i < size; ++i) spare[rank_[i]] = array[i];
      auto* const before = array;
      array = spare;
      spare = before;
    };
    rearrange(score, spare_);
    rearrange(relevance, spare_);
    rearrange(index_, spare_index_);
  }

  Arena arena_;
  const int64_t length_;
  T* spare_;
  int32_t* index_;  // where an item stands in the row
  int32_t* spare_index_;
  int32_t* rank_;
  Entry<T>* entries_;
};

}  // namespace
}  // namespace fastloss::FASTLOSS_TARGET
