// SPDX-License-Identifier: MIT
#include <algorithm>
#include <memory>
#include <new>

#include "core/vec.h"
#include "engines/kernels.h"
#include "engines/softmax_row.h"
#include "engines/staging.h"

namespace fastloss::FASTLOSS_TARGET {
namespace {

// Logits staged at a time: a tile stays in the L1 cache. Of a row that is wider than a tile, the
// exponentials are computed twice, and the logits read again from the L2 cache.
constexpr int64_t kTile = 4096;
// Rows worked on together where the classes are strided: lanes are rows then.
constexpr int64_t kMaxRows = 256;
// Below this, waking a second thread costs more than it saves.
constexpr int64_t kSmallestChunk = 16384;

template <class T>
constexpr T kNone = T(-__builtin_inff());  // less than any logit

template <class T>
constexpr int64_t padded(int64_t count) {
  return (count + Vec<T>::kLanes - 1) / Vec<T>::kLanes * Vec<T>::kLanes;
}

// Aligned memory of a chunk.
template <class T>
class Scratch {
 public:
  explicit Scratch(int64_t count)
      : memory_(static_cast<T*>(
            ::operator new(static_cast<std::size_t>(count) * sizeof(T), std::align_val_t{64}))) {}
  T* get() const { return memory_.get(); }

 private:
  struct Free {
    void operator()(T* memory) const { ::operator delete(memory, std::align_val_t{64}); }
  };
  std::unique_ptr<T, Free> memory_;
};

// What some rows come down to, and what the formula makes of it; a lane per row.
template <class T>
struct Rows {
  int64_t count = 0;
  int64_t label[kMaxRows];        // the class; the lower one of two for positions
  alignas(64) T upper[kMaxRows];  // the upper one's share of the label
  alignas(64) T counts[kMaxRows];
  alignas(64) T weight[kMaxRows];
  alignas(64) T shift[kMaxRows];
  alignas(64) T sum[kMaxRows];
  alignas(64) T slope_sum[kMaxRows];  // for statistics whose shift is the picked logit
  alignas(64) T picked[kMaxRows];
  alignas(64) T blend[kMaxRows];
  alignas(64) T mass[kMaxRows];

  alignas(64) T loss[kMaxRows];
  // What each kind of slope is multiplied with to give the gradient.
  alignas(64) T to_statistic[kMaxRows];
  alignas(64) T to_picked[kMaxRows];
  alignas(64) T to_blend[kMaxRows];
};

template <class Formula, class T, bool kGradient>
class Engine {
  using V = Vec<T>;
  using Statistic = typename Formula::Statistic;
  static constexpr bool kReadsRow = reads_row<Formula>;
  static constexpr ClassTarget kTarget = class_target<Formula>;
  static constexpr bool kProbabilities = has_probabilities<Formula>;
  static constexpr bool kBlends = blends_classes<Formula>;

 public:
  Engine(const SoftmaxArguments& arguments, const Execution& execution)
      : arguments_(arguments),
        execution_(execution),
        classes_(arguments.classes),
        weights_(static_cast<const T*>(arguments.class_weight.data)),
        softcap_(arguments.softcap),
        gradient_scale_(resolve(arguments.gradient_scale)),
        streaming_(arguments.gradient && arguments.gradient.dtype == dtype_of<T> &&
                   outlives_caches(arguments.rows.numel * classes_ * int64_t{sizeof(T)})) {
    for (int i = 0; i < Formula::kParameters; ++i) parameter_[i] = T(arguments.parameters[i]);
  }

  void run() {
    const bool in_columns = lies_in_columns();
    // Rows in columns share tiles: a chunk is a multiple of them.
    const int64_t rows = kSmallestChunk / classes_;
    const int64_t smallest = in_columns ? (rows / kMaxRows + 1) * kMaxRows : rows > 0 ? rows : 1;
    const double sum = sum_over_chunks(
        execution_, arguments_.rows.numel, smallest, [&](int64_t begin, int64_t end) {
          double chunk_sum = 0.0;
          Chunk chunk(*this, in_columns);
          for_each_run(arguments_.rows, begin, end,
                       [&](int64_t position, const int64_t* offsets, int64_t length) {
                         chunk_sum += chunk.run(begin + position, offsets, length);
                       });
          if (streaming_) streaming_fence();
          return chunk_sum;
        });
    bad_.throw_if_any(classes_ - 1);
    store_total<T>(arguments_.loss_output, arguments_.loss_scale, sum);
  }

