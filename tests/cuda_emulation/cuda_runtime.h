// SPDX-License-Identifier: MIT
// A CUDA device on the CPU, for tests: with this folder in front of the include path the `.cu`
// files compile as plain C++20 and run without a GPU, under the sanitizers too. Only what the
// kernels use is here.
//
// The blocks of a grid run one after another, in another order at each launch, and a block's
// threads are fibers (emulation.cpp), which switch only where CUDA threads meet: at barriers and
// shuffles. A thread that never gets there is just a function call. Stricter than a GPU: threads
// that exit or take another way while others wait for them stop the process with a message, dynamic
// shared memory starts as NaN, and a warp operation may only name lanes that still run.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <source_location>
#include <tuple>
#include <type_traits>
#include <utility>

#define CUDA_EMULATION 1

#define __global__
#define __device__
#define __host__
#define __constant__ static
#define __grid_constant__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __align__(bytes) alignas(bytes)
// One block runs at a time, so one copy per program is one copy per block. `extern __shared__`
// cannot be written this way: kernels take dynamic shared memory from core/cuda.h.
#define __shared__ static

// --- vector types, aligned as CUDA's, so that UndefinedBehaviorSanitizer sees a misaligned wide
// access ---

#define EMULATED_VECTOR_TYPE(scalar, name)                                    \
  struct alignas(2 * sizeof(scalar)) name##2 { scalar x, y; };                \
  struct alignas(4 * sizeof(scalar) < 16 ? 4 * sizeof(scalar) : 16) name##4 { \
    scalar x, y, z, w;                                                        \
  };                                                                          \
  inline name##2 make_##name##2(scalar x, scalar y) { return {x, y}; }        \
  inline name##4 make_##name##4(scalar x, scalar y, scalar z, scalar w) { return {x, y, z, w}; }

EMULATED_VECTOR_TYPE(unsigned char, uchar)
EMULATED_VECTOR_TYPE(unsigned short, ushort)
EMULATED_VECTOR_TYPE(int, int)
EMULATED_VECTOR_TYPE(unsigned, uint)
EMULATED_VECTOR_TYPE(long long, longlong)
EMULATED_VECTOR_TYPE(float, float)
EMULATED_VECTOR_TYPE(double, double)
#undef EMULATED_VECTOR_TYPE

struct uint3 {
  unsigned x, y, z;
};

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};

// --- where a thread is; the emulation sets these whenever it switches ---

extern uint3 threadIdx;
extern uint3 blockIdx;
extern dim3 blockDim;
extern dim3 gridDim;
inline constexpr int warpSize = 32;

// --- the emulation's own interface ---

namespace emulated_cuda {

using Location = std::source_location;

inline constexpr int kMultiprocessors = 2;

// Runs every thread of the grid: `thread(context)` is one thread's kernel call.
void run_grid(dim3 grid, dim3 block, std::size_t shared_bytes, void (*thread)(const void*),
              const void* context);

// The running block's dynamic shared memory, NaN when the block starts.
void* dynamic_shared_memory();

// All threads of the block meet here.
void block_barrier(Location where);

// The lanes in `mask` meet here; each gets the value that lane `source` brought.
std::uint64_t warp_exchange(unsigned mask, std::uint64_t value, int source, Location where);

// The lanes in `mask` meet here; each gets a bit per lane: its predicate.
unsigned warp_ballot(unsigned mask, bool predicate, Location where);

int lane();

// What cudaStreamIsCapturing answers from now on.
void set_capturing(bool capturing);

[[noreturn]] void fail(const char* message, Location where);

template <class T>
T exchange(unsigned mask, T value, int source, Location where) {
  static_assert(std::is_trivially_copyable_v<T> && sizeof(T) <= sizeof(std::uint64_t));
  std::uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof(T));
  bits = warp_exchange(mask, bits, source, where);
  std::memcpy(&value, &bits, sizeof(T));
  return value;
}

}  // namespace emulated_cuda

// --- device functions ---

inline void __syncthreads(std::source_location where = std::source_location::current()) {
  emulated_cuda::block_barrier(where);
}

inline void __syncwarp(unsigned mask = 0xffffffffu,
                       std::source_location where = std::source_location::current()) {
  emulated_cuda::warp_ballot(mask, false, where);
}

inline unsigned __ballot_sync(unsigned mask, bool predicate,
                              std::source_location where = std::source_location::current()) {
  return emulated_cuda::warp_ballot(mask, predicate, where);
}

// A lane whose source lies outside its segment of `width` lanes keeps its own value.
inline int __ffs(int bits) { return __builtin_ffs(bits); }
inline int __popc(unsigned bits) { return __builtin_popcount(bits); }

