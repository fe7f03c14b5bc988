// SPDX-License-Identifier: MIT
// The engine `contrastive` as operators: embeddings compared with all others. Similarities are
// products of matrices, made for some rows at a time by torch, and turn into their own gradient.
#pragma once
#include <ATen/ops/add.h>
#include <ATen/ops/addmm.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/full.h>
#include <ATen/ops/linalg_vector_norm.h>
#include <ATen/ops/logaddexp.h>
#include <ATen/ops/mm.h>
#include <ATen/ops/sum.h>
#include <ATen/ops/where.h>
#include <ATen/ops/zeros.h>

#include <algorithm>
#include <string>
#include <vector>

#include "engines/contrastive.h"
#include "torch/autograd.h"
#include "torch/checks.h"
#include "torch/tensors.h"

namespace fastloss {

constexpr std::string_view kContrastive = "info_nce_loss";
using ContrastiveNeeds = std::array<bool, 3>;  // the gradients of z1, z2, temperature

// Which softmaxes there are.
enum class ContrastiveMode {
  kRows,  // every row of z1 over the rows of z2
  kBoth,  // "clip": and every row of z2 over those of z1
  kAll,   // "nt_xent": every row of either over all other rows
};

// Everything but the tensors.
struct ContrastiveOptions {
  double temperature;
  std::string mode;
  bool normalize;
  int64_t positive;
  OptionalInteger itself;
  std::string reduction;

  ContrastiveMode kind() const {
    TORCH_CHECK_VALUE(mode == "rows" || mode == "clip" || mode == "nt_xent", kContrastive,
                      ": mode must be \"rows\", \"clip\" or \"nt_xent\", got \"", mode, "\"");
    return mode == "rows"   ? ContrastiveMode::kRows
           : mode == "clip" ? ContrastiveMode::kBoth
                            : ContrastiveMode::kAll;
  }
  Reduction reduction_kind() const { return check_reduction(kContrastive, reduction, false); }

  // How many losses there are.
  c10::SymInt losses(const Tensor& z1) const {
    return kind() == ContrastiveMode::kAll ? z1.sym_size(0) * 2 : z1.sym_size(0);
  }

  template <class Operator, class... More>
  auto call(const Operator& op, const Tensor& z1, const Tensor& z2,
            const OptionalTensor& of_temperature, More... more) const {
    return op.call(z1, z2, of_temperature, temperature, mode, normalize, positive, itself,
                   reduction, more...);
  }
};

// float32, or float64 where one side is. A tensor that is the temperature does not count.
inline at::TensorOptions contrastive_type(const Tensor& z1, const Tensor& z2) {
  return z1.options().dtype(accumulate_type(z1, z2));
}

inline std::tuple<Tensor, Tensor, Tensor, Tensor> contrastive_meta(
    const Tensor& z1, const Tensor& z2, const OptionalTensor& /*temperature*/,
    double temperature_number, std::string_view mode, bool normalize, int64_t positive,
    OptionalInteger itself, std::string_view reduction, const OptionalTensor& /*upstream*/,
    ContrastiveNeeds needs) {
  const ContrastiveOptions options{
      temperature_number, std::string(mode), normalize, positive, itself, std::string(reduction)};
  const auto type = contrastive_type(z1, z2);
  const bool unreduced = options.reduction_kind() == Reduction::kNone;
  const auto gradient = [&](bool needed, const Tensor& like) {
    return needed ? at::empty_symint(like.sym_sizes(), type) : at::empty({0}, type);
  };
  return {unreduced ? at::empty_symint({options.losses(z1)}, type) : at::empty({}, type),
          gradient(needs[0], z1), gradient(needs[1], z2),
          needs[2] ? at::empty({}, type) : at::empty({0}, type)};
}

// Rows of embeddings, of unit length where that is wanted.
struct ContrastiveRows {
  Tensor unit;
  Tensor norm, inverse;  // [rows, 1]; undefined where the rows are as they came

  ContrastiveRows() = default;
  ContrastiveRows(const Tensor& embeddings, bool normalize) : unit(embeddings) {
    if (!normalize) return;
    norm = at::linalg_vector_norm(embeddings, 2, at::IntArrayRef(-1), /*keepdim=*/true);
    inverse = norm.clamp_min(kShortest).reciprocal_();
    unit = embeddings.mul(inverse);
  }

