#include "common/codec/adapter_state.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "common/base/rng.h"
#include "tests/testing/adapter_samples.h"

namespace fedge {
namespace {

using testing::RandomUnits;
using testing::SampleSpec;

const Digest kBase = Sha256Of("base model");
constexpr uint64_t kSeed = 9;

// A server's versions and the deltas between neighbours.
class History {
 public:
  explicit History(AdapterState start) : states_{std::move(start)} {}

  void Advance(uint64_t seed) {
    const LoraSpec& spec = states_.back().spec();
    AdapterState next = states_.back();
    next.Advance(RandomUnits(spec, 0.05, 2, static_cast<int>(8 + seed % 5), seed));
    states_.push_back(std::move(next));
  }

  const AdapterState& at(uint64_t version) const { return states_[version]; }
  uint64_t newest() const { return states_.size() - 1; }

  std::string Delta(uint64_t from, uint64_t to) const {
    std::vector<int32_t> change(states_[to].units().begin(), states_[to].units().end());
    for (size_t i = 0; i < change.size(); ++i) change[i] -= states_[from].units()[i];
    AdapterHeader header;
    header.from_version = from;
    header.to_version = to;
    header.base_model = kBase;
    header.values_crc = states_[to].crc();
    return EncodeAdapterDelta(states_[to].spec(), header, change);
  }

 private:
  std::vector<AdapterState> states_;
};

void ExpectSame(const AdapterState& x, const AdapterState& y) {
  EXPECT_EQ(x.version(), y.version());
  EXPECT_EQ(x.crc(), y.crc());
  EXPECT_EQ(x.units(), y.units());
  EXPECT_EQ(x.adapter().values(), y.adapter().values());
}

// However a node missed rounds and caught up, it holds the same bits as the server.
TEST(AdapterStateTest, AnyChainOfDeltasGivesTheSameBits) {
  History history(AdapterState::FromSeed(SampleSpec(32, 4), kBase, kSeed));
  for (uint64_t seed = 1; seed <= 20; ++seed) history.Advance(seed);
  for (uint64_t seed = 0; seed < 40; ++seed) {
    Rng rng(seed);
    AdapterState node = AdapterState::FromSeed(SampleSpec(32, 4), kBase, kSeed);
    while (node.version() < history.newest()) {
      const uint64_t to = node.version() + 1 + rng.Below(history.newest() - node.version());
      if (rng.Below(6) == 0) {  // lost everything, or is told the whole change
        ASSERT_TRUE(node.Apply(history.Delta(0, to)).ok());
      } else if (rng.Below(2) == 0) {  // one merged delta
        ASSERT_TRUE(node.Apply(history.Delta(node.version(), to)).ok());
      } else {
        while (node.version() < to) {
          ASSERT_TRUE(node.Apply(history.Delta(node.version(), node.version() + 1)).ok());
        }
      }
      if (rng.Below(3) == 0) {  // a restart
        auto parsed = AdapterState::Parse(node.spec(), kBase, node.Serialize());
        ASSERT_TRUE(parsed.ok()) << parsed.status();
        node = *std::move(parsed);
      }
      ExpectSame(node, history.at(to));
    }
  }
}

TEST(AdapterStateTest, StartsFromValuesToo) {
  LoraAdapter initial(SampleSpec(16, 2));
  initial.InitializeForTraining(3);
  AdapterHeader header;
  header.encoding = AdapterEncoding::kFp16;
  header.base_model = kBase;
  auto content = EncodeAdapterValues(initial.spec(), header, initial.values());
  ASSERT_TRUE(content.ok());
  auto start = AdapterState::FromValues(initial.spec(), kBase, *content);
  ASSERT_TRUE(start.ok()) << start.status();
  EXPECT_NE(start->crc(), AdapterCrc(initial.values()));  // halves
  History history(*start);
  for (uint64_t seed = 1; seed <= 3; ++seed) history.Advance(seed);
  auto parsed = AdapterState::Parse(initial.spec(), kBase, history.at(2).Serialize());
  ASSERT_TRUE(parsed.ok()) << parsed.status();
  EXPECT_EQ(parsed->start_content(), *content);
  ASSERT_TRUE(parsed->Apply(history.Delta(2, 3)).ok());
  ExpectSame(*parsed, history.at(3));
}

TEST(AdapterStateTest, RefusesDeltasOfAnotherHistory) {
  History history(AdapterState::FromSeed(SampleSpec(16, 2), kBase, kSeed));
  for (uint64_t seed = 1; seed <= 4; ++seed) history.Advance(seed);
  AdapterState node = AdapterState::FromSeed(SampleSpec(16, 2), kBase, kSeed);
  EXPECT_EQ(node.Apply(history.Delta(2, 3)).code(), absl::StatusCode::kFailedPrecondition);
  AdapterState stranger = AdapterState::FromSeed(SampleSpec(16, 2), kBase, kSeed + 1);
  EXPECT_EQ(stranger.Apply(history.Delta(0, 1)).code(), absl::StatusCode::kDataLoss);
}

TEST(AdapterStateTest, RefusesDamagedStates) {
  History history(AdapterState::FromSeed(SampleSpec(16, 2), kBase, kSeed));
  history.Advance(1);
  const std::string good = history.at(1).Serialize();
  const LoraSpec spec = SampleSpec(16, 2);
  ASSERT_TRUE(AdapterState::Parse(spec, kBase, good).ok());
  for (size_t i = 0; i < good.size(); ++i) {
    std::string bytes = good;
    bytes[i] = static_cast<char>(bytes[i] ^ 0x10);
    EXPECT_FALSE(AdapterState::Parse(spec, kBase, bytes).ok()) << i;
    EXPECT_FALSE(AdapterState::Parse(spec, kBase, good.substr(0, i)).ok()) << i;
  }
  EXPECT_EQ(AdapterState::Parse(SampleSpec(32, 2), kBase, good).status().code(),
            absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(AdapterState::Parse(spec, Sha256Of("x"), good).status().code(),
            absl::StatusCode::kFailedPrecondition);
}

}  // namespace
}  // namespace fedge
