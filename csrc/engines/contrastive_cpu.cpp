// SPDX-License-Identifier: MIT
#include "engines/contrastive.h"

#include "core/access.h"
#include "core/choose.h"
#include "core/vec.h"
#include "engines/arena.h"
#include "engines/kernels.h"
#include "engines/staging.h"

namespace fastloss::FASTLOSS_TARGET {
namespace {

constexpr int64_t kWidth = 256;  // columns that are worked on together

// How far below the largest of them all the others may lie for their softmaxes to share one
// exponential: sums keep their digits, and what makes up for the difference does not overflow.
constexpr double kShared = 40.0;

template <class T>
struct State {
  T* largest;
  T* sums;
  explicit State(const NegativesState& state)
      : largest(static_cast<T*>(state.largest)), sums(static_cast<T*>(state.sums)) {}
};

// Writes the first `count` lanes.
template <class T>
FASTLOSS_INLINE void store_some(const Vec<T>& values, T* target, int64_t count) {
  if (count >= Vec<T>::kLanes) return values.store(target);
  for (int64_t i = 0; i < count; ++i) target[i] = values[static_cast<int>(i)];
}

// Brings two states of the same rows together, in the first one.
template <class T>
void merge(T* largest, T* sums, const T* other_largest, const T* other_sums, int64_t count) {
  using V = Vec<T>;
  for (int64_t i = 0; i < count; i += V::kLanes) {
    const int64_t left = count - i;
    const V a = load_some(largest + i, left), b = load_some(other_largest + i, left);
    const V both = larger(a, b);
    const V sum = load_some(sums + i, left) * exp_nonpositive(a - both) +
                  load_some(other_sums + i, left) * exp_nonpositive(b - both);
    store_some(both, largest + i, left);
    store_some(sum, sums + i, left);
  }
}

// Columns of a tile that one task works on: either all of them count, or none.
struct Columns {
  int64_t begin, count;
  bool counted;

  // Calls visit(row, column of the block) for the rows whose column row + offset is among these.
  template <class Visit>
  FASTLOSS_INLINE void for_each_at(int64_t offset, int64_t rows, const Visit& visit) const {
    const int64_t first = begin - offset, last = first + count;
    for (int64_t row = first < 0 ? 0 : first; row < (last < rows ? last : rows); ++row)
      visit(row, row - first);
  }
};
struct Division {
  int64_t split, columns, before, blocks;
  Division(int64_t split, int64_t columns)
      : split(split),
        columns(columns),
        before((split + kWidth - 1) / kWidth),
        blocks(before + (columns - split + kWidth - 1) / kWidth) {}
  Columns at(int64_t block) const {
    const bool counted = block >= before;
    const int64_t begin = counted ? split + (block - before) * kWidth : block * kWidth;
    const int64_t left = (counted ? columns : split) - begin;
    return {begin, left < kWidth ? left : kWidth, counted};
  }
};

// The states of a tile's rows, by the columns of one block alone, and of the columns.
template <class T>
class BlockStates {
  using V = Vec<T>;

 public:
  BlockStates(const ContrastiveArguments& arguments, Columns columns, T* largest, T* sums)
      : rows_(arguments.rows),
        stride_(arguments.columns),
        columns_(columns),
        scale_(T(resolve(arguments.scale))),
        // So far below that nothing of it remains, also where it is scaled.
        below_(T(kFarBelow) / scale_),
        tile_(static_cast<T*>(arguments.tile) + columns.begin),
        row_largest_(largest),
        row_sums_(sums) {
    const auto leave_out = [&](int64_t row, int64_t k) { tile_[row * stride_ + k] = below_; };
    columns.for_each_at(arguments.itself, rows_, leave_out);
    columns.for_each_at(arguments.positive, rows_, [&](int64_t row, int64_t k) {
      static_cast<T*>(arguments.positives)[row] = tile_[row * stride_ + k] * scale_;
      leave_out(row, k);
    });
    for (int64_t k = 0; k < kWidth; k += V::kLanes) {
      V(T(kFarBelow)).store(column_largest_ + k);
      V(T(0)).store(column_sums_ + k);
    }
    find_largest();
    if (!columns.counted) {
      for_each_row([&](int64_t row, auto similarity) {
        const V largest_of_row(row_largest_[row]);
        V sum(0);
        for (int64_t k = 0; k < columns_.count; k += V::kLanes)
          sum += exp_nonpositive(similarity(k) - largest_of_row);
        return sum.sum();
      });
    } else if (shares_one()) {
      for_each_row([&](int64_t, auto similarity) {
        const V reference(row_largest_[0]);
        V sum(0);
        for (int64_t k = 0; k < columns_.count; k += V::kLanes) {
          const V e = exp_nonpositive(similarity(k) - reference);
          sum += e;
          (V::load(column_sums_ + k) + e).store(column_sums_ + k);
        }
        return sum.sum();
      });
    } else {
      for_each_row([&](int64_t row, auto similarity) {
        const V largest_of_row(row_largest_[row]);
        V sum(0);
        for (int64_t k = 0; k < columns_.count; k += V::kLanes) {
          const V s = similarity(k);
          sum += exp_nonpositive(s - largest_of_row);
          const V e = exp_nonpositive(s - V::load(column_largest_ + k));
          (V::load(column_sums_ + k) + e).store(column_sums_ + k);
        }
        return sum.sum();
      });
    }
  }

