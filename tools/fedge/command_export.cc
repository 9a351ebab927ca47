#include <memory>
#include <string>

#include "common/base/status.h"
#include "common/formats/adapter_files.h"
#include "common/model/base_model.h"
#include "tools/fedge/adapter_output.h"
#include "tools/fedge/commands.h"
#include "tools/fedge/lora_option.h"

namespace fedge {
namespace {

struct ExportOptions {
  std::string adapter;
  std::string to;
  std::string out;
  std::string model;
  OutputFormat format = OutputFormat::kText;
};

absl::Status RunExport(const ExportOptions& options, CommandContext& context) {
  Env& env = context.env();
  AdapterInfo info;
  std::shared_ptr<const BaseModel> model;
  if (!options.model.empty()) {
    ASSIGN_OR_RETURN(model, BaseModel::Load(options.model, env));
    info = AdapterInfoOf(*model, true);
  }
  ASSIGN_OR_RETURN(LoadedAdapter loaded, ReadAdapter(options.adapter, info, env));
  if (model != nullptr) {
    const absl::Status fits = model->CheckAdapter(loaded.adapter.spec());
    if (!fits.ok()) return Annotate(fits, options.adapter);
    loaded.info = info;
  }
  if (options.to == "gguf") {
    RETURN_IF_ERROR(WriteAdapterGguf(loaded.adapter, loaded.info, options.out, env));
  } else {
    RETURN_IF_ERROR(ReplacePeftDir(loaded.adapter, loaded.info, options.out, env));
  }
  nlohmann::ordered_json summary;
  summary["written"] = options.out;
  summary["to"] = options.to;
  summary["modules"] = loaded.adapter.spec().modules().size();
  summary["parameters"] = loaded.adapter.spec().num_parameters();
  context.PrintSummary(summary, options.format);
  return absl::OkStatus();
}

}  // namespace

void RegisterExport(CLI::App& app, CommandContext& context) {
  auto options = std::make_shared<ExportOptions>();
  CLI::App* command = app.add_subcommand("export", "Convert an adapter to another format");
  command->add_option("--adapter", options->adapter, "Adapter: GGUF file or PEFT folder")
      ->required()
      ->type_name("PATH");
  command->add_option("--to", options->to, "Format to write: peft or gguf")
      ->required()
      ->check(CLI::IsMember(std::vector<std::string>{"peft", "gguf"}))
      ->type_name("FORMAT");
  command->add_option("--out", options->out, "Folder (peft) or file (gguf) to write")
      ->required()
      ->type_name("PATH");
  command
      ->add_option("--model", options->model,
                   "Base model, where the adapter does not tell the number of heads")
      ->type_name("FILE");
  AddFormatOption(command, options->format);
  command->footer("Example:\n  fedge export --adapter run/adapter.gguf --to peft --out peft");
  context.AddCommand(command, [options, &context] { return RunExport(*options, context); });
}

}  // namespace fedge
