// The whole of `fedge` but for the process around it.
#ifndef FEDGE_TOOLS_FEDGE_CLI_H_
#define FEDGE_TOOLS_FEDGE_CLI_H_

#include <string>
#include <vector>

#include "tools/fedge/command_context.h"

namespace fedge {

// Parses `arguments` (without the program's name), runs the command and returns the exit code
// (ExitCode of common/base/status.h; 2 for a wrong command line). An error is one line on
// outside.err: "fedge: error: ...".
int RunFedge(const std::vector<std::string>& arguments, const CommandContext::Outside& outside);

}  // namespace fedge

#endif  // FEDGE_TOOLS_FEDGE_CLI_H_
