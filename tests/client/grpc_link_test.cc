#include "client/grpc_link.h"

#include <gmock/gmock.h>
#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>

#include <condition_variable>
#include <mutex>

#include "client/transfer.h"
#include "common/base/digest.h"
#include "common/base/protocol_version.h"
#include "common/base/rng.h"
#include "fedge/v1/federation.grpc.pb.h"
#include "tests/client/fake_server.h"

namespace fedge {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

grpc::Status ToGrpc(const absl::Status& status) {
  return grpc::Status(static_cast<grpc::StatusCode>(status.code()), std::string(status.message()));
}

// The fake server behind real gRPC.
class FakeService : public v1::FederationService::Service {
 public:
  explicit FakeService(testing::FakeServer* server) : server_(server) {}

  grpc::Status CheckIn(grpc::ServerContext* context, const v1::CheckInRequest* request,
                       v1::CheckInResponse* response) override {
    std::unique_lock<std::mutex> lock(mutex);
    if (!protocol.empty()) context->AddInitialMetadata(kProtocolHeader, protocol);
    const auto said = context->client_metadata().find(kProtocolHeader);
    device_protocol = said == context->client_metadata().end()
                          ? ""
                          : std::string(said->second.data(), said->second.size());
    released.wait(lock, [this] { return !hanging; });
    const auto answer = server_->CheckIn(*request);
    if (answer.ok()) *response = *answer;
    return ToGrpc(answer.status());
  }
  grpc::Status Download(grpc::ServerContext*, const v1::DownloadRequest* request,
                        grpc::ServerWriter<v1::Chunk>* writer) override {
    return ToGrpc(server_->Download(*request, [&](const v1::Chunk& chunk) {
      return writer->Write(chunk) ? absl::OkStatus() : absl::CancelledError("gone");
    }));
  }
  grpc::Status QueryUpload(grpc::ServerContext*, const v1::QueryUploadRequest* request,
                           v1::QueryUploadResponse* response) override {
    *response = *server_->QueryUpload(*request);
    return grpc::Status::OK;
  }
  grpc::Status Upload(grpc::ServerContext*, grpc::ServerReader<v1::UploadRequest>* reader,
                      v1::UploadReceipt* receipt) override {
    v1::UploadRequest request;
    std::string bytes;
    v1::UploadId id;
    v1::TaskMetrics metrics;
    uint64_t start = 0;
    messages = 0;
    while (reader->Read(&request)) {
      if (messages++ == 0) {
        id = request.id();
        metrics = request.metrics();
        start = request.chunk().offset();
        bytes.assign(start, '\0');
      }
      if (request.has_id() != (messages == 1)) return ToGrpc(absl::InvalidArgumentError("id"));
      if (request.chunk().offset() != bytes.size() ||
          Crc32c(request.chunk().data()) != request.chunk().crc32c()) {
        return ToGrpc(absl::DataLossError("chunk"));
      }
      bytes += request.chunk().data();
    }
    const auto answer = server_->Upload(id, metrics, bytes, start);
    if (answer.ok()) *receipt = *answer;
    return ToGrpc(answer.status());
  }
  grpc::Status Report(grpc::ServerContext*, const v1::ReportRequest* request,
                      v1::ReportResponse*) override {
    return ToGrpc(server_->Report(*request));
  }

  int messages = 0;  // of the last upload
  std::mutex mutex;
  std::condition_variable released;
  bool hanging = false;
  std::string protocol;         // what it says it speaks; empty: nothing
  std::string device_protocol;  // what the last device said

 private:
  testing::FakeServer* const server_;
};

class GrpcLinkTest : public ::testing::Test {
 protected:
  GrpcLinkTest() : service_(&server_) {
    grpc::ServerBuilder builder;
    builder.RegisterService(&service_);
    grpc_server_ = builder.BuildAndStart();
  }

  std::unique_ptr<FederationLink> Link(const GrpcLinkOptions& options = GrpcLinkOptions()) {
    return MakeGrpcLink(grpc_server_->InProcessChannel({}), "test:1", options);
  }

  static std::string RandomBytes(size_t size) {
    Rng rng(size);
    std::string bytes(size, '\0');
    for (char& byte : bytes) byte = static_cast<char>(rng.Next());
    return bytes;
  }

