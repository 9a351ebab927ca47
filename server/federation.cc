// Federation: the start, and what devices ask. What operators ask is in federation_runs.cc.
#include "server/federation.h"

#include <algorithm>
#include <utility>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "common/base/status.h"
#include "server/log_events.h"
#include "server/sqlite_store.h"

namespace fedge {
namespace {

constexpr char kDefaultStateDir[] = "fedge-server-state";
constexpr size_t kMaxNamedRuns = 4;  // in an error
constexpr size_t kMaxShownId = 64;
constexpr char kSigningKeyFile[] = "signing-key.pem";

// A key that is new, or not the one of before, is a decision on record.
absl::Status RecordSigningKey(const SigningKey& key, Clock& clock, AuditLog& log) {
  const std::string detail =
      absl::StrCat("{\"public_key\":\"", absl::BytesToHexString(key.public_key()), "\"}");
  ASSIGN_OR_RETURN(const std::vector<AuditRecord> last, log.ListAuditOf("signing-key"));
  if (!last.empty() && last.back().entry.detail == detail) return absl::OkStatus();
  AuditEntry entry;
  entry.when = clock.Now();
  entry.action = "signing-key";
  entry.detail = detail;
  return log.AppendAudit(entry);
}

// What one run says to a check-in.
struct Offer {
  FederationCore* core = nullptr;
  CheckInDecision decision;
};

// A task before a wait before an end; the task that is due first, the shortest wait, the end of the
// run that the device worked for, else of the newest.
bool IsBetter(const Offer& offer, const Offer& best, absl::string_view held_run) {
  // CheckInDecision's alternatives stand in this order.
  if (offer.decision.index() != best.decision.index()) {
    return offer.decision.index() < best.decision.index();
  }
  if (const auto* const task = std::get_if<TaskAssignment>(&offer.decision)) {
    return task->deadline < std::get<TaskAssignment>(best.decision).deadline;
  }
  if (const auto* const later = std::get_if<RetryLater>(&offer.decision)) {
    return later->min_delay < std::get<RetryLater>(best.decision).min_delay;
  }
  return best.core->plan().run_id != held_run;
}

// Devices may be there before the first run is.
v1::CheckInResponse NoRunYet() {
  v1::CheckInResponse response;
  response.mutable_retry()->set_min_delay_ms(30'000);
  response.mutable_retry()->set_max_delay_ms(60'000);
  response.mutable_retry()->set_reason("this server has no run yet; its operator creates one");
  return response;
}

bool ServesBaseModels(const v1::ServerConfig& config) {
  return !config.has_serve_base_model() || config.serve_base_model();
}

v1::UploadReceipt LateReceipt(absl::string_view run_id) {
  v1::UploadReceipt receipt;
  receipt.set_verdict(v1::UploadReceipt::LATE);
  receipt.set_reason(absl::StrCat("run '", run_id, "' is over"));
  return receipt;
}

}  // namespace

std::string StateDirOf(const v1::ServerConfig& config) {
  return config.has_state_dir() ? config.state_dir() : kDefaultStateDir;
}

Federation::Federation(const v1::ServerConfig& config, const FederationOptions& options)
    : config_(config),
      options_(options),
      models_(
          config.has_model_dir() ? config.model_dir() : std::string(DirName(config.base_model())),
          *options.env) {}

Federation::~Federation() = default;

Federation::Run::~Run() {
  if (setup.holdout != nullptr) setup.holdout->Stop();
}

std::string Federation::configured_id() const {
  return config_.run().has_id() ? config_.run().id() : RunPlan().run_id;
}

absl::StatusOr<std::unique_ptr<Federation>> Federation::Open(const v1::ServerConfig& config,
                                                             const FederationOptions& options) {
  std::unique_ptr<Federation> federation(new Federation(config, options));
  absl::MutexLock changing(&federation->changing_);
  std::optional<RunSetup> configured;
  if (!config.base_model().empty() || !config.has_model_dir()) {
    ASSIGN_OR_RETURN(configured,
                     SetUpRun(config, federation->models_, options.threads, *options.env));
  }
  federation->quota_ = std::make_shared<GuardedQuota>(configured ? configured->plan.admission.quota
                                                                 : NodeQuotaLimits());
  RETURN_IF_ERROR(federation->OpenStore());
  if (configured) {
    RETURN_IF_ERROR(federation->Serve(*std::move(configured), config, nullptr).status());
  }
  RETURN_IF_ERROR(federation->TakeUpRuns());
  return federation;
}

absl::Status Federation::OpenStore() {
  SqliteStoreOptions options;
  options.dir = StateDirOf(config_);
  if (config_.has_keep_versions()) options.keep_versions = config_.keep_versions();
  ASSIGN_OR_RETURN(store_, SqliteStore::Open(options, *options_.env));
  ASSIGN_OR_RETURN(signing_key_,
                   LoadOrMakeSigningKey(JoinPath(options.dir, kSigningKeyFile), *options_.env));
  RETURN_IF_ERROR(RecordSigningKey(*signing_key_, *options_.clock, *store_));
  UploadLimits limits;  // runs raise them to what they need
  limits.lifetime = absl::ZeroDuration();
  if (config_.has_max_open_upload_bytes()) limits.max_total_bytes = config_.max_open_upload_bytes();
  ASSIGN_OR_RETURN(uploads_, UploadBuffer::Open(JoinPath(options.dir, "uploads"), limits,
                                                *options_.env, *options_.clock));
  return absl::OkStatus();
}

std::vector<Federation::Run*> Federation::Runs() {
  std::vector<Run*> runs;
  absl::MutexLock lock(&mutex_);
  for (const std::unique_ptr<Run>& run : runs_) runs.push_back(run.get());
  return runs;
}

std::vector<Federation::Run*> Federation::RunsOf(const Digest& base) {
  std::vector<Run*> runs = Runs();
  std::erase_if(runs, [&](Run* run) { return run->setup.plan.base_model != base; });
  return runs;
}

Federation::Run* Federation::FindServed(absl::string_view run_id) {
  absl::MutexLock lock(&mutex_);
  for (const std::unique_ptr<Run>& run : runs_) {
    if (run->setup.plan.run_id == run_id) return run.get();
  }
  return nullptr;
}

FederationCore* Federation::Find(absl::string_view run_id) {
  Run* const run = FindServed(run_id);
  return run == nullptr ? nullptr : run->core.get();
}

HoldoutEvaluator* Federation::holdout(absl::string_view run_id) {
  Run* const run = FindServed(run_id);
  return run == nullptr ? nullptr : run->setup.holdout.get();
}

std::shared_ptr<const BaseModel> Federation::model(absl::string_view run_id) {
  Run* const run = FindServed(run_id);
  return run == nullptr ? nullptr : run->setup.model;
}

absl::Status Federation::TakeRequest(absl::string_view node) {
  RETURN_IF_ERROR(CheckNodeId(node));
  absl::MutexLock lock(&quota_->mutex);
  return quota_->quota.TakeRequest(node, options_.clock->Monotonic());
}

absl::Status Federation::UnknownBase(const Digest& base) {
  std::vector<std::string> trained;
  for (const Run* const run : Runs()) {
    if (trained.size() == kMaxNamedRuns) break;
    trained.push_back(absl::StrCat("run '", run->setup.plan.run_id, "' trains ",
                                   run->setup.plan.base_model.Hex()));
  }
  return absl::FailedPreconditionError(absl::StrCat("base model: the device holds ", base.Hex(),
                                                    ", ", absl::StrJoin(trained, ", "),
                                                    "; give the device the run's model file"));
}

v1::CheckInResponse Federation::OfferBaseModel(const std::vector<Run*>& runs) {
  const auto open =
      std::find_if(runs.begin(), runs.end(), [](const Run* run) { return !run->core->finished(); });
  const BaseModel& model = *(open == runs.end() ? runs.back() : *open)->setup.model;
  v1::CheckInResponse response;
  v1::BaseModelOffer& offer = *response.mutable_base_model();
  offer.mutable_content()->set_sha256(model.sha256().Raw());
  offer.mutable_content()->set_size_bytes(model.file().bytes().size());
  offer.set_served(ServesBaseModels(config_));
  return response;
}

absl::StatusOr<v1::CheckInResponse> Federation::CheckIn(const v1::CheckInRequest& request) {
  RETURN_IF_ERROR(TakeRequest(request.node_id()));
  const std::vector<Run*> runs = Runs();
  if (runs.empty()) return NoRunYet();
  if (request.base_model_sha256().empty()) return OfferBaseModel(runs);
  const absl::StatusOr<Digest> base = DigestFromRaw(request.base_model_sha256());
  if (!base.ok()) return Annotate(base.status(), "base_model_sha256");
  std::vector<Offer> offers;
  size_t best_index = 0;
  for (Run* const run : RunsOf(*base)) {
    Offer offer{run->core.get(), {}};
    ASSIGN_OR_RETURN(offer.decision, offer.core->Decide(request));
    offers.push_back(std::move(offer));
    if (IsBetter(offers.back(), offers[best_index], request.held_adapter().run_id())) {
      best_index = offers.size() - 1;
    }
  }
  if (offers.empty()) return UnknownBase(*base);
  Offer& best = offers[best_index];
  for (const Offer& offer : offers) {
    const auto* const task = std::get_if<TaskAssignment>(&offer.decision);
    if (task != nullptr && &offer != &best) offer.core->TakeBack(request.node_id(), *task);
  }
  if (const auto* const later = std::get_if<RetryLater>(&best.decision)) {
    for (Run* const run : RunsOf(*base)) {  // time to measure what one of them would publish
      if (run->core->AsksForEvaluation(request.node_id())) {
        return run->core->Answer(request, *later);
      }
    }
  }
  if (std::holds_alternative<RunEnded>(best.decision)) {  // of all of them
    for (const Offer& offer : offers) offer.core->NoteTold(request.node_id());
  }
  return best.core->Answer(request, std::move(best.decision));
}

absl::StatusOr<std::shared_ptr<const std::string>> Federation::OpenDownload(
    const v1::DownloadRequest& request) {
  RETURN_IF_ERROR(TakeRequest(request.node_id()));
  const absl::StatusOr<Digest> digest = DigestFromRaw(request.sha256());
  if (!digest.ok()) return Annotate(digest.status(), "sha256");
  for (Run* const run : Runs()) {
    absl::StatusOr<std::shared_ptr<const std::string>> bytes =
        run->core->FindContent(*digest, request.node_id());
    if (absl::IsNotFound(bytes.status())) continue;
    if (bytes.ok()) RETURN_IF_ERROR(CheckOffset(request, **bytes));
    return bytes;
  }
  return absl::NotFoundError(absl::StrCat("content ", digest->Hex(),
                                          " is not a version this server keeps; check in again"));
}

absl::StatusOr<absl::string_view> Federation::OpenBaseModel(const v1::DownloadRequest& request) {
  const absl::StatusOr<Digest> digest = DigestFromRaw(request.sha256());
  const std::vector<Run*> runs = digest.ok() ? RunsOf(*digest) : std::vector<Run*>();
  if (runs.empty() || !ServesBaseModels(config_)) {
    return absl::NotFoundError("not a base model, or none is served here");
  }
  RETURN_IF_ERROR(TakeRequest(request.node_id()));
  const absl::string_view file = runs.front()->setup.model->file().bytes();
  if (request.offset() > file.size()) {
    return absl::OutOfRangeError(absl::StrCat("offset ", request.offset(), " is beyond the ",
                                              file.size(), " bytes of the base model"));
  }
  return file;
}

absl::StatusOr<FederationCore*> Federation::FindForDevice(absl::string_view run_id) {
  if (FederationCore* const core = Find(run_id)) return core;
  absl::MutexLock lock(&mutex_);
  const auto unserved = unserved_.find(run_id);
  if (unserved == unserved_.end()) {
    return absl::FailedPreconditionError(absl::StrCat(
        "run '", absl::CHexEscape(run_id.substr(0, kMaxShownId)), "' is not served here"));
  }
  if (unserved->second.over) return nullptr;
  return absl::UnavailableError(absl::StrCat("run '", run_id, "' rests; try again later"));
}

absl::StatusOr<v1::QueryUploadResponse> Federation::QueryUpload(
    const v1::QueryUploadRequest& request) {
  ASSIGN_OR_RETURN(FederationCore* const core, FindForDevice(request.id().run_id()));
  if (core != nullptr) return core->QueryUpload(request);
  v1::QueryUploadResponse response;
  *response.mutable_receipt() = LateReceipt(request.id().run_id());
  return response;
}

absl::Status Federation::Report(const v1::ReportRequest& request) {
  ASSIGN_OR_RETURN(FederationCore* const core, FindForDevice(request.run_id()));
  return core == nullptr ? absl::OkStatus() : core->Report(request);
}

// Goes to the run that the first message names.
class Federation::Stream : public UploadStream {
 public:
  explicit Stream(Federation& federation) : federation_(federation) {}

  absl::StatusOr<std::optional<v1::UploadReceipt>> OnMessage(
      const v1::UploadRequest& request) override {
    if (stream_ == nullptr) {
      if (!request.has_id()) {
        return absl::InvalidArgumentError("upload: the first message has no id");
      }
      ASSIGN_OR_RETURN(FederationCore* const core,
                       federation_.FindForDevice(request.id().run_id()));
      if (core == nullptr) {
        return std::optional<v1::UploadReceipt>(LateReceipt(request.id().run_id()));
      }
      stream_ = core->OpenUpload();
    }
    return stream_->OnMessage(request);
  }

  absl::StatusOr<v1::UploadReceipt> OnEnd() override {
    if (stream_ != nullptr) return stream_->OnEnd();
    return absl::InvalidArgumentError("upload: the stream ended before its first message");
  }

 private:
  Federation& federation_;
  std::unique_ptr<UploadStream> stream_;
};

std::unique_ptr<UploadStream> Federation::OpenUpload() { return std::make_unique<Stream>(*this); }

void Federation::Tick() {
  for (Run* const run : Runs()) run->core->Tick();
}

void Federation::Flush() {
  for (Run* const run : Runs()) run->core->Flush();
}

std::string Federation::QuarantineReason(absl::string_view node) {
  for (Run* const run : Runs()) {
    const std::string reason = run->core->QuarantineReason(node);
    if (!reason.empty()) return absl::StrCat("run '", run->setup.plan.run_id, "': ", reason);
  }
  return "";
}

void Federation::Stop() {
  for (Run* const run : Runs()) {
    if (run->setup.holdout != nullptr) run->setup.holdout->Stop();
    run->core->Flush();
  }
}

void Federation::WaitForEvaluations() {
  for (Run* const run : Runs()) {
    if (run->setup.holdout != nullptr) run->setup.holdout->WaitUntilIdle();
  }
}

absl::Status Federation::health() {
  for (Run* const run : Runs()) RETURN_IF_ERROR(run->core->health());
  return absl::OkStatus();
}

bool Federation::finished() {
  const std::vector<Run*> runs = Runs();
  return !runs.empty() &&
         std::all_of(runs.begin(), runs.end(), [](Run* run) { return run->core->finished(); });
}

size_t Federation::nodes_to_tell() {
  size_t count = 0;
  for (Run* const run : Runs()) count += run->core->nodes_to_tell();
  return count;
}

Store& Federation::store() { return *store_; }

Directory& Federation::directory() { return *store_; }

}  // namespace fedge
