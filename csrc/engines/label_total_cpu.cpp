// SPDX-License-Identifier: MIT
#include "engines/kernels.h"
#include "engines/staging.h"

namespace fastloss::FASTLOSS_TARGET {
namespace {

constexpr int64_t kBlock = 512;
constexpr int64_t kSmallestChunk = 16384;

template <class T>
void run_typed(const LabelTotalArguments& arguments, const Execution& execution) {
  const auto* weights = static_cast<const T*>(arguments.class_weight.data);
  const int64_t largest = arguments.largest;
  FirstBadLabel bad;
  const double total = sum_over_chunks(
      execution, arguments.layout.numel, kSmallestChunk,
      [&](int64_t chunk_begin, int64_t chunk_end) {
        int64_t labels[kBlock];
        double sum = 0.0;
        for (int64_t begin = chunk_begin; begin < chunk_end; begin += kBlock) {
          const int64_t end = begin + kBlock < chunk_end ? begin + kBlock : chunk_end;
          for_each_run(arguments.layout, begin, end,
                       [&](int64_t position, const int64_t* offsets, int64_t length) {
                         load_integers(labels + position, arguments.labels, offsets[0],
                                       arguments.layout.stride[0][0], length);
                       });
          int64_t valid = 0, ignored = 0;  // counted without branches, so in vectors
          for (int64_t i = 0; i < end - begin; ++i) {
            const bool skip = is_ignored(arguments.ignored, labels[i]);
            ignored += skip;
            valid += !skip & (labels[i] >= 0) & (labels[i] <= largest);
          }
          if (valid + ignored != end - begin) {
            for (int64_t i = 0; i < end - begin; ++i) {
              const int64_t label = labels[i];
              if (!is_ignored(arguments.ignored, label) && (label < 0 || label > largest))
                bad.note(begin + i, label);
            }
          } else if (weights == nullptr) {
            sum += static_cast<double>(valid);
          } else {
            for (int64_t i = 0; i < end - begin; ++i) {
              if (!is_ignored(arguments.ignored, labels[i])) sum += double(weights[labels[i]]);
            }
          }
        }
        return sum;
      });
  bad.throw_if_any(largest);
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
