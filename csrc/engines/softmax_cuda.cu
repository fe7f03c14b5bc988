// SPDX-License-Identifier: MIT
#include "engines/access_cuda.h"
#include "engines/kernels.h"
#include "engines/softmax_row.h"

namespace fastloss::FASTLOSS_TARGET {
namespace {

// Rows of up to this many classes get a warp each, wider ones a block.
constexpr int64_t kWarpClasses = 512;
constexpr int kWideThreads = 512;
constexpr int kColumnThreads = 256;
template <int kGroup>
constexpr int kBlockThreads = kGroup == kWarpSize ? 256 : kGroup;
// Blocks per multiprocessor that kernels are compiled for. Said to the compiler, which otherwise
// spills a register or two for the sake of one block more.
constexpr int kColumnBlocks = 3;
template <int kGroup>
constexpr int kRowBlocks = kGroup == kWarpSize ? 3 : 1;
// Packs of logits a thread holds in registers between its two passes; what does not fit is read
// again, from the second-level cache.
constexpr int kHeld = 4;

template <class T>
constexpr T kNone = T(-__builtin_inff());  // less than any logit

// The sums of a part of a row, relative to the shift of its largest logit.
template <class Formula, class T>
struct Part {
  using Statistic = typename Formula::Statistic;
  T peak = kNone<T>;
  T sum = T(0), slope_sum = T(0), blend = T(0), mass = T(0), moment = T(0);

  FASTLOSS_DEVICE_INLINE T shift() const { return peak == kNone<T> ? T(0) : peak; }

  FASTLOSS_DEVICE_INLINE void raise_to(T higher, const T* parameter) {
    if (Statistic::kShiftIsPicked || higher == peak) return;
    const T old_shift = shift();
    if (peak != kNone<T>) {
      const T rescale = Statistic::rescale(higher - old_shift, parameter);
      if constexpr (has_moment<Formula>)
        moment = raised_moment<Formula>(moment, sum, higher - old_shift, rescale);
      sum *= rescale;
    }
    if constexpr (blends_classes<Formula>) blend += (old_shift - higher) * mass;
    peak = higher;
  }

  template <int kWidth>
  FASTLOSS_DEVICE_INLINE void add(const T (&x)[kWidth], const T (&share)[kWidth],
                                  const T* parameter) {
    if constexpr (!Statistic::kShiftIsPicked) {
      T highest = peak;
      for (int i = 0; i < kWidth; ++i) highest = max(highest, x[i]);
      raise_to(highest, parameter);
    }
    for (int i = 0; i < kWidth; ++i) {
      const T kept = Statistic::kept(x[i] - shift(), parameter);
      sum += Statistic::term(kept, parameter);
      if constexpr (Statistic::kShiftIsPicked) slope_sum += Statistic::slope(kept, parameter);
      if constexpr (blends_classes<Formula>) {
        blend += share[i] * (x[i] - shift());
        mass += share[i];
      }
      if constexpr (has_moment<Formula>)
        moment += kept * moment_term<Formula>(x[i] - shift(), share[i]);
    }
  }

  FASTLOSS_DEVICE_INLINE void merge(Part other, const T* parameter) {
    const T highest = max(peak, other.peak);
    raise_to(highest, parameter);
    other.raise_to(highest, parameter);
    sum += other.sum;
    slope_sum += other.slope_sum;
    blend += other.blend;
    mass += other.mass;
    moment += other.moment;
  }

  // The same total in every lane of the warp, whose lanes each have a part.
  FASTLOSS_DEVICE_INLINE void merge_warp(const T* parameter) {
    for (int offset = kWarpSize / 2; offset > 0; offset /= 2) {
      Part other;
      other.peak = __shfl_xor_sync(kAllLanes, peak, offset);
      other.sum = __shfl_xor_sync(kAllLanes, sum, offset);
      if constexpr (Statistic::kShiftIsPicked)
        other.slope_sum = __shfl_xor_sync(kAllLanes, slope_sum, offset);
      if constexpr (blends_classes<Formula>) {
        other.blend = __shfl_xor_sync(kAllLanes, blend, offset);
        other.mass = __shfl_xor_sync(kAllLanes, mass, offset);
      }
      if constexpr (has_moment<Formula>) other.moment = __shfl_xor_sync(kAllLanes, moment, offset);
      // The lower lane's part first: both then round alike.
      const bool is_lower = (threadIdx.x & static_cast<unsigned>(offset)) == 0;
      Part lower = is_lower ? *this : other;
      lower.merge(is_lower ? other : *this, parameter);
      *this = lower;
    }
  }

