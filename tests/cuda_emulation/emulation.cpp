// SPDX-License-Identifier: MIT
// The fibers behind cuda_runtime.h: how the threads of one block take turns on one processor.
//
// The scheduler runs on the launching thread's stack. A worker fiber starts one CUDA thread after
// another for as long as they run to their end; when one has to wait, its fiber is set aside and
// another worker goes on. So a kernel without barriers costs one fiber and no switch per thread.
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <bit>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <memory>
#include <mutex>
#include <random>
#include <string>
#include <vector>

#include "cuda_runtime.h"

#if !defined(__x86_64__)
#include <ucontext.h>
#endif
#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#endif

uint3 threadIdx;
uint3 blockIdx;
dim3 blockDim;
dim3 gridDim;

namespace emulated_cuda {
namespace {

// --- fibers ---

#if defined(__x86_64__)
// swapcontext asks the kernel for the signal mask at each switch, some 50 times the cost of these
// instructions.
extern "C" void emulated_cuda_switch(void** save_stack, void* load_stack);
asm(R"(
.text
.type emulated_cuda_switch, @function
emulated_cuda_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size emulated_cuda_switch, .-emulated_cuda_switch
)");

struct Context {
  void* stack_pointer;

  void prepare(void* stack, std::size_t bytes, void (*entry)()) {
    // What the switch pops: six registers, then the address it returns to, the entry. That finds a
    // null return address on its stack, which ends backtraces and has it 8 bytes off a multiple of
    // 16, as after a call.
    auto** top = reinterpret_cast<void**>(static_cast<char*>(stack) + bytes);
    top[-1] = nullptr;
    top[-2] = reinterpret_cast<void*>(entry);
    for (int i = 3; i <= 8; ++i) top[-i] = nullptr;
    stack_pointer = top - 8;
  }
  void switch_to(Context& other) { emulated_cuda_switch(&stack_pointer, other.stack_pointer); }
};
#else
struct Context {
  ucontext_t state;

  void prepare(void* stack, std::size_t bytes, void (*entry)()) {
    getcontext(&state);
    state.uc_stack.ss_sp = stack;
    state.uc_stack.ss_size = bytes;
    state.uc_link = nullptr;
    makecontext(&state, entry, 0);
  }
  void switch_to(Context& other) { swapcontext(&state, &other.state); }
};
#endif

struct Fiber {
  Context context;
  const void* stack = nullptr;  // the bounds, for AddressSanitizer
  std::size_t bytes = 0;

  Fiber() = default;  // the scheduler: runs on the stack of whoever launches

  explicit Fiber(void (*entry)()) : bytes(256 * 1024) {
    const auto page = static_cast<std::size_t>(sysconf(_SC_PAGESIZE));
    void* memory = mmap(nullptr, page + bytes, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) fail("no memory for a thread's stack", Location::current());
    mprotect(memory, page, PROT_NONE);  // an overflow faults instead of running into a neighbour
    char* first = static_cast<char*>(memory) + page;
    stack = first;
    context.prepare(first, bytes, entry);
  }
};

// --- the running grid ---

constexpr unsigned kMaxThreads = 1024;
constexpr int kMostShared = 99 * 1024;  // of the GPUs with the least, 8.6 and 8.9
constexpr unsigned kWarp = 32;

struct Thread {
  uint3 index;
  Fiber* fiber;
  enum { kRunnable, kAtBlockBarrier, kAtWarpOperation, kExited } state;
  Location where;  // of the operation it waits at, with what it brought:
  unsigned mask;
  int source;
  std::uint64_t value;
  bool predicate;
  std::uint64_t received;  // what it takes away from the operation
  unsigned ballot;
};

struct Device {
  std::mutex launch;  // one grid at a time, whoever launches: shared memory exists once
  Fiber scheduler;
  std::vector<std::unique_ptr<Fiber>> workers;  // all of them, kept from launch to launch
  std::vector<Fiber*> idle;
  Fiber* running = nullptr;
  Thread* current = nullptr;

  void (*kernel)(const void*) = nullptr;
  const void* kernel_context = nullptr;
  std::vector<Thread> threads;
  std::vector<Thread*> runnable;  // released from a wait, first in, first out from `next_runnable`
  std::size_t next_runnable = 0;
  unsigned started = 0;
  unsigned exited = 0;
  unsigned at_block_barrier = 0;
  unsigned at_warp_operation[kMaxThreads / kWarp] = {};  // a bit per lane
  std::vector<std::uint32_t> dynamic_shared;
  std::map<const void*, std::size_t> allowed_shared;  // by kernel, where it asked for more

