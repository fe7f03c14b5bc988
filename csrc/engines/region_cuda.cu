// SPDX-License-Identifier: MIT
#include "engines/access_cuda.h"
#include "engines/kernels.h"
#include "engines/region_formula.h"

namespace fastloss::FASTLOSS_TARGET {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / kWarpSize;
// Fewer blocks at a time than elsewhere: a thread holds several voxels, with sums for each.
constexpr int kResident = 2;
// Classes whose sums fit a block's shared memory at a time, for each of its warps.
constexpr int64_t kClassesAtOnce = (48 << 10) / (kWarps * kClassSums * int64_t{sizeof(double)});

FASTLOSS_DEVICE_INLINE int64_t lesser(int64_t a, int64_t b) { return a < b ? a : b; }

// kWidth consecutive voxels of a sample, for one thread: their logits, targets and probabilities,
// class by class. What does not count is 0 in all.
template <class T, int kWidth>
class Voxels {
 public:
  FASTLOSS_DEVICE_INLINE Voxels(const RegionArguments& arguments, int64_t sample, int64_t position,
                                bool exists)
      : arguments_(arguments) {
    locate(arguments.layout, position, offsets_);
    for (int k = 0; k < kRegionOperands; ++k) offsets_[k] += sample * arguments.batch_stride[k];
    for (int i = 0; i < kWidth; ++i) {
      valid[i] = exists ? T(1) : T(0);
      label_[i] = -1;
    }
    if (!exists) return;
    if (arguments.labels) {
      load_labels();
    } else if (arguments.ignore != Ignore::kNone) {
      ignore_dense();
    }
  }

  FASTLOSS_DEVICE_INLINE void load_logits(T (&x)[kWidth], int64_t c) const {
    load(x, arguments_.input, span(kRegionInput, c));
    clear(x);
  }
  FASTLOSS_DEVICE_INLINE void load_target(T (&t)[kWidth], int64_t c) const {
    if (arguments_.labels) {
      for (int i = 0; i < kWidth; ++i) t[i] = label_[i] == c ? T(1) : T(0);
    } else {
      load(t, arguments_.target, span(kRegionTarget, c));
      clear(t);
    }
  }
  FASTLOSS_DEVICE_INLINE void store_gradient(const T (&gradient)[kWidth], int64_t c) const {
    store(arguments_.gradient, gradient, span(kRegionGradient, c));
  }

  // Softmax: the largest logit of each voxel.
  FASTLOSS_DEVICE_INLINE void find_largest() {
    load_logits(largest_, 0);
    for (int64_t c = 1; c < arguments_.classes; ++c) {
      T x[kWidth];
      load_logits(x, c);
      for (int i = 0; i < kWidth; ++i) largest_[i] = max(largest_[i], x[i]);
    }
  }
  FASTLOSS_DEVICE_INLINE T shifted(T x, int i) const { return x - largest_[i]; }
  // And the sum of the exponentials of what is shifted().
  FASTLOSS_DEVICE_INLINE void set_sum(const T (&sum)[kWidth]) {
    for (int i = 0; i < kWidth; ++i) inverse_[i] = valid[i] / sum[i];
  }
  FASTLOSS_DEVICE_INLINE T inverse(int i) const { return inverse_[i]; }

  FASTLOSS_DEVICE_INLINE T probability(T x, int i) const {
    switch (arguments_.activation) {
      case Activation::kSoftmax:
        return exp(shifted(x, i)) * inverse_[i];
      case Activation::kSigmoid:
        return sigmoid(x) * valid[i];
      default:
        return x;
    }
  }

  T valid[kWidth];  // 1, or 0 where the voxel does not count

 private:
  FASTLOSS_DEVICE_INLINE Span span(int operand, int64_t c) const {
    const int64_t stride = arguments_.layout.stride[operand][0];
    return {offsets_[operand] + c * arguments_.class_stride[operand], stride, stride == 1};
  }

