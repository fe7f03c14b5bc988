// SPDX-License-Identifier: MIT
#include <memory>
#include <new>

#include "core/vec.h"
#include "engines/kernels.h"
#include "engines/staging.h"

// Forward and backward run on probabilities, not on their logarithms: a step is then a product of a
// vector and a matrix, K² fused multiply-adds in place of K² exponentials. Three things keep that
// as exact as logarithms:
//
// - The largest score of a step, and the largest transition, are taken out before the exponential,
//   and each step is scaled by a power of two, which rounds nothing. So a chain may be as long as
//   it likes.
// - A probability below kFloor (relative to its step) is lifted to kFloor. Lifted numbers bound the
//   true ones from above, and so do all that are computed from them. The probability of passing
//   through any of them is summed up in the backward pass: where it is negligible, nothing that
//   counts was lost.
// - Where it is not (scores that forbid for a while what they demand later), the sequence is
//   computed once more with logarithms in float64.

namespace fastloss::FASTLOSS_TARGET {
namespace {

template <class T>
constexpr T kFloor = T(0x1p-90);
template <>
constexpr double kFloor<double> = 0x1p-960;
template <class T>
constexpr T kNegligible = T(1e-7);
template <>
constexpr double kNegligible<double> = 1e-15;

constexpr int64_t kMaxChunksOfSequences = 64;
constexpr int64_t kMaxPartialBytes = int64_t{64} << 20;
constexpr int64_t kPairSteps = 64;  // steps whose pairs are summed up together, while in the cache

// Rows of tags are padded to whole vectors.
template <class T>
constexpr int64_t padded(int64_t tags) {
  return (tags + Vec<T>::kLanes - 1) / Vec<T>::kLanes * Vec<T>::kLanes;
}

// Aligned memory of one task.
template <class T>
class Buffer {
 public:
  explicit Buffer(int64_t count)
      : memory_(static_cast<T*>(::operator new(static_cast<std::size_t>(count) * sizeof(T),
                                               std::align_val_t{64}))) {}
  ~Buffer() { ::operator delete(memory_, std::align_val_t{64}); }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  T* data() const { return memory_; }

 private:
  T* memory_;
};

// Hands out pieces of a block, each of whole cache lines.
class Pieces {
 public:
  explicit Pieces(void* memory) : next_(static_cast<char*>(memory)) {}
  template <class T>
  T* take(int64_t count) {
    char* piece = next_;
    next_ += bytes<T>(count);
    return reinterpret_cast<T*>(piece);
  }
  template <class T>
  static constexpr int64_t bytes(int64_t count) {
    return (count * int64_t{sizeof(T)} + 63) / 64 * 64;
  }

 private:
  char* next_;
};

// ---- what all sequences of a call share ----

template <class T>
struct Scores {
  int64_t tags, pitch;
  const T *transitions, *start, *end;
  explicit Scores(const Chains& chains)
      : tags(chains.tags),
        pitch(padded<T>(chains.tags)),
        transitions(static_cast<const T*>(chains.transitions)),
        start(static_cast<const T*>(chains.start)),
        end(static_cast<const T*>(chains.end)) {}

