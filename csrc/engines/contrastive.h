// SPDX-License-Identifier: MIT
// Engine `contrastive`: a tile of the similarities between rows and columns, before it is
// forgotten. First it adds to what is known of each row's (and each column's) softmax, later it
// turns into the gradient of the tile.
#pragma once
#include "core/types.h"

namespace fastloss {

// No row has a column there.
constexpr int64_t kNowhere = -(int64_t{1} << 60);

// The largest similarity of nothing: finite, so that differences are numbers.
constexpr double kFarBelow = -1e30;

// Of a number of rows, or columns: the largest of each one's similarities with its negatives so
// far, and the sum of e^(similarity − largest). Both of the accumulate type.
struct NegativesState {
  void* largest = nullptr;
  void* sums = nullptr;
};

// What the gradient reads of them: the logarithm of the sum of all exponentials, the positive's
// among them, the share of the negatives in that sum, and the weight of the loss (null: 1).
struct SoftmaxTotals {
  const void* log_sums = nullptr;
  const void* negatives = nullptr;
  const void* weights = nullptr;
};

struct ContrastiveArguments {
  void* tile = nullptr;  // [rows, columns]: products; of the accumulate type, like all else here
  int64_t rows = 0, columns = 0;
  bool is_double = false;
  Scale scale;  // similarities are products times it: one over the temperature
  // The column that row 0 is not compared with, as it is itself, and that of its positive; for the
  // next rows they are the next columns.
  int64_t itself = kNowhere, positive = 0;

  // Of the first pass. What stands for columns is null where only rows are compared with columns.
  NegativesState row_state, column_state;
  // From this column on, columns add the tile to their state; the others are rows of it, too.
  int64_t first_counted_column = 0;
  void* positives = nullptr;  // [rows]: the similarity of each to its positive, if it is here

  // Of the gradient, that of all losses times `factor`.
  SoftmaxTotals of_rows, of_columns;
  double factor = 1.0;
};

}  // namespace fastloss
