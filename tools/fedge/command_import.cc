#include <memory>
#include <string>

#include "absl/strings/str_cat.h"
#include "common/base/status.h"
#include "tools/fedge/commands.h"
#include "tools/fedge/prepare_output.h"
#include "tools/prepare/import_model.h"
#include "tools/prepare/model_outline.h"

namespace fedge {
namespace {

struct CommandOptions {
  ImportModelOptions import;
  std::string type;
  std::string output_type;
  OutputFormat format = OutputFormat::kText;
};

absl::Status RunImport(CommandOptions& options, CommandContext& context) {
  ImportModelOptions& import = options.import;
  if (!options.type.empty()) {
    ASSIGN_OR_RETURN(import.mix, FindMix(options.type));
  }
  if (!options.output_type.empty()) {
    if (!import.mix.has_value()) {
      return absl::InvalidArgumentError("--output-type needs --type beside it");
    }
    ASSIGN_OR_RETURN(import.mix->output, DTypeFromName(options.output_type));
  }
  RETURN_IF_ERROR(context.env().CreateDirs(DirName(import.output_file)));
  ProgressLine line(context.err(), context.clock(), context.err_columns());
  const absl::StatusOr<ImportModelResult> result =
      ImportModel(import, ShowTensors(line, context), context.env());
  line.Finish();
  if (!result.ok()) return result.status();
  nlohmann::ordered_json summary;
  summary["output"] = import.output_file;
  summary["architecture"] = result->architecture;
  summary["parameters"] = result->parameters;
  summary["tokens"] = result->tokens;
  summary["bytes"] = result->bytes;
  if (options.format == OutputFormat::kJson) {
    summary["types"] = TypesJson(result->types);
  } else {
    PrintTypes(result->types, context);
    context.out() << "\n";
  }
  context.PrintSummary(summary, options.format);
  return absl::OkStatus();
}

}  // namespace

void RegisterImport(CLI::App& app, CommandContext& context) {
  auto options = std::make_shared<CommandOptions>();
  CLI::App* command = app.add_subcommand("import", "Write a Hugging Face folder as GGUF");
  command
      ->add_option("--from", options->import.folder,
                   "Folder with config.json, *.safetensors and tokenizer.json or tokenizer.model")
      ->required()
      ->type_name("DIR");
  command->add_option("--out", options->import.output_file, "GGUF to write")
      ->required()
      ->type_name("FILE");
  command
      ->add_option("--type", options->type,
                   absl::StrCat("Type of the matrices: ", MixNames(), " (default: as they are)"))
      ->type_name("TYPE");
  command
      ->add_option("--output-type", options->output_type,
                   "Type of the output matrix or tied embedding (default: Q6_K, as llama.cpp)")
      ->type_name("TYPE");
  command->add_option("--name", options->import.name, "general.name (default: the folder's)");
  AddThreadsOption(command, options->import.threads);
  AddFormatOption(command, options->format);
  command->footer(absl::StrCat("Models: ", FamilyClasses(),
                               ".\n\nExample:\n  fedge import --from Qwen2.5-0.5B --type Q8_0 "
                               "--out qwen2.5-0.5b-q8_0.gguf"));
  context.AddCommand(command, [options, &context] { return RunImport(*options, context); });
}

}  // namespace fedge