  T start_of(int64_t tag) const { return start ? start[tag] : T(0); }
  T end_of(int64_t tag) const { return end ? end[tag] : T(0); }
};

// How many steps of each sequence count.
void count_steps(const Chains& chains, int64_t* lengths) {
  for (int64_t b = 0; b < chains.sequences; ++b) {
    if (!chains.mask) {
      lengths[b] = chains.steps;
      continue;
    }
    const int64_t row = b * chains.mask_stride[0], step = chains.mask_stride[1];
    const auto counts = [&](int64_t t) { return load_integer(chains.mask, row + t * step) != 0; };
    int64_t length = 0;
    while (length < chains.steps && counts(length)) ++length;
    if (length == 0) throw MaskNotPrefix{b, 0};
    for (int64_t t = length + 1; t < chains.steps; ++t) {
      if (counts(t)) throw MaskNotPrefix{b, t};
    }
    lengths[b] = length;
  }
}

template <class T>
void read_emissions(const Chains& chains, int64_t sequence, int64_t step, T* row) {
  const int64_t* stride = chains.emission_stride;
  const int64_t offset = sequence * stride[0] + step * stride[1];
  if (chains.emissions.dtype == dtype_of<T> && stride[2] == 1) {
    copy(row, static_cast<const T*>(chains.emissions.data) + offset, chains.tags);
  } else {
    load_strided(row, 1, chains.emissions, offset, stride[2], chains.tags);
  }
}

template <class T>
void write_gradient(const CrfArguments& arguments, int64_t sequence, int64_t step, const T* row) {
  const int64_t* stride = arguments.gradient_stride;
  const int64_t offset = sequence * stride[0] + step * stride[1];
  if (arguments.emission_gradient.dtype == dtype_of<T> && stride[2] == 1) {
    copy(static_cast<T*>(arguments.emission_gradient.data) + offset, row, arguments.chains.tags);
  } else {
    store_strided(arguments.emission_gradient, offset, stride[2], row, 1, arguments.chains.tags);
  }
}

// ---- small linear algebra on padded rows ----

// out[j] = Σ_i weights[i] · matrix[i][j] for kVectors vectors of columns.
template <int kVectors, class T>
FASTLOSS_INLINE void multiply_columns(const T* weights, const T* matrix, int64_t pitch,
                                      int64_t rows, T* out) {
  using V = Vec<T>;
  // Enough independent sums that none waits for the one before.
  constexpr int kParts = 8 / kVectors;
  V sum[kParts * kVectors];
#pragma GCC unroll 8
  for (int k = 0; k < kParts * kVectors; ++k) sum[k] = V(0);
  int64_t i = 0;
  for (; i + kParts <= rows; i += kParts) {
#pragma GCC unroll 8
    for (int k = 0; k < kParts * kVectors; ++k) {
      const int64_t row = i + k / kVectors;
      sum[k] += V(weights[row]) * V::load(matrix + row * pitch + k % kVectors * V::kLanes);
    }
  }
  for (; i < rows; ++i) {
#pragma GCC unroll 8
    for (int k = 0; k < kVectors; ++k)
      sum[k] += V(weights[i]) * V::load(matrix + i * pitch + k * V::kLanes);
  }
#pragma GCC unroll 8
  for (int k = (kParts - 1) * kVectors - 1; k >= 0; --k) sum[k] += sum[k + kVectors];
#pragma GCC unroll 8
  for (int k = 0; k < kVectors; ++k) sum[k].store(out + k * V::kLanes);
}

template <class T>
void multiply(const T* weights, const T* matrix, int64_t pitch, int64_t rows, T* out) {
  constexpr int64_t kLanes = Vec<T>::kLanes;
  int64_t j = 0;
  for (; j + 4 * kLanes <= pitch; j += 4 * kLanes)
    multiply_columns<4>(weights, matrix + j, pitch, rows, out + j);
  for (; j + 2 * kLanes <= pitch; j += 2 * kLanes)
    multiply_columns<2>(weights, matrix + j, pitch, rows, out + j);
  if (j < pitch) multiply_columns<1>(weights, matrix + j, pitch, rows, out + j);
}

// sums[i][j] += Σ_s left[s][i] · right[s][j] for kRows rows and kVectors vectors of columns.
template <int kRows, int kVectors, class T>
FASTLOSS_INLINE void add_tile(const T* left, const T* right, int64_t pitch, int64_t steps, T* sums) {
  using V = Vec<T>;
  V sum[kRows * kVectors];
#pragma GCC unroll 8
  for (int k = 0; k < kRows * kVectors; ++k) sum[k] = V(0);
  for (int64_t s = 0; s < steps; ++s) {
#pragma GCC unroll 8
    for (int k = 0; k < kRows * kVectors; ++k) {
      sum[k] += V(left[s * pitch + k / kVectors]) *
                V::load(right + s * pitch + k % kVectors * V::kLanes);
    }
  }
#pragma GCC unroll 8
  for (int k = 0; k < kRows * kVectors; ++k) {
    T* target = sums + k / kVectors * pitch + k % kVectors * V::kLanes;
    (V::load(target) + sum[k]).store(target);
  }
}

template <int kVectors, class T>
void add_columns_of_products(const T* left, const T* right, int64_t pitch, int64_t steps,
                             int64_t rows, T* sums) {
  int64_t i = 0;
  for (; i + 4 <= rows; i += 4)
    add_tile<4, kVectors>(left + i, right, pitch, steps, sums + i * pitch);
  for (; i < rows; ++i) add_tile<1, kVectors>(left + i, right, pitch, steps, sums + i * pitch);
}

template <class T>
void add_products(const T* left, const T* right, int64_t pitch, int64_t steps, int64_t rows,
                  T* sums) {
  constexpr int64_t kLanes = Vec<T>::kLanes;
  int64_t j = 0;
  for (; j + 2 * kLanes <= pitch; j += 2 * kLanes)
    add_columns_of_products<2>(left, right + j, pitch, steps, rows, sums + j);
  if (j < pitch) add_columns_of_products<1>(left, right + j, pitch, steps, rows, sums + j);
}

template <class T>
void fill(T* out, T value, int64_t count) {
  for (int64_t i = 0; i < count; ++i) out[i] = value;
}

// The power of two of a positive number is added to `exponent`; returns one over it.
FASTLOSS_INLINE float take_exponent(float x, int64_t& exponent) {
  const uint32_t biased = __builtin_bit_cast(uint32_t, x) >> 23;
  exponent += int64_t{biased} - 127;
  return __builtin_bit_cast(float, (254 - biased) << 23);
}
FASTLOSS_INLINE double take_exponent(double x, int64_t& exponent) {
  const uint64_t biased = __builtin_bit_cast(uint64_t, x) >> 52;
  exponent += static_cast<int64_t>(biased) - 1023;
  return __builtin_bit_cast(double, (2046 - biased) << 52);
}

// ---- the sum over all paths ----

// The factors of all transitions, e^(transition - largest): rows by the tag before, and by the tag
// after.
template <class T>
struct Factors {
  T largest;
  T *forth, *back;  // [K, pitch]
  T* floor;         // [pitch], 0 in the padding

