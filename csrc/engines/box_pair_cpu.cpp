// SPDX-License-Identifier: MIT
#include "core/vec.h"
#include "engines/kernels.h"
#include "engines/staging.h"
#include "losses/box_pair.h"

namespace fastloss::FASTLOSS_TARGET {
namespace {

constexpr int64_t kBlock = 256;  // boxes staged at a time
constexpr int64_t kSmallestChunk =
    1024;  // below this, waking a second thread costs more than it saves

enum class Gradients { kNone, kFirst, kBoth };

template <class Formula>
constexpr bool has_extra = requires { Formula::kPairExtra; };

// One block of boxes as consecutive numbers, kCoordinates a box. A null weight is 1.
template <class T, int kCoordinates>
struct Block {
  const T* boxes1;
  const T* boxes2;
  const T* weight;
  const T* extra;
  T* gradient1;
  T* gradient2;
  T* values;
};

// Losses and gradients of `count` boxes, a multiple of kLanes. The only place where a formula is
// compiled in.
template <class Formula, class T, Gradients kGradients, int kCoordinates>
[[gnu::noinline]] Vec<T> run_whole(const Block<T, kCoordinates>& block, int64_t count,
                                   const T* parameter, T gradient_scale, bool streaming) {
  using V = Vec<T>;
  constexpr bool kFirst = kGradients != Gradients::kNone, kSecond = kGradients == Gradients::kBoth;
  V sum(0);
  for (int64_t i = 0; i < count; i += V::kLanes) {
    V a[kCoordinates], b[kCoordinates], extra(1);
    load_records(block.boxes1 + kCoordinates * i, a);
    load_records(block.boxes2 + kCoordinates * i, b);
    if constexpr (has_extra<Formula>) extra = V::load(block.extra + i);
    const auto result = loss_of_pair<Formula>(
        operand<1, kFirst>(a), operand<(1u << kCoordinates), kSecond>(b), extra, parameter);
    V value = detach(result);
    V scale(gradient_scale);
    if (block.weight) {
      const V weight = V::load(block.weight + i);
      value = value * weight;
      scale = scale * weight;
    }
    V gradient[kCoordinates];
    if (kFirst && block.gradient1) {
      gradient_of<1>(result, scale, gradient);
      store_records(block.gradient1 + kCoordinates * i, gradient, streaming);
    }
    if (kSecond && block.gradient2) {
      gradient_of<(1u << kCoordinates)>(result, scale, gradient);
      store_records(block.gradient2 + kCoordinates * i, gradient, streaming);
    }
    if (block.values) value.store(block.values + i);
    sum += value;
  }
  return sum;
}

// Any number of boxes: the last, incomplete vector is worked on in a padded copy, so that nothing
// is read or written beyond the end. A padding box has weight 0.
template <class Formula, class T, Gradients kGradients, int kCoordinates>
T run_block(const Block<T, kCoordinates>& block, int64_t count, const T* parameter,
            T gradient_scale, bool streaming) {
  constexpr int64_t kLanes = Vec<T>::kLanes;
  const int64_t whole = count / kLanes * kLanes, rest = count - whole;
  Vec<T> sum =
      run_whole<Formula, T, kGradients>(block, whole, parameter, gradient_scale, streaming);
  if (rest == 0) return sum.sum();
  constexpr int64_t kNumbers = kCoordinates * kLanes;
  T boxes1[kNumbers] = {}, boxes2[kNumbers] = {}, weight[kLanes] = {}, extra[kLanes];
  T gradient1[kNumbers], gradient2[kNumbers], values[kLanes];
  copy(boxes1, block.boxes1 + kCoordinates * whole, kCoordinates * rest);
  copy(boxes2, block.boxes2 + kCoordinates * whole, kCoordinates * rest);
  copy_or_ones(weight, block.weight ? block.weight + whole : nullptr, rest);
  if constexpr (has_extra<Formula>) {
    copy_or_ones<T>(extra, nullptr, kLanes);
    copy(extra, block.extra + whole, rest);
  }
  const Block<T, kCoordinates> padded{boxes1, boxes2, weight, extra, gradient1, gradient2, values};
  sum += run_whole<Formula, T, kGradients>(padded, kLanes, parameter, gradient_scale, false);
  if (block.gradient1) copy(block.gradient1 + kCoordinates * whole, gradient1, kCoordinates * rest);
  if (block.gradient2) copy(block.gradient2 + kCoordinates * whole, gradient2, kCoordinates * rest);
  if (block.values) copy(block.values + whole, values, rest);
  return sum.sum();
}

// Whether the boxes of an operand already lie as [N, kCoordinates] numbers of type T.
template <int kCoordinates, class T>
bool is_direct(const Layout& layout, int operand, DType dtype, int64_t coordinate_stride) {
  return dtype == dtype_of<T> && coordinate_stride == 1 && layout.is_even(operand, kCoordinates);
}

template <int kCoordinates, class T>
const T* read_boxes(T* stage, const Layout& layout, int operand, const Input& boxes,
                    int64_t coordinate_stride, int64_t begin, int64_t end) {
  constexpr int64_t kStep = kCoordinates;
  if (is_direct<kCoordinates, T>(layout, operand, boxes.dtype, coordinate_stride)) {
    return static_cast<const T*>(boxes.data) + kStep * begin;
  }
  const int64_t stride = layout.stride[operand][0];
  for_each_run(layout, begin, end, [&](int64_t position, const int64_t* offsets, int64_t length) {
    if (stride == kStep && coordinate_stride == 1) {
      load_strided(stage + kStep * position, 1, boxes, offsets[operand], 1, kStep * length);
    } else {
      for (int64_t c = 0; c < kStep; ++c) {
        load_strided(stage + kStep * position + c, kStep, boxes,
                     offsets[operand] + c * coordinate_stride, stride, length);
      }
    }
  });
  return stage;
}

template <int kCoordinates, class T>
T* place_gradient(T* stage, const Layout& layout, int operand, const Output& gradient,
                  int64_t begin) {
  if (!gradient) return nullptr;
  return is_direct<kCoordinates, T>(layout, operand, gradient.dtype, 1)
             ? static_cast<T*>(gradient.data) + kCoordinates * begin
             : stage;
}

template <int kCoordinates, class T>
void write_gradient(const T* stage, const Layout& layout, int operand, const Output& gradient,
                    int64_t begin, int64_t end) {
  if (!gradient || is_direct<kCoordinates, T>(layout, operand, gradient.dtype, 1)) return;
  constexpr int64_t kStep = kCoordinates;
  const int64_t stride = layout.stride[operand][0];
  for_each_run(layout, begin, end, [&](int64_t position, const int64_t* offsets, int64_t length) {
    if (stride == kStep) {
      store_strided(gradient, offsets[operand], 1, stage + kStep * position, 1, kStep * length);
    } else {
      for (int64_t c = 0; c < kStep; ++c) {
        store_strided(gradient, offsets[operand] + c, stride, stage + kStep * position + c, kStep,
                      length);
      }
    }
  });
}

// The numbers of an operand with one for each pair; null where it is absent.
template <class T>
const T* read_numbers(T* stage, const Layout& layout, int operand, const Input& numbers,
                      int64_t begin, int64_t end) {
  if (!numbers) return nullptr;
  if (numbers.dtype == dtype_of<T> && layout.is_even(operand, 1)) {
    return static_cast<const T*>(numbers.data) + begin;
  }
  for_each_run(layout, begin, end, [&](int64_t position, const int64_t* offsets, int64_t length) {
    load_strided(stage + position, 1, numbers, offsets[operand], layout.stride[operand][0], length);
  });
  return stage;
}

template <class T, int kCoordinates>
struct Stage {
  alignas(64) T boxes1[kCoordinates * kBlock];
  alignas(64) T boxes2[kCoordinates * kBlock];
  alignas(64) T weight[kBlock];
  alignas(64) T extra[kBlock];
  alignas(64) T gradient1[kCoordinates * kBlock];
  alignas(64) T gradient2[kCoordinates * kBlock];
};

template <class Formula, class T, Gradients kGradients>
void run_typed(const BoxPairArguments& arguments, const Execution& execution) {
  constexpr int kStep = coordinates_of<Formula>;
  T parameter[kMaxParameters];
  for (int i = 0; i < Formula::kParameters; ++i) parameter[i] = T(arguments.parameters[i]);
  if (arguments.device_parameter) {
    parameter[arguments.device_parameter_index] = T(load_number(arguments.device_parameter));
  }
  const T gradient_scale = T(resolve(arguments.gradient_scale));
  const Layout& layout = arguments.layout;
  const bool streaming =
      arguments.gradient1 && outlives_caches(kStep * layout.numel * int64_t{sizeof(T)}) &&
      is_direct<kStep, T>(layout, kBoxPairGradient1, arguments.gradient1.dtype, 1);

  const double sum = sum_over_chunks(
      execution, layout.numel, kSmallestChunk, [&](int64_t chunk_begin, int64_t chunk_end) {
        Stage<T, kStep> stage;
        double chunk_sum = 0.0;
        for (int64_t begin = chunk_begin; begin < chunk_end; begin += kBlock) {
          const int64_t end = begin + kBlock < chunk_end ? begin + kBlock : chunk_end;
          Block<T, kStep> block;
          block.boxes1 = read_boxes<kStep>(stage.boxes1, layout, kBoxPairBoxes1, arguments.boxes1,
                                           arguments.coordinate_stride[0], begin, end);
          block.boxes2 = read_boxes<kStep>(stage.boxes2, layout, kBoxPairBoxes2, arguments.boxes2,
                                           arguments.coordinate_stride[1], begin, end);
          block.weight =
              read_numbers(stage.weight, layout, kBoxPairWeight, arguments.weight, begin, end);
          block.extra =
              read_numbers(stage.extra, layout, kBoxPairExtra, arguments.extra, begin, end);
          block.gradient1 = place_gradient<kStep>(stage.gradient1, layout, kBoxPairGradient1,
                                                  arguments.gradient1, begin);
          block.gradient2 = place_gradient<kStep>(stage.gradient2, layout, kBoxPairGradient2,
                                                  arguments.gradient2, begin);
          T* const values = static_cast<T*>(arguments.loss_output.values);
          block.values = values ? values + begin : nullptr;

          chunk_sum += double(run_block<Formula, T, kGradients>(block, end - begin, parameter,
                                                                gradient_scale, streaming));

          write_gradient<kStep>(stage.gradient1, layout, kBoxPairGradient1, arguments.gradient1,
                                begin, end);
          write_gradient<kStep>(stage.gradient2, layout, kBoxPairGradient2, arguments.gradient2,
                                begin, end);
        }
        if (streaming) streaming_fence();
        return chunk_sum;
      });
  store_total<T>(arguments.loss_output, arguments.loss_scale, sum);
}

template <class Formula, class T>
void run_gradients(const BoxPairArguments& arguments, const Execution& execution) {
  // float64 is for checking gradients, not for speed: one compilation that computes all serves it.
  if (sizeof(T) == 8 || arguments.gradient2) {
    run_typed<Formula, T, Gradients::kBoth>(arguments, execution);
  } else if constexpr (sizeof(T) == 4) {
    if (arguments.gradient1) {
      run_typed<Formula, T, Gradients::kFirst>(arguments, execution);
    } else {
      run_typed<Formula, T, Gradients::kNone>(arguments, execution);
    }
  }
}

template <class Formula>
struct Kernel {
  static void run(const BoxPairArguments& arguments, const Execution& execution) {
    if (arguments.is_double) {
      run_gradients<Formula, double>(arguments, execution);
    } else {
      run_gradients<Formula, float>(arguments, execution);
    }
  }
};

}  // namespace

void box_pair(const BoxPairArguments& arguments, const Execution& execution) {
  using Function = void (*)(const BoxPairArguments&, const Execution&);
  BoxPairLosses::Table<Function, Kernel>::kRun[arguments.loss](arguments, execution);
}

}  // namespace fastloss::FASTLOSS_TARGET
