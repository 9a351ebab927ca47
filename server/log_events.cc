#include "server/log_events.h"

#include <cmath>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "common/base/logging.h"

namespace fedge {
namespace {

std::string Bytes(uint64_t bytes) {
  if (bytes < 10'000) return absl::StrCat(bytes, " B");
  if (bytes < 10'000'000) return absl::StrFormat("%.1f kB", static_cast<double>(bytes) / 1e3);
  return absl::StrFormat("%.1f MB", static_cast<double>(bytes) / 1e6);
}

std::string CountsText(const RoundCounts& counts) {
  std::string text = absl::StrCat(counts.accepted, " of ", counts.assigned, " accepted");
  if (counts.rejected > 0) absl::StrAppend(&text, ", ", counts.rejected, " rejected");
  if (counts.dropped > 0) absl::StrAppend(&text, ", ", counts.dropped, " dropped");
  if (counts.folded > 0) absl::StrAppend(&text, ", ", counts.folded, " of earlier rounds");
  if (counts.late > 0) absl::StrAppend(&text, ", ", counts.late, " late");
  return text;
}

}  // namespace

void LogEvents::OnRoundStarted(uint64_t round, uint64_t base_version,
                               const std::vector<std::string>& cohort) {
  LogInfo("round ", round, ": started on version ", base_version, " with ", cohort.size(),
          " nodes");
}

void LogEvents::OnRoundContinued(const RoundRecord& round, const RoundCounts& counts) {
  LogInfo("round ", round.round, ": continued on version ", round.base_version, ", attempt ",
          round.attempt, ": ", CountsText(counts), ", ", counts.pending, " pending");
}

void LogEvents::OnDamage(const std::string& what) { LogWarning(what); }

void LogEvents::OnUpdate(const UpdateJudged& update) {
  const std::string head = absl::StrCat("round ", update.round, ": node '", update.node_id, "' ",
                                        std::string(VerdictName(update.verdict.verdict)));
  switch (update.verdict.verdict) {
    case Verdict::kAccepted:
      LogLine(LogLevel::kDebug, absl::StrCat(head, ", ", Bytes(update.wire_bytes)));
      break;
    case Verdict::kRejected:
      LogWarning(head, ": ", update.verdict.reason);
      break;
    case Verdict::kLate:
    case Verdict::kLater:
      LogInfo(head);
      break;
  }
}

void LogEvents::OnTaskFailed(const TaskFailed& failure) {
  LogWarning("round ", failure.round, ": node '", failure.node_id, "' failed: ", failure.error);
}

void LogEvents::OnPublished(const VersionRecord& version, const LoraAdapter&) {
  std::string line =
      absl::StrCat("round ", version.round, ": published version ", version.version, ": ",
                   CountsText(version.counts), ", ", Bytes(version.update_bytes), " of updates, ",
                   Bytes(version.encoded_bytes), " a download");
  if (version.aggregation_error > 0) {
    absl::StrAppendFormat(&line, ", aggregation error %.2f%%", 100 * version.aggregation_error);
  }
  const RoundMetrics& metrics = version.metrics;
  if (metrics.devices > 0) {
    absl::StrAppendFormat(&line, ", train loss %.4f -> %.4f", metrics.train_loss_first,
                          metrics.train_loss_last);
  }
  if (metrics.validation_tokens > 0) {
    absl::StrAppendFormat(&line, ", devices' held-out loss of version %d %.4f", version.version - 1,
                          metrics.validation_loss);
  }
  LogInfo(line);
}

void LogEvents::OnAbandoned(const RoundAbandoned& round) {
  LogWarning("round ", round.round, ": abandoned: ", round.reason, " (", CountsText(round.counts),
             ")");
}

void LogEvents::OnEvaluated(uint64_t version, double loss, int64_t tokens) {
  LogInfo(absl::StrFormat("version %d: holdout loss %.4f nats a token, perplexity %.3f (%d tokens)",
                          version, loss, std::exp(loss), tokens));
}

void LogEvents::OnFinished(uint64_t final_version) {
  LogInfo("run finished with version ", final_version);
}

void LogEvents::OnNoRoom(const absl::Status& status) {
  LogWarning(std::string(status.message()),
             "; nothing is acknowledged until there is room, devices keep their updates");
}

void LogEvents::OnRoomAgain() { LogInfo("there is room on the disk again"); }

void LogEvents::OnFailed(const absl::Status& status) {
  LogError(std::string(status.message()), "; restart the server when this is mended");
}

}  // namespace fedge
