// SPDX-License-Identifier: MIT
// One SIMD number type on the vector extensions of GCC and Clang, with its own elementary
// functions.
//
// Every operation is an IEEE operation or an exact bit operation, in one written order, so each
// element's result is the same bit for bit on every instruction set. For that reason there is no
// fused multiply-add (SSE2 has none), and the box engines are built with -ffp-contract=off. There
// are no branches: special values are blended in.
#pragma once
#include <cstdint>
#include <utility>

#include "core/macros.h"
#include "core/math.h"

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

namespace fastloss::FASTLOSS_TARGET {

// The layout of IEEE numbers.
template <class T>
struct Ieee;
template <>
struct Ieee<float> {
  using Unsigned = uint32_t;
  static constexpr int kMantissaBits = 23;
  static constexpr int kBias = 127;
};
template <>
struct Ieee<double> {
  using Unsigned = uint64_t;
  static constexpr int kMantissaBits = 52;
  static constexpr int kBias = 1023;
};

template <class T>
struct Vec;

// The outcome of comparing two Vec<T>: all bits of a lane set, or none. Compilers keep it in a mask
// register where the instruction set has them.
template <class T>
struct Mask {
  typedef T Lanes __attribute__((vector_size(FASTLOSS_VECTOR_BYTES)));
  using Native = decltype(Lanes{} < Lanes{});
  Native lanes;

  friend FASTLOSS_INLINE Mask operator&(Mask a, Mask b) { return {a.lanes & b.lanes}; }
  friend FASTLOSS_INLINE Mask operator|(Mask a, Mask b) { return {a.lanes | b.lanes}; }
  friend FASTLOSS_INLINE Mask operator!(Mask a) { return {~a.lanes}; }
  friend FASTLOSS_INLINE Vec<T> select(Mask mask, Vec<T> a, Vec<T> b) {
    return {mask.lanes ? a.lanes : b.lanes};
  }
  friend FASTLOSS_INLINE bool any(Mask mask) {
#if defined(__AVX512F__)
    return _mm512_movepi8_mask(__builtin_bit_cast(__m512i, mask.lanes)) != 0;
#elif defined(__AVX2__)
    return _mm256_movemask_epi8(__builtin_bit_cast(__m256i, mask.lanes)) != 0;
#elif defined(__x86_64__)
    return _mm_movemask_epi8(__builtin_bit_cast(__m128i, mask.lanes)) != 0;
#else
    const auto halves = __builtin_bit_cast(typename Mask<double>::Native, mask.lanes);
    return (halves[0] | halves[1]) != 0;
#endif
  }
};

template <class T>
struct Vec {
  static constexpr int kLanes = FASTLOSS_VECTOR_BYTES / sizeof(T);
  using Lanes = typename Mask<T>::Lanes;
  typedef typename Ieee<T>::Unsigned Bits __attribute__((vector_size(FASTLOSS_VECTOR_BYTES)));
  Lanes lanes;

  Vec() = default;
  FASTLOSS_INLINE Vec(Lanes value) : lanes(value) {}
  FASTLOSS_INLINE Vec(T value) : lanes(value - Lanes{}) {}

  static FASTLOSS_INLINE Vec load(const T* source) {
    Lanes value;
    __builtin_memcpy(&value, source, sizeof(value));
    return value;
  }
  FASTLOSS_INLINE void store(T* target) const { __builtin_memcpy(target, &lanes, sizeof(lanes)); }

  // Past the caches where the address is aligned to the vector: for large outputs nobody reads
  // soon. The thread that streamed calls streaming_fence() before it hands its work over.
  FASTLOSS_INLINE void store_streaming(T* target) const {
#if defined(__x86_64__)
    if (reinterpret_cast<uintptr_t>(target) % FASTLOSS_VECTOR_BYTES == 0) {
#if defined(__AVX512F__)
      _mm512_stream_si512(reinterpret_cast<__m512i*>(target), __builtin_bit_cast(__m512i, lanes));
#elif defined(__AVX2__)
      _mm256_stream_si256(reinterpret_cast<__m256i*>(target), __builtin_bit_cast(__m256i, lanes));
#else
      _mm_stream_si128(reinterpret_cast<__m128i*>(target), __builtin_bit_cast(__m128i, lanes));
#endif
      return;
    }
#endif
    store(target);
  }

  FASTLOSS_INLINE T operator[](int lane) const { return lanes[lane]; }

  // The sum of the lanes, as a binary tree.
  FASTLOSS_INLINE T sum() const {
    return fold<kLanes>(*this, [](Vec a, Vec b) { return a + b; });
  }
  // The largest lane, for lanes that are not NaN.
  FASTLOSS_INLINE T largest() const {
    return fold<kLanes>(*this, [](Vec a, Vec b) { return larger(a, b); });
  }

  FASTLOSS_INLINE Bits bits() const { return __builtin_bit_cast(Bits, lanes); }
  static FASTLOSS_INLINE Vec from_bits(Bits bits) { return __builtin_bit_cast(Lanes, bits); }

