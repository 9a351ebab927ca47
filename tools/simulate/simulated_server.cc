#include "tools/simulate/simulated_server.h"

#include <deque>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "client/grpc_link.h"
#include "common/base/status.h"
#include "server/federation_core.h"
#include "server/grpc_server.h"
#include "server/sqlite_store.h"
#include "server/upload_buffer.h"

namespace fedge {
namespace {

constexpr char kAddress[] = "the server in this process";

// Puts what happens into a queue: the server's threads go on at once.
class EventQueue : public ServerEvents, public CandidateEvaluator {
 public:
  explicit EventQueue(std::vector<std::string> slices) : slices_(std::move(slices)) {}

  void OnRoundStarted(uint64_t round, uint64_t base_version,
                      const std::vector<std::string>& cohort) override {
    Push(RoundStarted{round, base_version, cohort});
  }
  void OnPublished(const VersionRecord& version, const LoraAdapter& adapter) override {
    Push(AdapterPublished{version.round, version.version, version.counts, version.aggregation_error,
                          adapter});
  }
  void OnAbandoned(const RoundAbandoned& round) override { Push(round); }
  void OnEvaluating(uint64_t, uint64_t, const std::vector<std::string>& nodes) override {
    asked_ = nodes;  // Evaluate comes next, from the same thread
  }
  void OnRefused(const RefusedRound& round) override {
    Push(RoundRefused{round.round, round.counts, round.reason});
  }
  void Evaluate(CandidateTask task) override { Push(CandidateWaits{std::move(task), asked_}); }
  std::vector<std::string> slices() const override { return slices_; }
  void OnFinished(uint64_t final_version) override { Push(RunCompleted{final_version}); }
  void OnFailed(const absl::Status& status) override { Push(ServerFailed{status}); }

  std::optional<SimulationEvent> Next(absl::Duration timeout) {
    absl::MutexLock lock(&mutex_);
    const auto any = [this]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) { return !events_.empty(); };
    mutex_.AwaitWithTimeout(absl::Condition(&any), timeout);
    if (events_.empty()) return std::nullopt;
    SimulationEvent event = std::move(events_.front());
    events_.pop_front();
    return event;
  }

 private:
  void Push(SimulationEvent event) {
    absl::MutexLock lock(&mutex_);
    events_.push_back(std::move(event));
  }

  const std::vector<std::string> slices_;
  std::vector<std::string> asked_;
  absl::Mutex mutex_;
  std::deque<SimulationEvent> events_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace

// Destroyed from the last to the first: the transport before what it calls.
struct SimulatedServer::Parts {
  explicit Parts(std::vector<std::string> slices) : events(std::move(slices)) {}
  EventQueue events;
  std::unique_ptr<FederationCore> core;
  std::unique_ptr<GrpcServer> grpc;
};

SimulatedServer::SimulatedServer(std::unique_ptr<Parts> parts) : parts_(std::move(parts)) {}

SimulatedServer::~SimulatedServer() { parts_->grpc->Shutdown(absl::ZeroDuration()); }

absl::StatusOr<std::unique_ptr<SimulatedServer>> SimulatedServer::Start(
    const RunPlan& plan, const LoraAdapter& initial, const std::string& state_dir,
    std::vector<std::string> slices, Clock* clock, Env* env) {
  // The database of a simulation is of no use after it; the blobs are what needs room.
  SqliteStoreOptions store_options;
  store_options.dir = state_dir;
  store_options.in_memory = true;
  store_options.keep_versions = 2;
  ASSIGN_OR_RETURN(std::unique_ptr<SqliteStore> store, SqliteStore::Open(store_options, *env));
  UploadLimits limits;
  limits.max_upload_bytes = plan.max_update_bytes;
  ASSIGN_OR_RETURN(std::unique_ptr<UploadBuffer> uploads,
                   UploadBuffer::Open(JoinPath(state_dir, "uploads"), limits, *env, *clock));

  auto parts = std::make_unique<Parts>(std::move(slices));
  FederationCoreOptions core_options;
  core_options.clock = clock;
  core_options.events = {&parts->events};
  core_options.tick_interval = absl::ZeroDuration();
  core_options.evaluator = &parts->events;
  ASSIGN_OR_RETURN(parts->core,
                   FederationCore::Create(plan, initial, std::move(store), std::move(uploads),
                                          std::move(core_options)));
  GrpcServerOptions grpc_options;
  grpc_options.listen.clear();
  ASSIGN_OR_RETURN(parts->grpc, GrpcServer::Start(*parts->core, grpc_options));
  return std::unique_ptr<SimulatedServer>(new SimulatedServer(std::move(parts)));
}

std::unique_ptr<FederationLink> SimulatedServer::MakeLink() {
  return MakeGrpcLink(parts_->grpc->InProcessChannel(), kAddress, GrpcLinkOptions());
}

std::optional<SimulationEvent> SimulatedServer::NextEvent(absl::Duration timeout) {
  return parts_->events.Next(timeout);
}

void SimulatedServer::NoteHoldout(uint64_t version, double loss, int64_t tokens) {
  parts_->core->RecordHoldout(version, loss, tokens);
}

void SimulatedServer::NoteCandidate(uint64_t round, const HoldoutMeasurement& measured) {
  parts_->core->NoteHoldout(round, measured);
}

void SimulatedServer::Tick() { parts_->core->Tick(); }

}  // namespace fedge
