// SPDX-License-Identifier: MIT
#include "core/vec.h"
#include "engines/kernels.h"
#include "engines/staging.h"

namespace fastloss::FASTLOSS_TARGET {
namespace {

constexpr int64_t kBlock = 1024;
constexpr int64_t kSmallestChunk = 16384;

template <class T>
void multiply(T* numbers, const T* factors, int64_t count) {
  using V = Vec<T>;
  const int64_t whole = count / V::kLanes * V::kLanes;
  for (int64_t i = 0; i < whole; i += V::kLanes) {
    (V::load(numbers + i) * V::load(factors + i)).store(numbers + i);
  }
  for (int64_t i = whole; i < count; ++i) numbers[i] *= factors[i];
}

// Whether every element of an operand is the same one.
bool is_one_number(const Layout& layout, int operand) {
  for (int d = 0; d < layout.dims; ++d) {
    if (layout.stride[operand][d] != 0) return false;
  }
  return true;
}

template <class T>
void run_typed(const ScaleArguments& arguments, const Execution& execution) {
  const Layout& layout = arguments.layout;
  const bool direct = arguments.gradient.dtype == dtype_of<T> && layout.is_even(kScaleGradient, 1);
  const bool same_factor = is_one_number(layout, kScaleUpstream);  // the gradient of a scalar
  const Input source{arguments.gradient.data, arguments.gradient.dtype};

  sum_over_chunks(
      execution, layout.numel, kSmallestChunk, [&](int64_t chunk_begin, int64_t chunk_end) {
        alignas(64) T gradient_stage[kBlock];
        alignas(64) T upstream_stage[kBlock];
        if (same_factor) load_strided(upstream_stage, 1, arguments.upstream, 0, 0, kBlock);
        for (int64_t begin = chunk_begin; begin < chunk_end; begin += kBlock) {
          const int64_t end = begin + kBlock < chunk_end ? begin + kBlock : chunk_end;
          T* gradient = direct ? static_cast<T*>(arguments.gradient.data) + begin : gradient_stage;
          for_each_run(
              layout, begin, end, [&](int64_t position, const int64_t* offsets, int64_t length) {
                if (!same_factor) {
                  load_strided(upstream_stage + position, 1, arguments.upstream,
                               offsets[kScaleUpstream], layout.stride[kScaleUpstream][0], length);
                }
                if (!direct) {
                  load_strided(gradient + position, 1, source, offsets[kScaleGradient],
                               layout.stride[kScaleGradient][0], length);
                }
              });
          multiply(gradient, upstream_stage, end - begin);
          if (direct) continue;
          for_each_run(
              layout, begin, end, [&](int64_t position, const int64_t* offsets, int64_t length) {
                store_strided(arguments.gradient, offsets[kScaleGradient],
                              layout.stride[kScaleGradient][0], gradient + position, 1, length);
              });
        }
        return 0.0;
      });
}

}  // namespace

void scale(const ScaleArguments& arguments, const Execution& execution) {
  if (arguments.gradient.dtype == DType::kFloat64) {
    run_typed<double>(arguments, execution);
  } else {
    run_typed<float>(arguments, execution);
  }
}

}  // namespace fastloss::FASTLOSS_TARGET
