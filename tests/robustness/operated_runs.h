// Runs that an operator creates beside the fleet's, on another base model: one is asynchronous, is
// paused, resumed and stopped in the middle of a round; in the other, one round is abandoned and
// the next one's candidate is refused. What the fleet's run never comes to.
#ifndef FEDGE_TESTS_ROBUSTNESS_OPERATED_RUNS_H_
#define FEDGE_TESTS_ROBUSTNESS_OPERATED_RUNS_H_

#include <string>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "fedge/v1/config.pb.h"
#include "tests/robustness/run_case.h"

namespace fedge::robustness {

// Adds what the server needs for them to `config`: writes <dir>/other.gguf.
void AllowOperatedRuns(const std::string& dir, v1::ServerConfig& config);

// The operator (over the UNIX socket in the state folder) and two devices; each step is repeated
// until the server says that it is done, whatever happens to the server meanwhile. `journal` is
// appended to, one line a fact:
//   operated <run> <node> <round> <digest>       an update that was accepted
absl::Status PlayOperatedRuns(const v1::ServerConfig& config, int port, const std::string& journal);

// Afterwards, from the database: both runs are stopped, what was acknowledged is on record, the
// abandoned round's update counts in the refused one, each decision is in an unbroken audit log
// once. Adds to `result`.
void CheckOperatedRuns(const std::string& state_dir, const std::string& journal,
                       CaseResult& result);

}  // namespace fedge::robustness

#endif  // FEDGE_TESTS_ROBUSTNESS_OPERATED_RUNS_H_
