// Devices that follow the versions of a real server over TCP: whatever they miss, lose or find
// damaged, and whenever the server restarts, they hold what the server says they hold.
#include <gtest/gtest.h>

#include <memory>
#include <string>
#include <vector>

#include "client/global_adapter.h"
#include "client/grpc_link.h"
#include "client/server_key.h"
#include "common/base/rng.h"
#include "server/grpc_server.h"
#include "tests/server/federation_test_rig.h"

namespace fedge {
namespace {

using testing::FederationRig;
using testing::NodeName;

constexpr uint64_t kNodes = 8;

class Device {
 public:
  Device(const FederationRig& rig, std::string id) : rig_(rig), id_(std::move(id)) {}

  void Connect(int port) {
    adapter_.reset();
    transfer_.reset();
    link_ = ConnectGrpc(absl::StrCat("127.0.0.1:", port), GrpcLinkOptions()).value();
    transfer_ = std::make_unique<Transfer>(link_.get(), Clock::Real(), RetryPolicy(), 1);
    key_ = std::make_unique<ServerKey>(id_, "", &keys_);
    adapter_ = std::make_unique<GlobalAdapter>(id_, rig_.plan.base_model, transfer_.get(), &kept_,
                                               key_.get());
  }
  // What comes of the next task's adapter.
  absl::Status Try() {
    v1::CheckInRequest request = rig_.CheckInRequest(id_);
    *request.mutable_held_adapter() = adapter_->held();
    const auto answer = transfer_->CheckIn(request);
    RETURN_IF_ERROR(answer.status());
    return adapter_->Fetch(rig_.plan.lora, answer->assignment().adapter()).status();
  }
  uint64_t held_version() { return adapter_->held().version(); }
  // Checks in and gets what it is offered, if anything; returns whether it was.
  bool Follow() {
    v1::CheckInRequest request = rig_.CheckInRequest(id_);
    *request.mutable_held_adapter() = adapter_->held();
    const auto answer = transfer_->CheckIn(request);
    EXPECT_TRUE(answer.ok()) << answer.status();
    if (!answer->has_assignment() && !answer->has_finished()) return false;
    const v1::AdapterSource& source =
        answer->has_finished() ? answer->finished().adapter() : answer->assignment().adapter();
    const uint64_t before = adapter_->downloaded_bytes();
    const auto adapter = adapter_->Fetch(rig_.plan.lora, source);
    if (!adapter.ok() && source.held()) {
      adapter_->Forget();
      return Follow();
    }
    EXPECT_TRUE(adapter.ok()) << adapter.status();
    EXPECT_EQ(adapter->values(), rig_.core->served().values());
    bytes_ += adapter_->downloaded_bytes() - before;
    ++follows_;
    return true;
  }
  void Damage() {
    auto bytes = kept_.Read(id_);
    if (!bytes.ok()) return;
    bytes->back() = static_cast<char>(bytes->back() ^ 1);
    EXPECT_TRUE(kept_.Write(id_, *bytes).ok());
  }
  uint64_t bytes() const { return bytes_; }
  uint64_t follows() const { return follows_; }