  testing::FakeServer server_;
  FakeService service_;
  std::unique_ptr<grpc::Server> grpc_server_;
};

TEST_F(GrpcLinkTest, CarriesCheckInsAndReports) {
  server_.answer.mutable_retry()->set_reason("later");
  v1::CheckInRequest request;
  request.set_node_id("alpha");
  const auto answer = Link()->CheckIn(request);
  ASSERT_TRUE(answer.ok()) << answer.status();
  EXPECT_EQ(answer->retry().reason(), "later");
  EXPECT_EQ(server_.check_ins[0].node_id(), "alpha");
  v1::ReportRequest report;
  report.set_error("no data");
  EXPECT_TRUE(Link()->Report(report).ok());
  EXPECT_EQ(server_.reports[0].error(), "no data");
}

TEST_F(GrpcLinkTest, TellsItsProtocolVersionAndTakesPartOnlyInOneItSpeaks) {
  server_.answer.mutable_retry()->set_reason("later");
  EXPECT_TRUE(Link()->CheckIn({}).ok());  // a server from before there were versions
  EXPECT_EQ(service_.device_protocol, absl::StrCat(kProtocolVersion));
  service_.protocol = absl::StrCat(kProtocolVersion + 1);  // which knows this one
  EXPECT_TRUE(Link()->CheckIn({}).ok());
  service_.protocol = "0";
  const absl::Status old = Link()->CheckIn({}).status();
  EXPECT_EQ(old.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(old.message()),
              HasSubstr("the server at test:1 speaks: protocol version 0, and here versions 1 to 1 "
                        "are spoken; upgrade the server"));
  service_.protocol = "x";
  EXPECT_EQ(Link()->CheckIn({}).status().code(), absl::StatusCode::kInvalidArgument);
}

TEST_F(GrpcLinkTest, KeepsTheServersCodeAndWords) {
  server_.check_in_errors = {absl::FailedPreconditionError("base model differs")};
  const auto answer = Link()->CheckIn({});
  EXPECT_EQ(answer.status(), absl::FailedPreconditionError("check-in: base model differs"));
}

TEST_F(GrpcLinkTest, DownloadsInChunksAndResumes) {
  const std::string bytes = RandomBytes(3'000'000);
  server_.chunk_bytes = kMaxChunkBytes;
  server_.break_downloads_after = {1};
  const v1::ContentRef ref = server_.Offer(bytes);
  const auto link = Link();
  ManualClock clock;
  Transfer transfer(link.get(), &clock, RetryPolicy(), 1);
  const auto content = transfer.Fetch("alpha", ref, 4'000'000);
  ASSERT_TRUE(content.ok()) << content.status();
  EXPECT_EQ(Sha256Of(*content), Sha256Of(bytes));
  EXPECT_THAT(server_.download_offsets, ElementsAre(0, kMaxChunkBytes));
}

TEST_F(GrpcLinkTest, UploadsInChunksAndResumesWhereTheServerIs) {
  const std::string bytes = RandomBytes(1'000'000);
  server_.break_uploads_after = {400'000};
  v1::UploadId id;
  id.set_sha256(Sha256Of(bytes).Raw());
  id.set_size_bytes(bytes.size());
  v1::TaskMetrics metrics;
  metrics.set_train_tokens(77);
  GrpcLinkOptions options;
  options.chunk_bytes = 100'000;
  const auto link = Link(options);
  ManualClock clock;
  Transfer transfer(link.get(), &clock, RetryPolicy(), 1);
  const auto receipt = transfer.Submit(id, metrics, bytes);
  ASSERT_TRUE(receipt.ok()) << receipt.status();
  EXPECT_EQ(receipt->verdict(), v1::UploadReceipt::ACCEPTED);
  EXPECT_THAT(server_.upload_offsets, ElementsAre(0, 400'000));
  EXPECT_EQ(service_.messages, 6);
  EXPECT_EQ(Sha256Of(server_.received_whole), Sha256Of(bytes));
  EXPECT_EQ(server_.metrics.train_tokens(), 77u);
}

TEST_F(GrpcLinkTest, AServerThatHangsRunsIntoTheDeadline) {
  service_.hanging = true;
  GrpcLinkOptions options;
  options.call_deadline = absl::Milliseconds(30);
  const auto answer = Link(options)->CheckIn({});
  {
    std::lock_guard<std::mutex> lock(service_.mutex);
    service_.hanging = false;
  }
  service_.released.notify_all();
  EXPECT_EQ(answer.status().code(), absl::StatusCode::kDeadlineExceeded);
  EXPECT_THAT(answer.status().message(), HasSubstr("test:1 did not answer in time"));
}

TEST_F(GrpcLinkTest, AServerThatIsNotThereIsNamedWithARemedy) {
  // A port that was free a moment ago.
  int port = 0;
  {
    grpc::ServerBuilder builder;
    builder.AddListeningPort("127.0.0.1:0", grpc::InsecureServerCredentials(), &port);
    builder.RegisterService(&service_);
    builder.BuildAndStart();
  }
  const std::string address = absl::StrCat("127.0.0.1:", port);
  const auto link = ConnectGrpc(address, GrpcLinkOptions());
  ASSERT_TRUE(link.ok());
  const auto answer = (*link)->CheckIn({});
  EXPECT_EQ(answer.status().code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(answer.status().message(), HasSubstr(address));
  EXPECT_THAT(answer.status().message(), HasSubstr("is fedge-server running there"));
}

TEST_F(GrpcLinkTest, AddressesAreChecked) {
  for (const char* bad : {"", "host", ":80", "host:", "host:x", "host:0", "host:65536"}) {
    EXPECT_EQ(ConnectGrpc(bad, GrpcLinkOptions()).status().code(),
              absl::StatusCode::kInvalidArgument)
        << bad;
  }
}

}  // namespace
}  // namespace fedge
