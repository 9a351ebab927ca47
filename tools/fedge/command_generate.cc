#include <algorithm>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/base/status.h"
#include "common/base/thread_pool.h"
#include "common/model/base_model.h"
#include "common/model/chat_template.h"
#include "common/training/generation.h"
#include "tools/fedge/commands.h"
#include "tools/fedge/lora_option.h"

namespace fedge {
namespace {

struct CommandOptions {
  std::string model;
  std::string lora;
  std::string prompt;
  bool chat = false;
  bool ignore_end = false;
  GenerateOptions generate;
  int threads = 1;
  OutputFormat format = OutputFormat::kText;
};

absl::string_view StopName(GenerateResult::Stop stop) {
  switch (stop) {
    case GenerateResult::Stop::kLength:
      return "length";
    case GenerateResult::Stop::kEnd:
      return "end";
    case GenerateResult::Stop::kContext:
      return "context";
    case GenerateResult::Stop::kCallback:
      return "interrupted";
  }
  return "";
}

// The prompt as tokens: as it is, or as the user's turn in the model's chat format.
absl::StatusOr<std::vector<TokenId>> PromptTokens(const CommandOptions& options,
                                                  const Tokenizer& tokenizer) {
  if (!options.chat) return tokenizer.Encode(options.prompt);
  ASSIGN_OR_RETURN(const ChatFormat format, RecognizeChatTemplate(tokenizer.chat_template()));
  ASSIGN_OR_RETURN(const std::vector<ChatSpan> spans,
                   RenderChat(format, {ChatMessage{"user", options.prompt}}, false));
  return EncodeSpans(spans, tokenizer).ids;
}

double Rate(size_t count, absl::Duration duration) {
  const double seconds = absl::ToDoubleSeconds(duration);
  return seconds > 0 ? static_cast<double>(count) / seconds : 0.0;
}

absl::Status RunGenerate(const CommandOptions& options, CommandContext& context) {
  Env& env = context.env();
  ASSIGN_OR_RETURN(std::shared_ptr<const BaseModel> model, BaseModel::Load(options.model, env));
  ASSIGN_OR_RETURN(const std::optional<LoraAdapter> adapter,
                   LoadLoraOption(options.lora, *model, env));
  ASSIGN_OR_RETURN(const std::vector<TokenId> prompt, PromptTokens(options, model->tokenizer()));
  ThreadPool pool(options.threads);
  Transformer transformer(model, &pool);
  const bool streams = options.format == OutputFormat::kText;
  if (streams && !options.chat) context.out() << options.prompt << std::flush;
  std::string text;
  const absl::Duration begin = context.clock().Monotonic();
  absl::Duration first_token = begin;
  const auto on_token = [&](TokenId, absl::string_view bytes) {
    if (text.empty()) first_token = context.clock().Monotonic();
    absl::StrAppend(&text, bytes);
    if (streams) context.out() << bytes << std::flush;
    return !context.interrupted();
  };
  absl::StatusOr<GenerateResult> result =
      Generate(transformer, adapter ? &*adapter : nullptr, prompt, options.generate, on_token);
  if (streams) context.out() << std::endl;
  if (!result.ok()) return result.status();
  if (streams) return absl::OkStatus();
  const absl::Duration end = context.clock().Monotonic();
  nlohmann::ordered_json summary;
  summary["prompt"] = options.prompt;
  summary["text"] = text;
  summary["tokens"] = result->tokens;
  summary["prompt_tokens"] = prompt.size();
  summary["stop"] = std::string(StopName(result->stop));
  summary["prompt_tokens_per_second"] = Rate(prompt.size(), first_token - begin);
  // Of those after the first, which comes with the prompt.
  summary["tokens_per_second"] =
      Rate(std::max<size_t>(1, result->tokens.size()) - 1, end - first_token);
  context.PrintJson(summary);
  return absl::OkStatus();
}

}  // namespace

void RegisterGenerate(CLI::App& app, CommandContext& context) {
  auto options = std::make_shared<CommandOptions>();
  CLI::App* command = app.add_subcommand("generate", "Continue a text, to look at a result");
  command->add_option("--model", options->model, "Base model (GGUF)")
      ->required()
      ->type_name("FILE");
  command->add_option("--lora", options->lora, "Adapter (GGUF or PEFT folder) and its strength")
      ->type_name("PATH[:SCALE]");
  command->add_option("--prompt", options->prompt, "Text to continue")
      ->required()
      ->type_name("TEXT");
  command->add_flag("--chat", options->chat, "The prompt is a user's message to a chat model");
  command
      ->add_option("-n,--tokens", options->generate.max_tokens, "New tokens at most (default 128)")
      ->type_name("N");
  SamplingOptions& sampling = options->generate.sampling;
  command
      ->add_option("--temp", sampling.temperature,
                   "Temperature (default 0.8); 0: most likely token")
      ->type_name("T");
  command->add_option("--top-k", sampling.top_k, "Sample among the K best (default 40); 0: all")
      ->type_name("K");
  command->add_option("--top-p", sampling.top_p, "Nucleus sampling (default 0.95)")->type_name("P");
  command->add_option("--seed", options->generate.seed, "Seed (default 0)")->type_name("S");
  command->add_flag("--ignore-end", options->ignore_end, "Go on after the end of the text");
  command
      ->add_option_function<std::string>(
          "--kv-cache",
          [options](const std::string& name) {
            options->generate.kv_type = KvTypeFromName(name).value();
          },
          "How keys and values are kept: f16 (default), q8, q4 or f32")
      ->check(CLI::IsMember(std::vector<std::string>{"f16", "q8", "q4", "f32"}))
      ->type_name("TYPE");
  AddPrecisionOption(command, "Of the products over the prompt",
                     options->generate.prompt_precision);
  AddThreadsOption(command, options->threads);
  AddFormatOption(command, options->format);
  command->footer(
      "Example:\n"
      "  fedge generate --model model.gguf --lora adapter.gguf --prompt \"Once upon\" -n 100 "
      "--temp 0.7");
  context.AddCommand(command, [options, &context] {
    options->generate.stop_at_end = !options->ignore_end;
    return RunGenerate(*options, context);
  });
}

}  // namespace fedge
