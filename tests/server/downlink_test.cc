#include "server/downlink.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstdio>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "common/base/rng.h"
#include "common/base/status.h"
#include "tests/testing/adapter_samples.h"

namespace fedge {
namespace {

using testing::SampleSpec;

RunPlan SamplePlan(LoraSpec spec = SampleSpec(64, 4)) {
  RunPlan plan;
  plan.run_id = "run";
  plan.seed = 5;
  plan.lora = std::move(spec);
  plan.base_model = Sha256Of("base model");
  plan.downlink = {};
  plan.downlink.density = 0.05;
  return plan;
}

RunPlan TrellisPlan(double bits, LoraSpec spec = SampleSpec(64, 4)) {
  RunPlan plan = SamplePlan(std::move(spec));
  plan.downlink = {};
  plan.downlink.trellis = true;
  plan.downlink.bits_per_parameter = bits;
  return plan;
}

// A server's downlink with what it would find in its store after a restart.
class Server {
 public:
  explicit Server(RunPlan plan) : plan_(std::move(plan)), master_(plan_.lora) {
    master_.InitializeForTraining(AdapterSeed(plan_));
    Begin();
  }
  Server(RunPlan plan, LoraAdapter initial) : plan_(std::move(plan)), master_(std::move(initial)) {
    Begin();
  }

  // Moves the master by normal steps whose size differs by coordinate.
  void Advance(uint64_t seed, double step = 0.01) {
    Rng rng(seed);
    for (size_t i = 0; i < master_.values().size(); ++i) {
      const double scale = 0.2 + static_cast<double>(i % 7);
      master_.values()[i] += static_cast<float>(step * scale * rng.Normal());
    }
    Publish(master_);
  }
  void Publish(const LoraAdapter& master) {
    master_ = master;
    auto version = downlink_->Next(master_, ++number_);
    FEDGE_CHECK(version.ok(), version.status().message());
    Store(*std::move(version));
  }
  void Restart(size_t kept_versions) {
    downlink_ = std::make_unique<Downlink>(plan_);
    auto version = downlink_->Resume(master_, number_, snapshot_);
    FEDGE_CHECK(version.ok(), version.status().message());
    downlink_->Serve(*std::move(version));
    const size_t first = contents_.size() - std::min(contents_.size(), kept_versions);
    downlink_->AddHistory({contents_.begin() + static_cast<ptrdiff_t>(first), contents_.end()});
  }
  void LoseSnapshot() { snapshot_.clear(); }

  const RunPlan& plan() const { return plan_; }
  Downlink& downlink() { return *downlink_; }
  const LoraAdapter& master() const { return master_; }
  uint64_t number() const { return number_; }
  const std::vector<std::string>& contents() const { return contents_; }

 private:
  void Begin() {
    downlink_ = std::make_unique<Downlink>(plan_);
    auto version = downlink_->Start(master_);
    FEDGE_CHECK(version.ok(), version.status().message());
    Store(*std::move(version));
  }
  void Store(Downlink::Version version) {
    contents_.push_back(*version.content);
    snapshot_ = version.snapshot;
    downlink_->Serve(std::move(version));
  }