  // Selected, not multiplied: what does not count may hold anything, NaN too.
  FASTLOSS_DEVICE_INLINE void clear(T (&numbers)[kWidth]) const {
    for (int i = 0; i < kWidth; ++i) numbers[i] = valid[i] == T(0) ? T(0) : numbers[i];
  }

  FASTLOSS_DEVICE_INLINE void load_labels() {
    for (int i = 0; i < kWidth; ++i) {
      const int64_t label =
          load_integer(arguments_.target,
                       offsets_[kRegionTarget] + i * arguments_.layout.stride[kRegionTarget][0]);
      const bool ignored = arguments_.ignore == Ignore::kLabel && label == arguments_.ignore_index;
      FASTLOSS_DEVICE_ASSERT(ignored || (label >= 0 && label < arguments_.classes),
                             "fastloss: a label is not one of the classes");
      label_[i] = ignored ? -1 : static_cast<int>(label);
      valid[i] = ignored ? T(0) : T(1);
    }
  }

  FASTLOSS_DEVICE_INLINE void ignore_dense() {
    const T index = T(arguments_.ignore_index);
    T seen[kWidth];
    if (arguments_.ignore == Ignore::kUnassigned) {
      T sum[kWidth];
      for (int i = 0; i < kWidth; ++i) sum[i] = T(0);
      for (int64_t c = 0; c < arguments_.classes; ++c) {
        load(seen, arguments_.target, span(kRegionTarget, c));
        for (int i = 0; i < kWidth; ++i) sum[i] += seen[i];
      }
      for (int i = 0; i < kWidth; ++i) valid[i] = sum[i] <= T(0) ? T(0) : T(1);
    } else {
      const bool by_class = arguments_.ignore == Ignore::kClass;
      load(seen, arguments_.target, span(kRegionTarget, by_class ? arguments_.ignore_index : 0));
      for (int i = 0; i < kWidth; ++i)
        valid[i] = (by_class ? seen[i] > T(0.5) : seen[i] == index) ? T(0) : T(1);
    }
  }

