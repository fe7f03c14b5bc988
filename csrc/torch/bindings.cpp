// SPDX-License-Identifier: MIT
// The Python module fastloss._C. Its functions call the operators of ops.cpp: pybind11 is the short
// way in for eager calls (torch.ops would parse the arguments against the schema),
// torch.ops.fastloss the one that tracing understands.
#include <torch/csrc/Exceptions.h>
#include <torch/csrc/autograd/python_variable.h>
#include <torch/csrc/utils/pybind.h>

#include <string>
#include <string_view>
#include <vector>

#include "engines/backend.h"
#include "torch/checks.h"
#include "torch/gradient_memory.h"
#include "torch/operators.h"

namespace fastloss {
namespace {

namespace py = pybind11;
using Numbers = c10::SmallVector<double, kMaxParameters>;

std::string type_name(py::handle object) { return Py_TYPE(object.ptr())->tp_name; }

// A wrong type is an error of ours, with the names the caller knows, not pybind11's list of
// overloads.
Tensor tensor(std::string_view loss, const char* argument, py::handle object) {
  TORCH_CHECK_TYPE(THPVariable_Check(object.ptr()), public_name(loss), ": ", argument,
                   " must be a Tensor, got ", type_name(object));
  return THPVariable_Unpack(object.ptr());
}

OptionalTensor optional_tensor(std::string_view loss, const char* argument, py::handle object) {
  if (object.is_none()) return std::nullopt;
  return tensor(loss, argument, object);
}

std::string_view string(std::string_view loss, const char* argument, py::handle object) {
  TORCH_CHECK_TYPE(PyUnicode_Check(object.ptr()), public_name(loss), ": ", argument,
                   " must be a str, got ", type_name(object));
  Py_ssize_t size = 0;
  const char* text = PyUnicode_AsUTF8AndSize(object.ptr(), &size);
  if (text == nullptr) throw py::error_already_set();
  return {text, static_cast<size_t>(size)};
}

double number(std::string_view loss, const char* argument, py::handle object) {
  const double value = PyFloat_AsDouble(object.ptr());
  if (value == -1.0 && PyErr_Occurred() != nullptr) {
    PyErr_Clear();
    TORCH_CHECK_TYPE(false, public_name(loss), ": ", argument, " must be a number, got ",
                     type_name(object));
  }
  return value;
}

Numbers numbers(std::string_view loss, const py::tuple& tuple) {
  Numbers result;
  for (size_t i = 0; i < tuple.size(); ++i) {
    const double value = PyFloat_AsDouble(tuple[i].ptr());
    if (value == -1.0 && PyErr_Occurred() != nullptr) {
      PyErr_Clear();
      // Python knows what the signature calls it.
      const auto name = py::module_::import("fastloss._ops").attr("parameter_name")(loss, i);
      TORCH_CHECK_TYPE(false, public_name(loss), ": ", name.cast<std::string>(),
                       " must be a number, got ", type_name(tuple[i]));
    }
    result.push_back(value);
  }
  return result;
}

// avg_factor: None, a number or a 0-d tensor.
std::pair<OptionalTensor, OptionalNumber> avg_factor(std::string_view loss, py::handle object) {
  if (object.is_none()) return {};
  if (THPVariable_Check(object.ptr())) return {THPVariable_Unpack(object.ptr()), std::nullopt};
  return {std::nullopt, number(loss, "avg_factor", object)};
}

bool boolean(std::string_view loss, const char* argument, py::handle object) {
  TORCH_CHECK_TYPE(PyBool_Check(object.ptr()), public_name(loss), ": ", argument,
                   " must be a bool, got ", type_name(object));
  return object.ptr() == Py_True;
}

int64_t integer(std::string_view loss, const char* argument, py::handle object,
                const char* expected = "an int of 64 bits") {
  const long long value = PyLong_Check(object.ptr()) ? PyLong_AsLongLong(object.ptr()) : -1;
  const bool failed = PyErr_Occurred() != nullptr;
  if (failed) PyErr_Clear();
  TORCH_CHECK_TYPE(PyLong_Check(object.ptr()) && !failed, public_name(loss), ": ", argument,
                   " must be ", expected, ", got ", type_name(object));
  return value;
}

std::optional<int64_t> optional_integer(std::string_view loss, const char* argument,
                                        py::handle object) {
  if (object.is_none()) return std::nullopt;
  return integer(loss, argument, object, "an int of 64 bits or None");
}

struct Names {
  const char *first, *second, *extra;  // second: null where the first tensor stands in for it
  const char* weight = "weight";
};

Tensor call_loss(const c10::TypedOperatorHandle<LossSignature>& op, const Names& names,
                 std::string_view loss, py::handle first, py::handle second,
                 const py::tuple& parameters, py::handle extra, py::handle weight,
                 py::handle reduction, py::handle avg) {
  const Tensor a = tensor(loss, names.first, first),
               b = names.second ? tensor(loss, names.second, second) : a.detach();
  const OptionalTensor c = optional_tensor(loss, names.extra, extra),
                       w = optional_tensor(loss, names.weight, weight);
  const Numbers p = numbers(loss, parameters);
  const std::string_view r = string(loss, "reduction", reduction);
  const auto [avg_tensor, avg_number] = avg_factor(loss, avg);
  const py::gil_scoped_release no_gil;
  return op.call(loss, a, b, p, c, w, r, avg_tensor, avg_number);
}

const LossInfo& info_of(const LossList& losses, std::string_view loss) {
  const int index = losses.find(formula_name(loss).c_str());
  TORCH_CHECK_VALUE(index >= 0, "fastloss: no kernel is named \"", loss, "\"");
  return losses.begin[index];
}

Tensor pointwise(std::string_view loss, py::handle input, py::handle target,
                 const py::tuple& parameters, py::handle extra, py::handle weight,
                 py::handle reduction, py::handle avg_factor) {
  static const auto op = find_operator<LossSignature>("fastloss::pointwise");
  const LossInfo& info = info_of(catalogue().pointwise, loss);
  const Names names{info.input_name, info.targets == Targets::kNone ? nullptr : info.target_name,
                    info.extra_name};
  return call_loss(op, names, loss, input, target, parameters, extra, weight, reduction,
                   avg_factor);
}

Tensor policy(std::string_view loss, py::handle log_probs, py::handle old_log_probs,
              py::handle advantages, py::handle ref_log_probs, py::handle mask,
              const py::tuple& parameters, std::string_view normalizer, py::handle reduction,
              py::handle avg) {
  static const auto op = find_operator<PolicySignature>("fastloss::policy");
  const LossInfo& info = info_of(catalogue().pointwise, loss);
  const Tensor x = tensor(loss, info.input_name, log_probs),
               old = tensor(loss, info.target_name, old_log_probs),
               a = tensor(loss, info.extra_name, advantages);
  const OptionalTensor reference = optional_tensor(loss, "ref_log_probs", ref_log_probs),
                       m = optional_tensor(loss, "mask", mask);
  const Numbers p = numbers(loss, parameters);
  const std::string_view r = string(loss, "reduction", reduction);
  const auto [avg_tensor, avg_number] = avg_factor(loss, avg);
  const py::gil_scoped_release no_gil;
  return op.call(loss, x, old, a, reference, m, p, normalizer, r, avg_tensor, avg_number);
}

Tensor softmax(std::string_view loss, py::handle input, py::handle target,
               const py::tuple& parameters, py::handle extra, py::handle weight,
               py::handle reduction, py::handle avg_factor) {
  static const auto op = find_operator<LossSignature>("fastloss::softmax");
  const LossInfo& info = info_of(catalogue().softmax, loss);
  const Names names{info.input_name, info.target_name, info.extra_name, info.weight_name};
  return call_loss(op, names, loss, input, target, parameters, extra, weight, reduction,
                   avg_factor);
}

Tensor linear_cross_entropy(std::string_view loss, py::handle input, py::handle linear_weight,
                            py::handle linear_bias, py::handle target, const py::tuple& parameters,
                            py::handle weight, py::handle reduction, py::handle avg) {
  static const auto op =
      find_operator<LinearCrossEntropySignature>("fastloss::linear_cross_entropy");
  constexpr std::string_view kName = "linear_cross_entropy";
  const Tensor x = tensor(kName, "input", input),
               lw = tensor(kName, "linear_weight", linear_weight),
               t = tensor(kName, "target", target);
  const OptionalTensor b = optional_tensor(kName, "linear_bias", linear_bias),
                       w = optional_tensor(kName, "weight", weight);
  const Numbers p = numbers(loss, parameters);
  const std::string_view r = string(kName, "reduction", reduction);
  const auto [avg_tensor, avg_number] = avg_factor(kName, avg);
  const py::gil_scoped_release no_gil;
  return op.call(loss, x, lw, b, t, p, w, r, avg_tensor, avg_number);
}

Tensor box_pair(std::string_view loss, py::handle boxes1, py::handle boxes2,
                const py::tuple& parameters, py::handle extra, py::handle weight,
                py::handle reduction, py::handle avg_factor) {
  static const auto op = find_operator<LossSignature>("fastloss::box_pair");
  const LossInfo& info = info_of(catalogue().box_pair, loss);
  return call_loss(op, {info.input_name, info.target_name, info.extra_name}, loss, boxes1, boxes2,
                   parameters, extra, weight, reduction, avg_factor);
}

Tensor box_matrix(py::handle kind, py::handle boxes1, py::handle boxes2,
                  const py::tuple& parameters) {
  static const auto op = find_operator<MatrixSignature>("fastloss::box_matrix");
  constexpr const char* kName = "pairwise_box_iou";
  const std::string_view k = string(kName, "kind", kind);
  const Tensor a = tensor(kName, "boxes1", boxes1), b = tensor(kName, "boxes2", boxes2);
  const Numbers p = numbers(kName, parameters);
  const py::gil_scoped_release no_gil;
  return op.call(k, a, b, p);
}

Tensor box_crowd(std::string_view loss, py::handle boxes, py::handle target_boxes,
                 py::handle target_index, py::handle batch_index, py::handle target_batch_index,
                 const py::tuple& parameters, py::handle reduction) {
  static const auto op = find_operator<CrowdSignature>("fastloss::box_crowd");
  const Tensor a = tensor(loss, "boxes", boxes), b = tensor(loss, "target_boxes", target_boxes),
               i = tensor(loss, "target_index", target_index);
  const OptionalTensor batch = optional_tensor(loss, "batch_index", batch_index),
                       target_batch =
                           optional_tensor(loss, "target_batch_index", target_batch_index);
  const Numbers p = numbers(loss, parameters);
  const std::string_view r = string(loss, "reduction", reduction);
  const py::gil_scoped_release no_gil;
  return op.call(loss, a, b, i, batch, target_batch, p, r);
}

Tensor region(std::string_view loss, py::handle input, py::handle target,
              const py::tuple& parameters, py::handle activation, py::handle squared_pred,
              py::handle include_background, py::handle batch, py::handle weight,
              py::handle ignore_index, py::handle reduction) {
  static const auto op = find_operator<RegionSignature>("fastloss::region");
  const Tensor x = tensor(loss, "input", input), t = tensor(loss, "target", target);
  const Numbers p = numbers(loss, parameters);
  const std::string_view a = string(loss, "activation", activation),
                         r = string(loss, "reduction", reduction);
  const bool squared = boolean(loss, "squared_pred", squared_pred),
             background = boolean(loss, "include_background", include_background),
             pooled = boolean(loss, "batch", batch);
  const OptionalTensor w = optional_tensor(loss, "weight", weight);
  const std::optional<int64_t> ignored = optional_integer(loss, "ignore_index", ignore_index);
  const py::gil_scoped_release no_gil;
  return op.call(loss, x, t, p, a, squared, background, pooled, w, ignored, r);
}

Tensor ranked_region(std::string_view loss, py::handle input, py::handle target, py::handle present,
                     py::handle per_image, py::handle ignore_index, py::handle reduction) {
  static const auto op = find_operator<RankedRegionSignature>("fastloss::ranked_region");
  const Tensor x = tensor(loss, "input", input), t = tensor(loss, "target", target);
  const bool only_present = boolean(loss, "classes", present),
             image = boolean(loss, "per_image", per_image);
  const std::optional<int64_t> ignored = optional_integer(loss, "ignore_index", ignore_index);
  const std::string_view r = string(loss, "reduction", reduction);
  const py::gil_scoped_release no_gil;
  return op.call(loss, x, t, only_present, image, ignored, r);
}

Tensor pairs(std::string_view loss, py::handle scores, py::handle relevance,
             const py::tuple& parameters, py::handle mask, py::handle reduction) {
  static const auto op = find_operator<LossSignature>("fastloss::pairs");
  return call_loss(op, {"scores", "relevance", "mask"}, loss, scores, relevance, parameters, mask,
                   py::none(), reduction, py::none());
}

Tensor triplet(std::string_view loss, py::handle anchor, py::handle positive, py::handle negative,
               const py::tuple& parameters, py::handle reduction) {
  static const auto op = find_operator<TripletSignature>("fastloss::triplet");
  const Tensor a = tensor(loss, "anchor", anchor), b = tensor(loss, "positive", positive),
               c = tensor(loss, "negative", negative);
  const Numbers p = numbers(loss, parameters);
  const std::string_view r = string(loss, "reduction", reduction);
  const py::gil_scoped_release no_gil;
  return op.call(loss, a, b, c, p, r);
}

Tensor batch_hard(std::string_view loss, py::handle embeddings, py::handle labels,
                  const py::tuple& parameters, py::handle reduction) {
  static const auto op = find_operator<BatchHardSignature>("fastloss::batch_hard");
  const Tensor x = tensor(loss, "embeddings", embeddings), l = tensor(loss, "labels", labels);
  const Numbers p = numbers(loss, parameters);
  const std::string_view r = string(loss, "reduction", reduction);
  const py::gil_scoped_release no_gil;
  return op.call(loss, x, l, p, r);
}

Tensor row_pair(std::string_view loss, py::handle first, py::handle second,
                const py::tuple& parameters, py::handle reduction) {
  static const auto op = find_operator<LossSignature>("fastloss::row_pair");
  const LossInfo& info = info_of(catalogue().row_pair, loss);
  return call_loss(op, {info.input_name, info.target_name, ""}, loss, first, second, parameters,
                   py::none(), py::none(), reduction, py::none());
}

Tensor edges(std::string_view loss, py::handle z, py::handle pos_edge_index,
             py::handle neg_edge_index, py::handle reduction) {
  static const auto op = find_operator<EdgesSignature>("fastloss::edges");
  const Tensor x = tensor(loss, "z", z), positive = tensor(loss, "pos_edge_index", pos_edge_index),
               negative = tensor(loss, "neg_edge_index", neg_edge_index);
  const std::string_view r = string(loss, "reduction", reduction);
  const py::gil_scoped_release no_gil;
  return op.call(loss, x, positive, negative, r);
}

Tensor contrastive(py::handle z1, py::handle z2, py::handle temperature, py::handle mode,
                   py::handle normalize, int64_t positive, std::optional<int64_t> itself,
                   py::handle reduction) {
  static const auto op = find_operator<ContrastiveSignature>("fastloss::contrastive");
  constexpr const char* kName = "info_nce_loss";
  const Tensor a = tensor(kName, "z1", z1), b = tensor(kName, "z2", z2);
  const bool is_tensor = THPVariable_Check(temperature.ptr());
  const OptionalTensor t =
      is_tensor ? optional_tensor(kName, "temperature", temperature) : std::nullopt;
  const double t_number = is_tensor ? 1.0 : number(kName, "temperature", temperature);
  const std::string_view m = string(kName, "mode", mode), r = string(kName, "reduction", reduction);
  const bool unit = boolean(kName, "normalize", normalize);
  const py::gil_scoped_release no_gil;
  return op.call(a, b, t, t_number, m, unit, positive, itself, r);
}

// The scores of chains, as three functions take them.
struct ChainArguments {
  Tensor emissions, transitions;
  OptionalTensor start, end, mask;