  const RunPlan plan_;
  LoraAdapter master_;
  std::unique_ptr<Downlink> downlink_;
  std::vector<std::string> contents_;
  std::string snapshot_;
  uint64_t number_ = 0;
};

// A device: follows offers, holds what they lead to.
class Node {
 public:
  v1::HeldAdapter Held() const {
    v1::HeldAdapter held;
    if (!state_) return held;
    held.set_run_id(run_id_);
    held.set_version(state_->version());
    held.set_values_crc32c(state_->crc());
    held.set_start_version(state_->start_version());
    held.set_start_crc32c(state_->start_crc());
    return held;
  }
  // Returns the bytes it had to download.
  uint64_t Follow(Server& server) {
    const auto offer = server.downlink().Offer(server.number(), Held());
    FEDGE_CHECK(offer.has_value());
    uint64_t bytes = 0;
    const auto fetch = [&](const v1::ContentRef& ref) {
      const auto content = server.downlink().Find(*DigestFromRaw(ref.sha256()));
      FEDGE_CHECK(content != nullptr && content->size() == ref.size_bytes());
      bytes += content->size();
      return *content;
    };
    const RunPlan& plan = server.plan();
    if (offer->has_seed()) {
      state_ = AdapterState::FromSeed(plan.lora, plan.base_model, offer->seed());
    } else if (offer->has_values()) {
      auto state = AdapterState::FromValues(plan.lora, plan.base_model, fetch(offer->values()));
      FEDGE_CHECK(state.ok(), state.status().message());
      state_ = *std::move(state);
    }
    for (const v1::ContentRef& ref : offer->deltas()) {
      const absl::Status applied = state_->Apply(fetch(ref));
      FEDGE_CHECK(applied.ok(), applied.message());
    }
    run_id_ = offer->run_id();
    EXPECT_EQ(state_->version(), server.number());
    EXPECT_EQ(state_->crc(), offer->values_crc32c());
    EXPECT_EQ(state_->adapter().values(), server.downlink().served().values());
    pieces_ = offer->deltas_size();
    return bytes;
  }
  void Lose() { state_.reset(); }
  void SetRun(std::string run_id) { run_id_ = std::move(run_id); }
  int pieces() const { return pieces_; }

