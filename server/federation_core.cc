// Starting, storing, announcing, ticking. The requests are in federation_requests.cc.
#include "server/federation_core.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/base/status.h"
#include "server/round_metrics.h"
#include "server/task_plan.h"

namespace fedge {
namespace {

constexpr size_t kHistoryVersions = 64;  // read at the start
constexpr absl::Duration kNodeFlushInterval = absl::Seconds(5);

absl::string_view AsBytes(absl::Span<const float> values) {
  return absl::string_view(reinterpret_cast<const char*>(values.data()),
                           values.size() * sizeof(float));
}

absl::Status CopyFloats(const Digest& digest, absl::string_view bytes, absl::Span<float> values) {
  if (bytes.size() != values.size() * sizeof(float)) {
    return absl::DataLossError(absl::StrCat("stored version: blob ", digest.Hex(), " has ",
                                            bytes.size(), " bytes, the run's adapter needs ",
                                            values.size() * sizeof(float)));
  }
  std::memcpy(values.data(), bytes.data(), bytes.size());
  return absl::OkStatus();
}

bool IsOutcome(const CoordinatorAction& action) {
  return std::holds_alternative<UpdateJudged>(action) || std::holds_alternative<TaskFailed>(action);
}

Outcome OutcomeOf(Verdict verdict) {
  switch (verdict) {
    case Verdict::kAccepted:
      return Outcome::kAccepted;
    case Verdict::kRejected:
      return Outcome::kRejected;
    case Verdict::kLate:
      break;
  }
  return Outcome::kLate;
}

}  // namespace

FederationCore::FederationCore(RunPlan plan, std::unique_ptr<Store> store,
                               std::unique_ptr<UploadBuffer> uploads, FederationCoreOptions options)
    : plan_(std::move(plan)),
      store_(std::move(store)),
      uploads_(std::move(uploads)),
      options_(std::move(options)),
      clock_(*options_.clock),
      downlink_(plan_) {
  FillAssignment(plan_, assignment_);
}

absl::StatusOr<std::unique_ptr<FederationCore>> FederationCore::Create(
    RunPlan plan, const LoraAdapter& initial, std::unique_ptr<Store> store,
    std::unique_ptr<UploadBuffer> uploads, FederationCoreOptions options) {
  std::unique_ptr<FederationCore> core(new FederationCore(std::move(plan), std::move(store),
                                                          std::move(uploads), std::move(options)));
  RETURN_IF_ERROR(core->store_->OpenRun({.run_id = core->plan_.run_id,
                                         .base_model = core->plan_.base_model,
                                         .layout = core->plan_.lora.layout_hash(),
                                         .seed = core->plan_.seed,
                                         .config = core->options_.config,
                                         .created = core->clock_.Now()}));
  ASSIGN_OR_RETURN(ModelState state, core->LoadOrCreateVersion(initial));
  ASSIGN_OR_RETURN(const uint64_t last_round, core->store_->LastRound(core->plan_.run_id));
  {
    absl::MutexLock lock(&core->mutex_);
    core->coordinator_ =
        std::make_unique<Coordinator>(core->plan_, std::move(state), last_round + 1);
    core->flushed_ = core->clock_.Monotonic();
  }
  RETURN_IF_ERROR(core->ProcessActions());
  if (core->options_.tick_interval > absl::ZeroDuration()) {
    FederationCore* const self = core.get();
    core->ticker_ = std::thread([self] { self->TickLoop(); });
  }
  return core;
}

FederationCore::~FederationCore() {
  {
    absl::MutexLock lock(&mutex_);
    stopping_ = true;
  }
  if (ticker_.joinable()) ticker_.join();
  Flush();
}

absl::StatusOr<ModelState> FederationCore::LoadOrCreateVersion(const LoraAdapter& initial) {
  ASSIGN_OR_RETURN(const std::optional<VersionRecord> latest, store_->LatestVersion(plan_.run_id));
  if (latest) return LoadVersion(*latest);
  ModelState state{initial, {}, 0};
  ASSIGN_OR_RETURN(Downlink::Version version, downlink_.Start(initial));
  RETURN_IF_ERROR(StoreVersion(state, VersionRecord(), std::move(version)).status());
  return state;
}

absl::StatusOr<ModelState> FederationCore::LoadVersion(const VersionRecord& record) {
  ModelState state{LoraAdapter(plan_.lora), {}, record.version};
  ASSIGN_OR_RETURN(const std::string master, store_->ReadBlob(record.master));
  RETURN_IF_ERROR(CopyFloats(record.master, master, state.adapter.values()));
  if (record.momentum) {
    ASSIGN_OR_RETURN(const std::string momentum, store_->ReadBlob(*record.momentum));
    const size_t size = plan_.outer.StateSize(state.adapter.values().size());
    // State of another optimizer is of no use to this one.
    if (momentum.size() == size * sizeof(float)) {
      state.momentum.resize(size);
      RETURN_IF_ERROR(CopyFloats(*record.momentum, momentum, absl::MakeSpan(state.momentum)));
    }
  }
  std::string snapshot;
  if (record.snapshot) {
    ASSIGN_OR_RETURN(snapshot, store_->ReadBlob(*record.snapshot));
  }
  ASSIGN_OR_RETURN(Downlink::Version version,
                   downlink_.Resume(state.adapter, record.version, snapshot));
  downlink_.Serve(std::move(version));
  RETURN_IF_ERROR(LoadHistory());
  return state;
}

absl::Status FederationCore::LoadHistory() {
  ASSIGN_OR_RETURN(const std::vector<VersionRecord> records, store_->ListVersions(plan_.run_id));
  std::vector<std::string> contents;  // newest first
  for (auto record = records.rbegin();
       record != records.rend() && contents.size() < kHistoryVersions; ++record) {
    absl::StatusOr<std::string> bytes = store_->ReadBlob(record->encoded);
    if (absl::IsNotFound(bytes.status())) break;  // no longer kept
    if (!bytes.ok()) return bytes.status();
    contents.push_back(*std::move(bytes));
  }
  std::reverse(contents.begin(), contents.end());
  downlink_.AddHistory(contents);
  return absl::OkStatus();
}

absl::StatusOr<VersionRecord> FederationCore::StoreVersion(const ModelState& state,
                                                           VersionRecord record,
                                                           Downlink::Version version) {
  record.version = state.version;
  record.created = clock_.Now();
  ASSIGN_OR_RETURN(record, store_->PublishVersion(plan_.run_id, std::move(record),
                                                  {.encoded = *version.content,
                                                   .master = AsBytes(state.adapter.values()),
                                                   .momentum = AsBytes(state.momentum),
                                                   .snapshot = version.snapshot}));
  downlink_.Serve(std::move(version));
  return record;
}

absl::Status FederationCore::ProcessActions() {
  absl::MutexLock storing(&actions_mutex_);
  for (;;) {
    std::vector<CoordinatorAction> actions;
    {
      absl::MutexLock lock(&mutex_);
      if (!failed_.ok()) return failed_;
      actions = coordinator_->TakeActions();
    }
    if (actions.empty()) return absl::OkStatus();
    const absl::Status status = HandleAll(actions);
    if (!status.ok()) return Fail(status);
  }
}

absl::Status FederationCore::HandleAll(std::vector<CoordinatorAction>& actions) {
  for (size_t i = 0; i < actions.size();) {
    size_t end = i;
    while (end < actions.size() && IsOutcome(actions[end])) ++end;
    if (end > i) {
      RETURN_IF_ERROR(HandleOutcomes(absl::MakeConstSpan(actions).subspan(i, end - i)));
      i = end;
    } else {
      RETURN_IF_ERROR(Handle(actions[i++]));
    }
  }
  return absl::OkStatus();
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
    record.node_id = update.node_id;
    record.outcome = OutcomeOf(update.verdict.verdict);
    record.digest = update.digest;
    record.weight = update.weight;
    record.wire_bytes = update.wire_bytes;
    record.reason = update.verdict.reason;
    absl::MutexLock lock(&mutex_);
    const auto metrics = metrics_.find(update.node_id);
    if (update.round == metrics_round_ && metrics != metrics_.end()) {
      record.metrics = metrics->second.SerializeAsString();
    }
  }
  RETURN_IF_ERROR(store_->RecordParticipations(plan_.run_id, records));
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
    RETURN_IF_ERROR(
        store_->StartRound(plan_.run_id, started->round, started->base_version, clock_.Now()));
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
    if (metrics_round_ == published.round) {
      record.metrics = Summarize(published.contributions, metrics_);
    }
  }
  ASSIGN_OR_RETURN(Downlink::Version version,
                   downlink_.Next(published.state.adapter, published.state.version));
  const std::shared_ptr<const AdapterState> served = version.state;
  ASSIGN_OR_RETURN(record, StoreVersion(published.state, std::move(record), std::move(version)));
  {
    absl::MutexLock lock(&mutex_);
    coordinator_->ConfirmPublished(record.version, clock_.Monotonic());
  }
  for (ServerEvents* const events : options_.events) {
    events->OnPublished(record, served->adapter());
  }
  return absl::OkStatus();
}

// After a failed write nothing more is written or promised: the process has to be restarted.
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
    const absl::Duration now = clock_.Monotonic();
    coordinator_->Tick(now);
    flush = now - flushed_ >= kNodeFlushInterval;
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
  const absl::Status status = store_->TouchNodes(nodes);
  if (!status.ok()) Fail(status).IgnoreError();
}

void FederationCore::RecordHoldout(uint64_t version, double loss, int64_t tokens) {
  absl::MutexLock storing(&actions_mutex_);
  if (!health().ok()) return;
  const absl::Status status = store_->RecordHoldout(plan_.run_id, version, loss);
  if (!status.ok()) {
    Fail(status).IgnoreError();
    return;
  }
  for (ServerEvents* const events : options_.events) events->OnEvaluated(version, loss, tokens);
}

uint64_t FederationCore::version() { return downlink_.version(); }

uint64_t FederationCore::round() {
  absl::MutexLock lock(&mutex_);
  return coordinator_->round();
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

size_t FederationCore::nodes_to_tell() {
  absl::MutexLock lock(&mutex_);
  const size_t known = coordinator_->known_nodes();
  return known - std::min(known, told_.size());
}

}  // namespace fedge