 private:
  int64_t row_stride(int operand) const { return arguments_.rows.stride[operand][0]; }

  // Whether neighbouring numbers in memory belong to neighbouring rows, not to one row's classes.
  bool lies_in_columns() const {
    return arguments_.class_stride[kSoftmaxInput] != 1 && arguments_.rows.dims > 0 &&
           row_stride(kSoftmaxInput) == 1;
  }

  V capped(V x) const { return softcapped(x, V(T(softcap_))); }
  V cap_slope(V capped) const { return softcap_slope(capped, V(T(softcap_))); }

  // The scratch of one chunk, and the work on it.
  class Chunk {
   public:
    Chunk(Engine& engine, bool in_columns)
        : engine_(engine),
          in_columns_(in_columns),
          classes_(engine.classes_),
          pitch_(in_columns ? columns_pitch() : padded<T>(classes_ < kTile ? classes_ : kTile)),
          tile_size_(in_columns           ? pitch_ * classes_
                     : pitch_ > kTile / 2 ? pitch_
                                          : kTile),
          memory_(tile_size_ * (kProbabilities ? 2 : 1)),
          tile_(memory_.get()),
          shares_(kProbabilities ? tile_ + tile_size_ : nullptr) {}

    // Rows that lie evenly: the same stride from each to the next. Returns the sum of their losses.
    double run(int64_t first, const int64_t* offsets, int64_t length) {
      const int64_t together = in_columns_ ? pitch_
                               : classes_ > kTile
                                   ? 1
                                   : std::min(tile_size_ / pitch_, int64_t{V::kLanes});
      double sum = 0.0;
      for (int64_t i = 0; i < length; i += together) {
        rows_.count = std::min(together, length - i);
        for (int k = 0; k < kSoftmaxOperands; ++k)
          offset_[k] = offsets[k] + i * engine_.row_stride(k);
        read_labels(first + i);
        if (in_columns_) {
          read_columns();
        } else {
          for (int64_t r = 0; r < rows_.count; ++r) read_row(r);
        }
        sum += double(evaluate());
        if (kGradient && arguments().gradient) {
          if (in_columns_) {
            write_columns();
          } else {
            for (int64_t r = 0; r < rows_.count; ++r) write_row(r);
          }
        }
      }
      return sum;
    }

   private:
    // Rows per tile: as many as keep it in the L1 cache, a vector at least.
    int64_t columns_pitch() const {
      const int64_t fitting = 2 * kTile / classes_ / V::kLanes * V::kLanes;
      return std::clamp(fitting, int64_t{V::kLanes}, kMaxRows);
    }

    const SoftmaxArguments& arguments() const { return engine_.arguments_; }
    const T* parameter() const { return engine_.parameter_; }
    int64_t class_stride(int operand) const { return arguments().class_stride[operand]; }
    int64_t offset_of(int operand, int64_t row) const {
      return offset_[operand] + row * engine_.row_stride(operand);
    }
    bool caps() const { return engine_.softcap_ != 0.0; }

    // ---- targets ----