  // A GPU promises no order: another one at each launch, the same ones in each process.
  std::minstd_rand order_of_blocks;

  bool capturing = false;
};

Device& device() {
  // Never destroyed: a thread pool may still launch while the program's statics are torn down.
  static Device& instance = *new Device;
  return instance;
}

thread_local cudaError_t last_error = cudaSuccess;

unsigned block_threads() { return blockDim.x * blockDim.y * blockDim.z; }

// Every other block starts and releases its threads in reverse, so that a missing barrier which one
// order hides shows up in the other.
unsigned in_order(unsigned position) {
  return blockIdx.x % 2 == 0 ? position : block_threads() - 1 - position;
}

bool same_place(const Location& a, const Location& b) {
  return a.line() == b.line() && a.column() == b.column() &&
         std::strcmp(a.file_name(), b.file_name()) == 0;
}

void switch_fiber(Fiber& from, Fiber& to) {
#if defined(__SANITIZE_ADDRESS__)
  void* fake_stack = nullptr;
  __sanitizer_start_switch_fiber(&fake_stack, to.stack, to.bytes);
#endif
  device().running = &to;
  from.context.switch_to(to.context);
#if defined(__SANITIZE_ADDRESS__)
  // The scheduler's stack is the launching thread's, which may be another one at the next launch.
  Fiber& scheduler = device().scheduler;
  const void** stack = &from == &scheduler ? nullptr : &scheduler.stack;
  std::size_t* bytes = &from == &scheduler ? nullptr : &scheduler.bytes;
  __sanitizer_finish_switch_fiber(fake_stack, stack, bytes);
#endif
}

void make_current(Thread& thread) {
  device().current = &thread;
  threadIdx = thread.index;
}

// A worker's life: start the block's threads one after another, then rest until the scheduler needs
// it again.
void work() {
  Device& gpu = device();
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(nullptr, &gpu.scheduler.stack, &gpu.scheduler.bytes);
#endif
  for (;;) {
    Fiber* self = gpu.running;
    while (gpu.started < gpu.threads.size()) {
      Thread& thread = gpu.threads[in_order(gpu.started++)];
      thread.fiber = self;
      make_current(thread);
      gpu.kernel(gpu.kernel_context);
      thread.state = Thread::kExited;
      ++gpu.exited;
      // Threads that this one released while it ran take their turn before new ones start.
      if (gpu.next_runnable < gpu.runnable.size()) break;
    }
    gpu.idle.push_back(self);
    switch_fiber(*self, gpu.scheduler);
  }
}

void release(Thread& thread) {
  thread.state = Thread::kRunnable;
  if (&thread != device().current) device().runnable.push_back(&thread);
}

// Sets the current thread aside until somebody releases it.
void wait() {
  Device& gpu = device();
  Thread& self = *gpu.current;
  switch_fiber(*self.fiber, gpu.scheduler);
  make_current(self);
}

std::string place(const uint3& index) {
  return "(" + std::to_string(index.x) + ", " + std::to_string(index.y) + ", " +
         std::to_string(index.z) + ")";
}

// Nobody can run, yet some wait: says who waits where, one line for all threads at one place.
[[noreturn]] void report_divergence() {
  Device& gpu = device();
  std::string text = "CUDA emulation: the threads of block " + place(blockIdx) +
                     " diverged, some wait for others that never come:\n";
  std::vector<bool> told(gpu.threads.size(), false);
  for (std::size_t i = 0; i < gpu.threads.size(); ++i) {
    if (told[i]) continue;
    const Thread& first = gpu.threads[i];
    unsigned count = 0;
    for (std::size_t j = i; j < gpu.threads.size(); ++j) {
      const Thread& other = gpu.threads[j];
      const bool together = other.state == first.state &&
                            (first.state == Thread::kExited ||
                             (same_place(other.where, first.where) && other.mask == first.mask));
      if (!together) continue;
      told[j] = true;
      ++count;
    }
    text += "  " + std::to_string(count) + " (the first: thread " + place(first.index) + ") ";
    if (first.state == Thread::kExited) {
      text += "exited\n";
      continue;
    }
    char mask[48];
    std::snprintf(mask, sizeof(mask), "a warp operation with mask 0x%08x", first.mask);
    text += std::string("wait at ") +
            (first.state == Thread::kAtBlockBarrier ? "__syncthreads()" : mask) + ", " +
            first.where.file_name() + ":" + std::to_string(first.where.line()) + "\n";
  }
  std::fputs(text.c_str(), stderr);
  std::abort();
}

void run_block() {
  Device& gpu = device();
  const unsigned count = block_threads();
  gpu.threads.assign(count, Thread{});
  for (unsigned i = 0; i < count; ++i) {
    gpu.threads[i].index = {i % blockDim.x, i / blockDim.x % blockDim.y,
                            i / (blockDim.x * blockDim.y)};
  }
  gpu.started = gpu.exited = gpu.at_block_barrier = 0;
  // A quiet NaN as float, and as double in pairs.
  gpu.dynamic_shared.assign(gpu.dynamic_shared.size(), 0x7ff8deadu);

  while (gpu.exited < count) {
    if (gpu.next_runnable < gpu.runnable.size()) {
      switch_fiber(gpu.scheduler, *gpu.runnable[gpu.next_runnable++]->fiber);
      continue;
    }
    gpu.runnable.clear();
    gpu.next_runnable = 0;
    if (gpu.started == count) report_divergence();
    if (gpu.idle.empty()) {
      gpu.workers.push_back(std::make_unique<Fiber>(work));
      gpu.idle.push_back(gpu.workers.back().get());
    }
    Fiber* worker = gpu.idle.back();
    gpu.idle.pop_back();
    switch_fiber(gpu.scheduler, *worker);
  }
}

// The current thread arrives at a warp operation; the last of the lanes in its mask hands out the
// results.
Thread& meet_in_warp(unsigned mask, std::uint64_t value, int source, bool predicate,
                     Location where) {
  Device& gpu = device();
  Thread& self = *gpu.current;
  const auto number = static_cast<unsigned>(&self - gpu.threads.data());
  const unsigned warp = number / kWarp;
  const unsigned self_bit = 1u << number % kWarp;
  if ((mask & self_bit) == 0)
    fail("a lane calls a warp operation with a mask without itself", where);
  self.state = Thread::kAtWarpOperation;
  self.where = where;
  self.mask = mask;
  self.value = value;
  self.source = source;
  self.predicate = predicate;
  unsigned& waiting = gpu.at_warp_operation[warp];
  waiting |= self_bit;

  Thread* lanes = &gpu.threads[warp * kWarp];
  bool complete = (waiting & mask) == mask;
  unsigned ballot = 0;
  for (unsigned rest = complete ? mask : 0; rest != 0 && complete; rest &= rest - 1) {
    const int lane = std::countr_zero(rest);
    complete = lanes[lane].mask == mask && same_place(lanes[lane].where, where);
    if (lanes[lane].predicate) ballot |= 1u << lane;
  }
  if (!complete) {
    wait();
    return self;
  }
  waiting &= ~mask;
  for (unsigned rest = mask; rest != 0; rest &= rest - 1) {
    Thread& lane = lanes[std::countr_zero(rest)];
    // A lane outside the mask brings nothing: the value is undefined on a GPU, NaN here.
    lane.received = mask >> lane.source & 1 ? lanes[lane.source].value : 0x7ff8dead7ff8dead;
    lane.ballot = ballot;
    release(lane);
  }
  return self;
}

}  // namespace

void run_grid(dim3 grid, dim3 block, std::size_t shared_bytes, void (*thread)(const void*),
              const void* context) {
  Device& gpu = device();
  const std::lock_guard lock(gpu.launch);
  gpu.kernel = thread;
  gpu.kernel_context = context;
  // A vector of its own size, so that AddressSanitizer knows where it ends.
  gpu.dynamic_shared = std::vector<std::uint32_t>((shared_bytes + 3) / 4);
  gridDim = grid;
  blockDim = block;
  std::vector<uint3> blocks;
  for (unsigned z = 0; z < grid.z; ++z) {
    for (unsigned y = 0; y < grid.y; ++y) {
      for (unsigned x = 0; x < grid.x; ++x) blocks.push_back({x, y, z});
    }
  }
  std::shuffle(blocks.begin(), blocks.end(), gpu.order_of_blocks);
  for (const uint3& block_index : blocks) {
    blockIdx = block_index;
    run_block();
  }
}

void* dynamic_shared_memory() { return device().dynamic_shared.data(); }

void block_barrier(Location where) {
  Device& gpu = device();
  Thread& self = *gpu.current;
  self.state = Thread::kAtBlockBarrier;
  self.where = where;
  bool complete = ++gpu.at_block_barrier == gpu.threads.size();
  if (complete) {
    for (const Thread& other : gpu.threads) complete = complete && same_place(other.where, where);
  }
  if (!complete) {
    wait();
    return;
  }
  gpu.at_block_barrier = 0;
  for (unsigned i = 0; i < gpu.threads.size(); ++i) release(gpu.threads[in_order(i)]);
}

std::uint64_t warp_exchange(unsigned mask, std::uint64_t value, int source, Location where) {
  return meet_in_warp(mask, value, source, false, where).received;
}

unsigned warp_ballot(unsigned mask, bool predicate, Location where) {
  return meet_in_warp(mask, 0, 0, predicate, where).ballot;
}

int lane() { return static_cast<int>((device().current - device().threads.data()) % kWarp); }

void set_capturing(bool capturing) { device().capturing = capturing; }

void fail(const char* message, Location where) {
  std::fprintf(stderr, "CUDA emulation: %s in block %s, thread %s, %s:%u\n", message,
               place(blockIdx).c_str(), place(threadIdx).c_str(), where.file_name(),
               static_cast<unsigned>(where.line()));
  std::abort();
}

cudaError_t allow_shared(const void* kernel, int bytes) {
  if (bytes < 0 || bytes > kMostShared) return last_error = cudaErrorInvalidValue;
  const std::lock_guard<std::mutex> lock(device().launch);
  device().allowed_shared[kernel] = static_cast<std::size_t>(bytes);
  return cudaSuccess;
}

cudaError_t check_launch(const cudaLaunchConfig_t& config, const void* kernel) {
  const auto most_shared = [&]() -> std::size_t {
    const std::lock_guard<std::mutex> lock(device().launch);
    const auto found = device().allowed_shared.find(kernel);
    return found == device().allowed_shared.end() ? 48 * 1024 : found->second;
  };
  const dim3& grid = config.gridDim;
  const dim3& block = config.blockDim;
  const std::uint64_t threads = std::uint64_t{block.x} * block.y * block.z;
  const bool fits = grid.x > 0 && grid.y > 0 && grid.z > 0 && grid.x <= 0x7fffffff &&
                    grid.y <= 0xffff && grid.z <= 0xffff && threads > 0 && threads <= kMaxThreads;
  if (!fits) {
    last_error = cudaErrorInvalidConfiguration;
  } else if (config.dynamicSmemBytes > most_shared()) {
    last_error = cudaErrorInvalidValue;
  } else {
    return cudaSuccess;
  }
  return last_error;
}

}  // namespace emulated_cuda

