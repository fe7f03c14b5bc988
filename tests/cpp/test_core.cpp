// SPDX-License-Identifier: MIT
// Unit test of csrc/core: vector mathematics against the C library in higher precision, lanes,
// masks, half precision, and dual numbers against finite differences. One line per check; exit
// status 1 if any fails.
//
// The `checksum` lines hash every result of a sweep: builds for different instruction sets must
// print the same ones. An argument sets the stride of the float32 sweep (1 visits all 2^32 numbers;
// the default takes a second or two per function). `--time` prints the time per element of each
// function instead.
#include <math.h>

#include <chrono>
#include <cinttypes>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <string>
#include <vector>

#include "core/dual.h"
#include "core/half.h"
#include "core/math.h"
#include "core/special.h"
#include "core/vec.h"

namespace fastloss::FASTLOSS_TARGET {
namespace {

int failures = 0;

void report(bool passed, const std::string& what) {
  std::printf("%s %s\n", passed ? "ok  " : "FAIL", what.c_str());
  if (!passed) ++failures;
}

std::string number(double x) {
  char text[64];
  std::snprintf(text, sizeof(text), "%.9g", x);
  return text;
}

template <class T>
constexpr const char* type_name = sizeof(T) == 4 ? "float" : "double";

// Numbers that compare equal and are equally signed, or are both NaN.
template <class T>
bool same(T a, T b) {
  return (a != a && b != b) || std::memcmp(&a, &b, sizeof(T)) == 0;
}

struct Checksum {
  uint64_t state = 0xcbf29ce484222325u;
  void add(uint64_t word) { state = (state ^ word) * 0x100000001b3u + (state >> 29); }
  void add(float x) { add(uint64_t{x != x ? 0x7fc00000u : __builtin_bit_cast(uint32_t, x)}); }
  void add(double x) {
    add(x != x ? uint64_t{0x7ff8000000000000u} : __builtin_bit_cast(uint64_t, x));
  }
  void print(const std::string& name) const {
    std::printf("checksum %s %016" PRIx64 "\n", name.c_str(), state);
  }
};

struct Random {
  uint64_t state = 0x9e3779b97f4a7c15u;
  uint64_t next() {  // xorshift64*
    state ^= state >> 12;
    state ^= state << 25;
    state ^= state >> 27;
    return state * 0x2545f4914f6cdd1du;
  }
  double uniform(double low, double high) {
    return low + (high - low) * double(next() >> 11) * 0x1p-53;
  }
};

// ---- elementary functions ----

// The reference is one format wider, so that its own error does not count.
struct Exp {
  static constexpr const char* kName = "exp";
  template <class X>
  static auto of(X x) {
    return exp(x);
  }
  static double reference(double x) { return ::exp(x); }
  static long double reference(long double x) { return ::expl(x); }
};
// exp_nonpositive; positive numbers are folded into its half line.
struct ExpNonpositive {
  static constexpr const char* kName = "exp_nonpositive";
  template <class X>
  static auto of(X x) {
    return exp_nonpositive(-abs(x));
  }
  static double reference(double x) { return ::exp(-::fabs(x)); }
  static long double reference(long double x) { return ::expl(-::fabsl(x)); }
};
struct Log {
  static constexpr const char* kName = "log";
  template <class X>
  static auto of(X x) {
    return log(x);
  }
  static double reference(double x) { return ::log(x); }
  static long double reference(long double x) { return ::logl(x); }
};
struct Log1p {
  static constexpr const char* kName = "log1p";
  template <class X>
  static auto of(X x) {
    return log1p(x);
  }
  static double reference(double x) { return ::log1p(x); }
  static long double reference(long double x) { return ::log1pl(x); }
};
// log1p_unit, which is defined on [0, 1]; other numbers are folded into it.
struct Log1pUnit {
  static constexpr const char* kName = "log1p_unit";
  template <class X>
  static X folded(X x) {
    x = fabs(x);
    return x > X(1) ? X(1) / x : x;
  }
  template <class T>
  static Vec<T> of(Vec<T> x) {
    T lanes[Vec<T>::kLanes];
    x.store(lanes);
    for (T& lane : lanes) lane = folded(lane);
    return log1p_unit(Vec<T>::load(lanes));
  }
  static double reference(double x) { return ::log1p(double(folded(float(x)))); }
  static long double reference(long double x) { return ::log1pl(folded(double(x))); }
};
struct Atan {
  static constexpr const char* kName = "atan";
  template <class X>
  static auto of(X x) {
    return atan(x);
  }
  static double reference(double x) { return ::atan(x); }
  static long double reference(long double x) { return ::atanl(x); }
};
struct Tanh {
  static constexpr const char* kName = "tanh";
  template <class X>
  static auto of(X x) {
    return tanh(x);
  }
  static double reference(double x) { return ::tanh(x); }
  static long double reference(long double x) { return ::tanhl(x); }
};
struct Sqrt {
  static constexpr const char* kName = "sqrt";
  template <class X>
  static auto of(X x) {
    return sqrt(x);
  }
  static double reference(double x) { return ::sqrt(x); }
  static long double reference(long double x) { return ::sqrtl(x); }
};

template <class T>
struct Wider;
template <>
struct Wider<float> {
  using type = double;
};
template <>
struct Wider<double> {
  using type = long double;
};

// The error in units of the last place of the exact result; infinite where one is NaN, or of the
// wrong sign.
template <class T>
double ulps(T got, typename Wider<T>::type exact) {
  constexpr double kInfinity = std::numeric_limits<double>::infinity();
  if (got != got || exact != exact) return (got != got) == (exact != exact) ? 0.0 : kInfinity;
  if (signbit(got) != signbit(exact)) return kInfinity;
  const T rounded = static_cast<T>(exact);
  if (isinf(got) || isinf(rounded)) {
    if (got == rounded) return 0.0;
    // One of them just overflowed: inf counts as the number after the largest.
    const auto next_power =
        scalbn(typename Wider<T>::type(1), std::numeric_limits<T>::max_exponent);
    const auto finite = isinf(got) ? fabs(exact) : fabs(typename Wider<T>::type(got));
    return double((next_power - finite) / scalbn(next_power, -std::numeric_limits<T>::digits));
  }
  int exponent;
  frexp(exact, &exponent);
  const int lowest = std::numeric_limits<T>::min_exponent;
  const int unit =
      (exact == 0 || exponent < lowest ? lowest : exponent) - std::numeric_limits<T>::digits;
  return double(scalbn(fabs(typename Wider<T>::type(got) - exact), -unit));
}

template <class T>
struct Sweep {
  double worst = 0.0;
  T worst_at = 0;
  Checksum checksum;