    void read_labels(int64_t first) {
      const int64_t stride = engine_.row_stride(kSoftmaxTarget);
      if constexpr (kTarget == ClassTarget::kIndex) {
        load_integers(rows_.label, arguments().target, offset_[kSoftmaxTarget], stride,
                      rows_.count);
        for (int64_t r = 0; r < rows_.count; ++r) {
          int64_t& label = rows_.label[r];
          const bool counts = !is_ignored(arguments().ignored, label);
          if (label < 0 || label >= classes_) {
            if (counts) engine_.bad_.note(first + r, label);
            label = 0;
          }
          rows_.counts[r] = T(counts);
          rows_.weight[r] = engine_.weights_ ? engine_.weights_[label] : T(1);
        }
        return;
      }
      if constexpr (kTarget == ClassTarget::kPosition) {
        T position[kMaxRows];
        load_strided(position, 1, arguments().target, offset_[kSoftmaxTarget], stride, rows_.count);
        for (int64_t r = 0; r < rows_.count; ++r) {
          const auto [lower, upper_share] = around(position[r], classes_);
          rows_.label[r] = lower;
          rows_.upper[r] = upper_share;
        }
      }
      for (int64_t r = 0; r < rows_.count; ++r) rows_.counts[r] = rows_.weight[r] = T(1);
      if (arguments().row_weight) {
        load_strided(rows_.weight, 1, arguments().row_weight, offset_[kSoftmaxRowWeight],
                     engine_.row_stride(kSoftmaxRowWeight), rows_.count);
      }
    }

    // The logit that the label picks, where it is not at hand in a tile.
    T pick(int64_t row) const {
      if constexpr (kProbabilities) return T(0);
      const auto logit = [&](int64_t label) {
        T x;
        load_strided(&x, 1, arguments().input,
                     offset_of(kSoftmaxInput, row) + label * class_stride(kSoftmaxInput), 1, 1);
        return caps() ? engine_.capped(V(x))[0] : x;
      };
      const int64_t label = rows_.label[row];
      if constexpr (kTarget == ClassTarget::kPosition)
        return interpolate(logit(label), logit(label + 1), rows_.upper[row]);
      return logit(label);
    }

    // The shares q of `count` classes from `begin` on: of a row's probabilities, or the class
    // weights; null where all are 1.
    const T* shares(int64_t row, int64_t begin, int64_t count, T* stage) const {
      const T* weights = engine_.weights_ ? engine_.weights_ + begin : nullptr;
      if constexpr (!kProbabilities) {
        return weights;
      } else {
        const int64_t stride = class_stride(kSoftmaxTarget);
        load_strided(stage, 1, arguments().target, offset_of(kSoftmaxTarget, row) + begin * stride,
                     stride, count);
        smooth(stage, count, weights, 1);
        return stage;
      }
    }

    T* share_stage(int64_t row) const { return kProbabilities ? shares_ + row * pitch_ : nullptr; }

    // Probabilities to shares: smoothed, and weighted. The weight is one for all where `step` is 0.
    void smooth(T* probabilities, int64_t count, const T* weights, int64_t step) const {
      const T smoothing = T(arguments().smoothing), inverse_classes = T(1) / T(classes_);
      for (int64_t i = 0; i < count; ++i) {
        const T share = smoothed(probabilities[i], smoothing, inverse_classes);
        probabilities[i] = weights ? weights[i * step] * share : share;
      }
    }

    // ---- rows whose classes lie together: lanes are classes ----

    // A row's sums so far, relative to the shift of its largest logit so far.
    struct Totals {
      T peak = kNone<T>, shift = T(0);
      double sum = 0.0, slope_sum = 0.0, blend = 0.0, mass = 0.0;
    };

    // `count` numbers as vectors, the last one padded: visit(i, vector). Nothing is read beyond the
    // end.
    template <class Visit>
    static FASTLOSS_INLINE void for_each_vector(const T* numbers, int64_t count, T padding,
                                                const Visit& visit) {
      const int64_t whole = count / V::kLanes * V::kLanes;
      for (int64_t i = 0; i < whole; i += V::kLanes) visit(i, V::load(numbers + i));
      if (whole < count) visit(whole, last_vector(numbers, whole, count, padding));
    }
    static FASTLOSS_INLINE V last_vector(const T* numbers, int64_t begin, int64_t end, T padding) {
      T stage[V::kLanes];
      for (int64_t i = 0; i < V::kLanes; ++i)
        stage[i] = begin + i < end ? numbers[begin + i] : padding;
      return V::load(stage);
    }

    bool keeps() const { return classes_ <= kTile && !caps(); }

