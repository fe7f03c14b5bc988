// SPDX-License-Identifier: MIT
#include "engines/batch_hard.h"

#include <algorithm>

#include "core/vec.h"
#include "engines/arena.h"
#include "engines/kernels.h"
#include "engines/staging.h"
#include "losses/triplet.h"

namespace fastloss::FASTLOSS_TARGET {
namespace {

// Anchors and vectors of rows that are worked on together: their sums stay in registers.
constexpr int kAnchors = 4;
constexpr int kVectors = 2;
constexpr int64_t kSmallestGradientChunk = 4096;  // features

// Labels as small numbers that a vector compares: the same number for the same label.
template <class T>
class Groups {
 public:
  explicit Groups(const BatchHardArguments& arguments)
      : rows_(arguments.rows),
        arena_(Arena::size_of<T>(rows_ + kRoom) + Arena::size_of<int32_t>(rows_) +
               Arena::size_of<Entry>(rows_)) {
    number = arena_.take<T>(rows_ + kRoom);
    size_ = arena_.take<int32_t>(rows_);
    Entry* const entries = arena_.take<Entry>(rows_);
    for (int64_t i = 0; i < rows_; ++i) entries[i] = {arguments.labels[i], static_cast<int32_t>(i)};
    std::sort(entries, entries + rows_);
    for (int64_t begin = 0, end = 0; begin < rows_; begin = end) {
      while (end < rows_ && entries[end].label == entries[begin].label) ++end;
      for (int64_t i = begin; i < end; ++i) {
        number[entries[i].row] = T(begin);
        size_[entries[i].row] = static_cast<int32_t>(end - begin);
      }
    }
    for (int64_t i = rows_; i < rows_ + kRoom; ++i) number[i] = T(-1);
  }

  // Whether there is another row of the same label, and one of another.
  bool counts(int64_t row) const { return size_[row] > 1 && size_[row] < rows_; }

  T* number;

 private:
  static constexpr int64_t kRoom = kVectors * Vec<T>::kLanes;
  struct Entry {
    int64_t label;
    int32_t row;
    friend bool operator<(const Entry& a, const Entry& b) { return a.label < b.label; }
  };
  const int64_t rows_;
  Arena arena_;
  int32_t* size_;
};

// All rows with the lanes of vectors across rows, feature by feature: [rows / lanes, features,
// lanes], and zeros beyond the last row.
template <class T>
class Panels {
  using V = Vec<T>;

 public:
  Panels(const T* embeddings, int64_t rows, int64_t features, const Execution& execution)
      : features_(features),
        count_((rows + kWide - 1) / kWide * kVectors),
        numbers_(count_ * features * V::kLanes + 1) {
    sum_over_chunks(execution, count_, 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin * V::kLanes; i < end * V::kLanes; ++i) {
        T* const to = numbers_.get() + i / V::kLanes * features * V::kLanes + i % V::kLanes;
        for (int64_t k = 0; k < features; ++k)
          to[k * V::kLanes] = i < rows ? embeddings[i * features + k] : T(0);
      }
      return 0.0;
    });
  }
  const T* at(int64_t panel) const { return numbers_.get() + panel * features_ * V::kLanes; }
  int64_t count() const { return count_; }

 private:
  static constexpr int64_t kWide = kVectors * V::kLanes;
  const int64_t features_, count_;
  const Scratch<T> numbers_;
};

// What the lanes have found for one anchor: of equal distances the first row's.
template <class T>
struct Found {
  using V = Vec<T>;
  V distance, row;

  explicit Found() : distance(0), row(-1) {}
  template <class M>
  FASTLOSS_INLINE void update(const M& better, const V& other, const V& other_row) {
    distance = select(better, other, distance);
    row = select(better, other_row, row);
  }
  // Over the lanes; `sign` is 1 for the largest distance.
  int32_t best(T sign) const {
    int found = -1;
    for (int lane = 0; lane < V::kLanes; ++lane) {
      if (row[lane] < T(0)) continue;
      const T ahead = found < 0 ? T(1) : sign * (distance[lane] - distance[found]);
      if (ahead > T(0) || (ahead == T(0) && row[lane] < row[found])) found = lane;
    }
    return found < 0 ? -1 : static_cast<int32_t>(row[found]);
  }
};