  // The same for a block.
  template <int kThreads>
  FASTLOSS_DEVICE_INLINE void merge_block(const T* parameter) {
    constexpr int kWarps = kThreads / kWarpSize;
    __shared__ T of_warp[6][kWarps];
    merge_warp(parameter);
    const int warp = static_cast<int>(threadIdx.x) / kWarpSize;
    __syncthreads();  // the last row's may still be read
    if (threadIdx.x % kWarpSize == 0) {
      of_warp[0][warp] = peak;
      of_warp[1][warp] = sum;
      of_warp[2][warp] = slope_sum;
      of_warp[3][warp] = blend;
      of_warp[4][warp] = mass;
      of_warp[5][warp] = moment;
    }
    __syncthreads();
    const auto part_of = [&](int w) {
      Part part;
      part.peak = of_warp[0][w];
      part.sum = of_warp[1][w];
      part.slope_sum = of_warp[2][w];
      part.blend = of_warp[3][w];
      part.mass = of_warp[4][w];
      part.moment = of_warp[5][w];
      return part;
    };
    Part total = part_of(0);
    for (int w = 1; w < kWarps; ++w) total.merge(part_of(w), parameter);
    *this = total;
  }
};

// One row: where it lies, what its label is, and the formula's result for it.
template <class Formula, class T>
class Row {
  using Statistic = typename Formula::Statistic;

 public:
  FASTLOSS_DEVICE_INLINE Row(const SoftmaxArguments& arguments, const T* parameter, int64_t row)
      : arguments_(arguments), parameter_(parameter), cap_(T(arguments.softcap)) {
    locate(arguments.rows, row, offset_);
    const auto* weights = static_cast<const T*>(arguments.class_weight.data);
    if constexpr (class_target<Formula> == ClassTarget::kIndex) {
      label_ = load_integer(arguments.target, offset_[kSoftmaxTarget]);
      counts_ = !is_ignored(arguments.ignored, label_);
      FASTLOSS_DEVICE_ASSERT(!counts_ || (label_ >= 0 && label_ < arguments.classes),
                             "fastloss: a label is out of range");
      if (!counts_) label_ = 0;
      if (weights != nullptr) weight_ = weights[label_];
      picked_ = logit(label_);
    } else if constexpr (class_target<Formula> == ClassTarget::kPosition) {
      T position[1];
      load(position, arguments.target, Span{offset_[kSoftmaxTarget], 1, false});
      const auto neighbours = around(position[0], arguments.classes);
      label_ = static_cast<int64_t>(neighbours.lower);
      upper_share_ = neighbours.upper_share;
      picked_ = interpolate(logit(label_), logit(label_ + 1), upper_share_);
    }
    if (arguments.row_weight.data != nullptr) {
      T weight[1];
      load(weight, arguments.row_weight, Span{offset_[kSoftmaxRowWeight], 1, false});
      weight_ = weight[0];
    }
  }

  FASTLOSS_DEVICE_INLINE bool counts() const { return counts_; }
  FASTLOSS_DEVICE_INLINE T loss() const { return result_.loss; }

  // The logits of kWidth classes from `first` on, as the statistic sees them.
  template <int kWidth>
  FASTLOSS_DEVICE_INLINE void load_logits(T (&x)[kWidth], int64_t first) const {
    load(x, arguments_.input, span<kWidth>(kSoftmaxInput, first));
    for (int i = 0; i < kWidth; ++i) {
      if (cap_ != T(0)) x[i] = softcapped(x[i], cap_);
      if (Statistic::kExcludesPicked && first + i == label_) x[i] = kNone<T>;
    }
  }