    // Logits of a row as consecutive numbers: where they lie, or staged.
    const T* logits(int64_t row, int64_t begin, int64_t count, T* stage) const {
      const int64_t stride = class_stride(kSoftmaxInput);
      const int64_t offset = offset_of(kSoftmaxInput, row) + begin * stride;
      const bool plain = !Statistic::kExcludesPicked && !caps();
      if (plain && stride == 1 && arguments().input.dtype == dtype_of<T>)
        return static_cast<const T*>(arguments().input.data) + offset;
      load_strided(stage, 1, arguments().input, offset, stride, count);
      if (caps()) {
        for_each_vector(stage, count, T(0), [&](int64_t i, V x) {
          engine_.capped(x).store(stage + i);  // a stage has room for whole vectors
        });
      }
      const int64_t label = rows_.label[row] - begin;
      if (Statistic::kExcludesPicked && label >= 0 && label < count) stage[label] = kNone<T>;
      return stage;
    }

    void read_row(int64_t row) {
      if (rows_.counts[row] == T(0)) {
        rows_.shift[row] = rows_.slope_sum[row] = rows_.picked[row] = T(0);
        rows_.blend[row] = rows_.mass[row] = T(0);
        rows_.sum[row] = T(1);
        return;
      }
      const T picked = pick(row);
      Totals totals;
      if (Statistic::kShiftIsPicked) totals.shift = picked;
      if constexpr (kReadsRow) {
        for (int64_t begin = 0; begin < classes_; begin += kTile) {
          const int64_t count = std::min(kTile, classes_ - begin);
          T* stage = tile_ + row * pitch_;
          const T* q = kBlends ? shares(row, begin, count, share_stage(row)) : nullptr;
          add_block(totals, logits(row, begin, count, stage), count, q, keeps() ? stage : nullptr);
        }
      }
      rows_.shift[row] = totals.shift;
      rows_.sum[row] = T(totals.sum);
      rows_.slope_sum[row] = T(totals.slope_sum);
      rows_.picked[row] = kProbabilities ? T(0) : picked - totals.shift;
      rows_.blend[row] = T(totals.blend);
      rows_.mass[row] = T(totals.mass);
    }

    void add_block(Totals& totals, const T* x, int64_t count, const T* q, T* kept) const {
      if constexpr (!Statistic::kShiftIsPicked) {
        V peaks(kNone<T>);
        for_each_vector(x, count, kNone<T>, [&](int64_t, V v) { peaks = max(peaks, v); });
        raise_peak(totals, peaks.largest());
      }
      const V shift(totals.shift);
      V sum(0), slope_sum(0), blend(0), mass(0);
      if constexpr (kBlends) {  // first: what is kept may take the place of x
        for_each_vector(x, count, totals.shift, [&](int64_t i, V v) {
          const V share = share_vector(q, i, count);
          blend += share * (v - shift);
          mass += share;
        });
      }
      for_each_vector(x, count, kNone<T>, [&](int64_t i, V v) {
        const V k = Statistic::kept(v - shift, parameter());
        if (kept) k.store(kept + i);
        sum += Statistic::term(k, parameter());
        if constexpr (Statistic::kShiftIsPicked) slope_sum += Statistic::slope(k, parameter());
      });
      totals.sum += double(sum.sum());
      totals.slope_sum += double(slope_sum.sum());
      totals.blend += double(blend.sum());
      totals.mass += double(mass.sum());
    }

    // The shares of a vector of classes, 0 beyond the last.
    static FASTLOSS_INLINE V share_vector(const T* q, int64_t begin, int64_t end) {
      if (begin + V::kLanes <= end) return q ? V::load(q + begin) : V(1);
      if (q) return last_vector(q, begin, end, T(0));
      T ones[V::kLanes];
      for (int64_t i = 0; i < V::kLanes; ++i) ones[i] = begin + i < end ? T(1) : T(0);
      return V::load(ones);
    }

