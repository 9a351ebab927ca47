#include "server/federation_service.h"

#include <grpcpp/grpcpp.h>

#include <algorithm>
#include <optional>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/base/clock.h"
#include "common/base/digest.h"
#include "common/base/protocol_version.h"
#include "common/base/status.h"
#include "fedge/v1/federation.grpc.pb.h"
#include "server/connection_gate.h"
#include "server/device_requests.h"
#include "server/grpc_security.h"
#include "server/work_queue.h"

namespace fedge {
namespace {

constexpr size_t kDownloadChunkBytes = size_t{512} << 10;

grpc::Status ToGrpc(const absl::Status& status) {
  // absl's codes have the numbers of gRPC's.
  return grpc::Status(static_cast<grpc::StatusCode>(status.raw_code()),
                      std::string(status.message()));
}

grpc::Status Overloaded() {
  return grpc::Status(grpc::StatusCode::RESOURCE_EXHAUSTED,
                      "the server has too many requests waiting; come back later");
}

// Where connections have certificates, a node speaks for itself alone.
absl::Status CheckSpeaker(const std::optional<std::string>& certified, absl::string_view node_id) {
  if (!certified || *certified == node_id) return absl::OkStatus();
  return absl::PermissionDeniedError(absl::StrCat(
      "node_id: is not '", *certified, "', the node that the connection's certificate names"));
}

absl::Status CheckDevicesVersion(const grpc::CallbackServerContext& context) {
  const auto said = context.client_metadata().find(kProtocolHeader);
  if (said == context.client_metadata().end()) return absl::OkStatus();
  return Annotate(CheckProtocolVersion(absl::string_view(said->second.data(), said->second.size()),
                                       "upgrade fedge-client on this device"),
                  "the device speaks");
}

// Streams content that is in memory, or a mapped base model: a write copies one chunk, so it needs
// no worker. Only finding a blob may read the disk.
class DownloadReactor : public grpc::ServerWriteReactor<v1::Chunk> {
 public:
  DownloadReactor(DeviceRequests& requests, WorkQueue& queue, ConnectionGate* gate,
                  const grpc::CallbackServerContext& context, const v1::DownloadRequest* request)
      : work_(gate, context.peer()), offset_(request->offset()) {
    const absl::Status speaker = CheckSpeaker(CertifiedNode(context), request->node_id());
    if (!speaker.ok()) {
      Finish(ToGrpc(speaker));
      return;
    }
    const auto open = [this, &requests, request = *request] {
      // Many times as large as the others, and mapped already.
      const absl::StatusOr<absl::string_view> model = requests.OpenBaseModel(request);
      if (model.ok()) {
        bytes_ = *model;
        return WriteNext();
      }
      if (!absl::IsNotFound(model.status())) return Finish(ToGrpc(model.status()));
      absl::StatusOr<std::shared_ptr<const std::string>> bytes = requests.OpenDownload(request);
      if (!bytes.ok()) return Finish(ToGrpc(bytes.status()));
      owned_ = *std::move(bytes);
      bytes_ = *owned_;
      WriteNext();
    };
    if (!queue.Schedule(open)) Finish(Overloaded());
  }

  void OnWriteDone(bool ok) override {
    if (!ok) return Finish(grpc::Status(grpc::StatusCode::UNAVAILABLE, "connection lost"));
    WriteNext();
  }
  void OnDone() override { delete this; }

 private:
  void WriteNext() {
    if (offset_ >= bytes_.size()) return Finish(grpc::Status::OK);
    const size_t size = std::min(kDownloadChunkBytes, bytes_.size() - offset_);
    chunk_.set_offset(offset_);
    chunk_.set_data(bytes_.data() + offset_, size);
    chunk_.set_crc32c(Crc32c(chunk_.data()));
    offset_ += size;
    StartWrite(&chunk_);
  }

  const ConnectionGate::Work work_;
  size_t offset_;
  std::shared_ptr<const std::string> owned_;  // null: what is sent is a base model
  absl::string_view bytes_;
  v1::Chunk chunk_;
};

// One message at a time: read, handle on a worker, read on. A slow disk so slows the sender down.
class UploadReactor : public grpc::ServerReadReactor<v1::UploadRequest> {
 public:
  UploadReactor(DeviceRequests& requests, WorkQueue& queue, ConnectionGate* gate,
                const grpc::CallbackServerContext& context, v1::UploadReceipt* receipt)
      : upload_(requests.OpenUpload()),
        queue_(queue),
        gate_(gate),
        receipt_(receipt),
        peer_(context.peer()),
        certified_(CertifiedNode(context)) {
    StartRead(&request_);
  }

  void OnReadDone(bool ok) override {
    work_.emplace(gate_, peer_);
    const bool scheduled = ok ? queue_.Schedule([this] { HandleMessage(); })
                              : queue_.Schedule([this] { HandleEnd(); });
    if (!scheduled) Finish(Overloaded());
  }
  void OnDone() override { delete this; }