  template <class Function>
  void visit(const T* x, int count) {
    using V = Vec<T>;
    T result[64];
    for (int i = 0; i < count; i += V::kLanes) Function::of(V::load(x + i)).store(result + i);
    for (int i = 0; i < count; ++i) {
      checksum.add(result[i]);
      const double error = ulps(result[i], Function::reference(typename Wider<T>::type(x[i])));
      if (error > worst) {
        worst = error;
        worst_at = x[i];
      }
    }
  }

  void finish(const char* name, double tolerance) const {
    checksum.print(std::string(name) + "_" + type_name<T>);
    report(worst <= tolerance, std::string(name) + " " + type_name<T> + ": " + number(worst) +
                                   " ulp at " + number(double(worst_at)) + ", at most " +
                                   number(tolerance));
  }
};

template <class Function>
void sweep_float(uint64_t stride, double tolerance) {
  Sweep<float> sweep;
  float x[64];
  int filled = 0;
  for (uint64_t bits = 0; bits < (uint64_t{1} << 32); bits += stride) {
    x[filled++] = __builtin_bit_cast(float, static_cast<uint32_t>(bits));
    if (filled == 64) {
      sweep.visit<Function>(x, filled);
      filled = 0;
    }
  }
  for (int i = filled; i < 64; ++i) x[i] = 1.0f;
  sweep.visit<Function>(x, 64);
  sweep.finish(Function::kName, tolerance);
}

template <class Function>
void sweep_double(double tolerance) {
  Sweep<double> sweep;
  Random random;
  double x[64];
  for (int block = 0; block < 16384; ++block) {
    for (int i = 0; i < 64; ++i) {
      switch (i % 4) {
        case 0:  // any bit pattern
          x[i] = __builtin_bit_cast(double, random.next());
          break;
        case 1:  // where the functions bend
          x[i] = random.uniform(-3.0, 3.0);
          break;
        case 2:  // the whole range of exp
          x[i] = random.uniform(-760.0, 720.0);
          break;
        default:  // close to 0 and to 1
          x[i] = (block % 2) + random.uniform(-1.0, 1.0) * ::exp2(-double(random.next() % 60));
      }
    }
    sweep.visit<Function>(x, 64);
  }
  sweep.finish(Function::kName, tolerance);
}

// Special values, each in a lane between ordinary ones, which must not be disturbed.
template <class Function, class T>
void check_special_values() {
  using V = Vec<T>;
  using Limits = std::numeric_limits<T>;
  const T values[] = {T(0),
                      T(-0.0),
                      T(1),
                      T(-1),
                      Limits::infinity(),
                      -Limits::infinity(),
                      Limits::quiet_NaN(),
                      Limits::min(),
                      -Limits::min(),
                      Limits::denorm_min(),
                      -Limits::denorm_min(),
                      Limits::max(),
                      -Limits::max(),
                      T(-1.5)};
  const T ordinary = T(0.75);
  const T undisturbed = Function::of(V(ordinary))[0];
  bool passed = true;
  for (const T x : values) {
    const T exact = static_cast<T>(Function::reference(typename Wider<T>::type(x)));
    for (int lane = 0; lane < V::kLanes; ++lane) {
      T in[V::kLanes], out[V::kLanes];
      for (int i = 0; i < V::kLanes; ++i) in[i] = i == lane ? x : ordinary;
      Function::of(V::load(in)).store(out);
      for (int i = 0; i < V::kLanes; ++i) {
        if (i != lane) passed = passed && same(out[i], undisturbed);
      }
      const bool exact_value = isinf(exact) || exact != exact || exact == T(0);
      if (exact_value ? !same(out[lane], exact) : ulps(out[lane], exact) > 2.0) {
        passed = false;
        std::printf("     %s(%g) gave %g, not %g\n", Function::kName, double(x), double(out[lane]),
                    double(exact));
      }
    }
  }
  report(passed,
         std::string(Function::kName) + " " + type_name<T> + ": special values, lanes apart");
}

// What a formula relies on where a result is used as a probability, an angle or a factor.
void check_bounds() {
  using V = Vec<float>;
  bool passed = true;
  for (uint64_t bits = 0; bits <= 0x7f800000u; bits += 257) {
    const float x = __builtin_bit_cast(float, static_cast<uint32_t>(bits));
    passed = passed && tanh(V(x))[0] <= 1.0f && atan(V(x))[0] <= 1.57079637f &&
             exp(V(-x))[0] <= 1.0f && exp(V(-x))[0] >= 0.0f && log1p(V(x))[0] >= 0.0f;
  }
  report(passed, "bounds: tanh <= 1, atan <= pi/2, 0 <= exp(-x) <= 1, log1p >= 0");
}

// ---- lanes ----

template <class T>
void check_arithmetic() {
  using V = Vec<T>;
  constexpr T kNaN = std::numeric_limits<T>::quiet_NaN(),
              kInfinity = std::numeric_limits<T>::infinity();
  const T values[] = {T(0), T(-0.0), T(1.5), T(-2.25), kInfinity, -kInfinity, kNaN, T(3)};
  bool arithmetic = true, comparisons = true, extremes = true, masks = true;
  for (const T x : values) {
    for (const T y : values) {
      const V a(x), b(y);
      V sum = a, difference = a, product = a, quotient = a;
      sum += b;
      difference -= b;
      product *= b;
      quotient /= b;
      for (int i = 0; i < V::kLanes; ++i) {
        arithmetic = arithmetic && same((a + b)[i], x + y) && same((a - b)[i], x - y) &&
                     same((a * b)[i], x * y) && same((a / b)[i], x / y) && same((-a)[i], -x) &&
                     same((a + y)[i], x + y) && same((x - b)[i], x - y) && same(sum[i], x + y) &&
                     same(difference[i], x - y) && same(product[i], x * y) &&
                     same(quotient[i], x / y) && same(abs(a)[i], abs(x));
        const auto is = [&](Mask<T> mask) { return select(mask, T(1), T(0))[i] == T(1); };
        comparisons = comparisons && is(a < b) == (x < y) && is(a <= b) == (x <= y) &&
                      is(a > b) == (x > y) && is(a >= b) == (x >= y) && is(a == b) == (x == y) &&
                      is(a != b) == (x != y) && is(is_nan(a)) == (x != x);
        masks = masks && is((a < b) & (a < T(1))) == (x < y && x < T(1)) &&
                is((a < b) | (a < T(1))) == (x < y || x < T(1)) && is(!(a < b)) == !(x < y);
        extremes = extremes && same(min(a, b)[i], min(x, y)) && same(max(a, b)[i], max(x, y)) &&
                   is_nan(min(x, y)) == (x != x || y != y) &&
                   is_nan(max(x, y)) == (x != x || y != y) &&
                   (min(x, y) <= max(x, y)) == !(x != x || y != y);
      }
    }
  }
  const std::string type = type_name<T>;
  report(arithmetic, "arithmetic " + type + " is IEEE's");
  report(comparisons, "comparisons " + type);
  report(masks, "mask operators " + type);
  report(extremes, "min and max " + type + ", NaN from either side");

  bool any_lane = !any(V(T(1)) < V(T(0))), single_lane = true;
  T lanes_in[V::kLanes];
  for (int lane = 0; lane < V::kLanes; ++lane) {
    for (int i = 0; i < V::kLanes; ++i) lanes_in[i] = T(i == lane);
    any_lane = any_lane && any(V::load(lanes_in) > T(0));
    single_lane = single_lane && V::load(lanes_in)[lane] == T(1) && V::load(lanes_in).sum() == T(1);
  }
  report(any_lane, "any " + type);
  report(single_lane, "lanes and sum " + type);
  for (int i = 0; i < V::kLanes; ++i) lanes_in[i] = T(1 << i);
  report(V::load(lanes_in).sum() == T((1 << V::kLanes) - 1), "sum of all lanes " + type);
  report(same(nonzero(V(T(-0.0)), T(2))[0], T(2)) && same(nonzero(V(T(3)), T(2))[0], T(3)) &&
             is_nan(nonzero(V(kNaN), T(2))[0]) && same(nonzero(T(0), T(2)), T(2)) &&
             same(nonzero(T(3), T(2)), T(3)),
         "nonzero " + type);
  report(same(clamp_min(V(T(1)), T(2))[0], T(2)) && is_nan(clamp_min(V(kNaN), T(2))[0]) &&
             same(clamp_min(T(1), T(2)), T(2)) && is_nan(clamp_min(kNaN, T(2))) &&
             same(square(V(T(3)))[0], T(9)),
         "clamp_min and square " + type);
}

template <class T>
void check_memory() {
  using V = Vec<T>;
  constexpr int kCount = 4 * V::kLanes;
  bool plain = true, transposed = true;
  alignas(64) T memory[kCount + 64], target[kCount + 64];
  for (int i = 0; i < kCount + 64; ++i) memory[i] = T(i);
  for (int shift = 0; shift < 16; ++shift) {  // every alignment
    for (const bool streaming : {false, true}) {
      for (T& x : target) x = T(-1);
      V a, b, c, d;
      load_transposed(memory + shift, a, b, c, d);
      for (int i = 0; i < V::kLanes; ++i) {
        const T first = T(4 * i + shift);
        transposed = transposed && a[i] == first && b[i] == first + 1 && c[i] == first + 2 &&
                     d[i] == first + 3;
      }
      store_transposed(target + shift, a, b, c, d, streaming);
      streaming_fence();
      for (int i = 0; i < kCount + 64; ++i) {
        const bool inside = i >= shift && i < shift + kCount;
        transposed = transposed && target[i] == (inside ? T(i) : T(-1));
      }
      for (T& x : target) x = T(-1);
      const V loaded = V::load(memory + shift);
      if (streaming) {
        loaded.store_streaming(target + shift);
        streaming_fence();
      } else {
        loaded.store(target + shift);
      }
      for (int i = 0; i < kCount + 64; ++i) {
        const bool inside = i >= shift && i < shift + V::kLanes;
        plain = plain && target[i] == (inside ? T(i) : T(-1));
      }
    }
  }
  report(plain,
         std::string("load, store and store_streaming ") + type_name<T> + ", every alignment");
  report(transposed,
         std::string("load_transposed and store_transposed ") + type_name<T> + ", every alignment");

  constexpr int kStride = V::kLanes + 3;
  T matrix[V::kLanes * kStride], turned[V::kLanes * kStride] = {};
  for (int i = 0; i < V::kLanes * kStride; ++i) matrix[i] = T(i);
  store_square(turned, kStride,
               fastloss::FASTLOSS_TARGET::transposed(load_square(matrix, kStride)));
  bool square = true;
  for (int row = 0; row < V::kLanes; ++row) {
    for (int column = 0; column < kStride; ++column) {
      const T expected = column < V::kLanes ? matrix[column * kStride + row] : T(0);
      square = square && turned[row * kStride + column] == expected;
    }
  }
  report(square, std::string("a square of vectors transposed, ") + type_name<T>);
}

// ---- half precision ----

// The value of a finite 16-bit number by its definition.
double value_of(uint16_t bits, int mantissa_bits, int exponent_bits) {
  const int fraction = bits & ((1 << mantissa_bits) - 1);
  const int exponent = (bits >> mantissa_bits) & ((1 << exponent_bits) - 1);
  const int bias = (1 << (exponent_bits - 1)) - 1;
  const double magnitude = exponent == 0 ? scalbn(double(fraction), 1 - bias - mantissa_bits)
                                         : scalbn(double(fraction + (1 << mantissa_bits)),
                                                  exponent - bias - mantissa_bits);
  return bits >> 15 ? -magnitude : magnitude;
}

// Finds the nearest 16-bit number by search among all of them, ties to the even one.
class SlowRounding {
 public:
  SlowRounding(int mantissa_bits, int exponent_bits)
      : infinity_(static_cast<uint16_t>(((1 << exponent_bits) - 1) << mantissa_bits)),
        values_(infinity_) {
    for (int bits = 0; bits < infinity_; ++bits) {
      values_[size_t(bits)] = value_of(static_cast<uint16_t>(bits), mantissa_bits, exponent_bits);
    }
  }
  uint16_t infinity() const { return infinity_; }