  static int64_t bytes(int64_t tags) {
    return 2 * Pieces::bytes<T>(tags * padded<T>(tags)) + Pieces::bytes<T>(padded<T>(tags));
  }

  Factors(const Scores<T>& scores, Pieces& pieces)
      : forth(pieces.take<T>(scores.tags * scores.pitch)),
        back(pieces.take<T>(scores.tags * scores.pitch)),
        floor(pieces.take<T>(scores.pitch)) {
    using V = Vec<T>;
    const int64_t tags = scores.tags, pitch = scores.pitch;
    largest = scores.transitions[0];
    for (int64_t i = 1; i < tags * tags; ++i)
      largest = scores.transitions[i] > largest ? scores.transitions[i] : largest;
    for (int64_t i = 0; i < tags; ++i) {
      T* row = forth + i * pitch;
      copy(row, scores.transitions + i * tags, tags);
      fill(row + tags, -lanes::kInfinity<T>, pitch - tags);
      for (int64_t j = 0; j < pitch; j += V::kLanes)
        exp(V::load(row + j) - V(largest)).store(row + j);
    }
    for (int64_t j = 0; j < tags; ++j) {
      for (int64_t i = 0; i < tags; ++i) back[j * pitch + i] = forth[i * pitch + j];
      fill(back + j * pitch + tags, T(0), pitch - tags);
    }
    fill(floor, kFloor<T>, tags);
    fill(floor + tags, T(0), pitch - tags);
  }
};

// Where gradients of transitions, start and end are summed up: one for each chunk of sequences.
template <class T>
struct Partial {
  T* transitions;  // [K, pitch]; null: not wanted
  T* start;        // [pitch]
  T* end;          // [pitch]

  static int64_t bytes(int64_t tags) { return Pieces::bytes<T>((tags + 2) * padded<T>(tags)); }

  Partial(T* memory, const Scores<T>& scores)
      : transitions(memory),
        start(memory + scores.tags * scores.pitch),
        end(start + scores.pitch) {}
};

inline int64_t chunks_of(int64_t sequences, int64_t partial_bytes) {
  const int64_t affordable = kMaxPartialBytes / partial_bytes;
  const int64_t most = affordable < kMaxChunksOfSequences ? affordable : kMaxChunksOfSequences;
  return sequences < most ? sequences : most > 1 ? most : 1;
}

// One task's view of the call, and its room for one sequence at a time.
template <class T>
class Chain {
 public:
  Chain(const CrfArguments& arguments, const Scores<T>& scores, const Factors<T>& factors,
        Partial<T> partial, FirstBadLabel& bad)
      : arguments_(arguments),
        scores_(scores),
        factors_(factors),
        partial_(partial),
        bad_(bad),
        memory_((2 * arguments.chains.steps + 5 + scores.tags) * scores.pitch),
        scale_(arguments.chains.steps),
        labels_(arguments.chains.steps) {
    potential_ = memory_.data();
    prefix_ = potential_ + arguments.chains.steps * scores.pitch;
    row_ = prefix_ + arguments.chains.steps * scores.pitch;
    suffix_ = row_ + scores.pitch;
    carry_ = suffix_ + scores.pitch;
    first_ = carry_ + scores.pitch;
    last_ = first_ + scores.pitch;
    pairs_ = last_ + scores.pitch;
  }

  // Returns the sequence's loss; its gradients are multiplied with `weight`.
  double run(int64_t sequence, int64_t length, T weight) {
    using V = Vec<T>;
    sequence_ = sequence;
    length_ = length;
    weight_ = weight;
    read_labels();
    const double score = prepare();
    double loss = sweep_forth() - score;
    const bool wants_gradient = arguments_.emission_gradient || arguments_.transitions_gradient ||
                                arguments_.start_gradient || arguments_.end_gradient;
    if (wants_gradient || any(lifted_)) {
      const T doubtful = wants_gradient ? sweep_back<true>() : sweep_back<false>();
      if (!(doubtful <= kNegligible<T>)) {
        loss = run_in_logarithms(wants_gradient) - score;
      } else if (wants_gradient && arguments_.transitions_gradient) {
        for (int64_t i = 0; i < scores_.tags * scores_.pitch; i += V::kLanes) {
          (V::load(partial_.transitions + i) +
           V(weight) * (V::load(factors_.forth + i) * V::load(pairs_ + i)))
              .store(partial_.transitions + i);
        }
      }
    }
    if (wants_gradient) {
      for (int64_t j = 0; j < scores_.tags; ++j) {
        partial_.start[j] += first_[j];
        partial_.end[j] += last_[j];
      }
      if (arguments_.emission_gradient) clear_the_rest();
      if (arguments_.labels) subtract_the_labels_pairs();
    }
    return loss;
  }

