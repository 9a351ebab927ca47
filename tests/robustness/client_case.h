// One run of the real fedge-client against the real fedge-server with one thing going wrong on the
// device, and what must hold afterwards.
#ifndef FEDGE_TESTS_ROBUSTNESS_CLIENT_CASE_H_
#define FEDGE_TESTS_ROBUSTNESS_CLIENT_CASE_H_

#include <cstdint>
#include <map>
#include <string>

#include "absl/status/statusor.h"

namespace fedge::robustness {

inline constexpr int kClientRounds = 3;

struct ClientPrograms {
  std::string client, server;
  std::string model;  // a tiny GGUF: the server's, which the device fetches
};

struct ClientResult {
  std::string problem;  // empty: all is well
  bool injected = false;
  bool checked = false;  // the run came so far that `lost` and `doubled` are known
  int starts = 0;        // of the client
  int tasks = 0;         // trainings begun or gone on with
  int lost = 0;          // updates that were finished when a process ended and are in no version
  int doubled = 0;       // versions that a finished update is in for a second time
  std::string adapter;   // SHA-256 of the final adapter.gguf
  std::map<std::string, uint64_t> hits;  // of the client's failpoints, when they were counted
};

// `fault`: "<failpoint>=<action>[:<hit>]" of the client's first process; empty: none, and the
// failpoints are counted. `reference` (may be null) is a run without faults: after kills the final
// adapter must have its bytes, for the same updates came from the same trainings.
ClientResult RunClientCase(const ClientPrograms& programs, const std::string& fault,
                           const ClientResult* reference);

}  // namespace fedge::robustness

#endif  // FEDGE_TESTS_ROBUSTNESS_CLIENT_CASE_H_
