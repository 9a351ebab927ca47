#include "client/grpc_link.h"

#include <grpcpp/grpcpp.h>

#include <algorithm>
#include <chrono>
#include <utility>

#include "client/grpc_identity.h"
#include "common/base/address.h"
#include "common/base/digest.h"
#include "common/base/failpoint.h"
#include "common/base/status.h"
#include "fedge/v1/federation.grpc.pb.h"

namespace fedge {
namespace {

constexpr int kMaxReceiveBytes = static_cast<int>(kMaxChunkBytes) + (64 << 10);

class GrpcLink : public FederationLink {
 public:
  GrpcLink(std::shared_ptr<grpc::Channel> channel, std::string address,
           const GrpcLinkOptions& options)
      : address_(std::move(address)),
        options_(options),
        stub_(v1::FederationService::NewStub(std::move(channel))) {}

  absl::StatusOr<v1::CheckInResponse> CheckIn(const v1::CheckInRequest& request) override {
    grpc::ClientContext context;
    SetDeadline(options_.call_deadline, &context);
    v1::CheckInResponse response;
    RETURN_IF_ERROR(ToStatus(stub_->CheckIn(&context, request, &response), "check-in"));
    return response;
  }

  absl::Status Download(const v1::DownloadRequest& request, const ChunkSink& sink) override {
    grpc::ClientContext context;
    SetDeadline(options_.transfer_deadline, &context);
    const auto reader = stub_->Download(&context, request);
    v1::Chunk chunk;
    while (reader->Read(&chunk)) {
      const absl::Status taken = sink(chunk);
      if (!taken.ok()) {
        context.TryCancel();
        reader->Finish();
        return taken;
      }
    }
    return ToStatus(reader->Finish(), "download");
  }

  absl::StatusOr<v1::QueryUploadResponse> QueryUpload(
      const v1::QueryUploadRequest& request) override {
    grpc::ClientContext context;
    SetDeadline(options_.call_deadline, &context);
    v1::QueryUploadResponse response;
    RETURN_IF_ERROR(ToStatus(stub_->QueryUpload(&context, request, &response), "upload query"));
    return response;
  }

  absl::StatusOr<v1::UploadReceipt> Upload(const v1::UploadId& id, const v1::TaskMetrics& metrics,
                                           absl::string_view bytes, uint64_t offset) override {
    grpc::ClientContext context;
    SetDeadline(options_.transfer_deadline, &context);
    v1::UploadReceipt receipt;
    const auto writer = stub_->Upload(&context, &receipt);
    v1::UploadRequest request;
    *request.mutable_id() = id;
    *request.mutable_metrics() = metrics;
    bool sending = true;
    do {
      const absl::string_view piece = bytes.substr(
          offset,
          std::min<uint64_t>({options_.chunk_bytes, kMaxChunkBytes, bytes.size() - offset}));
      request.mutable_chunk()->set_offset(offset);
      request.mutable_chunk()->set_data(piece.data(), piece.size());
      request.mutable_chunk()->set_crc32c(Crc32c(piece));
      sending = FEDGE_FAILPOINT("client.chunk").ok() && writer->Write(request);
      request.clear_id();
      request.clear_metrics();
      offset += piece.size();
    } while (sending && offset < bytes.size());
    // A failed write means that the server ended the call, maybe with the verdict already.
    writer->WritesDone();
    RETURN_IF_ERROR(FEDGE_FAILPOINT("client.sent"));
    RETURN_IF_ERROR(ToStatus(writer->Finish(), "upload"));
    return receipt;
  }

  absl::Status Report(const v1::ReportRequest& request) override {
    grpc::ClientContext context;
    SetDeadline(options_.call_deadline, &context);
    v1::ReportResponse response;
    return ToStatus(stub_->Report(&context, request, &response), "report");
  }

 private:
  static void SetDeadline(absl::Duration deadline, grpc::ClientContext* context) {
    context->set_deadline(std::chrono::system_clock::now() + absl::ToChronoMilliseconds(deadline));
  }

  absl::Status ToStatus(const grpc::Status& status, absl::string_view call) const {
    if (status.ok()) return absl::OkStatus();
    const auto code = static_cast<absl::StatusCode>(status.error_code());
    if (code == absl::StatusCode::kUnavailable) {
      return absl::UnavailableError(
          absl::StrCat(call, ": no server at ", address_, " (", status.error_message(),
                       "); is fedge-server running there, and is the port open from here?"));
    }
    if (code == absl::StatusCode::kUnimplemented && status.error_message().empty()) {
      return absl::UnimplementedError(absl::StrCat(call, ": what answers at ", address_,
                                                   " is not a fedge-server of this version"));
    }
    if (code == absl::StatusCode::kDeadlineExceeded) {
      return absl::DeadlineExceededError(
          absl::StrCat(call, ": the server at ", address_, " did not answer in time"));
    }
    return absl::Status(code, absl::StrCat(call, ": ", status.error_message()));
  }

  const std::string address_;
  const GrpcLinkOptions options_;
  const std::unique_ptr<v1::FederationService::Stub> stub_;
};

std::unique_ptr<FederationLink> Connect(
    const std::string& address, const std::shared_ptr<grpc::ChannelCredentials>& credentials,
    const GrpcLinkOptions& options) {
  grpc::ChannelArguments arguments;
  arguments.SetMaxReceiveMessageSize(kMaxReceiveBytes);
  arguments.SetInt(GRPC_ARG_ENABLE_RETRIES, 0);  // client/transfer.h repeats, and counts
  // A server that comes back is found again within seconds.
  arguments.SetInt(GRPC_ARG_MAX_RECONNECT_BACKOFF_MS, 5000);
  arguments.SetInt(GRPC_ARG_INITIAL_RECONNECT_BACKOFF_MS, 200);
  arguments.SetInt(GRPC_ARG_MIN_RECONNECT_BACKOFF_MS, 200);
  // Not the connection of an older certificate to the same address.
  arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
  return MakeGrpcLink(grpc::CreateCustomChannel(address, credentials, arguments), address, options);
}

}  // namespace

absl::StatusOr<std::unique_ptr<FederationLink>> ConnectGrpc(const std::string& address,
                                                            const GrpcLinkOptions& options) {
  RETURN_IF_ERROR(ParseHostPort(address, "server address").status());
  return Connect(address, grpc::InsecureChannelCredentials(), options);
}

std::unique_ptr<FederationLink> ConnectGrpcAs(const NodeIdentity& identity,
                                              std::shared_ptr<ServerCheck> check,
                                              const GrpcLinkOptions& options) {
  return Connect(identity.server, MakeNodeCredentials(identity, std::move(check)), options);
}

std::unique_ptr<FederationLink> MakeGrpcLink(std::shared_ptr<grpc::Channel> channel,
                                             const std::string& address,
                                             const GrpcLinkOptions& options) {
  return std::make_unique<GrpcLink>(std::move(channel), address, options);
}

}  // namespace fedge
