// SPDX-License-Identifier: MIT
// Sorting by a doubly stochastic matrix: NeuralSort's matrix, scaled by Sinkhorn's rounds, and
// back.
//
// Scaling rows and columns in turn leaves the matrix as it is between two vectors: what sorts is
// diag(u) P diag(v). So a round is one sweep over P that takes the dot product of each row with v,
// which gives u, and adds the row times u to the sums of the columns, which give the next v.
// Backward runs the rounds in reverse, by the same sweep.
//
// In the order of the scores P is a band: row i has its largest number at column i, and falls off
// so quickly that the exponentials soon are exactly 0. P of a list that fits stays in the cache;
// else its rows are computed anew in each sweep. They are taken a few at a time, which wait for
// one another's sums less.
#pragma once
#include "engines/list_cpu.h"

namespace fastloss::FASTLOSS_TARGET {
namespace {

// The most that P may take: about what a core has of its second cache.
constexpr int64_t kSortingMatrixBytes = int64_t{1} << 20;

// Rows that are worked on together.
constexpr int64_t kSortingRows = 4;

// P of a list in the order of its scores.
template <class T>
class SortingMatrix {
  using V = Vec<T>;

 public:
  SortingMatrix(const List<T>& list, double inverse_temperature)
      : size_(list.size),
        groups_((list.size + kSortingRows - 1) / kSortingRows),
        stride_((list.size + V::kLanes - 1) / V::kLanes * V::kLanes),
        is_kept_(groups_ * kSortingRows * stride_ * int64_t{sizeof(T)} <= kSortingMatrixBytes),
        arena_(2 * Arena::size_of<double>(stride_) + 2 * Arena::size_of<int32_t>(groups_) +
               Arena::size_of<T>(groups_ * kSortingRows) +
               Arena::size_of<T>((is_kept_ ? groups_ : 1) * kSortingRows * stride_)),
        inverse_temperature_(inverse_temperature) {
    score_ = arena_.take<double>(stride_);
    spread_ = arena_.take<double>(stride_);
    begin_ = arena_.take<int32_t>(groups_);
    end_ = arena_.take<int32_t>(groups_);
    factor_ = arena_.take<T>(groups_ * kSortingRows);
    rows_ = arena_.take<T>((is_kept_ ? groups_ : 1) * kSortingRows * stride_);
    double spread = 0.0;
    for (int64_t i = 0; i < stride_; ++i) {
      score_[i] = double(list.score[i < size_ ? i : size_ - 1]);
      if (i > 0) spread += (score_[i - 1] - score_[i]) * double(2 * i - 1);
      spread_[i] = spread;
    }
    for (int64_t group = 0; group < groups_; ++group) {
      const int64_t first = group * kSortingRows;
      const int64_t last = first + kSortingRows < size_ ? first + kSortingRows - 1 : size_ - 1;
      begin_[group] = static_cast<int32_t>(find_begin(first) / V::kLanes * V::kLanes);
      end_[group] = static_cast<int32_t>(find_end(last));
      for (int64_t r = 0; r < kSortingRows; ++r) factor_[first + r] = T(first + r < size_ ? 1 : 0);
      T* const rows = memory_of(group);
      fill(group, rows);
      for (int64_t r = 0; first + r < size_; ++r) {
        if (r == kSortingRows) break;
        T* const row = rows + r * stride_;
        V sum(0);
        for (int64_t j = begin_[group]; j < end_[group]; j += V::kLanes) sum += V::load(row + j);
        factor_[first + r] = T(1) / sum.sum();
        for (int64_t j = begin_[group]; is_kept_ && j < end_[group]; j += V::kLanes)
          (V::load(row + j) * factor_[first + r]).store(row + j);
      }
    }
  }

  int64_t size() const { return size_; }
  int64_t groups() const { return groups_; }
  int64_t stride() const { return stride_; }  // from row to row
  // The columns in which the rows of a group are not 0, from the beginning of a vector on.
  int64_t begin(int64_t group) const { return begin_[group]; }
  int64_t end(int64_t group) const { return end_[group]; }

  // The rows of a group from begin to end, and zeros for the rest of the last vector. Rows beyond
  // the size are 0.
  const T* rows(int64_t group) const {
    T* const rows = memory_of(group);
    if (!is_kept_) fill(group, rows);
    return rows;
  }

