#include "common/training/memory_plan.h"

#include <algorithm>
#include <cmath>
#include <optional>

#include "absl/strings/ascii.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/strip.h"
#include "common/base/status.h"
#include "common/model/layer.h"
#include "common/model/layer_inputs.h"
#include "common/model/loss_head.h"
#include "common/training/optimizer.h"

namespace fedge {
namespace {

// Measured: `fedge` with its libraries and the allocator's slack, and each token of a vocabulary
// (strings, their index, merges).
constexpr int64_t kProcessBytes = int64_t{18} << 20;
constexpr int64_t kBytesPerToken = 140;
// Panels and sums of a thread in the kernels.
constexpr int64_t kKernelBytesPerThread = int64_t{1} << 20;
// What decoding a weight costs beside multiplying it, in rows of the product.
constexpr double kDecodeRows = 32;
constexpr int64_t kLogitRows[] = {16, 32, 48, 96, 192, 384};

// What a plan may choose.
struct Choice {
  int64_t micro_batch, length, rank;
  int moment_bits;
  int64_t kept_layers, logit_rows;
};

int64_t HeadRank(const LoraSpec& spec, int64_t rank) {
  return spec.Find("output.weight") >= 0 ? rank : 0;
}

int64_t MaxRank(const LoraSpec& spec) {
  int64_t rank = 0;
  for (const LoraModule& module : spec.modules()) rank = std::max(rank, module.rank);
  return rank;
}

// Of the adapter with every rank above `rank` lowered to it.
int64_t Parameters(const LoraSpec& spec, int64_t rank) {
  int64_t count = 0;
  for (const LoraModule& module : spec.modules()) {
    count += std::min(rank, module.rank) * (module.in_features + module.out_features);
  }
  return count;
}

// What the kernels pack, shared by all threads, and the threads' own panels. Forward: the input of
// the widest product and its branches' sums. Backward, in bf16 only: the gradients of a group's
// outputs, rounded.
int64_t KernelBytes(const MemoryRequest& request, int64_t rows, int64_t logit_rows, int64_t rank) {
  const ModelConfig& config = request.model->config();
  const bool bf16 = request.precision == Precision::kBFloat16 && HasBFloat16Dot();
  const int64_t q_width = config.head_count * config.head_dim;
  const int64_t widest = std::max({config.embedding_length, config.feed_forward_length, q_width});
  // Beside the kernels: a branch's input and its gradient.
  const int64_t dropped = request.dropout ? 2 * 4 * rows * widest : 0;
  const int64_t packed = std::max(rows * widest, logit_rows * config.embedding_length);
  const int64_t outputs = std::max({config.embedding_length, 2 * config.feed_forward_length,
                                    q_width + 2 * config.head_count_kv * config.head_dim});
  const int64_t rounded = bf16 ? 2 * std::max(rows * outputs, logit_rows * config.vocab_size) : 0;
  const int64_t branches = rows * 3 * rank * 12 + outputs * rank * (bf16 ? 2 : 4);
  return packed * (bf16 ? 2 : 4) + branches + rounded + dropped +
         request.threads * kKernelBytesPerThread;
}

MemoryEstimate Estimate(const MemoryRequest& request, const Choice& choice) {
  const ModelConfig& config = request.model->config();
  const int64_t layers = config.block_count;
  const int64_t rows = choice.micro_batch * choice.length;
  const int64_t stream = rows * config.embedding_length;
  const int64_t parameters = Parameters(*request.adapter, choice.rank);
  MemoryEstimate e;
  e.model_file = static_cast<int64_t>(request.model->file().bytes().size());
  e.adapter = 2 * parameters * static_cast<int64_t>(sizeof(float));
  e.optimizer = AdamW::StateBytes(parameters, choice.moment_bits);
  e.activations = choice.kept_layers * LayerActivations::Bytes(config, rows, choice.rank) +
                  LayerInputs::Bytes(stream, layers, layers - choice.kept_layers) +
                  stream * static_cast<int64_t>(sizeof(float));  // the gradient that passes through
  const int64_t logit_rows = std::min(choice.logit_rows, rows);
  e.scratch =
      std::max(LossHead::LogitBytes(config, logit_rows), LayerWorkspace::Bytes(config, rows)) +
      LossHead::OtherBytes(config, logit_rows, HeadRank(*request.adapter, choice.rank)) +
      request.threads * AttentionScratch(config.head_dim, choice.length) *
          static_cast<int64_t>(sizeof(float));
  e.kernels = KernelBytes(request, rows, logit_rows, choice.rank);
  e.data = request.data_bytes;
  e.process = kProcessBytes + config.vocab_size * kBytesPerToken;
  return e;
}

// Arithmetic of a token's step, decoding included: forward and backward through layers and head,
// and the layers that are computed again.
double CostPerToken(const MemoryRequest& request, const Choice& choice) {
  const ModelConfig& config = request.model->config();
  const auto rows = static_cast<double>(choice.micro_batch * choice.length);
  double layer = 0;
  for (const WeightMatrix& weight : request.model->layers().front().linear) {
    layer += static_cast<double>(weight.rows * weight.cols);
  }
  const double head = static_cast<double>(config.vocab_size * config.embedding_length);
  const double passes = static_cast<double>(3 * config.block_count - choice.kept_layers);
  const double logit_rows = std::min(rows, static_cast<double>(choice.logit_rows));
  return layer * passes * (1 + kDecodeRows / rows) + 2 * head * (1 + kDecodeRows / logit_rows);
}

// The most layers that can be kept with the rest of `choice`, at least 1; nothing when not even
// that fits.
std::optional<int64_t> KeptLayers(const MemoryRequest& request, Choice choice) {
  std::optional<int64_t> kept;
  for (choice.kept_layers = 1; choice.kept_layers <= request.model->config().block_count;
       ++choice.kept_layers) {
    if (Estimate(request, choice).total() > request.limit_bytes) break;
    kept = choice.kept_layers;
  }
  return kept;
}

// The cheapest way to do what `asked` names: it fixes length, rank and optimizer.
std::optional<Choice> Cheapest(const MemoryRequest& request, const Choice& asked) {
  std::optional<Choice> best;
  for (int64_t passes = 1; passes <= request.batch_size; ++passes) {
    Choice choice = asked;
    choice.micro_batch = (request.batch_size + passes - 1) / passes;
    if (best && choice.micro_batch == best->micro_batch) continue;
    for (const int64_t logit_rows : kLogitRows) {
      choice.logit_rows = logit_rows;
      const std::optional<int64_t> kept = KeptLayers(request, choice);
      if (!kept) continue;
      choice.kept_layers = *kept;
      if (!best || CostPerToken(request, choice) < CostPerToken(request, *best)) best = choice;
    }
  }
  return best;
}

// What may be asked for, from what was asked down.
std::vector<Choice> Reductions(const MemoryRequest& request) {
  Choice choice = {1, request.length, MaxRank(*request.adapter), request.moment_bits, 1, 16};
  std::vector<Choice> choices = {choice};
  if (request.may_reduce_optimizer && choice.moment_bits != 8) {
    choice.moment_bits = 8;
    choices.push_back(choice);
  }
  while (request.may_reduce_length && choice.length / 2 >= kMinPlannedLength) {
    choice.length /= 2;
    choices.push_back(choice);
  }
  while (request.may_reduce_rank && choice.rank / 2 >= kMinPlannedRank) {
    choice.rank /= 2;
    choices.push_back(choice);
  }
  return choices;
}

// What the transformer does when nothing is said.
Choice Defaults(const MemoryRequest& request) {
  const ModelConfig& config = request.model->config();
  const int64_t rank = MaxRank(*request.adapter);
  const int64_t layer = LayerActivations::Bytes(config, request.batch_size * request.length, rank);
  return {request.batch_size,
          request.length,
          rank,
          request.moment_bits,
          std::clamp<int64_t>(kDefaultActivationBudget / layer, 1, config.block_count),
          LossHead::DefaultChunkRows(config.vocab_size)};
}

MemoryPlan MakePlan(const MemoryRequest& request, const Choice& choice) {
  const ModelConfig& config = request.model->config();
  MemoryPlan plan;
  plan.batch_size = request.batch_size;
  plan.micro_batch = choice.micro_batch;
  plan.length = choice.length;
  plan.rank = choice.rank;
  plan.moment_bits = choice.moment_bits;
  plan.kept_layers = choice.kept_layers;
  plan.transformer.activation_budget_bytes =
      choice.kept_layers *
      LayerActivations::Bytes(config, choice.micro_batch * choice.length, choice.rank);
  plan.transformer.logit_rows = choice.logit_rows;
  plan.limit_bytes = request.limit_bytes;
  plan.estimate = Estimate(request, choice);
  return plan;
}

std::string NameOfReductions(const MemoryRequest& request) {
  std::string names;
  const auto add = [&](bool allowed, absl::string_view name) {
    if (!allowed) absl::StrAppend(&names, names.empty() ? "" : ",", name);
  };
  add(request.may_reduce_optimizer || request.moment_bits == 8, "optimizer");
  add(request.may_reduce_length || request.length < 2 * kMinPlannedLength, "length");
  add(request.may_reduce_rank || MaxRank(*request.adapter) < 2 * kMinPlannedRank, "rank");
  return names;
}

absl::Status TooLittle(const MemoryRequest& request) {
  MemoryRequest all = request;
  all.may_reduce_optimizer = all.may_reduce_length = all.may_reduce_rank = true;
  const auto smallest = [](const MemoryRequest& r) { return MakePlan(r, Reductions(r).back()); };
  const MemoryPlan allowed = smallest(request);
  std::string message =
      absl::StrCat("a memory limit of ", FormatMegabytes(request.limit_bytes),
                   " is too little: the smallest plan, 1 row of ", allowed.length,
                   " tokens in one pass, rank ", allowed.rank, ", ", allowed.moment_bits,
                   "-bit optimizer, takes ", FormatMegabytes(allowed.estimate.total()),
                   ", of which the model file ", FormatMegabytes(allowed.estimate.model_file));
  const std::string names = NameOfReductions(request);
  if (!names.empty()) {
    const MemoryPlan least = smallest(all);
    absl::StrAppend(&message, "; with ", names, " reduced too (rank ", least.rank, ", length ",
                    least.length, ", ", least.moment_bits, "-bit optimizer) ",
                    FormatMegabytes(least.estimate.total()));
  }
  return absl::ResourceExhaustedError(message);
}

}  // namespace

absl::StatusOr<int64_t> ParseByteSize(absl::string_view text) {
  static constexpr std::pair<absl::string_view, double> kUnits[] = {
      {"kib", 0x1p10}, {"mib", 0x1p20}, {"gib", 0x1p30}, {"kb", 1e3},
      {"mb", 1e6},     {"gb", 1e9},     {"b", 1},        {"", 1}};
  const std::string lower = absl::AsciiStrToLower(text);
  for (const auto& [unit, factor] : kUnits) {
    absl::string_view number = lower;
    if (!absl::ConsumeSuffix(&number, unit)) continue;
    double value = 0;
    if (absl::SimpleAtod(absl::StripAsciiWhitespace(number), &value) && value > 0 &&
        value * factor < 0x1p62) {
      return static_cast<int64_t>(value * factor);
    }
    break;
  }
  return absl::InvalidArgumentError(
      absl::StrCat("\"", text, "\" is no size; write it as 600MB, 1.5GB, 512MiB or bytes"));
}

std::string FormatMegabytes(int64_t bytes) {
  return absl::StrFormat("%.0f MB", static_cast<double>(bytes) / 1e6);
}

std::string MemoryPlan::Describe(const ModelConfig& config) const {
  const auto part = [](absl::string_view name, int64_t bytes) {
    return absl::StrFormat("%s %.0f", name, static_cast<double>(bytes) / 1e6);
  };
  const int64_t passes = (batch_size + micro_batch - 1) / micro_batch;
  return absl::StrCat(
      "memory: ", FormatMegabytes(estimate.total()),
      limit_bytes > 0 ? absl::StrCat(" of ", FormatMegabytes(limit_bytes)) : "", " (",
      part("model file", estimate.model_file), ", ", part("adapter", estimate.adapter), ", ",
      part("optimizer", estimate.optimizer), ", ", part("activations", estimate.activations), ", ",
      part("scratch", estimate.scratch), ", ", part("kernels", estimate.kernels), ", ",
      part("program and data", estimate.process + estimate.data), "): ", batch_size, " rows of ",
      length, " tokens in ", passes, passes == 1 ? " pass" : " passes", ", activations of ",
      kept_layers, " of ", config.block_count, " layers kept, rank ", rank, ", ", moment_bits,
      "-bit optimizer");
}

absl::StatusOr<MemoryPlan> PlanMemory(const MemoryRequest& request) {
  FEDGE_CHECK(request.model != nullptr && request.adapter != nullptr && request.batch_size > 0 &&
              request.length > 0);
  if (request.limit_bytes == 0) return MakePlan(request, Defaults(request));
  for (const Choice& asked : Reductions(request)) {
    const std::optional<Choice> found = Cheapest(request, asked);
    if (found) return MakePlan(request, *found);
  }
  return TooLittle(request);
}

}  // namespace fedge
