// SPDX-License-Identifier: MIT
// The engine `edges` as operators: nodes, and edges between them.
#pragma once
#include <ATen/ops/_convert_indices_from_coo_to_csr.h>
#include <ATen/ops/constant_pad_nd.h>
#include <ATen/ops/ge.h>
#include <ATen/ops/lt.h>
#include <ATen/ops/nonzero.h>
#include <ATen/ops/sort.h>

#include <string>

#include "engines/edges.h"
#include "torch/autograd.h"
#include "torch/checks.h"
#include "torch/tensors.h"

namespace fastloss {

// Everything but the nodes' features, kept for backward together with their gradient.
struct EdgesCall : torch::CustomClassHolder {
  std::string loss, reduction;
  Tensor positives, negatives;
  Tensor gradient;

  EdgesCall(std::string_view loss, const Tensor& positives, const Tensor& negatives,
            std::string_view reduction)
      : loss(loss), reduction(reduction), positives(positives), negatives(negatives) {}

  variable_list saved() const { return {positives, negatives}; }

  template <class Operator, class... More>
  auto call(const Operator& op, const Tensor& z, More... more) const {
    return op.call(loss, z, positives, negatives, reduction, more...);
  }

  // What the lists of edges are called.
  std::array<std::pair<const char*, const Tensor*>, kEdgeKinds> lists() const {
    return {{{"pos_edge_index", &positives}, {"neg_edge_index", &negatives}}};
  }
  c10::SymInt edges() const { return positives.sym_size(1) + negatives.sym_size(1); }

  Reduction check(const Tensor& z) const {
    check_loss(catalogue().edges, loss, {});
    check_floating(loss, "z", z);
    TORCH_CHECK_VALUE(z.dim() == 2, public_name(loss),
                      ": z must have shape (nodes, features), got ", z.sym_sizes());
    TORCH_CHECK_VALUE(z.sym_size(0) <= INT32_MAX, public_name(loss),
                      ": z must hold fewer than 2^31 nodes, got ", z.sym_sizes());
    for (const auto& [name, list] : lists()) {
      check_integer(loss, name, *list);
      check_same_device(loss, name, *list, "z", z);
      TORCH_CHECK_VALUE(list->dim() == 2 && list->sym_size(0) == kEnds, public_name(loss), ": ",
                        name, " must have shape (2, edges), got ", list->sym_sizes());
    }
    TORCH_CHECK_VALUE(edges() < (1 << 30), public_name(loss),
                      ": there must be fewer than 2^30 edges, got ", edges());
    return check_reduction(loss, reduction, false);
  }

