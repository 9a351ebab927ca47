#include "tools/fedge/cli.h"

#include <algorithm>
#include <exception>

#include "absl/strings/str_cat.h"
#include "common/base/status.h"
#include "tools/fedge/commands.h"

namespace fedge {
namespace {

constexpr int kUsageError = 2;

// An error stays on one line whatever a file name or a library's message holds.
std::string OneLine(absl::string_view text) {
  std::string line(text);
  while (!line.empty() && line.back() == '\n') line.pop_back();
  std::replace_if(
      line.begin(), line.end(), [](char c) { return c == '\n' || c == '\r'; }, ' ');
  return line;
}

void RegisterAll(CLI::App& app, CommandContext& context) {
  app.require_subcommand(1);
  app.set_help_all_flag("--help-all", "Print the help of all commands");
  app.set_version_flag("--version", std::string("fedge ") + FEDGE_VERSION);
  app.footer("Example:\n  fedge simulate --nodes 200 --rounds 10 --out run");
  RegisterSimulate(app, context);
  RegisterFinetune(app, context);
  RegisterEval(app, context);
  RegisterGenerate(app, context);
  RegisterTokenize(app, context);
  RegisterInspect(app, context);
  RegisterExport(app, context);
  RegisterPretrain(app, context);
  RegisterImport(app, context);
  RegisterQuantize(app, context);
  RegisterMakeModel(app, context);
  RegisterRun(app, context);
  RegisterNodes(app, context);
  RegisterLogs(app, context);
  RegisterModels(app, context);
  RegisterToken(app, context);
  RegisterAuthority(app, context);
  RegisterOperator(app, context);
}

}  // namespace

int RunFedge(const std::vector<std::string>& arguments, const CommandContext::Outside& outside) {
  CommandContext context(outside);
  CLI::App app("Federated fine-tuning of quantized language models", "fedge");
  // CLI11 reports through exceptions; they end here.
  try {
    RegisterAll(app, context);
    std::vector<std::string> reversed(arguments.rbegin(), arguments.rend());
    app.parse(std::move(reversed));
  } catch (const CLI::Success& success) {  // --help, --version
    return app.exit(success, *outside.out, *outside.err);
  } catch (const std::exception& error) {
    *outside.err << "fedge: error: " << OneLine(error.what()) << "; see fedge --help" << std::endl;
    return kUsageError;
  }
  absl::Status status;
  try {
    status = context.RunParsed();
  } catch (const std::bad_alloc&) {
    status = absl::ResourceExhaustedError("out of memory");
  } catch (const std::exception& error) {
    status = absl::InternalError(error.what());
  }
  if (!status.ok()) {
    *outside.err << "fedge: error: " << OneLine(status.message()) << std::endl;
  }
  return ExitCode(status);
}

}  // namespace fedge
