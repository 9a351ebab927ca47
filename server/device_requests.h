// What devices ask of a server (proto/PROTOCOL.md), without the transport: one run answers
// (FederationCore), or several side by side (Federation).
#ifndef FEDGE_SERVER_DEVICE_REQUESTS_H_
#define FEDGE_SERVER_DEVICE_REQUESTS_H_

#include <memory>
#include <optional>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "fedge/v1/federation.pb.h"

namespace fedge {

// One Upload stream: feed it the messages in order. Not thread-safe in itself.
class UploadStream {
 public:
  virtual ~UploadStream() = default;
  // A receipt ends the stream; nothing: go on reading.
  virtual absl::StatusOr<std::optional<v1::UploadReceipt>> OnMessage(
      const v1::UploadRequest& request) = 0;
  // The device half-closed before a receipt.
  virtual absl::StatusOr<v1::UploadReceipt> OnEnd() = 0;
};

// Thread-safe. Methods block on the disk (not on the network), for milliseconds as a rule. Codes as
// in proto/PROTOCOL.md.
class DeviceRequests {
 public:
  virtual ~DeviceRequests() = default;
  virtual absl::StatusOr<v1::CheckInResponse> CheckIn(const v1::CheckInRequest& request) = 0;
  // The whole content `request` asks for; its offset is within it.
  virtual absl::StatusOr<std::shared_ptr<const std::string>> OpenDownload(
      const v1::DownloadRequest& request) = 0;
  // The whole base model, if it is served and what `request` asks for; lives as long as this
  // object. NotFound: it is not.
  virtual absl::StatusOr<absl::string_view> OpenBaseModel(const v1::DownloadRequest& /*request*/) {
    return absl::NotFoundError("no base models are served here");
  }
  virtual absl::StatusOr<v1::QueryUploadResponse> QueryUpload(
      const v1::QueryUploadRequest& request) = 0;
  virtual absl::Status Report(const v1::ReportRequest& request) = 0;
  // The stream must end before this object does.
  virtual std::unique_ptr<UploadStream> OpenUpload() = 0;
};

}  // namespace fedge

#endif  // FEDGE_SERVER_DEVICE_REQUESTS_H_