// Chooses for the anchors from `first` on, as many as there are up to kAnchors.
template <class T>
[[gnu::noinline]] void choose(const BatchHardArguments& arguments, const Groups<T>& groups,
                              const Panels<T>& panels, int64_t first) {
  using V = Vec<T>;
  const int64_t rows = arguments.rows, features = arguments.features;
  const T* anchor[kAnchors];
  V number[kAnchors], self[kAnchors], broken[kAnchors];
  Found<T> farthest[kAnchors], nearest[kAnchors];
  for (int a = 0; a < kAnchors; ++a) {
    const int64_t i = first + a < rows ? first + a : rows - 1;
    anchor[a] = static_cast<const T*>(arguments.embeddings) + i * features;
    number[a] = V(groups.number[i]);
    self[a] = V(T(i));
    broken[a] = V(0);
  }
  const V lane = lane_numbers<T>();
  for (int64_t panel = 0; panel < panels.count(); panel += kVectors) {
    V sum[kAnchors][kVectors];
#pragma GCC unroll 4
    for (int a = 0; a < kAnchors; ++a) {
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) sum[a][v] = V(0);
    }
    const T* const other = panels.at(panel);
    for (int64_t k = 0; k < features; ++k) {
      V feature[kVectors];
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v)
        feature[v] = V::load(other + (v * features + k) * V::kLanes);
#pragma GCC unroll 4
      for (int a = 0; a < kAnchors; ++a) {
        const V own(anchor[a][k]);
#pragma GCC unroll 4
        for (int v = 0; v < kVectors; ++v) {
          const V difference = own - feature[v];
          sum[a][v] += difference * difference;
        }
      }
    }
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) {
      const int64_t begin = (panel + v) * V::kLanes;
      const V row = lane + V(T(begin));
      const V other_number = V::load(groups.number + begin);
      const auto inside = row < V(T(rows));
#pragma GCC unroll 4
      for (int a = 0; a < kAnchors; ++a) {
        const V distance = sum[a][v];
        const auto same = other_number == number[a];
        broken[a] = select(inside & is_nan(distance), V(1), broken[a]);
        farthest[a].update(same & (row != self[a]) &
                               ((distance > farthest[a].distance) | (farthest[a].row < V(0))),
                           distance, row);
        nearest[a].update(inside & (other_number != number[a]) &
                              ((distance < nearest[a].distance) | (nearest[a].row < V(0))),
                          distance, row);
      }
    }
  }
  for (int a = 0; a < kAnchors && first + a < rows; ++a) {
    int32_t* const chosen = arguments.chosen + (first + a) * kBatchHardRoles;
    const bool is_broken = broken[a].sum() > T(0), counts = groups.counts(first + a);
    const auto itself = static_cast<int32_t>(first + a);
    chosen[kFarthest] = !counts ? -1 : is_broken ? itself : farthest[a].best(T(1));
    chosen[kNearest] = !counts ? -1 : is_broken ? itself : nearest[a].best(T(-1));
  }
}

template <class T>
FASTLOSS_INLINE T squared_distance(const T* a, const T* b, int64_t features) {
  using V = Vec<T>;
  V sum(0);
  int64_t k = 0;
  for (; k + V::kLanes <= features; k += V::kLanes) sum += square(V::load(a + k) - V::load(b + k));
  if (k < features) sum += square(load_some(a + k, features - k) - load_some(b + k, features - k));
  return sum.sum();
}

// The loss of an anchor with what was chosen for it.
template <class Formula, class T>
T loss_of(const BatchHardArguments& arguments, const T* parameter, int64_t i) {
  const int64_t features = arguments.features;
  const auto* embeddings = static_cast<const T*>(arguments.embeddings);
  const int32_t* const chosen = arguments.chosen + i * kBatchHardRoles;
  T* const slopes = static_cast<T*>(arguments.slopes) + i * kBatchHardRoles;
  slopes[kFarthest] = slopes[kNearest] = T(0);
  if (chosen[kFarthest] < 0) return T(0);
  if (chosen[kFarthest] == i) {
    slopes[kFarthest] = slopes[kNearest] = lanes::kNaN<T>;
    return lanes::kNaN<T>;
  }
  const auto distance_to = [&](BatchHardRole role) {
    return squared_distance(embeddings + i * features, embeddings + chosen[role] * features,
                            features);
  };
  const T none(1);
  const auto loss =
      Formula::loss(EuclideanNorm::finish(seed<1>(distance_to(kFarthest)), none, none),
                    EuclideanNorm::finish(seed<2>(distance_to(kNearest)), none, none), parameter);
  slopes[kFarthest] = T(2) * derivative<1>(loss);
  slopes[kNearest] = T(2) * derivative<2>(loss);
  return detach(loss);
}

