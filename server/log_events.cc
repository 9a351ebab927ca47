#include "server/log_events.h"

#include <cmath>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "common/base/logging.h"
#include "server/event_log.h"

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

LogLevel LevelOf(v1::Event::Level level) {
  switch (level) {
    case v1::Event::DEBUG:
      return LogLevel::kDebug;
    case v1::Event::WARNING:
      return LogLevel::kWarning;
    case v1::Event::ERROR:
      return LogLevel::kError;
    default:
      return LogLevel::kInfo;
  }
}

v1::Event RoundEvent(absl::string_view kind, v1::Event::Level level, uint64_t round,
                     absl::string_view text) {
  v1::Event event = MakeEvent(kind, level, absl::StrCat("round ", round, ": ", text));
  event.set_round(round);
  return event;
}

v1::Event NodeEvent(absl::string_view kind, v1::Event::Level level, uint64_t round,
                    const std::string& node, absl::string_view text) {
  v1::Event event = RoundEvent(kind, level, round, absl::StrCat("node '", node, "' ", text));
  event.set_node_id(node);
  return event;
}

}  // namespace

v1::Event MakeEvent(absl::string_view kind, v1::Event::Level level, absl::string_view text) {
  v1::Event event;
  event.set_kind(std::string(kind));
  event.set_level(level);
  event.set_text(std::string(text));
  return event;
}

void LogEvents::Add(v1::Event event) {
  event.set_run_id(run_id_);
  LogLine(LevelOf(event.level()),
          name_run_ ? absl::StrCat("run '", run_id_, "': ", event.text()) : event.text());
  if (log_ != nullptr) log_->Add(std::move(event));
}

void LogEvents::OnRoundStarted(uint64_t round, uint64_t base_version,
                               const std::vector<std::string>& cohort) {
  v1::Event event = RoundEvent(
      "round-started", v1::Event::INFO, round,
      absl::StrCat("started on version ", base_version, " with ", cohort.size(), " nodes"));
  event.set_version(base_version);
  Add(std::move(event));
}

void LogEvents::OnRoundContinued(const RoundRecord& round, const RoundCounts& counts) {
  v1::Event event = RoundEvent(
      "round-continued", v1::Event::INFO, round.round,
      absl::StrCat("continued on version ", round.base_version, ", attempt ", round.attempt, ": ",
                   CountsText(counts), ", ", counts.pending, " pending"));
  event.set_version(round.base_version);
  Add(std::move(event));
}

void LogEvents::OnDamage(const std::string& what) {
  Add(MakeEvent("damage", v1::Event::WARNING, what));
}

void LogEvents::OnUpdate(const UpdateJudged& update) {
  std::string text(VerdictName(update.verdict.verdict));
  v1::Event::Level level = v1::Event::INFO;
  if (update.verdict.verdict == Verdict::kAccepted) {
    level = v1::Event::DEBUG;
    absl::StrAppend(&text, ", ", Bytes(update.wire_bytes));
  } else if (update.verdict.verdict == Verdict::kRejected) {
    level = v1::Event::WARNING;
    absl::StrAppend(&text, ": ", update.verdict.reason);
  }
  Add(NodeEvent(absl::StrCat("update-", VerdictName(update.verdict.verdict)), level, update.round,
                update.node_id, text));
}

void LogEvents::OnTaskFailed(const TaskFailed& failure) {
  Add(NodeEvent("task-failed", v1::Event::WARNING, failure.round, failure.node_id,
                absl::StrCat("failed: ", failure.error)));
}

void LogEvents::OnPublished(const VersionRecord& version, const LoraAdapter&) {
  if (version.origin) {
    v1::Event event = MakeEvent(
        "rolled-back", v1::Event::WARNING,
        absl::StrCat("published version ", version.version, ": the content of version ",
                     *version.origin, " again, ", Bytes(version.encoded_bytes), " a download"));
    event.set_version(version.version);
    Add(std::move(event));
    return;
  }
  std::string line = absl::StrCat("published version ", version.version, ": ",
                                  CountsText(version.counts), ", ", Bytes(version.update_bytes),
                                  " of updates, ", Bytes(version.encoded_bytes), " a download");
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
  v1::Event event = RoundEvent("published", v1::Event::INFO, version.round, line);
  event.set_version(version.version);
  Add(std::move(event));
}

void LogEvents::OnAbandoned(const RoundAbandoned& round) {
  Add(RoundEvent("abandoned", v1::Event::WARNING, round.round,
                 absl::StrCat("abandoned: ", round.reason, " (", CountsText(round.counts), ")",
                              round.carried ? "; they count in the next attempt" : "")));
}

void LogEvents::OnEvaluating(uint64_t round, uint64_t version,
                             const std::vector<std::string>& nodes) {
  std::string text = absl::StrCat("version ", version, " is being evaluated");
  if (!nodes.empty()) absl::StrAppend(&text, ", ", nodes.size(), " nodes are asked");
  v1::Event event = RoundEvent("evaluating", v1::Event::INFO, round, text);
  event.set_version(version);
  Add(std::move(event));
}

void LogEvents::OnRefused(const RefusedRound& round) {
  v1::Event event = RoundEvent("refused", v1::Event::WARNING, round.round,
                               absl::StrCat("version ", round.version, " refused: ", round.reason));
  event.set_version(round.version);
  Add(std::move(event));
}

void LogEvents::OnEvaluated(uint64_t version, double loss, int64_t tokens) {
  v1::Event event = MakeEvent(
      "evaluated", v1::Event::INFO,
      absl::StrFormat("version %d: holdout loss %.4f nats a token, perplexity %.3f (%d tokens)",
                      version, loss, std::exp(loss), tokens));
  event.set_version(version);
  Add(std::move(event));
}

void LogEvents::OnFinished(uint64_t final_version) {
  v1::Event event = MakeEvent("finished", v1::Event::INFO,
                              absl::StrCat("run finished with version ", final_version));
  event.set_version(final_version);
  Add(std::move(event));
}

void LogEvents::OnNoRoom(const absl::Status& status) {
  Add(MakeEvent("no-room", v1::Event::WARNING,
                absl::StrCat(std::string(status.message()),
                             "; nothing is acknowledged until there is room, devices keep their "
                             "updates")));
}

void LogEvents::OnRoomAgain() {
  Add(MakeEvent("room-again", v1::Event::INFO, "there is room on the disk again"));
}

void LogEvents::OnFailed(const absl::Status& status) {
  Add(MakeEvent(
      "failed", v1::Event::ERROR,
      absl::StrCat(std::string(status.message()), "; restart the server when this is mended")));
}

}  // namespace fedge
