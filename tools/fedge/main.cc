#include <csignal>
#include <iostream>
#include <string>
#include <vector>

#include "tools/fedge/cli.h"
#include "tools/report/progress.h"

namespace {

volatile std::sig_atomic_t stop_requested = 0;

// The first SIGINT asks the command to stop in order, a second one ends the process.
void RequestStop(int /*signal*/) {
  stop_requested = 1;
  std::signal(SIGINT, SIG_DFL);
  std::signal(SIGTERM, SIG_DFL);
}

}  // namespace

int main(int argc, char** argv) {
  std::signal(SIGINT, RequestStop);
  std::signal(SIGTERM, RequestStop);
  fedge::CommandContext::Outside outside;
  outside.env = fedge::Env::Posix();
  outside.clock = fedge::Clock::Real();
  outside.out = &std::cout;
  outside.err = &std::cerr;
  outside.err_columns = fedge::TerminalColumns(2);
  outside.interrupted = [] { return stop_requested != 0; };
  return fedge::RunFedge(std::vector<std::string>(argv + 1, argv + argc), outside);
}
