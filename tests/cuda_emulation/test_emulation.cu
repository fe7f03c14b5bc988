// SPDX-License-Identifier: MIT
// The emulation itself, and core/cuda.h on it: what must work works, and what must be caught is
// caught.
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "core/cuda.h"

namespace fastloss::FASTLOSS_TARGET {
namespace {

int failures = 0;

void expect(bool holds, const char* what) {
  if (holds) return;
  std::fprintf(stderr, "FAILED: %s\n", what);
  ++failures;
}

// --- positions, vector types ---

__global__ void positions(unsigned* out) {
  const unsigned thread = threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z);
  const unsigned block = blockIdx.x + gridDim.x * (blockIdx.y + gridDim.y * blockIdx.z);
  out[block * blockDim.x * blockDim.y * blockDim.z + thread] += block * 1000 + thread;
}

void test_positions() {
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(3, 2, 2);
  config.blockDim = dim3(5, 4, 3);
  std::vector<unsigned> out(12 * 60, 0);
  expect(cudaLaunchKernelEx(&config, positions, out.data()) == cudaSuccess,
         "a launch in three dimensions");
  bool right = true;
  for (unsigned i = 0; i < out.size(); ++i) right = right && out[i] == i / 60 * 1000 + i % 60;
  expect(right, "every thread of every block runs once, at its place");
}

__global__ void arrivals(unsigned* arrived, unsigned* out) {
  if (threadIdx.x == 0) out[blockIdx.x] = atomicAdd(arrived, 1u);
}

void test_order_of_blocks() {
  std::vector<std::vector<unsigned>> orders;
  for (int repeat = 0; repeat < 3; ++repeat) {
    unsigned arrived = 0;
    std::vector<unsigned> order(50, ~0u);
    launch(arrivals, 50, 32, 0, nullptr, &arrived, order.data());
    orders.push_back(order);
    std::sort(order.begin(), order.end());
    bool right = true;
    for (unsigned i = 0; i < order.size(); ++i) right = right && order[i] == i;
    expect(right, "every block runs once");
  }
  expect(orders[0] != orders[1] && orders[1] != orders[2] && orders[0] != orders[2],
         "the blocks run in another order at each launch");
}

__global__ void copy_wide(const float4* in, float4* out) {
  out[threadIdx.x] = __ldg(in + threadIdx.x);
}

void test_vector_types() {
  static_assert(alignof(float4) == 16 && alignof(double2) == 16 && alignof(uint2) == 8 &&
                alignof(uchar4) == 4);
  alignas(16) float in[16], out[16];
  for (int i = 0; i < 16; ++i) in[i] = static_cast<float>(i);
  launch(copy_wide, 1, 4, 0, nullptr, reinterpret_cast<const float4*>(in),
         reinterpret_cast<float4*>(out));
  expect(std::equal(in, in + 16, out), "16-byte accesses");
}

// --- barriers and shared memory ---

__global__ void reverse(const int* in, int* out) {
  __shared__ int shared[256];
  const unsigned first = blockIdx.x * 256;
  shared[threadIdx.x] = in[first + threadIdx.x];
  __syncthreads();
  out[first + threadIdx.x] = shared[255 - threadIdx.x];
}

__global__ void neighbour_average(float* values, int rounds) {
  float* shared = dynamic_shared<float>();
  const unsigned i = threadIdx.x, n = blockDim.x;
  if (i == 0) values[n] = shared[0];
  __syncthreads();
  shared[i] = values[i];
  for (int round = 0; round < rounds; ++round) {
    __syncthreads();
    const float average = 0.5f * (shared[i] + shared[(i + 1) % n]);
    __syncthreads();
    shared[i] = average;
  }
  values[i] = shared[i];
}

void test_shared_memory() {
  std::vector<int> in(4 * 256), out(4 * 256);
  for (int i = 0; i < 4 * 256; ++i) in[i] = i;
  launch(reverse, 4, 256, 0, nullptr, in.data(), out.data());
  bool right = true;
  for (int i = 0; i < 4 * 256; ++i) right = right && out[i] == i / 256 * 256 + 255 - i % 256;
  expect(right, "a block reversed through static shared memory");

  constexpr int kThreads = 96, kRounds = 5;
  std::vector<float> values(kThreads + 1), expected(kThreads);
  for (int i = 0; i < kThreads; ++i) values[i] = expected[i] = static_cast<float>(i * i % 17);
  for (int round = 0; round < kRounds; ++round) {
    std::vector<float> before = expected;
    for (int i = 0; i < kThreads; ++i)
      expected[i] = 0.5f * (before[i] + before[(i + 1) % kThreads]);
  }
  launch(neighbour_average, 1, kThreads, kThreads * sizeof(float), nullptr, values.data(), kRounds);
  expect(std::isnan(values[kThreads]), "dynamic shared memory starts as NaN");
  expect(std::equal(expected.begin(), expected.end(), values.begin()),
         "rounds of barriers over dynamic shared memory");
}

// --- warps ---

template <class T>
__global__ void shuffles(T* out) {
  const unsigned i = threadIdx.x;
  const T value = static_cast<T>(i) + T(1);
  out[i] = __shfl_down_sync(0xffffffffu, value, 4);
  out[64 + i] = __shfl_xor_sync(0xffffffffu, value, 9);
  out[128 + i] = __shfl_sync(0xffffffffu, value, 3, 8);
}

__global__ void half_warps(unsigned* out) {
  const unsigned lane = threadIdx.x % 32;
  __syncwarp();
  // The halves go different ways and meet only among themselves.
  if (lane < 16) {
    out[threadIdx.x] = __ballot_sync(0x0000ffffu, lane % 2 == 0);
  } else {
    out[threadIdx.x] = __ballot_sync(0xffff0000u, lane % 3 == 0);
  }
  __syncwarp();
}

template <class T>
void test_shuffles() {
  std::vector<T> out(192);
  launch(shuffles<T>, 1, 64, 0, nullptr, out.data());
  bool right = true;
  for (int i = 0; i < 64; ++i) {
    right = right && out[i] == T((i % 32 + 4 < 32 ? i + 4 : i) + 1);
    right = right && out[64 + i] == T((i ^ 9) + 1);
    right = right && out[128 + i] == T(i / 8 * 8 + 3 + 1);
  }
  expect(right, "shuffles");
}

void test_ballots() {
  std::vector<unsigned> out(64);
  launch(half_warps, 1, 64, 0, nullptr, out.data());
  bool right = true;
  for (int i = 0; i < 64; ++i) right = right && out[i] == (i % 32 < 16 ? 0x00005555u : 0x49240000u);
  expect(right, "ballots of half warps");
}

// --- sums ---

template <class T, int kThreads>
__global__ void two_block_sums(const T* in, T* out) {
  const T value = in[blockIdx.x * kThreads + threadIdx.x];
  const T sum = block_sum<kThreads>(value);
  const T squares = block_sum<kThreads>(value * value);
  if (threadIdx.x == 0) {
    out[2 * blockIdx.x] = sum;
    out[2 * blockIdx.x + 1] = squares;
  }
}

template <class T, int kThreads>
void test_block_sum() {
  constexpr int kBlocks = 3;
  std::vector<T> in(kBlocks * kThreads), out(2 * kBlocks), expected(2 * kBlocks);
  for (int i = 0; i < kBlocks * kThreads; ++i) {
    in[i] = static_cast<T>(i % 13 - 4);  // small whole numbers: exact in any order
    expected[i / kThreads * 2] += in[i];
    expected[i / kThreads * 2 + 1] += in[i] * in[i];
  }
  launch(two_block_sums<T, kThreads>, kBlocks, kThreads, 0, nullptr, in.data(), out.data());
  expect(out == expected, "block_sum twice in a row");
}

constexpr int kThreads = 128;

__global__ void sum_all(const float* in, int64_t count, Completion completion, double* total,
                        int* finishes) {
  float sum = 0;
  const int64_t step = int64_t{gridDim.x} * kThreads;
  for (int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x; i < count; i += step) sum += in[i];
  grid_sum<kThreads>(sum, completion, [&](double sum_of_grid) {
    *total = sum_of_grid;
    ++*finishes;
  });
}

void test_grid_sum() {
  std::vector<double> workspace(kWorkspace);
  for (const int64_t count : {0, 1, 127, 128, 129, 2000, 100000}) {
    std::vector<float> in(count);
    double expected = 0;
    for (int64_t i = 0; i < count; ++i) expected += in[i] = static_cast<float>(i % 7);
    Execution execution;
    execution.workspace = workspace.data();
    for (int repeat = 0; repeat < 3; ++repeat) {  // the counter is zero again after each
      const unsigned grid = grid_for(count, kThreads);
      expect(grid >= 1 && grid <= unsigned(multiprocessors() * kBlocksPerMultiprocessor),
             "the size of a grid");
      double total = -1;
      int finishes = 0;
      launch(sum_all, grid, kThreads, 0, execution.stream, in.data(), count,
             completion_for(execution, grid), &total, &finishes);
      expect(total == expected && finishes == 1, "grid_sum finishes once, with the total");
    }
  }
}

void test_counters() {
  const auto stream = [](std::uintptr_t id) { return reinterpret_cast<void*>(id); };
  unsigned* first = completion_counter(stream(0));
  expect(completion_counter(stream(16)) != first, "each stream has its own counter");
  expect(completion_counter(stream(0)) == first, "and keeps it");
  for (std::uintptr_t id = 1; id <= 20000; ++id) {
    completion_counter(stream(id * 64));
    if (completion_counter(stream(0)) != first) {
      expect(false, "a stream in use keeps its counter however many others come");
      break;
    }
  }
  emulated_cuda::set_capturing(true);
  unsigned* captured = completion_counter(stream(0));
  expect(captured != completion_counter(stream(0)) && captured != first,
         "each captured launch has its own counter");
  emulated_cuda::set_capturing(false);
  expect(completion_counter(stream(0)) == first, "capturing leaves the stream's counter alone");
}

void test_concurrent_launches() {
  std::vector<std::thread> threads;
  std::vector<int> right(4, 0);
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&right, t] {
      std::vector<int> in(256, t), out(256, -1);
      for (int i = 0; i < 20; ++i) launch(reverse, 1, 256, 0, nullptr, in.data(), out.data());
      right[t] = out == in;
    });
  }
  for (std::thread& thread : threads) thread.join();
  expect(right == std::vector<int>(4, 1),
         "launches from several host threads do not meet in shared memory");
}

