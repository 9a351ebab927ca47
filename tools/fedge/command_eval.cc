#include <memory>
#include <optional>
#include <string>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "common/base/status.h"
#include "common/base/thread_pool.h"
#include "common/model/base_model.h"
#include "common/training/evaluation.h"
#include "tools/fedge/commands.h"
#include "tools/fedge/lora_option.h"
#include "tools/report/progress.h"

namespace fedge {
namespace {

struct EvalOptions {
  std::string model;
  std::string lora;
  std::string data;
  PerplexityOptions perplexity;
  int threads = 1;
  OutputFormat format = OutputFormat::kText;
};

absl::Status RunEval(const EvalOptions& options, CommandContext& context) {
  Env& env = context.env();
  ASSIGN_OR_RETURN(std::shared_ptr<const BaseModel> model, BaseModel::Load(options.model, env));
  ASSIGN_OR_RETURN(const std::optional<LoraAdapter> adapter,
                   LoadLoraOption(options.lora, *model, env));
  ASSIGN_OR_RETURN(const std::string text, env.ReadFile(options.data));
  ThreadPool pool(options.threads);
  Transformer transformer(model, &pool);
  ProgressLine progress(context.err(), context.clock(), context.err_columns());
  const absl::Duration begin = context.clock().Monotonic();
  const auto on_window = [&](const PerplexityResult& result) {
    const absl::Duration elapsed = context.clock().Monotonic() - begin;
    const double tokens = static_cast<double>(result.windows * options.perplexity.context);
    progress.Update(absl::StrCat("window ", result.windows, "  perplexity ",
                                 absl::StrFormat("%.4f", result.perplexity), "  ",
                                 FormatRate(tokens / absl::ToDoubleSeconds(elapsed), "tokens")));
  };
  absl::StatusOr<PerplexityResult> result =
      Perplexity(transformer, adapter ? &*adapter : nullptr, text, options.perplexity, on_window);
  progress.Finish();
  if (!result.ok()) return Annotate(result.status(), options.data);
  nlohmann::ordered_json summary;
  summary["perplexity"] = result->perplexity;
  summary["nats_per_token"] = result->mean_nats;
  summary["context"] = options.perplexity.context;
  summary["windows"] = result->windows;
  summary["scored_tokens"] = result->scored_tokens;
  summary["precision"] = options.perplexity.precision == Precision::kBFloat16 ? "bf16" : "fp32";
  summary["model"] = options.model;
  if (adapter) summary["lora"] = options.lora;
  summary["data"] = options.data;
  context.PrintSummary(summary, options.format);
  return absl::OkStatus();
}

}  // namespace

void RegisterEval(CLI::App& app, CommandContext& context) {
  auto options = std::make_shared<EvalOptions>();
  CLI::App* command = app.add_subcommand("eval", "Measure the perplexity of a text");
  command->add_option("--model", options->model, "Base model (GGUF)")
      ->required()
      ->type_name("FILE");
  command->add_option("--lora", options->lora, "Adapter (GGUF or PEFT folder) and its strength")
      ->type_name("PATH[:SCALE]");
  command->add_option("--data", options->data, "Text file")->required()->type_name("FILE");
  command->add_option("--context", options->perplexity.context, "Tokens a window (default 512)")
      ->type_name("C");
  command->add_option("--chunks", options->perplexity.max_windows, "Windows at most (default: all)")
      ->check(CLI::NonNegativeNumber)
      ->type_name("N");
  AddPrecisionOption(command, "Of the products with the model's weights",
                     options->perplexity.precision);
  AddThreadsOption(command, options->threads);
  AddFormatOption(command, options->format);
  command->footer(
      "The text is cut into windows of C tokens; the second half of each is scored, as "
      "llama.cpp's\n"
      "perplexity tool does.\n\nExample:\n"
      "  fedge eval --model model.gguf --lora adapter.gguf:0.5 --data text.txt --context 256");
  context.AddCommand(command, [options, &context] { return RunEval(*options, context); });
}

}  // namespace fedge