  // Says which end of an edge is not a node. Only called when one is.
  [[noreturn]] void report_end(int64_t nodes) const {
    for (const auto& [name, list] : lists()) {
      const Tensor ends = list->to(at::kLong);
      const Tensor bad = ends.lt(0).logical_or(ends.ge(nodes)).nonzero();
      if (bad.size(0) == 0) continue;
      const int64_t side = bad[0][0].item<int64_t>(), edge = bad[0][1].item<int64_t>();
      TORCH_CHECK_INDEX(false, public_name(loss), ": ", name, " must hold nodes in [0, ", nodes,
                        "), got ", ends[side][edge].item<int64_t>(), " at position [", side, ", ",
                        edge, "]");
    }
    TORCH_INTERNAL_ASSERT(false);
  }
};

// The loss, and the gradient in the dtype of the arithmetic.
inline std::tuple<Tensor, Tensor> edges_meta(std::string_view loss, const Tensor& z,
                                             const Tensor& positives, const Tensor& negatives,
                                             std::string_view reduction,
                                             const OptionalTensor& /*upstream*/,
                                             bool needs_gradient) {
  const EdgesCall call(loss, positives, negatives, reduction);
  const bool unreduced = call.check(z) == Reduction::kNone;
  const auto options = z.options().dtype(accumulate_type(z, z));
  return {unreduced ? at::empty_symint({call.edges()}, options) : at::empty({}, options),
          needs_gradient ? at::empty_symint(z.sym_sizes(), options) : at::empty({0}, options)};
}

inline std::tuple<Tensor, Tensor> edges_kernel(std::string_view loss, const Tensor& z,
                                               const Tensor& positives, const Tensor& negatives,
                                               std::string_view reduction,
                                               const OptionalTensor& upstream,
                                               bool needs_gradient) {
  const EdgesCall call(loss, positives, negatives, reduction);
  const Reduction kind = call.check(z);
  const auto options = z.options().dtype(accumulate_type(z, z));
  const int64_t edges = call.edges().expect_int();
  const Tensor values =
      kind == Reduction::kNone ? at::empty({edges}, options) : at::empty({}, options);
  if (edges == 0) {
    return {values.zero_(),
            needs_gradient ? at::zeros(z.sizes(), options) : at::empty({0}, options)};
  }
  const int64_t features = z.size(1);
  const int64_t padding = (kFeatureMultiple - features % kFeatureMultiple) % kFeatureMultiple;
  Tensor rows = z.detach().to(values.scalar_type()).contiguous();
  if (padding > 0) rows = at::constant_pad_nd(rows, {0, padding});
  const Launch launch(z);
  const auto integers = z.options().dtype(at::kInt);

  EdgeEndsArguments lists;
  for (int k = 0; k < kEdgeKinds; ++k) {
    const Tensor& list = *call.lists()[static_cast<size_t>(k)].second;
    lists.lists[k] = {input_of(list), list.stride(0), list.stride(1), list.size(1)};
  }
  lists.nodes = z.size(0);
  const Tensor ends = at::empty({kEnds, edges}, integers);
  lists.ends = ends.mutable_data_ptr<int32_t>();
  try {
    launch.backend().edge_ends(lists, launch.execution());
  } catch (const LabelOutOfRange&) {
    call.report_end(z.size(0));
  }

  EdgesArguments arguments;
  arguments.loss = check_loss(catalogue().edges, loss, {});
  arguments.nodes = z.size(0);
  arguments.features = rows.size(1);
  arguments.rows = rows.const_data_ptr();
  arguments.ends = ends.const_data_ptr<int32_t>();
  arguments.edges = edges;
  arguments.positives = positives.size(1);
  arguments.is_double = values.scalar_type() == at::kDouble;
  if (kind == Reduction::kMean) {
    for (int k = 0; k < kEdgeKinds; ++k)
      arguments.factor[k] = 1.0 / static_cast<double>(std::max<int64_t>(lists.lists[k].count, 1));
  }
  Tensor gradient, first, order, factors;
  if (needs_gradient) {
    gradient = empty_gradient(rows, true);
    if (launch.backend().edge_order != nullptr) {
      first = at::empty({arguments.nodes + 1}, integers);
      order = at::empty({kEnds * edges}, integers);
      launch.backend().edge_order(
          {arguments.ends, edges, arguments.nodes, first.mutable_data_ptr<int32_t>(),
           order.mutable_data_ptr<int32_t>()},
          launch.execution());
    } else {
      const auto [nodes, numbers] =
          at::sort(ends.view({-1}), /*stable=*/true, /*dim=*/0, /*descending=*/false);
      first = at::_convert_indices_from_coo_to_csr(nodes, arguments.nodes, /*out_int32=*/true);
      order = numbers.to(at::kInt);
    }
    arguments.gradient = gradient.mutable_data_ptr();
    arguments.first = first.const_data_ptr<int32_t>();
    arguments.order = order.const_data_ptr<int32_t>();
  }
  if (upstream) {
    factors = upstream->to(values.scalar_type()).contiguous();
    arguments.upstream = factors.const_data_ptr();
    values.zero_();  // nobody asked for the losses again
  } else {
    (kind == Reduction::kNone ? arguments.loss_output.values : arguments.loss_output.total) =
        values.mutable_data_ptr();
  }
  launch.backend().edges(arguments, launch.execution());
  if (!needs_gradient) return {values, at::empty({0}, options)};
  return {values, padding > 0 ? gradient.narrow(1, 0, features).contiguous() : gradient};
}

// The unreduced losses of edges share their nodes.
struct EdgesFunction : GradientOfSharedParts<EdgesFunction, EdgesCall> {
  static auto forward_operator() {
    static const auto op = find_operator<EdgesForwardSignature>("fastloss::edges_forward");
    return op;
  }
  static std::tuple<Tensor, Tensor> run(const EdgesCall& call, const Tensor& z,
                                        const Tensor& upstream, bool needs_gradient) {
    return call.call(forward_operator(), z, optional(upstream), needs_gradient);
  }
  static Tensor reference(const EdgesCall& call, const Tensor& z) {
    static const auto op = find_operator<EdgesSignature>("fastloss::edges_reference");
    return call.call(op, z);
  }
};

inline Tensor edges_entry(std::string_view loss, const Tensor& z, const Tensor& positives,
                          const Tensor& negatives, std::string_view reduction) {
  const auto call = c10::make_intrusive<EdgesCall>(loss, positives, negatives, reduction);
  call->check(z);
  if (!kernels_serve(z, positives) || !kernels_serve(z, negatives))
    return EdgesFunction::reference(*call, z);
  if (c10::GradMode::is_enabled() && z.requires_grad()) return EdgesFunction::apply(z, call);
  at::AutoDispatchBelowADInplaceOrView below_autograd;
  return std::get<0>(EdgesFunction::run(*call, z, Tensor(), false));
}

}  // namespace fastloss
