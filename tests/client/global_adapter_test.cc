#include "client/global_adapter.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "common/base/clock.h"
#include "common/base/env.h"
#include "tests/client/fake_server.h"
#include "tests/testing/adapter_samples.h"
#include "tests/testing/fault_env.h"

namespace fedge {
namespace {

using ::testing::HasSubstr;
using testing::RandomUnits;
using testing::SampleSpec;

constexpr uint64_t kSeed = 4;

class GlobalAdapterTest : public ::testing::Test {
 protected:
  GlobalAdapterTest() {
    states_.push_back(AdapterState::FromSeed(spec_, base_, kSeed));
    for (uint64_t seed = 1; seed <= 4; ++seed) {
      states_.push_back(states_.back());
      states_.back().Advance(RandomUnits(spec_, 0.1, 2, 9, seed));
    }
  }

  GlobalAdapter MakeAdapter() { return GlobalAdapter("alpha", base_, &transfer_, &kept_); }

  v1::ContentRef Delta(size_t from, size_t to) {
    std::vector<int32_t> change(states_[to].units().begin(), states_[to].units().end());
    for (size_t i = 0; i < change.size(); ++i) change[i] -= states_[from].units()[i];
    AdapterHeader header;
    header.from_version = from;
    header.to_version = to;
    header.base_model = base_;
    header.values_crc = states_[to].crc();
    return server_.Offer(EncodeAdapterDelta(spec_, header, change));
  }

  v1::AdapterSource Source(size_t version, bool held, std::vector<v1::ContentRef> deltas) {
    v1::AdapterSource source;
    source.set_run_id("run");
    source.set_version(version);
    source.set_values_crc32c(states_[version].crc());
    held ? source.set_held(true) : source.set_seed(kSeed);
    for (const v1::ContentRef& delta : deltas) *source.add_deltas() = delta;
    return source;
  }

  void ExpectVersion(const absl::StatusOr<LoraAdapter>& adapter, size_t version) {
    ASSERT_TRUE(adapter.ok()) << adapter.status();
    EXPECT_EQ(adapter->values(), states_[version].adapter().values());
  }

