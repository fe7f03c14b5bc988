// SPDX-License-Identifier: MIT
// float16 and bfloat16 as storage: conversions to and from float, the same bits on every
// instruction set.
//
// Rounding is to nearest even. A finite number beyond the range becomes the largest finite one: a
// gradient that is stored in half precision must not turn into inf. Inf stays inf and NaN stays
// NaN.
#pragma once
#include <cstdint>
#include <type_traits>

#include "core/macros.h"
#include "core/math.h"

#if !defined(__CUDACC__)
#include "core/vec.h"
#endif

namespace fastloss::FASTLOSS_TARGET {

struct Half {
  uint16_t bits;
};
struct BFloat16 {
  uint16_t bits;
};

namespace half_bits {

constexpr uint32_t kSign = 0x80000000u;
constexpr uint32_t kInfinity = 0x7f800000u;
constexpr uint32_t kQuietNaN = 0x00400000u;
constexpr float kLargestHalf = 65504.0f;
constexpr uint32_t kLargestBFloat16 = 0x7f7f0000u;
constexpr uint32_t kSmallestNormalHalf = 0x38800000u;  // 2^-14
constexpr uint32_t kRebias = uint32_t{127 - 15}
                             << 23;  // between the exponents of float and float16

// Bits in, bits out: loops over these vectorise, loops over structs do not. Blended by masks and
// not by ?:, which the compiler would turn into branches around the floating-point operations.
FASTLOSS_INLINE uint32_t blend(bool condition, uint32_t a, uint32_t b) {
  const uint32_t mask = 0u - uint32_t{condition};
  return (a & mask) | (b & ~mask);
}

FASTLOSS_INLINE float from_half(uint16_t half) {
#if defined(__CUDA_ARCH__)
  float result;
  asm("cvt.f32.f16 %0, %1;" : "=f"(result) : "h"(half));
  return result;
#else
  const uint32_t magnitude = (half & 0x7fffu) << 13;
  // A denormal's fraction is put behind the smallest normal half: the difference is the number,
  // found without float denormals, which the processor may have been told to flush.
  const float denormal = __builtin_bit_cast(float, magnitude + kSmallestNormalHalf) - 0x1p-14f;
  const uint32_t finite = blend(magnitude < (0x0400u << 13), __builtin_bit_cast(uint32_t, denormal),
                                magnitude + kRebias);
  const uint32_t special =
      magnitude | kInfinity | blend(magnitude > (0x7c00u << 13), kQuietNaN, 0u);
  const uint32_t sign = (half & 0x8000u) << 16;
  return __builtin_bit_cast(float, sign | blend(magnitude >= (0x7c00u << 13), special, finite));
#endif
}

FASTLOSS_INLINE uint16_t to_half(float x) {
#if defined(__CUDA_ARCH__)
  const float limited = fabsf(x) < INFINITY ? fminf(fmaxf(x, -kLargestHalf), kLargestHalf) : x;
  uint16_t result;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(result) : "f"(limited));
  return result;
#else
  const uint32_t bits = __builtin_bit_cast(uint32_t, x);
  const uint32_t given = bits & ~kSign;
  const uint32_t largest = __builtin_bit_cast(uint32_t, kLargestHalf);
  const uint32_t magnitude = blend(given > largest, largest, given);
  const uint32_t normal = (magnitude - kRebias + 0x0fffu + ((magnitude >> 13) & 1u)) >> 13;
  // One half has the spacing of float16's denormals: adding it rounds to them.
  const float shifted = __builtin_bit_cast(float, magnitude) + 0.5f;
  const uint32_t denormal =
      __builtin_bit_cast(uint32_t, shifted) - __builtin_bit_cast(uint32_t, 0.5f);
  const uint32_t finite = blend(magnitude < kSmallestNormalHalf, denormal, normal);
  const uint32_t special =
      0x7c00u | blend(given > kInfinity, 0x0200u | ((given >> 13) & 0x03ffu), 0u);
  return static_cast<uint16_t>(blend(given >= kInfinity, special, finite) | (bits & kSign) >> 16);
#endif
}

FASTLOSS_INLINE float from_bfloat16(uint16_t bits) {
  return __builtin_bit_cast(float, uint32_t{bits} << 16);
}

FASTLOSS_INLINE uint16_t to_bfloat16(float x) {
  const uint32_t bits = __builtin_bit_cast(uint32_t, x);
  const uint32_t given = bits & ~kSign;
  const uint32_t magnitude = blend(given > kLargestBFloat16, kLargestBFloat16, given);
  const uint32_t finite = magnitude + 0x7fffu + ((magnitude >> 16) & 1u);
  const uint32_t special = given | blend(given > kInfinity, kQuietNaN, 0u);
  return static_cast<uint16_t>((blend(given >= kInfinity, special, finite) | (bits & kSign)) >> 16);
}

}  // namespace half_bits