  uint16_t of(float x) const {  // x is no NaN
    const uint16_t sign = signbit(x) ? 0x8000 : 0;
    const double magnitude = fabs(double(x));
    if (isinf(x)) return sign | infinity_;
    size_t low = 0, high = values_.size() - 1;
    if (magnitude >= values_[high]) return static_cast<uint16_t>(sign | high);
    while (high - low > 1) {
      const size_t middle = (low + high) / 2;
      (values_[middle] <= magnitude ? low : high) = middle;
    }
    const double below = magnitude - values_[low], above = values_[high] - magnitude;
    const bool up = above < below || (above == below && low % 2 == 1);
    return static_cast<uint16_t>(sign | (up ? high : low));
  }

 private:
  uint16_t infinity_;
  std::vector<double> values_;
};

template <class Storage>
void check_storage(const char* name, int mantissa_bits, int exponent_bits) {
  const SlowRounding slow(mantissa_bits, exponent_bits);
  Checksum checksum;

  std::vector<Storage> all(65536);
  for (int bits = 0; bits < 65536; ++bits) all[size_t(bits)] = {static_cast<uint16_t>(bits)};
  std::vector<float> wide(65536);
  std::vector<double> wider(65536);
  convert(all.data(), wide.data(), 65536);
  convert(all.data(), wider.data(), 65536);
  bool widening = true;
  for (size_t i = 0; i < all.size(); ++i) {
    checksum.add(uint64_t{__builtin_bit_cast(uint32_t, wide[i])});  // NaN bits too
    const uint16_t magnitude = all[i].bits & 0x7fff;
    const bool negative = all[i].bits >> 15;
    double exact = value_of(all[i].bits, mantissa_bits, exponent_bits);
    if (magnitude == slow.infinity()) exact = negative ? -INFINITY : INFINITY;
    if (magnitude > slow.infinity()) exact = NAN;
    widening = widening && same(wide[i], float(exact)) && same(wider[i], exact) &&
               same(to_float(all[i]), float(exact)) && signbit(wide[i]) == negative;
  }
  report(widening, std::string(name) + " to float and double, all numbers");

  std::vector<float> numbers;
  const auto add = [&](float x) {
    for (const float y : {x, nextafterf(x, INFINITY), nextafterf(x, -INFINITY)}) {
      numbers.push_back(y);
      numbers.push_back(-y);
    }
  };
  for (int bits = 0; bits < slow.infinity(); ++bits) {
    const double here = value_of(static_cast<uint16_t>(bits), mantissa_bits, exponent_bits);
    const double next = value_of(static_cast<uint16_t>(bits + 1), mantissa_bits, exponent_bits);
    add(float(here));
    add(float(here +
              (next - here) / 2));  // halfway: exact in float, except beside the largest bfloat16
  }
  for (uint64_t bits = 0; bits < (uint64_t{1} << 32); bits += 4099) {
    numbers.push_back(__builtin_bit_cast(float, static_cast<uint32_t>(bits)));
  }
  numbers.insert(numbers.end(),
                 {INFINITY, -INFINITY, 65504.0f, 65519.0f, 65520.0f, 1e30f,
                  std::numeric_limits<float>::max(), -std::numeric_limits<float>::max()});
  while (numbers.size() % 64 != 7)
    numbers.push_back(NAN);  // an odd length: the loops' ends are checked too

  std::vector<Storage> narrow(numbers.size()), from_double(numbers.size());
  const std::vector<double> doubles(numbers.begin(), numbers.end());
  const int64_t count = int64_t(numbers.size());
  convert(numbers.data(), narrow.data(), count);
  convert(doubles.data(), from_double.data(), count);
  bool rounding = true, scalar = true;
  for (size_t i = 0; i < numbers.size(); ++i) {
    const float x = numbers[i];
    checksum.add(uint64_t{narrow[i].bits});
    if (x != x) {
      rounding = rounding && (narrow[i].bits & 0x7fff) > slow.infinity();
    } else {
      rounding = rounding && narrow[i].bits == slow.of(x);
    }
    scalar = scalar && from_float<Storage>(x).bits == narrow[i].bits &&
             (x != x || from_double[i].bits == narrow[i].bits);
  }
  report(rounding, std::string(name) + " from float: nearest even, saturating, " +
                       std::to_string(numbers.size()) + " numbers");
  report(scalar, std::string(name) + " from one float, and from double, gives the same");
  checksum.print(name);
}

// ---- dual numbers ----

// Compares both partial derivatives of f at (x, y), by scalar and by vector duals, with central
// differences.
template <class F>
void check_dual(const char* name, const F& f) {
  constexpr unsigned kX = 1, kY = 4;  // not neighbours: the set of seeds is sparse
  const double points[][2] = {{0.3, 0.7}, {1.7, 0.4}, {0.9, 2.6}, {2.2, 1.9}};
  constexpr double kStep = 1e-6;
  double worst = 0.0;
  for (const auto& [x, y] : points) {
    const auto at = [&](double a, double b) { return double(detach(f(a, b))); };
    const double expected[3] = {at(x, y), (at(x + kStep, y) - at(x - kStep, y)) / (2 * kStep),
                                (at(x, y + kStep) - at(x, y - kStep)) / (2 * kStep)};
    const auto scalar = f(seed<kX>(x), seed<kY>(y));
    const auto vector = f(seed<kX>(Vec<double>(x)), seed<kY>(Vec<double>(y)));
    const auto only_x = f(seed<kX>(x), y);
    const auto only_y = f(x, seed<kY>(y));
    const double got[][3] = {
        {detach(scalar), derivative<kX>(scalar), derivative<kY>(scalar)},
        {detach(vector)[0], derivative<kX>(vector)[0], derivative<kY>(vector)[0]},
        {detach(only_x), derivative<kX>(only_x), expected[2]},
        {detach(only_y), expected[1], derivative<kY>(only_y)},
    };
    for (const auto& row : got) {
      for (int i = 0; i < 3; ++i) {
        const double error = fabs(row[i] - expected[i]) / (1.0 + fabs(expected[i]));
        worst = error == error && error <= worst ? worst : error;
      }
    }
  }
  report(worst < 1e-8,
         std::string("dual ") + name + ": " + number(worst) + " from finite differences");
}

void check_duals() {
  // Each takes both arguments, so that both seeds pass through the operation.
  check_dual("a + b", [](auto x, auto y) { return x + y + 2.0; });
  check_dual("a - b", [](auto x, auto y) { return 1.0 - x - y; });
  check_dual("-a", [](auto x, auto y) { return -(x * y); });
  check_dual("a * b", [](auto x, auto y) { return x * y * 3.0; });
  check_dual("a / b", [](auto x, auto y) { return x / y + 2.0 / x + y / 3.0; });
  check_dual("max", [](auto x, auto y) {
    return max(x, y) + max(x * y, 1.0 * x) + max(y, decltype(detach(y))(0.5));
  });
  check_dual("min", [](auto x, auto y) {
    return min(x, y) + min(x * y, 1.0 * x) + min(y, decltype(detach(y))(0.5));
  });
  check_dual("select", [](auto x, auto y) { return select(x < y, x * y, x + y); });
  check_dual("clamp_min", [](auto x, auto y) { return clamp_min(x * y, 0.5) + clamp_min(x, 1.0); });
  check_dual("nonzero", [](auto x, auto y) { return nonzero(x * y, 0.5); });
  check_dual("square", [](auto x, auto y) { return square(x - y); });
  check_dual("abs", [](auto x, auto y) { return abs(x - y) + abs(x + y); });
  check_dual("sqrt", [](auto x, auto y) { return sqrt(x * y) + sqrt(x + y); });
  check_dual("exp", [](auto x, auto y) { return exp(x - y); });
  check_dual("log", [](auto x, auto y) { return log(x * y); });
  check_dual("log1p", [](auto x, auto y) { return log1p(x * y); });
  check_dual("atan", [](auto x, auto y) { return atan(x / y); });
  check_dual("tanh", [](auto x, auto y) { return tanh(x - y); });

  for (const double exponent : {0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0}) {
    check_dual(("power " + number(exponent)).c_str(),
               [=](auto x, auto y) { return power(x * y, exponent); });
  }
  check_dual("sigmoid", [](auto x, auto y) { return sigmoid(x - y); });
  check_dual("logistic: complement", [](auto x, auto y) { return logistic(x - y).complement; });
  check_dual("logistic: cost_if_positive",
             [](auto x, auto y) { return logistic(x - y).cost_if_positive; });
  check_dual("logistic: cost_if_negative",
             [](auto x, auto y) { return logistic(x - y).cost_if_negative; });

  // The conventions at the kinks, which finite differences cannot see.
  constexpr unsigned kX = 1, kY = 4;
  const auto x = seed<kX>(1.5);
  const auto y = seed<kY>(1.5);
  const auto tie_max = max(x, y);
  const auto tie_min = min(x, y);
  report(derivative<kX>(tie_max) == 0.5 && derivative<kY>(tie_max) == 0.5 &&
             derivative<kX>(tie_min) == 0.5 && derivative<kY>(tie_min) == 0.5,
         "dual max and min: half to each at a tie");
  report(derivative<kX>(abs(seed<kX>(0.0))) == 0.0, "dual abs: slope 0 at 0");
  report(derivative<kX>(clamp_min(x, 1.5)) == 1.0,
         "dual clamp_min: the gradient passes at the bound");
  report(detach(nonzero(seed<kX>(0.0), 0.25)) == 0.25 &&
             derivative<kX>(nonzero(seed<kX>(0.0), 0.25)) == 0.0,
         "dual nonzero: the replacement is a constant");
}

// ---- time ----

template <class T, class Function>
void print_time(const char* name, double low, double high, const Function& function) {
  using V = Vec<T>;
  constexpr int kCount = 4096;  // stays in the L1 cache
  alignas(64) static T x[kCount], result[kCount];
  Random random;
  for (T& value : x) value = T(random.uniform(low, high));
  double best = 1e30;
  for (int run = 0; run < 200; ++run) {
    const auto start = std::chrono::steady_clock::now();
    for (int i = 0; i < kCount; i += V::kLanes) function(V::load(x + i)).store(result + i);
    __asm__ volatile("" ::"r"(result) : "memory");
    const double seconds =
        std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    best = seconds < best ? seconds : best;
  }
  std::printf("%-10s %-6s %.3f ns per element\n", name, type_name<T>, best / kCount * 1e9);
}

template <class T>
void print_times() {
  print_time<T>("exp", -20, 0, [](Vec<T> x) { return exp(x); });
  print_time<T>("log", 0, 10, [](Vec<T> x) { return log(x); });
  print_time<T>("log1p", 0, 1, [](Vec<T> x) { return log1p(x); });
  print_time<T>("log1p_unit", 0, 1, [](Vec<T> x) { return log1p_unit(x); });
  print_time<T>("atan", 0, 3, [](Vec<T> x) { return atan(x); });
  print_time<T>("tanh", -3, 3, [](Vec<T> x) { return tanh(x); });
  print_time<T>("sqrt", 0, 3, [](Vec<T> x) { return sqrt(x); });
}

template <class Function>
void check_function(uint64_t stride, double float_ulps, double double_ulps) {
  sweep_float<Function>(stride, float_ulps);
  sweep_double<Function>(double_ulps);
  check_special_values<Function, float>();
  check_special_values<Function, double>();
}

int run(int argc, char** argv) {
  if (argc > 1 && std::strcmp(argv[1], "--time") == 0) {
    print_times<float>();
    print_times<double>();
    return 0;
  }
  const uint64_t stride = argc > 1 ? std::strtoull(argv[1], nullptr, 10) : 251;
  check_function<Exp>(stride, 2.0, 4.0);
  check_function<Log>(stride, 2.0, 4.0);
  check_function<Log1p>(stride, 2.0, 4.0);
  check_function<ExpNonpositive>(stride, 2.0, 4.0);
  check_function<Log1pUnit>(stride, 2.0, 4.0);
  check_function<Atan>(stride, 2.0, 4.0);
  check_function<Tanh>(stride, 2.0, 4.0);
  check_function<Sqrt>(stride, 0.5, 0.5);
  check_bounds();
  check_arithmetic<float>();
  check_arithmetic<double>();
  check_memory<float>();
  check_memory<double>();
  check_storage<Half>("float16", 10, 5);
  check_storage<BFloat16>("bfloat16", 7, 8);
  check_duals();
  std::printf("%d failed\n", failures);
  return failures == 0 ? 0 : 1;
}

}  // namespace
}  // namespace fastloss::FASTLOSS_TARGET

int main(int argc, char** argv) { return fastloss::FASTLOSS_TARGET::run(argc, argv); }
