#include "server/coordinator.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/base/rng.h"
#include "common/base/status.h"

namespace fedge {
namespace {

// Closed rounds whose verdicts are still answered from memory; the store has the rest.
constexpr size_t kRememberedRounds = 16;

}  // namespace

absl::string_view VerdictName(Verdict verdict) {
  switch (verdict) {
    case Verdict::kAccepted:
      return "accepted";
    case Verdict::kRejected:
      return "rejected";
    case Verdict::kLate:
      return "late";
  }
  FEDGE_CHECK(false, "verdict ", static_cast<int>(verdict));
}

Coordinator::Coordinator(RunPlan plan, ModelState state, uint64_t next_round)
    : plan_(std::move(plan)),
      state_(std::move(state)),
      round_(next_round),
      quarantine_(plan_.admission.quarantine_after, plan_.admission.quarantine_rounds) {
  FEDGE_CHECK(next_round >= 1);
  FEDGE_CHECK(state_.adapter.spec().layout_hash() == plan_.lora.layout_hash());
  if (static_cast<int64_t>(state_.version) >= plan_.rounds) {
    phase_ = Phase::kFinished;
    actions_.push_back(RunCompleted{state_.version});
  }
}

size_t Coordinator::NodesNeeded() const {
  if (!first_round_started_) return static_cast<size_t>(plan_.min_nodes);
  // Later rounds go on with fewer, as long as a usual cohort's quorum can be reached.
  const double usual = static_cast<double>(std::min(plan_.nodes_per_round, plan_.min_nodes));
  return static_cast<size_t>(std::max(1.0, std::ceil(plan_.quorum * usual - 1e-9)));
}

int64_t Coordinator::Quorum() const {
  // The small subtraction keeps products such as 0.07 * 100 from needing one more.
  const double exact = plan_.quorum * static_cast<double>(cohort_.counts().assigned);
  return std::max<int64_t>(1, static_cast<int64_t>(std::ceil(exact - 1e-9)));
}

absl::StatusOr<CheckInDecision> Coordinator::CheckIn(absl::string_view node_id,
                                                     const Digest& base_model, absl::Duration now) {
  RETURN_IF_ERROR(CheckNodeId(node_id));
  if (base_model != plan_.base_model) {
    return absl::FailedPreconditionError(absl::StrCat(
        "base model: the device holds ", base_model.Hex(), ", run '", plan_.run_id, "' trains ",
        plan_.base_model.Hex(), "; give the device the run's model file"));
  }
  if (nodes_.find(node_id) == nodes_.end()) {
    if (nodes_.size() >= kMaxKnownNodes) {
      return absl::ResourceExhaustedError(
          absl::StrCat("check-in: the limit of ", kMaxKnownNodes, " nodes is reached"));
    }
    nodes_.emplace(node_id);
  }
  Tick(now);
  MaybeStartRound(now);
  return Decide(node_id, now);
}

CheckInDecision Coordinator::Decide(absl::string_view node_id, absl::Duration now) const {
  switch (phase_) {
    case Phase::kFinished:
      return RunEnded{state_.version};
    case Phase::kPublishing:  // a matter of milliseconds, mostly
      return RetryLater{plan_.retry / 8, plan_.retry / 4,
                        absl::StrCat("round ", round_ - 1, " is being aggregated")};
    case Phase::kWaiting:
      return RetryLater{plan_.retry, plan_.retry * 2,
                        absl::StrCat("waiting for nodes: ", nodes_.size(), " of ", NodesNeeded(),
                                     " have checked in")};
    case Phase::kCollecting:
      break;
  }
  const Participation* const member = cohort_.Find(node_id);
  if (member == nullptr) {
    std::string reason = quarantine_.Reason(node_id, round_);
    if (reason.empty()) reason = absl::StrCat("not selected for round ", round_);
    return RetryLater{plan_.retry, plan_.retry * 2, std::move(reason)};
  }
  if (member->state != NodeState::kAssigned) {
    return RetryLater{plan_.retry, plan_.retry * 2,
                      absl::StrCat("round ", round_, " waits for ", cohort_.counts().pending,
                                   " more of its ", cohort_.counts().assigned, " nodes")};
  }
  TaskAssignment task;
  task.round = round_;
  task.adapter_version = state_.version;
  task.deadline = std::max(deadline_ - now, absl::ZeroDuration());
  task.seed = Rng::Stream(plan_.seed, absl::StrCat("task/", node_id), round_).Next();
  return task;
}

void Coordinator::MaybeStartRound(absl::Duration now) {
  if (phase_ != Phase::kWaiting || nodes_.size() < NodesNeeded()) return;
  std::vector<std::string> sample;
  for (const std::string& node : nodes_) {
    if (!quarantine_.Holds(node, round_)) sample.push_back(node);
  }
  // Rather than stand still, a run draws them: their updates are judged as any.
  if (sample.size() < NodesNeeded()) sample.assign(nodes_.begin(), nodes_.end());
  Rng rng = Rng::Stream(plan_.seed, "cohort", round_);
  const size_t size = std::min(sample.size(), static_cast<size_t>(plan_.nodes_per_round));
  for (size_t i = 0; i < size; ++i) {  // the first `size` steps of Fisher-Yates
    std::swap(sample[i], sample[i + static_cast<size_t>(rng.Below(sample.size() - i))]);
  }
  sample.resize(size);
  std::sort(sample.begin(), sample.end());
  OpenRound(sample, now);
  actions_.push_back(RoundStarted{round_, state_.version, std::move(sample)});
}

void Coordinator::OpenRound(const std::vector<std::string>& cohort, absl::Duration now) {
  cohort_ = Cohort();
  for (const std::string& node : cohort) cohort_.Add(node);
  updates_ = std::make_unique<RoundUpdates>(plan_, state_);
  deadline_ = now + plan_.round_deadline;
  first_round_started_ = true;
  phase_ = Phase::kCollecting;
}

void Coordinator::ResumeRound(const std::vector<std::string>& cohort, absl::Duration now) {
  FEDGE_CHECK(phase_ == Phase::kWaiting && nodes_.empty() && !cohort.empty());
  nodes_.insert(cohort.begin(), cohort.end());
  OpenRound(cohort, now);
}

UpdateVerdict Coordinator::ResumeUpdate(absl::string_view node_id, ReceivedUpdate update) {
  return Judge(node_id, *cohort_.Find(node_id), std::move(update));
}

void Coordinator::ResumeFailure(absl::string_view node_id, absl::string_view error) {
  Participation& participation = *cohort_.Find(node_id);
  participation.reason = std::string(error);
  cohort_.Settle(participation, NodeState::kDropped);
}

std::optional<UpdateVerdict> Coordinator::KnownVerdict(absl::string_view node_id, uint64_t round,
                                                       const Digest& digest) {
  const bool is_open = phase_ == Phase::kCollecting && round == round_;
  if (!is_open && round >= round_) {
    return UpdateVerdict{Verdict::kRejected, absl::StrCat("round ", round, " has not started")};
  }
  const UpdateVerdict late{Verdict::kLate, absl::StrCat("round ", round, " is over")};
  const auto past = past_.find(round);
  if (!is_open && past == past_.end()) return late;
  Cohort& cohort = is_open ? cohort_ : past->second;
  Participation* const member = cohort.Find(node_id);
  if (member == nullptr) {
    return UpdateVerdict{
        Verdict::kRejected,
        absl::StrCat("node '", node_id, "' is not in the cohort of round ", round)};
  }
  Participation& participation = *member;
  switch (participation.state) {
    case NodeState::kAssigned:
      return std::nullopt;
    case NodeState::kDropped:
      if (is_open) {
        return UpdateVerdict{Verdict::kRejected,
                             absl::StrCat("the node gave up its task of round ", round)};
      }
      if (!participation.late) {
        participation.late = true;
        ++late_;
        actions_.push_back(UpdateJudged{round, std::string(node_id), digest, 0, 0, late});
      }
      return late;
    case NodeState::kAccepted:
    case NodeState::kRejected:
      break;
  }
  if (participation.digest != digest) {
    return UpdateVerdict{Verdict::kRejected, absl::StrCat("another update of this node for round ",
                                                          round, " was judged already")};
  }
  return UpdateVerdict{
      participation.state == NodeState::kAccepted ? Verdict::kAccepted : Verdict::kRejected,
      participation.reason};
}

bool Coordinator::InOpenCohort(absl::string_view node_id, uint64_t round) const {
  return phase_ == Phase::kCollecting && round == round_ && cohort_.Find(node_id) != nullptr;
}

UpdateVerdict Coordinator::SubmitUpdate(absl::string_view node_id, uint64_t round,
                                        ReceivedUpdate update) {
  if (std::optional<UpdateVerdict> known = KnownVerdict(node_id, round, update.digest)) {
    return *known;
  }
  // Only a pending member of the open round comes here.
  UpdateJudged judged{.round = round,
                      .node_id = std::string(node_id),
                      .digest = update.digest,
                      .wire_bytes = update.wire_bytes};
  judged.verdict = Judge(node_id, *cohort_.Find(node_id), std::move(update), &judged.weight);
  UpdateVerdict verdict = judged.verdict;
  actions_.push_back(std::move(judged));
  MaybeCloseRound(/*deadline_passed=*/false);
  return verdict;
}

UpdateVerdict Coordinator::Judge(absl::string_view node_id, Participation& participation,
                                 ReceivedUpdate update, uint64_t* weight) {
  participation.digest = update.digest;
  absl::Status status = update.admitted.status();
  if (status.ok()) {
    const absl::StatusOr<uint64_t> added = updates_->Add(node_id, std::move(update));
    status = added.status();
    if (added.ok() && weight != nullptr) *weight = *added;
  }
  participation.reason = std::string(status.message());
  quarantine_.Note(node_id, round_, status.ok());
  cohort_.Settle(participation, status.ok() ? NodeState::kAccepted : NodeState::kRejected);
  return {status.ok() ? Verdict::kAccepted : Verdict::kRejected, participation.reason};
}

RoundCounts Coordinator::counts() const {
  RoundCounts counts = cohort_.counts();
  counts.late = late_;
  return counts;
}

void Coordinator::ReportFailure(absl::string_view node_id, uint64_t round,
                                absl::string_view error) {
  if (phase_ != Phase::kCollecting || round != round_) return;
  Participation* const member = cohort_.Find(node_id);
  if (member == nullptr || member->state != NodeState::kAssigned) return;
  member->reason = std::string(error);
  cohort_.Settle(*member, NodeState::kDropped);
  actions_.push_back(TaskFailed{round, std::string(node_id), member->reason});
  MaybeCloseRound(/*deadline_passed=*/false);
}

void Coordinator::Tick(absl::Duration now) {
  if (phase_ == Phase::kCollecting && now >= deadline_) MaybeCloseRound(/*deadline_passed=*/true);
}

void Coordinator::MaybeCloseRound(bool deadline_passed) {
  if (cohort_.counts().pending > 0 && !deadline_passed) return;
  for (auto& [node, participation] : cohort_.members()) {
    if (participation.state != NodeState::kAssigned) continue;
    cohort_.Settle(participation, NodeState::kDropped);
    nodes_.erase(node);  // it counts as gone until it checks in again
  }
  if (cohort_.counts().accepted >= Quorum()) return Publish();
  Abandon(absl::StrCat(cohort_.counts().accepted, " of ", cohort_.counts().assigned,
                       " updates accepted, ", Quorum(), " needed"));
}

void Coordinator::EndRound() {
  past_[round_] = std::move(cohort_);
  cohort_ = Cohort();
  late_ = 0;
  if (past_.size() > kRememberedRounds) past_.erase(past_.begin());
  updates_.reset();
  ++round_;
}

void Coordinator::Abandon(std::string reason) {
  actions_.push_back(RoundAbandoned{round_, counts(), std::move(reason)});
  EndRound();
  phase_ = Phase::kWaiting;  // the next check-in starts another attempt
}

void Coordinator::Publish() {
  absl::StatusOr<ClosedRound> closed = updates_->Close();
  if (!closed.ok()) return Abandon(std::string(closed.status().message()));
  VersionPublished published;
  published.contributions = std::move(closed->contributions);
  published.aggregation_error = closed->next.aggregation_error;
  published.state = std::move(closed->next.state);
  published.round = round_;
  published.counts = counts();
  candidate_ = published.state;
  actions_.push_back(std::move(published));
  EndRound();
  phase_ = Phase::kPublishing;
}

void Coordinator::Restore(ModelState state, absl::string_view reason) {
  FEDGE_CHECK(phase_ != Phase::kPublishing && state.version == state_.version + 1);
  if (phase_ == Phase::kCollecting) Abandon(std::string(reason));
  candidate_ = state;
  VersionPublished restored;
  restored.state = std::move(state);
  actions_.push_back(std::move(restored));
  phase_ = Phase::kPublishing;
}

void Coordinator::ConfirmPublished(uint64_t version, absl::Duration now) {
  FEDGE_CHECK(phase_ == Phase::kPublishing && version == candidate_->version);
  state_ = *std::exchange(candidate_, std::nullopt);
  GoOn(now);
}

void Coordinator::RejectCandidate(uint64_t version, absl::Duration now) {
  FEDGE_CHECK(phase_ == Phase::kPublishing && version == candidate_->version);
  candidate_.reset();
  GoOn(now);
}

void Coordinator::GoOn(absl::Duration now) {
  if (static_cast<int64_t>(state_.version) >= plan_.rounds) {
    phase_ = Phase::kFinished;
    actions_.push_back(RunCompleted{state_.version});
    return;
  }
  phase_ = Phase::kWaiting;
  MaybeStartRound(now);
}

std::vector<CoordinatorAction> Coordinator::TakeActions() { return std::exchange(actions_, {}); }

}  // namespace fedge