FASTLOSS_INLINE float to_float(Half x) { return half_bits::from_half(x.bits); }
FASTLOSS_INLINE float to_float(BFloat16 x) { return half_bits::from_bfloat16(x.bits); }

// float to a storage type: from_float<Half>(x).
template <class Storage>
FASTLOSS_INLINE Storage from_float(float x) {
  if constexpr (std::is_same_v<Storage, Half>) {
    return {half_bits::to_half(x)};
  } else {
    static_assert(std::is_same_v<Storage, BFloat16>);
    return {half_bits::to_bfloat16(x)};
  }
}

#if !defined(__CUDACC__)

// ---- arrays ----
//
// The compiler vectorises the plain loops. It does not know the conversion instructions, so those
// are called where they exist (with a mask of all lanes: GCC's headers for the unmasked ones warn
// of uninitialised values).

FASTLOSS_INLINE void convert(const Half* source, float* target, int64_t count) {
  int64_t i = 0;
#if defined(__AVX512F__)
  for (; i + 16 <= count; i += 16) {
    const __m256i halves = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(source + i));
    _mm512_storeu_ps(target + i, _mm512_maskz_cvtph_ps(0xffff, halves));
  }
#elif defined(__F16C__)
  for (; i + 8 <= count; i += 8) {
    const __m128i halves = _mm_loadu_si128(reinterpret_cast<const __m128i*>(source + i));
    _mm256_storeu_ps(target + i, _mm256_cvtph_ps(halves));
  }
#endif
  for (; i < count; ++i) target[i] = half_bits::from_half(source[i].bits);
}

FASTLOSS_INLINE void convert(const float* source, Half* target, int64_t count) {
  int64_t i = 0;
#if defined(__AVX512F__) || defined(__F16C__)
  using V = Vec<float>;
  for (; i + V::kLanes <= count; i += V::kLanes) {
    const V x = V::load(source + i);
    const V not_below = select(x < -half_bits::kLargestHalf, -half_bits::kLargestHalf, x);
    const V limited =
        select(not_below > half_bits::kLargestHalf, half_bits::kLargestHalf, not_below);
    const V finite_limited = select(abs(x) < V(__builtin_inff()), limited, x);
#if defined(__AVX512F__)
    const __m256i halves = _mm512_maskz_cvtps_ph(0xffff, __builtin_bit_cast(__m512, finite_limited),
                                                 _MM_FROUND_TO_NEAREST_INT);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(target + i), halves);
#else
    const __m128i halves =
        _mm256_cvtps_ph(__builtin_bit_cast(__m256, finite_limited), _MM_FROUND_TO_NEAREST_INT);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(target + i), halves);
#endif
  }
#endif
  for (; i < count; ++i) target[i].bits = half_bits::to_half(source[i]);
}

FASTLOSS_INLINE void convert(const BFloat16* source, float* target, int64_t count) {
  for (int64_t i = 0; i < count; ++i) target[i] = half_bits::from_bfloat16(source[i].bits);
}

FASTLOSS_INLINE void convert(const float* source, BFloat16* target, int64_t count) {
  for (int64_t i = 0; i < count; ++i) target[i].bits = half_bits::to_bfloat16(source[i]);
}

// double goes through float, as torch's conversions do.
template <class Storage>
FASTLOSS_INLINE void convert(const Storage* source, double* target, int64_t count) {
  for (int64_t i = 0; i < count; ++i) target[i] = to_float(source[i]);
}
template <class Storage>
FASTLOSS_INLINE void convert(const double* source, Storage* target, int64_t count) {
  for (int64_t i = 0; i < count; ++i)
    target[i] = from_float<Storage>(static_cast<float>(source[i]));
}

#endif

}  // namespace fastloss::FASTLOSS_TARGET