// --- errors ---

void test_launch_errors() {
  std::string message;
  try {
    int value = 0;
    launch(reverse, 0, 256, 0, nullptr, &value, &value);
  } catch (const std::runtime_error& error) {
    message = error.what();
  }
  expect(message.find("cudaErrorInvalidConfiguration") != std::string::npos,
         "an empty grid is an error with its name");
  expect(cudaGetLastError() == cudaSuccess, "a reported error does not linger");
}

__global__ void fill_shared(int* out, int count) {
  int* shared = dynamic_shared<int>();
  for (int i = static_cast<int>(threadIdx.x); i < count; i += 32) shared[i] = i;
  __syncthreads();
  if (threadIdx.x == 0) *out = shared[count - 1];
}

void test_much_shared_memory() {
  int last = 0, count = 96 * 1024 / 4;
  launch(fill_shared, 1, 32, 96 * 1024, nullptr, &last, count);
  expect(last == count - 1, "as much shared memory as a kernel may ask for");
  std::string message;
  try {
    launch(fill_shared, 1, 32, 100 * 1024, nullptr, &last, count);
  } catch (const std::runtime_error& error) {
    message = error.what();
  }
  expect(message.find("cudaErrorInvalidValue") != std::string::npos,
         "more shared memory than there is");
  cudaGetLastError();
}

