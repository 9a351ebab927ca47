#include <memory>
#include <optional>
#include <string>
#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "common/base/status.h"
#include "common/config/config_file.h"
#include "server/run_plan.h"
#include "tools/fedge/admin_output.h"
#include "tools/fedge/commands.h"
#include "tools/fedge/grpc_admin_link.h"
#include "tools/fedge/proto_json.h"
#include "tools/fedge/server_option.h"
#include "tools/report/progress.h"

namespace fedge {
namespace {

struct RunOptions {
  ServerOption server;
  OutputFormat format = OutputFormat::kText;
  std::string run_id;  // of the command; of create and clone: the new run's
  std::string file;
  std::string parent;
  std::string from_version;
  uint32_t versions = 10;
  bool dry_run = false;
};

// What the file says, with the id of the command line.
absl::Status ReadRunFile(const RunOptions& options, CommandContext& context, v1::RunFile& file,
                         ConfigPlaces& places) {
  if (!options.file.empty()) {
    RETURN_IF_ERROR(LoadConfigFile(options.file, context.env(), file, &places));
  }
  if (!options.run_id.empty()) {
    file.mutable_run()->set_id(options.run_id);
    places.Override("run.id");
  }
  return absl::OkStatus();
}

// All that can be known without the base model.
absl::Status CheckFields(const v1::RunFile& file) {
  if (!file.run().has_id()) {
    return absl::InvalidArgumentError("run.id: is required: give it here or with --id");
  }
  v1::ServerConfig config;
  *config.mutable_run() = file.run();
  return MakeRunPlan(config, LoraSpec(), Digest()).status();
}

void PrintCreated(const v1::RunCreateResponse& response, const RunOptions& options,
                  CommandContext& context) {
  if (options.format == OutputFormat::kJson) return context.PrintJson(ProtoJson(response));
  const std::string& id = response.run().run_id();
  if (options.dry_run) {
    context.out() << "run '" << id << "' can be created\n";
  } else if (response.existed()) {
    context.out() << "run '" << id << "' was created before: " << RunLine(response.run()) << "\n";
  } else {
    context.out() << "created " << RunLine(response.run()) << "\n";
  }
  context.out() << std::flush;
}

absl::Status RunCreate(const RunOptions& options, CommandContext& context) {
  v1::RunCreateRequest request;
  request.set_actor(LocalUser());
  request.set_validate_only(options.dry_run);
  ConfigPlaces places;
  RETURN_IF_ERROR(ReadRunFile(options, context, *request.mutable_file(), places));
  RETURN_IF_ERROR(places.Locate(CheckFields(request.file())));
  absl::StatusOr<std::unique_ptr<AdminLink>> link = AdminLink::Connect(options.server);
  if (options.dry_run && absl::IsUnavailable(link.status())) {
    context.err() << "note: no server at " << options.server.address
                  << ": what depends on its models was not checked\n";
    v1::RunCreateResponse response;
    response.mutable_run()->set_run_id(request.file().run().id());
    PrintCreated(response, options, context);
    return absl::OkStatus();
  }
  RETURN_IF_ERROR(link.status());
  const absl::StatusOr<v1::RunCreateResponse> response = (*link)->RunCreate(request);
  if (!response.ok()) return places.Locate(response.status());
  PrintCreated(*response, options, context);
  return absl::OkStatus();
}

// The version of `parent` that --from-version means; nothing: a new version 0.
absl::StatusOr<std::optional<uint64_t>> ParentVersion(const RunOptions& options,
                                                      const v1::RunInfo& parent) {
  if (options.from_version.empty()) return std::optional<uint64_t>();
  if (options.from_version == "latest") return std::optional<uint64_t>(parent.version());
  uint64_t version = 0;
  if (absl::SimpleAtoi(options.from_version, &version)) return std::optional<uint64_t>(version);
  return absl::InvalidArgumentError(absl::StrCat("--from-version: '", options.from_version,
                                                 "' is neither a version's number nor latest"));
}

absl::Status RunClone(const RunOptions& options, CommandContext& context) {
  ASSIGN_OR_RETURN(const std::unique_ptr<AdminLink> link, AdminLink::Connect(options.server));
  v1::RunShowRequest show;
  show.set_run_id(options.parent);
  ASSIGN_OR_RETURN(const v1::RunShowResponse parent, link->RunShow(show));
  v1::RunCloneRequest request;
  request.set_actor(LocalUser());
  request.set_parent_run(options.parent);
  request.set_validate_only(options.dry_run);
  ASSIGN_OR_RETURN(const std::optional<uint64_t> version, ParentVersion(options, parent.run()));
  if (version) request.set_parent_version(*version);
  // The fields that the file of changes names replace the parent's.
  *request.mutable_file() = parent.file();
  request.mutable_file()->mutable_run()->clear_id();
  ConfigPlaces places;
  RETURN_IF_ERROR(ReadRunFile(options, context, *request.mutable_file(), places));
  RETURN_IF_ERROR(places.Locate(CheckFields(request.file())));
  const absl::StatusOr<v1::RunCreateResponse> response = link->RunClone(request);
  if (!response.ok()) return places.Locate(response.status());
  PrintCreated(*response, options, context);
  return absl::OkStatus();
}

absl::Status RunList(const RunOptions& options, CommandContext& context) {
  ASSIGN_OR_RETURN(const std::unique_ptr<AdminLink> link, AdminLink::Connect(options.server));
  ASSIGN_OR_RETURN(const v1::RunListResponse runs, link->RunList({}));
  if (options.format == OutputFormat::kJson) {
    context.PrintJson(ProtoJson(runs));
  } else {
    PrintRuns(runs, context.out());
  }
  return absl::OkStatus();
}

absl::Status RunShow(const RunOptions& options, CommandContext& context) {
  ASSIGN_OR_RETURN(const std::unique_ptr<AdminLink> link, AdminLink::Connect(options.server));
  v1::RunShowRequest request;
  request.set_run_id(options.run_id);
  request.set_newest_versions(options.versions);
  ASSIGN_OR_RETURN(const v1::RunShowResponse run, link->RunShow(request));
  if (options.format == OutputFormat::kJson) {
    context.PrintJson(ProtoJson(run));
  } else {
    PrintRun(run, context.out());
  }
  return absl::OkStatus();
}

bool IsOver(const v1::RunInfo& run) {
  return run.state() == v1::RUN_STOPPED || run.state() == v1::RUN_FINISHED;
}

// On a terminal the state now stays in the last line; a version's line stays above it.
absl::Status RunWatch(const RunOptions& options, CommandContext& context) {
  ASSIGN_OR_RETURN(const std::unique_ptr<AdminLink> link, AdminLink::Connect(options.server));
  v1::RunRef request;
  request.set_run_id(options.run_id);
  const bool json = options.format == OutputFormat::kJson;
  const bool live = !json && context.err_columns() > 0;
  ProgressLine line(context.err(), context.clock(), context.err_columns());
  std::optional<uint64_t> shown;
  bool over = false;
  const auto take = [&](const v1::RunInfo& run) {
    if (json) {
      context.out() << ProtoJson(run).dump() << std::endl;
    } else if (!live) {
      context.out() << RunLine(run) << std::endl;
    } else {
      if (shown && *shown < run.version()) line.Print(VersionLine(run.newest()));
      shown = run.version();
      line.Update(RunLine(run));
    }
    over = IsOver(run);
    return !over;
  };
  RETURN_IF_ERROR(link->RunWatch(request, take, [&context] { return context.interrupted(); }));
  if (live) line.Finish();
  if (over || context.interrupted()) return absl::OkStatus();
  return absl::UnavailableError(
      absl::StrCat("the server at ", options.server.address, " has gone"));
}

using Change = absl::StatusOr<v1::RunInfo> (AdminLink::*)(const v1::RunRef&);

absl::Status RunChange(Change change, const RunOptions& options, CommandContext& context) {
  ASSIGN_OR_RETURN(const std::unique_ptr<AdminLink> link, AdminLink::Connect(options.server));
  v1::RunRef request;
  request.set_run_id(options.run_id);
  request.set_actor(LocalUser());
  ASSIGN_OR_RETURN(const v1::RunInfo run, (link.get()->*change)(request));
  if (options.format == OutputFormat::kJson) {
    context.PrintJson(ProtoJson(run));
  } else {
    context.out() << RunLine(run) << std::endl;
  }
  return absl::OkStatus();
}

// `run` with what all its commands have.
struct Registrar {
  CLI::App* run;
  CommandContext& context;