  friend FASTLOSS_INLINE Vec operator+(Vec a, Vec b) { return a.lanes + b.lanes; }
  friend FASTLOSS_INLINE Vec operator-(Vec a, Vec b) { return a.lanes - b.lanes; }
  friend FASTLOSS_INLINE Vec operator*(Vec a, Vec b) { return a.lanes * b.lanes; }
  friend FASTLOSS_INLINE Vec operator/(Vec a, Vec b) { return a.lanes / b.lanes; }
  friend FASTLOSS_INLINE Vec operator-(Vec a) { return -a.lanes; }
  FASTLOSS_INLINE Vec& operator+=(Vec b) { return *this = *this + b; }
  FASTLOSS_INLINE Vec& operator-=(Vec b) { return *this = *this - b; }
  FASTLOSS_INLINE Vec& operator*=(Vec b) { return *this = *this * b; }
  FASTLOSS_INLINE Vec& operator/=(Vec b) { return *this = *this / b; }

  friend FASTLOSS_INLINE Mask<T> operator<(Vec a, Vec b) { return {a.lanes < b.lanes}; }
  friend FASTLOSS_INLINE Mask<T> operator<=(Vec a, Vec b) { return {a.lanes <= b.lanes}; }
  friend FASTLOSS_INLINE Mask<T> operator>(Vec a, Vec b) { return {a.lanes > b.lanes}; }
  friend FASTLOSS_INLINE Mask<T> operator>=(Vec a, Vec b) { return {a.lanes >= b.lanes}; }
  friend FASTLOSS_INLINE Mask<T> operator==(Vec a, Vec b) { return {a.lanes == b.lanes}; }
  friend FASTLOSS_INLINE Mask<T> operator!=(Vec a, Vec b) { return {a.lanes != b.lanes}; }
  friend FASTLOSS_INLINE Mask<T> is_nan(Vec a) { return a != a; }

  // NaN where either argument is NaN, as torch.minimum and torch.maximum. (AVX-512 by intrinsics:
  // GCC would merge the two blends and no longer see the one instruction, which gives b where
  // either is NaN. Where a is, a is kept.)
  friend FASTLOSS_INLINE Vec min(Vec a, Vec b) {
#if defined(__AVX512F__)
    if constexpr (sizeof(T) == 4) {
      return _mm512_mask_min_ps(a.lanes, _mm512_cmp_ps_mask(a.lanes, a.lanes, _CMP_ORD_Q), a.lanes,
                                b.lanes);
    } else {
      return _mm512_mask_min_pd(a.lanes, _mm512_cmp_pd_mask(a.lanes, a.lanes, _CMP_ORD_Q), a.lanes,
                                b.lanes);
    }
#else
    return select(is_nan(a), a, select(a < b, a, b));
#endif
  }
  friend FASTLOSS_INLINE Vec max(Vec a, Vec b) {
#if defined(__AVX512F__)
    if constexpr (sizeof(T) == 4) {
      return _mm512_mask_max_ps(a.lanes, _mm512_cmp_ps_mask(a.lanes, a.lanes, _CMP_ORD_Q), a.lanes,
                                b.lanes);
    } else {
      return _mm512_mask_max_pd(a.lanes, _mm512_cmp_pd_mask(a.lanes, a.lanes, _CMP_ORD_Q), a.lanes,
                                b.lanes);
    }
#else
    return select(is_nan(a), a, select(a > b, a, b));
#endif
  }
  // a > b ? a : b, so b where either is NaN: one instruction where NaN needs no care.
  friend FASTLOSS_INLINE Vec larger(Vec a, Vec b) {
#if defined(__AVX512F__)
    if constexpr (sizeof(T) == 4) {
      return _mm512_maskz_max_ps(0xffff, a.lanes, b.lanes);
    } else {
      return _mm512_maskz_max_pd(0xff, a.lanes, b.lanes);
    }
#else
    return select(a > b, a, b);
#endif
  }