__global__ void one_exits() {
  if (threadIdx.x == 5) return;
  __syncthreads();
}
__global__ void two_barriers() {
  if (threadIdx.x < 32) {
    __syncthreads();
  } else {
    __syncthreads();
  }
}
__global__ void lane_missing() {
  if (threadIdx.x != 7) __shfl_sync(0xffffffffu, 1.0f, 0);
}
__global__ void not_in_mask() { __ballot_sync(0x1u, true); }
__global__ void traps() { __trap(); }
__global__ void barrier_or_shuffle() {
  if (threadIdx.x == 0) __syncthreads();
  __syncwarp();
}

// The launch must end the process, and say why.
void expect_death(void (*kernel)(), const char* reason, std::size_t shared_bytes = 0) {
  int channel[2];
  if (pipe(channel) != 0) std::abort();
  const pid_t child = fork();
  if (child == 0) {
    dup2(channel[1], STDERR_FILENO);
    launch(kernel, 2, 64, shared_bytes, nullptr);
    _exit(0);
  }
  close(channel[1]);
  std::string text;
  char buffer[1024];
  for (ssize_t got; (got = read(channel[0], buffer, sizeof(buffer))) > 0;) text.append(buffer, got);
  close(channel[0]);
  int status = 0;
  waitpid(child, &status, 0);
  const bool survived = WIFEXITED(status) && WEXITSTATUS(status) == 0;
  if (!survived && text.find(reason) != std::string::npos) return;
  std::fprintf(stderr, "FAILED: expected an end with '%s', got: %s\n", reason, text.c_str());
  ++failures;
}

