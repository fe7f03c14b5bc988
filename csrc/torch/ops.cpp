// SPDX-License-Identifier: MIT
// The engines as torch operators: schemas and registration. What they do stands in the
// header of each engine.
//
// A call runs   op → (autograd Function) → op_forward → engine,   and back through `scale_`, the
// one backward. The Function calls operators, never kernels, so that fake tensors and tracing see
// every step. `op_reference` is the plain PyTorch twin, registered from Python: it serves double
// backward, torch.func transforms and devices without kernels.
#include <torch/library.h>

#include <string>
#include <vector>

#include "torch/batch_hard.h"
#include "torch/box_crowd.h"
#include "torch/box_matrix.h"
#include "torch/box_pair.h"
#include "torch/contrastive.h"
#include "torch/detection.h"
#include "torch/edges.h"
#include "torch/linear_cross_entropy.h"
#include "torch/matching.h"
#include "torch/ngrams.h"
#include "torch/pairs.h"
#include "torch/pointwise.h"
#include "torch/policy.h"
#include "torch/ranked_region.h"
#include "torch/region.h"
#include "torch/row_pair.h"
#include "torch/sequence.h"
#include "torch/softmax.h"
#include "torch/triplet.h"

namespace fastloss {
namespace {

void scale_kernel(Tensor& gradient, const Tensor& upstream) {
  if (gradient.numel() == 0) return;
  Tensor factor = upstream;
  if (factor.scalar_type() != at::kDouble) factor = factor.to(at::kFloat);
  ScaleArguments arguments;
  factor = factor.expand(gradient.sizes());
  if (!try_layout(arguments.layout, gradient.sizes(), {&gradient, &factor}, /*keep_order=*/false)) {
    gradient.mul_(upstream);  // more dimensions than a layout holds
    return;
  }
  arguments.gradient = output_of(gradient);
  arguments.upstream = input_of(factor);
  const Launch launch(gradient);
  launch.backend().scale(arguments, launch.execution());
}

void scale_meta(Tensor& /*gradient*/, const Tensor& /*upstream*/) {}

// CPU always, CUDA where the build has it, and meta tensors.
template <class Kernel, class Meta>
void register_kernels(const char* name, Kernel kernel, Meta meta) {
  static std::vector<torch::Library>
      libraries;  // a registration lasts as long as its library object
  const auto add = [&](c10::DispatchKey key, auto function) {
    libraries.emplace_back(torch::Library::IMPL, "fastloss", key, __FILE__, __LINE__);
    libraries.back().impl(name, torch::dispatch(key, function));
  };
  add(c10::DispatchKey::CPU, kernel);
  if (cuda_backend() != nullptr) add(c10::DispatchKey::CUDA, kernel);
  add(c10::DispatchKey::Meta, meta);
}

}  // namespace

TORCH_LIBRARY(fastloss, library) {
  const std::string two_tensors =
      "float[] parameters, Tensor? extra, Tensor? weight, str reduction, Tensor? avg_factor, "
      "float? avg_number";
  const std::string pointwise = "str loss, Tensor input, Tensor target, " + two_tensors;
  const std::string softmax = "str loss, Tensor input, Tensor target, " + two_tensors;
  const std::string box_pair = "str loss, Tensor boxes1, Tensor boxes2, " + two_tensors;
  const std::string matrix = "str kind, Tensor boxes1, Tensor boxes2, float[] parameters";
  const std::string crowd =
      "str loss, Tensor boxes, Tensor target_boxes, Tensor target_index, Tensor? batch_index, "
      "Tensor? target_batch_index, float[] parameters, str reduction";
  const std::string region =
      "str loss, Tensor input, Tensor target, float[] parameters, str activation, bool "
      "squared_pred, bool include_background, bool batch, Tensor? weight, int? ignore_index, str "
      "reduction";
  const std::string ranked =
      "str loss, Tensor input, Tensor target, bool present, bool per_image, int? ignore_index, str "
      "reduction";

  const std::string pairs = "str loss, Tensor scores, Tensor relevance, " + two_tensors;

  const std::string policy =
      "str loss, Tensor log_probs, Tensor old_log_probs, Tensor advantages, Tensor? "
      "ref_log_probs, Tensor? mask, float[] parameters, str normalizer, str reduction, Tensor? "
      "avg_factor, float? avg_number";
  const std::string triplet =
      "str loss, Tensor anchor, Tensor positive, Tensor negative, float[] parameters, str "
      "reduction";
  const std::string batch_hard =
      "str loss, Tensor embeddings, Tensor labels, float[] parameters, str reduction";

  const std::string row_pair = "str loss, Tensor first, Tensor second, " + two_tensors;
  const std::string edges =
      "str loss, Tensor z, Tensor pos_edge_index, Tensor neg_edge_index, str reduction";

  const auto define = [&](const std::string& schema) { library.def(schema.c_str()); };
  define("pointwise(" + pointwise + ") -> Tensor");
  define("pointwise_reference(" + pointwise + ") -> Tensor");
  define("pointwise_forward(" + pointwise + ", bool[2] needs) -> (Tensor, Tensor, Tensor)");
  define("policy(" + policy + ") -> Tensor");
  define("policy_reference(" + policy + ") -> Tensor");
  define("policy_forward(" + policy + ", bool needs_gradient) -> (Tensor, Tensor)");
  define("softmax(" + softmax + ") -> Tensor");
  define("softmax_reference(" + softmax + ") -> Tensor");
  define("softmax_forward(" + softmax + ", bool[2] needs) -> (Tensor, Tensor, Tensor)");
  define(
      "label_total(str loss, str argument, Tensor labels, int? ignore_index, bool "
      "negatives_ignored, "
      "SymInt largest, Tensor? class_weight, ScalarType dtype) -> Tensor");
  const std::string linear =
      "str loss, Tensor input, Tensor linear_weight, Tensor? linear_bias, Tensor target, "
      "float[] parameters, Tensor? weight, str reduction, Tensor? avg_factor, float? avg_number";
  define("linear_cross_entropy(" + linear + ") -> Tensor");
  define("linear_cross_entropy_reference(" + linear + ") -> Tensor");
  define("linear_cross_entropy_forward(" + linear +
         ", Tensor? upstream, bool[3] needs) -> (Tensor, Tensor, Tensor, Tensor)");
  define("box_pair(" + box_pair + ") -> Tensor");
  define("box_pair_reference(" + box_pair + ") -> Tensor");
  define("box_pair_forward(" + box_pair + ", bool[2] needs) -> (Tensor, Tensor, Tensor)");
  define("box_matrix(" + matrix + ") -> Tensor");
  define("box_matrix_reference(" + matrix + ") -> Tensor");
  define("box_matrix_forward(" + matrix + ") -> Tensor");
  define(
      "box_matrix_backward(str kind, Tensor upstream, Tensor boxes1, Tensor boxes2, float[] "
      "parameters, "
      "bool[2] needs) -> (Tensor, Tensor)");
  define("box_crowd(" + crowd + ") -> Tensor");
  define("box_crowd_reference(" + crowd + ") -> Tensor");
  define("box_crowd_forward(" + crowd +
         ", Tensor? upstream, bool needs_gradient) -> (Tensor, Tensor)");
  define("region(" + region + ") -> Tensor");
  define("region_reference(" + region + ") -> Tensor");
  define("region_forward(" + region + ") -> (Tensor, Tensor)");
  define("region_backward(Tensor upstream, Tensor slopes, " + region + ") -> Tensor");
  define("ranked_region(" + ranked + ") -> Tensor");
  define("ranked_region_reference(" + ranked + ") -> Tensor");
  define("ranked_region_forward(" + ranked + ", bool needs_gradient) -> (Tensor, Tensor, Tensor)");
  define(
      "ranked_region_backward(Tensor upstream, Tensor steps, Tensor slopes, Tensor input, bool "
      "per_image, bool ignores, str reduction) -> Tensor");
  define("pairs(" + pairs + ") -> Tensor");
  define("pairs_reference(" + pairs + ") -> Tensor");
  define("pairs_forward(" + pairs + ", bool[2] needs) -> (Tensor, Tensor, Tensor)");
  define("triplet(" + triplet + ") -> Tensor");
  define("triplet_reference(" + triplet + ") -> Tensor");
  define("triplet_forward(" + triplet + ", bool[3] needs) -> (Tensor, Tensor, Tensor, Tensor)");
  define("batch_hard(" + batch_hard + ") -> Tensor");
  define("batch_hard_reference(" + batch_hard + ") -> Tensor");
  define("batch_hard_forward(" + batch_hard + ") -> (Tensor, Tensor, Tensor)");
  define(
      "batch_hard_backward(Tensor upstream, Tensor chosen, Tensor slopes, Tensor embeddings, str "
      "reduction) -> Tensor");
  define("row_pair(" + row_pair + ") -> Tensor");
  define("row_pair_reference(" + row_pair + ") -> Tensor");
  define("row_pair_forward(" + row_pair + ", bool[2] needs) -> (Tensor, Tensor, Tensor)");
  define("edges(" + edges + ") -> Tensor");
  define("edges_reference(" + edges + ") -> Tensor");
  define("edges_forward(" + edges + ", Tensor? upstream, bool needs_gradient) -> (Tensor, Tensor)");
  const std::string contrastive =
      "Tensor z1, Tensor z2, Tensor? temperature, float temperature_number, str mode, bool "
      "normalize, int positive, int? itself, str reduction";
  define("contrastive(" + contrastive + ") -> Tensor");
  define("contrastive_reference(" + contrastive + ") -> Tensor");
  define("contrastive_forward(" + contrastive +
         ", Tensor? upstream, bool[3] needs) -> (Tensor, Tensor, Tensor, Tensor)");
  const std::string chain_scores =
      "Tensor transitions, Tensor? start_transitions, Tensor? end_transitions, Tensor? mask";
  const std::string crf = "Tensor emissions, Tensor tags, " + chain_scores + ", str reduction";
  define("crf(" + crf + ") -> Tensor");
  define("crf_reference(" + crf + ") -> Tensor");
  define("crf_forward(" + crf +
         ", Tensor? upstream, bool[4] needs) -> (Tensor, Tensor, Tensor, Tensor, Tensor)");
  for (const char* suffix : {"", "_reference", "_forward"}) {
    const std::string chain = std::string(suffix) + "(Tensor emissions, " + chain_scores + ")";
    define("crf_marginals" + chain + " -> Tensor");
    define("crf_decode" + chain + " -> (Tensor, Tensor)");
  }
  const std::string detections =
      "Tensor logits, Tensor distances, Tensor anchors, Tensor strides, Tensor target_labels, "
      "Tensor target_boxes, ";
  const std::string assigned =
      detections + "Tensor target_indices, Tensor target_scores, Tensor? weight";
  for (const char* suffix : {"", "_reference", "_forward"}) {
    define(std::string("task_aligned_assignment") + suffix + "(" + detections +
           "int topk, int? topk2, float alpha, float beta, Tensor? candidate_boxes) -> (Tensor, "
           "Tensor)");
  }
  define("task_aligned_detection_loss(" + assigned + ") -> Tensor");
  define("task_aligned_detection_loss_reference(" + assigned + ") -> Tensor");
  define("task_aligned_detection_loss_forward(" + assigned + ") -> (Tensor, Tensor)");
  define("task_aligned_detection_loss_backward(Tensor upstream, Tensor total, " + assigned +
         ", bool[2] needs) -> (Tensor, Tensor)");
  const std::string bleu =
      "(Tensor candidates, Tensor references, int max_order, str smoothing, float? "
      "smoothing_value, "
      "int pad_index) -> Tensor";
  for (const char* suffix : {"", "_reference", "_forward"})
    define(std::string("sentence_bleu") + suffix + bleu);
  const std::string matching =
      "(Tensor logits, Tensor boxes, Tensor target_labels, Tensor target_boxes, float class_cost, "
      "float bbox_cost, float giou_cost, float alpha, float gamma, str kind) -> Tensor";
  for (const char* suffix : {"", "_reference", "_forward"})
    define(std::string("detr_matching_cost") + suffix + matching);
  define("scale_(Tensor(a!) gradient, Tensor upstream) -> ()");

  // The entries only check and choose, so tracing may look through them.
  library.impl("pointwise", c10::DispatchKey::CompositeImplicitAutograd,
               TORCH_FN(loss_entry<PointwiseLoss>));
  library.impl("policy", c10::DispatchKey::CompositeImplicitAutograd, TORCH_FN(policy_entry));
  library.impl("softmax", c10::DispatchKey::CompositeImplicitAutograd,
               TORCH_FN(loss_entry<SoftmaxLoss>));
  library.impl("linear_cross_entropy", c10::DispatchKey::CompositeImplicitAutograd,
               TORCH_FN(linear_cross_entropy_entry));
  library.impl("box_pair", c10::DispatchKey::CompositeImplicitAutograd,
               TORCH_FN(loss_entry<BoxPairLoss>));
  library.impl("box_matrix", c10::DispatchKey::CompositeImplicitAutograd,
               TORCH_FN(box_matrix_entry));
  library.impl("box_crowd", c10::DispatchKey::CompositeImplicitAutograd, TORCH_FN(box_crowd_entry));
  library.impl("region", c10::DispatchKey::CompositeImplicitAutograd, TORCH_FN(region_entry));
  library.impl("ranked_region", c10::DispatchKey::CompositeImplicitAutograd,
               TORCH_FN(ranked_region_entry));
  library.impl("pairs", c10::DispatchKey::CompositeImplicitAutograd,
               TORCH_FN(loss_entry<PairsLoss>));
  library.impl("triplet", c10::DispatchKey::CompositeImplicitAutograd, TORCH_FN(triplet_entry));
  library.impl("batch_hard", c10::DispatchKey::CompositeImplicitAutograd,
               TORCH_FN(batch_hard_entry));
  library.impl("row_pair", c10::DispatchKey::CompositeImplicitAutograd,
               TORCH_FN(loss_entry<RowPairLoss>));
  library.impl("edges", c10::DispatchKey::CompositeImplicitAutograd, TORCH_FN(edges_entry));
  library.impl("contrastive", c10::DispatchKey::CompositeImplicitAutograd,
               TORCH_FN(contrastive_entry));
  library.impl("task_aligned_assignment", c10::DispatchKey::CompositeImplicitAutograd,
               TORCH_FN(assignment_entry));
  library.impl("task_aligned_detection_loss", c10::DispatchKey::CompositeImplicitAutograd,
               TORCH_FN(detection_entry));
  library.impl("crf", c10::DispatchKey::CompositeImplicitAutograd, TORCH_FN(crf_entry));
  library.impl("crf_marginals", c10::DispatchKey::CompositeImplicitAutograd,
               TORCH_FN(crf_marginals_entry));
  library.impl("crf_decode", c10::DispatchKey::CompositeImplicitAutograd,
               TORCH_FN(crf_decode_entry));
  library.impl("detr_matching_cost", c10::DispatchKey::CompositeImplicitAutograd,
               TORCH_FN(matching_entry));
  library.impl("sentence_bleu", c10::DispatchKey::CompositeImplicitAutograd,
               TORCH_FN(sentence_bleu_entry));

  // Under vmap too they choose, namely the twin: without this, vmap would call them in a loop.
  const auto under_vmap = [&](const char* name, auto entry) {
    library.impl(name, c10::DispatchKey::FuncTorchBatchedDecomposition, entry);
  };
  under_vmap("pointwise", TORCH_FN(loss_entry<PointwiseLoss>));
  under_vmap("policy", TORCH_FN(policy_entry));
  under_vmap("softmax", TORCH_FN(loss_entry<SoftmaxLoss>));
  under_vmap("linear_cross_entropy", TORCH_FN(linear_cross_entropy_entry));
  under_vmap("box_pair", TORCH_FN(loss_entry<BoxPairLoss>));
  under_vmap("box_matrix", TORCH_FN(box_matrix_entry));
  under_vmap("box_crowd", TORCH_FN(box_crowd_entry));
  under_vmap("region", TORCH_FN(region_entry));
  under_vmap("ranked_region", TORCH_FN(ranked_region_entry));
  under_vmap("pairs", TORCH_FN(loss_entry<PairsLoss>));
  under_vmap("triplet", TORCH_FN(triplet_entry));
  under_vmap("batch_hard", TORCH_FN(batch_hard_entry));
  under_vmap("row_pair", TORCH_FN(loss_entry<RowPairLoss>));
  under_vmap("edges", TORCH_FN(edges_entry));
  under_vmap("contrastive", TORCH_FN(contrastive_entry));
  under_vmap("task_aligned_assignment", TORCH_FN(assignment_entry));
  under_vmap("task_aligned_detection_loss", TORCH_FN(detection_entry));
  under_vmap("crf", TORCH_FN(crf_entry));
  under_vmap("crf_marginals", TORCH_FN(crf_marginals_entry));
  under_vmap("crf_decode", TORCH_FN(crf_decode_entry));
  under_vmap("detr_matching_cost", TORCH_FN(matching_entry));
  under_vmap("sentence_bleu", TORCH_FN(sentence_bleu_entry));

  register_kernels("pointwise_forward", TORCH_FN(forward_kernel<PointwiseEngine>),
                   TORCH_FN(forward_meta<PointwiseEngine>));
  register_kernels("policy_forward", TORCH_FN(policy_forward_kernel),
                   TORCH_FN(policy_forward_meta));
  register_kernels("softmax_forward", TORCH_FN(forward_kernel<SoftmaxEngine>),
                   TORCH_FN(forward_meta<SoftmaxEngine>));
  register_kernels("linear_cross_entropy_forward", TORCH_FN(linear_cross_entropy_kernel),
                   TORCH_FN(linear_cross_entropy_meta));
  register_kernels("label_total", TORCH_FN(label_total_kernel), TORCH_FN(label_total_meta));
  register_kernels("box_pair_forward", TORCH_FN(forward_kernel<BoxPairEngine>),
                   TORCH_FN(forward_meta<BoxPairEngine>));
  register_kernels("box_matrix_forward", TORCH_FN(box_matrix_kernel), TORCH_FN(box_matrix_meta));
  register_kernels("box_matrix_backward", TORCH_FN(box_matrix_backward_kernel),
                   TORCH_FN(box_matrix_backward_meta));
  register_kernels("box_crowd_forward", TORCH_FN(box_crowd_kernel), TORCH_FN(box_crowd_meta));
  register_kernels("region_forward", TORCH_FN(region_forward_kernel),
                   TORCH_FN(region_forward_meta));
  register_kernels("region_backward", TORCH_FN(region_backward_kernel),
                   TORCH_FN(region_backward_meta));
  register_kernels("ranked_region_forward", TORCH_FN(ranked_region_forward_kernel),
                   TORCH_FN(ranked_region_forward_meta));
  register_kernels("ranked_region_backward", TORCH_FN(ranked_region_backward_kernel),
                   TORCH_FN(ranked_region_backward_meta));
  register_kernels("task_aligned_assignment_forward", TORCH_FN(assignment_kernel),
                   TORCH_FN(assignment_meta));
  register_kernels("task_aligned_detection_loss_forward", TORCH_FN(detection_forward_kernel),
                   TORCH_FN(detection_forward_meta));
  register_kernels("task_aligned_detection_loss_backward", TORCH_FN(detection_backward_kernel),
                   TORCH_FN(detection_backward_meta));
  register_kernels("pairs_forward", TORCH_FN(forward_kernel<PairsEngine>),
                   TORCH_FN(forward_meta<PairsEngine>));
  register_kernels("triplet_forward", TORCH_FN(triplet_forward_kernel),
                   TORCH_FN(triplet_forward_meta));
  register_kernels("batch_hard_forward", TORCH_FN(batch_hard_forward_kernel),
                   TORCH_FN(batch_hard_forward_meta));
  register_kernels("batch_hard_backward", TORCH_FN(batch_hard_backward_kernel),
                   TORCH_FN(batch_hard_backward_meta));
  register_kernels("row_pair_forward", TORCH_FN(forward_kernel<RowPairEngine>),
                   TORCH_FN(forward_meta<RowPairEngine>));
  register_kernels("edges_forward", TORCH_FN(edges_kernel), TORCH_FN(edges_meta));
  register_kernels("contrastive_forward", TORCH_FN(contrastive_kernel), TORCH_FN(contrastive_meta));
  register_kernels("crf_forward", TORCH_FN(crf_kernel), TORCH_FN(crf_meta));
  register_kernels("crf_marginals_forward", TORCH_FN(crf_marginals_kernel),
                   TORCH_FN(crf_marginals_meta));
  register_kernels("crf_decode_forward", TORCH_FN(crf_decode_kernel), TORCH_FN(crf_decode_meta));
  register_kernels("detr_matching_cost_forward", TORCH_FN(matching_kernel),
                   TORCH_FN(matching_meta));
  register_kernels("sentence_bleu_forward", TORCH_FN(sentence_bleu_kernel),
                   TORCH_FN(sentence_bleu_meta));
  register_kernels("scale_", TORCH_FN(scale_kernel), TORCH_FN(scale_meta));
}

}  // namespace fastloss