 private:
  // The first Count lanes, joined as a binary tree.
  template <int Count, class Join>
  static FASTLOSS_INLINE T fold(Vec value, const Join& join) {
    if constexpr (Count == 1) {
      return value[0];
    } else {
      return fold<Count / 2>(
          join(value, rotated<Count / 2>(value.lanes, std::make_integer_sequence<int, kLanes>{})),
          join);
    }
  }
  template <int By, int... Lane>
  static FASTLOSS_INLINE Lanes rotated(Lanes value, std::integer_sequence<int, Lane...>) {
    return __builtin_shufflevector(value, value, ((Lane + By) % kLanes)...);
  }
};

template <class T>
struct ScalarOf<Vec<T>> {
  using type = T;
};
template <class T>
struct MaskOf<Vec<T>> {
  using type = Mask<T>;
};

// The lanes' numbers: 0, 1, 2, ...
template <class T>
FASTLOSS_INLINE Vec<T> lane_numbers() {
  T numbers[Vec<T>::kLanes];
  for (int i = 0; i < Vec<T>::kLanes; ++i) numbers[i] = T(i);
  return Vec<T>::load(numbers);
}

// Orders what store_streaming wrote before whatever follows.
FASTLOSS_INLINE void streaming_fence() {
#if defined(__x86_64__)
  _mm_sfence();
#endif
}

// ---- N records of four numbers <-> four vectors of N lanes ----

namespace lanes {

// A reordering of two vectors' lanes that has an inverse: `split` and `join` tell from which lane
// of the two (the second one's count from kLanes) a lane of the result number `part` comes.

// Lanes in turn to the first and to the second result, within each block.
template <int kLanes, int kBlock>
struct Alternate {
  static constexpr int split(int lane, int part) {
    const int inside = lane % kBlock, picked = 2 * inside + part;
    return picked / kBlock * kLanes + (lane - inside) + picked % kBlock;
  }
  static constexpr int join(int lane, int part) {
    const int inside = lane % kBlock;
    return inside % 2 * kLanes + (lane - inside) + part * kBlock / 2 + inside / 2;
  }
};
// The lower halves to the first result, the upper ones to the second.
template <int kLanes>
struct Halve {
  static constexpr int kHalf = kLanes / 2;
  static constexpr int split(int lane, int part) {
    return lane / kHalf * kLanes + part * kHalf + lane % kHalf;
  }
  static constexpr int join(int lane, int part) { return split(lane, part); }
};

template <class T>
struct Pair {
  Vec<T> first, second;
};
template <class Order, class T, int... Lane>
FASTLOSS_INLINE Pair<T> split(const Pair<T>& in, std::integer_sequence<int, Lane...>) {
  return {__builtin_shufflevector(in.first.lanes, in.second.lanes, Order::split(Lane, 0)...),
          __builtin_shufflevector(in.first.lanes, in.second.lanes, Order::split(Lane, 1)...)};
}
template <class Order, class T, int... Lane>
FASTLOSS_INLINE Pair<T> join(const Pair<T>& in, std::integer_sequence<int, Lane...>) {
  return {__builtin_shufflevector(in.first.lanes, in.second.lanes, Order::join(Lane, 0)...),
          __builtin_shufflevector(in.first.lanes, in.second.lanes, Order::join(Lane, 1)...)};
}

// (xyzw xyzw ...) is split twice: into even and odd columns, (xz xz ...) and (yw yw ...), then into
// single ones.
//
// AVX2 moves lanes out of their 128-bit block only at extra cost. There the splits stay within
// blocks and halves of vectors are exchanged once: floats before the splits, doubles (two to a
// block) in place of the second one.
template <class T>
struct Transposition {
  static constexpr int kLanes = Vec<T>::kLanes;
  static constexpr bool kInBlocks = FASTLOSS_VECTOR_BYTES == 32;
  static constexpr bool kHalvesFirst = kInBlocks && sizeof(T) == 4;
  using First = Alternate<kLanes, kInBlocks ? 16 / sizeof(T) : kLanes>;
  using Second = std::conditional_t<kInBlocks && sizeof(T) == 8, Halve<kLanes>, First>;
  using Sequence = std::make_integer_sequence<int, kLanes>;
};

}  // namespace lanes

// kLanes records of four numbers, one after the other in memory, to four vectors.
template <class T>
FASTLOSS_INLINE void load_transposed(const T* records, Vec<T>& a, Vec<T>& b, Vec<T>& c, Vec<T>& d) {
  using V = Vec<T>;
  using Steps = lanes::Transposition<T>;
  constexpr typename Steps::Sequence kAll{};
  lanes::Pair<T> low{V::load(records), V::load(records + V::kLanes)};
  lanes::Pair<T> high{V::load(records + 2 * V::kLanes), V::load(records + 3 * V::kLanes)};
  if constexpr (Steps::kHalvesFirst) {
    const lanes::Pair<T> first =
        lanes::split<lanes::Halve<V::kLanes>>(lanes::Pair<T>{low.first, high.first}, kAll);
    high = lanes::split<lanes::Halve<V::kLanes>>(lanes::Pair<T>{low.second, high.second}, kAll);
    low = first;
  }
  low = lanes::split<typename Steps::First>(low, kAll);
  high = lanes::split<typename Steps::First>(high, kAll);
  const auto ac = lanes::split<typename Steps::Second>(lanes::Pair<T>{low.first, high.first}, kAll);
  const auto bd =
      lanes::split<typename Steps::Second>(lanes::Pair<T>{low.second, high.second}, kAll);
  a = ac.first;
  b = bd.first;
  c = ac.second;
  d = bd.second;
}

// The inverse of load_transposed.
template <class T>
FASTLOSS_INLINE void store_transposed(T* records, Vec<T> a, Vec<T> b, Vec<T> c, Vec<T> d,
                                      bool streaming) {
  using V = Vec<T>;
  using Steps = lanes::Transposition<T>;
  constexpr typename Steps::Sequence kAll{};
  const auto ac = lanes::join<typename Steps::Second>(lanes::Pair<T>{a, c}, kAll);
  const auto bd = lanes::join<typename Steps::Second>(lanes::Pair<T>{b, d}, kAll);
  auto low = lanes::join<typename Steps::First>(lanes::Pair<T>{ac.first, bd.first}, kAll);
  auto high = lanes::join<typename Steps::First>(lanes::Pair<T>{ac.second, bd.second}, kAll);
  if constexpr (Steps::kHalvesFirst) {
    const auto first = lanes::join<lanes::Halve<V::kLanes>>(low, kAll);
    const auto second = lanes::join<lanes::Halve<V::kLanes>>(high, kAll);
    low = {first.first, second.first};
    high = {first.second, second.second};
  }
  if (streaming) {
    low.first.store_streaming(records);
    low.second.store_streaming(records + V::kLanes);
    high.first.store_streaming(records + 2 * V::kLanes);
    high.second.store_streaming(records + 3 * V::kLanes);
  } else {
    low.first.store(records);
    low.second.store(records + V::kLanes);
    high.first.store(records + 2 * V::kLanes);
    high.second.store(records + 3 * V::kLanes);
  }
}

// ---- N records of any count of numbers <-> as many vectors of N lanes ----

namespace lanes {

// The numbers of the records lie in as many vectors: number c of record r is lane
// (kNumbers r + c) % kLanes of vector (kNumbers r + c) / kLanes. Each vector of the result is put
// together from one after the other of those. Which lane of what has been put together (the next
// vector's count from kLanes) becomes `lane`, when vector `next` is taken in:
template <int kLanes, int kNumbers>
struct Records {
  static constexpr int load(int lane, int number, int next) {
    return pick(lane, kNumbers * lane + number, kLanes, next);
  }
  static constexpr int store(int lane, int vector, int next) {
    const int place = kLanes * vector + lane;
    return pick(lane, place % kNumbers * kLanes + place / kNumbers, kLanes, next);
  }