  void add_to(const State<T>& of_columns) const {
    merge(of_columns.largest + columns_.begin, of_columns.sums + columns_.begin, column_largest_,
          column_sums_, columns_.count);
  }

 private:
  // Calls visit(row, similarity) with what reads the similarities from a column of the block on;
  // what it returns is the row's sum.
  template <class Visit>
  FASTLOSS_INLINE void for_each_row(const Visit& visit) {
    for (int64_t row = 0; row < rows_; ++row) {
      const T* const products = tile_ + row * stride_;
      row_sums_[row] = visit(row, [&](int64_t k) {
        return load_some(products + k, columns_.count - k, below_) * scale_;
      });
    }
  }

  void find_largest() {
    for_each_row([&](int64_t row, auto similarity) {
      V largest{T(kFarBelow)};
      for (int64_t k = 0; k < columns_.count; k += V::kLanes) {
        const V s = similarity(k);
        largest = larger(s, largest);
        larger(s, V::load(column_largest_ + k)).store(column_largest_ + k);
      }
      row_largest_[row] = largest.largest();
      return T(0);
    });
  }

  // Whether one exponential serves a row's sum and the column's; all states are relative to the
  // same number then.
  bool shares_one() {
    T largest(kFarBelow), smallest(-kFarBelow);
    for (int64_t row = 0; row < rows_; ++row) {
      largest = max(largest, row_largest_[row]);
      smallest = min(smallest, row_largest_[row]);
    }
    for (int64_t k = 0; k < columns_.count; ++k) smallest = min(smallest, column_largest_[k]);
    if (largest - smallest > T(kShared)) return false;
    for (int64_t row = 0; row < rows_; ++row) row_largest_[row] = largest;
    for (int64_t k = 0; k < kWidth; ++k) column_largest_[k] = largest;
    return true;
  }

  const int64_t rows_, stride_;
  const Columns columns_;
  const T scale_, below_;
  T* const tile_;
  T* const row_largest_;  // [rows], by this block
  T* const row_sums_;
  alignas(64) T column_largest_[kWidth];
  alignas(64) T column_sums_[kWidth];
};

template <class T>
void find_states(const ContrastiveArguments& arguments, const Execution& execution) {
  const int64_t rows = arguments.rows;
  const bool has_columns = arguments.column_state.sums != nullptr;
  const State<T> of_rows(arguments.row_state), of_columns(arguments.column_state);
  const Division division(has_columns ? arguments.first_counted_column : arguments.columns,
                          arguments.columns);
  const Scratch<T> largest(division.blocks * rows), sums(division.blocks * rows);
  sum_over_chunks(execution, division.blocks, 1, [&](int64_t begin, int64_t end) {
    for (int64_t block = begin; block < end; ++block) {
      const Columns columns = division.at(block);
      const BlockStates<T> states(arguments, columns, largest.get() + block * rows,
                                  sums.get() + block * rows);
      if (columns.counted) states.add_to(of_columns);
    }
    return 0.0;
  });
  for (int64_t block = 0; block < division.blocks; ++block) {
    merge(of_rows.largest, of_rows.sums, largest.get() + block * rows, sums.get() + block * rows,
          rows);
  }
}

// Of rows, or of columns from one on.
template <class T>
struct Totals {
  const T* log_sums;
  const T* negatives;
  const T* weights;

  Totals(const SoftmaxTotals& totals, int64_t begin)
      : log_sums(from(totals.log_sums, begin)),
        negatives(from(totals.negatives, begin)),
        weights(from(totals.weights, begin)) {}
  explicit operator bool() const { return log_sums != nullptr; }
  T weight(int64_t i) const { return weights ? weights[i] : T(1); }

 private:
  static const T* from(const void* numbers, int64_t begin) {
    return numbers ? static_cast<const T*>(numbers) + begin : nullptr;
  }
};

// Turns some columns of a tile into the gradient.
template <class T>
class BlockGradient {
  using V = Vec<T>;

