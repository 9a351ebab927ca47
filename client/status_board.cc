#include "client/status_board.h"

#include <google/protobuf/util/json_util.h>

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"

namespace fedge {

void StatusBoard::Update(absl::FunctionRef<void(v1::ClientStatus&)> change) {
  absl::MutexLock lock(&mutex_);
  change(status_);
}

void StatusBoard::SetState(absl::string_view state, absl::string_view detail) {
  absl::MutexLock lock(&mutex_);
  status_.set_state(std::string(state));
  status_.set_detail(std::string(detail));
}

void StatusBoard::NoteAnswer() {
  absl::MutexLock lock(&mutex_);
  answered_at_ = clock_->Monotonic();
}

void StatusBoard::NoteNextCheckIn(absl::Duration pause) {
  absl::MutexLock lock(&mutex_);
  check_in_at_ = clock_->Monotonic() + pause;
}

v1::ClientStatus StatusBoard::Get() {
  const absl::Duration now = clock_->Monotonic();
  absl::MutexLock lock(&mutex_);
  v1::ClientStatus status = status_;
  const absl::Duration left = std::max(check_in_at_ - now, absl::ZeroDuration());
  status.set_next_check_in_seconds(static_cast<uint64_t>(absl::ToInt64Seconds(left)));
  status.set_last_answer_seconds_ago(
      answered_at_ == -absl::InfiniteDuration() ? -1 : absl::ToDoubleSeconds(now - answered_at_));
  return status;
}

std::string StatusAsJson(const v1::ClientStatus& status) {
  google::protobuf::util::JsonPrintOptions options;
  options.preserve_proto_field_names = true;
  options.always_print_primitive_fields = true;
  options.add_whitespace = true;
  std::string json;
  // Fails for messages with Any only.
  (void)google::protobuf::util::MessageToJsonString(status, &json, options);
  return json;
}

std::string StatusAsText(const v1::ClientStatus& status) {
  std::string text;
  const auto line = [&](absl::string_view name, absl::string_view value) {
    if (!value.empty()) absl::StrAppendFormat(&text, "%-10s %s\n", name, value);
  };
  line("state", absl::StrCat(status.state(), status.detail().empty() ? "" : ": ", status.detail()));
  for (const std::string& refusal : status.refusals()) line("refused", refusal);
  if (status.paused_by_user()) line("paused", "by `fedge-client pause`; `resume` ends it");
  line("node", status.node_id());
  if (status.pid() > 0) line("process", absl::StrCat(status.pid()));
  if (!status.server().empty()) {
    const double ago = status.last_answer_seconds_ago();
    line("server",
         absl::StrCat(status.server(),
                      ago < 0 ? ", no answer yet" : absl::StrFormat(", answered %.0f s ago", ago)));
  }
  if (status.round() > 0) {
    line("task", absl::StrFormat("run %s, round %d, step %d of %d", status.run_id(), status.round(),
                                 status.step(), status.steps()));
  }
  if (status.pid() > 0) {  // counted by a daemon that runs
    line("updates", absl::StrFormat("%d accepted, %d refused or late, %d tasks failed",
                                    status.updates_accepted(), status.updates_rejected(),
                                    status.tasks_failed()));
    line("today", absl::StrCat(status.bytes_today(), " bytes sent and received"));
  }
  if (status.outbox_bytes() > 0) {
    line("outbox", absl::StrCat(status.outbox_bytes(), " bytes wait for their receipt"));
  }
  if (status.tokens_per_second() > 0) {
    line("speed", absl::StrFormat("%.1f tokens/s", status.tokens_per_second()));
  }
  const v1::AdapterChoice& adapter = status.adapter();
  if (!adapter.best().empty()) {
    line("adapter", absl::StrFormat("%s of version %d is best here (global %.4f, personal %.4f "
                                    "nats/token): %s",
                                    adapter.best(), adapter.version(), adapter.global_loss(),
                                    adapter.personal_loss(), adapter.path()));
  }
  line("error", status.last_error());
  return text;
}

}  // namespace fedge
