#include "tools/fedge/finetune.h"

#include <algorithm>
#include <cmath>
#include <memory>
#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "common/base/process_memory.h"
#include "common/base/status.h"
#include "common/base/thread_pool.h"
#include "common/model/chat_template.h"
#include "common/training/dataset.h"
#include "common/training/evaluation.h"
#include "common/training/memory_plan.h"
#include "tools/fedge/adapter_output.h"
#include "tools/fedge/lora_option.h"
#include "tools/report/progress.h"

namespace fedge {
namespace {

struct Split {
  std::vector<Example> train;
  std::vector<Example> validation;
};

// The format of "messages" records. A template of an unknown family matters only to chats: say so
// and go on with plain ones.
ChatFormat ChatFormatOf(const Tokenizer& tokenizer, ProgressLine& progress) {
  const absl::StatusOr<ChatFormat> format = RecognizeChatTemplate(tokenizer.chat_template());
  if (format.ok()) return *format;
  progress.Print(
      absl::StrCat("note: ", format.status().message(), "; chats are read as plain text"));
  return ChatFormat::kPlain;
}

absl::StatusOr<Split> ReadSplit(const FinetuneOptions& options, const Tokenizer& tokenizer,
                                ChatFormat format, Env& env) {
  ASSIGN_OR_RETURN(const std::vector<Record> records,
                   ReadRecords(options.data, format, DatasetLimits(), env));
  Split split;
  for (const Record& record : records) {
    const bool held_out = IsValidation(record, options.train.seed, options.validation_fraction);
    std::vector<Example>& side = held_out ? split.validation : split.train;
    if (held_out && static_cast<int64_t>(side.size()) >= options.max_validation_examples) continue;
    for (Example& example : MakeExamples(record, tokenizer, options.train.length)) {
      side.push_back(std::move(example));
    }
  }
  if (split.train.empty()) {
    return absl::FailedPreconditionError(
        absl::StrCat(options.data, ": no training example among ", records.size(),
                     " records; give more data or a smaller --validation"));
  }
  return split;
}

// The spec of a new adapter of `rank`: fewer ranks than asked for keep their strength.
absl::StatusOr<LoraSpec> NewSpec(const FinetuneOptions& options, const BaseModel& model,
                                 int64_t rank) {
  LoraTargets targets = options.targets;
  if (!options.layers.empty()) {
    const absl::Status layers = ParseLayerRange(options.layers, targets);
    if (!layers.ok()) return Annotate(layers, "--layers");
  }
  targets.rank = rank;
  targets.alpha *= options.rslora
                       ? std::sqrt(static_cast<float>(rank))
                       : static_cast<float>(rank) / static_cast<float>(options.targets.rank);
  return model.MakeLoraSpec(targets);
}

int64_t BytesOf(const std::vector<Example>& examples) {
  int64_t bytes = 0;
  for (const Example& example : examples) {
    bytes += static_cast<int64_t>(sizeof(Example) + 64 +
                                  example.tokens.size() * (sizeof(TokenId) + sizeof(TokenId)));
  }
  return bytes;
}

absl::StatusOr<MemoryPlan> MakePlan(const FinetuneOptions& options, const BaseModel& model,
                                    const LoraSpec& spec, const Split& split) {
  MemoryRequest request;
  request.model = &model;
  request.adapter = &spec;
  request.batch_size = options.train.batch_size;
  request.length = options.train.length;
  request.moment_bits = options.train.adamw.moment_bits;
  request.threads = options.threads;
  request.dropout = options.train.lora_dropout > 0;
  request.precision = options.train.precision;
  // The trainer has a copy of its own.
  request.data_bytes = 2 * BytesOf(split.train) + BytesOf(split.validation);
  if (!options.memory_limit.empty()) {
    ASSIGN_OR_RETURN(request.limit_bytes, ParseByteSize(options.memory_limit));
  }
  for (const std::string& what : options.may_reduce) {
    bool& flag = what == "optimizer" ? request.may_reduce_optimizer
                 : what == "length"  ? request.may_reduce_length
                                     : request.may_reduce_rank;
    flag = true;
  }
  // A given adapter is continued as it is.
  if (!options.lora.empty()) request.may_reduce_rank = false;
  return PlanMemory(request);
}

absl::StatusOr<TrainResult> TrainWithProgress(const FinetuneOptions& options, const Split& split,
                                              CommandContext& context, ProgressLine& line,
                                              Transformer& transformer, LoraAdapter& adapter) {
  const absl::Duration begin = context.clock().Monotonic();
  double smooth = 0;
  const auto on_step = [&](const TrainProgress& p) {
    smooth = p.step == 1 ? p.loss : 0.9 * smooth + 0.1 * p.loss;
    const absl::Duration elapsed = context.clock().Monotonic() - begin;
    line.Update(absl::StrCat(
        "step ", p.step, "/", p.steps, absl::StrFormat("  loss %.4f  ", smooth),
        FormatRate(static_cast<double>(p.tokens) / absl::ToDoubleSeconds(elapsed), "tokens"), "  ",
        FormatTimeSpan(elapsed / p.step * (p.steps - p.step)), " left"));
    return !context.interrupted();
  };
  absl::StatusOr<TrainResult> result =
      TrainAdapter(transformer, split.train, options.train, on_step, adapter);
  line.Finish();
  if (result.status().code() == absl::StatusCode::kCancelled) {
    return absl::CancelledError(absl::StrCat(result.status().message(), "; nothing was written"));
  }
  return result;
}

void AddLosses(absl::string_view when, const LossSum& loss, nlohmann::ordered_json& summary) {
  if (loss.num_tokens == 0) return;
  summary[absl::StrCat("validation_loss_", when)] = loss.mean();
  summary[absl::StrCat("validation_perplexity_", when)] = std::exp(loss.mean());
}

absl::Status CheckOptions(const FinetuneOptions& options, const BaseModel& model) {
  if (options.train.batch_size < 1 || options.train.length < 2) {
    return absl::InvalidArgumentError(absl::StrCat("--batch ", options.train.batch_size,
                                                   " --length ", options.train.length,
                                                   ": at least 1 row of 2 tokens is needed"));
  }
  if (options.train.length > model.config().context_length) {
    return absl::InvalidArgumentError(absl::StrCat("--length ", options.train.length,
                                                   " exceeds the model's context of ",
                                                   model.config().context_length, " tokens"));
  }
  if (!(options.validation_fraction >= 0 && options.validation_fraction < 1)) {
    return absl::InvalidArgumentError(
        absl::StrCat("--validation ", options.validation_fraction, " is not in [0, 1)"));
  }
  const bool is_new = options.lora.empty();
  if (!is_new && (options.rslora || options.init.kind != "zero-b" || !options.layers.empty())) {
    return absl::InvalidArgumentError(
        "--rslora, --init and --layers are of a new adapter; --lora continues one");
  }
  return CheckAdapterInit(options.init);
}

// A training that is ready to start.
struct Prepared {
  std::shared_ptr<const BaseModel> model;
  Split split;
  LoraAdapter adapter;
  MemoryPlan plan;
};

// What was asked for becomes what the plan allows.
absl::StatusOr<Prepared> Prepare(FinetuneOptions& options, CommandContext& context,
                                 ThreadPool& pool, ProgressLine& line) {
  Env& env = context.env();
  Prepared prepared;
  ASSIGN_OR_RETURN(prepared.model, BaseModel::Load(options.model, env));
  const BaseModel& model = *prepared.model;
  RETURN_IF_ERROR(CheckOptions(options, model));
  ASSIGN_OR_RETURN(std::optional<LoraAdapter> given, LoadLoraOption(options.lora, model, env));
  ASSIGN_OR_RETURN(LoraSpec spec,
                   given ? given->spec() : NewSpec(options, model, options.targets.rank));
  const ChatFormat chat = ChatFormatOf(model.tokenizer(), line);
  ASSIGN_OR_RETURN(prepared.split, ReadSplit(options, model.tokenizer(), chat, env));
  RETURN_IF_ERROR(CheckOutputDir(options.out, env));
  ASSIGN_OR_RETURN(prepared.plan, MakePlan(options, model, spec, prepared.split));
  const MemoryPlan& plan = prepared.plan;
  line.Print(plan.Describe(model.config()));
  options.train.micro_batch = plan.micro_batch;
  options.train.adamw.moment_bits = plan.moment_bits;
  if (plan.length != options.train.length) {
    options.train.length = plan.length;
    ASSIGN_OR_RETURN(prepared.split, ReadSplit(options, model.tokenizer(), chat, env));
  }
  if (given) {
    prepared.adapter = *std::move(given);
    return prepared;
  }
  if (plan.rank != options.targets.rank) {
    ASSIGN_OR_RETURN(spec, NewSpec(options, model, plan.rank));
  }
  prepared.adapter = LoraAdapter(std::move(spec));
  RETURN_IF_ERROR(
      InitializeAdapter(options.init, model, options.train.seed, pool, env, prepared.adapter));
  return prepared;
}

}  // namespace

absl::Status RunFinetune(FinetuneOptions options, CommandContext& context) {
  ProgressLine line(context.err(), context.clock(), context.err_columns());
  ThreadPool pool(options.threads);
  ASSIGN_OR_RETURN(Prepared prepared, Prepare(options, context, pool, line));
  const Split& split = prepared.split;
  LoraAdapter& adapter = prepared.adapter;
  line.Print(absl::StrCat(FormatCount(adapter.spec().num_parameters()), " adapter parameters, ",
                          split.train.size(), " training and ", split.validation.size(),
                          " validation examples"));
  if (split.validation.empty() && options.validation_fraction > 0) {
    line.Print("note: too few records to hold any out; no validation loss is measured");
  }
  std::optional<Transformer> transformer(std::in_place, prepared.model, &pool,
                                         prepared.plan.transformer);
  const int64_t rows = std::min(prepared.plan.micro_batch, kEvaluationRows);
  const LossSum before = EvaluateLoss(*transformer, &adapter, split.validation, rows);
  options.train.learning_rate.total_steps = options.train.steps;
  ASSIGN_OR_RETURN(const TrainResult trained,
                   TrainWithProgress(options, split, context, line, *transformer, adapter));
  const LossSum after = EvaluateLoss(*transformer, &adapter, split.validation, rows);
  transformer.reset();  // writing takes several copies of the adapter
  AdapterInfo info = AdapterInfoOf(*prepared.model, true);
  info.use_rslora = options.rslora;
  RETURN_IF_ERROR(WriteAdapterBothFormats(adapter, info, options.out, context.env()));

  nlohmann::ordered_json summary;
  summary["adapter_gguf"] = JoinPath(options.out, "adapter.gguf");
  summary["adapter_peft"] = JoinPath(options.out, "peft");
  summary["parameters"] = adapter.spec().num_parameters();
  summary["steps"] = options.train.steps;
  summary["trained_tokens"] = trained.num_tokens;
  summary["train_examples"] = trained.num_examples;
  summary["validation_examples"] = split.validation.size();
  summary["first_loss"] = trained.first_loss;
  summary["last_loss"] = trained.last_loss;
  AddLosses("before", before, summary);
  AddLosses("after", after, summary);
  summary["estimated_memory_bytes"] = prepared.plan.estimate.total();
  summary["peak_memory_bytes"] = PeakResidentBytes();
  context.PrintSummary(summary, options.format);
  return absl::OkStatus();
}

}  // namespace fedge
