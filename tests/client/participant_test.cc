#include "client/participant.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <memory>

#include "common/base/digest.h"
#include "common/base/logging.h"
#include "common/codec/adapter_delta.h"
#include "common/codec/update_codec.h"
#include "common/training/evaluation.h"
#include "tests/client/fake_server.h"
#include "tests/testing/tiny_model.h"

namespace fedge {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

class MemoryStore : public StateStore {
 public:
  absl::StatusOr<std::string> Read(absl::string_view node_id) override {
    const auto found = bytes.find(std::string(node_id));
    if (found == bytes.end()) return absl::NotFoundError("nothing kept");
    return found->second;
  }
  absl::Status Write(absl::string_view node_id, std::string value) override {
    RETURN_IF_ERROR(write_error);
    bytes[std::string(node_id)] = std::move(value);
    return absl::OkStatus();
  }
  std::map<std::string, std::string> bytes;
  absl::Status write_error;
};

std::vector<Record> MakeRecords(int count, const std::string& node) {
  std::vector<Record> records;
  for (int i = 0; i < count; ++i) {
    Record record;
    record.node = node;
    record.id = absl::StrCat(node, "-", i);
    record.spans.push_back({absl::StrCat("the secret of record ", i, " is ", i * 7919), true});
    records.push_back(std::move(record));
  }
  return records;
}

class ParticipantTest : public ::testing::Test {
 protected:
  ParticipantTest() : pool_(1) {
    SetLogLevel(LogLevel::kOff);
    const std::string path = testing::WriteTinyModel(::testing::TempDir() + "participant_test", {});
    base_ = BaseModel::Load(path, *Env::Posix()).value();
    transformer_ = std::make_unique<Transformer>(base_, &pool_);
    LoraTargets targets;
    targets.rank = 2;
    targets.alpha = 4;
    spec_ = base_->MakeLoraSpec(targets).value();
    global_ = LoraAdapter(spec_);
    global_.InitializeForTraining(3);
    OfferTask(1, 0);
  }

  std::string EncodeGlobal(uint64_t version) {
    AdapterHeader header;
    header.encoding = AdapterEncoding::kFp16;
    header.to_version = version;
    header.base_model = base_->sha256();
    return EncodeAdapterValues(spec_, header, global_.values()).value();
  }

  v1::AdapterSource SourceOfGlobal(uint64_t version) {
    const std::string content = EncodeGlobal(version);
    v1::AdapterSource source;
    source.set_run_id("run");
    source.set_version(version);
    source.set_values_crc32c(ReadAdapterHeader(content)->values_crc);
    *source.mutable_values() = server_.Offer(content);
    return source;
  }

