#include "client/step_loop.h"

#include <gtest/gtest.h>

#include <memory>
#include <vector>

#include "tests/client/fake_server.h"
#include "tests/testing/tiny_model.h"

namespace fedge {
namespace {

class NoStore : public StateStore {
 public:
  absl::StatusOr<std::string> Read(absl::string_view) override {
    return absl::NotFoundError("nothing kept");
  }
  absl::Status Write(absl::string_view, std::string) override { return absl::OkStatus(); }
};

class StepLoopTest : public ::testing::Test {
 protected:
  StepLoopTest() : pool_(1) {
    const std::string path = testing::WriteTinyModel(::testing::TempDir() + "step_loop_test", {});
    base_ = BaseModel::Load(path, *Env::Posix()).value();
    transformer_ = std::make_unique<Transformer>(base_, &pool_);
    ParticipantOptions options;
    options.node_id = "alpha";
    ParticipantParts parts;
    parts.base = base_;
    parts.link = &server_;
    parts.state = &store_;
    parts.clock = &clock_;
    participant_ = std::make_unique<Participant>(options, std::move(parts));
    v1::RetryWindow& window = *server_.answer.mutable_retry();
    window.set_min_delay_ms(1000);
    window.set_max_delay_ms(1000);
    options_.on_outcome = [this](const absl::StatusOr<StepOutcome>& outcome, absl::Duration pause) {
      kinds_.push_back(outcome.ok());
      pauses_.push_back(pause);
    };
    options_.stopping = [this] { return pauses_.size() >= max_steps_; };
  }

  absl::Status Run() {
    return RunSteps(options_, *participant_, *transformer_, clock_, &finished_);
  }

  ThreadPool pool_;
  std::shared_ptr<const BaseModel> base_;
  std::unique_ptr<Transformer> transformer_;
  testing::FakeServer server_;
  NoStore store_;
  ManualClock clock_;
  std::unique_ptr<Participant> participant_;
  StepLoopOptions options_;
  size_t max_steps_ = 20;
  std::vector<bool> kinds_;
  std::vector<absl::Duration> pauses_;
  bool finished_ = true;
};

TEST_F(StepLoopTest, OnceGivesUpOnAServerThatDoesNotAnswer) {
  server_.check_in_errors.assign(100, absl::UnavailableError("no server at 127.0.0.1:1"));
  options_.once = true;
  EXPECT_EQ(Run().code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(server_.check_ins.size(), 4u);
  EXPECT_FALSE(finished_);
}

TEST_F(StepLoopTest, WaitsForDaysForAServerEverMoreSeldomUpToTwoMinutes) {
  server_.check_in_errors.assign(100'000, absl::UnavailableError("away"));
  max_steps_ = 2000;
  EXPECT_TRUE(Run().ok());
  EXPECT_GT(clock_.Monotonic(), absl::Hours(48));
  for (size_t i = 0; i < pauses_.size(); ++i) {
    const absl::Duration middle =
        std::min(absl::Seconds(5) * (1 << std::min<size_t>(i, 10)), absl::Minutes(2));
    EXPECT_GE(pauses_[i], middle * 0.5);
    EXPECT_LE(pauses_[i], middle * 1.5);
  }
  // Back: the next step is as if nothing had been.
  server_.check_in_errors.clear();
  max_steps_ += 1;
  EXPECT_TRUE(Run().ok());
  EXPECT_EQ(pauses_.back(), absl::Seconds(1));
}

TEST_F(StepLoopTest, PatienceEndsAndCountsFromTheLastAnswer) {
  options_.patience = absl::Minutes(10);
  max_steps_ = 1000;
  server_.first_answers.assign(100, server_.answer);
  int answers = 0;
  options_.await_permission = [&] {
    if (++answers == 100) server_.check_in_errors.assign(10'000, absl::UnavailableError("away"));
    clock_.Advance(absl::Hours(1));  // paused by its owner for so long
    return true;
  };
  EXPECT_EQ(Run().code(), absl::StatusCode::kUnavailable);
  EXPECT_GE(pauses_.size(), 100u);
}

TEST_F(StepLoopTest, ARefusalAtTheStartEndsItAndALaterOneIsWaitedFor) {
  server_.check_in_errors = {absl::FailedPreconditionError("another model")};
  EXPECT_EQ(Run().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_TRUE(pauses_.empty());
  server_.first_answers = {server_.answer};
  options_.await_permission = [&] {
    if (pauses_.size() == 1) {
      server_.check_in_errors.assign(3, absl::PermissionDeniedError("revoked"));
    }
    return true;
  };
  max_steps_ = 6;
  EXPECT_TRUE(Run().ok());
  EXPECT_EQ(kinds_, std::vector<bool>({true, false, false, false, true, true}));
  EXPECT_GE(pauses_[1], absl::Seconds(30));
  EXPECT_GE(pauses_[3], absl::Minutes(2));
}

TEST_F(StepLoopTest, TasksThatFailAreTriedEverMoreSeldom) {
  server_.answer.mutable_assignment()->set_run_id("run");  // malformed: refused by the device
  max_steps_ = 30;
  EXPECT_TRUE(Run().ok());
  EXPECT_EQ(pauses_[0], absl::Seconds(10));
  EXPECT_GE(pauses_[29], absl::Minutes(30));
  EXPECT_LE(pauses_[29], absl::Minutes(90));
  EXPECT_EQ(server_.reports.size(), 30u);
}

TEST_F(StepLoopTest, EndsWithTheRunAndWithoutPermission) {
  server_.answer.mutable_finished()->set_final_version(3);
  EXPECT_TRUE(Run().ok());
  EXPECT_TRUE(finished_);
  options_.await_permission = [] { return false; };
  pauses_.clear();
  EXPECT_TRUE(Run().ok());
  EXPECT_FALSE(finished_);
  EXPECT_TRUE(pauses_.empty());
}

}  // namespace
}  // namespace fedge
