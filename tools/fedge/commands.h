// The commands of `fedge`, one file each (command_<name>.cc). Register adds the command to `app`
// with its options, help and example, and to `context` with what it does.
#ifndef FEDGE_TOOLS_FEDGE_COMMANDS_H_
#define FEDGE_TOOLS_FEDGE_COMMANDS_H_

#include <CLI/CLI.hpp>

#include "tools/fedge/command_context.h"

namespace fedge {

void RegisterSimulate(CLI::App& app, CommandContext& context);
void RegisterFinetune(CLI::App& app, CommandContext& context);
void RegisterEval(CLI::App& app, CommandContext& context);
void RegisterGenerate(CLI::App& app, CommandContext& context);
void RegisterTokenize(CLI::App& app, CommandContext& context);
void RegisterInspect(CLI::App& app, CommandContext& context);
void RegisterExport(CLI::App& app, CommandContext& context);
void RegisterPretrain(CLI::App& app, CommandContext& context);
void RegisterModels(CLI::App& app, CommandContext& context);
void RegisterImport(CLI::App& app, CommandContext& context);
void RegisterQuantize(CLI::App& app, CommandContext& context);
void RegisterMakeModel(CLI::App& app, CommandContext& context);
void RegisterRun(CLI::App& app, CommandContext& context);
void RegisterNodes(CLI::App& app, CommandContext& context);
void RegisterLogs(CLI::App& app, CommandContext& context);
void RegisterToken(CLI::App& app, CommandContext& context);
void RegisterAuthority(CLI::App& app, CommandContext& context);
void RegisterOperator(CLI::App& app, CommandContext& context);

}  // namespace fedge

#endif  // FEDGE_TOOLS_FEDGE_COMMANDS_H_
