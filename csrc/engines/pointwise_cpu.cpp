// SPDX-License-Identifier: MIT
#include "core/vec.h"
#include "engines/kernels.h"
#include "engines/labels.h"
#include "engines/staging.h"
#include "losses/pointwise.h"

namespace fastloss::FASTLOSS_TARGET {
namespace {

constexpr int64_t kBlock =
    512;  // elements staged at a time: every operand's share stays in the L1 cache
constexpr int64_t kSmallestChunk =
    8192;  // below this, waking a second thread costs more than it saves

enum class Gradients { kNone, kInput, kInputAndTarget };

// One block of operands as consecutive numbers. Absent inputs are null.
template <class T>
struct Block {
  const T* input;
  const T* target;
  const T* weight;
  const T* pos_weight;
  const T* reference;
  const T* counts;  // 0 where the element does not count; null: all do
  bool* outside;    // set where an input is out of the formula's range
  T* input_gradient;
  T* target_gradient;
  T* values;
};

// Losses and gradients of `count` elements, a multiple of kLanes. The only place where a formula is
// compiled in.
template <class Formula, class T, Gradients kGradients>
[[gnu::noinline]] Vec<T> run_whole(const Block<T>& block, int64_t count, const T* parameter,
                                   T gradient_scale, bool streaming) {
  using V = Vec<T>;
  constexpr unsigned kInputSeed = 1, kTargetSeed = 2;
  const auto target_at = [&](int64_t i) {
    if constexpr (targets_of<Formula> == Targets::kNone) {
      return V(0);
    } else {
      return variable<kTargetSeed, kGradients == Gradients::kInputAndTarget>(
          V::load(block.target + i));
    }
  };
  V sum(0);
  Mask<T> outside{};
  for (int64_t i = 0; i < count; i += V::kLanes) {
    const V input = V::load(block.input + i);
    if constexpr (has_range<Formula>) {
      outside = outside | (input < T(Formula::kRange[0])) | (input > T(Formula::kRange[1]));
    }
    const auto x = variable<kInputSeed, kGradients != Gradients::kNone>(input);
    const auto t = target_at(i);
    const V pos_weight = block.pos_weight ? V::load(block.pos_weight + i) : V(1);
    const auto result = [&] {
      if constexpr (is_of_policy<Formula>) {
        const V reference = block.reference ? V::load(block.reference + i) : V(0);
        return Formula::loss(x, t, pos_weight, reference, parameter);
      } else {
        return Formula::loss(x, t, pos_weight, parameter);
      }
    }();
    V value = detach(result);
    V scale(gradient_scale);
    if (block.weight) {
      const V weight = V::load(block.weight + i);
      value = value * weight;
      scale = scale * weight;
    }
    // Selected, not multiplied: what does not count may hold anything, NaN too.
    const auto counted = [&](V v) {
      return block.counts ? select(V::load(block.counts + i) != V(0), v, V(0)) : v;
    };
    value = counted(value);
    if (kGradients != Gradients::kNone && block.input_gradient) {
      const V gradient = counted(derivative<kInputSeed>(result) * scale);
      if (streaming) {
        gradient.store_streaming(block.input_gradient + i);
      } else {
        gradient.store(block.input_gradient + i);
      }
    }
    if (kGradients == Gradients::kInputAndTarget && block.target_gradient) {
      counted(derivative<kTargetSeed>(result) * scale).store(block.target_gradient + i);
    }
    if (block.values) value.store(block.values + i);
    sum += value;
  }
  if (any(outside)) *block.outside = true;
  return sum;
}

// Any number of elements: the last, incomplete vector is worked on in a padded copy, so that
// nothing is read or written beyond the end. Padding does not count.
template <class Formula, class T, Gradients kGradients>
T run_block(const Block<T>& block, int64_t count, const T* parameter, T gradient_scale,
            bool streaming) {
  constexpr int64_t kLanes = Vec<T>::kLanes;
  const int64_t whole = count / kLanes * kLanes, rest = count - whole;
  Vec<T> sum =
      run_whole<Formula, T, kGradients>(block, whole, parameter, gradient_scale, streaming);
  if (rest == 0) return sum.sum();
  T input[kLanes] = {}, target[kLanes] = {}, weight[kLanes] = {}, pos_weight[kLanes] = {},
    reference[kLanes] = {}, counts[kLanes] = {};
  T input_gradient[kLanes], target_gradient[kLanes], values[kLanes];
  copy(input, block.input + whole, rest);
  if (block.target) copy(target, block.target + whole, rest);
  if (block.weight) copy(weight, block.weight + whole, rest);
  if (block.pos_weight) copy(pos_weight, block.pos_weight + whole, rest);
  if (is_of_policy<Formula> && block.reference) copy(reference, block.reference + whole, rest);
  copy_or_ones(counts, block.counts ? block.counts + whole : nullptr, rest);
  const Block<T> padded{.input = input,
                        .target = target,
                        .weight = block.weight ? weight : nullptr,
                        .pos_weight = block.pos_weight ? pos_weight : nullptr,
                        .reference = block.reference ? reference : nullptr,
                        .counts = counts,
                        .outside = block.outside,
                        .input_gradient = input_gradient,
                        .target_gradient = target_gradient,
                        .values = values};
  sum += run_whole<Formula, T, kGradients>(padded, kLanes, parameter, gradient_scale, false);
  if (block.input_gradient) copy(block.input_gradient + whole, input_gradient, rest);
  if (block.target_gradient) copy(block.target_gradient + whole, target_gradient, rest);
  if (block.values) copy(block.values + whole, values, rest);
  return sum.sum();
}

// Room for the operands that cannot be read or written where they lie.
template <class T>
struct Stage {
  alignas(64) T input[kBlock];
  alignas(64) T target[kBlock];
  alignas(64) T weight[kBlock];
  alignas(64) T pos_weight[kBlock];
  alignas(64) T reference[kBlock];
  alignas(64) T counts[kBlock];
  alignas(64) T input_gradient[kBlock];
  alignas(64) T target_gradient[kBlock];
  alignas(64) T values[kBlock];
};

// Whether an operand of this dtype is already consecutive numbers of type T.
template <class T>
bool is_direct(const Layout& layout, int operand, DType dtype) {
  return dtype == dtype_of<T> && layout.is_even(operand, 1);
}

template <class T>
const T* read(T* stage, const Layout& layout, int operand, const Input& input, int64_t begin,
              int64_t end) {
  if (!input) return nullptr;
  if (is_direct<T>(layout, operand, input.dtype)) return static_cast<const T*>(input.data) + begin;
  for_each_run(layout, begin, end, [&](int64_t position, const int64_t* offsets, int64_t length) {
    load_strided(stage + position, 1, input, offsets[operand], layout.stride[operand][0], length);
  });
  return stage;
}

template <class T>
T* place(T* stage, const Layout& layout, int operand, const Output& output, int64_t begin) {
  if (!output) return nullptr;
  return is_direct<T>(layout, operand, output.dtype) ? static_cast<T*>(output.data) + begin : stage;
}

template <class T>
void write(const T* stage, const Layout& layout, int operand, const Output& output, int64_t begin,
           int64_t end) {
  if (!output || is_direct<T>(layout, operand, output.dtype)) return;
  for_each_run(layout, begin, end, [&](int64_t position, const int64_t* offsets, int64_t length) {
    store_strided(output, offsets[operand], layout.stride[operand][0], stage + position, 1, length);
  });
}

// Where the label of a row is. The rows are walked in the order of the layout's outer dimensions;
// with a single class there is no dimension of classes, and every dimension is one of rows.
FASTLOSS_INLINE int64_t label_offset(const PointwiseArguments& arguments, int64_t row) {
  const Layout& layout = arguments.layout;
  int64_t offset = 0;
  for (int d = arguments.classes > 1 ? 1 : 0; d < layout.dims; ++d) {
    const bool last = d + 1 == layout.dims;
    const int64_t index = last ? row : row % layout.size[d];
    if (!last) row /= layout.size[d];
    offset += index * layout.stride[kPointwiseTarget][d];
  }
  return offset;
}

// Expands class indices to 0/1 targets. Returns whether every row counts; else `counts` tells which
// elements do.
template <class T>
bool expand_labels(T* targets, T* counts, const PointwiseArguments& arguments, int64_t begin,
                   int64_t end, LabelFault& fault) {
  bool all_count = true;
  const int64_t size = end - begin, classes = arguments.classes;
  for (int64_t i = 0; i < size; ++i) targets[i] = T(0);
  int64_t row = begin / classes, first = begin % classes;
  for (int64_t i = 0; i < size; ++row, first = 0) {
    const int64_t span = classes - first < size - i ? classes - first : size - i;
    const int64_t label = load_integer(arguments.target, label_offset(arguments, row));
    fault.note(label <= classes);
    if (label >= first && label < first + span) targets[i + label - first] = T(1);
    if (label < 0) {
      if (all_count) {
        all_count = false;
        for (int64_t j = 0; j < size; ++j) counts[j] = T(1);
      }
      for (int64_t j = 0; j < span; ++j) counts[i + j] = T(0);
    }
    i += span;
  }
  return all_count;
}

template <class Formula, class T, Gradients kGradients>
void run_typed(const PointwiseArguments& arguments, const Execution& execution) {
  T parameter[kMaxParameters];
  for (int i = 0; i < Formula::kParameters; ++i) parameter[i] = T(arguments.parameters[i]);
  const T gradient_scale = T(resolve(arguments.gradient_scale));
  const Layout& layout = arguments.layout;
  const Output values{arguments.loss_output.values, dtype_of<T>};
  const bool streaming =
      arguments.input_gradient && outlives_caches(layout.numel * int64_t{sizeof(T)}) &&
      is_direct<T>(layout, kPointwiseInputGradient, arguments.input_gradient.dtype);
  LabelFault fault;
  bool any_outside = false;

  const double sum = sum_over_chunks(
      execution, layout.numel, kSmallestChunk, [&](int64_t chunk_begin, int64_t chunk_end) {
        Stage<T> stage;
        double chunk_sum = 0.0;
        bool outside = false;
        for (int64_t begin = chunk_begin; begin < chunk_end; begin += kBlock) {
          const int64_t end = begin + kBlock < chunk_end ? begin + kBlock : chunk_end;
          Block<T> block;
          block.input = read(stage.input, layout, kPointwiseInput, arguments.input, begin, end);
          block.reference = block.counts = nullptr;
          block.outside = &outside;
          if (arguments.target_kind == TargetKind::kClassIndex) {
            block.target = stage.target;
            if (!expand_labels(stage.target, stage.counts, arguments, begin, end, fault))
              block.counts = stage.counts;
          } else {
            block.target =
                read(stage.target, layout, kPointwiseTarget, arguments.target, begin, end);
          }
          if constexpr (is_of_policy<Formula>) {
            block.reference =
                read(stage.reference, layout, kPointwiseReference, arguments.reference, begin, end);
            block.counts = read(stage.counts, layout, kPointwiseMask, arguments.mask, begin, end);
          }
          block.weight = read(stage.weight, layout, kPointwiseWeight, arguments.weight, begin, end);
          block.pos_weight =
              read(stage.pos_weight, layout, kPointwisePosWeight, arguments.pos_weight, begin, end);
          block.input_gradient = place(stage.input_gradient, layout, kPointwiseInputGradient,
                                       arguments.input_gradient, begin);
          block.target_gradient = place(stage.target_gradient, layout, kPointwiseTargetGradient,
                                        arguments.target_gradient, begin);
          block.values = place(stage.values, layout, kPointwiseValues, values, begin);

          chunk_sum += double(run_block<Formula, T, kGradients>(block, end - begin, parameter,
                                                                gradient_scale, streaming));

          write(stage.input_gradient, layout, kPointwiseInputGradient, arguments.input_gradient,
                begin, end);
          write(stage.target_gradient, layout, kPointwiseTargetGradient, arguments.target_gradient,
                begin, end);
          write(stage.values, layout, kPointwiseValues, values, begin, end);
        }
        if (streaming) streaming_fence();
        if (outside) __atomic_store_n(&any_outside, true, __ATOMIC_RELAXED);
        return chunk_sum;
      });
  if (any_outside) throw InputOutOfRange{};
  fault.throw_if_any();
  store_total<T>(arguments.loss_output, arguments.loss_scale, sum);
}

template <class Formula, class T>
void run_gradients(const PointwiseArguments& arguments, const Execution& execution) {
  // float64 is for checking gradients, not for speed: one compilation that computes all serves it.
  if (sizeof(T) == 8 || arguments.target_gradient) {
    run_typed<Formula, T, Gradients::kInputAndTarget>(arguments, execution);
  } else if constexpr (sizeof(T) == 4) {
    if (arguments.input_gradient) {
      run_typed<Formula, T, Gradients::kInput>(arguments, execution);
    } else {
      run_typed<Formula, T, Gradients::kNone>(arguments, execution);
    }
  }
}

template <class Formula>
struct Kernel {
  static void run(const PointwiseArguments& arguments, const Execution& execution) {
    if (arguments.is_double) {
      run_gradients<Formula, double>(arguments, execution);
    } else {
      run_gradients<Formula, float>(arguments, execution);
    }
  }
};

}  // namespace

void pointwise(const PointwiseArguments& arguments, const Execution& execution) {
  using Function = void (*)(const PointwiseArguments&, const Execution&);
  PointwiseLosses::Table<Function, Kernel>::kRun[arguments.loss](arguments, execution);
}

}  // namespace fastloss::FASTLOSS_TARGET
