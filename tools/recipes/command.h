// Runs the programs of the system that know how to fetch data (apt-get, npm, tar). Not a shell: no
// quoting, no globbing, no pipes.
#ifndef FEDGE_TOOLS_RECIPES_COMMAND_H_
#define FEDGE_TOOLS_RECIPES_COMMAND_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"

namespace fedge {

// The seam through which a recipe starts programs, so that tests need no network.
class CommandRunner {
 public:
  struct Output {
    int exit_code = 0;       // 128 + signal number when a signal ended it
    std::string text;        // standard output, whole
    std::string error_text;  // standard error, its last 64 KiB
  };

  virtual ~CommandRunner() = default;
  static CommandRunner* System();  // never null, never freed; thread-safe

  // The program is ended when it exceeds one of these.
  struct Limits {
    uint64_t output_bytes = uint64_t{1} << 30;
    absl::Duration time = absl::Minutes(20);
  };

  // Runs argv[0] (looked up in PATH) with an empty standard input and the C locale, and waits for
  // its end. NotFound when there is no such program; ResourceExhausted when the output exceeds its
  // limit or no process can be made; DeadlineExceeded when the time does. A non-zero exit code is
  // not an error here.
  virtual absl::StatusOr<Output> Run(const std::vector<std::string>& argv,
                                     const Limits& limits) = 0;
  absl::StatusOr<Output> Run(const std::vector<std::string>& argv) { return Run(argv, Limits()); }
};

}  // namespace fedge

#endif  // FEDGE_TOOLS_RECIPES_COMMAND_H_