 private:
  const FederationRig& rig_;
  const std::string id_;
  SharedStateStore kept_;
  SharedStateStore keys_;
  std::unique_ptr<FederationLink> link_;
  std::unique_ptr<Transfer> transfer_;
  std::unique_ptr<ServerKey> key_;
  std::unique_ptr<GlobalAdapter> adapter_;
  uint64_t bytes_ = 0;
  uint64_t follows_ = 0;
};

TEST(DownlinkIntegrationTest, DevicesHoldTheServersBitsOverTcpAndRestarts) {
  RunPlan plan = testing::TinyPlan();
  plan.rounds = 12;
  plan.downlink = {};
  plan.downlink.density = 0.1;
  FederationRig rig(plan);
  std::vector<std::unique_ptr<Device>> devices;
  for (uint64_t i = 0; i < kNodes; ++i) {
    devices.push_back(std::make_unique<Device>(rig, NodeName(i)));
  }
  std::unique_ptr<GrpcServer> server;
  const auto start = [&] {
    server = GrpcServer::Start(*rig.core, {.listen = "127.0.0.1:0", .worker_threads = 2}).value();
    for (const auto& device : devices) device->Connect(server->port());
  };
  start();
  Rng rng(7);
  while (!rig.core->finished()) {
    for (const auto& device : devices) device->Follow();
    const uint64_t round = rig.core->round();
    const uint64_t version = rig.core->version();
    for (const std::string& node : std::vector<std::string>(rig.events.last_cohort)) {
      rig.UploadUpdate(node, {.round = round, .base_version = version, .seed = rng.Next()});
    }
    ASSERT_EQ(rig.core->version(), version + 1);
    if (rng.Below(4) == 0) devices[rng.Below(kNodes)]->Damage();
    if (version % 5 == 3) {
      server.reset();
      rig.Start();
      start();
    }
  }
  uint64_t bytes = 0;
  uint64_t follows = 0;
  for (const auto& device : devices) {
    EXPECT_TRUE(device->Follow());
    bytes += device->bytes();
    follows += device->follows();
  }
  EXPECT_GT(follows, 30u);
  // The start travels as halves once and after each damage; the rest are headers and small changes.
  const uint64_t halves = 2 * static_cast<uint64_t>(plan.lora.num_parameters());
  EXPECT_LT(bytes, follows * (kAdapterHeaderBytes + halves));
  EXPECT_GT(bytes, kNodes * (kAdapterHeaderBytes + halves));
}

// Nodes, each with its device; all are in each round.
struct SignedRun {
  explicit SignedRun(DownlinkEncoding encoding)
      : rig(Plan(encoding), nullptr, SigningKey::FromSeed(std::string(32, 'k')).value()) {
    for (uint64_t i = 0; i < 4; ++i) {
      devices.push_back(std::make_unique<Device>(rig, NodeName(i)));
    }
    Serve();
  }
  static RunPlan Plan(DownlinkEncoding encoding) {
    RunPlan plan = testing::TinyPlan();
    plan.rounds = 20;
    plan.downlink = {};
    plan.downlink.encoding = encoding;
    return plan;
  }
  void Serve() {
    server.reset();
    server = GrpcServer::Start(*rig.core, {.listen = "127.0.0.1:0", .worker_threads = 2}).value();
    for (const auto& device : devices) device->Connect(server->port());
  }
  void PlayRounds(int rounds) {
    for (int i = 0; i < rounds; ++i) {
      for (const auto& device : devices) device->Follow();
      for (const auto& device : devices) device->Follow();  // the last one's opened the round
      const uint64_t round = rig.core->round();
      rig.PlayRound(4, round, rig.core->version());
    }
  }
  ~SignedRun() { server.reset(); }

  FederationRig rig;
  std::vector<std::unique_ptr<Device>> devices;
  std::unique_ptr<GrpcServer> server;
};

TEST(RollbackIntegrationTest, DevicesFollowToTheBit) {
  for (const DownlinkEncoding encoding :
       {DownlinkEncoding::kDelta, DownlinkEncoding::kFp16, DownlinkEncoding::kExact}) {
    SignedRun run(encoding);
    run.PlayRounds(5);
    ASSERT_EQ(run.rig.core->version(), 5u);
    const LoraAdapter then = run.rig.events.adapters[1];  // of version 2
    const auto number = run.rig.core->Rollback(2, "operator");
    ASSERT_TRUE(number.ok()) << number.status();
    EXPECT_EQ(run.rig.core->version(), 6u);
    EXPECT_EQ(run.rig.core->served().values(), then.values());
    for (const auto& device : run.devices) {
      ASSERT_TRUE(device->Follow());  // compares with the server's bits
      EXPECT_EQ(device->held_version(), 6u);
    }
    run.PlayRounds(2);
    run.rig.Start();
    run.Serve();
    run.PlayRounds(1);
    EXPECT_EQ(run.rig.core->version(), 9u);
    for (const auto& device : run.devices) ASSERT_TRUE(device->Follow());
  }
}

TEST(SignedVersionIntegrationTest, DevicesRefuseAnotherServersVersions) {
  SignedRun run(DownlinkEncoding::kDelta);
  run.PlayRounds(2);
  for (const auto& device : run.devices) device->Follow();
  for (const auto& key :
       {std::optional<SigningKey>(SigningKey::Generate().value()), std::optional<SigningKey>()}) {
    run.server.reset();
    run.rig.signing_key = key;
    run.rig.Start();
    run.Serve();
    run.rig.CheckInAll(4);
    for (const auto& device : run.devices) {
      EXPECT_TRUE(absl::IsUnauthenticated(device->Try())) << device->Try();
      EXPECT_EQ(device->held_version(), 2u);
    }
  }
}

}  // namespace
}  // namespace fedge
