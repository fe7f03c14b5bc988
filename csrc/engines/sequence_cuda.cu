// SPDX-License-Identifier: MIT
#include "engines/access_cuda.h"
#include "engines/chain.h"
#include "engines/kernels.h"

namespace fastloss::FASTLOSS_TARGET {
namespace {

constexpr int kThreads = 256;
// Up to so many tags (and bytes) the transitions lie in shared memory.
constexpr int64_t kMostTagsShared = 128;
constexpr int64_t kMostBytesShared = 96 * 1024;
// How many blocks build the table of factors: each has to read all transitions first.
constexpr int kFactorBlocks = 16;
// Sequences that need logarithms are rare: so many are done at a time.
constexpr int64_t kLogarithmSlots = 4;
// Pairs are summed up in tiles of kTile² pairs and in chunks of the steps of all sequences.
constexpr int kTile = 32;
constexpr int kTileRows = kThreads / kTile;
constexpr int64_t kSmallestChunk = 64;
constexpr int64_t kMostPartialBytes = int64_t{64} << 20;
// At the end of the workspace, behind the partial sums.
constexpr int64_t kLargestTransition = kWorkspace - 1;
constexpr int64_t kMeanFactor = kWorkspace - 2;
static_assert(kMaxTotals > 2, "two totals leave the end of the workspace free");

// ---- memory ----

// Hands out pieces of a block, or, without one, counts how many bytes they take.
struct Pieces {
  char* block;
  int64_t bytes = 0;
  template <class T>
  T* take(int64_t count) {
    char* piece = block ? block + bytes : nullptr;
    bytes += (count * int64_t{sizeof(T)} + 255) / 256 * 256;
    return reinterpret_cast<T*>(piece);
  }
};

inline int64_t chunks_of_pairs(const Chains& chains, int64_t item) {
  const int64_t useful = (chains.sequences * chains.steps + kSmallestChunk - 1) / kSmallestChunk;
  const int64_t affordable = kMostPartialBytes / (chains.tags * chains.tags * item);
  return std::max<int64_t>(std::min({useful, affordable, int64_t{256}}), 1);
}

inline int64_t logarithm_slots(const Chains& chains) {
  return std::min(chains.sequences, kLogarithmSlots);
}

// What the kernels of one call leave for each other.
template <class T>
struct Scratch {
  T* potential;      // [B, T, K]: e^(emission - largest), later the factors of pairs
  T* prefix;         // [B, T, K]: sums over all paths up to a step
  T* scale;          // [B, T]: the largest emission, later the power of two a step is scaled with
  T *forth, *back;   // [K, K]: e^(transition - largest), and transposed
  T* rows;           // [B, 3, K]
  T* outermost;      // [2, B, K]: the gradients of the first and the last step
  T* pairs;          // [chunks, K, K]
  int64_t* lengths;  // [B]
  double *score, *loss;  // [B]
  int* doubtful;         // [B]
  double* log_prefix;    // [slots, T, K]
  double* log_rows;      // [slots, 3, K]
  double* log_pairs;     // [slots, K, K]

