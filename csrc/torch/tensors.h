// SPDX-License-Identifier: MIT
// From torch tensors to the plain structs of the engines, and back.
#pragma once
#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/clamp.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <c10/core/DeviceGuard.h>
#include <c10/core/impl/VirtualGuardImpl.h>

#include "core/layout.h"
#include "core/types.h"
#include "torch/checks.h"
#include "torch/gradient_memory.h"

namespace fastloss {

inline DType dtype_of(const Tensor& tensor) {
  switch (tensor.scalar_type()) {
    case at::kHalf:
      return DType::kFloat16;
    case at::kBFloat16:
      return DType::kBFloat16;
    case at::kFloat:
      return DType::kFloat32;
    case at::kDouble:
      return DType::kFloat64;
    case at::kBool:
      return DType::kBool;
    case at::kByte:
      return DType::kUInt8;
    case at::kChar:
      return DType::kInt8;
    case at::kShort:
      return DType::kInt16;
    case at::kInt:
      return DType::kInt32;
    default:
      TORCH_INTERNAL_ASSERT(tensor.scalar_type() == at::kLong);
      return DType::kInt64;
  }
}

inline Input input_of(const Tensor& tensor) { return {tensor.const_data_ptr(), dtype_of(tensor)}; }
inline Input input_of(const OptionalTensor& tensor) { return tensor ? input_of(*tensor) : Input{}; }
inline Output output_of(const Tensor& tensor) {
  return {tensor.mutable_data_ptr(), dtype_of(tensor)};
}

// The dtype of the arithmetic and of the loss: float32, or float64 where an input has it.
inline at::ScalarType accumulate_type(const Tensor& first, const Tensor& second) {
  return first.scalar_type() == at::kDouble || second.scalar_type() == at::kDouble ? at::kDouble
                                                                                   : at::kFloat;
}

// Memory for a gradient, strided as empty_like would, or contiguous.
inline Tensor empty_gradient(const Tensor& like, bool contiguous) {
  if (!like.is_cpu() || like.nbytes() < GradientMemory::kSmallestBlock) {
    return contiguous ? at::empty_symint(like.sym_sizes(), like.options()) : at::empty_like(like);
  }
  const auto shape =
      at::empty_like(like, like.options().device(at::kMeta),
                     contiguous ? at::MemoryFormat::Contiguous : at::MemoryFormat::Preserve);
  return at::detail::empty_strided_generic(
      shape.sizes(), shape.strides(), &GradientMemory::instance(),
      c10::DispatchKeySet(c10::DispatchKey::CPU), like.scalar_type());
}

// A gradient in the dtype of its input. Finite numbers stay finite, as in the kernels' own stores.
inline Tensor narrowed(const Tensor& gradient, at::ScalarType type) {
  constexpr double kLargestHalf = 65504;
  return type == at::kHalf ? gradient.clamp(-kLargestHalf, kLargestHalf).to(type)
                           : gradient.to(type);
}

// What stands in for a gradient nobody asked for.
inline Tensor no_gradient(const Tensor& like) { return at::empty({0}, like.options()); }

// The tensors of one engine call in the order of its operands; null for absent ones.
inline bool try_layout(Layout& layout, at::IntArrayRef sizes, at::ArrayRef<const Tensor*> operands,
                       bool keep_order) {
  const int64_t* strides[kMaxOperands] = {};
  for (size_t k = 0; k < operands.size(); ++k) {
    if (operands[k] != nullptr) strides[k] = operands[k]->strides().data();
  }
  return make_layout(layout, static_cast<int>(sizes.size()), sizes.data(),
                     static_cast<int>(operands.size()), strides, keep_order);
}

inline void run_on_torch_threads(int64_t tasks, void (*task)(void*, int64_t), void* context) {
  at::parallel_for(0, tasks, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) task(context, i);
  });
}

// The backend for a device and the means to run on it: keeps the device guard and the workspace
// while a kernel is launched.
class Launch {
 public:
  explicit Launch(const Tensor& tensor) : guard_(tensor.device()) {
    if (tensor.is_cpu()) {
      backend_ = &cpu_backend();
      execution_.parallel.run = run_on_torch_threads;
    } else {
      backend_ = cuda_backend();
      TORCH_INTERNAL_ASSERT(backend_ != nullptr);
      const c10::impl::VirtualGuardImpl device(tensor.device().type());
      execution_.stream = device.getStream(tensor.device()).native_handle();
    }
    if (backend_->needs_workspace) {
      workspace_ = at::empty({kWorkspace}, tensor.options().dtype(at::kDouble));
      execution_.workspace = workspace_.mutable_data_ptr<double>();
    }
  }
  const Backend& backend() const { return *backend_; }
  const Execution& execution() const { return execution_; }

 private:
  c10::DeviceGuard guard_;
  Tensor workspace_;
  const Backend* backend_;
  Execution execution_;
};

}  // namespace fastloss
