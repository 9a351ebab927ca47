#include <memory>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "common/base/status.h"
#include "tools/fedge/commands.h"
#include "tools/pretrain/pretrain.h"
#include "tools/report/progress.h"

namespace fedge {
namespace {

struct CommandOptions {
  PretrainOptions pretrain;
  std::string output_type = "Q8_0";
  bool no_checkpoint = false;
  OutputFormat format = OutputFormat::kText;
};

std::string StartLine(const PretrainStart& start) {
  return absl::StrCat(
      FormatCount(start.parameters), " parameters, ", FormatCount(start.documents), " documents, ",
      FormatBytes(static_cast<uint64_t>(start.corpus_bytes)), " of text, ",
      FormatCount(start.training_tokens), " training tokens",
      start.resumed_step > 0 ? absl::StrCat(", continuing after step ", start.resumed_step) : "");
}

std::string StepLine(const PretrainProgress& p) {
  return absl::StrCat("step ", p.step, "/", p.steps, "  loss ",
                      absl::StrFormat("%.4f  norm %.2f  rate %.2e", p.smooth_loss, p.grad_norm,
                                      static_cast<double>(p.learning_rate)),
                      "  ", FormatRate(p.tokens_per_second, "tokens"), "  ", FormatTimeSpan(p.left),
                      " left");
}

nlohmann::ordered_json Summary(const PretrainOptions& options, const PretrainResult& result) {
  nlohmann::ordered_json summary;
  summary["output"] = options.output_file;
  summary["output_type"] = std::string(DTypeName(options.output_type));
  summary["output_bytes"] = result.output_bytes;
  summary["parameters"] = result.start.parameters;
  summary["documents"] = result.start.documents;
  summary["corpus_bytes"] = result.start.corpus_bytes;
  summary["corpus_tokens"] = result.start.corpus_tokens;
  summary["training_tokens"] = result.start.training_tokens;
  summary["steps"] = options.steps;
  summary["tokens_seen"] = options.steps * options.batch_size * options.length;
  summary["train_loss"] = result.last_loss;
  if (options.holdout_fraction > 0) {
    summary["holdout_loss"] = result.holdout_loss;
    summary["output_holdout_loss"] = result.output_holdout_loss;
  }
  return summary;
}

absl::Status RunPretrain(CommandOptions& options, CommandContext& context) {
  PretrainOptions& pretrain = options.pretrain;
  ASSIGN_OR_RETURN(pretrain.output_type, DTypeFromName(options.output_type));
  RETURN_IF_ERROR(CheckOutputDir(DirName(pretrain.output_file), context.env()));
  if (options.no_checkpoint) {
    pretrain.checkpoint_file.clear();
  } else if (pretrain.checkpoint_file.empty()) {
    pretrain.checkpoint_file = absl::StrCat(pretrain.output_file, ".checkpoint");
  }
  ProgressLine line(context.err(), context.clock(), context.err_columns());
  PretrainEvents events;
  events.on_start = [&line](const PretrainStart& start) { line.Print(StartLine(start)); };
  events.on_step = [&](const PretrainProgress& progress) {
    line.Update(StepLine(progress));
    if (progress.evaluated) {
      line.Print(
          absl::StrFormat("step %d  held-out loss %.4f", progress.step, progress.holdout_loss));
    }
    return !context.interrupted();
  };
  absl::StatusOr<PretrainResult> result =
      Pretrain(pretrain, events, context.env(), context.clock());
  line.Finish();
  if (!result.ok()) return result.status();
  context.PrintSummary(Summary(pretrain, *result), options.format);
  return absl::OkStatus();
}

void AddShapeOptions(CLI::App* command, LlamaShape& shape) {
  command->add_option("--hidden", shape.embedding_length, "Hidden size (default 192)");
  command->add_option("--layers", shape.block_count, "Layers (default 6)");
  command->add_option("--heads", shape.head_count, "Attention heads (default 6)");
  command->add_option("--kv-heads", shape.head_count_kv, "Key/value heads (default 3)");
  command->add_option("--ffn", shape.feed_forward_length, "Feed-forward size (default 512)");
  command->add_option("--context", shape.context_length, "Context length (default 512)");
  command->add_option("--rope-base", shape.rope_freq_base, "RoPE base (default 10000)");
}

void AddTrainingOptions(CLI::App* command, PretrainOptions& options) {
  command->add_option("--steps", options.steps, "Optimizer steps (default 1000)");
  command->add_option("--batch", options.batch_size, "Rows a step (default 32)");
  command->add_option("--length", options.length, "Tokens a row (default 256)");
  command->add_option("--learning-rate", options.peak_rate, "Peak learning rate (default 2e-3)");
  command->add_option("--warmup", options.warmup_steps, "Steps to the peak (default 100)");
  command->add_option("--final-rate", options.final_fraction,
                      "Last learning rate as a fraction of the peak (default 0.05)");
  command->add_option("--weight-decay", options.weight_decay, "Decay of matrices (default 0.1)");
  command->add_option("--clip", options.clip_norm, "Gradient norm limit (default 1); 0: none");
  command->add_option("--seed", options.seed, "Seed (default 0)");
  command->add_option("--holdout", options.holdout_fraction, "Held-out fraction (default 0.01)");
  command->add_option("--eval-every", options.eval_every,
                      "Steps between held-out losses (default 250); 0: only at the end");
}

}  // namespace

void RegisterPretrain(CLI::App& app, CommandContext& context) {
  auto options = std::make_shared<CommandOptions>();
  PretrainOptions& pretrain = options->pretrain;
  CLI::App* command =
      app.add_subcommand("pretrain", "Train a small Llama from text and write it as GGUF");
  command
      ->add_option("--data", pretrain.corpus_files, "Text files; a form feed line parts documents")
      ->required()
      ->type_name("FILE...");
  command
      ->add_option("--vocabulary", pretrain.vocabulary_file,
                   "SentencePiece model (BPE, byte fallback)")
      ->required()
      ->type_name("FILE");
  command->add_option("--out", pretrain.output_file, "GGUF to write")
      ->required()
      ->type_name("FILE");
  command->add_option("--output-type", options->output_type,
                      "Type of the matrices whose rows are whole blocks (32 values, of the K types "
                      "256): Q8_0 (default), Q4_0, Q4_1, Q5_0, Q5_1, Q4_K, Q5_K, Q6_K, F16, BF16 "
                      "or F32; the others are F32");
  AddShapeOptions(command, pretrain.shape);
  AddTrainingOptions(command, pretrain);
  command->add_option("--name", pretrain.labels.name, "general.name of the file");
  command->add_option("--description", pretrain.labels.description, "general.description");
  command->add_option("--license", pretrain.labels.license, "general.license");
  command->add_option("--checkpoint", pretrain.checkpoint_file,
                      "State to continue from (default: OUT.checkpoint)");
  command->add_option("--checkpoint-every", pretrain.checkpoint_every,
                      "Steps between checkpoints (default 250)");
  command->add_flag("--no-checkpoint", options->no_checkpoint,
                    "Neither write nor read a checkpoint");
  AddThreadsOption(command, pretrain.threads);
  AddFormatOption(command, options->format);
  command->footer(
      "Stopped by Ctrl-C it writes a checkpoint; the same command continues there.\n\nExample:\n"
      "  fedge pretrain --data corpus.txt --vocabulary spm.model --out base.gguf --steps 5000");
  context.AddCommand(command, [options, &context] { return RunPretrain(*options, context); });
}

}  // namespace fedge
