#include "server/federation_core.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <limits>
#include <optional>
#include <thread>

#include "common/codec/adapter_state.h"
#include "tests/server/federation_test_rig.h"
#include "tests/testing/fault_env.h"

namespace fedge {
namespace {

using ::testing::ElementsAre;
using testing::FaultEnv;
using testing::FederationRig;
using ::testing::HasSubstr;
using testing::MakeUpdate;
using testing::NodeName;
using testing::TinyPlan;
using testing::UpdateSpec;

absl::StatusCode CodeOf(const absl::StatusOr<v1::UploadReceipt>& receipt) {
  return receipt.status().code();
}

v1::TaskMetrics Metrics(double loss) {
  v1::TaskMetrics metrics;
  metrics.set_train_loss_first(loss + 1);
  metrics.set_train_loss_last(loss);
  metrics.set_validation_loss_before(2 * loss);
  metrics.set_validation_tokens(10);
  metrics.set_num_examples(10);
  metrics.set_train_tokens(512);
  metrics.set_upload_bytes(100);
  metrics.set_download_bytes(200);
  return metrics;
}

TEST(FederationCoreTest, RunsFromFirstCheckInToTheLastVersion) {
  FederationRig rig;
  EXPECT_EQ(rig.CheckIn("node-00").outcome_case(), v1::CheckInResponse::kRetry);
  rig.CheckInAll(4);
  for (uint64_t round = 1; round <= 3; ++round) rig.PlayRound(4, round, round - 1);
  EXPECT_TRUE(rig.core->finished());
  const v1::CheckInResponse last = rig.CheckIn("node-00");
  ASSERT_EQ(last.outcome_case(), v1::CheckInResponse::kFinished);
  EXPECT_EQ(last.finished().final_version(), 3u);
  EXPECT_EQ(last.finished().adapter().values().sha256(), rig.events.versions[2].encoded.Raw());
  EXPECT_THAT(
      rig.events.lines,
      ElementsAre("start 1 on v0 with 4", "update 1 node-00 accepted", "update 1 node-01 accepted",
                  "update 1 node-02 accepted", "update 1 node-03 accepted", "publish v1 of 1",
                  "start 2 on v1 with 4", "update 2 node-00 accepted", "update 2 node-01 accepted",
                  "update 2 node-02 accepted", "update 2 node-03 accepted", "publish v2 of 2",
                  "start 3 on v2 with 4", "update 3 node-00 accepted", "update 3 node-01 accepted",
                  "update 3 node-02 accepted", "update 3 node-03 accepted", "publish v3 of 3",
                  "finish v3"));
}

TEST(FederationCoreTest, AssignsThePlanAndServesTheVersion) {
  FederationRig rig;
  rig.clock.Advance(absl::Seconds(5));
  rig.CheckInAll(4);
  const v1::CheckInResponse response = rig.CheckIn("node-02");
  ASSERT_TRUE(response.has_assignment());
  const v1::Assignment& task = response.assignment();
  EXPECT_EQ(task.run_id(), "default");
  EXPECT_EQ(task.round(), 1u);
  EXPECT_EQ(task.adapter_version(), 0u);
  EXPECT_EQ(task.deadline_ms(), 60'000u);
  EXPECT_EQ(task.base_model_sha256(), rig.plan.base_model.Raw());
  ASSERT_EQ(task.lora().modules_size(), 2);
  EXPECT_EQ(task.lora().modules(1).tensor(), "blk.0.ffn_up.weight");
  EXPECT_EQ(task.lora().modules(1).out_features(), 16u);
  EXPECT_EQ(task.training().steps(), 8u);
  EXPECT_EQ(task.codec().support(), v1::CodecPlan::DENSE);
  EXPECT_NE(task.seed(), 0u);

  v1::DownloadRequest request;
  request.set_node_id("node-02");
  request.set_sha256(task.adapter().values().sha256());
  const auto bytes = rig.core->OpenDownload(request);
  ASSERT_TRUE(bytes.ok()) << bytes.status();
  EXPECT_EQ((*bytes)->size(), task.adapter().values().size_bytes());
  EXPECT_EQ(Sha256Of(**bytes).Raw(), task.adapter().values().sha256());
  LoraAdapter decoded(rig.plan.lora);
  const auto header =
      DecodeAdapterValues(rig.plan.lora, rig.plan.base_model, **bytes, decoded.values());
  ASSERT_TRUE(header.ok()) << header.status();
  EXPECT_EQ(header->to_version, 0u);
  EXPECT_EQ(header->values_crc, task.adapter().values_crc32c());
  const LoraAdapter initial = testing::TinyAdapter();
  for (size_t i = 0; i < decoded.values().size(); ++i) {
    EXPECT_NEAR(decoded.values()[i], initial.values()[i], 1e-3);
  }
}

// What a device does with an offer: the state it holds then, and the bytes it downloaded.
uint64_t Follow(FederationRig& rig, const v1::AdapterSource& source,
                std::optional<AdapterState>& state) {
  uint64_t bytes = 0;
  if (source.has_seed()) {
    state = AdapterState::FromSeed(rig.plan.lora, rig.plan.base_model, source.seed());
  } else if (source.has_values()) {
    v1::DownloadRequest request;
    request.set_node_id("a");
    request.set_sha256(source.values().sha256());
    const auto content = rig.core->OpenDownload(request);
    FEDGE_CHECK(content.ok(), content.status().message());
    bytes += (*content)->size();
    state = *AdapterState::FromValues(rig.plan.lora, rig.plan.base_model, **content);
  }
  for (const v1::ContentRef& ref : source.deltas()) {
    v1::DownloadRequest request;
    request.set_node_id("a");
    request.set_sha256(ref.sha256());
    const auto content = rig.core->OpenDownload(request);
    FEDGE_CHECK(content.ok(), content.status().message());
    bytes += (*content)->size();
    EXPECT_TRUE(state->Apply(**content).ok());
  }
  EXPECT_EQ(state->version(), source.version());
  EXPECT_EQ(state->crc(), source.values_crc32c());
  EXPECT_EQ(state->adapter().values(), rig.core->served().values());
  return bytes;
}

TEST(FederationCoreTest, DevicesFollowDeltasOverARestart) {
  RunPlan plan = TinyPlan();
  plan.downlink = {};
  plan.downlink.density = 0.2;
  FederationRig rig(plan);
  rig.CheckInAll(4);
  std::optional<AdapterState> state;
  Follow(rig, rig.CheckIn("node-00").assignment().adapter(), state);
  const auto check_in = [&] {
    v1::CheckInRequest request = rig.CheckInRequest("node-00");
    v1::HeldAdapter& held = *request.mutable_held_adapter();
    held.set_run_id(plan.run_id);
    held.set_version(state->version());
    held.set_values_crc32c(state->crc());
    held.set_start_version(state->start_version());
    held.set_start_crc32c(state->start_crc());
    return rig.core->CheckIn(request).value();
  };
  EXPECT_EQ(check_in().assignment().adapter().deltas_size(), 0);
  rig.PlayRound(4, 1, 0);
  EXPECT_EQ(Follow(rig, check_in().assignment().adapter(), state),
            rig.events.versions[0].encoded_bytes);
  rig.PlayRound(4, 2, 1);
  const LoraAdapter served = rig.core->served();
  EXPECT_EQ(rig.events.adapters.back().values(), served.values());
  EXPECT_NE(served.values(), rig.core->adapter().values());
  rig.Start();
  EXPECT_EQ(rig.core->served().values(), served.values());
  rig.CheckInAll(4);
  EXPECT_EQ(Follow(rig, check_in().assignment().adapter(), state),
            rig.events.versions[1].encoded_bytes);
  rig.PlayRound(4, 3, 2);  // it was open
  const v1::CheckInResponse last = check_in();
  ASSERT_TRUE(last.has_finished());
  EXPECT_EQ(Follow(rig, last.finished().adapter(), state), rig.events.versions[2].encoded_bytes);
}

TEST(FederationCoreTest, RefusesDownloadsItDoesNotServe) {
  FederationRig rig;
  v1::DownloadRequest request;
  request.set_node_id("a");
  request.set_sha256("short");
  EXPECT_EQ(rig.core->OpenDownload(request).status().code(), absl::StatusCode::kInvalidArgument);
  request.set_sha256(Sha256Of("nothing").Raw());
  EXPECT_EQ(rig.core->OpenDownload(request).status().code(), absl::StatusCode::kNotFound);
  rig.CheckInAll(4);
  rig.PlayRound(4, 1, 0);
  const VersionRecord version = rig.events.versions[0];
  request.set_sha256(version.master.Raw());  // the server's own
  EXPECT_EQ(rig.core->OpenDownload(request).status().code(), absl::StatusCode::kNotFound);
  request.set_sha256(version.encoded.Raw());
  request.set_offset(version.encoded_bytes);
  EXPECT_TRUE(rig.core->OpenDownload(request).ok());
  request.set_offset(version.encoded_bytes + 1);
  EXPECT_EQ(rig.core->OpenDownload(request).status().code(), absl::StatusCode::kOutOfRange);
}

TEST(FederationCoreTest, ServesOlderVersionsFromTheStore) {
  FederationRig rig;
  rig.CheckInAll(4);
  for (uint64_t round = 1; round <= 3; ++round) rig.PlayRound(4, round, round - 1);
  v1::DownloadRequest request;
  request.set_node_id("a");
  request.set_sha256(rig.events.versions[0].encoded.Raw());
  const auto bytes = rig.core->OpenDownload(request);
  ASSERT_TRUE(bytes.ok()) << bytes.status();
  EXPECT_EQ(Sha256Of(**bytes), rig.events.versions[0].encoded);
}

TEST(FederationCoreTest, ResumesAnUploadAtEveryChunkBoundary) {
  FederationRig rig;
  rig.CheckInAll(4);
  const std::string bytes = MakeUpdate(rig.plan, {.seed = 1});
  constexpr uint64_t kChunk = 32;
  for (uint64_t stop = kChunk; stop + kChunk < bytes.size(); stop += kChunk) {
    FederationCore::Upload upload = rig.core->StartUpload();
    std::vector<v1::UploadRequest> messages = rig.MessagesOf("node-00", 1, bytes, kChunk);
    for (uint64_t at = 0; at < stop; at += kChunk) {
      ASSERT_FALSE((*upload.OnMessage(messages[at / kChunk])).has_value());
    }
    const auto broken = upload.OnEnd();
    EXPECT_EQ(broken->verdict(), v1::UploadReceipt::VERDICT_UNSPECIFIED);
    EXPECT_EQ(broken->committed_bytes(), stop);
  }
  // All streams belonged to one upload: only the last one's progress counts.
  v1::QueryUploadRequest query;
  *query.mutable_id() = rig.IdOf("node-00", 1, bytes);
  const uint64_t committed = rig.core->QueryUpload(query)->committed_bytes();
  EXPECT_GT(committed, bytes.size() - 2 * kChunk - 1);
  FederationCore::Upload rest = rig.core->StartUpload();
  absl::StatusOr<std::optional<v1::UploadReceipt>> receipt;
  for (const auto& message : rig.MessagesOf("node-00", 1, bytes, kChunk, committed)) {
    receipt = rest.OnMessage(message);
    ASSERT_TRUE(receipt.ok()) << receipt.status();
  }
  EXPECT_EQ((*receipt)->verdict(), v1::UploadReceipt::ACCEPTED);
  EXPECT_TRUE(rig.core->QueryUpload(query)->has_receipt());
  EXPECT_EQ(rig.core->QueryUpload(query)->receipt().verdict(), v1::UploadReceipt::ACCEPTED);
}

TEST(FederationCoreTest, ChecksUploads) {
  FederationRig rig;
  rig.CheckInAll(4);
  const std::string bytes = MakeUpdate(rig.plan, {});
  FederationCore::Upload no_id = rig.core->StartUpload();
  v1::UploadRequest message;
  *message.mutable_chunk() = rig.ChunkOf(bytes, 0, 10);
  EXPECT_EQ(no_id.OnMessage(message).status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(rig.core->StartUpload().OnEnd().status().code(), absl::StatusCode::kInvalidArgument);

  *message.mutable_id() = rig.IdOf("node-00", 1, bytes);
  message.mutable_id()->set_run_id("other");
  EXPECT_EQ(rig.core->StartUpload().OnMessage(message).status().code(),
            absl::StatusCode::kFailedPrecondition);
  *message.mutable_id() = rig.IdOf("", 1, bytes);
  EXPECT_EQ(rig.core->StartUpload().OnMessage(message).status().code(),
            absl::StatusCode::kInvalidArgument);
  *message.mutable_id() = rig.IdOf("node-00", 1, bytes);
  message.mutable_id()->set_size_bytes(rig.plan.max_update_bytes + 1);
  EXPECT_EQ(rig.core->StartUpload().OnMessage(message).status().code(),
            absl::StatusCode::kInvalidArgument);
  FederationCore::Upload twice = rig.core->StartUpload();
  *message.mutable_id() = rig.IdOf("node-00", 1, bytes);
  ASSERT_TRUE(twice.OnMessage(message).ok());
  EXPECT_EQ(twice.OnMessage(message).status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(CodeOf(rig.Upload("stranger", 1, bytes)), absl::StatusCode::kOk);
  EXPECT_EQ(rig.Upload("stranger", 1, bytes)->verdict(), v1::UploadReceipt::REJECTED);
}

TEST(FederationCoreTest, RejectedUpdatesDoNotStopTheRound) {
  FederationRig rig;
  rig.CheckInAll(4);
  const auto rejected = rig.Upload("node-00", 1, "this is not an update");
  EXPECT_EQ(rejected->verdict(), v1::UploadReceipt::REJECTED);
  EXPECT_FALSE(rejected->reason().empty());
  for (uint64_t i = 1; i < 4; ++i) rig.UploadUpdate(NodeName(i), {.seed = i});
  EXPECT_EQ(rig.core->version(), 1u);
  EXPECT_EQ(rig.events.versions[0].counts.rejected, 1);
  EXPECT_EQ(rig.events.versions[0].counts.accepted, 3);
}

TEST(FederationCoreTest, AnswersRepetitionsAfterARestart) {
  FederationRig rig;
  rig.CheckInAll(4);
  const std::string mine = MakeUpdate(rig.plan, {.seed = 0});
  EXPECT_EQ(rig.Upload("node-00", 1, mine)->verdict(), v1::UploadReceipt::ACCEPTED);
  const auto bad = rig.Upload("node-01", 1, "bad");
  rig.UploadUpdate("node-02", {.seed = 2});
  rig.UploadUpdate("node-03", {.seed = 3});
  EXPECT_EQ(rig.core->version(), 1u);
  const LoraAdapter before = rig.core->adapter();
  rig.Start();
  EXPECT_EQ(rig.core->version(), 1u);
  EXPECT_EQ(rig.core->adapter().values(), before.values());
  EXPECT_EQ(rig.Upload("node-00", 1, mine)->verdict(), v1::UploadReceipt::ACCEPTED);
  EXPECT_EQ(rig.Upload("node-01", 1, "bad")->verdict(), v1::UploadReceipt::REJECTED);
  EXPECT_EQ(rig.Upload("node-01", 1, "bad")->reason(), bad->reason());
  EXPECT_EQ(rig.Upload("node-00", 1, "other")->verdict(), v1::UploadReceipt::REJECTED);
  EXPECT_EQ(rig.Upload("node-77", 1, mine)->verdict(), v1::UploadReceipt::LATE);
}

void ExpectTheSameAfterARestart(const RunPlan& plan) {
  FederationRig rig(plan);
  FederationRig straight(plan);
  for (FederationRig* const each : {&rig, &straight}) {
    each->CheckInAll(4);
    each->PlayRound(4, 1, 0);
  }
  rig.UploadUpdate("node-00", {.round = 2, .base_version = 1, .seed = 200});
  rig.Start();
  EXPECT_EQ(rig.core->round(), 2u);
  straight.UploadUpdate("node-00", {.round = 2, .base_version = 1, .seed = 200});
  for (uint64_t i = 1; i < 4; ++i) {
    const UpdateSpec update{.round = 2, .base_version = 1, .seed = 200 + i};
    rig.UploadUpdate(NodeName(i), update);
    straight.UploadUpdate(NodeName(i), update);
  }
  EXPECT_EQ(rig.core->version(), 2u);
  EXPECT_EQ(rig.core->adapter().values(), straight.core->adapter().values());
}

TEST(FederationCoreTest, ContinuesItsRoundAfterARestart) {
  RunPlan plan = TinyPlan();
  plan.outer = {.kind = OuterOptimizerKind::kNesterov, .beta1 = 0.5};
  ExpectTheSameAfterARestart(plan);
}

TEST(FederationCoreTest, ContinuesEveryAggregationModeAfterARestart) {
  for (const AggregationMode mode : {AggregationMode::kRoLora, AggregationMode::kFlexLora,
                                     AggregationMode::kFedEx, AggregationMode::kFlora}) {
    SCOPED_TRACE(AggregationModeName(mode));
    RunPlan plan = TinyPlan();
    plan.aggregation = mode;
    if (mode == AggregationMode::kFedEx || mode == AggregationMode::kFlora) plan.trained_rank = 1;
    if (!RotatesFrame(mode)) {
      plan.outer = {.kind = OuterOptimizerKind::kAdam, .learning_rate = 0.01, .beta1 = 0.9};
    }
    ExpectTheSameAfterARestart(plan);
  }
}

TEST(FederationCoreTest, AnotherOptimizerStartsAfreshAfterARestart) {
  RunPlan plan = TinyPlan();
  plan.outer = {.kind = OuterOptimizerKind::kNesterov, .beta1 = 0.5};
  FederationRig rig(plan);
  rig.CheckInAll(4);
  rig.PlayRound(4, 1, 0);
  rig.plan.outer = {.kind = OuterOptimizerKind::kAdam, .learning_rate = 0.01, .beta1 = 0.9};
  rig.Start();
  rig.CheckInAll(4);
  for (uint64_t i = 0; i < 4; ++i) {
    rig.UploadUpdate(NodeName(i), {.round = 2, .base_version = 1, .seed = 200 + i});
  }
  EXPECT_EQ(rig.core->version(), 2u);
}

TEST(FederationCoreTest, PublishesTheSameBytesForAnyOrderAndTiming) {
  std::vector<Digest> digests;
  for (uint64_t trial = 0; trial < 4; ++trial) {
    FederationRig rig;
    std::vector<uint64_t> order = {0, 1, 2, 3};
    Rng(trial).Shuffle(absl::MakeSpan(order));
    for (const uint64_t i : order) rig.CheckIn(NodeName(i));
    for (uint64_t round = 1; round <= 3; ++round) {
      Rng(trial + round).Shuffle(absl::MakeSpan(order));
      for (const uint64_t i : order) {
        rig.clock.Advance(absl::Milliseconds(static_cast<int64_t>(trial * 7 + i)));
        const v1::TaskMetrics metrics = Metrics(1.0 / static_cast<double>(3 + i));
        const std::string bytes = MakeUpdate(rig.plan, {.round = round,
                                                        .base_version = round - 1,
                                                        .num_examples = 1 + i,
                                                        .seed = 10 * round + i});
        ASSERT_TRUE(rig.Upload(NodeName(i), round, bytes, 100, &metrics).ok());
      }
    }
    ASSERT_EQ(rig.events.versions.size(), 3u);
    const VersionRecord& last = rig.events.versions.back();
    digests.push_back(last.encoded);
    EXPECT_EQ(last.encoded, digests[0]);
    EXPECT_EQ(last.metrics.devices, 4u);
    EXPECT_EQ(last.metrics.train_loss_last, rig.events.versions[0].metrics.train_loss_last);
  }
}

TEST(FederationCoreTest, AveragesTheMetricsOfContributors) {
  FederationRig rig;
  rig.CheckInAll(4);
  const v1::TaskMetrics one = Metrics(1);
  const v1::TaskMetrics four = Metrics(4);
  rig.Upload("node-00", 1, MakeUpdate(rig.plan, {.num_examples = 3, .seed = 0}), 64, &one)
      .status()
      .IgnoreError();
  rig.Upload("node-01", 1, MakeUpdate(rig.plan, {.num_examples = 1, .seed = 1}), 64, &four)
      .status()
      .IgnoreError();
  v1::ReportRequest report;  // before the upload
  report.set_run_id("default");
  report.set_round(1);
  report.set_node_id("node-02");
  report.set_completed(true);
  *report.mutable_metrics() = Metrics(std::numeric_limits<double>::quiet_NaN());
  EXPECT_TRUE(rig.core->Report(report).ok());  // not plausible: as if not sent
  rig.UploadUpdate("node-02", {.seed = 2});
  rig.UploadUpdate("node-03", {.seed = 3});
  const RoundMetrics& metrics = rig.events.versions[0].metrics;
  EXPECT_EQ(metrics.devices, 2u);
  EXPECT_DOUBLE_EQ(metrics.train_loss_last, 1.75);
  EXPECT_DOUBLE_EQ(metrics.train_loss_first, 2.75);
  EXPECT_DOUBLE_EQ(metrics.validation_loss, 5.0);
  EXPECT_EQ(metrics.upload_bytes, 200u);
  EXPECT_EQ(metrics.download_bytes, 400u);
  EXPECT_EQ(metrics.train_tokens, 1024u);
}

TEST(FederationCoreTest, FailureReportsFreeTheRound) {
  FederationRig rig;
  rig.CheckInAll(4);
  for (uint64_t i = 0; i < 3; ++i) rig.UploadUpdate(NodeName(i), {.seed = i});
  v1::ReportRequest report;
  report.set_run_id("default");
  report.set_round(1);
  report.set_node_id("node-03");
  report.set_error("out of\nmemory");
  EXPECT_TRUE(rig.core->Report(report).ok());
  EXPECT_EQ(rig.core->version(), 1u);
  EXPECT_THAT(rig.events.lines, ::testing::Contains("failed 1 node-03: out of memory"));
  report.set_run_id("other");
  EXPECT_EQ(rig.core->Report(report).code(), absl::StatusCode::kFailedPrecondition);
}

TEST(FederationCoreTest, ClosesRoundsByTheClock) {
  FederationRig rig;
  rig.CheckInAll(4);
  rig.UploadUpdate("node-00", {.seed = 0});
  rig.UploadUpdate("node-01", {.seed = 1});
  rig.clock.Advance(absl::Seconds(59));
  rig.core->Tick();
  EXPECT_EQ(rig.core->version(), 0u);
  rig.clock.Advance(absl::Seconds(1));
  rig.core->Tick();
  EXPECT_EQ(rig.core->version(), 1u);
  rig.clock.Advance(absl::Seconds(60));
  rig.core->Tick();
  EXPECT_EQ(rig.events.lines.back(), "abandon 2");
  EXPECT_EQ(rig.UploadUpdate("node-02", {.round = 1, .seed = 2}), v1::UploadReceipt::LATE);
  EXPECT_EQ(rig.events.lines.back(), "update 1 node-02 late");
}

TEST(FederationCoreTest, TellsNobodyWhatItCouldNotStore) {
  FederationRig rig;
  rig.CheckInAll(4);
  for (uint64_t i = 0; i < 3; ++i) rig.UploadUpdate(NodeName(i), {.seed = i});
  const std::string last = MakeUpdate(rig.plan, {.seed = 3});
  rig.env.FailFrom(1, absl::StatusCode::kInternal, FaultEnv::Span::kForEver);
  EXPECT_EQ(CodeOf(rig.Upload("node-03", 1, last)), absl::StatusCode::kUnavailable);
  EXPECT_EQ(rig.core->health().code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(rig.events.lines.back(), HasSubstr("broken: the server cannot store its state: "));
  EXPECT_EQ(rig.core->CheckIn(rig.CheckInRequest("node-00")).status().code(),
            absl::StatusCode::kUnavailable);
  EXPECT_EQ(rig.core->version(), 0u);
  rig.env.Heal();
  rig.Start();
  EXPECT_EQ(rig.core->version(), 0u);
  EXPECT_EQ(rig.Upload("node-03", 1, last)->verdict(), v1::UploadReceipt::ACCEPTED);
  EXPECT_EQ(rig.core->version(), 1u);
}

TEST(FederationCoreTest, RefusesToContinueWithAnotherBaseModel) {
  FederationRig rig;
  rig.plan.base_model = Sha256Of("another");
  EXPECT_EQ(rig.TryStart().code(), absl::StatusCode::kFailedPrecondition);
}

TEST(FederationCoreTest, BoundsWhatDevicesSayAboutThemselves) {
  FederationRig rig;
  v1::CheckInRequest request = rig.CheckInRequest("a");
  request.mutable_device()->set_client_version(std::string(5000, 'x'));
  EXPECT_EQ(rig.core->CheckIn(request).status().code(), absl::StatusCode::kInvalidArgument);
  request = rig.CheckInRequest("a\nb");
  EXPECT_EQ(rig.core->CheckIn(request).status().code(), absl::StatusCode::kInvalidArgument);
  request = rig.CheckInRequest("a");
  request.set_base_model_sha256("short");
  EXPECT_EQ(rig.core->CheckIn(request).status().code(), absl::StatusCode::kInvalidArgument);
}

TEST(FederationCoreTest, SurvivesManyThreadsAtOnce) {
  RunPlan plan = TinyPlan();
  plan.nodes_per_round = plan.min_nodes = 8;
  plan.rounds = 4;
  FederationRig rig(plan);
  std::vector<std::thread> devices;
  for (uint64_t i = 0; i < 8; ++i) {
    devices.emplace_back([&rig, i] {
      while (true) {
        const v1::CheckInResponse response = rig.CheckIn(NodeName(i));
        if (response.has_finished()) return;
        if (!response.has_assignment()) {
          std::this_thread::yield();
          continue;
        }
        const uint64_t round = response.assignment().round();
        rig.Upload(NodeName(i), round,
                   MakeUpdate(rig.plan, {.round = round,
                                         .base_version = response.assignment().adapter_version(),
                                         .seed = round * 100 + i}),
                   100)
            .status()
            .IgnoreError();
      }
    });
  }
  for (std::thread& device : devices) device.join();
  EXPECT_EQ(rig.core->version(), 4u);
  for (const VersionRecord& version : rig.events.versions) {
    EXPECT_EQ(version.counts.accepted, 8);
  }
  FederationRig calm(plan);
  calm.CheckInAll(8);
  for (uint64_t round = 1; round <= 4; ++round) calm.PlayRound(8, round, round - 1);
  EXPECT_EQ(calm.events.versions.back().encoded, rig.events.versions.back().encoded);
}

}  // namespace
}  // namespace fedge
