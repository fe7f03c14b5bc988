// SPDX-License-Identifier: MIT
// Scratch memory of one thread of a CPU engine that needs several arrays.
#pragma once
#include "engines/staging.h"

namespace fastloss::FASTLOSS_TARGET {

// Arrays that begin where a cache line does, freed together. Not std::vector: its functions would
// be shared between instruction sets.
class Arena {
 public:
  explicit Arena(int64_t bytes) : memory_(bytes), next_(memory_.get()) {}

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
  Scratch<char> memory_;
  char* next_;
};

}  // namespace fastloss::FASTLOSS_TARGET