void test_divergence() {
  expect_death(one_exits, "1 (the first: thread (5, 0, 0)) exited");
  expect_death(two_barriers, "32 (the first: thread (32, 0, 0)) wait at __syncthreads()");
  expect_death(lane_missing,
               "31 (the first: thread (0, 0, 0)) wait at a warp operation with mask 0xffffffff");
  expect_death(not_in_mask, "a mask without itself in block (0, 0, 0), thread (1, 0, 0)");
  expect_death(traps, "__trap() in block (0, 0, 0), thread (0, 0, 0)");
  expect_death(barrier_or_shuffle, "1 (the first: thread (0, 0, 0)) wait at __syncthreads()");
}

#if defined(__SANITIZE_ADDRESS__)  // and UndefinedBehaviorSanitizer, which has no macro

__global__ void one_past_the_end() { dynamic_shared<float>()[threadIdx.x] = 1; }

__global__ void off_by_one_float() {
  alignas(16) static float numbers[8];
  *reinterpret_cast<float4*>(numbers + 1) = make_float4(1, 2, 3, 4);
}

void test_sanitizers() {
  expect_death(one_past_the_end, "heap-buffer-overflow", 63 * sizeof(float));
  expect_death(off_by_one_float, "misaligned address");
}

#else

void test_sanitizers() {}

#endif

}  // namespace

int run_tests() {
  test_positions();
  test_order_of_blocks();
  test_vector_types();
  test_shared_memory();
  test_shuffles<int>();
  test_shuffles<float>();
  test_shuffles<double>();
  test_ballots();
  test_block_sum<float, 32>();
  test_block_sum<float, 256>();
  test_block_sum<double, 1024>();
  test_grid_sum();
  test_counters();
  test_concurrent_launches();
  test_launch_errors();
  test_much_shared_memory();
  test_divergence();
  test_sanitizers();
  if (failures == 0) std::puts("cuda_emulation: all tests passed");
  return failures == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}

}  // namespace fastloss::FASTLOSS_TARGET

int main() { return fastloss::FASTLOSS_TARGET::run_tests(); }
