// SPDX-License-Identifier: MIT
// The vocabulary the engines share with the code that calls them: plain structs, no torch, no
// target namespace.
#pragma once
#include <cstdint>

namespace fastloss {

enum class DType : int8_t {
  kFloat16,
  kBFloat16,
  kFloat32,
  kFloat64,
  kBool,
  kUInt8,
  kInt8,
  kInt16,
  kInt32,
  kInt64
};

constexpr int item_size(DType dtype) {
  switch (dtype) {
    case DType::kBool:
    case DType::kUInt8:
    case DType::kInt8:
      return 1;
    case DType::kFloat16:
    case DType::kBFloat16:
    case DType::kInt16:
      return 2;
    case DType::kFloat32:
    case DType::kInt32:
      return 4;
    default:
      return 8;
  }
}

// A tensor as a kernel sees it: where it starts and what its elements are. Strides live in the
// Layout.
struct Input {
  const void* data = nullptr;
  DType dtype = DType::kFloat32;
  explicit operator bool() const { return data != nullptr; }
};
struct Output {
  void* data = nullptr;
  DType dtype = DType::kFloat32;
  explicit operator bool() const { return data != nullptr; }
};

// What every loss and gradient is multiplied with: `factor`, divided by the number behind `divisor`
// where that is known on the device only (Σ weight, a 0-d avg_factor). A divisor of 0 gives 0:
// nothing counts, so the loss is 0, never NaN.
struct Scale {
  double factor = 1.0;
  Input divisor;  // 0-d, float32 or float64
};

// How a loss leaves the kernel: one value per element (`values`), or one sum (`total`). Exactly one
// is set.
struct LossOutput {
  void* values = nullptr;  // accumulate type, laid out as the engine says
  void* total = nullptr;   // accumulate type, 0-d
};

// Runs task(context, i) for every i in [0, tasks), on the caller's threads. The caller (torch) owns
// the pool.
struct Parallel {
  void (*run)(int64_t tasks, void (*task)(void* context, int64_t index), void* context);
};

// Where and how a kernel runs. A CPU kernel uses `parallel`, a CUDA kernel `stream` and
// `workspace`.
struct Execution {
  Parallel parallel{};
  void* stream = nullptr;
  double* workspace = nullptr;  // kWorkspace numbers for partial sums
};
constexpr int64_t kWorkspace = 8192;

// Which labelled rows do not count.
struct IgnoredLabels {
  bool has_index = false;
  int64_t index = 0;       // those with this label
  bool negatives = false;  // those with a negative one
};

// A label or an input outside the range its loss is defined on, thrown by CPU kernels after the
// parallel part (CUDA kernels trap). Which one it was is looked for by who catches it.
struct LabelOutOfRange {};
struct InputOutOfRange {};

// The most float parameters a formula may take, eps included.
constexpr int kMaxParameters = 8;

}  // namespace fastloss
