// SPDX-License-Identifier: MIT
// Scratch memory of one thread of a CPU engine.
#pragma once
#include <cstddef>
#include <cstdint>
#include <new>

#include "core/macros.h"

namespace fastloss::FASTLOSS_TARGET {

// Memory for arrays that begin where a cache line does, freed together. Not std::vector: its
// functions would be shared between instruction sets.
class Arena {
 public:
  explicit Arena(int64_t bytes)
      : begin_(static_cast<char*>(::operator new(static_cast<size_t>(bytes), kAlignment))),
        next_(begin_) {}
  ~Arena() { ::operator delete(begin_, kAlignment); }
  Arena(const Arena&) = delete;
  Arena& operator=(const Arena&) = delete;

  template <class T>
  T* take(int64_t count) {
    char* const array = next_;
    next_ += size_of<T>(count);
    return reinterpret_cast<T*>(array);
  }
  template <class T>
  static constexpr int64_t size_of(int64_t count) {
    return (count * int64_t{sizeof(T)} + 63) / 64 * 64;
  }

 private:
  static constexpr std::align_val_t kAlignment{64};
  char* begin_;
  char* next_;
};

}  // namespace fastloss::FASTLOSS_TARGET
