// SPDX-License-Identifier: MIT
// Engine `edges`: rows of features of nodes. A formula sees the dot product of the two ends of an
// edge.
//
// An end of an edge is numbered by its place in `ends`. With their gradient, edges are looked at
// from both ends: the ends of a node stand together in `order`, and its gradient is summed by one
// thread (or warp) in that order.
#pragma once
#include "core/types.h"

namespace fastloss {

// Edges of a graph, and pairs of nodes that are none. The former are numbered first.
enum EdgeKind { kPositiveEdge, kNegativeEdge, kEdgeKinds };
constexpr int kEnds = 2;

// The widths that rows may have: every vector divides them.
constexpr int64_t kFeatureMultiple = 16;

struct EdgeList {
  Input nodes;  // [kEnds, count]
  int64_t end_stride = 0, edge_stride = 0;
  int64_t count = 0;
};

// Reads and checks the ends of all edges.
struct EdgeEndsArguments {
  EdgeList lists[kEdgeKinds];
  int64_t nodes = 0;
  int32_t* ends = nullptr;  // [kEnds, edges]

  int64_t edges() const { return lists[kPositiveEdge].count + lists[kNegativeEdge].count; }
};

// Sorts the ends by their nodes, the ends of a node by their numbers.
struct EdgeOrderArguments {
  const int32_t* ends = nullptr;  // [kEnds, edges]
  int64_t edges = 0, nodes = 0;
  int32_t* first = nullptr;  // [nodes + 1]: where a node's ends begin in `order`
  int32_t* order = nullptr;  // [kEnds · edges]
};

struct EdgesArguments {
  int loss = 0;                            // index in EdgeLosses
  int64_t nodes = 0, features = 0;         // features: a multiple of kFeatureMultiple
  const void* rows = nullptr;              // [nodes, features], of the accumulate type
  const int32_t* ends = nullptr;           // [kEnds, edges]
  int64_t edges = 0, positives = 0;        // all of them; those that are edges of the graph
  double factor[kEdgeKinds] = {1.0, 1.0};  // of the total and of the gradients
  LossOutput loss_output;                  // values: [edges]; neither: only the gradient is wanted
  void* gradient = nullptr;  // [nodes, features], of the accumulate type; null: not wanted
  // For the gradient:
  const int32_t *first = nullptr, *order = nullptr;
  const void* upstream = nullptr;  // a factor for each edge, of the accumulate type; null: 1
  bool is_double = false;
};

}  // namespace fastloss