    static void raise_peak(Totals& totals, T peak) {
      if (!(peak > totals.peak) && !is_nan(peak)) return;
      const T shift = peak;
      if (totals.peak != kNone<T>)  // else there is nothing to scale yet
        totals.sum *= double(Statistic::rescale(V(shift - totals.shift))[0]);
      totals.blend += (double(totals.shift) - double(shift)) * totals.mass;
      totals.peak = peak;
      totals.shift = shift;
    }

    void write_row(int64_t row) {
      const int64_t stride = class_stride(kSoftmaxGradient);
      const bool counts = rows_.counts[row] != T(0);
      T* stage = tile_ + row * pitch_;
      for (int64_t begin = 0; begin < classes_; begin += kTile) {
        const int64_t count = std::min(kTile, classes_ - begin);
        if (counts && kReadsRow) {
          differentiate(row, begin, count, stage);
        } else {
          for (int64_t i = 0; i < count; ++i) stage[i] = T(0);
        }
        if (counts)
          add_picked(row, [&](int64_t label, T slope) {
            if (label >= begin && label < begin + count) stage[label - begin] += slope;
          });
        write(offset_of(kSoftmaxGradient, row) + begin * stride, stride, stage, count);
      }
    }

    // The gradient but for the label's own part, into the stage.
    void differentiate(int64_t row, int64_t begin, int64_t count, T* stage) const {
      const V to_statistic(rows_.to_statistic[row]), to_blend(rows_.to_blend[row]),
          shift(rows_.shift[row]);
      const T* q = nullptr;
      if constexpr (kBlends) {
        q = kProbabilities && keeps() ? share_stage(row)  // still there
                                      : shares(row, begin, count, share_stage(row));
      }
      const auto gradient = [&](int64_t i, V kept) {
        V result = Statistic::slope(kept, parameter()) * to_statistic;
        if constexpr (kBlends) result += share_vector(q, i, count) * to_blend;
        return result;
      };
      if (keeps()) {
        for (int64_t i = 0; i < count; i += V::kLanes)
          gradient(i, V::load(stage + i)).store(stage + i);
        return;
      }
      const T* x = logits(row, begin, count, stage);
      for_each_vector(x, count, kNone<T>, [&](int64_t i, V v) {
        V result = gradient(i, Statistic::kept(v - shift, parameter()));
        if (caps()) result *= engine_.cap_slope(v);
        result.store(stage + i);
      });
    }

    // add(label, slope) for the class or the two classes that the label picks.
    template <class Add>
    void add_picked(int64_t row, const Add& add) const {
      if constexpr (kProbabilities) return;
      const T slope = rows_.to_picked[row];
      if constexpr (kTarget == ClassTarget::kPosition) {
        add(rows_.label[row], (T(1) - rows_.upper[row]) * slope);
        add(rows_.label[row] + 1, rows_.upper[row] * slope);
      } else {
        add(rows_.label[row], slope);
      }
    }

    void write(int64_t offset, int64_t stride, const T* stage, int64_t count) const {
      const Output& gradient = arguments().gradient;
      if (engine_.streaming_ && stride == 1) {
        stream(static_cast<T*>(gradient.data) + offset, stage, count);
      } else {
        store_strided(gradient, offset, stride, stage, 1, count);
      }
    }

    // ---- rows whose classes are strided: lanes are rows, a tile holds [classes, pitch] ----

    void read_columns() {
      const int64_t count = rows_.count, all = padded<T>(count);
      if constexpr (kReadsRow) {
        load_tile(tile_, arguments().input, kSoftmaxInput, T(0));
        if (caps()) {
          for (int64_t c = 0; c < classes_; ++c) {
            for (T *x = tile_ + c * pitch_, *end = x + all; x < end; x += V::kLanes)
              engine_.capped(V::load(x)).store(x);
          }
        }
      }
      if constexpr (kProbabilities) {
        load_tile(shares_, arguments().target, kSoftmaxTarget, T(0));
        for (int64_t c = 0; c < classes_; ++c) {
          smooth(shares_ + c * pitch_, count, engine_.weights_ ? engine_.weights_ + c : nullptr, 0);
        }
      }
      T picked[kMaxRows];
      for (int64_t r = 0; r < count; ++r) {
        if constexpr (!kReadsRow || kProbabilities) {
          picked[r] = pick(r);
        } else {
          T& at_label = tile_[rows_.label[r] * pitch_ + r];
          picked[r] = at_label;
          if constexpr (kTarget == ClassTarget::kPosition)
            picked[r] = interpolate(at_label, (&at_label)[pitch_], rows_.upper[r]);
          if constexpr (Statistic::kExcludesPicked) at_label = kNone<T>;
        }
      }
      for (int64_t r = count; r < all; ++r) picked[r] = rows_.weight[r] = rows_.counts[r] = T(0);
      for (int64_t r = 0; r < all; r += V::kLanes) add_column(r, V::load(picked + r));
    }

