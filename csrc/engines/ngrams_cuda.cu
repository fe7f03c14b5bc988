// SPDX-License-Identifier: MIT
// A block per sentence, a thread per n-gram of it: every position is compared with every other,
// which needs no table and no memory. An n-gram matches if fewer of its kind stand before it than
// the reference has that has most of them.
#include "engines/access_cuda.h"
#include "engines/kernels.h"
#include "losses/bleu.h"

namespace fastloss::FASTLOSS_TARGET {
namespace {

constexpr int kThreads = 128;
// So many orders are counted in one go.
constexpr int kOrders = 4;

FASTLOSS_DEVICE_INLINE int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

// A sentence up to its padding. All lanes of a warp make it together.
class Tokens {
 public:
  FASTLOSS_DEVICE_INLINE Tokens(const Input& input, int64_t offset, int64_t stride, int64_t size,
                                int64_t pad_index)
      : input_(input), offset_(offset), stride_(stride), length_(size) {
    for (int64_t begin = 0; begin < size; begin += kWarpSize) {
      const int64_t i = begin + threadIdx.x % kWarpSize;
      const unsigned ends = __ballot_sync(kAllLanes, i < size && (*this)[i] == pad_index);
      if (ends == 0) continue;
      length_ = begin + __ffs(static_cast<int>(ends)) - 1;
      return;
    }
  }
  FASTLOSS_DEVICE_INLINE int64_t operator[](int64_t i) const {
    return load_integer(input_, offset_ + i * stride_);
  }
  FASTLOSS_DEVICE_INLINE int64_t length() const { return length_; }

 private:
  Input input_;
  int64_t offset_, stride_, length_;
};

FASTLOSS_DEVICE_INLINE Tokens candidate_of(const NgramsArguments& arguments, int64_t sentence) {
  return Tokens(arguments.candidates, sentence * arguments.candidate_stride[0],
                arguments.candidate_stride[1], arguments.length, arguments.pad_index);
}

FASTLOSS_DEVICE_INLINE Tokens reference_of(const NgramsArguments& arguments, int64_t sentence,
                                           int64_t reference) {
  return Tokens(
      arguments.reference_tokens,
      sentence * arguments.reference_stride[0] + reference * arguments.reference_stride[1],
      arguments.reference_stride[2], arguments.reference_length, arguments.pad_index);
}

// Counts the n-grams that begin at `j` and are those that begin at `i`, of the orders from
// `shorter` + 1 on.
FASTLOSS_DEVICE_INLINE void count_equal(int (&counts)[kOrders], const Tokens& candidate, int64_t i,
                                        const Tokens& other, int64_t j, int64_t shorter) {
  const int64_t longest = smaller(candidate.length() - i, other.length() - j);
  const int64_t room = smaller(longest, shorter + kOrders);
  int64_t equal = 0;
  while (equal < room && candidate[i + equal] == other[j + equal]) ++equal;
  FASTLOSS_UNROLL
  for (int k = 0; k < kOrders; ++k) counts[k] += equal > shorter + k ? 1 : 0;
}

// How many n-grams match of the orders from `shorter` + 1 on, in all threads.
FASTLOSS_DEVICE_INLINE void count_matches(int (&matches)[kOrders], const NgramsArguments& arguments,
                                          int64_t sentence, const Tokens& candidate,
                                          int64_t shorter) {
  for (int k = 0; k < kOrders; ++k) matches[k] = 0;
  for (int64_t begin = 0; begin < candidate.length(); begin += kThreads) {
    const int64_t i = begin + threadIdx.x;
    const bool exists = i < candidate.length();
    int most[kOrders] = {};
    for (int64_t r = 0; r < arguments.references; ++r) {
      const Tokens reference = reference_of(arguments, sentence, r);
      if (!exists) continue;
      int counts[kOrders] = {};
      for (int64_t j = 0; j < reference.length(); ++j)
        count_equal(counts, candidate, i, reference, j, shorter);
      FASTLOSS_UNROLL
      for (int k = 0; k < kOrders; ++k) most[k] = counts[k] > most[k] ? counts[k] : most[k];
    }
    if (most[0] == 0) continue;
    int earlier[kOrders] = {};
    for (int64_t j = 0; j < i; ++j) count_equal(earlier, candidate, i, candidate, j, shorter);
    FASTLOSS_UNROLL
    for (int k = 0; k < kOrders; ++k) matches[k] += earlier[k] < most[k] ? 1 : 0;
  }
  __shared__ int of_block[kOrders];
  block_sum<kThreads>(matches);
  if (threadIdx.x == 0) {
    for (int k = 0; k < kOrders; ++k) of_block[k] = matches[k];
  }
  __syncthreads();
  for (int k = 0; k < kOrders; ++k) matches[k] = of_block[k];
  __syncthreads();  // the next call overwrites it
}

__global__ void __launch_bounds__(kThreads, kResidentBlocks)
    ngrams_kernel(const __grid_constant__ NgramsArguments arguments) {
  for (int64_t sentence = blockIdx.x; sentence < arguments.sentences; sentence += gridDim.x) {
    const Tokens candidate = candidate_of(arguments, sentence);
    const int64_t length = candidate.length();
    const int64_t orders = smaller(arguments.max_order, length);
    SentenceBleu bleu(arguments.added, arguments.unmatched, arguments.fading);
    bool goes_on = true;  // where no n-gram matches, no longer one does
    for (int64_t shorter = 0; shorter < orders; shorter += kOrders) {
      int matches[kOrders] = {};
      if (goes_on) count_matches(matches, arguments, sentence, candidate, shorter);
      goes_on = matches[kOrders - 1] > 0;
      FASTLOSS_UNROLL
      for (int k = 0; k < kOrders; ++k) {
        if (shorter + k < orders) bleu.add_order(matches[k], length - shorter - k);
      }
    }
    bleu.add_empty_orders(arguments.max_order - orders);
    ClosestLength closest(length);
    for (int64_t r = 0; r < arguments.references; ++r)
      closest.see(reference_of(arguments, sentence, r).length());
    if (threadIdx.x == 0) arguments.scores[sentence] = bleu.score(length, closest.get());
  }
}

}  // namespace

void ngrams(const NgramsArguments& arguments, const Execution& execution) {
  launch(ngrams_kernel, grid_for(arguments.sentences, 1), kThreads, 0, execution.stream, arguments);
}

}  // namespace fastloss::FASTLOSS_TARGET
