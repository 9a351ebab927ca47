// Storing, announcing, ticking. The start is in federation_start.cc, the requests are in
// federation_requests.cc.
#include "server/federation_core.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/base/failpoint.h"
#include "common/base/status.h"
#include "server/round_metrics.h"
#include "server/task_plan.h"

namespace fedge {
namespace {

constexpr absl::Duration kNodeFlushInterval = absl::Seconds(5);

absl::string_view AsBytes(absl::Span<const float> values) {
  return absl::string_view(reinterpret_cast<const char*>(values.data()),
                           values.size() * sizeof(float));
}

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

absl::StatusOr<VersionRecord> FederationCore::StoreVersion(const ModelState& state,
                                                           VersionRecord record,
                                                           Downlink::Version version,
                                                           absl::Span<const Contribution> parts) {
  record.version = state.version;
  record.typical_norm = state.typical_norm;
  record.created = clock_.Now();
  RETURN_IF_ERROR(FEDGE_FAILPOINT("core.version.encoded"));
  ASSIGN_OR_RETURN(record, store_->PublishVersion(plan_.run_id, std::move(record),
                                                  {.encoded = *version.content,
                                                   .master = AsBytes(state.adapter.values()),
                                                   .momentum = AsBytes(state.momentum),
                                                   .snapshot = version.snapshot},
                                                  parts));
  RETURN_IF_ERROR(FEDGE_FAILPOINT("core.version.stored"));
  downlink_.Serve(std::move(version));
  return record;
}

absl::Status FederationCore::ProcessActions() {
  absl::MutexLock storing(&actions_mutex_);
  for (;;) {
    {
      absl::MutexLock lock(&mutex_);
      if (!failed_.ok()) return failed_;
      for (CoordinatorAction& action : coordinator_->TakeActions()) {
        unstored_.push_back(std::move(action));
      }
    }
    if (unstored_.empty()) return absl::OkStatus();
    RETURN_IF_ERROR(CheckStored(HandleFirst()));
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
    RETURN_IF_ERROR(store_->AbandonRound(plan_.run_id, abandoned->round, abandoned->counts,
                                         abandoned->reason, clock_.Now()));
    for (ServerEvents* const events : options_.events) events->OnAbandoned(*abandoned);
  } else if (const auto* const completed = std::get_if<RunCompleted>(&action)) {
    RETURN_IF_ERROR(store_->SetRunState(plan_.run_id, RunState::kFinished));
    for (ServerEvents* const events : options_.events) {
      events->OnFinished(completed->final_version);
    }
  }
  return absl::OkStatus();
}

absl::Status FederationCore::HandlePublished(VersionPublished& published) {
  VersionRecord record;
  record.round = published.round;
  record.counts = published.counts;
  record.aggregation_error = published.aggregation_error;
  for (const Contribution& contribution : published.contributions) {
    record.update_bytes += contribution.wire_bytes;
  }
  {
    absl::MutexLock lock(&mutex_);
    record.metrics = Summarize(published.contributions, metrics_);
  }
  ASSIGN_OR_RETURN(Downlink::Version version,
                   downlink_.Next(published.state.adapter, published.state.version));
  const std::shared_ptr<const AdapterState> served = version.state;
  ASSIGN_OR_RETURN(record, StoreVersion(published.state, std::move(record), std::move(version),
                                        published.contributions));
  {
    absl::MutexLock lock(&mutex_);
    coordinator_->ConfirmPublished(record.version, run_clock_.Now());
    ForgetMetrics(published.contributions);
  }
  for (ServerEvents* const events : options_.events) {
    events->OnPublished(record, served->adapter());
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
    coordinator_->Tick(run_clock_.Now());
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

uint64_t FederationCore::version() { return downlink_.version(); }

uint64_t FederationCore::round() {
  absl::MutexLock lock(&mutex_);
  return coordinator_->round();
}

absl::Status FederationCore::SetPaused(bool paused) {
  RETURN_IF_ERROR(CheckServing());
  {
    absl::MutexLock storing(&actions_mutex_);  // a run comes to its end under this lock
    const RunState now = state();
    if (now == RunState::kStopped || now == RunState::kFinished) {
      return absl::FailedPreconditionError(absl::StrCat(
          "run '", plan_.run_id, "' is ", RunStateName(now), "; clone it to train on"));
    }
    RETURN_IF_ERROR(CheckStored(
        store_->SetRunState(plan_.run_id, paused ? RunState::kPaused : RunState::kRunning)));
    RETURN_IF_ERROR(FEDGE_FAILPOINT("core.pause.stored"));
    absl::MutexLock lock(&mutex_);
    run_clock_.SetPaused(paused);
    coordinator_->SetPaused(paused);
  }
  return ProcessActions();
}

absl::Status FederationCore::Stop() {
  RETURN_IF_ERROR(CheckServing());
  {
    absl::MutexLock storing(&actions_mutex_);
    if (state() == RunState::kFinished) return absl::OkStatus();
    RETURN_IF_ERROR(CheckStored(store_->SetRunState(plan_.run_id, RunState::kStopped)));
    RETURN_IF_ERROR(FEDGE_FAILPOINT("core.stop.stored"));
    absl::MutexLock lock(&mutex_);
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
