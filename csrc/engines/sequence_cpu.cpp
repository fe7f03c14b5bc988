// SPDX-License-Identifier: MIT
#include <array>
#include <new>

#include "core/vec.h"
#include "engines/chain.h"
#include "engines/kernels.h"
#include "engines/labels.h"
#include "engines/staging.h"

namespace fastloss::FASTLOSS_TARGET {
namespace {

constexpr int64_t kMaxTasks = 64;
constexpr int64_t kMaxPartialBytes = int64_t{64} << 20;
// Pairs are summed up over so many steps at a time: short sums keep more digits.
constexpr int64_t kBlockSteps = 64;

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
      : memory_(static_cast<T*>(
            ::operator new(static_cast<std::size_t>(count) * sizeof(T), std::align_val_t{64}))) {}
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

// How a row and a matrix make a row: the sum over all paths, and the best one.
struct SumOfProducts {
  template <class V>
  static FASTLOSS_INLINE V nothing() {
    return V(0);
  }
  template <class V>
  static FASTLOSS_INLINE V join(V sum, V weight, V entry) {
    return sum + weight * entry;
  }
  template <class V>
  static FASTLOSS_INLINE V merge(V a, V b) {
    return a + b;
  }
};
struct LargestSum {
  template <class V>
  static FASTLOSS_INLINE V nothing() {
    return V(-lanes::kInfinity<scalar_of<V>>);
  }
  template <class V>
  static FASTLOSS_INLINE V join(V largest, V weight, V entry) {
    return larger(weight + entry, largest);
  }
  template <class V>
  static FASTLOSS_INLINE V merge(V a, V b) {
    return larger(a, b);
  }
};

// The sequences of a group go step by step together: each entry of the matrix is loaded once for
// all of them, and while one waits for its last result the others have work.
constexpr int kGroup = 4;
template <class T>
using Rows = T* [kGroup];

// kVectors vectors of columns of the products of kSequences rows with one matrix.
template <class Product, int kSequences, int kVectors, class T>
FASTLOSS_INLINE void multiply_columns(const Rows<T>& rows, const T* matrix, int64_t pitch,
                                      int64_t count, const Rows<T>& out, int64_t column) {
  using V = Vec<T>;
  constexpr int kSums = kSequences * kVectors;
  // Enough independent sums that none waits for the one before.
  constexpr int kParts = kSums <= 1 ? 8 : kSums <= 2 ? 4 : kSums <= 4 ? 2 : 1;
  V sum[kParts * kSums];
#pragma GCC unroll 8
  for (int k = 0; k < kParts * kSums; ++k) sum[k] = Product::template nothing<V>();
  int64_t i = 0;
  for (; i + kParts <= count; i += kParts) {
#pragma GCC unroll 8
    for (int k = 0; k < kParts * kSums; ++k) {
      const int64_t row = i + k / kSums;
      sum[k] = Product::join(sum[k], V(rows[k % kSums / kVectors][row]),
                             V::load(matrix + row * pitch + column + k % kVectors * V::kLanes));
    }
  }
  for (; i < count; ++i) {
#pragma GCC unroll 8
    for (int k = 0; k < kSums; ++k) {
      sum[k] = Product::join(sum[k], V(rows[k / kVectors][i]),
                             V::load(matrix + i * pitch + column + k % kVectors * V::kLanes));
    }
  }
#pragma GCC unroll 8
  for (int k = (kParts - 1) * kSums - 1; k >= 0; --k)
    sum[k] = Product::merge(sum[k], sum[k + kSums]);
#pragma GCC unroll 8
  for (int k = 0; k < kSums; ++k)
    sum[k].store(out[k / kVectors] + column + k % kVectors * V::kLanes);
}

template <class Product, int kSequences, class T>
[[gnu::noinline]] void multiply_some(const Rows<T>& rows, const T* matrix, int64_t pitch,
                                     int64_t count, const Rows<T>& out) {
  constexpr int64_t kLanes = Vec<T>::kLanes;
  int64_t j = 0;
  for (; j + 2 * kLanes <= pitch; j += 2 * kLanes)
    multiply_columns<Product, kSequences, 2>(rows, matrix, pitch, count, out, j);
  if (j < pitch) multiply_columns<Product, kSequences, 1>(rows, matrix, pitch, count, out, j);
}

// out[s] = rows[s] · matrix for the first `sequences` rows, of `count` numbers each.
template <class Product, class T>
FASTLOSS_INLINE void multiply(int sequences, const Rows<T>& rows, const T* matrix, int64_t pitch,
                              int64_t count, const Rows<T>& out) {
  static_assert(kGroup == 4);
  switch (sequences) {
    case 1:
      return multiply_some<Product, 1>(rows, matrix, pitch, count, out);
    case 2:
      return multiply_some<Product, 2>(rows, matrix, pitch, count, out);
    case 3:
      return multiply_some<Product, 3>(rows, matrix, pitch, count, out);
    default:
      return multiply_some<Product, 4>(rows, matrix, pitch, count, out);
  }
}

// sums[i][j] += Σ_s left[s][i] · right[s][j] for kRows rows and kVectors vectors of columns.
template <int kRows, int kVectors, class T>
FASTLOSS_INLINE void add_tile(const T* left, const T* right, int64_t pitch, int64_t steps,
                              T* sums) {
  using V = Vec<T>;
  V sum[kRows * kVectors];
#pragma GCC unroll 8
  for (int k = 0; k < kRows * kVectors; ++k) sum[k] = V(0);
  for (int64_t s = 0; s < steps; ++s) {
#pragma GCC unroll 8
    for (int k = 0; k < kRows * kVectors; ++k) {
      sum[k] +=
          V(left[s * pitch + k / kVectors]) * V::load(right + s * pitch + k % kVectors * V::kLanes);
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
  for (int64_t s = 0; s < steps; s += kBlockSteps) {
    const int64_t block = steps - s < kBlockSteps ? steps - s : kBlockSteps;
    const T *l = left + s * pitch, *r = right + s * pitch;
    int64_t j = 0;
    for (; j + 2 * kLanes <= pitch; j += 2 * kLanes)
      add_columns_of_products<2>(l, r + j, pitch, block, rows, sums + j);
    if (j < pitch) add_columns_of_products<1>(l, r + j, pitch, block, rows, sums + j);
  }
}

template <class T>
void fill(T* out, T value, int64_t count) {
  for (int64_t i = 0; i < count; ++i) out[i] = value;
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

// In how many tasks the sequences are done, each of whole groups but the last.
inline int64_t tasks_of(int64_t sequences, int64_t partial_bytes) {
  const int64_t groups = (sequences + kGroup - 1) / kGroup;
  const int64_t affordable = kMaxPartialBytes / partial_bytes;
  const int64_t most = affordable < kMaxTasks ? affordable : kMaxTasks;
  return groups < most ? groups : most > 1 ? most : 1;
}

// The order in which a group is done, the longest first: who still takes part at a step is always
// at the front.
inline std::array<int, kGroup> longest_first(const int64_t* lengths, int count) {
  std::array<int, kGroup> order{};
  for (int s = 0; s < count; ++s) {
    int place = s;
    for (; place > 0 && lengths[order[place - 1]] < lengths[s]; --place)
      order[place] = order[place - 1];
    order[place] = s;
  }
  return order;
}

// One sequence of a group.
template <class T>
struct Sequence {
  int64_t index = 0, length = 0;
  T weight = T(1);                                  // of its gradients
  T *potential = nullptr, *prefix = nullptr;        // [T, pitch]
  T* scale = nullptr;                               // [T]: powers of two
  int64_t* labels = nullptr;                        // [T]
  T *row = nullptr, *suffix = nullptr;              // [pitch]
  T *first = nullptr, *last = nullptr;              // [pitch]: gradients of the outermost steps
  double score = 0.0, offset = 0.0, log_sum = 0.0;  // of the labels; what was taken out; the result
  int64_t exponent = 0;                             // of two, taken out as well
  Mask<T> lifted{};
  Vec<T> total{}, doubtful{};

  // How much a sequence of so many steps needs.
  static int64_t bytes(int64_t steps, int64_t pitch) {
    return 2 * Pieces::bytes<T>(steps * pitch) + 4 * Pieces::bytes<T>(pitch) +
           Pieces::bytes<T>(steps) + Pieces::bytes<int64_t>(steps);
  }
  void place(Pieces& pieces, int64_t steps, int64_t pitch) {
    potential = pieces.take<T>(steps * pitch);
    prefix = pieces.take<T>(steps * pitch);
    for (T** piece : {&row, &suffix, &first, &last}) *piece = pieces.take<T>(pitch);
    scale = pieces.take<T>(steps);
    labels = pieces.take<int64_t>(steps);
  }
};

// One task: its share of the sequences, a group at a time.
template <class T>
class Task {
  using V = Vec<T>;

 public:
  Task(const CrfArguments& arguments, const Scores<T>& scores, const Factors<T>& factors,
       const int64_t* lengths, T gradient_factor, LabelFault& fault, const Partial<T>& partial,
       double* losses)
      : arguments_(arguments),
        scores_(scores),
        factors_(factors),
        lengths_(lengths),
        gradient_factor_(gradient_factor),
        fault_(fault),
        partial_(partial),
        losses_(losses),
        wants_gradient_(arguments.emission_gradient || arguments.transitions_gradient ||
                        arguments.start_gradient || arguments.end_gradient),
        memory_(kGroup * Sequence<T>::bytes(arguments.chains.steps, scores.pitch) +
                Pieces::bytes<T>(scores.tags * scores.pitch)) {
    Pieces pieces(memory_.data());
    for (Sequence<T>& sequence : group_)
      sequence.place(pieces, arguments.chains.steps, scores.pitch);
    pairs_ = pieces.take<T>(scores.tags * scores.pitch);
  }

  void run(int64_t begin, int64_t end) {
    if (arguments_.transitions_gradient) fill(pairs_, T(0), scores_.tags * scores_.pitch);
    for (int64_t b = begin; b < end; b += kGroup)
      run_group(b, static_cast<int>(end - b < kGroup ? end - b : kGroup));
    if (!arguments_.transitions_gradient) return;
    for (int64_t i = 0; i < scores_.tags * scores_.pitch; i += V::kLanes) {
      (V::load(partial_.transitions + i) + V::load(factors_.forth + i) * V::load(pairs_ + i))
          .store(partial_.transitions + i);
    }
  }

 private:
  void run_group(int64_t first, int count) {
    const auto order = longest_first(lengths_ + first, count);
    const auto* upstream = static_cast<const T*>(arguments_.upstream);
    for (int s = 0; s < count; ++s) {
      Sequence<T>& sequence = group_[s];
      sequence.index = first + order[s];
      sequence.length = lengths_[sequence.index];
      sequence.weight = gradient_factor_ * (upstream ? upstream[sequence.index] : T(1));
      read_labels(sequence);
      prepare(sequence);
    }
    sweep_forth(count);
    bool any_lifted = false;
    for (int s = 0; s < count; ++s) any_lifted = any_lifted || any(group_[s].lifted);
    if (wants_gradient_) {
      sweep_back<true>(count);
    } else if (any_lifted) {
      sweep_back<false>(count);
    }
    for (int s = 0; s < count; ++s) {
      Sequence<T>& sequence = group_[s];
      if ((wants_gradient_ || any_lifted) && !(sequence.doubtful.sum() <= kNegligible<T>)) {
        run_in_logarithms(sequence);
      } else if (arguments_.transitions_gradient) {
        add_products(sequence.prefix, sequence.potential + scores_.pitch, scores_.pitch,
                     sequence.length - 1, scores_.tags, pairs_);
      }
      losses_[sequence.index] = sequence.log_sum - sequence.score;
      if (wants_gradient_) finish_gradients(sequence);
    }
  }

  void read_labels(Sequence<T>& sequence) {
    if (!arguments_.labels) return;
    const int64_t row = sequence.index * arguments_.label_stride[0];
    bool in_range = true;
    for (int64_t t = 0; t < sequence.length; ++t) {
      const int64_t label = load_integer(arguments_.labels, row + t * arguments_.label_stride[1]);
      const bool exists = label >= 0 && label < scores_.tags;
      in_range &= exists;
      sequence.labels[t] = exists ? label : 0;  // goes on with anything that exists
    }
    fault_.note(in_range);
  }

  // Turns scores into factors: e^(score - the step's largest); adds up the score of the labels.
  void prepare(Sequence<T>& sequence) {
    const int64_t tags = scores_.tags, pitch = scores_.pitch;
    const int64_t* labels = arguments_.labels ? sequence.labels : nullptr;
    sequence.score = 0.0;
    sequence.offset = double(sequence.length - 1) * double(factors_.largest);
    for (int64_t t = 0; t < sequence.length; ++t) {
      T* row = sequence.potential + t * pitch;
      read_emissions(arguments_.chains, sequence.index, t, row);
      if (t == 0 && scores_.start) {
        for (int64_t j = 0; j < tags; ++j) row[j] += scores_.start[j];
      }
      if (t == sequence.length - 1 && scores_.end) {
        for (int64_t j = 0; j < tags; ++j) row[j] += scores_.end[j];
      }
      // After the additions: what they rounded cancels in the loss.
      if (labels) {
        sequence.score += double(row[labels[t]]);
        if (t > 0) sequence.score += double(scores_.transitions[labels[t - 1] * tags + labels[t]]);
      }
      fill(row + tags, -lanes::kInfinity<T>, pitch - tags);
      V most(row[0]);
      for (int64_t j = 0; j < pitch; j += V::kLanes) most = larger(V::load(row + j), most);
      const T largest = most.largest();
      sequence.offset += double(largest);
      for (int64_t j = 0; j < pitch; j += V::kLanes)
        exp_nonpositive(V::load(row + j) - V(largest)).store(row + j);
    }
  }

  // Numbers below the floor are lifted to it; NaN stays.
  FASTLOSS_INLINE V lift(Sequence<T>& sequence, V value, int64_t column) const {
    const V floor = V::load(factors_.floor + column);
    sequence.lifted = sequence.lifted | (value < floor);
    return larger(floor, value);
  }

  // How many of the group reach a step.
  int active(int count, int64_t step) const {
    while (count > 0 && group_[count - 1].length <= step) --count;
    return count;
  }

  // Fills prefix[t][j], the sum over all paths that end at step t with tag j, and finds the
  // logarithm of the sum over all paths.
  void sweep_forth(int count) {
    const int64_t pitch = scores_.pitch;
    for (int s = 0; s < count; ++s) {
      Sequence<T>& sequence = group_[s];
      sequence.exponent = 0;
      sequence.lifted = V(0) != V(0);
      V total(0);
      for (int64_t j = 0; j < pitch; j += V::kLanes) {
        const V value = lift(sequence, V::load(sequence.potential + j), j);
        value.store(sequence.prefix + j);
        total += value;
      }
      sequence.total = total;
    }
    const int64_t steps = group_[0].length;
    for (int64_t t = 1; t < steps; ++t) {
      const int reaching = active(count, t);
      Rows<T> before{}, now{};
      for (int s = 0; s < reaching; ++s) {
        before[s] = group_[s].prefix + (t - 1) * pitch;
        now[s] = group_[s].prefix + t * pitch;
      }
      multiply<SumOfProducts>(reaching, before, factors_.forth, pitch, scores_.tags, now);
      for (int s = 0; s < reaching; ++s) {
        Sequence<T>& sequence = group_[s];
        const T* potential = sequence.potential + t * pitch;
        const V scale(sequence.scale[t] = take_exponent(sequence.total.sum(), sequence.exponent));
        V total(0);
        for (int64_t j = 0; j < pitch; j += V::kLanes) {
          const V value = lift(sequence, V::load(now[s] + j) * (scale * V::load(potential + j)), j);
          value.store(now[s] + j);
          total += value;
        }
        sequence.total = total;
      }
    }
    for (int s = 0; s < count; ++s) {
      Sequence<T>& sequence = group_[s];
      sequence.log_sum =
          sequence.offset + double(sequence.exponent) * kLn2 + log(double(sequence.total.sum()));
    }
  }

  // The sums over all paths that go on from a tag, step by step from the end: with the prefixes
  // they are the probabilities of tags and of pairs. Adds up the probability that a lifted number
  // is involved. Leaves the pairs' factors in `potential`: the pair (i, j) of steps t - 1 and t has
  // the weighted probability prefix[t - 1][i] · forth[i][j] · potential[t][j].
  template <bool kGradient>
  void sweep_back(int count) {
    const int64_t pitch = scores_.pitch;
    int reaching = 0;
    for (int64_t t = group_[0].length - 1;; --t) {
      for (; reaching < count && group_[reaching].length > t; ++reaching)
        start_back(group_[reaching]);
      for (int s = 0; s < reaching; ++s) find_probabilities<kGradient>(group_[s], t);
      if (t == 0) return;
      Rows<T> onward{}, suffix{};
      for (int s = 0; s < reaching; ++s) {
        Sequence<T>& sequence = group_[s];
        onward[s] = sequence.potential + t * pitch;
        suffix[s] = sequence.suffix;
        const V scale(sequence.scale[t]);
        for (int64_t j = 0; j < pitch; j += V::kLanes)
          (V::load(suffix[s] + j) * (scale * V::load(onward[s] + j))).store(onward[s] + j);
      }
      multiply<SumOfProducts>(reaching, onward, factors_.back, pitch, scores_.tags, suffix);
      for (int s = 0; s < reaching; ++s) {
        const T* before = group_[s].prefix + (t - 1) * pitch;
        V total(0);
        for (int64_t j = 0; j < pitch; j += V::kLanes) {
          const V value = lift(group_[s], V::load(suffix[s] + j), j);
          value.store(suffix[s] + j);
          total += value * V::load(before + j);
        }
        group_[s].total = total;
      }
    }
  }

  void start_back(Sequence<T>& sequence) const {
    const T* last = sequence.prefix + (sequence.length - 1) * scores_.pitch;
    const V start(T(1) / sequence.total.sum());
    V total(0);
    for (int64_t j = 0; j < scores_.pitch; j += V::kLanes) {
      start.store(sequence.suffix + j);
      total += start * V::load(last + j);
    }
    sequence.total = total;
    sequence.doubtful = V(0);
  }

  template <bool kGradient>
  void find_probabilities(Sequence<T>& sequence, int64_t step) {
    const int64_t pitch = scores_.pitch;
    const V norm(T(1) / sequence.total.sum());  // 1 but for rounding
    const V weight(sequence.weight);
    const T* prefix = sequence.prefix + step * pitch;
    for (int64_t j = 0; j < pitch; j += V::kLanes) {
      const V before = V::load(prefix + j), after = V::load(sequence.suffix + j);
      const V floor = V::load(factors_.floor + j);
      const V probability = before * after * norm;
      sequence.doubtful += select((before <= floor) | (after <= floor), probability, V(0));
      if (kGradient) (weight * probability).store(sequence.row + j);
    }
    if (!kGradient) return;
    hand_out(sequence, step);
    if (arguments_.transitions_gradient && step + 1 < sequence.length) {
      T* onward = sequence.potential + (step + 1) * pitch;
      for (int64_t j = 0; j < pitch; j += V::kLanes)
        (V::load(onward + j) * (weight * norm)).store(onward + j);
    }
  }

  // A step's weighted probabilities, less the label, are the gradient of its emissions.
  void hand_out(const Sequence<T>& sequence, int64_t step) const {
    if (arguments_.labels) sequence.row[sequence.labels[step]] -= sequence.weight;
    if (arguments_.emission_gradient)
      write_gradient(arguments_, sequence.index, step, sequence.row);
    if (step == 0) copy(sequence.first, sequence.row, scores_.tags);
    if (step == sequence.length - 1) copy(sequence.last, sequence.row, scores_.tags);
  }

  void finish_gradients(const Sequence<T>& sequence) const {
    for (int64_t j = 0; j < scores_.tags; ++j) {
      partial_.start[j] += sequence.first[j];
      partial_.end[j] += sequence.last[j];
    }
    if (arguments_.transitions_gradient && arguments_.labels) {
      for (int64_t t = 1; t < sequence.length; ++t)
        partial_.transitions[sequence.labels[t - 1] * scores_.pitch + sequence.labels[t]] -=
            sequence.weight;
    }
    if (arguments_.emission_gradient) {
      fill(sequence.row, T(0), scores_.tags);
      for (int64_t t = sequence.length; t < arguments_.chains.steps; ++t)
        write_gradient(arguments_, sequence.index, t, sequence.row);
    }
  }

  // The same in float64 by logarithms, K² exponentials a step.
  [[gnu::noinline]] void run_in_logarithms(Sequence<T>& sequence) {
    using V = Vec<double>;
    const int64_t tags = scores_.tags, pitch = padded<double>(tags), steps = sequence.length;
    Buffer<double> memory((2 * steps + 4 + 3 * tags) * pitch);
    double* score = memory.data();            // [steps, pitch]
    double* prefix = score + steps * pitch;   // [steps, pitch]
    double* suffix = prefix + steps * pitch;  // [pitch]
    double* onward = suffix + pitch;          // [pitch]
    double* probability = onward + pitch;     // [pitch]
    double* forth = probability + 2 * pitch;  // [tags, pitch]
    double* back = forth + tags * pitch;      // [tags, pitch]
    double* pairs = back + tags * pitch;      // [tags, pitch]
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
      read_emissions(arguments_.chains, sequence.index, t, row);
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
    const double total = sequence.log_sum = most + log(sum);
    if (!wants_gradient_) return;

    fill(suffix, 0.0, pitch);
    for (int64_t t = steps - 1;; --t) {
      const double* sums = prefix + t * pitch;
      for (int64_t j = 0; j < pitch; j += V::kLanes)
        exp(V::load(sums + j) + V::load(suffix + j) - V(total)).store(probability + j);
      for (int64_t j = 0; j < tags; ++j) sequence.row[j] = sequence.weight * T(probability[j]);
      hand_out(sequence, t);
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
          partial_.transitions[i * scores_.pitch + j] += sequence.weight * T(pairs[i * pitch + j]);
      }
    }
  }

  const CrfArguments& arguments_;
  const Scores<T>& scores_;
  const Factors<T>& factors_;
  const int64_t* lengths_;
  const T gradient_factor_;
  LabelFault& fault_;
  const Partial<T> partial_;
  double* losses_;
  const bool wants_gradient_;
  const Buffer<char> memory_;
  Sequence<T> group_[kGroup];
  T* pairs_;  // [K, pitch]: the pairs of all sequences, before they are multiplied with `forth`
};

template <class T>
int64_t crf_scratch_typed(const CrfArguments& arguments) {
  const Chains& chains = arguments.chains;
  const int64_t partial = Partial<T>::bytes(chains.tags);
  return 2 * Pieces::bytes<double>(chains.sequences) + Factors<T>::bytes(chains.tags) +
         tasks_of(chains.sequences, partial) * partial;
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
  const double factor = reduction == SequenceReduction::kMean ? 1.0 / double(chains.sequences)
                        : reduction == SequenceReduction::kTokenMean ? 1.0 / tokens
                                                                     : 1.0;
  const T gradient_factor = arguments.defers_mean ? T(1) : T(factor);
  const int64_t partial_bytes = Partial<T>::bytes(chains.tags);
  const int64_t tasks = tasks_of(chains.sequences, partial_bytes);
  const int64_t partial_step = partial_bytes / int64_t{sizeof(T)};
  T* partials = pieces.take<T>(tasks * partial_step);
  LabelFault fault;
  auto run_task = [&](int64_t index) {
    T* memory = partials + index * partial_step;
    fill(memory, T(0), partial_step);
    Task<T> task(arguments, scores, factors, lengths, gradient_factor, fault,
                 Partial<T>(memory, scores), losses);
    const int64_t groups = (chains.sequences + kGroup - 1) / kGroup;
    const int64_t begin = index * groups / tasks * kGroup;
    const int64_t end = (index + 1) * groups / tasks * kGroup;
    task.run(begin, end < chains.sequences ? end : chains.sequences);
  };
  using RunTask = decltype(run_task);
  execution.parallel.run(
      tasks, [](void* context, int64_t index) { (*static_cast<RunTask*>(context))(index); },
      &run_task);
  fault.throw_if_any();

  double sum = 0.0;
  for (int64_t b = 0; b < chains.sequences; ++b) {
    sum += losses[b];
    if (arguments.loss_output.values)
      static_cast<T*>(arguments.loss_output.values)[b] = T(losses[b]);
  }
  if (arguments.loss_output.total) *static_cast<T*>(arguments.loss_output.total) = T(sum * factor);

  const Partial<T> first(partials, scores);
  const int64_t tags = scores.tags, pitch = scores.pitch;
  add_partials(first.transitions, tasks, partial_step,
               static_cast<T*>(arguments.transitions_gradient), tags, pitch, tags);
  add_partials(first.start, tasks, partial_step, static_cast<T*>(arguments.start_gradient), 1,
               pitch, tags);
  add_partials(first.end, tasks, partial_step, static_cast<T*>(arguments.end_gradient), 1, pitch,
               tags);
}

// ---- the best path ----

// The transitions, padded so that no path leads into the padding: rows by the tag before, and by
// the tag after.
template <class T>
struct Steps {
  T *forth, *back;          // [K, pitch]
  T* places;                // [pitch]: 0, -1, -2, ...
  bool no_numbers = false;  // NaN among the transitions, which no comparison would show

  static int64_t bytes(int64_t tags) {
    return 2 * Pieces::bytes<T>(tags * padded<T>(tags)) + Pieces::bytes<T>(padded<T>(tags));
  }

  Steps(const Scores<T>& scores, Pieces& pieces)
      : forth(pieces.take<T>(scores.tags * scores.pitch)),
        back(pieces.take<T>(scores.tags * scores.pitch)),
        places(pieces.take<T>(scores.pitch)) {
    const int64_t tags = scores.tags, pitch = scores.pitch;
    for (int64_t j = 0; j < pitch; ++j) places[j] = -T(j);
    fill(forth, -lanes::kInfinity<T>, tags * pitch);
    fill(back, -lanes::kInfinity<T>, tags * pitch);
    for (int64_t i = 0; i < tags; ++i) {
      for (int64_t j = 0; j < tags; ++j) {
        const T score = scores.transitions[i * tags + j];
        forth[i * pitch + j] = back[j * pitch + i] = score;
        no_numbers |= score != score;
      }
    }
  }
};

// The place of the first of the largest of so many numbers; 0 where one is NaN. The numbers are
// followed by -∞ up to whole vectors.
template <class T>
FASTLOSS_INLINE int64_t first_largest(const T* row, int64_t pitch, const T* places) {
  using V = Vec<T>;
  V most = V::load(row);
  for (int64_t j = V::kLanes; j < pitch; j += V::kLanes) most = larger(V::load(row + j), most);
  const V largest(most.largest());
  V first(-T(pitch));
  for (int64_t j = 0; j < pitch; j += V::kLanes)
    first = larger(select(V::load(row + j) == largest, V::load(places + j), V(-T(pitch))), first);
  const auto place = static_cast<int64_t>(-first.largest());
  return place < pitch ? place : 0;
}

// The best paths of one group of sequences. No pointers back are kept: along the best path they are
// found again from the scores, K additions a step, where keeping them would add two operations to
// each of the K² of the way forth.
template <class T>
class Decoder {
  using V = Vec<T>;

 public:
  Decoder(const DecodeArguments& arguments, const Scores<T>& scores, const Steps<T>& steps,
          const int64_t* lengths)
      : arguments_(arguments),
        scores_(scores),
        steps_(steps),
        lengths_(lengths),
        row_(scores.pitch),
        best_(kGroup * arguments.chains.steps * scores.pitch) {
    fill(row_.data(), T(0), scores.pitch);
  }

  void run(int64_t first, int count) {
    const auto order = longest_first(lengths_ + first, count);
    for (int s = 0; s < count; ++s) {
      slot_[s].index = first + order[s];
      slot_[s].length = lengths_[first + order[s]];
      slot_[s].score = 0.0;
      slot_[s].spoiled = V(0) != V(0);
    }
    go_forth(count);
    go_back(count);
  }

 private:
  struct Slot {
    int64_t index = 0, length = 0;
    T largest = T(0);  // of the step before
    double score = 0.0;
    Mask<T> spoiled{};  // by NaN, which the largest of several numbers may lose
    int64_t tag = 0;    // on the way back
  };

  // [pitch]: the best scores of paths to each tag, less the largest of the step before.
  T* best(int slot, int64_t step) const {
    return best_.data() + (slot * arguments_.chains.steps + step) * scores_.pitch;
  }

  void go_forth(int count) {
    for (int64_t t = 0; t < slot_[0].length; ++t) {
      while (slot_[count - 1].length <= t) --count;
      Rows<T> before{}, now{};
      for (int s = 0; s < count; ++s) {
        now[s] = best(s, t);
        before[s] = now[s] - scores_.pitch;
      }
      if (t > 0)
        multiply<LargestSum>(count, before, steps_.forth, scores_.pitch, scores_.tags, now);
      for (int s = 0; s < count; ++s) add_emissions(slot_[s], t, now[s]);
    }
  }

  void add_emissions(Slot& slot, int64_t step, T* now) const {
    const int64_t tags = scores_.tags, pitch = scores_.pitch;
    T* row = row_.data();
    read_emissions(arguments_.chains, slot.index, step, row);
    if (step == 0) {
      for (int64_t j = 0; j < tags; ++j) now[j] = row[j] + scores_.start_of(j);
      fill(now + tags, -lanes::kInfinity<T>, pitch - tags);
    } else {
      for (int64_t j = 0; j < pitch; j += V::kLanes)
        ((V::load(now + j) - V(slot.largest)) + V::load(row + j)).store(now + j);
    }
    if (step == slot.length - 1 && scores_.end) {
      for (int64_t j = 0; j < tags; ++j) now[j] += scores_.end[j];
    }
    V most = V::load(now);
    for (int64_t j = 0; j < pitch; j += V::kLanes) {
      const V score = V::load(now + j);
      slot.spoiled = slot.spoiled | (score != score);
      most = larger(score, most);
    }
    slot.largest = most.largest();
    slot.score += double(slot.largest);
  }

  void go_back(int count) {
    const int64_t pitch = scores_.pitch;
    for (int s = 0; s < count; ++s) {
      Slot& slot = slot_[s];
      int64_t* out = arguments_.tags + slot.index * arguments_.chains.steps;
      fill(out + slot.length, int64_t{-1}, arguments_.chains.steps - slot.length);
      static_cast<T*>(arguments_.scores)[slot.index] =
          steps_.no_numbers || any(slot.spoiled) ? lanes::kInfinity<T> * T(0) : T(slot.score);
    }
    int reaching = 0;
    for (int64_t t = slot_[0].length - 1; t >= 0; --t) {
      for (int s = 0; s < reaching; ++s) {
        T* sums = best(s, t + 1);  // not needed any more
        const T *before = best(s, t), *to_tag = steps_.back + slot_[s].tag * pitch;
        for (int64_t j = 0; j < pitch; j += V::kLanes)
          (V::load(before + j) + V::load(to_tag + j)).store(sums + j);
        slot_[s].tag = first_largest(sums, pitch, steps_.places);
      }
      for (; reaching < count && slot_[reaching].length > t; ++reaching)
        slot_[reaching].tag = first_largest(best(reaching, t), pitch, steps_.places);
      for (int s = 0; s < reaching; ++s)
        arguments_.tags[slot_[s].index * arguments_.chains.steps + t] = slot_[s].tag;
    }
  }

  const DecodeArguments& arguments_;
  const Scores<T>& scores_;
  const Steps<T>& steps_;
  const int64_t* lengths_;
  const Buffer<T> row_;   // [pitch]
  const Buffer<T> best_;  // [kGroup, T, pitch]
  Slot slot_[kGroup];
};

template <class T>
int64_t decode_scratch_typed(const DecodeArguments& arguments) {
  return Pieces::bytes<int64_t>(arguments.chains.sequences) +
         Steps<T>::bytes(arguments.chains.tags);
}

template <class T>
void run_decode(const DecodeArguments& arguments, const Execution& execution) {
  const Chains& chains = arguments.chains;
  const Scores<T> scores(chains);
  Pieces pieces(arguments.scratch);
  auto* lengths = pieces.take<int64_t>(chains.sequences);
  const Steps<T> steps(scores, pieces);
  count_steps(chains, lengths);
  sum_over_chunks(execution, chains.sequences, kGroup, [&](int64_t begin, int64_t end) {
    Decoder<T> decoder(arguments, scores, steps, lengths);
    for (int64_t b = begin; b < end; b += kGroup)
      decoder.run(b, static_cast<int>(end - b < kGroup ? end - b : kGroup));
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
