// FederationCore: what devices ask.
#include <optional>
#include <utility>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "common/base/failpoint.h"
#include "common/base/status.h"
#include "server/federation_core.h"
#include "server/round_metrics.h"
#include "server/task_plan.h"

namespace fedge {
namespace {

constexpr size_t kMaxDeviceReportBytes = 4096;
constexpr size_t kMaxErrorBytes = 256;
constexpr absl::Duration kRoundJustEnded = absl::Milliseconds(100);

// What a device wrote goes into logs: one bounded line.
std::string OneLine(absl::string_view text) {
  std::string line(text.substr(0, kMaxErrorBytes));
  for (char& c : line) {
    if (static_cast<unsigned char>(c) < 0x20 || c == 0x7F) c = ' ';
  }
  return line;
}

// The version whose adapter goes with the answer.
std::optional<uint64_t> VersionIn(const CheckInDecision& decision) {
  if (const auto* const task = std::get_if<TaskAssignment>(&decision)) return task->adapter_version;
  if (const auto* const ended = std::get_if<RunEnded>(&decision)) return ended->final_version;
  return std::nullopt;
}

v1::UploadReceipt MakeReceipt(const UpdateVerdict& verdict, uint64_t committed) {
  v1::UploadReceipt receipt;
  switch (verdict.verdict) {
    case Verdict::kAccepted:
      receipt.set_verdict(v1::UploadReceipt::ACCEPTED);
      break;
    case Verdict::kRejected:
      receipt.set_verdict(v1::UploadReceipt::REJECTED);
      break;
    case Verdict::kLate:
    case Verdict::kLater:
      receipt.set_verdict(v1::UploadReceipt::LATE);
      break;
  }
  receipt.set_reason(verdict.reason);
  receipt.set_committed_bytes(committed);
  return receipt;
}

// What was stored about an update that the coordinator no longer remembers.
UpdateVerdict StoredVerdict(const UploadKey& key, const ParticipationRecord& record) {
  if (record.outcome == Outcome::kLate || record.outcome == Outcome::kFailed) {
    return {Verdict::kLate, absl::StrCat("round ", key.round, " is over")};
  }
  if (record.digest != key.sha256) {
    return {Verdict::kRejected, absl::StrCat("another update of this node for round ", key.round,
                                             " was judged already")};
  }
  if (record.outcome == Outcome::kAccepted) return {Verdict::kAccepted, ""};
  return {Verdict::kRejected, record.reason};
}

}  // namespace

absl::Status CheckOffset(const v1::DownloadRequest& request, absl::string_view content) {
  if (request.offset() <= content.size()) return absl::OkStatus();
  return absl::OutOfRangeError(absl::StrCat("offset ", request.offset(), " is beyond the ",
                                            content.size(), " bytes of ",
                                            absl::BytesToHexString(request.sha256())));
}

absl::Status FederationCore::CheckServing() {
  absl::MutexLock lock(&mutex_);
  return failed_;
}

absl::Status FederationCore::CheckRun(absl::string_view run_id) const {
  if (run_id == plan_.run_id) return absl::OkStatus();
  return absl::FailedPreconditionError(
      absl::StrCat("run '", OneLine(run_id), "' is not served here, '", plan_.run_id, "' is"));
}

absl::Status FederationCore::TakeRequest(absl::string_view node) {
  RETURN_IF_ERROR(CheckNodeId(node));
  absl::MutexLock lock(&quota_->mutex);
  return quota_->quota.TakeRequest(node, clock_.Monotonic());
}

absl::StatusOr<v1::CheckInResponse> FederationCore::CheckIn(const v1::CheckInRequest& request) {
  RETURN_IF_ERROR(CheckServing());
  RETURN_IF_ERROR(TakeRequest(request.node_id()));
  ASSIGN_OR_RETURN(CheckInDecision decision, Decide(request));
  return Answer(request, std::move(decision));
}

absl::StatusOr<CheckInDecision> FederationCore::Decide(const v1::CheckInRequest& request) {
  RETURN_IF_ERROR(CheckServing());
  const absl::StatusOr<Digest> base = DigestFromRaw(request.base_model_sha256());
  if (!base.ok()) return Annotate(base.status(), "base_model_sha256");
  if (request.device().ByteSizeLong() > kMaxDeviceReportBytes) {
    return absl::InvalidArgumentError(absl::StrCat("device: ", request.device().ByteSizeLong(),
                                                   " bytes, allowed are ", kMaxDeviceReportBytes));
  }
  CheckInDecision decision;
  {
    absl::MutexLock lock(&mutex_);
    ASSIGN_OR_RETURN(decision, coordinator_->CheckIn(request.node_id(), *base, run_clock_.Now(),
                                                     request.device().tokens_per_second()));
    seen_[request.node_id()] = {request.node_id(), clock_.Now(),
                                request.device().SerializeAsString()};
  }
  RETURN_IF_ERROR(ProcessActions());
  return decision;
}

v1::CheckInResponse FederationCore::Answer(const v1::CheckInRequest& request,
                                           CheckInDecision decision) {
  v1::CheckInResponse response;
  if (std::holds_alternative<RetryLater>(decision)) {
    if (std::optional<v1::EvaluationTask> evaluation = MakeEvaluation(request)) {
      *response.mutable_evaluation() = *std::move(evaluation);
      return response;
    }
  }
  std::optional<v1::AdapterSource> adapter;
  if (const std::optional<uint64_t> version = VersionIn(decision)) {
    adapter = downlink_.Offer(*version, request.held_adapter());
    if (!adapter) decision = RetryLater{kRoundJustEnded, kRoundJustEnded, "the round has ended"};
  }
  if (const auto* const task = std::get_if<TaskAssignment>(&decision)) {
    v1::Assignment& assignment = *response.mutable_assignment();
    assignment = assignment_;
    assignment.set_round(task->round);
    assignment.mutable_training()->set_learning_rate(
        LocalLearningRate(plan_, task->adapter_version));
    assignment.mutable_codec()->set_density(CodecDensity(plan_, task->adapter_version));
    if (RotatesFrame(plan_.aggregation)) {
      assignment.mutable_codec()->set_frame(task->adapter_version);
    }
    assignment.set_adapter_version(task->adapter_version);
    *assignment.mutable_adapter() = *std::move(adapter);
    assignment.set_deadline_ms(static_cast<uint64_t>(absl::ToInt64Milliseconds(task->deadline)));
    assignment.set_seed(task->seed);
    FillSlice(
        NodeSlice(plan_, task->adapter_version, request.node_id(), request.device().memory_bytes()),
        *assignment.mutable_slice());
  } else if (const auto* const later = std::get_if<RetryLater>(&decision)) {
    v1::RetryWindow& retry = *response.mutable_retry();
    retry.set_min_delay_ms(static_cast<uint64_t>(absl::ToInt64Milliseconds(later->min_delay)));
    retry.set_max_delay_ms(static_cast<uint64_t>(absl::ToInt64Milliseconds(later->max_delay)));
    retry.set_reason(later->reason);
  } else {
    v1::RunFinished& finished = *response.mutable_finished();
    finished.set_final_version(std::get<RunEnded>(decision).final_version);
    *finished.mutable_adapter() = *std::move(adapter);
    *finished.mutable_lora() = assignment_.lora();
    absl::MutexLock lock(&mutex_);
    told_.insert(request.node_id());
  }
  return response;
}

void FederationCore::TakeBack(absl::string_view node, const TaskAssignment& task) {
  absl::MutexLock lock(&mutex_);
  coordinator_->TakeBack(node, task);
}

absl::StatusOr<std::shared_ptr<const std::string>> FederationCore::OpenDownload(
    const v1::DownloadRequest& request) {
  RETURN_IF_ERROR(TakeRequest(request.node_id()));
  const absl::StatusOr<Digest> digest = DigestFromRaw(request.sha256());
  if (!digest.ok()) return Annotate(digest.status(), "sha256");
  ASSIGN_OR_RETURN(std::shared_ptr<const std::string> bytes,
                   FindContent(*digest, request.node_id()));
  RETURN_IF_ERROR(CheckOffset(request, *bytes));
  return bytes;
}

absl::StatusOr<std::shared_ptr<const std::string>> FederationCore::FindContent(
    const Digest& digest, absl::string_view node) {
  std::shared_ptr<const std::string> bytes = downlink_.Find(digest);
  if (bytes == nullptr) {
    ASSIGN_OR_RETURN(const bool is_served, store_->IsServed(plan_.run_id, digest));
    if (!is_served) {
      return absl::NotFoundError(absl::StrCat(
          "content ", digest.Hex(), " is not a version this server keeps; check in again"));
    }
    ASSIGN_OR_RETURN(std::string stored, store_->ReadBlob(digest));
    bytes = std::make_shared<const std::string>(std::move(stored));
  }
  absl::MutexLock lock(&mutex_);
  coordinator_->NoteDownload(node, run_clock_.Now());  // a sign of life
  return bytes;
}

absl::StatusOr<UploadKey> FederationCore::ParseUploadId(const v1::UploadId& id) const {
  RETURN_IF_ERROR(CheckRun(id.run_id()));
  RETURN_IF_ERROR(CheckNodeId(id.node_id()));
  const absl::StatusOr<Digest> digest = DigestFromRaw(id.sha256());
  if (!digest.ok()) return Annotate(digest.status(), "upload id");
  if (id.size_bytes() == 0 || id.size_bytes() > plan_.max_update_bytes) {
    return absl::InvalidArgumentError(absl::StrCat("upload: announces ", id.size_bytes(),
                                                   " bytes, allowed are 1 to ",
                                                   plan_.max_update_bytes));
  }
  return UploadKey{.run_id = id.run_id(),
                   .round = id.round(),
                   .node_id = id.node_id(),
                   .sha256 = *digest,
                   .size_bytes = id.size_bytes()};
}

absl::StatusOr<std::optional<v1::UploadReceipt>> FederationCore::KnownReceipt(
    const UploadKey& key) {
  std::optional<UpdateVerdict> known;
  {
    absl::MutexLock lock(&mutex_);
    coordinator_->NoteUpload(key.node_id, key.round, run_clock_.Now());
    known = coordinator_->KnownVerdict(key.node_id, key.round, key.sha256);
  }
  // Also makes a verdict durable that another stream of the same node has just brought about.
  RETURN_IF_ERROR(ProcessActions());
  if (!known) return std::optional<v1::UploadReceipt>();
  if (known->verdict == Verdict::kLater) return absl::UnavailableError(known->reason);
  if (known->verdict == Verdict::kLate) {
    ASSIGN_OR_RETURN(const std::optional<ParticipationRecord> record,
                     store_->FindParticipation(plan_.run_id, key.round, key.node_id));
    if (record) known = StoredVerdict(key, *record);
  }
  uploads_->Remove(key);
  return std::optional<v1::UploadReceipt>(
      MakeReceipt(*known, known->verdict == Verdict::kAccepted ? key.size_bytes : 0));
}

absl::StatusOr<v1::QueryUploadResponse> FederationCore::QueryUpload(
    const v1::QueryUploadRequest& request) {
  RETURN_IF_ERROR(CheckServing());
  ASSIGN_OR_RETURN(const UploadKey key, ParseUploadId(request.id()));
  RETURN_IF_ERROR(TakeRequest(key.node_id));
  ASSIGN_OR_RETURN(std::optional<v1::UploadReceipt> receipt, KnownReceipt(key));
  v1::QueryUploadResponse response;
  if (receipt) {
    response.set_committed_bytes(receipt->committed_bytes());
    *response.mutable_receipt() = *std::move(receipt);
  } else {
    response.set_committed_bytes(uploads_->CommittedBytes(key));
  }
  return response;
}

void FederationCore::NoteMetrics(absl::string_view node, uint64_t round, v1::TaskMetrics metrics) {
  if (!IsPlausible(metrics)) return;
  metrics.DiscardUnknownFields();
  absl::MutexLock lock(&mutex_);
  if (!coordinator_->HasOpenTask(node, round)) return;
  metrics_.emplace(TaskKey(round, node), std::move(metrics));
}

absl::Status FederationCore::Report(const v1::ReportRequest& request) {
  RETURN_IF_ERROR(CheckServing());
  RETURN_IF_ERROR(CheckRun(request.run_id()));
  RETURN_IF_ERROR(TakeRequest(request.node_id()));
  NoteEvaluation(request);
  if (request.has_evaluation()) return ProcessActions();
  if (!request.completed()) {
    {
      absl::MutexLock lock(&mutex_);
      coordinator_->ReportFailure(request.node_id(), request.round(), OneLine(request.error()));
    }
    return ProcessActions();
  }
  if (!request.has_metrics() || !IsPlausible(request.metrics())) return absl::OkStatus();
  NoteMetrics(request.node_id(), request.round(), request.metrics());
  v1::TaskMetrics known_fields = request.metrics();
  known_fields.DiscardUnknownFields();
  absl::MutexLock storing(&actions_mutex_);
  return CheckStored(store_->RecordMetrics(plan_.run_id, request.round(), request.node_id(),
                                           known_fields.SerializeAsString()));
}

absl::StatusOr<v1::UploadReceipt> FederationCore::Submit(const UploadKey& key,
                                                         const std::string& bytes) {
  uint64_t base_version = 0;
  {
    absl::MutexLock lock(&mutex_);
    base_version = coordinator_->BaseVersion(key.round).value_or(0);  // unknown: known to be late
  }
  RETURN_IF_ERROR(FEDGE_FAILPOINT("core.update.whole"));
  // Decoding, checking and writing need no lock: should the round end meanwhile, the verdict says
  // so.
  ReceivedUpdate update{.digest = key.sha256,
                        .wire_bytes = bytes.size(),
                        .admitted = AdmitUpdate(plan_, key.round, base_version, bytes)};
  const bool is_written = update.admitted.ok();
  if (is_written) RETURN_IF_ERROR(StoreUpdate(key.sha256, bytes));
  std::optional<UpdateVerdict> verdict;
  bool counts = false;
  {
    absl::MutexLock lock(&mutex_);
    verdict = coordinator_->KnownVerdict(key.node_id, key.round, key.sha256);
    if (!verdict) {
      verdict = coordinator_->SubmitUpdate(key.node_id, key.round, std::move(update));
      counts = verdict->verdict == Verdict::kAccepted;
    }
  }
  if (is_written && !counts) store_->DropUpdate(key.sha256);
  RETURN_IF_ERROR(ProcessActions());
  if (verdict->verdict == Verdict::kLater) return absl::UnavailableError(verdict->reason);
  uploads_->Remove(key);  // only now: until here a restarted server needs its bytes
  RETURN_IF_ERROR(FEDGE_FAILPOINT("core.receipt"));
  return MakeReceipt(*verdict, key.size_bytes);
}

absl::Status FederationCore::TakeBytes(absl::string_view node, uint64_t bytes) {
  absl::MutexLock lock(&quota_->mutex);
  return quota_->quota.TakeBytes(node, bytes, clock_.Monotonic());
}

// One of the uploads that a node sends at the same time, until it is destroyed.
class FederationCore::OpenStream {
 public:
  static absl::StatusOr<std::shared_ptr<OpenStream>> Create(const FederationCore& core,
                                                            std::string node) {
    absl::MutexLock lock(&core.quota_->mutex);
    RETURN_IF_ERROR(core.quota_->quota.OpenStream(node, core.clock_.Monotonic()));
    return std::make_shared<OpenStream>(core.quota_, std::move(node));
  }
  OpenStream(std::shared_ptr<GuardedQuota> quota, std::string node)
      : quota_(std::move(quota)), node_(std::move(node)) {}
  OpenStream(const OpenStream&) = delete;
  OpenStream& operator=(const OpenStream&) = delete;
  ~OpenStream() {
    absl::MutexLock lock(&quota_->mutex);
    quota_->quota.CloseStream(node_);
  }