    void load_tile(T* tile, const Input& from, int operand, T padding) const {
      const int64_t count = rows_.count, all = padded<T>(count);
      for (int64_t c = 0; c < classes_; ++c) {
        T* out = tile + c * pitch_;
        load_strided(out, 1, from, offset_[operand] + c * class_stride(operand),
                     engine_.row_stride(operand), count);
        for (int64_t r = count; r < all; ++r) out[r] = padding;
      }
    }

    // A vector of rows, from its first row on.
    void add_column(int64_t first, V picked) {
      T* const x = tile_ + first;
      V shift(0);
      if constexpr (Statistic::kShiftIsPicked) {
        shift = picked;
      } else if constexpr (kReadsRow) {
        V peak(kNone<T>);
        for (int64_t c = 0; c < classes_; ++c) peak = max(peak, V::load(x + c * pitch_));
        shift = select(peak == V(kNone<T>), V(0), peak);
      }
      V sum(0), slope_sum(0), blend(0), mass(0);
      if constexpr (kReadsRow) {
        const bool keeps = !caps();
        for (int64_t c = 0; c < classes_; ++c) {
          const V relative = V::load(x + c * pitch_) - shift;
          const V kept = Statistic::kept(relative, parameter());
          if (keeps) kept.store(x + c * pitch_);
          sum += Statistic::term(kept, parameter());
          if constexpr (Statistic::kShiftIsPicked) slope_sum += Statistic::slope(kept, parameter());
          if constexpr (kBlends) {
            const V share = column_share(first, c);
            blend += share * relative;
            mass += share;
          }
        }
      }
      shift.store(rows_.shift + first);
      sum.store(rows_.sum + first);
      slope_sum.store(rows_.slope_sum + first);
      (kProbabilities ? V(0) : picked - shift).store(rows_.picked + first);
      blend.store(rows_.blend + first);
      mass.store(rows_.mass + first);
    }

    V column_share(int64_t first, int64_t c) const {
      if constexpr (kProbabilities) return V::load(shares_ + c * pitch_ + first);
      return engine_.weights_ ? V(engine_.weights_[c]) : V(1);
    }

    void write_columns() {
      const int64_t count = rows_.count, all = padded<T>(count);
      for (int64_t first = 0; first < all; first += V::kLanes) {
        const V to_statistic = V::load(rows_.to_statistic + first),
                to_blend = V::load(rows_.to_blend + first), shift = V::load(rows_.shift + first);
        const auto counts = V::load(rows_.counts + first) != V(0);
        T* const x = tile_ + first;
        for (int64_t c = 0; c < classes_; ++c) {
          V gradient(0);
          if constexpr (kReadsRow) {
            const V at = V::load(x + c * pitch_);
            const V kept = caps() ? Statistic::kept(at - shift, parameter()) : at;
            gradient = Statistic::slope(kept, parameter()) * to_statistic;
            if constexpr (kBlends) gradient += column_share(first, c) * to_blend;
            if (caps()) gradient *= engine_.cap_slope(at);
            // Selected, not multiplied: what does not count may hold anything, NaN too.
            gradient = select(counts, gradient, V(0));
          }
          gradient.store(x + c * pitch_);
        }
      }
      for (int64_t r = 0; r < count; ++r) {
        add_picked(r, [&](int64_t label, T slope) { tile_[label * pitch_ + r] += slope; });
      }
      for (int64_t c = 0; c < classes_; ++c) {
        write(offset_[kSoftmaxGradient] + c * class_stride(kSoftmaxGradient),
              engine_.row_stride(kSoftmaxGradient), tile_ + c * pitch_, count);
      }
    }

