#include <cmath>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "common/base/status.h"
#include "common/base/thread_pool.h"
#include "common/model/base_model.h"
#include "common/model/chat_template.h"
#include "common/training/dataset.h"
#include "common/training/evaluation.h"
#include "common/training/trainer.h"
#include "tools/fedge/adapter_output.h"
#include "tools/fedge/commands.h"
#include "tools/fedge/lora_option.h"
#include "tools/report/progress.h"

namespace fedge {
namespace {

struct FinetuneOptions {
  std::string model;
  std::string data;
  std::string out;
  std::string lora;
  LoraTargets targets;
  TrainOptions train;
  double validation_fraction = 0.1;
  int64_t max_validation_examples = 256;
  int threads = 1;
  OutputFormat format = OutputFormat::kText;
};

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

absl::StatusOr<LoraAdapter> StartAdapter(const FinetuneOptions& options, const BaseModel& model,
                                         Env& env) {
  ASSIGN_OR_RETURN(std::optional<LoraAdapter> given, LoadLoraOption(options.lora, model, env));
  if (given) return *std::move(given);
  ASSIGN_OR_RETURN(LoraSpec spec, model.MakeLoraSpec(options.targets));
  LoraAdapter adapter(std::move(spec));
  adapter.InitializeForTraining(options.train.seed);
  return adapter;
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
  if (options.train.length > model.config().context_length) {
    return absl::InvalidArgumentError(absl::StrCat("--length ", options.train.length,
                                                   " exceeds the model's context of ",
                                                   model.config().context_length, " tokens"));
  }
  if (!(options.validation_fraction >= 0 && options.validation_fraction < 1)) {
    return absl::InvalidArgumentError(
        absl::StrCat("--validation ", options.validation_fraction, " is not in [0, 1)"));
  }
  return absl::OkStatus();
}

absl::Status RunFinetune(FinetuneOptions& options, CommandContext& context) {
  Env& env = context.env();
  ProgressLine line(context.err(), context.clock(), context.err_columns());
  ASSIGN_OR_RETURN(std::shared_ptr<const BaseModel> model, BaseModel::Load(options.model, env));
  RETURN_IF_ERROR(CheckOptions(options, *model));
  ASSIGN_OR_RETURN(LoraAdapter adapter, StartAdapter(options, *model, env));
  const ChatFormat chat = ChatFormatOf(model->tokenizer(), line);
  ASSIGN_OR_RETURN(const Split split, ReadSplit(options, model->tokenizer(), chat, env));
  RETURN_IF_ERROR(CheckOutputDir(options.out, env));

  ThreadPool pool(options.threads);
  Transformer transformer(model, &pool);
  line.Print(absl::StrCat(FormatCount(adapter.spec().num_parameters()), " adapter parameters, ",
                          split.train.size(), " training and ", split.validation.size(),
                          " validation examples"));
  if (split.validation.empty() && options.validation_fraction > 0) {
    line.Print("note: too few records to hold any out; no validation loss is measured");
  }
  const LossSum before = EvaluateLoss(transformer, &adapter, split.validation);
  options.train.learning_rate.total_steps = options.train.steps;
  ASSIGN_OR_RETURN(const TrainResult trained,
                   TrainWithProgress(options, split, context, line, transformer, adapter));
  const LossSum after = EvaluateLoss(transformer, &adapter, split.validation);
  RETURN_IF_ERROR(WriteAdapterBothFormats(adapter, AdapterInfoOf(*model, true), options.out, env));

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
  context.PrintSummary(summary, options.format);
  return absl::OkStatus();
}

void AddTrainingOptions(CLI::App* command, FinetuneOptions& options) {
  TrainOptions& train = options.train;
  command->add_option("--rank", options.targets.rank, "LoRA rank (default 16)")->type_name("R");
  command->add_option("--alpha", options.targets.alpha, "LoRA alpha (default 32)")->type_name("A");
  command
      ->add_option("--target-modules", options.targets.modules,
                   "Layers to adapt: all (default) or q,k,v,o,gate,up,down,output")
      ->delimiter(',')
      ->type_name("NAMES");
  command->add_option("--steps", train.steps, "Optimizer steps (default 100)")->type_name("N");
  command->add_option("--batch", train.batch_size, "Rows a step (default 4)")->type_name("B");
  command->add_option("--length", train.length, "Tokens a row (default 256)")->type_name("T");
  command->add_option("--learning-rate", train.learning_rate.peak, "Peak (default 1e-3)")
      ->type_name("RATE");
  command->add_option("--warmup", train.learning_rate.warmup_steps, "Steps to the peak (default 0)")
      ->type_name("N");
  command->add_option("--weight-decay", train.adamw.weight_decay, "AdamW's decay (default 0)")
      ->type_name("W");
  command->add_option("--clip", train.clip_norm, "Gradient norm limit (default 1); 0: none")
      ->type_name("NORM");
  command
      ->add_option("--completion-weight", train.completion_weight,
                   "What a token of a completion counts in the loss beside one of plain text "
                   "(default 1)")
      ->type_name("W");
  command->add_option("--seed", train.seed, "Seed of everything random (default 0)")
      ->type_name("S");
  command
      ->add_option("--validation", options.validation_fraction,
                   "Fraction of records held out (default 0.1)")
      ->type_name("F");
}

}  // namespace

void RegisterFinetune(CLI::App& app, CommandContext& context) {
  auto options = std::make_shared<FinetuneOptions>();
  options->train.steps = 100;
  CLI::App* command =
      app.add_subcommand("finetune", "Train a LoRA adapter on this machine, without a server");
  command->add_option("--model", options->model, "Base model (GGUF)")
      ->required()
      ->type_name("FILE");
  command->add_option("--data", options->data, "JSONL or text file, or a folder of such")
      ->required()
      ->type_name("PATH");
  command->add_option("--out", options->out, "Folder for adapter.gguf and peft/")
      ->required()
      ->type_name("DIR");
  command->add_option("--lora", options->lora, "Adapter to continue instead of a new one")
      ->type_name("PATH[:SCALE]");
  AddTrainingOptions(command, *options);
  AddThreadsOption(command, options->threads);
  AddFormatOption(command, options->format);
  command->footer(
      "Example:\n"
      "  fedge finetune --model model.gguf --data notes.jsonl --out run --rank 16 --steps 200");
  context.AddCommand(command, [options, &context] { return RunFinetune(*options, context); });
}

}  // namespace fedge
