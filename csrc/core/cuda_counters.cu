// SPDX-License-Identifier: MIT
// The state behind core/cuda.h, once per program: what is known of the devices, and the counters
// that tell a launch's last block that it is the last.
#include <array>
#include <mutex>
#include <unordered_map>
#include <vector>

#include "core/cuda.h"

namespace fastloss::FASTLOSS_TARGET {
namespace {

constexpr int kEagerCounters = 4096;
constexpr int kCapturedCounters = 1 << 18;

// Zero when the module is loaded, on every device. One megabyte, so that nobody has to count
// captured graphs.
__device__ unsigned counters[kEagerCounters + kCapturedCounters];

struct EagerCounter {
  unsigned long long stream = 0;
  uint64_t last_use = 0;
};

struct Device {
  int multiprocessors = 0;
  unsigned* counters = nullptr;
  std::unordered_map<unsigned long long, int> counter_of_stream;
  std::vector<EagerCounter> eager;
  uint64_t uses = 0;
  int captured = 0;

  // A stream keeps its counter. A program that makes new streams for ever gets the one whose stream
  // has been quiet for the longest; 4096 streams later that one's launch is long over.
  unsigned* of_stream(unsigned long long stream) {
    const auto [entry, is_new] =
        counter_of_stream.try_emplace(stream, static_cast<int>(eager.size()));
    int& index = entry->second;
    if (is_new) {
      if (index < kEagerCounters) {
        eager.push_back({stream, 0});
      } else {
        const auto oldest =
            std::min_element(eager.begin(), eager.end(),
                             [](const auto& a, const auto& b) { return a.last_use < b.last_use; });
        index = static_cast<int>(oldest - eager.begin());
        counter_of_stream.erase(oldest->stream);
        oldest->stream = stream;
      }
    }
    eager[index].last_use = ++uses;
    return counters + index;
  }

  unsigned* of_captured_launch() {
    if (captured == kCapturedCounters) {
      throw std::runtime_error("fastloss: more than " + std::to_string(kCapturedCounters) +
                               " launches captured into CUDA graphs");
    }
    return counters + kEagerCounters + captured++;
  }
};

// Calls use(device) on what is known of the current device, one caller at a time.
template <class Use>
auto with_current_device(const Use& use) {
  static std::mutex mutex;
  static std::unordered_map<int, Device> devices;
  int number = 0;
  check_cuda(cudaGetDevice(&number), "cudaGetDevice");
  const std::lock_guard lock(mutex);
  Device& device = devices[number];
  if (device.counters == nullptr) {
    check_cuda(
        cudaDeviceGetAttribute(&device.multiprocessors, cudaDevAttrMultiProcessorCount, number),
        "cudaDeviceGetAttribute");
    void* address = nullptr;
    check_cuda(cudaGetSymbolAddress(&address, counters), "cudaGetSymbolAddress");
    device.counters = static_cast<unsigned*>(address);
  }
  return use(device);
}

}  // namespace

int multiprocessors() {
  return with_current_device([](Device& device) { return device.multiprocessors; });
}

unsigned* completion_counter(void* stream) {
  const auto cuda_stream = static_cast<cudaStream_t>(stream);
  cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
  check_cuda(cudaStreamIsCapturing(cuda_stream, &status), "cudaStreamIsCapturing");
  if (status != cudaStreamCaptureStatusNone) {
    return with_current_device([](Device& device) { return device.of_captured_launch(); });
  }
  // The handle of a destroyed stream is given out again while its last launch may still run; its id
  // never is.
  unsigned long long id = 0;
  check_cuda(cudaStreamGetId(cuda_stream, &id), "cudaStreamGetId");
  return with_current_device([&](Device& device) { return device.of_stream(id); });
}

}  // namespace fastloss::FASTLOSS_TARGET