  // Calls left = step(i, dot product of row i and `right`) for each row and sums left · row in
  // `columns`.
  template <class Step>
  void sweep(const T* right, T* columns, const Step& step) const {
    for (int64_t j = 0; j < stride_; j += V::kLanes) V(0).store(columns + j);
    for (int64_t group = 0; group < groups_; ++group) {
      const T* const row = rows(group);
      const int64_t begin = begin_[group], end = end_[group];
      V dot[kSortingRows], left[kSortingRows];
      for (int64_t r = 0; r < kSortingRows; ++r) dot[r] = V(0);
      for (int64_t j = begin; j < end; j += V::kLanes) {
        const V factor = V::load(right + j);
        for (int64_t r = 0; r < kSortingRows; ++r)
          dot[r] += V::load(row + r * stride_ + j) * factor;
      }
      for (int64_t r = 0; r < kSortingRows; ++r) {
        const int64_t i = group * kSortingRows + r;
        left[r] = V(i < size_ ? step(i, dot[r].sum()) : T(0));
      }
      for (int64_t j = begin; j < end; j += V::kLanes) {
        V sum = V::load(columns + j);
        for (int64_t r = 0; r < kSortingRows; ++r) sum += V::load(row + r * stride_ + j) * left[r];
        sum.store(columns + j);
      }
    }
  }

 private:
  T* memory_of(int64_t group) const {
    return rows_ + (is_kept_ ? group : 0) * kSortingRows * stride_;
  }

  // The logarithm of number j of row i, up to the row's own constant, 0 at its largest. NeuralSort
  // has ((n − 1 − 2i) s_j − Σ_k |s_j − s_k|) / temperature. For sorted scores the distance to
  // column i is a sum of the gaps between, (2 |j − i| ± 1)-fold, here a difference of sums up to i
  // and j. In double: the sums are far larger than their difference.
  FASTLOSS_INLINE double logarithm(int64_t i, int64_t j) const {
    return ((spread_[i] - spread_[j]) + double(2 * i) * (score_[i] - score_[j])) *
           inverse_temperature_;
  }

  // The exponentials of a row fall off on both sides of column i, until they are 0. Later rows
  // begin and end later.
  bool is_zero(int64_t i, int64_t j) const {
    return logarithm(i, j) < double(Coefficients<T>::kExpLowest);
  }
  int64_t find_begin(int64_t i) const {
    int64_t zero = -1, inside = i;
    while (inside - zero > 1) {
      const int64_t middle = zero + (inside - zero) / 2;
      (is_zero(i, middle) ? zero : inside) = middle;
    }
    return inside;
  }
  int64_t find_end(int64_t i) const {
    int64_t inside = i, zero = size_;
    while (zero - inside > 1) {
      const int64_t middle = inside + (zero - inside) / 2;
      (is_zero(i, middle) ? zero : inside) = middle;
    }
    return zero;
  }

  void fill(int64_t group, T* rows) const {
    const V lane = lane_numbers<T>();
    for (int64_t r = 0; r < kSortingRows; ++r) {
      const int64_t i = group * kSortingRows + r;
      for (int64_t j = begin_[group]; j < end_[group]; j += V::kLanes) {
        T logarithms[V::kLanes];
        for (int64_t k = 0; k < V::kLanes; ++k)
          logarithms[k] = i < size_ ? T(logarithm(i, j + k)) : T(0);
        const V number = exp(V::load(logarithms)) * V(factor_[i]);
        select(lane < V(T(size_ - j)), number, V(0)).store(rows + r * stride_ + j);
      }
    }
  }

  const int64_t size_, groups_, stride_;
  const bool is_kept_;
  Arena arena_;
  const double inverse_temperature_;
  double* score_;
  double* spread_;
  int32_t* begin_;
  int32_t* end_;
  T* factor_;  // one over the sum of a row's exponentials
  T* rows_;
};

// The vectors of every round: u and v, and what backward finds for them.
template <class T>
class Rounds {
 public:
  Rounds(int64_t stride, int64_t rounds, bool with_slopes)
      : stride_(stride), arena_(Arena::size_of<T>(((with_slopes ? 4 : 2) * rounds + 2) * stride)) {
    T* const memory = arena_.take<T>(((with_slopes ? 4 : 2) * rounds + 2) * stride);
    for (int64_t i = 0; i < ((with_slopes ? 4 : 2) * rounds + 2) * stride; ++i) memory[i] = T(0);
    left = memory;
    right = left + rounds * stride;
    columns = right + rounds * stride;
    weighted = columns + stride;
    left_slope = weighted + stride;
    right_slope = left_slope + rounds * stride;
  }
  T* at(T* vectors, int64_t round) const { return vectors + round * stride_; }

