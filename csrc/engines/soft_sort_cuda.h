// SPDX-License-Identifier: MIT
// Sorting by a doubly stochastic matrix on a block of threads. See soft_sort_cpu.h for the
// mathematics; here every number of P is computed where it is needed, in row sweeps (a thread per
// row) and column sweeps (a thread per column) that go from the diagonal outwards until the
// exponentials are 0.
#pragma once
#include "engines/list_cuda.h"

namespace fastloss::FASTLOSS_TARGET {
namespace {

// The block's vectors, in the scratch: [length] each.
template <class T>
struct SoftSortMemory {
  double *score, *spread;
  T *factor, *weighted, *mean, *middle;
  // [rounds, length]: u and v, and, for backward, their slopes by the sums of rows and columns.
  T *left, *right, *left_slope, *right_slope;
  int length;

  static constexpr int64_t bytes(int64_t length, int64_t rounds, bool with_slopes) {
    const int64_t vectors = (with_slopes ? 4 * rounds : 2) + 4;
    return (length * (vectors * int64_t{sizeof(T)} + int64_t{2 * sizeof(double)}) + 15) / 16 * 16;
  }

  FASTLOSS_DEVICE_INLINE SoftSortMemory(void* memory, int length, int rounds)
      : score(static_cast<double*>(memory)),
        spread(score + length),
        factor(reinterpret_cast<T*>(spread + length)),
        weighted(factor + length),
        mean(weighted + length),
        middle(mean + length),
        left(middle + length),
        right(left + rounds * length),
        left_slope(right + rounds * length),
        right_slope(left_slope + rounds * length),
        length(length) {}

  FASTLOSS_DEVICE_INLINE T* of_round(T* vectors, int round) const {
    return vectors + round * length;
  }
};

// P, in the order of the scores.
template <class T>
struct BlockSortingMatrix {
  const SoftSortMemory<T>& memory;
  double inverse_temperature;
  int size;

  FASTLOSS_DEVICE_INLINE double logarithm(int i, int j) const {
    return ((memory.spread[i] - memory.spread[j]) +
            double(2 * i) * (memory.score[i] - memory.score[j])) *
           inverse_temperature;
  }

  // Calls visit(j, number) for the numbers of row i that are not 0, or of column i with its rows.
  template <bool kRow, class Visit>
  FASTLOSS_DEVICE_INLINE void walk(int i, const Visit& visit) const {
    constexpr double kLowest = sizeof(T) == 4 ? -105.0 : -746.0;
    const auto number = [&](int j, bool& inside) {
      const double x = kRow ? logarithm(i, j) : logarithm(j, i);
      inside = !(x < kLowest);
      return exp(T(x)) * memory.factor[kRow ? i : j];
    };
    bool inside = true;
    for (int j = i; j >= 0 && inside; --j) {
      const T p = number(j, inside);
      if (inside) visit(j, p);
    }
    inside = true;
    for (int j = i + 1; j < size && inside; ++j) {
      const T p = number(j, inside);
      if (inside) visit(j, p);
    }
  }

  template <bool kRow>
  FASTLOSS_DEVICE_INLINE T dot(int i, const T* vector) const {
    T sum(0);
    walk<kRow>(i, [&](int j, T p) { sum += p * vector[j]; });
    return sum;
  }
};

template <class Formula>
struct SoftSort {
  template <class T, bool kGradient>
  static FASTLOSS_DEVICE_INLINE ListSum run(const PairsArguments& arguments, BlockList<T>& list,
                                            const T* /*parameter*/, const SlopeOutput<T>& slopes,
                                            void* scratch) {
    if (!list.find_gains(list.size)) {
      if constexpr (kGradient) for_each_item(list.size, [&](int i) { slopes.store(i, T(0)); });
      return {};
    }
    const int size = list.size;
    const SoftSortMemory<T> memory(scratch, static_cast<int>(arguments.length),
                                   kGradient ? Formula::kRounds : 1);
    const double inverse_temperature = 1.0 / arguments.parameters[0];
    const BlockSortingMatrix<T> matrix{memory, inverse_temperature, size};
    for_each_item(size, [&](int i) {
      memory.score[i] = double(list.score[i]);
      memory.factor[i] = T(1);
      double spread = 0.0;
      for (int k = 1; k <= i; ++k)
        spread += (double(list.score[k - 1]) - double(list.score[k])) * double(2 * k - 1);
      memory.spread[i] = spread;
      int begin = i, end = i;  // equal scores share a place
      while (begin > 0 && list.score[begin - 1] == list.score[i]) --begin;
      while (end + 1 < size && list.score[end + 1] == list.score[i]) ++end;
      memory.middle[i] = T(0.5) * T(begin + end);
    });
    for_each_item(size, [&](int i) {
      T sum(0);
      matrix.template walk<true>(i, [&](int, T p) { sum += p; });
      memory.mean[i] = T(1) / sum;
    });
    for_each_item(size, [&](int i) { memory.factor[i] = memory.mean[i]; });

    int last = 0;
    for (int round = 0; round < Formula::kRounds; ++round) {
      // The sums of the columns tell how far the round before has come.
      const T *u_before = memory.of_round(memory.left, last),
              *v_before = memory.of_round(memory.right, last);
      double off = 0.0;
      for_each_item(size, [&](int j) {
        T sum(0);
        matrix.template walk<false>(j, [&](int i, T p) { sum += round > 0 ? p * u_before[i] : p; });
        if (round > 0 && !(abs(v_before[j] * sum - T(1)) < T(Formula::kTolerance))) off += 1.0;
        memory.mean[j] = T(1) / sum;
      });
      if (round > 0 && block_total(off) == 0.0) break;
      last = kGradient ? round : 0;
      T *u = memory.of_round(memory.left, last), *v = memory.of_round(memory.right, last);
      for_each_item(size, [&](int j) { v[j] = memory.mean[j]; });
      for_each_item(size, [&](int i) { u[i] = T(1) / matrix.template dot<true>(i, v); });
    }

    const T *u = memory.of_round(memory.left, last), *v = memory.of_round(memory.right, last);
    for_each_item(size, [&](int j) { memory.weighted[j] = v[j] * list.gain[j]; });
    ListSum sum;
    for_each_item(size, [&](int i) {
      const T dot = matrix.template dot<true>(i, memory.weighted);
      sum.loss -= double(list.discount[i] * u[i]) * double(dot);
      memory.mean[i] = -list.discount[i] * dot;  // the slope of u
    });
    if (threadIdx.x == 0) sum = {sum.loss + 1.0, 1.0};
    if constexpr (kGradient) {
      find_round_slopes(matrix, memory, last, list);
      store_slopes(matrix, memory, last, list, slopes, T(inverse_temperature));
    }
    return sum;
  }

