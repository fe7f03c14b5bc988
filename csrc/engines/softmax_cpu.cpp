// SPDX-License-Identifier: MIT
#include <algorithm>

#include "core/vec.h"
#include "engines/class_tile.h"
#include "engines/kernels.h"
#include "engines/labels.h"
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

// What some rows come down to, and what the formula makes of it; a lane per row.
template <class T>
struct Rows {
  int64_t count = 0;
  int64_t label[kMaxRows];         // the class; the lower one of two for positions
  alignas(64) T number[kMaxRows];  // the same as a number, -1 for none; of rows in columns
  alignas(64) T upper[kMaxRows];   // the upper one's share of the label
  alignas(64) T counts[kMaxRows];
  alignas(64) T weight[kMaxRows];
  alignas(64) T shift[kMaxRows];
  alignas(64) T sum[kMaxRows];
  alignas(64) T slope_sum[kMaxRows];  // for statistics whose shift is the picked logit
  alignas(64) T picked[kMaxRows];
  alignas(64) T blend[kMaxRows];
  alignas(64) T mass[kMaxRows];
  alignas(64) T unit[kMaxRows];  // what is kept of a logit, times this, is relative to the shift
  alignas(64) T moment[kMaxRows];

  alignas(64) T loss[kMaxRows];
  // What each kind of slope is multiplied with to give the gradient.
  alignas(64) T to_statistic[kMaxRows];
  alignas(64) T to_picked[kMaxRows];
  alignas(64) T to_blend[kMaxRows];
  alignas(64) T to_moment[kMaxRows];
};