  const RegionArguments& arguments_;
  int64_t offsets_[kRegionOperands];
  int label_[kWidth];  // -1: of no class
  T largest_[kWidth], inverse_[kWidth];
};

// What the loss of voxels is computed with.
template <class T>
struct VoxelParameters {
  T parameter[2];
  T share;  // 1 / classes
};

template <class Voxel>
FASTLOSS_DEVICE_INLINE bool has_voxel_loss(const RegionArguments& arguments, int64_t c) {
  return c > 0 || arguments.include_background || !Voxel::kSkipsBackground;
}

// A block per slice; each warp adds up classes in its own row of shared memory.
template <class Voxel, class T, int kWidth>
__global__ void __launch_bounds__(kThreads, kResident)
    sums_kernel(const __grid_constant__ RegionArguments arguments,
                const VoxelParameters<T> of_voxel) {
  constexpr bool kCrossEntropy = Voxel::kKind == VoxelKind::kCrossEntropy;
  constexpr bool kOfLogit = Voxel::kKind == VoxelKind::kLogit;
  const int thread = static_cast<int>(threadIdx.x), lane = thread % kWarpSize;
  const RegionSlices& slices = arguments.slices;
  const int64_t sample = blockIdx.x / slices.per_sample, classes = arguments.classes;
  const int64_t begin = blockIdx.x % slices.per_sample * slices.voxels;
  const int64_t end = lesser(begin + slices.voxels, arguments.layout.numel);
  double* row = arguments.scratch + blockIdx.x * slices.row;
  auto* shared = dynamic_shared<double>();

  double totals[2] = {0.0, 0.0};  // the losses of voxels, and how many count
  for (int64_t first = 0; first < classes; first += kClassesAtOnce) {
    const int64_t last = lesser(first + kClassesAtOnce, classes);
    const int numbers = static_cast<int>(last - first) * kClassSums;
    double* sums = shared + thread / kWarpSize * numbers;
    for (int k = lane; k < numbers; k += kWarpSize) sums[k] = 0.0;
    __syncwarp();
    // Every thread takes every round: the lanes of a warp add up together.
    for (int64_t at = begin; at < end; at += kThreads * kWidth) {
      const int64_t position = at + thread * kWidth;
      const bool exists = position < end;
      Voxels<T, kWidth> voxels(arguments, sample, exists ? position : begin, exists);
      if (arguments.activation == Activation::kSoftmax) {
        voxels.find_largest();
        T sum[kWidth], dot[kWidth], mass[kWidth];
        for (int i = 0; i < kWidth; ++i) sum[i] = dot[i] = mass[i] = T(0);
        for (int64_t c = 0; c < classes; ++c) {
          T x[kWidth];
          voxels.load_logits(x, c);
          for (int i = 0; i < kWidth; ++i) sum[i] += exp(voxels.shifted(x[i], i));
          if constexpr (kCrossEntropy) {
            T t[kWidth];
            voxels.load_target(t, c);
            const T weight = T(class_weight_of(arguments, c));
            for (int i = 0; i < kWidth; ++i) {
              const T m = Voxel::mass(t[i], weight, of_voxel.share, of_voxel.parameter);
              dot[i] += m == T(0) ? T(0) : m * voxels.shifted(x[i], i);
              mass[i] += m;
            }
          }
        }
        voxels.set_sum(sum);
        if (kCrossEntropy && first == 0) {
          for (int i = 0; i < kWidth; ++i)
            totals[0] += voxels.valid[i] * (mass[i] * log(sum[i]) - dot[i]);
        }
      }
      if (first == 0) {
        for (int i = 0; i < kWidth; ++i) totals[1] += voxels.valid[i];
      }
      for (int64_t c = first; c < last; ++c) {
        T x[kWidth], t[kWidth];
        voxels.load_logits(x, c);
        voxels.load_target(t, c);
        T of_class[kClassSums] = {T(0), T(0), T(0)};
        for (int i = 0; i < kWidth; ++i) {
          const T p = voxels.probability(x[i], i);
          of_class[kIntersection] += p * t[i];
          of_class[kPrediction] += arguments.squared ? p * p : p;
          of_class[kTarget] += arguments.squared ? t[i] * t[i] : t[i];
          if constexpr (kOfLogit) {
            if (has_voxel_loss<Voxel>(arguments, c)) {
              const T weight = T(class_weight_of(arguments, c));
              totals[0] += voxels.valid[i] * Voxel::loss(x[i], t[i], weight, of_voxel.parameter);
            }
          }
        }
        for (int k = 0; k < kClassSums; ++k) of_class[k] = warp_sum(of_class[k]);
        if (lane == 0) {
          for (int k = 0; k < kClassSums; ++k)
            sums[(c - first) * kClassSums + k] += double(of_class[k]);
        }
      }
    }
    __syncthreads();
    for (int k = thread; k < numbers; k += kThreads) {
      double sum = 0.0;
      for (int warp = 0; warp < kWarps; ++warp) sum += shared[warp * numbers + k];
      row[first * kClassSums + k] = sum;
    }
    __syncthreads();  // before the next classes' sums take the place
  }
  block_sum<kThreads>(totals);
  if (thread == 0) {
    row[classes * kClassSums] = totals[0];
    row[classes * kClassSums + 1] = totals[1];
  }
}

// The loss of all regions and its slopes, by the threads of one block. `sums` are those of every
// sample, [B, row], written by other blocks.
template <class Formula, class T>
FASTLOSS_DEVICE_INLINE void finish(const RegionArguments& arguments, const double* sums,
                                   int64_t row) {
  const int thread = static_cast<int>(threadIdx.x), lane = thread % kWarpSize;
  const int64_t batch = arguments.batch, classes = arguments.classes,
                regions = arguments.pools_batch ? 1 : batch;
  const auto sum_of = [&](int64_t b, int64_t k) { return __ldcg(sums + b * row + k); };
  const auto region_sum = [&](int64_t region, int64_t c, int k) {
    if (!arguments.pools_batch) return sum_of(region, c * kClassSums + k);
    double sum = 0.0;
    for (int64_t b = 0; b < batch; ++b) sum += sum_of(b, c * kClassSums + k);
    return sum;
  };
  auto* slopes = static_cast<T*>(arguments.slopes);
  const auto set_slopes = [&](int64_t region, int64_t c, double factor, const RegionValue& value) {
    slopes[(region * classes + c) * 2] = as_slope<T>(factor * value.by_intersection);
    slopes[(region * classes + c) * 2 + 1] = as_slope<T>(factor * value.by_prediction);
  };

  __shared__ double in_all[2];  // valid voxels, and the weight of their labels
  double counts[2] = {0.0, 0.0};
  for (int64_t b = thread; b < batch; b += kThreads) counts[0] += sum_of(b, row - 1);
  for (int64_t k = thread; k < batch * classes; k += kThreads) {
    const int64_t b = k / classes, c = k % classes;
    counts[1] += class_weight_of(arguments, c) * sum_of(b, c * kClassSums + kTarget);
  }
  block_sum<kThreads>(counts);
  if (thread == 0) in_all[0] = counts[0], in_all[1] = counts[1];
  __syncthreads();

  double total = 0.0;
  for (int64_t b = thread; b < batch; b += kThreads) {
    const double scale = voxel_scale<Formula>(arguments, sum_of(b, row - 1), in_all[0], in_all[1]);
    slopes[regions * classes * 2 + b] = as_slope<T>(scale);
    if (voxel_loss_of<Formula>::kKind != VoxelKind::kNone) total += scale * sum_of(b, row - 2);
  }
  const double scale = region_scale<Formula>(arguments);
  const int64_t first = arguments.include_background ? 0 : 1, counted = classes - first;
  auto* values = static_cast<T*>(arguments.loss_output.values);
  if (first > 0) {
    for (int64_t r = thread; r < regions; r += kThreads)
      set_slopes(r, 0, 0.0, RegionValue{0.0, 0.0, 0.0});
  }
  if constexpr (pools_classes<Formula>) {  // a warp per region
    for (int64_t r = thread / kWarpSize; r < regions; r += kWarps) {
      double largest = 0.0;
      for (int64_t c = first + lane; c < classes; c += kWarpSize)
        largest = max(largest, Formula::class_weight(region_sum(r, c, kTarget)));
      largest = largest_of_lanes(largest);
      const auto weight = [&](int64_t c) {
        const double own = Formula::class_weight(region_sum(r, c, kTarget));
        return own == 0.0 ? largest : own;
      };
      double pooled[kClassSums] = {0.0, 0.0, 0.0};
      for (int64_t c = first + lane; c < classes; c += kWarpSize) {
        for (int k = 0; k < kClassSums; ++k) pooled[k] += weight(c) * region_sum(r, c, k);
      }
      for (int k = 0; k < kClassSums; ++k) pooled[k] = sum_of_lanes(pooled[k]);
      const RegionValue value = evaluate_region<Formula>(pooled[kIntersection], pooled[kPrediction],
                                                         pooled[kTarget], arguments.parameters);
      for (int64_t c = first + lane; c < classes; c += kWarpSize)
        set_slopes(r, c, scale * weight(c), value);
      if (lane != 0) continue;
      total += scale * value.loss;
      if (values) values[r] = T(value.loss);
    }
  } else {
    for (int64_t k = thread; k < regions * counted; k += kThreads) {
      const int64_t r = k / counted, c = first + k % counted;
      const RegionValue value =
          evaluate_region<Formula>(region_sum(r, c, kIntersection), region_sum(r, c, kPrediction),
                                   region_sum(r, c, kTarget), arguments.parameters);
      const double factor = scale * class_weight_of(arguments, c);
      set_slopes(r, c, factor, value);
      total += factor * value.loss;
      if (values) values[k] = T(factor * value.loss);
    }
  }
  total = block_sum<kThreads>(total);
  if (thread == 0 && arguments.loss_output.total)
    *static_cast<T*>(arguments.loss_output.total) = T(total);
}

// Adds up the slices of every sample, a warp per number, and finishes in the last block.
template <class Formula, class T>
__global__ void __launch_bounds__(kThreads, kResident)
    finish_kernel(const __grid_constant__ RegionArguments arguments, const Completion completion) {
  const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
  const RegionSlices& slices = arguments.slices;
  const int64_t row = slices.row;
  double* sums = arguments.scratch + arguments.batch * slices.per_sample * row;
  const int64_t warps = int64_t{gridDim.x} * kWarps;
  for (int64_t number = (int64_t{blockIdx.x} * kThreads + threadIdx.x) / kWarpSize;
       number < arguments.batch * row; number += warps) {
    const double* of_slices =
        arguments.scratch + number / row * slices.per_sample * row + number % row;
    double sum = 0.0;
    for (int64_t slice = lane; slice < slices.per_sample; slice += kWarpSize)
      sum += of_slices[slice * row];
    sum = warp_sum(sum);
    if (lane == 0) sums[number] = sum;
  }
  if (!is_last_block(completion)) return;
  finish<Formula, T>(arguments, sums, row);
  if (threadIdx.x == 0) reset_counter(completion);
}

// The slope of the loss by the probability of a class: flat + steep · p + by_target · t.
template <class T>
struct Slope {
  T flat, steep, by_target;
  FASTLOSS_DEVICE_INLINE Slope(const RegionArguments& arguments, const T* slopes, T upstream) {
    by_target = upstream * slopes[0];
    const T by_prediction = upstream * slopes[1];
    flat = arguments.squared ? T(0) : by_prediction;
    steep = arguments.squared ? T(2) * by_prediction : T(0);
  }
};

template <class Voxel, class T, int kWidth>
__global__ void __launch_bounds__(kThreads, kResident)
    gradient_kernel(const __grid_constant__ RegionArguments arguments,
                    const VoxelParameters<T> of_voxel, const bool pools_classes) {
  constexpr bool kCrossEntropy = Voxel::kKind == VoxelKind::kCrossEntropy;
  constexpr bool kOfLogit = Voxel::kKind == VoxelKind::kLogit;
  const int64_t classes = arguments.classes, numel = arguments.layout.numel;
  const int64_t skipped = arguments.include_background ? 0 : 1;
  const int64_t regions = arguments.pools_batch ? 1 : arguments.batch;
  const auto* upstream = static_cast<const T*>(arguments.upstream.data);
  const auto* all_slopes = static_cast<const T*>(arguments.slopes);
  const bool softmax = arguments.activation == Activation::kSoftmax;
  const int64_t step = int64_t{gridDim.x} * kThreads * kWidth;
  for (int64_t position = (int64_t{blockIdx.x} * kThreads + threadIdx.x) * kWidth;
       position < arguments.batch * numel; position += step) {
    const int64_t sample = position / numel, region = arguments.pools_batch ? 0 : sample;
    const T* slopes = all_slopes + region * classes * 2;
    const auto slope_of = [&](int64_t c) {
      int64_t which = 0;
      if (arguments.reduction == RegionReduction::kNone) {
        // (The slopes of a background that does not count are 0, whatever they meet.)
        which =
            pools_classes ? region : region * (classes - skipped) + (c < skipped ? 0 : c - skipped);
      }
      return Slope<T>(arguments, slopes + 2 * c, upstream[which]);
    };
    const T voxel_factor = upstream[0] * all_slopes[regions * classes * 2 + sample];

    Voxels<T, kWidth> voxels(arguments, sample, position - sample * numel, true);
    T together[kWidth];  // Σ p q over the classes, which each one's gradient is less by
    T mass[kWidth];      // and the mass of the cross-entropy
    for (int i = 0; i < kWidth; ++i) together[i] = mass[i] = T(0);
    if (softmax) {
      voxels.find_largest();
      T sum[kWidth], flat[kWidth], steep[kWidth];
      for (int i = 0; i < kWidth; ++i) sum[i] = flat[i] = steep[i] = T(0);
      for (int64_t c = 0; c < classes; ++c) {
        const Slope<T> slope = slope_of(c);
        T x[kWidth], t[kWidth];
        voxels.load_logits(x, c);
        voxels.load_target(t, c);
        for (int i = 0; i < kWidth; ++i) {
          const T e = exp(voxels.shifted(x[i], i));
          sum[i] += e;
          flat[i] += e * (slope.flat + slope.by_target * t[i]);
          steep[i] += e * e * slope.steep;
          if constexpr (kCrossEntropy) {
            mass[i] += Voxel::mass(t[i], T(class_weight_of(arguments, c)), of_voxel.share,
                                   of_voxel.parameter);
          }
        }
      }
      voxels.set_sum(sum);
      for (int i = 0; i < kWidth; ++i) {
        const T inverse = voxels.inverse(i);
        together[i] = inverse * flat[i] + inverse * inverse * steep[i];
      }
    }
    for (int64_t c = 0; c < classes; ++c) {
      const Slope<T> slope = slope_of(c);
      const T weight = Voxel::kKind == VoxelKind::kNone ? T(1) : T(class_weight_of(arguments, c));
      T x[kWidth], t[kWidth], gradient[kWidth];
      voxels.load_logits(x, c);
      voxels.load_target(t, c);
      for (int i = 0; i < kWidth; ++i) {
        const T p = voxels.probability(x[i], i);
        const T q = slope.flat + slope.steep * p + slope.by_target * t[i];
        if (softmax) {
          gradient[i] = p * (q - together[i]);
        } else if (arguments.activation == Activation::kSigmoid) {
          gradient[i] = q * p * sigmoid(-x[i]);
        } else {
          gradient[i] = voxels.valid[i] * q;
        }
        if constexpr (kCrossEntropy) {
          const T m = Voxel::mass(t[i], weight, of_voxel.share, of_voxel.parameter);
          gradient[i] += voxel_factor * (p * mass[i] - voxels.valid[i] * m);
        } else if constexpr (kOfLogit) {
          if (has_voxel_loss<Voxel>(arguments, c)) {
            const auto loss = Voxel::loss(seed<1>(x[i]), t[i], weight, of_voxel.parameter);
            gradient[i] += voxels.valid[i] * voxel_factor * derivative<1>(loss);
          }
        }
      }
      voxels.store_gradient(gradient, c);
    }
  }
}

template <class T, int kWidth>
__global__ void __launch_bounds__(kThreads, kResident)
    errors_kernel(const __grid_constant__ RegionArguments arguments) {
  const int64_t numel = arguments.layout.numel, step = int64_t{gridDim.x} * kThreads * kWidth;
  for (int64_t position = (int64_t{blockIdx.x} * kThreads + threadIdx.x) * kWidth;
       position < arguments.batch * numel; position += step) {
    const int64_t sample = position / numel;
    Voxels<T, kWidth> voxels(arguments, sample, position - sample * numel, true);
    voxels.find_largest();
    T sum[kWidth];
    for (int i = 0; i < kWidth; ++i) sum[i] = T(0);
    for (int64_t c = 0; c < arguments.classes; ++c) {
      T x[kWidth];
      voxels.load_logits(x, c);
      for (int i = 0; i < kWidth; ++i) sum[i] += exp(voxels.shifted(x[i], i));
    }
    voxels.set_sum(sum);
    for (int64_t c = 0; c < arguments.classes; ++c) {
      T x[kWidth], t[kWidth], error[kWidth];
      voxels.load_logits(x, c);
      voxels.load_target(t, c);
      for (int i = 0; i < kWidth; ++i) {
        error[i] = voxels.valid[i] == T(0) ? T(-1) : abs(voxels.probability(x[i], i) - t[i]);
      }
      voxels.store_gradient(error, c);
    }
  }
}

// --- on the host ---

// Whether threads may take kWide voxels at a time: each class's are packs in memory.
template <class T>
bool all_packed(const RegionArguments& arguments) {
  const auto packed = [&](int operand, const auto& tensor) {
    return tensor.data == nullptr ||
           (is_packed(arguments.layout, operand, tensor.data, tensor.dtype, kWide<T>) &&
            arguments.class_stride[operand] % kWide<T> == 0 &&
            arguments.batch_stride[operand] % kWide<T> == 0);
  };
  return packed(kRegionInput, arguments.input) &&
         (arguments.labels || packed(kRegionTarget, arguments.target)) &&
         packed(kRegionGradient, arguments.gradient);
}

// Calls run(type, width) for the type of the arithmetic and the width of a thread's work.
template <class Run>
void choose(const RegionArguments& arguments, const Run& run) {
  if (arguments.is_double) {
    run.template operator()<double, 1>();
  } else if (all_packed<float>(arguments)) {
    run.template operator()<float, kWide<float>>();
  } else {
    run.template operator()<float, 1>();
  }
}

template <class Formula, class T>
VoxelParameters<T> voxel_parameters(const RegionArguments& arguments) {
  VoxelParameters<T> result{{T(0), T(0)}, T(1.0 / double(arguments.classes))};
  if constexpr (voxel_loss_of<Formula>::kKind != VoxelKind::kNone) {
    for (int k = 0; k < 2; ++k)
      result.parameter[k] = T(arguments.parameters[Formula::kVoxelParameters + k]);
  }
  return result;
}

template <class Formula>
struct SumsKernel {
  static void run(const RegionArguments& arguments, const Execution& execution) {
    const RegionSlices& slices = arguments.slices;
    const auto blocks = static_cast<unsigned>(arguments.batch * slices.per_sample);
    const int64_t at_once = std::min(arguments.classes, kClassesAtOnce);
    const auto shared = static_cast<std::size_t>(at_once * kWarps * kClassSums) * sizeof(double);
    choose(arguments, [&]<class T, int kWidth>() {
      launch(sums_kernel<voxel_loss_of<Formula>, T, kWidth>, blocks, kThreads, shared,
             execution.stream, arguments, voxel_parameters<Formula, T>(arguments));
    });
    const unsigned grid = grid_for(arguments.batch * slices.row, kWarps);
    const Completion completion = completion_for(execution, grid);
    if (arguments.is_double) {
      launch(finish_kernel<Formula, double>, grid, kThreads, 0, execution.stream, arguments,
             completion);
    } else {
      launch(finish_kernel<Formula, float>, grid, kThreads, 0, execution.stream, arguments,
             completion);
    }
  }
};

template <int kWidth>
unsigned voxel_grid(const RegionArguments& arguments) {
  return grid_for(arguments.batch * arguments.layout.numel / kWidth, kThreads);
}

template <class Formula>
struct GradientKernel {
  static void run(const RegionArguments& arguments, const Execution& execution) {
    choose(arguments, [&]<class T, int kWidth>() {
      launch(gradient_kernel<voxel_loss_of<Formula>, T, kWidth>, voxel_grid<kWidth>(arguments),
             kThreads, 0, execution.stream, arguments, voxel_parameters<Formula, T>(arguments),
             pools_classes<Formula>);
    });
  }
};

using Function = void (*)(const RegionArguments&, const Execution&);

}  // namespace

void region_sums(const RegionArguments& arguments, const Execution& execution) {
  RegionLosses::Table<Function, SumsKernel>::kRun[arguments.loss](arguments, execution);
}

void region_gradient(const RegionArguments& arguments, const Execution& execution) {
  RegionLosses::Table<Function, GradientKernel>::kRun[arguments.loss](arguments, execution);
}

void region_errors(const RegionArguments& arguments, const Execution& execution) {
  choose(arguments, [&]<class T, int kWidth>() {
    launch(errors_kernel<T, kWidth>, voxel_grid<kWidth>(arguments), kThreads, 0, execution.stream,
           arguments);
  });
}

}  // namespace fastloss::FASTLOSS_TARGET
