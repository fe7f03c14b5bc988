// SPDX-License-Identifier: MIT
// What every CUDA kernel shares: launching, sums over a block, and sums over a grid in the same
// launch.
//
// Compiled by nvcc, and by g++ against the host emulation of CUDA in the tests.
#pragma once
#include <cuda_runtime.h>

#include <algorithm>
#include <cassert>
#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <type_traits>

#include "core/macros.h"
#include "core/math.h"
#include "core/types.h"

#define FASTLOSS_DEVICE_INLINE __device__ __forceinline__

namespace fastloss::FASTLOSS_TARGET {

// --- on the host ---

constexpr int kWarpSize = 32;
// Enough to fill a multiprocessor with 256-thread blocks; more would only mean more partial sums.
constexpr int kBlocksPerMultiprocessor = 8;
// How many sums one launch may make: each takes a number per block from the workspace.
constexpr int kMaxTotals = 4;

inline void check_cuda(cudaError_t error, const std::string& what) {
  if (error == cudaSuccess) return;
  cudaGetLastError();  // reported here, so nobody else may stumble over it later
  throw std::runtime_error("fastloss: " + what + " failed: " + cudaGetErrorName(error) + " (" +
                           cudaGetErrorString(error) + ")");
}

// The number of multiprocessors of the current device.
int multiprocessors();

// The number of blocks for a grid-stride loop over `work_items`: one where there is nothing to do
// (its kernel still has a total to write), and never more than the workspace has room for partial
// sums.
inline unsigned grid_for(int64_t work_items, int per_block) {
  const int64_t useful = (work_items + per_block - 1) / per_block;
  const int64_t full = int64_t{multiprocessors()} * kBlocksPerMultiprocessor;
  return static_cast<unsigned>(
      std::max<int64_t>(std::min({useful, full, kWorkspace / kMaxTotals}), 1));
}

template <class... Parameters, class... Arguments>
void launch(void (*kernel)(Parameters...), unsigned grid, unsigned block, std::size_t shared_bytes,
            void* stream, const Arguments&... arguments) {
  static_assert(sizeof...(Parameters) == sizeof...(Arguments),
                "a kernel launched with too few or too many arguments");
  static_assert((std::is_convertible_v<const Arguments&, Parameters> && ...),
                "an argument of the wrong type");
  constexpr std::size_t kSharedWithoutAsking = 48 * 1024;
  if (shared_bytes > kSharedWithoutAsking) {
    check_cuda(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                    static_cast<int>(shared_bytes)),
               "asking for more shared memory");
  }
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(grid);
  config.blockDim = dim3(block);
  config.dynamicSmemBytes = shared_bytes;
  config.stream = static_cast<cudaStream_t>(stream);
  const cudaError_t error = cudaLaunchKernelEx(&config, kernel, arguments...);
  if (error != cudaSuccess) {  // the text is built only when it is needed
    check_cuda(error, "launching a CUDA kernel with " + std::to_string(grid) + " blocks of " +
                          std::to_string(block) + " threads and " + std::to_string(shared_bytes) +
                          " bytes of shared memory");
  }
}

// Where the blocks of one launch leave their partial sums and count who is done. `counter` is zero
// when a launch starts and is left zero by its last block, so no launch has to clear it.
struct Completion {
  double* partials = nullptr;   // [totals, grid]
  unsigned* counter = nullptr;  // null: a single block, which has nobody to wait for
};

// The counter for one launch on `stream`. Launches on one stream run one after the other and share
// theirs; a captured launch may be replayed beside anything, so it owns one for ever.
unsigned* completion_counter(void* stream);

inline Completion completion_for(const Execution& execution, unsigned grid) {
  return {execution.workspace, grid == 1 ? nullptr : completion_counter(execution.stream)};
}

// --- on the device ---

// The block's dynamic shared memory; 16-byte aligned.
template <class T>
FASTLOSS_DEVICE_INLINE T* dynamic_shared() {
#if defined(CUDA_EMULATION)
  return static_cast<T*>(emulated_cuda::dynamic_shared_memory());
#else
  extern __shared__ __align__(16) unsigned char dynamic_shared_bytes[];
  return reinterpret_cast<T*>(dynamic_shared_bytes);
#endif
}

constexpr unsigned kAllLanes = 0xffffffffu;

template <class T>
FASTLOSS_DEVICE_INLINE T warp_sum(T value) {  // the total in lane 0
  for (int offset = kWarpSize / 2; offset > 0; offset /= 2) {
    value += __shfl_down_sync(kAllLanes, value, offset);
  }
  return value;
}

template <class T>
FASTLOSS_DEVICE_INLINE T sum_of_lanes(T value) {  // in every lane, and always the same
  for (int offset = kWarpSize / 2; offset > 0; offset /= 2)
    value += __shfl_xor_sync(kAllLanes, value, offset);
  return value;
}

