#include "server/audit_log.h"

#include <set>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/base/byte_io.h"

namespace fedge {
namespace {

// server/decisions.cc writes it.
constexpr absl::string_view kManifestMember = "\"manifest\":\"";
constexpr size_t kHexDigits = 64;

void WriteText(absl::string_view text, ByteWriter& writer) {
  writer.Write<uint64_t>(text.size());
  writer.WriteBytes(text);
}

}  // namespace

Digest AuditHash(const AuditRecord& record) {
  ByteWriter writer;
  WriteText(record.previous.Raw(), writer);
  writer.Write<uint64_t>(record.number);
  writer.Write<int64_t>(absl::ToUnixMicros(record.entry.when));
  WriteText(record.entry.run_id, writer);
  WriteText(record.entry.actor, writer);
  WriteText(record.entry.action, writer);
  WriteText(record.entry.detail, writer);
  return Sha256Of(writer.bytes());
}

AuditRecord NextAuditRecord(const AuditRecord& last, AuditEntry entry) {
  AuditRecord record;
  record.number = last.number + 1;
  record.entry = std::move(entry);
  record.previous = last.hash;
  record.hash = AuditHash(record);
  return record;
}

absl::Status VerifyAudit(const AuditRecord& last, absl::Span<const AuditRecord> records) {
  Digest previous = last.hash;
  uint64_t number = last.number;
  for (const AuditRecord& record : records) {
    ++number;
    const auto bad = [&](absl::string_view what) {
      return absl::DataLossError(absl::StrCat("audit log: record ", number, ": ", what));
    };
    if (record.number != number) {
      return bad(absl::StrCat("is missing, record ", record.number, " stands in its place"));
    }
    if (record.hash != AuditHash(record)) {
      return bad(absl::StrCat("was changed: its content has the hash ", AuditHash(record).Hex(),
                              ", not ", record.hash.Hex()));
    }
    if (record.previous != previous) {
      return bad(absl::StrCat("follows a record with the hash ", record.previous.Hex(),
                              ", but record ", number - 1, " has ", previous.Hex()));
    }
    previous = record.hash;
  }
  return absl::OkStatus();
}

absl::Status VerifyPublished(absl::Span<const AuditRecord> log,
                             absl::Span<const PublishedVersion> versions) {
  std::set<std::pair<std::string, std::string>> on_record;  // run, SHA-256 of a manifest
  for (const AuditRecord& record : log) {
    const absl::string_view detail = record.entry.detail;
    const size_t at = detail.find(kManifestMember);
    if (at == detail.npos) continue;
    on_record.emplace(record.entry.run_id,
                      std::string(detail.substr(at + kManifestMember.size(), kHexDigits)));
  }
  for (const PublishedVersion& version : versions) {
    if (on_record.count({version.run_id, version.manifest.Hex()}) > 0) continue;
    return absl::DataLossError(absl::StrCat(
        "audit log: version ", version.version, " of run '", version.run_id,
        "', with the manifest ", version.manifest.Hex(),
        ", has no record: the log's end was cut off, or the version was ", "put in its place"));
  }
  return absl::OkStatus();
}

}  // namespace fedge