  v1::Assignment& OfferTask(uint64_t round, uint64_t version) {
    v1::Assignment& task = *server_.answer.mutable_assignment();
    task.Clear();
    task.set_run_id("run");
    task.set_round(round);
    task.set_base_model_sha256(base_->sha256().Raw());
    task.mutable_lora()->set_architecture(spec_.architecture());
    task.mutable_lora()->set_alpha(spec_.alpha());
    for (const LoraModule& module : spec_.modules()) {
      v1::LoraModuleSpec& to = *task.mutable_lora()->add_modules();
      to.set_tensor(module.tensor);
      to.set_in_features(static_cast<uint32_t>(module.in_features));
      to.set_out_features(static_cast<uint32_t>(module.out_features));
      to.set_rank(static_cast<uint32_t>(module.rank));
    }
    task.set_adapter_version(version);
    *task.mutable_adapter() = SourceOfGlobal(version);
    task.mutable_training()->set_steps(3);
    task.mutable_training()->set_batch_size(2);
    task.mutable_training()->set_length(32);
    task.mutable_training()->set_learning_rate(0.01f);
    task.mutable_training()->set_clip_norm(1);
    task.mutable_training()->set_completion_weight(1);
    task.mutable_training()->set_validation_fraction(0.25);
    task.mutable_training()->set_split_seed(11);
    task.mutable_codec()->set_support(v1::CodecPlan::TOP_K);
    task.mutable_codec()->set_density(0.1);
    task.mutable_codec()->set_value_bits(4);
    task.mutable_codec()->set_error_feedback(true);
    task.set_deadline_ms(600'000);
    task.set_seed(5);
    return task;
  }

  Participant MakeParticipant(int records = 40) {
    ParticipantOptions options;
    options.node_id = "alpha";
    options.checkpoint_interval = absl::ZeroDuration();
    ParticipantParts parts = parts_;
    parts.base = base_;
    parts.records = MakeRecords(records, "alpha");
    parts.link = &server_;
    parts.state = &store_;
    parts.adapters = &adapters_;
    parts.outbox = &outbox_;
    parts.checkpoints = &checkpoints_;
    parts.clock = &clock_;
    return Participant(std::move(options), std::move(parts));
  }

  StepOutcome Step(Participant& participant) {
    const auto outcome = participant.RunOnce(*transformer_);
    EXPECT_TRUE(outcome.ok()) << outcome.status();
    return outcome.value_or(StepOutcome());
  }

  // A process that is stopped after the first step of its task.
  void Interrupt() {
    bool stop = false;
    parts_.stopping = [&stop] { return stop; };
    parts_.on_step = [&stop](const TrainProgress&) { stop = true; };
    Participant participant = MakeParticipant();
    EXPECT_TRUE(absl::IsCancelled(participant.RunOnce(*transformer_).status()));
    EXPECT_NE(checkpoints_.bytes["alpha"], "");
    parts_ = ParticipantParts();
  }

  double HeldOutLossOfTheSentAdapter() {
    LoraAdapter sent(spec_);
    EXPECT_TRUE(DecodeAdapterValues(spec_, base_->sha256(), EncodeGlobal(0), sent.values()).ok());
    const LocalExamples local =
        MakeLocalExamples(MakeRecords(40, "alpha"), base_->tokenizer(), 32, 11, 0.25);
    return EvaluateLoss(*transformer_, &sent, local.validation).mean();
  }

  std::string StoredResidual() {
    const auto state = ParticipantState::Parse(store_.bytes["alpha"]);
    return state.ok() ? state->error_feedback : state.status().ToString();
  }

  ThreadPool pool_;
  std::shared_ptr<const BaseModel> base_;
  std::unique_ptr<Transformer> transformer_;
  LoraSpec spec_;
  LoraAdapter global_;
  testing::FakeServer server_;
  MemoryStore store_;
  MemoryStore adapters_;
  MemoryStore outbox_;
  MemoryStore checkpoints_;
  ParticipantParts parts_;  // what a test wants besides
  ManualClock clock_;
};

TEST_F(ParticipantTest, SendsTheSliceOfTheTask) {
  v1::Assignment& task = OfferTask(1, 0);
  task.mutable_slice()->set_factors(v1::AdapterSliceProto::B);
  task.mutable_slice()->set_end_component(1);
  task.mutable_codec()->set_support(v1::CodecPlan::DENSE);
  task.mutable_codec()->set_value_bits(16);
  Participant participant = MakeParticipant();
  ASSERT_EQ(Step(participant).kind, StepKind::kAccepted);
  const SliceLayout layout = SliceLayout::Create(spec_, {SliceFactors::kB, 0, 1}).value();
  const auto sent = DecodeUpdate(server_.received_whole, spec_.layout_hash(), layout);
  ASSERT_TRUE(sent.ok()) << sent.status();
  EXPECT_EQ(static_cast<int64_t>(sent->values.size()), layout.size());
  EXPECT_NE(sent->values, std::vector<float>(sent->values.size()));
}

TEST_F(ParticipantTest, RefusesASliceThatTheAdapterHasNot) {
  OfferTask(1, 0).mutable_slice()->set_first_component(2);
  server_.answer.mutable_assignment()->mutable_slice()->set_end_component(4);
  Participant participant = MakeParticipant();
  const StepOutcome outcome = Step(participant);
  EXPECT_EQ(outcome.kind, StepKind::kFailed);
  EXPECT_THAT(outcome.detail, HasSubstr("no module of the adapter has A and B, components 2-3"));
}

TEST_F(ParticipantTest, SendsWhatTrainingChanged) {
  Participant participant = MakeParticipant();
  const StepOutcome outcome = Step(participant);
  EXPECT_EQ(outcome.kind, StepKind::kAccepted) << outcome.detail;
  EXPECT_EQ(server_.check_ins[0].base_model_sha256(), base_->sha256().Raw());
  const auto update =
      DecodeUpdate(server_.received_whole, spec_.layout_hash(), SliceLayout::Whole(spec_));
  ASSERT_TRUE(update.ok()) << update.status();
  EXPECT_EQ(update->header.round, 1u);
  EXPECT_EQ(update->header.base_version, 0u);
  EXPECT_EQ(update->header.base_model, base_->sha256());
  EXPECT_GT(update->header.num_nonzero, 0u);
  EXPECT_EQ(update->header.num_examples, server_.metrics.num_examples());
  EXPECT_GT(server_.metrics.num_examples(), 20u);
  EXPECT_LT(server_.metrics.num_examples(), 40u);  // the rest is held out
  EXPECT_GT(server_.metrics.validation_tokens(), 0u);
  EXPECT_EQ(server_.metrics.validation_loss_before(), HeldOutLossOfTheSentAdapter());
  EXPECT_EQ(server_.metrics.upload_bytes(), server_.received_whole.size());
  EXPECT_GT(server_.metrics.download_bytes(), 0u);
  EXPECT_TRUE(server_.reports.empty());
}

TEST_F(ParticipantTest, TheSameTaskGivesTheSameBytes) {
  Participant one = MakeParticipant();
  Step(one);
  const std::string first = server_.received_whole;
  store_.bytes.clear();
  server_ = testing::FakeServer();
  OfferTask(1, 0);
  Participant two = MakeParticipant();
  Step(two);
  EXPECT_EQ(Sha256Of(first), Sha256Of(server_.received_whole));
}

TEST_F(ParticipantTest, HeldOutRecordsAreNeverTrainedOn) {
  const std::vector<Record> records = MakeRecords(40, "alpha");
  const LocalExamples local = MakeLocalExamples(records, base_->tokenizer(), 32, 11, 0.25);
  size_t validation = 0;
  for (const Record& record : records) validation += IsValidation(record, 11, 0.25) ? 1 : 0;
  EXPECT_GT(validation, 0u);
  for (const Example& held : local.validation) {
    for (const Example& trained : local.train) EXPECT_NE(held.tokens, trained.tokens);
  }
}

TEST_F(ParticipantTest, AcceptedMakesTheNewResidualCurrent) {
  Participant participant = MakeParticipant();
  Step(participant);
  const std::string first = StoredResidual();
  EXPECT_FALSE(first.empty());
  OfferTask(2, 1);
  Step(participant);
  EXPECT_NE(Sha256Of(StoredResidual()), Sha256Of(first));
}

TEST_F(ParticipantTest, RejectedAndLateKeepTheResidualOfBefore) {
  Participant participant = MakeParticipant();
  Step(participant);
  const std::string before = StoredResidual();
  for (const auto verdict : {v1::UploadReceipt::REJECTED, v1::UploadReceipt::LATE}) {
    server_.verdict = verdict;
    server_.reason = "norm out\nof bounds";
    OfferTask(static_cast<uint64_t>(verdict), 1);
    const StepOutcome outcome = Step(participant);
    EXPECT_EQ(outcome.kind,
              verdict == v1::UploadReceipt::REJECTED ? StepKind::kRejected : StepKind::kLate);
    EXPECT_EQ(outcome.detail, "norm out of bounds");
    EXPECT_EQ(Sha256Of(StoredResidual()), Sha256Of(before));
  }
}

TEST_F(ParticipantTest, AnotherRunStartsWithoutResidual) {
  Participant participant = MakeParticipant();
  Step(participant);
  OfferTask(1, 0).set_run_id("another");
  Step(participant);
  const std::string with_history = server_.received_whole;
  server_ = testing::FakeServer();
  store_.bytes.clear();
  OfferTask(1, 0).set_run_id("another");
  Participant fresh = MakeParticipant();
  Step(fresh);
  EXPECT_EQ(Sha256Of(with_history), Sha256Of(server_.received_whole));
}

// Runs the task as if the process ended after each of its steps.
TEST_F(ParticipantTest, AnInterruptedTrainingSendsTheSameBytes) {
  Participant straight = MakeParticipant();
  Step(straight);
  const std::string expected = server_.received_whole;
  store_.bytes.clear();
  adapters_.bytes.clear();
  server_ = testing::FakeServer();
  OfferTask(1, 0);
  bool stop = false;
  int steps = 0;
  parts_.stopping = [&] { return stop; };
  parts_.on_step = [&](const TrainProgress&) { stop = ++steps < 3; };
  for (int lives = 1;; ++lives) {
    stop = false;
    Participant participant = MakeParticipant();
    const auto outcome = participant.RunOnce(*transformer_);
    if (outcome.ok()) break;
    ASSERT_TRUE(absl::IsCancelled(outcome.status())) << outcome.status();
    ASSERT_LT(lives, 5);
  }
  EXPECT_EQ(steps, 3);  // none was done twice
  EXPECT_EQ(server_.check_ins.size(), 3u);
  EXPECT_EQ(Sha256Of(server_.received_whole), Sha256Of(expected));
  EXPECT_EQ(checkpoints_.bytes["alpha"], "");
  EXPECT_EQ(outbox_.bytes["alpha"], "");
}

TEST_F(ParticipantTest, AnInterruptedTrainingGoesOnWithoutAServer) {
  Interrupt();
  server_.check_in_errors.assign(4, absl::UnavailableError("away"));
  server_.upload_error = absl::UnavailableError("away");
  Participant second = MakeParticipant();
  EXPECT_TRUE(absl::IsUnavailable(second.RunOnce(*transformer_).status()));
  EXPECT_NE(outbox_.bytes["alpha"], "");  // finished, and kept
  server_.upload_error = absl::OkStatus();
  Participant third = MakeParticipant();
  EXPECT_EQ(Step(third).kind, StepKind::kAccepted);
  EXPECT_EQ(server_.times_counted, 1);
  EXPECT_EQ(outbox_.bytes["alpha"], "");
}

TEST_F(ParticipantTest, ACheckpointOfAnotherTaskIsNotUsed) {
  Interrupt();
  int steps = 0;
  parts_.on_step = [&](const TrainProgress&) { ++steps; };
  OfferTask(2, 0).set_seed(6);
  Participant second = MakeParticipant();
  EXPECT_EQ(Step(second).kind, StepKind::kAccepted);
  EXPECT_EQ(steps, 3);
}

TEST_F(ParticipantTest, ADamagedCheckpointAndOutboxAreNamedAndDropped) {
  Interrupt();
  checkpoints_.bytes["alpha"][9] ^= 1;
  outbox_.bytes["alpha"] = "no entry";
  Participant second = MakeParticipant();
  const StepOutcome outcome = Step(second);
  EXPECT_EQ(outcome.kind, StepKind::kAccepted);
  ASSERT_EQ(outcome.warnings.size(), 2u);
  EXPECT_THAT(outcome.warnings[0], HasSubstr("finished update that was kept: damaged"));
  EXPECT_THAT(outcome.warnings[1], HasSubstr("begins again from its first step"));
}

TEST_F(ParticipantTest, AFinishedUpdateSurvivesTheProcessAndCountsOnce) {
  Participant straight = MakeParticipant();
  Step(straight);
  const std::string expected_state = store_.bytes["alpha"];
  store_.bytes.clear();
  server_ = testing::FakeServer();
  OfferTask(1, 0);
  server_.upload_error = absl::UnavailableError("away");
  {
    Participant participant = MakeParticipant();
    EXPECT_TRUE(absl::IsUnavailable(participant.RunOnce(*transformer_).status()));
  }
  server_.upload_error = absl::OkStatus();
  const size_t check_ins = server_.check_ins.size();
  Participant next = MakeParticipant();
  const StepOutcome outcome = Step(next);
  EXPECT_EQ(outcome.kind, StepKind::kAccepted);
  EXPECT_EQ(outcome.round, 1u);
  EXPECT_EQ(server_.check_ins.size(), check_ins);  // it came before any new work
  EXPECT_EQ(server_.times_counted, 1);
  EXPECT_EQ(ParticipantState::Parse(store_.bytes["alpha"])->error_feedback,
            ParticipantState::Parse(expected_state)->error_feedback);
}

TEST_F(ParticipantTest, AFinishedUpdateIsKeptOnceThereIsRoom) {
  server_.upload_error = absl::UnavailableError("away");
  outbox_.write_error = absl::ResourceExhaustedError("disk full");
  Participant participant = MakeParticipant();
  const absl::Status status = participant.RunOnce(*transformer_).status();
  EXPECT_TRUE(absl::IsUnavailable(status));
  EXPECT_THAT(std::string(status.message()), HasSubstr("in memory only until it is sent: disk"));
  EXPECT_NE(checkpoints_.bytes["alpha"], "");  // what a kill would leave
  outbox_.write_error = absl::OkStatus();
  EXPECT_TRUE(absl::IsUnavailable(participant.RunOnce(*transformer_).status()));
  EXPECT_NE(outbox_.bytes["alpha"], "");
  EXPECT_EQ(checkpoints_.bytes["alpha"], "");
  server_.upload_error = absl::OkStatus();
  EXPECT_EQ(Step(participant).kind, StepKind::kAccepted);
}

TEST_F(ParticipantTest, NoCheckpointOutlivesItsReceipt) {
  outbox_.write_error = absl::ResourceExhaustedError("disk full");
  Participant participant = MakeParticipant();
  EXPECT_EQ(Step(participant).kind, StepKind::kAccepted);
  EXPECT_EQ(checkpoints_.bytes["alpha"], "");
}

TEST_F(ParticipantTest, WhatCouldNotBeRemovedGoesAtTheEndOfTheRun) {
  parts_.on_trained = [this](const LoraAdapter&, const LoraAdapter&, const LocalLosses&) {
    checkpoints_.write_error = absl::InternalError("disk");
  };
  Participant participant = MakeParticipant();
  EXPECT_EQ(Step(participant).kind, StepKind::kAccepted);
  EXPECT_NE(checkpoints_.bytes["alpha"], "");
  EXPECT_NE(outbox_.bytes["alpha"], "");  // a restart sends it again, and then removes both
  checkpoints_.write_error = absl::OkStatus();
  server_.answer.mutable_finished();
  EXPECT_EQ(Step(participant).kind, StepKind::kFinished);
  EXPECT_EQ(checkpoints_.bytes["alpha"], "");
  EXPECT_EQ(outbox_.bytes["alpha"], "");
}

TEST_F(ParticipantTest, AnUpdateWaitsWhileItsCertificateIsRefused) {
  server_.upload_error = absl::UnauthenticatedError("certificate expired");
  Participant participant = MakeParticipant();
  EXPECT_TRUE(absl::IsUnauthenticated(participant.RunOnce(*transformer_).status()));
  EXPECT_NE(outbox_.bytes["alpha"], "");
  server_.upload_error = absl::OkStatus();
  EXPECT_EQ(Step(participant).kind, StepKind::kAccepted);
}

TEST_F(ParticipantTest, AnUpdateWaitsForALinkThatItMayUse) {
  bool metered = true;
  parts_.hold_transfers = [&] { return metered; };
  Participant participant = MakeParticipant();
  EXPECT_EQ(Step(participant).kind, StepKind::kWaiting);
  EXPECT_EQ(server_.times_counted, 0);
  metered = false;
  EXPECT_EQ(Step(participant).kind, StepKind::kAccepted);
}

TEST_F(ParticipantTest, ATaskIsPlannedToFitTheMemory) {
  ParticipantOptions options;
  options.node_id = "alpha";
  ParticipantParts parts;
  parts.base = base_;
  parts.records = MakeRecords(40, "alpha");
  parts.link = &server_;
  parts.state = &store_;
  parts.clock = &clock_;
  options.memory_limit_bytes = 1000;
  Participant participant(options, std::move(parts));
  const StepOutcome outcome = Step(participant);
  EXPECT_EQ(outcome.kind, StepKind::kFailed);
  EXPECT_THAT(outcome.detail, HasSubstr("a memory limit of 0 MB is too little"));
}

TEST_F(ParticipantTest, ALostReceiptCountsOnce) {
  server_.lose_receipts = 1;
  Participant participant = MakeParticipant();
  EXPECT_EQ(Step(participant).kind, StepKind::kAccepted);
  EXPECT_EQ(server_.times_counted, 1);
}

TEST_F(ParticipantTest, AFinishedUpdateOutlivesALostServer) {
  Participant participant = MakeParticipant();
  server_.upload_error = absl::UnavailableError("no server");
  EXPECT_EQ(participant.RunOnce(*transformer_).status().code(), absl::StatusCode::kUnavailable);
  server_.upload_error = absl::OkStatus();
  const size_t check_ins = server_.check_ins.size();
  EXPECT_EQ(Step(participant).kind, StepKind::kAccepted);
  EXPECT_EQ(server_.check_ins.size(), check_ins);  // the update went first, nothing was trained
  EXPECT_EQ(server_.times_counted, 1);
}

TEST_F(ParticipantTest, AnotherBaseModelIsReportedNotTrained) {
  server_.answer.mutable_assignment()->set_base_model_sha256(std::string(32, '\1'));
  Participant participant = MakeParticipant();
  const StepOutcome outcome = Step(participant);
  EXPECT_EQ(outcome.kind, StepKind::kFailed);
  EXPECT_THAT(outcome.detail, HasSubstr("--model"));
  EXPECT_THAT(outcome.detail, HasSubstr(base_->sha256().Hex()));
  ASSERT_EQ(server_.reports.size(), 1u);
  EXPECT_FALSE(server_.reports[0].completed());
  EXPECT_TRUE(server_.upload_offsets.empty());
}

TEST_F(ParticipantTest, ARefusedCheckInIsAnError) {
  server_.check_in_errors = {absl::FailedPreconditionError("base model differs")};
  Participant participant = MakeParticipant();
  EXPECT_EQ(participant.RunOnce(*transformer_).status().code(),
            absl::StatusCode::kFailedPrecondition);
}

TEST_F(ParticipantTest, ALossThatIsNotFiniteFailsTheTaskOnly) {
  // Finite in fp16, not in the product of many.
  for (float& value : global_.values()) value = 65000;
  OfferTask(1, 0);
  Participant participant = MakeParticipant();
  const StepOutcome outcome = Step(participant);
  EXPECT_EQ(outcome.kind, StepKind::kFailed) << outcome.detail;
  ASSERT_EQ(server_.reports.size(), 1u);
  EXPECT_THAT(server_.reports[0].error(), Not(HasSubstr("secret")));
  EXPECT_THAT(server_.reports[0].error(), Not(HasSubstr("\n")));
  for (float& value : global_.values()) value = 0.01f;
  OfferTask(2, 1);
  EXPECT_EQ(Step(participant).kind, StepKind::kAccepted);
}

TEST_F(ParticipantTest, NoUsableDataFailsTheTaskWithARemedy) {
  Participant participant = MakeParticipant(0);
  const StepOutcome outcome = Step(participant);
  EXPECT_EQ(outcome.kind, StepKind::kFailed);
  EXPECT_THAT(outcome.detail, HasSubstr("--data"));
  EXPECT_GT(outcome.pause, absl::Seconds(1));
  EXPECT_EQ(server_.reports.size(), 1u);
}

TEST_F(ParticipantTest, RefusesPlansBeyondItsLimits) {
  const auto refused = [&](const v1::Assignment& task) {
    return ParseTask(task, "alpha", *base_).status();
  };
  v1::Assignment task = server_.answer.assignment();
  EXPECT_TRUE(refused(task).ok());
  task.mutable_training()->set_length(100'000);
  EXPECT_EQ(refused(task).message(),
            "assignment: length 100000 is not within [2, 128], the base model's context; are "
            "server and client of the same version?");
  task = server_.answer.assignment();
  task.mutable_training()->set_learning_rate(std::nanf(""));
  EXPECT_EQ(refused(task).code(), absl::StatusCode::kInvalidArgument);
  task = server_.answer.assignment();
  task.mutable_training()->set_batch_size(1u << 31);
  EXPECT_EQ(refused(task).code(), absl::StatusCode::kInvalidArgument);
  task = server_.answer.assignment();
  task.mutable_codec()->set_support(v1::CodecPlan::SUPPORT_UNSPECIFIED);
  EXPECT_EQ(refused(task).code(), absl::StatusCode::kUnimplemented);
  task = server_.answer.assignment();
  task.mutable_lora()->mutable_modules(0)->set_in_features(77);
  EXPECT_EQ(refused(task).code(), absl::StatusCode::kFailedPrecondition);
  task = server_.answer.assignment();
  task.mutable_lora()->mutable_modules(0)->set_first_row(3);
  EXPECT_EQ(refused(task).code(), absl::StatusCode::kInvalidArgument);
  task = server_.answer.assignment();
  task.mutable_training()->set_lora_dropout(1);
  EXPECT_EQ(refused(task).message(),
            "assignment: lora_dropout 1 is not within [0, 0.99]; are server and client of the same "
            "version?");
  task.mutable_training()->set_lora_dropout(0.25f);
  EXPECT_EQ(ParseTask(task, "alpha", *base_)->training.lora_dropout, 0.25f);
}

TEST_F(ParticipantTest, ReadsModulesOnPartsOfATensor) {
  v1::LoraSpecProto proto;
  proto.set_architecture("phi3");
  proto.set_alpha(4);
  v1::LoraModuleSpec& module = *proto.add_modules();
  module.set_tensor("blk.0.attn_qkv.weight");
  module.set_in_features(32);
  module.set_out_features(16);
  module.set_rank(2);
  module.set_first_row(48);
  module.set_tensor_rows(64);
  const auto spec = LoraSpecFromProto(proto);
  ASSERT_TRUE(spec.ok()) << spec.status();
  EXPECT_EQ(spec->FindPart("blk.0.attn_qkv.weight", 48), 0);
  EXPECT_EQ(spec->modules()[0].tensor_rows, 64);
}

TEST_F(ParticipantTest, AnAdapterOfAnotherVersionIsRefused) {
  server_.answer.mutable_assignment()->set_adapter_version(9);
  Participant participant = MakeParticipant();
  const StepOutcome outcome = Step(participant);
  EXPECT_EQ(outcome.kind, StepKind::kFailed);
  EXPECT_THAT(outcome.detail, HasSubstr("adapter version 9, but its source is that of version 0"));
}

TEST_F(ParticipantTest, WhatItHoldsIsNotDownloadedAgain) {
  Participant participant = MakeParticipant();
  Step(participant);
  EXPECT_TRUE(server_.check_ins[0].held_adapter().run_id().empty());
  EXPECT_EQ(server_.metrics.download_bytes(), EncodeGlobal(0).size());
  v1::AdapterSource& source = *OfferTask(2, 0).mutable_adapter();
  source.set_held(true);
  Step(participant);
  EXPECT_EQ(server_.check_ins[1].held_adapter().run_id(), "run");
  EXPECT_EQ(server_.check_ins[1].held_adapter().values_crc32c(), source.values_crc32c());
  EXPECT_EQ(server_.metrics.download_bytes(), 0u);
  EXPECT_EQ(server_.times_counted, 2);
}

TEST_F(ParticipantTest, AKeptAdapterThatIsWrongCostsOneWholeDownload) {
  Participant participant = MakeParticipant();
  Step(participant);
  OfferTask(2, 0);
  server_.first_answers = {server_.answer};
  server_.first_answers[0].mutable_assignment()->mutable_adapter()->set_held(true);
  adapters_.bytes["alpha"][200] ^= 1;
  EXPECT_EQ(Step(participant).kind, StepKind::kAccepted);
  ASSERT_EQ(server_.check_ins.size(), 3u);
  EXPECT_EQ(server_.check_ins[1].held_adapter().run_id(), "run");
  EXPECT_TRUE(server_.check_ins[2].held_adapter().run_id().empty());
  EXPECT_EQ(server_.metrics.download_bytes(), EncodeGlobal(0).size());
  EXPECT_TRUE(server_.reports.empty());
}

TEST_F(ParticipantTest, AVersionThatIsGoneSendsItBackToCheckIn) {
  server_.content.clear();
  Participant participant = MakeParticipant();
  EXPECT_EQ(Step(participant).kind, StepKind::kWaiting);
  EXPECT_TRUE(server_.reports.empty());
}

TEST_F(ParticipantTest, WaitsWithinTheRetryWindow) {
  v1::RetryWindow& window = *server_.answer.mutable_retry();
  window.set_min_delay_ms(1000);
  window.set_max_delay_ms(3000);
  window.set_reason("not selected for round 3");
  Participant participant = MakeParticipant();
  for (int i = 0; i < 20; ++i) {
    const StepOutcome outcome = Step(participant);
    EXPECT_EQ(outcome.kind, StepKind::kWaiting);
    EXPECT_EQ(outcome.detail, "not selected for round 3");
    EXPECT_GE(outcome.pause, absl::Seconds(1));
    EXPECT_LE(outcome.pause, absl::Seconds(3));
  }
}

TEST_F(ParticipantTest, ADeadlineThatPassesEndsTheTraining) {
  server_.answer.mutable_assignment()->set_deadline_ms(1000);
  ParticipantOptions options;
  options.node_id = "alpha";
  ParticipantParts parts;
  parts.base = base_;
  parts.records = MakeRecords(40, "alpha");
  parts.link = &server_;
  parts.state = &store_;
  parts.clock = &clock_;
  parts.on_step = [&](const TrainProgress&) { clock_.Advance(absl::Seconds(2)); };
  Participant participant(options, std::move(parts));
  const StepOutcome outcome = Step(participant);
  EXPECT_EQ(outcome.kind, StepKind::kFailed);
  EXPECT_THAT(outcome.detail, HasSubstr("deadline"));
}

TEST_F(ParticipantTest, DamagedStateIsAWarningAndAFreshStart) {
  store_.bytes["alpha"] = "rubbish that is long enough";
  Participant participant = MakeParticipant();
  const StepOutcome outcome = Step(participant);
  EXPECT_EQ(outcome.kind, StepKind::kAccepted);
  ASSERT_EQ(outcome.warnings.size(), 1u);
  EXPECT_THAT(outcome.warnings[0], HasSubstr("starts afresh"));
}

TEST_F(ParticipantTest, TellsItsSpeedAtTheNextCheckIn) {
  ParticipantState state;
  state.tokens_per_second = 123;
  state.num_examples = 7;
  store_.bytes["alpha"] = state.Serialize();
  Participant participant = MakeParticipant();
  Step(participant);
  EXPECT_EQ(server_.check_ins[0].device().tokens_per_second(), 123);
  EXPECT_EQ(server_.check_ins[0].device().num_examples(), 7u);
}

TEST_F(ParticipantTest, TheDaemonEndsWithTheRunAndGetsTheFinalAdapter) {
  const v1::LoraSpecProto lora = server_.answer.assignment().lora();
  v1::RunFinished& finished = *server_.answer.mutable_finished();
  finished.set_final_version(4);
  *finished.mutable_adapter() = SourceOfGlobal(4);
  *finished.mutable_lora() = lora;
  Participant participant = MakeParticipant();
  EXPECT_FALSE(participant.FetchFinalAdapter().ok());
  ASSERT_EQ(Step(participant).kind, StepKind::kFinished);
  const auto adapter = participant.FetchFinalAdapter();
  ASSERT_TRUE(adapter.ok()) << adapter.status();
  EXPECT_EQ(adapter->spec().layout_hash(), spec_.layout_hash());
}

}  // namespace
}  // namespace fedge