 private:
  static constexpr int pick(int lane, int source, int size, int next) {
    if (source / size == next) return size + source % size;
    return next == 1 && source / size == 0 ? source % size : lane;
  }
};

template <bool kLoads, int kPart, int kNext, class T, int kNumbers, int... Lane>
FASTLOSS_INLINE Vec<T> put_together(const Vec<T>& so_far, const Vec<T> (&in)[kNumbers],
                                    std::integer_sequence<int, Lane...> all) {
  if constexpr (kNext == kNumbers) {
    return so_far;
  } else {
    using Order = Records<Vec<T>::kLanes, kNumbers>;
    const Vec<T> more = __builtin_shufflevector(
        so_far.lanes, in[kNext].lanes,
        (kLoads ? Order::load(Lane, kPart, kNext) : Order::store(Lane, kPart, kNext))...);
    return put_together<kLoads, kPart, kNext + 1>(more, in, all);
  }
}

template <bool kLoads, class T, int kNumbers, int... Part>
FASTLOSS_INLINE void put_all_together(Vec<T> (&out)[kNumbers], const Vec<T> (&in)[kNumbers],
                                      std::integer_sequence<int, Part...>) {
  constexpr std::make_integer_sequence<int, Vec<T>::kLanes> kAll{};
  ((out[Part] = put_together<kLoads, Part, 1>(in[0], in, kAll)), ...);
}

}  // namespace lanes

// kLanes records, one after the other in memory, to a vector for each of their numbers.
template <class T, int kNumbers>
FASTLOSS_INLINE void load_records(const T* records, Vec<T> (&out)[kNumbers]) {
  if constexpr (kNumbers == 4) {
    load_transposed(records, out[0], out[1], out[2], out[3]);
  } else {
    Vec<T> in[kNumbers];
    for (int i = 0; i < kNumbers; ++i) in[i] = Vec<T>::load(records + i * Vec<T>::kLanes);
    lanes::put_all_together<true>(out, in, std::make_integer_sequence<int, kNumbers>{});
  }
}

// The inverse of load_records.
template <class T, int kNumbers>
FASTLOSS_INLINE void store_records(T* records, const Vec<T> (&in)[kNumbers], bool streaming) {
  if constexpr (kNumbers == 4) {
    store_transposed(records, in[0], in[1], in[2], in[3], streaming);
  } else {
    Vec<T> out[kNumbers];
    lanes::put_all_together<false>(out, in, std::make_integer_sequence<int, kNumbers>{});
    for (int i = 0; i < kNumbers; ++i) {
      T* const place = records + i * Vec<T>::kLanes;
      streaming ? out[i].store_streaming(place) : out[i].store(place);
    }
  }
}

// ---- kLanes vectors as the rows of a matrix ----

template <class T>
struct Square {
  Vec<T> row[Vec<T>::kLanes];
};

namespace lanes {

// 0 ... kCount - 1. (Spelled out by packs: of a loop the compiler leaves the rows in memory.)
template <int kCount>
using Steps = std::make_integer_sequence<int, kCount>;

template <class T, int... Row>
FASTLOSS_INLINE Square<T> load_square(const T* rows, int64_t stride,
                                      std::integer_sequence<int, Row...>) {
  return {{Vec<T>::load(rows + Row * stride)...}};
}
template <class T, int... Row>
FASTLOSS_INLINE void store_square(T* rows, int64_t stride, const Square<T>& square,
                                  std::integer_sequence<int, Row...>) {
  (square.row[Row].store(rows + Row * stride), ...);
}

template <class T, class Map, int... Row>
FASTLOSS_INLINE Square<T> mapped(const Square<T>& in, Map& map,
                                 std::integer_sequence<int, Row...>) {
  return {{map(in.row[Row])...}};
}

// The lower or the upper halves of two vectors, lane by lane in turn.
template <int kUpper, class Lanes, int... Lane>
FASTLOSS_INLINE Lanes interleaved(Lanes a, Lanes b, std::integer_sequence<int, Lane...>) {
  constexpr int kLanes = sizeof...(Lane);
  using Order = Alternate<kLanes, kLanes>;
  return __builtin_shufflevector(a, b, Order::join(Lane, kUpper)...);
}

// Row r of the result: half of the lanes of rows r / 2 and r / 2 + kLanes / 2, in turn.
template <class T, int... Row>
FASTLOSS_INLINE Square<T> interleave(const Square<T>& in, std::integer_sequence<int, Row...>) {
  constexpr int kHalf = Vec<T>::kLanes / 2;
  return {{interleaved<Row % 2>(in.row[Row / 2].lanes, in.row[Row / 2 + kHalf].lanes,
                                Steps<Vec<T>::kLanes>{})...}};
}

template <class T, int kDigit = 1>
FASTLOSS_INLINE Square<T> interleave_from(const Square<T>& in) {
  if constexpr (kDigit == Vec<T>::kLanes) {
    return in;
  } else {
    return interleave_from<T, 2 * kDigit>(interleave(in, Steps<Vec<T>::kLanes>{}));
  }
}

}  // namespace lanes

template <class T>
FASTLOSS_INLINE Square<T> load_square(const T* rows, int64_t stride) {
  return lanes::load_square(rows, stride, lanes::Steps<Vec<T>::kLanes>{});
}
template <class T>
FASTLOSS_INLINE void store_square(T* rows, int64_t stride, const Square<T>& square) {
  lanes::store_square(rows, stride, square, lanes::Steps<Vec<T>::kLanes>{});
}
// map(row) of every row, from the first to the last.
template <class T, class Map>
FASTLOSS_INLINE Square<T> mapped(const Square<T>& in, Map& map) {
  return lanes::mapped(in, map, lanes::Steps<Vec<T>::kLanes>{});
}
// Rows become columns. Interleaving the upper half of the rows with the lower one rotates the
// digits of (row, column) by one: done as often as either has digits, they have changed places.
template <class T>
FASTLOSS_INLINE Square<T> transposed(const Square<T>& in) {
  return lanes::interleave_from(in);
}

// ---- elementary functions ----
//
// float: at most 2 ulp, double: at most 4, over the whole range, denormal results included; special
// values as in C. The polynomials are minimax fits (Remez exchange, relative error) of the
// functions named beside them.

template <class T>
FASTLOSS_INLINE Vec<T> sign_bit(Vec<T> x) {
  return Vec<T>::from_bits(x.bits() & Vec<T>(T(-0.0)).bits());
}
template <class T>
FASTLOSS_INLINE Vec<T> abs(Vec<T> x) {
  return Vec<T>::from_bits(x.bits() & ~Vec<T>(T(-0.0)).bits());
}
// Towards 0, of numbers that fit an integer of their size.
template <class T>
FASTLOSS_INLINE Vec<T> trunc(Vec<T> x) {
  using Integers = typename Mask<T>::Native;
  return __builtin_convertvector(__builtin_convertvector(x.lanes, Integers),
                                 typename Vec<T>::Lanes);
}
// The magnitude of a number that is not negative, with the sign of another.
template <class T>
FASTLOSS_INLINE Vec<T> with_sign_of(Vec<T> magnitude, Vec<T> x) {
  return Vec<T>::from_bits(magnitude.bits() | sign_bit(x).bits());
}

// (GCC's headers for the unmasked AVX-512 intrinsics warn of uninitialised values; a full mask
// costs nothing.)
template <class T>
FASTLOSS_INLINE Vec<T> sqrt(Vec<T> x) {
  if constexpr (sizeof(T) == 4) {
#if defined(__AVX512F__)
    return _mm512_maskz_sqrt_ps(0xffff, x.lanes);
#elif defined(__AVX2__)
    return _mm256_sqrt_ps(x.lanes);
#elif defined(__x86_64__)
    return _mm_sqrt_ps(x.lanes);
#else
    return __builtin_bit_cast(typename Vec<T>::Lanes,
                              vsqrtq_f32(__builtin_bit_cast(float32x4_t, x.lanes)));
#endif
  } else {
#if defined(__AVX512F__)
    return _mm512_maskz_sqrt_pd(0xff, x.lanes);
#elif defined(__AVX2__)
    return _mm256_sqrt_pd(x.lanes);
#elif defined(__x86_64__)
    return _mm_sqrt_pd(x.lanes);
#else
    return __builtin_bit_cast(typename Vec<T>::Lanes,
                              vsqrtq_f64(__builtin_bit_cast(float64x2_t, x.lanes)));
#endif
  }
}

namespace lanes {

// powers[k] = x^(2^k)
template <int First, int Count, class T, int Terms>
FASTLOSS_INLINE Vec<T> estrin(const Vec<T>* powers, const T (&c)[Terms]) {
  if constexpr (Count == 1) {
    return c[First];
  } else if constexpr (Count == 9 ||
                       Count == 17) {  // one term above a full tree: as its root it needs no power
    return c[First] + powers[0] * estrin<First + 1, Count - 1>(powers, c);
  } else {
    constexpr int kHalf = Count > 16 ? 16 : Count > 8 ? 8 : Count > 4 ? 4 : Count > 2 ? 2 : 1;
    constexpr int kPower = kHalf == 16 ? 4 : kHalf == 8 ? 3 : kHalf / 2;
    return estrin<First, kHalf>(powers, c) +
           powers[kPower] * estrin<First + kHalf, Count - kHalf>(powers, c);
  }
}

}  // namespace lanes

// c[0] + c[1] x + c[2] x² + ... by Estrin's scheme: a tree, since these functions spend their time
// waiting for results one after the other, not for multipliers.
template <class T, int Terms>
FASTLOSS_INLINE Vec<T> polynomial(Vec<T> x, const T (&c)[Terms]) {
  const Vec<T> x2 = x * x, x4 = x2 * x2, x8 = x4 * x4;
  const Vec<T> powers[] = {x, x2, x4, x8, x8 * x8};
  return lanes::estrin<0, Terms>(powers, c);
}

template <class T>
struct Coefficients;

template <>
struct Coefficients<float> {
  // (exp(x) - 1 - x) / x² on ±ln(2)/2.
  static constexpr float kExp[] = {0.49999994f, 0.166665211f, 0.0416682586f, 0.00836868025f,
                                   0.0013821664f};
  // (log1p(x) - x + x²/2) / x³ on [√½ - 1, √2 - 1].
  static constexpr float kLog[] = {0.333333313f, -0.250008196f, 0.200012416f, -0.166234091f,
                                   0.142015785f, -0.131596074f, 0.127622351f, -0.0763648003f};
  // (log1p(x) - x) / x² on [0, 1].
  static constexpr float kLog1pUnit[] = {-0.499999344f,  0.333305508f,  -0.249589384f,
                                         0.196969941f,   -0.153595388f, 0.106869757f,
                                         -0.0577230975f, 0.0202337336f, -0.00332454941f};
  // (atan(t)/t - 1) / t² as a function of t² on [0, 1].
  static constexpr float kAtan[] = {-0.333331525f,  0.199937671f, -0.14211002f,   0.106657706f,
                                    -0.0755167082f, 0.043204993f, -0.0163634699f, 0.0029195291f};
  // (tanh(t)/t - 1) / t² as a function of t² on [0, 0.625²].
  static constexpr float kTanh[] = {-0.333332837f, 0.133314759f, -0.0537419394f, 0.0206451472f,
                                    -0.00571083603f};
  // ln 2 and π/2 in two parts. The high part of ln 2 leaves room for an exact product with any
  // exponent.
  static constexpr float kLn2High = 0x1.62e4p-1f, kLn2Low = 0x1.7f7d1cp-20f;
  static constexpr float kHalfPiHigh = 0x1.921fb6p0f, kHalfPiLow = -0x1.777a5cp-25f;
  // Below and above these, exp is 0 and inf.
  static constexpr float kExpLowest = -105.0f, kExpHighest = 89.0f;
  // Exponentials of numbers of at most this size can be added up, by the million, and sums and
  // exponentials be divided by one another, with results that are normal numbers.
  static constexpr float kExpModerate = 36.0f;
};

template <>
struct Coefficients<double> {
  static constexpr double kExp[] = {
      0.50000000000000111,    0.16666666666666427,    0.04166666666652763,    0.0083333333334830468,
      0.0013888888944366853,  0.00019841269537357079, 2.4801492272136623e-05, 2.755755364069487e-06,
      2.7630563176543117e-07, 2.5012035625187154e-08};
  static constexpr double kLog[] = {
      0.33333333333333143,  -0.2499999999998799,   0.20000000000066559,  -0.16666666669822952,
      0.14285714280096648,  -0.12499999691663166,  0.11111111147453011,  -0.10000015198163992,
      0.090909239268378461, -0.083329137037519735, 0.076915299976704987, -0.071494376519573521,
      0.066845864218529824, -0.061966901087197893, 0.056683977887352618, -0.056777477323478438,
      0.065034203222176887, -0.059817459000645029, 0.02615185156494821};
  static constexpr double kLog1pUnit[] = {
      -0.49999999999999462,  0.3333333333323506,    -0.2499999999367746,     0.19999999791348824,
      -0.16666662498943965,  0.14285658902035817,   -0.12499479649005134,    0.11107506193850054,
      -0.099810157364026181, 0.09013156249937157,   -0.080812180744553722,   0.070355554519750937,
      -0.0575022286130418,   0.042300377440208259,  -0.026744202847348211,   0.013838750801377466,
      -0.005543186757121019, 0.0015957668509255243, -0.00029176644463520018, 2.533043060032836e-05};
  static constexpr double kAtan[] = {
      -0.33333333333333071,    0.1999999999995147,     -0.14285714282575587,
      0.11111111007036255,     -0.090909070031100325,  0.076922798400885048,
      -0.066664040600716817,   0.058805278097526864,   -0.052535184588263777,
      0.047223216940800325,    -0.042191771425146546,  0.036641866445451331,
      -0.029903777985408993,   0.021984744114940745,   -0.013900449022351538,
      0.007196419660759794,    -0.0028848733299730251, 0.00083130527208106488,
      -0.00015215715683438769, 1.3224694007858769e-05};
  static constexpr double kTanh[] = {
      -0.33333333333333315,   0.13333333333329742,     -0.053968253966058713,
      0.021869488468710285,   -0.0088632343124969946,  0.0035921139990637589,
      -0.0014557259428331364, 0.00058945177675551273,  -0.00023701166861036529,
      9.1558304276215897e-05, -3.0187113186276585e-05, 6.0424216320053063e-06};
  static constexpr double kLn2High = 0x1.62e42fefa4p-1, kLn2Low = -0x1.8432a1b0e2634p-43;
  static constexpr double kHalfPiHigh = 0x1.921fb54442d18p0, kHalfPiLow = 0x1.1a62633145c07p-54;
  static constexpr double kExpLowest = -746.0, kExpHighest = 710.0;
  static constexpr double kExpModerate = 340.0;
};

namespace lanes {

template <class T>
constexpr T kInfinity = T(__builtin_inff());
template <class T>
constexpr T kNaN = T(__builtin_nanf(""));

// Adding 1.5·2^mantissa_bits rounds to an integer and leaves it in the low bits.
template <class T>
constexpr T kRound = T(3) * T(typename Ieee<T>::Unsigned(1) << (Ieee<T>::kMantissaBits - 1));

// x · 2^n for shifted = n + kRound, correct for denormal results and for inf: x · 2^(n/2) is exact,
// and the second factor rounds once. (n alone may leave the range of exponents.) AVX-512 does the
// same in one instruction.
template <class T>
FASTLOSS_INLINE Vec<T> times_power_of_two(Vec<T> x, Vec<T> shifted) {
#if defined(__AVX512F__)
  const Vec<T> n = shifted - kRound<T>;
  if constexpr (sizeof(T) == 4) {
    return _mm512_maskz_scalef_ps(0xffff, x.lanes, n.lanes);
  } else {
    return _mm512_maskz_scalef_pd(0xff, x.lanes, n.lanes);
  }
#else
  constexpr int kShift = Ieee<T>::kMantissaBits;
  const auto biased = (shifted.bits() - Vec<T>(kRound<T>).bits()) + 2 * Ieee<T>::kBias;
  const auto half = biased >> 1;
  return x * Vec<T>::from_bits(half << kShift) * Vec<T>::from_bits((biased - half) << kShift);
#endif
}

}  // namespace lanes

namespace lanes {

// exp, right where its powers of two stay in range.
template <class T>
FASTLOSS_INLINE Vec<T> exp_inside(Vec<T> x) {
  using C = Coefficients<T>;
  const Vec<T> shifted = x * T(1.4426950408889634) + kRound<T>;
  const Vec<T> n = shifted - kRound<T>;
  const Vec<T> r = (x - n * C::kLn2High) - n * C::kLn2Low;
  return times_power_of_two(T(1) + (r + r * r * polynomial(r, C::kExp)), shifted);
}

}  // namespace lanes

template <class T>
FASTLOSS_INLINE Vec<T> exp(Vec<T> x) {
  using C = Coefficients<T>;
  // Blended at the end and not clamped at the start, where everything would wait for it.
  return select(x < C::kExpLowest, Vec<T>(T(0)),
                select(x > C::kExpHighest, Vec<T>(lanes::kInfinity<T>), lanes::exp_inside(x)));
}

// exp where x is known not to be above 0: what a softmax needs, in fewer operations.
template <class T>
FASTLOSS_INLINE Vec<T> exp_nonpositive(Vec<T> x) {
  return lanes::exp_inside(larger(Vec<T>(Coefficients<T>::kExpLowest), x));
}

// exp where |x| is known to be at most kExpModerate. NaN stays NaN.
template <class T>
FASTLOSS_INLINE Vec<T> exp_moderate(Vec<T> x) {
  return lanes::exp_inside(x);
}

namespace lanes {

// x = 2^(biased_exponent - bias) · mantissa with the mantissa in [√½, √2), for positive normal x.
template <class T>
struct Split {
  Vec<T> mantissa;
  typename Vec<T>::Bits biased_exponent;
};
template <class T>
FASTLOSS_INLINE Split<T> split(Vec<T> x) {
  constexpr int kShift = Ieee<T>::kMantissaBits;
  constexpr auto kOne = __builtin_bit_cast(typename Ieee<T>::Unsigned, T(1));
  constexpr auto kSqrtHalf = __builtin_bit_cast(typename Ieee<T>::Unsigned, T(0.70710678118654752));
  constexpr auto kFraction = (typename Ieee<T>::Unsigned(1) << kShift) - 1;
  const auto shifted = x.bits() + (kOne - kSqrtHalf);
  return {Vec<T>::from_bits((shifted & kFraction) + kSqrtHalf), shifted >> kShift};
}

// A small non-negative integer as a number, less `offset`: put into the low bits of
// 2^mantissa_bits. (There is no 64-bit integer conversion before AVX-512.)
template <class T>
FASTLOSS_INLINE Vec<T> to_number(typename Vec<T>::Bits integer, Vec<T> offset) {
  constexpr T kBase = T(typename Ieee<T>::Unsigned(1) << Ieee<T>::kMantissaBits);
  return Vec<T>::from_bits(integer | __builtin_bit_cast(typename Ieee<T>::Unsigned, kBase)) -
         (offset + kBase);
}

// log1p(f) + exponent · ln 2 for f in [√½ - 1, √2 - 1].
template <class T>
FASTLOSS_INLINE Vec<T> log1p_plus_exponent(Vec<T> f, Vec<T> exponent) {
  using C = Coefficients<T>;
  const Vec<T> f2 = f * f;
  const Vec<T> tail = (f * f2) * polynomial(f, C::kLog) + (exponent * C::kLn2Low - T(0.5) * f2);
  return (f + tail) + exponent * C::kLn2High;
}

}  // namespace lanes

template <class T>
FASTLOSS_INLINE Vec<T> log(Vec<T> x) {
  constexpr int kShift = Ieee<T>::kMantissaBits;
  constexpr T kPower = T(typename Ieee<T>::Unsigned(1) << kShift);
  const auto denormal = x < smallest_normal<T>;
  const auto parts = lanes::split(select(denormal, x * kPower, x));
  const Vec<T> offset = select(denormal, Vec<T>(T(Ieee<T>::kBias + kShift)), T(Ieee<T>::kBias));
  const Vec<T> exponent = lanes::to_number<T>(parts.biased_exponent, offset);
  const Vec<T> result = lanes::log1p_plus_exponent(parts.mantissa - T(1), exponent);
  const Vec<T> not_positive = select(x == T(0), Vec<T>(-lanes::kInfinity<T>), lanes::kNaN<T>);
  return select(x > T(0), select(x == lanes::kInfinity<T>, x, result), not_positive);
}

template <class T>
FASTLOSS_INLINE Vec<T> log1p(Vec<T> x) {
  constexpr int kShift = Ieee<T>::kMantissaBits;
  const Vec<T> u = x + T(1);
  const Vec<T> lost = x - (u - T(1));  // what the rounding of 1 + x lost
  const auto parts = lanes::split(u);
  const Vec<T> exponent = lanes::to_number<T>(parts.biased_exponent, T(Ieee<T>::kBias));
  // 2^(1 - exponent): twice the factor that scales u to the mantissa, which could be denormal.
  const Vec<T> scale =
      Vec<T>::from_bits((2 * Ieee<T>::kBias + 1 - parts.biased_exponent) << kShift);
  const Vec<T> f = (parts.mantissa - T(1)) + T(0.5) * (lost * scale);
  const Vec<T> result = lanes::log1p_plus_exponent(f, exponent);
  const Vec<T> not_positive = select(u == T(0), Vec<T>(-lanes::kInfinity<T>), lanes::kNaN<T>);
  // The sign restores -0.
  return with_sign_of(select(u > T(0), select(u == lanes::kInfinity<T>, u, result), not_positive),
                      x);
}

// log1p on [0, 1] only, in half the time: log1p(exp(-|x|)) is what losses on logits need.
template <class T>
FASTLOSS_INLINE Vec<T> log1p_unit(Vec<T> x) {
  return x + (x * x) * polynomial(x, Coefficients<T>::kLog1pUnit);
}

template <class T>
FASTLOSS_INLINE Vec<T> atan(Vec<T> x) {
  using C = Coefficients<T>;
  const Vec<T> magnitude = abs(x);
  const auto steep = magnitude > T(1);
  // atan(x) = π/2 + atan(-1/x)
  const Vec<T> t = select(steep, T(-1) / magnitude, magnitude);
  const Vec<T> t2 = t * t;
  const Vec<T> tail =
      (t * t2) * polynomial(t2, C::kAtan) + select(steep, Vec<T>(C::kHalfPiLow), T(0));
  return with_sign_of(select(steep, Vec<T>(C::kHalfPiHigh), T(0)) + (t + tail), x);
}

template <class T>
FASTLOSS_INLINE Vec<T> tanh(Vec<T> x) {
  using C = Coefficients<T>;
  const Vec<T> magnitude = abs(x);
  const Vec<T> x2 = x * x;
  const Vec<T> near_zero = magnitude + (magnitude * x2) * polynomial(x2, C::kTanh);
  const Vec<T> saturating = T(1) - T(2) / (exp(T(2) * magnitude) + T(1));
  return with_sign_of(select(magnitude < T(0.625), near_zero, saturating), x);
}

}  // namespace fastloss::FASTLOSS_TARGET