 private:
  const std::shared_ptr<GuardedQuota> quota_;
  const std::string node_;
};

absl::StatusOr<std::optional<v1::UploadReceipt>> FederationCore::Upload::OnMessage(
    const v1::UploadRequest& request) {
  std::optional<std::string> whole;
  if (!key_) {
    RETURN_IF_ERROR(core_.CheckServing());
    if (!request.has_id()) {
      return absl::InvalidArgumentError("upload: the first message has no id");
    }
    ASSIGN_OR_RETURN(key_, core_.ParseUploadId(request.id()));
    RETURN_IF_ERROR(core_.TakeRequest(key_->node_id));
    ASSIGN_OR_RETURN(stream_, OpenStream::Create(core_, key_->node_id));
    ASSIGN_OR_RETURN(std::optional<v1::UploadReceipt> receipt, core_.KnownReceipt(*key_));
    if (receipt) return receipt;
    if (request.has_metrics()) core_.NoteMetrics(key_->node_id, key_->round, request.metrics());
    ASSIGN_OR_RETURN(whole, core_.uploads_->TakeIfWhole(*key_));
  } else if (request.has_id()) {
    return absl::InvalidArgumentError("upload: only the first message has an id");
  }
  if (!whole && request.has_chunk()) {
    const v1::Chunk& chunk = request.chunk();
    {
      absl::MutexLock lock(&core_.mutex_);
      core_.coordinator_->NoteUpload(key_->node_id, key_->round, core_.run_clock_.Now());
    }
    RETURN_IF_ERROR(core_.TakeBytes(key_->node_id, chunk.data().size()));
    ASSIGN_OR_RETURN(whole,
                     core_.uploads_->Append(*key_, chunk.offset(), chunk.data(), chunk.crc32c()));
  }
  if (!whole) return std::optional<v1::UploadReceipt>();
  ASSIGN_OR_RETURN(v1::UploadReceipt receipt, core_.Submit(*key_, *whole));
  return std::optional<v1::UploadReceipt>(std::move(receipt));
}

absl::StatusOr<v1::UploadReceipt> FederationCore::Upload::OnEnd() {
  if (!key_) return absl::InvalidArgumentError("upload: the stream ended before its first message");
  v1::UploadReceipt receipt;
  receipt.set_committed_bytes(core_.uploads_->CommittedBytes(*key_));
  return receipt;
}

}  // namespace fedge