  // From the gradient of `unit`, in its place, to that of the embeddings. `along` is how much of it
  // points along each row.
  Tensor through_norm(const Tensor& gradient, const Tensor& along) const {
    if (!norm.defined()) return gradient;
    // What is shorter is divided by a constant.
    const Tensor less = at::where(norm.lt(kShortest), at::zeros({}, along.options()), along);
    return gradient.addcmul_(unit, less, -1.0).mul_(inverse);
  }

 private:
  static constexpr double kShortest = 1e-12;  // as in torch's normalize
};

// Similarities some rows at a time. Those of the first chunks stay for the second sweep where the
// memory suffices: as much as the embeddings take, or a few chunks.
class ContrastiveChunks {
 public:
  struct Chunk {
    int64_t begin, count, first_column, columns;
    int64_t place;  // in the memory
    bool stays;
  };

  ContrastiveChunks(const Tensor& rows, const Tensor& columns, bool symmetric, bool two_sweeps)
      : rows_(rows), columns_(columns) {
    const int64_t height = rows.size(0), width = columns.size(0);
    const int64_t bytes = rows.is_cpu() ? int64_t{2} << 20 : int64_t{16} << 20;
    const int64_t item = static_cast<int64_t>(rows.element_size());
    const int64_t inputs = static_cast<int64_t>(rows.nbytes() + columns.nbytes());
    const int64_t budget = std::max(4 * bytes, inputs) / item;
    // Where rows are columns too, the first rows' positives are not among the same chunk's.
    const int64_t most = symmetric ? height / 2 : height;
    const int64_t fitting = std::max(bytes, inputs / 4) / item / width / 16 * 16;
    const int64_t step = std::min(std::max<int64_t>(fitting, 16), most);
    int64_t total = 0;
    for (int64_t begin = 0; begin < height; begin += step) {
      const int64_t first = symmetric ? begin : 0, count = std::min(step, height - begin);
      chunks_.push_back({begin, count, first, width - first, 0, false});
      total += count * (width - first);
    }
    const int64_t spare = total <= budget && two_sweeps ? 0 : step * width;
    int64_t used = 0;
    for (Chunk& chunk : chunks_) {
      const int64_t size = chunk.count * chunk.columns;
      chunk.stays = two_sweeps && used + size + spare <= budget;
      if (!chunk.stays) break;
      chunk.place = used;
      used += size;
    }
    for (Chunk& chunk : chunks_) {
      if (!chunk.stays) chunk.place = used;
    }
    memory_ = at::empty({used + spare}, rows.options());
  }

  const std::vector<Chunk>& list() const { return chunks_; }

  Tensor tile(const Chunk& chunk) const {
    return memory_.narrow(0, chunk.place, chunk.count * chunk.columns)
        .view({chunk.count, chunk.columns});
  }
  Tensor rows_of(const Chunk& chunk) const { return rows_.narrow(0, chunk.begin, chunk.count); }
  Tensor columns_of(const Chunk& chunk) const {
    return columns_.narrow(0, chunk.first_column, chunk.columns);
  }
  Tensor products(const Chunk& chunk) const {
    Tensor result = tile(chunk);
    at::mm_out(result, rows_of(chunk), columns_of(chunk).t());
    return result;
  }

 private:
  const Tensor rows_, columns_;
  std::vector<Chunk> chunks_;
  Tensor memory_;
};

// The address of a number from one on.
inline void* from(const Tensor& numbers, int64_t begin) {
  if (!numbers.defined()) return nullptr;
  return static_cast<char*>(numbers.mutable_data_ptr()) +
         static_cast<std::size_t>(begin) * numbers.element_size();
}

// The softmaxes of rows, or of columns; undefined where there are none.
struct Softmaxes {
  Tensor largest, sums;        // of the negatives
  Tensor losses;               // then
  Tensor log_sums, negatives;  // and what the gradient reads

  Softmaxes() = default;
  explicit Softmaxes(int64_t count, const at::TensorOptions& type)
      : largest(at::full({count}, kFarBelow, type)),
        sums(at::zeros({count}, type)),
        losses(at::empty({count}, type)),
        log_sums(at::empty({count}, type)),
        negatives(at::empty({count}, type)) {}