  Scratch(Pieces& pieces, const CrfArguments& arguments) {
    const Chains& chains = arguments.chains;
    const int64_t sequences = chains.sequences, tags = chains.tags;
    const int64_t rows_count = sequences * chains.steps, slots = logarithm_slots(chains);
    const bool wants_pairs = arguments.transitions_gradient != nullptr;
    potential = pieces.take<T>(rows_count * tags);
    prefix = pieces.take<T>(rows_count * tags);
    scale = pieces.take<T>(rows_count);
    forth = pieces.take<T>(tags * tags);
    back = pieces.take<T>(tags * tags);
    rows = pieces.take<T>(sequences * 3 * tags);
    outermost = pieces.take<T>(2 * sequences * tags);
    pairs = pieces.take<T>(wants_pairs ? chunks_of_pairs(chains, sizeof(T)) * tags * tags : 0);
    lengths = pieces.take<int64_t>(sequences);
    score = pieces.take<double>(sequences);
    loss = pieces.take<double>(sequences);
    doubtful = pieces.take<int>(sequences);
    log_prefix = pieces.take<double>(slots * chains.steps * tags);
    log_rows = pieces.take<double>(slots * 3 * tags);
    log_pairs = pieces.take<double>(wants_pairs ? slots * tags * tags : 0);
  }
};

// ---- what the kernels share ----

template <class T>
FASTLOSS_DEVICE_INLINE T emission(const Chains& chains, int64_t sequence, int64_t step,
                                  int64_t tag) {
  const int64_t* stride = chains.emission_stride;
  T value[1];
  load<1>(value, chains.emissions,
          {sequence * stride[0] + step * stride[1] + tag * stride[2], 1, false});
  return value[0];
}

// With what the ends of a sequence add to it.
template <class T>
FASTLOSS_DEVICE_INLINE T score_of(const Chains& chains, int64_t sequence, int64_t step, int64_t tag,
                                  bool is_last) {
  T value = emission<T>(chains, sequence, step, tag);
  if (step == 0 && chains.start) value += static_cast<const T*>(chains.start)[tag];
  if (is_last && chains.end) value += static_cast<const T*>(chains.end)[tag];
  return value;
}

FASTLOSS_DEVICE_INLINE bool counts(const Chains& chains, int64_t sequence, int64_t step) {
  return !chains.mask.data || load_integer(chains.mask, sequence * chains.mask_stride[0] +
                                                            step * chains.mask_stride[1]) != 0;
}

FASTLOSS_DEVICE_INLINE void check_mask(const Chains& chains, int64_t sequence, int64_t step,
                                       bool step_counts) {
  FASTLOSS_DEVICE_ASSERT(step > 0 || step_counts,
                         "fastloss: a mask does not count the first step of a sequence");
  FASTLOSS_DEVICE_ASSERT(step == 0 || !step_counts || counts(chains, sequence, step - 1),
                         "fastloss: a mask counts a step after one it does not count");
}

FASTLOSS_DEVICE_INLINE int64_t label_of(const CrfArguments& arguments, int64_t sequence,
                                        int64_t step) {
  const int64_t label = load_integer(
      arguments.labels, sequence * arguments.label_stride[0] + step * arguments.label_stride[1]);
  FASTLOSS_DEVICE_ASSERT(label >= 0 && label < arguments.chains.tags,
                         "fastloss: a tag is out of range");
  return label;
}

// The value thread 0 has, for all threads of the block.
template <class T>
FASTLOSS_DEVICE_INLINE T from_first_thread(T value) {
  __shared__ T shared;
  __syncthreads();
  if (threadIdx.x == 0) shared = value;
  __syncthreads();
  return shared;
}

// How many steps of a sequence count.
template <int kBlock>
FASTLOSS_DEVICE_INLINE int64_t count_steps(const Chains& chains, int64_t sequence) {
  if (!chains.mask.data) return chains.steps;
  int count = 0;
  for (int64_t t = threadIdx.x; t < chains.steps; t += kBlock) {
    const bool step_counts = counts(chains, sequence, t);
    check_mask(chains, sequence, t, step_counts);
    count += step_counts;
  }
  return from_first_thread(block_sum<kBlock>(count));
}

template <class T>
FASTLOSS_DEVICE_INLINE T weight_of(const CrfArguments& arguments, const double* workspace,
                                   int64_t sequence) {
  const T factor = arguments.defers_mean ? T(1) : T(workspace[kMeanFactor]);
  return arguments.upstream ? factor * static_cast<const T*>(arguments.upstream)[sequence] : factor;
}

FASTLOSS_DEVICE_INLINE bool wants_gradient(const CrfArguments& arguments) {
  return arguments.emission_gradient.data || arguments.transitions_gradient ||
         arguments.start_gradient || arguments.end_gradient;
}

// The gradient of a tag at a step goes where it is wanted.
template <class T>
FASTLOSS_DEVICE_INLINE void hand_out(const CrfArguments& arguments, const Scratch<T>& scratch,
                                     int64_t sequence, int64_t step, int64_t length, int64_t tag,
                                     T gradient) {
  const Chains& chains = arguments.chains;
  if (arguments.emission_gradient.data) {
    const int64_t* stride = arguments.gradient_stride;
    const T value[1] = {gradient};
    store<1>(arguments.emission_gradient, value,
             {sequence * stride[0] + step * stride[1] + tag * stride[2], 1, false});
  }
  const int64_t place = sequence * chains.tags + tag;
  if (step == 0) scratch.outermost[place] = gradient;
  if (step == length - 1) scratch.outermost[chains.sequences * chains.tags + place] = gradient;
}

template <class T>
FASTLOSS_DEVICE_INLINE T lift(T value, bool& lifted) {  // NaN stays
  lifted = lifted || value < kFloor<T>;
  return kFloor<T> > value ? kFloor<T> : value;
}

// ---- first kernel: scores become factors; the mean's divisor ----

// A warp per step of a sequence; the first blocks build the table of transitions besides.
template <class T>
__global__ void __launch_bounds__(kThreads)
    prepare_kernel(const __grid_constant__ CrfArguments arguments, const Scratch<T> scratch,
                   double* workspace, const Completion completion) {
  const Chains& chains = arguments.chains;
  const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
  const int64_t warp = (int64_t{blockIdx.x} * kThreads + threadIdx.x) / kWarpSize;
  const int64_t warps = int64_t{gridDim.x} * (kThreads / kWarpSize);
  double tokens = 0.0;
  for (int64_t row = warp; row < chains.sequences * chains.steps; row += warps) {
    const int64_t b = row / chains.steps, t = row % chains.steps;
    const bool step_counts = counts(chains, b, t);
    check_mask(chains, b, t, step_counts);
    if (!step_counts) continue;
    if (lane == 0) tokens += 1.0;
    const bool is_last = t == chains.steps - 1 || !counts(chains, b, t + 1);
    T largest = score_of<T>(chains, b, t, 0, is_last);
    for (int64_t j = lane; j < chains.tags; j += kWarpSize)
      largest = max(largest, score_of<T>(chains, b, t, j, is_last));
    largest = largest_of_lanes(largest);
    for (int64_t j = lane; j < chains.tags; j += kWarpSize) {
      scratch.potential[row * chains.tags + j] =
          exp(score_of<T>(chains, b, t, j, is_last) - largest);
    }
    if (lane == 0) scratch.scale[row] = largest;
  }

  const unsigned factor_blocks = gridDim.x < kFactorBlocks ? gridDim.x : kFactorBlocks;
  if (blockIdx.x < factor_blocks) {
    const auto* transitions = static_cast<const T*>(chains.transitions);
    __shared__ T of_warp[kThreads / kWarpSize];
    T largest = transitions[0];
    for (int64_t k = threadIdx.x; k < chains.tags * chains.tags; k += kThreads)
      largest = max(largest, transitions[k]);
    largest = largest_of_lanes(largest);
    if (lane == 0) of_warp[threadIdx.x / kWarpSize] = largest;
    __syncthreads();
    for (T other : of_warp) largest = max(largest, other);
    for (int64_t i = blockIdx.x; i < chains.tags; i += factor_blocks) {
      for (int64_t j = threadIdx.x; j < chains.tags; j += kThreads) {
        const T factor = exp(transitions[i * chains.tags + j] - largest);
        scratch.forth[i * chains.tags + j] = factor;
        scratch.back[j * chains.tags + i] = factor;
      }
    }
    if (blockIdx.x == 0 && threadIdx.x == 0) workspace[kLargestTransition] = double(largest);
  }

  grid_sum<kThreads>(tokens, completion, [&](double total) {
    const SequenceReduction reduction = arguments.reduction;
    workspace[kMeanFactor] = reduction == SequenceReduction::kMean ? 1.0 / double(chains.sequences)
                             : reduction == SequenceReduction::kTokenMean ? 1.0 / total
                                                                          : 1.0;
  });
}

// ---- second kernel: forth and back, a block per sequence ----

// The table of transitions, and rows that the threads of a block show each other: in shared memory,
// or where that is too small in global memory. In shared memory an odd pitch lets the threads read
// rows as well as columns without waiting for each other.
template <class T, bool kShared>
struct Room {
  const T *forth, *back;
  int64_t forth_pitch, back_step, back_pitch;
  T* rows;  // shared: [6, K]; else [3, K]

