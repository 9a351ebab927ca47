#include <memory>
#include <string>

#include "absl/strings/str_cat.h"
#include "common/base/status.h"
#include "tools/fedge/commands.h"
#include "tools/fedge/prepare_output.h"
#include "tools/prepare/quantize_model.h"

namespace fedge {
namespace {

struct CommandOptions {
  QuantizeModelOptions quantize;
  std::string type;
  std::string output_type;
  OutputFormat format = OutputFormat::kText;
};

absl::Status RunQuantize(CommandOptions& options, CommandContext& context) {
  QuantizeModelOptions& quantize = options.quantize;
  ASSIGN_OR_RETURN(quantize.mix, FindMix(options.type));
  if (!options.output_type.empty()) {
    ASSIGN_OR_RETURN(quantize.mix.output, DTypeFromName(options.output_type));
  }
  RETURN_IF_ERROR(context.env().CreateDirs(DirName(quantize.output_file)));
  ProgressLine line(context.err(), context.clock(), context.err_columns());
  const absl::Duration start = context.clock().Monotonic();
  const absl::StatusOr<QuantizeModelResult> result =
      QuantizeModel(quantize, ShowTensors(line, context), context.env());
  line.Finish();
  if (!result.ok()) return result.status();
  nlohmann::ordered_json summary;
  summary["output"] = quantize.output_file;
  summary["type"] = options.type;
  summary["input_bytes"] = result->input_bytes;
  summary["output_bytes"] = result->output_bytes;
  summary["seconds"] = absl::ToDoubleSeconds(context.clock().Monotonic() - start);
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

void RegisterQuantize(CLI::App& app, CommandContext& context) {
  auto options = std::make_shared<CommandOptions>();
  CLI::App* command = app.add_subcommand("quantize", "Write a model with fewer bits a weight");
  command->add_option("--model", options->quantize.model_file, "GGUF of F32, F16 or BF16 weights")
      ->required()
      ->type_name("FILE");
  command->add_option("--type", options->type, absl::StrCat("Type of the matrices: ", MixNames()))
      ->required()
      ->type_name("TYPE");
  command->add_option("--out", options->quantize.output_file, "GGUF to write")
      ->required()
      ->type_name("FILE");
  command
      ->add_option("--output-type", options->output_type,
                   "Type of the output matrix or tied embedding (default: Q6_K, as llama.cpp)")
      ->type_name("TYPE");
  command->add_flag("--allow-requantize", options->quantize.allow_requantize,
                    "Also quantize weights that are quantized already");
  AddThreadsOption(command, options->quantize.threads);
  AddFormatOption(command, options->format);
  command->footer(
      "Rows that are no whole blocks get the nearest type that fits: Q5_0 for Q4_K, Q5_1 for "
      "Q5_K,\n"
      "Q8_0 for Q6_K, F16 for rows that are not a multiple of 32.\n\nExample:\n"
      "  fedge quantize --model base-f16.gguf --type Q4_K_M --out base-q4_k_m.gguf");
  context.AddCommand(command, [options, &context] { return RunQuantize(*options, context); });
}

}  // namespace fedge