    // ---- the formula ----

    // Losses, and what the gradients are made of. The only place where a formula is compiled in.
    T evaluate() {
      V total(0);
      const V scale(T(engine_.gradient_scale_)), inverse_classes(T(1) / T(classes_));
      const int64_t count = rows_.count, all = padded<T>(count);
      for (int64_t r = count; r < all; ++r) {  // lanes beyond the last row
        rows_.counts[r] = rows_.picked[r] = rows_.blend[r] = rows_.shift[r] = T(0);
        rows_.weight[r] = rows_.mass[r] = rows_.slope_sum[r] = T(0);
        rows_.sum[r] = T(1);
      }
      for (int64_t r = 0; r < all; r += V::kLanes) {
        const auto at = [&](const T* numbers) { return V::load(numbers + r); };
        const RowSums<V> sums{at(rows_.sum),   at(rows_.slope_sum), at(rows_.picked),
                              at(rows_.blend), at(rows_.mass),      at(rows_.shift),
                              at(rows_.weight)};
        RowResult<V> result = evaluate_row<Formula, kGradient>(sums, inverse_classes, parameter());
        const auto counts = at(rows_.counts) != V(0);
        const V loss = select(counts, result.loss, V(0));
        loss.store(rows_.loss + r);
        total += loss;
        if constexpr (kGradient) {
          if (caps()) result.to_picked *= engine_.cap_slope(sums.picked + sums.shift);
          select(counts, result.to_statistic * scale, V(0)).store(rows_.to_statistic + r);
          select(counts, result.to_picked * scale, V(0)).store(rows_.to_picked + r);
          select(counts, result.to_blend * scale, V(0)).store(rows_.to_blend + r);
        }
      }
      if (arguments().loss_output.values) {
        store_strided(Output{arguments().loss_output.values, dtype_of<T>}, offset_[kSoftmaxValues],
                      engine_.row_stride(kSoftmaxValues), rows_.loss, 1, count);
      }
      return total.sum();
    }

    Engine& engine_;
    const bool in_columns_;
    const int64_t classes_;
    const int64_t pitch_;  // between rows of the tile: of classes, or of rows in columns
    const int64_t tile_size_;
    const Scratch<T> memory_;
    T* const tile_;    // logits, then what is kept of them, then gradients
    T* const shares_;  // the target probabilities
    Rows<T> rows_;
    int64_t offset_[kSoftmaxOperands];
  };

  const SoftmaxArguments& arguments_;
  const Execution& execution_;
  const int64_t classes_;
  const T* const weights_;
  const double softcap_;
  const double gradient_scale_;
  const bool streaming_;
  T parameter_[kMaxParameters];
  FirstBadLabel bad_;
};

template <class Formula, class T>
void run_typed(const SoftmaxArguments& arguments, const Execution& execution) {
  // float64 is for checking gradients, not for speed: one compilation serves it.
  if (sizeof(T) == 8 || arguments.gradient) {
    Engine<Formula, T, true>(arguments, execution).run();
  } else if constexpr (sizeof(T) == 4) {
    Engine<Formula, T, false>(arguments, execution).run();
  }
}

template <class Formula>
struct Kernel {
  static void run(const SoftmaxArguments& arguments, const Execution& execution) {
    if (arguments.is_double) {
      run_typed<Formula, double>(arguments, execution);
    } else {
      run_typed<Formula, float>(arguments, execution);
    }
  }
};

}  // namespace

void softmax(const SoftmaxArguments& arguments, const Execution& execution) {
  using Function = void (*)(const SoftmaxArguments&, const Execution&);
  SoftmaxLosses::Table<Function, Kernel>::kRun[arguments.loss](arguments, execution);
}

}  // namespace fastloss::FASTLOSS_TARGET
