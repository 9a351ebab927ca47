// How a device reaches its aggregation server: the calls of FederationService, one attempt each.
//
// What this is not: patience. Retrying, resuming and checking content is client/transfer.h, which
// works over any link; the tests put a scripted one here, production puts gRPC
// (client/grpc_link.h).
#ifndef FEDGE_CLIENT_FEDERATION_LINK_H_
#define FEDGE_CLIENT_FEDERATION_LINK_H_

#include <cstdint>
#include <functional>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "fedge/v1/federation.pb.h"

namespace fedge {

// Largest piece of content in one message of the protocol.
inline constexpr uint64_t kMaxChunkBytes = 1u << 20;

// Thread-safe. Error codes are the server's or the transport's: Unavailable when the server cannot
// be reached (the message says which address and what to do), DeadlineExceeded when it is too slow.
class FederationLink {
 public:
  // Takes one piece of content; an error ends the download with that error.
  using ChunkSink = std::function<absl::Status(const v1::Chunk& chunk)>;

  virtual ~FederationLink() = default;

  virtual absl::StatusOr<v1::CheckInResponse> CheckIn(const v1::CheckInRequest& request) = 0;

  // Hands the content from request.offset() on to `sink`, piece by piece, as it comes in.
  virtual absl::Status Download(const v1::DownloadRequest& request, const ChunkSink& sink) = 0;

  virtual absl::StatusOr<v1::QueryUploadResponse> QueryUpload(
      const v1::QueryUploadRequest& request) = 0;

  // Sends `bytes` (the whole update) from `offset` on; with the offset at the end, only id and
  // metrics.
  virtual absl::StatusOr<v1::UploadReceipt> Upload(const v1::UploadId& id,
                                                   const v1::TaskMetrics& metrics,
                                                   absl::string_view bytes, uint64_t offset) = 0;

  virtual absl::Status Report(const v1::ReportRequest& request) = 0;

  // No call comes for a while: a connection may go.
  virtual void Rest() {}
  // Ends the call under way and all later ones with Cancelled.
  virtual void Interrupt() {}
};

}  // namespace fedge

#endif  // FEDGE_CLIENT_FEDERATION_LINK_H_