  // Of `count` of them, that have met all their negatives. The loss is ln(1 + e^x), of which a
  // small one keeps its digits: x is how far the negatives together are above the positive.
  void complete(int64_t begin, int64_t count, const Tensor& positives) const {
    const auto of = [&](const Tensor& numbers) { return numbers.narrow(0, begin, count); };
    const Tensor above = of(sums).log().add_(of(largest)).sub_(positives);
    const Tensor loss = at::logaddexp(above, at::zeros({}, above.options()));
    of(losses).copy_(loss);
    of(log_sums).copy_(loss.add(positives));
    of(negatives).copy_(above.sigmoid());
  }
  NegativesState state(int64_t begin) const { return {from(largest, begin), from(sums, begin)}; }
  SoftmaxTotals totals(int64_t begin, const Tensor& weights) const {
    return {from(log_sums, begin), from(negatives, begin), from(weights, begin)};
  }
};

// A call on tensors that are not empty.
class ContrastiveRun {
 public:
  ContrastiveRun(const Tensor& z1, const Tensor& z2, const OptionalTensor& temperature,
                 const ContrastiveOptions& options, const OptionalTensor& upstream,
                 ContrastiveNeeds needs)
      : options_(options),
        kind_(options.kind()),
        reduction_(options.reduction_kind()),
        needs_(needs),
        count_(z1.size(0)),
        type_(contrastive_type(z1, z2)),
        launch_(z1) {
    arguments_.is_double = type_.dtype() == at::kDouble;
    arguments_.scale.factor = 1.0 / options.temperature;
    if (temperature) set_temperature(*temperature);
    if (upstream) upstream_ = upstream->to(type_.dtype()).contiguous();
    const Tensor a = z1.detach().to(type_.dtype()).contiguous(),
                 b = z2.detach().to(type_.dtype()).contiguous();
    if (kind_ == ContrastiveMode::kAll) {
      rows_ = columns_ = ContrastiveRows(at::cat({a, b}), options.normalize);
      arguments_.itself = 0;
      arguments_.positive = count_;
    } else {
      rows_ = ContrastiveRows(a, options.normalize);
      columns_ = ContrastiveRows(b, options.normalize);
      arguments_.itself = options.itself.value_or(kNowhere);
      arguments_.positive = options.positive;
    }
  }

  std::tuple<Tensor, Tensor, Tensor, Tensor> operator()() {
    const bool symmetric = kind_ == ContrastiveMode::kAll;
    const bool wanted = needs_[0] || needs_[1] || needs_[2];
    // Only where no column has a softmax, a chunk's are complete at once.
    const bool two_sweeps = wanted && kind_ != ContrastiveMode::kRows;
    const ContrastiveChunks chunks(rows_.unit, columns_.unit, symmetric, two_sweeps);
    of_rows_ = Softmaxes(rows_.unit.size(0), type_);
    if (symmetric) of_columns_ = of_rows_;
    if (kind_ == ContrastiveMode::kBoth) of_columns_ = Softmaxes(count_, type_);
    positives_ = at::empty({rows_.unit.size(0)}, type_);
    if (wanted) allocate_gradients();

    for (const auto& chunk : chunks.list()) {
      const Tensor tile = chunks.products(chunk);
      find_states(chunk, tile);
      if (kind_ != ContrastiveMode::kRows) continue;
      const Tensor positives = positives_.narrow(0, chunk.begin, chunk.count);
      of_rows_.complete(chunk.begin, chunk.count, positives);
      if (wanted) add_gradient(chunks, chunk, tile);
    }
    if (symmetric) {  // both rows of a pair have the same similarity
      const Tensor positives = positives_.narrow(0, 0, count_);
      of_rows_.complete(0, 2 * count_, at::cat({positives, positives}));
    } else if (kind_ == ContrastiveMode::kBoth) {
      of_rows_.complete(0, count_, positives_);
      of_columns_.complete(0, count_, positives_);
    }
    if (two_sweeps) {
      const auto& list = chunks.list();
      for (auto chunk = list.rbegin(); chunk != list.rend(); ++chunk) {
        const bool is_there = chunk->stays || chunk == list.rbegin();
        add_gradient(chunks, *chunk, is_there ? chunks.tile(*chunk) : chunks.products(*chunk));
      }
    }
    return finish(total(), wanted);
  }