  // Their shares in the blend.
  template <int kWidth>
  FASTLOSS_DEVICE_INLINE void load_shares(T (&share)[kWidth], int64_t first) const {
    for (int i = 0; i < kWidth; ++i) share[i] = T(1);
    if constexpr (has_shares<Formula>) {
      if constexpr (has_probabilities<Formula>) {
        load(share, arguments_.target, span<kWidth>(kSoftmaxTarget, first));
        for (int i = 0; i < kWidth; ++i)
          share[i] = smoothed(share[i], T(arguments_.smoothing), inverse_classes());
      }
      const auto* weights = static_cast<const T*>(arguments_.class_weight.data);
      if (weights != nullptr) {
        for (int i = 0; i < kWidth; ++i) share[i] *= weights[first + i];
      }
    }
  }

  FASTLOSS_DEVICE_INLINE T start() const { return Statistic::kShiftIsPicked ? picked_ : kNone<T>; }

  FASTLOSS_DEVICE_INLINE void evaluate(const Part<Formula, T>& part, T scale) {
    shift_ = part.shift();
    const RowSums<T> sums{part.sum,  part.slope_sum, picked_ - shift_, part.blend,
                          part.mass, part.moment,    shift_,           weight_};
    result_ = evaluate_row<Formula, true>(sums, inverse_classes(), parameter_);
    if (cap_ != T(0)) result_.to_picked *= softcap_slope(picked_, cap_);
    result_.to_statistic *= scale;
    result_.to_picked *= scale;
    result_.to_blend *= scale;
    result_.to_moment *= scale;
  }

  // The gradient of kWidth classes whose logits are x.
  template <int kWidth>
  FASTLOSS_DEVICE_INLINE void store_gradient(const T (&x)[kWidth], int64_t first) const {
    T share[kWidth], gradient[kWidth];
    load_shares(share, first);
    for (int i = 0; i < kWidth; ++i) {
      const T kept = Statistic::kept(x[i] - shift_, parameter_);
      gradient[i] =
          Statistic::slope(kept, parameter_) *
          slope_factor<Formula>(result_.to_statistic, result_.to_moment, x[i] - shift_, share[i]);
      if constexpr (blends_classes<Formula>) gradient[i] += share[i] * result_.to_blend;
      if (cap_ != T(0)) gradient[i] *= softcap_slope(x[i], cap_);
      if constexpr (class_target<Formula> == ClassTarget::kIndex) {
        if (first + i == label_) gradient[i] += result_.to_picked;
      } else if constexpr (class_target<Formula> == ClassTarget::kPosition) {
        if (first + i == label_) gradient[i] += (T(1) - upper_share_) * result_.to_picked;
        if (first + i == label_ + 1) gradient[i] += upper_share_ * result_.to_picked;
      }
    }
    store(arguments_.gradient, gradient, span<kWidth>(kSoftmaxGradient, first));
  }

  template <int kWidth>
  FASTLOSS_DEVICE_INLINE void store_zero_gradient(int64_t first) const {
    const T zero[kWidth] = {};
    store(arguments_.gradient, zero, span<kWidth>(kSoftmaxGradient, first));
  }

  FASTLOSS_DEVICE_INLINE void store_value() const {
    static_cast<T*>(arguments_.loss_output.values)[offset_[kSoftmaxValues]] =
        counts_ ? result_.loss : T(0);
  }

 private:
  FASTLOSS_DEVICE_INLINE T inverse_classes() const { return T(1) / T(arguments_.classes); }

  template <int kWidth>
  FASTLOSS_DEVICE_INLINE Span span(int operand, int64_t first) const {
    const int64_t stride = arguments_.class_stride[operand];
    return {offset_[operand] + first * stride, stride, stride == 1};
  }

  FASTLOSS_DEVICE_INLINE T logit(int64_t label) const {
    T x[1];
    load(x, arguments_.input, span<1>(kSoftmaxInput, label));
    return cap_ != T(0) ? softcapped(x[0], cap_) : x[0];
  }

