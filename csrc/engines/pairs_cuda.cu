// SPDX-License-Identifier: MIT
#include "core/choose.h"
#include "engines/kernels.h"
#include "engines/list_cuda.h"
#include "engines/soft_sort_cuda.h"

namespace fastloss::FASTLOSS_TARGET {
namespace {

// A list that needs more of a block's memory lies in the scratch, that is in the second cache.
constexpr int64_t kSharedBytes = int64_t{40} << 10;
// Behind the partial sums, where the last block of the first launch leaves a number for the second.
constexpr int64_t kListFactor = kWorkspace - 1;
static_assert(kMaxTotals > 2, "two totals leave the end of the workspace free");

// Every thread takes an item and looks at all others: it sees each pair of its own, and gathers its
// item's slope alone.
template <class Formula>
struct Pairs {
  template <class T, bool kGradient>
  static FASTLOSS_DEVICE_INLINE ListSum run(const PairsArguments& arguments, BlockList<T>& list,
                                            const T* parameter, const SlopeOutput<T>& slopes,
                                            void* /*scratch*/) {
    constexpr unsigned kSeed = 1;
    int items = list.size;
    if constexpr (Formula::kTruncated) {
      if (arguments.parameters[0] < double(items))
        items = static_cast<int>(arguments.parameters[0]);
    }
    if constexpr (Formula::kRanked) list.find_gains(items);
    const auto item_at = [&](int i) {
      if constexpr (Formula::kRanked) {
        return RankedItem<T>{list.relevance[i], list.gain[i], list.discount[i]};
      } else {
        return RankedItem<T>{list.relevance[i], T(0), T(0)};
      }
    };
    ListSum sum;
    for_each_item(list.size, [&](int i) {
      T loss(0), slope(0);
      int pairs = 0;
      for (int j = 0; i < items && j < items; ++j) {
        const auto first = item_at(i), second = item_at(j);
        const bool counted = takes_every_pair<Formula> || first.relevance != second.relevance;
        if (!counted || (!takes_every_pair<Formula> && i == j)) continue;
        const T spacing = Formula::kRanked ? list.spacing[i < j ? j - i : i - j] : T(0);
        const auto cost = Formula::pair(variable<kSeed, kGradient>(list.score[i] - list.score[j]),
                                        first, second, spacing, parameter);
        if (i < j) {
          loss += detach(cost);
          pairs += takes_every_pair<Formula> ? 2 : 1;  // either way round
        }
        if (i == j) {  // itself is one pair, which the formula takes for two
          loss += T(0.5) * detach(cost);
          pairs += 1;
        } else {
          slope += derivative<kSeed>(cost);
        }
      }
      sum.loss += double(loss);
      sum.counted += double(pairs);
      if constexpr (kGradient) slopes.store(i, slope);
    });
    return sum;
  }
};

template <class Formula>
struct Smooth {
  template <class T, bool kGradient>
  static FASTLOSS_DEVICE_INLINE ListSum run(const PairsArguments& /*arguments*/, BlockList<T>& list,
                                            const T* parameter, const SlopeOutput<T>& slopes,
                                            void* /*scratch*/) {
    constexpr unsigned kSeed = 1;
    if (!list.find_gains(list.size)) {
      if constexpr (kGradient) for_each_item(list.size, [&](int i) { slopes.store(i, T(0)); });
      return {};
    }
    ListSum sum;
    T* place_slope = list.discount;  // which is not needed
    for_each_item(list.size, [&](int i) {
      T place(1);
      for (int j = 0; j < list.size; ++j) {
        if (j != i) place += Formula::ahead(list.score[i] - list.score[j], parameter).of_first;
      }
      const auto cost = Formula::cost(seed<kSeed>(place), list.gain[i]);
      sum.loss += double(detach(cost));
      place_slope[i] = derivative<kSeed>(cost);
    });
    if (threadIdx.x == 0) sum = {sum.loss + 1.0, 1.0};
    if constexpr (kGradient) {
      for_each_item(list.size, [&](int i) {
        T slope(0);
        for (int j = 0; j < list.size; ++j) {
          if (j == i) continue;
          const auto ahead = Formula::ahead(seed<kSeed>(list.score[i] - list.score[j]), parameter);
          slope += place_slope[i] * derivative<kSeed>(ahead.of_first) +
                   place_slope[j] * derivative<kSeed>(ahead.of_second);
        }
        slopes.store(i, slope);
      });
    }
    return sum;
  }
};

template <class Formula>
struct Draws {
  template <class T, bool kGradient>
  static FASTLOSS_DEVICE_INLINE ListSum run(const PairsArguments& /*arguments*/, BlockList<T>& list,
                                            const T* /*parameter*/, const SlopeOutput<T>& slopes,
                                            void* /*scratch*/) {
    if (list.size == 0) return {};
    ListSum sum;
    if constexpr (Formula::kDrawsAll) {
      T *largest = list.discount, *total = list.spacing;  // of what is left from an item on
      for_each_item(list.size, [&](int i) {
        T top = list.score[i], tail(0);
        for (int j = i + 1; j < list.size; ++j) top = max(top, list.score[j]);
        for (int j = i; j < list.size; ++j) tail += exp(list.score[j] - top);
        largest[i] = top;
        total[i] = tail;
        sum.loss += log(double(tail)) + (double(top) - double(list.score[i]));
      });
      if constexpr (kGradient) {
        for_each_item(list.size, [&](int i) {
          T drawn(0);
          for (int j = 0; j <= i; ++j) drawn += exp(list.score[i] - largest[j]) / total[j];
          slopes.store(i, drawn - T(1));
        });
      }
    } else {
      T top_score = list.score[0], top_relevance = list.relevance[0];
      for (int i = 1; i < list.size; ++i) {
        top_score = max(top_score, list.score[i]);
        top_relevance = max(top_relevance, list.relevance[i]);
      }
      double found = 0.0, wanted = 0.0;
      for_each_item(list.size, [&](int i) {
        found += double(exp(list.score[i] - top_score));
        wanted += double(exp(list.relevance[i] - top_relevance));
      });
      found = block_total(found);
      wanted = block_total(wanted);
      const double log_found = log(found);
      for_each_item(list.size, [&](int i) {
        const double share = double(exp(list.relevance[i] - top_relevance)) / wanted;
        sum.loss += share * (log_found + (double(top_score) - double(list.score[i])));
        if constexpr (kGradient)
          slopes.store(i, T(double(exp(list.score[i] - top_score)) / found - share));
      });
    }
    if (threadIdx.x == 0) sum.counted = 1.0;
    return sum;
  }
};

template <class Formula>
struct Metric {
  template <class T, bool kGradient>
  static FASTLOSS_DEVICE_INLINE ListSum run(const PairsArguments& arguments, BlockList<T>& list,
                                            const T* /*parameter*/,
                                            const SlopeOutput<T>& /*slopes*/, void* /*scratch*/) {
    int items = list.size;
    if (arguments.parameters[0] < double(items)) items = static_cast<int>(arguments.parameters[0]);
    ListSum sum;
    if (threadIdx.x == 0) sum.counted = 1.0;
    if (!list.find_gains(items)) {
      if (threadIdx.x == 0) sum.loss = Formula::kOfNothing;
      return sum;
    }
    for_each_item(items,
                  [&](int i) { sum.loss += double(list.gain[i]) * double(list.discount[i]); });
    return sum;
  }
};

template <class Formula>
FASTLOSS_DEVICE_INLINE constexpr auto pattern_of() {
  if constexpr (Formula::kPattern == ListPattern::kPairs) {
    return Pairs<Formula>{};
  } else if constexpr (Formula::kPattern == ListPattern::kPlaces) {
    return Smooth<Formula>{};
  } else if constexpr (Formula::kPattern == ListPattern::kDraws) {
    return Draws<Formula>{};
  } else if constexpr (Formula::kPattern == ListPattern::kSoftSort) {
    return SoftSort<Formula>{};
  } else {
    return Metric<Formula>{};
  }
}

// How the memory of the blocks lies: the list, in shared memory or else in the scratch, and what
// the formula needs besides, in the scratch.
struct BlockMemory {
  int64_t list_bytes;
  int64_t more_bytes;
  int64_t scratch_of_block;
  bool is_shared;
};

template <class Formula, class T>
BlockMemory memory_for(const PairsArguments& arguments) {
  BlockMemory memory{BlockList<T>::bytes(arguments.length), 0, 0, false};
  if constexpr (Formula::kPattern == ListPattern::kSoftSort) {
    memory.more_bytes =
        SoftSortMemory<T>::bytes(arguments.length, Formula::kRounds, arguments.gradient != nullptr);
  }
  memory.is_shared = memory.list_bytes <= kSharedBytes;
  memory.scratch_of_block = memory.more_bytes + (memory.is_shared ? 0 : memory.list_bytes);
  return memory;
}

// One block per list at a time.
template <class Formula, class T, bool kGradient>
__global__ void __launch_bounds__(kListThreads, kResidentLists)
    list_kernel(const __grid_constant__ PairsArguments arguments, const BlockMemory memory,
                double* workspace, const Completion completion) {
  using Pattern = decltype(pattern_of<Formula>());
  constexpr bool kByRelevance = Formula::kPattern == ListPattern::kDraws;
  T parameter[kMaxParameters];
  for (int i = 0; i < Formula::kParameters; ++i) parameter[i] = T(arguments.parameters[i]);
  char* scratch = static_cast<char*>(arguments.scratch) + blockIdx.x * memory.scratch_of_block;
  BlockList<T> list(memory.is_shared ? static_cast<void*>(dynamic_shared<char>())
                                     : static_cast<void*>(scratch + memory.more_bytes),
                    arguments.length);
  double totals[2] = {0.0, 0.0};
  for (int64_t b = blockIdx.x; b < arguments.lists; b += gridDim.x) {
    ListSum sum;
    if (list.load_ordered(arguments, b, kByRelevance)) {
      const SlopeOutput<T> slopes{
          kGradient ? static_cast<T*>(arguments.gradient) + b * arguments.length : nullptr,
          list.index};
      sum = Pattern::template run<T, kGradient>(arguments, list, parameter, slopes, scratch);
    } else if (threadIdx.x == 0) {
      sum.loss = double(NAN);
    }
    totals[0] += sum.loss;
    totals[1] += sum.counted;
    if (arguments.loss_output.values) {
      const double loss = block_sum<kListThreads>(sum.loss);
      if (threadIdx.x == 0) static_cast<T*>(arguments.loss_output.values)[b] = T(loss);
    }
    __syncthreads();  // the next list overwrites this one
  }
  if (!arguments.loss_output.total) return;
  grid_sum<kListThreads>(totals, completion, [&](const double (&total)[2]) {
    double factor = 1.0;
    if (arguments.mean) factor = total[1] > 0.0 ? 1.0 / total[1] : 0.0;
    *static_cast<T*>(arguments.loss_output.total) = T(total[0] * factor);
    workspace[kListFactor] = factor;
  });
}

// The mean's factor, known now.
template <class T>
__global__ void __launch_bounds__(kListThreads)
    averaging_kernel(T* gradient, const int64_t count, const double* workspace) {
  const T factor = T(workspace[kListFactor]);
  const int64_t step = int64_t{gridDim.x} * kListThreads;
  for (int64_t i = int64_t{blockIdx.x} * kListThreads + threadIdx.x; i < count; i += step)
    gradient[i] *= factor;
}

template <class Formula, class T, bool kGradient>
void run_lists(const PairsArguments& arguments, const Execution& execution) {
  const BlockMemory memory = memory_for<Formula, T>(arguments);
  const unsigned grid = grid_for(arguments.lists, 1);
  const Completion completion =
      arguments.loss_output.total ? completion_for(execution, grid) : Completion{};
  launch(list_kernel<Formula, T, kGradient>, grid, kListThreads,
         memory.is_shared ? static_cast<std::size_t>(memory.list_bytes) : 0, execution.stream,
         arguments, memory, execution.workspace, completion);
  if (kGradient && arguments.mean) {
    const int64_t count = arguments.lists * arguments.length;
    launch(averaging_kernel<T>, grid_for(count, kListThreads), kListThreads, 0, execution.stream,
           static_cast<T*>(arguments.gradient), count, execution.workspace);
  }
}

template <class Formula>
struct Kernel {
  static void run(const PairsArguments& arguments, const Execution& execution) {
    with_number_type(arguments.is_double, [&](auto number) {
      using T = decltype(number);
      if constexpr (Formula::kPattern == ListPattern::kMetric) {
        run_lists<Formula, T, false>(arguments, execution);
      } else {
        with_flag(arguments.gradient != nullptr, [&](auto gradient) {
          run_lists<Formula, T, decltype(gradient)::value>(arguments, execution);
        });
      }
    });
  }
};

template <class Formula>
struct ScratchOf {
  static int64_t run(const PairsArguments& arguments) {
    const BlockMemory memory = arguments.is_double ? memory_for<Formula, double>(arguments)
                                                   : memory_for<Formula, float>(arguments);
    return grid_for(arguments.lists, 1) * memory.scratch_of_block;
  }
};

}  // namespace

int64_t pairs_scratch(const PairsArguments& arguments) {
  using Function = int64_t (*)(const PairsArguments&);
  return ListLosses::Table<Function, ScratchOf>::kRun[arguments.loss](arguments);
}

void pairs(const PairsArguments& arguments, const Execution& execution) {
  using Function = void (*)(const PairsArguments&, const Execution&);
  ListLosses::Table<Function, Kernel>::kRun[arguments.loss](arguments, execution);
}

}  // namespace fastloss::FASTLOSS_TARGET