const char* cudaGetErrorName(cudaError_t error) {
  switch (error) {
    case cudaSuccess:
      return "cudaSuccess";
    case cudaErrorInvalidValue:
      return "cudaErrorInvalidValue";
    case cudaErrorInvalidConfiguration:
      return "cudaErrorInvalidConfiguration";
  }
  return "unrecognized error code";
}

const char* cudaGetErrorString(cudaError_t error) {
  switch (error) {
    case cudaSuccess:
      return "no error";
    case cudaErrorInvalidValue:
      return "invalid argument";
    case cudaErrorInvalidConfiguration:
      return "invalid configuration argument";
  }
  return "unrecognized error code";
}

cudaError_t cudaGetLastError() { return std::exchange(emulated_cuda::last_error, cudaSuccess); }

cudaError_t cudaGetDevice(int* device) {
  *device = 0;
  return cudaSuccess;
}

cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int device) {
  if (attribute != cudaDevAttrMultiProcessorCount || device != 0) return cudaErrorInvalidValue;
  *value = emulated_cuda::kMultiprocessors;
  return cudaSuccess;
}

cudaError_t cudaStreamIsCapturing(cudaStream_t, cudaStreamCaptureStatus* status) {
  *status = emulated_cuda::device().capturing ? cudaStreamCaptureStatusActive
                                              : cudaStreamCaptureStatusNone;
  return cudaSuccess;
}

cudaError_t cudaStreamGetId(cudaStream_t stream, unsigned long long* id) {
  *id = reinterpret_cast<std::uintptr_t>(stream);
  return cudaSuccess;
}