  const LoraSpec spec_ = SampleSpec(32, 4);
  const Digest base_ = Sha256Of("base model");
  std::vector<AdapterState> states_;
  testing::FakeServer server_;
  ManualClock clock_;
  Transfer transfer_{&server_, &clock_, RetryPolicy(), 1};
  SharedStateStore kept_;
};

TEST_F(GlobalAdapterTest, FollowsVersionsOverRestarts) {
  {
    GlobalAdapter adapter = MakeAdapter();
    EXPECT_TRUE(adapter.held().run_id().empty());
    ExpectVersion(adapter.Fetch(spec_, Source(0, false, {})), 0);
    EXPECT_EQ(adapter.downloaded_bytes(), 0u);
    ExpectVersion(adapter.Fetch(spec_, Source(1, true, {Delta(0, 1)})), 1);
    EXPECT_EQ(adapter.downloaded_bytes(), Delta(0, 1).size_bytes());
  }
  GlobalAdapter adapter = MakeAdapter();
  EXPECT_EQ(adapter.held().run_id(), "run");
  EXPECT_EQ(adapter.held().version(), 1u);
  EXPECT_EQ(adapter.held().values_crc32c(), states_[1].crc());
  EXPECT_EQ(adapter.held().start_crc32c(), states_[0].crc());
  ExpectVersion(adapter.Fetch(spec_, Source(3, true, {Delta(1, 2), Delta(2, 3)})), 3);
  ExpectVersion(adapter.Fetch(spec_, Source(3, true, {})), 3);
  ExpectVersion(adapter.Fetch(spec_, Source(4, true, {Delta(0, 4)})), 4);   // anew from the start
  ExpectVersion(adapter.Fetch(spec_, Source(2, false, {Delta(0, 2)})), 2);  // the server went back
  EXPECT_EQ(adapter.held().version(), 2u);
  EXPECT_EQ(adapter.TakeWarning(), "");
}

TEST_F(GlobalAdapterTest, StartsFromValues) {
  AdapterHeader header;
  header.encoding = AdapterEncoding::kFp16;
  header.base_model = base_;
  const std::string content =
      EncodeAdapterValues(spec_, header, states_[0].adapter().values()).value();
  v1::AdapterSource source;
  source.set_run_id("run");
  source.set_values_crc32c(ReadAdapterHeader(content)->values_crc);
  *source.mutable_values() = server_.Offer(content);
  GlobalAdapter adapter = MakeAdapter();
  const auto fetched = adapter.Fetch(spec_, source);
  ASSERT_TRUE(fetched.ok()) << fetched.status();
  EXPECT_EQ(AdapterCrc(fetched->values()), source.values_crc32c());
  EXPECT_EQ(adapter.downloaded_bytes(), content.size());
}

TEST_F(GlobalAdapterTest, DamagedOrForeignContentsAreErrors) {
  GlobalAdapter adapter = MakeAdapter();
  EXPECT_EQ(adapter.Fetch(spec_, Source(1, true, {Delta(0, 1)})).status().code(),
            absl::StatusCode::kInvalidArgument);  // nothing is held
  ExpectVersion(adapter.Fetch(spec_, Source(1, false, {Delta(0, 1)})), 1);
  EXPECT_EQ(adapter.Fetch(spec_, Source(3, true, {Delta(2, 3)})).status().code(),
            absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(adapter.Fetch(spec_, Source(3, true, {Delta(1, 2)})).status().code(),
            absl::StatusCode::kDataLoss);
  v1::AdapterSource other = Source(1, false, {Delta(0, 1)});
  other.set_seed(kSeed + 1);
  EXPECT_EQ(adapter.Fetch(spec_, other).status().code(), absl::StatusCode::kDataLoss);
  v1::AdapterSource unknown = Source(1, false, {});
  unknown.clear_start();
  EXPECT_EQ(adapter.Fetch(spec_, unknown).status().code(), absl::StatusCode::kUnimplemented);
  v1::AdapterSource many = Source(1, true, {});
  for (int i = 0; i < 1025; ++i) many.add_deltas();
  EXPECT_EQ(adapter.Fetch(spec_, many).status().code(), absl::StatusCode::kInvalidArgument);
  v1::AdapterSource huge = Source(2, true, {Delta(1, 2)});
  huge.mutable_deltas(0)->set_size_bytes(uint64_t{1} << 40);
  EXPECT_EQ(adapter.Fetch(spec_, huge).status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(adapter.held().version(), 1u);  // what was kept is still good
  ExpectVersion(adapter.Fetch(spec_, Source(2, true, {Delta(1, 2)})), 2);
}

TEST_F(GlobalAdapterTest, ADamagedFileIsAsNone) {
  const std::string dir = ::testing::TempDir() + "global_adapter_test";
  testing::FaultEnv env;
  DirectoryStateStore files(dir, &env, ".adapter");
  {
    GlobalAdapter adapter("beta", base_, &transfer_, &files);
    ExpectVersion(adapter.Fetch(spec_, Source(1, false, {Delta(0, 1)})), 1);
  }
  const std::string good = files.Read("beta").value();
  for (size_t i = 0; i < good.size(); i += 7) {
    std::string damaged = good;
    damaged[i] = static_cast<char>(damaged[i] ^ 4);
    ASSERT_TRUE(files.Write("beta", damaged).ok());
    GlobalAdapter adapter("beta", base_, &transfer_, &files);
    EXPECT_TRUE(adapter.held().run_id().empty()) << i;
    ASSERT_TRUE(files.Write("beta", good.substr(0, i)).ok());
    GlobalAdapter cut("beta", base_, &transfer_, &files);
    EXPECT_TRUE(cut.held().run_id().empty()) << i;
  }
}

TEST_F(GlobalAdapterTest, WhatCannotBeKeptComesWholeNextTime) {
  const std::string dir = ::testing::TempDir() + "global_adapter_full_disk";
  testing::FaultEnv env;
  DirectoryStateStore files(dir, &env, ".adapter");
  GlobalAdapter adapter("gamma", base_, &transfer_, &files);
  ExpectVersion(adapter.Fetch(spec_, Source(1, false, {Delta(0, 1)})), 1);
  env.FailFrom(1, absl::StatusCode::kResourceExhausted, testing::FaultEnv::Span::kForEver,
               testing::FaultEnv::Scope::kWrites);
  ExpectVersion(adapter.Fetch(spec_, Source(2, true, {Delta(1, 2)})), 2);
  EXPECT_THAT(adapter.TakeWarning(), HasSubstr("comes whole"));
  EXPECT_TRUE(adapter.held().run_id().empty());
}

TEST(SharedStateStoreTest, HoldsEqualBytesOnce) {
  SharedStateStore store;
  const std::string bytes(1000, 'x');
  EXPECT_EQ(store.Read("a").status().code(), absl::StatusCode::kNotFound);
  ASSERT_TRUE(store.Write("a", bytes).ok());
  ASSERT_TRUE(store.Write("b", bytes).ok());
  EXPECT_EQ(store.memory_bytes(), 1000u);
  ASSERT_TRUE(store.Write("a", bytes).ok());
  ASSERT_TRUE(store.Write("a", "other").ok());
  EXPECT_EQ(store.memory_bytes(), 1005u);
  EXPECT_EQ(*store.Read("a"), "other");
  EXPECT_EQ(*store.Read("b"), bytes);
  ASSERT_TRUE(store.Write("b", "other").ok());
  EXPECT_EQ(store.memory_bytes(), 5u);
}

}  // namespace
}  // namespace fedge
