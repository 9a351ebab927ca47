// Several runs side by side on one server: a FederationCore each, one store, one buffer of uploads,
// one quota a node, one loaded model a base.
//
//   check-in ── base model ──> every run of that base hears of it; of the tasks they have for the
//                              node, it gets the one that is due first
//   upload, report ── run id ──> its run        download ── content hash ──> whoever has it
//
// A run is there from the moment its version 0 is stored, and for ever. Those of operators come
// back with the server, as they were: running, paused, stopped or finished. The one in the server's
// configuration is there as long as the configuration names it. A run that cannot be taken up (its
// model is gone) holds up none of the others.
#ifndef FEDGE_SERVER_FEDERATION_H_
#define FEDGE_SERVER_FEDERATION_H_

#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/synchronization/mutex.h"
#include "common/base/clock.h"
#include "common/base/env.h"
#include "common/security/signing.h"
#include "fedge/v1/config.pb.h"
#include "server/base_models.h"
#include "server/device_requests.h"
#include "server/directory.h"
#include "server/event_log.h"
#include "server/federation_core.h"
#include "server/run_setup.h"

namespace fedge {

class LogEvents;
class SqliteStore;

struct FederationOptions {
  Env* env = Env::Posix();
  Clock* clock = Clock::Real();
  std::vector<ServerEvents*> events;                       // of every run
  EventLog* log = nullptr;                                 // may be null
  int threads = 1;                                         // of a holdout evaluation
  absl::Duration tick_interval = absl::Milliseconds(200);  // zero: the owner calls Tick
};

// What an operator asks for.
struct NewRun {
  v1::RunFile file;
  std::string parent_run;                  // cloned from; empty: none
  std::optional<uint64_t> parent_version;  // that version 0 is; absent: a new one
  bool validate_only = false;
  std::string actor{kAnOperator};  // who wants it, for the audit log
};

// A run as the store knows it, and what serves it.
struct RunView {
  RunEntry entry;
  FederationCore* core = nullptr;  // null: it is over for long, or cannot be taken up
  std::string problem;             // why it cannot go on, if so
};

// Where a server of this configuration keeps its state.
std::string StateDirOf(const v1::ServerConfig& config);

// Thread-safe.
class Federation : public DeviceRequests {
 public:
  // Opens the state and takes up the runs. A run in `config` that is not possible is an error, and
  // leaves nothing behind; one of an operator's is a problem of that run.
  static absl::StatusOr<std::unique_ptr<Federation>> Open(const v1::ServerConfig& config,
                                                          const FederationOptions& options);
  ~Federation() override;

  // Devices.
  absl::StatusOr<v1::CheckInResponse> CheckIn(const v1::CheckInRequest& request) override;
  absl::StatusOr<std::shared_ptr<const std::string>> OpenDownload(
      const v1::DownloadRequest& request) override;
  absl::StatusOr<absl::string_view> OpenBaseModel(const v1::DownloadRequest& request) override;
  absl::StatusOr<v1::QueryUploadResponse> QueryUpload(
      const v1::QueryUploadRequest& request) override;
  absl::Status Report(const v1::ReportRequest& request) override;
  std::unique_ptr<UploadStream> OpenUpload() override;

  // Operators. All are durable when they return and may be repeated.
  //
  // InvalidArgument: a field is wrong or contradicts another, its place first ("run.lora.rank: ").
  // NotFound: a file, the parent or its version. AlreadyExists: another run has the id.
  // FailedPrecondition: the parent's adapter has another shape.
  struct Created {
    RunView run;
    bool existed = false;  // the same run was created before
  };
  absl::StatusOr<Created> CreateRun(const NewRun& run);
  // NotFound: no such run. FailedPrecondition: it is over, or cannot be taken up.
  absl::StatusOr<RunView> PauseRun(absl::string_view run_id, absl::string_view actor = kAnOperator);
  absl::StatusOr<RunView> ResumeRun(absl::string_view run_id,
                                    absl::string_view actor = kAnOperator);
  absl::StatusOr<RunView> StopRun(absl::string_view run_id, absl::string_view actor = kAnOperator);
  absl::StatusOr<std::vector<RunView>> ListRuns();  // oldest first
  absl::StatusOr<RunView> FindRun(absl::string_view run_id);
  // The configuration of a run, as CreateRun takes it.
  static v1::RunFile FileOf(const RunEntry& run);