  ChainArguments(std::string_view loss, py::handle emissions, py::handle transitions,
                 py::handle start, py::handle end, py::handle mask)
      : emissions(tensor(loss, "emissions", emissions)),
        transitions(tensor(loss, "transitions", transitions)),
        start(optional_tensor(loss, "start_transitions", start)),
        end(optional_tensor(loss, "end_transitions", end)),
        mask(optional_tensor(loss, "mask", mask)) {}
};

Tensor crf(py::handle emissions, py::handle tags, py::handle transitions, py::handle start,
           py::handle end, py::handle mask, py::handle reduction) {
  static const auto op = find_operator<CrfSignature>("fastloss::crf");
  constexpr const char* kName = "crf_loss";
  const ChainArguments chain(kName, emissions, transitions, start, end, mask);
  const Tensor t = tensor(kName, "tags", tags);
  const std::string_view r = string(kName, "reduction", reduction);
  const py::gil_scoped_release no_gil;
  return op.call(chain.emissions, t, chain.transitions, chain.start, chain.end, chain.mask, r);
}

Tensor crf_marginals(py::handle emissions, py::handle transitions, py::handle start, py::handle end,
                     py::handle mask) {
  static const auto op = find_operator<MarginalsSignature>("fastloss::crf_marginals");
  const ChainArguments chain("crf_marginals", emissions, transitions, start, end, mask);
  const py::gil_scoped_release no_gil;
  return op.call(chain.emissions, chain.transitions, chain.start, chain.end, chain.mask);
}

std::tuple<Tensor, Tensor> crf_decode(py::handle emissions, py::handle transitions,
                                      py::handle start, py::handle end, py::handle mask) {
  static const auto op = find_operator<DecodeSignature>("fastloss::crf_decode");
  const ChainArguments chain("crf_decode", emissions, transitions, start, end, mask);
  const py::gil_scoped_release no_gil;
  return op.call(chain.emissions, chain.transitions, chain.start, chain.end, chain.mask);
}

Tensor detr_matching_cost(py::handle logits, py::handle boxes, py::handle target_labels,
                          py::handle target_boxes, py::handle class_cost, py::handle bbox_cost,
                          py::handle giou_cost, py::handle alpha, py::handle gamma,
                          py::handle kind) {
  static const auto op = find_operator<MatchingSignature>("fastloss::detr_matching_cost");
  constexpr const char* kName = "detr_matching_cost";
  const Tensor x = tensor(kName, "logits", logits), b = tensor(kName, "boxes", boxes),
               l = tensor(kName, "target_labels", target_labels),
               t = tensor(kName, "target_boxes", target_boxes);
  const double of_class = number(kName, "class_cost", class_cost),
               of_boxes = number(kName, "bbox_cost", bbox_cost),
               of_giou = number(kName, "giou_cost", giou_cost), a = number(kName, "alpha", alpha),
               g = number(kName, "gamma", gamma);
  const std::string_view k = string(kName, "kind", kind);
  const py::gil_scoped_release no_gil;
  return op.call(x, b, l, t, of_class, of_boxes, of_giou, a, g, k);
}

Tensor sentence_bleu(py::handle candidates, py::handle references, py::handle max_order,
                     py::handle smoothing, py::handle smoothing_value, py::handle pad_index) {
  static const auto op = find_operator<SentenceBleuSignature>("fastloss::sentence_bleu");
  constexpr const char* kName = "sentence_bleu";
  const Tensor c = tensor(kName, "candidates", candidates),
               r = tensor(kName, "references", references);
  const int64_t order = integer(kName, "max_order", max_order),
                pad = integer(kName, "pad_index", pad_index);
  const std::string_view s = string(kName, "smoothing", smoothing);
  const OptionalNumber value =
      smoothing_value.is_none() ? std::nullopt
                                : OptionalNumber(number(kName, "smoothing_value", smoothing_value));
  const py::gil_scoped_release no_gil;
  return op.call(c, r, order, s, value, pad);
}

// What a detector predicts at its anchors, and what there is to find.
struct DetectionTensors {
  Tensor logits, distances, anchors, strides, labels, boxes;
  DetectionTensors(std::string_view function, const py::tuple& tensors)
      : logits(tensor(function, "logits", tensors[0])),
        distances(tensor(function, "distances", tensors[1])),
        anchors(tensor(function, "anchors", tensors[2])),
        strides(tensor(function, "strides", tensors[3])),
        labels(tensor(function, "target_labels", tensors[4])),
        boxes(tensor(function, "target_boxes", tensors[5])) {}
};

std::tuple<Tensor, Tensor> task_aligned_assignment(const py::tuple& detections, py::handle topk,
                                                   py::handle topk2, py::handle alpha,
                                                   py::handle beta, py::handle candidate_boxes) {
  static const auto op = find_operator<AssignmentSignature>("fastloss::task_aligned_assignment");
  constexpr const char* kName = "task_aligned_assignment";
  const DetectionTensors of(kName, detections);
  const int64_t k = integer(kName, "topk", topk);
  const OptionalInteger k2 = optional_integer(kName, "topk2", topk2);
  const double a = number(kName, "alpha", alpha), b = number(kName, "beta", beta);
  const OptionalTensor candidates = optional_tensor(kName, "candidate_boxes", candidate_boxes);
  const py::gil_scoped_release no_gil;
  return op.call(of.logits, of.distances, of.anchors, of.strides, of.labels, of.boxes, k, k2, a, b,
                 candidates);
}

Tensor task_aligned_detection_loss(const py::tuple& detections, py::handle indices,
                                   py::handle scores, py::handle weight) {
  static const auto op = find_operator<DetectionSignature>("fastloss::task_aligned_detection_loss");
  constexpr const char* kName = "task_aligned_detection_loss";
  const DetectionTensors of(kName, detections);
  const Tensor i = tensor(kName, "target_indices", indices),
               s = tensor(kName, "target_scores", scores);
  const OptionalTensor w = optional_tensor(kName, "weight", weight);
  const py::gil_scoped_release no_gil;
  return op.call(of.logits, of.distances, of.anchors, of.strides, of.labels, of.boxes, i, s, w);
}

py::dict build_info() {
  py::dict info;
  info["torch"] = FASTLOSS_TORCH_VERSION;  // the one it was compiled against
  info["instruction_set"] = cpu_backend().name;
  info["cuda"] = cuda_backend() != nullptr;
  info["cuda_version"] = FASTLOSS_CUDA_VERSION;
  info["cuda_architectures"] = FASTLOSS_CUDA_ARCHITECTURES;
  return info;
}

// name → engine, of every formula compiled in.
py::dict kernels() {
  py::dict result;
  const auto add = [&](const char* engine, const LossList& losses) {
    py::list names;
    for (int i = 0; i < losses.size; ++i) names.append(losses.begin[i].name);
    result[engine] = names;
  };
  add("pointwise", catalogue().pointwise);
  add("box_pair", catalogue().box_pair);
  add("box_matrix", catalogue().box_matrix);
  add("box_crowd", catalogue().box_crowd);
  add("softmax", catalogue().softmax);
  add("region", catalogue().region);
  add("ranked_region", catalogue().ranked_region);
  add("pairs", catalogue().pairs);
  add("triplet", catalogue().triplet);
  add("batch_hard", catalogue().batch_hard);
  add("row_pair", catalogue().row_pair);
  add("edges", catalogue().edges);
  return result;
}

}  // namespace

PYBIND11_MODULE(TORCH_EXTENSION_NAME, module) {
  cpu_backend();  // an impossible FASTLOSS_CPU_ISA is reported at import, not at the first loss
  module.def("pointwise", torch::wrap_pybind_function(pointwise));
  module.def("policy", torch::wrap_pybind_function(policy));
  module.def("softmax", torch::wrap_pybind_function(softmax));
  module.def("linear_cross_entropy", torch::wrap_pybind_function(linear_cross_entropy));
  module.def("box_pair", torch::wrap_pybind_function(box_pair));
  module.def("box_matrix", torch::wrap_pybind_function(box_matrix));
  module.def("box_crowd", torch::wrap_pybind_function(box_crowd));
  module.def("region", torch::wrap_pybind_function(region));
  module.def("ranked_region", torch::wrap_pybind_function(ranked_region));
  module.def("pairs", torch::wrap_pybind_function(pairs));
  module.def("triplet", torch::wrap_pybind_function(triplet));
  module.def("batch_hard", torch::wrap_pybind_function(batch_hard));
  module.def("row_pair", torch::wrap_pybind_function(row_pair));
  module.def("edges", torch::wrap_pybind_function(edges));
  module.def("contrastive", torch::wrap_pybind_function(contrastive));
  module.def("task_aligned_assignment", torch::wrap_pybind_function(task_aligned_assignment));
  module.def("task_aligned_detection_loss",
             torch::wrap_pybind_function(task_aligned_detection_loss));
  module.def("crf", torch::wrap_pybind_function(crf));
  module.def("crf_marginals", torch::wrap_pybind_function(crf_marginals));
  module.def("crf_decode", torch::wrap_pybind_function(crf_decode));
  module.def("detr_matching_cost", torch::wrap_pybind_function(detr_matching_cost));
  module.def("sentence_bleu", torch::wrap_pybind_function(sentence_bleu));
  module.def("build_info", build_info);
  module.def("kernels", kernels);
  module.def("empty_cache", [] { GradientMemory::instance().empty_cache(); });
}

}  // namespace fastloss