  const SoftmaxArguments& arguments_;
  const T* parameter_;
  const T cap_;
  int64_t offset_[kSoftmaxOperands];
  int64_t label_ = 0;
  T upper_share_ = T(0), weight_ = T(1), picked_ = T(0), shift_ = T(0);
  bool counts_ = true;
  RowResult<T> result_{};
};

template <class Formula, class T>
FASTLOSS_DEVICE_INLINE void load_parameters(T (&parameter)[kMaxParameters],
                                            const SoftmaxArguments& arguments) {
  for (int i = 0; i < Formula::kParameters; ++i) parameter[i] = T(arguments.parameters[i]);
}

template <int kThreads, class T>
FASTLOSS_DEVICE_INLINE void finish(T sum, const SoftmaxArguments& arguments,
                                   const Completion& completion) {
  if (arguments.loss_output.total == nullptr) return;
  grid_sum<kThreads>(sum, completion, [&](double total) {
    *static_cast<T*>(arguments.loss_output.total) = T(total * resolve(arguments.loss_scale));
  });
}

// kGroup threads a row: a warp, or the whole block.
template <class Formula, class T, int kGroup, int kWidth>
__global__ void __launch_bounds__(kBlockThreads<kGroup>, kRowBlocks<kGroup>)
    softmax_rows_kernel(const __grid_constant__ SoftmaxArguments arguments,
                        const Completion completion) {
  constexpr int kThreads = kBlockThreads<kGroup>, kRows = kThreads / kGroup;
  T parameter[kMaxParameters];
  load_parameters<Formula>(parameter, arguments);
  const T scale = T(resolve(arguments.gradient_scale));
  const int lane = static_cast<int>(threadIdx.x) % kGroup;
  const int64_t classes = arguments.classes, step = int64_t{kGroup} * kWidth;

  T sum(0);
  for (int64_t index = int64_t{blockIdx.x} * kRows + threadIdx.x / kGroup;
       index < arguments.rows.numel; index += int64_t{gridDim.x} * kRows) {
    Row<Formula, T> row(arguments, parameter, index);
    const int64_t begin = int64_t{lane} * kWidth;
    if (!row.counts()) {
      if (arguments.gradient.data != nullptr) {
        for (int64_t c = begin; c < classes; c += step) row.template store_zero_gradient<kWidth>(c);
      }
      if (lane == 0 && arguments.loss_output.values) row.store_value();
      continue;
    }

    Part<Formula, T> part;
    part.peak = row.start();
    T held[kHeld][kWidth], share[kWidth];
    const auto beyond = begin + kHeld * step;
    if constexpr (reads_row<Formula>) {
      FASTLOSS_UNROLL
      for (int k = 0; k < kHeld; ++k) {
        const int64_t c = begin + k * step;
        if (c < classes) row.load_logits(held[k], c);
      }
      FASTLOSS_UNROLL
      for (int k = 0; k < kHeld; ++k) {
        const int64_t c = begin + k * step;
        if (c >= classes) continue;
        row.load_shares(share, c);
        part.add(held[k], share, parameter);
      }
      for (int64_t c = beyond; c < classes; c += step) {
        T x[kWidth];
        row.load_logits(x, c);
        row.load_shares(share, c);
        part.add(x, share, parameter);
      }
      if constexpr (kGroup == kWarpSize) {
        part.merge_warp(parameter);
      } else {
        part.template merge_block<kGroup>(parameter);
      }
    }
    row.evaluate(part, scale);
    if (lane == 0) {
      sum += row.loss();
      if (arguments.loss_output.values) row.store_value();
    }
    if (arguments.gradient.data == nullptr) continue;
    if constexpr (reads_row<Formula>) {
      FASTLOSS_UNROLL
      for (int k = 0; k < kHeld; ++k) {
        const int64_t c = begin + k * step;
        if (c < classes) row.store_gradient(held[k], c);
      }
      for (int64_t c = beyond; c < classes; c += step) {
        T x[kWidth];
        row.load_logits(x, c);
        row.store_gradient(x, c);
      }
    } else {
      const T nothing[kWidth] = {};
      for (int64_t c = begin; c < classes; c += step) row.store_gradient(nothing, c);
    }
  }
  finish<kThreads>(sum, arguments, completion);
}

// A thread a row: neighbouring threads read neighbouring memory where the classes are strided.
template <class Formula, class T>
__global__ void __launch_bounds__(kColumnThreads, kColumnBlocks)
    softmax_columns_kernel(const __grid_constant__ SoftmaxArguments arguments,
                           const Completion completion) {
  T parameter[kMaxParameters];
  load_parameters<Formula>(parameter, arguments);
  const T scale = T(resolve(arguments.gradient_scale));
  const int64_t classes = arguments.classes;

  T sum(0);
  for (int64_t index = int64_t{blockIdx.x} * kColumnThreads + threadIdx.x;
       index < arguments.rows.numel; index += int64_t{gridDim.x} * kColumnThreads) {
    Row<Formula, T> row(arguments, parameter, index);
    if (row.counts()) {
      Part<Formula, T> part;
      part.peak = row.start();
      if constexpr (reads_row<Formula>) {
        for (int64_t c = 0; c < classes; ++c) {
          T x[1], share[1];
          row.load_logits(x, c);
          row.load_shares(share, c);
          part.add(x, share, parameter);
        }
      }
      row.evaluate(part, scale);
      sum += row.loss();
    }
    if (arguments.loss_output.values) row.store_value();
    if (arguments.gradient.data == nullptr) continue;
    for (int64_t c = 0; c < classes; ++c) {
      T x[1] = {T(0)};
      if (!row.counts()) {
        row.template store_zero_gradient<1>(c);
        continue;
      }
      if constexpr (reads_row<Formula>) row.load_logits(x, c);
      row.store_gradient(x, c);
    }
  }
  finish<kColumnThreads>(sum, arguments, completion);
}

Completion completion_of(const SoftmaxArguments& arguments, const Execution& execution,
                         unsigned grid) {
  return arguments.loss_output.total ? completion_for(execution, grid) : Completion{};
}

template <class Formula, class T, int kGroup, int kWidth>
void run_rows(const SoftmaxArguments& arguments, const Execution& execution) {
  constexpr int kThreads = kBlockThreads<kGroup>;
  const unsigned grid = grid_for(arguments.rows.numel, kThreads / kGroup);
  launch(softmax_rows_kernel<Formula, T, kGroup, kWidth>, grid, kThreads, 0, execution.stream,
         arguments, completion_of(arguments, execution, grid));
}

// Whether a row's classes divide into aligned packs in every operand.
template <class Formula, class T>
bool is_packed(const SoftmaxArguments& arguments) {
  if (arguments.classes % kWide<T> != 0) return false;
  const auto packed = [&](int operand, const void* data, DType dtype) {
    if (data == nullptr) return true;
    if (arguments.class_stride[operand] != 1 || !is_pack_aligned(data, dtype, kWide<T>))
      return false;
    for (int d = 0; d < arguments.rows.dims; ++d) {
      if (arguments.rows.stride[operand][d] % kWide<T> != 0) return false;
    }
    return true;
  };
  return packed(kSoftmaxInput, arguments.input.data, arguments.input.dtype) &&
         packed(kSoftmaxGradient, arguments.gradient.data, arguments.gradient.dtype) &&
         (!has_probabilities<Formula> ||
          packed(kSoftmaxTarget, arguments.target.data, arguments.target.dtype));
}

template <class Formula, class T>
void run_typed(const SoftmaxArguments& arguments, const Execution& execution) {
  if (arguments.class_stride[kSoftmaxInput] != 1 && arguments.classes > 1) {
    const unsigned grid = grid_for(arguments.rows.numel, kColumnThreads);
    launch(softmax_columns_kernel<Formula, T>, grid, kColumnThreads, 0, execution.stream, arguments,
           completion_of(arguments, execution, grid));
    return;
  }
  if constexpr (kWide<T> == 1) {  // float64 is for checking: one compilation serves it
    run_rows<Formula, T, kWarpSize, 1>(arguments, execution);
  } else {
    const bool wide = arguments.classes > kWarpClasses;
    if (is_packed<Formula, T>(arguments)) {
      if (wide) {
        run_rows<Formula, T, kWideThreads, kWide<T>>(arguments, execution);
      } else {
        run_rows<Formula, T, kWarpSize, kWide<T>>(arguments, execution);
      }
    } else if (wide) {
      run_rows<Formula, T, kWideThreads, 1>(arguments, execution);
    } else {
      run_rows<Formula, T, kWarpSize, 1>(arguments, execution);
    }
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