template <class T>
T __shfl_sync(unsigned mask, T value, int source, int width = warpSize,
              std::source_location where = std::source_location::current()) {
  const int first = emulated_cuda::lane() & ~(width - 1);
  return emulated_cuda::exchange(mask, value, first + (source & (width - 1)), where);
}

template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = warpSize,
                   std::source_location where = std::source_location::current()) {
  const int lane = emulated_cuda::lane();
  const int source = lane + static_cast<int>(delta);
  const int end = (lane & ~(width - 1)) + width;
  return emulated_cuda::exchange(mask, value, source < end ? source : lane, where);
}

template <class T>
T __shfl_xor_sync(unsigned mask, T value, int lane_mask, int width = warpSize,
                  std::source_location where = std::source_location::current()) {
  const int lane = emulated_cuda::lane();
  const int source = lane ^ lane_mask;
  const int end = (lane & ~(width - 1)) + width;
  return emulated_cuda::exchange(mask, value, source < end ? source : lane, where);
}

// Fibers switch at barriers and shuffles only, so plain memory accesses are atomic and in order.
inline unsigned atomicAdd(unsigned* address, unsigned value) {
  const unsigned old = *address;
  *address = old + value;
  return old;
}
inline void __threadfence() {}

template <class T>
T __ldg(const T* address) {  // read-only data
  return *address;
}
template <class T>
T __ldcg(const T* address) {  // around the first-level cache
  return *address;
}
template <class T>
T __ldcs(const T* address) {  // read once
  return *address;
}
template <class T>
void __stcs(T* address, T value) {  // written once
  *address = value;
}

[[noreturn]] inline void __trap(std::source_location where = std::source_location::current()) {
  emulated_cuda::fail("__trap()", where);
}

// The C library's; CUDA declares it for kernels whether or not NDEBUG is defined.
extern "C" [[noreturn]] void __assert_fail(const char* what, const char* file, unsigned line,
                                           const char* function) noexcept;

// --- the runtime's host functions; a launch returns when the grid has finished ---

using cudaStream_t = struct CUstream_st*;

enum cudaError_t {
  cudaSuccess = 0,
  cudaErrorInvalidValue = 1,
  cudaErrorInvalidConfiguration = 9,
};
enum cudaDeviceAttr { cudaDevAttrMultiProcessorCount = 16 };
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize = 8 };
enum cudaStreamCaptureStatus {
  cudaStreamCaptureStatusNone = 0,
  cudaStreamCaptureStatusActive = 1,
};
struct cudaLaunchAttribute;
struct cudaLaunchConfig_t {
  dim3 gridDim;
  dim3 blockDim;
  std::size_t dynamicSmemBytes;
  cudaStream_t stream;
  cudaLaunchAttribute* attrs;
  unsigned numAttrs;
};

const char* cudaGetErrorName(cudaError_t error);
const char* cudaGetErrorString(cudaError_t error);
cudaError_t cudaGetLastError();
cudaError_t cudaGetDevice(int* device);
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int device);
cudaError_t cudaStreamIsCapturing(cudaStream_t stream, cudaStreamCaptureStatus* status);
cudaError_t cudaStreamGetId(cudaStream_t stream, unsigned long long* id);

namespace emulated_cuda {
// The errors are remembered for cudaGetLastError.
cudaError_t allow_shared(const void* kernel, int bytes);
cudaError_t check_launch(const cudaLaunchConfig_t& config, const void* kernel);
}  // namespace emulated_cuda

template <class... Parameters>
cudaError_t cudaFuncSetAttribute(void (*kernel)(Parameters...), cudaFuncAttribute, int bytes) {
  return emulated_cuda::allow_shared(reinterpret_cast<const void*>(kernel), bytes);
}

template <class T>
cudaError_t cudaGetSymbolAddress(void** address, T& symbol) {
  *address = &symbol;
  return cudaSuccess;
}

template <class... Parameters, class... Arguments>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Parameters...),
                               Arguments&&... arguments) {
  const cudaError_t error =
      emulated_cuda::check_launch(*config, reinterpret_cast<const void*>(kernel));
  if (error != cudaSuccess) return error;
  using Call = std::pair<void (*)(Parameters...), std::tuple<Parameters...>>;
  const Call call{kernel, std::tuple<Parameters...>(std::forward<Arguments>(arguments)...)};
  emulated_cuda::run_grid(
      config->gridDim, config->blockDim, config->dynamicSmemBytes,
      [](const void* context) {
        const Call& launched = *static_cast<const Call*>(context);
        std::apply(launched.first, launched.second);
      },
      &call);
  return cudaSuccess;
}
