// SPDX-License-Identifier: MIT
#include "engines/kernels.h"
#include "engines/labels.h"
#include "engines/staging.h"

namespace fastloss::FASTLOSS_TARGET {
namespace {

constexpr int64_t kBlock = 512;
constexpr int64_t kSmallestChunk = 16384;

template <class T>
void run_typed(const LabelTotalArguments& arguments, const Execution& execution) {
  using V = Vec<double>;
  const auto* weights = static_cast<const T*>(arguments.class_weight.data);
  const int64_t classes = arguments.largest + 1;
  // In float64: exact for any number of classes, and for their count.
  const LabelReader<double> reader(arguments.labels, arguments.ignored, classes);
  LabelFault fault;
  const double total = sum_over_chunks(
      execution, arguments.layout.numel, kSmallestChunk,
      [&](int64_t chunk_begin, int64_t chunk_end) {
        alignas(64) double labels[kBlock], counts[kBlock];
        double sum = 0.0;
        for (int64_t begin = chunk_begin; begin < chunk_end; begin += kBlock) {
          const int64_t end = begin + kBlock < chunk_end ? begin + kBlock : chunk_end;
          bool in_range = true;
          for_each_run(arguments.layout, begin, end,
                       [&](int64_t position, const int64_t* offsets, int64_t length) {
                         in_range &= reader.read(labels + position, counts + position, offsets[0],
                                                 arguments.layout.stride[0][0], length);
                       });
          fault.note(in_range);
          if (!in_range) continue;
          const int64_t count = end - begin;
          if (weights == nullptr) {
            for (int64_t i = count; i % V::kLanes != 0; ++i) counts[i] = 0.0;
            V counted(0.0);
            for (int64_t i = 0; i < count; i += V::kLanes) counted += V::load(counts + i);
            sum += counted.sum();
          } else {
            for (int64_t i = 0; i < count; ++i) {
              if (counts[i] != 0.0) sum += double(weights[int64_t(labels[i])]);
            }
          }
        }
        return sum;
      });
  fault.throw_if_any();
  *static_cast<T*>(arguments.total) = T(total);
}

}  // namespace

void label_total(const LabelTotalArguments& arguments, const Execution& execution) {
  if (arguments.is_double) {
    run_typed<double>(arguments, execution);
  } else {
    run_typed<float>(arguments, execution);
  }
}

}  // namespace fastloss::FASTLOSS_TARGET
