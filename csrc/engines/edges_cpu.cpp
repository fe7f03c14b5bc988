// SPDX-License-Identifier: MIT
#include "engines/edges.h"

#include "core/choose.h"
#include "core/vec.h"
#include "engines/kernels.h"
#include "engines/labels.h"
#include "engines/staging.h"
#include "losses/graph.h"

namespace fastloss::FASTLOSS_TARGET {
namespace {

// Edges at a time: their rows stay in the L1 cache between dot product and gradient.
constexpr int64_t kBatch = 64;
static_assert(kFeatureMultiple % Vec<float>::kLanes == 0 && kBatch % Vec<float>::kLanes == 0);
constexpr int64_t kSmallestChunk = 16384;  // numbers: of features or of ends

// ------------------------------------------------------------------------------- the ends of edges

// Whether all ends of the edges [begin, end) of a list are nodes; writes them where they are.
template <class Index>
bool read_ends(const EdgeList& list, int64_t begin, int64_t end, int64_t nodes, int32_t* out,
               int64_t out_stride) {
  int wrong = 0;
  for (int side = 0; side < kEnds; ++side) {
    const auto* const in = static_cast<const Index*>(list.nodes.data) + side * list.end_stride;
    for (int64_t i = begin; i < end; ++i) {
      const auto node = static_cast<int64_t>(in[i * list.edge_stride]);
      wrong |= (node < 0) | (node >= nodes);
      out[side * out_stride + i] = static_cast<int32_t>(node);
    }
  }
  return wrong == 0;
}

bool read_ends(const EdgeList& list, int64_t begin, int64_t end, int64_t nodes, int32_t* out,
               int64_t out_stride) {
  switch (list.nodes.dtype) {
    case DType::kUInt8:
      return read_ends<uint8_t>(list, begin, end, nodes, out, out_stride);
    case DType::kInt16:
      return read_ends<int16_t>(list, begin, end, nodes, out, out_stride);
    case DType::kInt32:
      return read_ends<int32_t>(list, begin, end, nodes, out, out_stride);
    default:
      return read_ends<int64_t>(list, begin, end, nodes, out, out_stride);
  }
}

// The ends in parts of the same size.
struct EndParts {
  const EdgeOrderArguments& arguments;
  int32_t* places;  // [parts, nodes]: how many ends; then, where the next one belongs
  int64_t part_size, ends;

