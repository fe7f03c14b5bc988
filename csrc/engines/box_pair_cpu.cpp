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

// One block of boxes as consecutive numbers, four a box. A null weight is 1.
template <class T>
struct Block {
  const T* boxes1;
  const T* boxes2;
  const T* weight;
  T* gradient1;
  T* gradient2;
  T* values;
};

// Losses and gradients of `count` boxes, a multiple of kLanes. The only place where a formula is
// compiled in.
template <class Formula, class T, Gradients kGradients>
[[gnu::noinline]] Vec<T> run_whole(const Block<T>& block, int64_t count, const T* parameter,
                                   T gradient_scale, bool streaming) {
  using V = Vec<T>;
  constexpr bool kFirst = kGradients != Gradients::kNone, kSecond = kGradients == Gradients::kBoth;
  V sum(0);
  for (int64_t i = 0; i < count; i += V::kLanes) {
    V a[4], b[4];
    load_transposed(block.boxes1 + 4 * i, a[0], a[1], a[2], a[3]);
    load_transposed(block.boxes2 + 4 * i, b[0], b[1], b[2], b[3]);
    const Box b1{variable<1, kFirst>(a[0]), variable<2, kFirst>(a[1]), variable<4, kFirst>(a[2]),
                 variable<8, kFirst>(a[3])};
    const Box b2{variable<16, kSecond>(b[0]), variable<32, kSecond>(b[1]),
                 variable<64, kSecond>(b[2]), variable<128, kSecond>(b[3])};
    const auto result = Formula::loss(b1, b2, parameter);
    V value = detach(result);
    V scale(gradient_scale);
    if (block.weight) {
      const V weight = V::load(block.weight + i);
      value = value * weight;
      scale = scale * weight;
    }
    if (kFirst && block.gradient1) {
      store_transposed(block.gradient1 + 4 * i, derivative<1>(result) * scale,
                       derivative<2>(result) * scale, derivative<4>(result) * scale,
                       derivative<8>(result) * scale, streaming);
    }
    if (kSecond && block.gradient2) {
      store_transposed(block.gradient2 + 4 * i, derivative<16>(result) * scale,
                       derivative<32>(result) * scale, derivative<64>(result) * scale,
                       derivative<128>(result) * scale, streaming);
    }
    if (block.values) value.store(block.values + i);
    sum += value;
  }
  return sum;
}

// Any number of boxes: the last, incomplete vector is worked on in a padded copy, so that nothing
// is read or written beyond the end. A padding box has weight 0.
template <class Formula, class T, Gradients kGradients>
T run_block(const Block<T>& block, int64_t count, const T* parameter, T gradient_scale,
            bool streaming) {
  constexpr int64_t kLanes = Vec<T>::kLanes;
  const int64_t whole = count / kLanes * kLanes, rest = count - whole;
  Vec<T> sum =
      run_whole<Formula, T, kGradients>(block, whole, parameter, gradient_scale, streaming);
  if (rest == 0) return sum.sum();
  T boxes1[4 * kLanes] = {}, boxes2[4 * kLanes] = {}, weight[kLanes] = {};
  T gradient1[4 * kLanes], gradient2[4 * kLanes], values[kLanes];
  copy(boxes1, block.boxes1 + 4 * whole, 4 * rest);
  copy(boxes2, block.boxes2 + 4 * whole, 4 * rest);
  copy_or_ones(weight, block.weight ? block.weight + whole : nullptr, rest);
  const Block<T> padded{boxes1, boxes2, weight, gradient1, gradient2, values};
  sum += run_whole<Formula, T, kGradients>(padded, kLanes, parameter, gradient_scale, false);
  if (block.gradient1) copy(block.gradient1 + 4 * whole, gradient1, 4 * rest);
  if (block.gradient2) copy(block.gradient2 + 4 * whole, gradient2, 4 * rest);
  if (block.values) copy(block.values + whole, values, rest);
  return sum.sum();
}

// Whether the boxes of an operand already lie as [N, 4] numbers of type T.
template <class T>
bool is_direct(const Layout& layout, int operand, DType dtype, int64_t coordinate_stride) {
  return dtype == dtype_of<T> && coordinate_stride == 1 && layout.is_even(operand, 4);
}

template <class T>
const T* read_boxes(T* stage, const Layout& layout, int operand, const Input& boxes,
                    int64_t coordinate_stride, int64_t begin, int64_t end) {
  if (is_direct<T>(layout, operand, boxes.dtype, coordinate_stride)) {
    return static_cast<const T*>(boxes.data) + 4 * begin;
  }
  const int64_t stride = layout.stride[operand][0];
  for_each_run(layout, begin, end, [&](int64_t position, const int64_t* offsets, int64_t length) {
    if (stride == 4 && coordinate_stride == 1) {
      load_strided(stage + 4 * position, 1, boxes, offsets[operand], 1, 4 * length);
    } else {
      for (int64_t c = 0; c < 4; ++c) {
        load_strided(stage + 4 * position + c, 4, boxes, offsets[operand] + c * coordinate_stride,
                     stride, length);
      }
    }
  });
  return stage;
}