  // The run that is served under this id; null if none.
  FederationCore* Find(absl::string_view run_id);
  // The run of the server's configuration; null if it has none.
  FederationCore* configured() { return Find(configured_id()); }
  HoldoutEvaluator* holdout(absl::string_view run_id);  // null: none
  std::shared_ptr<const BaseModel> model(absl::string_view run_id);
  const SigningKey& signing_key() const { return *signing_key_; }
  Store& store();
  Directory& directory();

  // Why the node is not drawn by some run, if so.
  std::string QuarantineReason(absl::string_view node);

  void Tick();
  void Flush();  // nodes that are in memory only are stored
  // Ends evaluations; what is in memory is stored.
  void Stop();
  absl::Status health();  // OK, or why the store failed
  void WaitForEvaluations();
  bool finished();         // there are runs, and all of them are over
  size_t nodes_to_tell();  // once finished: how many known nodes have not been told so yet

 private:
  // A run that is served. Never removed: requests may be in it.
  struct Run {
    ~Run();
    RunSetup setup;
    std::unique_ptr<LogEvents> log;
    std::unique_ptr<FederationCore> core;  // announces to both
  };
  // One that is not: over since before the start, or a problem.
  struct Unserved {
    bool over = false;
    std::string problem;
  };
  class Stream;

  Federation(const v1::ServerConfig& config, const FederationOptions& options);

  std::string configured_id() const;
  absl::Status OpenStore();
  absl::Status TakeUpRuns() ABSL_EXCLUSIVE_LOCKS_REQUIRED(changing_);
  void TakeUp(const RunEntry& entry) ABSL_EXCLUSIVE_LOCKS_REQUIRED(changing_);
  // Serves the run of `setup`, stored as `config`; `initial` is asked for when it has no version.
  absl::StatusOr<FederationCore*> Serve(RunSetup setup, const v1::ServerConfig& config,
                                        const NewRun* created)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(changing_);
  absl::StatusOr<LoraAdapter> InitialAdapter(const RunSetup& setup, const NewRun* created);
  absl::StatusOr<LoraAdapter> ReadVersion(absl::string_view run, uint64_t version,
                                          const LoraSpec& shape);
  absl::Status CheckParent(const NewRun& run, const RunPlan& plan);
  static v1::ServerConfig ConfigOf(const RunEntry& run);  // as it is stored
  static absl::Status NoSuchRun(absl::string_view run_id);

  // From what an operator wrote to what is stored, paths resolved; and to what the run is made of.
  absl::StatusOr<v1::ServerConfig> StoredConfig(const NewRun& run)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(changing_);
  absl::StatusOr<std::string> ResolvePath(const std::string& path,
                                          absl::Span<const RunEntry> known) const
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(changing_);
  absl::StatusOr<std::string> ResolveBase(const std::string& name,
                                          absl::Span<const RunEntry> known) const
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(changing_);
  v1::ServerConfig EffectiveConfig(const v1::ServerConfig& stored) const;

  absl::StatusOr<RunView> ChangeState(absl::string_view run_id, RunState state,
                                      absl::string_view actor);
  void Announce(absl::string_view run_id, absl::string_view kind, absl::string_view text);
  std::vector<Run*> Runs();  // oldest first
  std::vector<Run*> RunsOf(const Digest& base);
  Run* FindServed(absl::string_view run_id);
  absl::Status UnknownBase(const Digest& base);
  // For a device without a base model: the one of the oldest run that is not over, else of the
  // newest. `runs`: all, at least one.
  v1::CheckInResponse OfferBaseModel(const std::vector<Run*>& runs);
  // The run that a device means; null: it is over for long. FailedPrecondition: there is none.
  absl::StatusOr<FederationCore*> FindForDevice(absl::string_view run_id);
  absl::Status TakeRequest(absl::string_view node);

  const v1::ServerConfig config_;
  const FederationOptions options_;
  std::shared_ptr<SqliteStore> store_;
  std::shared_ptr<UploadBuffer> uploads_;
  std::shared_ptr<GuardedQuota> quota_;
  std::optional<SigningKey> signing_key_;  // of manifests; set by OpenStore

  absl::Mutex changing_ ABSL_ACQUIRED_BEFORE(mutex_);  // one change of the runs at a time
  BaseModels models_ ABSL_GUARDED_BY(changing_);
  absl::Mutex mutex_;  // never held during I/O
  std::vector<std::unique_ptr<Run>> runs_ ABSL_GUARDED_BY(mutex_);
  std::map<std::string, Unserved, std::less<>> unserved_ ABSL_GUARDED_BY(mutex_);  // by run id
};

}  // namespace fedge

#endif  // FEDGE_SERVER_FEDERATION_H_
