// fedge models: what runs have published, what was decided about it, and operators who decide.
#include <cstring>
#include <memory>
#include <optional>
#include <string>
#include <utility>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "client/task.h"
#include "common/base/status.h"
#include "common/model/base_model.h"
#include "tools/fedge/adapter_output.h"
#include "tools/fedge/audit_report.h"
#include "tools/fedge/commands.h"
#include "tools/fedge/grpc_admin_link.h"
#include "tools/fedge/lora_option.h"
#include "tools/fedge/model_change.h"
#include "tools/fedge/model_output.h"
#include "tools/fedge/proto_json.h"
#include "tools/fedge/server_option.h"

namespace fedge {
namespace {

struct ModelsOptions {
  ServerOption server;
  std::string run;
  OutputFormat format = OutputFormat::kText;
  std::optional<uint64_t> version;
  uint64_t other = 0;  // of diff
  std::string out;
  std::string model;
  bool verify = false;
};

v1::ModelRef RefOf(const ModelsOptions& options) {
  v1::ModelRef ref;
  ref.set_run_id(options.run);
  if (options.version) ref.set_version(*options.version);
  return ref;
}

absl::Status RunList(const ModelsOptions& options, CommandContext& context) {
  ASSIGN_OR_RETURN(const std::unique_ptr<AdminLink> link, AdminLink::Connect(options.server));
  ASSIGN_OR_RETURN(const v1::ModelListResponse models, link->ModelList(RefOf(options)));
  if (options.format == OutputFormat::kJson) {
    context.PrintJson(ProtoJson(models));
  } else {
    PrintModels(models, context.out());
  }
  return absl::OkStatus();
}

void PrintOne(const v1::ModelInfo& model, const ModelsOptions& options, CommandContext& context) {
  if (options.format == OutputFormat::kJson) {
    context.PrintJson(ProtoJson(model));
  } else {
    PrintModel(model, context.out());
  }
}

absl::Status RunShow(const ModelsOptions& options, CommandContext& context) {
  ASSIGN_OR_RETURN(const std::unique_ptr<AdminLink> link, AdminLink::Connect(options.server));
  ASSIGN_OR_RETURN(const v1::ModelInfo model, link->ModelShow(RefOf(options)));
  PrintOne(model, options, context);
  return absl::OkStatus();
}

v1::ModelDecision DecisionOf(const ModelsOptions& options) {
  v1::ModelDecision decision;
  decision.set_run_id(options.run);
  decision.set_version(options.version.value_or(0));
  decision.set_actor(LocalUser());
  return decision;
}

absl::Status RunPromote(const ModelsOptions& options, CommandContext& context) {
  ASSIGN_OR_RETURN(const std::unique_ptr<AdminLink> link, AdminLink::Connect(options.server));
  ASSIGN_OR_RETURN(const v1::ModelInfo model, link->ModelPromote(DecisionOf(options)));
  PrintOne(model, options, context);
  return absl::OkStatus();
}

absl::Status RunRollback(const ModelsOptions& options, CommandContext& context) {
  ASSIGN_OR_RETURN(const std::unique_ptr<AdminLink> link, AdminLink::Connect(options.server));
  ASSIGN_OR_RETURN(const v1::ModelInfo model, link->ModelRollback(DecisionOf(options)));
  PrintOne(model, options, context);
  return absl::OkStatus();
}

struct FetchedModel {
  v1::ModelHead head;
  LoraAdapter adapter;
};

absl::StatusOr<FetchedModel> Fetch(AdminLink& link, const std::string& run,
                                   std::optional<uint64_t> version) {
  v1::ModelRef ref;
  ref.set_run_id(run);
  if (version) ref.set_version(*version);
  FetchedModel model;
  std::string values;
  RETURN_IF_ERROR(link.ModelFetch(ref, [&](const v1::ModelPart& part) {
    if (part.has_head()) model.head = part.head();
    values += part.values();
    return true;
  }));
  ASSIGN_OR_RETURN(LoraSpec spec, LoraSpecFromProto(model.head.lora()));
  model.adapter = LoraAdapter(std::move(spec));
  const absl::Span<float> to = model.adapter.values();
  if (values.size() != to.size() * sizeof(float)) {
    return absl::DataLossError(absl::StrCat("version ", model.head.version(), ": the server sent ",
                                            values.size(), " bytes for ", to.size(), " values"));
  }
  std::memcpy(to.data(), values.data(), values.size());
  return model;
}

absl::Status RunDiff(const ModelsOptions& options, CommandContext& context) {
  ASSIGN_OR_RETURN(const std::unique_ptr<AdminLink> link, AdminLink::Connect(options.server));
  ASSIGN_OR_RETURN(const FetchedModel before, Fetch(*link, options.run, options.version));
  ASSIGN_OR_RETURN(const FetchedModel after, Fetch(*link, options.run, options.other));
  v1::ModelRef ref;
  ref.set_run_id(options.run);
  ref.set_version(before.head.version());
  ASSIGN_OR_RETURN(const v1::ModelInfo old_info, link->ModelShow(ref));
  ref.set_version(after.head.version());
  ASSIGN_OR_RETURN(const v1::ModelInfo new_info, link->ModelShow(ref));
  const std::vector<ModuleChange> changes = CompareAdapters(before.adapter, after.adapter);
  if (options.format == OutputFormat::kJson) {
    context.PrintJson(DiffJson(old_info, new_info, changes));
  } else {
    PrintDiff(old_info, new_info, changes, context.out());
  }
  return absl::OkStatus();
}

absl::Status RunExport(const ModelsOptions& options, CommandContext& context) {
  ASSIGN_OR_RETURN(const std::shared_ptr<const BaseModel> base,
                   BaseModel::Load(options.model, context.env()));
  ASSIGN_OR_RETURN(const std::unique_ptr<AdminLink> link, AdminLink::Connect(options.server));
  ASSIGN_OR_RETURN(const FetchedModel model, Fetch(*link, options.run, options.version));
  if (model.head.base_model_sha256() != base->sha256().Raw()) {
    return absl::FailedPreconditionError(absl::StrCat(
        options.model, ": has SHA-256 ", base->sha256().Hex(), ", the run's base model has ",
        absl::BytesToHexString(model.head.base_model_sha256())));
  }
  RETURN_IF_ERROR(CheckOutputDir(options.out, context.env()));
  RETURN_IF_ERROR(WriteAdapterBothFormats(model.adapter, AdapterInfoOf(*base, true), options.out,
                                          context.env()));
  nlohmann::ordered_json summary;
  summary["run"] = model.head.run_id();
  summary["version"] = model.head.version();
  summary["gguf"] = JoinPath(options.out, "adapter.gguf");
  summary["peft"] = JoinPath(options.out, "peft");
  context.PrintSummary(summary, options.format);
  return absl::OkStatus();
}

absl::Status RunAudit(const ModelsOptions& options, CommandContext& context) {
  ASSIGN_OR_RETURN(const std::unique_ptr<AdminLink> link, AdminLink::Connect(options.server));
  ASSIGN_OR_RETURN(const AuditReport report, FetchAudit(*link, options.run));
  if (options.verify && !report.verdict.ok()) return report.verdict;
  if (options.verify && options.format == OutputFormat::kText) {
    context.out() << report.records.size() << " records, each follows the one before; "
                  << report.num_versions << " versions, each on record; the last record has the "
                  << "hash " << report.head << "\n"
                  << std::flush;
    return absl::OkStatus();
  }
  nlohmann::ordered_json json = nlohmann::ordered_json::array();
  for (const v1::AuditRecordProto& record : report.records) {
    if (!options.run.empty() && record.run_id() != options.run) continue;
    if (options.format == OutputFormat::kJson) {
      json.push_back(ProtoJson(record));
    } else {
      context.out() << AuditLine(record) << "\n";
    }
  }
  if (options.format == OutputFormat::kJson) {
    context.PrintJson(
        {{"records", json}, {"verified", report.verdict.ok()}, {"head", report.head}});
  }
  context.out() << std::flush;
  return absl::OkStatus();
}

using Run = absl::Status (*)(const ModelsOptions&, CommandContext&);

struct Subcommand {
  const char* name;
  const char* help;
  const char* example;  // its arguments
  Run run;
};

// With the options all of them have.
CLI::App* Add(CLI::App* models, const Subcommand& subcommand,
              const std::shared_ptr<ModelsOptions>& options, CommandContext& context) {
  CLI::App* const command = models->add_subcommand(subcommand.name, subcommand.help);
  AddServerOption(command, options->server);
  AddFormatOption(command, options->format);
  command
      ->add_option("--run", options->run, "The run (default: that of the server's configuration)")
      ->type_name("RUN");
  command->footer(
      absl::StrCat("Example:\n  fedge models ", subcommand.name, subcommand.example, "\n"));
  const Run run = subcommand.run;
  context.AddCommand(command, [options, run, &context] { return run(*options, context); });
  return command;
}

// One that names a version, as `what` says.
CLI::Option* AddVersion(CLI::App* command, ModelsOptions& options, const char* what) {
  return command->add_option("version", options.version, what)->type_name("VERSION");
}

void AddDiff(CLI::App* models, CommandContext& context) {
  const auto options = std::make_shared<ModelsOptions>();
  CLI::App* const command = Add(
      models, {"diff", "Two versions side by side", " 6 7 --run notes", RunDiff}, options, context);
  command->add_option("from", options->version, "The one before")->required()->type_name("VERSION");
  command->add_option("to", options->other, "The one after")->required()->type_name("VERSION");
}

void AddExport(CLI::App* models, CommandContext& context) {
  const auto options = std::make_shared<ModelsOptions>();
  CLI::App* const command = Add(models,
                                {"export", "Write a version as PEFT and as llama.cpp GGUF",
                                 " 7 --out adapter --model base.gguf", RunExport},
                                options, context);
  AddVersion(command, *options, "Default: the one served");
  command->add_option("--out", options->out, "Folder: adapter.gguf and peft/")
      ->required()
      ->type_name("DIR");
  command->add_option("--model", options->model, "The run's base model, GGUF")
      ->required()
      ->type_name("FILE");
}

}  // namespace

void RegisterModels(CLI::App& app, CommandContext& context) {
  CLI::App* const models =
      app.add_subcommand("models", "Versions of a run's adapter, and what was decided about them");
  models->require_subcommand(1, 1);
  const auto fresh = [] { return std::make_shared<ModelsOptions>(); };
  Add(models, {"list", "All versions", " --run notes", RunList}, fresh(), context);
  const auto show = fresh();
  AddVersion(
      Add(models,
          {"show", "One version: its identity, its gate, its updates", " 7 --run notes", RunShow},
          show, context),
      *show, "Default: the one served");
  AddDiff(models, context);
  Add(models,
      {"promote", "Publish the candidate that nodes are measuring, now", " --run notes",
       RunPromote},
      fresh(), context);
  const auto rollback = fresh();
  AddVersion(Add(models,
                 {"rollback", "Publish an older version's content again, as the next version",
                  " 7 --run notes", RunRollback},
                 rollback, context),
             *rollback, "Whose content")
      ->required();
  AddExport(models, context);
  const auto audit = fresh();
  Add(models, {"audit", "The log of decisions", " --verify", RunAudit}, audit, context)
      ->add_flag("--verify", audit->verify,
                 "Only check: names the first record that was changed or is missing");
}

}  // namespace fedge
