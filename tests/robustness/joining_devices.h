// Devices that join over TLS with tokens of an operator, who revokes one of them: what the fleet,
// which talks without TLS, never comes to.
#ifndef FEDGE_TESTS_ROBUSTNESS_JOINING_DEVICES_H_
#define FEDGE_TESTS_ROBUSTNESS_JOINING_DEVICES_H_

#include <string>

#include "absl/status/status.h"
#include "fedge/v1/config.pb.h"
#include "tests/robustness/run_case.h"

namespace fedge::robustness {

// Each step is repeated until the server says that it is done. Devices' folders are made beside the
// server's state folder; the port they join at is read from `server_log`, where each server that is
// started says its own. `journal` is appended to, one line a fact: joined <node>, revoked <node>.
absl::Status PlayJoiningDevices(const v1::ServerConfig& config, const std::string& server_log,
                                const std::string& journal);

// Afterwards, from the database: who was told that it joined is a member with the key it holds,
// and none else; each token is used once; the revoked one is. Adds to `result`.
void CheckJoinedDevices(const std::string& state_dir, const std::string& journal,
                        CaseResult& result);

}  // namespace fedge::robustness

#endif  // FEDGE_TESTS_ROBUSTNESS_JOINING_DEVICES_H_