 private:
  T* potential(int64_t step) const { return potential_ + step * scores_.pitch; }
  T* prefix(int64_t step) const { return prefix_ + step * scores_.pitch; }
  int64_t label(int64_t step) const { return labels_.data()[step]; }

  void read_labels() {
    if (!arguments_.labels) return;
    load_integers(labels_.data(), arguments_.labels, sequence_ * arguments_.label_stride[0],
                  arguments_.label_stride[1], length_);
    for (int64_t t = 0; t < length_; ++t) {
      int64_t& label = labels_.data()[t];
      if (label >= 0 && label < scores_.tags) continue;
      bad_.note(sequence_ * arguments_.chains.steps + t, label);
      label = 0;  // goes on with anything that exists
    }
  }

  // Turns scores into factors: e^(score - the step's largest). Returns the score of the labels.
  double prepare() {
    using V = Vec<T>;
    const bool labelled = bool(arguments_.labels);
    const int64_t tags = scores_.tags, pitch = scores_.pitch;
    double score = 0.0;
    offset_ = double(length_ - 1) * double(factors_.largest);
    for (int64_t t = 0; t < length_; ++t) {
      T* row = potential(t);
      read_emissions(arguments_.chains, sequence_, t, row);
      if (t == 0 && scores_.start) {
        for (int64_t j = 0; j < tags; ++j) row[j] += scores_.start[j];
      }
      if (t == length_ - 1 && scores_.end) {
        for (int64_t j = 0; j < tags; ++j) row[j] += scores_.end[j];
      }
      // After the additions: what they rounded cancels in the loss.
      if (labelled) {
        score += double(row[label(t)]);
        if (t > 0) score += double(scores_.transitions[label(t - 1) * tags + label(t)]);
      }
      fill(row + tags, -lanes::kInfinity<T>, pitch - tags);
      V most(row[0]);
      for (int64_t j = 0; j < pitch; j += V::kLanes) most = max(most, V::load(row + j));
      const T largest = most.largest();
      offset_ += double(largest);
      for (int64_t j = 0; j < pitch; j += V::kLanes)
        exp(V::load(row + j) - V(largest)).store(row + j);
    }
    return score;
  }

  // Fills prefix(t)[j], the sum over all paths that end at step t with tag j, and returns the
  // logarithm of the sum over all paths.
  double sweep_forth() {
    using V = Vec<T>;
    const int64_t pitch = scores_.pitch;
    int64_t exponent = 0;
    lifted_ = V(0) != V(0);
    V total(0);
    for (int64_t j = 0; j < pitch; j += V::kLanes) {
      const V lowest = V::load(factors_.floor + j), value = V::load(potential(0) + j);
      lifted_ = lifted_ | (value < lowest);
      const V lifted = max(value, lowest);
      lifted.store(prefix(0) + j);
      total += lifted;
    }
    for (int64_t t = 1; t < length_; ++t) {
      multiply(prefix(t - 1), factors_.forth, pitch, scores_.tags, row_);
      const V scale(scale_.data()[t] = take_exponent(total.sum(), exponent));
      total = V(0);
      for (int64_t j = 0; j < pitch; j += V::kLanes) {
        const V lowest = V::load(factors_.floor + j);
        const V value = V::load(row_ + j) * (scale * V::load(potential(t) + j));
        lifted_ = lifted_ | (value < lowest);
        const V lifted = max(value, lowest);
        lifted.store(prefix(t) + j);
        total += lifted;
      }
    }
    constexpr double kLn2 = 0.69314718055994530942;
    last_total_ = total.sum();
    return offset_ + double(exponent) * kLn2 + log(double(last_total_));
  }

