// What a participant refuses, and what it makes of damage: a report or a warning, and on it goes.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>

#include "tests/client/participant_rig.h"

namespace fedge {
namespace {

using ::testing::HasSubstr;
using testing::MakeRecords;
using ::testing::Not;

class ParticipantRefusalTest : public testing::ParticipantTest {};

TEST_F(ParticipantRefusalTest, RefusesASliceThatTheAdapterHasNot) {
  OfferTask(1, 0).mutable_slice()->set_first_component(2);
  server_.answer.mutable_assignment()->mutable_slice()->set_end_component(4);
  Participant participant = MakeParticipant();
  const StepOutcome outcome = Step(participant);
  EXPECT_EQ(outcome.kind, StepKind::kFailed);
  EXPECT_THAT(outcome.detail, HasSubstr("no module of the adapter has A and B, components 2-3"));
}

TEST_F(ParticipantRefusalTest, AnotherBaseModelIsReportedNotTrained) {
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

TEST_F(ParticipantRefusalTest, ARefusedCheckInIsAnError) {
  server_.check_in_errors = {absl::FailedPreconditionError("base model differs")};
  Participant participant = MakeParticipant();
  EXPECT_EQ(participant.RunOnce(*transformer_).status().code(),
            absl::StatusCode::kFailedPrecondition);
}

TEST_F(ParticipantRefusalTest, ALossThatIsNotFiniteFailsTheTaskOnly) {
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

TEST_F(ParticipantRefusalTest, NoUsableDataFailsTheTaskWithARemedy) {
  Participant participant = MakeParticipant(0);
  const StepOutcome outcome = Step(participant);
  EXPECT_EQ(outcome.kind, StepKind::kFailed);
  EXPECT_THAT(outcome.detail, HasSubstr("--data"));
  EXPECT_GT(outcome.pause, absl::Seconds(1));
  EXPECT_EQ(server_.reports.size(), 1u);
}

TEST_F(ParticipantRefusalTest, RefusesPlansBeyondItsLimits) {
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

TEST_F(ParticipantRefusalTest, AnAdapterOfAnotherVersionIsRefused) {
  server_.answer.mutable_assignment()->set_adapter_version(9);
  Participant participant = MakeParticipant();
  const StepOutcome outcome = Step(participant);
  EXPECT_EQ(outcome.kind, StepKind::kFailed);
  EXPECT_THAT(outcome.detail, HasSubstr("adapter version 9, but its source is that of version 0"));
}

TEST_F(ParticipantRefusalTest, AKeptAdapterThatIsWrongCostsOneWholeDownload) {
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

TEST_F(ParticipantRefusalTest, AVersionThatIsGoneSendsItBackToCheckIn) {
  server_.content.clear();
  Participant participant = MakeParticipant();
  EXPECT_EQ(Step(participant).kind, StepKind::kWaiting);
  EXPECT_TRUE(server_.reports.empty());
}

TEST_F(ParticipantRefusalTest, ADeadlineThatPassesEndsTheTraining) {
  server_.answer.mutable_assignment()->set_deadline_ms(1000);
  parts_.on_step = [&](const TrainProgress&) { clock_.Advance(absl::Seconds(2)); };
  Participant participant = MakeParticipant();
  const StepOutcome outcome = Step(participant);
  EXPECT_EQ(outcome.kind, StepKind::kFailed);
  EXPECT_THAT(outcome.detail, HasSubstr("deadline"));
}

TEST_F(ParticipantRefusalTest, DamagedStateIsAWarningAndAFreshStart) {
  store_.bytes["alpha"] = "rubbish that is long enough";
  Participant participant = MakeParticipant();
  const StepOutcome outcome = Step(participant);
  EXPECT_EQ(outcome.kind, StepKind::kAccepted);
  ASSERT_EQ(outcome.warnings.size(), 1u);
  EXPECT_THAT(outcome.warnings[0], HasSubstr("starts afresh"));
}

}  // namespace
}  // namespace fedge