 private:
  // On entry memory.mean holds the slopes of the last u.
  template <class T>
  static FASTLOSS_DEVICE_INLINE void find_round_slopes(const BlockSortingMatrix<T>& matrix,
                                                       const SoftSortMemory<T>& memory, int last,
                                                       const BlockList<T>& list) {
    for (int round = last; round >= 0; --round) {
      const T *u = memory.of_round(memory.left, round), *v = memory.of_round(memory.right, round);
      T *row_slope = memory.of_round(memory.left_slope, round),
        *column_slope = memory.of_round(memory.right_slope, round);
      for_each_item(matrix.size, [&](int i) {
        const T u_slope = round == last ? memory.mean[i]
                                        : matrix.template dot<true>(
                                              i, memory.of_round(memory.right_slope, round + 1));
        row_slope[i] = -u_slope * u[i] * u[i];
      });
      for_each_item(matrix.size, [&](int j) {
        T v_slope = matrix.template dot<false>(j, row_slope);
        if (round == last) {
          T sorted(0);
          matrix.template walk<false>(j,
                                      [&](int i, T p) { sorted += p * (list.discount[i] * u[i]); });
          v_slope -= list.gain[j] * sorted;
        }
        column_slope[j] = -v_slope * v[j] * v[j];
      });
    }
  }

  template <class T>
  static FASTLOSS_DEVICE_INLINE void store_slopes(const BlockSortingMatrix<T>& matrix,
                                                  const SoftSortMemory<T>& memory, int last,
                                                  const BlockList<T>& list,
                                                  const SlopeOutput<T>& slopes,
                                                  T inverse_temperature) {
    const T* u = memory.of_round(memory.left, last);
    const auto slope_of_number = [&](int i, int j) {
      T slope = -list.discount[i] * u[i] * memory.weighted[j];
      for (int round = 0; round <= last; ++round) {
        const T left = round == 0 ? T(1) : memory.of_round(memory.left, round - 1)[i];
        slope +=
            memory.of_round(memory.left_slope, round)[i] * memory.of_round(memory.right, round)[j] +
            left * memory.of_round(memory.right_slope, round)[j];
      }
      return slope;
    };
    for_each_item(matrix.size, [&](int i) {
      T mean(0);
      matrix.template walk<true>(i, [&](int j, T p) { mean += p * slope_of_number(i, j); });
      memory.mean[i] = mean;
    });
    // What a column's numbers add up to, in the memory of gains, and how they lean, in that of
    // relevance: neither is needed any more.
    T *column = list.gain, *leaning = list.relevance;
    for_each_item(matrix.size, [&](int j) {
      T sum(0), leans(0);
      matrix.template walk<false>(j, [&](int i, T p) {
        const T slope = p * (slope_of_number(i, j) - memory.mean[i]);
        sum += slope;
        leans += (memory.middle[j] - T(i)) * slope;
      });
      column[j] = sum;
      leaning[j] = leans;
    });
    for_each_item(matrix.size, [&](int j) {
      double above_less_below = 0.0;
      for (int k = 0; k < matrix.size; ++k) {
        if (list.score[k] > list.score[j]) above_less_below += double(column[k]);
        if (list.score[k] < list.score[j]) above_less_below -= double(column[k]);
      }
      slopes.store(j, inverse_temperature * (T(2) * leaning[j] + T(above_less_below)));
    });
  }
};

}  // namespace
}  // namespace fastloss::FASTLOSS_TARGET