  // Calls visit(end, its node's place).
  template <class Visit>
  void for_each_end(int64_t part, const Visit& visit) const {
    const int64_t begin = part * part_size, end = begin + part_size;
    int32_t* const own = places + part * arguments.nodes;
    for (int64_t i = begin; i < end && i < ends; ++i) visit(i, own[arguments.ends[i]]);
  }
};

// ----------------------------------------------------------------------------------- the edges'
// loss

template <class T>
struct Batch {
  const T* row[kBatch];  // of the other end
  alignas(64) T logit[kBatch];
  alignas(64) T sign[kBatch];     // what the formula is told of an edge
  alignas(64) T counted[kBatch];  // the factor of the edge's loss in the total
  alignas(64) T slope[kBatch];    // first the factor of its gradient, then that itself
};

template <class T>
FASTLOSS_INLINE T dot(const T* a, const T* b, int64_t features) {
  using V = Vec<T>;
  constexpr int64_t kBlock = 4 * V::kLanes;  // sums that do not wait for each other
  V sums[4] = {V(0), V(0), V(0), V(0)};
  int64_t i = 0;
  for (; i + kBlock <= features; i += kBlock) {
    for (int k = 0; k < 4; ++k)
      sums[k] += V::load(a + i + k * V::kLanes) * V::load(b + i + k * V::kLanes);
  }
  for (; i < features; i += V::kLanes) sums[0] += V::load(a + i) * V::load(b + i);
  return ((sums[0] + sums[1]) + (sums[2] + sums[3])).sum();
}

template <class T>
FASTLOSS_INLINE void prefetch_row(const T* row, int64_t features) {
  constexpr int64_t kLine = 64 / sizeof(T), kMost = 8 * kLine;
  for (int64_t i = 0; i < features && i < kMost; i += kLine) __builtin_prefetch(row + i);
}

// out += Σ slope · row, of kVectors vectors from the feature `begin` on.
template <int kVectors, class T>
FASTLOSS_INLINE void add_rows(T* out, const Batch<T>& batch, int64_t count, int64_t begin) {
  using V = Vec<T>;
  V sums[kVectors];
  for (int k = 0; k < kVectors; ++k) sums[k] = V::load(out + begin + k * V::kLanes);
  for (int64_t i = 0; i < count; ++i) {
    const V slope(batch.slope[i]);
    for (int k = 0; k < kVectors; ++k)
      sums[k] += slope * V::load(batch.row[i] + begin + k * V::kLanes);
  }
  for (int k = 0; k < kVectors; ++k) sums[k].store(out + begin + k * V::kLanes);
}

// The losses of a batch, or its slopes; returns what it adds to the total.
template <class Formula, class T, bool kGradient>
FASTLOSS_INLINE double run_formula(Batch<T>& batch, int64_t count, T* values) {
  using V = Vec<T>;
  for (int64_t i = count; i % V::kLanes != 0; ++i)
    batch.logit[i] = batch.sign[i] = batch.counted[i] = batch.slope[i] = T(0);
  V sum(0);
  for (int64_t i = 0; i < count; i += V::kLanes) {
    const auto loss =
        Formula::loss(variable<1, kGradient>(V::load(batch.logit + i)), V::load(batch.sign + i));
    const V counted = V::load(batch.counted + i);
    sum += select(counted == V(0), V(0), detach(loss) * counted);  // 0 · ∞ would be NaN
    if constexpr (kGradient) {
      (V::load(batch.slope + i) * derivative<1>(loss)).store(batch.slope + i);
    } else {
      detach(loss).store(batch.logit + i);
    }
  }
  if (values) copy(values, batch.logit, count);
  return double(sum.sum());
}

template <class T>
struct Factors {
  T of_kind[kEdgeKinds];
  explicit Factors(const EdgesArguments& arguments)
      : of_kind{T(arguments.factor[kPositiveEdge]), T(arguments.factor[kNegativeEdge])} {}
};

// Without a gradient, in the order of the edges.
template <class Formula, class T>
double run_loss(const EdgesArguments& arguments, const Execution& execution) {
  const auto* const rows = static_cast<const T*>(arguments.rows);
  auto* const values = static_cast<T*>(arguments.loss_output.values);
  const int64_t features = arguments.features, edges = arguments.edges;
  const Factors<T> factors(arguments);
  const auto row_of = [&](int64_t end) { return rows + int64_t{arguments.ends[end]} * features; };
  return sum_over_chunks(
      execution, edges, kBatch + kSmallestChunk / (features + 1), [&](int64_t begin, int64_t end) {
        double sum = 0.0;
        Batch<T> batch;
        for (int64_t first = begin; first < end; first += kBatch) {
          const int64_t count = end - first < kBatch ? end - first : kBatch;
          for (int64_t i = 0; i < count; ++i) {
            const int64_t edge = first + i;
            const bool negative = edge >= arguments.positives;
            batch.logit[i] = dot(row_of(edge), row_of(edges + edge), features);
            batch.sign[i] = negative ? T(1) : T(-1);
            batch.counted[i] = factors.of_kind[negative];
          }
          sum += run_formula<Formula, T, false>(batch, count, values ? values + first : nullptr);
        }
        return sum;
      });
}

// With the gradient, in the order of the nodes.
template <class Formula, class T>
double run_gradient(const EdgesArguments& arguments, const Execution& execution) {
  using V = Vec<T>;
  constexpr int64_t kAhead = 8;  // rows that are fetched before they are needed
  const auto* const rows = static_cast<const T*>(arguments.rows);
  const auto* const upstream = static_cast<const T*>(arguments.upstream);
  auto* const gradient = static_cast<T*>(arguments.gradient);
  const int64_t features = arguments.features, edges = arguments.edges;
  const int32_t* const first = arguments.first;
  const int64_t ends = kEnds * edges;
  const Factors<T> factors(arguments);
  // The node whose ends begin at `place` or later.
  const auto node_from = [&](int64_t place) {
    int64_t low = 0, high = arguments.nodes;
    if (place == ends) return high;  // the last nodes may be without an edge
    while (low < high) {
      const int64_t middle = (low + high) / 2;
      if (first[middle] < place) {
        low = middle + 1;
      } else {
        high = middle;
      }
    }
    return low;
  };
  return sum_over_chunks(
      execution, ends, 1 + kSmallestChunk / (features + 1), [&](int64_t begin, int64_t end) {
        double sum = 0.0;
        Batch<T> batch;
        const int64_t last_node = node_from(end);
        for (int64_t node = node_from(begin); node < last_node; ++node) {
          const T* const own = rows + node * features;
          T* const out = gradient + node * features;
          for (int64_t i = 0; i < features; i += V::kLanes) V(0).store(out + i);
          for (int64_t place = first[node]; place < first[node + 1]; place += kBatch) {
            const int64_t left = first[node + 1] - place, count = left < kBatch ? left : kBatch;
            for (int64_t i = 0; i < count; ++i) {
              const int64_t number = arguments.order[place + i];
              const bool is_second = number >= edges;
              const int64_t edge = is_second ? number - edges : number;
              const int64_t other = is_second ? edge : edge + edges;
              const bool negative = edge >= arguments.positives;
              const T factor = factors.of_kind[negative];
              batch.row[i] = rows + int64_t{arguments.ends[other]} * features;
              batch.sign[i] = negative ? T(1) : T(-1);
              batch.counted[i] = is_second ? T(0) : factor;  // once, not from both ends
              batch.slope[i] = upstream ? upstream[edge] : factor;
            }
            for (int64_t i = 0; i < count && i < kAhead; ++i) prefetch_row(batch.row[i], features);
            for (int64_t i = 0; i < count; ++i) {
              if (i + kAhead < count) prefetch_row(batch.row[i + kAhead], features);
              batch.logit[i] = dot(own, batch.row[i], features);
            }
            sum += run_formula<Formula, T, true>(batch, count, nullptr);
            int64_t i = 0;
            for (; i + 4 * V::kLanes <= features; i += 4 * V::kLanes)
              add_rows<4>(out, batch, count, i);
            for (; i < features; i += V::kLanes) add_rows<1>(out, batch, count, i);
          }
        }
        return sum;
      });
}

template <class Formula>
struct Kernel {
  static void run(const EdgesArguments& arguments, const Execution& execution) {
    with_number_type(arguments.is_double, [&](auto number) {
      using T = decltype(number);
      const double sum = arguments.gradient ? run_gradient<Formula, T>(arguments, execution)
                                            : run_loss<Formula, T>(arguments, execution);
      store_total<T>(arguments.loss_output, Scale{}, sum);
    });
  }
};

}  // namespace

void edge_ends(const EdgeEndsArguments& arguments, const Execution& execution) {
  const int64_t edges = arguments.edges();
  LabelFault fault;
  int64_t begin_of_list = 0;
  for (const EdgeList& list : arguments.lists) {
    if (list.count == 0) continue;
    sum_over_chunks(execution, list.count, kSmallestChunk, [&](int64_t begin, int64_t end) {
      fault.note(
          read_ends(list, begin, end, arguments.nodes, arguments.ends + begin_of_list, edges));
      return 0.0;
    });
    begin_of_list += list.count;
  }
  fault.throw_if_any();
}

// A counting sort in parts, each of which counts for itself: stable, and the same whatever the
// threads do.
void edge_order(const EdgeOrderArguments& arguments, const Execution& execution) {
  const int64_t ends = kEnds * arguments.edges, nodes = arguments.nodes;
  constexpr int64_t kMostParts = 16, kSmallestPart = 32768;
  int64_t parts = ends / kSmallestPart;
  if (parts > kEnds * ends / nodes) parts = kEnds * ends / nodes;  // their counts take memory
  parts = parts < 1 ? 1 : parts > kMostParts ? kMostParts : parts;
  const Scratch<int32_t> memory(parts * nodes);
  EndParts context{arguments, memory.get(), (ends + parts - 1) / parts, ends};
  const auto count = [](void* pointer, int64_t part) {
    const auto& self = *static_cast<EndParts*>(pointer);
    int32_t* const own = self.places + part * self.arguments.nodes;
    for (int64_t i = 0; i < self.arguments.nodes; ++i) own[i] = 0;
    self.for_each_end(part, [](int64_t /*end*/, int32_t& number) { ++number; });
  };
  const auto place = [](void* pointer, int64_t part) {
    const auto& self = *static_cast<EndParts*>(pointer);
    self.for_each_end(part, [&](int64_t end, int32_t& next) {
      self.arguments.order[next++] = static_cast<int32_t>(end);
    });
  };

  execution.parallel.run(parts, count, &context);
  int32_t total = 0;
  for (int64_t node = 0; node < nodes; ++node) {
    arguments.first[node] = total;
    for (int64_t part = 0; part < parts; ++part) {
      int32_t& number = context.places[part * nodes + node];
      const int32_t begin = total;
      total += number;
      number = begin;
    }
  }
  arguments.first[nodes] = total;
  execution.parallel.run(parts, place, &context);
}

void edges(const EdgesArguments& arguments, const Execution& execution) {
  using Function = void (*)(const EdgesArguments&, const Execution&);
  EdgeLosses::Table<Function, Kernel>::kRun[arguments.loss](arguments, execution);
}

}  // namespace fastloss::FASTLOSS_TARGET