  // The sums over all paths that go on from a tag, step by step from the end: with prefix() the
  // probabilities of tags and of pairs. Returns the probability that a lifted number is involved.
  template <bool kGradient>
  T sweep_back() {
    using V = Vec<T>;
    const int64_t pitch = scores_.pitch;
    const bool wants_pairs = kGradient && arguments_.transitions_gradient != nullptr;
    if (wants_pairs) fill(pairs_, T(0), scores_.tags * pitch);
    V doubtful(0), total(0);
    fill(suffix_, T(1) / last_total_, pitch);
    for (int64_t j = 0; j < pitch; j += V::kLanes)
      total += V::load(suffix_ + j) * V::load(prefix(length_ - 1) + j);
    int64_t pairs_end = length_;
    for (int64_t t = length_ - 1;; --t) {
      // `total` is 1 but for rounding.
      const V norm(T(1) / total.sum());
      for (int64_t j = 0; j < pitch; j += V::kLanes) {
        const V before = V::load(prefix(t) + j), after = V::load(suffix_ + j);
        const V lowest = V::load(factors_.floor + j);
        const V probability = before * after * norm;
        doubtful += select((before <= lowest) | (after <= lowest), probability, V(0));
        if (kGradient) (V(weight_) * probability).store(row_ + j);
      }
      if (kGradient) hand_out(t, row_);
      if (wants_pairs && t + 1 < length_) {
        // The pairs of t and t + 1 wait in potential(t + 1) for their norm.
        for (int64_t j = 0; j < pitch; j += V::kLanes)
          (V::load(potential(t + 1) + j) * norm).store(potential(t + 1) + j);
        if (pairs_end - (t + 1) == kPairSteps || t == 0) {
          add_products(prefix(t), potential(t + 1), pitch, pairs_end - (t + 1), scores_.tags,
                       pairs_);
          pairs_end = t + 1;
        }
      }
      if (t == 0) return doubtful.sum();
      const V scale(scale_.data()[t]);
      for (int64_t j = 0; j < pitch; j += V::kLanes) {
        const V onward = V::load(suffix_ + j) * scale * V::load(potential(t) + j);
        onward.store(potential(t) + j);
      }
      multiply(potential(t), factors_.back, pitch, scores_.tags, carry_);
      total = V(0);
      for (int64_t j = 0; j < pitch; j += V::kLanes) {
        const V lifted = max(V::load(carry_ + j), V::load(factors_.floor + j));
        lifted.store(suffix_ + j);
        total += lifted * V::load(prefix(t - 1) + j);
      }
    }
  }

  // A step's probabilities, times weight: less the label they are the gradient of the emissions.
  void hand_out(int64_t step, T* row) {
    if (arguments_.labels) row[label(step)] -= weight_;
    if (arguments_.emission_gradient) write_gradient(arguments_, sequence_, step, row);
    if (step == 0) copy(first_, row, scores_.tags);
    if (step == length_ - 1) copy(last_, row, scores_.tags);
  }

  void clear_the_rest() {
    fill(row_, T(0), scores_.tags);
    for (int64_t t = length_; t < arguments_.chains.steps; ++t)
      write_gradient(arguments_, sequence_, t, row_);
  }

  void subtract_the_labels_pairs() {
    if (!arguments_.transitions_gradient) return;
    for (int64_t t = 1; t < length_; ++t)
      partial_.transitions[label(t - 1) * scores_.pitch + label(t)] -= weight_;
  }

  // The same in float64 by logarithms, K² exponentials a step. Returns the logarithm of the sum
  // over all paths.
  [[gnu::noinline]] double run_in_logarithms(bool wants_gradient) {
    using V = Vec<double>;
    const int64_t tags = scores_.tags, pitch = padded<double>(tags), steps = length_;
    Buffer<double> memory((2 * steps + 4 + 3 * tags) * pitch);
    double* score = memory.data();             // [steps, pitch]
    double* prefix = score + steps * pitch;    // [steps, pitch]
    double* suffix = prefix + steps * pitch;   // [pitch]
    double* onward = suffix + pitch;           // [pitch]
    double* probability = onward + pitch;      // [pitch]
    double* forth = probability + 2 * pitch;   // [tags, pitch]
    double* back = forth + tags * pitch;       // [tags, pitch]
    double* pairs = back + tags * pitch;       // [tags, pitch]
    constexpr double kNever = -lanes::kInfinity<double>;
    fill(forth, kNever, 2 * tags * pitch);
    fill(pairs, 0.0, tags * pitch);
    for (int64_t i = 0; i < tags; ++i) {
      for (int64_t j = 0; j < tags; ++j) {
        forth[i * pitch + j] = back[j * pitch + i] = double(scores_.transitions[i * tags + j]);
      }
    }
    // out[j] = log Σ_i e^(row[i] + matrix[i][j])
    const auto log_multiply = [&](const double* row, const double* matrix, double* out) {
      for (int64_t j = 0; j < pitch; j += V::kLanes) {
        V most(-0x1.fffffffffffffp1023);  // not -∞: the difference of two of them would be NaN
        for (int64_t i = 0; i < tags; ++i)
          most = max(most, V(row[i]) + V::load(matrix + i * pitch + j));
        V sum(0);
        for (int64_t i = 0; i < tags; ++i)
          sum += exp(V(row[i]) + V::load(matrix + i * pitch + j) - most);
        (most + log(sum)).store(out + j);
      }
    };
    for (int64_t t = 0; t < steps; ++t) {
      double* row = score + t * pitch;
      read_emissions(arguments_.chains, sequence_, t, row);
      for (int64_t j = 0; j < tags; ++j) {
        if (t == 0) row[j] += double(scores_.start_of(j));
        if (t == steps - 1) row[j] += double(scores_.end_of(j));
      }
      fill(row + tags, 0.0, pitch - tags);
      double* sums = prefix + t * pitch;
      if (t == 0) {
        copy(sums, row, tags);
      } else {
        log_multiply(sums - pitch, forth, sums);
        for (int64_t j = 0; j < tags; ++j) sums[j] += row[j];
      }
      fill(sums + tags, kNever, pitch - tags);
    }
    const double* last = prefix + (steps - 1) * pitch;
    double most = last[0], sum = 0.0;
    for (int64_t j = 1; j < tags; ++j) most = max(most, last[j]);
    for (int64_t j = 0; j < tags; ++j) sum += exp(last[j] - most);
    const double total = most + log(sum);
    if (!wants_gradient) return total;

    fill(suffix, 0.0, pitch);
    for (int64_t t = steps - 1;; --t) {
      const double* sums = prefix + t * pitch;
      for (int64_t j = 0; j < pitch; j += V::kLanes)
        exp(V::load(sums + j) + V::load(suffix + j) - V(total)).store(probability + j);
      for (int64_t j = 0; j < tags; ++j) row_[j] = weight_ * T(probability[j]);
      hand_out(t, row_);
      if (t == 0) break;
      for (int64_t j = 0; j < pitch; ++j) onward[j] = suffix[j] + score[t * pitch + j];
      if (arguments_.transitions_gradient) {
        for (int64_t i = 0; i < tags; ++i) {
          const V before(sums[i - pitch] - total);
          for (int64_t j = 0; j < pitch; j += V::kLanes) {
            double* pair = pairs + i * pitch + j;
            (V::load(pair) + exp(before + V::load(forth + i * pitch + j) + V::load(onward + j)))
                .store(pair);
          }
        }
      }
      log_multiply(onward, back, suffix);
      fill(suffix + tags, kNever, pitch - tags);
    }
    if (arguments_.transitions_gradient) {
      for (int64_t i = 0; i < tags; ++i) {
        for (int64_t j = 0; j < tags; ++j)
          partial_.transitions[i * scores_.pitch + j] += weight_ * T(pairs[i * pitch + j]);
      }
    }
    return total;
  }

