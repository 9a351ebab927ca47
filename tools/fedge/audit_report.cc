#include "tools/fedge/audit_report.h"

#include <utility>

#include "common/base/digest.h"
#include "common/base/status.h"
#include "server/audit_log.h"

namespace fedge {
namespace {

absl::StatusOr<AuditRecord> RecordOf(const v1::AuditRecordProto& from) {
  AuditRecord record;
  record.number = from.number();
  record.entry.when = absl::FromUnixMicros(from.when_us());
  record.entry.run_id = from.run_id();
  record.entry.actor = from.actor();
  record.entry.action = from.action();
  record.entry.detail = from.detail();
  ASSIGN_OR_RETURN(record.previous, DigestFromRaw(from.previous()));
  ASSIGN_OR_RETURN(record.hash, DigestFromRaw(from.hash()));
  return record;
}

absl::StatusOr<std::vector<PublishedVersion>> FetchPublished(AdminLink& link,
                                                             const std::string& only_run) {
  std::vector<PublishedVersion> published;
  ASSIGN_OR_RETURN(const v1::RunListResponse runs, link.RunList({}));
  for (const v1::RunInfo& run : runs.runs()) {
    if (!only_run.empty() && run.run_id() != only_run) continue;
    v1::ModelRef ref;
    ref.set_run_id(run.run_id());
    ASSIGN_OR_RETURN(const v1::ModelListResponse models, link.ModelList(ref));
    for (const v1::ModelInfo& model : models.versions()) {
      if (model.manifest_sha256().empty()) continue;  // an older release published it
      ASSIGN_OR_RETURN(const Digest manifest, DigestFromRaw(model.manifest_sha256()));
      published.push_back({run.run_id(), model.version(), manifest});
    }
  }
  return published;
}

absl::Status Check(absl::Span<const AuditRecord> log, absl::Span<const PublishedVersion> versions) {
  RETURN_IF_ERROR(VerifyAudit({}, log));
  return VerifyPublished(log, versions);
}

}  // namespace

absl::StatusOr<AuditReport> FetchAudit(AdminLink& link, const std::string& only_run) {
  AuditReport report;
  // Versions before the log: what is published meanwhile is on record by then.
  ASSIGN_OR_RETURN(const std::vector<PublishedVersion> published, FetchPublished(link, only_run));
  report.num_versions = published.size();
  std::vector<AuditRecord> log;
  for (;;) {
    v1::AuditListRequest request;
    if (!log.empty()) request.set_after(log.back().number);
    ASSIGN_OR_RETURN(v1::AuditListResponse page, link.AuditList(request));
    if (page.records().empty()) break;
    for (v1::AuditRecordProto& record : *page.mutable_records()) {
      ASSIGN_OR_RETURN(log.emplace_back(), RecordOf(record));
      report.records.push_back(std::move(record));
    }
  }
  if (!log.empty()) report.head = log.back().hash.Hex();
  report.verdict = Check(log, published);
  return report;
}

}  // namespace fedge