template <class Formula, class T>
void run_typed(const BatchHardArguments& arguments, const Execution& execution) {
  T parameter[kMaxParameters];
  for (int i = 0; i < Formula::kParameters; ++i) parameter[i] = T(arguments.parameters[i]);
  const int64_t rows = arguments.rows;
  const Groups<T> groups(arguments);
  const Panels<T> panels(static_cast<const T*>(arguments.embeddings), rows, arguments.features,
                         execution);
  int64_t counted = 0;
  for (int64_t i = 0; i < rows; ++i) counted += groups.counts(i);
  const double sum = sum_over_chunks(
      execution, (rows + kAnchors - 1) / kAnchors, 1, [&](int64_t begin, int64_t end) {
        double chunk_sum = 0.0;
        for (int64_t block = begin; block < end; ++block) {
          choose(arguments, groups, panels, block * kAnchors);
          for (int64_t i = block * kAnchors; i < (block + 1) * kAnchors && i < rows; ++i) {
            const T loss = loss_of<Formula>(arguments, parameter, i);
            chunk_sum += double(loss);
            if (arguments.loss_output.values)
              static_cast<T*>(arguments.loss_output.values)[i] = loss;
          }
        }
        return chunk_sum;
      });
  const double factor = arguments.mean ? (counted > 0 ? 1.0 / double(counted) : 0.0) : 1.0;
  store_total<T>(arguments.loss_output, Scale{factor, {}}, sum);
}

template <class Formula>
struct Kernel {
  static void run(const BatchHardArguments& arguments, const Execution& execution) {
    if (arguments.is_double) {
      run_typed<Formula, double>(arguments, execution);
    } else {
      run_typed<Formula, float>(arguments, execution);
    }
  }
};

// Which anchors chose a row, as a list of choices, the first anchor's first. Choice 2 i + role is
// anchor i's.
class Choosers {
 public:
  explicit Choosers(const BatchHardArguments& arguments)
      : arena_(Arena::size_of<int32_t>(arguments.rows) +
               Arena::size_of<int32_t>(kBatchHardRoles * arguments.rows)),
        first_(arena_.take<int32_t>(arguments.rows)),
        next_(arena_.take<int32_t>(kBatchHardRoles * arguments.rows)) {
    for (int64_t i = 0; i < arguments.rows; ++i) first_[i] = -1;
    for (int64_t choice = kBatchHardRoles * arguments.rows; choice-- > 0;) {
      const int32_t row = arguments.chosen[choice];
      if (row < 0) continue;
      next_[choice] = first_[row];
      first_[row] = static_cast<int32_t>(choice);
    }
  }
  template <class Visit>
  void for_each_choice(int64_t row, const Visit& visit) const {
    for (int32_t choice = first_[row]; choice >= 0; choice = next_[choice]) visit(choice);
  }

 private:
  Arena arena_;
  int32_t* const first_;
  int32_t* const next_;
};

template <class T>
void run_gradient(const BatchHardArguments& arguments, const Execution& execution) {
  const int64_t rows = arguments.rows, features = arguments.features;
  const auto* embeddings = static_cast<const T*>(arguments.embeddings);
  const auto* slopes = static_cast<const T*>(arguments.slopes);
  const auto* upstream = static_cast<const T*>(arguments.upstream);
  const Choosers choosers(arguments);
  double factor = 1.0;
  if (arguments.mean) {
    int64_t counted = 0;
    for (int64_t i = 0; i < rows; ++i) counted += arguments.chosen[i * kBatchHardRoles] >= 0;
    factor = counted > 0 ? 1.0 / double(counted) : 0.0;
  }
  const auto slope_of = [&](int64_t choice) {
    const int64_t anchor = choice / kBatchHardRoles;
    return slopes[choice] * T(factor * double(upstream[arguments.upstream_of_rows ? anchor : 0]));
  };
  const int64_t smallest_chunk = 1 + kSmallestGradientChunk / (features + 1);
  sum_over_chunks(execution, rows, smallest_chunk, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      const T* const own = embeddings + row * features;
      T* const gradient = static_cast<T*>(arguments.gradient) + row * features;
      for (int64_t k = 0; k < features; ++k) gradient[k] = T(0);
      const auto add = [&](T slope, int64_t other_row) {
        if (slope == T(0)) return;  // also where a difference is infinite
        const T* const other = embeddings + other_row * features;
        for (int64_t k = 0; k < features; ++k) gradient[k] += slope * (own[k] - other[k]);
      };
      for (int64_t choice = row * kBatchHardRoles; choice < (row + 1) * kBatchHardRoles; ++choice) {
        if (arguments.chosen[choice] >= 0) add(slope_of(choice), arguments.chosen[choice]);
      }
      choosers.for_each_choice(
          row, [&](int64_t choice) { add(slope_of(choice), choice / kBatchHardRoles); });
    }
    return 0.0;
  });
}

}  // namespace

void batch_hard(const BatchHardArguments& arguments, const Execution& execution) {
  using Function = void (*)(const BatchHardArguments&, const Execution&);
  BatchHardLosses::Table<Function, Kernel>::kRun[arguments.loss](arguments, execution);
}

void batch_hard_gradient(const BatchHardArguments& arguments, const Execution& execution) {
  if (arguments.is_double) {
    run_gradient<double>(arguments, execution);
  } else {
    run_gradient<float>(arguments, execution);
  }
}

}  // namespace fastloss::FASTLOSS_TARGET