  T *left, *right;              // [rounds, stride] u and v
  T *left_slope, *right_slope;  // [rounds, stride] by the sums of rows and columns
  T *columns, *weighted;        // [stride]

 private:
  const int64_t stride_;
  Arena arena_;
};

template <class Formula>
struct SoftSort {
  template <class T, bool kGradient>
  static ListSum run(const PairsArguments& arguments, const Places<T>& places, List<T>& list,
                     const T* /*parameter*/) {
    using V = Vec<T>;
    list.order_by_score();
    if (!list.find_gains(places, list.size)) return {};
    for (int64_t i = list.size; i < list.size + V::kLanes; ++i) list.gain[i] = T(0);
    const SortingMatrix<T> matrix(list, 1.0 / arguments.parameters[0]);
    const int64_t size = matrix.size(), stride = matrix.stride();
    const Rounds<T> rounds(stride, kGradient ? Formula::kRounds : 1, kGradient);

    matrix.sweep(rounds.right, rounds.columns, [](int64_t, T) { return T(1); });
    int64_t last = 0;
    for (int64_t round = 0; round < Formula::kRounds; ++round) {
      last = kGradient ? round : 0;
      T *u = rounds.at(rounds.left, last), *v = rounds.at(rounds.right, last);
      for (int64_t j = 0; j < size; ++j) v[j] = T(1) / rounds.columns[j];
      matrix.sweep(v, rounds.columns, [&](int64_t i, T dot) { return u[i] = T(1) / dot; });
      T off(0);
      for (int64_t j = 0; j < size; ++j) off = max(off, abs(v[j] * rounds.columns[j] - T(1)));
      if (off < T(Formula::kTolerance)) break;
    }

    const T *u = rounds.at(rounds.left, last), *v = rounds.at(rounds.right, last);
    for (int64_t j = 0; j < size; ++j) rounds.weighted[j] = v[j] * list.gain[j];
    double found = 0.0;
    T* const sorted_gain = list.work;  // before its factor u
    matrix.sweep(rounds.weighted, rounds.columns, [&](int64_t i, T dot) {
      const T factor = places.discount[i] * u[i];
      found += double(factor) * double(dot);
      sorted_gain[i] = dot;
      return factor;
    });
    if constexpr (kGradient) {
      find_round_slopes(matrix, rounds, last, list, places);
      add_slopes(matrix, rounds, last, list, places, T(1.0 / arguments.parameters[0]));
    }
    return {1.0 - found, 1.0};
  }

 private:
  // The slopes of −Σ_i discount_i u_i Σ_j P_ij v_j gain_j by the row and column sums of each round,
  // the last one first. On entry `columns` holds Σ_i discount_i u_i P_ij.
  template <class T>
  static void find_round_slopes(const SortingMatrix<T>& matrix, const Rounds<T>& rounds,
                                int64_t last, const List<T>& list, const Places<T>& places) {
    const int64_t size = matrix.size();
    T* const from_gains = rounds.weighted;  // what only the last v gets: from what is sorted
    for (int64_t j = 0; j < size; ++j) from_gains[j] = -list.gain[j] * rounds.columns[j];
    for (int64_t round = last; round >= 0; --round) {
      const T *u = rounds.at(rounds.left, round), *v = rounds.at(rounds.right, round);
      T* row_slope = rounds.at(rounds.left_slope, round);
      // Of round + 1; at the end the rows' dot products are those of the gains.
      const T* later = rounds.at(rounds.right_slope, round == last ? last : round + 1);
      matrix.sweep(later, rounds.columns, [&](int64_t i, T dot) {
        const T u_slope = round == last ? -places.discount[i] * list.work[i] : dot;
        return row_slope[i] = -u_slope * u[i] * u[i];
      });
      T* column_slope = rounds.at(rounds.right_slope, round);
      for (int64_t j = 0; j < size; ++j) {
        const T v_slope = rounds.columns[j] + (round == last ? from_gains[j] : T(0));
        column_slope[j] = -v_slope * v[j] * v[j];
      }
    }
  }

