#include "client/participant_state.h"

#include <gtest/gtest.h>

#include "common/base/env.h"

namespace fedge {
namespace {

ParticipantState Sample() {
  ParticipantState state;
  state.run_id = "run";
  state.tokens_per_second = 12.5;
  state.num_examples = 40;
  state.lora.set_architecture("llama");
  state.last_metrics.set_train_tokens(99);
  state.error_feedback = std::string("\0\1\2", 3);
  return state;
}

TEST(ParticipantStateTest, ComesBackAsWritten) {
  const auto state = ParticipantState::Parse(Sample().Serialize());
  ASSERT_TRUE(state.ok());
  EXPECT_EQ(state->run_id, "run");
  EXPECT_EQ(state->tokens_per_second, 12.5);
  EXPECT_EQ(state->num_examples, 40u);
  EXPECT_EQ(state->lora.architecture(), "llama");
  EXPECT_EQ(state->last_metrics.train_tokens(), 99u);
  EXPECT_EQ(state->error_feedback, std::string("\0\1\2", 3));
}

TEST(ParticipantStateTest, AnyTruncationOrFlippedBitIsDamage) {
  const std::string bytes = Sample().Serialize();
  for (size_t i = 0; i < bytes.size(); ++i) {
    EXPECT_EQ(ParticipantState::Parse(bytes.substr(0, i)).status().code(),
              absl::StatusCode::kDataLoss);
    std::string flipped = bytes;
    flipped[i] = static_cast<char>(flipped[i] ^ 4);
    EXPECT_EQ(ParticipantState::Parse(flipped).status().code(), absl::StatusCode::kDataLoss);
  }
}

TEST(DirectoryStateStoreTest, KeepsEachNodesLatestBytes) {
  const std::string dir = ::testing::TempDir() + "state_store";
  (void)Env::Posix()->Remove(dir);
  DirectoryStateStore store(dir, Env::Posix());
  EXPECT_EQ(store.Read("a").status().code(), absl::StatusCode::kNotFound);
  ASSERT_TRUE(store.Write("a", "1").ok());
  ASSERT_TRUE(store.Write("../b/c", "2").ok());
  ASSERT_TRUE(store.Write("a", "3").ok());
  DirectoryStateStore again(dir, Env::Posix());
  EXPECT_EQ(again.Read("a").value(), "3");
  EXPECT_EQ(again.Read("../b/c").value(), "2");
  EXPECT_EQ(Env::Posix()->ListDir(dir).value().size(), 2u);
}

TEST(BudgetedStateStoreTest, SpillsWhatDoesNotFitAndNeverReturnsOldBytes) {
  const std::string dir = ::testing::TempDir() + "state_spill";
  (void)Env::Posix()->Remove(dir);
  DirectoryStateStore spill(dir, Env::Posix());
  BudgetedStateStore store(10, &spill);
  ASSERT_TRUE(store.Write("a", "123456").ok());
  ASSERT_TRUE(store.Write("b", "123456").ok());  // spilled
  EXPECT_EQ(store.memory_bytes(), 6u);
  ASSERT_TRUE(store.Write("a", "12345678901").ok());  // grew out of memory
  EXPECT_EQ(store.memory_bytes(), 0u);
  ASSERT_TRUE(store.Write("b", "xy").ok());  // fits now
  EXPECT_EQ(store.memory_bytes(), 2u);
  EXPECT_EQ(store.Read("a").value(), "12345678901");
  EXPECT_EQ(store.Read("b").value(), "xy");
}

}  // namespace
}  // namespace fedge
