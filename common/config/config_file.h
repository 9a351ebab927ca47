// YAML (and JSON, which YAML contains) into any protobuf message, by reflection: the one way a
// program of Fedge reads its configuration. The schema is the message; there is no second one.
#ifndef FEDGE_COMMON_CONFIG_CONFIG_FILE_H_
#define FEDGE_COMMON_CONFIG_CONFIG_FILE_H_

#include <string>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "common/base/env.h"
#include "common/config/config_places.h"

namespace google::protobuf {
class Descriptor;
class Message;
}  // namespace google::protobuf

namespace fedge {

inline constexpr uint64_t kMaxConfigBytes = 1 << 20;

// Sets the fields of `message` that `yaml` names; the others stay as they are. InvalidArgument, as
// "<name>:<line>:<column>: ...", for: broken YAML; a field the message does not have (the known
// ones are listed), or has twice; a value of another type or out of its range; a non-finite number.
// A field without a value (`lora:`) counts as not written. On error `message` is unspecified.
// `places`, unless null, then knows the line of each field.
absl::Status ParseConfig(absl::string_view yaml, absl::string_view name,
                         google::protobuf::Message& message, ConfigPlaces* places = nullptr);

// The same from a file of at most kMaxConfigBytes; also the codes of Env::Map.
absl::Status LoadConfigFile(absl::string_view path, Env& env, google::protobuf::Message& message,
                            ConfigPlaces* places = nullptr);

// What `message` has set, as YAML that ParseConfig reads back to the same message.
std::string PrintConfig(const google::protobuf::Message& message);

// The schema as a commented YAML skeleton, from the fields' `doc` options (proto/config.proto).
std::string DescribeConfig(const google::protobuf::Descriptor& descriptor);

}  // namespace fedge

#endif  // FEDGE_COMMON_CONFIG_CONFIG_FILE_H_