 private:
  void set_temperature(const Tensor& temperature) {
    if (temperature.is_cpu()) {
      const auto number = temperature.item<double>();
      TORCH_CHECK_VALUE(!(number <= 0.0), kContrastive, ": temperature must be above 0, got ",
                        number);
      arguments_.scale.factor = 1.0 / number;
    } else {
      temperature_ = temperature.detach().to(type_.dtype());
      arguments_.scale = {1.0, input_of(temperature_)};
    }
  }

  // The arguments for a chunk's tile.
  ContrastiveArguments arguments_of(const ContrastiveChunks::Chunk& chunk, const Tensor& tile) {
    ContrastiveArguments result = arguments_;
    result.tile = tile.mutable_data_ptr();
    result.rows = chunk.count;
    result.columns = chunk.columns;
    const int64_t shift = chunk.begin - chunk.first_column;
    if (result.itself != kNowhere) result.itself += shift;
    result.positive += shift;
    return result;
  }

  void find_states(const ContrastiveChunks::Chunk& chunk, const Tensor& tile) {
    ContrastiveArguments arguments = arguments_of(chunk, tile);
    arguments.row_state = of_rows_.state(chunk.begin);
    arguments.column_state = of_columns_.state(chunk.first_column);
    arguments.first_counted_column = kind_ == ContrastiveMode::kAll ? chunk.count : 0;
    arguments.positives = from(positives_, chunk.begin);
    launch_.backend().contrastive_states(arguments, launch_.execution());
  }

  Tensor total() const {
    const Tensor losses = kind_ == ContrastiveMode::kBoth
                              ? of_rows_.losses.add(of_columns_.losses).mul_(0.5)
                              : of_rows_.losses;
    return reduction_ == Reduction::kNone   ? losses
           : reduction_ == Reduction::kMean ? losses.mean()
                                            : losses.sum();
  }

  void allocate_gradients() {
    row_gradient_ = empty_gradient(rows_.unit, true).zero_();
    column_gradient_ = kind_ == ContrastiveMode::kAll ? row_gradient_
                       : needs_[1]                    ? empty_gradient(columns_.unit, true).zero_()
                                                      : Tensor();
    arguments_.factor = kind_ == ContrastiveMode::kBoth ? 0.5 : 1.0;
    if (reduction_ == Reduction::kMean)
      arguments_.factor /= static_cast<double>(rows_.unit.size(0));
  }

  void add_gradient(const ContrastiveChunks& chunks, const ContrastiveChunks::Chunk& chunk,
                    const Tensor& tile) {
    ContrastiveArguments arguments = arguments_of(chunk, tile);
    arguments.of_rows = of_rows_.totals(chunk.begin, upstream_);
    arguments.of_columns = of_columns_.totals(chunk.first_column, upstream_);
    launch_.backend().contrastive_gradient(arguments, launch_.execution());
    if (needs_[0] || needs_[2] || kind_ == ContrastiveMode::kAll) {
      row_gradient_.narrow(0, chunk.begin, chunk.count).addmm_(tile, chunks.columns_of(chunk));
    }
    // Where rows are columns too, those of the chunk have all of their gradient now.
    const int64_t done = kind_ == ContrastiveMode::kAll ? chunk.count : 0;
    const int64_t left = chunk.columns - done;
    if (column_gradient_.defined() && left > 0) {
      column_gradient_.narrow(0, chunk.first_column + done, left)
          .addmm_(tile.narrow(1, done, left).t(), chunks.rows_of(chunk));
    }
  }

