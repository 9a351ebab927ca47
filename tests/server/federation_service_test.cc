// The service as devices see it: through an in-process channel and over 127.0.0.1.
#include "server/federation_service.h"

#include <gmock/gmock.h>
#include <grpcpp/generic/generic_stub.h>
#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>

#include <memory>
#include <thread>

#include "absl/synchronization/notification.h"
#include "common/base/protocol_version.h"
#include "fedge/v1/federation.grpc.pb.h"
#include "server/grpc_server.h"
#include "tests/server/federation_test_rig.h"

namespace fedge {
namespace {

using testing::FederationRig;
using ::testing::HasSubstr;
using testing::MakeUpdate;
using testing::NodeName;

// A device that follows PROTOCOL.md, with updates made by hand.
class Device {
 public:
  Device(std::shared_ptr<grpc::Channel> channel, const FederationRig& rig, std::string node)
      : stub_(v1::FederationService::NewStub(channel)), rig_(rig), node_(std::move(node)) {}

  v1::CheckInResponse CheckIn() {
    grpc::ClientContext context;
    context.set_wait_for_ready(true);  // a slow machine may need several attempts to connect
    v1::CheckInResponse response;
    const grpc::Status status = stub_->CheckIn(&context, rig_.CheckInRequest(node_), &response);
    EXPECT_TRUE(status.ok()) << status.error_message();
    return response;
  }

  grpc::Status Download(const v1::ContentRef& content, uint64_t offset, std::string& bytes) {
    grpc::ClientContext context;
    v1::DownloadRequest request;
    request.set_node_id(node_);
    request.set_sha256(content.sha256());
    request.set_offset(offset);
    const auto reader = stub_->Download(&context, request);
    for (v1::Chunk chunk; reader->Read(&chunk);) {
      EXPECT_EQ(chunk.offset(), offset + bytes.size());
      EXPECT_EQ(chunk.crc32c(), Crc32c(chunk.data()));
      bytes += chunk.data();
    }
    return reader->Finish();
  }

  grpc::Status Upload(const std::vector<v1::UploadRequest>& messages, v1::UploadReceipt& receipt) {
    grpc::ClientContext context;
    const auto writer = stub_->Upload(&context, &receipt);
    for (const v1::UploadRequest& message : messages) {
      if (!writer->Write(message)) break;  // the server has decided
    }
    writer->WritesDone();
    return writer->Finish();
  }

  // One pass through the protocol; false when the run is over.
  bool Step() {
    const v1::CheckInResponse response = CheckIn();
    if (response.has_finished()) return false;
    if (!response.has_assignment()) return true;
    const v1::Assignment& task = response.assignment();
    std::string adapter;
    EXPECT_TRUE(Download(task.adapter().values(), 0, adapter).ok());
    EXPECT_EQ(Sha256Of(adapter).Raw(), task.adapter().values().sha256());
    const std::string update = MakeUpdate(
        rig_.plan,
        {.round = task.round(), .base_version = task.adapter_version(), .seed = task.seed()});
    v1::UploadReceipt receipt;
    const grpc::Status status = Upload(rig_.MessagesOf(node_, task.round(), update, 100), receipt);
    EXPECT_TRUE(status.ok()) << status.error_message();
    EXPECT_EQ(receipt.verdict(), v1::UploadReceipt::ACCEPTED) << receipt.reason();
    return true;
  }

  v1::FederationService::Stub& stub() { return *stub_; }