 public:
  BlockGradient(const ContrastiveArguments& arguments, Columns columns, T* row_factors)
      : rows_(arguments.rows),
        stride_(arguments.columns),
        columns_(columns),
        of_rows_(arguments.of_rows, 0),
        of_columns_(arguments.of_columns, columns.begin),
        scale_(T(resolve(arguments.scale))),
        factor_(T(arguments.factor) * scale_),
        tile_(static_cast<T*>(arguments.tile) + columns.begin),
        row_factors_(row_factors) {
    find_bounds();
    // What makes up for a reference that rows and columns share would overflow otherwise.
    const bool shares = of_columns_ && largest_ - smallest_ <= T(kShared);
    find_factors(of_rows_, rows_, shares, row_factors_);
    if (of_columns_) find_factors(of_columns_, columns_.count, shares, column_factors_);
    if (shares) {
      const V reference(largest_);
      for_each([&](int64_t, const V& row_factor, const V& s, int64_t k) {
        return exp_nonpositive(s - reference) * (row_factor + V::load(column_factors_ + k));
      });
    } else if (of_columns_) {
      for_each([&](int64_t row, const V& row_factor, const V& s, int64_t k) {
        const V log_sum = load_some(of_columns_.log_sums + k, columns_.count - k);
        return exp_nonpositive(s - V(of_rows_.log_sums[row])) * row_factor +
               exp_nonpositive(s - log_sum) * V::load(column_factors_ + k);
      });
    } else {
      for_each([&](int64_t row, const V& row_factor, const V& s, int64_t) {
        return exp_nonpositive(s - V(of_rows_.log_sums[row])) * row_factor;
      });
    }
    const auto at = [&](int64_t row, int64_t k) -> T& { return tile_[row * stride_ + k]; };
    columns.for_each_at(arguments.itself, rows_,
                        [&](int64_t row, int64_t k) { at(row, k) = T(0); });
    // The probability less 1, without the difference.
    columns.for_each_at(arguments.positive, rows_, [&](int64_t row, int64_t k) {
      T sum = of_rows_.weight(row) * of_rows_.negatives[row];
      if (of_columns_) sum += of_columns_.weight(k) * of_columns_.negatives[k];
      at(row, k) = -factor_ * sum;
    });
  }

 private:
  void find_bounds() {
    const auto look = [&](const T* values, int64_t count) {
      for (int64_t i = 0; i < count; ++i) {
        largest_ = max(largest_, values[i]);
        smallest_ = min(smallest_, values[i]);
      }
    };
    look(of_rows_.log_sums, rows_);
    if (of_columns_) look(of_columns_.log_sums, columns_.count);
  }

  // What the exponentials are multiplied with; those are relative to each one's own sum, or all to
  // the largest.
  void find_factors(const Totals<T>& totals, int64_t count, bool shares, T* out) const {
    for (int64_t i = 0; i < count; i += V::kLanes) {
      V value(factor_);
      if (totals.weights) value *= load_some(totals.weights + i, count - i);
      if (shares) value *= exp(V(largest_) - load_some(totals.log_sums + i, count - i, largest_));
      store_some(value, out + i, count - i);
    }
  }

  // Puts gradient(row, the row's factor, similarities, column of the block) in their place.
  template <class Gradient>
  FASTLOSS_INLINE void for_each(const Gradient& gradient) {
    for (int64_t row = 0; row < rows_; ++row) {
      T* const products = tile_ + row * stride_;
      const V row_factor(row_factors_[row]);
      for (int64_t k = 0; k < columns_.count; k += V::kLanes) {
        const V s = load_some(products + k, columns_.count - k) * scale_;
        store_some(gradient(row, row_factor, s, k), products + k, columns_.count - k);
      }
    }
  }

  const int64_t rows_, stride_;
  const Columns columns_;
  const Totals<T> of_rows_, of_columns_;
  const T scale_, factor_;
  T* const tile_;
  T* const row_factors_;
  T largest_ = T(kFarBelow), smallest_ = -T(kFarBelow);
  alignas(64) T column_factors_[kWidth] = {};
};

template <class T>
void find_gradient(const ContrastiveArguments& arguments, const Execution& execution) {
  const Division division(0, arguments.columns);
  sum_over_chunks(execution, division.blocks, 1, [&](int64_t begin, int64_t end) {
    const Scratch<T> row_factors(arguments.rows);
    for (int64_t block = begin; block < end; ++block)
      BlockGradient<T>(arguments, division.at(block), row_factors.get());
    return 0.0;
  });
}

}  // namespace

void contrastive_states(const ContrastiveArguments& arguments, const Execution& execution) {
  with_number_type(arguments.is_double,
                   [&](auto number) { find_states<decltype(number)>(arguments, execution); });
}

void contrastive_gradient(const ContrastiveArguments& arguments, const Execution& execution) {
  with_number_type(arguments.is_double,
                   [&](auto number) { find_gradient<decltype(number)>(arguments, execution); });
}

}  // namespace fastloss::FASTLOSS_TARGET
