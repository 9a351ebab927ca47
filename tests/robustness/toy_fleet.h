// Twenty devices that do not train: their updates are seeded noise, so that a run takes a fraction
// of a second and its result is known. They talk to the server with the device's own code
// (client/transfer.h over gRPC) and write down what they were told.
#ifndef FEDGE_TESTS_ROBUSTNESS_TOY_FLEET_H_
#define FEDGE_TESTS_ROBUSTNESS_TOY_FLEET_H_

#include <cstdint>
#include <string>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "fedge/v1/config.pb.h"

namespace fedge::robustness {

inline constexpr uint64_t kToyNodes = 20;
inline constexpr uint64_t kToyRounds = 3;

// The run they take part in, on the tiny model at `model`.
v1::ServerConfig ToyConfig(const std::string& model, const std::string& state_dir);

// Takes part until the server says that the run is over. `journal`: appended to, one line a fact:
//   verdict <node> <round> <digest> <verdict>
//   version <number> <crc of its values>
// Then repeats an old update, and sends other bytes for a past round: both must change nothing.
absl::Status RunToyFleet(const v1::ServerConfig& config, int port, const std::string& journal);

}  // namespace fedge::robustness

#endif  // FEDGE_TESTS_ROBUSTNESS_TOY_FLEET_H_