  std::tuple<Tensor, Tensor, Tensor, Tensor> finish(const Tensor& loss, bool wanted) {
    Tensor gradients[3] = {at::empty({0}, type_), at::empty({0}, type_), at::empty({0}, type_)};
    if (!wanted) return {loss, gradients[0], gradients[1], gradients[2]};
    const Tensor along = row_gradient_.mul(rows_.unit).sum(-1, /*keepdim=*/true);
    if (needs_[2]) {
      // A similarity's slope is −similarity / temperature, and the rows' gradient says how much
      // every similarity counts; each one twice where rows are columns too.
      const double factor = kind_ == ContrastiveMode::kAll ? -0.5 : -1.0;
      const Tensor sum = along.sum().mul_(factor);
      gradients[2] =
          temperature_.defined() ? sum.div(temperature_) : sum.mul(arguments_.scale.factor);
    }
    if (kind_ == ContrastiveMode::kAll) {
      const Tensor both = rows_.through_norm(row_gradient_, along);
      if (needs_[0]) gradients[0] = both.narrow(0, 0, count_);
      // A view each would let neither be changed in place.
      if (needs_[1]) gradients[1] = both.narrow(0, count_, count_).clone();
    } else {
      if (needs_[0]) gradients[0] = rows_.through_norm(row_gradient_, along);
      if (needs_[1]) {
        const Tensor of_columns = column_gradient_.mul(columns_.unit).sum(-1, /*keepdim=*/true);
        gradients[1] = columns_.through_norm(column_gradient_, of_columns);
      }
    }
    return {loss, gradients[0], gradients[1], gradients[2]};
  }

  const ContrastiveOptions& options_;
  const ContrastiveMode kind_;
  const Reduction reduction_;
  const ContrastiveNeeds needs_;
  const int64_t count_;
  const at::TensorOptions type_;
  const Launch launch_;
  ContrastiveArguments arguments_;
  Tensor temperature_, upstream_;
  ContrastiveRows rows_, columns_;
  Softmaxes of_rows_, of_columns_;
  Tensor positives_, row_gradient_, column_gradient_;
};

inline void check_contrastive(const Tensor& z1, const Tensor& z2, const OptionalTensor& temperature,
                              const ContrastiveOptions& options) {
  const bool rows = options.kind() == ContrastiveMode::kRows;
  options.reduction_kind();
  check_floating(kContrastive, "z1", z1);
  check_floating(kContrastive, "z2", z2);
  TORCH_CHECK_VALUE(z1.dim() == 2, kContrastive, ": z1 must have shape (rows, features), got ",
                    z1.sym_sizes());
  check_same_device(kContrastive, "z2", z2, "z1", z1);
  if (rows && z2.dim() == 2) {  // of several processes: there are more columns than rows
    TORCH_CHECK_VALUE(z1.sym_size(1) == z2.sym_size(1), kContrastive,
                      ": z2 must have the features of z1, ", z1.sym_sizes(), ", got ",
                      z2.sym_sizes());
    TORCH_CHECK_VALUE(options.positive >= 0 && options.positive + z1.sym_size(0) <= z2.sym_size(0),
                      kContrastive, ": z2 must have a positive for each row of z1, ",
                      z1.sym_sizes(), ", from row ", options.positive, " on, got ", z2.sym_sizes());
  } else {
    check_same_shape(kContrastive, "z2", z2, "z1", z1);
  }
  if (temperature) check_floating(kContrastive, "temperature", *temperature);
  check_number(kContrastive, "temperature", temperature, "z1", z1);
}

inline std::tuple<Tensor, Tensor, Tensor, Tensor> contrastive_kernel(
    const Tensor& z1, const Tensor& z2, const OptionalTensor& temperature,
    double temperature_number, std::string_view mode, bool normalize, int64_t positive,
    OptionalInteger itself, std::string_view reduction, const OptionalTensor& upstream,
    ContrastiveNeeds needs) {
  if (z1.size(0) == 0) {
    const auto result = contrastive_meta(z1, z2, temperature, temperature_number, mode, normalize,
                                         positive, itself, reduction, upstream, needs);
    std::get<0>(result).zero_();
    std::get<2>(result).zero_();  // of several processes: columns nobody is compared with
    std::get<3>(result).zero_();
    return result;
  }
  const ContrastiveOptions options{
      temperature_number, std::string(mode), normalize, positive, itself, std::string(reduction)};
  check_contrastive(z1, z2, temperature, options);
  return ContrastiveRun(z1, z2, temperature, options, upstream, needs)();
}

// The options, and the gradients that wait for backward.
struct ContrastiveCall : torch::CustomClassHolder {
  explicit ContrastiveCall(ContrastiveOptions options) : options(std::move(options)) {}
  ContrastiveOptions options;
  variable_list gradients;  // of z1, z2 and temperature; none once handed over
};

struct ContrastiveFunction : torch::autograd::Function<ContrastiveFunction> {
  static auto forward_operator() {
    static const auto op =
        find_operator<ContrastiveForwardSignature>("fastloss::contrastive_forward");
    return op;
  }

