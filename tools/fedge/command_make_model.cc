#include <memory>
#include <optional>
#include <string>

#include "common/base/status.h"
#include "tools/fedge/commands.h"
#include "tools/prepare/random_model.h"

namespace fedge {
namespace {

struct MakeModelOptions {
  NamedOutline named;
  std::optional<int64_t> hidden, layers, heads, kv_heads, head_dim, feed_forward, vocabulary,
      context;
  bool untied = false;
  std::string type = "Q4_0";
  std::string output_type;
  uint64_t seed = 0;
  std::string out;
  OutputFormat format = OutputFormat::kText;
};

absl::StatusOr<ModelOutline> OutlineOf(const MakeModelOptions& options) {
  ASSIGN_OR_RETURN(ModelOutline outline, MakeNamedOutline(options.named));
  outline.hidden = options.hidden.value_or(outline.hidden);
  outline.layers = options.layers.value_or(outline.layers);
  // Asked for heads alone, a model has as many for keys and values.
  outline.kv_heads =
      options.kv_heads.value_or(options.heads.has_value() ? *options.heads : outline.kv_heads);
  outline.heads = options.heads.value_or(outline.heads);
  outline.feed_forward = options.feed_forward.value_or(outline.feed_forward);
  outline.vocabulary = options.vocabulary.value_or(outline.vocabulary);
  outline.context = options.context.value_or(outline.context);
  outline.tied = !options.untied;
  outline.head_dim =
      options.head_dim.value_or(outline.heads > 0 ? outline.hidden / outline.heads : 0);
  outline.rope_dim = outline.head_dim;
  return outline;
}

absl::Status RunMakeModel(const MakeModelOptions& options, CommandContext& context) {
  RandomModelOptions random;
  ASSIGN_OR_RETURN(random.outline, OutlineOf(options));
  ASSIGN_OR_RETURN(random.type, DTypeFromName(options.type));
  if (!options.output_type.empty()) {
    ASSIGN_OR_RETURN(random.output_type, DTypeFromName(options.output_type));
  }
  random.seed = options.seed;
  random.output_file = options.out;
  RETURN_IF_ERROR(context.env().CreateDirs(DirName(options.out)));
  ASSIGN_OR_RETURN(const RandomModelResult result, MakeRandomModel(random, context.env()));
  nlohmann::ordered_json summary;
  summary["output"] = options.out;
  summary["family"] = random.outline.family->architecture;
  summary["type"] = std::string(DTypeName(random.type));
  summary["parameters"] = result.parameters;
  summary["bytes"] = result.bytes;
  context.PrintSummary(summary, options.format);
  return absl::OkStatus();
}

}  // namespace

void RegisterMakeModel(CLI::App& app, CommandContext& context) {
  auto options = std::make_shared<MakeModelOptions>();
  CLI::App* command = app.add_subcommand(
      "make-model", "Write a model with random weights, to measure memory and speed");
  command->add_option("--out", options->out, "GGUF to write")->required()->type_name("FILE");
  command->add_option("--shape", options->named.shape,
                      "Sizes to start from: tiny (default), 0.5b (Qwen2.5) or 1b (Llama 3.2)");
  command->add_option("--family", options->named.family,
                      absl::StrCat("Architecture: ", FamilyNames(), " (default: the shape's own)"));
  command->add_option("--hidden", options->hidden, "Hidden size");
  command->add_option("--layers", options->layers, "Layers");
  command->add_option("--heads", options->heads, "Attention heads");
  command->add_option("--kv-heads", options->kv_heads, "Key/value heads");
  command->add_option("--head-dim", options->head_dim, "Head size (default: hidden / heads)");
  command->add_option("--ffn", options->feed_forward, "Feed-forward size");
  command->add_option("--vocab", options->vocabulary, "Tokens of the generated vocabulary");
  command->add_option("--context", options->context, "Context length");
  command->add_flag("--untied", options->untied, "An output matrix of its own");
  command->add_option("--type", options->type, "Type of the matrices (default Q4_0)");
  command->add_option("--output-type", options->output_type,
                      "Type of the output or tied embedding (default: Q6_K, as llama.cpp)");
  command->add_option("--seed", options->seed, "Seed of the weights (default 0)");
  AddFormatOption(command, options->format);
  command->footer("Example:\n  fedge make-model --shape 1b --type Q4_0 --out random-1b.gguf");
  context.AddCommand(command, [options, &context] { return RunMakeModel(*options, context); });
}

}  // namespace fedge
