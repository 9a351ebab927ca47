// A whole server over a tiny adapter, and a device that makes its updates by hand.
#ifndef FEDGE_TESTS_SERVER_FEDERATION_TEST_RIG_H_
#define FEDGE_TESTS_SERVER_FEDERATION_TEST_RIG_H_

#include <algorithm>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "common/base/clock.h"
#include "server/federation_core.h"
#include "server/sqlite_store.h"
#include "server/upload_buffer.h"
#include "tests/server/temporary_dir.h"
#include "tests/server/tiny_run.h"
#include "tests/testing/fault_env.h"

namespace fedge::testing {

// Writes every event down as one line.
class EventRecorder : public ServerEvents {
 public:
  void OnRoundStarted(uint64_t round, uint64_t base_version,
                      const std::vector<std::string>& cohort) override {
    lines.push_back(absl::StrCat("start ", round, " on v", base_version, " with ", cohort.size()));
    last_cohort = cohort;
  }
  void OnRoundContinued(const RoundRecord& round, const RoundCounts& counts) override {
    lines.push_back(absl::StrCat("continue ", round.round, " on v", round.base_version, " attempt ",
                                 round.attempt, ": ", counts.accepted, " accepted, ",
                                 counts.rejected, " rejected, ", counts.dropped, " dropped, ",
                                 counts.pending, " pending"));
  }
  void OnDamage(const std::string& what) override {
    lines.push_back(absl::StrCat("damage: ", what));
  }
  void OnNoRoom(const absl::Status&) override { lines.push_back("no room"); }
  void OnRoomAgain() override { lines.push_back("room again"); }
  void OnUpdate(const UpdateJudged& update) override {
    lines.push_back(absl::StrCat("update ", update.round, " ", update.node_id, " ",
                                 std::string(VerdictName(update.verdict.verdict))));
  }
  void OnTaskFailed(const TaskFailed& failure) override {
    lines.push_back(
        absl::StrCat("failed ", failure.round, " ", failure.node_id, ": ", failure.error));
  }
  void OnPublished(const VersionRecord& version, const LoraAdapter& adapter) override {
    lines.push_back(absl::StrCat("publish v", version.version, " of ", version.round));
    versions.push_back(version);
    adapters.push_back(adapter);
  }
  void OnAbandoned(const RoundAbandoned& round) override {
    lines.push_back(absl::StrCat("abandon ", round.round));
  }
  void OnEvaluated(uint64_t version, double loss, int64_t tokens) override {
    lines.push_back(absl::StrCat("evaluate v", version, " ", loss, " ", tokens));
  }
  void OnEvaluating(uint64_t round, uint64_t version,
                    const std::vector<std::string>& nodes) override {
    lines.push_back(absl::StrCat("evaluating v", version, " of ", round, " by ", nodes.size()));
    evaluators = nodes;
  }
  void OnRefused(const RefusedRound& round) override {
    lines.push_back(
        absl::StrCat("refuse v", round.version, " of ", round.round, ": ", round.reason));
  }
  void OnFinished(uint64_t version) override { lines.push_back(absl::StrCat("finish v", version)); }
  void OnFailed(const absl::Status& status) override {
    lines.push_back(absl::StrCat("broken: ", std::string(status.message())));
  }

  std::vector<std::string> lines;
  std::vector<std::string> last_cohort;
  std::vector<std::string> evaluators;
  std::vector<VersionRecord> versions;
  std::vector<LoraAdapter> adapters;
};

class FederationRig {
 public:
  explicit FederationRig(RunPlan run = TinyPlan(), CandidateEvaluator* holdout = nullptr,
                         std::optional<SigningKey> key = std::nullopt)
      : plan(std::move(run)), evaluator(holdout), signing_key(std::move(key)) {
    Start();
  }

  void Start() {
    const absl::Status status = TryStart();
    FEDGE_CHECK(status.ok(), status.message());
  }
  absl::Status TryStart() {
    core.reset();
    ASSIGN_OR_RETURN(
        auto store,
        SqliteStore::Open({.dir = dir.path(), .in_memory = false, .keep_versions = 16}, env));
    UploadLimits limits;
    limits.max_upload_bytes = plan.max_update_bytes;
    ASSIGN_OR_RETURN(auto uploads, UploadBuffer::Open(dir.File("uploads"), limits, env, clock));
    FederationCoreOptions options;
    options.clock = &clock;
    options.events = {&events};
    options.tick_interval = absl::ZeroDuration();
    options.evaluator = evaluator;
    options.signing_key = signing_key;
    ASSIGN_OR_RETURN(core, FederationCore::Create(plan, TinyAdapter(), std::move(store),
                                                  std::move(uploads), std::move(options)));
    return absl::OkStatus();
  }