  static FASTLOSS_INLINE int64_t pitch(int64_t tags) { return tags | 1; }
  static std::size_t bytes(int64_t tags) {
    return static_cast<std::size_t>(tags * pitch(tags) + 6 * tags) * sizeof(T);
  }

  template <int kBlock>
  FASTLOSS_DEVICE_INLINE void open(const Scratch<T>& scratch, int64_t tags) {
    if constexpr (kShared) {
      T* matrix = dynamic_shared<T>();
      for (int64_t i = 0; i < tags; ++i) {
        for (int64_t j = threadIdx.x; j < tags; j += kBlock)
          matrix[i * pitch(tags) + j] = scratch.forth[i * tags + j];
      }
      forth = back = matrix;
      forth_pitch = back_pitch = pitch(tags);
      back_step = 1;
      rows = matrix + tags * pitch(tags);
      __syncthreads();
    } else {
      forth = scratch.forth;
      back = scratch.back;
      forth_pitch = back_step = tags;
      back_pitch = 1;
      rows = scratch.rows + int64_t{blockIdx.x} * 3 * tags;
    }
  }
};

template <class T, int kBlock, bool kShared>
__global__ void __launch_bounds__(kBlock, 1)
    chain_kernel(const __grid_constant__ CrfArguments arguments, const Scratch<T> scratch,
                 const double* workspace) {
  const Chains& chains = arguments.chains;
  const int64_t tags = chains.tags;
  const auto* transitions = static_cast<const T*>(chains.transitions);
  const bool has_labels = arguments.labels.data != nullptr, wants = wants_gradient(arguments);
  Room<T, kShared> room;
  room.template open<kBlock>(scratch, tags);

  for (int64_t b = blockIdx.x; b < chains.sequences; b += gridDim.x) {
    const int64_t length = count_steps<kBlock>(chains, b);
    T* potential = scratch.potential + b * chains.steps * tags;
    T* prefix = scratch.prefix + b * chains.steps * tags;
    T* scale = scratch.scale + b * chains.steps;

    double sums[2] = {0.0, 0.0};  // what was taken out of the scores; the score of the labels
    for (int64_t t = threadIdx.x; t < length; t += kBlock) {
      sums[0] += double(scale[t]);
      if (!has_labels) continue;
      const int64_t label = label_of(arguments, b, t);
      sums[1] += double(score_of<T>(chains, b, t, label, t == length - 1));
      if (t > 0) sums[1] += double(transitions[label_of(arguments, b, t - 1) * tags + label]);
    }
    block_sum<kBlock>(sums);  // also waits until all have read `scale`

    // Forth: every thread adds up the row before for itself, which it reads anyway.
    const auto prefix_row = [&](int64_t t) {
      return kShared ? room.rows + (t & 1) * tags : prefix + t * tags;
    };
    bool lifted = false;
    for (int64_t j = threadIdx.x; j < tags; j += kBlock)
      prefix[j] = prefix_row(0)[j] = lift(potential[j], lifted);
    __syncthreads();
    int64_t exponent = 0;
    for (int64_t t = 1; t < length; ++t) {
      const T* before = prefix_row(t - 1);
      T* now = prefix_row(t);
      int64_t of_step = 0;
      for (int64_t j = threadIdx.x; j < tags; j += kBlock) {
        T sum(0), total(0);
        for (int64_t i = 0; i < tags; ++i) {
          sum += before[i] * room.forth[i * room.forth_pitch + j];
          total += before[i];
        }
        of_step = 0;
        const T factor = take_exponent(total, of_step);
        const T value = lift(sum * (factor * potential[t * tags + j]), lifted);
        now[j] = value;
        if (kShared) prefix[t * tags + j] = value;
        if (j == 0) scale[t] = factor;
      }
      exponent += of_step;
      __syncthreads();
    }
    T total(0);
    for (int64_t i = 0; i < tags; ++i) total += prefix_row(length - 1)[i];

    if (threadIdx.x == 0) {
      scratch.lengths[b] = length;
      scratch.score[b] = sums[1];
      scratch.loss[b] = sums[0] + double(length - 1) * workspace[kLargestTransition] +
                        double(exponent) * kLn2 + log(double(total)) - sums[1];
    }
    const bool any_lifted =
        from_first_thread(block_sum<kBlock>(lifted || !(total > T(0)) ? 1 : 0)) > 0;

    // Back: the sums over all paths that go on from a tag; with the prefixes they are
    // probabilities.
    T doubtful(0);
    if (wants || any_lifted) {
      const T weight = weight_of<T>(arguments, workspace, b);
      T* suffix = room.rows;
      const auto product_row = [&](int64_t t) { return room.rows + (1 + (t & 1)) * tags; };
      const auto onward_row = [&](int64_t t) {
        return kShared ? room.rows + (3 + (t & 1)) * tags : potential + t * tags;
      };
      __syncthreads();  // the rows of the way forth are free now
      for (int64_t j = threadIdx.x; j < tags; j += kBlock) suffix[j] = T(1) / total;
      for (int64_t t = length - 1; t >= 0; --t) {
        for (int64_t j = threadIdx.x; j < tags; j += kBlock) {
          product_row(t)[j] = prefix[t * tags + j] * suffix[j];
          if (t > 0) onward_row(t)[j] = suffix[j] * (scale[t] * potential[t * tags + j]);
        }
        __syncthreads();
        const int64_t label = has_labels && wants ? label_of(arguments, b, t) : -1;
        for (int64_t i = threadIdx.x; i < tags; i += kBlock) {
          T all(0), carry(0);  // `all` is 1 but for rounding
          if (t > 0) {
            for (int64_t j = 0; j < tags; ++j) {
              all += product_row(t)[j];
              carry += room.back[i * room.back_pitch + j * room.back_step] * onward_row(t)[j];
            }
          } else {
            for (int64_t j = 0; j < tags; ++j) all += product_row(t)[j];
          }
          const T probability = product_row(t)[i] / all;
          if (prefix[t * tags + i] <= kFloor<T> || suffix[i] <= kFloor<T>) doubtful += probability;
          suffix[i] = lift(carry, lifted);
          if (!wants) continue;
          hand_out(arguments, scratch, b, t, length, i,
                   weight * probability - (label == i ? weight : T(0)));
          if (t + 1 < length) potential[(t + 1) * tags + i] = onward_row(t + 1)[i] * (weight / all);
        }
      }
      doubtful = block_sum<kBlock>(doubtful);
    }
    if (threadIdx.x == 0) scratch.doubtful[b] = !(doubtful <= kNegligible<T>);

    if (arguments.emission_gradient.data) {
      const int64_t* stride = arguments.gradient_stride;
      const T zero[1] = {T(0)};
      for (int64_t k = length * tags + threadIdx.x; k < chains.steps * tags; k += kBlock) {
        store<1>(arguments.emission_gradient, zero,
                 {b * stride[0] + k / tags * stride[1] + k % tags * stride[2], 1, false});
      }
    }
    __syncthreads();
  }
}

// ---- third kernel: what needs logarithms ----

// log Σ_k e^(row[k] + table[k · step])
template <class T>
FASTLOSS_DEVICE_INLINE double log_sum(const double* row, const T* table, int64_t step,
                                      int64_t count) {
  double largest = -0x1.fffffffffffffp1023;  // not -∞: the difference of two of them would be NaN
  for (int64_t k = 0; k < count; ++k) largest = max(largest, row[k] + double(table[k * step]));
  double sum = 0.0;
  for (int64_t k = 0; k < count; ++k) sum += exp(row[k] + double(table[k * step]) - largest);
  return largest + log(sum);
}

template <class T>
__global__ void __launch_bounds__(kThreads)
    logarithms_kernel(const __grid_constant__ CrfArguments arguments, const Scratch<T> scratch,
                      const double* workspace) {
  const Chains& chains = arguments.chains;
  const int64_t tags = chains.tags, slot = blockIdx.x;
  const auto* transitions = static_cast<const T*>(chains.transitions);
  const bool wants = wants_gradient(arguments);
  double* prefix = scratch.log_prefix + slot * chains.steps * tags;
  double* onward = scratch.log_rows + slot * 3 * tags;
  double* suffix = onward + tags;
  double* pairs = arguments.transitions_gradient ? scratch.log_pairs + slot * tags * tags : nullptr;
  if (pairs) {
    for (int64_t k = threadIdx.x; k < tags * tags; k += kThreads) pairs[k] = 0.0;
  }
  __syncthreads();

  for (int64_t b = slot; b < chains.sequences; b += gridDim.x) {
    if (!scratch.doubtful[b]) continue;
    const int64_t length = scratch.lengths[b];
    for (int64_t t = 0; t < length; ++t) {
      for (int64_t j = threadIdx.x; j < tags; j += kThreads) {
        const double before =
            t > 0 ? log_sum(prefix + (t - 1) * tags, transitions + j, tags, tags) : 0.0;
        prefix[t * tags + j] = before + double(score_of<T>(chains, b, t, j, t == length - 1));
      }
      __syncthreads();
    }
    const T zero(0);
    const double total = log_sum(prefix + (length - 1) * tags, &zero, 0, tags);
    if (threadIdx.x == 0) scratch.loss[b] = total - scratch.score[b];
    if (!wants) continue;

    const T weight = weight_of<T>(arguments, workspace, b);
    for (int64_t j = threadIdx.x; j < tags; j += kThreads) suffix[j] = 0.0;
    for (int64_t t = length - 1; t >= 0; --t) {
      const int64_t label = arguments.labels.data ? label_of(arguments, b, t) : -1;
      for (int64_t j = threadIdx.x; j < tags; j += kThreads) {
        const T probability = T(exp(prefix[t * tags + j] + suffix[j] - total));
        hand_out(arguments, scratch, b, t, length, j,
                 weight * probability - (label == j ? weight : T(0)));
        onward[j] = suffix[j] + double(score_of<T>(chains, b, t, j, t == length - 1));
      }
      __syncthreads();
      if (t == 0) break;
      if (pairs) {
        for (int64_t k = threadIdx.x; k < tags * tags; k += kThreads) {
          pairs[k] += double(weight) * exp(prefix[(t - 1) * tags + k / tags] - total +
                                           double(transitions[k]) + onward[k % tags]);
        }
      }
      for (int64_t i = threadIdx.x; i < tags; i += kThreads)
        suffix[i] = log_sum(onward, transitions + i * tags, 1, tags);
      __syncthreads();
    }
    __syncthreads();
  }
}

// ---- fourth kernel: the pairs of neighbouring steps ----

// A block per tile of pairs and chunk of steps. Sums of the probabilities, less the labels' pairs.
template <class T>
__global__ void __launch_bounds__(kThreads)
    pairs_kernel(const __grid_constant__ CrfArguments arguments, const Scratch<T> scratch,
                 const double* workspace, const int64_t chunks) {
  const Chains& chains = arguments.chains;
  const int64_t tags = chains.tags, tiles = (tags + kTile - 1) / kTile;
  const int64_t tile = blockIdx.x % (tiles * tiles), chunk = blockIdx.x / (tiles * tiles);
  const int column = static_cast<int>(threadIdx.x) % kTile;
  const int row = static_cast<int>(threadIdx.x) / kTile;
  const int64_t first_from = tile / tiles * kTile, to = tile % tiles * kTile + column;
  const int64_t rows = chains.sequences * chains.steps;
  const int64_t begin = chunk * rows / chunks, end = (chunk + 1) * rows / chunks;

  __shared__ T before[kTile][kTile + 1], after[kTile][kTile + 1];
  __shared__ T weights[kTile];  // of the labels' pairs
  __shared__ int64_t label_before[kTile], label_after[kTile];
  constexpr int kOwn = kTile / kTileRows;
  T sum[kOwn] = {}, of_labels[kOwn] = {};
  for (int64_t first = begin; first < end; first += kTile) {
    for (int s = row; s < kTile; s += kTileRows) {  // a warp per step
      const int64_t step = first + s;
      const int64_t b = step / chains.steps, t = step % chains.steps;
      const bool is_pair = step < end && t > 0 && t < scratch.lengths[b];
      const bool is_sure = is_pair && !scratch.doubtful[b];
      const int64_t from = first_from + column;
      before[s][column] = is_sure && from < tags ? scratch.prefix[(step - 1) * tags + from] : T(0);
      after[s][column] = is_sure && to < tags ? scratch.potential[step * tags + to] : T(0);
      if (column == 0) {
        const bool has_label = is_pair && arguments.labels.data;
        weights[s] = has_label ? weight_of<T>(arguments, workspace, b) : T(0);
        label_before[s] = has_label ? label_of(arguments, b, t - 1) : -1;
        label_after[s] = has_label ? label_of(arguments, b, t) : -1;
      }
    }
    __syncthreads();
    for (int s = 0; s < kTile; ++s) {
      for (int k = 0; k < kOwn; ++k) {
        const int from = row + k * kTileRows;
        sum[k] += before[s][from] * after[s][column];
        if (label_before[s] == first_from + from && label_after[s] == to)
          of_labels[k] += weights[s];
      }
    }
    __syncthreads();
  }
  for (int k = 0; k < kOwn; ++k) {
    const int64_t from = first_from + row + k * kTileRows;
    if (from >= tags || to >= tags) continue;
    const int64_t place = from * tags + to;
    scratch.pairs[chunk * tags * tags + place] = sum[k] * scratch.forth[place] - of_labels[k];
  }
}

// ---- last kernel: what is summed up over all sequences, in fixed order ----

template <class T>
__global__ void __launch_bounds__(kThreads)
    finish_kernel(const __grid_constant__ CrfArguments arguments, const Scratch<T> scratch,
                  const double* workspace, const int64_t chunks, const int64_t slots) {
  const Chains& chains = arguments.chains;
  const int64_t tags = chains.tags;
  const int64_t thread = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  const int64_t threads = int64_t{gridDim.x} * kThreads;
  if (arguments.transitions_gradient) {
    for (int64_t k = thread; k < tags * tags; k += threads) {
      double sum = 0.0;
      for (int64_t c = 0; c < chunks; ++c) sum += double(scratch.pairs[c * tags * tags + k]);
      for (int64_t s = 0; s < slots; ++s) sum += scratch.log_pairs[s * tags * tags + k];
      static_cast<T*>(arguments.transitions_gradient)[k] = T(sum);
    }
  }
  for (int side = 0; side < 2; ++side) {
    auto* out = static_cast<T*>(side == 0 ? arguments.start_gradient : arguments.end_gradient);
    if (out == nullptr) continue;
    const T* rows = scratch.outermost + side * chains.sequences * tags;
    for (int64_t j = thread; j < tags; j += threads) {
      double sum = 0.0;
      for (int64_t b = 0; b < chains.sequences; ++b) sum += double(rows[b * tags + j]);
      out[j] = T(sum);
    }
  }
  if (arguments.loss_output.values) {
    for (int64_t b = thread; b < chains.sequences; b += threads)
      static_cast<T*>(arguments.loss_output.values)[b] = T(scratch.loss[b]);
  }
  if (arguments.loss_output.total && blockIdx.x == 0) {
    double sum = 0.0;
    for (int64_t b = threadIdx.x; b < chains.sequences; b += kThreads) sum += scratch.loss[b];
    sum = block_sum<kThreads>(sum);
    if (threadIdx.x == 0)
      *static_cast<T*>(arguments.loss_output.total) = T(sum * workspace[kMeanFactor]);
  }
}

template <class T>
bool fits_shared(int64_t tags) {
  return tags <= kMostTagsShared &&
         static_cast<int64_t>(Room<T, true>::bytes(tags)) <= kMostBytesShared;
}

template <class T>
void launch_chain(const CrfArguments& arguments, const Scratch<T>& scratch,
                  const Execution& execution) {
  const int64_t tags = arguments.chains.tags;
  const auto start = [&](auto kernel, unsigned block, std::size_t shared) {
    launch(kernel, static_cast<unsigned>(std::min<int64_t>(arguments.chains.sequences, INT32_MAX)),
           block, shared, execution.stream, arguments, scratch,
           static_cast<const double*>(execution.workspace));
  };
  if (!fits_shared<T>(tags)) {
    start(chain_kernel<T, 256, false>, 256, 0);
  } else if (tags <= kWarpSize) {
    start(chain_kernel<T, 32, true>, 32, Room<T, true>::bytes(tags));
  } else {
    start(chain_kernel<T, 128, true>, 128, Room<T, true>::bytes(tags));
  }
}

template <class T>
void run_crf(const CrfArguments& arguments, const Execution& execution) {
  const Chains& chains = arguments.chains;
  Pieces pieces{static_cast<char*>(arguments.scratch)};
  const Scratch<T> scratch(pieces, arguments);
  double* workspace = execution.workspace;
  const double* read_workspace = workspace;
  const unsigned prepare_grid = grid_for(chains.sequences * chains.steps, kThreads / kWarpSize);
  launch(prepare_kernel<T>, prepare_grid, kThreads, 0, execution.stream, arguments, scratch,
         workspace, completion_for(execution, prepare_grid));
  launch_chain(arguments, scratch, execution);
  const int64_t slots = logarithm_slots(chains);
  launch(logarithms_kernel<T>, static_cast<unsigned>(slots), kThreads, 0, execution.stream,
         arguments, scratch, read_workspace);
  const int64_t chunks = chunks_of_pairs(chains, sizeof(T));
  if (arguments.transitions_gradient) {
    const int64_t tiles = (chains.tags + kTile - 1) / kTile;
    launch(pairs_kernel<T>, static_cast<unsigned>(tiles * tiles * chunks), kThreads, 0,
           execution.stream, arguments, scratch, read_workspace, chunks);
  }
  const int64_t work = std::max(arguments.transitions_gradient ? chains.tags * chains.tags : 1,
                                std::max(chains.tags, chains.sequences));
  launch(finish_kernel<T>, grid_for(work, kThreads), kThreads, 0, execution.stream, arguments,
         scratch, read_workspace, chunks, slots);
}

// ---- the best path ----

// Where the best path to a tag came from: as many bytes as its number needs.
template <class T>
struct Tracks {
  void* origins;  // [B, T, K] uint8_t or uint16_t
  T* rows;        // [B, 2, K]; null: in shared memory