 private:
  std::optional<AdapterState> state_;
  std::string run_id_;
  int pieces_ = 0;
};

double Distance(const LoraAdapter& x, const LoraAdapter& y) {
  double sum = 0;
  for (size_t i = 0; i < x.values().size(); ++i) {
    const double difference = x.values()[i] - y.values()[i];
    sum += difference * difference;
  }
  return std::sqrt(sum);
}

class DownlinkCodingTest : public ::testing::TestWithParam<bool> {
 protected:
  static RunPlan CodingPlan() { return GetParam() ? TrellisPlan(0.25) : SamplePlan(); }
};
INSTANTIATE_TEST_SUITE_P(Codings, DownlinkCodingTest, ::testing::Bool());

TEST_P(DownlinkCodingTest, EveryNodeHoldsTheSameBitsWhateverItMissed) {
  Server server(CodingPlan());
  std::vector<Node> nodes(12);
  Rng rng(1);
  for (uint64_t version = 1; version <= 40; ++version) {
    server.Advance(version);
    if (rng.Below(8) == 0) server.Restart(1 + rng.Below(20));
    for (Node& node : nodes) {
      if (rng.Below(30) == 0) node.Lose();
      if (rng.Below(30) == 0) node.SetRun("another");
      if (rng.Below(4) == 0) node.Follow(server);
    }
  }
  for (Node& node : nodes) node.Follow(server);
}

TEST(DownlinkTest, SendsTheCheapestOfChainSumAndWhole) {
  Server server(SamplePlan());
  Node node;
  EXPECT_EQ(node.Follow(server), 0u);  // the seed is enough
  server.Advance(1);
  EXPECT_EQ(node.Follow(server), server.contents()[1].size());
  EXPECT_EQ(node.Follow(server), 0u);  // it holds it
  uint64_t chain = 0;
  for (uint64_t version = 2; version <= 9; ++version) {
    server.Advance(version);
    chain += server.contents()[version].size();
  }
  Node fresh;
  const uint64_t whole = fresh.Follow(server);
  const uint64_t sum = node.Follow(server);
  EXPECT_EQ(node.pieces(), 1);
  std::printf("8 versions: chain %llu, sum %llu, whole %llu bytes\n",
              static_cast<unsigned long long>(chain), static_cast<unsigned long long>(sum),
              static_cast<unsigned long long>(whole));
  EXPECT_LT(sum, 0.9 * static_cast<double>(chain));
  EXPECT_LT(sum, whole);
  EXPECT_LT(whole, static_cast<uint64_t>(server.plan().lora.num_parameters()));
}

TEST(DownlinkTest, VersionsItNoLongerHasAreReplacedByTheWhole) {
  Server server(SamplePlan());
  Node node;
  node.Follow(server);
  server.Advance(1);
  node.Follow(server);
  for (uint64_t version = 2; version <= 6; ++version) server.Advance(version);
  server.Restart(2);
  Node fresh;
  EXPECT_EQ(node.Follow(server), fresh.Follow(server));
}

TEST(DownlinkTest, AStartThatNoSeedMakesTravelsOnce) {
  LoraAdapter initial(SampleSpec(64, 4));
  for (size_t i = 0; i < initial.values().size(); ++i) {
    initial.values()[i] = 0.1f + 1e-5f * static_cast<float>(i);
  }
  Server server(SamplePlan(), initial);
  Node node;
  EXPECT_EQ(node.Follow(server), kAdapterHeaderBytes + 2 * initial.values().size());
  for (uint64_t version = 1; version <= 5; ++version) server.Advance(version);
  server.Restart(1);  // the node's version is forgotten, its start is not
  EXPECT_LT(node.Follow(server), 2 * initial.values().size());
  // What the halves of the start lacked went into the changes.
  EXPECT_LT(Distance(server.downlink().served(), server.master()),
            0.9 * Distance(initial, server.master()));
}

TEST(DownlinkTest, WithoutASnapshotDevicesBeginAnew) {
  Server server(SamplePlan());
  Node node;
  node.Follow(server);
  for (uint64_t version = 1; version <= 3; ++version) server.Advance(version);
  server.LoseSnapshot();
  server.Restart(16);
  EXPECT_EQ(node.Follow(server),
            kAdapterHeaderBytes + 2 * static_cast<uint64_t>(server.plan().lora.num_parameters()));
  server.Advance(4);
  EXPECT_EQ(node.Follow(server), server.contents()[4].size());
}

TEST(DownlinkTest, AServerThatWasSetBackIsFollowed) {
  Server ahead(SamplePlan());
  Server back(SamplePlan());
  Node node;
  for (uint64_t version = 1; version <= 5; ++version) ahead.Advance(version);
  node.Follow(ahead);
  node.Follow(back);  // version 0 again
  for (uint64_t version = 1; version <= 2; ++version) back.Advance(100 + version);
  node.Follow(back);
  node.Follow(ahead);
  for (uint64_t version = 3; version <= 5; ++version) back.Advance(100 + version);
  node.Follow(back);  // the same number, other values
}

TEST(DownlinkTest, WholeValuesTravelWithEachVersionWhenAskedFor) {
  RunPlan plan = SamplePlan();
  for (const DownlinkEncoding encoding : {DownlinkEncoding::kExact, DownlinkEncoding::kFp16}) {
    plan.downlink.encoding = encoding;
    Server server(plan);
    Node node;
    const uint64_t size = encoding == DownlinkEncoding::kExact ? 4 : 2;
    const uint64_t bytes =
        kAdapterHeaderBytes + size * static_cast<uint64_t>(plan.lora.num_parameters());
    EXPECT_EQ(node.Follow(server), bytes);
    EXPECT_EQ(node.Follow(server), 0u);
    server.Advance(1);
    EXPECT_EQ(node.Follow(server), bytes);
    server.Restart(16);
    EXPECT_EQ(node.Follow(server), 0u);
    if (encoding == DownlinkEncoding::kExact) {
      EXPECT_EQ(server.downlink().served().values(), server.master().values());
    }
  }
}

TEST(DownlinkTest, OffersNothingOfAVersionItDoesNotServe) {
  Server server(SamplePlan());
  server.Advance(1);
  EXPECT_FALSE(server.downlink().Offer(0, v1::HeldAdapter()).has_value());
  EXPECT_FALSE(server.downlink().Offer(2, v1::HeldAdapter()).has_value());
  EXPECT_EQ(server.downlink().Find(Sha256Of("?")), nullptr);
}

TEST(DownlinkTest, RefusesASnapshotThatIsDamagedOrOfAnotherVersion) {
  const RunPlan plan = SamplePlan();
  Downlink downlink(plan);
  LoraAdapter initial(plan.lora);
  initial.InitializeForTraining(AdapterSeed(plan));
  const auto version = downlink.Start(initial);
  ASSERT_TRUE(version.ok());
  EXPECT_TRUE(downlink.Resume(initial, 0, version->snapshot).ok());
  EXPECT_EQ(downlink.Resume(initial, 1, version->snapshot).status().code(),
            absl::StatusCode::kDataLoss);
  EXPECT_EQ(downlink.Resume(initial, 0, version->snapshot.substr(0, 60)).status().code(),
            absl::StatusCode::kDataLoss);
}

TEST(DownlinkTest, KeepsToItsBudget) {
  for (const double bits : {0.1, 0.3, 1.0, 4.0}) {
    RunPlan plan = SamplePlan(SampleSpec(512, 8));  // 24,576 parameters
    plan.downlink.density = 0;
    plan.downlink.bits_per_parameter = bits;
    Server server(plan);
    for (uint64_t version = 1; version <= 4; ++version) {
      server.Advance(version);
      const size_t payload = server.contents()[version].size() - kAdapterHeaderBytes;
      const double spent =
          8.0 * static_cast<double>(payload) / static_cast<double>(plan.lora.num_parameters());
      EXPECT_LE(spent, bits);
      EXPECT_GE(spent, 0.85 * bits);
    }
  }
}

TEST(DownlinkTest, BudgetsBuyAccuracy) {
  double before = 1;
  for (const double bits : {0.1, 0.3, 1.0, 4.0}) {
    RunPlan plan = SamplePlan(SampleSpec(512, 8));
    plan.downlink.density = 0;
    plan.downlink.bits_per_parameter = bits;
    Server server(plan);
    const LoraAdapter start = server.master();
    for (uint64_t version = 1; version <= 10; ++version) server.Advance(version);
    const double error =
        Distance(server.downlink().served(), server.master()) / Distance(start, server.master());
    std::printf("%.1f bits a parameter: %.4f of the way is missing\n", bits, error);
    EXPECT_LT(error, 0.95 * before);
    before = error;
  }
  EXPECT_LT(before, 0.1);
}

// A change that is too small to be among the largest of its round is not lost: it is sent when it
// has added up. Without that memory most of the way would never be gone.
TEST_P(DownlinkCodingTest, WhatIsLeftOutIsSentLater) {
  RunPlan plan = TrellisPlan(1.0 / 12, SampleSpec(128, 4));
  if (!GetParam()) {
    plan = SamplePlan(SampleSpec(128, 4));
    plan.downlink.density = 0.03;
  }
  Server with(plan);
  Server without(plan);
  const LoraAdapter start = with.master();
  Rng rng(3);
  std::vector<float> drift(start.values().size());
  for (float& value : drift) value = static_cast<float>(1e-3 * rng.Normal());
  LoraAdapter goal = start;
  for (int round = 0; round < 150; ++round) {
    LoraAdapter forgetful = without.downlink().served();
    for (size_t i = 0; i < drift.size(); ++i) {
      goal.values()[i] += drift[i];
      forgetful.values()[i] += drift[i];
    }
    with.Publish(goal);
    without.Publish(forgetful);
  }
  const double way = Distance(start, goal);
  const double missing_with = Distance(with.downlink().served(), goal) / way;
  const double missing_without = Distance(without.downlink().served(), goal) / way;
  std::printf("missing with feedback %.3f, without %.3f\n", missing_with, missing_without);
  EXPECT_LT(missing_with, 0.25);
  EXPECT_GT(missing_without, 0.75);
}

TEST_P(DownlinkCodingTest, ValuesThatRunAwayStayWithinWhatCanBeSent) {
  Server server(CodingPlan());
  LoraAdapter far = server.master();
  far.values()[0] = 60000;
  far.values()[1] = -60000;
  Node node;
  Node slow;
  slow.Follow(server);
  for (int round = 0; round < 3; ++round) {
    server.Publish(far);
    node.Follow(server);
    far.values()[1] = -far.values()[1];
    if (round == 0) slow.Follow(server);
  }
  slow.Follow(server);
  if (GetParam()) return;  // signs of a group move together
  EXPECT_NEAR(server.downlink().served().values()[0], 28, 2);
}

// All values at the ends of what can be held: a trellis would go beyond, levels take its place.
TEST(DownlinkTest, ATrellisThatWouldRunAwayIsReplaced) {
  Server server(TrellisPlan(0.5));
  LoraAdapter far = server.master();
  Node node;
  for (int round = 0; round < 12; ++round) {
    for (size_t i = 0; i < far.values().size(); ++i) {
      far.values()[i] = (i + static_cast<size_t>(round)) % 2 == 0 ? 1e4f : -1e4f;
    }
    server.Publish(far);
    node.Follow(server);
  }
}

// Of changes without outstanding values; a few large ones are the levels' strength.
TEST(DownlinkTest, ATrellisBringsMoreThanLevelsInAsManyBits) {
  const LoraSpec spec = SampleSpec(128, 8);
  RunPlan levels = SamplePlan(spec);
  levels.downlink = {};
  levels.downlink.bits_per_parameter = 0.25;
  const auto left = [](Server& server) {
    const LoraAdapter before = server.downlink().served();
    LoraAdapter master = before;
    Rng rng(1);
    for (float& value : master.values()) value += static_cast<float>(0.01 * rng.Normal());
    server.Publish(master);
    EXPECT_LE(8.0 * static_cast<double>(server.contents()[1].size() - kAdapterHeaderBytes),
              0.26 * static_cast<double>(before.values().size()) + 64);
    return Distance(server.downlink().served(), master) / Distance(before, master);
  };
  Server by_levels(levels);
  Server by_trellis(TrellisPlan(0.25, spec));
  const double of_levels = left(by_levels);
  const double of_trellis = left(by_trellis);
  std::printf("left of a change at 0.25 bits: levels %.3f, trellis %.3f\n", of_levels, of_trellis);
  EXPECT_LT(of_trellis, of_levels - 0.01);
}

// Qwen2.5-0.5B with rank 16 in every linear layer: 8,798,208 parameters.
LoraSpec QwenSpec() {
  std::vector<LoraModule> modules;
  for (int layer = 0; layer < 24; ++layer) {
    const auto add = [&](const char* name, int64_t in, int64_t out) {
      modules.push_back({.tensor = absl::StrCat("blk.", layer, ".", name, ".weight"),
                         .in_features = in,
                         .out_features = out,
                         .rank = 16});
    };
    add("attn_q", 896, 896);
    add("attn_k", 896, 128);
    add("attn_v", 896, 128);
    add("attn_output", 896, 896);
    add("ffn_gate", 896, 4864);
    add("ffn_up", 896, 4864);
    add("ffn_down", 4864, 896);
  }
  auto spec = LoraSpec::Create("qwen2", 32, std::move(modules));
  FEDGE_CHECK(spec.ok(), spec.status().message());
  return *std::move(spec);
}

TEST(DownlinkTest, AHalfBillionModelsVersionTakesAtMost320Kilobytes) {
  RunPlan plan = SamplePlan(QwenSpec());
  ASSERT_EQ(plan.lora.num_parameters(), 8'798'208);
  plan.downlink.density = 0.03;
  LoraAdapter master(plan.lora);
  master.InitializeForTraining(AdapterSeed(plan));
  Downlink downlink(plan);
  downlink.Serve(*downlink.Start(master));
  Rng rng(1);
  for (float& value : master.values()) {  // nearly normal, and cheap to draw
    value += static_cast<float>(rng.Uniform() + rng.Uniform() + rng.Uniform() - 1.5) * 1e-3f;
  }
  const auto version = downlink.Next(master, 1);
  ASSERT_TRUE(version.ok());
  const auto header = ReadAdapterHeader(*version->content);
  const double density = static_cast<double>(header->num_nonzero) / 8'798'208;
  std::printf("density %.4f: %zu bytes\n", density, version->content->size());
  EXPECT_NEAR(density, 0.03, 0.001);
  EXPECT_LE(version->content->size(), 320'000u);
  EXPECT_GE(version->content->size(), 220'000u);
}

}  // namespace
}  // namespace fedge
