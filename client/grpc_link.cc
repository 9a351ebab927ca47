#include "client/grpc_link.h"

#include <grpcpp/grpcpp.h>

#include <algorithm>
#include <chrono>
#include <functional>
#include <set>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "client/grpc_identity.h"
#include "common/base/address.h"
#include "common/base/digest.h"
#include "common/base/failpoint.h"
#include "common/base/protocol_version.h"
#include "common/base/status.h"
#include "fedge/v1/federation.grpc.pb.h"

namespace fedge {
namespace {

constexpr int kMaxReceiveBytes = static_cast<int>(kMaxChunkBytes) + (64 << 10);

using ChannelFactory = std::function<std::shared_ptr<grpc::Channel>()>;

class GrpcLink : public FederationLink {
 public:
  GrpcLink(ChannelFactory connect, std::string address, const GrpcLinkOptions& options)
      : address_(std::move(address)), options_(options), connect_(std::move(connect)) {}

  absl::StatusOr<v1::CheckInResponse> CheckIn(const v1::CheckInRequest& request) override {
    Call call(this, options_.call_deadline);
    call.context.AddMetadata(kProtocolHeader, absl::StrCat(kProtocolVersion));
    v1::CheckInResponse response;
    RETURN_IF_ERROR(ToStatus(call.stub->CheckIn(&call.context, request, &response), "check-in"));
    RETURN_IF_ERROR(CheckServersVersion(call.context));
    return response;
  }

  absl::Status Download(const v1::DownloadRequest& request, const ChunkSink& sink) override {
    Call call(this, options_.transfer_deadline);
    const auto reader = call.stub->Download(&call.context, request);
    v1::Chunk chunk;
    while (reader->Read(&chunk)) {
      const absl::Status taken = sink(chunk);
      if (!taken.ok()) {
        call.context.TryCancel();
        reader->Finish();
        return taken;
      }
    }
    return ToStatus(reader->Finish(), "download");
  }

  absl::StatusOr<v1::QueryUploadResponse> QueryUpload(
      const v1::QueryUploadRequest& request) override {
    Call call(this, options_.call_deadline);
    v1::QueryUploadResponse response;
    RETURN_IF_ERROR(
        ToStatus(call.stub->QueryUpload(&call.context, request, &response), "upload query"));
    return response;
  }

  absl::StatusOr<v1::UploadReceipt> Upload(const v1::UploadId& id, const v1::TaskMetrics& metrics,
                                           absl::string_view bytes, uint64_t offset) override {
    Call call(this, options_.transfer_deadline);
    v1::UploadReceipt receipt;
    const auto writer = call.stub->Upload(&call.context, &receipt);
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
    Call call(this, options_.call_deadline);
    v1::ReportResponse response;
    return ToStatus(call.stub->Report(&call.context, request, &response), "report");
  }

  void Rest() override { Disconnect(); }

  void Interrupt() override {
    absl::MutexLock lock(&mutex_);
    interrupted_ = true;
    for (grpc::ClientContext* const context : calls_) context->TryCancel();
  }

 private:
  using Stub = v1::FederationService::Stub;

  // One call: its context, which Interrupt finds, and the stub of a connection for it.
  struct Call {
    Call(GrpcLink* the_link, absl::Duration deadline) : link(the_link) {
      context.set_deadline(std::chrono::system_clock::now() + absl::ToChronoMilliseconds(deadline));
      absl::MutexLock lock(&link->mutex_);
      if (link->stub_ == nullptr) link->stub_ = v1::FederationService::NewStub(link->connect_());
      stub = link->stub_;
      link->calls_.insert(&context);
      if (link->interrupted_) context.TryCancel();
    }
    ~Call() {
      absl::MutexLock lock(&link->mutex_);
      link->calls_.erase(&context);
    }
    Call(const Call&) = delete;
    Call& operator=(const Call&) = delete;

    GrpcLink* const link;
    grpc::ClientContext context;
    std::shared_ptr<Stub> stub;
  };

  // The next call makes a new connection: one that failed would let calls fail at once for as long
  // as it backs off, and an idle one wakes the process up every few seconds.
  void Disconnect() {
    absl::MutexLock lock(&mutex_);
    stub_ = nullptr;
  }

  absl::Status CheckServersVersion(const grpc::ClientContext& context) const {
    const auto& headers = context.GetServerInitialMetadata();
    const auto said = headers.find(kProtocolHeader);
    if (said == headers.end()) return absl::OkStatus();
    return Annotate(
        CheckProtocolVersion(absl::string_view(said->second.data(), said->second.size()),
                             "upgrade the server, which comes before its devices"),
        absl::StrCat("check-in: the server at ", address_, " speaks"));
  }

  absl::Status ToStatus(const grpc::Status& status, absl::string_view call) {
    if (status.ok()) return absl::OkStatus();
    const auto code = static_cast<absl::StatusCode>(status.error_code());
    if (code == absl::StatusCode::kUnavailable) {
      Disconnect();
      return absl::UnavailableError(
          absl::StrCat(call, ": no server at ", address_, " (", status.error_message(),
                       "); is fedge-server running there, and is the port open from here?"));
    }
    if (code == absl::StatusCode::kCancelled) {
      absl::MutexLock lock(&mutex_);
      // Not by us: a server that goes down ends its calls so.
      if (!interrupted_) {
        return absl::UnavailableError(
            absl::StrCat(call, ": the server at ", address_, " ended the call"));
      }
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
  const ChannelFactory connect_;
  absl::Mutex mutex_;
  std::shared_ptr<Stub> stub_ ABSL_GUARDED_BY(mutex_);  // null: not connected
  std::set<grpc::ClientContext*> calls_ ABSL_GUARDED_BY(mutex_);
  bool interrupted_ ABSL_GUARDED_BY(mutex_) = false;
};

std::unique_ptr<FederationLink> Connect(
    const std::string& address, const std::shared_ptr<grpc::ChannelCredentials>& credentials,
    const GrpcLinkOptions& options) {
  grpc::ChannelArguments arguments;
  arguments.SetMaxReceiveMessageSize(kMaxReceiveBytes);
  arguments.SetInt(GRPC_ARG_ENABLE_RETRIES, 0);  // client/transfer.h repeats, and counts
  // Not the connection of an older certificate to the same address; and its back-off ends with its
  // channel, of which each failure makes a new one.
  arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
  const ChannelFactory connect = [address, credentials, arguments] {
    return grpc::CreateCustomChannel(address, credentials, arguments);
  };
  return std::make_unique<GrpcLink>(connect, address, options);
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
  const ChannelFactory connect = [channel = std::move(channel)] { return channel; };
  return std::make_unique<GrpcLink>(connect, address, options);
}

}  // namespace fedge
