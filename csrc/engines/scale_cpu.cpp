// SPDX-License-Identifier: MIT
#include "engines/kernels.h"
#include "engines/staging.h"

namespace fastloss::FASTLOSS_TARGET {
namespace {

constexpr int64_t kBlock = 1024;
constexpr int64_t kSmallestChunk = 16384;

template <class T>
void run_typed(const ScaleArguments& arguments, const Execution& execution) {
  const Layout& layout = arguments.layout;
  const bool direct = arguments.gradient.dtype == dtype_of<T> && layout.is_even(kScaleGradient, 1);
  const Input source{arguments.gradient.data, arguments.gradient.dtype};

  sum_over_chunks(
      execution, layout.numel, kSmallestChunk, [&](int64_t chunk_begin, int64_t chunk_end) {
        alignas(64) T gradient_stage[kBlock];
        alignas(64) T upstream_stage[kBlock];
        for (int64_t begin = chunk_begin; begin < chunk_end; begin += kBlock) {
          const int64_t end = begin + kBlock < chunk_end ? begin + kBlock : chunk_end;
          T* gradient = direct ? static_cast<T*>(arguments.gradient.data) + begin : gradient_stage;
          for_each_run(
              layout, begin, end, [&](int64_t position, const int64_t* offsets, int64_t length) {
                load_strided(upstream_stage + position, 1, arguments.upstream,
                             offsets[kScaleUpstream], layout.stride[kScaleUpstream][0], length);
                if (!direct) {
                  load_strided(gradient + position, 1, source, offsets[kScaleGradient],
                               layout.stride[kScaleGradient][0], length);
                }
              });
          for (int64_t i = 0; i < end - begin; ++i) gradient[i] *= upstream_stage[i];
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
