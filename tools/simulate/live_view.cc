#include "tools/simulate/live_view.h"

#include <algorithm>
#include <cmath>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"

namespace fedge {

LiveView::LiveView(ProgressLine* line, Clock* clock, int64_t rounds, bool centralized)
    : line_(line),
      clock_(clock),
      rounds_(rounds),
      centralized_(centralized),
      start_(clock->Monotonic()) {}

void LiveView::Say(absl::string_view text) {
  absl::MutexLock lock(&mutex_);
  if (line_ != nullptr) line_->Print(text);
}

void LiveView::Doing(absl::string_view what) {
  absl::MutexLock lock(&mutex_);
  if (line_ != nullptr) line_->Update(what);
}

absl::Duration LiveView::TimeLeft(absl::Duration now) const {
  const double in_round =
      cohort_ == 0 ? 0 : static_cast<double>(done_) / static_cast<double>(cohort_);
  const double rounds_done = static_cast<double>(published_) + in_round;
  if (rounds_done <= 0) return absl::InfiniteDuration();
  // The reference trains as many tokens as all rounds together and is measured as often.
  const double rounds_left = static_cast<double>(rounds_) * (centralized_ ? 2 : 1) - rounds_done;
  return (now - first_round_at_) / rounds_done * std::max(0.0, rounds_left);
}

void LiveView::RoundStarted(uint64_t round, size_t cohort) {
  absl::MutexLock lock(&mutex_);
  round_at_ = clock_->Monotonic();
  if (published_ == 0 && round_ == 0) first_round_at_ = round_at_;
  round_ = round;
  cohort_ = cohort;
  done_ = accepted_ = 0;
  loss_sum_ = 0;
  round_tokens_ = 0;
}

void LiveView::NodeDone(const NodeOutcome& outcome) {
  absl::MutexLock lock(&mutex_);
  ++done_;
  const v1::TaskMetrics& metrics = outcome.step.metrics;
  if (outcome.status.ok() && outcome.step.kind == StepKind::kAccepted) {
    ++accepted_;
    loss_sum_ += metrics.train_loss_last();
  }
  upload_bytes_ += metrics.upload_bytes();
  download_bytes_ += metrics.download_bytes();
  round_tokens_ += metrics.train_tokens();
  if (line_ == nullptr) return;
  const absl::Duration now = clock_->Monotonic();
  const double seconds = std::max(1e-3, absl::ToDoubleSeconds(now - round_at_));
  const absl::Duration left = TimeLeft(now);
  std::string text =
      absl::StrCat("round ", published_ + 1, "/", rounds_, "  nodes ", done_, "/", cohort_);
  if (accepted_ > 0) {
    absl::StrAppendFormat(&text, "  train %.3f", loss_sum_ / static_cast<double>(accepted_));
  }
  absl::StrAppend(&text, last_quality_, "  up ", FormatBytes(upload_bytes_), "  down ",
                  FormatBytes(download_bytes_), "  ",
                  FormatRate(static_cast<double>(round_tokens_) / seconds, "tokens"));
  if (left < absl::InfiniteDuration()) {
    absl::StrAppend(&text, "  ", FormatTimeSpan(left), " left");
  }
  line_->Update(text);
}

void LiveView::RoundFinished(const RoundRecord& record) {
  absl::MutexLock lock(&mutex_);
  done_ = 0;
  if (record.version > 0) ++published_;
  if (line_ == nullptr) return;
  if (!header_shown_) {
    line_->Print("round  nodes   train  valid.  perplexity  accuracy        up      down    time");
    header_shown_ = true;
  }
  std::string quality = "      -           -         -";
  if (record.quality) {
    const double loss = record.quality->validation_loss;
    last_quality_ = absl::StrFormat("  valid. %.3f", loss);
    quality = absl::StrFormat("%7.4f  %10.2f  %8s", loss, std::exp(loss),
                              record.quality->label_accuracy
                                  ? absl::StrFormat("%.1f%%", 100 * *record.quality->label_accuracy)
                                  : "");
  }
  std::string note = record.note.empty() ? "" : absl::StrCat("  ", record.note);
  if (record.virtual_seconds > 0) {
    note = absl::StrFormat("  at %.0f s, %d late%s", record.virtual_seconds, record.folded, note);
  }
  line_->Print(absl::StrFormat("%5d  %2d/%-2d  %6.3f %s  %8s  %8s  %6s%s", record.round,
                               record.accepted, record.assigned, record.train_loss, quality,
                               FormatBytes(record.upload_bytes), FormatBytes(record.download_bytes),
                               FormatTimeSpan(absl::Seconds(record.seconds)), note));
}

void LiveView::CentralizedStep(const TrainProgress& progress) {
  absl::MutexLock lock(&mutex_);
  if (line_ == nullptr) return;
  const absl::Duration now = clock_->Monotonic();
  if (centralized_at_ == -absl::InfiniteDuration()) centralized_at_ = now;
  const absl::Duration elapsed = now - centralized_at_;
  const absl::Duration left = elapsed / static_cast<double>(progress.step) *
                              static_cast<double>(progress.steps - progress.step);
  line_->Update(absl::StrFormat("centralised reference: step %d/%d  train %.3f  %s left",
                                progress.step, progress.steps, progress.loss,
                                FormatTimeSpan(left)));
}

}  // namespace fedge