  const CrfArguments& arguments_;
  const Scores<T>& scores_;
  const Factors<T>& factors_;
  const Partial<T> partial_;
  FirstBadLabel& bad_;
  Buffer<T> memory_;
  T *potential_, *prefix_;         // [T, pitch]
  T *row_, *suffix_, *carry_;      // [pitch]
  T *first_, *last_;               // [pitch]: the gradients of the first and the last step
  T* pairs_;                       // [K, pitch]
  Buffer<T> scale_;                // [T]: powers of two
  Buffer<int64_t> labels_;         // [T]
  int64_t sequence_ = 0, length_ = 0;
  T weight_ = T(1), last_total_ = T(0);
  double offset_ = 0.0;
  Mask<T> lifted_{};
};

template <class T>
int64_t crf_scratch_typed(const CrfArguments& arguments) {
  const Chains& chains = arguments.chains;
  const int64_t partial = Partial<T>::bytes(chains.tags);
  return 2 * Pieces::bytes<double>(chains.sequences) + Factors<T>::bytes(chains.tags) +
         chunks_of(chains.sequences, partial) * partial;
}

// Adds up the partial sums of all chunks, in their order.
template <class T>
void add_partials(const T* first, int64_t chunks, int64_t step, T* out, int64_t rows, int64_t pitch,
                  int64_t columns) {
  if (out == nullptr) return;
  for (int64_t i = 0; i < rows; ++i) {
    for (int64_t j = 0; j < columns; ++j) {
      T sum(0);
      for (int64_t c = 0; c < chunks; ++c) sum += first[c * step + i * pitch + j];
      out[i * columns + j] = sum;
    }
  }
}

template <class T>
void run_crf(const CrfArguments& arguments, const Execution& execution) {
  const Chains& chains = arguments.chains;
  const Scores<T> scores(chains);
  Pieces pieces(arguments.scratch);
  auto* lengths = pieces.take<int64_t>(chains.sequences);
  auto* losses = pieces.take<double>(chains.sequences);
  const Factors<T> factors(scores, pieces);
  count_steps(chains, lengths);

  double tokens = 0.0;
  for (int64_t b = 0; b < chains.sequences; ++b) tokens += double(lengths[b]);
  const SequenceReduction reduction = arguments.reduction;
  const double factor = reduction == SequenceReduction::kMean        ? 1.0 / double(chains.sequences)
                        : reduction == SequenceReduction::kTokenMean ? 1.0 / tokens
                                                                     : 1.0;
  const T gradient_factor = arguments.defers_mean ? T(1) : T(factor);
  const auto* upstream = static_cast<const T*>(arguments.upstream);

  const int64_t partial_bytes = Partial<T>::bytes(chains.tags);
  const int64_t chunks = chunks_of(chains.sequences, partial_bytes);
  const int64_t partial_step = partial_bytes / int64_t{sizeof(T)};
  T* partials = pieces.take<T>(chunks * partial_step);
  FirstBadLabel bad;
  struct Context {
    const CrfArguments& arguments;
    const Scores<T>& scores;
    const Factors<T>& factors;
    FirstBadLabel& bad;
    const int64_t* lengths;
    double* losses;
    const T* upstream;
    T gradient_factor;
    T* partials;
    int64_t partial_step, chunks;
  } context{arguments, scores,          factors,  bad,          lengths, losses,
            upstream,  gradient_factor, partials, partial_step, chunks};
  const auto task = [](void* pointer, int64_t chunk) {
    const auto& self = *static_cast<const Context*>(pointer);
    T* memory = self.partials + chunk * self.partial_step;
    fill(memory, T(0), self.partial_step);
    Chain<T> chain(self.arguments, self.scores, self.factors, Partial<T>(memory, self.scores),
                   self.bad);
    const int64_t sequences = self.arguments.chains.sequences;
    for (int64_t b = chunk * sequences / self.chunks; b < (chunk + 1) * sequences / self.chunks;
         ++b) {
      const T weight = self.gradient_factor * (self.upstream ? self.upstream[b] : T(1));
      self.losses[b] = chain.run(b, self.lengths[b], weight);
    }
  };
  execution.parallel.run(chunks, task, &context);
  bad.throw_if_any(chains.tags - 1);

  double sum = 0.0;
  for (int64_t b = 0; b < chains.sequences; ++b) {
    sum += losses[b];
    if (arguments.loss_output.values)
      static_cast<T*>(arguments.loss_output.values)[b] = T(losses[b]);
  }
  if (arguments.loss_output.total) *static_cast<T*>(arguments.loss_output.total) = T(sum * factor);

  const Partial<T> first(partials, scores);
  const int64_t tags = scores.tags, pitch = scores.pitch;
  add_partials(first.transitions, chunks, partial_step,
               static_cast<T*>(arguments.transitions_gradient), tags, pitch, tags);
  add_partials(first.start, chunks, partial_step, static_cast<T*>(arguments.start_gradient), 1,
               pitch, tags);
  add_partials(first.end, chunks, partial_step, static_cast<T*>(arguments.end_gradient), 1, pitch,
               tags);
}

// ---- the best path ----

// The transitions, padded so that no path leads into the padding: rows by the tag before, and by the
// tag after.
template <class T>
struct Steps {
  T *forth, *back;  // [K, pitch]