 private:
  std::unique_ptr<v1::FederationService::Stub> stub_;
  const FederationRig& rig_;
  std::string node_;
};

std::unique_ptr<GrpcServer> StartServer(FederationRig& rig, std::string listen = "127.0.0.1:0") {
  auto server = GrpcServer::Start(*rig.core, {.listen = std::move(listen), .worker_threads = 2});
  FEDGE_CHECK(server.ok(), server.status().message());
  return *std::move(server);
}

std::shared_ptr<grpc::Channel> Connect(const GrpcServer& server) {
  return grpc::CreateChannel(absl::StrCat("127.0.0.1:", server.port()),
                             grpc::InsecureChannelCredentials());
}

void PlayRun(FederationRig& rig, const std::vector<std::shared_ptr<grpc::Channel>>& channels) {
  std::vector<std::thread> threads;
  for (uint64_t i = 0; i < 4; ++i) {
    threads.emplace_back([&rig, channel = channels[i % channels.size()], i] {
      Device device(channel, rig, NodeName(i));
      while (device.Step()) std::this_thread::yield();
    });
  }
  for (std::thread& thread : threads) thread.join();
}

TEST(FederationServiceTest, RefusesADeviceOfAProtocolItDoesNotSpeak) {
  FederationRig rig;
  const auto server = GrpcServer::Start(*rig.core, {.listen = ""}).value();
  const auto stub = v1::FederationService::NewStub(server->InProcessChannel());
  const auto check_in = [&](const std::string& version) {
    grpc::ClientContext context;
    if (!version.empty()) context.AddMetadata(kProtocolHeader, version);
    v1::CheckInResponse response;
    const grpc::Status status = stub->CheckIn(&context, rig.CheckInRequest("n"), &response);
    const auto said = context.GetServerInitialMetadata().find(kProtocolHeader);
    EXPECT_NE(said, context.GetServerInitialMetadata().end());
    return status;
  };
  EXPECT_TRUE(check_in("").ok());  // of before there were versions
  EXPECT_TRUE(check_in(absl::StrCat(kProtocolVersion)).ok());
  EXPECT_TRUE(check_in(absl::StrCat(kProtocolVersion + 1)).ok());  // it decides for itself
  const grpc::Status old = check_in("0");
  EXPECT_EQ(old.error_code(), grpc::StatusCode::FAILED_PRECONDITION);
  EXPECT_THAT(old.error_message(), HasSubstr("upgrade fedge-client on this device"));
  EXPECT_EQ(check_in("one").error_code(), grpc::StatusCode::INVALID_ARGUMENT);
}

TEST(FederationServiceTest, FinishesARunOverAnyTransportWithTheSameBytes) {
  FederationRig in_process;
  auto first = StartServer(in_process, "");
  EXPECT_EQ(first->port(), 0);
  PlayRun(in_process, {first->InProcessChannel()});
  FederationRig tcp;
  auto second = StartServer(tcp);
  EXPECT_GT(second->port(), 0);
  PlayRun(tcp, {Connect(*second), Connect(*second)});
  ASSERT_EQ(in_process.events.versions.size(), 3u);
  ASSERT_EQ(tcp.events.versions.size(), 3u);
  EXPECT_EQ(in_process.events.versions[2].encoded, tcp.events.versions[2].encoded);
  EXPECT_EQ(in_process.events.versions[2].counts.accepted, 4);
}

TEST(FederationServiceTest, ResumesDownloads) {
  FederationRig rig;
  auto server = StartServer(rig);
  Device device(Connect(*server), rig, "node-00");
  rig.CheckInAll(4);
  const v1::ContentRef content = device.CheckIn().assignment().adapter().values();
  std::string whole;
  ASSERT_TRUE(device.Download(content, 0, whole).ok());
  ASSERT_EQ(whole.size(), content.size_bytes());
  for (const uint64_t offset : {uint64_t{1}, whole.size() / 2, whole.size()}) {
    std::string rest;
    ASSERT_TRUE(device.Download(content, offset, rest).ok());
    EXPECT_EQ(rest, whole.substr(offset));
  }
  std::string none;
  EXPECT_EQ(device.Download(content, whole.size() + 1, none).error_code(),
            grpc::StatusCode::OUT_OF_RANGE);
  v1::ContentRef unknown;
  unknown.set_sha256(Sha256Of("unknown").Raw());
  EXPECT_EQ(device.Download(unknown, 0, none).error_code(), grpc::StatusCode::NOT_FOUND);
}

TEST(FederationServiceTest, GoesOnWithABrokenUpload) {
  FederationRig rig;
  auto server = StartServer(rig);
  Device device(Connect(*server), rig, "node-00");
  rig.CheckInAll(4);
  const std::string update = MakeUpdate(rig.plan, {.seed = 4});
  std::vector<v1::UploadRequest> messages = rig.MessagesOf("node-00", 1, update, 50);
  v1::UploadReceipt receipt;
  ASSERT_TRUE(device.Upload({messages[0], messages[1]}, receipt).ok());
  EXPECT_EQ(receipt.verdict(), v1::UploadReceipt::VERDICT_UNSPECIFIED);
  EXPECT_EQ(receipt.committed_bytes(), 100u);

  {  // cut in the middle of a stream
    grpc::ClientContext context;
    v1::UploadReceipt ignored;
    const auto writer = device.stub().Upload(&context, &ignored);
    ASSERT_TRUE(writer->Write(rig.MessagesOf("node-00", 1, update, 50, 100)[0]));
    context.TryCancel();
    EXPECT_EQ(writer->Finish().error_code(), grpc::StatusCode::CANCELLED);
  }
  grpc::ClientContext context;
  v1::QueryUploadRequest query;
  *query.mutable_id() = rig.IdOf("node-00", 1, update);
  v1::QueryUploadResponse held;
  ASSERT_TRUE(device.stub().QueryUpload(&context, query, &held).ok());
  EXPECT_GE(held.committed_bytes(), 100u);  // the chunk before the cut may have come or not
  EXPECT_FALSE(held.has_receipt());
  // From 100 on whatever the cut stream brought: what is held is ignored.
  ASSERT_TRUE(device.Upload(rig.MessagesOf("node-00", 1, update, 50, 100), receipt).ok());
  EXPECT_EQ(receipt.verdict(), v1::UploadReceipt::ACCEPTED);
  EXPECT_EQ(receipt.committed_bytes(), update.size());
  // The receipt got lost: again, and the stream ends at the first message.
  ASSERT_TRUE(device.Upload(messages, receipt).ok());
  EXPECT_EQ(receipt.verdict(), v1::UploadReceipt::ACCEPTED);
}

TEST(FederationServiceTest, ReportsErrorsWithTheirCodes) {
  FederationRig rig;
  auto server = StartServer(rig);
  Device device(Connect(*server), rig, "node-00");
  rig.CheckInAll(4);
  const std::string update = MakeUpdate(rig.plan, {});
  v1::UploadReceipt receipt;

  std::vector<v1::UploadRequest> gap = rig.MessagesOf("node-00", 1, update, 50, 50);
  grpc::Status status = device.Upload(gap, receipt);
  EXPECT_EQ(status.error_code(), grpc::StatusCode::OUT_OF_RANGE);
  EXPECT_THAT(status.error_message(), HasSubstr("0 bytes are held, go on there"));

  std::vector<v1::UploadRequest> damaged = rig.MessagesOf("node-00", 1, update, 50);
  damaged[0].mutable_chunk()->set_crc32c(1);
  EXPECT_EQ(device.Upload(damaged, receipt).error_code(), grpc::StatusCode::DATA_LOSS);

  std::vector<v1::UploadRequest> huge = rig.MessagesOf("node-00", 1, update, 50);
  huge[0].mutable_id()->set_size_bytes(uint64_t{1} << 40);
  EXPECT_EQ(device.Upload(huge, receipt).error_code(), grpc::StatusCode::INVALID_ARGUMENT);

  std::vector<v1::UploadRequest> oversized(1);
  *oversized[0].mutable_id() = rig.IdOf("node-00", 1, update);
  oversized[0].mutable_chunk()->set_data(std::string(3 << 20, 'x'));
  EXPECT_EQ(device.Upload(oversized, receipt).error_code(),
            grpc::StatusCode::RESOURCE_EXHAUSTED);  // gRPC's own message limit

  grpc::ClientContext context;
  v1::CheckInRequest foreign = rig.CheckInRequest("node-00");
  foreign.set_base_model_sha256(Sha256Of("foreign").Raw());
  v1::CheckInResponse response;
  status = device.stub().CheckIn(&context, foreign, &response);
  EXPECT_EQ(status.error_code(), grpc::StatusCode::FAILED_PRECONDITION);
  EXPECT_THAT(status.error_message(), HasSubstr("base model: the device holds"));
  EXPECT_EQ(rig.core->version(), 0u);
}

TEST(FederationServiceTest, NamesAPortThatIsTaken) {
  FederationRig rig;
  auto server = StartServer(rig);
  const std::string listen = absl::StrCat("127.0.0.1:", server->port());
  const auto second = GrpcServer::Start(*rig.core, {.listen = listen});
  EXPECT_EQ(second.status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(second.status().message()),
              HasSubstr(absl::StrCat("cannot listen on ", listen)));
  for (const std::string bad : {"nonsense", ":80", "host:", "host:x", "host:70000"}) {
    EXPECT_EQ(GrpcServer::Start(*rig.core, {.listen = bad}).status().code(),
              absl::StatusCode::kInvalidArgument)
        << bad;
  }
}

TEST(FederationServiceTest, AnswersHealthChecks) {
  FederationRig rig;
  auto server = StartServer(rig);
  grpc::GenericStub stub(Connect(*server));
  grpc::ClientContext context;
  context.set_wait_for_ready(true);
  // HealthCheckRequest{service: "fedge.v1.FederationService"}, by hand: its stub is not installed.
  const std::string service = "fedge.v1.FederationService";
  const grpc::Slice bytes(
      absl::StrCat("\n", std::string(1, static_cast<char>(service.size())), service));
  grpc::ByteBuffer request(&bytes, 1);
  grpc::ByteBuffer response;
  absl::Notification done;
  grpc::Status status;
  stub.UnaryCall(&context, "/grpc.health.v1.Health/Check", grpc::StubOptions(), &request, &response,
                 [&](grpc::Status result) {
                   status = std::move(result);
                   done.Notify();
                 });
  done.WaitForNotification();
  ASSERT_TRUE(status.ok()) << status.error_message();
  grpc::Slice answer;
  ASSERT_TRUE(response.TrySingleSlice(&answer).ok());
  EXPECT_EQ(std::string(answer.begin(), answer.end()), std::string("\x08\x01"));  // SERVING
}

TEST(FederationServiceTest, ShutsDownWithCallsOpen) {
  FederationRig rig;
  auto server = StartServer(rig);
  rig.CheckInAll(4);
  Device device(Connect(*server), rig, "node-00");
  const std::string update = MakeUpdate(rig.plan, {});
  grpc::ClientContext context;
  v1::UploadReceipt receipt;
  const auto writer = device.stub().Upload(&context, &receipt);
  ASSERT_TRUE(writer->Write(rig.MessagesOf("node-00", 1, update, 50)[0]));
  server->Shutdown(absl::ZeroDuration());
  EXPECT_FALSE(writer->Finish().ok());
  server->Shutdown(absl::ZeroDuration());  // again: nothing happens
}

}  // namespace
}  // namespace fedge
