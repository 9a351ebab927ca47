// Messages as JSON for scripts: names as in the .proto, numbers as numbers, digests in hex, times
// ("..._us") as RFC 3339 under the name without its unit, enums in small letters.
#ifndef FEDGE_TOOLS_FEDGE_PROTO_JSON_H_
#define FEDGE_TOOLS_FEDGE_PROTO_JSON_H_

#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>

namespace google::protobuf {
class EnumValueDescriptor;
class Message;
}  // namespace google::protobuf

namespace fedge {

// Fields without presence are always there; those with one, if they are set. A time of 0 is null.
nlohmann::ordered_json ProtoJson(const google::protobuf::Message& message);

// "paused" of RUN_PAUSED: without what the names of the enum have in common.
std::string EnumText(const google::protobuf::EnumValueDescriptor& value);

// "2026-11-21 17:04:05" in the local time zone; "-" for 0.
std::string TimeText(int64_t unix_us);

}  // namespace fedge

#endif  // FEDGE_TOOLS_FEDGE_PROTO_JSON_H_