  static Tensor forward(AutogradContext* context, const Tensor& z1, const Tensor& z2,
                        const OptionalTensor& temperature,
                        const c10::intrusive_ptr<ContrastiveCall>& call) {
    at::AutoDispatchBelowADInplaceOrView below_autograd;
    // Rows share gradients: that of the unreduced loss needs the upstream gradient first.
    const bool now = call->options.reduction != "none";
    const ContrastiveNeeds needs{now && z1.requires_grad(), now && z2.requires_grad(),
                                 now && requires_grad(temperature)};
    auto [loss, of_z1, of_z2, of_temperature] =
        call->options.call(forward_operator(), z1, z2, temperature, OptionalTensor(), needs);
    if (now) call->gradients = {of_z1, of_z2, of_temperature};
    context->save_for_backward({z1, z2, temperature.value_or(Tensor())});
    context->saved_data["call"] = at::IValue::make_capsule(call);
    return loss;
  }

  static variable_list backward(AutogradContext* context, const variable_list& upstreams) {
    auto& call = static_cast<ContrastiveCall&>(*context->saved_data["call"].toCapsule());
    const variable_list saved = context->get_saved_variables();
    const OptionalTensor temperature = saved[2].defined() ? OptionalTensor(saved[2]) : std::nullopt;
    const ContrastiveNeeds needs{context->needs_input_grad(0), context->needs_input_grad(1),
                                 temperature && context->needs_input_grad(2)};
    if (c10::GradMode::is_enabled()) {
      static const auto reference =
          find_operator<ContrastiveSignature>("fastloss::contrastive_reference");
      const Tensor loss = call.options.call(reference, saved[0], saved[1], temperature);
      variable_list result =
          differentiable_gradients(loss, saved, {needs[0], needs[1], needs[2]}, upstreams[0]);
      result.emplace_back();  // the call
      return result;
    }
    at::AutoDispatchBelowADInplaceOrView below_autograd;
    const bool unreduced = call.options.reduction == "none";
    variable_list gradients = std::move(call.gradients);
    call.gradients.clear();
    if (gradients.empty()) {
      gradients.resize(3);
      std::tie(std::ignore, gradients[0], gradients[1], gradients[2]) =
          call.options.call(forward_operator(), saved[0], saved[1], temperature,
                            unreduced ? OptionalTensor(upstreams[0]) : std::nullopt, needs);
    }
    variable_list result(4);
    for (size_t i = 0; i < 3; ++i) {
      if (!needs[i]) continue;
      const Tensor gradient =
          unreduced ? gradients[i] : scaled(std::move(gradients[i]), upstreams[0]);
      result[i] = narrowed(gradient, saved[i].scalar_type());
    }
    if (needs[2]) result[2] = result[2].to(temperature->device());
    return result;
  }
};

inline Tensor contrastive_entry(const Tensor& z1, const Tensor& z2,
                                const OptionalTensor& temperature, double temperature_number,
                                std::string_view mode, bool normalize, int64_t positive,
                                OptionalInteger itself, std::string_view reduction) {
  const auto call = c10::make_intrusive<ContrastiveCall>(ContrastiveOptions{
      temperature_number, std::string(mode), normalize, positive, itself, std::string(reduction)});
  check_contrastive(z1, z2, temperature, call->options);
  if (!kernels_serve(z1, z2) ||
      (temperature && (is_functorch_wrapped(*temperature) || has_tangent(*temperature)))) {
    static const auto reference =
        find_operator<ContrastiveSignature>("fastloss::contrastive_reference");
    return call->options.call(reference, z1, z2, temperature);
  }
  if (c10::GradMode::is_enabled() &&
      (z1.requires_grad() || z2.requires_grad() || requires_grad(temperature)))
    return ContrastiveFunction::apply(z1, z2, temperature, call);
  at::AutoDispatchBelowADInplaceOrView below_autograd;
  return std::get<0>(call->options.call(ContrastiveFunction::forward_operator(), z1, z2,
                                        temperature, OptionalTensor(),
                                        ContrastiveNeeds{false, false, false}));
}

}  // namespace fastloss
