#include "server/coordinator.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/base/rng.h"
#include "common/base/status.h"
#include "server/robust_aggregation.h"
#include "server/task_plan.h"

namespace fedge {
namespace {

// Closed rounds whose verdicts are still answered from memory; the store has the rest.
constexpr size_t kRememberedRounds = 16;

// The number of bytes of the UTF-8 sequence at the start of `text`, 0 when it is not one
// (RFC 3629: no surrogates, no overlong forms, at most U+10FFFF).
size_t Utf8SequenceLength(absl::string_view text) {
  const auto byte = [&](size_t i) { return static_cast<uint8_t>(text[i]); };
  const uint8_t lead = byte(0);
  if (lead < 0x80) return 1;
  const size_t length = lead >= 0xF0 ? 4 : lead >= 0xE0 ? 3 : 2;
  if (lead < 0xC2 || lead > 0xF4 || text.size() < length) return 0;
  for (size_t i = 1; i < length; ++i) {
    if ((byte(i) & 0xC0) != 0x80) return 0;
  }
  const bool overlong = (lead == 0xE0 && byte(1) < 0xA0) || (lead == 0xF0 && byte(1) < 0x90);
  const bool outside = (lead == 0xED && byte(1) > 0x9F) || (lead == 0xF4 && byte(1) > 0x8F);
  return overlong || outside ? 0 : length;
}

}  // namespace

absl::Status CheckNodeId(absl::string_view id) {
  if (id.empty() || id.size() > kMaxNodeIdBytes) {
    return absl::InvalidArgumentError(
        absl::StrCat("node id: has ", id.size(), " bytes, allowed are 1 to ", kMaxNodeIdBytes));
  }
  for (absl::string_view rest = id; !rest.empty();) {
    const size_t length = Utf8SequenceLength(rest);
    if (length == 0) return absl::InvalidArgumentError("node id: is not UTF-8");
    const uint8_t first = static_cast<uint8_t>(rest[0]);
    const bool c1_control = length == 2 && first == 0xC2 && static_cast<uint8_t>(rest[1]) < 0xA0;
    if (first < 0x20 || first == 0x7F || c1_control) {
      return absl::InvalidArgumentError("node id: holds a control character");
    }
    rest.remove_prefix(length);
  }
  return absl::OkStatus();
}

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
  const double exact = plan_.quorum * static_cast<double>(counts_.assigned);
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
  const auto member = cohort_.find(node_id);
  if (member == cohort_.end()) {
    std::string reason = quarantine_.Reason(node_id, round_);
    if (reason.empty()) reason = absl::StrCat("not selected for round ", round_);
    return RetryLater{plan_.retry, plan_.retry * 2, std::move(reason)};
  }
  if (member->second.state != NodeState::kAssigned) {
    return RetryLater{plan_.retry, plan_.retry * 2,
                      absl::StrCat("round ", round_, " waits for ", counts_.pending,
                                   " more of its ", counts_.assigned, " nodes")};
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
  cohort_.clear();
  for (const std::string& node : cohort) cohort_[node];
  counts_.assigned = counts_.pending = static_cast<int64_t>(cohort.size());
  aggregator_ =
      std::make_unique<UpdateAggregator>(plan_.lora, MakeAggregatorOptions(plan_, state_.version));
  if (KeepsUpdates()) held_ = std::make_unique<HeldUpdates>();
  deadline_ = now + plan_.round_deadline;
  first_round_started_ = true;
  phase_ = Phase::kCollecting;
  CheckCounts();
}

void Coordinator::ResumeRound(const std::vector<std::string>& cohort, absl::Duration now) {
  FEDGE_CHECK(phase_ == Phase::kWaiting && nodes_.empty() && !cohort.empty());
  nodes_.insert(cohort.begin(), cohort.end());
  OpenRound(cohort, now);
}

UpdateVerdict Coordinator::ResumeUpdate(absl::string_view node_id, ReceivedUpdate update) {
  return Judge(node_id, cohort_.find(node_id)->second, std::move(update));
}

void Coordinator::ResumeFailure(absl::string_view node_id, absl::string_view error) {
  Participation& participation = cohort_.find(node_id)->second;
  participation.reason = std::string(error);
  Settle(participation, NodeState::kDropped);
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
  const auto member = cohort.find(node_id);
  if (member == cohort.end()) {
    return UpdateVerdict{
        Verdict::kRejected,
        absl::StrCat("node '", node_id, "' is not in the cohort of round ", round)};
  }
  Participation& participation = member->second;
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
        ++counts_.late;
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
  return phase_ == Phase::kCollecting && round == round_ && cohort_.find(node_id) != cohort_.end();
}

UpdateVerdict Coordinator::SubmitUpdate(absl::string_view node_id, uint64_t round,
                                        ReceivedUpdate update) {
  if (std::optional<UpdateVerdict> known = KnownVerdict(node_id, round, update.digest)) {
    return *known;
  }
  // Only a pending member of the open round comes here.
  Participation& participation = cohort_.find(node_id)->second;
  UpdateVerdict verdict = Judge(node_id, participation, std::move(update));
  actions_.push_back(UpdateJudged{round, std::string(node_id), participation.digest,
                                  participation.weight, participation.wire_bytes, verdict});
  MaybeCloseRound(/*deadline_passed=*/false);
  return verdict;
}

UpdateVerdict Coordinator::Judge(absl::string_view node_id, Participation& participation,
                                 ReceivedUpdate update) {
  participation.digest = update.digest;
  participation.wire_bytes = update.wire_bytes;
  absl::Status status = update.admitted.status();
  if (status.ok()) {
    status = Accept(node_id, *std::move(update.admitted), participation);
  }
  participation.reason = std::string(status.message());
  quarantine_.Note(node_id, round_, status.ok());
  Settle(participation, status.ok() ? NodeState::kAccepted : NodeState::kRejected);
  return {status.ok() ? Verdict::kAccepted : Verdict::kRejected, participation.reason};
}

absl::Status Coordinator::Accept(absl::string_view node_id, AdmittedUpdate update,
                                 Participation& participation) {
  FEDGE_CHECK(update.round == round_ && update.base_version == state_.version);
  RETURN_IF_ERROR(BoundNorm(plan_.admission, typical_norm(state_), update));
  RETURN_IF_ERROR(aggregator_->Accumulate({.layout = &update.layout,
                                           .coordinates = update.update.coordinates,
                                           .values = update.update.values},
                                          update.weight));
  participation.weight = update.weight;
  participation.rms = update.rms();
  if (held_ != nullptr) held_->Add(node_id, std::move(update));
  return absl::OkStatus();
}

double& Coordinator::typical_norm(ModelState& state) const {
  return state.typical_norm[NormSlot(SliceOf(plan_, state_.version))];
}

void Coordinator::ReportFailure(absl::string_view node_id, uint64_t round,
                                absl::string_view error) {
  if (phase_ != Phase::kCollecting || round != round_) return;
  const auto member = cohort_.find(node_id);
  if (member == cohort_.end() || member->second.state != NodeState::kAssigned) return;
  member->second.reason = std::string(error);
  Settle(member->second, NodeState::kDropped);
  actions_.push_back(TaskFailed{round, std::string(node_id), member->second.reason});
  MaybeCloseRound(/*deadline_passed=*/false);
}

void Coordinator::Settle(Participation& participation, NodeState state) {
  FEDGE_CHECK(participation.state == NodeState::kAssigned);
  participation.state = state;
  --counts_.pending;
  switch (state) {
    case NodeState::kAccepted:
      ++counts_.accepted;
      break;
    case NodeState::kRejected:
      ++counts_.rejected;
      break;
    default:
      ++counts_.dropped;
      break;
  }
  CheckCounts();
}

void Coordinator::CheckCounts() const {
  FEDGE_CHECK(counts_.pending >= 0 &&
                  counts_.assigned ==
                      counts_.pending + counts_.accepted + counts_.rejected + counts_.dropped &&
                  counts_.assigned == static_cast<int64_t>(cohort_.size()),
              "round ", round_, ": assigned ", counts_.assigned, ", pending ", counts_.pending,
              ", accepted ", counts_.accepted, ", rejected ", counts_.rejected, ", dropped ",
              counts_.dropped);
}

void Coordinator::Tick(absl::Duration now) {
  if (phase_ == Phase::kCollecting && now >= deadline_) MaybeCloseRound(/*deadline_passed=*/true);
}

void Coordinator::MaybeCloseRound(bool deadline_passed) {
  if (counts_.pending > 0 && !deadline_passed) return;
  for (auto& [node, participation] : cohort_) {
    if (participation.state != NodeState::kAssigned) continue;
    Settle(participation, NodeState::kDropped);
    nodes_.erase(node);  // it counts as gone until it checks in again
  }
  if (counts_.accepted >= Quorum()) return Publish();
  Abandon(absl::StrCat(counts_.accepted, " of ", counts_.assigned, " updates accepted, ", Quorum(),
                       " needed"));
}

void Coordinator::EndRound() {
  past_[round_] = std::move(cohort_);
  cohort_.clear();
  if (past_.size() > kRememberedRounds) past_.erase(past_.begin());
  aggregator_.reset();
  held_.reset();
  counts_ = RoundCounts();
  ++round_;
}

void Coordinator::Abandon(std::string reason) {
  actions_.push_back(RoundAbandoned{round_, counts_, std::move(reason)});
  EndRound();
  phase_ = Phase::kWaiting;  // the next check-in starts another attempt
}

bool Coordinator::IsBounded() const {
  const size_t slot = NormSlot(SliceOf(plan_, state_.version));
  return plan_.admission.norm_bound == NormBound::kOff || plan_.admission.max_norm > 0 ||
         state_.typical_norm[slot] > 0;
}

bool Coordinator::KeepsUpdates() const {
  return plan_.robust.rule != RobustRule::kNone || !IsBounded();
}

absl::StatusOr<NextVersion> Coordinator::CloseUpdates(std::vector<Contribution>& contributions) {
  if (held_ == nullptr) return CloseRound(plan_, state_, *aggregator_);
  if (!IsBounded()) held_->ClipToMedian(plan_.admission.norm_ratio);
  std::vector<uint64_t> weights;
  ASSIGN_OR_RETURN(NextVersion next, CloseRobustRound(plan_, state_, *held_, weights));
  for (size_t i = 0; i < weights.size(); ++i) contributions[i].weight = weights[i];
  return next;
}

void Coordinator::Publish() {
  VersionPublished published;
  std::vector<double> norms;
  for (const auto& [node, participation] : cohort_) {
    if (participation.state != NodeState::kAccepted) continue;
    published.contributions.push_back(
        {node, participation.digest, participation.weight, participation.wire_bytes});
    norms.push_back(participation.rms);
  }
  absl::StatusOr<NextVersion> next = CloseUpdates(published.contributions);
  if (!next.ok()) return Abandon(std::string(next.status().message()));
  typical_norm(next->state) = LowerMedian(std::move(norms));
  published.state = std::move(next->state);
  published.aggregation_error = next->aggregation_error;
  published.round = round_;
  published.counts = counts_;
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