 private:
  void HandleMessage() {
    if (request_.has_id()) {
      const absl::Status speaker = CheckSpeaker(certified_, request_.id().node_id());
      if (!speaker.ok()) return Finish(ToGrpc(speaker));
    }
    absl::StatusOr<std::optional<v1::UploadReceipt>> receipt = upload_->OnMessage(request_);
    if (!receipt.ok()) return Finish(ToGrpc(receipt.status()));
    if (!receipt->has_value()) {
      work_.reset();  // it is the device's turn
      return StartRead(&request_);
    }
    *receipt_ = **std::move(receipt);
    Finish(grpc::Status::OK);
  }
  void HandleEnd() {
    absl::StatusOr<v1::UploadReceipt> receipt = upload_->OnEnd();
    if (!receipt.ok()) return Finish(ToGrpc(receipt.status()));
    *receipt_ = *std::move(receipt);
    Finish(grpc::Status::OK);
  }

  const std::unique_ptr<UploadStream> upload_;
  WorkQueue& queue_;
  ConnectionGate* const gate_;
  v1::UploadReceipt* receipt_;
  const std::string peer_;
  const std::optional<std::string> certified_;
  std::optional<ConnectionGate::Work> work_;
  v1::UploadRequest request_;
};

class FederationService final : public v1::FederationService::CallbackService {
 public:
  FederationService(DeviceRequests& requests, WorkQueue& queue, ConnectionGate* gate)
      : requests_(requests), queue_(queue), gate_(gate) {}

  grpc::ServerUnaryReactor* CheckIn(grpc::CallbackServerContext* context,
                                    const v1::CheckInRequest* request,
                                    v1::CheckInResponse* response) override {
    context->AddInitialMetadata(kProtocolHeader, absl::StrCat(kProtocolVersion));
    const absl::Status version = CheckDevicesVersion(*context);
    if (!version.ok()) {
      grpc::ServerUnaryReactor* const reactor = context->DefaultReactor();
      reactor->Finish(ToGrpc(version));
      return reactor;
    }
    return Run(context, request->node_id(), [this, request, response]() -> absl::Status {
      RETURN_IF_ERROR(Assign(requests_.CheckIn(*request), response));
      response->set_server_time_ms(absl::ToUnixMillis(Clock::Real()->Now()));
      return absl::OkStatus();
    });
  }

  grpc::ServerUnaryReactor* QueryUpload(grpc::CallbackServerContext* context,
                                        const v1::QueryUploadRequest* request,
                                        v1::QueryUploadResponse* response) override {
    return Run(context, request->id().node_id(), [this, request, response] {
      return Assign(requests_.QueryUpload(*request), response);
    });
  }

  grpc::ServerUnaryReactor* Report(grpc::CallbackServerContext* context,
                                   const v1::ReportRequest* request, v1::ReportResponse*) override {
    return Run(context, request->node_id(), [this, request] { return requests_.Report(*request); });
  }

  grpc::ServerWriteReactor<v1::Chunk>* Download(grpc::CallbackServerContext* context,
                                                const v1::DownloadRequest* request) override {
    return new DownloadReactor(requests_, queue_, gate_, *context, request);
  }

  grpc::ServerReadReactor<v1::UploadRequest>* Upload(grpc::CallbackServerContext* context,
                                                     v1::UploadReceipt* receipt) override {
    return new UploadReactor(requests_, queue_, gate_, *context, receipt);
  }

 private:
  template <typename T>
  static absl::Status Assign(absl::StatusOr<T> result, T* response) {
    if (result.ok()) *response = *std::move(result);
    return result.status();
  }

  // For the node that the request names. Request and response live until the reactor finishes.
  template <typename Function>
  grpc::ServerUnaryReactor* Run(grpc::CallbackServerContext* context, absl::string_view node_id,
                                Function function) {
    grpc::ServerUnaryReactor* const reactor = context->DefaultReactor();
    const absl::Status speaker = CheckSpeaker(CertifiedNode(*context), node_id);
    if (!speaker.ok()) {
      reactor->Finish(ToGrpc(speaker));
      return reactor;
    }
    auto work = std::make_shared<ConnectionGate::Work>(gate_, context->peer());
    const bool scheduled =
        queue_.Schedule([reactor, work = std::move(work), function = std::move(function)] {
          reactor->Finish(ToGrpc(function()));
        });
    if (!scheduled) reactor->Finish(Overloaded());
    return reactor;
  }

  DeviceRequests& requests_;
  WorkQueue& queue_;
  ConnectionGate* const gate_;
};

}  // namespace

std::unique_ptr<grpc::Service> MakeFederationService(DeviceRequests& requests, WorkQueue& queue,
                                                     ConnectionGate* gate) {
  return std::make_unique<FederationService>(requests, queue, gate);
}

}  // namespace fedge
