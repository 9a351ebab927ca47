// What every command of `fedge` shares: the outside world it may touch, how it prints results, and
// how main finds the command that was asked for.
#ifndef FEDGE_TOOLS_FEDGE_COMMAND_CONTEXT_H_
#define FEDGE_TOOLS_FEDGE_COMMAND_CONTEXT_H_

#include <CLI/CLI.hpp>
#include <functional>
#include <nlohmann/json.hpp>
#include <ostream>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "common/base/clock.h"
#include "common/base/env.h"
#include "common/tensor/matmul.h"

namespace fedge {

enum class OutputFormat { kText, kJson };

class CommandContext {
 public:
  struct Outside {
    Env* env = nullptr;
    Clock* clock = nullptr;
    std::ostream* out = nullptr;  // results
    std::ostream* err = nullptr;  // progress and errors
    int err_columns = 0;          // of the terminal behind err; 0: none
    // True once the user asked to stop (SIGINT); may be empty.
    std::function<bool()> interrupted;
  };
  explicit CommandContext(Outside outside) : outside_(std::move(outside)) {}

  Env& env() const { return *outside_.env; }
  Clock& clock() const { return *outside_.clock; }
  std::ostream& out() const { return *outside_.out; }
  std::ostream& err() const { return *outside_.err; }
  int err_columns() const { return outside_.err_columns; }
  bool interrupted() const { return outside_.interrupted && outside_.interrupted(); }

  // `run` is called when `command` was on the command line.
  void AddCommand(CLI::App* command, std::function<absl::Status()> run);
  absl::Status RunParsed() const;  // of the parsed command line

  // Prints a flat JSON object: as it is, or as aligned "name  value" lines.
  void PrintSummary(const nlohmann::ordered_json& summary, OutputFormat format) const;
  void PrintJson(const nlohmann::ordered_json& value) const;

 private:
  Outside outside_;
  std::vector<std::pair<CLI::App*, std::function<absl::Status()>>> commands_;
};

// Options that several commands have.
void AddFormatOption(CLI::App* command, OutputFormat& format);
void AddThreadsOption(CLI::App* command, int& threads);  // sets the default: all processors
// fp32 or bf16; `help` says of what, `precision` is the default.
void AddPrecisionOption(CLI::App* command, const std::string& help, Precision& precision);

// OK when files can be made in `dir`, which is created: said before hours of work, not after.
absl::Status CheckOutputDir(absl::string_view dir, Env& env);

}  // namespace fedge

#endif  // FEDGE_TOOLS_FEDGE_COMMAND_CONTEXT_H_
