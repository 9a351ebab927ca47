// What a participant does after it was stopped, killed or cut off: nothing finished is lost,
// nothing counts twice.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/client/participant_rig.h"

namespace fedge {
namespace {

using ::testing::HasSubstr;

class ParticipantResumeTest : public testing::ParticipantTest {};

// Runs the task as if the process ended after each of its steps.
TEST_F(ParticipantResumeTest, AnInterruptedTrainingSendsTheSameBytes) {
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

TEST_F(ParticipantResumeTest, AnInterruptedTrainingGoesOnWithoutAServer) {
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

TEST_F(ParticipantResumeTest, ACheckpointOfAnotherTaskIsNotUsed) {
  Interrupt();
  int steps = 0;
  parts_.on_step = [&](const TrainProgress&) { ++steps; };
  OfferTask(2, 0).set_seed(6);
  Participant second = MakeParticipant();
  EXPECT_EQ(Step(second).kind, StepKind::kAccepted);
  EXPECT_EQ(steps, 3);
}

TEST_F(ParticipantResumeTest, ADamagedCheckpointAndOutboxAreNamedAndDropped) {
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

TEST_F(ParticipantResumeTest, AFinishedUpdateSurvivesTheProcessAndCountsOnce) {
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

TEST_F(ParticipantResumeTest, AFinishedUpdateIsKeptOnceThereIsRoom) {
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

TEST_F(ParticipantResumeTest, NoCheckpointOutlivesItsReceipt) {
  outbox_.write_error = absl::ResourceExhaustedError("disk full");
  Participant participant = MakeParticipant();
  EXPECT_EQ(Step(participant).kind, StepKind::kAccepted);
  EXPECT_EQ(checkpoints_.bytes["alpha"], "");
}

TEST_F(ParticipantResumeTest, WhatCouldNotBeRemovedGoesAtTheEndOfTheRun) {
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

TEST_F(ParticipantResumeTest, AnUpdateWaitsWhileItsCertificateIsRefused) {
  server_.upload_error = absl::UnauthenticatedError("certificate expired");
  Participant participant = MakeParticipant();
  EXPECT_TRUE(absl::IsUnauthenticated(participant.RunOnce(*transformer_).status()));
  EXPECT_NE(outbox_.bytes["alpha"], "");
  server_.upload_error = absl::OkStatus();
  EXPECT_EQ(Step(participant).kind, StepKind::kAccepted);
}

TEST_F(ParticipantResumeTest, AnUpdateWaitsForALinkThatItMayUse) {
  bool metered = true;
  parts_.hold_transfers = [&] { return metered; };
  Participant participant = MakeParticipant();
  EXPECT_EQ(Step(participant).kind, StepKind::kWaiting);
  EXPECT_EQ(server_.times_counted, 0);
  metered = false;
  EXPECT_EQ(Step(participant).kind, StepKind::kAccepted);
}

TEST_F(ParticipantResumeTest, ALostReceiptCountsOnce) {
  server_.lose_receipts = 1;
  Participant participant = MakeParticipant();
  EXPECT_EQ(Step(participant).kind, StepKind::kAccepted);
  EXPECT_EQ(server_.times_counted, 1);
}

TEST_F(ParticipantResumeTest, AFinishedUpdateOutlivesALostServer) {
  Participant participant = MakeParticipant();
  server_.upload_error = absl::UnavailableError("no server");
  EXPECT_EQ(participant.RunOnce(*transformer_).status().code(), absl::StatusCode::kUnavailable);
  server_.upload_error = absl::OkStatus();
  const size_t check_ins = server_.check_ins.size();
  EXPECT_EQ(Step(participant).kind, StepKind::kAccepted);
  EXPECT_EQ(server_.check_ins.size(), check_ins);  // the update went first, nothing was trained
  EXPECT_EQ(server_.times_counted, 1);
}

}  // namespace
}  // namespace fedge
