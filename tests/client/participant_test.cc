#include "client/participant.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <memory>

#include "tests/client/participant_rig.h"

namespace fedge {
namespace {

using ::testing::HasSubstr;
using testing::MakeRecords;
using testing::ParticipantTest;

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

TEST_F(ParticipantTest, ATaskIsPlannedToFitTheMemory) {
  options_.memory_limit_bytes = 1000;
  Participant participant = MakeParticipant();
  const StepOutcome outcome = Step(participant);
  EXPECT_EQ(outcome.kind, StepKind::kFailed);
  EXPECT_THAT(outcome.detail, HasSubstr("a memory limit of 0 MB is too little"));
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