  static int64_t bytes(int64_t tags) { return 2 * Pieces::bytes<T>(tags * padded<T>(tags)); }

  Steps(const Scores<T>& scores, Pieces& pieces)
      : forth(pieces.take<T>(scores.tags * scores.pitch)),
        back(pieces.take<T>(scores.tags * scores.pitch)) {
    const int64_t tags = scores.tags, pitch = scores.pitch;
    fill(forth, -lanes::kInfinity<T>, tags * pitch);
    fill(back, -lanes::kInfinity<T>, tags * pitch);
    for (int64_t i = 0; i < tags; ++i) {
      for (int64_t j = 0; j < tags; ++j)
        forth[i * pitch + j] = back[j * pitch + i] = scores.transitions[i * tags + j];
    }
  }
};

// out[j] = max_i(row[i] + matrix[i][j]) for kVectors vectors of columns.
template <int kVectors, class T>
FASTLOSS_INLINE void best_of_columns(const T* row, const T* matrix, int64_t pitch, int64_t rows,
                                     T* out) {
  using V = Vec<T>;
  constexpr int kParts = 8 / kVectors;
  V best[kParts * kVectors];
  const auto join = [](V a, V b) { return select(a > b, a, b); };
#pragma GCC unroll 8
  for (int k = 0; k < kParts * kVectors; ++k) best[k] = V(-lanes::kInfinity<T>);
  int64_t i = 0;
  for (; i + kParts <= rows; i += kParts) {
#pragma GCC unroll 8
    for (int k = 0; k < kParts * kVectors; ++k) {
      const int64_t from = i + k / kVectors;
      best[k] = join(V(row[from]) + V::load(matrix + from * pitch + k % kVectors * V::kLanes),
                     best[k]);
    }
  }
  for (; i < rows; ++i) {
#pragma GCC unroll 8
    for (int k = 0; k < kVectors; ++k)
      best[k] = join(V(row[i]) + V::load(matrix + i * pitch + k * V::kLanes), best[k]);
  }
#pragma GCC unroll 8
  for (int k = (kParts - 1) * kVectors - 1; k >= 0; --k)
    best[k] = join(best[k], best[k + kVectors]);
#pragma GCC unroll 8
  for (int k = 0; k < kVectors; ++k) best[k].store(out + k * V::kLanes);
}

template <class T>
void best_of(const T* row, const T* matrix, int64_t pitch, int64_t rows, T* out) {
  constexpr int64_t kLanes = Vec<T>::kLanes;
  int64_t j = 0;
  for (; j + 4 * kLanes <= pitch; j += 4 * kLanes)
    best_of_columns<4>(row, matrix + j, pitch, rows, out + j);
  for (; j + 2 * kLanes <= pitch; j += 2 * kLanes)
    best_of_columns<2>(row, matrix + j, pitch, rows, out + j);
  if (j < pitch) best_of_columns<1>(row, matrix + j, pitch, rows, out + j);
}

// The first of the largest numbers.
template <class T>
int64_t first_largest(const T* row, int64_t pitch, int64_t count) {
  using V = Vec<T>;
  V most(row[0]);
  for (int64_t j = 0; j < pitch; j += V::kLanes) most = max(most, V::load(row + j));
  const T largest = most.largest();
  for (int64_t j = 0; j < count; ++j) {
    if (row[j] == largest) return j;
  }
  return 0;  // NaN
}

// No pointers back are kept: along the best path they are found again from the scores, K additions a
// step, where keeping them would add two operations to each of the K² of the way forth.
template <class T>
void decode_sequence(const DecodeArguments& arguments, const Scores<T>& scores,
                     const Steps<T>& steps, int64_t sequence, int64_t length, T* memory) {
  using V = Vec<T>;
  const int64_t tags = scores.tags, pitch = scores.pitch;
  T* row = memory;            // [pitch]
  T* best = memory + pitch;   // [T, pitch]: less the largest of the step before
  fill(row, T(0), pitch);
  T largest(0);
  for (int64_t t = 0; t < length; ++t) {
    T* now = best + t * pitch;
    read_emissions(arguments.chains, sequence, t, row);
    if (t == 0) {
      for (int64_t j = 0; j < tags; ++j) now[j] = row[j] + scores.start_of(j);
      fill(now + tags, -lanes::kInfinity<T>, pitch - tags);
    } else {
      best_of(now - pitch, steps.forth, pitch, tags, now);
      for (int64_t j = 0; j < pitch; j += V::kLanes)
        ((V::load(now + j) - V(largest)) + V::load(row + j)).store(now + j);
    }
    if (t == length - 1 && scores.end) {
      for (int64_t j = 0; j < tags; ++j) now[j] += scores.end[j];
    }
    V most(now[0]);
    for (int64_t j = 0; j < pitch; j += V::kLanes) most = max(most, V::load(now + j));
    largest = most.largest();
  }

  int64_t* out = arguments.tags + sequence * arguments.chains.steps;
  fill(out + length, int64_t{-1}, arguments.chains.steps - length);
  int64_t tag = first_largest(best + (length - 1) * pitch, pitch, tags);
  out[length - 1] = tag;
  // The score is added up anew, in float64: that of a long sequence would have lost its digits.
  double score = double(scores.end_of(tag));
  for (int64_t t = length - 1;; --t) {
    read_emissions(arguments.chains, sequence, t, row);
    score += double(row[tag]);
    if (t == 0) break;
    for (int64_t j = 0; j < pitch; j += V::kLanes)
      (V::load(best + (t - 1) * pitch + j) + V::load(steps.back + tag * pitch + j)).store(row + j);
    const int64_t before = first_largest(row, pitch, tags);
    fill(row + tags, T(0), pitch - tags);
    score += double(scores.transitions[before * tags + tag]);
    out[t - 1] = tag = before;
  }
  score += double(scores.start_of(tag));
  static_cast<T*>(arguments.scores)[sequence] = T(score);
}

template <class T>
int64_t decode_scratch_typed(const DecodeArguments& arguments) {
  return Pieces::bytes<int64_t>(arguments.chains.sequences) + Steps<T>::bytes(arguments.chains.tags);
}

template <class T>
void run_decode(const DecodeArguments& arguments, const Execution& execution) {
  const Chains& chains = arguments.chains;
  const Scores<T> scores(chains);
  Pieces pieces(arguments.scratch);
  auto* lengths = pieces.take<int64_t>(chains.sequences);
  const Steps<T> steps(scores, pieces);
  count_steps(chains, lengths);
  sum_over_chunks(execution, chains.sequences, 1, [&](int64_t begin, int64_t end) {
    const Buffer<T> memory((chains.steps + 1) * scores.pitch);
    for (int64_t b = begin; b < end; ++b)
      decode_sequence(arguments, scores, steps, b, lengths[b], memory.data());
    return 0.0;
  });
}

}  // namespace

int64_t crf_scratch(const CrfArguments& arguments) {
  return arguments.chains.is_double ? crf_scratch_typed<double>(arguments)
                                    : crf_scratch_typed<float>(arguments);
}

void crf(const CrfArguments& arguments, const Execution& execution) {
  if (arguments.chains.is_double) {
    run_crf<double>(arguments, execution);
  } else {
    run_crf<float>(arguments, execution);
  }
}

int64_t decode_scratch(const DecodeArguments& arguments) {
  return arguments.chains.is_double ? decode_scratch_typed<double>(arguments)
                                    : decode_scratch_typed<float>(arguments);
}

void decode(const DecodeArguments& arguments, const Execution& execution) {
  if (arguments.chains.is_double) {
    run_decode<double>(arguments, execution);
  } else {
    run_decode<float>(arguments, execution);
  }
}

}  // namespace fastloss::FASTLOSS_TARGET
