#include "server/decisions.h"

#include <string>

#include <google/protobuf/util/json_util.h>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "common/base/digest.h"
#include "fedge/v1/registry.pb.h"

namespace fedge {
namespace {

// As a JSON string. `text` is UTF-8.
std::string Quoted(absl::string_view text) {
  std::string quoted = "\"";
  for (const char c : text) {
    if (c == '"' || c == '\\') quoted += '\\';
    if (static_cast<unsigned char>(c) < 0x20) {
      absl::StrAppendFormat(&quoted, "\\u%04x", static_cast<unsigned>(c));
    } else {
      quoted += c;
    }
  }
  return quoted + "\"";
}

// ,"gate":{...}
std::string GateMember(const std::string& decision) {
  v1::GateDecision gate;
  if (decision.empty() || !gate.ParseFromString(decision)) return "";
  google::protobuf::util::JsonPrintOptions options;
  options.preserve_proto_field_names = true;
  std::string json;
  if (!google::protobuf::util::MessageToJsonString(gate, &json, options).ok()) return "";
  return absl::StrCat(",\"gate\":", json);
}

AuditEntry Entry(absl::string_view run, absl::Time when, const std::string& actor,
                 absl::string_view action, std::string detail) {
  AuditEntry entry;
  entry.when = when;
  entry.run_id = std::string(run);
  if (!actor.empty()) entry.actor = actor;
  entry.action = std::string(action);
  entry.detail = std::move(detail);
  return entry;
}

}  // namespace

AuditEntry PublicationEntry(absl::string_view run, const VersionRecord& version) {
  std::string detail = absl::StrCat("{\"version\":", version.version);
  if (version.round > 0) absl::StrAppend(&detail, ",\"round\":", version.round);
  if (version.origin) absl::StrAppend(&detail, ",\"origin\":", *version.origin);
  absl::StrAppend(&detail, ",\"manifest\":\"", Sha256Of(version.manifest).Hex(), "\"",
                  GateMember(version.decision), "}");
  const bool by_operator = !version.actor.empty();
  absl::string_view action = by_operator ? "promote" : "publish";
  if (version.origin) action = by_operator ? "rollback" : "restore";
  if (version.version == 0) action = "start";
  return Entry(run, version.created, version.actor, action, std::move(detail));
}

AuditEntry RefusalEntry(absl::string_view run, const RefusedRound& round) {
  return Entry(run, round.when, "", "refuse",
               absl::StrCat("{\"version\":", round.version, ",\"round\":", round.round,
                            ",\"reason\":", Quoted(round.reason), GateMember(round.decision), "}"));
}

AuditEntry RunStateEntry(absl::string_view run, RunState state, absl::string_view actor,
                         absl::Time when) {
  absl::string_view action = "finish";
  if (state == RunState::kRunning) action = "resume";
  if (state == RunState::kPaused) action = "pause";
  if (state == RunState::kStopped) action = "stop";
  return Entry(run, when, std::string(actor), action, "{}");
}

AuditEntry QuarantineEntry(absl::string_view run, const ParticipationRecord& record) {
  return Entry(run, record.when, "", "quarantine",
               absl::StrCat("{\"node\":", Quoted(record.node_id), ",\"round\":", record.round,
                            ",\"reason\":", Quoted(record.reason), "}"));
}

}  // namespace fedge