  v1::CheckInRequest CheckInRequest(absl::string_view node) const {
    v1::CheckInRequest request;
    request.set_node_id(std::string(node));
    request.set_base_model_sha256(plan.base_model.Raw());
    request.mutable_device()->set_client_version("test");
    return request;
  }
  v1::CheckInResponse CheckIn(absl::string_view node) {
    auto response = core->CheckIn(CheckInRequest(node));
    FEDGE_CHECK(response.ok(), response.status().message());
    return *std::move(response);
  }
  void CheckInAll(uint64_t nodes) {
    for (uint64_t i = 0; i < nodes; ++i) CheckIn(NodeName(i));
  }

  v1::UploadId IdOf(absl::string_view node, uint64_t round, const std::string& bytes) const {
    v1::UploadId id;
    id.set_run_id(plan.run_id);
    id.set_round(round);
    id.set_node_id(std::string(node));
    id.set_sha256(Sha256Of(bytes).Raw());
    id.set_size_bytes(bytes.size());
    return id;
  }
  static v1::Chunk ChunkOf(const std::string& bytes, uint64_t offset, uint64_t size) {
    v1::Chunk chunk;
    chunk.set_offset(offset);
    chunk.set_data(bytes.substr(offset, size));
    chunk.set_crc32c(Crc32c(chunk.data()));
    return chunk;
  }
  // The messages of one upload from `offset` on.
  std::vector<v1::UploadRequest> MessagesOf(absl::string_view node, uint64_t round,
                                            const std::string& bytes, uint64_t chunk_bytes,
                                            uint64_t offset = 0) const {
    std::vector<v1::UploadRequest> messages(1);
    *messages[0].mutable_id() = IdOf(node, round, bytes);
    for (uint64_t at = offset; at < bytes.size(); at += chunk_bytes) {
      if (at > offset) messages.emplace_back();
      *messages.back().mutable_chunk() = ChunkOf(bytes, at, chunk_bytes);
    }
    return messages;
  }
  absl::StatusOr<v1::UploadReceipt> Upload(absl::string_view node, uint64_t round,
                                           const std::string& bytes, uint64_t chunk_bytes = 4096,
                                           const v1::TaskMetrics* metrics = nullptr) {
    FederationCore::Upload upload = core->StartUpload();
    std::vector<v1::UploadRequest> messages = MessagesOf(node, round, bytes, chunk_bytes);
    if (metrics != nullptr) *messages[0].mutable_metrics() = *metrics;
    for (const v1::UploadRequest& message : messages) {
      absl::StatusOr<std::optional<v1::UploadReceipt>> receipt = upload.OnMessage(message);
      if (!receipt.ok()) return receipt.status();
      if (receipt->has_value()) return **std::move(receipt);
    }
    return upload.OnEnd();
  }
  v1::UploadReceipt::Verdict UploadUpdate(absl::string_view node, UpdateSpec spec) {
    auto receipt = Upload(node, spec.round, MakeUpdate(plan, spec));
    FEDGE_CHECK(receipt.ok(), receipt.status().message());
    return receipt->verdict();
  }
  // All of a cohort of nodes 0..nodes-1 contribute to `round`.
  void PlayRound(uint64_t nodes, uint64_t round, uint64_t base_version) {
    for (uint64_t i = 0; i < nodes; ++i) {
      UploadUpdate(NodeName(i),
                   {.round = round, .base_version = base_version, .seed = 100 * round + i});
    }
  }

  RunPlan plan;
  CandidateEvaluator* evaluator = nullptr;
  std::optional<SigningKey> signing_key;
  TemporaryDir dir;
  FaultEnv env;
  ManualClock clock;
  EventRecorder events;
  std::unique_ptr<FederationCore> core;
};

}  // namespace fedge::testing

#endif  // FEDGE_TESTS_SERVER_FEDERATION_TEST_RIG_H_
