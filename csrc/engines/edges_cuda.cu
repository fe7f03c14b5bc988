// SPDX-License-Identifier: MIT
#include "engines/edges.h"

#include "core/choose.h"
#include "engines/access_cuda.h"
#include "engines/kernels.h"
#include "losses/graph.h"

namespace fastloss::FASTLOSS_TARGET {
namespace {

constexpr int kThreads = 128;
constexpr int kWarps = kThreads / kWarpSize;

// Features a lane takes at a time: 64 of float32 are a warp's.
template <class T>
constexpr int kWidth = sizeof(T) == 4 ? 2 : 1;

__global__ void __launch_bounds__(kThreads)
    edge_ends_kernel(const __grid_constant__ EdgeEndsArguments arguments) {
  const int64_t positives = arguments.lists[kPositiveEdge].count;
  const int64_t edges = positives + arguments.lists[kNegativeEdge].count;
  const int64_t step = int64_t{gridDim.x} * kThreads;
  for (int64_t edge = int64_t{blockIdx.x} * kThreads + threadIdx.x; edge < edges; edge += step) {
    const bool negative = edge >= positives;
    const EdgeList& list = arguments.lists[negative];
    for (int side = 0; side < kEnds; ++side) {
      const int64_t node =
          load_integer(list.nodes, side * list.end_stride +
                                       (edge - (negative ? positives : 0)) * list.edge_stride);
      FASTLOSS_DEVICE_ASSERT(node >= 0 && node < arguments.nodes,
                             "fastloss: an end of an edge is not a node");
      arguments.ends[side * edges + edge] = static_cast<int32_t>(node);
    }
  }
}

template <class T>
FASTLOSS_DEVICE_INLINE void load_features(T (&out)[kWidth<T>], const T* row, int64_t feature) {
  load_items(out, row, Span{feature, 1, true});
}

// The dot product of two rows, in every lane.
template <class T>
FASTLOSS_DEVICE_INLINE T dot(const T* a, const T* b, int64_t features, int lane) {
  T sum(0);
  for (int64_t i = int64_t{lane} * kWidth<T>; i < features; i += kWarpSize * kWidth<T>) {
    T of_a[kWidth<T>], of_b[kWidth<T>];
    load_features(of_a, a, i);
    load_features(of_b, b, i);
    for (int k = 0; k < kWidth<T>; ++k) sum += of_a[k] * of_b[k];
  }
  return sum_of_lanes(sum);
}

template <class T>
FASTLOSS_DEVICE_INLINE T sign_of(const EdgesArguments& arguments, int64_t edge) {
  return edge < arguments.positives ? T(-1) : T(1);
}
template <class T>
FASTLOSS_DEVICE_INLINE T factor_of(const EdgesArguments& arguments, int64_t edge) {
  return T(arguments.factor[edge < arguments.positives ? kPositiveEdge : kNegativeEdge]);
}

// Without a gradient: one warp per edge.
template <class Formula, class T>
__global__ void __launch_bounds__(kThreads, kResidentBlocks)
    loss_kernel(const __grid_constant__ EdgesArguments arguments, const Completion completion) {
  const auto* const rows = static_cast<const T*>(arguments.rows);
  const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
  const int64_t warp = (int64_t{blockIdx.x} * kThreads + threadIdx.x) / kWarpSize;
  T total(0);
  for (int64_t edge = warp; edge < arguments.edges; edge += int64_t{gridDim.x} * kWarps) {
    const auto row_of = [&](int64_t end) {
      return rows + int64_t{arguments.ends[end]} * arguments.features;
    };
    const T logit = dot(row_of(edge), row_of(arguments.edges + edge), arguments.features, lane);
    if (lane != 0) continue;
    const T loss = Formula::loss(logit, sign_of<T>(arguments, edge));
    total += loss * factor_of<T>(arguments, edge);
    if (arguments.loss_output.values) static_cast<T*>(arguments.loss_output.values)[edge] = loss;
  }
  if (arguments.loss_output.total) {
    grid_sum<kThreads>(total, completion,
                       [&](double sum) { *static_cast<T*>(arguments.loss_output.total) = T(sum); });
  }
}

// With the gradient: one warp per node, which looks at its ends by 32. Each lane has the logit of
// one of them; then each has features of the gradient.
template <class Formula, class T>
__global__ void __launch_bounds__(kThreads, kResidentBlocks)
    gradient_kernel(const __grid_constant__ EdgesArguments arguments, const Completion completion) {
  const auto* const rows = static_cast<const T*>(arguments.rows);
  const auto* const upstream = static_cast<const T*>(arguments.upstream);
  auto* const gradient = static_cast<T*>(arguments.gradient);
  const int64_t features = arguments.features, edges = arguments.edges;
  const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
  const int64_t warp = (int64_t{blockIdx.x} * kThreads + threadIdx.x) / kWarpSize;
  T total(0);
  for (int64_t node = warp; node < arguments.nodes; node += int64_t{gridDim.x} * kWarps) {
    const T* const own = rows + node * features;
    const int64_t begin = arguments.first[node], end = arguments.first[node + 1];
    int64_t place = begin;
    do {  // once for a node without an edge, too: its gradient is 0
      const int count = end - place < kWarpSize ? static_cast<int>(end - place) : kWarpSize;
      int64_t edge = 0;
      int32_t other = 0;
      bool is_second = false;
      if (lane < count) {
        const int64_t number = arguments.order[place + lane];
        is_second = number >= edges;
        edge = is_second ? number - edges : number;
        other = arguments.ends[is_second ? edge : edge + edges];
      }
      T logit(0);
      for (int i = 0; i < count; ++i) {
        const int64_t other_of_end = __shfl_sync(kAllLanes, other, i);
        const T found = dot(own, rows + other_of_end * features, features, lane);
        if (lane == i) logit = found;
      }
      T slope(0);
      if (lane < count) {
        const auto loss = Formula::loss(variable<1, true>(logit), sign_of<T>(arguments, edge));
        const T factor = factor_of<T>(arguments, edge);
        if (!is_second) total += detach(loss) * factor;  // once, not from both ends
        slope = (upstream ? upstream[edge] : factor) * derivative<1>(loss);
      }
      for (int64_t base = 0; base < features; base += kWarpSize * kWidth<T>) {
        const int64_t feature = base + lane * kWidth<T>;
        const bool is_inside = feature < features;
        T sums[kWidth<T>] = {};
        if (is_inside && place > begin) load_features(sums, gradient + node * features, feature);
        for (int i = 0; i < count; ++i) {
          const int64_t other_of_end = __shfl_sync(kAllLanes, other, i);
          const T slope_of_end = __shfl_sync(kAllLanes, slope, i);
          if (!is_inside) continue;
          T of_other[kWidth<T>];
          load_features(of_other, rows + other_of_end * features, feature);
          for (int k = 0; k < kWidth<T>; ++k) sums[k] += slope_of_end * of_other[k];
        }
        if (is_inside) store_items(gradient + node * features, sums, Span{feature, 1, true});
      }
      place += kWarpSize;
    } while (place < end);
  }
  if (arguments.loss_output.total) {
    grid_sum<kThreads>(total, completion,
                       [&](double sum) { *static_cast<T*>(arguments.loss_output.total) = T(sum); });
  }
}

template <class Formula>
struct Kernel {
  static void run(const EdgesArguments& arguments, const Execution& execution) {
    with_number_type(arguments.is_double, [&](auto number) {
      using T = decltype(number);
      const unsigned grid =
          grid_for(arguments.gradient ? arguments.nodes : arguments.edges, kWarps);
      const Completion completion =
          arguments.loss_output.total ? completion_for(execution, grid) : Completion{};
      launch(arguments.gradient ? gradient_kernel<Formula, T> : loss_kernel<Formula, T>, grid,
             kThreads, 0, execution.stream, arguments, completion);
    });
  }
};

}  // namespace

void edge_ends(const EdgeEndsArguments& arguments, const Execution& execution) {
  launch(edge_ends_kernel, grid_for(arguments.edges(), kThreads), kThreads, 0, execution.stream,
         arguments);
}

void edges(const EdgesArguments& arguments, const Execution& execution) {
  using Function = void (*)(const EdgesArguments&, const Execution&);
  EdgeLosses::Table<Function, Kernel>::kRun[arguments.loss](arguments, execution);
}

}  // namespace fastloss::FASTLOSS_TARGET
