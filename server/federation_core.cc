// Storing, announcing, ticking. The start is in federation_start.cc, the requests are in
// federation_requests.cc, versions in federation_publish.cc, the gate is in federation_gate.cc.
#include "server/federation_core.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/base/failpoint.h"
#include "common/base/status.h"
#include "server/task_plan.h"

namespace fedge {
namespace {

constexpr absl::Duration kNodeFlushInterval = absl::Seconds(5);

bool IsOutcome(const CoordinatorAction& action) {
  return std::holds_alternative<UpdateJudged>(action) || std::holds_alternative<TaskFailed>(action);
}

bool IsAssigned(const CoordinatorAction& action) {
  return std::holds_alternative<NodeAssigned>(action);
}

Outcome OutcomeOf(Verdict verdict) {
  switch (verdict) {
    case Verdict::kAccepted:
      return Outcome::kAccepted;
    case Verdict::kRejected:
      return Outcome::kRejected;
    case Verdict::kLate:
    case Verdict::kLater:
      break;
  }
  return Outcome::kLate;
}

}  // namespace

FederationCore::FederationCore(RunPlan plan, std::shared_ptr<Store> store,
                               std::shared_ptr<UploadBuffer> uploads, FederationCoreOptions options)
    : plan_(std::move(plan)),
      store_(std::move(store)),
      uploads_(std::move(uploads)),
      options_(std::move(options)),
      config_digest_(Sha256Of(options_.config)),
      clock_(*options_.clock),
      downlink_(plan_),
      quota_(options_.quota != nullptr ? options_.quota
                                       : std::make_shared<GuardedQuota>(plan_.admission.quota)),
      run_clock_(clock_) {
  uploads_->Allow(plan_.max_update_bytes, 2 * plan_.round_deadline);
  FillAssignment(plan_, assignment_);
}

FederationCore::~FederationCore() {
  {
    absl::MutexLock lock(&mutex_);
    stopping_ = true;
  }
  if (ticker_.joinable()) ticker_.join();
  Flush();
}

absl::Status FederationCore::ProcessActions() {
  absl::MutexLock storing(&actions_mutex_);
  for (;;) {
    bool is_decided = false;
    absl::Status damage;
    {
      absl::MutexLock lock(&mutex_);
      if (!failed_.ok()) return failed_;
      damage = coordinator_->damage();
      for (CoordinatorAction& action : coordinator_->TakeActions()) {
        unstored_.push_back(std::move(action));
      }
      is_decided = gate_ != nullptr && gate_->decided();
    }
    if (!damage.ok() && unstored_.empty()) return Fail(damage);
    if (unstored_.empty() && !is_decided) return absl::OkStatus();
    RETURN_IF_ERROR(CheckStored(unstored_.empty() ? SettleCandidate() : HandleFirst()));
  }
}

absl::Status FederationCore::HandleFirst() {
  const bool assigned = IsAssigned(unstored_.front());
  if (!assigned && !IsOutcome(unstored_.front())) {
    RETURN_IF_ERROR(Handle(unstored_.front()));
    unstored_.pop_front();
    return absl::OkStatus();
  }
  const auto end =
      std::find_if_not(unstored_.begin(), unstored_.end(), assigned ? IsAssigned : IsOutcome);
  const std::vector<CoordinatorAction> batch(unstored_.begin(), end);
  RETURN_IF_ERROR(assigned ? HandleAssigned(batch) : HandleOutcomes(batch));
  unstored_.erase(unstored_.begin(), end);
  return absl::OkStatus();
}

absl::Status FederationCore::HandleAssigned(absl::Span<const CoordinatorAction> actions) {
  // A round ends with an action of its own, so these are of one.
  const uint64_t round = std::get<NodeAssigned>(actions.front()).round;
  std::vector<std::string> nodes;
  for (const CoordinatorAction& action : actions) {
    nodes.push_back(std::get<NodeAssigned>(action).node_id);
  }
  RETURN_IF_ERROR(FEDGE_FAILPOINT("core.assigned"));
  RETURN_IF_ERROR(store_->AddMembers(plan_.run_id, round, nodes));
  RETURN_IF_ERROR(FEDGE_FAILPOINT("core.assigned.stored"));
  for (ServerEvents* const events : options_.events) {
    for (const std::string& node : nodes) events->OnAssigned(round, node);
  }
  return absl::OkStatus();
}

absl::Status FederationCore::CheckStored(const absl::Status& status) {
  if (!status.ok() && !absl::IsResourceExhausted(status)) return Fail(status);
  if (no_room_ != status.ok()) return status;
  no_room_ = !status.ok();
  for (ServerEvents* const events : options_.events) {
    no_room_ ? events->OnNoRoom(status) : events->OnRoomAgain();
  }
  return status;
}

absl::Status FederationCore::StoreUpdate(const Digest& digest, absl::string_view bytes) {
  const absl::Status status = store_->WriteUpdate(digest, bytes);
  if (status.ok()) return status;
  absl::MutexLock storing(&actions_mutex_);
  return CheckStored(status);
}

absl::Status FederationCore::HandleOutcomes(absl::Span<const CoordinatorAction> outcomes) {
  std::vector<ParticipationRecord> records;
  for (const CoordinatorAction& action : outcomes) {
    ParticipationRecord& record = records.emplace_back();
    record.when = clock_.Now();
    if (const auto* const failure = std::get_if<TaskFailed>(&action)) {
      record.round = failure->round;
      record.node_id = failure->node_id;
      record.outcome = Outcome::kFailed;
      record.reason = failure->error;
      continue;
    }
    const UpdateJudged& update = std::get<UpdateJudged>(action);
    record.round = update.round;
    record.counted = update.verdict.verdict == Verdict::kAccepted ? update.counted : 0;
    record.node_id = update.node_id;
    record.outcome = OutcomeOf(update.verdict.verdict);
    record.digest = update.digest;
    record.weight = update.weight;
    record.wire_bytes = update.wire_bytes;
    record.reason = update.verdict.reason;
    record.quarantined = update.quarantined;
    absl::MutexLock lock(&mutex_);
    const auto metrics = metrics_.find({update.round, update.node_id});
    if (metrics == metrics_.end()) continue;
    record.metrics = metrics->second.SerializeAsString();
    if (record.counted == 0) metrics_.erase(metrics);
  }
  RETURN_IF_ERROR(FEDGE_FAILPOINT("core.update.judged"));
  RETURN_IF_ERROR(store_->RecordParticipations(plan_.run_id, records));
  RETURN_IF_ERROR(FEDGE_FAILPOINT("core.update.stored"));
  for (const CoordinatorAction& action : outcomes) {
    for (ServerEvents* const events : options_.events) {
      if (const auto* const update = std::get_if<UpdateJudged>(&action)) events->OnUpdate(*update);
      if (const auto* const failure = std::get_if<TaskFailed>(&action)) {
        events->OnTaskFailed(*failure);
      }
    }
  }
  return absl::OkStatus();
}

absl::Status FederationCore::Handle(CoordinatorAction& action) {
  if (const auto* const started = std::get_if<RoundStarted>(&action)) {
    RETURN_IF_ERROR(store_->StartRound(plan_.run_id, {.round = started->round,
                                                      .base_version = started->base_version,
                                                      .cohort = started->cohort,
                                                      .started = clock_.Now()}));
    RETURN_IF_ERROR(FEDGE_FAILPOINT("core.round.stored"));
    for (ServerEvents* const events : options_.events) {
      events->OnRoundStarted(started->round, started->base_version, started->cohort);
    }
  } else if (auto* const published = std::get_if<VersionPublished>(&action)) {
    return HandlePublished(*published);
  } else if (const auto* const abandoned = std::get_if<RoundAbandoned>(&action)) {
    RETURN_IF_ERROR(store_->AbandonRound(plan_.run_id, *abandoned, clock_.Now()));
    for (ServerEvents* const events : options_.events) events->OnAbandoned(*abandoned);
  } else if (const auto* const completed = std::get_if<RunCompleted>(&action)) {
    RETURN_IF_ERROR(store_->SetRunState(plan_.run_id, RunState::kFinished, "", clock_.Now()));
    for (ServerEvents* const events : options_.events) {
      events->OnFinished(completed->final_version);
    }
  }
  return absl::OkStatus();
}

void FederationCore::ForgetMetrics(absl::Span<const Contribution> counted) {
  for (const Contribution& part : counted) metrics_.erase({part.round, part.node_id});
  for (auto task = metrics_.begin(); task != metrics_.end();) {
    const auto& [round, node] = task->first;
    task = coordinator_->HasOpenTask(node, round) ? std::next(task) : metrics_.erase(task);
  }
}

// After such a failure nothing more is written or promised: the process has to be restarted.
absl::Status FederationCore::Fail(const absl::Status& status) {
  absl::Status failure;
  {
    absl::MutexLock lock(&mutex_);
    if (!failed_.ok()) return failed_;
    failed_ = failure = absl::UnavailableError(
        absl::StrCat("the server cannot store its state: ", status.message()));
  }
  for (ServerEvents* const events : options_.events) events->OnFailed(failure);
  return failure;
}

absl::Status FederationCore::health() {
  absl::MutexLock lock(&mutex_);
  return failed_;
}

void FederationCore::TickLoop() {
  for (;;) {
    {
      absl::MutexLock lock(&mutex_);
      if (mutex_.AwaitWithTimeout(absl::Condition(&stopping_), options_.tick_interval)) return;
    }
    Tick();
  }
}

void FederationCore::Tick() {
  bool flush = false;
  {
    absl::MutexLock lock(&mutex_);
    const absl::Duration now = run_clock_.Now();
    coordinator_->Tick(now);
    if (gate_ != nullptr) gate_->Tick(now);
    flush = clock_.Monotonic() - flushed_ >= kNodeFlushInterval;
  }
  if (!ProcessActions().ok()) return;
  uploads_->RemoveStale();
  if (flush) Flush();
}

void FederationCore::Flush() {
  absl::MutexLock storing(&actions_mutex_);
  std::vector<NodeRecord> nodes;
  {
    absl::MutexLock lock(&mutex_);
    if (!failed_.ok()) return;
    flushed_ = clock_.Monotonic();
    for (auto& [name, record] : seen_) nodes.push_back(std::move(record));
    seen_.clear();
  }
  if (CheckStored(store_->TouchNodes(nodes)).ok()) return;
  absl::MutexLock lock(&mutex_);
  for (NodeRecord& node : nodes) {
    const std::string name = node.node_id;
    seen_.emplace(name, std::move(node));
  }
}

void FederationCore::RecordHoldout(uint64_t version, double loss, int64_t tokens) {
  absl::MutexLock storing(&actions_mutex_);
  if (!health().ok()) return;
  const absl::Status status = CheckStored(store_->RecordHoldout(plan_.run_id, version, loss));
  if (!status.ok() && !absl::IsResourceExhausted(status)) return;
  for (ServerEvents* const events : options_.events) events->OnEvaluated(version, loss, tokens);
  absl::MutexLock lock(&mutex_);
  coordinator_->NoteHoldout(version, loss);  // what it decides is stored by the next Tick
}

}  // namespace fedge