template <class T>
T* place_gradient(T* stage, const Layout& layout, int operand, const Output& gradient,
                  int64_t begin) {
  if (!gradient) return nullptr;
  return is_direct<T>(layout, operand, gradient.dtype, 1)
             ? static_cast<T*>(gradient.data) + 4 * begin
             : stage;
}

template <class T>
void write_gradient(const T* stage, const Layout& layout, int operand, const Output& gradient,
                    int64_t begin, int64_t end) {
  if (!gradient || is_direct<T>(layout, operand, gradient.dtype, 1)) return;
  const int64_t stride = layout.stride[operand][0];
  for_each_run(layout, begin, end, [&](int64_t position, const int64_t* offsets, int64_t length) {
    if (stride == 4) {
      store_strided(gradient, offsets[operand], 1, stage + 4 * position, 1, 4 * length);
    } else {
      for (int64_t c = 0; c < 4; ++c) {
        store_strided(gradient, offsets[operand] + c, stride, stage + 4 * position + c, 4, length);
      }
    }
  });
}

template <class T>
const T* read_weight(T* stage, const Layout& layout, const Input& weight, int64_t begin,
                     int64_t end) {
  if (!weight) return nullptr;
  if (weight.dtype == dtype_of<T> && layout.is_even(kBoxPairWeight, 1)) {
    return static_cast<const T*>(weight.data) + begin;
  }
  for_each_run(layout, begin, end, [&](int64_t position, const int64_t* offsets, int64_t length) {
    load_strided(stage + position, 1, weight, offsets[kBoxPairWeight],
                 layout.stride[kBoxPairWeight][0], length);
  });
  return stage;
}

template <class T>
struct Stage {
  alignas(64) T boxes1[4 * kBlock];
  alignas(64) T boxes2[4 * kBlock];
  alignas(64) T weight[kBlock];
  alignas(64) T gradient1[4 * kBlock];
  alignas(64) T gradient2[4 * kBlock];
};

template <class Formula, class T, Gradients kGradients>
void run_typed(const BoxPairArguments& arguments, const Execution& execution) {
  T parameter[kMaxParameters];
  for (int i = 0; i < Formula::kParameters; ++i) parameter[i] = T(arguments.parameters[i]);
  if (arguments.device_parameter) {
    parameter[arguments.device_parameter_index] = T(load_number(arguments.device_parameter));
  }
  const T gradient_scale = T(resolve(arguments.gradient_scale));
  const Layout& layout = arguments.layout;
  const bool streaming = arguments.gradient1 &&
                         outlives_caches(4 * layout.numel * int64_t{sizeof(T)}) &&
                         is_direct<T>(layout, kBoxPairGradient1, arguments.gradient1.dtype, 1);

  const double sum = sum_over_chunks(
      execution, layout.numel, kSmallestChunk, [&](int64_t chunk_begin, int64_t chunk_end) {
        Stage<T> stage;
        double chunk_sum = 0.0;
        for (int64_t begin = chunk_begin; begin < chunk_end; begin += kBlock) {
          const int64_t end = begin + kBlock < chunk_end ? begin + kBlock : chunk_end;
          Block<T> block;
          block.boxes1 = read_boxes(stage.boxes1, layout, kBoxPairBoxes1, arguments.boxes1,
                                    arguments.coordinate_stride[0], begin, end);
          block.boxes2 = read_boxes(stage.boxes2, layout, kBoxPairBoxes2, arguments.boxes2,
                                    arguments.coordinate_stride[1], begin, end);
          block.weight = read_weight(stage.weight, layout, arguments.weight, begin, end);
          block.gradient1 = place_gradient(stage.gradient1, layout, kBoxPairGradient1,
                                           arguments.gradient1, begin);
          block.gradient2 = place_gradient(stage.gradient2, layout, kBoxPairGradient2,
                                           arguments.gradient2, begin);
          T* const values = static_cast<T*>(arguments.loss_output.values);
          block.values = values ? values + begin : nullptr;

          chunk_sum += double(run_block<Formula, T, kGradients>(block, end - begin, parameter,
                                                                gradient_scale, streaming));

          write_gradient(stage.gradient1, layout, kBoxPairGradient1, arguments.gradient1, begin,
                         end);
          write_gradient(stage.gradient2, layout, kBoxPairGradient2, arguments.gradient2, begin,
                         end);
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