  Tracks(Pieces& pieces, const Chains& chains, bool in_shared) {
    const int64_t count = chains.sequences * chains.steps * chains.tags;
    origins = chains.tags <= 256 ? static_cast<void*>(pieces.take<uint8_t>(count))
                                 : static_cast<void*>(pieces.take<uint16_t>(count));
    rows = in_shared ? nullptr : pieces.take<T>(chains.sequences * 2 * chains.tags);
  }
};

// Tables and rows in shared memory, and pieces of the tracks on the way back.
constexpr int64_t kTrackBytes = 8192;
template <class T>
constexpr std::size_t decode_bytes(int64_t tags, bool in_shared) {
  return static_cast<std::size_t>(kTrackBytes) +
         (in_shared ? static_cast<std::size_t>(tags * tags + 2 * tags) * sizeof(T) : 0);
}

// A block per sequence.
template <class T, class Origin, int kBlock, bool kShared>
__global__ void __launch_bounds__(kBlock, 1)
    decode_kernel(const __grid_constant__ DecodeArguments arguments, const Tracks<T> tracks) {
  const Chains& chains = arguments.chains;
  const int64_t tags = chains.tags;
  const auto* transitions = static_cast<const T*>(chains.transitions);
  auto* track = dynamic_shared<Origin>();
  T* rows = tracks.rows + int64_t{blockIdx.x} * 2 * tags;
  const T* table = transitions;
  if constexpr (kShared) {
    T* shared = reinterpret_cast<T*>(dynamic_shared<unsigned char>() + kTrackBytes);
    for (int64_t k = threadIdx.x; k < tags * tags; k += kBlock) shared[k] = transitions[k];
    table = shared;
    rows = shared + tags * tags;
    __syncthreads();
  }
  bool no_numbers = false;  // NaN among the transitions: no comparison would show it
  for (int64_t k = threadIdx.x; k < tags * tags; k += kBlock)
    no_numbers = no_numbers || table[k] != table[k];

  for (int64_t b = blockIdx.x; b < chains.sequences; b += gridDim.x) {
    const int64_t length = count_steps<kBlock>(chains, b);
    auto* origins = static_cast<Origin*>(tracks.origins) + b * chains.steps * tags;
    bool spoiled = no_numbers;
    for (int64_t t = 0; t < length; ++t) {
      const T* before = rows + ((t + 1) & 1) * tags;
      T* now = rows + (t & 1) * tags;
      for (int64_t j = threadIdx.x; j < tags; j += kBlock) {
        const T score = score_of<T>(chains, b, t, j, t == length - 1);
        spoiled = spoiled || score != score;
        if (t == 0) {
          now[j] = score;
          continue;
        }
        // What was best before is taken out, so that long sequences keep their digits.
        T best = before[0] + table[j], largest = before[0];
        int64_t origin = 0;
        for (int64_t i = 1; i < tags; ++i) {
          const T sum = before[i] + table[i * tags + j];
          if (sum > best) {
            best = sum;
            origin = i;
          }
          if (before[i] > largest) largest = before[i];
        }
        now[j] = (best - largest) + score;
        origins[t * tags + j] = static_cast<Origin>(origin);
      }
      __syncthreads();
    }

    const T* last = rows + ((length - 1) & 1) * tags;
    int64_t tag = 0;
    if (threadIdx.x == 0) {
      for (int64_t j = 1; j < tags; ++j) {
        if (last[j] > last[tag]) tag = j;
      }
    }
    int64_t* out = arguments.tags + b * chains.steps;
    for (int64_t t = length + threadIdx.x; t < chains.steps; t += kBlock) out[t] = -1;
    // Back along the track, which is fetched in pieces: one step at a time would wait for memory at
    // each.
    const int64_t fetched = kTrackBytes / (tags * int64_t{sizeof(Origin)});
    const int64_t in_piece = fetched > 0 ? fetched : 1;
    for (int64_t end = length; end > 0; end -= in_piece) {
      const int64_t begin = end > in_piece ? end - in_piece : 0;
      const Origin* piece = origins + begin * tags;
      if (fetched > 0) {
        for (int64_t k = threadIdx.x; k < (end - begin) * tags; k += kBlock)
          track[k] = begin * tags + k < tags ? Origin(0) : piece[k];  // step 0 has no origins
        __syncthreads();
        piece = track;
      }
      if (threadIdx.x == 0) {
        for (int64_t t = end - 1; t >= begin; --t) {
          out[t] = tag;
          if (t > 0) tag = piece[(t - begin) * tags + tag];
        }
      }
      __syncthreads();
    }

    double score = spoiled ? double(__builtin_nanf("")) : 0.0;
    for (int64_t t = threadIdx.x; t < length; t += kBlock) {
      score += double(score_of<T>(chains, b, t, out[t], t == length - 1));
      if (t > 0) score += double(transitions[out[t - 1] * tags + out[t]]);
    }
    score = block_sum<kBlock>(score);
    if (threadIdx.x == 0) static_cast<T*>(arguments.scores)[b] = T(score);
    __syncthreads();
  }
}

template <class T>
bool decode_fits_shared(int64_t tags) {
  return tags <= kMostTagsShared &&
         static_cast<int64_t>(decode_bytes<T>(tags, true)) <= kMostBytesShared;
}

template <class T>
void run_decode(const DecodeArguments& arguments, const Execution& execution) {
  const Chains& chains = arguments.chains;
  const bool in_shared = decode_fits_shared<T>(chains.tags);
  Pieces pieces{static_cast<char*>(arguments.scratch)};
  const Tracks<T> tracks(pieces, chains, in_shared);
  const auto start = [&](auto kernel, unsigned block) {
    launch(kernel, static_cast<unsigned>(std::min<int64_t>(chains.sequences, INT32_MAX)), block,
           decode_bytes<T>(chains.tags, in_shared), execution.stream, arguments, tracks);
  };
  if (in_shared && chains.tags <= kWarpSize) {
    start(decode_kernel<T, uint8_t, 32, true>, 32);
  } else if (in_shared) {
    start(decode_kernel<T, uint8_t, 128, true>, 128);
  } else if (chains.tags <= 256) {
    start(decode_kernel<T, uint8_t, 256, false>, 256);
  } else {
    start(decode_kernel<T, uint16_t, 256, false>, 256);
  }
}

template <class Take>
int64_t bytes_taken(const Take& take) {
  Pieces pieces{nullptr};
  take(pieces);
  return pieces.bytes;
}

}  // namespace

int64_t crf_scratch(const CrfArguments& arguments) {
  return bytes_taken([&](Pieces& pieces) {
    if (arguments.chains.is_double) {
      Scratch<double>(pieces, arguments);
    } else {
      Scratch<float>(pieces, arguments);
    }
  });
}

void crf(const CrfArguments& arguments, const Execution& execution) {
  if (arguments.chains.is_double) {
    run_crf<double>(arguments, execution);
  } else {
    run_crf<float>(arguments, execution);
  }
}

int64_t decode_scratch(const DecodeArguments& arguments) {
  const Chains& chains = arguments.chains;
  return bytes_taken([&](Pieces& pieces) {
    if (chains.is_double) {
      Tracks<double>(pieces, chains, decode_fits_shared<double>(chains.tags));
    } else {
      Tracks<float>(pieces, chains, decode_fits_shared<float>(chains.tags));
    }
  });
}

void decode(const DecodeArguments& arguments, const Execution& execution) {
  if (arguments.chains.is_double) {
    run_decode<double>(arguments, execution);
  } else {
    run_decode<float>(arguments, execution);
  }
}

}  // namespace fastloss::FASTLOSS_TARGET
