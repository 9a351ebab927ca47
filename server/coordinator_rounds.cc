// Coordinator: how rounds begin and end.
#include <algorithm>
#include <cmath>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/base/rng.h"
#include "common/base/status.h"
#include "server/coordinator.h"

namespace fedge {
namespace {

// Closed rounds whose verdicts are still answered from memory; the store has the rest. So many more
// as there are versions whose updates may still come.
constexpr size_t kRememberedRounds = 16;
// What a node may take, in times what it is expected to.
constexpr double kMargin = 1.5;

}  // namespace

size_t Coordinator::NodesNeeded() const {
  if (!first_round_started_) return static_cast<size_t>(plan_.min_nodes);
  // Later rounds go on with fewer, as long as a usual cohort's quorum can be reached.
  const double usual = static_cast<double>(std::min(plan_.nodes_per_round, plan_.min_nodes));
  return static_cast<size_t>(std::max(1.0, std::ceil(plan_.quorum * usual - 1e-9)));
}

// Between rounds all tasks that are under way are of earlier rounds. A cohort would wait for their
// nodes; without one, they take part when they come.
size_t Coordinator::NodesAvailable() const {
  if (plan_.pace.is_async) return nodes_.size();
  return nodes_.size() - std::min(nodes_.size(), under_way_.size());
}

int64_t Coordinator::Quorum() const {
  // The small subtraction keeps products such as 0.07 * 100 from needing one more.
  const double exact = plan_.quorum * static_cast<double>(goal_);
  return std::max<int64_t>(1, static_cast<int64_t>(std::ceil(exact - 1e-9)));
}

int64_t Coordinator::Places() const {
  if (plan_.pace.is_async) return CohortSize(plan_) - static_cast<int64_t>(under_way_.size());
  // Only while the goal cannot be reached without.
  const RoundCounts& counts = cohort_.counts();
  return std::min(vacancies_, goal_ - counts.accepted - counts.pending);
}

void Coordinator::MaybeStartRound(absl::Duration now) {
  if (phase_ != Phase::kWaiting || FinishIfDone()) return;
  if (paused_ || NodesAvailable() < NodesNeeded()) return;
  std::vector<std::string> cohort;
  if (!plan_.pace.is_async) cohort = DrawCohort();
  OpenRound(cohort, now);
  actions_.push_back(RoundStarted{round_, state_.version, std::move(cohort)});
}

std::vector<std::string> Coordinator::DrawCohort() const {
  std::vector<std::string> free, sample;
  for (const std::string& node : nodes_) {
    if (under_way_.count(node) > 0) continue;
    free.push_back(node);
    if (!quarantine_.Holds(node, round_)) sample.push_back(node);
  }
  // Rather than stand still, a run draws them: their updates are judged as any.
  if (sample.size() < NodesNeeded()) sample = std::move(free);
  Rng rng = Rng::Stream(plan_.seed, "cohort", round_);
  const size_t size = std::min(sample.size(), static_cast<size_t>(CohortSize(plan_)));
  for (size_t i = 0; i < size; ++i) {  // the first `size` steps of Fisher-Yates
    std::swap(sample[i], sample[i + static_cast<size_t>(rng.Below(sample.size() - i))]);
  }
  sample.resize(size);
  std::sort(sample.begin(), sample.end());
  return sample;
}

void Coordinator::OpenRound(const std::vector<std::string>& cohort, absl::Duration now) {
  cohort_ = Cohort(state_.version);
  if (updates_ == nullptr) updates_ = std::make_unique<RoundUpdates>(plan_, state_, read_);
  first_round_started_ = true;
  vacancies_ = 0;
  goal_ = plan_.nodes_per_round;
  phase_ = Phase::kCollecting;
  for (const std::string& node : cohort) {
    next_lease_end_ = std::min(next_lease_end_, LeaseEnd(node, cohort_.Add(node, now)));
    under_way_[node] = round_;
  }
  if (!plan_.pace.is_async) goal_ = std::min(goal_, cohort_.counts().assigned);
  opened_ = now;
  deadline_ = now + RoundTime();
  DropOldTasks();
}

// From when a round's last member was drawn: long enough for most, but not for a few that are slow.
absl::Duration Coordinator::RoundTime() {
  if (plan_.pace.is_async) return plan_.round_deadline;
  std::vector<std::string> members;
  for (const auto& [node, task] : cohort_.members()) members.push_back(node);
  const std::optional<absl::Duration> most = speeds_.MostOf(members);
  if (!most) return plan_.round_deadline;
  // A node hears of its task when it next checks in.
  const absl::Duration learned = 2 * Pace() + kMargin * *most;
  return std::min(plan_.round_deadline, std::max(learned, plan_.pace.lease));
}

Participation& Coordinator::AddMember(absl::string_view node_id, absl::Duration now) {
  Participation& task = cohort_.Add(node_id, now);
  under_way_[std::string(node_id)] = round_;
  if (!plan_.pace.is_async) {
    --vacancies_;
    deadline_ = std::max(deadline_, std::min(opened_ + plan_.round_deadline, now + RoundTime()));
  }
  actions_.push_back(NodeAssigned{round_, std::string(node_id)});
  return task;
}

absl::Duration Coordinator::LeaseEnd(absl::string_view node_id, const Participation& task) const {
  const absl::Duration end = task.last_sign + plan_.pace.lease;
  // Of many, one hears of its task late.
  if (!task.told) return std::max(end, task.last_sign + 3 * Pace());
  // It may be training, and is silent then.
  const std::optional<absl::Duration> expected = speeds_.Expected(node_id);
  return end + (expected ? *expected * kMargin : plan_.round_deadline);
}

void Coordinator::EndLeases(absl::Duration now) {
  if (now < next_lease_end_) return;
  next_lease_end_ = absl::InfiniteDuration();
  bool any = false;
  for (auto place = under_way_.begin(); place != under_way_.end();) {
    const auto& [node, round] = *place;
    Cohort* const cohort = FindCohort(round);
    Participation* const task = cohort == nullptr ? nullptr : cohort->Find(node);
    const absl::Duration end = task == nullptr ? now : LeaseEnd(node, *task);
    if (end > now) {
      next_lease_end_ = std::min(next_lease_end_, end);
      ++place;
      continue;
    }
    if (task != nullptr && IsOpen(round) && task->state == NodeState::kAssigned) {
      cohort->Settle(*task, NodeState::kGivenUp);
      ++vacancies_;
      any = true;
    }
    nodes_.erase(node);  // it counts as gone until it checks in again
    place = under_way_.erase(place);
  }
  if (any) MaybeCloseRound(/*deadline_passed=*/false, now);
}

// Places are for tasks whose updates will count.
void Coordinator::DropOldTasks() {
  if (!plan_.pace.is_async) return;
  for (auto place = under_way_.begin(); place != under_way_.end();) {
    const Cohort* const cohort = FindCohort(place->second);
    place = cohort == nullptr || (cohort != &cohort_ && IsTooOld(*cohort)) ? under_way_.erase(place)
                                                                           : std::next(place);
  }
}

void Coordinator::Stop() {
  if (phase_ == Phase::kFinished) return;
  stopped_ = true;
  if (phase_ == Phase::kPublishing) return;  // GoOn ends it
  if (phase_ == Phase::kCollecting) {
    for (auto& [node, task] : cohort_.members()) {
      if (task.state == NodeState::kAssigned) cohort_.Settle(task, NodeState::kGivenUp);
    }
    Abandon("the run was stopped", /*carry=*/false);
  }
  phase_ = Phase::kFinished;
}

void Coordinator::Tick(absl::Duration now) {
  EndLeases(now);
  if (phase_ == Phase::kCollecting && now >= deadline_) {
    MaybeCloseRound(/*deadline_passed=*/true, now);
  }
}

void Coordinator::MaybeCloseRound(bool deadline_passed, absl::Duration now) {
  if (!damage_.ok()) return;
  const RoundCounts& counts = cohort_.counts();
  if (plan_.pace.is_async) {
    const int64_t wanted = deadline_passed ? Quorum() : goal_;
    if (counts.accepted + folded_ >= wanted) return Publish();
    if (!deadline_passed) return;
    deadline_ = now + plan_.round_deadline;  // the buffer waits
    // But not for nobody: each node takes part in a version once.
    const bool all_have = std::all_of(nodes_.begin(), nodes_.end(), [&](const std::string& node) {
      const Participation* const member = cohort_.Find(node);
      return member != nullptr && !member->is_open();
    });
    if (all_have && under_way_.empty() && !nodes_.empty()) {
      Abandon(absl::StrCat(counts.accepted + folded_, " updates accepted, ", wanted,
                           " needed, and all nodes have taken part"),
              /*carry=*/true);
    }
    return;
  }
  if (counts.accepted >= goal_) return Publish();
  if ((counts.pending > 0 || Places() > 0) && !deadline_passed) return;
  for (auto& [node, task] : cohort_.members()) {
    if (task.state == NodeState::kAssigned) cohort_.Settle(task, NodeState::kGivenUp);
  }
  const int64_t nodes = updates_ == nullptr ? 0 : updates_->num_nodes();
  if (nodes >= Quorum()) return Publish();
  const bool are_twice = nodes < counts.accepted + folded_;
  Abandon(absl::StrCat(counts.accepted, " of ", counts.assigned, " updates accepted",
                       folded_ > 0 ? absl::StrCat(", ", folded_, " of earlier rounds") : "",
                       are_twice ? absl::StrCat(", of ", nodes, " nodes") : "", ", ", Quorum(),
                       " needed"),
          /*carry=*/true);
}

size_t Coordinator::remembered_rounds() const {
  return kRememberedRounds + static_cast<size_t>(plan_.pace.max_staleness);
}

void Coordinator::EndRound() {
  past_[round_] = std::move(cohort_);
  cohort_ = Cohort();
  folded_ = late_ = 0;
  if (past_.size() > remembered_rounds()) past_.erase(past_.begin());
  updates_.reset();
  ++round_;
}

void Coordinator::Abandon(std::string reason, bool carry) {
  const RoundCounts ended = counts();
  const int64_t updates = carry ? ended.accepted + ended.folded : 0;
  actions_.push_back(RoundAbandoned{round_, ended, std::move(reason), updates > 0});
  std::unique_ptr<RoundUpdates> carried = updates > 0 ? std::move(updates_) : nullptr;
  EndRound();
  updates_ = std::move(carried);
  folded_ = updates;
  phase_ = Phase::kWaiting;  // the next check-in starts another attempt
}

void Coordinator::Publish() {
  absl::StatusOr<ClosedRound> closed = updates_->Close();
  if (absl::IsDataLoss(closed.status())) {
    damage_ = closed.status();
    return;
  }
  if (!closed.ok()) return Abandon(std::string(closed.status().message()), /*carry=*/false);
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
  if (phase_ == Phase::kCollecting) Abandon(std::string(reason), /*carry=*/false);
  // What was trained on top of the versions between means nothing now.
  past_.clear();
  updates_.reset();
  folded_ = 0;
  under_way_.clear();
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
  phase_ = stopped_ ? Phase::kFinished : Phase::kWaiting;
  MaybeStartRound(now);
}

bool Coordinator::FinishIfDone() {
  if (phase_ != Phase::kWaiting) return false;
  if (static_cast<int64_t>(state_.version) < plan_.rounds && !early_stopping_.reached()) {
    return false;
  }
  phase_ = Phase::kFinished;
  actions_.push_back(RunCompleted{state_.version});
  return true;
}

void Coordinator::NoteHoldout(uint64_t version, double loss) {
  early_stopping_.Note(version, loss);
  FinishIfDone();
}

void Coordinator::ResumePastRound(uint64_t round, uint64_t base_version,
                                  const std::vector<std::string>& cohort, absl::Duration now) {
  FEDGE_CHECK(round < round_);
  Cohort& past = past_.insert_or_assign(round, Cohort(base_version)).first->second;
  for (const std::string& node : cohort) {
    past.Add(node, now).told = true;
    if (!plan_.pace.is_async) continue;  // whose cohorts are drawn from those who have checked in
    nodes_.emplace(node);
    under_way_[node] = round;
  }
  next_lease_end_ = now;
}

void Coordinator::ResumePastTask(uint64_t round, absl::string_view node_id, NodeState state,
                                 const Digest& digest, absl::string_view reason) {
  Cohort* const cohort = FindCohort(round);
  Participation* const task = cohort == nullptr ? nullptr : cohort->Find(node_id);
  if (task == nullptr || !task->is_open()) return;
  task->digest = digest;
  task->reason = std::string(reason);
  cohort->Settle(*task, state);
  LeaveTask(node_id, round);
}

void Coordinator::ResumeRound(const std::vector<std::string>& cohort, absl::Duration now) {
  FEDGE_CHECK(phase_ == Phase::kWaiting);
  nodes_.insert(cohort.begin(), cohort.end());
  OpenRound(cohort, now);
  for (auto& [node, task] : cohort_.members()) task.told = true;
}

UpdateVerdict Coordinator::ResumeUpdate(absl::string_view node_id, uint64_t round,
                                        ReceivedUpdate update) {
  return Judge(node_id, round, std::move(update));
}

void Coordinator::ResumeFailure(absl::string_view node_id, absl::string_view error) {
  Participation& task = *cohort_.Find(node_id);
  task.reason = std::string(error);
  cohort_.Settle(task, NodeState::kDropped);
  LeaveTask(node_id, round_);
}

}  // namespace fedge
