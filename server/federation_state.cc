// FederationCore: the life of the run as operators change it, and what it says of itself.
#include <algorithm>

#include "absl/strings/str_cat.h"
#include "common/base/failpoint.h"
#include "common/base/status.h"
#include "server/federation_core.h"

namespace fedge {

uint64_t FederationCore::version() { return downlink_.version(); }

uint64_t FederationCore::round() {
  absl::MutexLock lock(&mutex_);
  return coordinator_->round();
}

absl::Status FederationCore::SetPaused(bool paused, absl::string_view actor) {
  RETURN_IF_ERROR(CheckServing());
  {
    absl::MutexLock storing(&actions_mutex_);  // a run comes to its end under this lock
    const RunState now = state();
    if (now == RunState::kStopped || now == RunState::kFinished) {
      return absl::FailedPreconditionError(absl::StrCat(
          "run '", plan_.run_id, "' is ", RunStateName(now), "; clone it to train on"));
    }
    const RunState next = paused ? RunState::kPaused : RunState::kRunning;
    RETURN_IF_ERROR(CheckStored(store_->SetRunState(plan_.run_id, next, actor, clock_.Now())));
    RETURN_IF_ERROR(FEDGE_FAILPOINT("core.pause.stored"));
    absl::MutexLock lock(&mutex_);
    run_clock_.SetPaused(paused);
    coordinator_->SetPaused(paused);
  }
  return ProcessActions();
}

absl::Status FederationCore::Stop(absl::string_view actor) {
  RETURN_IF_ERROR(CheckServing());
  {
    absl::MutexLock storing(&actions_mutex_);
    if (state() == RunState::kFinished) return absl::OkStatus();
    RETURN_IF_ERROR(
        CheckStored(store_->SetRunState(plan_.run_id, RunState::kStopped, actor, clock_.Now())));
    RETURN_IF_ERROR(FEDGE_FAILPOINT("core.stop.stored"));
    absl::MutexLock lock(&mutex_);
    RefuseCandidate("the run was stopped");
    coordinator_->Stop();
  }
  return ProcessActions();
}

RunState FederationCore::state() {
  absl::MutexLock lock(&mutex_);
  if (coordinator_->stopped()) return RunState::kStopped;
  if (coordinator_->finished()) return RunState::kFinished;
  return coordinator_->paused() ? RunState::kPaused : RunState::kRunning;
}

bool FederationCore::finished() {
  absl::MutexLock lock(&mutex_);
  return coordinator_->finished();
}

LoraAdapter FederationCore::adapter() {
  absl::MutexLock lock(&mutex_);
  return coordinator_->adapter();
}

size_t FederationCore::known_nodes() {
  absl::MutexLock lock(&mutex_);
  return coordinator_->known_nodes();
}

FederationCore::Progress FederationCore::progress() {
  absl::MutexLock lock(&mutex_);
  return {coordinator_->round(), coordinator_->collecting(), coordinator_->counts(),
          coordinator_->known_nodes()};
}

std::string FederationCore::QuarantineReason(absl::string_view node) {
  absl::MutexLock lock(&mutex_);
  return coordinator_->QuarantineReason(node);
}

void FederationCore::NoteTold(absl::string_view node) {
  absl::MutexLock lock(&mutex_);
  told_.insert(std::string(node));
}

size_t FederationCore::nodes_to_tell() {
  absl::MutexLock lock(&mutex_);
  const size_t known = coordinator_->known_nodes();
  return known - std::min(known, told_.size());
}

}  // namespace fedge