template <class Formula, class T, bool kGradient>
class Engine {
  using V = Vec<T>;
  using Statistic = typename Formula::Statistic;
  static constexpr bool kReadsRow = reads_row<Formula>;
  static constexpr ClassTarget kTarget = class_target<Formula>;
  static constexpr bool kProbabilities = has_probabilities<Formula>;
  static constexpr bool kBlends = blends_classes<Formula>;
  // Whether what is needed of the logits are their exponentials, and the label's.
  static constexpr bool kTakesExponentials =
      std::is_same_v<Statistic, LogSumExp> && !kProbabilities && !kBlends && !has_moment<Formula>;
  static constexpr bool kShares = has_shares<Formula>;
  static constexpr bool kMoment = has_moment<Formula>;

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
    const bool in_columns = works_in_columns();
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
    fault_.throw_if_any();
    store_total<T>(arguments_.loss_output, arguments_.loss_scale, sum);
  }

 private:
  int64_t row_stride(int operand) const { return arguments_.rows.stride[operand][0]; }

  // Whether lanes are rows: where neighbours in memory belong to neighbouring rows, and where a row
  // is so narrow that what each takes by itself would outweigh its vectors.
  bool works_in_columns() const {
    constexpr int64_t kNarrow = 32;
    if (arguments_.rows.dims == 0 || classes_ == 1 || classes_ > kMostClasses<T>) return false;
    return classes_ <= kNarrow ||
           (arguments_.class_stride[kSoftmaxInput] != 1 && row_stride(kSoftmaxInput) == 1);
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
          columns_(in_columns ? classes_ : 1),
          share_columns_(in_columns && kProbabilities ? classes_ : 1),
          pitch_(in_columns ? columns_.pixels() : padded<T>(std::min(classes_, kTile))),
          rows_per_tile_(std::clamp(kTile / pitch_, int64_t{1}, int64_t{V::kLanes})),
          memory_(in_columns ? 0 : rows_per_tile_ * pitch_ * (kProbabilities ? 2 : 1)),
          input_is_plain_(is_plain(kSoftmaxInput, engine.arguments_.input)),
          gradient_is_plain_(is_plain(kSoftmaxGradient, engine.arguments_.gradient)),
          tile_(in_columns ? columns_.row(0) : memory_.get()),
          shares_(in_columns ? share_columns_.row(0) : tile_ + rows_per_tile_ * pitch_) {}

    // Rows that lie evenly: the same stride from each to the next. Returns the sum of their losses.
    double run(int64_t first, const int64_t* offsets, int64_t length) {
      const int64_t together = in_columns_ ? std::min(pitch_, kMaxRows) : rows_per_tile_;
      double sum = 0.0;
      for (int64_t i = 0; i < length; i += together) {
        rows_.count = std::min(together, length - i);
        for (int k = 0; k < kSoftmaxOperands; ++k)
          offset_[k] = offsets[k] + i * engine_.row_stride(k);
        read_labels();
        if (in_columns_) {
          read_columns(first + i);
        } else if (classes_ > kTile) {
          read_wide_row();
        } else {
          read_rows();
        }
        sum += double(evaluate());
        if (kGradient && arguments().gradient) {
          if (in_columns_) {
            write_columns(first + i);
          } else {
            for (int64_t r = 0; r < rows_.count; ++r) write_row(r);
          }
        }
      }
      return sum;
    }

   private:
    const SoftmaxArguments& arguments() const { return engine_.arguments_; }
    const T* parameter() const { return engine_.parameter_; }
    int64_t class_stride(int operand) const { return arguments().class_stride[operand]; }
    int64_t offset_of(int operand, int64_t row) const {
      return offset_[operand] + row * engine_.row_stride(operand);
    }
    bool caps() const { return engine_.softcap_ != 0.0; }

    // Whether a row lies in memory as consecutive numbers of type T.
    template <class Tensor>
    bool is_plain(int operand, const Tensor& tensor) const {
      return tensor && tensor.dtype == dtype_of<T> && class_stride(operand) == 1;
    }

    // ---- targets ----

    void read_labels() {
      const int64_t stride = engine_.row_stride(kSoftmaxTarget), count = rows_.count;
      if constexpr (kTarget == ClassTarget::kIndex) {
        const T* const weights = engine_.weights_;
        if (in_columns_) {
          read_class_numbers(rows_.number, rows_.counts);
          if (!kReadsRow || weights) index_classes(rows_.number);
        } else {  // at most a vector of them
          double number[V::kLanes], counts[V::kLanes];
          read_class_numbers(number, counts);
          std::copy_n(counts, count, rows_.counts);
          index_classes(number);
        }
        if (weights) {
          for (int64_t r = 0; r < count; ++r) rows_.weight[r] = weights[rows_.label[r]];
          return;
        }
        return read_row_weights();
      }
      if constexpr (kTarget == ClassTarget::kPosition) {
        alignas(64) T position[kMaxRows];
        load_strided(position, 1, arguments().target, offset_[kSoftmaxTarget], stride, count);
        for (int64_t r = count; r < padded<T>(count); ++r) position[r] = T(0);
        for (int64_t r = 0; r < count; r += V::kLanes) {
          const auto [lower, upper_share] = around(V::load(position + r), classes_);
          lower.store(rows_.number + r);
          upper_share.store(rows_.upper + r);
        }
        if (!in_columns_) index_classes(rows_.number);
      }
      fill(rows_.counts, T(1));
      read_row_weights();
    }

    void read_row_weights() {
      if (!arguments().row_weight) return fill(rows_.weight, T(1));
      load_strided(rows_.weight, 1, arguments().row_weight, offset_[kSoftmaxRowWeight],
                   engine_.row_stride(kSoftmaxRowWeight), rows_.count);
    }

    // All rows, in whole vectors.
    void fill(T* numbers, T value) const {
      for (int64_t r = 0; r < rows_.count; r += V::kLanes) V(value).store(numbers + r);
    }

    template <class Number>
    void read_class_numbers(Number* number, Number* counts) {
      const LabelReader<Number> reader(arguments().target, arguments().ignored, classes_);
      engine_.fault_.note(reader.read(number, counts, offset_[kSoftmaxTarget],
                                      engine_.row_stride(kSoftmaxTarget), rows_.count));
    }

    // What is no class becomes one that may be read: its row does not count, or is an error.
    template <class Number>
    void index_classes(const Number* number) {
      for (int64_t r = 0; r < rows_.count; ++r) {
        const bool exists = number[r] >= Number(0) && number[r] < Number(classes_);
        rows_.label[r] = exists ? static_cast<int64_t>(number[r]) : 0;
      }
    }

    // The logit that the label picks, where it is not at hand in a tile.
    T pick(int64_t row) const {
      if constexpr (kProbabilities) return T(0);
      const auto logit = [&](int64_t label) {
        const int64_t offset = offset_of(kSoftmaxInput, row) + label * class_stride(kSoftmaxInput);
        T x;
        if (input_is_plain_) {
          x = static_cast<const T*>(arguments().input.data)[offset];
        } else {
          load_strided(&x, 1, arguments().input, offset, 1, 1);
        }
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
      for (int64_t i = 0; i < count; ++i)
        probabilities[i] = smoothed(probabilities[i], smoothing, inverse_classes);
      if (weights == nullptr) return;
      for (int64_t i = 0; i < count; ++i) probabilities[i] *= weights[i * step];
    }

    // ---- rows whose classes lie together: lanes are classes ----

    // `count` numbers as vectors, the last one padded: visit(i, vector). Nothing is read beyond the
    // end.
    template <class Visit>
    static FASTLOSS_INLINE void for_each_vector(const T* numbers, int64_t count, T padding,
                                                const Visit& visit) {
      const int64_t whole = count / V::kLanes * V::kLanes;
      for (int64_t i = 0; i < whole; i += V::kLanes) visit(i, V::load(numbers + i));
      if (whole < count) visit(whole, load_some(numbers + whole, count - whole, padding));
    }

    // Whether what is kept of the logits waits in the tile: the gradient needs nothing else of
    // them.
    bool keeps() const { return classes_ <= kTile && !recomputes(); }
    bool recomputes() const { return kMoment || caps(); }

    // Logits of a row as consecutive numbers: where they lie, or staged.
    const T* logits(int64_t row, int64_t begin, int64_t count, T* stage) const {
      const int64_t stride = class_stride(kSoftmaxInput);
      const int64_t offset = offset_of(kSoftmaxInput, row) + begin * stride;
      if (input_is_plain_ && !Statistic::kExcludesPicked && !caps())
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

    // Keeps a row's exponentials as they are; the shift is the picked logit. False, and to be done
    // again, where a logit is larger than kExpModerate.
    bool add_exponentials(int64_t row, int64_t ahead) {
      T* const kept = tile_ + row * pitch_;
      const T* const x = logits(row, 0, classes_, kept);
      V sum(0), largest(0);
      for_each_vector(x, classes_, T(0), [&](int64_t i, V v) {
        __builtin_prefetch(x + i + ahead);
        largest = larger(abs(v), largest);  // NaN may get lost: its exponential is NaN too
        V e = exp_moderate(v);
        if (i + V::kLanes > classes_) e = select(lane_numbers<T>() < V(T(classes_ - i)), e, V(0));
        e.store(kept + i);
        sum += e;
      });
      if (!(largest.largest() <= Coefficients<T>::kExpModerate)) return false;
      rows_.shift[row] = pick(row);
      const T unit = exp_moderate(V(-rows_.shift[row]))[0];
      store_sums(row, {sum.sum() * unit});
      rows_.unit[row] = unit;
      return true;
    }

    // Rows that fit a tile, in two rounds: what one row waits for, others do meanwhile.
    void read_rows() {
      const T* x[V::kLanes];
      bool is_read[V::kLanes];
      // The next rows are fetched while these are worked on.
      const int64_t ahead = input_is_plain_ ? engine_.row_stride(kSoftmaxInput) * rows_.count : 0;
      for (int64_t r = 0; r < rows_.count; ++r) {
        is_read[r] = rows_.counts[r] == T(0);
        if (is_read[r]) {
          store_sums(r, {});
          continue;
        }
        if constexpr (kTakesExponentials) {
          is_read[r] = keeps() && classes_ > 1 && add_exponentials(r, ahead);
          if (is_read[r]) continue;
        }
        x[r] = kReadsRow ? logits(r, 0, classes_, tile_ + r * pitch_) : nullptr;
        rows_.shift[r] = T(0);
        if constexpr (Statistic::kShiftIsPicked) {
          rows_.shift[r] = pick(r);
        } else if constexpr (kReadsRow) {
          const T highest = peak(x[r], classes_);
          if (highest != kNone<T>) rows_.shift[r] = highest;
        }
      }
      for (int64_t r = 0; r < rows_.count; ++r) {
        if (is_read[r]) continue;
        Sums sums;
        if (kReadsRow) {
          const T* q = kShares ? shares(r, 0, classes_, share_stage(r)) : nullptr;
          sums = add_up(x[r], classes_, rows_.shift[r], q, keeps() ? tile_ + r * pitch_ : nullptr,
                        ahead);
        }
        store_sums(r, sums);
      }
    }

    // A row wider than a tile, a tile at a time: the sums so far are relative to the largest logit
    // so far.
    void read_wide_row() {
      if (rows_.counts[0] == T(0)) return store_sums(0, {});
      T highest = kNone<T>, shift = Statistic::kShiftIsPicked ? pick(0) : T(0);
      double sum = 0.0, slope_sum = 0.0, blend = 0.0, mass = 0.0, moment = 0.0;
      for (int64_t begin = 0; begin < classes_ && kReadsRow; begin += kTile) {
        const int64_t count = std::min(kTile, classes_ - begin);
        const T* q = kShares ? shares(0, begin, count, share_stage(0)) : nullptr;
        const T* x = logits(0, begin, count, tile_);
        if constexpr (!Statistic::kShiftIsPicked) {
          const T found = peak(x, count);
          if (found > highest) {
            if (highest != kNone<T>) {  // before the first there is nothing to scale yet
              const double rescale(Statistic::rescale(V(found - shift), parameter())[0]);
              if constexpr (kMoment)
                moment = raised_moment<Formula>(moment, sum, double(found - shift), rescale);
              sum *= rescale;
            }
            blend += (double(shift) - double(found)) * mass;
            highest = shift = found;
          }
        }
        const Sums sums = add_up(x, count, shift, q, nullptr, input_is_plain_ ? kTile : 0);
        sum += double(sums.sum);
        slope_sum += double(sums.slope_sum);
        blend += double(sums.blend);
        mass += double(sums.mass);
        moment += double(sums.moment);
      }
      rows_.shift[0] = shift;
      store_sums(0, {T(sum), T(slope_sum), T(blend), T(mass), T(moment)});
    }

    static T peak(const T* x, int64_t count) {
      V peaks(kNone<T>);
      // NaN need not show in the peak: it shows in the sum.
      for_each_vector(x, count, kNone<T>, [&](int64_t, V v) { peaks = larger(v, peaks); });
      return peaks.largest();
    }

    struct Sums {
      T sum = T(1), slope_sum = T(0), blend = T(0), mass = T(0), moment = T(0);
    };

    // The sums over `count` classes; keeps what is kept of them where `kept` is not null. `ahead`
    // elements behind them are fetched meanwhile.
    Sums add_up(const T* x, int64_t count, T shift, const T* q, T* kept, int64_t ahead) const {
      V sum(0), slope_sum(0), blend(0), mass(0), moment(0);
      if constexpr (kBlends) {  // first: what is kept may take the place of x
        for_each_vector(x, count, shift, [&](int64_t i, V v) {
          const V share = share_vector(q, i, count);
          blend += share * (v - V(shift));
          mass += share;
        });
      }
      for_each_vector(x, count, kNone<T>, [&](int64_t i, V v) {
        __builtin_prefetch(x + i + ahead);
        const V k = Statistic::kept(v - V(shift), parameter());
        if (kept) k.store(kept + i);
        sum += Statistic::term(k, parameter());
        if constexpr (Statistic::kShiftIsPicked) slope_sum += Statistic::slope(k, parameter());
        if constexpr (kMoment)
          moment += k * moment_term<Formula>(v - V(shift), share_of(q, i, count));
      });
      return {sum.sum(), slope_sum.sum(), blend.sum(), mass.sum(), moment.sum()};
    }

    void store_sums(int64_t row, const Sums& sums) {
      rows_.sum[row] = sums.sum;
      rows_.slope_sum[row] = sums.slope_sum;
      rows_.blend[row] = sums.blend;
      rows_.mass[row] = sums.mass;
      rows_.unit[row] = T(1);
      rows_.moment[row] = sums.moment;
      const bool counts = rows_.counts[row] != T(0);
      if (!counts) rows_.shift[row] = T(0);
      // By now the row is in a cache.
      rows_.picked[row] = counts && !kProbabilities ? pick(row) - rows_.shift[row] : T(0);
    }

    // The shares of a vector of classes, 0 beyond the last.
    static FASTLOSS_INLINE V share_vector(const T* q, int64_t begin, int64_t end) {
      if (begin + V::kLanes <= end) return q ? V::load(q + begin) : V(1);
      if (q) return load_some(q + begin, end - begin);
      return select(lane_numbers<T>() < V(T(end - begin)), V(1), V(0));
    }

    // The same, where there are any.
    static FASTLOSS_INLINE V share_of(const T* q, int64_t begin, int64_t end) {
      if constexpr (kShares) return share_vector(q, begin, end);
      return V(0);
    }

    void write_row(int64_t row) {
      const int64_t stride = class_stride(kSoftmaxGradient);
      T* stage = tile_ + row * pitch_;
      for (int64_t begin = 0; begin < classes_; begin += kTile) {
        const int64_t count = std::min(kTile, classes_ - begin);
        const int64_t offset = offset_of(kSoftmaxGradient, row) + begin * stride;
        // Straight to where it belongs where that takes whole vectors.
        T* const target = static_cast<T*>(arguments().gradient.data) + offset;
        const bool straight = gradient_is_plain_ && count % V::kLanes == 0 &&
                              (!engine_.streaming_ || is_aligned(target));
        if (rows_.counts[row] != T(0)) {
          differentiate(row, begin, count, straight ? target : stage,
                        straight && engine_.streaming_);
        } else {
          T* const out = straight ? target : stage;
          for (int64_t i = 0; i < count; ++i) out[i] = T(0);
        }
        if (!straight) write(offset, stride, stage, count);
      }
    }

    static bool is_aligned(const T* target) {
      return reinterpret_cast<uintptr_t>(target) % FASTLOSS_VECTOR_BYTES == 0;
    }

    // The gradient of `count` classes from `begin` on, in whole vectors.
    void differentiate(int64_t row, int64_t begin, int64_t count, T* out, bool streaming) const {
      const V to_statistic(rows_.to_statistic[row]), to_blend(rows_.to_blend[row]),
          to_moment(rows_.to_moment[row]), shift(rows_.shift[row]);
      T* const stage = tile_ + row * pitch_;
      const T* q = nullptr;
      if constexpr (kShares) {
        q = kProbabilities && keeps() ? share_stage(row)  // still there
                                      : shares(row, begin, count, share_stage(row));
      }
      const auto emit = [&](int64_t i, V kept, V x) {
        const V share = share_of(q, i, count);
        V gradient = Statistic::slope(kept, parameter()) *
                     slope_factor<Formula>(to_statistic, to_moment, x - shift, share);
        if constexpr (kBlends) gradient += share * to_blend;
        if (caps()) gradient *= engine_.cap_slope(x);
        add_picked(row, [&](int64_t label, T slope) {
          const int64_t lane = label - begin - i;
          if (lane < 0 || lane >= V::kLanes) return;
          gradient += select(lane_numbers<T>() == V(T(lane)), V(slope), V(0));
        });
        if (streaming) {
          gradient.store_streaming(out + i);
        } else {
          gradient.store(out + i);
        }
      };
      if (!kReadsRow || keeps()) {
        for (int64_t i = 0; i < count; i += V::kLanes)
          emit(i, kReadsRow ? V::load(stage + i) : V(0), V(0));
      } else {
        for_each_vector(logits(row, begin, count, stage), count, kNone<T>, [&](int64_t i, V x) {
          emit(i, Statistic::kept(x - shift, parameter()), x);
        });
      }
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

    // ---- rows in columns, see works_in_columns(): lanes are rows ----
    //
    // A tile holds [classes, pitch].

    ClassAxis axis(int operand) const { return {operand, class_stride(operand)}; }

    void read_columns(int64_t begin) {
      const int64_t count = rows_.count, all = padded<T>(count);
      // The next rows are fetched while these are worked on.
      const ClassAhead ahead = ClassTile<T>::ahead(arguments().input, arguments().rows,
                                                   axis(kSoftmaxInput), begin + count);
      if constexpr (kTakesExponentials) {
        if (!caps() &&
            columns_.load_exponentials(arguments().input, arguments().rows, axis(kSoftmaxInput),
                                       begin, begin + count, ahead)) {
          for (int64_t r = count; r < all; ++r) rows_.number[r] = rows_.upper[r] = T(0);
          for (int64_t r = 0; r < all; r += V::kLanes) add_exponentials(r);
          return;
        }
      }
      if constexpr (kReadsRow) {
        columns_.load(arguments().input, arguments().rows, axis(kSoftmaxInput), begin,
                      begin + count);
        if (caps()) {
          for (int64_t c = 0; c < classes_; ++c) {
            for (T *x = tile_ + c * pitch_, *end = x + all; x < end; x += V::kLanes)
              engine_.capped(V::load(x)).store(x);
          }
        }
      }
      if constexpr (kProbabilities) {
        share_columns_.load(arguments().target, arguments().rows, axis(kSoftmaxTarget), begin,
                            begin + count);
        for (int64_t c = 0; c < classes_; ++c) {
          smooth(shares_ + c * pitch_, count, engine_.weights_ ? engine_.weights_ + c : nullptr, 0);
        }
      }
      if constexpr (!kReadsRow) {
        for (int64_t r = 0; r < count; ++r) rows_.picked[r] = pick(r);
      }
      for (int64_t r = count; r < all; ++r) {
        rows_.number[r] = rows_.picked[r] = rows_.upper[r] = rows_.weight[r] = rows_.counts[r] =
            T(0);
      }
      for (int64_t r = 0; r < all; r += V::kLanes) {
        if (recomputes()) {
          add_column<false>(r, ahead);
        } else {
          add_column<true>(r, ahead);
        }
      }
    }

    // In which of a vector of rows a class is the one the label picks, or the lower or the upper
    // one of two for positions. Asked of every class that takes less time than scattered access to
    // the tile, for a few dozen classes, and not much more for hundreds.
    struct Picks {
      V label;
      explicit Picks(const T* numbers) : label(V::load(numbers)) {}
      Mask<T> lower(V c) const { return c == label; }
      Mask<T> upper(V c) const { return c == label + V(1); }
    };

    // A vector of rows, from its first row on. Where the logits are needed again, nothing is kept.
    template <bool kKeeps>
    void add_column(int64_t first, const ClassAhead& ahead) {
      T* const x = tile_ + first;
      const Picks picks(rows_.number + first);
      V picked = kReadsRow ? V(0) : V::load(rows_.picked + first), peak(kNone<T>);
      if constexpr (kReadsRow) {
        V upper(0), number(0);
        for (int64_t c = 0; c < classes_; ++c, number += V(1)) {
          V at = V::load(x + c * pitch_);
          if constexpr (!kProbabilities) picked = select(picks.lower(number), at, picked);
          if constexpr (kTarget == ClassTarget::kPosition)
            upper = select(picks.upper(number), at, upper);
          if constexpr (Statistic::kExcludesPicked) {
            at = select(picks.lower(number), V(kNone<T>), at);
            at.store(x + c * pitch_);
          }
          peak = larger(at, peak);
        }
        if constexpr (kTarget == ClassTarget::kPosition)
          picked = interpolate(picked, upper, V::load(rows_.upper + first));
      }
      V shift(0);
      if constexpr (Statistic::kShiftIsPicked) {
        shift = picked;
      } else if constexpr (kReadsRow) {
        shift = select(peak == V(kNone<T>), V(0), peak);
      }
      V sum(0), slope_sum(0), blend(0), mass(0), moment(0);
      if constexpr (kReadsRow) {
        for (int64_t c = 0; c < classes_; ++c) {
          ahead.ask(c, first);
          const V relative = V::load(x + c * pitch_) - shift;
          const V kept = Statistic::kept(relative, parameter());
          if constexpr (kKeeps) kept.store(x + c * pitch_);
          sum += Statistic::term(kept, parameter());
          if constexpr (Statistic::kShiftIsPicked) slope_sum += Statistic::slope(kept, parameter());
          if constexpr (kBlends) {
            const V share = column_share(first, c);
            blend += share * relative;
            mass += share;
          }
          if constexpr (kMoment)
            moment += kept * moment_term<Formula>(relative, column_share(first, c));
        }
      }
      shift.store(rows_.shift + first);
      sum.store(rows_.sum + first);
      slope_sum.store(rows_.slope_sum + first);
      (kProbabilities ? V(0) : picked - shift).store(rows_.picked + first);
      blend.store(rows_.blend + first);
      mass.store(rows_.mass + first);
      moment.store(rows_.moment + first);
      V(1).store(rows_.unit + first);
    }

    // The same where the tile holds exponentials: the shift is the picked logit.
    void add_exponentials(int64_t first) {
      const T* const e = tile_ + first;
      const Picks picks(rows_.number + first);
      V sum(0), picked(0), upper(0), number(0);
      for (int64_t c = 0; c < classes_; ++c, number += V(1)) {
        const V at = V::load(e + c * pitch_);
        sum += at;
        picked = select(picks.lower(number), at, picked);
        if constexpr (kTarget == ClassTarget::kPosition)
          upper = select(picks.upper(number), at, upper);
      }
      picked = select(picked == V(0), V(1), picked);  // of a row that does not count
      if constexpr (kTarget == ClassTarget::kPosition) {
        upper = select(upper == V(0), V(1), upper);
        picked *= exp_moderate(V::load(rows_.upper + first) * (log(upper) - log(picked)));
      }
      const V unit = V(1) / picked;
      log(picked).store(rows_.shift + first);
      unit.store(rows_.unit + first);
      (sum * unit).store(rows_.sum + first);
      for (T* zeros : {rows_.slope_sum, rows_.picked, rows_.blend, rows_.mass, rows_.moment})
        V(0).store(zeros + first);
    }

    V column_share(int64_t first, int64_t c) const {
      if constexpr (kProbabilities) return V::load(shares_ + c * pitch_ + first);
      return engine_.weights_ ? V(engine_.weights_[c]) : V(1);
    }

    void write_columns(int64_t begin) {
      if (recomputes()) {
        write_columns<false>(begin);
      } else {
        write_columns<true>(begin);
      }
    }

    template <bool kKept>
    void write_columns(int64_t begin) {
      const int64_t end = begin + rows_.count;
      const ClassAxis to = axis(kSoftmaxGradient);
      T* const in_place =
          ClassTile<T>::in_place(arguments().gradient, arguments().rows, to, begin, end);
      if (in_place == nullptr) {
        differentiate_columns<kKept, false>(tile_, pitch_);
        columns_.store(arguments().gradient, arguments().rows, to, begin, end, engine_.streaming_);
      } else if (engine_.streaming_) {
        differentiate_columns<kKept, true>(in_place, to.class_stride);
      } else {
        differentiate_columns<kKept, false>(in_place, to.class_stride);
      }
    }

    // What the gradients of a vector of rows are made of.
    struct Slopes {
      V to_statistic, to_blend, to_moment, to_picked, upper_share, shift;
      Mask<T> counts;
      Picks picks;
    };
    Slopes slopes_of(int64_t first) const {
      const auto at = [first](const T* numbers) { return V::load(numbers + first); };
      return {at(rows_.to_statistic),   at(rows_.to_blend),
              at(rows_.to_moment),      at(rows_.to_picked),
              at(rows_.upper),          at(rows_.shift),
              at(rows_.counts) != V(0), Picks(rows_.number + first)};
    }

    // Gradients of all rows, `stride` numbers from a class to the next.
    template <bool kKept, bool kStreaming>
    void differentiate_columns(T* out, int64_t stride) const {
      if (out == tile_) {
        for (int64_t first = 0; first < rows_.count; first += V::kLanes) {
          const Slopes slopes = slopes_of(first);
          for (int64_t c = 0; c < classes_; ++c)
            differentiate_column<kKept>(slopes, first, c).store(out + c * stride + first);
        }
        return;
      }
      // Class by class: classes are far from one another in memory.
      for (int64_t c = 0; c < classes_; ++c) {
        for (int64_t first = 0; first < rows_.count; first += V::kLanes) {
          const V gradient = differentiate_column<kKept>(slopes_of(first), first, c);
          if constexpr (kStreaming) {
            gradient.store_streaming(out + c * stride + first);
          } else {
            gradient.store(out + c * stride + first);
          }
        }
      }
    }

    template <bool kKept>
    FASTLOSS_INLINE V differentiate_column(const Slopes& slopes, int64_t first, int64_t c) const {
      V gradient(0);
      if constexpr (kReadsRow) {
        const V found = V::load(tile_ + c * pitch_ + first);
        const V kept = kKept ? found : Statistic::kept(found - slopes.shift, parameter());
        const V share = kShares ? column_share(first, c) : V(0);
        gradient = Statistic::slope(kept, parameter()) *
                   slope_factor<Formula>(slopes.to_statistic, slopes.to_moment,
                                         found - slopes.shift, share);
        if constexpr (kBlends) gradient += share * slopes.to_blend;
        if constexpr (!kKept) {
          if (caps()) gradient *= engine_.cap_slope(found);
        }
      }
      const V number{T(c)};
      if constexpr (kTarget == ClassTarget::kPosition) {
        gradient += select(slopes.picks.lower(number),
                           (V(1) - slopes.upper_share) * slopes.to_picked, V(0));
        gradient += select(slopes.picks.upper(number), slopes.upper_share * slopes.to_picked, V(0));
      } else if constexpr (!kProbabilities) {
        gradient += select(slopes.picks.lower(number), slopes.to_picked, V(0));
      }
      // Selected, not multiplied: what does not count may hold anything, NaN too.
      if constexpr (kTarget == ClassTarget::kIndex) return select(slopes.counts, gradient, V(0));
      return gradient;
    }

    // ---- the formula ----

    // Losses, and what the gradients are made of. The only place where a formula is compiled in.
    T evaluate() {
      V total(0);
      const V scale(T(engine_.gradient_scale_)), inverse_classes(T(1) / T(classes_));
      const int64_t count = rows_.count, all = padded<T>(count);
      for (int64_t r = count; r < all; ++r) {  // lanes beyond the last row
        rows_.counts[r] = rows_.picked[r] = rows_.blend[r] = rows_.shift[r] = T(0);
        rows_.moment[r] = T(0);
        rows_.weight[r] = rows_.mass[r] = rows_.slope_sum[r] = T(0);
        rows_.sum[r] = rows_.unit[r] = T(1);
      }
      for (int64_t r = 0; r < all; r += V::kLanes) {
        const auto at = [&](const T* numbers) { return V::load(numbers + r); };
        const RowSums<V> sums{at(rows_.sum),   at(rows_.slope_sum), at(rows_.picked),
                              at(rows_.blend), at(rows_.mass),      at(rows_.moment),
                              at(rows_.shift), at(rows_.weight)};
        RowResult<V> result = evaluate_row<Formula, kGradient>(sums, inverse_classes, parameter());
        const auto counts = at(rows_.counts) != V(0);
        const V loss = select(counts, result.loss, V(0));
        loss.store(rows_.loss + r);
        total += loss;
        if constexpr (kGradient) {
          if (caps()) result.to_picked *= engine_.cap_slope(sums.picked + sums.shift);
          select(counts, result.to_statistic * scale * at(rows_.unit), V(0))
              .store(rows_.to_statistic + r);
          select(counts, result.to_picked * scale, V(0)).store(rows_.to_picked + r);
          select(counts, result.to_blend * scale, V(0)).store(rows_.to_blend + r);
          select(counts, result.to_moment * scale, V(0)).store(rows_.to_moment + r);
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
    ClassTile<T> columns_, share_columns_;  // of rows in columns; else of no use
    const int64_t pitch_;  // between rows of the tile: of classes, or of rows in columns
    const int64_t rows_per_tile_;
    const Scratch<T> memory_;
    const bool input_is_plain_, gradient_is_plain_;
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
  LabelFault fault_;
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