  using Function = absl::Status (*)(const RunOptions&, CommandContext&);
  CLI::App* Add(const std::string& name, const std::string& help, const std::string& example,
                std::shared_ptr<RunOptions> options, std::function<absl::Status()> function) {
    CLI::App* const command = run->add_subcommand(name, help);
    AddServerOption(command, options->server);
    AddFormatOption(command, options->format);
    command->footer("Example:\n  fedge run " + example);
    context.AddCommand(command, std::move(function));
    return command;
  }
  CLI::App* Add(const std::string& name, const std::string& help, const std::string& example,
                std::shared_ptr<RunOptions> options, Function function) {
    return Add(name, help, example, options,
               [options, function, &context = context] { return function(*options, context); });
  }
  void AddChange(const std::string& name, const std::string& help, Change change) {
    auto options = std::make_shared<RunOptions>();
    CLI::App* const command =
        Add(name, help, name + " english-2026", options,
            [options, change, &context = context] { return RunChange(change, *options, context); });
    command->add_option("run", options->run_id, "The run's id")->required()->type_name("RUN");
  }
};

void RegisterNew(Registrar& registrar) {
  auto create = std::make_shared<RunOptions>();
  CLI::App* command = registrar.Add(
      "create", "Create a run on a server that is up; nothing is stored unless all of it is right",
      "create run.yaml --id english-2026", create, RunCreate);
  command->add_option("file", create->file, "The run (YAML or JSON): base_model, holdout, run")
      ->required()
      ->type_name("FILE");
  command->add_option("--id", create->run_id, "Its name, instead of the file's run.id")
      ->type_name("RUN");
  command->add_flag("--dry-run", create->dry_run, "Check it and create nothing");

  auto clone = std::make_shared<RunOptions>();
  command = registrar.Add("clone", "Create a run like another one, with changes",
                          "clone english-2026 --id slower --config changes.yaml --from-version "
                          "latest",
                          clone, RunClone);
  command->add_option("run", clone->parent, "The run to clone")->required()->type_name("RUN");
  command->add_option("--id", clone->run_id, "The new run's name")->type_name("RUN");
  command->add_option("--config", clone->file, "The fields that differ (YAML or JSON)")
      ->type_name("FILE");
  command
      ->add_option("--from-version", clone->from_version,
                   "Begin with this version of the old run, or latest (default: a new version 0)")
      ->type_name("N");
  command->add_flag("--dry-run", clone->dry_run, "Check it and create nothing");
}

void RegisterLook(Registrar& registrar) {
  auto list = std::make_shared<RunOptions>();
  registrar.Add("list", "All runs of a server", "list --format json", list, RunList);
  auto show = std::make_shared<RunOptions>();
  CLI::App* command = registrar.Add("show", "A run: state, newest versions, configuration",
                                    "show english-2026 --versions 5", show, RunShow);
  command->add_option("run", show->run_id, "The run's id")->required()->type_name("RUN");
  command->add_option("--versions", show->versions, "How many versions to list (default 10)")
      ->type_name("N");
  auto watch = std::make_shared<RunOptions>();
  command = registrar.Add("watch", "Follow a run until it is over", "watch english-2026", watch,
                          RunWatch);
  command->add_option("run", watch->run_id, "The run's id")->required()->type_name("RUN");
}

}  // namespace

void RegisterRun(CLI::App& app, CommandContext& context) {
  CLI::App* const run = app.add_subcommand("run", "The runs of a server");
  run->require_subcommand(1);
  run->footer("Example:\n  fedge run list");
  Registrar registrar{run, context};
  RegisterNew(registrar);
  RegisterLook(registrar);
  registrar.AddChange("pause", "Give no more tasks; updates on the way are taken",
                      &AdminLink::RunPause);
  registrar.AddChange("resume", "Go on with a paused run", &AdminLink::RunResume);
  registrar.AddChange("stop", "End a run for good, with the version it has", &AdminLink::RunStop);
}

}  // namespace fedge