  // P's slopes are sums of products of the vectors, one number at a time; from there through the
  // softmax of each row to the scores.
  template <class T>
  static void add_slopes(const SortingMatrix<T>& matrix, const Rounds<T>& rounds, int64_t last,
                         const List<T>& list, const Places<T>& places, T inverse_temperature) {
    using V = Vec<T>;
    const int64_t size = matrix.size(), stride = matrix.stride();
    Arena arena((3 + kSortingRows) * Arena::size_of<T>(stride));
    T *number_slope = arena.take<T>(kSortingRows * stride), *middle = arena.take<T>(stride),
      *column = arena.take<T>(stride), *leaning = arena.take<T>(stride);
    for (int64_t j = 0; j < stride; ++j) middle[j] = column[j] = leaning[j] = T(0);
    for (int64_t begin = 0, end; begin < size; begin = end) {  // equal scores share a place
      for (end = begin + 1; end < size && list.score[end] == list.score[begin];) ++end;
      for (int64_t j = begin; j < end; ++j) middle[j] = T(0.5) * T(begin + end - 1);
    }
    for (int64_t j = 0; j < size; ++j)
      rounds.weighted[j] = list.gain[j] * rounds.at(rounds.right, last)[j];
    // What the rows of a group have in each round, row slopes first.
    T of_round[Formula::kRounds][2][kSortingRows];
    for (int64_t group = 0; group < matrix.groups(); ++group) {
      const int64_t first = group * kSortingRows;
      const T* const row = matrix.rows(group);
      V of_gain[kSortingRows], mean[kSortingRows];
      for (int64_t r = 0; r < kSortingRows; ++r) {
        const int64_t i = first + r < size ? first + r : size - 1;
        for (int64_t round = 0; round <= last; ++round) {
          of_round[round][0][r] = rounds.at(rounds.left_slope, round)[i];
          of_round[round][1][r] = round == 0 ? T(1) : rounds.at(rounds.left, round - 1)[i];
        }
        of_gain[r] = V(-places.discount[i] * rounds.at(rounds.left, last)[i]);
        mean[r] = V(0);
      }
      for (int64_t j = matrix.begin(group); j < matrix.end(group); j += V::kLanes) {
        V slope[kSortingRows];
        for (int64_t r = 0; r < kSortingRows; ++r)
          slope[r] = of_gain[r] * V::load(rounds.weighted + j);
        for (int64_t round = 0; round <= last; ++round) {
          const V right = V::load(rounds.at(rounds.right, round) + j),
                  right_slope = V::load(rounds.at(rounds.right_slope, round) + j);
          for (int64_t r = 0; r < kSortingRows; ++r) {
            slope[r] += V(of_round[round][0][r]) * right;
            slope[r] += V(of_round[round][1][r]) * right_slope;
          }
        }
        for (int64_t r = 0; r < kSortingRows; ++r) {
          slope[r].store(number_slope + r * stride + j);
          mean[r] += slope[r] * V::load(row + r * stride + j);
        }
      }
      for (int64_t r = 0; r < kSortingRows; ++r) mean[r] = V(mean[r].sum());
      for (int64_t j = matrix.begin(group); j < matrix.end(group); j += V::kLanes) {
        V here = V::load(column + j), leans = V::load(leaning + j);
        for (int64_t r = 0; r < kSortingRows; ++r) {
          const V slope =
              V::load(row + r * stride + j) * (V::load(number_slope + r * stride + j) - mean[r]);
          here += slope;
          leans += (V::load(middle + j) - V(T(first + r))) * slope;
        }
        here.store(column + j);
        leans.store(leaning + j);
      }
    }
    // A score's slope in its own column is (n − 1 − 2i) − Σ_k sign(s_j − s_k), 2 (middle − i) in
    // sorted order. In the columns of the others it is the sign of its distance to them.
    double total = 0.0, above = 0.0;
    for (int64_t j = 0; j < size; ++j) total += double(column[j]);
    for (int64_t begin = 0, end; begin < size; begin = end) {
      double here = 0.0;
      for (end = begin; end < size && list.score[end] == list.score[begin]; ++end)
        here += double(column[end]);
      const double below = total - above - here;
      for (int64_t j = begin; j < end; ++j)
        list.slope[j] = inverse_temperature * (T(2) * leaning[j] + T(above - below));
      above += here;
    }
  }
};

}  // namespace
}  // namespace fastloss::FASTLOSS_TARGET
