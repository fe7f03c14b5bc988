// SPDX-License-Identifier: MIT
// The signatures of the operators, and how C++ calls them: through the dispatcher, by name.
#pragma once
#include <ATen/core/Tensor.h>
#include <ATen/core/dispatch/Dispatcher.h>

#include <array>
#include <optional>
#include <string_view>
#include <tuple>

namespace fastloss {

using at::Tensor;
using OptionalTensor = std::optional<Tensor>;
using OptionalNumber = std::optional<double>;
using OptionalInteger = std::optional<int64_t>;
using Parameters = at::ArrayRef<double>;
using Needs = std::array<bool, 2>;  // which gradients are wanted
// The same of emissions, transitions, start_transitions and end_transitions.
using ChainNeeds = std::array<bool, 4>;

// loss, first, second, parameters, extra, weight, reduction, avg_factor, avg_number
using LossSignature = Tensor(std::string_view, const Tensor&, const Tensor&, Parameters,
                             const OptionalTensor&, const OptionalTensor&, std::string_view,
                             const OptionalTensor&, OptionalNumber);
using LossForwardSignature = std::tuple<Tensor, Tensor, Tensor>(
    std::string_view, const Tensor&, const Tensor&, Parameters, const OptionalTensor&,
    const OptionalTensor&, std::string_view, const OptionalTensor&, OptionalNumber, Needs);

// kind, boxes1, boxes2, parameters
using MatrixSignature = Tensor(std::string_view, const Tensor&, const Tensor&, Parameters);
// kind, upstream, boxes1, boxes2, parameters, needs
using MatrixBackwardSignature = std::tuple<Tensor, Tensor>(std::string_view, const Tensor&,
                                                           const Tensor&, const Tensor&, Parameters,
                                                           Needs);

// loss, boxes, target_boxes, target_index, batch_index, target_batch_index, parameters, reduction
using CrowdSignature = Tensor(std::string_view, const Tensor&, const Tensor&, const Tensor&,
                              const OptionalTensor&, const OptionalTensor&, Parameters,
                              std::string_view);
// the same, upstream, needs_gradient. With `upstream`, the gradient is that of the unreduced loss
// weighted by it.
using CrowdForwardSignature = std::tuple<Tensor, Tensor>(
    std::string_view, const Tensor&, const Tensor&, const Tensor&, const OptionalTensor&,
    const OptionalTensor&, Parameters, std::string_view, const OptionalTensor&, bool);

// loss, input, linear_weight, linear_bias, target, parameters, class weight, reduction, avg_factor,
// avg_number
using LinearCrossEntropySignature = Tensor(std::string_view, const Tensor&, const Tensor&,
                                           const OptionalTensor&, const Tensor&, Parameters,
                                           const OptionalTensor&, std::string_view,
                                           const OptionalTensor&, OptionalNumber);
// the same, upstream, needs
using LinearCrossEntropyForwardSignature = std::tuple<Tensor, Tensor, Tensor, Tensor>(
    std::string_view, const Tensor&, const Tensor&, const OptionalTensor&, const Tensor&,
    Parameters, const OptionalTensor&, std::string_view, const OptionalTensor&, OptionalNumber,
    const OptionalTensor&, std::array<bool, 3>);

// loss, what it calls the labels, labels, ignore_index, negatives_ignored, largest, class_weight,
// dtype of the total
using LabelTotalSignature = Tensor(std::string_view, std::string_view, const Tensor&,
                                   OptionalInteger, bool, c10::SymInt, const OptionalTensor&,
                                   at::ScalarType);
// loss, input, target, parameters, activation, squared_pred, include_background, batch, weight,
// ignore_index, reduction
using RegionSignature = Tensor(std::string_view, const Tensor&, const Tensor&, Parameters,
                               std::string_view, bool, bool, bool, const OptionalTensor&,
                               std::optional<int64_t>, std::string_view);
// → loss, slopes
using RegionForwardSignature = std::tuple<Tensor, Tensor>(std::string_view, const Tensor&,
                                                          const Tensor&, Parameters,
                                                          std::string_view, bool, bool, bool,
                                                          const OptionalTensor&,
                                                          std::optional<int64_t>, std::string_view);
// upstream, slopes, the arguments
using RegionBackwardSignature = Tensor(const Tensor&, const Tensor&, std::string_view,
                                       const Tensor&, const Tensor&, Parameters, std::string_view,
                                       bool, bool, bool, const OptionalTensor&,
                                       std::optional<int64_t>, std::string_view);

// loss, input, target, present, per_image, ignore_index, reduction
using RankedRegionSignature = Tensor(std::string_view, const Tensor&, const Tensor&, bool, bool,
                                     std::optional<int64_t>, std::string_view);
// the same, needs_gradient → loss, steps, slopes
using RankedRegionForwardSignature = std::tuple<Tensor, Tensor, Tensor>(std::string_view,
                                                                        const Tensor&,
                                                                        const Tensor&, bool, bool,
                                                                        std::optional<int64_t>,
                                                                        std::string_view, bool);
// upstream, steps, slopes, input, per_image, ignores, reduction
using RankedRegionBackwardSignature = Tensor(const Tensor&, const Tensor&, const Tensor&,
                                             const Tensor&, bool, bool, std::string_view);

// loss, log_probs, old_log_probs (or the baseline), advantages (or the rewards), ref_log_probs,
// mask, parameters, normalizer, reduction, avg_factor, avg_number
using PolicySignature = Tensor(std::string_view, const Tensor&, const Tensor&, const Tensor&,
                               const OptionalTensor&, const OptionalTensor&, Parameters,
                               std::string_view, std::string_view, const OptionalTensor&,
                               OptionalNumber);
// the same, needs_gradient → loss, gradient
using PolicyForwardSignature = std::tuple<Tensor, Tensor>(
    std::string_view, const Tensor&, const Tensor&, const Tensor&, const OptionalTensor&,
    const OptionalTensor&, Parameters, std::string_view, std::string_view, const OptionalTensor&,
    OptionalNumber, bool);

// loss, anchor, positive, negative, parameters, reduction
using TripletSignature = Tensor(std::string_view, const Tensor&, const Tensor&, const Tensor&,
                                Parameters, std::string_view);
// the same, needs
using TripletForwardSignature = std::tuple<Tensor, Tensor, Tensor, Tensor>(
    std::string_view, const Tensor&, const Tensor&, const Tensor&, Parameters, std::string_view,
    std::array<bool, 3>);

// loss, embeddings, labels, parameters, reduction
using BatchHardSignature = Tensor(std::string_view, const Tensor&, const Tensor&, Parameters,
                                  std::string_view);
// → loss, chosen, slopes
using BatchHardForwardSignature = std::tuple<Tensor, Tensor, Tensor>(std::string_view,
                                                                     const Tensor&, const Tensor&,
                                                                     Parameters, std::string_view);
// upstream, chosen, slopes, embeddings, reduction
using BatchHardBackwardSignature = Tensor(const Tensor&, const Tensor&, const Tensor&,
                                          const Tensor&, std::string_view);

// loss, z, pos_edge_index, neg_edge_index, reduction
using EdgesSignature = Tensor(std::string_view, const Tensor&, const Tensor&, const Tensor&,
                              std::string_view);
// the same, upstream, needs_gradient. With `upstream`, the gradient is that of the unreduced loss
// weighted by it.
using EdgesForwardSignature = std::tuple<Tensor, Tensor>(std::string_view, const Tensor&,
                                                         const Tensor&, const Tensor&,
                                                         std::string_view, const OptionalTensor&,
                                                         bool);

// z1, z2, temperature, temperature_number, mode, normalize, positive, itself, reduction
using ContrastiveSignature = Tensor(const Tensor&, const Tensor&, const OptionalTensor&, double,
                                    std::string_view, bool, int64_t, OptionalInteger,
                                    std::string_view);
// the same, upstream, needs → loss, the gradients of z1, z2 and temperature. With `upstream`, they
// are those of the unreduced loss weighted by it.
using ContrastiveForwardSignature = std::tuple<Tensor, Tensor, Tensor, Tensor>(
    const Tensor&, const Tensor&, const OptionalTensor&, double, std::string_view, bool, int64_t,
    OptionalInteger, std::string_view, const OptionalTensor&, std::array<bool, 3>);

// emissions, tags, transitions, start_transitions, end_transitions, mask, reduction
using CrfSignature = Tensor(const Tensor&, const Tensor&, const Tensor&, const OptionalTensor&,
                            const OptionalTensor&, const OptionalTensor&, std::string_view);
// the same, upstream, needs. With `upstream`, the gradients are those of the unreduced loss
// weighted by it.
using CrfForwardSignature = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor>(
    const Tensor&, const Tensor&, const Tensor&, const OptionalTensor&, const OptionalTensor&,
    const OptionalTensor&, std::string_view, const OptionalTensor&, ChainNeeds);
// emissions, transitions, start_transitions, end_transitions, mask
using MarginalsSignature = Tensor(const Tensor&, const Tensor&, const OptionalTensor&,
                                  const OptionalTensor&, const OptionalTensor&);
using DecodeSignature = std::tuple<Tensor, Tensor>(const Tensor&, const Tensor&,
                                                   const OptionalTensor&, const OptionalTensor&,
                                                   const OptionalTensor&);

// logits, boxes, target_labels, target_boxes, class_cost, bbox_cost, giou_cost, alpha, gamma, kind
using MatchingSignature = Tensor(const Tensor&, const Tensor&, const Tensor&, const Tensor&, double,
                                 double, double, double, double, std::string_view);

// candidates, references, max_order, smoothing, smoothing_value, pad_index
using SentenceBleuSignature = Tensor(const Tensor&, const Tensor&, int64_t, std::string_view,
                                     OptionalNumber, int64_t);

// logits, distances, anchors, strides, target_labels, target_boxes, topk, topk2, alpha, beta,
// candidate_boxes → target_indices, target_scores
using AssignmentSignature = std::tuple<Tensor, Tensor>(const Tensor&, const Tensor&, const Tensor&,
                                                       const Tensor&, const Tensor&, const Tensor&,
                                                       int64_t, OptionalInteger, double, double,
                                                       const OptionalTensor&);
// logits, distances, anchors, strides, target_labels, target_boxes, target_indices, target_scores,
// weight
using DetectionSignature = Tensor(const Tensor&, const Tensor&, const Tensor&, const Tensor&,
                                  const Tensor&, const Tensor&, const Tensor&, const Tensor&,
                                  const OptionalTensor&);
// → loss, the sum of the scores that it is divided by
using DetectionForwardSignature = std::tuple<Tensor, Tensor>(const Tensor&, const Tensor&,
                                                             const Tensor&, const Tensor&,
                                                             const Tensor&, const Tensor&,
                                                             const Tensor&, const Tensor&,
                                                             const OptionalTensor&);
// upstream, that sum, the arguments, needs → the gradients of logits and distances
using DetectionBackwardSignature = std::tuple<Tensor, Tensor>(
    const Tensor&, const Tensor&, const Tensor&, const Tensor&, const Tensor&, const Tensor&,
    const Tensor&, const Tensor&, const Tensor&, const Tensor&, const OptionalTensor&, Needs);

using ScaleSignature = void(Tensor&, const Tensor&);

template <class Signature>
auto find_operator(const char* name) {
  return c10::Dispatcher::singleton().findSchemaOrThrow(name, "").typed<Signature>();
}

}  // namespace fastloss