template <class T>
FASTLOSS_DEVICE_INLINE T largest_of_lanes(T value) {  // in every lane
  for (int offset = kWarpSize / 2; offset > 0; offset /= 2)
    value = max(value, __shfl_xor_sync(kAllLanes, value, offset));
  return value;
}

// The sums over a block of kThreads threads, in thread 0 and in place, always added in the same
// order.
template <int kThreads, class T, int kCount>
FASTLOSS_DEVICE_INLINE void block_sum(T (&values)[kCount]) {
  static_assert(kThreads % kWarpSize == 0 && kThreads <= kWarpSize * kWarpSize);
  constexpr int kWarps = kThreads / kWarpSize;
  for (int k = 0; k < kCount; ++k) values[k] = warp_sum(values[k]);
  if constexpr (kWarps > 1) {
    __shared__ T of_warp[kCount][kWarps];
    const int thread = static_cast<int>(threadIdx.x);
    __syncthreads();  // the first warp may still be reading the sums of the call before
    if (thread % kWarpSize == 0) {
      for (int k = 0; k < kCount; ++k) of_warp[k][thread / kWarpSize] = values[k];
    }
    __syncthreads();
    if (thread < kWarpSize) {
      for (int k = 0; k < kCount; ++k)
        values[k] = warp_sum(thread < kWarps ? of_warp[k][thread] : T(0));
    }
  }
}

template <int kThreads, class T>
FASTLOSS_DEVICE_INLINE T block_sum(T value) {
  T values[1] = {value};
  block_sum<kThreads>(values);
  return values[0];
}

// Whether this block is the last of the grid to get here. What the others wrote before is visible
// to it then, past its own cache: to __ldcg. Every thread of a one-dimensional grid calls this,
// once; the last block's thread 0 owes the counter a reset_counter().
FASTLOSS_DEVICE_INLINE bool is_last_block(const Completion& completion) {
  if (completion.counter == nullptr) {
    __syncthreads();
    return true;
  }
  __shared__ bool is_last;
  __threadfence();  // what was written is visible before the count says so
  __syncthreads();
  if (threadIdx.x == 0) is_last = atomicAdd(completion.counter, 1u) == gridDim.x - 1;
  __syncthreads();
  if (is_last) __threadfence();
  return is_last;
}
FASTLOSS_DEVICE_INLINE void reset_counter(const Completion& completion) {
  if (completion.counter != nullptr) *completion.counter = 0;
}

// The sums over the whole grid: the block that finishes last adds the blocks' sums, in the order of
// the blocks whoever is last, and one of its threads calls finish(totals). Every thread of a
// one-dimensional grid calls this, at its end.
template <int kThreads, class T, int kTotals, class Finish>
FASTLOSS_DEVICE_INLINE void grid_sum(const T (&values)[kTotals], const Completion& completion,
                                     const Finish& finish) {
  static_assert(kTotals <= kMaxTotals,
                "the workspace has room for kMaxTotals partial sums a block");
  T of_block[kTotals];
  for (int k = 0; k < kTotals; ++k) of_block[k] = values[k];
  block_sum<kThreads>(of_block);
  double totals[kTotals];
  if (completion.counter == nullptr) {
    for (int k = 0; k < kTotals; ++k) totals[k] = of_block[k];
    if (threadIdx.x == 0) finish(totals);
    return;
  }
  if (threadIdx.x == 0) {
    for (int k = 0; k < kTotals; ++k) completion.partials[k * gridDim.x + blockIdx.x] = of_block[k];
  }
  if (!is_last_block(completion)) return;
  for (int k = 0; k < kTotals; ++k) {
    totals[k] = 0;
    for (unsigned i = threadIdx.x; i < gridDim.x; i += kThreads) {
      // Written by other multiprocessors: never read from this one's cache.
      totals[k] += __ldcg(completion.partials + k * gridDim.x + i);
    }
  }
  block_sum<kThreads>(totals);
  if (threadIdx.x == 0) {
    reset_counter(completion);
    finish(totals);
  }
}

template <int kThreads, class T, class Finish>
FASTLOSS_DEVICE_INLINE void grid_sum(T value, const Completion& completion, const Finish& finish) {
  const T values[1] = {value};
  grid_sum<kThreads>(values, completion, [&](const double (&totals)[1]) { finish(totals[0]); });
}

// Stops the kernel with an error where the condition does not hold. Unlike assert, a release build
// keeps it.
#define FASTLOSS_DEVICE_ASSERT(condition, what) \
  if (!(condition)) __assert_fail(what, __FILE__, __LINE__, __func__)

}  // namespace fastloss::FASTLOSS_TARGET
