// What nodes ask and send. How rounds begin and end: coordinator_rounds.cc.
#include "server/coordinator.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/base/rng.h"
#include "common/base/status.h"

namespace fedge {

absl::string_view VerdictName(Verdict verdict) {
  switch (verdict) {
    case Verdict::kAccepted:
      return "accepted";
    case Verdict::kRejected:
      return "rejected";
    case Verdict::kLate:
      return "late";
    case Verdict::kLater:
      return "not yet";
  }
  FEDGE_CHECK(false, "verdict ", static_cast<int>(verdict));
}

Coordinator::Coordinator(RunPlan plan, ModelState state, uint64_t next_round, BlobReader read)
    : plan_(std::move(plan)),
      state_(std::move(state)),
      read_(std::move(read)),
      round_(next_round),
      speeds_(plan_.steps * plan_.batch_size * plan_.length),
      quarantine_(plan_.admission.quarantine_after, plan_.admission.quarantine_rounds),
      early_stopping_(plan_.pace.patience, plan_.pace.min_improvement) {
  FEDGE_CHECK(next_round >= 1);
  FEDGE_CHECK(state_.adapter.spec().layout_hash() == plan_.lora.layout_hash());
  FinishIfDone();
}

absl::StatusOr<CheckInDecision> Coordinator::CheckIn(absl::string_view node_id,
                                                     const Digest& base_model, absl::Duration now,
                                                     double tokens_per_second) {
  RETURN_IF_ERROR(CheckNodeId(node_id));
  if (base_model != plan_.base_model) {
    return absl::FailedPreconditionError(absl::StrCat(
        "base model: the device holds ", base_model.Hex(), ", run '", plan_.run_id, "' trains ",
        plan_.base_model.Hex(), "; give the device the run's model file"));
  }
  if (nodes_.find(node_id) == nodes_.end() && nodes_.size() >= kMaxKnownNodes) {
    return absl::ResourceExhaustedError(
        absl::StrCat("check-in: the limit of ", kMaxKnownNodes, " nodes is reached"));
  }
  NoteDownload(node_id, now);
  Tick(now);
  nodes_.emplace(node_id);
  speeds_.NoteRate(node_id, tokens_per_second);
  // Who asks for work is not busy with that of a round that is over.
  const auto task = under_way_.find(node_id);
  if (task != under_way_.end() && !IsOpen(task->second)) under_way_.erase(task);
  MaybeStartRound(now);
  return Decide(node_id, now);
}

CheckInDecision Coordinator::Decide(absl::string_view node_id, absl::Duration now) {
  if (paused_ && phase_ != Phase::kFinished) {
    return Later("the run is paused");
  }
  switch (phase_) {
    case Phase::kFinished:
      return RunEnded{state_.version};
    case Phase::kPublishing:  // a matter of milliseconds, mostly
      return Later(absl::StrCat("round ", round_ - 1, " is being aggregated"), Pace() / 8);
    case Phase::kWaiting:
      return Later(absl::StrCat("waiting for nodes: ", NodesAvailable(), " of ", NodesNeeded(),
                                " have checked in"));
    case Phase::kCollecting:
      break;
  }
  if (Participation* const task = TaskOf(node_id, now)) return Assign(node_id, *task, now);
  return Later(WhyNot(node_id));
}

RetryLater Coordinator::Later(std::string reason, std::optional<absl::Duration> pace) const {
  const absl::Duration least = pace.value_or(Pace());
  return RetryLater{least, least * 2, std::move(reason)};
}

absl::Duration Coordinator::Pace() const {
  return std::max(plan_.retry,
                  absl::Seconds(static_cast<double>(nodes_.size()) / kMostCheckInsPerSecond));
}

Participation* Coordinator::TaskOf(absl::string_view node_id, absl::Duration now) {
  Participation* const member = cohort_.Find(node_id);
  if (member == nullptr) {
    return Places() > 0 && !IsKeptOut(node_id) ? &AddMember(node_id, now) : nullptr;
  }
  if (member->state == NodeState::kGivenUp) {  // it is back
    cohort_.Settle(*member, NodeState::kAssigned);
    vacancies_ = std::max<int64_t>(0, vacancies_ - 1);
    under_way_[std::string(node_id)] = round_;
  }
  return member->state == NodeState::kAssigned ? member : nullptr;
}

// Rather than stand still, a run goes on with nodes in quarantine.
bool Coordinator::IsKeptOut(absl::string_view node_id) const {
  if (!quarantine_.Holds(node_id, round_)) return false;
  size_t others = 0;
  for (auto node = nodes_.begin(); node != nodes_.end() && others < NodesNeeded(); ++node) {
    others += !quarantine_.Holds(*node, round_);
  }
  return others >= NodesNeeded();
}

TaskAssignment Coordinator::Assign(absl::string_view node_id, Participation& task,
                                   absl::Duration now) {
  TaskAssignment assignment;
  assignment.is_new = !task.told;
  if (!task.told) {
    task.told = true;
    task.told_at = now;
  }
  task.last_sign = now;
  next_lease_end_ = std::min(next_lease_end_, LeaseEnd(node_id, task));
  assignment.round = round_;
  assignment.adapter_version = state_.version;
  assignment.deadline = deadline_ - now;
  if (plan_.pace.max_staleness > 0) {  // what comes after the round is not lost
    const absl::Duration spent = now - task.told_at.value_or(now);
    assignment.deadline = std::max(assignment.deadline, plan_.round_deadline - spent);
  }
  assignment.deadline = std::max(assignment.deadline, absl::ZeroDuration());
  assignment.seed = Rng::Stream(plan_.seed, absl::StrCat("task/", node_id), round_).Next();
  return assignment;
}

// It has a lease to come back, and its speed is not measured by another run's task.
void Coordinator::TakeBack(absl::string_view node_id, const TaskAssignment& assignment) {
  if (!assignment.is_new || !IsOpen(assignment.round)) return;
  Participation* const task = cohort_.Find(node_id);
  if (task == nullptr || !task->is_open()) return;
  task->told = false;
  task->told_at.reset();
  next_lease_end_ = std::min(next_lease_end_, LeaseEnd(node_id, *task));
}

std::string Coordinator::WhyNot(absl::string_view node_id) const {
  const RoundCounts& counts = cohort_.counts();
  if (const Participation* const member = cohort_.Find(node_id)) {
    if (plan_.pace.is_async) {
      return absl::StrCat("round ", round_, " has had this node's update");
    }
    return absl::StrCat("round ", round_, " waits for ", counts.pending, " more of its ",
                        counts.assigned, " nodes");
  }
  std::string reason = quarantine_.Reason(node_id, round_);
  if (!reason.empty()) return reason;
  if (plan_.pace.is_async) return absl::StrCat(under_way_.size(), " nodes are training already");
  return absl::StrCat("not selected for round ", round_);
}

void Coordinator::NoteDownload(absl::string_view node_id, absl::Duration now) {
  const auto task = under_way_.find(node_id);
  if (task == under_way_.end()) return;
  Cohort* const cohort = FindCohort(task->second);
  if (cohort == nullptr) return;
  cohort->Find(node_id)->last_sign = now;
}

void Coordinator::NoteUpload(absl::string_view node_id, uint64_t round, absl::Duration now) {
  Cohort* const cohort = FindCohort(round);
  Participation* const task = cohort == nullptr ? nullptr : cohort->Find(node_id);
  if (task == nullptr) return;
  task->last_sign = now;
  if (phase_ != Phase::kWaiting) return;
  // It has done its work: a run that waits for nodes may count on it.
  if (!plan_.pace.is_async) LeaveTask(node_id, round);
  if (nodes_.size() < kMaxKnownNodes) nodes_.emplace(node_id);
  MaybeStartRound(now);
}

void Coordinator::LeaveTask(absl::string_view node_id, uint64_t round) {
  const auto task = under_way_.find(node_id);
  if (task != under_way_.end() && task->second == round) under_way_.erase(task);
}

const Cohort* Coordinator::FindCohort(uint64_t round) const {
  if (IsOpen(round)) return &cohort_;
  const auto past = past_.find(round);
  return past == past_.end() ? nullptr : &past->second;
}

std::optional<uint64_t> Coordinator::BaseVersion(uint64_t round) const {
  const Cohort* const cohort = FindCohort(round);
  if (cohort == nullptr) return std::nullopt;
  return cohort->base_version();
}

bool Coordinator::IsTooOld(const Cohort& cohort) const {
  const auto staleness = static_cast<int64_t>(state_.version - cohort.base_version());
  return plan_.pace.max_staleness == 0 || staleness > plan_.pace.max_staleness;
}

bool Coordinator::HasOpenTask(absl::string_view node_id, uint64_t round) const {
  const Cohort* const cohort = FindCohort(round);
  const Participation* const task = cohort == nullptr ? nullptr : cohort->Find(node_id);
  return task != nullptr && task->is_open() && (IsOpen(round) || !IsTooOld(*cohort));
}

UpdateVerdict Coordinator::TellLate(absl::string_view node_id, uint64_t round, Participation& task,
                                    const Digest& digest) {
  UpdateVerdict late{Verdict::kLate, absl::StrCat("round ", round, " is over")};
  LeaveTask(node_id, round);
  if (!task.late) {
    task.late = true;
    ++late_;
    actions_.push_back(UpdateJudged{
        .round = round, .node_id = std::string(node_id), .digest = digest, .verdict = late});
  }
  return late;
}

std::optional<UpdateVerdict> Coordinator::KnownVerdict(absl::string_view node_id, uint64_t round,
                                                       const Digest& digest) {
  if (!IsOpen(round) && round >= round_) {
    return UpdateVerdict{Verdict::kRejected, absl::StrCat("round ", round, " has not started")};
  }
  Cohort* const cohort = FindCohort(round);
  if (cohort == nullptr) {
    return UpdateVerdict{Verdict::kLate, absl::StrCat("round ", round, " is over")};
  }
  Participation* const task = cohort->Find(node_id);
  if (task == nullptr) {
    return UpdateVerdict{
        Verdict::kRejected,
        absl::StrCat("node '", node_id, "' is not in the cohort of round ", round)};
  }
  if (task->is_open()) {
    if (IsOpen(round)) return std::nullopt;
    if (IsTooOld(*cohort) || finished()) return TellLate(node_id, round, *task, digest);
    if (collecting()) return std::nullopt;
    return UpdateVerdict{Verdict::kLater, absl::StrCat("round ", round,
                                                       " is over and the next one "
                                                       "has not begun; send the update again")};
  }
  if (task->state == NodeState::kDropped) {
    if (!IsOpen(round)) return TellLate(node_id, round, *task, digest);
    return UpdateVerdict{Verdict::kRejected,
                         absl::StrCat("the node gave up its task of round ", round)};
  }
  if (task->digest != digest) {
    return UpdateVerdict{Verdict::kRejected, absl::StrCat("another update of this node for round ",
                                                          round, " was judged already")};
  }
  return UpdateVerdict{
      task->state == NodeState::kAccepted ? Verdict::kAccepted : Verdict::kRejected, task->reason};
}

UpdateVerdict Coordinator::SubmitUpdate(absl::string_view node_id, uint64_t round,
                                        ReceivedUpdate update) {
  if (std::optional<UpdateVerdict> known = KnownVerdict(node_id, round, update.digest)) {
    return *known;
  }
  UpdateJudged judged{.round = round,
                      .counted = round_,
                      .node_id = std::string(node_id),
                      .digest = update.digest,
                      .wire_bytes = update.wire_bytes};
  judged.verdict = Judge(node_id, round, std::move(update), &judged.weight);
  judged.quarantined =
      judged.verdict.verdict == Verdict::kRejected && quarantine_.Holds(node_id, round_ + 1);
  UpdateVerdict verdict = judged.verdict;
  const Participation& task = *FindCohort(round)->Find(node_id);
  if (task.told_at) speeds_.NoteTask(node_id, task.last_sign - *task.told_at);
  actions_.push_back(std::move(judged));
  MaybeCloseRound(/*deadline_passed=*/false, task.last_sign);
  return verdict;
}

UpdateVerdict Coordinator::Judge(absl::string_view node_id, uint64_t round, ReceivedUpdate update,
                                 uint64_t* weight) {
  const Digest digest = update.digest;
  absl::Status status = update.admitted.status();
  if (status.ok()) {
    if (updates_ == nullptr) updates_ = std::make_unique<RoundUpdates>(plan_, state_, read_);
    const absl::StatusOr<uint64_t> added = updates_->Add(node_id, std::move(update));
    status = added.status();
    if (added.ok() && weight != nullptr) *weight = *added;
  }
  quarantine_.Note(node_id, round_, status.ok());
  if (!IsOpen(round)) ++(status.ok() ? folded_ : late_);
  Cohort* const cohort = FindCohort(round);
  // A resumed one may be of a round that is remembered no more.
  if (Participation* const task = cohort == nullptr ? nullptr : cohort->Find(node_id)) {
    task->digest = digest;
    task->reason = std::string(status.message());
    cohort->Settle(*task, status.ok() ? NodeState::kAccepted : NodeState::kRejected);
  }
  LeaveTask(node_id, round);
  return {status.ok() ? Verdict::kAccepted : Verdict::kRejected, std::string(status.message())};
}

void Coordinator::ReportFailure(absl::string_view node_id, uint64_t round,
                                absl::string_view error) {
  if (!HasOpenTask(node_id, round)) return;
  Cohort& cohort = *FindCohort(round);
  Participation& task = *cohort.Find(node_id);
  task.reason = std::string(error);
  cohort.Settle(task, NodeState::kDropped);
  LeaveTask(node_id, round);
  actions_.push_back(TaskFailed{round, std::string(node_id), task.reason});
  if (IsOpen(round)) MaybeCloseRound(/*deadline_passed=*/false, task.last_sign);
}

RoundCounts Coordinator::counts() const {
  RoundCounts counts = cohort_.counts();
  counts.folded = folded_;
  counts.late = late_;
  return counts;
}

std::vector<std::string> Coordinator::DrawEvaluators(uint64_t round) const {
  std::vector<std::string> others;
  std::set<std::string> drawn;
  std::pair<double, std::string> nearest{2, ""};  // to being a canary
  for (const std::string& node : nodes_) {
    if (quarantine_.Holds(node, round)) continue;
    const double place = Rng::Stream(plan_.seed, absl::StrCat("canary/", node)).Uniform();
    nearest = std::min(nearest, {place, node});
    if (place < plan_.gate.canary_fraction) {
      drawn.insert(node);
    } else {
      others.push_back(node);
    }
  }
  if (plan_.gate.canary_fraction > 0 && drawn.empty() && nearest.first < 2) {
    drawn.insert(nearest.second);
  }
  Rng rng = Rng::Stream(plan_.seed, "evaluation", round);
  rng.Shuffle(absl::MakeSpan(others));
  others.resize(std::min(others.size(), static_cast<size_t>(plan_.gate.evaluation_nodes)));
  drawn.insert(others.begin(), others.end());
  return {drawn.begin(), drawn.end()};
}

std::vector<CoordinatorAction> Coordinator::TakeActions() { return std::exchange(actions_, {}); }

}  // namespace fedge
