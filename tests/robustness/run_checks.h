// The invariants of a finished run, from what is on disk.
#ifndef FEDGE_TESTS_ROBUSTNESS_RUN_CHECKS_H_
#define FEDGE_TESTS_ROBUSTNESS_RUN_CHECKS_H_

#include <string>

#include "tests/robustness/run_case.h"

namespace fedge::robustness {

// Fills in `result`: versions, lost, doubled, and the first violation as its problem. With a
// `reference`, all versions must be its versions, byte for byte.
//   - every acknowledged update is in the version of its round, once (exactly once, nothing lost)
//   - versions are 0, 1, 2, 3; each names the one before and its contributions
//   - each version's blobs are there and are what their names say
//   - what devices were told of a version is the same for all of them
void CheckRun(const std::string& state_dir, const std::string& journal, const CaseResult* reference,
              CaseResult& result);

}  // namespace fedge::robustness

#endif  // FEDGE_TESTS_ROBUSTNESS_RUN_CHECKS_H_
